# SPDX-License-Identifier: Apache-2.0
"""Convolution whose gradients are fast inside loops as well.

XLA's CPU compiler brings the convolutions of a program into the layout of its
fast kernels, but not those inside of loops: there a kernel gradient falls to
plain loops, 60 times slower (jaxlib 0.10.2, a gradient cache's scan over
chunks of 3 x 3 convolutions). On CPU, `Conv` writes both gradients in that
layout itself; values and gradients are those of `nn.Conv`.
"""

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x, kernel, strides, pads):
  return lax.conv_general_dilated(
    x, kernel, strides, pads, dimension_numbers=_DIMENSIONS
  )


def _forward(x, kernel, strides, pads):
  return _convolve(x, kernel, strides, pads), (x, kernel)


def _backward(strides, pads, residuals, cotangent):
  x, kernel = residuals
  input_pads, kernel_pads = [], []
  for size, out, window, stride, (low, _) in zip(
    x.shape[1:3],
    cotangent.shape[1:3],
    kernel.shape[:2],
    strides,
    pads,
    strict=True,
  ):
    spread = (out - 1) * stride + 1  # the cotangent with its gaps
    before = window - 1 - low
    input_pads.append((before, size + low - spread))
    kernel_pads.append((low, spread + window - 1 - size - low))
  input_gradient = lax.conv_general_dilated(
    cotangent,
    jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
    (1, 1),
    input_pads,
    lhs_dilation=strides,
    dimension_numbers=_DIMENSIONS,
  )
  # The batch is what the kernel's gradient sums over, as a channel.
  kernel_gradient = lax.conv_general_dilated(
    x.transpose(3, 1, 2, 0),
    cotangent.transpose(1, 2, 0, 3),
    (1, 1),
    kernel_pads,
    rhs_dilation=strides,
    dimension_numbers=_DIMENSIONS,
  )
  return input_gradient, kernel_gradient.transpose(1, 2, 0, 3)


_convolve.defvjp(_forward, _backward)


def _conv_general_dilated(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  **others,
) -> jax.Array:
  """`lax.conv_general_dilated`, as `nn.Conv` calls it."""
  dilated = {*others['lhs_dilation'], *others['rhs_dilation']} != {1}
  special = dilated or others['feature_group_count'] > 1 or x.ndim != 4
  if special or jax.default_backend() != 'cpu':
    return lax.conv_general_dilated(x, kernel, strides, padding, **others)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(
      x.shape[1:3], kernel.shape[:2], strides, padding
    )
  pads = tuple((int(low), int(high)) for low, high in padding)
  return _convolve(x, kernel, tuple(strides), pads)


Conv = functools.partial(nn.Conv, conv_general_dilated=_conv_general_dilated)
