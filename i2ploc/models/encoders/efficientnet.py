# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0: inverted residual blocks of depthwise convolutions.

Tan and Le, EfficientNet, ICML 2019, in the form for mobile devices that the
authors published as EfficientNet-Lite (2020): ReLU6 for swish, no squeezing and
excitation, a stem and a head that are not scaled. BatchNorm looks across the
batch, so that a gradient cache over micro-batches would not be exact.
"""

from typing import NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.models.encoders import convolution
from i2ploc.models.encoders import depthwise
from i2ploc.models.encoders import normalization


class Stage(NamedTuple):
  """Blocks that are alike, but for the stride and input of the first."""

  depth: int
  width: int
  size: int
  stride: int
  expansion: int


LITE0 = (
  Stage(depth=1, width=16, size=3, stride=1, expansion=1),
  Stage(depth=2, width=24, size=3, stride=2, expansion=6),
  Stage(depth=2, width=40, size=5, stride=2, expansion=6),
  Stage(depth=3, width=80, size=3, stride=2, expansion=6),
  Stage(depth=3, width=112, size=5, stride=1, expansion=6),
  Stage(depth=4, width=192, size=5, stride=2, expansion=6),
  Stage(depth=1, width=320, size=3, stride=1, expansion=6),
)
STEM, HEAD = 32, 1280


class _Norm(nn.Module):
  """BatchNorm as TensorFlow's authors set it, and ReLU6 if wanted."""

  activate: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, train):
    norm = normalization.BatchNorm(
      momentum=0.99, epsilon=1e-3, dtype=self.dtype, name='norm'
    )
    x = norm(x, train)
    return nn.relu6(x) if self.activate else x


class Block(nn.Module):
  """Channels are widened, convolved one by one, and narrowed again.

  Attributes:
    stage: its size.
    stride: downsampling, of both axes.
    padding: of `depthwise.PADDINGS`.
    dtype: of the computation.
  """

  stage: Stage
  stride: int = 1
  padding: str = 'same'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps [B, H, W, C] to [B, H / stride, W / stride, width], up."""
    stage, given = self.stage, x.shape[-1]

    def pointwise(x, features, activate, name):
      y = _pointwise(features, self.dtype, name)(x)
      return _Norm(activate, self.dtype, name=f'{name}_norm')(y, train)

    y = x
    if stage.expansion > 1:
      y = pointwise(y, stage.expansion * given, True, 'expand')
    y = depthwise.Depthwise(
      stage.size, self.stride, self.padding, self.dtype, name='mix'
    )(y)
    y = _Norm(True, self.dtype, name='mix_norm')(y, train)
    y = pointwise(y, stage.width, False, 'reduce')
    return x + y if self.stride == 1 and given == stage.width else y


def _pointwise(features, dtype, name):
  """A 1 x 1 convolution: a product, which is faster than a convolution."""
  return nn.Dense(
    features,
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
    dtype=dtype,
    name=name,
  )


class EfficientNetLite0(nn.Module):
  """Tokens of an image: the cells of a stage.

  Attributes:
    stage: 1 to 7 for what leaves that stage, of 16, 24, 40, 80, 112, 192 or 320
      channels at a 2nd, 4th, 8th, 16th, 16th, 32nd or 32nd of the image; 0 for
      the 1280 channels of the head after all of them. Later stages are not run,
      and are no parameters.
    padding: of `depthwise.PADDINGS`: 'same' as the authors' TensorFlow, whose
      weights are the published ones, or 'symmetric' as torch.
    dtype: of the computation; statistics are always float32.
    frozen_norm: see `resnet.ResNet`.

  `out`: grid (rows, columns).
  """

  stage: int = 0
  padding: str = 'same'
  dtype: jnp.dtype = jnp.float32
  frozen_norm: bool = False

  @property
  def has_cls(self) -> bool:
    """There is no CLS token, hence no attention either."""
    return False

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
    if not 0 <= self.stage <= len(LITE0):
      raise InputError(
        f'stage {self.stage} of an EfficientNet: give 1 to {len(LITE0)}, or 0 '
        'for the features of its head'
      )
    x = images.astype(self.dtype)
    x = convolution.Conv(
      STEM,
      (3, 3),
      2,
      padding=depthwise.pads(self.padding, x.shape[1:3], 3, 2),
      use_bias=False,
      kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
      dtype=self.dtype,
      name='stem',
    )(x)
    x = _Norm(True, self.dtype, name='stem_norm')(x, train)
    for i, stage in enumerate(LITE0[: self.stage or None], 1):
      for j in range(stage.depth):
        stride = 1 if j else stage.stride
        x = Block(
          stage, stride, self.padding, self.dtype, name=f'stage{i}_block{j}'
        )(x, train)
    if not self.stage:
      x = _pointwise(HEAD, self.dtype, 'head')(x)
      x = _Norm(True, self.dtype, name='head_norm')(x, train)
    tokens = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
    return tokens, {'grid': x.shape[1:3]}
