# SPDX-License-Identifier: Apache-2.0
"""The stage that answers with the last images instead of the last one.

A robot knows the T images that its camera saw last and asks where it is now.
Each image is compared with the whole map, and the place is the end of the best
line of places, see `retrieval.sequences`: a place that no single image finds is
found by the way to it. Images that are not there yet (the first ones of a
drive) are left out.
"""

from collections.abc import Callable
import os
from typing import NamedTuple

import numpy as np

from i2ploc.localization import answer as answer_lib
from i2ploc.localization import retrieve
from i2ploc.retrieval import index as index_lib
from i2ploc.retrieval import sequences as sequences_lib

Answer = answer_lib.Answer
Describe = Callable[[answer_lib.Query], np.ndarray]


def make_stage(
  index: index_lib.Index,
  describe: Describe,
  sequence: sequences_lib.Sequence,
  *,
  k: int,
  direction: int = 1,
  folder: str | os.PathLike = '',
) -> answer_lib.Stage:
  """The stage `sequences`, after `retrieve`.

  Answers to a query without previous images pass unchanged. The stage keeps
  what it knows of the images that the next query may bring again, as the very
  same arrays.

  Args:
    index: the map; its rows are in the order of travel, see `map_runs`.
    describe: the descriptor [D], or [V, D] of several crops, of the image of a
      query.
    sequence: what is compared; always as a causal one. Queries hold up to
      `span(sequence)` images.
    k: answers per query, of the places around its rough position if it has one.
      Their similarity is the mean along the line, of
      cosines or with `contrast` of deviations; evidence adds `frames`, the
      images that were used, and `rank_alone`, the place's rank by the last
      image alone. They have no confidence.
    direction: 1 where the robot drives as the map was driven, -1 where against
      it, 0 where it may do both, which confuses more places. A camera that
      looks ahead sees other things on the way back, so that 0 is for maps with
      views of both headings.
    folder: of the map's data, see `retrieve.make_stage`.

  Raises:
    InputError: a sequence out of range.
  """
  sequence = sequence._replace(causal=True)
  sequences_lib.check_sequence(sequence)
  # Of the images one in `stride` is taken, so that a row is a stride.
  taken = sequence._replace(
    stride=1, speeds=tuple(sequence.stride * v for v in sequence.speeds)
  )
  runs, keys = map_runs(index), np.asarray(index.keys)
  recent: list[_Seen] = []

  def look(frame: answer_lib.Query) -> _Seen:
    for one in recent:
      if one.image is frame.image:
        return one
    descriptor = np.asarray(describe(frame), np.float32)
    similarities = index.similarities_to_all(descriptor)
    return _Seen(frame.image, descriptor, similarities.astype(np.float32))

  def sequences(query: answer_lib.Query, answers: list[Answer]) -> list[Answer]:
    if not query.previous or sequence.length == 1:
      return answers
    known = (*query.previous, query)
    first = max(len(known) - span(sequence), 0)
    frames = [
      known[i]._replace(previous=known[:i]) for i in range(first, len(known))
    ]
    used = [look(frame) for frame in frames[:: -sequence.stride]][::-1]
    images = [frame.image for frame in frames]
    recent[:] = used + [
      one
      for one in recent
      if any(one.image is image for image in images)
      and not any(one is other for other in used)
    ]
    similarities = np.stack([one.similarities for one in used])
    drive = np.zeros(len(used), np.int64)
    scores = sequences_lib.match(similarities, drive, runs, taken, direction)
    scores = scores[-1]
    if query.prior.position is not None:
      near = index.around(query.prior.position, query.prior.radius)[0]
      scores = np.where(near, scores, -np.inf)
    best = np.argsort(-scores, kind='stable')[:k]
    best = best[np.isfinite(scores[best])]
    if not len(best):
      return []
    last = used[-1]
    asked = np.atleast_2d(last.descriptor)
    rows = []
    for key in keys[_first_rows(index)[best]]:
      views = np.flatnonzero(keys == key)
      seen = np.asarray(index.descriptors)[views] @ asked.T
      rows.append(views[np.argmax(seen.max(-1))])
    found = retrieve.answers_from_rows(
      index,
      np.array(rows),
      scores[best],
      [None] * len(best),
      'that of a sequence is not known',
    )
    # How many places are more like the last image alone.
    before = (last.similarities > last.similarities[best, None]).sum(1)
    return [
      retrieve.with_image(_with(one, len(used), int(more) + 1), folder)
      for one, more in zip(found, before, strict=True)
    ]

  return sequences


class _Seen(NamedTuple):
  """An image with its descriptors and its similarity to every place."""

  image: np.ndarray
  descriptor: np.ndarray
  similarities: np.ndarray


def span(sequence: sequences_lib.Sequence) -> int:
  """Images that a query needs so that one in `stride` makes a sequence.

  >>> span(sequences_lib.Sequence(11, stride=2))
  21
  """
  return (sequence.length - 1) * sequence.stride + 1


def map_runs(index: index_lib.Index) -> np.ndarray:
  """Runs [K] of a map's places, in the order in which its rows name them.

  Towns are drives; see `sequences.consecutive_runs` for where they are cut.
  """
  rows = _first_rows(index)
  return sequences_lib.consecutive_runs(
    np.asarray(index.towns)[rows],
    np.asarray(index.poses)[rows, :2, 3],
    np.asarray(index.frames)[rows],
  )


def _first_rows(index: index_lib.Index) -> np.ndarray:
  """The first row of each place, ascending."""
  return np.sort(np.unique(np.asarray(index.keys), return_index=True)[1])


def _with(answer: Answer, frames: int, rank_alone: int) -> Answer:
  evidence = {
    **answer.evidence,
    'stage': 'sequences',
    'frames': frames,
    'rank_alone': rank_alone,
  }
  return answer._replace(evidence=evidence)
