# SPDX-License-Identifier: Apache-2.0
"""A map of named ellipsoids: schema, files, imports.

The JSON file is one landmark per line, to be read and edited by people; the npz
holds the same. Lengths are metres in the map's own frame.
"""

from collections.abc import Sequence
import json
import os
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import yaml

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.geometry import ellipsoid as ellipsoid_lib

FORMAT = 'i2ploc.object_map.1'
_REMEDY = (
  'make an object map from posed boxes with --mode=index, or import one with'
  ' import_quadrics'
)
UNKNOWN = -1  # category of a landmark that has none
# Printed digits leave 1e-6; a transposed or scaled matrix leaves 1e-1.
_ROTATION_TOLERANCE = 1e-3


class ObjectMap(NamedTuple):
  """L landmarks.

  Attributes:
    ids: [L] int64, distinct.
    center: [L, 3] float64.
    semi_axes: [L, 3] float64, positive: half the lengths.
    rotation: [L, 3, 3] float64, map_from_object; columns are the axes.
    category: [L] int64, in the detector's numbers, or `UNKNOWN`.
    labels: L tuples of texts that describe the landmark, possibly none.
    embedding: [L, D] float32 of the labels, or None.
    covariance: [L, 3, 3] float64 of the centres, square metres, or None.
    num_views: [L] int64, images it was made from; 0 where that is not known.
  """

  ids: np.ndarray
  center: np.ndarray
  semi_axes: np.ndarray
  rotation: np.ndarray
  category: np.ndarray
  labels: tuple[tuple[str, ...], ...]
  embedding: np.ndarray | None
  covariance: np.ndarray | None
  num_views: np.ndarray

  @property
  def ellipsoid(self) -> ellipsoid_lib.Ellipsoid:
    """The shapes, of leading axis L."""
    return ellipsoid_lib.Ellipsoid(self.center, self.semi_axes, self.rotation)

  @property
  def num_landmarks(self) -> int:
    """L."""
    return len(self.ids)

  def take(self, rows: np.ndarray) -> 'ObjectMap':
    """The landmarks of these rows."""
    columns: dict[str, Any] = {
      name: None if column is None else column[rows]
      for name, column in self._asdict().items()
      if name != 'labels'
    }
    return ObjectMap(**columns, labels=tuple(self.labels[i] for i in rows))

  def moved(self, shift: np.ndarray) -> 'ObjectMap':
    """All landmarks moved by `shift` [3], metres."""
    return self._replace(center=self.center + shift)

  def names(self) -> list[str]:
    """A short name of each landmark: its first label, or its category."""
    return [
      labels[0] if labels else f'category {category}'
      for labels, category in zip(self.labels, self.category, strict=True)
    ]


def make_map(
  center: Sequence[Any] | np.ndarray,
  semi_axes: npt.ArrayLike,
  rotation: npt.ArrayLike,
  category: npt.ArrayLike,
  *,
  ids: npt.ArrayLike | None = None,
  labels: Sequence[Sequence[str]] | None = None,
  embedding: npt.ArrayLike | None = None,
  covariance: npt.ArrayLike | None = None,
  num_views: npt.ArrayLike | None = None,
) -> ObjectMap:
  """A sound map; see `ObjectMap` for the arguments. It may be empty.

  Raises:
    InputError: see `check_map`.
  """
  count = len(center)
  every = np.arange(count) if ids is None else ids
  views = np.zeros(count) if num_views is None else num_views
  texts = ((),) * count if labels is None else labels
  result = ObjectMap(
    ids=np.asarray(every, np.int64).reshape(-1),
    center=np.asarray(center, np.float64).reshape(-1, 3),
    semi_axes=np.asarray(semi_axes, np.float64).reshape(-1, 3),
    rotation=np.asarray(rotation, np.float64).reshape(-1, 3, 3),
    category=np.asarray(category, np.int64).reshape(-1),
    labels=tuple((x,) if isinstance(x, str) else tuple(x) for x in texts),
    embedding=None if embedding is None else np.asarray(embedding, np.float32),
    covariance=(
      None if covariance is None else np.asarray(covariance, np.float64)
    ),
    num_views=np.asarray(views, np.int64).reshape(-1),
  )
  check_map(result)
  return result


def check_map(objects: ObjectMap, source: str = 'the object map') -> None:
  """Raises ValueError, naming the landmarks, if a map cannot be used.

  An empty map is sound: nothing can be localized in it.
  """
  count = len(objects.center)
  for name, column in objects._asdict().items():
    if column is not None and len(column) != count:
      raise InputError(
        f'{source}: {len(column)} rows of {name}, expected {count}.'
      )
  values, counts = np.unique(objects.ids, return_counts=True)
  if repeated := values[counts > 1].tolist():
    raise InputError(
      f'{source}: ids {repeated[:5]} occur more than once; every landmark '
      'needs its own.'
    )
  for name, column in (
    ('center', objects.center),
    ('semi_axes', objects.semi_axes),
    ('rotation', objects.rotation),
    ('embedding', objects.embedding),
    ('covariance', objects.covariance),
  ):
    if column is not None:
      bad = ~np.isfinite(column).all(tuple(range(1, np.ndim(column))))
      _refuse(objects, bad, f'{source}: {name} is not finite', column)
  bad = (objects.semi_axes <= 0).any(-1)
  _refuse(
    objects, bad, f'{source}: semi-axes must be positive', objects.semi_axes
  )
  product = np.swapaxes(objects.rotation, -1, -2) @ objects.rotation
  bad = np.abs(product - np.eye(3)).max((-1, -2)) > _ROTATION_TOLERANCE
  bad |= np.linalg.det(objects.rotation) < 0
  _refuse(objects, bad, f'{source}: not a rotation matrix', objects.rotation)


def _refuse(objects, bad, message, column):
  if rows := np.flatnonzero(bad).tolist():
    ids = objects.ids[rows].tolist()
    raise InputError(
      f'{message} in {len(rows)} landmarks, ids {ids[:5]}; the first has '
      f'{np.round(column[rows[0]], 4).tolist()}.'
    )


def save_map(objects: ObjectMap, path: str | os.PathLike) -> None:
  """Writes a sound map (else ValueError) as .json or .npz, atomically."""
  check_map(objects)
  path = pathlib.Path(path)
  if path.suffix == '.npz':
    columns = {
      name: column
      for name, column in objects._asdict().items()
      if column is not None and name != 'labels'
    }
    columns['labels'] = np.array(json.dumps(objects.labels))
    files.save_arrays(path, columns, FORMAT)
    return
  if path.suffix != '.json':
    raise InputError(f'{path}: a map is a .json or an .npz file.')
  lines = ',\n'.join(json.dumps(one) for one in _records(objects))
  text = (
    f'{{"format": "{FORMAT}", "unit": "metre", "landmarks": [\n{lines}\n]}}'
  )
  files.save_text(path, text + '\n')


def _records(objects):
  """One dict of plain numbers and texts per landmark."""
  for i in range(objects.num_landmarks):
    record = {
      'id': int(objects.ids[i]),
      'category': int(objects.category[i]),
      'labels': objects.labels[i],
      'center': objects.center[i].tolist(),
      'semi_axes': objects.semi_axes[i].tolist(),
      'rotation': objects.rotation[i].tolist(),
      'num_views': int(objects.num_views[i]),
    }
    if objects.covariance is not None:
      record['covariance'] = objects.covariance[i].tolist()
    if objects.embedding is not None:
      record['embedding'] = objects.embedding[i].tolist()
    yield record


def load_map(path: str | os.PathLike) -> ObjectMap:
  """Reads a map that `save_map` wrote or somebody edited.

  Raises:
    MissingFileError: no such file.
    InputError: something else, another version, no landmarks, or a landmark
      that cannot be (see `check_map`).
  """
  path = pathlib.Path(path)
  read = _read_npz if path.suffix == '.npz' else _read_json
  columns = read(path)
  if not len(columns['center']):
    raise InputError(f'{path}: the map is empty; it has no landmarks.')
  try:
    return make_map(**columns)
  except (TypeError, ValueError) as error:
    raise InputError(f'{path}: {error}') from None


def _read_npz(path):
  columns = files.load_arrays(path, _REMEDY, FORMAT)
  optional = ('embedding', 'covariance')
  wanted = set(ObjectMap._fields) - set(optional)
  if missing := sorted(wanted - set(columns)):
    raise InputError(f'{path} lacks {missing}.')
  try:
    columns['labels'] = json.loads(str(columns['labels']))
  except ValueError as error:
    raise InputError(f'{path}: labels are not JSON ({error}).') from None
  return columns


def _read_json(path):
  content = files.load_json(path, _REMEDY)
  found = content.get('format', 'none') if isinstance(content, dict) else 'none'
  if found != FORMAT:
    raise InputError(
      f'{path} has format {found!r}, expected {FORMAT!r}: {_REMEDY}.'
    )
  records = content.get('landmarks')
  if not isinstance(records, list):
    raise InputError(f'{path}: expected a list "landmarks".')
  fields = {
    'ids': ('id', None, ()),
    'center': ('center', None, (3,)),
    'semi_axes': ('semi_axes', None, (3,)),
    'rotation': ('rotation', None, (3, 3)),
    'category': ('category', UNKNOWN, ()),
    'num_views': ('num_views', 0, ()),
  }
  columns: dict[str, Any] = {
    name: [
      _value(path, i, one, (key,), shape, default)
      for i, one in enumerate(records)
    ]
    for name, (key, default, shape) in fields.items()
  }
  columns['labels'] = [one.get('labels', ()) for one in records]
  for name in ('covariance', 'embedding'):
    given = [name in one for one in records]
    if any(given) and not all(given):
      raise InputError(
        f'{path}: {sum(given)} of {len(given)} landmarks have {name}; all of '
        'them, or none.'
      )
    if any(given):
      columns[name] = [one[name] for one in records]
  return columns


def _value(path, i, record, keys, shape, default=None):
  """The first of `keys` of a record as numbers of a shape."""
  if not isinstance(record, dict):
    raise InputError(f'{path}: landmark {i} is {record!r}, not an object.')
  key = next((key for key in keys if key in record), None)
  if key is None:
    if default is None:
      raise InputError(
        f'{path}: landmark {i} has no {" or ".join(keys)}; it has '
        f'{sorted(map(str, record))}.'
      )
    return default
  try:
    value = np.asarray(record[key], np.float64)
  except (TypeError, ValueError):
    value = np.zeros(0)
  if value.shape != shape:
    raise InputError(
      f'{path}: landmark {i}: {key} is {record[key]!r}, expected numbers of '
      f'shape {list(shape)}.'
    )
  return value


def import_quadrics(
  path: str | os.PathLike, categories: Sequence[str] | None = None
) -> ObjectMap:
  """Reads a list of ellipsoids as object-based SLAM systems print them.

  Args:
    path: .json, .yaml or .yml: a list, or an object that holds one list, of
      {center: [3], axes: [3] (half-lengths), R: [3, 3] map_from_object,
      category: number or name}; an `id` and `labels` are taken if there.
    categories: the detector's names, in the order of its numbers.

  Raises:
    MissingFileError: no such file.
    InputError: no list, a landmark that cannot be, or a category's name that
      is not among `categories`.
  """
  path = pathlib.Path(path)
  read = files.load_json if path.suffix == '.json' else _load_yaml
  content = read(path, 'give a list of ellipsoids as .json or .yaml')
  if isinstance(content, dict):
    lists = [value for value in content.values() if isinstance(value, list)]
    content = lists[0] if len(lists) == 1 else None
  if not isinstance(content, list) or not content:
    raise InputError(
      f'{path}: expected a list of ellipsoids with center, axes, R, category.'
    )
  numbers, labels = [], []
  for i, one in enumerate(content):
    center = _value(path, i, one, ('center',), (3,))
    axes = _value(path, i, one, ('axes', 'semi_axes'), (3,))
    turn = _value(path, i, one, ('R', 'rotation'), (3, 3))
    number = _value(path, i, one, ('id',), (), float(i))
    category, text = _category(path, i, one.get('category'), categories)
    numbers.append((number, center, axes, turn, category))
    labels.append(one.get('labels', text))
  columns = [np.stack(column) for column in zip(*numbers, strict=True)]
  try:
    return make_map(*columns[1:], ids=columns[0], labels=labels)
  except ValueError as error:
    raise InputError(f'{path}: {error}') from None


def _load_yaml(path, remedy):
  if not path.is_file():
    raise MissingFileError(f'There is no {path}: {remedy}.')
  try:
    return yaml.safe_load(path.read_text('utf-8'))
  except (UnicodeDecodeError, yaml.YAMLError) as error:
    raise InputError(
      f'{path} is truncated or not YAML ({error}): {remedy}.'
    ) from None


def _category(path, i, value, categories):
  """A number, and the texts that go with it."""
  names = list(categories or ())
  if value is None:
    return UNKNOWN, ()
  if isinstance(value, int):
    return value, (names[value],) if 0 <= value < len(names) else ()
  if not names:
    return UNKNOWN, (str(value),)
  if value not in names:
    raise InputError(
      f'{path}: landmark {i} is a {value!r}, which is not among the '
      f'{len(names)} categories.'
    )
  return names.index(value), (str(value),)
