# SPDX-License-Identifier: Apache-2.0
"""What a loss gets of a batch: augmentation on device, then the towers."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.geometry import augmentation
from i2ploc.geometry import cropping
from i2ploc.geometry import image_augmentation
from i2ploc.geometry import looking
from i2ploc.models import towers as towers_lib
from i2ploc.training import step as step_lib

# Radians. Turned further, a pinhole image is mostly what it had not seen.
MAX_YAW = {'pinhole': 0.5, 'equirectangular': math.pi}

# Towns of a batch are mirrored one by one, up to so many.
_TOWNS = 64

# What an augmentation asks of a batch, and who gives it.
_NEEDS = {
  'mixing': ('labelled', 'data.target'),
  'look_field': ('yaw', "sampling.name='focal'"),
  'overhead': ('variant', 'sampling.by_frame'),
}

Fields = Mapping[str, Any]


class Embedding(NamedTuple):
  """What a loss gets of one side of a batch.

  Attributes:
    descriptor: [B, D].
    features: [B, D] the same before the last normalisation.
    content: [B, C] mean of the encoder's tokens, which a domain adversary sees;
      None where there is none.
  """

  descriptor: jax.Array
  features: jax.Array
  content: jax.Array | None = None


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


def make_image_embed(
  model: towers_lib.Towers,
  *,
  color_jitter: float = 0.0,
  hue: float = 0.0,
  mirror: bool = False,
  crop_area: float = 1.0,
  mixing: float = 0.0,
  look_field: float = 0.0,
  overhead: Fields | None = None,
  frozen: Sequence[str] = (),
) -> step_lib.Embed:
  """The training side of images, and of renderings from where they were taken.

  Args:
    model: the towers, 'image' among them.
    color_jitter: strength, see `augmentation.color_jitter`; 0 for none.
    hue: of it.
    mirror: whether the images of half of the towns are mirrored, all alike: a
      mirrored town is another one.
    crop_area: smallest share of an image, see
      `image_augmentation.random_resized_crop`; 1 for the whole.
    mixing: share of the images that look like those of the target domain, see
      `image_augmentation.mix_statistics`; 0 for none. To a domain adversary
      they stay what they were: it asks for what colours no longer tell.
    look_field: radians; images are panoramas, and the model sees this much of
      them at the batch's `yaw`, see `looking.look`. 0: images as they are.
    overhead: turns and crops of images from above, see
      `image_augmentation.overhead_views`; None for none.
    frozen: sides whose towers are asked as in an evaluation, for readings as
      they are; parameters rest by `optimizer.trainable`.

  Returns:
    `params, model_state, batch, key -> embeddings, model_state`, see
    `step.make_train_step`; an `Embedding` by side.

  Raises:
    InputError: sides that the model does not have, or a change of what is
      frozen. While tracing: a batch without what an augmentation needs.
  """
  used = dict(
    color_jitter=color_jitter,
    mirror=mirror,
    crop_area=crop_area < 1,
    mixing=mixing,
    look_field=look_field,
    overhead=overhead is not None,
  )
  used = [name for name, value in used.items() if value]
  _check_frozen(model, frozen, used)
  size = model.image_view.size

  def augment(batch, key):
    _check_needs(batch, used)
    batch = dict(batch)
    images = batch['image'].astype(jnp.float32) / 255.0
    frames = images.shape[1:-3]
    images = images.reshape(-1, *images.shape[-3:])
    keys = jax.random.split(key, 5)

    def per_frame(name):
      return jnp.repeat(batch[name], math.prod(frames), axis=0)

    if look_field:
      images = looking.look(
        images,
        per_frame('intrinsics'),
        per_frame('yaw'),
        size=size,
        field=look_field,
      )
    if mixing:
      images, _ = image_augmentation.mix_statistics(
        keys[0], images, ~per_frame('labelled'), mixing
      )
    if color_jitter:
      images = augmentation.color_jitter(keys[1], images, color_jitter, hue)
    if overhead is not None:
      images = image_augmentation.overhead_views(
        keys[2], images, per_frame('variant'), **overhead
      )
    if crop_area < 1:
      images = image_augmentation.random_resized_crop(
        keys[3], images, crop_area
      )
    if crop_area < 1 or look_field:
      batch.pop('intrinsics', None)  # of another picture
    batch['image'] = images.reshape(-1, *frames, *images.shape[-3:])
    if mirror:
      heads = jax.random.bernoulli(keys[4], shape=(_TOWNS,))
      batch = _mirrored(batch, heads[batch['image_town'] % _TOWNS])
    return batch

  def embed(params, model_state, batch, key):
    keys = jax.random.split(key)
    batch = augment(batch, keys[0]) if 'image' not in frozen else batch
    embeddings = {}
    for side in model.towers:
      trained = side not in frozen
      found = model.apply(
        {'params': params, **model_state},
        batch,
        side=side,
        train=trained,
        rngs={'dropout': keys[1]},
        mutable=list(model_state) if trained else False,
      )
      (descriptor, out), changed = found if trained else (found, {})
      model_state = {**model_state, **changed}
      tokens = out['tokens']
      weight = tokens.mask[..., None].astype(jnp.float32)
      total = jnp.maximum(weight.sum(1), 1.0)
      content = (tokens.features * weight).sum(1) / total
      embeddings[side] = Embedding(
        descriptor, out.get('pooled', descriptor), content
      )
    return embeddings, model_state

  return embed


def _check_frozen(model, frozen, used):
  """Raises InputError for sides that are not there, or readings that change."""
  if unknown := sorted(set(frozen) - set(model.towers)):
    raise InputError(f'frozen={unknown}: the model has {list(model.towers)}.')
  wrong = used if 'image' in frozen else ['mirror'] * ('mirror' in used)
  if frozen and wrong:
    raise InputError(
      f'frozen={list(frozen)}: its readings stay as they are, but there is'
      f' {wrong} of augmentation; turn that off.'
    )


def _check_needs(batch, used):
  """Raises InputError for a batch without what an augmentation asks for."""
  for name in used:
    key, giver = _NEEDS.get(name, ('image', ''))
    if key not in batch:
      raise InputError(
        f'augmentation.{name} needs {key!r} of each image, which comes with'
        f' {giver}: set that, or turn the augmentation off.'
      )


def _mirrored(batch, flags):
  """Images and renderings, and their calibration, mirrored where flags say."""
  batch = dict(batch)
  for side in ('image', 'rendering'):
    if side in batch:
      images = batch[side]
      turned = flags.reshape(-1, *[1] * (images.ndim - 1))
      batch[side] = jnp.where(turned, images[..., ::-1, :], images)
  if 'intrinsics' in batch:
    width = batch['image'].shape[-2]
    center = batch['intrinsics'][:, 0, 2]
    mirrored = jnp.where(flags, width - center, center)
    batch['intrinsics'] = batch['intrinsics'].at[:, 0, 2].set(mirrored)
  return batch


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
