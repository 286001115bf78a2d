# SPDX-License-Identifier: Apache-2.0
"""Where photos were taken: from their names, their EXIF, or a CSV file.

All become metres east and north, comparable inside the folder. Latitudes and
longitudes are projected to the UTM zone of the photos' middle, also those
beyond its border. A heading is the yaw of the optical axis, counter-clockwise
from east. Compasses and headings in names count clockwise from north; that UTM
turns north by up to 3 degrees at a zone's border is not corrected.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import csv
import math
import pathlib
from typing import NamedTuple

from absl import logging
import numpy as np

from i2ploc import image_files
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.geometry import utm

HEADERS = (('name', 'x', 'y'), ('name', 'lat', 'lon'))
# Degrees of longitude from a zone's middle, where UTM stretches by 1 %.
_REACH = 9.0
# Fields of a name between '@', the convention of the Deep VG benchmark.
_EAST, _NORTH, _ZONE, _LETTER, _HEADING, _HEIGHT = 1, 2, 3, 4, 9, 12


class Positions(NamedTuple):
  """Where N photos were taken.

  Attributes:
    position: [N, 3] float64, metres east, north and up; NaN is unknown.
    heading: [N] float64, radians from east towards north; NaN is unknown.
  """

  position: np.ndarray
  heading: np.ndarray


def unknown(count: int) -> Positions:
  """Of photos that nobody knows anything about."""
  return Positions(np.full((count, 3), np.nan), np.full(count, np.nan))


def _yaw(compass: np.ndarray) -> np.ndarray:
  """Radians from east, counter-clockwise, of degrees clockwise from north."""
  return np.radians(90 - np.asarray(compass, np.float64))


def examples(names: Iterable[object], most: int = 3) -> str:
  """The first names of many, for a message."""
  names = [str(name) for name in names]
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more


def from_names(names: Sequence[str]) -> Positions | None:
  """Positions in file names, such as '@0384102.05@6174005.12@33@U@...@.jpg'.

  Between the signs stand easting, northing, zone and letter, latitude,
  longitude, panorama, tile, heading, pitch, roll, height, time and a note;
  whatever follows the northing may be empty or missing.

  Args:
    names: paths with '/'; the last part counts.

  Returns:
    None if no name begins with '@'.

  Raises:
    InputError: some names do and others do not, or hold no numbers, or lie in
      different zones.
  """
  stems = [pathlib.PurePosixPath(name).stem for name in names]
  if not any(stem.startswith('@') for stem in stems):
    return None
  rows, bad, zones = [], [], {}
  for name, stem in zip(names, stems, strict=True):
    fields = (stem.split('@') + [''] * _HEIGHT)[: _HEIGHT + 1]
    east, north, heading, height = (
      _float(fields[i]) for i in (_EAST, _NORTH, _HEADING, _HEIGHT)
    )
    if not (stem.startswith('@') and math.isfinite(east + north)):
      bad.append(name)
    zones.setdefault(_zone(fields[_ZONE], fields[_LETTER]), []).append(name)
    rows.append((east, north, height, heading))
  if bad:
    raise InputError(
      f'{len(bad)} of {len(names)} names have no position, but others do: '
      f'{examples(bad)}. Expected @east@north@...; rename them, or give '
      'data.positions=FILE.csv.'
    )
  if len(zones) > 1:
    found = ', '.join(
      f'{zone or "unknown"} ({len(some)}, {some[0]})'
      for zone, some in zones.items()
    )
    raise InputError(
      f'Photos of different UTM zones cannot be compared: {found}. Give '
      'data.positions=FILE.csv with name,lat,lon.'
    )
  values = np.array(rows, np.float64)
  return Positions(values[:, :3], _yaw(values[:, 3]))


def _zone(number: str, letter: str) -> str:
  """'10 north' of ('10', 'S'): bands from N on lie north of the equator."""
  if not number.isdigit():
    return ''
  if len(letter) != 1:
    return str(int(number))
  return f'{int(number)} {"north" if letter.upper() >= "N" else "south"}'


def _float(text: str) -> float:
  try:
    return float(text)
  except ValueError:
    return math.nan


def from_gps(
  names: Sequence[str], gps: Sequence[image_files.Gps | None]
) -> Positions:
  """Positions that the cameras noted; how many did not is logged.

  Args:
    names: N, for messages.
    gps: of each photo.

  Raises:
    InputError: the photos are too far apart for one map.
  """
  missing = [
    name for name, place in zip(names, gps, strict=True) if place is None
  ]
  if missing:
    logging.warning(
      '%d of %d photos have no position, and no answer of theirs or to them is '
      'right or wrong: %s.',
      len(missing),
      len(names),
      examples(missing),
    )
  values = np.array(
    [place or (math.nan,) * 4 for place in gps], np.float64
  ).reshape(-1, 4)
  flat = _project(values[:, 0], values[:, 1])
  position = np.concatenate([flat, values[:, 2:3]], axis=1)
  return Positions(position, _yaw(values[:, 3]))


def _project(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
  """[N, 2] metres east and north on one map; NaN stays NaN."""
  known = np.isfinite(latitude + longitude)
  flat = np.full((len(latitude), 2), np.nan)
  if not known.any():
    return flat
  # The mean of directions, since 180 degrees is beside -180.
  middle = np.angle(np.exp(1j * np.radians(longitude[known])).mean(), deg=True)
  zone = utm.zone_from_longitude(float(middle))
  away = (longitude[known] - (6 * zone - 183) + 180) % 360 - 180
  if np.abs(away).max() > _REACH:
    raise InputError(
      f'Photos between {longitude[known].min():g} and '
      f'{longitude[known].max():g} degrees of longitude are too far apart for '
      'one map: put them in folders of their own.'
    )
  east, north = utm.utm_from_degrees(latitude[known], longitude[known], zone)
  south = latitude[known].mean() < 0
  flat[known] = np.stack([east, north + south * utm.FALSE_NORTHING], axis=1)
  return flat


def from_csv(path: pathlib.Path, names: Sequence[str]) -> Positions:
  """Positions out of a file with a row for every photo.

  Args:
    path: of the file, with a header `name,x,y` (metres east and north) or
      `name,lat,lon` (degrees).
    names: N paths with '/', as the first column has them.

  Raises:
    MissingFileError: there is no such file.
    InputError: another header; rows without two numbers, of photos that are
      not there or are named twice; photos without a row. All are counted.
  """
  rows = _read_csv(path)
  header = tuple(cell.strip().lower() for cell in rows.pop(1, ()))
  if header not in HEADERS:
    raise InputError(
      f'{path}: the first line is {",".join(header)!r}, expected '
      f'{" or ".join(map(",".join, HEADERS))}.'
    )
  degrees = header == HEADERS[1]
  found, twice, broken = {}, [], []
  for line, cells in rows.items():
    name = cells[0].strip().replace('\\', '/').removeprefix('./')
    numbers = [_float(cell) for cell in cells[1:]]
    if len(numbers) != 2 or not _possible(numbers, degrees):
      broken.append(f'line {line}: {",".join(cells)}')
    if name in found:
      twice.append(name)
    found[name] = numbers
  known = set(names)
  faults = {
    'rows without two numbers': broken,
    'names more than once': twice,
    'names of no photo': [name for name in found if name not in known],
    'photos without a row': [name for name in names if name not in found],
  }
  if any(faults.values()):
    text = '; '.join(
      f'{len(items)} {kind} ({examples(items)})'
      for kind, items in faults.items()
      if items
    )
    raise InputError(f'{path}: {text}.')
  values = np.array([found[name] for name in names], np.float64)
  flat = _project(*values.T) if degrees else values
  place = unknown(len(names))
  place.position[:, :2] = flat
  return place


def _possible(numbers: Sequence[float], degrees: bool) -> bool:
  limits = (90, 180) if degrees else (math.inf, math.inf)
  return all(
    math.isfinite(number) and abs(number) <= limit
    for number, limit in zip(numbers, limits, strict=True)
  )


def _read_csv(path: pathlib.Path) -> dict[int, list[str]]:
  """Cells of every line that is not blank, by line number from 1."""
  if not path.is_file():
    raise MissingFileError(f'{path}: no such file of positions.')
  try:
    # Spreadsheets begin UTF-8 with a mark.
    with path.open(encoding='utf-8-sig', newline='') as file:
      return {
        line: cells
        for line, cells in enumerate(csv.reader(file), 1)
        if any(cell.strip() for cell in cells)
      }
  except (UnicodeDecodeError, csv.Error) as error:
    raise InputError(f'{path} is not a CSV file: {error}.') from error
