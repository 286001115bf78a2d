# SPDX-License-Identifier: Apache-2.0
"""VGG: 3 x 3 convolutions and nothing else, for images.

Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image
Recognition, ICLR 2015. With the defaults it is VGG-16 up to conv5_3, where
place recognition cuts it since NetVLAD: before the last ReLU and the last
pooling.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.models.encoders import convolution


class VGG(nn.Module):
  """Tokens of an image: the cells of the last convolution, of either sign.

  >>> model = VGG(widths=(4, 8), depths=(1, 2))
  >>> (tokens, out), _ = model.init_with_output(
  ...     jax.random.key(0), jnp.zeros((2, 9, 12, 3)))
  >>> tokens.shape, out['grid']
  ((2, 24, 8), (4, 6))

  Attributes:
    widths: channels of each stage; all but the first start with a pooling of
      2 x 2 cells. Fewer stages leave out the last ones of a published network.
    depths: number of convolutions in each stage.
    dtype: of the computation.

  `out`: grid (rows, columns), for five stages a 16th of the image, rounded
  down.
  """

  widths: tuple[int, ...] = (64, 128, 256, 512, 512)
  depths: tuple[int, ...] = (2, 2, 3, 3, 3)
  dtype: jnp.dtype = jnp.float32

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
      train: of no effect.

    Returns:
      tokens: [B, N, D] float32 in row-major order.
      out: see the class.
    """
    del train
    chex.assert_rank(images, 4)
    x = images.astype(self.dtype)
    stages = zip(self.widths, self.depths, strict=True)
    for i, (width, depth) in enumerate(stages):
      for j in range(depth):
        # The last convolution is left as it is.
        x = nn.relu(x) if i + j else x
        x = nn.max_pool(x, (2, 2), (2, 2)) if i and not j else x
        x = convolution.Conv(
          width,
          (3, 3),
          padding=1,
          kernel_init=nn.initializers.variance_scaling(
            2.0, 'fan_out', 'normal'
          ),
          dtype=self.dtype,
          name=f'stage{i}_conv{j}',
        )(x)
    tokens = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
    return tokens, {'grid': x.shape[1:3]}
