# SPDX-License-Identifier: Apache-2.0
"""The scene as the renderer sees it: primitives, ground and weather.

This is the interface between the world (towns and drives, numpy on the host)
and the sensors (JAX): everything in a town but its ground is one of four
analytic shapes, so that normals and texture coordinates are exact.
"""

from typing import NamedTuple

import numpy as np

BOX, PRISM, CYLINDER, ELLIPSOID = range(4)

# Texture families. A texture hashes integer cells of the primitive's own
# coordinates with the primitive's seed: it never swims and needs no files.
MATERIALS = (
  'plain',
  'facade',  # plaster with windows, doors at the bottom, balconies by seed
  'brick_facade',
  'roof',  # tiles
  'bark',
  'leaves',
  'hedge',
  'car_body',  # lower body in colour, upper half windows
  'glass',
  'metal',
  'wood_fence',
  'cloth',
  'sign',
  'lamp',  # emits at dusk
)


class Primitives(NamedTuple):
  """N shapes of one moment of one drive, in the world frame.

  Attributes:
    kind: [N] int8, BOX, PRISM (gabled roof, ridge along its own x axis),
      CYLINDER (vertical) or ELLIPSOID.
    center: [N, 3] float64, centre of the shape's own bounding box, metres.
    half_size: [N, 3] float32, half extents along its own axes.
    yaw: [N] float32, rotation about world z, radians.
    material: [N] int16, index into MATERIALS.
    color: [N, 3] float32, albedo in 0..1 (linear).
    reflectivity: [N] float32, LiDAR intensity factor in 0..1.
    seed: [N] uint32, of the texture.
    semantic: [N] uint8, index into `labels.CLASSES`.
    instance: [N] int32, 0 for none; several shapes may share one (a car's
      body and cabin).
  """

  kind: np.ndarray
  center: np.ndarray
  half_size: np.ndarray
  yaw: np.ndarray
  material: np.ndarray
  color: np.ndarray
  reflectivity: np.ndarray
  seed: np.ndarray
  semantic: np.ndarray
  instance: np.ndarray


class Ground(NamedTuple):
  """Terrain, roads and what is painted on them.

  The surface is z(x, y) = sum_i amplitude_i sin(wave_i . (x, y) + phase_i),
  gentle enough (slopes of a few percent) for a ray to meet it once. A point is
  road within `half_width` of the nearest segment, pavement within a further
  `pavement_width`, open ground (grass, soil, snow) beyond.

  Attributes:
    start: [R, 2] float64, road centre lines, metres, world frame.
    end: [R, 2] float64.
    half_width: [R] float32, metres.
    pavement_width: [R] float32, metres.
    zebra: [R] float32, distance of a zebra crossing from `start`, negative
      for none.
    amplitude: [A] float32, metres.
    wave: [A, 2] float32, radians per metre.
    phase: [A] float32, radians.
    seed: uint32, of the ground's textures (hashed in world coordinates).
  """

  start: np.ndarray
  end: np.ndarray
  half_width: np.ndarray
  pavement_width: np.ndarray
  zebra: np.ndarray
  amplitude: np.ndarray
  wave: np.ndarray
  phase: np.ndarray
  seed: np.uint32


class Weather(NamedTuple):
  """Light and air of one drive; scalars or [3] float32.

  Attributes:
    sun_direction: [3], unit, towards the sun, world frame.
    sun_color: [3], zero when overcast.
    sky_color: [3], zenith radiance, also the ambient light.
    horizon_color: [3], colour of the far sky and of the fog.
    fog_density: 1/m, extinction of light (camera) and of returns (LiDAR).
    snow: 0..1, cover of ground and roofs.
    autumn: 0..1, hue shift of leaves.
    dusk: 0..1, how many windows and lamps are lit.
    wetness: 0..1, darkens and polishes the road.
    exposure: camera gain.
    grain: standard deviation of the noise of pixels, of 255.
  """

  sun_direction: np.ndarray
  sun_color: np.ndarray
  sky_color: np.ndarray
  horizon_color: np.ndarray
  fog_density: np.float32
  snow: np.float32
  autumn: np.float32
  dusk: np.float32
  wetness: np.float32
  exposure: np.float32
  grain: np.float32


class Scene(NamedTuple):
  """Everything a sensor can see at one moment."""

  primitives: Primitives
  ground: Ground
  weather: Weather


def height(ground: Ground, xy: np.ndarray) -> np.ndarray:
  """Terrain height z at `xy` [..., 2], metres -> [...]."""
  angle = xy @ ground.wave.astype(np.float64).T + ground.phase
  return (ground.amplitude * np.sin(angle)).sum(-1)
