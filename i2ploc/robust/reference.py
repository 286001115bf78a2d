# SPDX-License-Identifier: Apache-2.0
"""RANSAC and PROSAC as in their papers, one sample at a time.

This is `consensus` as a plain loop in numpy, on the host and without
refinement: to be read, and for tests to compare with.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import itertools
import math
from typing import Any

import jax
import numpy as np
from scipy import stats

from i2ploc import compilation
from i2ploc.robust import consensus
from i2ploc.robust import problem as problem_lib

# Level of the paper's test: chance gives as many inliers in one case of twenty.
_CHANCE_LEVEL = 0.05


def uniform_samples(
  rng: np.random.Generator, num_data: int, sample_size: int
) -> Iterator[np.ndarray]:
  """Endless samples, each subset with the same probability."""
  while True:
    yield rng.choice(num_data, sample_size, replace=False)


def prosac_growth(
  num_data: int, sample_size: int, num_draws: int = 200_000
) -> list[int]:
  """T'_n for n = 0 to N: the last draw that may hold the n-th datum.

  Args:
    num_data: N.
    sample_size: m.
    num_draws: T_N, after which PROSAC equals RANSAC.
  """
  m = sample_size
  expected = float(num_draws)  # T_n, for n = m
  for i in range(m):
    expected *= (m - i) / (num_data - i)
  last = [0] * m + [1]
  for n in range(m, num_data):
    following = expected * (n + 1) / (n + 1 - m)
    step = following - expected
    # Rounding must not lift a whole number to the next one.
    last.append(last[-1] + math.ceil(step - 1e-9 * max(step, 1.0)))
    expected = following
  return last


def prosac_samples(
  rng: np.random.Generator,
  num_data: int,
  sample_size: int,
  num_draws: int = 200_000,
) -> Iterator[np.ndarray]:
  """Endless samples of ordered data, from a pool that grows.

  Args:
    rng: of the samples.
    num_data: N, in order of decreasing quality.
    sample_size: m.
    num_draws: T_N, after which PROSAC equals RANSAC.

  Yields:
    [m] indices; while a pool of the n best lasts, the n-th is among them.
  """
  m, n = sample_size, sample_size
  last = prosac_growth(num_data, m, num_draws)
  for t in itertools.count(1):
    while n < num_data and t > last[n]:
      n += 1
    if t > last[n]:
      yield rng.choice(num_data, m, replace=False)
    else:
      yield np.append(rng.choice(n - 1, m - 1, replace=False), n - 1)


def ransac_needed(
  inliers: np.ndarray, sample_size: int, confidence: float
) -> float:
  """Draws of which one consists of inliers, with the given probability."""
  right = 1.0
  for j in range(sample_size):
    right *= max(inliers.sum() - j, 0) / (len(inliers) - j)
  if right in (0.0, 1.0):
    return math.inf if right == 0.0 else 1.0
  return math.log(1 - confidence) / math.log(1 - right)


def is_random(
  num_inliers: int,
  num_data: int,
  sample_size: int,
  chance: float,
  level: float = _CHANCE_LEVEL,
) -> bool:
  """Whether a wrong model has as many inliers more often than `level`.

  Its own m data agree, and each other datum with probability `chance`.
  """
  others = num_data - sample_size
  tail = stats.binom.sf(num_inliers - sample_size - 1, others, chance)
  return bool(tail >= level)


def prosac_needed(
  inliers: np.ndarray,
  sample_size: int,
  confidence: float,
  chance: float,
  level: float = _CHANCE_LEVEL,
) -> float:
  """Draws after which the inliers of some pool of the best data suffice.

  Samples have come from all of the pool, its inliers are more than chance gives
  (non-randomness), and no better sample is to be expected (maximality).
  """
  m, found = sample_size, math.inf
  last = prosac_growth(len(inliers), m)
  for n in range(m + 1, len(inliers) + 1):
    needed = max(ransac_needed(inliers[:n], m, confidence), last[n - 1] + 1)
    if needed < found and not is_random(inliers[:n].sum(), n, m, chance, level):
      found = needed
  return found


def search(
  problem: problem_lib.Problem,
  data: Any,
  threshold: float,
  samples: Iterable[np.ndarray],
  needed: Callable[[np.ndarray], float] | None = None,
) -> consensus.Estimate:
  """Hypothesise and verify.

  Args:
    problem: what to solve.
    data: pytree of [N].
    threshold: residual of an inlier, at most.
    samples: [m] indices each, tried in this order.
    needed: `inliers of the best model -> samples after which to stop`; None
      tries them all.

  Returns:
    The model of the least cost, in numpy; None if no sample gave one.
  """
  solve, residual = (
    compilation.jit(problem.solve),
    compilation.jit(problem.residual),
  )
  data = jax.tree.map(np.asarray, data)
  none = np.zeros(len(jax.tree.leaves(data)[0]), bool)
  best = consensus.Estimate(None, none, math.inf, 0, False)
  enough = math.inf
  for num_draws, sample in enumerate(samples, 1):
    models, valid = solve(_rows(data, sample))
    for i in np.flatnonzero(valid):
      model = _rows(models, i)
      squared = np.asarray(residual(model, data), np.float64) / threshold**2
      cost = np.minimum(squared, 1).sum()
      if cost < best.cost:
        inliers = squared < 1
        valid = bool(inliers.sum() > problem.sample_size)
        best = consensus.Estimate(model, inliers, cost, num_draws, valid)
        enough = needed(inliers) if needed else math.inf
    best = best._replace(num_draws=num_draws)
    if num_draws >= enough:
      break
  return best


def _rows(tree, rows):
  return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], tree)


def ransac(
  problem: problem_lib.Problem,
  data: Any,
  threshold: float,
  rng: np.random.Generator,
  *,
  max_draws: int = 10_000,
  confidence: float = 0.9999,
) -> consensus.Estimate:
  """Random sample consensus (Fischler and Bolles, CACM 1981).

  Args:
    problem: what to solve.
    data: pytree of [N].
    threshold: residual of an inlier, at most.
    rng: of the samples.
    max_draws: samples, at most.
    confidence: probability of having tried a sample of inliers at the end.
  """
  m, num_data = problem.sample_size, len(jax.tree.leaves(data)[0])
  return search(
    problem,
    data,
    threshold,
    itertools.islice(uniform_samples(rng, num_data, m), max_draws),
    lambda inliers: ransac_needed(inliers, m, confidence),
  )


def prosac(
  problem: problem_lib.Problem,
  data: Any,
  threshold: float,
  rng: np.random.Generator,
  *,
  max_draws: int = 10_000,
  confidence: float = 0.9999,
  chance: float = 0.05,
) -> consensus.Estimate:
  """Progressive sample consensus (Chum and Matas, CVPR 2005).

  Args:
    problem: what to solve.
    data: pytree of [N], in order of decreasing quality.
    threshold: residual of an inlier, at most.
    rng: of the samples.
    max_draws: samples, at most.
    confidence: probability of having tried a sample of inliers at the end.
    chance: probability that a datum agrees with a wrong model.
  """
  m, num_data = problem.sample_size, len(jax.tree.leaves(data)[0])
  return search(
    problem,
    data,
    threshold,
    itertools.islice(prosac_samples(rng, num_data, m), max_draws),
    lambda inliers: prosac_needed(inliers, m, confidence, chance),
  )
