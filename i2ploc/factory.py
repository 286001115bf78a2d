# SPDX-License-Identifier: Apache-2.0
"""The only place where the strings of a config become code.

Every function takes the plain values of one sub-dict of a config as keyword
arguments: an unknown key dies here, and a notebook can call all of it.
"""

from collections.abc import Callable
from collections.abc import Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.geometry import augmentation
from i2ploc.losses import contrastive
from i2ploc.losses import metric
from i2ploc.losses import relational
from i2ploc.losses import soft_targets
from i2ploc.losses import tiled
from i2ploc.losses import tiles
from i2ploc.models import aggregators
from i2ploc.models import projection
from i2ploc.models import towers as towers_lib
from i2ploc.models.encoders import point_transformer
from i2ploc.models.encoders import resnet
from i2ploc.models.encoders import vit
from i2ploc.retrieval import relations as relations_lib
from i2ploc.training import optimizer as optimizer_lib
from i2ploc.training import step as step_lib

IMAGE_ENCODERS = {'resnet': resnet.ResNet, 'vit': vit.ViT}
POINTS_ENCODERS = {
  'point_transformer': point_transformer.PointTransformer,
  **IMAGE_ENCODERS,  # on range images
}
AGGREGATORS = {
  'gem': aggregators.GeM,
  'mean': aggregators.Mean,
  'netvlad': aggregators.NetVLAD,
  'projection': projection.ProjectionHead,
}
# Radians. Turned further, a pinhole image is mostly what it had not seen.
MAX_YAW = {'pinhole': 0.5, 'equirectangular': math.pi}

Fields = Mapping[str, Any]


def make(table: Mapping[str, Callable], kind: str, fields: Fields) -> Any:
  """What `fields['name']` names, made of the other fields."""
  fields = dict(fields)
  name = fields.pop('name')
  if name not in table:
    raise InputError(f'Unknown {kind} {name!r}; known: {sorted(table)}.')
  try:
    return table[name](**fields)
  except TypeError as error:
    raise InputError(f'{kind} {name!r}: {error}') from error


def make_model(
  *,
  image: Fields,
  points: Fields,
  aggregator: Fields,
  dtype: str,
  image_size: tuple[int, int],
  **fields: Any,
) -> towers_lib.TwoTower:
  """The two towers.

  Args:
    image: the image encoder: `name` of IMAGE_ENCODERS, and its attributes.
    points: the LiDAR encoder, likewise.
    aggregator: of both towers (an own instance each), likewise.
    dtype: of the encoders' computation, 'float32' or 'bfloat16'.
    image_size: (H, W), pixels.
    **fields: the other attributes of `TwoTower`.

  Raises:
    InputError: an unknown name or attribute.
  """
  compute = dict(dtype=jnp.dtype(dtype))
  towers = dict(
    image=make(IMAGE_ENCODERS, 'image encoder', {**image, **compute}),
    points=make(POINTS_ENCODERS, 'points encoder', {**points, **compute}),
    image_aggregator=make(AGGREGATORS, 'aggregator', aggregator),
    points_aggregator=make(AGGREGATORS, 'aggregator', aggregator),
  )
  fields = {k: v for k, v in fields.items() if v is not None}
  return towers_lib.TwoTower(**towers, image_size=tuple(image_size), **fields)


def make_embed(
  model: towers_lib.TwoTower,
  *,
  color_jitter: float,
  mirror: bool,
  yaw: float,
  cutout: bool,
) -> step_lib.Embed:
  """The training side of a model: augmentation on device, then both towers.

  Args:
    model: the towers.
    color_jitter: strength, see `augmentation.color_jitter`; 0 for none.
    mirror: whether half of the pairs are mirrored.
    yaw: largest angle by which pairs are turned to either side, radians, see
      `augmentation.turn`; 0 for none, pi for all around.
    cutout: whether rectangles are cut out of what image encoders are given, of
      either tower on its own, see `augmentation.cutout`.

  Returns:
    `params, model_state, batch, key -> embeddings, model_state`, see
    `step.make_train_step`.

  Raises:
    InputError: a yaw that the images cannot be turned by.
  """
  limit = MAX_YAW[model.projection]
  if not 0.0 <= yaw <= limit:
    raise InputError(
      f'yaw={yaw}: expected 0 to {limit:.3f} radians for {model.projection} '
      'images'
    )

  def embed(params, model_state, batch, key):
    keys = jax.random.split(key, 3)
    batch = dict(batch, image=batch['image'].astype(jnp.float32) / 255.0)
    if color_jitter:
      image = augmentation.color_jitter(keys[0], batch['image'], color_jitter)
      batch = dict(batch, image=image)
    if mirror:
      flags = jax.random.bernoulli(keys[1], shape=batch['image'].shape[:1])
      batch = augmentation.mirror(batch, flags)
    if yaw:
      # Not split off: what else is drawn does not depend on whether this is.
      angle = jax.random.uniform(
        jax.random.fold_in(key, len(keys)),
        batch['image'].shape[:1],
        minval=-yaw,
        maxval=yaw,
      )
      batch = augmentation.turn(batch, angle, model.projection)
    streams = ('dropout', 'cutout') if cutout else ('dropout',)
    rngs = {
      name: jax.random.fold_in(keys[2], i) for i, name in enumerate(streams)
    }
    (embedded, out), model_state = model.apply(
      {'params': params, **model_state},
      batch,
      train=True,
      rngs={'points': keys[2], **rngs},
      mutable=list(model_state),
    )
    embeddings = {
      'image': embedded['image'],
      'points': embedded['points'],
      'image_features': out['image']['pooled'],
      'points_features': out['points']['pooled'],
    }
    return embeddings, model_state

  return embed


class _Relations:
  """Who is near whom in a batch: all pairs at once, or a tile of them."""

  def __init__(self, batch: Fields, **radii: float):
    self._batch, self._radii = batch, radii

  def __call__(self, a: str, b: str) -> jax.Array:
    """[B, B] of the readings of a and b; row i of both is a pair."""
    return self._relate(self._places(a), self._places(b), paired=True)

  def in_tiles(self, a: str, b: str) -> tiles.Places:
    """The same, for a loss that asks tile by tile."""
    return tiles.Places(self._relate_tile, self._places(a), self._places(b))

  def _places(self, side):
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
      paired=paired,
      **self._radii,
    )

  def _relate_tile(self, a, b):
    own = a['row'][:, None] == b['row']
    return jnp.where(own, 1, self._relate(a, b, paired=False))


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

  def loss(params, embeddings, relate, key):
    del key
    scale = contrastive.clamped_scale(params['log_scale'])
    rows = embeddings['image'], embeddings['points']
    if tile:
      places = relate.in_tiles('image', 'points')
      return tiled.info_nce(*rows, scale, places, tile=tile)
    return contrastive.info_nce(*rows, scale, relate('image', 'points'), form)

  return loss


def _sigmoid(*, tile: int = 0) -> Callable:
  """The sigmoid loss with the model's scale and bias; `tile` as of InfoNCE."""
  _check_tile(tile)

  def loss(params, embeddings, relate, key):
    del key
    if 'similarity_bias' not in params:
      raise InputError(
        "loss 'sigmoid' learns a bias that the model lacks: set "
        'model.initial_bias, to -10.0 or about -log(batch size)'
      )
    scale = contrastive.clamped_scale(params['log_scale'])
    rows = embeddings['image'], embeddings['points']
    factors = scale, params['similarity_bias']
    if tile:
      places = relate.in_tiles('image', 'points')
      return tiled.sigmoid(*rows, *factors, places, tile=tile)
    return contrastive.sigmoid(*rows, *factors, relate('image', 'points'))

  return loss


def _soft_targets() -> Callable:
  """See `soft_targets.soft_targets`; it takes descriptors before their norm."""

  def loss(params, embeddings, relate, key):
    del params, key
    return soft_targets.soft_targets(
      embeddings['image_features'],
      embeddings['points_features'],
      relate('image', 'points'),
    )

  return loss


def _triplet(*, mining: str, margin: float) -> Callable:
  """See `metric.triplet`."""
  metric.check_mining(mining, margin)

  def loss(params, embeddings, relate, key):
    del params
    return metric.triplet(
      embeddings['image'],
      embeddings['points'],
      relate('image', 'points'),
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

  def loss(params, embeddings, relate, key):
    del params
    return metric.four_triplets(
      embeddings['image'],
      embeddings['points'],
      relate('image', 'points'),
      relate('image', 'image'),
      relate('points', 'points'),
      mining=mining,
      margin=margin,
      within_weight=within_weight,
      key=key,
    )

  return loss


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
    **fields: what the named loss takes.

  Returns:
    `params, embeddings, batch -> loss, metrics`, see `step.make_train_step`.

  Raises:
    InputError: an unknown name, field, or value of a field.
  """
  tell_apart = make(LOSSES, 'loss', {**fields, 'name': name})
  euclidean, angle, hyperbolic = relation_weights

  def loss(params, embeddings, batch):
    relate = _Relations(
      batch,
      positive_radius=positive_radius,
      ignore_radius=max(ignore_radius, positive_radius),
    )
    # What a loss draws follows from the batch: a resumed run draws the same.
    key = jax.random.fold_in(jax.random.key(0), batch['image_index'].sum())
    value, metrics = tell_apart(params, embeddings, relate, key)
    consistency, terms = relational.relation_consistency(
      embeddings['image'],
      embeddings['points'],
      embeddings['image_features'],
      embeddings['points_features'],
      euclidean_weight=euclidean,
      angle_weight=angle,
      hyperbolic_weight=hyperbolic,
      curvature=curvature,
    )
    return value + consistency, metrics | {name: value} | terms

  return loss


def make_optimizer(num_steps: int, **fields: Any) -> optimizer_lib.Optimizer:
  """AdamW with warm-up and cosine, see `optimizer.make_optimizer`."""
  return optimizer_lib.make_optimizer(num_steps=num_steps, **fields)
