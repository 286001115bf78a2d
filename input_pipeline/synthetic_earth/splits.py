# SPDX-License-Identifier: Apache-2.0
"""Which regions of the earth there are, and what is photographed of each.

A region is a square of land of its own, made from a seed, and is covered by
square tiles, each shifted by half a side from the next: neighbours overlap.
"""

from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError

SIZES = ('tiny', 'small', 'default')
SPLITS = ('train', 'validation', 'test')
YEARS = (2018, 2019, 2020, 2021)
# The database of the splits that are asked.
MAP_YEAR = YEARS[-1]
TILE = 10_000.0  # metres, the side of a tile
STRIDE = TILE / 2
# Land around the tiles that photos may show, metres.
MARGIN = TILE
# How far the rough position of a photo is off at most, metres.
ROUGH = 12_000.0
# Seeds of regions: disjoint ranges, so that no split sees another's land.
_FIRST_SEED = {'train': 1_000, 'validation': 2_000, 'test': 3_000}
_DEGREE = 111_320.0  # metres, of latitude
# Regions lie so far apart that no photo shows two of them, degrees.
_APART = 10.0
_PER_PARALLEL = 12
_SOUTHERNMOST = {'train': -45.0, 'validation': 25.0, 'test': 45.0}


class Region(NamedTuple):
  """A region and what is photographed of it.

  Attributes:
    split: of SPLITS.
    name: unique in a size.
    seed: what its land is made from.
    side: N, of the N x N tiles.
    pixels: H = W of tiles and photos.
    years: of which there are tiles.
    photos: how many ask.
    south_west: latitude and longitude of the corner of the tiles, degrees.
  """

  split: str
  name: str
  seed: int
  side: int
  pixels: int
  years: tuple[int, ...]
  photos: int
  south_west: tuple[float, float]

  @property
  def extent(self) -> float:
    """Metres that the tiles span, either way."""
    return (self.side - 1) * STRIDE + TILE

  def degrees(self, positions: np.ndarray) -> np.ndarray:
    """Latitude and longitude [..., 2] of metres [..., 2] east and north.

    Metres count from the south-west corner; the region is small enough for a
    map that stretches longitudes alike everywhere.
    """
    latitude, longitude = self.south_west
    middle = np.radians(latitude + self.extent / 2 / _DEGREE)
    east, north = np.moveaxis(np.asarray(positions, np.float64), -1, 0)
    return np.stack(
      [latitude + north / _DEGREE, longitude + east / _DEGREE / np.cos(middle)],
      -1,
    )


class _Extent(NamedTuple):
  """How much of each kind a size has."""

  pixels: int
  train: tuple[int, int]  # regions, tiles a side
  validation: tuple[int, int, int]  # the same, and photos of each
  test: tuple[int, int, int]


_EXTENTS = {
  'tiny': _Extent(32, (2, 3), (1, 3, 4), (2, 4, 6)),
  'small': _Extent(64, (6, 16), (1, 16, 150), (3, 20, 150)),
  'default': _Extent(128, (12, 20), (2, 20, 200), (4, 30, 300)),
}


def regions(size: str) -> tuple[Region, ...]:
  """Every region of a size, by split and number.

  Raises:
    InputError: for an unknown size.
  """
  if size not in SIZES:
    raise InputError(f'Unknown size {size!r}; known: {SIZES}.')
  extent, found = _EXTENTS[size], []
  for split in SPLITS:
    count, side, *photos = getattr(extent, split)
    for i in range(count):
      row, column = divmod(i, _PER_PARALLEL)
      place = (
        _SOUTHERNMOST[split] + _APART * row,
        -150.0 + 2 * _APART * column,
      )
      found.append(
        Region(
          split,
          f'{split}{i:02d}',
          _FIRST_SEED[split] + i,
          side,
          extent.pixels,
          (MAP_YEAR,) if photos else YEARS,
          photos[0] if photos else 0,
          place,
        )
      )
  return tuple(found)
