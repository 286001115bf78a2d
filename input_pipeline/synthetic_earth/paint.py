# SPDX-License-Identifier: Apache-2.0
"""How land looks from above on one day: season, fields, light, air, clouds.

Colours are as on a screen, 0 to 1, not linear light.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.synthetic_city import patterns
from input_pipeline.synthetic_earth import land as land_lib
from input_pipeline.synthetic_earth import noise

_CLOUD = 5_000.0  # metres, of the largest clouds
_CLOUD_HEIGHT = 1_500.0


class Look(NamedTuple):
  """One day, as numbers that a compiled program takes.

  Attributes:
    seed: uint32, of what grows on each field, and of clouds.
    season: radians; 0 is the middle of winter, pi that of summer.
    sun: [3] float32, towards the sun, unit, east, north and up.
    snow: metres, where it lies from.
    haze: 0 to 1.
    clouds: 0 to 1, about the share that they cover.
    contrast: of the picture, 1 is as it is.
    gain: [3] float32, of red, green and blue.
    soil: 0 grey to 1 red; of the land.
    muddy: 0 blue to 1 brown; of the rivers.
  """

  seed: np.uint32
  season: float
  sun: np.ndarray
  snow: float
  haze: float
  clouds: float
  contrast: float
  gain: np.ndarray
  soil: float
  muddy: float


def _color(r: float, g: float, b: float):
  return np.array([r, g, b], np.float32)


_SAND, _RED_SOIL = _color(0.77, 0.69, 0.53), _color(0.70, 0.47, 0.33)
_GREY_SOIL, _ROCK = _color(0.58, 0.53, 0.45), _color(0.47, 0.44, 0.41)
_GRASS, _DRY = _color(0.38, 0.47, 0.22), _color(0.62, 0.57, 0.37)
_WOOD, _BARE_WOOD = _color(0.12, 0.24, 0.12), _color(0.34, 0.30, 0.23)
_CROPS = np.stack(
  [
    _color(0.25, 0.42, 0.14),
    _color(0.42, 0.55, 0.22),
    _color(0.78, 0.71, 0.40),
    _color(0.52, 0.40, 0.29),
    _color(0.66, 0.57, 0.45),
    _color(0.32, 0.27, 0.22),
  ]
)
_ROOFS, _STREETS = _color(0.60, 0.56, 0.54), _color(0.78, 0.76, 0.73)
_DEEP, _SHALLOW = _color(0.03, 0.10, 0.22), _color(0.10, 0.35, 0.40)
_RIVER, _MUD = _color(0.09, 0.20, 0.26), _color(0.52, 0.42, 0.29)
_SNOW, _AIR = _color(0.95, 0.96, 0.99), _color(0.62, 0.70, 0.80)


def _mix(a, b, weight):
  return a + (b - a) * weight[..., None]


def _step(low, high, value):
  t = jnp.clip((value - low) / (high - low), 0, 1)
  return t * t * (3 - 2 * t)


@jax.jit
def paint(
  land: land_lib.Land, x: jax.Array, y: jax.Array, look: Look
) -> jax.Array:
  """The picture of a piece of land.

  Args:
    land: layers [H, W].
    x: [H, W] metres east: clouds are where they are.
    y: [H, W] metres north.
    look: the day.

  Returns:
    float32 [H, W, 3].
  """
  color = _ground(land, look)
  color = color * _light(land, look)[..., None]
  shift = _CLOUD_HEIGHT / jnp.maximum(look.sun[2], 0.2) * look.sun[:2]
  # Light that misses the ground here has met a cloud towards the sun.
  shadow = _clouds(x + shift[0], y + shift[1], look)
  color = color * (1 - 0.55 * shadow[..., None])
  color = _mix(color, _AIR, jnp.full(x.shape, look.haze))
  color = (color - 0.4) * look.contrast + 0.4
  cloud = _clouds(x, y, look)
  color = _mix(color, _SNOW * (0.8 + 0.2 * cloud[..., None]), cloud)
  return jnp.clip(color * look.gain, 0, 1)


def _ground(land, look):
  """Colours without light and air."""
  summer = 0.5 - 0.5 * jnp.cos(look.season)
  late = 0.5 - 0.5 * jnp.cos(look.season - 0.8)  # the year's warmth
  soil = _mix(
    _mix(_GREY_SOIL, _SAND, _step(0.45, 0.2, land.wet)),
    jnp.broadcast_to(_RED_SOIL, (3,)),
    look.soil * jnp.clip(0.7 + 1.5 * land.tint, 0, 1),
  )
  # Meadows are green where it rains; in hot summers the dry ones are yellow.
  lush = jnp.clip(land.wet * 1.3 - 0.25 + 0.25 * (summer - 0.5), 0, 1)
  meadow = _mix(_DRY, _GRASS, _step(0.15, 0.6, lush))
  color = _mix(soil, meadow, _step(0.18, 0.42, land.wet + 0.3 * land.grain))
  # Half of the trees lose their leaves where winters are cold.
  leaves = 1 - 0.8 * (1 - summer) * _step(0.2, -0.2, land.tint)
  leaves = jnp.where(look.snow > 3500, 1.0, leaves)
  wood = _mix(_BARE_WOOD, _WOOD, leaves)
  color = _mix(color, wood, land.forest)
  color = color * (1 + 0.35 * land.grain + 0.25 * land.tint)[..., None]
  steep = jnp.hypot(land.east, land.north)
  color = _mix(color, _ROCK, 0.85 * _step(0.35, 0.7, steep + 0.2 * land.grain))
  color = _mix(color, _crops(land, look, summer), land.field)
  color = color * (1 - 0.3 * land.hedge * land.field)[..., None]
  roof = 0.75 + 0.5 * patterns.byte(land.block, 0)
  roofs = _ROOFS * roof[..., None] * (1 + 0.08 * _hue(land.block))
  parks = patterns.byte(land.block, 3) < 0.15
  roofs = jnp.where(parks[..., None], _GRASS, roofs)
  color = _mix(color, roofs, 0.9 * land.town)
  color = _mix(color, _STREETS, 0.6 * land.street)
  line = look.snow - 500 * (1 - late) + 700 * late
  snow = _step(-150, 150, land.height + 500 * land.grain - line)
  snow = snow * (1 - 0.7 * _step(0.6, 1.1, steep))
  color = _mix(color, _SNOW, snow * (1 - 0.6 * land.forest))
  river = _mix(_RIVER, _MUD, jnp.full(land.river.shape, look.muddy))
  color = _mix(color, river, land.river)
  deep = _step(0, -120, land.height)
  sea = _mix(_SHALLOW, _DEEP, deep) * (1 + 0.1 * land.tint)[..., None]
  return _mix(color, sea, _step(2, -2, land.height))


def _hue(bits):
  return jnp.stack([patterns.byte(bits, i) - 0.5 for i in (1, 2, 1)], -1)


def _crops(land, look, summer):
  """Colours of fields: what grows is half the farmer's and half the year's."""
  yearly = patterns.random(
    land.parcel.astype(jnp.int32), jnp.int32(0) + 7, look.seed
  )
  kind = 0.45 * patterns.byte(land.parcel, 0) + 0.55 * patterns.byte(yearly, 0)
  # In summer more is green or ripe, in winter more is bare.
  kind = jnp.clip(kind * 1.3 - 0.15 + 0.25 * (0.5 - summer), 0, 0.999)
  at = kind * (len(_CROPS) - 1)
  below = jnp.floor(at).astype(jnp.int32)
  crops = jnp.asarray(_CROPS)
  color = _mix(crops[below], crops[below + 1], _step(0.3, 0.7, at - below))
  color = color * (0.85 + 0.3 * patterns.byte(yearly, 1))[..., None]
  return color * (1 + 0.15 * land.grain)[..., None]


def _light(land, look):
  """How bright slopes are: 1 on a plain."""
  normal = 1 / jnp.sqrt(1 + (2 * land.east) ** 2 + (2 * land.north) ** 2)
  sun = look.sun
  facing = normal * (sun[2] - 2 * land.east * sun[0] - 2 * land.north * sun[1])
  facing = jnp.maximum(facing, 0) / jnp.maximum(sun[2], 0.25)
  water = jnp.maximum(land.river, _step(2, -2, land.height))
  return jnp.where(water > 0.5, 1.0, jnp.clip(0.35 + 0.65 * facing, 0.2, 1.5))


def _clouds(x, y, look):
  """Share of the light that clouds hold back [...], 0 to 1."""
  value = noise.fractal(x / _CLOUD, y / _CLOUD, look.seed ^ np.uint32(77), 6)
  broad = noise.fractal(
    x / (5 * _CLOUD), y / (5 * _CLOUD), look.seed ^ np.uint32(99), 2
  )
  # From -0.5 at no clouds to 0.3 where half of the sky is covered.
  edge = 0.5 - 1.0 * look.clouds
  cover = _step(0, 0.22, 0.6 * value + 0.8 * broad - edge)
  return jnp.where(look.clouds > 0, cover, 0.0)
