# SPDX-License-Identifier: Apache-2.0
"""Light, sky and air: from a painted surface to the pixel a camera stores.

radiance = albedo (sky light + sun . visibility max(n . l, 0)) + gloss mirrored
sky + emission; fog mixes in the horizon with weight 1 - exp(-density distance).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from input_pipeline.synthetic_city import patterns
from input_pipeline.synthetic_city import primitives as primitives_lib

Array = patterns.Array
Vector = patterns.Vector


class Air(NamedTuple):
  """`primitives.Weather` as float32 arrays, and the seed of its clouds."""

  sun_direction: Array
  sun_color: Array
  sky_color: Array
  horizon_color: Array
  fog_density: Array
  snow: Array
  autumn: Array
  dusk: Array
  wetness: Array
  exposure: Array
  grain: Array
  seed: Array | np.uint32


def make_air(weather: primitives_lib.Weather) -> Air:
  """The weather for the device. The clouds follow from the sun's direction."""
  fields = [np.asarray(value, np.float32) for value in weather]
  bits = fields[0].view(np.uint32).astype(np.uint64)
  seed = np.uint32(
    int((bits * np.array([1, 31, 961], np.uint64)).sum()) % 2**32
  )
  return Air(*fields, seed=seed)


def _dot(a, b) -> Array:
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def sky(air: Air, direction: Vector, clouds: bool = True) -> Vector:
  """Radiance of the sky in a direction; below the horizon, its reflection."""
  up = jnp.abs(direction[2])
  height = jnp.clip(up * (2.4 - 1.4 * up), 0.0, 1.0)
  color = tuple(
    patterns.mix(air.horizon_color[i], air.sky_color[i], height)
    for i in range(3)
  )
  if not clouds:
    return color
  scale = 1.6 / (up + 0.12)
  x, y = direction[0] * scale, direction[1] * scale
  cover = 0.65 * patterns.noise(x, y, air.seed)
  cover += 0.35 * patterns.noise(2.7 * x, 2.7 * y, air.seed + 1)
  cover = jnp.clip(2.6 * cover - 1.15, 0.0, 1.0) * jnp.clip(6.0 * up, 0.0, 1.0)
  white = tuple(
    0.75 * air.sky_color[i]
    + 0.35 * air.horizon_color[i]
    + 0.1 * air.sun_color[i]
    for i in range(3)
  )
  color = patterns.mix(color, white, 0.7 * cover)
  toward = jnp.maximum(_dot(direction, air.sun_direction), 0.0)
  glow = toward
  for _ in range(5):
    glow = glow * glow
  disc = jnp.where(toward > 0.9992, 6.0, 0.0)
  halo = 0.35 * glow * (1.0 - 0.6 * cover) + disc * (1.0 - cover)
  return tuple(c + air.sun_color[i] * halo for i, c in enumerate(color))


def haze(air: Air, color: Vector) -> Vector:
  """The sky through fog, as if 150 m of it lay before."""
  clear = jnp.exp(-150.0 * air.fog_density)
  return tuple(
    patterns.mix(air.horizon_color[i], color[i], clear) for i in range(3)
  )


def shade(
  air: Air,
  paint: patterns.Paint,
  normal: Vector,
  direction: Vector,
  distance: Array,
  lit: Array,
) -> Vector:
  """Radiance of surfaces through the air.

  Args:
    air: the weather.
    paint: of the surfaces.
    normal: unit, facing the ray's origin.
    direction: of the rays, unit.
    distance: metres.
    lit: bool, the sun sees the point.

  Returns:
    Linear radiance, three components.
  """
  cosine = jnp.maximum(_dot(normal, air.sun_direction), 0.0)
  sun = jnp.where(lit, cosine, 0.0)
  # Half of the sky for walls, and some light from the ground.
  open_sky = 0.62 + 0.38 * normal[2]
  facing = jnp.clip(-_dot(normal, direction), 0.0, 1.0)
  graze = (1.0 - facing) * (1.0 - facing)
  mirror = paint.gloss + jnp.where(
    paint.gloss > 0.01, (1.0 - paint.gloss) * 0.5 * graze * graze, 0.0
  )
  twice = 2.0 * _dot(normal, direction)
  bounced = tuple(d - twice * n for d, n in zip(direction, normal, strict=True))
  # Low reflections show the other side of the street.
  open_ = jnp.clip(0.35 + 2.0 * bounced[2], 0.15, 1.0)
  reflected = tuple(open_ * c for c in sky(air, bounced, clouds=False))
  clear = jnp.exp(-air.fog_density * distance)
  radiance = []
  for i in range(3):
    light = 0.85 * air.sky_color[i] * open_sky + 0.15 * air.horizon_color[i]
    light += air.sun_color[i] * sun
    value = paint.albedo[i] * light * (1.0 - mirror) + mirror * reflected[i]
    value += paint.emission[i]
    radiance.append(patterns.mix(air.horizon_color[i], value, clear))
  return tuple(radiance)


def develop(
  air: Air, radiance: Vector, grain: Sequence[Array]
) -> tuple[Array, ...]:
  """Exposes, compresses highlights, encodes to sRGB and quantizes.

  x / (x + 0.155) * 1.019 is a film curve that includes the sRGB gamma.

  Args:
    air: the weather, for its exposure and its grain.
    radiance: three components, linear.
    grain: three arrays of noise, about standard normal.

  Returns:
    Three uint8 arrays.
  """
  pixels = []
  for value, speck in zip(radiance, grain, strict=True):
    value = jnp.maximum(0.45 * air.exposure * value, 0.0)
    display = 255.0 * 1.019 * value / (value + 0.155)
    # Shot noise: the square root's derivative is flat after the gamma.
    display += air.grain * speck
    pixels.append(jnp.clip(jnp.round(display), 0, 255).astype(jnp.uint8))
  return tuple(pixels)


def gaussian(index: Array, key: Array, stream: int) -> Array:
  """About standard normal noise, a function of index, key and stream.

  The sum of eight random bytes; a counter costs less than threefry and keeps
  the streams of sensors apart by construction.
  """
  total = jnp.zeros(())
  for i in range(2):
    bits = patterns.random(index, jnp.zeros_like(index) + (2 * stream + i), key)
    total += sum(patterns.byte(bits, which) for which in range(4))
  return (total - 4.0) * np.float32(np.sqrt(12 / 8))


def uniform(index: Array, key: Array, stream: int) -> Array:
  """Uniform noise in [0, 1) of 24 bits, a function of index, key, stream."""
  bits = patterns.random(index, jnp.zeros_like(index) + (2 * stream), key)
  return (bits >> 8).astype(jnp.int32).astype(jnp.float32) * np.float32(2**-24)
