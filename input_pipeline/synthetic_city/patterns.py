# SPDX-License-Identifier: Apache-2.0
"""What procedural textures are made of: hashed cells and filtered edges.

A pattern is a grid of cells; an integer hash of the cell and a seed draws
whatever differs from cell to cell. Edges are box-filtered with the footprint of
the pixel and patterns fade to their mean where a cell is smaller than it, so
nothing flickers with distance.

Vectors are tuples of components: XLA then fuses without copies.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# What is made on the host goes to the device with the call that takes it.
Array = jax.Array | np.ndarray
Vector = tuple[Array, ...]  # of three components


class Paint(NamedTuple):
  """What a surface does with light.

  Attributes:
    albedo: three components, linear, 0..1.
    emission: radiance of lit windows and lamps, three components.
    gloss: 0..1, share of the mirrored sky at normal incidence.
    reflectivity: of LiDAR pulses, 0..1.
  """

  albedo: Vector
  emission: Vector
  gloss: Array
  reflectivity: Array


def mix(a, b, weight):
  """a where `weight` is 0, b where it is 1; vectors by component."""
  if isinstance(a, tuple):
    return tuple(mix(x, y, weight) for x, y in zip(a, b, strict=True))
  return a + (b - a) * weight


def random(x: Array, y: Array, seed: Array | np.uint32) -> Array:
  """32 random bits of an integer cell, uint32 [...]."""
  bits = x.astype(jnp.uint32) * np.uint32(0x9E3779B1)
  bits ^= y.astype(jnp.uint32) * np.uint32(0x85EBCA77)
  bits ^= seed
  for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
    bits = (bits ^ (bits >> shift)) * np.uint32(factor)
  return bits ^ (bits >> 15)


def byte(bits: Array, which: int) -> Array:
  """One of the four bytes of `random`, as a float in [0, 1]."""
  part = (bits >> (8 * which)) & np.uint32(255)
  return part.astype(jnp.int32).astype(jnp.float32) * np.float32(1 / 255)


def cover(x: Array, low, high, width: Array) -> Array:
  """Share of the window [x - width / 2, x + width / 2] inside [low, high]."""
  half = 0.5 * width
  inside = jnp.minimum(x + half, high) - jnp.maximum(x - half, low)
  return jnp.clip(inside / width, 0.0, 1.0)


def cover_cell(x: Array, low, high, width: Array) -> Array:
  """`cover` in a periodic cell [0, 1]: the mean once the window exceeds it."""
  fade = jnp.clip(2.0 * width - 0.6, 0.0, 1.0)
  return mix(cover(x, low, high, jnp.maximum(width, 1e-3)), high - low, fade)


def noise(x: Array, y: Array, seed: Array | np.uint32) -> Array:
  """Smooth noise in [0, 1] with one node per unit; x, y in float32."""
  i, j = jnp.floor(x), jnp.floor(y)
  u, v = x - i, y - j
  u, v = u * u * (3.0 - 2.0 * u), v * v * (3.0 - 2.0 * v)
  i, j = i.astype(jnp.int32), j.astype(jnp.int32)
  a, b = byte(random(i, j, seed), 0), byte(random(i + 1, j, seed), 0)
  c, d = byte(random(i, j + 1, seed), 0), byte(random(i + 1, j + 1, seed), 0)
  return mix(mix(a, b, u), mix(c, d, u), v)
