# SPDX-License-Identifier: Apache-2.0
"""Parts of images around boxes, resampled to one size on the device.

A box is (left, top, right, bottom) in pixels, the centre of the top-left pixel
at (0.5, 0.5), so that an image's own box is (0, 0, W, H).
"""

import chex
import jax
import jax.numpy as jnp

# Pixels; what is smaller shows nothing, and a window needs an extent.
MIN_SIDE = 4.0


def windows(boxes: jax.Array, margin: float) -> jax.Array:
  """Squares around boxes, with context.

  Args:
    boxes: [..., 4] pixels.
    margin: of context on every side of the longer side, as a part of it.

  Returns:
    [..., 4] boxes; they may reach beyond the image.
  """
  chex.assert_axis_dimension(boxes, -1, 4)
  low, high = boxes[..., :2], boxes[..., 2:]
  side = jnp.maximum(jnp.max(high - low, -1, keepdims=True), MIN_SIDE)
  half = side * (0.5 + margin)
  center = (low + high) / 2
  return jnp.concatenate([center - half, center + half], axis=-1)


def jitter(key: jax.Array, windows: jax.Array, strength: float) -> jax.Array:
  """Windows moved and scaled at random, as a worse detector would place them.

  Args:
    key: PRNG key.
    windows: [..., 4] boxes.
    strength: largest shift, as a part of the side, and largest change of the
      logarithm of the side; 0 for none.
  """
  low, high = windows[..., :2], windows[..., 2:]
  draws = jax.random.uniform(
    key, (*windows.shape[:-1], 3), minval=-strength, maxval=strength
  )
  side = high - low
  center = (low + high) / 2 + draws[..., :2] * side
  half = side / 2 * jnp.exp(draws[..., 2:])
  return jnp.concatenate([center - half, center + half], axis=-1)


def crop(
  images: jax.Array,
  boxes: jax.Array,
  size: tuple[int, int],
  fill: tuple[float, ...],
) -> jax.Array:
  """What boxes show, linearly interpolated, averaged where it gets smaller.

  Args:
    images: [B, H, W, C] float.
    boxes: [B, K, 4] pixels, of positive extent.
    size: (h, w) of a crop.
    fill: [C], what lies beyond an image.

  Returns:
    [B, K, h, w, C].
  """
  chex.assert_rank([images, boxes], [4, 3])
  left, top, right, bottom = jnp.moveaxis(boxes, -1, 0)
  rows = _weights(top, bottom, size[0], images.shape[1])
  columns = _weights(left, right, size[1], images.shape[2])
  beyond = jnp.asarray(fill)
  # Weights are zero beyond the image, so that only the last term is left there.
  exact = jax.lax.Precision.HIGHEST
  x = jnp.einsum('bkih,bhwc->bkiwc', rows, images - beyond, precision=exact)
  x = jnp.einsum('bkjw,bkiwc->bkijc', columns, x, precision=exact)
  return x + beyond


def _weights(low, high, count, length):
  """Weights [B, K, count, length] of pixels in samples from low to high."""
  step = (high - low)[..., None] / count
  center = low[..., None] + (jnp.arange(count) + 0.5) * step
  pixel = jnp.arange(length) + 0.5
  apart = jnp.abs(pixel - center[..., None])
  weights = jax.nn.relu(1.0 - apart / jnp.maximum(step, 1.0)[..., None])
  total = weights.sum(-1, keepdims=True)
  inside = ((center >= 0) & (center <= length))[..., None]
  return jnp.where(inside, weights / jnp.maximum(total, 1e-6), 0.0)
