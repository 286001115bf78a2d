# SPDX-License-Identifier: Apache-2.0
"""Retrieval across camera and LiDAR, town by town, as named numbers.

Each reading is embedded once per modality and used by every protocol and both
directions. A town is a database of its own, as in the papers (retrieval inside
a sequence); pooled numbers are over the queries of all towns. Names are flat,
rates in percent, distances in metres:

  test/cross/queries                              over all towns
  test/cross/answerable_10m                       queries with a positive
  test/cross/chance@1_10m                         exact, over answerable queries
  test/cross/image_to_points/recall@1_10m         over answerable queries
  test/cross/image_to_points/recall@1_10m_low     95 % block bootstrap
  test/cross/image_to_points/recall@1_10m_high
  test/cross/image_to_points/recall@1_10m_of_all_queries
  test/cross/image_to_points/recall@1_10m_3_frames        (_low, _high)
  test/cross/image_to_points/recall@1%_10m        N = ceil(M / 100)
  test/cross/image_to_points/median_error_m       of the first answer
  test/cross/town_007/image_to_points/recall@1_10m        and the like

A rate over no query at all is not a number and is left out. See `metrics` for
the conventions on ties, positives and the self-match policy.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from i2ploc.evaluation import metrics
from i2ploc.evaluation import predictions
from i2ploc.evaluation import protocols
from i2ploc.retrieval import matching

RECALL_AT = (1, 5, 10, 20)
SEQUENCE_LENGTH = 3

Variables = Any  # a pytree of parameters
Batch = Mapping[str, np.ndarray]
Embed = Callable[[Variables, Batch], np.ndarray]


class _Side(NamedTuple):
  """The embedded readings of one modality; row r is `descriptors[slot[r]]`."""

  name: str
  descriptors: np.ndarray  # [N, V, D]
  slot: np.ndarray  # [F], -1 where not embedded
  has: np.ndarray  # [F] bool

  def take(
    self, rows: np.ndarray, views: Sequence[int] | None = None
  ) -> np.ndarray:
    missing = rows[self.slot[rows] < 0]
    if len(missing):
      raise InputError(
        f'The {self.name} of {len(missing)} rows were in no batch, first rows'
        f' {missing[:5].tolist()}; read all of `rows_to_embed`.'
      )
    taken = self.descriptors[self.slot[rows]]
    # A modality with one view (images) has nothing to choose from.
    return taken if views is None or taken.shape[1] == 1 else taken[:, views]


class _Outcome(NamedTuple):
  """What the model answered, query by query; towns concatenate."""

  num_candidates: np.ndarray  # [Q]
  num_positives: np.ndarray  # [Q, radii]
  blocks: np.ndarray  # [Q]
  ranks: np.ndarray  # [Q, radii]
  sequence_ranks: np.ndarray  # [Q, radii]
  errors: np.ndarray  # [Q] metres


class RetrievalEvaluator:
  """Recall of a two-tower model on the protocols of one split.

  Attributes:
    predictions: after `run`, the ranked answers by
      '<split>/<protocol>/<direction>'.
    embedded: after `run`, (rows [N], descriptors [N, V, D]) of 'image' and
      'points'.
  """

  def __init__(
    self,
    split: str,
    *,
    embed_image: Embed,
    embed_points: Embed,
    image_batches: Callable[[], Iterable[Batch]],
    points_batches: Callable[[], Iterable[Batch]],
    frames: protocols.Frames,
    questions: Sequence[protocols.Protocol],
    radii: Sequence[float] = (5.0, 10.0, 20.0),
    sequence_stride: int = 1,
    views: Mapping[str, Sequence[int]] | None = None,
    exclude_self: bool = False,
    exclude_within: float = 0.0,
  ):
    """Keeps what a run needs; reads nothing yet.

    Args:
      split: first part of every name.
      embed_image: `(variables, batch)` -> [B, D], or [B, V, D] for V views of
        one reading of which the most similar counts; jitted by the caller.
      embed_points: the same for points.
      image_batches: called at each run; gives batches of one shape with
        `image_index` [B] (row of the frame table) and `mask` [B].
      points_batches: the same with `points_index`.
      frames: the frame table.
      questions: one protocol per name and town.
      radii: metres that count as found.
      sequence_stride: rows between two frames of a sequence of three, see
        `matching.sequence_similarity`.
      views: by name of a protocol, which of the V views of a reading count in
        it; all where it is not named. A known heading is a choice of view.
      exclude_self: the self-match policy, see `metrics.allowed_candidates`.
      exclude_within: seconds.

    Raises:
      InputError: if there is no protocol, one comes twice, or one has no
        queries or no map.
    """
    if not questions:
      raise InputError(f'{split}: no protocol to evaluate.')
    seen = set()
    for protocol in questions:
      if (protocol.name, protocol.town) in seen:
        raise InputError(
          f'{split}/{protocol.name}/{protocol.town} comes twice; pool its'
          ' queries into one protocol.'
        )
      seen.add((protocol.name, protocol.town))
      sizes = len(protocol.query_rows), len(protocol.map_rows)
      if 0 in sizes:
        raise InputError(
          f'{split}/{protocol.name}/{protocol.town} has {sizes[0]} queries and'
          f' {sizes[1]} map readings; it needs both.'
        )
    self._split = split
    self._embed_image = embed_image
    self._embed_points = embed_points
    self._image_batches = image_batches
    self._points_batches = points_batches
    self._frames = frames
    self._questions = questions
    self._radii = tuple(radii)
    self._sequence_stride = sequence_stride
    self._views = dict(views or {})
    self._policy = dict(
      radii=self._radii,
      exclude_self=exclude_self,
      exclude_within=exclude_within,
    )
    self.predictions: dict[str, predictions.Predictions] = {}
    self.embedded: dict[str, tuple[np.ndarray, np.ndarray]] = {}

  def run(self, variables: Variables) -> Iterator[tuple[str, float]]:
    """Embeds every reading once and yields (name, value).

    Raises:
      InputError: descriptors that are not finite, or rows that no batch held.
    """
    frames = self._frames
    image = _embed_all(
      'image',
      self._embed_image,
      variables,
      self._image_batches(),
      frames.has_image,
    )
    points = _embed_all(
      'points',
      self._embed_points,
      variables,
      self._points_batches(),
      frames.has_points,
    )
    for side in (image, points):
      rows = np.flatnonzero(side.slot >= 0)
      self.embedded[side.name] = rows, side.descriptors[side.slot[rows]]
    for name in dict.fromkeys(protocol.name for protocol in self._questions):
      yield from self._direction(name, 'image_to_points', image, points)
      yield from self._direction(name, 'points_to_image', points, image)

  def _direction(
    self, name: str, direction: str, queries: _Side, places: _Side
  ) -> Iterator[tuple[str, float]]:
    outcomes: dict[str, _Outcome] = {}
    records = []
    for protocol in self._questions:
      if protocol.name != name:
        continue
      question = protocols.question_from_protocol(
        self._frames, protocol, queries.has, places.has, **self._policy
      )
      # A drive without scans has images to localize, but no points to ask with.
      if question is None:
        continue
      views = self._views.get(name)
      similarities = metrics.similarities(
        queries.take(question.query_rows, views),
        places.take(question.map_rows, views),
      )
      outcomes[protocol.town] = _outcome(
        question, similarities, self._sequence_stride
      )
      records.append(
        predictions.rank_answers(
          self._frames, protocol.town, question, similarities
        )
      )
    if not outcomes:
      return
    prefix = f'{self._split}/{name}'
    self.predictions[f'{prefix}/{direction}'] = predictions.concatenate(records)
    pooled = _pool(list(outcomes.values()))
    # The protocol's own counts are those of its main question.
    own = direction == 'image_to_points'
    named = {prefix: pooled} | {
      f'{prefix}/{str(town).replace("/", "_")}': outcome
      for town, outcome in outcomes.items()
    }
    for base, outcome in named.items():
      full = f'{base}/{direction}'
      yield from _counts(base if own else full, outcome, self._radii)
      yield from _rates(full, outcome, self._radii, intervals=outcome is pooled)


def _embed_all(
  name: str,
  embed: Embed,
  variables: Variables,
  batches: Iterable[Batch],
  has: np.ndarray,
) -> _Side:
  slot = np.full(len(has), -1, np.int64)
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
  return _Side(name, np.concatenate(parts), slot, np.asarray(has, bool))


def _outcome(
  question: protocols.Question, similarities: np.ndarray, stride: int
) -> _Outcome:
  sequences = matching.sequence_similarity(
    similarities,
    question.query_runs,
    question.map_runs,
    SEQUENCE_LENGTH,
    question.direction,
    stride,
  )

  def ranks(scores: np.ndarray) -> np.ndarray:
    within = (question.distances <= radius for radius in question.radii)
    return np.stack(
      [
        metrics.pessimistic_ranks(scores, positives, question.candidates)
        for positives in within
      ],
      axis=1,
    )

  return _Outcome(
    num_candidates=question.num_candidates,
    num_positives=question.num_positives,
    blocks=metrics.blocks_from_runs(question.query_runs),
    ranks=ranks(similarities),
    sequence_ranks=ranks(sequences),
    errors=metrics.top1_errors(
      similarities, question.distances, question.candidates
    ),
  )


def _pool(outcomes: Sequence[_Outcome]) -> _Outcome:
  """All towns as one list of queries; blocks never span towns."""
  shifted, used = [], 0
  for outcome in outcomes:
    shifted.append(outcome._replace(blocks=outcome.blocks + used))
    used += int(outcome.blocks.max()) + 1
  return _Outcome(*(np.concatenate(x) for x in zip(*shifted, strict=True)))


def _retrieved(outcome: _Outcome) -> Iterator[tuple[str, np.ndarray]]:
  """N of each recall@N as text and per query."""
  for n in RECALL_AT:
    yield f'{n}', np.full(len(outcome.num_candidates), n)
  yield '1%', metrics.one_percent(outcome.num_candidates)


def _counts(
  prefix: str, outcome: _Outcome, radii: tuple[float, ...]
) -> Iterator[tuple[str, float]]:
  """Number of queries, answerable ones, and what chance would reach."""
  yield f'{prefix}/queries', float(len(outcome.num_candidates))
  for i, radius in enumerate(radii):
    answerable = outcome.num_positives[:, i] > 0
    yield f'{prefix}/answerable_{radius:g}m', float(answerable.sum())
    if not answerable.any():
      continue
    for label, n in _retrieved(outcome):
      probability = metrics.chance(
        outcome.num_positives[:, i], outcome.num_candidates, n
      )
      value = 100 * float(probability[answerable].mean())
      yield f'{prefix}/chance@{label}_{radius:g}m', value


def _rates(
  prefix: str,
  outcome: _Outcome,
  radii: tuple[float, ...],
  *,
  intervals: bool,
) -> Iterator[tuple[str, float]]:
  """Recalls, with intervals and over all queries if asked for, and errors."""
  names, hits, counted = [], [], []
  for suffix, ranks in (
    ('', outcome.ranks),
    (f'_{SEQUENCE_LENGTH}_frames', outcome.sequence_ranks),
  ):
    for i, radius in enumerate(radii):
      for label, n in _retrieved(outcome):
        names.append(f'{prefix}/recall@{label}_{radius:g}m{suffix}')
        counted.append(outcome.num_positives[:, i] > 0)
        hits.append((ranks[:, i] < n) & counted[-1])
  bounds = np.full((len(names), 2), np.nan)
  if intervals:
    bounds = np.stack(
      metrics.bootstrap_interval(
        np.stack(hits, 1), np.stack(counted, 1), outcome.blocks
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
      yield f'{name}_of_all_queries', 100 * float(hit.mean())
  answered = outcome.errors[np.isfinite(outcome.errors)]
  if len(answered):
    yield f'{prefix}/median_error_m', float(np.median(answered))
