# SPDX-License-Identifier: Apache-2.0
"""Queries that lie in the database: hits that say nothing about a method.

A query has a duplicate in the database if a photo there is, in this order:

  bytes        the same file
  pixels       the same picture, perhaps resized or compressed again: 256 signs
               of differences between neighbouring cells of the grey picture, of
               which at most 6 differ
  descriptors  the same to the model: its first answer is nearer than 2 % of its
               length, and the last of the kept answers is not

Neighbours of a slow walk can be alike, too, and a black picture is a duplicate
of every other. Nothing is removed: duplicates are counted and named, and recall
without these queries is given beside the other.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import hashlib
import os
from typing import NamedTuple

import numpy as np

from i2ploc.evaluation import predictions as predictions_lib
from i2ploc.evaluation import questions as questions_lib
from i2ploc.evaluation import scores

SAME = {
  'bytes': 'the same file',
  'pixels': 'the same picture',
  'descriptors': 'the same descriptor',
}
MAX_BITS = 6
MAX_DISTANCE = 0.02
SUFFIX = '_without_duplicates'
Batch = Mapping[str, np.ndarray]
Descriptors = Callable[[np.ndarray], np.ndarray]  # rows [N] -> [N, V, D]
_SIDE = 16
GREY = np.array([0.299, 0.587, 0.114], np.float32)
_BLOCK = 512


class Duplicates(NamedTuple):
  """Queries with a duplicate, and the first one of each.

  Attributes:
    queries: int64 [D], places in the question's query rows, ascending.
    query_rows: int64 [D] rows of the frame table.
    map_rows: int64 [D] rows of the frame table.
    kinds: [D] str, keys of `SAME`.
  """

  queries: np.ndarray
  query_rows: np.ndarray
  map_rows: np.ndarray
  kinds: np.ndarray


def picture_bits(images: np.ndarray) -> np.ndarray:
  """Signs that hardly change when a picture is resized or compressed.

  Args:
    images: uint8 [B, ..., H, W, 3]; of several views or of a sequence the last
      counts.

  Returns:
    bool [B, 256], whether each of 16 x 16 cells is brighter than its right
    neighbour of 16 x 17.

  >>> ramp = np.arange(170, dtype=np.uint8)[::-1, None] * np.ones(3, np.uint8)
  >>> picture_bits(np.tile(ramp, (1, 160, 1, 1))).mean()
  np.float64(1.0)
  """
  images = np.asarray(images)
  while images.ndim > 4:
    images = images[:, -1]
  _, height, width, _ = images.shape
  # Two products with what each pixel counts in each cell: this is done for
  # every photo, and sums along the axes take ten times as long.
  down = _shares(height, _SIDE)
  across = np.kron(_shares(width, _SIDE + 1), GREY)
  flat = images.reshape(-1, height, width * 3).astype(np.float32)
  cells = down @ flat @ across.T
  # Less than a level is noise of compression.
  return (cells[..., :-1] - cells[..., 1:] > 1.0).reshape(len(images), -1)


def _shares(size: int, count: int) -> np.ndarray:
  """float32 [count, size]: rows whose product with values is their mean.

  Of nearly equal stretches, the borders of which lie inside values.
  """
  at = np.linspace(0, size, count + 1)
  pixels = np.arange(size)
  until = np.clip(at[:, None] - pixels, 0, 1)
  return (np.diff(until, axis=0) / (size / count)).astype(np.float32)


class Finder:
  """Finds duplicates among the photos of a frame table."""

  def __init__(
    self, num_rows: int, path: Callable[[int], str | os.PathLike] | None = None
  ):
    """Knows nothing yet.

    Args:
      num_rows: F, of the frame table.
      path: the file of a row; None where there are no files.
    """
    self._path = path
    self._bits = np.zeros((num_rows, _SIDE * _SIDE), bool)
    self._seen = np.zeros(num_rows, bool)

  def see(self, rows: np.ndarray, bits: np.ndarray) -> None:
    """Remembers what photos [B] look like, by `picture_bits`."""
    self._bits[rows], self._seen[rows] = bits, True

  def watch(self, side: str, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Passes batches on, and sees the images of a side in them.

    Args:
      side: of the images.
      batches: with `mask`, `<side>_index` and the images `<side>` or their
        `<side>_bits`; those without are passed on unseen.
    """
    for batch in batches:
      mask = np.asarray(batch['mask'], bool)
      bits = batch.get(f'{side}_bits')
      if bits is None and side in batch:
        bits = picture_bits(batch[side])
      if bits is not None:
        self.see(np.asarray(batch[f'{side}_index'])[mask], bits[mask])
      yield batch

  def find(
    self,
    question: questions_lib.Question,
    outcome: scores.Outcome,
    asking: Descriptors,
    answering: Descriptors,
  ) -> Duplicates:
    """The duplicates of the queries of a question.

    Args:
      question: of one side.
      outcome: its answers, with the ranked ones.
      asking: of the rows that ask.
      answering: of the rows that answer.
    """
    queries, places = question.query_rows, question.map_rows
    found = np.full(len(queries), -1)
    kinds = np.full(len(queries), '', '<U11')
    for kind, matches in (
      ('bytes', self._same_bytes(queries, places)),
      ('pixels', self._same_pixels(queries, places)),
      ('descriptors', _same_descriptors(question, outcome, asking, answering)),
    ):
      new = (found < 0) & (matches >= 0)
      found[new], kinds[new] = matches[new], kind
    has = np.flatnonzero(found >= 0)
    return Duplicates(has, queries[has], places[found[has]], kinds[has])

  def _same_bytes(self, queries, places) -> np.ndarray:
    """Places [Q] with the same file; -1 for none."""
    found = np.full(len(queries), -1)
    if self._path is None:
      return found
    rows = np.union1d(queries, places).tolist()
    sizes = {row: os.path.getsize(self._path(row)) for row in rows}
    counted: dict[int, int] = {}
    for size in sizes.values():
      counted[size] = counted.get(size, 0) + 1
    digests = {
      row: _digest(self._path(row))
      for row, size in sizes.items()
      if counted[size] > 1
    }
    at: dict[bytes, list[int]] = {}
    for place, row in enumerate(places.tolist()):
      if row in digests:
        at.setdefault(digests[row], []).append(place)
    for i, row in enumerate(queries.tolist()):
      same = at.get(digests.get(row, b''), ())
      found[i] = next((p for p in same if places[p] != row), -1)
    return found

  def _same_pixels(self, queries, places) -> np.ndarray:
    """Places [Q] with the same picture; -1 for none."""
    found = np.full(len(queries), -1)
    signs = 2.0 * self._bits[places].astype(np.float32) - 1
    known = self._seen[places]
    for start in range(0, len(queries), _BLOCK):
      rows = queries[start : start + _BLOCK]
      agree = (2.0 * self._bits[rows].astype(np.float32) - 1) @ signs.T
      agree[:, ~known] = -np.inf
      agree[rows[:, None] == places] = -np.inf
      agree[~self._seen[rows]] = -np.inf
      best = agree.argmax(1)
      # Each sign that differs costs two.
      near = agree.max(1) >= signs.shape[1] - 2 * MAX_BITS
      found[start : start + _BLOCK] = np.where(near, best, -1)
    return found


def _digest(path: str | os.PathLike) -> bytes:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').digest()


def _same_descriptors(question, outcome, asking, answering) -> np.ndarray:
  """Places [Q] whose descriptor is the query's; -1 for none."""
  ranked = outcome.ranked
  found = np.full(len(ranked), -1)
  if not ranked.shape[1]:
    return found
  for start in range(0, len(ranked), _BLOCK):
    some = slice(start, start + _BLOCK)
    asks = asking(question.query_rows[some])
    first = ranked[some, 0]
    count = (ranked[some] >= 0).sum(1)  # there may be fewer than are kept
    last = ranked[some][np.arange(len(first)), np.maximum(count - 1, 0)]
    near, far = (
      _apart(asks, answering(question.map_rows[np.maximum(answer, 0)]))
      for answer in (first, last)
    )
    same = (near < MAX_DISTANCE) & ((far >= MAX_DISTANCE) | (count == 1))
    found[some] = np.where(same & (count > 0), first, -1)
  return found


def _apart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """|x - y| / |x| [N] of the nearest views of [N, V, D] and [N, W, D]."""
  length = np.maximum(np.linalg.norm(x, axis=-1), 1e-30)
  apart = [
    np.linalg.norm(x - y[:, [view]], axis=-1) / length
    for view in range(y.shape[1])
  ]
  return np.min(apart, axis=(0, 2))


def pool(
  found: Sequence[Duplicates], queries: Sequence[predictions_lib.Predictions]
) -> Duplicates | None:
  """The duplicates of several questions as of one list of queries.

  Args:
    found: of each question; [] if nobody looked.
    queries: of each.
  """
  if not found:
    return None
  sizes = [len(record.query_rows) for record in queries]
  starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
  shifted = [
    one._replace(queries=one.queries + start)
    for one, start in zip(found, starts, strict=True)
  ]
  return Duplicates(*(np.concatenate(x) for x in zip(*shifted, strict=True)))


def without(
  question: questions_lib.Question,
  outcome: scores.Outcome,
  found: Duplicates,
) -> Iterator[tuple[str, float]]:
  """How many queries have duplicates, and recall without these queries.

  Yields:
    queries_with_duplicate, and recall@N_25m_without_duplicates where there are
    some and others.
  """
  yield 'queries_with_duplicate', float(len(found.queries))
  kept = np.setdiff1d(np.arange(len(outcome.ranks)), found.queries)
  if len(kept) == len(outcome.ranks) or not len(kept):
    return
  rest = scores.take(outcome, kept)
  for name, value in scores.rates(question, rest, intervals=False):
    if name.startswith('recall@') and not name.endswith('_ties_found'):
      yield name + SUFFIX, value


def text(found: Mapping[str, Duplicates], names: Sequence[str]) -> list[str]:
  """Lines that name the first duplicates of each question; [] without any."""
  lines = []
  for key, one in found.items():
    if not len(one.queries):
      continue
    shown = '; '.join(
      f'{names[q]} is {SAME[kind]} as {names[m]}'
      for q, m, kind in zip(
        one.query_rows[:3], one.map_rows[:3], one.kinds[:3].tolist(),
        strict=True,
      )
    )  # fmt: skip
    more = len(one.queries) - 3
    lines.append(
      f'{key}: {len(one.queries)} queries have a duplicate in the database:'
      f' {shown}{f"; and {more} more" if more > 0 else ""}.'
    )
  return lines
