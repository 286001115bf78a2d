# SPDX-License-Identifier: Apache-2.0
"""What the device computes for one frame: images and scan together.

A frame takes two steps, since the host lists the casters of shadows between
them. Rays of all sensors go through both in one array of tiles, so that the
program is compiled once and not per sensor.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.synthetic_city import ground as ground_lib
from input_pipeline.synthetic_city import labels as labels_lib
from input_pipeline.synthetic_city import patterns
from input_pipeline.synthetic_city import raycast
from input_pipeline.synthetic_city import selection
from input_pipeline.synthetic_city import shading
from input_pipeline.synthetic_city import terrain as terrain_lib
from input_pipeline.synthetic_city import textures

Array = patterns.Array

SHADOW_REACH = 90.0  # metres; beyond, everything that faces the sun is lit
_SKY = labels_lib.CLASSES.index('sky')


class World(NamedTuple):
  """All that surrounds a sensor, relative to the ego position."""

  solids: raycast.Solids
  coats: selection.Coats
  terrain: terrain_lib.Terrain
  roads: selection.Roads
  air: shading.Air


class Bundle(NamedTuple):
  """The rays of all sensors of a frame; tiles of cameras come first.

  Attributes:
    local: [T, R, 3] unit directions, LiDAR axes.
    origin: [T, R, 3] or [T, 1, 3] metres from the LiDAR, its axes.
    rotation: [3, 3] of world_from_lidar.
    spread: [T, 1] radians between rays, the filter of textures.
  """

  local: Array
  origin: Array
  rotation: Array
  spread: Array


class View(NamedTuple):
  """First hits, and where on images the sun may shine.

  Attributes:
    rays: world-aligned.
    hit: of shapes; on the ground only `distance` and `normal` mean something,
      in the sky nothing does (distance 0).
    index: [T, R] int32 of `raycast.cast`.
    sunny: [I, R] bool, for the I tiles of cameras: faces the sun and lies near
      enough for shadows.
    low: [I, 3] least coordinates of sunny points along the sun's axes.
    high: [I, 3] greatest.
  """

  rays: raycast.Rays
  hit: raycast.Hit
  index: Array
  sunny: Array
  low: Array
  high: Array


class Labels(NamedTuple):
  """Semantic class uint8 [T, R] and instance int32 [T, R]."""

  semantic: Array
  instance: Array


def _dot(a, b) -> Array:
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _rays(bundle: Bundle) -> raycast.Rays:
  def turn(vectors):
    parts = tuple(vectors[..., i] for i in range(3))
    rows = [_dot(bundle.rotation[i], parts) for i in range(3)]
    return jnp.stack(
      [jnp.broadcast_to(row, bundle.local.shape[:2]) for row in rows]
    )

  return raycast.Rays(turn(bundle.origin), turn(bundle.local))


def _points(rays: raycast.Rays, distance: Array) -> list[Array]:
  return [
    o + distance * d for o, d in zip(rays.origin, rays.direction, strict=True)
  ]


@functools.partial(jax.jit, static_argnames='num_images')
def look(
  world: World,
  bundle: Bundle,
  candidates: raycast.Candidates,
  sun_axes: Array,
  num_images: int,
) -> View:
  """First step of a frame: what is seen, and where the sun may shine.

  Args:
    world: what surrounds the ego position.
    bundle: the rays.
    candidates: lists of their tiles.
    sun_axes: [3, 3] of `selection.sun_axes`.
    num_images: how many of the tiles are cameras'.

  Returns:
    The view.
  """
  rays = _rays(bundle)
  distance, index = raycast.cast(rays, world.solids, world.terrain, candidates)
  solid = raycast.take(world.solids, index)
  hit = raycast.surface(solid, tuple(rays.origin), tuple(rays.direction))
  distance = jnp.where(index != raycast.NOTHING, distance, 0.0)
  ground = terrain_lib.normal(world.terrain, *_points(rays, distance)[:2])
  normal = tuple(
    jnp.where(index >= 0, a, b) for a, b in zip(hit.normal, ground, strict=True)
  )
  hit = hit._replace(distance=distance, normal=normal)

  lit = (index != raycast.NOTHING) & (distance < SHADOW_REACH)
  lit &= _dot(normal, world.air.sun_direction) > 0
  lit &= jnp.max(world.air.sun_color) > 0
  lit = lit[:num_images]
  points = [p[:num_images] for p in _points(rays, distance)]
  axes = [_dot(axis, points) for axis in sun_axes]
  low = [jnp.where(lit, a, 1e9).min(1) for a in axes]
  high = [jnp.where(lit, a, -1e9).max(1) for a in axes]
  return View(rays, hit, index, lit, jnp.stack(low, 1), jnp.stack(high, 1))


def _paint(
  world: World, view: View, spread: Array, plain: bool = False
) -> tuple[patterns.Paint, Labels]:
  """Paint and labels of what every ray meets; `plain` is without textures."""
  air, index = world.air, view.index
  distance, direction = view.hit.distance, tuple(view.rays.direction)
  row = jnp.clip(index, 0, world.solids.cos.shape[0] - 1)
  coat = selection.Coats(*(raycast.gathered(f, row) for f in world.coats))
  x, y, _ = _points(view.rays, distance)
  if plain:
    zero = jnp.zeros_like(distance)
    things = patterns.Paint(
      tuple(coat.color), (zero,) * 3, zero, coat.reflectivity
    )
    ground, kind = ground_lib.paint_plain(world.roads, x, y)
  else:
    things = textures.paint_solids(
      view.hit, raycast.take(world.solids, row), coat, direction, spread,
      air.autumn, air.dusk,
    )  # fmt: skip
    things = textures.snow_over(
      things, view.hit.normal, coat.semantic, air.snow
    )
    ground, kind = ground_lib.paint(
      world.roads, x, y, direction, distance, spread, air.snow, air.wetness
    )
  solid = index >= 0
  paint = jax.tree.map(lambda a, b: jnp.where(solid, a, b), things, ground)
  semantic = jnp.where(solid, coat.semantic, kind)
  semantic = jnp.where(index == raycast.NOTHING, _SKY, semantic)
  return paint, Labels(
    semantic.astype(jnp.uint8), jnp.where(solid, coat.instance, 0)
  )


def _image(
  world: World,
  view: View,
  paint: patterns.Paint,
  casters: raycast.Candidates,
  key: Array,
) -> patterns.Vector:
  """Planes of pixels uint8 [I, R]; the arguments hold cameras' tiles only."""
  hit, rays, air = view.hit, view.rays, world.air
  direction = tuple(rays.direction)
  start = jnp.stack(
    [
      p + 0.02 * n
      for p, n in zip(_points(rays, hit.distance), hit.normal, strict=True)
    ]
  )
  toward = jnp.broadcast_to(air.sun_direction[:, None, None], start.shape)
  dark = raycast.occluded(
    raycast.Rays(start, toward), view.sunny, world.solids, casters
  )
  near = shading.shade(air, paint, hit.normal, direction, hit.distance, ~dark)
  far = shading.haze(air, shading.sky(air, direction))
  sky = view.index == raycast.NOTHING
  radiance = tuple(jnp.where(sky, a, b) for a, b in zip(far, near, strict=True))
  counter = jnp.arange(sky.size, dtype=jnp.int32).reshape(sky.shape)
  grain = [shading.gaussian(counter, key, stream) for stream in range(3)]
  return shading.develop(air, radiance, grain)


def _plain_image(
  world: World, view: View, paint: patterns.Paint
) -> patterns.Vector:
  """Planes of pixels uint8 [I, R] without shadows, clouds and noise."""
  air, hit, direction = world.air, view.hit, tuple(view.rays.direction)
  sky = view.index == raycast.NOTHING
  near = shading.shade(air, paint, hit.normal, direction, hit.distance, ~sky)
  far = shading.sky(air, direction, clouds=False)
  radiance = tuple(jnp.where(sky, a, b) for a, b in zip(far, near, strict=True))
  return shading.develop(air, radiance, [jnp.zeros_like(hit.distance)] * 3)


def _scan(
  world: World, view: View, paint: patterns.Paint, reach: Array, noise: Array,
  key: Array,
) -> tuple[Array, Array]:  # fmt: skip
  """Range float32 [T, R], 0 without a return, and intensity uint8 [T, R].

  Losses: far, dark, grazing, mirroring (panes, wet roads), fog.
  """
  distance = view.hit.distance
  facing = jnp.abs(_dot(view.hit.normal, view.rays.direction))
  counter = jnp.arange(facing.size, dtype=jnp.int32).reshape(facing.shape)
  measured = distance + noise * shading.gaussian(counter, key, 0)
  through = jnp.exp(-2.0 * world.air.fog_density * distance)
  far = distance * np.float32(1 / 80)
  lost = 0.01 + 0.3 * far * far * (1.0 - paint.reflectivity)
  lost += 0.5 * jnp.clip(1.0 - 12.0 * facing, 0.0, 1.0)
  lost += 0.6 * jnp.clip(1.0 - 8.0 * paint.reflectivity, 0.0, 1.0)
  lost += 1.5 * paint.gloss * (1.0 - facing)
  lost += 1.0 - jnp.sqrt(through)
  kept = (view.index != raycast.NOTHING) & (distance < reach)
  kept &= (measured > 0.5) & (shading.uniform(counter, key, 5) >= lost)
  strength = paint.reflectivity * (0.3 + 0.7 * facing) * through
  level = 255.0 * strength + 4.0 * shading.gaussian(counter, key, 3)
  level = jnp.clip(jnp.round(level), 1, 255).astype(jnp.uint8)
  return jnp.where(kept, measured, 0.0), jnp.where(kept, level, 0)


@functools.partial(jax.jit, static_argnames='plain')
def finish(
  world: World,
  view: View,
  spread: Array,
  casters: raycast.Candidates,
  reach: Array,
  noise: Array,
  keys: Array,
  plain: bool = False,
) -> tuple[patterns.Vector, Array, Array, Labels]:
  """Second step of a frame: from hits to readings.

  Args:
    world: what surrounds the ego position.
    view: the first step's result, of I tiles of cameras and S of the LiDAR.
    spread: [I + S, 1] of the bundle.
    casters: lists of what may shadow each of the I tiles.
    reach: of the LiDAR, metres.
    noise: standard deviation of its ranges, metres.
    keys: [2] uint32, of the noise of cameras and of the LiDAR.
    plain: draw images as a viewer of meshes does: surfaces of one colour,
      without shadows, clouds and noise.

  Returns:
    three planes of pixels uint8 [I, R] (interleaved, XLA's loop would not
    vectorize), range float32 [S, R], intensity uint8 [S, R], and labels of all
    tiles (void where the LiDAR has no return).
  """
  paint, labels = _paint(world, view, spread, plain)
  images = view.sunny.shape[0]
  front, back = (
    _tiles(view, paint, slice(None, images)),
    _tiles(view, paint, slice(images, None)),
  )
  image = (
    _plain_image(world, *front)
    if plain
    else _image(world, *front, casters, keys[0])
  )
  measured, level = _scan(world, *back, reach, noise, keys[1])
  silent = jnp.concatenate([jnp.zeros_like(view.sunny), measured == 0])
  labels = Labels(*(jnp.where(silent, 0, values) for values in labels))
  return image, measured, level, labels


def _tiles(
  view: View, paint: patterns.Paint, part: slice
) -> tuple[View, patterns.Paint]:
  """Some tiles of a view and of its paint."""
  rays = raycast.Rays(*(values[:, part] for values in view.rays))
  hit, index, paint = jax.tree.map(
    lambda values: values[part], (view.hit, view.index, paint)
  )
  return view._replace(rays=rays, hit=hit, index=index), paint
