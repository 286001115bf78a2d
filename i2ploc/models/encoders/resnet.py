# SPDX-License-Identifier: Apache-2.0
"""Residual network, for images or for anything on a grid.

He et al., Deep Residual Learning, CVPR 2016, in the form that torchvision, timm
and Hugging Face call ResNet-18 to ResNet-152: a block strides in its first
3 x 3 convolution. With the defaults it is ResNet-50 without its classifier.
BatchNorm looks across the batch, so that a gradient cache over micro-batches
would not be exact.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.models.encoders import convolution
from i2ploc.models.encoders import normalization


class ConvNorm(nn.Module):
  """Convolution without bias, and BatchNorm.

  Attributes:
    features: channels of the output.
    size: side of the odd window.
    stride: downsampling, of both axes.
    dtype: of the computation; statistics are always float32.
  """

  features: int
  size: int = 1
  stride: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps [B, H, W, C] to [B, H / stride, W / stride, features], up."""
    x = convolution.Conv(
      self.features,
      (self.size, self.size),
      self.stride,
      # 'SAME' would pad an even image on the far side alone.
      padding=self.size // 2,
      use_bias=False,
      kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
      dtype=self.dtype,
      name='conv',
    )(x)
    return normalization.BatchNorm(dtype=self.dtype, name='norm')(x, train)


class Bottleneck(nn.Module):
  """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut.

  Attributes:
    width: channels of the 3 x 3 convolution.
    expansion: channels of the output over `width`.
    stride: downsampling, of both axes.
    dtype: of the computation.
  """

  width: int
  expansion: int = 4
  stride: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps [B, H, W, C] to [B, H / stride, W / stride, expansion * width]."""
    features = self.expansion * self.width

    def conv_norm(features, size, stride, name):
      return ConvNorm(features, size, stride, self.dtype, name=name)

    y = conv_norm(self.width, 1, 1, 'reduce')(x, train)
    y = conv_norm(self.width, 3, self.stride, 'mix')(nn.relu(y), train)
    y = conv_norm(features, 1, 1, 'expand')(nn.relu(y), train)
    if self.stride > 1 or x.shape[-1] != features:
      x = conv_norm(features, 1, self.stride, 'shortcut')(x, train)
    return nn.relu(x + y)


class Basic(nn.Module):
  """Two 3 x 3 convolutions beside a shortcut, of ResNet-18 and ResNet-34.

  Attributes:
    width: channels of both convolutions, and of the output.
    stride: downsampling, of both axes.
    dtype: of the computation.
  """

  width: int
  stride: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps [B, H, W, C] to [B, H / stride, W / stride, width]."""

    def conv_norm(size, stride, name):
      return ConvNorm(self.width, size, stride, self.dtype, name=name)

    y = conv_norm(3, self.stride, 'first')(x, train)
    y = conv_norm(3, 1, 'second')(nn.relu(y), train)
    if self.stride > 1 or x.shape[-1] != self.width:
      x = conv_norm(1, self.stride, 'shortcut')(x, train)
    return nn.relu(x + y)


BLOCK_KINDS = ('basic', 'bottleneck')


class ResNet(nn.Module):
  """Tokens of an image, or of anything on a grid: the cells of the last stage.

  Attributes:
    stem_width: channels of the first convolution.
    widths: of the blocks of each stage; all but the first stage start with a
      stride of 2. Fewer stages leave out the last ones of a published network:
      three end with what its authors call conv4 or layer3.
    depths: number of blocks in each stage.
    expansion: see `Bottleneck`; 1 for basic blocks. Tokens have
      D = expansion * widths[-1].
    dtype: of the computation; statistics are always float32.
    block_kind: of BLOCK_KINDS.
    frozen_norm: whether BatchNorm uses its running statistics in training too,
      and leaves them: for a frozen encoder, and for small batches.

  `out`: grid (rows, columns), for four stages a 32nd of the image, rounded up.
  """

  stem_width: int = 64
  widths: tuple[int, ...] = (64, 128, 256, 512)
  depths: tuple[int, ...] = (3, 4, 6, 3)
  expansion: int = 4
  dtype: jnp.dtype = jnp.float32
  block_kind: str = 'bottleneck'
  frozen_norm: bool = False

  @property
  def has_cls(self) -> bool:
    """There is no CLS token, hence no attention either."""
    return False

  def _block(self, width, stride, name):
    if self.block_kind == 'bottleneck':
      return Bottleneck(width, self.expansion, stride, self.dtype, name=name)
    if self.block_kind != 'basic':
      raise InputError(
        f'unknown block_kind {self.block_kind!r}; known: {BLOCK_KINDS}'
      )
    if self.expansion != 1:
      raise InputError(
        f'basic blocks have expansion=1, and this is {self.expansion}'
      )
    return Basic(width, stride, self.dtype, name=name)

  @nn.compact
  def __call__(
    self, images: jax.Array, train: bool = False
  ) -> tuple[jax.Array, dict]:
    """Encodes.

    Args:
      images: [B, H, W, C] float, about unit scale.
      train: whether BatchNorm uses the batch, unless its norm is frozen.

    Returns:
      tokens: [B, N, D] float32 in row-major order.
      out: see the class.
    """
    chex.assert_rank(images, 4)
    train = train and not self.frozen_norm
    x = images.astype(self.dtype)
    x = ConvNorm(self.stem_width, 7, 2, self.dtype, name='stem')(x, train)
    x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), ((1, 1), (1, 1)))
    stages = zip(self.widths, self.depths, strict=True)
    for i, (width, depth) in enumerate(stages):
      for j in range(depth):
        stride = 2 if i and not j else 1
        x = self._block(width, stride, f'stage{i}_block{j}')(x, train)
    tokens = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
    return tokens, {'grid': x.shape[1:3]}
