# SPDX-License-Identifier: Apache-2.0
"""Training pairs: which scans may be the positive of which image.

Everything follows from the frame table alone. Distances are horizontal (the
height of odometry drifts by metres between two visits of one place), and
frames of different towns are never near each other.
"""

from collections.abc import Iterator
import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from input_pipeline import schema

# The widest difference of heading between two readings that may be a training
# pair: a camera that looks elsewhere sees another place.
MAX_HEADING = np.pi / 6
_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Lists:
  """Ragged lists of rows: list i is `rows[start[i] : start[i + 1]]`.

  Attributes:
    start: [A + 1] int64.
    rows: [K] int64.
  """

  start: np.ndarray
  rows: np.ndarray

  def __getitem__(self, index: int) -> np.ndarray:
    return self.rows[self.start[index] : self.start[index + 1]]

  @property
  def length(self) -> np.ndarray:
    """[A] int64, how many rows each list holds."""
    return np.diff(self.start)


class Pairs(NamedTuple):
  """For each image the scans that may be its positive in training.

  Attributes:
    anchors: [A] int64 rows with an image and at least one candidate.
    own: per anchor, candidate rows of its own drive (itself among them when
      the frame has a scan).
    other: per anchor, candidate rows of other drives of its town.
  """

  anchors: np.ndarray
  own: Lists
  other: Lists


class Order:
  """Which anchor comes when in training: epochs of shuffled runs, by index.

  An epoch takes each anchor once, but for those that do not fill a last batch.
  Runs of anchors of one town stay together; their order, and which anchors
  meet in a run, are drawn anew in every epoch.
  """

  # No training run is longer, and the sum of indices stays an exact integer.
  ENDLESS = 1 << 40

  def __init__(
    self,
    towns: np.ndarray,
    run: int,
    batch_size: int,
    seed: int,
    num_epochs: int | None = None,
  ):
    """Shuffles nothing yet.

    Args:
      towns: [A] town of each anchor.
      run: anchors of one town that follow each other.
      batch_size: an epoch is a multiple of it.
      seed: of all epochs.
      num_epochs: None for no end.
    """
    self._members = [np.flatnonzero(towns == t) for t in np.unique(towns)]
    self._run, self._seed = run, seed
    self._per_epoch = len(towns) // batch_size * batch_size
    self._length = num_epochs * self._per_epoch if num_epochs else self.ENDLESS
    self._epoch = functools.lru_cache(maxsize=4)(self._shuffle)

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> int:
    epoch, position = divmod(int(index), self._per_epoch)
    return int(self._epoch(epoch)[position])

  def _shuffle(self, epoch: int) -> np.ndarray:
    """The anchors of an epoch in order."""
    rng = np.random.default_rng([self._seed, epoch])
    runs = []
    for members in self._members:
      shuffled = rng.permutation(members)
      cuts = range(self._run, len(shuffled), self._run)
      runs.extend(np.split(shuffled, cuts))
    order = [runs[i] for i in rng.permutation(len(runs))]
    return np.concatenate(order)[: self._per_epoch]


def heading_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Absolute difference of two headings, radians in [0, pi]."""
  return np.abs((a - b + np.pi) % (2 * np.pi) - np.pi)


def unique_in_order(values: np.ndarray) -> list[str]:
  """The distinct values in the order of their first appearance."""
  return [str(value) for value in dict.fromkeys(values.tolist())]


def _near(
  frames: schema.FrameTable, images: np.ndarray, scans: np.ndarray, offset
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (image, its near scans) with like heading, block by block."""
  position, heading = frames.position[:, :2], frames.heading
  for start in range(0, len(images), _BLOCK):
    block = images[start : start + _BLOCK]
    step = position[block, None] - position[None, scans]
    turn = heading_difference(heading[block, None], heading[None, scans])
    near = (np.hypot(step[..., 0], step[..., 1]) <= offset) & (
      turn < MAX_HEADING
    )
    for row, hits in zip(block, near, strict=True):
      yield row, scans[hits]


def _lists(parts: list[np.ndarray]) -> Lists:
  lengths = [len(part) for part in parts]
  start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
  return Lists(start, np.concatenate([np.zeros(0, np.int64), *parts]))


def training_pairs(frames: schema.FrameTable, max_offset: float) -> Pairs:
  """Candidates of the same town, place and direction for every image.

  A candidate lies within `max_offset` metres of the anchor and its heading
  differs by less than `MAX_HEADING`. Images without any candidate are left
  out; whether that leaves enough is the caller's question.

  Args:
    frames: the table.
    max_offset: metres, >= 0.

  Returns:
    Anchors in the order of the table and their candidate rows, ascending.
  """
  anchors, own, other = [], [], []
  for town in unique_in_order(frames.town):
    here = frames.town == town
    images = np.flatnonzero(here & frames.has_image)
    scans = np.flatnonzero(here & frames.has_points)
    for row, near in _near(frames, images, scans, max_offset):
      if len(near):
        same = frames.drive[near] == frames.drive[row]
        anchors.append(row)
        own.append(near[same])
        other.append(near[~same])
  order = np.argsort(np.asarray(anchors, np.int64), kind='stable')
  return Pairs(
    np.asarray(anchors, np.int64)[order],
    _lists([own[i] for i in order]),
    _lists([other[i] for i in order]),
  )
