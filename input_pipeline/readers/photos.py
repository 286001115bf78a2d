# SPDX-License-Identifier: Apache-2.0
"""A folder of photos: a database, queries, and where they were taken.

  ROOT/database/**  queries/**    photos that answer, photos that ask
  ROOT/**                         or photos of one folder, for both

Files beside the two folders are not read. Of one folder every photo asks all
others, or with `query_every=N` every N-th in order of name (2 before 10) asks
the others.
Positions are those in the names ('@east@north@...'), those in EXIF, or those of
a CSV file; see `photo_positions`. Without any, photos are answered and recall
is not measured.

A folder is one town. Photos may be of any size, depth and orientation (see
`i2ploc.image_files`); a model sees them stretched to its own size, as is usual
in place recognition. Their lens is not known. Opening a folder reads headers
alone: a photo that is none is named then, one that is cut off when it is read.
"""

import collections
from collections.abc import Sequence
from concurrent import futures
import dataclasses
import os
import pathlib
import re

from absl import logging
import numpy as np

from i2ploc import image_files
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from input_pipeline import schema
from input_pipeline.readers import photo_positions

ALL = 'all'  # the only split
DATABASE, QUERIES = 'database', 'queries'  # names of folders, and of drives
NO_POSITIONS = 'none'
_THREADS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
  """`schema.Dataset.read` over image files; plain data, hence picklable.

  Compared and hashed by identity, as the function that it stands for.

  Attributes:
    root: of the names.
    names: of each row's file.
  """

  root: pathlib.Path
  names: tuple[str, ...]

  def __call__(
    self, row: int, what: Sequence[str] = ('image',)
  ) -> dict[str, np.ndarray]:
    """Reads a photo; see `schema.Dataset`.

    Raises:
      InputError: the file does not decode, or a scan is asked for.
    """
    if unknown := sorted(set(what) - {'image'}):
      raise InputError(f'Asked for {unknown}; photos have image alone.')
    if 'image' not in what:
      return {}
    return {'image': image_files.read_image(self.root / self.names[row])}


def load(
  root: str | pathlib.Path,
  split: str = ALL,
  *,
  database: str = DATABASE,
  queries: str = QUERIES,
  query_every: int = 0,
  positions: str = '',
) -> schema.Dataset:
  """Loads the frame table of a folder of photos; pixels are read lazily.

  Args:
    root: the folder.
    split: 'all'.
    database: name of the folder of photos that answer.
    queries: name of the folder of photos that ask.
    query_every: N > 1: of one folder every N-th photo asks and the others
      answer; 0: all do both.
    positions: '' for those of names or EXIF, 'none', or a CSV file in the
      folder.

  Returns:
    A dataset of one town; its drives are 'database' and 'queries', whatever
    the folders are called. A frame's number is its place in order of name.

  Raises:
    MissingFileError: a folder or the file of positions is missing.
    InputError: no photos, some that are none, or bad positions.
  """
  root = pathlib.Path(root)
  if split != ALL:
    raise InputError(f'{split!r} is not a split of photos; expected {ALL!r}.')
  if not root.is_dir():
    raise MissingFileError(f'{root}: no such folder of photos.')
  if query_every < 0 or query_every == 1:
    raise InputError(
      f'query_every={query_every}: expected 0, or 2 and more for every N-th.'
    )
  parts = _parts(root, database, queries, query_every)
  names = [name for part in parts.values() for name in part]
  headers = _headers(root, names)
  place = _positions(root, names, headers, positions)
  if query_every:
    order = np.arange(len(names))
    asks = order % query_every == query_every - 1
    drive, frame = np.where(asks, QUERIES, DATABASE), order
  else:
    drive = np.repeat(list(parts), [len(part) for part in parts.values()])
    frame = np.concatenate([np.arange(len(part)) for part in parts.values()])
  frames = schema.FrameTable(
    town=np.full(len(names), root.resolve().name),
    drive=drive,
    frame=frame,
    timestamp=np.full(len(names), np.nan),
    world_from_body=_poses(place),
    has_image=np.ones(len(names), bool),
    has_points=np.zeros(len(names), bool),
    name=np.array(names, str),
  )
  return schema.Dataset(
    name=f'photos/{root.resolve().name}',
    frames=frames,
    rigs=dict.fromkeys((DATABASE, QUERIES), schema.Rig(None, None)),
    read=Reader(root, tuple(names)),
    queries=drive == QUERIES if len({*drive}) > 1 else None,
  )


def _parts(
  root: pathlib.Path, database: str, queries: str, query_every: int
) -> dict[str, list[str]]:
  """Names of the photos of each drive."""
  folders = {DATABASE: root / database, QUERIES: root / queries}
  there = [path.name for path in folders.values() if path.is_dir()]
  named = (database, queries) != (DATABASE, QUERIES)
  if not there and not named:
    return {DATABASE: _photos(root, root)}
  if len(there) < 2:
    missing = [path for path in folders.values() if not path.is_dir()]
    found = sorted(path.name for path in root.iterdir() if path.is_dir())
    raise MissingFileError(
      f'{root}: no folder {" and ".join(path.name for path in missing)}; '
      f'found {found}. Set data.database and data.queries to their names.'
    )
  if query_every:
    raise InputError(
      f'{root}: query_every={query_every} is for one folder of photos; {there} '
      'tell who asks.'
    )
  return {drive: _photos(root, path) for drive, path in folders.items()}


def _photos(root: pathlib.Path, folder: pathlib.Path) -> list[str]:
  """Names of the photos below a folder, in order; others are counted."""
  names, others, seen = [], collections.Counter(), set()
  for top, inner, files in os.walk(folder, followlinks=True):
    real = os.path.realpath(top)
    if real in seen:  # a link back to where it came from
      inner.clear()
      continue
    seen.add(real)
    inner[:] = [name for name in inner if not name.startswith('.')]
    for name in files:
      path = pathlib.Path(top, name)
      if name.startswith('.'):
        continue
      if path.suffix.lower() in image_files.SUFFIXES:
        names.append(path.relative_to(root).as_posix())
      else:
        others[path.suffix.lower() or 'no suffix'] += 1
  if others:
    kinds = ', '.join(f'{count} {kind}' for kind, count in others.items())
    logging.info('%s: not taken for photos: %s.', folder, kinds)
  if not names:
    raise InputError(
      f'{folder}: no photos; expected files that end in '
      f'{", ".join(image_files.SUFFIXES)}.'
    )
  return sorted(names, key=_natural)


def _natural(name: str) -> list[str | int]:
  """Sorts 2.jpg before 10.jpg."""
  return [
    int(part) if part.isdigit() else part
    for part in re.split(r'([0-9]+)', name)
  ]


def _headers(
  root: pathlib.Path, names: Sequence[str]
) -> list[image_files.Header]:
  """The header of every photo.

  Raises:
    InputError: some are no photos; they are counted.
  """

  def read(name):
    try:
      return image_files.read_header(root / name)
    except InputError as error:
      return error

  with futures.ThreadPoolExecutor(_THREADS) as pool:
    headers = list(pool.map(read, names))
  faults = [error for error in headers if isinstance(error, InputError)]
  if faults:
    raise InputError(
      f'{len(faults)} of {len(names)} photos cannot be used: '
      f'{photo_positions.examples(faults)}. Repair them, or move them away.'
    )
  return headers


def _positions(
  root: pathlib.Path,
  names: Sequence[str],
  headers: Sequence[image_files.Header],
  source: str,
) -> photo_positions.Positions:
  if source == NO_POSITIONS:
    return photo_positions.unknown(len(names))
  if source:
    return photo_positions.from_csv(root / source, names)
  found = photo_positions.from_names(names)
  if found is not None:
    return found
  return photo_positions.from_gps(names, [header.gps for header in headers])


def _poses(place: photo_positions.Positions) -> np.ndarray:
  """world_from_body [F, 4, 4] of cameras that look level."""
  cos, sin = np.cos(place.heading), np.sin(place.heading)
  poses = np.tile(np.eye(4), (len(cos), 1, 1))
  poses[:, 0, 0] = poses[:, 1, 1] = cos
  poses[:, 0, 1], poses[:, 1, 0] = -sin, sin
  # A rotation that nobody knows is not level either.
  poses[np.isnan(place.heading), :3, :3] = np.nan
  poses[:, :3, 3] = place.position
  return poses
