# SPDX-License-Identifier: Apache-2.0
"""What a comparison with reference outputs is, and how far apart both are."""

from collections.abc import Callable
from collections.abc import Iterable
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import numpy as np


class Comparison(NamedTuple):
  """Pytrees of arrays that should be the same.

  Attributes:
    quantity: what they are; several of one name make one line of the table.
    found: ours.
    expected: the reference's.
    tolerance: of `difference`.
  """

  quantity: str
  found: Any
  expected: Any
  tolerance: float


class Module(NamedTuple):
  """A part of the library that has a reference.

  Attributes:
    name: of the part.
    reference: file or folder of the reference outputs; '' for what is computed
      anew, by loops in numpy.
    compare: takes its path.
  """

  name: str
  reference: str
  compare: Callable[[pathlib.Path], Iterable[Comparison]]


class Row(NamedTuple):
  """A line of the table; see `Comparison`."""

  module: str
  quantity: str
  reference: str
  difference: float
  tolerance: float

  @property
  def ok(self) -> bool:
    """Whether the difference is within the tolerance."""
    return self.difference <= self.tolerance


def difference(found: Any, expected: Any) -> float:
  """Largest difference of two pytrees of arrays.

  Absolute, but of an array whose expected values exceed 1, relative to the
  largest of them: the spacing of float32 grows with it.

  Returns:
    The largest of all arrays; infinity where shapes, structures or the places
    of non-finite values differ.
  """
  found, found_tree = jax.tree.flatten(found)
  expected, expected_tree = jax.tree.flatten(expected)
  if found_tree != expected_tree:
    return np.inf
  pairs = zip(found, expected, strict=True)
  return max((_array_difference(a, b) for a, b in pairs), default=0.0)


def _array_difference(found, expected):
  found = np.asarray(found, np.float64)
  expected = np.asarray(expected, np.float64)
  if found.shape != expected.shape or not np.isfinite(found).all():
    return np.inf
  scale = max(1.0, np.abs(expected).max(initial=0.0))
  apart = np.abs(found - expected).max(initial=0.0) / scale
  # NaN in what was expected compares as nothing; it has to fail.
  return float(apart) if np.isfinite(apart) else np.inf


def rows(module: Module, golden: pathlib.Path) -> list[Row]:
  """Compares a module; the worst comparison of each quantity counts.

  Args:
    module: what to compare.
    golden: folder of the reference outputs.
  """
  worst = {}
  for quantity, found, expected, tolerance in module.compare(
    golden / module.reference
  ):
    apart = difference(found, expected)
    row = Row(module.name, quantity, module.reference, apart, tolerance)
    if quantity not in worst or apart > worst[quantity].difference:
      worst[quantity] = row
  return list(worst.values())
