# SPDX-License-Identifier: Apache-2.0
"""What a loss gets of a batch: augmentation on device, then the towers."""

from collections.abc import Mapping
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.geometry import augmentation
from i2ploc.geometry import cropping
from i2ploc.models import towers as towers_lib
from i2ploc.training import step as step_lib

# Radians. Turned further, a pinhole image is mostly what it had not seen.
MAX_YAW = {'pinhole': 0.5, 'equirectangular': math.pi}

Fields = Mapping[str, Any]


class Embedding(NamedTuple):
  """What a loss gets of one side of a batch.

  Attributes:
    descriptor: [B, D].
    features: [B, D] the same before the last normalisation.
  """

  descriptor: jax.Array
  features: jax.Array


def make_embed(
  model: towers_lib.Towers,
  *,
  color_jitter: float,
  mirror: bool,
  yaw: float,
  cutout: bool,
) -> step_lib.Embed:
  """The training side of a model: augmentation on device, then all towers.

  Args:
    model: the towers, 'image' and 'points'.
    color_jitter: strength, see `augmentation.color_jitter`; 0 for none.
    mirror: whether half of the pairs are mirrored.
    yaw: largest angle by which pairs are turned to either side, radians, see
      `augmentation.turn`; 0 for none, pi for all around.
    cutout: whether rectangles are cut out of what image encoders are given, of
      either tower on its own, see `augmentation.cutout`.

  Returns:
    `params, model_state, batch, key -> embeddings, model_state`, see
    `step.make_train_step`; an `Embedding` by side.

  Raises:
    InputError: a yaw that the images cannot be turned by.
  """
  projection = model.image_view.projection
  limit = MAX_YAW[projection]
  if not 0.0 <= yaw <= limit:
    raise InputError(
      f'yaw={yaw}: expected 0 to {limit:.3f} radians for {projection} images'
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
      batch = augmentation.turn(batch, angle, projection)
    streams = ('dropout', 'cutout') if cutout else ('dropout',)
    rngs = {
      name: jax.random.fold_in(keys[2], i) for i, name in enumerate(streams)
    }
    found, model_state = model.apply(
      {'params': params, **model_state},
      batch,
      train=True,
      rngs={'points': keys[2], **rngs},
      mutable=list(model_state),
      method='every_side',
    )
    embeddings = {
      side: Embedding(descriptor, out['pooled'])
      for side, (descriptor, out) in found.items()
    }
    return embeddings, model_state

  return embed


def make_crop_embed(
  model: towers_lib.Towers,
  *,
  margin: float,
  color_jitter: float,
  mirror: bool,
  box_jitter: float,
) -> step_lib.Embed:
  """The training side of crops and texts: crops with variations, both towers.

  Args:
    model: the towers, 'image' and 'text'.
    margin: context around a box, see `cropping.windows`.
    color_jitter: strength, see `augmentation.color_jitter`; 0 for none.
    mirror: whether half of the crops are mirrored: no text may tell left from
      right.
    box_jitter: how far windows are moved and scaled, see `cropping.jitter`.

  Returns:
    `params, model_state, batch, key -> embeddings, model_state`, see
    `step.make_train_step`; an `Embedding` [B, K, D] by side, of the objects of
    a frame.
  """
  view = model.image_view

  def embed(params, model_state, batch, key):
    del model_state  # there is none
    keys = jax.random.split(key, 3)
    images = batch['image'].astype(jnp.float32) / 255.0
    if color_jitter:
      images = augmentation.color_jitter(keys[0], images, color_jitter)
    windows = cropping.windows(batch['box'], margin)
    windows = cropping.jitter(keys[1], windows, box_jitter)
    crops = cropping.crop(images, windows, view.size, view.mean)
    if mirror:
      flags = jax.random.bernoulli(keys[2], shape=(*crops.shape[:2], 1, 1, 1))
      crops = jnp.where(flags, crops[:, :, :, ::-1], crops)
    tokens = batch['tokens']
    found: Any = model.apply(
      {'params': params},
      {
        'image': crops.reshape(-1, *crops.shape[2:]),
        'tokens': tokens.reshape(-1, tokens.shape[-1]),
      },
      train=True,
      method='every_side',
    )
    shape = (*tokens.shape[:2], -1)
    embeddings = {
      side: Embedding(descriptor.reshape(shape), out['pooled'].reshape(shape))
      for side, (descriptor, out) in found.items()
    }
    return embeddings, {}

  return embed
