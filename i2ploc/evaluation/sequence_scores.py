# SPDX-License-Identifier: Apache-2.0
"""Descriptors of any method, scored on the published protocols.

Numbers are named `<protocol>/<sequence>/<direction>/<what>`, rates in percent;
the sequence 'all' pools the queries of every drive, each against its own:

  queries                       that ask
  database                      readings of the other sensor
  candidates                    of them allowed, mean over the queries
  answerable_20m                queries with a positive
  chance@1_20m                  exact, over answerable queries; also @5 @10 @1%
  recall@1_20m                  over answerable queries; also @5 @10 @1%
  recall@1_20m_low, _high       95 % bootstrap over blocks of 50 m of travel
  recall@1_20m_ties_found       if equal similarities counted as found
  f1_max_20m                    where revisits are asked for; percent
  answerable_20m_same_heading   (and _opposite_heading) with headings, likewise
  recall@1_20m_same_heading

A rate over no query is left out. Conventions on ties: `metrics`.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from i2ploc.evaluation import descriptor_files
from i2ploc.evaluation import metrics
from i2ploc.evaluation import questions

RECALL_AT = (1, 5, 10)
ALL = 'all'


class Outcome(NamedTuple):
  """What a method answered, query by query; R radii of the protocol.

  Attributes:
    num_candidates: int [Q].
    num_positives: int [Q, R].
    ranks: int [Q, R], pessimistic.
    optimistic: int [Q, R], ties count as found.
    scores: float32 [Q], similarity of the first answer; -inf without one.
    errors: float [Q], metres to the first answer, the farthest of tied ones.
    same: bool [Q, R], a positive in the query's own heading.
    opposite: bool [Q, R], only in the opposite one; both False if unknown.
    blocks: int [Q], for the bootstrap.
    database: how many places.
  """

  num_candidates: np.ndarray
  num_positives: np.ndarray
  ranks: np.ndarray
  optimistic: np.ndarray
  scores: np.ndarray
  errors: np.ndarray
  same: np.ndarray
  opposite: np.ndarray
  blocks: np.ndarray
  database: int


def score(
  recordings: Iterable[descriptor_files.Recording],
  protocols: Sequence[questions.Protocol],
) -> dict[str, float]:
  """Every number of every protocol, drive and direction.

  Args:
    recordings: one drive after the other; none is kept.
    protocols: what to ask.

  Raises:
    InputError: a bad recording, or one that a protocol cannot ask; two drives
      of one name.
  """
  outcomes: dict[tuple[str, str], dict[str, Outcome]] = {}
  for recording in recordings:
    for protocol in protocols:
      for direction in questions.DIRECTIONS:
        drives = outcomes.setdefault((protocol.name, direction), {})
        if recording.name in drives or recording.name == ALL:
          raise InputError(f'The name {recording.name!r} is taken; rename it.')
        drives[recording.name] = ask(protocol, recording, direction)
  results: dict[str, float] = {}
  for protocol in protocols:
    for direction in questions.DIRECTIONS:
      drives = dict(outcomes.get((protocol.name, direction), {}))
      if len(drives) > 1:
        drives[ALL] = pool(list(drives.values()))
      for name, outcome in drives.items():
        prefix = f'{protocol.name}/{name}/{direction}'
        for what, value in _numbers(protocol, outcome):
          results[f'{prefix}/{what}'] = value
  return results


def ask(
  protocol: questions.Protocol,
  recording: descriptor_files.Recording,
  direction: str,
) -> Outcome:
  """Answers of one drive, block by block: no Q x M array exists.

  Raises:
    InputError: see `sequence_protocols.question_from_tracks`.
  """
  image, points = recording.image, recording.points
  try:
    question = questions.question_from_tracks(
      protocol, image.track, points.track, direction
    )
  except ValueError as error:
    raise InputError(f'{recording.name}: {error}') from None
  asking, answering = (
    (image, points) if direction == 'image_to_points' else (points, image)
  )
  queries = asking.descriptors[question.query_rows]
  # Similarities are summed in float64: converted once, not in every block.
  places = answering.descriptors[question.place_rows].astype(np.float64)
  parts = []
  for block in questions.blocks_from_question(protocol, question):
    similarities = metrics.similarities(
      queries[block.rows], places, recording.similarity
    )
    parts.append(_answers(block, similarities, protocol.radii))
  columns = (np.concatenate(x) for x in zip(*parts, strict=True))
  blocks = metrics.blocks_from_travel(question.queries.ground)
  return Outcome(*columns, blocks, len(places))


def _answers(
  block: questions.Block,
  similarities: np.ndarray,
  radii: tuple[float, ...],
) -> tuple[np.ndarray, ...]:
  """The columns of an Outcome before `blocks`, of one block."""
  per_radius = []
  for radius in radii:
    positives = block.candidates & (block.distances < radius)
    same = opposite = np.zeros(len(positives), bool)
    if block.alignments is not None:
      same, opposite = questions.headings_of_positives(
        positives, block.alignments
      )
    per_radius.append(
      (
        positives.sum(1),
        metrics.pessimistic_ranks(similarities, positives, block.candidates),
        metrics.optimistic_ranks(similarities, positives, block.candidates),
        same,
        opposite,
      )
    )
  num_positives, ranks, optimistic, same, opposite = (
    np.stack(x, 1) for x in zip(*per_radius, strict=True)
  )
  return (
    block.candidates.sum(1),
    num_positives,
    ranks,
    optimistic,
    np.where(block.candidates, similarities, -np.inf).max(1),
    metrics.top1_errors(similarities, block.distances, block.candidates),
    same,
    opposite,
  )


def pool(outcomes: Sequence[Outcome]) -> Outcome:
  """The queries of several drives as one list; blocks never span drives."""
  shifted, used = [], 0
  for outcome in outcomes:
    shifted.append(outcome._replace(blocks=outcome.blocks + used)[:-1])
    used += int(outcome.blocks.max()) + 1
  columns = (np.concatenate(x) for x in zip(*shifted, strict=True))
  return Outcome(*columns, sum(outcome.database for outcome in outcomes))


def _retrieved(outcome: Outcome) -> Iterator[tuple[str, np.ndarray]]:
  """N of each recall@N as text and per query."""
  for n in RECALL_AT:
    yield f'{n}', np.full(len(outcome.ranks), n)
  yield '1%', metrics.one_percent(outcome.num_candidates)


def _numbers(
  protocol: questions.Protocol, outcome: Outcome
) -> Iterator[tuple[str, float]]:
  yield 'queries', float(len(outcome.ranks))
  yield 'database', float(outcome.database)
  yield 'candidates', float(outcome.num_candidates.mean())
  for i, radius in enumerate(protocol.radii):
    answerable = outcome.num_positives[:, i] > 0
    yield f'answerable_{radius:g}m', float(answerable.sum())
    if not answerable.any():
      continue
    yield from _rates(f'_{radius:g}m', outcome, i, answerable)
    if protocol.exclude_recent:
      yield from _revisits(f'_{radius:g}m', outcome, i, radius)


def _rates(
  at: str, outcome: Outcome, i: int, answerable: np.ndarray
) -> Iterator[tuple[str, float]]:
  """Chance and recall with intervals at radius `i`."""
  labels, retrieved = zip(*_retrieved(outcome), strict=True)
  hits = np.stack([outcome.ranks[:, i] < n for n in retrieved], 1)
  counted = np.repeat(answerable[:, None], len(labels), 1)
  lows, highs = metrics.bootstrap_interval(hits, counted, outcome.blocks)
  for column, (label, n) in enumerate(zip(labels, retrieved, strict=True)):
    probability = metrics.chance(
      outcome.num_positives[:, i], outcome.num_candidates, n
    )
    recall = f'recall@{label}{at}'
    yield f'chance@{label}{at}', 100 * float(probability[answerable].mean())
    yield recall, 100 * float(hits[answerable, column].mean())
    yield f'{recall}_low', 100 * float(lows[column])
    yield f'{recall}_high', 100 * float(highs[column])
  found = outcome.optimistic[answerable, i] < 1
  yield f'recall@1{at}_ties_found', 100 * float(found.mean())


def _revisits(
  at: str, outcome: Outcome, i: int, radius: float
) -> Iterator[tuple[str, float]]:
  """F1 over all queries, and recall by heading, at radius `i`."""
  num_answerable = int((outcome.num_positives[:, i] > 0).sum())
  f1 = metrics.f1_max(outcome.scores, outcome.errors < radius, num_answerable)
  yield f'f1_max{at}', 100 * f1
  hits = outcome.ranks[:, i] < 1
  for name, among in (
    ('same', outcome.same[:, i]),
    ('opposite', outcome.opposite[:, i]),
  ):
    if among.any():
      yield f'answerable{at}_{name}_heading', float(among.sum())
      yield f'recall@1{at}_{name}_heading', 100 * float(hits[among].mean())
