# SPDX-License-Identifier: Apache-2.0
"""Lenses as people's files have them.

  *.yaml, *.yml  settings of ORB-SLAM2, ORB-SLAM3 and their descendants; `flat`
                 reads the YAML that OpenCV writes, whoever wrote it
  *.txt          cameras.txt of COLMAP, one camera

What a file says about the picture is read, or refused by its key: a fisheye is
never taken for Brown's model, and no coefficient is left out. OpenCV counts
pixel centres from 0, so half a pixel is added to the principal point of a
settings file; COLMAP counts as this program does.
"""

from collections.abc import Sequence
import math
import os
import pathlib
import re
from typing import Any
from typing import NamedTuple

import numpy as np
import yaml

from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.geometry import lens as lens_lib


class Calibration(NamedTuple):
  """What a file says of a camera.

  Attributes:
    lens: the camera.
    image_size: (H, W) of the images that it belongs to; None if not said.
    depth_units: of a depth image, per metre; None if not said.
  """

  lens: lens_lib.Lens
  image_size: tuple[int, int] | None = None
  depth_units: float | None = None


# COLMAP's names: the model here, how its focal lengths are written, and how its
# coefficients are filled up to a number that the model takes.
_COLMAP = {
  'SIMPLE_PINHOLE': ('pinhole', 1, 0, 0),
  'PINHOLE': ('pinhole', 2, 0, 0),
  'SIMPLE_RADIAL': ('opencv', 1, 1, 4),
  'RADIAL': ('opencv', 1, 2, 4),
  'OPENCV': ('opencv', 2, 4, 4),
  'FULL_OPENCV': ('opencv', 2, 8, 8),
  'OPENCV_FISHEYE': ('fisheye', 2, 4, 4),
  'SIMPLE_FISHEYE': ('fisheye', 1, 0, 0),
  'FISHEYE': ('fisheye', 2, 0, 0),
  'SIMPLE_RADIAL_FISHEYE': ('fisheye', 1, 1, 4),
  'RADIAL_FISHEYE': ('fisheye', 1, 2, 4),
  'THIN_PRISM_FISHEYE': ('thin_prism_fisheye', 2, 8, 8),
  'RAD_TAN_THIN_PRISM_FISHEYE': ('fisheye624', 2, 12, 12),
  'FOV': ('fov', 2, 1, 1),
  'SIMPLE_DIVISION': ('division', 1, 1, 1),
  'DIVISION': ('division', 2, 1, 1),
  'EUCM': ('eucm', 2, 2, 2),
}
_EQUIRECTANGULAR = 'EQUIRECTANGULAR'  # its parameters are the image's size


def colmap_lens(name: str, parameters: Sequence[float]) -> lens_lib.Lens:
  """The lens of a camera of COLMAP.

  Args:
    name: of the camera model, as OPENCV_FISHEYE.
    parameters: in COLMAP's order, pixels counted as here.

  Raises:
    InputError: an unknown name, another number of parameters, or an impossible
      lens.

  >>> colmap_lens('SIMPLE_RADIAL', [500, 320, 240, 0.1]).distortion.tolist()
  [0.1, 0.0, 0.0, 0.0]
  """
  if name == _EQUIRECTANGULAR:
    expected = 2
  elif name in _COLMAP:
    model, focals, extra, filled = _COLMAP[name]
    expected = focals + 2 + extra
  else:
    raise InputError(
      f'unknown camera model {name!r} of COLMAP; known:'
      f' {[*_COLMAP, _EQUIRECTANGULAR]}'
    )
  if len(parameters) != expected:
    raise InputError(
      f'{name} has {len(parameters)} parameters, expected {expected}'
    )
  values = [float(one) for one in parameters]
  if name == _EQUIRECTANGULAR:
    width, height = values
    found = lens_lib.Lens(
      'equirectangular',
      np.array(
        [
          [width / (2 * math.pi), 0, width / 2],
          [0, height / math.pi, height / 2],
          [0, 0, 1],
        ]
      ),
    )
  else:
    fx, fy = values[0], values[focals - 1]
    cx, cy = values[focals : focals + 2]
    coefficients = np.zeros(filled)
    coefficients[:extra] = values[focals + 2 :]
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    found = lens_lib.Lens(model, matrix, coefficients)
  lens_lib.check_lens(found)
  return found


def load_calibration(path: str | os.PathLike) -> Calibration:
  """Reads the camera of a settings file or of COLMAP's cameras.txt.

  Args:
    path: a file; see the module.

  Raises:
    MissingFileError: no such file.
    InputError: a key or a camera model that is not known, one that is missing
      or said twice, several cameras, numbers that are none.
  """
  path = pathlib.Path(path)
  suffix = path.suffix.lower()
  if suffix in ('.yaml', '.yml'):
    return _from_settings(path)
  if suffix == '.txt':
    return _from_colmap(path)
  raise InputError(
    f'{path}: expected a settings file (.yaml) of ORB-SLAM or the cameras.txt'
    ' of COLMAP (colmap model_converter --output_type=TXT).'
  )


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text('utf-8')
  except FileNotFoundError:
    raise MissingFileError(f'There is no {path}.') from None
  except UnicodeDecodeError as error:
    raise InputError(f'{path}: not a text file ({error}).') from error


def _from_colmap(path) -> Calibration:
  cameras = {}
  for number, line in enumerate(_text(path).splitlines(), 1):
    words = line.split()
    if not words or words[0].startswith('#'):
      continue
    where = f'{path}, line {number}'
    try:
      camera, width, height = (int(words[i]) for i in (0, 2, 3))
      parameters = [float(word) for word in words[4:]]
    except (IndexError, ValueError):
      raise InputError(
        f'{where}: {line.strip()!r}, expected CAMERA_ID MODEL WIDTH HEIGHT'
        ' PARAMS[].'
      ) from None
    if camera in cameras:
      raise InputError(f'{where}: camera {camera} is there twice; remove one.')
    try:
      lens = colmap_lens(words[1], parameters)
    except InputError as error:
      raise InputError(f'{where}: {error}.') from None
    cameras[camera] = Calibration(lens, _size(where, width, height))
  if len(cameras) != 1:
    raise InputError(
      f'{path}: {len(cameras)} cameras {sorted(cameras)[:5]}, expected one;'
      ' leave the line of the camera that took the images.'
    )
  return next(iter(cameras.values()))


def _size(where, width, height):
  """(H, W) of sides that are whole and positive."""
  if not (width > 0 and height > 0 and width % 1 == 0 and height % 1 == 0):
    raise InputError(
      f'{where}: images of {width:g} x {height:g}, expected pixels.'
    )
  return int(height), int(width)


class _Loader(yaml.SafeLoader):
  """YAML as OpenCV writes it; its matrices are dictionaries."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
  """A dictionary, in which no key has two values."""
  found: dict = {}
  for key_node, value_node in node.value:
    key = loader.construct_object(key_node, deep=True)
    value = loader.construct_object(value_node, deep=True)
    if not isinstance(key, str | int | float):
      raise yaml.YAMLError(f'{key!r} is no key')
    if key in found and found[key] != value:
      raise yaml.YAMLError(
        f'{key} is there twice, as {found[key]!r} and as {value!r}: remove one'
      )
    found[key] = value
  return found


_Loader.add_constructor('tag:yaml.org,2002:map', _mapping)
_Loader.add_multi_constructor(
  '', lambda loader, _, node: _mapping(loader, node)
)


def flat(path: str | os.PathLike) -> dict[str, Any]:
  """The entries of a YAML file, those of a mapping as 'mapping.key'.

  Args:
    path: YAML as OpenCV or a person writes it; the first line may be %YAML:1.0.

  Raises:
    MissingFileError: no such file.
    InputError: it is no YAML, no mapping, or a key has two values.
  """
  path = pathlib.Path(path)
  # OpenCV's directive has a colon where YAML has a blank.
  text = re.sub(r'\A\ufeff?%YAML[^\n]*\n(---[^\n]*\n)?', '', _text(path))
  try:
    content = yaml.load(text, _Loader)  # noqa: S506  a safe loader
  except (yaml.YAMLError, ValueError) as error:
    told = ' '.join(str(error).split())
    raise InputError(f'{path}: {told}.') from None
  if not isinstance(content, dict):
    raise InputError(f'{path}: no lines such as `key: value` in the file.')
  return _flattened(content)


def _flattened(content, before=''):
  found = {}
  for key, value in content.items():
    name = f'{before}{key}'
    if isinstance(value, dict):
      found |= _flattened(value, f'{name}.')
    else:
      found[name] = value
  return found


# What settings files call cameras. ORB-SLAM2 does not call its own.
_TYPES = {
  '': 'opencv',
  'pinhole': 'opencv',
  'perspective': 'opencv',
  'rectified': 'pinhole',
  'kannalabrandt8': 'fisheye',
  'fisheye': 'fisheye',
  'equirectangular': 'equirectangular',
  'radial_division': 'division',
}
_TYPE_KEYS = ('Camera.type', 'Camera.model')
_FOCAL, _CENTER = ('fx', 'fy'), ('cx', 'cy')
_COEFFICIENTS = {
  'opencv': ('k1', 'k2', 'p1', 'p2', 'k3', 'k4', 'k5', 'k6'),
  'fisheye': ('k1', 'k2', 'k3', 'k4'),
  'division': ('distortion',),
  'pinhole': (),
  'equirectangular': (),
}
_WIDTH, _HEIGHT = ('width', 'cols'), ('height', 'rows')
# ORB-SLAM2 and 3, stella_vslam: of a scaled copy in memory (newWidth,
# newHeight, imageScale), of the second camera, of the program.
_ELSEWHERE = (
  *('fps', 'RGB', 'bf', 'name', 'setup', 'color_order', 'ThDepth'),
  *('focal_x_baseline', 'depth_threshold', 'newWidth', 'newHeight'),
  *('imageScale', 'lappingBegin', 'lappingEnd', 'overlappingBegin'),
  *('overlappingEnd', 'baseline', 'id', 'delay', 'exposure'),
)
_DEPTH_KEYS = ('DepthMapFactor', 'RGBD.DepthMapFactor')
_DEPTH_KEYS += ('depthmap_factor', 'Preprocessing.depthmap_factor')


def _from_settings(path) -> Calibration:
  entries = flat(path)
  camera = _camera(path, entries)
  name = _same(path, entries, _TYPE_KEYS)
  model = _TYPES.get(str(name or '').lower())
  if model is None:
    raise InputError(
      f'{path}: {" or ".join(key for key in _TYPE_KEYS if key in entries)}'
      f' {name!r} is not known; known: PinHole, KannalaBrandt8, Rectified,'
      ' perspective, fisheye, equirectangular, radial_division.'
    )
  size = _sides(path, camera)
  known = _COEFFICIENTS[model]
  every = (*_FOCAL, *_CENTER, *known, *_WIDTH, *_HEIGHT)
  every += (*_ELSEWHERE, 'type', 'model')
  for key, value in camera.items():
    # Words and matrices beside them say nothing of the picture.
    if key not in every and not isinstance(value, str | list):
      raise InputError(
        f'{path}: Camera.{key} is nothing that a camera of type'
        f' {name or "PinHole"!r} has (known:'
        f' {", ".join((*_FOCAL, *_CENTER, *known))}); correct Camera.type, or'
        ' remove the line.'
      )
  depth = _same(path, entries, _DEPTH_KEYS)
  if depth is not None:
    depth = _number(path, 'DepthMapFactor', depth)
    if depth <= 0:
      raise InputError(
        f'{path}: DepthMapFactor {depth:g}, expected what a metre is in the'
        ' depth images, such as 5000.'
      )
  return Calibration(_settings_lens(path, camera, model, size), size, depth)


def _camera(path, entries):
  """Entries of the camera, or of the first, without 'Camera.' before them."""
  found: dict[str, Any] = {}
  for prefix in ('Camera.', 'Camera1.'):
    for key, value in entries.items():
      if not key.startswith(prefix):
        continue
      name = key.removeprefix(prefix)
      if name in found and found[name] != value:
        raise InputError(
          f'{path}: Camera.{name} is {found[name]!r}, but Camera1.{name} is'
          f' {value!r}; remove one.'
        )
      found[name] = value
  return found


def _same(path, entries, keys):
  """The value of whichever of the keys is there; None of none."""
  found = {key: entries[key] for key in keys if key in entries}
  if len(set(map(str, found.values()))) > 1:
    raise InputError(f'{path}: {found} say different things; remove one.')
  return next(iter(found.values()), None)


def _number(path, key, value):
  try:
    number = float('nan' if isinstance(value, bool) else value)
  except (TypeError, ValueError):
    number = math.nan
  if not math.isfinite(number):
    raise InputError(f'{path}: {key} is {value!r}, expected a number.')
  return number


def _sides(path, camera):
  """(H, W), or None."""
  sides = []
  for keys in (_WIDTH, _HEIGHT):
    found = _same(path, camera, keys)
    if found is None:
      return None
    sides.append(_number(path, f'Camera.{keys[0]}', found))
  return _size(path, *sides)


def _settings_lens(path, camera, model, size):
  if model == 'equirectangular':
    if size is None:
      raise InputError(
        f'{path}: an equirectangular camera, without Camera.cols and'
        ' Camera.rows.'
      )
    return colmap_lens(_EQUIRECTANGULAR, size[::-1])
  needed = (*_FOCAL, *_CENTER)
  # A division model without its one coefficient is not known.
  needed += _COEFFICIENTS[model] if model == 'division' else ()
  if missing := [key for key in needed if key not in camera]:
    raise InputError(
      f'{path}: no {", ".join(f"Camera.{key}" for key in missing)}; found'
      f' {sorted(camera)}.'
    )
  numbers = {
    key: _number(path, f'Camera.{key}', camera.get(key, 0.0))
    for key in (*needed, *_COEFFICIENTS[model])
  }
  fx, fy, cx, cy = (numbers[key] for key in (*_FOCAL, *_CENTER))
  matrix = np.array([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1.0]])
  given = [numbers[key] for key in _COEFFICIENTS[model]]
  while model == 'opencv' and given and not given[-1]:
    given.pop()
  if model == 'opencv':
    count = next(one for one in (0, 4, 5, 8) if one >= len(given))
    model = 'opencv' if count else 'pinhole'
    given += [0.0] * (count - len(given))
  found = lens_lib.Lens(model, matrix, np.array(given))
  try:
    lens_lib.check_lens(found)
  except InputError as error:
    raise InputError(f'{path}: {error}.') from None
  return found
