# SPDX-License-Identifier: Apache-2.0
"""RANSAC and PROSAC as they are printed: one sample at a time, to be read.

What `consensus` does in batches on device, a loop does here, on the host, in
numpy and without refinement. Tests compare the two; nothing else needs this.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import itertools
import math
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
from scipy import stats

from i2ploc import compilation
from i2ploc.robust import problem as problem_lib

# Of the paper: chance explains so many inliers in one case of twenty.
_CHANCE_LEVEL = 0.05


class Answer(NamedTuple):
  """The best model of a loop.

  Attributes:
    model: None if no sample gave one.
    inliers: [N] bool.
    cost: sum of min(r^2, t^2) / t^2.
    num_draws: samples that were tried.
  """

  model: Any
  inliers: np.ndarray
  cost: float
  num_draws: int


def uniform_samples(
  rng: np.random.Generator, num_data: int, sample_size: int
) -> Iterator[np.ndarray]:
  """Samples without end, every one with the same probability."""
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
  """Samples of ordered data without end, from a pool that grows.

  Args:
    rng: draws them.
    num_data: N, in order of decreasing quality.
    sample_size: m.
    num_draws: T_N, after which PROSAC equals RANSAC.

  Yields:
    [m] indices; while the pool of the n best is new, the n-th is among them.
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
  """Draws of which one is of inliers only, with the given probability."""
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
  """Whether a wrong model has so many inliers too, more often than `level`.

  It has m of its own; each other datum agrees with probability `chance`.
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
  """Draws after which some pool of the best data leaves nothing to hope for.

  Samples have come from all of it, its inliers are more than chance gives
  (non-randomness), and one more sample is hardly better (maximality).
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
) -> Answer:
  """Hypothesise and verify.

  Args:
    problem: what to solve.
    data: pytree of [N].
    threshold: residual of an inlier, at most.
    samples: [m] indices each, tried in this order.
    needed: `inliers of the best model -> samples after which to stop`; None
      tries them all.

  Returns:
    The model of the least cost.
  """
  solve, residual = (
    compilation.jit(problem.solve),
    compilation.jit(problem.residual),
  )
  data = jax.tree.map(np.asarray, data)
  none = np.zeros(len(jax.tree.leaves(data)[0]), bool)
  best, enough = Answer(None, none, math.inf, 0), math.inf
  for num_draws, sample in enumerate(samples, 1):
    models, valid = solve(_rows(data, sample))
    for i in np.flatnonzero(valid):
      model = _rows(models, i)
      squared = np.asarray(residual(model, data), np.float64) / threshold**2
      cost = np.minimum(squared, 1).sum()
      if cost < best.cost:
        best = Answer(model, squared < 1, cost, num_draws)
        enough = needed(best.inliers) if needed else math.inf
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
) -> Answer:
  """Random sample consensus (Fischler and Bolles, CACM 1981).

  Args:
    problem: what to solve.
    data: pytree of [N].
    threshold: residual of an inlier, at most.
    rng: draws the samples.
    max_draws: of samples, at most.
    confidence: of having tried a sample of inliers when it stops.
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
) -> Answer:
  """Progressive sample consensus (Chum and Matas, CVPR 2005).

  Args:
    problem: what to solve.
    data: pytree of [N], in order of decreasing quality.
    threshold: residual of an inlier, at most.
    rng: draws the samples.
    max_draws: of samples, at most.
    confidence: of having tried a sample of inliers when it stops.
    chance: probability with which a datum agrees with a wrong model.
  """
  m, num_data = problem.sample_size, len(jax.tree.leaves(data)[0])
  return search(
    problem,
    data,
    threshold,
    itertools.islice(prosac_samples(rng, num_data, m), max_draws),
    lambda inliers: prosac_needed(inliers, m, confidence, chance),
  )
