# SPDX-License-Identifier: Apache-2.0
"""Where photos were taken: from their names, their EXIF, or a CSV file.

All become metres east and north, comparable inside the folder. Latitudes and
longitudes are projected to the UTM zone of the photos' middle, also those
beyond its border; eastings and northings of several zones go through latitude
and longitude to one zone. A heading is the yaw of the optical axis, counter-
clockwise from east. Compasses, headings in names and headings in CSV files
count clockwise from north; that UTM turns north by up to 3 degrees at a zone's
border is not corrected.

Photos of unknown position stay, and how many they are is said. Positions that
contradict each other, or are probably not what their column says, are refused.
"""

from collections.abc import Sequence
import math
import pathlib
from typing import NamedTuple

from absl import logging
import numpy as np

from i2ploc import image_files
from i2ploc.errors import InputError
from i2ploc.geometry import trajectories
from i2ploc.geometry import utm
from i2ploc.photos import csv_tables
from i2ploc.photos import listing

COLUMNS = {
  'name': (
    *('name', 'image', 'image_name', 'filename', 'file', 'path', 'photo'),
    'key',
  ),
  'x': ('x', 'e', 'east', 'easting', 'utm_x', 'utm_east', 'utm_easting'),
  'y': ('y', 'n', 'north', 'northing', 'utm_y', 'utm_north', 'utm_northing'),
  'lat': ('lat', 'latitude'),
  'lon': ('lon', 'lng', 'long', 'longitude'),
  'z': ('z', 'alt', 'altitude', 'elevation', 'height'),
  'heading': ('heading', 'compass', 'compass_angle', 'ca', 'bearing'),
  'zone': ('zone', 'utm_zone'),
}
# Degrees of longitude from a zone's middle, where UTM stretches by 1 %.
_REACH = 9.0
# Fields of a name between '@', the convention of the Deep VG benchmark.
_EAST, _NORTH, _ZONE, _LETTER, _HEADING, _HEIGHT = 1, 2, 3, 4, 9, 12
# Positions of one photo that are further apart contradict each other, metres.
_CONTRADICTION = 1000.0
_TOGETHER = 100.0
# Degrees, between a file and EXIF of the same photos.
_SAME_DEGREES = 0.01
# Metres, standard deviation of photos, of which GPS knows the scale.
_WIDER_THAN_GPS = 20.0


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


def from_frames(numbers: np.ndarray) -> Positions:
  """Frame numbers [N] instead of metres, along x; heights are unknown."""
  found = unknown(len(numbers))
  found.position[:, 0], found.position[:, 1] = numbers, 0
  return found


def yaw_from_compass(compass: np.ndarray) -> np.ndarray:
  """Radians from east, counter-clockwise, of degrees clockwise from north."""
  return np.radians(90 - np.asarray(compass, np.float64))


def from_names(
  names: Sequence[str], towns: Sequence[str] = ()
) -> Positions | None:
  """Positions in file names, such as '@0384102.05@6174005.12@33@U@...@.jpg'.

  Between the signs stand easting, northing, zone and letter, latitude,
  longitude, panorama, tile, heading, pitch, roll, height, time and a note;
  whatever follows the northing may be empty or missing.

  Args:
    names: N paths with '/'; the last part counts.
    towns: of each, each on a map of its own; () for one.

  Returns:
    None if no name begins with '@'.

  Raises:
    InputError: some names do and others do not, or hold no numbers; zones of
      which some are unknown, or too far apart for one map.
  """
  stems = [pathlib.PurePosixPath(name).stem for name in names]
  if not any(stem.startswith('@') for stem in stems):
    return None
  rows, bad, zones = [], [], []
  for name, stem in zip(names, stems, strict=True):
    fields = (stem.split('@') + [''] * _HEIGHT)[: _HEIGHT + 1]
    east, north, heading, height = (
      csv_tables.number(fields[i]) for i in (_EAST, _NORTH, _HEADING, _HEIGHT)
    )
    if not (stem.startswith('@') and math.isfinite(east + north)):
      bad.append(name)
    zones.append(_zone(fields[_ZONE], fields[_LETTER]))
    rows.append((east, north, height, heading))
  if bad:
    raise InputError(
      f'{len(bad)} of {len(names)} names have no position, but others do:'
      f' {listing.examples(bad)}. Expected @east@north@...; rename them, or'
      ' give data.positions=FILE.csv.'
    )
  values = np.array(rows, np.float64)
  if trajectories.looks_like_degrees(values[:, :2]):
    raise InputError(
      f'{names[0]} and {len(names) - 1} more names have degrees between the'
      ' first @, expected @easting@northing@ in metres. Rename the photos, or'
      ' give data.positions=FILE.csv with name,lat,lon.'
    )
  for town in _by_town(len(names), towns):
    found: dict[_Zone, list[int]] = {}
    for row in town.tolist():
      found.setdefault(zones[row], []).append(row)
    if len(found) > 1:
      values[town, :2] = _one_zone(values, found, names)[town]
  return Positions(values[:, :3], yaw_from_compass(values[:, 3]))


class _Zone(NamedTuple):
  number: int  # 0: unknown
  south: bool | None  # None: unknown

  def __str__(self) -> str:
    if not self.number:
      return 'unknown'
    return f'{self.number} {self.half}'.strip()

  @property
  def half(self) -> str:
    return '' if self.south is None else 'south' if self.south else 'north'


def _zone(number: str, letter: str) -> _Zone:
  """Of ('10', 'S'): bands from N on lie north of the equator."""
  if not number.isdecimal() or not 1 <= int(number) <= 60:
    return _Zone(0, None)
  if len(letter) != 1 or not letter.isalpha():
    return _Zone(int(number), None)
  return _Zone(int(number), letter.upper() < 'N')


def _by_town(count: int, towns: Sequence[str]) -> list[np.ndarray]:
  """The rows of each town; all of them if there are no towns."""
  if not len(towns):
    return [np.arange(count)]
  places = np.unique(np.asarray(towns), return_inverse=True)[1]
  return [np.flatnonzero(places == i) for i in range(places.max() + 1)]


def _one_zone(values, zones, names) -> np.ndarray:
  """[N, 2] on one map, of eastings and northings of rows of several zones."""
  found = listing.examples(
    f'{zone} ({len(rows)}, {names[rows[0]]})' for zone, rows in zones.items()
  )
  if any(not zone.number or zone.south is None for zone in zones):
    raise InputError(
      f'Photos of different UTM zones of which one is not known: {found}. Write'
      ' zone and letter in every name, or give data.positions=FILE.csv with'
      ' name,lat,lon.'
    )
  logging.info('Laid out on one map, of UTM zones %s.', found)
  degrees = np.full((len(values), 2), np.nan)
  for zone, rows in zones.items():
    north = values[rows, 1] - zone.south * utm.FALSE_NORTHING
    degrees[rows] = np.stack(
      utm.degrees_from_utm(values[rows, 0], north, zone.number), 1
    )
  return project(degrees[:, 0], degrees[:, 1])


def from_gps(
  names: Sequence[str],
  gps: Sequence[image_files.Gps | None],
  towns: Sequence[str] = (),
) -> Positions:
  """Positions that the cameras noted; how many did not is logged.

  Args:
    names: N, for messages.
    gps: of each photo.
    towns: of each, each on a map of its own; () for one.

  Raises:
    InputError: the photos are too far apart for one map.
  """
  _warn_of_unknown(names, np.array([place is not None for place in gps], bool))
  values = np.array(
    [place or (math.nan,) * 4 for place in gps], np.float64
  ).reshape(-1, 4)
  flat = project(values[:, 0], values[:, 1], towns)
  position = np.concatenate([flat, values[:, 2:3]], axis=1)
  return Positions(position, yaw_from_compass(values[:, 3]))


def from_footprints(
  corners: np.ndarray, towns: Sequence[str] = ()
) -> Positions:
  """The middles of footprints; unknown where they fit on no map together.

  Args:
    corners: [N, 4, 2] degrees, see `footprints.from_names`; NaN is unknown.
    towns: of each, each on a map of its own; () for one.
  """
  found = unknown(len(corners))
  latitude, longitude = corners.mean(1).T
  try:
    found.position[:, :2] = project(latitude, longitude, towns)
  except InputError as error:
    logging.warning('Pictures have footprints and no positions: %s', error)
  return found


def _warn_of_unknown(names: Sequence[str], known: np.ndarray) -> None:
  missing = [
    name for name, there in zip(names, known, strict=True) if not there
  ]
  if missing:
    logging.warning(
      '%d of %d photos have no position, and no answer of theirs or to them is '
      'right or wrong: %s.',
      len(missing),
      len(names),
      listing.examples(missing),
    )


def project(
  latitude: np.ndarray, longitude: np.ndarray, towns: Sequence[str] = ()
) -> np.ndarray:
  """[N, 2] metres east and north on one map of a town; NaN stays NaN.

  Args:
    latitude: [N] degrees.
    longitude: [N] degrees.
    towns: of each place; () for one.

  Raises:
    InputError: the places of a town are too far apart for one map.
  """
  flat = np.full((len(latitude), 2), np.nan)
  for rows in _by_town(len(latitude), towns):
    known = rows[np.isfinite(latitude[rows] + longitude[rows])]
    if len(known):
      flat[known] = _project_town(latitude[known], longitude[known])
  return flat


def _project_town(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
  # The mean of directions, since 180 degrees is beside -180.
  middle = np.angle(np.exp(1j * np.radians(longitude)).mean(), deg=True)
  zone = utm.zone_from_longitude(float(middle))
  away = (longitude - (6 * zone - 183) + 180) % 360 - 180
  if np.abs(away).max() > _REACH:
    raise InputError(
      f'Photos between {longitude.min():g} and {longitude.max():g} degrees of'
      ' longitude are too far apart for one map: put them in folders of their'
      ' own.'
    )
  east, north = utm.utm_from_degrees(latitude, longitude, zone)
  south = latitude.mean() < 0
  return np.stack([east, north + south * utm.FALSE_NORTHING], axis=1)


def from_csv(
  path: pathlib.Path,
  names: Sequence[str],
  gps: Sequence[image_files.Gps | None] = (),
  towns: Sequence[str] = (),
) -> Positions:
  """Positions out of a file with a row for every photo.

  The header names the columns, in any order: a name, and x and y (or easting
  and northing, metres) or lat and lon (or latitude and longitude, degrees);
  perhaps heading (degrees clockwise from north) and altitude. Of both kinds
  metres count. Photos without a row, or with empty cells, have no position.

  Args:
    path: of the file.
    names: N paths with '/', as the column of names has them.
    gps: of each photo, to find latitude and longitude exchanged; () for none.
    towns: of each photo, each on a map of its own; () for one.

  Raises:
    MissingFileError: there is no such file.
    InputError: a header without these columns; rows without two numbers, names
      that come twice, no row of any photo; latitude and longitude exchanged;
      degrees, millimetres or ECEF under the name of metres, or headings in
      radians. What is wrong is counted.
  """
  table = csv_tables.read_table(path, COLUMNS, 'positions')
  kinds = ('x', 'y'), ('lat', 'lon')
  kind = next((kind for kind in kinds if {*kind} <= {*table.columns}), ())
  if not kind or 'name' not in table.columns:
    raise InputError(
      f'{path}: the first line is {",".join(table.header)!r}, expected a column'
      ' name and two of x,y (easting,northing, metres) or lat,lon (degrees).'
    )
  degrees = 'lat' in kind
  found, swapped = _read_rows(path, table, kind)
  if swapped:
    why = (
      f'{len(swapped)} of {len(found)} rows have latitudes beyond 90 degrees'
    )
    raise InputError(_swapped(path, f'{why} ({listing.examples(swapped)})'))
  rows = {csv_tables.same_form(name): row for row, name in enumerate(names)}
  strangers = [name for name in found if name not in rows]
  if len(strangers) == len(found):
    raise InputError(
      f'{path}: none of its {len(found)} names is a photo, as'
      f' {listing.examples(found, 1)}; the photos are called'
      f' {listing.examples(names, 1)}, seen from the folder that is read.'
    )
  if strangers:
    logging.warning(
      '%s: %d rows are of no photo: %s.',
      path, len(strangers), listing.examples(strangers),
    )  # fmt: skip
  values = np.full((len(names), 4), np.nan)
  for name, numbers in found.items():
    if name in rows:
      values[rows[name]] = numbers
  known = np.asarray(np.isfinite(values[:, :2]).all(1))
  _warn_of_unknown(names, known)
  if degrees:
    if len(gps):
      _compare(path, values[:, :2], gps)
    flat = project(values[:, 0], values[:, 1], towns)
  else:
    _refuse_degrees(path, table, values[known, :2])
    if len(gps):
      _compare_metres(path, values[:, :2], gps)
    flat = values[:, :2]
  position = np.concatenate([flat, values[:, 2:3]], axis=1)
  if not degrees:
    trajectories.check_ecef(position, str(path))
  trajectories.check_degrees(position, values[:, 3], str(path), clockwise=True)
  return Positions(position, yaw_from_compass(values[:, 3]))


def _read_rows(path, table: csv_tables.Table, kind: Sequence[str]):
  """Four numbers by name, and lines whose degrees are exchanged."""
  found: dict[str, list[float]] = {}
  twice, broken, swapped, zones = [], [], [], set()
  for line, cells in table.rows.items():
    name = csv_tables.photo_name(table.cell(cells, 'name'))
    texts = [table.cell(cells, column) for column in kind]
    numbers = [csv_tables.number(text) for text in texts]
    if any(texts) and not _possible(numbers, kind):
      text = f'line {line}: {",".join(cells)}'
      exchanged = _possible(numbers[::-1], kind)
      (swapped if exchanged else broken).append(text)
    if name in found:
      twice.append(name)
    more = [table.cell(cells, column) for column in ('z', 'heading')]
    found[name] = numbers + [csv_tables.number(text) for text in more]
    zones.add(table.cell(cells, 'zone'))
  faults = {'rows without two numbers': broken, 'names more than once': twice}
  if any(faults.values()):
    text = '; '.join(
      f'{len(items)} {kind} ({listing.examples(items)})'
      for kind, items in faults.items()
      if items
    )
    raise InputError(f'{path}: {text}.')
  if not found:
    raise InputError(f'{path}: no row; expected one for every photo.')
  if 'x' in kind and len(zones) > 1:
    raise InputError(
      f'{path}: eastings of UTM zones {sorted(zones)} cannot be compared; give'
      ' columns lat and lon instead.'
    )
  return found, swapped


def _possible(numbers: Sequence[float], kind: Sequence[str]) -> bool:
  limits = (90, 180) if 'lat' in kind else (math.inf, math.inf)
  return all(
    math.isfinite(number) and abs(number) <= limit
    for number, limit in zip(numbers, limits, strict=True)
  )


def _swapped(path: pathlib.Path, why: str) -> str:
  return (
    f'{path}: {why}: latitude and longitude are exchanged. Exchange the names'
    ' of the two columns, or correct the rows.'
  )


def _compare(path, degrees, gps) -> None:
  """Refuses degrees that only exchanged agree with what cameras noted."""
  noted = np.array(
    [place[:2] if place else (math.nan,) * 2 for place in gps], np.float64
  )
  both = np.isfinite(noted + degrees).all(1)
  if not both.any():
    return
  apart, exchanged = (
    float(np.median(_over_ground(noted[both], columns[both])))
    for columns in (degrees, degrees[:, ::-1])
  )
  if apart > _CONTRADICTION and exchanged < _TOGETHER:
    raise InputError(
      _swapped(
        path,
        f'{apart / 1000:.0f} km from the EXIF of the same photos, and'
        f' {exchanged:.0f} m with the columns exchanged',
      )
    )
  if apart > _CONTRADICTION:
    logging.warning(
      '%s: its positions are %.1f km from the EXIF of the same photos (median '
      'of %d). The file counts.', path, apart / 1000, int(both.sum()),
    )  # fmt: skip


def _over_ground(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Metres [N] between places [N, 2] in degrees, on a round earth."""
  (phi, lam), (psi, mu) = np.radians(x).T, np.radians(y).T
  half = (
    np.sin((phi - psi) / 2) ** 2
    + np.cos(phi) * np.cos(psi) * np.sin((lam - mu) / 2) ** 2
  )
  return 2 * 6371e3 * np.arcsin(np.sqrt(np.clip(half, 0, 1)))


def _refuse_degrees(path, table: csv_tables.Table, values: np.ndarray) -> None:
  """Refuses degrees in columns that are called x and y."""
  # Local metres of a table top, if that is what they are, are named so.
  called = [table.header[table.columns[axis]].lower() for axis in 'xy']
  if called == ['x', 'y'] and trajectories.looks_like_degrees(values):
    (west, south), (east, north) = values.min(0), values.max(0)
    raise InputError(
      f'{path}: x from {west:g} to {east:g} and y from {south:g} to {north:g}'
      ' look like degrees; as metres all photos would be at one place. Call the'
      ' columns lon and lat, or easting and northing if they are metres.'
    )


def _compare_metres(path, values, gps) -> None:
  """Refuses metres that the cameras' own notes tell to be something else.

  Args:
    path: of the file, for messages.
    values: [N, 2] as read.
    gps: of each photo, or None.
  """
  noted = np.array(
    [place[:2] if place else (math.nan,) * 2 for place in gps], np.float64
  )
  both = np.isfinite(noted + values).all(1)
  if both.sum() < 3:
    return
  noted, values = noted[both], values[both]
  if np.median(np.abs(values - noted[:, ::-1]).max(1)) < _SAME_DEGREES:
    raise InputError(
      f'{path}: x and y are the degrees of longitude and latitude in EXIF of'
      ' the same photos. Call the columns lon and lat.'
    )
  flat = project(noted[:, 0], noted[:, 1])
  wide, said = (np.linalg.norm(xy.std(0)) for xy in (flat, values))
  if wide > _WIDER_THAN_GPS and abs(math.log10(said / wide + 1e-9) - 3) < 0.1:
    raise InputError(
      f'{path}: x and y are {said / wide:.0f} times as far apart as EXIF of the'
      ' same photos says, expected metres. Divide millimetres by 1000.'
    )
