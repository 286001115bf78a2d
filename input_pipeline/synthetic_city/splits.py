# SPDX-License-Identifier: Apache-2.0
"""Which towns are driven, how often, and what is rendered of each drive."""

from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError

SIZES = ('tiny', 'small', 'default', 'full')
SPLITS = ('train', 'validation', 'test')
UNIT_FRAMES = 100

# Seeds of towns: disjoint ranges, so that a split never sees another's street.
_FIRST_SEED = {'train': 1_000, 'validation': 2_000, 'test': 3_000}


class Drive(NamedTuple):
  """One drive to render.

  Attributes:
    split: of SPLITS.
    town: the town's name.
    town_seed: what the town is made from.
    number: of the drive in its town; drive 0 is the map.
    role: 'train', 'map', 'cross' or 'reverse'.
    spacing: metres between frames of consecutive numbers.
    frames: numbers of the frames along the route, ascending.
    route_frames: how many frames the route has; `frames` are some of them.
  """

  split: str
  town: str
  town_seed: int
  number: int
  role: str
  spacing: float
  frames: tuple[int, ...]
  route_frames: int

  @property
  def name(self) -> str:
    """Unique in the dataset."""
    return f'{self.town}_{self.number}_{self.role}'


class Unit(NamedTuple):
  """Some frames of a drive: one file of the cache."""

  drive: Drive
  number: int
  frames: tuple[int, ...]

  @property
  def name(self) -> str:
    """The file's name."""
    return f'{self.drive.name}_{self.number:02d}.npz'


def _runs(total: int, count: int, length: int) -> tuple[int, ...]:
  """`count` runs of `length` consecutive numbers spread over range(total)."""
  starts = np.linspace(0, total - length, count).astype(int)
  return tuple(int(s) + i for s in starts for i in range(length))


class _Extent(NamedTuple):
  """How much of each kind a size has."""

  train: tuple[int, int]  # towns, frames per drive
  validation: tuple[int, int, tuple[int, int]]  # towns, map, cross runs
  test: tuple[int, int, tuple[int, int], tuple[int, int]]


_DEMONSTRATION = _Extent(
  train=(32, 125),
  validation=(2, 400, (5, 30)),
  test=(3, 800, (8, 30), (4, 30)),
)
_TINY = _Extent(
  train=(2, 6), validation=(1, 8, (1, 4)), test=(1, 10, (2, 3), (1, 3))
)
_TRAIN_SPACING, _TEST_SPACING = 5.0, 2.5


def specification(size: str) -> tuple[Drive, ...]:
  """Every drive of the dataset of a size, by split, town and number.

  Training towns are driven twice at 5 m. Validation and test towns have a map
  drive at 2.5 m, runs of consecutive frames of a later drive in the same
  direction, and (test) runs of one against it.

  Raises:
    InputError: for an unknown size.
  """
  if size not in SIZES:
    raise InputError(f'Unknown size {size!r}; known: {SIZES}.')
  extent = _TINY if size == 'tiny' else _DEMONSTRATION
  drives = []

  def add(split, town, roles, spacing, length):
    name, seed = f'{split}{town:02d}', _FIRST_SEED[split] + town
    drives.extend(
      Drive(split, name, seed, number, role, spacing, frames, length)
      for number, (role, frames) in enumerate(roles)
    )

  towns, length = extent.train
  along = tuple(range(length))
  for town in range(towns):
    add('train', town, [('train', along)] * 2, _TRAIN_SPACING, length)
  for split in ('validation', 'test'):
    towns, length, *runs = getattr(extent, split)
    roles = [('map', tuple(range(length)))] + [
      (role, _runs(length, *run))
      for role, run in zip(('cross', 'reverse'), runs, strict=False)
    ]
    for town in range(towns):
      add(split, town, roles, _TEST_SPACING, length)
  return tuple(drives)


def units(drives: tuple[Drive, ...]) -> list[Unit]:
  """The units of these drives, in order."""
  return [
    Unit(drive, number, drive.frames[start : start + UNIT_FRAMES])
    for drive in drives
    for number, start in enumerate(range(0, len(drive.frames), UNIT_FRAMES))
  ]
