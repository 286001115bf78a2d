# SPDX-License-Identifier: Apache-2.0
"""From descriptors to numbers: the one scorer of towns, drives and photos.

Queries are scored in blocks: no array of all pairs exists. Names are flat,
rates in percent, distances in metres; whoever asks puts the split, the town
and the direction before them:

  queries                         that ask
  database                        readings on the map
  candidates                      of them graded, mean over the queries
  queries_without_position        and database_without_position, where there
                                  are any: they take part in no rate
  answerable_10m                  queries with a right answer
  chance@1_10m                    exact, over answerable queries
  recall@1_10m                    over answerable queries; @5, ... @100
  recall@1%_10m                   N = ceil(M / 100)
  recall@1_10m_low, _high         95 % block bootstrap
  recall@1_10m_of_all_queries     unanswerable ones count as missed
  recall@1_10m_3_frames           of sequences of 3, with all of the above; an
                                  answer is right as for single readings
  recall@1_10m_3_frames_any_frame
                                  if any frame of the retrieved sequence is
                                  right for any frame of the query's, as
                                  sequence descriptors are measured; with its
                                  own answerable_10m_..., chance@1_10m_...
  recall@1_10m_ties_found         if equal similarities counted as found
  median_error_m                  of the first answer
  f1_max_10m                      where only revisits count
  answerable_10m_same_heading     of those, by heading of the right answer
  recall@1_10m_same_heading

Where frames are compared, 10frames stands for 10m; where footprints or lists of
right answers tell, overlap and listed, and there is no error.

A rate over no query is left out. See `metrics` for the conventions on ties and
positives.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from i2ploc.evaluation import metrics
from i2ploc.evaluation import questions as questions_lib
from i2ploc.photos import truth as truth_lib
from i2ploc.retrieval import sequences as sequences_lib

RECALL_AT = (1, 5, 10, 20, 100)
# Of similarities [b, M], candidates [b, M] and the ground positions [M, 2]: the
# probability [b] that the first answer is right, NaN if nobody can say.
Confidence = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Side(NamedTuple):
  """Readings of one sensor, embedded.

  Attributes:
    descriptors: float32 [N, V, D]; of V views of one reading the most similar
      counts.
    track: where and when they were taken, N rows.
  """

  descriptors: np.ndarray
  track: questions_lib.Track

  def take(self, rows: np.ndarray) -> 'Side':
    """The readings of these rows."""
    return Side(self.descriptors[rows], self.track.take(rows))


class Runs(NamedTuple):
  """What follows what, and the sequences of it that ask and answer.

  Attributes:
    queries: int [Q], equal for neighbouring rows that follow each other.
    places: int [M].
    travel: 1 or -1, see `questions.Question`.
    sequence: what is compared instead of single readings.
    any_frame: whether any frame of a sequence may be the right one, too.
  """

  queries: np.ndarray
  places: np.ndarray
  travel: int
  sequence: sequences_lib.Sequence = sequences_lib.THREE_FRAMES
  any_frame: bool = False


class Temperature(NamedTuple):
  """What makes confidences of similarities, see `metrics.posterior_mass`.

  Attributes:
    scale: inverse temperature that the model has learned.
    radius: metres that count as one place.
  """

  scale: float
  radius: float

  def __call__(
    self, similarities: np.ndarray, candidates: np.ndarray, ground: np.ndarray
  ) -> np.ndarray:
    """See `Confidence`."""
    return metrics.posterior_mass(
      similarities, candidates, ground, self.scale, self.radius
    )


class Outcome(NamedTuple):
  """What a model answered, query by query; R radii, K ranked answers.

  Attributes:
    blocks: int [Q], what succeeds and fails together.
    known: bool [Q], whether the query's position is known.
    num_candidates: int [Q], of known position.
    num_positives: int [Q, R].
    ranks: int [Q, R], pessimistic.
    optimistic: int [Q, R], ties count as found.
    sequence_ranks: int [Q, R], pessimistic, of sequences; [Q, 0] where they are
      not scored.
    any_ranks: int [Q, R], the same where any frame may be right; or [Q, 0].
    any_positives: int [Q, R], how many sequences are right then; or [Q, 0].
    scores: float32 [Q], similarity of the first answer; -inf without one.
    errors: float [Q], metres to the first answer, the farthest of tied ones.
    same: bool [Q, R], a positive in the query's own heading.
    opposite: bool [Q, R], only in the opposite one; both False if unknown.
    nearest: float32 [Q], metres to the nearest candidate; inf without one,
      NaN where positions are unknown.
    ranked: int64 [Q, K] places, most similar first; -1 where there are fewer.
    similarities: float32 [Q, K], -inf where unused.
    distances: float32 [Q, K], inf where unused, NaN where unknown.
    confidence: float32 [Q], of the first answer; NaN where there is none, or no
      `Confidence`.
    database: how many places.
    database_unknown: of them without position.
    sequence_length: frames of a sequence; 0 where they are not scored.
  """

  blocks: np.ndarray
  known: np.ndarray
  num_candidates: np.ndarray
  num_positives: np.ndarray
  ranks: np.ndarray
  optimistic: np.ndarray
  sequence_ranks: np.ndarray
  any_ranks: np.ndarray
  any_positives: np.ndarray
  scores: np.ndarray
  errors: np.ndarray
  same: np.ndarray
  opposite: np.ndarray
  nearest: np.ndarray
  ranked: np.ndarray
  similarities: np.ndarray
  distances: np.ndarray
  confidence: np.ndarray
  database: int
  database_unknown: int
  sequence_length: int


def ask(
  question: questions_lib.Question,
  queries: Side,
  places: Side,
  blocks: np.ndarray,
  *,
  similarity: str = 'dot',
  runs: Runs | None = None,
  num_ranked: int = 0,
  confidence: Confidence | None = None,
) -> Outcome:
  """Answers a question, block by block.

  Args:
    question: what counts.
    queries: the readings of its query rows.
    places: the readings of its map rows.
    blocks: int [Q], of the bootstrap.
    similarity: one of `metrics.SIMILARITIES`.
    runs: where sequences are scored too.
    num_ranked: answers of each query to keep.
    confidence: of the first answers; None for none.

  Raises:
    InputError: similarities that are not finite.
  """
  count = len(queries.descriptors)
  halo = runs.sequence.halo if runs else 0
  parts = []
  for block in questions_lib.blocks_from_question(
    question, queries.track, places.track
  ):
    # Sequences look at the queries before and after the block as well.
    near = slice(
      max(0, block.rows.start - halo), min(count, block.rows.stop + halo)
    )
    own = slice(block.rows.start - near.start, block.rows.stop - near.start)
    similarities = metrics.similarities(
      queries.descriptors[near], places.descriptors, similarity
    )
    part = _answers(question, block, similarities[own], num_ranked)
    if runs:
      part |= _sequence_answers(
        question,
        block,
        runs._replace(queries=runs.queries[near]),
        similarities,
        (queries.track.take(np.arange(near.start, near.stop)), places.track),
        own,
      )
    part['confidence'] = np.full(len(block.graded), np.nan, np.float32)
    if confidence is not None:
      part['confidence'] = confidence(
        similarities[own], block.candidates, places.track.ground
      ).astype(np.float32)
    parts.append(part)
  columns = {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }
  known = questions_lib.known_positions(question, queries.track)
  unknown = ~questions_lib.known_positions(question, places.track)
  # Nobody knows whether the answer to such a query is right.
  columns['scores'] = np.where(known, columns['scores'], -np.inf)
  return Outcome(
    blocks=blocks,
    known=known,
    **columns,
    database=len(unknown),
    database_unknown=int(unknown.sum()),
    sequence_length=runs.sequence.length if runs else 0,
  )


def _answers(
  question: questions_lib.Question,
  block: questions_lib.Block,
  similarities: np.ndarray,
  num_ranked: int,
) -> dict[str, np.ndarray]:
  """The columns of an Outcome that follow from the similarities of a block."""
  graded = block.graded
  per_radius: dict[str, list[np.ndarray]] = {}
  for radius in question.radii:
    positives = graded & question.within(block.distances, radius)
    same = opposite = np.zeros(len(positives), bool)
    if block.alignments is not None:
      same, opposite = questions_lib.headings_of_positives(
        positives, block.alignments
      )
    values = {
      'num_positives': positives.sum(1),
      'ranks': metrics.pessimistic_ranks(similarities, positives, graded),
      'optimistic': metrics.optimistic_ranks(similarities, positives, graded),
      'same': same,
      'opposite': opposite,
    }
    for name, value in values.items():
      per_radius.setdefault(name, []).append(value)
  ranked = metrics.best_answers(similarities, block.candidates, num_ranked)

  def of_ranked(values: np.ndarray, nothing: float) -> np.ndarray:
    taken = np.take_along_axis(values, np.maximum(ranked, 0), 1)
    return np.where(ranked >= 0, taken, np.float32(nothing))

  distances = of_ranked(block.distances, np.inf)
  nearest = np.where(graded, block.distances, np.float32(np.inf)).min(1)
  # The distance to a candidate is infinite only if nobody knows it.
  distances[np.isinf(distances) & (ranked >= 0)] = np.nan
  nearest[np.isinf(nearest) & block.candidates.any(1)] = np.nan
  return {
    **dict.fromkeys(
      ('sequence_ranks', 'any_ranks', 'any_positives'),
      np.zeros((len(graded), 0), np.int64),
    ),
    **{name: np.stack(values, 1) for name, values in per_radius.items()},
    'num_candidates': graded.sum(1),
    'scores': np.where(graded, similarities, -np.inf).max(1),
    'errors': metrics.top1_errors(similarities, block.distances, graded),
    'nearest': nearest,
    'ranked': ranked,
    'similarities': of_ranked(similarities, -np.inf),
    'distances': distances,
  }


def _sequence_answers(
  question: questions_lib.Question,
  block: questions_lib.Block,
  runs: Runs,
  similarities: np.ndarray,
  tracks: tuple[questions_lib.Track, questions_lib.Track],
  own: slice,
) -> dict[str, np.ndarray]:
  """The columns of an Outcome that are about sequences.

  `similarities`, `runs` and the first track are of the block's queries and of
  those before and after that its sequences look at; `own` says which are its.
  """
  arguments = runs.queries, runs.places, runs.sequence, runs.travel
  if question.exclude_self:
    # A reading is no answer to itself, nor part of one, nor of the contrast.
    itself = tracks[0].frames[:, None] == tracks[1].frames
    mean = similarities.mean(1, keepdims=True)
    similarities = np.where(itself, mean, similarities)
  matched = sequences_lib.match(similarities, *arguments)[own]
  graded, columns = block.graded, {}
  truth = None
  if runs.any_frame:
    (truth,) = questions_lib.blocks_from_question(
      question, *tracks, size=len(similarities)
    )
  for radius in question.radii:
    right = graded & question.within(block.distances, radius)
    values = {
      'sequence_ranks': metrics.pessimistic_ranks(matched, right, graded)
    }
    if truth is not None:
      right = truth.graded & question.within(truth.distances, radius)
      right = graded & sequences_lib.any_along(right, *arguments)[own]
      right &= questions_lib.known_positions(question, tracks[0])[own, None]
      values |= {
        'any_ranks': metrics.pessimistic_ranks(matched, right, graded),
        'any_positives': right.sum(1),
      }
    for name, value in values.items():
      columns.setdefault(name, []).append(value)
  return {name: np.stack(values, 1) for name, values in columns.items()}


def pool(outcomes: Sequence[Outcome]) -> Outcome:
  """The queries of several databases as one list; blocks never span them."""
  shifted, used = [], 0
  for outcome in outcomes:
    shifted.append(outcome._replace(blocks=outcome.blocks + used)[:-3])
    used += int(outcome.blocks.max()) + 1
  columns = (np.concatenate(x) for x in zip(*shifted, strict=True))
  return Outcome(
    *columns,
    database=sum(outcome.database for outcome in outcomes),
    database_unknown=sum(outcome.database_unknown for outcome in outcomes),
    sequence_length=outcomes[0].sequence_length,
  )


def take(outcome: Outcome, queries: np.ndarray) -> Outcome:
  """The outcome of some of the queries, with the whole database."""
  taken = {
    name: column[queries]
    for name, column in outcome._asdict().items()
    if isinstance(column, np.ndarray)
  }
  return outcome._replace(**taken)


def _retrieved(outcome: Outcome) -> Iterator[tuple[str, np.ndarray]]:
  """N of each recall@N as text and per query."""
  for n in RECALL_AT:
    yield f'{n}', np.full(len(outcome.ranks), n)
  yield '1%', metrics.one_percent(outcome.num_candidates)


def _frames(outcome: Outcome) -> str:
  return f'_{outcome.sequence_length}_frames'


def _any_frame(outcome: Outcome) -> str:
  return f'{_frames(outcome)}_any_frame'


def counts(
  question: questions_lib.Question, outcome: Outcome
) -> Iterator[tuple[str, float]]:
  """How many ask and answer, and what chance would reach."""
  yield 'queries', float(len(outcome.ranks))
  yield 'database', float(outcome.database)
  yield 'candidates', float(outcome.num_candidates.mean())
  if not outcome.known.all():
    yield 'queries_without_position', float((~outcome.known).sum())
  if outcome.database_unknown:
    yield 'database_without_position', float(outcome.database_unknown)
  for suffix, positives in (
    ('', outcome.num_positives),
    (_any_frame(outcome), outcome.any_positives),
  ):
    for i, radius in enumerate(question.radii[: positives.shape[1]]):
      answerable = positives[:, i] > 0
      yield f'answerable_{question.at(radius)}{suffix}', float(answerable.sum())
      if not answerable.any():
        continue
      for label, n in _retrieved(outcome):
        probability = metrics.chance(positives[:, i], outcome.num_candidates, n)
        value = 100 * float(probability[answerable].mean())
        yield f'chance@{label}_{question.at(radius)}{suffix}', value


def rates(
  question: questions_lib.Question, outcome: Outcome, *, intervals: bool
) -> Iterator[tuple[str, float]]:
  """Recalls and errors.

  Args:
    question: what counts.
    outcome: of one or of several databases.
    intervals: whether to add what covers a recall, and the recall over all
      queries.

  Yields:
    Name and value.
  """
  names, hits, counted = [], [], []
  for suffix, ranks, positives in (
    ('', outcome.ranks, outcome.num_positives),
    (_frames(outcome), outcome.sequence_ranks, outcome.num_positives),
    (_any_frame(outcome), outcome.any_ranks, outcome.any_positives),
  ):
    for i, radius in enumerate(question.radii[: ranks.shape[1]]):
      for label, n in _retrieved(outcome):
        names.append(f'recall@{label}_{question.at(radius)}{suffix}')
        counted.append(positives[:, i] > 0)
        hits.append((ranks[:, i] < n) & counted[-1])
  bounds = np.full((len(names), 2), np.nan)
  known = outcome.known
  if intervals and known.any():
    bounds = np.stack(
      metrics.bootstrap_interval(
        np.stack(hits, 1)[known],
        np.stack(counted, 1)[known],
        outcome.blocks[known],
      ),
      axis=1,
    )
  for name, hit, among, (low, high) in zip(
    names, hits, counted, bounds, strict=True
  ):
    if not among.any():
      continue
    yield name, 100 * float(hit[among].mean())
    if intervals:
      yield f'{name}_low', 100 * float(low)
      yield f'{name}_high', 100 * float(high)
      yield f'{name}_of_all_queries', 100 * float(hit[known].mean())
  for i, radius in enumerate(question.radii):
    answerable = outcome.num_positives[:, i] > 0
    if answerable.any():
      found = outcome.optimistic[answerable, i] < 1
      yield (
        f'recall@1_{question.at(radius)}_ties_found',
        100 * float(found.mean()),
      )
  unit = question.truth.unit
  answered = outcome.errors[outcome.errors < questions_lib.ELSEWHERE]
  if len(answered) and unit not in truth_lib.NO_LENGTH:
    yield f'median_error_{unit}', float(np.median(answered))
  if question.exclude_recent:
    yield from _revisits(question, outcome)


def _revisits(
  question: questions_lib.Question, outcome: Outcome
) -> Iterator[tuple[str, float]]:
  """F1 over all queries, and recall by heading."""
  for i, radius in enumerate(question.radii):
    num_answerable = int((outcome.num_positives[:, i] > 0).sum())
    if not num_answerable:
      continue
    right = question.within(outcome.errors, radius)
    f1 = metrics.f1_max(outcome.scores, right, num_answerable)
    yield f'f1_max_{question.at(radius)}', 100 * f1
    hits = outcome.ranks[:, i] < 1
    for name, among in (
      ('same', outcome.same[:, i]),
      ('opposite', outcome.opposite[:, i]),
    ):
      if among.any():
        at = f'{question.at(radius)}_{name}_heading'
        yield f'answerable_{at}', float(among.sum())
        yield f'recall@1_{at}', 100 * float(hits[among].mean())
