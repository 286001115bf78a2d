# SPDX-License-Identifier: Apache-2.0
"""Where the pixels of aerial and satellite pictures lie on the ground.

A picture says so in the tags of a GeoTIFF, or in files beside it: a world file
(.tfw .jgw .pgw .wld) with its projection in a .prj, or GDAL's .aux.xml. Known
projections are latitude and longitude, UTM and web mercator; the datums WGS 84,
ETRS89 and NAD83 count as one, which is true within two metres.

References:
  OGC GeoTIFF standard 1.1, sections 7.1 and C.2 (tags and keys).
  EPSG dataset, codes 4326, 32601 to 32760, 3857.
"""

from collections.abc import Sequence
import os
import pathlib
import re
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from i2ploc.errors import InputError
from i2ploc.geometry import utm
from i2ploc.photos import csv_tables
from i2ploc.photos import footprints

# Pixels of a side: a larger picture is a whole map, of which a model would see
# a thumbnail.
MOST_PIXELS = 4096
_TIFF = ('.tif', '.tiff')
_SCALE, _TIE_POINTS, _MATRIX, _KEYS = 33550, 33922, 34264, 34735  # tags
_RASTER, _GEOGRAPHIC, _PROJECTED = 1025, 2048, 3072  # keys
_POINT = 2  # of _RASTER: tie points are middles of pixels
_USER_DEFINED = 32767
_DEGREES = (4326, 4258, 4269)
_MERCATOR = (3857, 3785, 900913, 102100, 102113)
# Of UTM: what is added to the zone, the zones, and whether south.
_UTM = (
  (32600, range(1, 61), False),
  (32700, range(1, 61), True),
  (25800, range(28, 39), False),
  (26900, range(1, 24), False),
)
_RADIUS = 6378137.0  # of the sphere of web mercator, metres
# How projections are called where no code is given.
_NAMES = (
  (r'web.mercator|pseudo-mercator', 3857),
  (r'wgs.*utm.zone.(\d+)n', 32600),
  (r'wgs.*utm.zone.(\d+)s', 32700),
  (r'etrs.*utm.zone.(\d+)n', 25800),
  (r'nad.(?:19)?83.*utm.zone.(\d+)n', 26900),
)


def read_footprints(
  root: pathlib.Path, names: Sequence[str], epsg: int = 0
) -> list[np.ndarray | None]:
  """Footprints of the pictures that know where they lie.

  Args:
    root: of the names.
    names: N paths with '/'.
    epsg: the projection of pictures that do not say theirs; 0 if there are
      none.

  Returns:
    Of each float64 [4, 2], see `footprints.from_names`, or None.

  Raises:
    InputError: a projection that is unknown or not said, a picture that is
      no plain map, or is too large.
  """
  beside: dict[str, frozenset[str]] = {}
  found = []
  for name in names:
    path = root / name
    folder = str(path.parent)
    if folder not in beside:
      beside[folder] = frozenset(os.listdir(folder))
    found.append(_footprint(path, beside[folder], epsg))
  return found


def degrees_from_map(points: np.ndarray, epsg: int) -> np.ndarray | None:
  """Latitude and longitude of points of a map.

  Args:
    points: [..., 2], x to the east and y to the north, in metres or degrees.
    epsg: the code of the projection.

  Returns:
    float64 [..., 2] degrees; None for an unknown projection.

  >>> degrees_from_map(np.array([395201.310, 5673135.241]), 32632).round(5)
  array([51.2,  7.5])
  """
  x, y = np.moveaxis(np.asarray(points, np.float64), -1, 0)
  if epsg in _DEGREES:
    return np.stack([y, x], -1)
  if epsg in _MERCATOR:
    latitude = np.degrees(np.arctan(np.sinh(y / _RADIUS)))
    return np.stack([latitude, np.degrees(x / _RADIUS)], -1)
  for first, zones, south in _UTM:
    if epsg - first in zones:
      north = y - south * utm.FALSE_NORTHING
      return np.stack(utm.degrees_from_utm(x, north, epsg - first), -1)
  return None


def _footprint(path, beside, epsg) -> np.ndarray | None:
  """Corners of a picture; None if it does not say where it lies."""
  transform, code = None, 0
  if path.suffix.lower() in _TIFF:
    transform, code = _from_tags(path)
  files = _files_beside(path, beside)
  if 'aux' in files:
    other, projection = _from_aux(files['aux'])
    transform = other if transform is None else transform
    code = code or projection
  if transform is None and 'world' in files:
    transform = _from_world_file(files['world'])
  if transform is None:
    return None
  if not code and 'prj' in files:
    code = _code(files['prj'].read_text('utf-8', 'replace'))
  code = code or epsg
  if not code:
    raise InputError(
      f'{path} lies somewhere, but nothing says in which projection: put its'
      f' {path.stem}.prj beside it, or give its code, such as'
      ' data.positions=EPSG:32633.'
    )
  with Image.open(path) as image:
    width, height = image.size
  if max(width, height) > MOST_PIXELS:
    raise InputError(
      f'{path} has {width} x {height} pixels, expected {MOST_PIXELS} at most on'
      ' either side: it is a map to be cut into overlapping tiles, such as by'
      ' gdal_retile.py -ps 512 512 -overlap 256 -targetDir database'
      f' {path.name}'
    )
  corners = np.array([[0, 0, 1], [0, height, 1], [width, height, 1]])
  corners = np.concatenate([corners, [[width, 0, 1]]]) @ transform.T
  degrees = degrees_from_map(corners, code)
  if degrees is None:
    raise InputError(
      f'{path} has the projection EPSG:{code}; expected latitude and longitude'
      ' (4326), UTM (32601 to 32760) or web mercator (3857). Convert it:'
      f' gdalwarp -t_srs EPSG:4326 {path.name} converted.tif'
    )
  latitude = degrees[:, 0]
  area = np.linalg.det(transform[:, :2])
  if not np.isfinite(degrees).all() or not area or np.abs(latitude).max() > 90:
    raise InputError(
      f'{path}: its corners would lie at {np.round(degrees, 4).tolist()}'
      f' (EPSG:{code}), which is nowhere; check its tags and world file.'
    )
  return footprints.in_turn(degrees[None])[0]


def _files_beside(path, beside) -> dict[str, pathlib.Path]:
  """The files that say where a picture lies, by kind: world, prj, aux."""
  suffix = path.suffix
  short = suffix[:2] + suffix[-1] + 'w'  # .jgw of .jpg, .tfw of .tiff
  names = {
    'world': [path.stem + end for end in (short, suffix + 'w', '.wld')],
    'prj': [path.stem + '.prj'],
    'aux': [path.name + '.aux.xml'],
  }
  lower = {name.lower(): name for name in beside}
  found = {}
  for kind, candidates in names.items():
    there = [lower[x.lower()] for x in candidates if x.lower() in lower]
    if there:
      found[kind] = path.with_name(there[0])
  return found


def _from_tags(path) -> tuple[np.ndarray | None, int]:
  """Map from pixel [2, 3] and code of a GeoTIFF; None and 0 if it has none."""
  with Image.open(path) as image:
    tags = dict(getattr(image, 'tag_v2', {}))
  keys = np.reshape(tags.get(_KEYS, (0,) * 4)[4:], (-1, 4)).tolist()
  values = {key: value for key, place, _, value in keys if not place}
  code = values.get(_PROJECTED) or values.get(_GEOGRAPHIC) or 0
  half = 0.5 if values.get(_RASTER) == _POINT else 0.0
  if _MATRIX in tags:
    matrix = np.reshape(tags[_MATRIX], (4, 4))[:2]
    transform = matrix[:, [0, 1, 3]]
  elif _SCALE in tags and _TIE_POINTS in tags:
    (across, down), ties = tags[_SCALE][:2], tags[_TIE_POINTS]
    column, row, _, x, y = ties[:5]
    transform = np.array(
      [[across, 0, x - column * across], [0, -down, y + row * down]]
    )
  elif _TIE_POINTS in tags:
    raise InputError(
      f'{path} has control points and no grid: make it one with gdalwarp'
      f' -t_srs EPSG:4326 {path.name} converted.tif'
    )
  else:
    return None, 0
  transform = np.asarray(transform, np.float64)
  transform[:, 2] -= half * transform[:, :2].sum(1)
  if code == _USER_DEFINED:
    raise InputError(
      f'{path} has a projection of its own; expected one with a code. Convert'
      f' it: gdalwarp -t_srs EPSG:4326 {path.name} converted.tif'
    )
  return transform, code


def _from_world_file(path) -> np.ndarray:
  """Map from pixel [2, 3]; the file names the middle of the first pixel."""
  numbers = [csv_tables.number(line) for line in path.read_text().split()]
  if len(numbers) != 6 or not np.isfinite(numbers).all():
    raise InputError(f'{path}: expected six numbers, one a line.')
  transform = np.reshape(numbers, (3, 2)).T
  transform[:, 2] -= 0.5 * transform[:, :2].sum(1)
  return transform


def _from_aux(path) -> tuple[np.ndarray | None, int]:
  """Map from pixel [2, 3] and code of GDAL's file; None and 0 if not there."""
  try:
    tree = ElementTree.parse(path)
  except ElementTree.ParseError as error:
    raise InputError(f'{path} is no XML: {error}.') from error
  code = _code(tree.findtext('SRS') or '')
  text = tree.findtext('GeoTransform')
  if text is None:
    return None, code
  numbers = [csv_tables.number(part) for part in text.split(',')]
  if len(numbers) != 6 or not np.isfinite(numbers).all():
    raise InputError(f'{path}: expected six numbers in GeoTransform.')
  return np.reshape(numbers, (2, 3))[:, [1, 2, 0]], code


def _code(text: str) -> int:
  """The EPSG code of a projection in well-known text; 0 if it has none."""
  # The last one is that of the whole, if nothing but brackets follows.
  match = re.search(r'(?:AUTHORITY|ID)\["EPSG",\s*"?(\d+)"?\]\s*\]\s*$', text)
  if match:
    return int(match[1])
  named = re.match(r'\s*(PROJ|GEOG)\w*\["([^"]*)"', text)
  if not named:
    return 0
  if named[1] == 'GEOG':
    return _DEGREES[0]
  for pattern, first in _NAMES:
    match = re.search(pattern, named[2].replace('_', ' ').lower())
    if match:
      return first + int(match[1] if match.groups() else 0)
  return 0
