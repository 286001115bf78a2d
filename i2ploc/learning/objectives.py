# SPDX-License-Identifier: Apache-2.0
"""Losses over who is near whom: the strings of `config.loss` become code."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from i2ploc import factory
from i2ploc.errors import InputError
from i2ploc.losses import contrastive
from i2ploc.losses import metric
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


# Each makes `params, a, b, relate, key -> value, metrics`: a and b are
# `Embedding`s, and `relate` tells who is near whom.
LOSSES = {
  'info_nce': _info_nce,
  'sigmoid': _sigmoid,
  'soft_targets': _soft_targets,
  'triplet': _triplet,
  'four_triplets': _four_triplets,
}


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
