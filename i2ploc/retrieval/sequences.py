# SPDX-License-Identifier: Apache-2.0
"""Places compared by sequences of readings instead of by single ones.

Two ways to score a line through the matrix of similarities, on the same runs
(stretches of readings that follow each other; a line never leaves its run):

- Plain sums: the mean along the line. A black frame is equally like most
  places, so that it moves no ranking there; but it is more like other black
  frames than any frame is like its own place, and pulls lines towards them.
- SeqSLAM: first the contrast of every query's similarities against those of
  neighbouring references, then the best mean over lines of several speeds. No
  single frame of a line can say more than sqrt(window - 1) deviations, however
  alike two black frames are; and a query that is equally like a reference and
  all its neighbours says nothing about them.

Reference:
  Milford and Wyeth, SeqSLAM: Visual Route-Based Navigation for Sunny Summer
  Days and Stormy Winter Nights, ICRA 2012.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError

# A window's deviation is not taken below this share of the deviation over all
# references: where a camera stood, all that is left of it is noise.
CONTRAST_FLOOR = 0.1
# Fewer neighbours than this have no deviation to speak of.
MIN_WINDOW = 3
# Rows whose contrast is enhanced at once: sums of them are in float64.
_ROWS = 256


class Sequence(NamedTuple):
  """What is compared instead of single readings.

  Attributes:
    length: frames, at least 1. The middle one asks and answers; an even length
      has one frame more before it than after it.
    speeds: map rows per query row; a line of each is tried.
    contrast: references in the window of a reference's contrast, itself
      included (an even number counts as the next odd one); 0 for plain sums.
    stride: rows between two frames of a sequence: more than 1 where frames lie
      so near each other that they say the same.
    causal: the last frame asks and answers, as for a robot that knows what it
      has seen and not what comes.
  """

  length: int = 3
  speeds: tuple[float, ...] = (1.0,)
  contrast: int = 0
  stride: int = 1
  causal: bool = False

  @property
  def offsets(self) -> np.ndarray:
    """int64 [length], rows from the frame that asks to each frame."""
    first = self.length - 1 if self.causal else self.length // 2
    return self.stride * (np.arange(self.length) - first)

  @property
  def halo(self) -> int:
    """Query rows before or after a row that its sequence looks at."""
    return int(np.abs(self.offsets).max())


THREE_FRAMES = Sequence(3)


def check_sequence(sequence: Sequence) -> None:
  """Raises InputError for a length, speed, window or stride out of range."""
  if sequence.length < 1:
    raise InputError(f'length={sequence.length} frames; expected at least 1.')
  if sequence.stride < 1:
    raise InputError(f'stride={sequence.stride}; expected at least 1.')
  speeds = sequence.speeds
  if not len(speeds) or not all(0 < v < np.inf for v in speeds):
    raise InputError(f'speeds={speeds}; expected positive numbers, as (1.0,).')
  if sequence.contrast < 0 or 0 < sequence.contrast < MIN_WINDOW:
    raise InputError(
      f'contrast={sequence.contrast}: expected a window of {MIN_WINDOW} or more'
      ' references, or 0 for none.'
    )


def consecutive_runs(
  drives: np.ndarray,
  positions: np.ndarray,
  frames: np.ndarray | None = None,
) -> np.ndarray:
  """Labels the stretches of rows that follow each other along a street.

  A run ends where the drive changes or where a step is longer than twice the
  median step of its drive (a frame is missing, or the drive jumps to another
  street); steps below one metre never end a run. A step from or to an unknown
  position does.

  A drive that knows no step in metres, such as photos in order without
  positions, is judged by its frame numbers in the same way, and a number that
  does not grow ends a run; without numbers its rows follow nothing.

  >>> unknown = np.full((5, 2), np.nan)
  >>> consecutive_runs(np.zeros(5), unknown, np.array([1, 2, 3, 7, 8]))
  array([0, 0, 0, 1, 1])

  Args:
    drives: [F] labels of any kind.
    positions: [F, 2 or more], metres, in the order of travel; the first two
      coordinates span the ground, NaN where unknown.
    frames: int [F], numbers of the readings; None if there are none.

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
    here = same & (drives[1:] == drive)
    inside = here & np.isfinite(steps)
    if not inside.any() and frames is not None:
      numbers = np.diff(np.asarray(frames, np.float64))
      steps[here] = np.where(numbers > 0, numbers, np.nan)[here]
      inside = here & np.isfinite(steps)
    if inside.any():
      limit[inside] = max(1.0, 2 * np.median(steps[inside]))
  return np.concatenate([[0], np.cumsum(~same | ~(steps <= limit))])


def match(
  similarities: np.ndarray,
  query_runs: np.ndarray,
  map_runs: np.ndarray,
  sequence: Sequence,
  direction: int = 1,
) -> np.ndarray:
  """Similarities of sequences: contrast, then the best line.

  Args:
    similarities: [Q, M] of single readings, finite.
    query_runs: [Q], equal for neighbouring rows that follow each other.
    map_runs: [M].
    sequence: what is compared; see `contrast` and `sequence_similarity`.
    direction: 1 if the queries drive as the map was driven, -1 if opposite, 0
      if unknown: the better of both.

  Returns:
    float32 [Q, M]; of single readings, the similarities.

  Raises:
    InputError: shapes that disagree, or what `check_sequence` refuses.
  """
  check_sequence(sequence)
  if sequence.contrast:
    similarities = contrast(similarities, map_runs, sequence.contrast)
  return sequence_similarity(
    similarities,
    query_runs,
    map_runs,
    sequence.length,
    direction,
    sequence.stride,
    sequence.speeds,
    causal=sequence.causal,
  )


def contrast(
  similarities: np.ndarray, map_runs: np.ndarray, window: int
) -> np.ndarray:
  """Similarities in deviations from those of neighbouring references.

  `out[q, m] = (s[q, m] - mean) / deviation` over the `window` references
  around m in its run. The window is cut at the ends of the run; a reference
  with fewer than `MIN_WINDOW` in it is compared with all references instead.
  See `CONTRAST_FLOOR` for where all are alike.

  Args:
    similarities: [Q, M], finite.
    map_runs: [M], see `match`.
    window: references, m included; an even number counts as the next odd one.

  Returns:
    float32 [Q, M]; 0 where nothing differs.

  Reference:
    Milford and Wyeth, SeqSLAM, ICRA 2012, section III-B; the floor and the
    treatment of gaps are ours.
  """
  similarities = np.asarray(similarities, np.float32)
  _check_shape(similarities, similarities, map_runs)
  count = len(map_runs)
  stretch = _stretches(map_runs)
  row, half = np.arange(count), window // 2
  first = np.maximum(np.searchsorted(stretch, stretch), row - half)
  end = np.searchsorted(stretch, stretch, side='right')
  end = np.minimum(end, row + half + 1)
  alone = end - first < MIN_WINDOW
  first, end = np.where(alone, 0, first), np.where(alone, count, end)
  size = end - first
  out = np.empty(similarities.shape, np.float32)
  for top in range(0, len(similarities), _ROWS):
    block = similarities[top : top + _ROWS].astype(np.float64)
    # Sums of deviations from the row's own mean, not of the numbers.
    block -= block.mean(1, keepdims=True)
    mean = _window_sums(block, first, end) / size
    squares = np.square(block)
    spread = _window_sums(squares, first, end) / size - np.square(mean)
    floor = CONTRAST_FLOOR**2 * squares.mean(1, keepdims=True)
    deviation = np.sqrt(np.maximum(spread, floor))
    block -= mean
    out[top : top + _ROWS] = np.divide(
      block, deviation, out=np.zeros_like(block), where=deviation > 0
    )
  return out


def _window_sums(
  values: np.ndarray, first: np.ndarray, end: np.ndarray
) -> np.ndarray:
  """float64 [Q, M], sums over columns first .. end - 1."""
  sums = np.zeros((len(values), values.shape[1] + 1))
  np.cumsum(values, axis=1, out=sums[:, 1:])
  return sums[:, end] - sums[:, first]


def sequence_similarity(
  similarities: np.ndarray,
  query_runs: np.ndarray,
  map_runs: np.ndarray,
  length: int = 3,
  direction: int = 1,
  stride: int = 1,
  speeds: tuple[float, ...] = (1.0,),
  *,
  causal: bool = False,
) -> np.ndarray:
  """Mean similarity along the best line of consecutive frames.

  `out[q, m] = max_v mean_d similarities[q + d, m + direction * round(v d)]`
  over `length` offsets d, multiples of `stride` around 0, and speeds v, without
  the terms where q + d or m + direction * round(v d) leaves its run.

  Args:
    similarities: [Q, M], finite.
    query_runs: [Q], equal for neighbouring rows that follow each other.
    map_runs: [M].
    length: frames; 1 returns the similarities. See `Sequence` for even ones.
    direction: see `match`.
    stride: see `Sequence`.
    speeds: see `Sequence`.
    causal: see `Sequence`.

  Returns:
    float32 [Q, M].

  Raises:
    InputError: shapes that disagree, an unknown direction, or a length, speed
      or stride out of range.

  Reference:
    Milford and Wyeth, SeqSLAM, ICRA 2012, section III-C: the best of a few
    velocities. Lines there end at the query, here they lie around it unless
    they are causal.
  """
  similarities = np.asarray(similarities, np.float32)
  _check_shape(similarities, query_runs, map_runs)
  sequence = Sequence(length, tuple(speeds), 0, stride, causal)
  check_sequence(sequence)
  if direction not in (1, 0, -1):
    raise InputError(f'direction={direction}; expected 1, -1, or 0 for both.')
  best = None
  for way in (direction,) if direction else (1, -1):
    # Speeds that round to the same line are one.
    lines = {
      tuple(np.rint(way * speed * sequence.offsets).astype(int).tolist())
      for speed in speeds
    }
    for line in sorted(lines):
      found = _mean_along(
        similarities, query_runs, map_runs, sequence.offsets, line
      )
      best = found if best is None else np.maximum(best, found, out=best)
  assert best is not None
  return best


def _mean_along(similarities, query_runs, map_runs, offsets, line):
  """Mean over the terms (q + offset, m + shift) that stay in their runs."""
  asks = np.stack([_neighbor(query_runs, d) >= 0 for d in offsets.tolist()])
  answers = np.stack([_neighbor(map_runs, shift) >= 0 for shift in line])
  total = np.zeros(similarities.shape, np.float32)
  for offset, shift, rows, columns in zip(
    offsets.tolist(), line, asks, answers, strict=True
  ):
    if not columns.any():
      continue
    left, right = max(0, -shift), len(columns) - max(0, shift)
    used = columns[left:right]
    for top, bottom in _segments(rows):
      term = similarities[
        top + offset : bottom + offset, left + shift : right + shift
      ]
      total[top:bottom, left:right] += (
        term if used.all() else np.where(used, term, np.float32(0))
      )
  # Both sides have the offset 0, hence no count is 0.
  total /= asks.T.astype(np.float32) @ answers.astype(np.float32)
  return total


def any_along(
  right: np.ndarray,
  query_runs: np.ndarray,
  map_runs: np.ndarray,
  sequence: Sequence,
  direction: int = 1,
) -> np.ndarray:
  """Whether any frame of a sequence is right for any frame of another.

  The protocol of sequence descriptors: a retrieved sequence is right if any
  of its frames is a right answer to any frame of the query's. The frames of a
  retrieved one are those of a line of speed 1.

  Args:
    right: bool [Q, M], of single readings.
    query_runs: [Q], see `match`.
    map_runs: [M].
    sequence: what is compared.
    direction: see `match`; 0 takes both directions.

  Returns:
    bool [Q, M].

  Reference:
    Mereu et al., Learning Sequential Descriptors for Sequence-Based Visual
    Place Recognition, RA-L 2022.
  """
  ways = (direction,) if direction else (1, -1)
  shifts = {way * int(d) for way in ways for d in sequence.offsets}
  columns = np.zeros_like(right)
  for shift in sorted(shifts):
    place = _neighbor(map_runs, shift)
    columns |= right[:, place] & (place >= 0)
  out = np.zeros_like(right)
  for offset in sequence.offsets.tolist():
    query = _neighbor(query_runs, offset)
    out |= columns[query] & (query >= 0)[:, None]
  return out


def _check_shape(similarities, query_runs, map_runs) -> None:
  shape = (len(query_runs), len(map_runs))
  if similarities.shape != shape:
    raise InputError(
      f'similarities have shape {similarities.shape}, the runs {shape}.'
    )


def _stretches(runs: np.ndarray) -> np.ndarray:
  """int64 [F], not decreasing: a label that comes back is another stretch."""
  runs = np.asarray(runs)
  return np.concatenate([[0], np.cumsum(runs[1:] != runs[:-1])])[: len(runs)]


def _neighbor(runs: np.ndarray, offset: int) -> np.ndarray:
  """[F] row + offset, or -1 where that row belongs to another run."""
  stretch = _stretches(runs)
  row = np.arange(len(stretch)) + offset
  inside = (row >= 0) & (row < len(stretch))
  clipped = np.clip(row, 0, max(len(stretch) - 1, 0))
  return np.where(inside & (stretch[clipped] == stretch), row, -1)


def _segments(rows: np.ndarray) -> Iterator[tuple[int, int]]:
  """(first, end) of each stretch of true rows."""
  edges = np.diff(np.concatenate([[0], rows.astype(np.int8), [0]]))
  yield from zip(
    np.flatnonzero(edges > 0).tolist(),
    np.flatnonzero(edges < 0).tolist(),
    strict=True,
  )
