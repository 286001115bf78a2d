# SPDX-License-Identifier: Apache-2.0
"""A folder of photos: a database, queries, and which answers are right.

  ROOT/database/**  queries/**       photos that answer, photos that ask
  ROOT/TOWN/database/**  queries/**  the same, of several towns: each is asked
                                     about itself
  ROOT/train_val/CITY/...            MSLS as it is unpacked, see `msls`
  ROOT/**                            or photos of one folder, for both

Photos beside the two folders are counted, not read. Of one folder every photo
asks all others, or with `query_every=N` every N-th in order of name (2 before
10) asks the others. What is right, by `positions`:

  ''        metres between the positions in the names ('@east@north@...'), else
            those in EXIF; footprints that overlap, where names hold four
            corners or pictures are georeferenced, see `georeference`. Without
            any, photos are answered and recall is not measured
  EPSG:N    the same, with the projection of pictures that do not say theirs
  order     numbers of photos, in order of name from 0 in either folder
  none      nothing is known
  FILE.csv  positions, or pairs query,reference; see `positions`, `answer_lists`
  FILE.npy  lists of right references
"""

import pathlib
import re
from typing import NamedTuple

from absl import logging
import numpy as np

from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.photos import answer_lists
from i2ploc.photos import footprints
from i2ploc.photos import georeference
from i2ploc.photos import listing
from i2ploc.photos import msls
from i2ploc.photos import positions as positions_lib
from i2ploc.photos import truth as truth_lib

ALL = 'all'
DATABASE, QUERIES = 'database', 'queries'  # names of folders, and of drives
NO_POSITIONS, ORDER = 'none', 'order'
_MSLS_SPLITS = ('train_val', 'test')


class Album(NamedTuple):
  """N photos.

  Attributes:
    root: the folder.
    names: paths from it, with '/'.
    town: [N] str.
    drive: [N] str, 'database' or 'queries', after the town where there are
      several.
    frame: int64 [N], place in order of name inside the folder.
    positions: where they were taken; frame numbers if that is the unit.
    truth: which answers are right.
    queries: bool [N], photos that ask, where others answer; None where all do
      both.
  """

  root: pathlib.Path
  names: list[str]
  town: np.ndarray
  drive: np.ndarray
  frame: np.ndarray
  positions: positions_lib.Positions
  truth: truth_lib.Truth
  queries: np.ndarray | None


class _Part(NamedTuple):
  town: str
  drive: str
  names: list[str]
  known: msls.Part | None = None


def open_album(
  root: pathlib.Path,
  towns: str = ALL,
  *,
  database: str = DATABASE,
  queries: str = QUERIES,
  query_every: int = 0,
  positions: str = '',
) -> Album:
  """Lists a folder of photos and reads their headers; no pixel is decoded.

  Args:
    root: the folder.
    towns: 'all', or names joined by '+' where there are several.
    database: name of the folder of photos that answer.
    queries: name of the folder of photos that ask.
    query_every: N > 1: of one folder every N-th photo asks and the others
      answer; 0: all do both.
    positions: see the module.

  Raises:
    MissingFileError: a folder or the file of positions is missing.
    InputError: no photos, some that are none, or bad positions.
  """
  if not root.is_dir():
    raise MissingFileError(f'{root}: no such folder of photos.')
  if query_every < 0 or query_every == 1:
    raise InputError(
      f'query_every={query_every}: expected 0, or 2 and more for every N-th.'
    )
  parts = _parts(root, towns, database, queries)
  if query_every and len(parts) > 1:
    raise InputError(
      f'{root}: query_every={query_every} is for one folder of photos;'
      f' {[part.drive for part in parts]} tell who asks.'
    )
  sizes = [len(part.names) for part in parts]
  names = [name for part in parts for name in part.names]
  frame = np.concatenate([np.arange(size) for size in sizes])
  drive = np.repeat([part.drive for part in parts], sizes)
  asks = np.repeat([part.drive.endswith(QUERIES) for part in parts], sizes)
  if query_every:
    asks = frame % query_every == query_every - 1
    drive = np.where(asks, QUERIES, DATABASE)
  one = len(parts) == 1 and not query_every
  town = np.repeat([part.town for part in parts], sizes)
  place, truth = _truth(root, parts, names, town, frame, asks, one, positions)
  return Album(
    root, names, town, drive, frame, place, truth, None if one else asks
  )


def _parts(root, towns, database, queries) -> list[_Part]:
  """Folders of photos, and who asks."""
  folders = {DATABASE: root / database, QUERIES: root / queries}
  there = [path for path in folders.values() if path.is_dir()]
  if len(there) < 2:
    found = _towns(root, towns, database, queries)
    if found:
      return found
  if towns != ALL:
    raise InputError(
      f'{towns!r} is not a split of photos; expected {ALL!r}, or names of'
      ' towns where a folder holds several.'
    )
  name = root.resolve().name
  if not there and (database, queries) == (DATABASE, QUERIES):
    return [_Part(name, DATABASE, listing.list_photos(root, root))]
  if len(there) < 2:
    missing = [path for path in folders.values() if not path.is_dir()]
    found = sorted(path.name for path in root.iterdir() if path.is_dir())
    raise MissingFileError(
      f'{root}: no folder {" and ".join(path.name for path in missing)}; '
      f'found {found}. Set data.database and data.queries to their names.'
    )
  listing.log_beside(root, list(folders.values()))
  return [
    _Part(name, drive, listing.list_photos(root, path))
    for drive, path in folders.items()
  ]


def _towns(root, towns, database, queries) -> list[_Part]:
  """The parts of several towns below a folder; [] if there are none."""
  tops = [root, *(root / split for split in _MSLS_SPLITS)]
  inner = {
    folder.name: folder
    for top in tops
    if top.is_dir()
    for folder in sorted(top.iterdir())
    if folder.is_dir()
  }
  official = {name: path for name, path in inner.items() if msls.is_city(path)}
  plain = {
    name: path
    for name, path in inner.items()
    if (path / database).is_dir() and (path / queries).is_dir()
  }
  found = official or plain
  if not found:
    return []
  chosen = list(found) if towns == ALL else towns.split('+')
  if unknown := [name for name in chosen if name not in found]:
    raise InputError(
      f'{root}: no town {" and ".join(unknown)}; expected {ALL!r} or some of'
      f' {list(found)}, joined by +.'
    )
  parts = []
  for town in chosen:
    for drive, folder in ((DATABASE, database), (QUERIES, queries)):
      name = drive if len(chosen) == 1 else f'{town}/{drive}'
      if official:
        side = msls.DATABASE if drive == DATABASE else msls.QUERY
        known = msls.read_part(root, found[town], side)
        parts.append(_Part(town, name, known.names, known))
      else:
        photos = listing.list_photos(root, found[town] / folder)
        parts.append(_Part(town, name, photos))
  return parts


def _truth(root, parts, names, town, frame, asks, one, source):
  """Positions, and what makes an answer right."""
  headers = listing.read_headers(root, names)
  gps = [header.gps for header in headers]
  metres, nowhere = truth_lib.Truth(), positions_lib.unknown(len(names))
  if source == NO_POSITIONS:
    return nowhere, metres
  if source == ORDER:
    _warn_of_lengths(parts)
    place = positions_lib.from_frames(frame)
    return place, truth_lib.Truth(truth_lib.FRAMES)
  projection = re.fullmatch(r'EPSG:(\d+)', source, re.IGNORECASE)
  if projection:
    source = ''
  if source and answer_lists.is_list(root / source):
    rows = np.arange(len(names))
    queries, places = (rows, rows) if one else (rows[asks], rows[~asks])
    answers = answer_lists.read_answers(root / source, names, queries, places)
    return nowhere, truth_lib.Truth(truth_lib.LISTED, answers=answers)
  if source:
    return positions_lib.from_csv(root / source, names, gps, town), metres
  official = [part.known for part in parts if part.known is not None]
  if official:
    return _official(official), metres
  known = georeference.read_footprints(
    root, names, int(projection[1]) if projection else 0
  )
  if any(corners is not None for corners in known):
    return _georeferenced(names, town, gps, known)
  if projection:
    raise InputError(
      f'{root}: positions={projection[0]!r} is for georeferenced pictures, and'
      f' none of {len(names)} has tags of a GeoTIFF or a world file beside it.'
    )
  if footprints.in_name(names[0]) is not None:
    corners = footprints.from_names(names)
    return nowhere, truth_lib.Truth(truth_lib.OVERLAP, footprints=corners)
  place = positions_lib.from_names(names, town)
  if place is None:
    place = positions_lib.from_gps(names, gps, town)
  return place, metres


def _georeferenced(names, town, gps, known):
  """Positions and truth where some pictures know where they lie.

  Of the others a footprint is in the name, or a point in EXIF, which is right
  where a footprint holds it.
  """
  corners = np.full((len(names), 4, 2), np.nan)
  for i, (name, found, place) in enumerate(zip(names, known, gps, strict=True)):
    if found is not None:
      corners[i] = found
    elif footprints.in_name(name) is not None:
      corners[i] = footprints.from_names([name])[0]
    elif place is not None:
      corners[i] = place[:2]
  missing = [names[i] for i in np.flatnonzero(np.isnan(corners[:, 0, 0]))]
  if missing:
    logging.warning(
      '%d of %d pictures lie nowhere, and no answer of theirs or to them is'
      ' right or wrong: %s.',
      len(missing), len(names), listing.examples(missing),
    )  # fmt: skip
  truth = truth_lib.Truth(truth_lib.OVERLAP, footprints=corners)
  return positions_lib.from_footprints(corners, town), truth


def _warn_of_lengths(parts: list[_Part]) -> None:
  counts: dict[str, list[int]] = {}
  for part in parts:
    counts.setdefault(part.town, []).append(len(part.names))
  for town, sizes in counts.items():
    if len(set(sizes)) > 1:
      logging.warning(
        '%s: photos are compared by number, but there are %d in the database '
        'and %d queries.', town, *sizes,
      )  # fmt: skip


def _official(parts: list[msls.Part]) -> positions_lib.Positions:
  """The positions of MSLS."""
  flat = np.concatenate([part.east_north for part in parts])
  compass = np.concatenate([part.compass for part in parts])
  height = np.full((len(flat), 1), np.nan)
  return positions_lib.Positions(
    np.concatenate([flat, height], 1), positions_lib.yaw_from_compass(compass)
  )


def poses(place: positions_lib.Positions) -> np.ndarray:
  """world_from_body [N, 4, 4] of cameras that look level."""
  cos, sin = np.cos(place.heading), np.sin(place.heading)
  poses = np.tile(np.eye(4), (len(cos), 1, 1))
  poses[:, 0, 0] = poses[:, 1, 1] = cos
  poses[:, 0, 1], poses[:, 1, 0] = -sin, sin
  # A rotation that nobody knows is not level either.
  poses[np.isnan(place.heading), :3, :3] = np.nan
  poses[:, :3, 3] = place.position
  return poses
