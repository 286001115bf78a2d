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
  direction: int = 0,
  folder: str | os.PathLike = '',
) -> answer_lib.Stage:
  """The stage `sequences`, after `retrieve`.

  Answers to a query without previous images pass unchanged. The stage keeps
  what it knows of the images that the next query may bring again, as the very
  same arrays.

  Args:
    index: the map; its rows are in the order of travel, see `map_runs`.
    describe: the descriptor [D] of the image of a query.
    sequence: what is compared; always as a causal one. Queries hold up to
      `span(sequence)` images.
    k: answers per query.
    direction: 1 where the robot drives as the map was driven, -1 where against
      it, 0 where it may do both.
    folder: of the map's data, see `retrieve.make_stage`.

  Raises:
    InputError: a sequence out of range.
  """
  sequence = sequence._replace(causal=True)
  sequences_lib.check_sequence(sequence)
  runs = map_runs(index)
  known: list[tuple[np.ndarray, np.ndarray]] = []

  def seen(frame: answer_lib.Query) -> np.ndarray:
    for image, similarities in known:
      if image is frame.image:
        return similarities
    return index.similarities_to(
      describe(frame), np.arange(index.num_places)
    ).astype(np.float32)

  def sequences(query: answer_lib.Query, answers: list[Answer]):
    if not query.previous or sequence.length == 1:
      return answers
    frames = (*query.previous, query)[-span(sequence) :]
    # Only one image in `stride` is needed, counted from the last.
    frames = frames[:: -sequence.stride][::-1]
    rows = [seen(frame) for frame in frames]
    known[:] = [
      (frame.image, row) for frame, row in zip(frames, rows, strict=True)
    ]
    similarities = np.stack(rows)
    scores = sequences_lib.match(
      similarities,
      np.zeros(len(rows), np.int64),
      runs,
      sequence._replace(stride=1, speeds=_scaled(sequence)),
      direction,
    )[-1]
    best = np.argsort(-scores, kind='stable')[: min(k, index.num_places)]
    found = retrieve.answers_from_rows(
      index,
      _best_views(index, describe, query, best),
      scores[best],
      [None] * len(best),
    )
    # How many places are more like the last image alone.
    before = (similarities[-1] > similarities[-1][best, None]).sum(1)
    return [
      retrieve.with_image(
        one._replace(
          evidence={
            **one.evidence,
            'stage': 'sequences',
            'frames': len(rows),
            'rank_alone': int(more) + 1,
          }
        ),
        folder,
      )
      for one, more in zip(found, before, strict=True)
    ]

  return sequences
