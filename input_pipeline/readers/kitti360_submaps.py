# SPDX-License-Identifier: Apache-2.0
"""Submaps: what all sweeps of a drive saw around a place.

Every posed sweep is corrected for motion, freed of the car's own points, moved
to the world and averaged in voxels of 0.1 m. A submap is the square of 40 m
around a frame, cut in the axes of the frame's LiDAR, so that it turns with the
car as a scan does. Things that moved leave their traces, as in the papers.

A long drive does not fit into memory. It is worked off in pieces of some
hundred sweeps; each leaves one file of square tiles, which is written under
another name and renamed. Whenever the process dies, the files that exist are
whole, and the next run makes the missing ones.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from concurrent import futures
import dataclasses
import functools
import hashlib
import os
import pathlib
from typing import NamedTuple

from absl import logging
import numpy as np
from scipy import spatial
import tqdm

from i2ploc import files
from i2ploc.errors import InputError
from input_pipeline.readers import kitti360_sweeps
from input_pipeline.readers import scan_files

HALF_SIDE = 20.0  # metres
VOXEL = 0.1  # metres
EGO = 3.0  # metres ahead, behind and to the sides that are the car itself
# Farther returns are sparse, bent by the pose's error, and seen from nearer.
MAX_RANGE = 40.0
_TILE = 20.0  # metres
_SWEEPS_PER_PIECE = 200
_SWEEPS_PER_AVERAGE = 20
_VERSION = 1
_NO_POINTS = np.zeros((0, 4), np.float32)


class Sweeps(NamedTuple):
  """The sweeps of one drive; mappings are by frame number.

  Attributes:
    drive: its name.
    scans: scan files, as measured.
    world_from_lidar: [4, 4] poses.
    dropped: what scans have lost in reading.
  """

  drive: str
  scans: Mapping[int, pathlib.Path]
  world_from_lidar: Mapping[int, np.ndarray]
  dropped: scan_files.Dropped

  @property
  def frames(self) -> list[int]:
    """Frames with a scan and a pose, ascending."""
    return sorted(self.scans.keys() & self.world_from_lidar.keys())


def average_voxels(points: np.ndarray, size: float) -> np.ndarray:
  """The mean of the points in each cube of a grid.

  Args:
    points: [P, 4] float32, within some kilometres of the origin.
    size: of the cubes, metres.

  Returns:
    [V, 4] float32.
  """
  if not len(points):
    return points
  cell = np.floor(points[:, :3] / np.float32(size)).astype(np.int64)
  cell -= cell.min(0)
  key = np.ravel_multi_index(cell.T, cell.max(0) + 1)
  order = np.argsort(key, kind='stable')
  key = key[order]
  start = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
  count = np.diff(np.append(start, len(key))).astype(np.float32)
  return np.add.reduceat(points[order], start, axis=0) / count[:, None]


def load(folder: pathlib.Path, sweeps: Sweeps) -> 'Map':
  """The map of a drive, made first where it is missing.

  Args:
    folder: of all maps; the map's own folder in it is named after the drive
      and what goes into the map.
    sweeps: of the drive.

  Raises:
    InputError: no sweeps, or a damaged scan.
  """
  if not sweeps.frames:
    raise InputError(f'Drive {sweeps.drive} has no scan with a pose to map.')
  content = (_VERSION, VOXEL, EGO, MAX_RANGE, _TILE, sweeps.frames)
  digest = hashlib.sha256(repr(content).encode())
  for frame in sweeps.frames:
    digest.update(sweeps.world_from_lidar[frame].tobytes())
  own = folder / f'{sweeps.drive}-{digest.hexdigest()[:12]}'
  own.mkdir(parents=True, exist_ok=True)
  pieces = _pieces(sweeps, own)
  if missing := {p: frames for p, frames in pieces.items() if not p.exists()}:
    _make(missing, sweeps)
  return Map(tuple(pieces))


def _pieces(
  sweeps: Sweeps, folder: pathlib.Path
) -> dict[pathlib.Path, list[int]]:
  """The file of each piece and its frames."""
  frames = sweeps.frames
  starts = range(0, len(frames), _SWEEPS_PER_PIECE)
  return {
    folder / f'{frames[i]:010d}.npz': frames[i : i + _SWEEPS_PER_PIECE]
    for i in starts
  }


def _make(missing: dict[pathlib.Path, list[int]], sweeps: Sweeps) -> None:
  total = sum(map(len, missing.values()))
  logging.info('Drive %s: mapping %d sweeps.', sweeps.drive, total)
  workers = min(8, os.cpu_count() or 1)
  with futures.ThreadPoolExecutor(workers) as pool:
    bar = tqdm.tqdm(total=total, unit='sweep', desc=f'map of {sweeps.drive}')
    jobs = [
      pool.submit(_make_piece, path, sweeps, frames, bar.update)
      for path, frames in missing.items()
    ]
    try:
      with bar:
        for job in futures.as_completed(jobs):
          job.result()
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _make_piece(
  path: pathlib.Path, sweeps: Sweeps, frames: list[int], report
) -> None:
  """Averages some sweeps and writes them as tiles."""
  # Tiles and voxels of all pieces share one grid; float32 needs a near origin.
  origin = sweeps.world_from_lidar[frames[0]][:3, 3].copy()
  origin[:2], origin[2] = np.floor(origin[:2] / _TILE) * _TILE, 0.0
  points = _NO_POINTS
  for i in range(0, len(frames), _SWEEPS_PER_AVERAGE):
    some = frames[i : i + _SWEEPS_PER_AVERAGE]
    clouds = [points, *(_sweep(sweeps, frame, origin) for frame in some)]
    points = average_voxels(np.concatenate(clouds), VOXEL)
    report(len(some))
  tiles = dict(_tiles(points, np.rint(origin[:2] / _TILE).astype(int)))
  files.save_arrays(path, tiles)


def _sweep(sweeps: Sweeps, frame: int, origin: np.ndarray) -> np.ndarray:
  """[P, 4] one sweep in the world, relative to `origin`."""
  points = scan_files.read_scan(sweeps.scans[frame], sweeps.dropped)
  ego = (np.abs(points[:, :2]) < EGO).all(1)
  near = (points[:, :3] ** 2).sum(1) < MAX_RANGE**2
  motion = kitti360_sweeps.motion_at(sweeps.world_from_lidar, frame)
  points = kitti360_sweeps.uncurl(points[near & ~ego], motion)
  pose = sweeps.world_from_lidar[frame]
  rotation = pose[:3, :3].astype(np.float32)
  points[:, :3] = points[:, :3] @ rotation.T
  points[:, :3] += (pose[:3, 3] - origin).astype(np.float32)
  return points


def _tiles(
  points: np.ndarray, first: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
  """Names 'column_row' of tiles and their points from the tile's corner."""
  tile = np.floor(points[:, :2] / np.float32(_TILE)).astype(np.int64)
  order = np.lexsort(tile.T)
  tile, points = tile[order], points[order]
  cuts = np.flatnonzero((tile[1:] != tile[:-1]).any(1)) + 1
  for group, inside in zip(
    np.split(tile, cuts), np.split(points, cuts), strict=True
  ):
    if len(group):
      inside[:, :2] -= group[0].astype(np.float32) * np.float32(_TILE)
      column, row = first + group[0]
      yield f'{column}_{row}', inside


@dataclasses.dataclass(frozen=True)
class Map:
  """The tiles of a drive; plain data, hence picklable.

  Attributes:
    pieces: files of tiles.
  """

  pieces: tuple[pathlib.Path, ...]

  def crop(self, world_from_lidar: np.ndarray) -> np.ndarray:
    """The submap around a pose.

    Args:
      world_from_lidar: [4, 4].

    Returns:
      [P, 4] float32 in the pose's axes, |x| and |y| below 20 m; empty where
      the drive saw nothing.

    Raises:
      InputError: a file of the map is damaged.
    """
    center = world_from_lidar[:2, 3]
    reach = HALF_SIDE * np.sqrt(2)
    low = np.floor((center - reach) / _TILE).astype(int)
    high = np.floor((center + reach) / _TILE).astype(int)
    lidar_from_world = world_from_lidar[:3, :3].T
    parts = [_NO_POINTS]
    for column in range(low[0], high[0] + 1):
      for row in range(low[1], high[1] + 1):
        points = _read_tile(self.pieces, f'{column}_{row}')
        if not len(points):
          continue
        corner = np.array([column * _TILE, row * _TILE, 0.0])
        offset = lidar_from_world @ (corner - world_from_lidar[:3, 3])
        moved = points[:, :3] @ lidar_from_world.T.astype(np.float32)
        moved += offset.astype(np.float32)
        inside = (np.abs(moved[:, :2]) < HALF_SIDE).all(1)
        parts.append(np.column_stack([moved[inside], points[inside, 3]]))
    return np.concatenate(parts)


@functools.lru_cache(maxsize=8)
def _index(pieces: tuple[pathlib.Path, ...]) -> dict[str, list[pathlib.Path]]:
  """The files that hold each tile."""
  index = {}
  for path in pieces:
    for name in _read(path, lambda archive: archive.files):
      index.setdefault(name, []).append(path)
  return index


# A car that drives on finds most of its tiles here.
@functools.lru_cache(maxsize=64)
def _read_tile(pieces: tuple[pathlib.Path, ...], name: str) -> np.ndarray:
  parts = [
    _read(path, lambda archive: archive[name])
    for path in _index(pieces).get(name, ())
  ]
  return average_voxels(np.concatenate(parts), VOXEL) if parts else _NO_POINTS


def _read(path: pathlib.Path, take):
  try:
    with np.load(path) as archive:
      return take(archive)
  except Exception as error:
    raise InputError(
      f'{path} is damaged ({error}). Delete it; it will be made again.'
    ) from error


def without_outliers(points: np.ndarray) -> np.ndarray:
  """Drops points [P, 4] that are farther from their neighbours than usual.

  The released filter: mean distance to the 40 nearest above the cloud's mean
  of it by more than 0.3 standard deviations.
  """
  if len(points) <= 40:
    return points
  tree = spatial.KDTree(points[:, :3])
  distance = tree.query(points[:, :3], 41)[0][:, 1:].mean(1)
  return points[distance <= distance.mean() + 0.3 * distance.std()]


def without_ground(points: np.ndarray) -> np.ndarray:
  """Drops points [P, 4] within 0.2 m of the best almost level plane.

  RANSAC with a fixed seed. One plane: on a hill some ground stays.
  """
  if len(points) < 3:
    return points
  rng = np.random.default_rng(0)
  some = points[rng.choice(len(points), min(5000, len(points)), False), :3]
  corner, first, second = some[rng.integers(len(some), size=(3, 200))]
  normal = np.cross(first - corner, second - corner)
  length = np.linalg.norm(normal, axis=1)
  level = np.abs(normal[:, 2]) > length * np.cos(np.radians(15))
  if not level.any():
    return points
  normal = normal[level] / length[level, None]
  offset = (normal * corner[level]).sum(1)
  near = np.abs(some @ normal.T - offset) < 0.2
  best = np.argmax(near.sum(0))
  return points[np.abs(points[:, :3] @ normal[best] - offset[best]) >= 0.2]
