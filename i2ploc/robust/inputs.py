# SPDX-License-Identifier: Apache-2.0
"""What users give, as numbers that a search can work with.

Arrays of another shape, or with values that are no finite numbers, are errors
that name the argument. Data that are sound but of no use (masked, beyond what a
lens can image, so far away that float32 would spoil the others) are left out,
and counted, so that a result can say what became of them.

Data are centred and scaled by medians: a few data far away change nothing.
"""

from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import result

# Data so many units from the middle are beyond the sense of float32: products
# of six of their coordinates would overflow.
_FAR = 1e6
# The unit is so many medians of the distances from the middle: for data spread
# evenly it is their standard deviation.
_MEDIANS = 1.2


class Usable(NamedTuple):
  """Which data may be used, and what ruled out the others.

  Attributes:
    mask: [N] bool.
    reasons: numbers of data and why they are left out.
  """

  mask: np.ndarray
  reasons: tuple[str, ...] = ()

  def but(self, valid: np.ndarray, why: str) -> 'Usable':
    """Without those that are not valid [N]."""
    mask = self.mask & valid
    lost = np.count_nonzero(self.mask) - np.count_nonzero(mask)
    return Usable(mask, (*self.reasons, f'{lost} {why}')) if lost else self


class Frame(NamedTuple):
  """Origin and unit of the coordinates that a search works in.

  Attributes:
    center: [D], the origin.
    unit: positive.
  """

  center: np.ndarray
  unit: float

  def inside(self, points: np.ndarray) -> np.ndarray:
    """Coordinates [N, D] of points [N, D]."""
    return (points - self.center) * (1 / self.unit)

  def matrix(self) -> np.ndarray:
    """From points to coordinates, homogeneous [D + 1, D + 1]."""
    size = len(self.center)
    matrix = np.eye(size + 1)
    matrix[:size] /= self.unit
    matrix[:size, size] = -self.center / self.unit
    return matrix


def array(values: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
  """Numbers as float64, and which are masked; None if none is.

  Args:
    values: numbers: an array of any type, or lists.
    name: of the argument, for errors.

  Raises:
    InputError: what is not numbers.
  """
  mask = None
  if isinstance(values, np.ma.MaskedArray):
    if np.ma.is_masked(values):
      mask = np.ma.getmaskarray(values)
    values = np.where(np.ma.getmaskarray(values), 0, np.ma.getdata(values))
  try:
    found = np.asarray(values)
    if found.dtype.kind not in 'biufO':
      raise TypeError
    return found.astype(np.float64, copy=False), mask
  except (TypeError, ValueError) as error:
    kind = getattr(values, 'dtype', type(values).__name__)
    raise InputError(
      f'{name} must be an array of real numbers, not {kind}'
    ) from error


def points(values: Any, size: int, name: str) -> tuple[np.ndarray, Usable]:
  """Points [N, size], and which of them may be used: those not masked.

  Args:
    values: an array, lists, or a masked array.
    size: numbers of a point.
    name: of the argument, for errors.

  Raises:
    InputError: another shape, or values that are not finite.
  """
  found, mask = array(values, name)
  if found.size == 0 and found.ndim < 3:
    found = np.zeros((0, size))
  if found.ndim != 2 or found.shape[1] != size:
    hint = ''
    if found.ndim == 2 and found.shape[0] == size:
      hint = '; transpose it'
    elif found.ndim > 2 and found.shape[-1] == size:
      hint = f'; reshape it to (-1, {size})'
    raise InputError(
      f'{name} must be [N, {size}], not {list(found.shape)}{hint}'
    )
  usable = Usable(np.ones(len(found), bool))
  if mask is not None and len(found):
    usable = usable.but(~np.any(mask, axis=1), 'are masked')
  if not math.isfinite(found.sum()):
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
      raise InputError(
        f'{name}: {np.count_nonzero(~finite)} of {len(found)} are not finite, '
        f'first row {np.flatnonzero(~finite)[0]}; leave them out'
      )
  return found, usable


def pairs(
  first: Any, second: Any, sizes: tuple[int, int], names: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray, Usable]:
  """`points` of both sides of N pairs, and which pairs may be used.

  Args:
    first: points of one side.
    second: their partners.
    sizes: numbers of a point, of either side.
    names: of both arguments.

  Raises:
    InputError: see `points`; another number of partners.
  """
  a, usable = points(first, sizes[0], names[0])
  b, other = points(second, sizes[1], names[1])
  if len(a) != len(b):
    raise InputError(
      f'{names[0]} and {names[1]} must be as many: {list(a.shape)} beside '
      f'{list(b.shape)}'
    )
  if other.reasons:
    usable = usable.but(other.mask, 'have a masked partner')
  return a, b, usable


def quality(scores: Any, usable: Usable) -> tuple[np.ndarray | None, Usable]:
  """Scores [N] of as many data, and which data may be used.

  Raises:
    InputError: another shape, or scores that are not finite.
  """
  if scores is None:
    return None, usable
  found, mask = array(scores, 'scores')
  if found.shape != usable.mask.shape:
    raise InputError(
      f'scores must be [N]: {list(found.shape)} beside {usable.mask.size} data'
    )
  if mask is not None:
    usable = usable.but(~mask, 'have a masked score')
  if not np.isfinite(found[usable.mask]).all():
    lost = usable.mask & ~np.isfinite(found)
    raise InputError(
      f'scores: {np.count_nonzero(lost)} of {len(found)} are not finite, first '
      f'row {np.flatnonzero(lost)[0]}; leave them out'
    )
  return found, usable


def check_threshold(threshold: Any) -> float:
  """The threshold as a number.

  Raises:
    InputError: what is not a positive number.
  """
  try:
    found = float(threshold)
  except (TypeError, ValueError):
    found = math.nan
  if not (math.isfinite(found) and found > 0):
    raise InputError(f'the threshold must be positive, not {threshold}')
  return found


def same_length(lists: dict[str, Sequence | None]) -> int:
  """The length of all lists that are given.

  Args:
    lists: by the name of the argument.

  Raises:
    InputError: lengths that differ.
  """
  lengths = {k: len(v) for k, v in lists.items() if v is not None}
  if len(set(lengths.values())) > 1:
    told = ', '.join(f'{count} {name}' for name, count in lengths.items())
    raise InputError(f'there must be as many of each: {told}')
  return next(iter(lengths.values()))


def frame(values: np.ndarray, usable: Usable) -> Frame:
  """The frame around the median of the usable points, scaled by a median."""
  some = values[usable.mask] if usable.reasons else values
  if not len(some):
    return Frame(np.zeros(values.shape[1]), 1.0)
  # np.median takes ten times as long.
  center = np.partition(some, len(some) // 2, axis=0)[len(some) // 2]
  away = np.abs(some - center).ravel()
  unit = np.partition(away, away.size // 2)[away.size // 2]
  if unit <= 0:
    # Most are in one place, or on an axis.
    away = np.sort(away[away > 0])
    unit = away[away.size // 2] if away.size else 1.0
  return Frame(center, _MEDIANS * float(unit))


def near(coordinates: np.ndarray, usable: Usable) -> Usable:
  """Those of the coordinates [N, D] in a frame that float32 can bear."""
  if np.abs(coordinates).max(initial=0.0) <= _FAR:
    return usable
  inside = np.abs(coordinates).max(axis=1) <= _FAR
  return usable.but(inside, 'are a million times further away than most')


def explained(
  found: result.Result, problem: problem_lib.Problem, usable: Usable
) -> result.Result:
  """The result; where too few data were left, it says what became of them."""
  left, size = np.count_nonzero(usable.mask), problem.sample_size
  if found.valid or left > size or not usable.reasons:
    return found
  return found._replace(
    reason=f'{left} data, but more than {size} are needed: of '
    f'{usable.mask.size} data {" and ".join(usable.reasons)}'
  )
