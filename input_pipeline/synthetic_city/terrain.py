# SPDX-License-Identifier: Apache-2.0
"""The ground as a height field: its height, its normal, where rays meet it.

z = sum_i amplitude_i sin(2 pi (wave_i . xy + phase_i)), with x and y relative
to the ego position and phases taken there in float64, so that float32 keeps
millimetres however large the town is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.synthetic_city import patterns

Array = patterns.Array

INFINITE = np.float32(3e38)  # the distance of what a ray never meets
TOUCH = 1e-3  # a hit nearer than this is the surface the ray leaves, metres
_LADDER = (25.0, 60.0, 130.0, 400.0)
# sin(2 pi x) = x (c0 + c1 x^2 + ...), least squares on [-0.5, 0.5].
_SERIES = (
  6.28318527,
  -41.341697,
  81.6050236,
  -76.7015374,
  42.0160737,
  -14.8683156,
  3.19932933,
)


class Terrain(NamedTuple):
  """The height field z = sum_i amplitude_i sin(2 pi (wave_i . xy + phase_i)).

  Attributes:
    amplitude: [A] metres.
    wave: [A, 2] turns per metre.
    phase: [A] turns at the ego position.
    base: height of the ego position, metres (z is relative to it).
  """

  amplitude: Array
  wave: Array
  phase: Array
  base: Array


def _sine(turns: Array) -> Array:
  """sin(2 pi turns) to 1e-6 by an odd polynomial; vectorizes on CPU."""
  x = turns - jnp.round(turns)
  square = x * x
  series = np.float32(_SERIES[-1])
  for coefficient in _SERIES[-2::-1]:
    series = coefficient + square * series
  return x * series


def height(terrain: Terrain, x: Array, y: Array) -> Array:
  """Height of the ground relative to the ego position, metres."""
  z = -terrain.base
  for i in range(terrain.amplitude.shape[0]):
    turns = terrain.wave[i, 0] * x + terrain.wave[i, 1] * y
    z += terrain.amplitude[i] * _sine(turns + terrain.phase[i])
  return z


def _slope(terrain: Terrain, x: Array, y: Array) -> tuple[Array, Array]:
  """Derivatives of the height along x and y."""
  slope_x = slope_y = jnp.zeros(())
  for i in range(terrain.amplitude.shape[0]):
    turns = terrain.wave[i, 0] * x + terrain.wave[i, 1] * y
    cosine = _sine(turns + terrain.phase[i] + 0.25)
    rate = 2.0 * jnp.pi * terrain.amplitude[i] * cosine
    slope_x += rate * terrain.wave[i, 0]
    slope_y += rate * terrain.wave[i, 1]
  return slope_x, slope_y


def normal(terrain: Terrain, x: Array, y: Array):
  """Upward unit normal of the ground, three components."""
  slope_x, slope_y = _slope(terrain, x, y)
  scale = jax.lax.rsqrt(1.0 + slope_x * slope_x + slope_y * slope_y)
  return -slope_x * scale, -slope_y * scale, scale


def cast(terrain: Terrain, origin, direction) -> Array:
  """Distance to the ground; `INFINITE` for rays that meet none in 400 m.

  The first rung of a ladder of distances that lies below ground bounds the
  crossing; Newton's method descends from it, kept inside (0, rung].
  """

  def clearance(t):
    x, y, z = (o + t * d for o, d in zip(origin, direction, strict=True))
    return z - height(terrain, x, y)

  rung = jnp.full_like(direction[0], INFINITE)
  for step in reversed(_LADDER):
    rung = jnp.where(clearance(step) < 0, step, rung)
  met = rung < INFINITE

  def descend(_, t):
    x, y, z = (o + t * d for o, d in zip(origin, direction, strict=True))
    slope_x, slope_y = _slope(terrain, x, y)
    rate = direction[2] - slope_x * direction[0] - slope_y * direction[1]
    # Clearance falls where the ray goes underground: its rate is negative.
    step = (z - height(terrain, x, y)) / jnp.minimum(rate, -1e-3)
    return jnp.clip(t - step, 0.0, rung)

  t = jax.lax.fori_loop(0, 4, descend, jnp.where(met, rung, 1.0))
  return jnp.where(met & (t > TOUCH), t, INFINITE)
