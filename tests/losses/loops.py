# SPDX-License-Identifier: Apache-2.0
"""What tests of losses compare with: loops in float64, and differences."""

from collections.abc import Callable

import numpy as np


def unit(rows: np.ndarray) -> np.ndarray:
  """Rows of length 1."""
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def slopes(
  function: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5
) -> np.ndarray:
  """Gradient of a function of a float64 array, by central differences."""
  found = np.zeros(x.shape)
  for index in np.ndindex(*x.shape):
    ahead, back = (np.array(x, np.float64) for _ in range(2))
    ahead[index] += step
    back[index] -= step
    found[index] = (function(ahead) - function(back)) / (2 * step)
  return found


def informative(row, positives, negatives, margin):
  """Columns that count in a row, see `mining`."""
  if not positives or not negatives:
    return []
  least = min(row[p] for p in positives)
  most = max(row[n] for n in negatives)
  return [p for p in positives if row[p] - margin < most] + [
    n for n in negatives if row[n] + margin > least
  ]


def hardest(row, positives, negatives, margin):
  """Columns that count in a row, see `mining`."""
  del margin
  found = []
  if positives:
    found.append(min(positives, key=lambda p: (row[p], p)))
  if negatives:
    found.append(min(negatives, key=lambda n: (-row[n], n)))
  return found


def mine(
  similarities: np.ndarray,
  relations: np.ndarray,
  choose: Callable,
  margin: float,
) -> np.ndarray:
  """Relations of the columns that `choose` finds in each row."""
  mined = np.zeros_like(relations)
  rows = zip(similarities, relations, strict=True)
  for i, (row, relation) in enumerate(rows):
    positives = [j for j, r in enumerate(relation) if r > 0]
    negatives = [j for j, r in enumerate(relation) if r < 0]
    for j in choose(row, positives, negatives, margin):
      mined[i, j] = relation[j]
  return mined
