# SPDX-License-Identifier: Apache-2.0
"""CLIP: images and texts in one descriptor space.

Radford et al., Learning Transferable Visual Models From Natural Language
Supervision, ICML 2021. Each tower ends in a projection without a bias;
descriptors have unit length, and similarities a learned scale.
"""

import math

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.models import towers
from i2ploc.models.encoders import normalization
from i2ploc.models.encoders import text as text_lib
from i2ploc.models.encoders import vit

# Of the images that CLIP was trained on.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


class Clip(nn.Module):
  """Descriptors of images and texts, and the scale of their similarities.

  Attributes:
    image: encoder with a CLS token, whose feature is taken.
    text: encoder of texts.
    image_size: (H, W), pixels.
    features: D of the descriptors.
    image_mean: per channel, of images in 0..1.
    image_std: per channel.
    initial_temperature: of the similarities; its inverse is learned.
    initial_bias: of the similarities, for losses that want one; it is learned.

  `out` of a tower: what its encoder gives, and features [B, D], the descriptor
  before its length is made one.
  """

  image: vit.ViT
  text: text_lib.TextTransformer
  image_size: tuple[int, int]
  features: int = 512
  image_mean: tuple[float, float, float] = IMAGE_MEAN
  image_std: tuple[float, float, float] = IMAGE_STD
  initial_temperature: float = 0.07
  initial_bias: float | None = None

  def __post_init__(self):
    if not self.image.has_cls:
      raise InputError('CLIP takes the CLS token, and this encoder has none')
    super().__post_init__()

  def setup(self) -> None:
    """Creates the projections and the scale."""
    init = nn.initializers.constant(-math.log(self.initial_temperature))
    self.log_scale = self.param('log_scale', init, ())
    if self.initial_bias is not None:
      bias = nn.initializers.constant(self.initial_bias)
      self.similarity_bias = self.param('similarity_bias', bias, ())
    self.image_projection = nn.Dense(self.features, use_bias=False)
    self.text_projection = nn.Dense(self.features, use_bias=False)

  def embed_image(
    self, images: jax.Array, train: bool = False
  ) -> tuple[jax.Array, dict]:
    """Descriptors [B, D] of images [B, H, W, 3], and `out`.

    Args:
      images: uint8, or float in 0..1.
      train: see `vit.ViT`.
    """
    chex.assert_shape(images, (None, *self.image_size, 3))
    x = towers.normalize_images(images, self.image_mean, self.image_std)
    _, out = self.image(x, train)
    features = self.image_projection(out['cls'])
    return normalization.unit(features), dict(out, features=features)

  def embed_text(self, tokens: jax.Array) -> tuple[jax.Array, dict]:
    """Descriptors [B, D] of token numbers [B, N], and `out`."""
    x, out = self.text(tokens)
    features = self.text_projection(x)
    return normalization.unit(features), dict(out, pooled=x, features=features)

  def __call__(
    self, images: jax.Array, tokens: jax.Array, train: bool = False
  ) -> tuple[dict[str, jax.Array], dict]:
    """Embeds images and texts, which need not be as many.

    Returns:
      ({'image': [B, D], 'text': [B, D], 'scale': scalar in 1..100}, out) with
      out = {'image': ..., 'text': ...}; with `initial_bias` also 'bias'.
    """
    image, image_out = self.embed_image(images, train)
    text, text_out = self.embed_text(tokens)
    scale = jnp.exp(jnp.clip(self.log_scale, 0.0, towers.MAX_LOG_SCALE))
    embedded = {'image': image, 'text': text, 'scale': scale}
    if self.initial_bias is not None:
      embedded['bias'] = self.similarity_bias
    return embedded, {'image': image_out, 'text': text_out}
