# SPDX-License-Identifier: Apache-2.0
"""Places compared by short sequences instead of by single readings."""

import numpy as np

from i2ploc.errors import InputError


def consecutive_runs(drives: np.ndarray, positions: np.ndarray) -> np.ndarray:
  """Labels the stretches of rows that follow each other along a street.

  A run ends where the drive changes or where a step is longer than twice the
  median step of its drive (a frame is missing, or the drive jumps to another
  street); steps below one metre never end a run. A step from or to an unknown
  position does.

  Args:
    drives: [F] labels of any kind.
    positions: [F, 2 or more], metres, in the order of travel; the first two
      coordinates span the ground, NaN where unknown.

  Returns:
    int64 [F], 0 for the first run, not decreasing.
  """
  drives = np.asarray(drives)
  positions = np.asarray(positions, np.float64)
  if not len(drives):
    return np.zeros(0, np.int64)
  steps = np.linalg.norm(np.diff(positions[:, :2], axis=0), axis=1)
  same = drives[1:] == drives[:-1]
  limit = np.full(len(steps), 1.0)
  for drive in np.unique(drives):
    inside = same & (drives[1:] == drive) & np.isfinite(steps)
    if inside.any():
      limit[inside] = max(1.0, 2 * np.median(steps[inside]))
  return np.concatenate([[0], np.cumsum(~same | ~(steps <= limit))])


def sequence_similarity(
  similarities: np.ndarray,
  query_runs: np.ndarray,
  map_runs: np.ndarray,
  length: int = 3,
  direction: int = 1,
  stride: int = 1,
) -> np.ndarray:
  """Mean similarity along the diagonal of consecutive frames.

  `out[q, m] = mean_d similarities[q + d, m + direction * d]` over `length`
  offsets d, multiples of `stride` around 0, without the terms where q + d or
  m + direction * d leaves its run. Heading and spacing are assumed known:
  consecutive queries are as far apart as consecutive map readings.

  Args:
    similarities: [Q, M].
    query_runs: [Q], equal for neighbouring rows that follow each other.
    map_runs: [M].
    length: odd number of frames; 1 returns the similarities.
    direction: 1 if the queries drive as the map was driven, -1 if opposite.
    stride: rows between two frames of a sequence: more than 1 where frames lie
      so near each other that they say the same.

  Returns:
    float32 [Q, M].

  Raises:
    InputError: shapes that disagree, an even length, an unknown direction,
      or a stride below 1.

  Reference:
    Milford and Wyeth, SeqSLAM, ICRA 2012 (without contrast enhancement and
    with one velocity).
  """
  similarities = np.asarray(similarities, np.float32)
  shape = (len(query_runs), len(map_runs))
  if similarities.shape != shape:
    raise InputError(
      f'similarities have shape {similarities.shape}, the runs {shape}.'
    )
  if length < 1 or length % 2 == 0:
    raise InputError(f'length={length} has no middle frame; use 1, 3, 5...')
  if stride < 1:
    raise InputError(f'stride={stride}; expected at least 1.')
  if direction not in (1, -1):
    raise InputError(f'direction={direction}; expected 1 or -1.')
  total = np.zeros(shape, np.float32)
  count = np.zeros(shape, np.float32)
  for step in range(-(length // 2), length // 2 + 1):
    offset = step * stride
    query = _neighbor(query_runs, offset)
    place = _neighbor(map_runs, direction * offset)
    valid = (query >= 0)[:, None] & (place >= 0)
    total += np.where(valid, similarities[query[:, None], place], 0)
    count += valid
  return total / count


def _neighbor(runs: np.ndarray, offset: int) -> np.ndarray:
  """[F] row + offset, or -1 where that row belongs to another run."""
  runs = np.asarray(runs)
  # A label that comes back later is another stretch, hence the counting.
  stretch = np.concatenate([[0], np.cumsum(runs[1:] != runs[:-1])])[: len(runs)]
  row = np.arange(len(runs)) + offset
  inside = (row >= 0) & (row < len(runs))
  clipped = np.clip(row, 0, max(len(runs) - 1, 0))
  return np.where(inside & (stretch[clipped] == stretch), row, -1)
