# SPDX-License-Identifier: Apache-2.0
"""Retrieval measured: a model on the questions of a split, or files of drives.

A model embeds each reading once per side, for every question and both
directions. A town is a database of its own, as in the papers (retrieval inside
a sequence); pooled numbers are over the queries of all towns:

  test/cross/queries                          over all towns
  test/cross/chance@1_10m
  test/cross/image_to_points/recall@1_10m
  test/cross/points_to_image/queries          counts of the other direction
  test/cross/points_to_image/recall@1_10m
  test/cross/town_007/image_to_points/recall@1_10m        and the like
  test/photos/image_to_image/recall@1_25m     of one side there is one direction

Drives from files are scored on published protocols, with the direction in every
name; the drive 'all' pools the queries of every drive, each against its own:

  lip_loc/08/image_to_points/recall@1_20m
  lip_loc/all/image_to_points/queries

What is counted and how it is named: `scores`.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from i2ploc.evaluation import descriptor_files
from i2ploc.evaluation import duplicates as duplicates_lib
from i2ploc.evaluation import metrics
from i2ploc.evaluation import predictions as predictions_lib
from i2ploc.evaluation import protocols as protocols_lib
from i2ploc.evaluation import questions as questions_lib
from i2ploc.evaluation import scores
from i2ploc.retrieval import sequences as sequences_lib

ALL = 'all'

Variables = Any  # a pytree of parameters
Batch = Mapping[str, np.ndarray]
Embed = Callable[[Variables, Batch], np.ndarray]
Batches = Callable[[np.ndarray], Iterable[Batch]]
Asking = tuple[Embed, Batches]
Embedded = Mapping[str, tuple[np.ndarray, np.ndarray]]
Confident = Callable[[Variables, Embedded], scores.Confidence | None]


def take(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """Rows of an array; a view of it where they follow each other.

  Descriptors of ten thousand photos take half a gigabyte.

  >>> values = np.arange(5)
  >>> take(values, np.array([1, 2, 3])).base is values
  True
  """
  if len(rows) and (rows == np.arange(rows[0], rows[0] + len(rows))).all():
    return values[rows[0] : rows[0] + len(rows)]
  return values[rows]


class _Embedded(NamedTuple):
  """The embedded readings of one side; row r is `descriptors[slot[r]]`."""

  name: str
  descriptors: np.ndarray  # [N, V, D]
  slot: np.ndarray  # [F], -1 where not embedded

  def of(self, rows: np.ndarray) -> np.ndarray:
    """Descriptors [N, V, D] of rows that are embedded."""
    return take(self.descriptors, self.slot[rows])

  def listed(self) -> tuple[np.ndarray, np.ndarray]:
    """Rows [N], ascending, and their descriptors [N, V, D]."""
    rows = np.flatnonzero(self.slot >= 0)
    return rows, self.of(rows)

  def take(
    self,
    rows: np.ndarray,
    track: questions_lib.Track,
    views: Sequence[int] | None,
  ) -> scores.Side:
    missing = rows[self.slot[rows] < 0]
    if len(missing):
      raise InputError(
        f'The {self.name} of {len(missing)} rows were in no batch, first rows'
        f' {missing[:5].tolist()}; read all the rows that are asked for.'
      )
    taken = self.of(rows)
    # A side with one view (images) has nothing to choose from.
    if views is not None and taken.shape[1] > 1:
      taken = taken[:, views]
    return scores.Side(taken, track.take(rows))


class RetrievalEvaluator:
  """Recall of a model on the questions of one split.

  Attributes:
    predictions: after `run`, the ranked answers by
      '<split>/<protocol>/<direction>'.
    embedded: after `run`, (rows [N], descriptors [N, V, D]) by side.
    asked: the same of sides whose queries are embedded in another way.
    duplicates: after `run`, of the queries, as `predictions`; {} if nobody
      looked for them.
  """

  def __init__(
    self,
    split: str,
    *,
    embed: Mapping[str, Embed],
    batches: Mapping[str, Batches],
    frames: questions_lib.Frames,
    questions: Sequence[questions_lib.Question],
    sequence: sequences_lib.Sequence = sequences_lib.THREE_FRAMES,
    any_frame: bool = False,
    views: Mapping[str, Sequence[int]] | None = None,
    confidence: Confident | None = None,
    asking: Mapping[str, Asking] | None = None,
    duplicates: duplicates_lib.Finder | None = None,
  ):
    """Keeps what a run needs; reads nothing yet.

    Args:
      split: first part of every name.
      embed: by side, `(variables, batch)` -> [B, D], or [B, V, D] for V views
        of one reading of which the most similar counts; jitted by the caller.
      batches: by side, `rows -> batches` of one shape with `<side>_index` [B]
        (row of the frame table) and `mask` [B]; called at each run.
      frames: the frame table.
      questions: one per name and town; those of one name share their radii.
        Between two sides, both ask.
      sequence: what is scored beside single readings where rows are in the
        order of travel.
      any_frame: see `scores.Runs`.
      views: by name of a question, which of the V views of a reading count in
        it; all where it is not named. A known heading is a choice of view.
      confidence: of the answers in `predictions`: what makes it of the
        variables and of `embedded`; None for none.
      asking: by side, how its queries are embedded; those of other sides are
        embedded as the map is.
      duplicates: finds queries of one side that lie in the database; None
        where nobody looks for them. It sees the images of batches, `<side>`, or
        their `<side>_bits`, see `duplicates.picture_bits`.

    Raises:
      InputError: if there is no question, one comes twice, or one has no
        queries or no map.
    """
    if not questions:
      raise InputError(f'{split}: no question to evaluate.')
    seen = set()
    for question in questions:
      if (question.name, question.town) in seen:
        raise InputError(
          f'{split}/{question.name}/{question.town} comes twice; pool its'
          ' queries into one question.'
        )
      seen.add((question.name, question.town))
      sizes = len(question.query_rows), len(question.map_rows)
      if 0 in sizes:
        raise InputError(
          f'{split}/{question.name}/{question.town} has {sizes[0]} queries and'
          f' {sizes[1]} map readings; it needs both.'
        )
    self._split = split
    self._embed, self._batches = embed, batches
    self._frames, self._questions = frames, questions
    self._track = questions_lib.track_from_frames(frames)
    sequences_lib.check_sequence(sequence)
    self._sequence, self._any_frame = sequence, any_frame
    self._views = dict(views or {})
    self._confident = confidence
    self._asking = dict(asking or {})
    self._confidence: scores.Confidence | None = None
    self.predictions: dict[str, predictions_lib.Predictions] = {}
    self.embedded: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    self.asked: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    self._finder = duplicates
    self.duplicates: dict[str, duplicates_lib.Duplicates] = {}

  def run(self, variables: Variables) -> Iterator[tuple[str, float]]:
    """Embeds every reading once and yields (name, value).

    Raises:
      InputError: descriptors that are not finite, or rows that no batch held.
    """
    rows = questions_lib.rows_to_embed(self._frames, self._questions)
    rows |= {side: self._rows(side, 'map_rows') for side in self._asking}
    sides = {
      side: self._embed_rows(
        side, some, self._embed[side], self._batches[side], variables
      )
      for side, some in rows.items()
    }
    asking = {
      side: self._embed_rows(
        side, self._rows(side, 'query_rows'), *how, variables
      )
      for side, how in self._asking.items()
    }
    self.embedded = {name: side.listed() for name, side in sides.items()}
    self.asked = {name: side.listed() for name, side in asking.items()}
    if self._confident is not None:
      self._confidence = self._confident(variables, self.embedded)
    for name in dict.fromkeys(question.name for question in self._questions):
      ways = [
        questions_lib.both_ways(question)
        for question in self._questions
        if question.name == name
      ]
      for i, asked in enumerate(zip(*ways, strict=True)):
        yield from self._direction(
          asked, {**sides, **asking}, sides, main=i == 0
        )

  def _rows(self, side: str, which: str) -> np.ndarray:
    """Rows that ask (`query_rows`) or answer (`map_rows`) with a side."""
    rows = [
      getattr(question, which)
      for question in self._questions
      if question.query_side == question.map_side == side
    ]
    return np.unique(np.concatenate(rows))

  def _embed_rows(self, side, rows, embed, batches, variables) -> _Embedded:
    seen = batches(rows)
    if self._finder is not None:
      seen = self._finder.watch(side, seen)
    return _embed_all(side, embed, variables, seen, len(self._frames.drive))

  def _direction(
    self,
    asked: Sequence[questions_lib.Question],
    asking: Mapping[str, _Embedded],
    answering: Mapping[str, _Embedded],
    *,
    main: bool,
  ) -> Iterator[tuple[str, float]]:
    """The numbers of a name in one direction, of all towns and of each."""
    outcomes: dict[str, scores.Outcome] = {}
    records, found = [], []
    for question in asked:
      question = questions_lib.with_readings(question, self._frames)
      # A drive without scans has images to localize, but no points to ask with.
      if question is None:
        continue
      outcome = self._ask(question, asking, answering)
      outcomes[question.town] = outcome
      records.append(self._record(question, outcome))
      if self._finder is not None:
        found.append(
          self._finder.find(
            question,
            outcome,
            asking[question.query_side].of,
            answering[question.map_side].of,
          )
        )
    if not outcomes:
      return
    question = asked[0]
    prefix = f'{self._split}/{question.name}'
    record = predictions_lib.concatenate(records)
    self.predictions[f'{prefix}/{question.direction}'] = record
    pooled = scores.pool(list(outcomes.values()))
    doubles = duplicates_lib.pool(found, records)
    if doubles is not None:
      self.duplicates[f'{prefix}/{question.direction}'] = doubles
    named = {prefix: pooled} | {
      f'{prefix}/{str(town).replace("/", "_")}': outcome
      for town, outcome in outcomes.items()
    }
    for base, outcome in named.items():
      full = f'{base}/{question.direction}'
      # The question's own counts are those of its main direction.
      for name, value in scores.counts(question, outcome):
        yield f'{base if main else full}/{name}', value
      for name, value in scores.rates(
        question, outcome, intervals=outcome is pooled
      ):
        yield f'{full}/{name}', value
    if doubles is not None:
      full = f'{prefix}/{question.direction}'
      for name, value in duplicates_lib.without(question, pooled, doubles):
        yield f'{full}/{name}', value

  def _ask(
    self,
    question: questions_lib.Question,
    asking: Mapping[str, _Embedded],
    answering: Mapping[str, _Embedded],
  ) -> scores.Outcome:
    views = self._views.get(question.name)
    queries = asking[question.query_side].take(
      question.query_rows, self._track, views
    )
    places = answering[question.map_side].take(
      question.map_rows, self._track, views
    )
    runs = None
    if question.travel:
      runs = scores.Runs(
        *(
          sequences_lib.consecutive_runs(
            self._frames.drive[rows],
            self._frames.position[rows],
            self._frames.frame[rows],
          )
          for rows in (question.query_rows, question.map_rows)
        ),
        question.travel,
        self._sequence,
        self._any_frame,
      )
      blocks = metrics.blocks_from_runs(runs.queries)
    else:
      blocks = metrics.blocks_from_cells(queries.track.ground)
    return scores.ask(
      question,
      queries,
      places,
      blocks,
      runs=runs,
      num_ranked=predictions_lib.NUM_RANKED,
      confidence=self._confidence,
    )

  def _record(
    self, question: questions_lib.Question, outcome: scores.Outcome
  ) -> predictions_lib.Predictions:
    ranked = outcome.ranked
    rows = question.map_rows[np.maximum(ranked, 0)]
    known, unknown = outcome.known, np.float32(np.nan)
    positions = self._frames.position
    return predictions_lib.Predictions(
      towns=self._frames.town[question.query_rows],
      query_rows=question.query_rows,
      query_positions=positions[question.query_rows],
      ranked_rows=np.where(ranked >= 0, rows, -1),
      similarities=outcome.similarities,
      # Lists of right answers have no NaN of their own.
      distances=np.where(
        known[:, None] | (ranked < 0), outcome.distances, unknown
      ),
      confidence=outcome.confidence,
      nearest=np.where(known, outcome.nearest, unknown),
      map_towns=self._frames.town[question.map_rows],
      map_rows=question.map_rows,
      map_positions=positions[question.map_rows],
    )


def _embed_all(
  name: str,
  embed: Embed,
  variables: Variables,
  batches: Iterable[Batch],
  num_rows: int,
) -> _Embedded:
  slot = np.full(num_rows, -1, np.int64)
  parts, count = [], 0
  for batch in batches:
    mask = np.asarray(batch['mask'], bool)
    rows = np.asarray(batch[f'{name}_index'])[mask]
    descriptors = np.asarray(embed(variables, batch), np.float32)[mask]
    if descriptors.ndim == 2:
      descriptors = descriptors[:, None]
    finite = np.isfinite(descriptors).all((1, 2))
    if not finite.all():
      raise InputError(
        f'The {name} descriptors of rows {rows[~finite][:5].tolist()} are not'
        ' finite: the model diverged or the readings are broken.'
      )
    slot[rows] = count + np.arange(len(rows))
    count += len(rows)
    parts.append(descriptors)
  if not count:
    raise InputError(f'No {name} to embed: the batches are empty.')
  return _Embedded(name, np.concatenate(parts), slot)


def score_drives(
  recordings: Iterable[descriptor_files.Recording],
  protocols: Sequence[protocols_lib.Protocol],
) -> dict[str, float]:
  """Every number of every protocol, drive and direction.

  Args:
    recordings: one drive after the other; none is kept.
    protocols: what to ask.

  Raises:
    InputError: a bad recording, or one that a protocol cannot ask; two drives
      of one name.
  """
  asked: dict[str, questions_lib.Question] = {}
  outcomes: dict[str, dict[str, scores.Outcome]] = {}
  for recording in recordings:
    tracks = {name: side.track for name, side in recording.sides.items()}
    for protocol, sides in itertools.product(
      protocols, itertools.permutations(recording.sides)
    ):
      try:
        question = protocols_lib.question_from_tracks(
          protocol, tracks, *sides, recording.name
        )
      except InputError as error:
        raise InputError(f'{recording.name}: {error}') from None
      key = f'{protocol.name}/{{}}/{question.direction}'
      drives = outcomes.setdefault(key, {})
      if recording.name in drives or recording.name == ALL:
        raise InputError(f'The name {recording.name!r} is taken; rename it.')
      asked[key] = question
      drives[recording.name] = ask_drive(question, recording)
  results: dict[str, float] = {}
  for key, drives in outcomes.items():
    if len(drives) > 1:
      drives[ALL] = scores.pool(list(drives.values()))
    for name, outcome in drives.items():
      for what, value in itertools.chain(
        scores.counts(asked[key], outcome),
        scores.rates(asked[key], outcome, intervals=True),
      ):
        results[f'{key.format(name)}/{what}'] = value
  return results


def ask_drive(
  question: questions_lib.Question, recording: descriptor_files.Recording
) -> scores.Outcome:
  """Answers a question about one drive; frames come at a fixed rate."""
  queries, places = (
    recording.sides[side].take(rows)
    for side, rows in (
      (question.query_side, question.query_rows),
      (question.map_side, question.map_rows),
    )
  )
  blocks = metrics.blocks_from_travel(queries.track.ground)
  return scores.ask(
    question, queries, places, blocks, similarity=recording.similarity
  )
