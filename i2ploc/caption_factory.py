# SPDX-License-Identifier: Apache-2.0
"""Config strings become code here too, of images with captions.

As in `factory`, every function takes the plain values of one sub-dict.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from i2ploc import factory
from i2ploc.errors import InputError
from i2ploc.geometry import augmentation
from i2ploc.geometry import cropping
from i2ploc.models import clip
from i2ploc.models.encoders import text as text_lib
from i2ploc.models.encoders import vocabulary
from i2ploc.training import step as step_lib

Fields = Mapping[str, Any]
LOSSES = ('info_nce', 'sigmoid')


def make_clip(
  *,
  image: Fields,
  text: Fields,
  words: tuple[str, ...],
  dtype: str,
  image_size: tuple[int, int],
  **fields: Any,
) -> clip.Clip:
  """The two towers.

  Args:
    image: the image encoder: `name` of `factory.IMAGE_ENCODERS`, and its
      attributes.
    text: attributes of `TextTransformer`.
    words: the vocabulary, see `vocabulary`.
    dtype: of the encoders' computation, 'float32' or 'bfloat16'.
    image_size: (H, W) of a crop, pixels.
    **fields: the other attributes of `Clip`.

  Raises:
    InputError: an unknown name or attribute.
  """
  compute = dict(dtype=jnp.dtype(dtype))
  numbers = dict(
    vocabulary_size=vocabulary.size(words), end=vocabulary.END, **compute
  )
  fields = {k: v for k, v in fields.items() if v is not None}
  try:
    return clip.Clip(
      image=factory.make(
        factory.IMAGE_ENCODERS, 'image encoder', {**image, **compute}
      ),
      text=text_lib.TextTransformer(**text, **numbers),
      image_size=tuple(image_size),
      **fields,
    )
  except TypeError as error:
    raise InputError(f'model: {error}') from error


def make_embed(
  model: clip.Clip,
  *,
  margin: float,
  color_jitter: float,
  mirror: bool,
  box_jitter: float,
) -> step_lib.Embed:
  """The training side of a model: crops with variations, then both towers.

  Args:
    model: the towers.
    margin: context around a box, see `cropping.windows`.
    color_jitter: strength, see `augmentation.color_jitter`; 0 for none.
    mirror: whether half of the crops are mirrored: no text may tell left from
      right.
    box_jitter: how far windows are moved and scaled, see `cropping.jitter`.

  Returns:
    `params, model_state, batch, key -> embeddings, model_state`, see
    `step.make_train_step`; embeddings [B, K, D] of the objects of a frame.
  """

  def embed(params, model_state, batch, key):
    del model_state  # there is none
    keys = jax.random.split(key, 3)
    images = batch['image'].astype(jnp.float32) / 255.0
    if color_jitter:
      images = augmentation.color_jitter(keys[0], images, color_jitter)
    windows = cropping.windows(batch['box'], margin)
    windows = cropping.jitter(keys[1], windows, box_jitter)
    crops = cropping.crop(images, windows, model.image_size, model.image_mean)
    if mirror:
      flags = jax.random.bernoulli(keys[2], shape=(*crops.shape[:2], 1, 1, 1))
      crops = jnp.where(flags, crops[:, :, :, ::-1], crops)
    tokens = batch['tokens']
    embedded, _ = model.apply(
      {'params': params},
      crops.reshape(-1, *crops.shape[2:]),
      tokens.reshape(-1, tokens.shape[-1]),
      train=True,
    )
    shape = (*tokens.shape[:2], -1)
    return {k: embedded[k].reshape(shape) for k in ('image', 'text')}, {}

  return embed


def relations(tokens: jax.Array, mask: jax.Array) -> jax.Array:
  """Which crop is described by which text.

  Args:
    tokens: [N, L] of the texts, text i that of crop i.
    mask: [N] bool, crops that are one.

  Returns:
    [N, N] int8 in {+1, 0, -1}: +1 for equal texts, whoever they were of, -1 for
    different ones, 0 for what is no crop.
  """
  equal = (tokens[:, None] == tokens).all(-1)
  real = mask[:, None] & mask
  return jnp.where(real, jnp.where(equal, 1, -1), 0).astype(jnp.int8)


def make_loss(*, name: str, **fields: Any) -> step_lib.Loss:
  """A loss over the relations of crops and texts.

  Args:
    name: of LOSSES, see `factory`.
    **fields: what the named loss takes.

  Returns:
    `params, embeddings, batch -> loss, metrics`, see `step.make_train_step`.

  Raises:
    InputError: an unknown name, field, or value of a field.
  """
  known = {name: factory.LOSSES[name] for name in LOSSES}
  tell_apart = factory.make(known, 'loss', {**fields, 'name': name})

  def loss(params, embeddings, batch):
    image, text, tokens = (
      x.reshape(-1, x.shape[-1])
      for x in (embeddings['image'], embeddings['text'], batch['tokens'])
    )
    related = relations(tokens, batch['mask'].reshape(-1))
    # To these losses the other side of an image is 'points'.
    sides = {'image': image, 'points': text}
    return tell_apart(params, sides, lambda *_: related, None)

  return loss
