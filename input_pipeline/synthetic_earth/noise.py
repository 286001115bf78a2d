# SPDX-License-Identifier: Apache-2.0
"""Noise of several octaves, and cells around scattered points.

Coordinates are in units of the largest wavelength. Each octave is turned
against the one before, since noise on a lattice has the lattice's directions.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.synthetic_city import patterns

_TURN = 0.6  # radians
_FINER = 1.97  # not 2: nodes of several octaves never coincide for long


@functools.partial(jax.jit, static_argnames='octaves')
def fractal(x, y, seed, octaves: int = 6) -> jax.Array:
  """Sum of octaves, each half as strong, about -0.5 to 0.5 around 0."""
  return _sum_octaves(x, y, seed, octaves, lambda value, _: value - 0.5)


@functools.partial(jax.jit, static_argnames='octaves')
def ridged(x, y, seed, octaves: int = 6) -> jax.Array:
  """Crests as of mountains, 0 to 1: octaves are strong where coarser ones are.

  After Musgrave's ridged multifractal.
  """

  def crest(value, below):
    return (1 - jnp.abs(2 * value - 1)) ** 2 * jnp.clip(below, 0, 1)

  return _sum_octaves(x, y, seed, octaves, crest) / 1.6


def _sum_octaves(x, y, seed, octaves, shape) -> jax.Array:
  """The shaped octaves; `shape` takes the noise and the octave before."""
  cos, sin = _FINER * math.cos(_TURN), _FINER * math.sin(_TURN)

  def octave(i, carry):
    x, y, total, below, weight = carry
    bits = jnp.uint32(seed) + jnp.uint32(i) * np.uint32(0x9E3779B9)
    value = shape(patterns.noise(x, y, bits), below)
    total = total + weight * value
    return cos * x - sin * y, sin * x + cos * y, total, 2 * value, weight / 2

  x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
  start = (x, y, jnp.zeros_like(x), jnp.ones_like(x), jnp.float32(1))
  return jax.lax.fori_loop(0, octaves, octave, start)[2]


@jax.jit
def cells(x, y, seed) -> jax.Array:
  """Which of the points that are scattered one to a unit square is nearest.

  Returns:
    uint32 [...], 32 random bits of the point.
  """
  seed = jnp.uint32(seed)
  i, j = jnp.floor(x).astype(jnp.int32), jnp.floor(y).astype(jnp.int32)
  best = jnp.full(jnp.shape(x), jnp.inf, jnp.float32)
  found = jnp.zeros(jnp.shape(x), jnp.uint32)
  for di in (-1, 0, 1):
    for dj in (-1, 0, 1):
      bits = patterns.random(i + di, j + dj, seed)
      px = i + di + 0.1 + 0.8 * patterns.byte(bits, 0)
      py = j + dj + 0.1 + 0.8 * patterns.byte(bits, 1)
      distance = (x - px) ** 2 + (y - py) ** 2
      nearer = distance < best
      best = jnp.where(nearer, distance, best)
      found = jnp.where(nearer, bits, found)
  return found
