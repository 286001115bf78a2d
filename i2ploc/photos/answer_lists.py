# SPDX-License-Identifier: Apache-2.0
"""Lists of right answers in files.

  FILE.npy   [P, 2] whole numbers: query and right reference
             or rows [query, list of its right references], of Python objects,
             as ground_truth_new.npy of the VPR-Bench sets
  FILE.csv   query,reference: a pair a line, of names or of numbers; a query
             with an empty reference has no right answer

Numbers count photos in order of name from 0, those that ask and those that
answer apart. A query that is in no line has no truth, as a photo without a
position.

Python objects in npy files are a pickle, and a pickle is a program: loading one
can do anything. Here it is read by an unpickler that knows lists, tuples and
numbers, and stands in for numpy's arrays itself; whatever else a file wants to
be called is refused before it is.
"""

from collections.abc import Sequence
import pathlib
import pickle
from typing import Any
from typing import BinaryIO

import numpy as np

from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.photos import csv_tables
from i2ploc.photos import listing
from i2ploc.photos import truth

COLUMNS = {
  'query': ('query', 'queries', 'query_name', 'query_index'),
  'reference': (
    *('reference', 'references', 'ref', 'database', 'db', 'positive'),
    *('reference_name', 'reference_index'),
  ),
}
_NOTHING = ('', None)
_PLAIN = {'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8'}


def is_list(path: pathlib.Path) -> bool:
  """Whether a file lists right answers instead of positions."""
  if path.suffix.lower() == '.npy':
    return True
  if not path.is_file():
    return False
  found = csv_tables.read_table(path, COLUMNS, 'right answers')
  return set(found.columns) == set(COLUMNS)


def read_answers(
  path: pathlib.Path,
  names: Sequence[str],
  queries: np.ndarray,
  places: np.ndarray,
) -> truth.Answers:
  """The right answers in a file.

  Args:
    path: of the file.
    names: F paths of photos.
    queries: int [Q], rows that ask, in the order of their numbers.
    places: int [M], rows that answer.

  Raises:
    MissingFileError: there is no such file.
    InputError: it is no such list, or names what is not there; counted.
  """
  if not path.is_file():
    raise MissingFileError(f'{path}: no such list of right answers.')
  if path.suffix.lower() == '.npy':
    pairs = _read_npy(path)
  else:
    found = csv_tables.read_table(path, COLUMNS, 'right answers')
    pairs = [
      (found.cell(cells, 'query'), found.cell(cells, 'reference'))
      for cells in found.rows.values()
    ]
  asking, answering = _Side(queries, names), _Side(places, names)
  bad = [
    pair
    for pair in pairs
    if asking.row(pair[0]) < 0
    or (pair[1] not in _NOTHING and answering.row(pair[1]) < 0)
  ]
  if bad:
    raise InputError(
      f'{path}: {len(bad)} of {len(pairs)} pairs are of no photo:'
      f' {listing.examples(bad)}. Expected names, or numbers below'
      f' {len(queries)} of queries and below {len(places)} of references.'
    )
  right: list[set[int]] = [set() for _ in names]
  known = np.zeros(len(names), bool)
  known[places] = True  # of one folder all photos, listed or not
  for query, place in pairs:
    row = asking.row(query)
    known[row] = True
    if place not in _NOTHING:
      right[row].add(answering.row(place))
  counts = [len(rows) for rows in right]
  return truth.Answers(
    offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    rows=np.array([r for rows in right for r in sorted(rows)], np.int64),
    known=known,
  )


class _Side:
  """Photos that ask, or answer, by number or by name."""

  def __init__(self, rows: np.ndarray, names: Sequence[str]):
    self._rows = rows.tolist()
    self._named = {csv_tables.same_form(names[row]): row for row in self._rows}

  def row(self, value: Any) -> int:
    """The row of a photo; -1 of what is none."""
    if isinstance(value, str):
      named = self._named.get(csv_tables.photo_name(value))
      if named is not None or not value.isdecimal():
        return -1 if named is None else named
    number = int(value)
    return self._rows[number] if 0 <= number < len(self._rows) else -1


def _read_npy(path: pathlib.Path) -> list[tuple[int, int | None]]:
  """Pairs of numbers; (query, None) of a query without right answers."""
  pairs: list[tuple[int, int | None]] = []
  try:
    with path.open('rb') as file:
      rows = _read_rows(file)
    for query, references in rows:
      (asks,) = _whole(query)
      pairs += [(asks, one) for one in _whole(references)] or [(asks, None)]
  except InputError as error:
    raise InputError(f'{path}: {error}') from None
  # Damaged files make numpy and pickle raise almost anything.
  except Exception as error:
    raise InputError(
      f'{path} is no npy file of right answers'
      f' ({type(error).__name__}: {error}).'
    ) from error
  return pairs


def _read_rows(file: BinaryIO) -> list[tuple[Any, Any]]:
  """Rows of two: a query and its reference or references."""
  version = np.lib.format.read_magic(file)
  read = np.lib.format.read_array_header_1_0
  if version != (1, 0):
    read = np.lib.format.read_array_header_2_0
  shape, fortran, dtype = read(file)
  if dtype.hasobject:
    content = _Unpickler(file).load()
    if not isinstance(content, _Array):
      raise InputError('expected an array of rows [query, references].')
    shape, values, fortran = content.shape, content.values, content.fortran
    if not isinstance(values, list):
      raise InputError('an array of objects without objects.')
  elif dtype.kind in 'iu':
    values = np.fromfile(file, dtype).tolist()
  else:
    raise InputError(f'{dtype}; expected whole numbers.')
  size = int(np.prod(shape))
  if len(shape) != 2 or shape[1] != 2 or len(values) != size:
    raise InputError(
      f'shape {tuple(shape)} of {len(values)}; expected [P, 2]: query and'
      ' reference, or query and list of references.'
    )
  half = len(values) // 2
  if fortran:
    return list(zip(values[:half], values[half:], strict=True))
  return list(zip(values[::2], values[1::2], strict=True))


def _whole(value: Any) -> list[int]:
  """The whole numbers in nested lists and arrays."""
  if isinstance(value, _Array):
    value = value.values
    if isinstance(value, bytes):
      raise InputError('an array of numbers of an unknown kind.')
  if isinstance(value, list | tuple | set):
    return [number for one in value for number in _whole(one)]
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise InputError(f'{value!r:.60} is no number of a photo.')
  if value != int(value) or value < 0:
    raise InputError(f'{value!r} is no number of a photo.')
  return [int(value)]


class _Dtype:
  """Stands in for numpy.dtype: what kind of numbers, as text."""

  def __init__(self, kind='', *_):
    self.kind = kind.decode('latin1') if isinstance(kind, bytes) else str(kind)
    self.order = '<'

  def __setstate__(self, state):
    order = state[1]
    order = order.decode('latin1') if isinstance(order, bytes) else order
    self.order = '>' if order == '>' else '<'

  def numbers(self, data: Any) -> Any:
    """The numbers of bytes; what is no bytes or no numbers stays."""
    if isinstance(data, str):  # as Python 2 wrote bytes
      data = data.encode('latin1')
    if not isinstance(data, bytes) or self.kind not in _PLAIN:
      return data
    return np.frombuffer(data, np.dtype(self.order + self.kind)).tolist()


class _Array:
  """Stands in for numpy.ndarray."""

  def __init__(self, *_):
    self.shape, self.values, self.fortran = (), [], False

  def __setstate__(self, state):
    _, shape, dtype, fortran, data = state
    self.shape, self.fortran = tuple(shape), bool(fortran)
    self.values = dtype.numbers(data) if isinstance(dtype, _Dtype) else data


def _scalar(dtype, data=None):
  """Stands in for numpy's making of one number."""
  found = dtype.numbers(data) if isinstance(dtype, _Dtype) else None
  if not isinstance(found, list) or len(found) != 1:
    raise InputError('a number of an unknown kind.')
  return found[0]


def _encode(text, *_):
  """Stands in for codecs.encode: how protocol 2 writes bytes."""
  return text.encode('latin1')


class _Unpickler(pickle.Unpickler):
  """Reads lists, tuples, numbers and numpy arrays; calls nothing of a file's.

  Every name that a file asks for is one of the stand-ins above, or refused.
  """

  _STAND_INS = {
    ('numpy', 'ndarray'): _Array,
    ('numpy', 'dtype'): _Dtype,
    ('_codecs', 'encode'): _encode,
    **{
      (f'numpy.{core}.multiarray', name): stand_in
      for core in ('core', '_core')
      for name, stand_in in (('_reconstruct', _Array), ('scalar', _scalar))
    },
    # Arrays of protocol 5.
    ('numpy.core.numeric', '_frombuffer'): lambda *a: _from_buffer(*a),
    ('numpy._core.numeric', '_frombuffer'): lambda *a: _from_buffer(*a),
  }

  def find_class(self, module: str, name: str) -> Any:
    """The stand-in of a name."""
    try:
      return self._STAND_INS[module, name]
    except KeyError:
      raise InputError(
        f'holds {module}.{name}; a list of right answers needs lists and'
        ' numbers only, and nothing else is loaded.'
      ) from None


def _from_buffer(data, dtype, shape, order):
  """Stands in for numpy's making of an array of bytes."""
  array = _Array()
  array.shape, array.fortran = tuple(shape), order == 'F'
  array.values = dtype.numbers(bytes(data))
  return array
