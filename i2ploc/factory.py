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

from i2ploc.geometry import augmentation
from i2ploc.losses import contrastive
from i2ploc.losses import metric
from i2ploc.losses import relational
from i2ploc.models import aggregators
from i2ploc.models import point_transformer
from i2ploc.models import two_tower
from i2ploc.models import vit
from i2ploc.retrieval import relations as relations_lib
from i2ploc.training import optimizer as optimizer_lib
from i2ploc.training import step as step_lib

IMAGE_ENCODERS = {'vit': vit.ViT}
POINTS_ENCODERS = {
  'point_transformer': point_transformer.PointTransformer,
  'vit': vit.ViT,  # on range images
}
AGGREGATORS = {
  'gem': aggregators.GeM,
  'mean': aggregators.Mean,
  'netvlad': aggregators.NetVLAD,
}
# Radians. Turned further, a pinhole image is mostly what it had not seen.
MAX_YAW = {'pinhole': 0.5, 'equirectangular': math.pi}

Fields = Mapping[str, Any]


def _make(table: Mapping[str, Callable], kind: str, fields: Fields) -> Any:
  """What `fields['name']` names, made of the other fields."""
  fields = dict(fields)
  name = fields.pop('name')
  if name not in table:
    raise ValueError(f'Unknown {kind} {name!r}; known: {sorted(table)}.')
  try:
    return table[name](**fields)
  except TypeError as error:
    raise ValueError(f'{kind} {name!r}: {error}') from error


def make_model(
  *,
  image: Fields,
  points: Fields,
  aggregator: Fields,
  dtype: str,
  image_size: tuple[int, int],
  **fields: Any,
) -> two_tower.TwoTower:
  """The two towers.

  Args:
    image: the image encoder: `name` of IMAGE_ENCODERS, and its attributes.
    points: the LiDAR encoder, likewise.
    aggregator: of both towers (an own instance each), likewise.
    dtype: of the encoders' computation, 'float32' or 'bfloat16'.
    image_size: (H, W), pixels.
    **fields: the other attributes of `TwoTower`.

  Raises:
    ValueError: an unknown name or attribute.
  """
  compute = dict(dtype=jnp.dtype(dtype))
  towers = dict(
    image=_make(IMAGE_ENCODERS, 'image encoder', {**image, **compute}),
    points=_make(POINTS_ENCODERS, 'points encoder', {**points, **compute}),
    image_aggregator=_make(AGGREGATORS, 'aggregator', aggregator),
    points_aggregator=_make(AGGREGATORS, 'aggregator', aggregator),
  )
  fields = {k: v for k, v in fields.items() if v is not None}
  return two_tower.TwoTower(**towers, image_size=tuple(image_size), **fields)


def make_embed(
  model: two_tower.TwoTower, *, color_jitter: float, mirror: bool, yaw: float
) -> step_lib.Embed:
  """The training side of a model: augmentation on device, then both towers.

  Args:
    model: the towers.
    color_jitter: strength, see `augmentation.color_jitter`; 0 for none.
    mirror: whether half of the pairs are mirrored.
    yaw: largest angle by which pairs are turned to either side, radians, see
      `augmentation.turn`; 0 for none, pi for all around.

  Returns:
    `params, model_state, batch, key -> embeddings, model_state`, see
    `step.make_train_step`.

  Raises:
    ValueError: a yaw that the images cannot be turned by.
  """
  limit = MAX_YAW[model.projection]
  if not 0.0 <= yaw <= limit:
    raise ValueError(
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
    (embedded, out), model_state = model.apply(
      {'params': params, **model_state},
      batch,
      train=True,
      rngs={'points': keys[2]},
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


def _info_nce(*, form: str) -> Callable:
  """InfoNCE with the model's scale; `form` is 'clip' or 'concatenated'."""

  def loss(params, embeddings, relate, key):
    del key
    scale = contrastive.clamped_scale(params['log_scale'])
    return contrastive.info_nce(
      embeddings['image'],
      embeddings['points'],
      scale,
      relate('image', 'points'),
      form,
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
    ValueError: an unknown name, field, or value of a field.
  """
  tell_apart = _make(LOSSES, 'loss', {**fields, 'name': name})
  euclidean, angle, hyperbolic = relation_weights

  def loss(params, embeddings, batch):
    def relate(a, b):
      return relations_lib.from_positions(
        batch[f'{a}_position'],
        batch[f'{a}_town'],
        batch[f'{b}_position'],
        batch[f'{b}_town'],
        positive_radius=positive_radius,
        ignore_radius=max(ignore_radius, positive_radius),
        paired=True,
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
