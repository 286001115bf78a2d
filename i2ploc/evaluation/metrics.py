# SPDX-License-Identifier: Apache-2.0
"""Recall, chance, intervals and errors of retrieval, on plain numpy arrays.

Conventions, stated once:
- A map reading is a positive of a query if it lies within the radius of it,
  horizontally (x east, y north; height is not a place) and inclusively.
- Ties are pessimistic: a positive is found at N only if fewer than N negatives
  have a similarity that is equal to or above its own. A model that says the
  same about everything has recall 0, not 100.
- A query without a positive among its candidates is not answerable. Recall is
  over answerable queries; over all queries (those count as misses, as in the
  SaliencyI2PLoc evaluation) it is reported under a name of its own.
- `candidates` [Q, M] says which map readings a query may be answered with; the
  self-match policy decides it, and positives and chance follow it.
"""

import numpy as np


def horizontal_distances(queries: np.ndarray, places: np.ndarray) -> np.ndarray:
  """Distances in the ground plane, metres.

  Args:
    queries: [Q, 3] positions, z up.
    places: [M, 3] positions of the same town.

  Returns:
    float32 [Q, M]; differences are taken in float64.
  """
  queries = np.asarray(queries, np.float64)
  places = np.asarray(places, np.float64)
  east = queries[:, None, 0] - places[:, 0]
  north = queries[:, None, 1] - places[:, 1]
  return np.hypot(east, north).astype(np.float32)


def allowed_candidates(
  query_drives: np.ndarray,
  query_times: np.ndarray,
  map_drives: np.ndarray,
  map_times: np.ndarray,
  *,
  exclude_self: bool,
  exclude_within: float = 0.0,
) -> np.ndarray:
  """The self-match policy: which map readings may answer which query.

  Args:
    query_drives: [Q] labels.
    query_times: [Q], seconds or frame numbers, comparable inside a drive.
    map_drives: [M].
    map_times: [M], in the unit of `query_times`.
    exclude_self: remove map readings of the query's own drive and time. False
      allows everything, as LIP-Loc and SaliencyI2PLoc do.
    exclude_within: with `exclude_self`, remove the readings of the query's own
      drive up to this far in time as well, in the unit of `query_times`.

  Returns:
    bool [Q, M].

  Raises:
    ValueError: `exclude_within` without `exclude_self`, or negative.
  """
  if exclude_within < 0 or (exclude_within > 0 and not exclude_self):
    raise ValueError(
      f'exclude_within={exclude_within} with exclude_self={exclude_self}:'
      ' neighbours in time are excluded only together with the query itself.'
    )
  shape = (len(query_drives), len(map_drives))
  if not exclude_self:
    return np.ones(shape, bool)
  same = np.asarray(query_drives)[:, None] == np.asarray(map_drives)
  apart = np.abs(np.asarray(query_times)[:, None] - np.asarray(map_times))
  return ~(same & (apart <= exclude_within))


def pessimistic_ranks(
  similarities: np.ndarray, positives: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
  """How many negatives are at least as similar as the best positive.

  Args:
    similarities: [Q, M], finite.
    positives: bool [Q, M].
    candidates: bool [Q, M]; others are neither positives nor negatives.

  Returns:
    int64 [Q]; the query is answered at N if its rank is below N. M where no
    candidate is a positive.

  Raises:
    ValueError: similarities that are not finite (a NaN would compare as
      smaller than every positive, that is, flatter the model).
  """
  similarities = np.asarray(similarities)
  if not np.isfinite(similarities).all():
    rows = np.flatnonzero(~np.isfinite(similarities).all(1))
    raise ValueError(
      f'Similarities of {len(rows)} queries are not finite, first queries'
      f' {rows[:5].tolist()}; the model gives broken descriptors.'
    )
  positives = positives & candidates
  best = np.where(positives, similarities, -np.inf).max(1, initial=-np.inf)
  above = candidates & ~positives & (similarities >= best[:, None])
  ranks = above.sum(1)
  return np.where(positives.any(1), ranks, similarities.shape[1])


def one_percent(num_candidates: np.ndarray) -> np.ndarray:
  """N of recall@1%: ceil(M / 100), at least 1."""
  return np.maximum(-(-np.asarray(num_candidates) // 100), 1)


def chance(
  num_positives: np.ndarray,
  num_candidates: np.ndarray,
  num_retrieved: int | np.ndarray,
) -> np.ndarray:
  """Probability that N random distinct candidates hold a positive.

  `1 - C(M - P, N) / C(M, N)`, as a product of N ratios: exact, without
  factorials.

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


def blocks_from_runs(runs: np.ndarray, length: int = 20) -> np.ndarray:
  """Cuts runs of consecutive queries into blocks for the bootstrap.

  Neighbouring frames see the same things, so they succeed and fail together.
  20 frames at 2.5 m are 50 m of street, several times the largest usual
  radius of correlation. A run is cut into nearly equal pieces: a short
  remainder would count as a block of its own.

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

  Args:
    hits: [Q, R], R statistics at once.
    counted: bool [Q, R], which queries take part; hits elsewhere are ignored.
    blocks: int [Q], from `blocks_from_runs`.
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
