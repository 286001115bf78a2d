# SPDX-License-Identifier: Apache-2.0
"""Losses over who is near whom: the strings of `config.loss` become code."""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import factory
from i2ploc.errors import InputError
from i2ploc.losses import adversary as adversary_lib
from i2ploc.losses import alignment
from i2ploc.losses import classes
from i2ploc.losses import contrastive
from i2ploc.losses import metric
from i2ploc.losses import mining as mining_lib
from i2ploc.losses import multi_similarity
from i2ploc.losses import relational
from i2ploc.losses import soft_targets
from i2ploc.losses import tiled
from i2ploc.losses import tiles
from i2ploc.retrieval import relations as relations_lib
from i2ploc.training import step as step_lib

Fields = Mapping[str, Any]


class _Relations:
  """Who is near whom in a batch: all pairs at once, or a tile of them."""

  def __init__(
    self,
    batch: Fields,
    sides: Mapping[str, str],
    positive_radius: float,
    ignore_radius: float,
  ):
    self._batch, self._sides = batch, sides
    self._positive_radius, self._ignore_radius = positive_radius, ignore_radius

  def __call__(self, one: str = 'a', other: str = 'b') -> jax.Array:
    """[B, B] of the readings of two sides; row i of both is a pair."""
    return self._relate(self._places(one), self._places(other), paired=True)

  def in_tiles(self) -> tiles.Places:
    """The same of a and b, for a loss that asks tile by tile."""
    return tiles.Places(self._relate_tile, self._places('a'), self._places('b'))

  def _places(self, side):
    side = self._sides[side]
    position = self._batch[f'{side}_position']
    row = jnp.arange(len(position))
    return {
      'position': position,
      'town': self._batch[f'{side}_town'],
      'row': row,
    }

  def _relate(self, a, b, paired):
    return relations_lib.from_positions(
      a['position'],
      a['town'],
      b['position'],
      b['town'],
      positive_radius=self._positive_radius,
      ignore_radius=self._ignore_radius,
      paired=paired,
    )

  def _relate_tile(self, a, b):
    own = a['row'][:, None] == b['row']
    return jnp.where(own, 1, self._relate(a, b, paired=False))


class _OneSide:
  """Who is near whom in a batch of one side, which is a and b alike.

  Readings of equal `place` were put together on purpose; others follow from
  positions, of sequences from those of all frames, or from footprints.
  """

  def __init__(
    self,
    batch: Fields,
    side: str,
    positive_radius: float,
    ignore_radius: float,
    neutral: bool,
  ):
    self._batch, self._side = batch, side
    self._radii: dict[str, Any] = dict(
      positive_radius=positive_radius, ignore_radius=ignore_radius
    )
    self._neutral = neutral

  def __call__(self, one: str = 'a', other: str = 'b') -> jax.Array:
    """[B, B]; an image is no answer to itself."""
    del one, other
    batch = self._batch
    found = relations_lib.of_one_side(
      self._by_footprint() if 'footprint' in batch else self._by_position(),
      batch.get('place'),
      batch.get('labelled'),
    )
    index = batch[f'{self._side}_index']
    # A row may come twice where there are too few.
    return jnp.where(index[:, None] == index, relations_lib.IGNORE, found)

  def classes(self) -> tuple[jax.Array, jax.Array]:
    """Group and class [B] of each reading, see `plans.classes`."""
    return self._batch['group'], self._batch['class']

  def _by_position(self):
    position = self._batch[f'{self._side}_position']
    town = self._batch[f'{self._side}_town']
    frames = 1 if position.ndim == 2 else position.shape[1]
    position, town = position.reshape(-1, 3), jnp.repeat(town, frames)
    found: jax.Array = relations_lib.from_positions(
      position, town, position, town, **self._radii
    )
    if not self._radii['positive_radius']:
      # Pictures of one position may look in different directions.
      found = jnp.minimum(found, relations_lib.IGNORE)
    return relations_lib.any_frame(found, frames)

  def _by_footprint(self):
    footprint = self._batch['footprint']
    town = self._batch[f'{self._side}_town']
    overlap = relations_lib.IGNORE if self._neutral else relations_lib.NEGATIVE
    return relations_lib.from_footprints(
      footprint, town, footprint, town, overlap=overlap
    )


class _TextRelations:
  """Which crop is described by which text: all pairs at once, or a tile."""

  def __init__(self, texts: Fields):
    self._texts = texts

  def __call__(self) -> jax.Array:
    """[N, N] of crops and texts; text i is that of crop i."""
    return self._relate(self._texts, self._texts)

  def in_tiles(self) -> tiles.Places:
    """The same, for a loss that asks tile by tile."""
    return tiles.Places(self._relate, self._texts, self._texts)

  def _relate(self, a, b):
    return relations_lib.from_texts(
      a['tokens'], a['mask'], b['tokens'], b['mask']
    )


def _check_tile(tile: int) -> None:
  if tile < 0:
    raise InputError(f'tile={tile}: expected rows, or 0 for all pairs at once')


def _info_nce(*, form: str, tile: int = 0) -> Callable:
  """InfoNCE with the model's scale.

  Args:
    form: 'clip' or 'concatenated'.
    tile: rows compared at once, see `tiled.info_nce`; 0 for all.
  """
  _check_tile(tile)
  if tile and form != 'clip':
    raise InputError(f"tile={tile} with form={form!r}: expected form='clip'")

  def loss(params, a, b, relate, key):
    del key
    scale = contrastive.clamped_scale(params['log_scale'])
    rows = a.descriptor, b.descriptor
    if tile:
      return tiled.info_nce(*rows, scale, relate.in_tiles(), tile=tile)
    return contrastive.info_nce(*rows, scale, relate(), form)

  return loss


def _sigmoid(*, tile: int = 0) -> Callable:
  """The sigmoid loss with the model's scale and bias; `tile` as of InfoNCE."""
  _check_tile(tile)

  def loss(params, a, b, relate, key):
    del key
    if 'similarity_bias' not in params:
      raise InputError(
        "loss 'sigmoid' learns a bias that the model lacks: set "
        'model.initial_bias, to -10.0 or about -log(batch size)'
      )
    scale = contrastive.clamped_scale(params['log_scale'])
    rows = a.descriptor, b.descriptor
    factors = scale, params['similarity_bias']
    if tile:
      return tiled.sigmoid(*rows, *factors, relate.in_tiles(), tile=tile)
    return contrastive.sigmoid(*rows, *factors, relate())

  return loss


def _soft_targets() -> Callable:
  """See `soft_targets.soft_targets`; it takes descriptors before their norm."""

  def loss(params, a, b, relate, key):
    del params, key
    return soft_targets.soft_targets(a.features, b.features, relate())

  return loss


def _triplet(*, mining: str, margin: float) -> Callable:
  """See `metric.triplet`."""
  metric.check_mining(mining, margin)

  def loss(params, a, b, relate, key):
    del params
    return metric.triplet(
      a.descriptor,
      b.descriptor,
      relate(),
      mining=mining,
      margin=margin,
      key=key,
    )

  return loss


def _four_triplets(
  *, mining: str, margin: float, within_weight: float
) -> Callable:
  """See `metric.four_triplets`."""
  metric.check_mining(mining, margin)

  def loss(params, a, b, relate, key):
    del params
    return metric.four_triplets(
      a.descriptor,
      b.descriptor,
      relate('a', 'b'),
      relate('a', 'a'),
      relate('b', 'b'),
      mining=mining,
      margin=margin,
      within_weight=within_weight,
      key=key,
    )

  return loss


def _multi_similarity(
  *,
  alpha: float,
  beta: float,
  threshold: float,
  mining: str,
  mining_margin: float,
) -> Callable:
  """See `multi_similarity.multi_similarity`."""
  mining_lib.check_form(mining, mining_margin)
  multi_similarity.check_factors(alpha, beta)

  def loss(params, a, b, relate, key):
    del params, key
    return multi_similarity.multi_similarity(
      a.descriptor,
      b.descriptor,
      relate(),
      alpha=alpha,
      beta=beta,
      threshold=threshold,
      mining=mining,
      mining_margin=mining_margin,
    )

  return loss


def _classes(
  *, scale: float, margin: float, num_heads: int, learned: 'Learned'
) -> Callable:
  """See `classes.cosine_margin`; the weights are the loss's own."""
  classes.check_margin(scale, margin)

  def loss(params, a, b, relate, key):
    del b, key
    return classes.cosine_margin(
      a.descriptor,
      params['loss']['classes'],
      *relate.classes(),
      jnp.asarray(learned.class_counts()),
      scale=scale,
      margin=margin,
      num_heads=num_heads,
    )

  return loss


def _alignment(*, frozen: str) -> Callable:
  """See `alignment.alignment`."""
  alignment.check_frozen(frozen)

  def loss(params, a, b, relate, key):
    del params, key
    return alignment.alignment(
      a.descriptor, b.descriptor, relate(), frozen=frozen
    )

  return loss


# Each makes `params, a, b, relate, key -> value, metrics`: a and b are
# `Embedding`s, and `relate` tells who is near whom.
LOSSES = {
  'info_nce': _info_nce,
  'sigmoid': _sigmoid,
  'soft_targets': _soft_targets,
  'triplet': _triplet,
  'four_triplets': _four_triplets,
  'multi_similarity': _multi_similarity,
  'alignment': _alignment,
}


class Learned(NamedTuple):
  """What the sizes of a loss's own parameters follow from.

  Functions, since data is opened after a model and its losses are known to be
  possible.

  Attributes:
    class_counts: -> [G], classes of each group.
    num_domains: -> number of conditions of light and weather.
  """

  class_counts: Callable[[], np.ndarray]
  num_domains: Callable[[], int]


class Objective(NamedTuple):
  """A loss with parameters of its own, below 'loss' in those of a training.

  Attributes:
    loss: see `step.make_train_step`.
    init: `key, features, content -> parameters`, {} for none: widths of the
      descriptors and of `Embedding.content`.
  """

  loss: step_lib.Loss
  init: Callable[[jax.Array, int, int], dict]


def make_loss(
  *,
  name: str = 'info_nce',
  positive_radius: float,
  ignore_radius: float,
  relation_weights: tuple[float, float, float],
  curvature: float,
  sides: tuple[str, str] = ('image', 'points'),
  **fields: Any,
) -> step_lib.Loss:
  """A loss over pose-aware relations, plus relation consistency.

  Args:
    name: of LOSSES.
    positive_radius: metres; readings of other pairs this near are positives
      too. 0 for none.
    ignore_radius: metres; pairs nearer than this and not positive count for
      nothing. 0 for the papers' loss, which pushes near duplicates apart.
    relation_weights: of the Euclidean, angle and hyperbolic term.
    curvature: of the ball of the hyperbolic term.
    sides: of the model that are a and b of the loss; the batch says where
      their readings were taken.
    **fields: what the named loss takes.

  Returns:
    `params, embeddings, batch -> loss, metrics`, see `step.make_train_step`;
    the embeddings are those of `make_embed`.

  Raises:
    InputError: an unknown name, field, or value of a field.
  """
  tell_apart = factory.make(LOSSES, 'loss', {**fields, 'name': name})
  euclidean, angle, hyperbolic = relation_weights
  by_letter = dict(zip('ab', sides, strict=True))

  def loss(params, embeddings, batch):
    a, b = (embeddings[side] for side in sides)
    relate = _Relations(
      batch,
      by_letter,
      positive_radius=positive_radius,
      ignore_radius=max(ignore_radius, positive_radius),
    )
    # What a loss draws follows from the batch: a resumed run draws the same.
    drawn = batch[f'{sides[0]}_index'].sum()
    key = jax.random.fold_in(jax.random.key(0), drawn)
    value, metrics = tell_apart(params, a, b, relate, key)
    consistency, terms = relational.relation_consistency(
      a.descriptor,
      b.descriptor,
      a.features,
      b.features,
      euclidean_weight=euclidean,
      angle_weight=angle,
      hyperbolic_weight=hyperbolic,
      curvature=curvature,
    )
    return value + consistency, metrics | {name: value} | terms

  return loss


def make_objective(
  *,
  name: str,
  sides: tuple[str, str],
  learned: Learned,
  positive_radius: float = 0.0,
  ignore_radius: float = 0.0,
  neutral: bool = True,
  adversary: float = 0.0,
  **fields: Any,
) -> Objective:
  """A loss over batches that are planned, of one side or of two.

  Args:
    name: of LOSSES, or 'classes'.
    sides: of the model that are a and b of the loss; the same one twice for a
      model of one side.
    learned: what sizes follow from.
    positive_radius: metres; readings this near are positives. 0 for none.
    ignore_radius: metres; readings nearer than this and no positives count for
      nothing.
    neutral: images from above whose footprints overlap count for nothing; else
      they are negatives (EarthLoc's ablation).
    adversary: weight of the domain adversary, see `adversary.domain_adversary`;
      0 for none.
    **fields: what the named loss takes.

  Raises:
    InputError: an unknown name, field, or value of a field.
  """
  known = {**LOSSES, 'classes': functools.partial(_classes, learned=learned)}
  tell_apart = factory.make(known, 'loss', {**fields, 'name': name})
  if adversary < 0:
    raise InputError(f'adversary={adversary}: expected a weight, 0 for none.')
  one_side = sides[0] == sides[1]
  if one_side and fields.get('tile'):
    raise InputError(
      f'tile={fields["tile"]} of a model of one side: expected 0, all pairs at'
      ' once.'
    )
  if not one_side and name == 'classes':
    raise InputError(
      f"loss 'classes' is of one side, and {sides[0]!r} asks {sides[1]!r}:"
      ' choose another loss.'
    )
  radii = dict(
    positive_radius=positive_radius,
    ignore_radius=max(ignore_radius, positive_radius),
  )

  def loss(params, embeddings, batch):
    a, b = (embeddings[side] for side in sides)
    relate = (
      _OneSide(batch, sides[0], neutral=neutral, **radii)
      if one_side
      else _Relations(batch, dict(zip('ab', sides, strict=True)), **radii)
    )
    drawn = batch[f'{sides[0]}_index'].sum()
    key = jax.random.fold_in(jax.random.key(0), drawn)
    value, metrics = tell_apart(params, a, b, relate, key)
    metrics |= {name: value}
    if adversary:
      found, terms = adversary_lib.domain_adversary(
        params['loss']['domains'], a.content, batch['domain'], weight=adversary
      )
      value, metrics = value + found, metrics | terms
    return value, metrics

  def init(key, features, content):
    found = {}
    keys = jax.random.split(key)
    if name == 'classes':
      counts = learned.class_counts()
      found['classes'] = classes.init_classes(
        keys[0], len(counts), int(counts.max()), features
      )
    if adversary:
      found['domains'] = adversary_lib.init_classifier(
        keys[1], content, learned.num_domains()
      )
    return found

  return Objective(loss, init)


def make_text_loss(*, name: str, **fields: Any) -> step_lib.Loss:
  """A loss over the relations of crops (side a) and texts (side b).

  Args:
    name: 'info_nce' or 'sigmoid', of LOSSES.
    **fields: what the named loss takes.

  Returns:
    `params, embeddings, batch -> loss, metrics`, see `step.make_train_step`;
    the embeddings are those of `make_crop_embed`.

  Raises:
    InputError: an unknown name, field, or value of a field.
  """
  known = {name: LOSSES[name] for name in ('info_nce', 'sigmoid')}
  tell_apart = factory.make(known, 'loss', {**fields, 'name': name})

  def loss(params, embeddings, batch):
    a, b = (
      jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), embeddings[side])
      for side in ('image', 'text')
    )
    tokens = batch['tokens']
    texts = {
      'tokens': tokens.reshape(-1, tokens.shape[-1]),
      'mask': batch['mask'].reshape(-1),
    }
    return tell_apart(params, a, b, _TextRelations(texts), None)

  return loss
