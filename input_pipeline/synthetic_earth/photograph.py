# SPDX-License-Identifier: Apache-2.0
"""The tiles of a region, year by year, and the photos that astronauts take.

A satellite's tile looks straight down, north up, at noon of a clear day between
spring and autumn. An astronaut's photo is turned and tilted, nearer or further,
of any season, with a low sun, haze and clouds as they come.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from input_pipeline.synthetic_earth import camera as camera_lib
from input_pipeline.synthetic_earth import land as land_lib
from input_pipeline.synthetic_earth import paint
from input_pipeline.synthetic_earth import splits

ASTRONAUT = 'astronaut'
# Pixels of the land to one of a tile, and samples to one of a photo.
_FINER, _SAMPLES = 2, 3
_SCALES = 0.6, 1.6  # sides of tiles that a photo spans
_TILT = np.radians(35)
# Of a photo, and of a tile that is kept: nobody can tell waves apart.
_MOST_SEA, _OPEN_SEA = 0.5, 0.95
_SHIFT = 2  # pixels of the land that a tile may lie beside its place


class Photographs(NamedTuple):
  """N tiles or photos of a region.

  Attributes:
    images: uint8 [N, H, W, 3].
    condition: [N] str, a year or 'astronaut'.
    frame: int64 [N], number of the tile, the same in all years, or of the
      photo.
    position: float64 [N, 2] metres east and north of the region's corner, of
      the footprint's middle.
    heading: float64 [N] radians from east to north, where the top points to.
    footprint: float64 [N, 4, 2] metres, counter-clockwise.
    rough: float64 [N, 2] metres, about where the photo is of; NaN of tiles.
  """

  images: np.ndarray
  condition: np.ndarray
  frame: np.ndarray
  position: np.ndarray
  heading: np.ndarray
  footprint: np.ndarray
  rough: np.ndarray


def photograph(region: splits.Region) -> Photographs:
  """Tiles of a region, year by year, without the open sea; then the photos."""
  pixel = splits.TILE / (_FINER * region.pixels)
  count = round((region.extent + 2 * splits.MARGIN) / pixel)
  land = land_lib.make_land(region.seed, count, pixel)
  parts = [
    *(_tiles(region, land, pixel, year) for year in region.years),
    *([_photos(region, land, pixel)] if region.photos else []),
  ]
  return Photographs(
    *(np.concatenate(column) for column in zip(*parts, strict=True))
  )


def _sun(elevation: float, azimuth: float) -> np.ndarray:
  """Unit vector towards the sun."""
  flat = np.cos(elevation)
  return np.array(
    [flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)],
    np.float32,
  )


def _tiles(region, land, pixel, year) -> Photographs:
  rng = np.random.default_rng([region.seed, year])
  climate = land_lib.climate(region.seed)
  look = paint.Look(
    seed=np.uint32(rng.integers(2**32)),
    season=rng.uniform(0.55, 1.35) * np.pi,
    sun=_sun(rng.uniform(0.7, 1.1), -np.pi / 2 + rng.uniform(-0.7, 0.7)),
    snow=climate.snow_line + rng.uniform(-200, 200),
    haze=rng.uniform(0, 0.12),
    clouds=rng.uniform(0, 0.12),
    contrast=rng.uniform(0.92, 1.08),
    gain=rng.uniform(0.93, 1.07, 3).astype(np.float32),
    soil=climate.red,
    muddy=climate.muddy,
  )
  count = len(land.height)
  rows, columns = np.mgrid[:count, :count]
  picture = np.asarray(
    paint.paint(land, *_metres(rows + 0.5, columns + 0.5, count, pixel), look)
  )
  number, corner, images = [], [], []
  side = _FINER * region.pixels
  for tile in range(region.side**2):
    # Each of a day of its own, and not quite where it should be.
    (dx, dy), bright = rng.integers(-_SHIFT, _SHIFT + 1, 2), rng.uniform(-1, 1)
    north, east = divmod(tile, region.side)
    south_west = np.array([east, north]) * splits.STRIDE
    left, below = np.round((south_west + splits.MARGIN) / pixel).astype(int)
    top = count - below - side
    if (
      land.height[top : top + side, left : left + side] < 0
    ).mean() > _OPEN_SEA:
      continue
    seen = picture[top + dy : top + dy + side, left + dx : left + dx + side]
    seen = seen.reshape(region.pixels, _FINER, region.pixels, _FINER, 3)
    images.append(_bytes(seen.mean((1, 3)) * (1 + 0.06 * bright)))
    number.append(tile)
    corner.append(south_west)
  number, corner = np.array(number), np.array(corner)
  square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]) * splits.TILE
  return Photographs(
    images=np.stack(images),
    condition=np.full(len(number), str(year)),
    frame=number,
    position=corner + splits.TILE / 2,
    heading=np.full(len(number), np.pi / 2),
    footprint=corner[:, None] + square,
    rough=np.full((len(number), 2), np.nan),
  )


def _metres(rows, columns, count, pixel):
  """x and y, as in `land`, of points of the picture of the whole land."""
  return (
    (columns * pixel).astype(np.float32),
    ((count - rows) * pixel).astype(np.float32),
  )


def _bytes(picture: np.ndarray) -> np.ndarray:
  return np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)


def _photos(region, land, pixel) -> Photographs:
  made = []
  for number in range(region.photos):
    rng = np.random.default_rng([region.seed, 3, number])
    camera, rows, columns = _aim(region, land, pixel, rng)
    middle = camera_lib.footprint(camera).mean(0)
    away, angle = (
      splits.ROUGH * np.sqrt(rng.random()),
      rng.uniform(0, 2 * np.pi),
    )
    made.append(
      Photographs(
        images=_expose(region, land, pixel, rng, rows, columns),
        condition=np.array(ASTRONAUT),
        frame=np.array(number),
        position=middle,
        heading=np.array(camera.heading),
        footprint=camera_lib.footprint(camera),
        rough=middle + away * np.array([np.cos(angle), np.sin(angle)]),
      )
    )
  return Photographs(*(np.stack(column) for column in zip(*made, strict=True)))


def _aim(region, land, pixel, rng):
  """A camera that sees land, and rows and columns of its samples."""
  samples = _SAMPLES * region.pixels
  along = (2 * np.arange(samples) + 1) / samples - 1
  points = np.stack(np.meshgrid(along, along), -1)
  count = len(land.height)
  while True:
    camera = camera_lib.Camera(
      center=rng.uniform(0, region.extent, 2),
      side=splits.TILE * np.exp(rng.uniform(*np.log(_SCALES))),
      tilt=_TILT * rng.random(),
      azimuth=rng.uniform(-np.pi, np.pi),
      turn=rng.uniform(-np.pi, np.pi),
    )
    ground = camera_lib.ground_from_picture(camera, points) + splits.MARGIN
    columns = ground[..., 0] / pixel
    rows = count - ground[..., 1] / pixel
    inside = min(rows.min(), columns.min()) >= 0
    if inside and max(rows.max(), columns.max()) < count:
      sea = land.height[rows.astype(int), columns.astype(int)] < 0
      if sea.mean() <= _MOST_SEA:
        return camera, rows, columns


def _expose(region, land, pixel, rng, rows, columns) -> np.ndarray:
  """The image of a photo whose samples lie at rows and columns of the land."""
  climate = land_lib.climate(region.seed)
  look = paint.Look(
    seed=np.uint32(rng.integers(2**32)),
    season=rng.uniform(0, 2 * np.pi),
    sun=_sun(rng.uniform(0.25, 1.1), rng.uniform(-np.pi, np.pi)),
    snow=climate.snow_line + rng.uniform(-200, 200),
    haze=0.35 * rng.random() ** 1.5,
    clouds=max(0.0, rng.uniform(-0.2, 0.35)),
    contrast=rng.uniform(0.7, 1.3),
    gain=(rng.uniform(0.75, 1.2) * rng.uniform(0.92, 1.08, 3)).astype(
      np.float32
    ),
    soil=climate.red,
    muddy=climate.muddy,
  )
  x, y = _metres(rows, columns, len(land.height), pixel)
  seen = land.at(rows.astype(int), columns.astype(int))
  picture = np.asarray(paint.paint(seen, x, y, look))
  size = region.pixels
  picture = picture.reshape(size, _SAMPLES, size, _SAMPLES, 3).mean((1, 3))
  picture = ndimage.gaussian_filter(picture, (*[rng.uniform(0, 0.6)] * 2, 0))
  along = (2 * np.arange(size) + 1) / size - 1
  corner = (along[:, None] ** 2 + along**2) / 2
  picture = picture * (1 - rng.uniform(0, 0.4) * corner**1.5)[..., None]
  return _bytes(picture + rng.normal(0, 0.015, picture.shape))
