# SPDX-License-Identifier: Apache-2.0
"""Texts, crops and boxes in any number as descriptors of one space.

For models of an 'image' and a 'text' tower: published CLIPs, and those that are
trained here on captions.
"""

from collections.abc import Callable
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from PIL import Image

from i2ploc import compilation
from i2ploc.errors import InputError
from i2ploc.geometry import cropping
from i2ploc.models import towers
from i2ploc.models.encoders import vocabulary

Prepare = Callable[[np.ndarray], np.ndarray]
# Columns of tokens come in multiples of it, so that few shapes are compiled.
TOKEN_BUCKET = 8


def cover(
  image: np.ndarray,
  short_side: int,
  size: tuple[int, int],
  resample: int = Image.Resampling.BICUBIC,
) -> np.ndarray:
  """The middle of an image, as CLIP was trained on it.

  Args:
    image: uint8 [H, W, 3].
    short_side: pixels to which its shorter side is scaled.
    size: (h, w) that is cut out of the middle; what lies beyond is black.
    resample: of `PIL.Image.Resampling`.

  Returns:
    uint8 [h, w, 3].
  """
  height, width = image.shape[:2]
  scale = short_side / min(height, width)
  scaled = (
    short_side if width <= height else int(width * scale),
    short_side if height <= width else int(height * scale),
  )
  picture = Image.fromarray(image).resize(scaled, resample)
  left, top = (scaled[0] - size[1]) // 2, (scaled[1] - size[0]) // 2
  return np.asarray(picture.crop((left, top, left + size[1], top + size[0])))


def contain(
  image: np.ndarray, size: tuple[int, int], fill: tuple[float, ...]
) -> np.ndarray:
  """All of an image, in the middle of `fill` (0..1); uint8 [h, w, 3]."""
  height, width = image.shape[:2]
  side = max(height, width)
  left, top = (side - width) // 2, (side - height) // 2
  color = tuple(round(255 * x) for x in fill)
  picture = Image.new('RGB', (side, side), color)
  picture.paste(Image.fromarray(image), (left, top))
  return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR))


class ImageTextEncoder:
  """A model with its tokenizer, for descriptors of images and texts.

  Inputs are put together into batches whose shapes are few, so that a call
  compiles nothing that another has compiled before.

  Attributes:
    model: towers 'image' and 'text'.
    variables: of them.
    name: says whose weights these are, for results.
  """

  def __init__(
    self,
    model: towers.Towers,
    variables: dict,
    tokenize: vocabulary.Tokenize,
    *,
    name: str,
    margin: float,
    prepare: Prepare | None = None,
    batch_size: int = 64,
  ):
    """Compiles nothing yet.

    Args:
      model: towers 'image' and 'text'.
      variables: of them.
      tokenize: texts to numbers [B, N].
      name: of the weights.
      margin: context around a box, see `cropping.windows`.
      prepare: a crop uint8 [H, W, 3] to one of the model's size; None for all
        of it, see `contain`.
      batch_size: rows that are encoded at once; a power of two.
    """
    self.model, self.variables, self.name = model, variables, name
    self._tokenize, self._margin = tokenize, margin
    self._view = model.image_view
    self._prepare = prepare or (
      lambda crop: contain(crop, self._view.size, self._view.mean)
    )
    self._batch_size = batch_size
    self._text = compilation.jit(self._embed_text)
    self._image = compilation.jit(self._embed_image)
    self._boxes = compilation.jit(self._embed_boxes)

  def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
    """Unit descriptors [N, D] float32; equal texts are encoded once."""
    distinct, inverse = np.unique(np.asarray(texts, str), return_inverse=True)
    if not len(distinct):
      return self._nothing()
    tokens = self._tokenize([str(text) for text in distinct])
    return self._in_batches(self._text, self._without_padding(tokens))[inverse]

  def encode_crops(self, crops: Sequence[np.ndarray]) -> np.ndarray:
    """Unit descriptors [N, D] float32 of images uint8 [H, W, 3] of any size.

    Raises:
      InputError: one of them is no such image.
    """
    for i, crop in enumerate(crops):
      if crop.dtype != np.uint8 or crop.ndim != 3 or crop.shape[2] != 3:
        raise InputError(
          f'crop {i} is {crop.dtype} {list(crop.shape)}; expected uint8 '
          '[H, W, 3]'
        )
      if not crop.size:
        raise InputError(f'crop {i} is empty: {list(crop.shape)}')
    if not len(crops):
      return self._nothing()
    prepared = np.stack([self._prepare(crop) for crop in crops])
    return self._in_batches(self._image, prepared)

  def encode_boxes(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Unit descriptors [M, D] float32 of what boxes of an image show.

    Each is seen in a square with context, cut out on the device.

    Args:
      image: uint8 [H, W, 3].
      boxes: [M, 4] pixels, see `cropping`; finite, and not inverted.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    bad = ~np.isfinite(boxes).all(1) | (boxes[:, 2:] < boxes[:, :2]).any(1)
    if bad.any():
      raise InputError(f'boxes {np.flatnonzero(bad).tolist()} are no boxes')
    if not len(boxes):
      return self._nothing()
    return self._in_batches(self._boxes, boxes, image)

  def _embed_text(self, variables, tokens):
    return self.model.apply(variables, {'tokens': tokens}, side='text')[0]

  def _embed_image(self, variables, images):
    return self.model.apply(variables, {'image': images}, side='image')[0]

  def _embed_boxes(self, variables, boxes, image):
    windows = cropping.windows(boxes, self._margin)
    image = image.astype(jnp.float32) / 255.0
    size, fill = self._view.size, self._view.mean
    crops = cropping.crop(image[None], windows[None], size, fill)[0]
    return self._embed_image(variables, crops)

  def _nothing(self):
    width = self.model.towers['text'].aggregator.features
    return np.zeros((0, width), np.float32)

  def _without_padding(self, tokens):
    """The columns of tokens [N, L] up to the last end, in whole buckets."""
    end = self.model.towers['text'].encoder.end
    end = tokens.max(1, keepdims=True) if end is None else end
    ends = tokens == end
    last = np.where(ends.any(1), ends.argmax(1), tokens.shape[1] - 1)
    return tokens[:, : -(-(last.max() + 1) // TOKEN_BUCKET) * TOKEN_BUCKET]

  def _in_batches(self, embed, rows, *args):
    """`embed` of rows, each batch filled up to a power of two."""
    parts = []
    for start in range(0, len(rows), self._batch_size):
      part = rows[start : start + self._batch_size]
      count = len(part)
      bucket = min(self._batch_size, 1 << (count - 1).bit_length())
      padded = np.concatenate([part, part[-1:].repeat(bucket - count, axis=0)])
      found = embed(self.variables, padded, *args)
      parts.append(np.asarray(found, np.float32)[:count])
    return np.concatenate(parts)
