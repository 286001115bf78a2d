# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution: each channel with a window of its own.

XLA's CPU compiler has no fast kernel for it (jaxlib 0.10.2: the network of
`efficientnet` takes 13 times as long). There it is written as what it is, a sum
of shifted images, each times one weight per channel, which XLA makes one loop
over contiguous channels. Accelerators have kernels of their own.
"""

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from i2ploc.errors import InputError

Pads = tuple[tuple[int, int], tuple[int, int]]
# What lies beyond an image: the same zeros on both sides (torch), or those that
# make the output a stride-th of the input, the odd one last (TensorFlow).
PADDINGS = ('same', 'symmetric')


def pads(padding: str, shape: Sequence[int], size: int, stride: int) -> Pads:
  """Zeros before and after an image's rows and columns.

  Args:
    padding: of PADDINGS.
    shape: (H, W) of the image.
    size: of the odd window.
    stride: of its places.

  Raises:
    InputError: another padding.

  >>> pads('same', (8, 7), 3, 2)
  ((0, 1), (1, 1))
  >>> pads('symmetric', (8, 7), 3, 2)
  ((1, 1), (1, 1))
  """
  if padding not in PADDINGS:
    raise InputError(f'unknown padding {padding!r}; known: {PADDINGS}')
  if padding == 'symmetric':
    both = size // 2, size // 2
    return both, both
  missing = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in shape]
  rows, columns = ((total // 2, total - total // 2) for total in missing)
  return rows, columns


def _grouped(x, kernel, stride, pads):
  """As one grouped convolution."""
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    pads,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


def _shifts(x, size, stride, pads):
  """(row, column) of a window and the image [B, H', W', C] that it sees."""
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  spans = [(n - size) // stride * stride + 1 for n in x.shape[1:3]]
  for i in range(size):
    for j in range(size):
      ends = (x.shape[0], i + spans[0], j + spans[1], x.shape[3])
      shifted = lax.slice(x, (0, i, j, 0), ends, (1, stride, stride, 1))
      yield (i, j), shifted


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted(x, kernel, stride, pads):
  """As a sum of shifted images."""
  total = 0.0
  for (i, j), shifted in _shifts(x, len(kernel), stride, pads):
    total += shifted * kernel[i, j, 0]
  return total


def _forward(x, kernel, stride, pads):
  return _shifted(x, kernel, stride, pads), (x, kernel)


def _backward(stride, pads, saved, cotangent):
  x, kernel = saved
  size = len(kernel)
  # The transpose: the cotangent with its gaps, and the window turned round.
  spread = [(n - 1) * stride + 1 for n in cotangent.shape[1:3]]
  gaps = [(0, 0, 0), (0, 0, stride - 1), (0, 0, stride - 1), (0, 0, 0)]
  dilated = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), gaps)
  back = tuple(
    (size - 1 - low, n + low - m)
    for n, m, (low, _) in zip(x.shape[1:3], spread, pads, strict=True)
  )
  dx = _shifted(dilated, jnp.flip(kernel, (0, 1)), 1, back)
  sums = [
    jnp.einsum(
      'bhwc,bhwc->c', shifted, cotangent, preferred_element_type=jnp.float32
    )
    for _, shifted in _shifts(x, size, stride, pads)
  ]
  dkernel = jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)
  return dx, dkernel


_shifted.defvjp(_forward, _backward)


def convolve(
  x: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> jax.Array:
  """Each channel of x with its own window, on any device.

  Args:
    x: [B, H, W, C].
    kernel: [K, K, 1, C], as that of a grouped `nn.Conv`.
    stride: downsampling, of both axes.
    pads: zeros before and after rows and columns, see `pads`.

  Returns:
    [B, H', W', C].
  """
  on_cpu = jax.default_backend() == 'cpu'
  return (_shifted if on_cpu else _grouped)(x, kernel, stride, pads)


class Depthwise(nn.Module):
  """Depthwise convolution without bias.

  Attributes:
    size: side of the odd window.
    stride: downsampling, of both axes.
    padding: of PADDINGS.
    dtype: of the computation.
  """

  size: int
  stride: int = 1
  padding: str = 'same'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to [B, H / stride, W / stride, C], up."""
    kernel = self.param(
      'kernel',
      nn.initializers.variance_scaling(2.0, 'fan_in', 'normal'),
      (self.size, self.size, 1, x.shape[-1]),
    )
    around = pads(self.padding, x.shape[1:3], self.size, self.stride)
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    return convolve(x, kernel, self.stride, around)
