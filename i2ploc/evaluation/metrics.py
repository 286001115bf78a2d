# SPDX-License-Identifier: Apache-2.0
"""Recall, chance, intervals and errors of retrieval, on plain numpy arrays.

Conventions, stated once:
- A map reading is a positive of a query if it lies within the radius of it,
  horizontally: height is not a place.
- Ties are pessimistic: a positive is found at N only if fewer than N negatives
  have a similarity that is equal to or above its own. A model that says the
  same about everything has recall 0, not 100.
- A query without a positive among its candidates is not answerable. Recall is
  over answerable queries; over all queries (those count as misses, as in the
  SaliencyI2PLoc evaluation) it is reported under a name of its own.
- `candidates` [Q, M] says which map readings a query may be answered with; a
  question decides it, and positives and chance follow it.
"""

import numpy as np

from i2ploc.errors import InputError

SIMILARITIES = ('dot', 'euclidean')
# Similarities are summed in tiles of so many queries and places: 8 MB. Long
# descriptors have tiles of fewer places, whose float64 copy takes 64 MB.
ROWS, COLUMNS = 256, 4096
_NUMBERS = 1 << 23


def similarities(
  queries: np.ndarray, places: np.ndarray, kind: str = 'dot'
) -> np.ndarray:
  """Similarities of the most similar views.

  >>> image = np.array([[[1.0, 0.0]]])  # one query, one view
  >>> scans = np.array([[[0.0, 1.0], [0.6, 0.8]]])  # one place, two views
  >>> similarities(image, scans)
  array([[0.6]], dtype=float32)

  Sums run in float64 and are rounded to float32: equal descriptors tie in
  whatever order the sums are taken, so that the tie policy sees them.

  Args:
    queries: [Q, V, D].
    places: [M, V, D], another number of views if need be.
    kind: 'dot', or 'euclidean' for the negative distance. Distances below
      1e-6 of the descriptors' length are 0.

  Returns:
    float32 [Q, M], larger is more similar.

  Raises:
    InputError: an unknown kind.
  """
  if kind not in SIMILARITIES:
    raise InputError(f'Unknown similarity {kind!r}; expected {SIMILARITIES}.')
  best = np.full((len(queries), len(places)), -np.inf, np.float32)
  length = max(1, int(np.prod(places.shape[1:])))
  width = max(1, min(COLUMNS, _NUMBERS // length))
  for left in range(0, len(places), width):
    columns = slice(left, left + width)
    # Converted tile by tile: a float64 copy of a large map may not fit.
    seen = np.moveaxis(np.asarray(places[columns], np.float64), 1, 0)
    for top in range(0, len(queries), ROWS):
      tile = best[top : top + ROWS, columns]
      asking = np.asarray(queries[top : top + ROWS], np.float64)
      for query in np.moveaxis(asking, 1, 0):
        for place in seen:
          value = query @ place.T
          if kind == 'euclidean':
            value = -_distances(query, place, value)
          np.maximum(tile, value.astype(np.float32), out=tile)
  return best


def _distances(x: np.ndarray, y: np.ndarray, products: np.ndarray):
  """|x - y| [Q, M] from x y^T."""
  scale = (x**2).sum(1)[:, None] + (y**2).sum(1)
  squared = scale - 2 * products
  return np.sqrt(np.where(squared > 1e-12 * scale, squared, 0.0))


def horizontal_distances(queries: np.ndarray, places: np.ndarray) -> np.ndarray:
  """Distances in the ground plane, metres.

  >>> horizontal_distances(np.array([[3.0, 4.0, 99.0]]), np.zeros((1, 3)))
  array([[5.]], dtype=float32)

  Args:
    queries: [Q, 2 or more] positions; the first two coordinates span the
      ground.
    places: [M, 2 or more] positions of the same town.

  Returns:
    float32 [Q, M]; differences are taken in float64.
  """
  queries = np.asarray(queries, np.float64)
  places = np.asarray(places, np.float64)
  east = queries[:, None, 0] - places[:, 0]
  north = queries[:, None, 1] - places[:, 1]
  return np.sqrt(east * east + north * north).astype(np.float32)


def pessimistic_ranks(
  similarities: np.ndarray, positives: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
  """How many negatives are at least as similar as the best positive.

  >>> similarities = np.array([[0.9, 0.7, 0.7, 0.1]])
  >>> positives = np.array([[False, True, False, False]])
  >>> pessimistic_ranks(similarities, positives, np.ones((1, 4), bool))
  array([2])

  Args:
    similarities: [Q, M], finite.
    positives: bool [Q, M].
    candidates: bool [Q, M]; others are neither positives nor negatives.

  Returns:
    int64 [Q]; the query is answered at N if its rank is below N. M where no
    candidate is a positive.

  Raises:
    InputError: similarities that are not finite (a NaN would compare as
      smaller than every positive, that is, flatter the model).
  """
  similarities = np.asarray(similarities)
  if not np.isfinite(similarities).all():
    rows = np.flatnonzero(~np.isfinite(similarities).all(1))
    raise InputError(
      f'Similarities of {len(rows)} queries are not finite, first queries'
      f' {rows[:5].tolist()}; the model gives broken descriptors.'
    )
  positives = positives & candidates
  best = np.where(positives, similarities, -np.inf).max(1, initial=-np.inf)
  above = candidates & ~positives & (similarities >= best[:, None])
  ranks = above.sum(1)
  return np.where(positives.any(1), ranks, similarities.shape[1])


def optimistic_ranks(
  similarities: np.ndarray, positives: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
  """How many negatives are more similar than the best positive: ties won.

  This is what an evaluator reports that ranks equal answers alike (a left-sided
  search). Beside `pessimistic_ranks` it shows what ties are worth.

  >>> similarities = np.array([[0.9, 0.7, 0.7, 0.1]])
  >>> positives = np.array([[False, True, False, False]])
  >>> optimistic_ranks(similarities, positives, np.ones((1, 4), bool))
  array([1])

  Args:
    similarities: [Q, M], finite.
    positives: bool [Q, M].
    candidates: bool [Q, M].

  Returns:
    int64 [Q]; M where no candidate is a positive.
  """
  positives = positives & candidates
  best = np.where(positives, similarities, -np.inf).max(1, initial=-np.inf)
  above = candidates & ~positives & (similarities > best[:, None])
  return np.where(positives.any(1), above.sum(1), similarities.shape[1])


def one_percent(num_candidates: np.ndarray) -> np.ndarray:
  """N of recall@1%: ceil(M / 100), at least 1.

  >>> one_percent(np.array([7, 100, 101]))
  array([1, 1, 2])

  Args:
    num_candidates: int [Q], M.

  Returns:
    int [Q].
  """
  return np.maximum(-(-np.asarray(num_candidates) // 100), 1)


def chance(
  num_positives: np.ndarray,
  num_candidates: np.ndarray,
  num_retrieved: int | np.ndarray,
) -> np.ndarray:
  """Probability that N random distinct candidates hold a positive.

  `1 - C(M - P, N) / C(M, N)`, as a product of N ratios: exact, without
  factorials.

  >>> chance(np.array([1]), np.array([4]), 2)  # two draws of four, one right
  array([0.5])

  Args:
    num_positives: int [Q], P.
    num_candidates: int [Q], M.
    num_retrieved: N, one number or [Q].

  Returns:
    float64 [Q] in [0, 1]; 0 where there is no positive.
  """
  positives = np.asarray(num_positives, np.float64)
  total = np.asarray(num_candidates, np.float64)
  count = np.broadcast_to(num_retrieved, positives.shape)
  miss = np.ones_like(positives)
  for drawn in range(int(count.max(initial=0))):
    left = np.maximum(total - drawn, 1.0)
    negatives = np.maximum(total - positives - drawn, 0.0)
    # Past the last candidate nothing is drawn any more.
    ratio = np.where(total > drawn, negatives / left, 1.0)
    miss *= np.where(drawn < count, ratio, 1.0)
  return np.where(positives > 0, 1.0 - miss, 0.0)


def top1_errors(
  similarities: np.ndarray, distances: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
  """Distance from the query to its best answer, metres; ties take the farthest.

  >>> similarities, distances = np.array([[0.5, 0.5]]), np.array([[3.0, 40.0]])
  >>> top1_errors(similarities, distances, np.ones((1, 2), bool))
  array([40.])

  Args:
    similarities: [Q, M], finite.
    distances: [Q, M].
    candidates: bool [Q, M].

  Returns:
    float [Q]; infinite for a query without candidates.
  """
  allowed = np.where(candidates, similarities, -np.inf)
  best = allowed.max(1, initial=-np.inf, keepdims=True)
  tied = candidates & (allowed >= best)
  farthest = np.where(tied, distances, -np.inf).max(1, initial=-np.inf)
  return np.where(tied.any(1), farthest, np.inf)


def best_answers(
  similarities: np.ndarray, candidates: np.ndarray, count: int
) -> np.ndarray:
  """The most similar candidates of each query, equal ones in map order.

  >>> similarities = np.array([[0.2, 0.9, 0.2, 0.5]])
  >>> best_answers(similarities, np.array([[True, False, True, True]]), 2)
  array([[3, 0]])

  Args:
    similarities: [Q, M], finite.
    candidates: bool [Q, M].
    count: K.

  Returns:
    int64 [Q, K], -1 where a query has fewer candidates.
  """
  allowed = np.where(candidates, similarities, -np.inf)
  kept = min(count, allowed.shape[1])
  if kept == 0:
    return np.full((len(allowed), count), -1)
  # Only what reaches the K-th value is sorted; of those that equal it, the
  # first in the map fill up.
  least = np.partition(allowed, -kept, axis=1)[:, [-kept]]
  above, equal = allowed > least, allowed == least
  room = kept - above.sum(1, keepdims=True)
  chosen = above | (equal & (np.cumsum(equal, axis=1) <= room))
  columns = np.nonzero(chosen)[1].reshape(len(allowed), kept)
  values = np.take_along_axis(allowed, columns, 1)
  order = np.argsort(-values, axis=1, kind='stable')
  columns = np.take_along_axis(columns, order, 1)
  valid = np.isfinite(np.take_along_axis(values, order, 1))
  unused = ((0, 0), (0, count - kept))
  return np.pad(np.where(valid, columns, -1), unused, constant_values=-1)


def posterior_mass(
  similarities: np.ndarray,
  candidates: np.ndarray,
  ground: np.ndarray,
  scale: float,
  radius: float,
) -> np.ndarray:
  """Confidence of each query's first answer, as `localization.retrieve` has it.

  softmax(scale * similarity) over the candidates, summed over those that lie
  within the radius of the most similar one, itself included.

  >>> similarities = np.log([[0.5, 0.2, 0.3]])
  >>> ground = np.array([[0.0, 0.0], [0.0, 3.0], [0.0, 80.0]])
  >>> posterior_mass(similarities, similarities < 0, ground, 1.0, 10.0).round(6)
  array([0.7])

  Args:
    similarities: [Q, M], finite.
    candidates: bool [Q, M].
    ground: [M, 2] metres; a place of unknown position is near to itself alone.
    scale: inverse temperature.
    radius: metres.

  Returns:
    float64 [Q]; NaN for a query without candidates.
  """
  allowed = np.where(candidates, similarities, -np.inf).astype(np.float64)
  first = allowed.argmax(1)
  rows = np.arange(len(allowed))
  best = allowed[rows, first]
  answered = np.isfinite(best)
  posterior = np.exp(scale * (allowed - np.where(answered, best, 0)[:, None]))
  step = ground[first][:, None] - ground
  near = np.hypot(step[..., 0], step[..., 1]) <= radius
  near[rows, first] = True
  total = np.where(answered, posterior.sum(1), np.nan)
  return np.where(near, posterior, 0).sum(1) / total


def f1_max(
  scores: np.ndarray, correct: np.ndarray, num_answerable: int
) -> float:
  """The best F1 over all thresholds on the similarity of the first answer.

  An answer is given where its score reaches the threshold. Precision is over
  the answers given, recall over the queries that have a right one, so a wrong
  answer to an answerable query costs both. Equal scores pass together.

  >>> f1_max(np.array([0.9, 0.2]), np.array([True, False]), num_answerable=1)
  1.0

  Args:
    scores: [Q] similarity of each query's first answer; -inf without one.
    correct: bool [Q], whether that answer is right.
    num_answerable: queries with a right answer, found or not.

  Returns:
    F1 in [0, 1]; 0 if nothing is answerable.
  """
  given = np.isfinite(scores)
  scores, correct = np.asarray(scores)[given], np.asarray(correct)[given]
  if not num_answerable or not len(scores):
    return 0.0
  order = np.argsort(-scores, kind='stable')
  last = np.append(np.diff(scores[order]) != 0, True)
  found, answers = np.cumsum(correct[order]), np.arange(1, len(order) + 1)
  # 2 TP / (2 TP + FP + FN) with TP + FP answers and TP + FN answerable.
  return float((2 * found / (answers + num_answerable))[last].max())


def blocks_from_travel(
  positions: np.ndarray, metres: float = 50.0
) -> np.ndarray:
  """Cuts a drive into blocks of nearly equal travel for the bootstrap.

  For frames of a fixed rate, which lie close together in slow traffic and at
  lights: there a number of frames says nothing about independence.

  >>> along = np.stack([np.arange(0.0, 120.0, 20.0), np.zeros(6)], axis=1)
  >>> blocks_from_travel(along)
  array([0, 0, 0, 1, 1, 1])

  Args:
    positions: [Q, 2] in the ground plane, in the order of travel.
    metres: about the travel of a block; the drive is cut without remainder.

  Returns:
    int64 [Q], 0 for the first block, not decreasing.
  """
  positions = np.asarray(positions, np.float64)
  steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
  travel = np.concatenate([[0.0], np.cumsum(steps)])[: len(positions)]
  total = travel[-1] if len(travel) else 0.0
  num_blocks = max(1, round(total / metres))
  blocks = np.floor(travel * num_blocks / max(total, 1e-9)).astype(np.int64)
  return np.minimum(blocks, num_blocks - 1)


def blocks_from_runs(runs: np.ndarray, length: int = 20) -> np.ndarray:
  """Cuts runs of consecutive queries into blocks for the bootstrap.

  Neighbouring frames see the same things, so they succeed and fail together.
  20 frames at 2.5 m are 50 m of street, several times the largest usual
  radius of correlation. A run is cut into nearly equal pieces: a short
  remainder would count as a block of its own.

  >>> blocks_from_runs(np.array([0, 0, 0, 0, 1]), length=3)
  array([0, 0, 1, 1, 2])

  Args:
    runs: int [Q], equal for neighbouring rows that follow each other.
    length: the most frames per block.

  Returns:
    int64 [Q], 0 for the first block, not decreasing.
  """
  runs = np.asarray(runs)
  blocks = np.zeros(len(runs), np.int64)
  borders = np.flatnonzero(runs[1:] != runs[:-1]) + 1
  used = 0
  for rows in np.split(np.arange(len(runs)), borders):
    num_blocks = max(1, -(-len(rows) // length))
    blocks[rows] = used + np.arange(len(rows)) * num_blocks // max(len(rows), 1)
    used += num_blocks
  return blocks


def blocks_from_cells(
  positions: np.ndarray, metres: float = 50.0
) -> np.ndarray:
  """Blocks of the bootstrap for readings in no order: cells of a grid.

  Photos that were taken near each other see the same and fail together.

  >>> blocks_from_cells(np.array([[1.0, 1.0], [60.0, 1.0], [9.0, 9.0]]))
  array([0, 1, 0])

  Args:
    positions: [Q, 2] in the ground plane; NaN where unknown.
    metres: side of a cell.

  Returns:
    int64 [Q]; what has no position is a block of its own.
  """
  positions = np.asarray(positions, np.float64)
  known = np.isfinite(positions).all(1)
  cells = np.floor(positions[known] / metres)
  _, cell = np.unique(cells, axis=0, return_inverse=True)
  blocks = np.arange(len(positions)) + len(positions)
  blocks[known] = cell.ravel()
  return np.unique(blocks, return_inverse=True)[1]


def bootstrap_interval(
  hits: np.ndarray,
  counted: np.ndarray,
  blocks: np.ndarray,
  *,
  level: float = 0.95,
  num_samples: int = 1000,
  seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """Percentile bootstrap of `sum(hits) / sum(counted)` over whole blocks.

  Blocks, not queries, are drawn with replacement; the statistic is recomputed
  as a ratio of sums. Its known weakness stays: where all queries agree the
  interval has no width.

  >>> hits = np.array([[1], [1], [0], [0]])
  >>> low, high = bootstrap_interval(hits, hits >= 0, np.array([0, 0, 1, 1]))
  >>> low.tolist(), high.tolist()
  ([0.0], [1.0])

  Args:
    hits: [Q, R], R statistics at once.
    counted: bool [Q, R], which queries take part; hits elsewhere are ignored.
    blocks: int [Q], what succeeds and fails together.
    level: probability that the interval should cover.
    num_samples: resamples.
    seed: of the resampling; equal seeds give equal intervals.

  Returns:
    low, high: float64 [R] in [0, 1]; (0, 1) where fewer than two blocks count,
    since one block says nothing about another.
  """
  counted = np.asarray(counted, bool)
  ids, rows = np.unique(blocks, return_inverse=True)
  sums = np.zeros((2, len(ids), counted.shape[1]))
  np.add.at(sums[0], rows, np.where(counted, hits, 0))
  np.add.at(sums[1], rows, counted)
  rng = np.random.default_rng(seed)
  drawn = rng.multinomial(
    len(ids), np.full(len(ids), 1 / max(len(ids), 1)), size=num_samples
  )
  top, bottom = drawn @ sums
  low, high = np.zeros(counted.shape[1]), np.ones(counted.shape[1])
  for i in np.flatnonzero((sums[1] > 0).sum(0) >= 2):
    # A resample without any counted query has no recall.
    used = bottom[:, i] > 0
    ratios = top[used, i] / bottom[used, i]
    low[i], high[i] = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
  return low, high
