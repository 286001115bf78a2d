# SPDX-License-Identifier: Apache-2.0
"""Whether a model means anything: its data against what chance would give.

Some model agrees with part of any data, and a search looks for that one. So a
model is more than chance only if many more data agree than random data would.
Three numbers decide:

- How many data there are and agree. Copies of a datum, and data so near each
  other that they agree together or not at all, count once.
- The chance that a wrong datum agrees, measured on random data: where data are
  pairs, partners are exchanged; where they are points, these keep their
  distances from the middle of those that agree, but lie in random directions.
  So points that crowd are accounted for.
- The number of models that could have been tried: all minimal samples.

The number of models times the probability of as many agreements is the expected
number of false alarms (Moisan and Stival, A probabilistic criterion to detect
rigid point matches, IJCV 2004; here the background is measured).

A model may still be open where many data agree: a plane leaves a fundamental
matrix undetermined. What that means is the problem's to say: see
`Problem.degeneracy`.

Everything is numpy in float64, and costs little beside a search.
"""

import functools
import math
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
from scipy import special

from i2ploc.robust import problem as problem_lib

# Expected number of false alarms below which a model is more than chance.
FALSE_ALARMS = 1e-3
# Random data whose agreement is measured: few at first, and so many where these
# do not decide.
_FEW, _MANY = 256, 8192
# Data of as many cells are compared one by one.
_COMPARED = 64
# Odd numbers that make one key of the numbers of a cell.
_MIXERS = np.array(
  [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9]
  + [0x27D4EB2F165667C5, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD],
  np.uint64,
)
# Noise of inliers, as a share of the threshold.
_TYPICAL_NOISE = 0.3
# A rival's data are so many thresholds away from the model.
_RIVAL_REACH = 3.0


class Evidence(NamedTuple):
  """What speaks for a model.

  Attributes:
    num_data: distinct data; all of them where that makes no difference.
    num_inliers: distinct data that agree with the model.
    share: probability that a random datum agrees.
    false_alarms: expected number of models as good as this one in random data.
    reason: why the model cannot be trusted; empty if it can.
    model: the one to report: that which was weighed, unless the data determine
      only a part of it.
  """

  num_data: int
  num_inliers: int
  share: float
  false_alarms: float
  reason: str
  model: Any

  @property
  def valid(self) -> bool:
    """Whether the model can be trusted."""
    return not self.reason


def weigh(
  problem: problem_lib.Problem,
  model: Any,
  data: Any,
  inliers: np.ndarray,
  threshold: float,
  covariance: np.ndarray | None = None,
) -> Evidence:
  """The evidence for a model.

  Args:
    problem: what was solved.
    model: pytree of numpy arrays.
    data: pytree of numpy arrays [N], usable data alone.
    inliers: [N] bool, data that agree with the model.
    threshold: residual of an inlier, at most.
    covariance: of the fit, if it is known.
  """
  size = problem.sample_size
  count = int(np.count_nonzero(inliers))
  if count <= size:
    total = distinct(problem, data, threshold)
    return Evidence(
      total,
      count,
      1.0,
      math.inf,
      f'{count} data agree, but more than {size} are needed',
      model,
    )
  agreeing = chosen(data, inliers)
  count = distinct(problem, agreeing, threshold)
  total, share, alarms = _alarms(
    problem, model, data, agreeing, threshold, (data, count, size)
  )
  if alarms >= FALSE_ALARMS:
    reason = (
      f'{count} of {total} distinct data agree, of which '
      f'{min(size, count)} would in any case and {share * total:.1f} by chance'
    )
    return Evidence(total, count, share, alarms, reason, model)
  reason = ''
  if problem.degeneracy is not None:
    reason, model = problem.degeneracy(model, data, inliers, threshold)
  if not reason and covariance is not None:
    if not np.isfinite(covariance).all():
      reason = 'the data that agree leave the model undetermined'
  return Evidence(total, count, share, alarms, reason, model)


def beyond(
  problem: problem_lib.Problem,
  model: Any,
  data: Any,
  inliers: np.ndarray,
  rest: np.ndarray,
  threshold: float,
  sample_size: int = 2,
) -> int | None:
  """What data that a simpler model does not explain say for a model.

  Args:
    problem: what was solved.
    model: pytree of numpy arrays.
    data: pytree of numpy arrays [N].
    inliers: [N] bool, data that agree with the model.
    rest: [N] bool, data that the simpler model does not explain.
    threshold: residual of an inlier, at most.
    sample_size: data that make a model of a simpler one.

  Returns:
    None if more of these agree than chance explains, else how many do.
  """
  count = distinct(problem, chosen(data, rest & inliers), threshold)
  _, _, alarms = _alarms(
    problem,
    model,
    data,
    chosen(data, inliers),
    threshold,
    (chosen(data, rest), count, sample_size),
  )
  return None if alarms < FALSE_ALARMS else count


def _alarms(problem, model, data, agreeing, threshold, numbers):
  """Distinct data, the chance of a random one, the expected false alarms.

  `numbers` are the data of which some agree, how many distinct ones do, and how
  many make a sample.
  """
  some, count, size = numbers
  # More data make less of the same inliers: copies among the others matter only
  # where these do not do.
  total = len(jax.tree.leaves(some)[0])

  def alarms(share):
    return false_alarms(total, count, size, share, problem.models_per_sample)

  hits = _hits(problem, model, data, agreeing, threshold, _FEW)
  # What few random data leave open: two deviations to either side.
  spread = 2 * math.sqrt(hits + 1)
  most = min((hits + spread + 1) / (_FEW + 1), 1.0)
  if (found := alarms(most)) < FALSE_ALARMS:
    return total, most, found
  total = distinct(problem, some, threshold)
  least = max((hits - spread) / _FEW, 1 / (_MANY + 1))
  if (found := alarms(least)) >= FALSE_ALARMS:
    return total, (hits + 1) / (_FEW + 1), found
  share = chance(problem, model, data, agreeing, threshold, _MANY)
  return total, share, alarms(share)


def chosen(data: Any, rows: np.ndarray) -> Any:
  """The given rows of all leaves."""
  return jax.tree.map(lambda leaf: leaf[rows], data)


def false_alarms(
  num_data: int,
  num_inliers: int,
  sample_size: int,
  share: float,
  num_models: int = 1,
) -> float:
  """Expected number of models as good as this one among random data.

  The number of models of all samples, times the binomial tail.

  Args:
    num_data: N.
    num_inliers: data that agree with the model.
    sample_size: m, data that the model was made of, which agree in any case.
    share: probability that a random datum agrees.
    num_models: models of a sample.
  """
  left, agreeing = num_data - sample_size, num_inliers - sample_size
  if agreeing <= 0 or agreeing <= share * left:
    return math.inf
  tail = float(special.bdtrc(agreeing - 1, left, share))
  # Logarithms: the number of samples may be beyond float64.
  log = _log_samples(num_data, sample_size) + math.log(num_models)
  log += math.log(max(tail, 1e-300))
  return math.exp(log) if log < 700 else math.inf


def _log_samples(num_data, sample_size):
  """Logarithm of the number of all samples."""
  return (
    math.lgamma(num_data + 1)
    - math.lgamma(sample_size + 1)
    - math.lgamma(num_data - sample_size + 1)
  )


@functools.lru_cache(maxsize=4096)
def smallest_valid(
  num_data: int, sample_size: int, share: float, num_models: int = 1
) -> int:
  """The least number of inliers that is more than chance.

  Args:
    num_data: N, distinct data.
    sample_size: m.
    share: probability that a random datum agrees.
    num_models: models of a sample.

  Returns:
    From m + 1 to N; N + 1 if even N would not do.
  """
  low, high = sample_size, num_data + 1
  while high - low > 1:
    middle = (low + high) // 2
    alarms = false_alarms(num_data, middle, sample_size, share, num_models)
    if alarms < FALSE_ALARMS:
      high = middle
    else:
      low = middle
  return high


def sides(problem: problem_lib.Problem, data: Any) -> list[np.ndarray]:
  """The points [D, N] of each side of the data."""
  leaves = jax.tree.leaves(data)
  if problem.sides is None:
    return [np.stack(leaves)]
  found, start = [], 0
  for count in problem.sides.leaves:
    found.append(np.stack(leaves[start : start + count]))
    start += count
  return found


def distinct(problem: problem_lib.Problem, data: Any, threshold: float) -> int:
  """How many of the data count as independent.

  Data that are nearer to each other than two thresholds agree together or not
  at all, so they count once, on whichever side they are near.

  Args:
    problem: of the data.
    data: pytree of numpy arrays [N].
    threshold: residual of an inlier, at most.
  """
  parts = sides(problem, data)
  if problem.sides is not None:
    parts = [parts[i] for i in problem.sides.counted]
  return min(_num_distinct(part, 2 * threshold) for part in parts)


def _num_distinct(points, width):
  """How many of the points [D, N] are further than a width apart."""
  num_data = points.shape[1]
  if num_data > _COMPARED:
    cells = np.floor(points * (1 / width)).astype(np.int64).view(np.uint64)
    keys = (cells * _MIXERS[: len(cells), None]).sum(axis=0)
    order = np.argsort(keys)
    keys = keys[order]
    first = np.ones(num_data, bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    count = int(np.count_nonzero(first))
    if count > _COMPARED:
      return count
    # Points on either side of a border are still one.
    points = points[:, order[first]]
  if points.shape[1] < 2:
    return points.shape[1]
  squared = (points**2).sum(axis=0)
  away = squared[:, None] + squared
  away -= 2 * (points.T @ points)
  # Those without an earlier one nearby.
  near = np.tril(away < width**2, -1).any(axis=1)
  return int(near.size - np.count_nonzero(near))


@functools.cache
def _random_numbers():
  """Two numbers [2, _MANY] from 0 to 1, and as many directions [3, _MANY]."""
  rng = np.random.default_rng(0)
  return rng.uniform(0, 1, (2, _MANY)), rng.normal(size=(3, _MANY))


def _hits(problem, model, data, agreeing, threshold, count):
  """How many of `count` random data agree with a model."""
  leaves, tree = jax.tree.flatten(data)
  numbers, directions = _random_numbers()
  num_data = len(leaves[0])
  first = (numbers[0, :count] * num_data).astype(np.intp)
  if problem.sides is not None and len(problem.sides.leaves) > 1:
    # Never a datum's own partner.
    second = 1 + (numbers[1, :count] * (num_data - 1)).astype(np.intp)
    second += first
    second[second >= num_data] -= num_data
    half = problem.sides.leaves[0]
    columns = [leaf[first] for leaf in leaves[:half]]
    columns += [leaf[second] for leaf in leaves[half:]]
  else:
    points = np.stack(leaves)
    middle = np.stack(jax.tree.leaves(agreeing)).mean(axis=1, keepdims=True)
    offsets = points - middle
    radius = np.sqrt((offsets**2).sum(axis=0))[first]
    ways = directions[: len(points), :count]
    columns = middle + ways * (radius / np.sqrt((ways**2).sum(axis=0)))
  squared = problem.residual(model, jax.tree.unflatten(tree, columns))
  return int(np.count_nonzero(np.asarray(squared) < threshold**2))


def chance(
  problem: problem_lib.Problem,
  model: Any,
  data: Any,
  agreeing: Any,
  threshold: float,
  count: int = _FEW,
) -> float:
  """Probability that a random datum agrees with a model.

  Args:
    problem: what was solved.
    model: pytree of numpy arrays.
    data: pytree of numpy arrays [N].
    agreeing: those of the data that agree with the model.
    threshold: residual of an inlier, at most.
    count: random data that are looked at, at most 8,192.
  """
  hits = _hits(problem, model, data, agreeing, threshold, count)
  return (hits + 1) / (count + 1)


def others(
  problem: problem_lib.Problem, model: Any, data: Any, threshold: float
) -> np.ndarray:
  """[N] bool, data that may support a rival.

  A model near the first one is no rival, so these data are well out of reach.
  """
  squared = np.asarray(problem.residual(model, data))
  return squared > (_RIVAL_REACH * threshold) ** 2


def confidence(proof: Evidence, rival: Evidence | None = None) -> float:
  """How likely the model is the right one, from 0 to 1.

  Its share of the support beyond chance, its own and the rival's.

  Args:
    proof: of the model.
    rival: of the best model of the other data, if there is one.
  """
  if not proof.valid:
    return 0.0
  own = proof.num_inliers - proof.share * proof.num_data
  other = 0.0
  if rival is not None and rival.false_alarms < FALSE_ALARMS:
    other = rival.num_inliers - rival.share * rival.num_data
  known = 1 - min(proof.false_alarms, 1.0)
  return known * own / (own + max(other, 0.0))


def narrow(points: np.ndarray, threshold: float) -> str:
  """'in one place' or 'on a line' where points [D, N] are that, else ''."""
  num_data = points.shape[1]
  if num_data < 2:
    return ''
  offsets = points - points.mean(axis=1, keepdims=True)
  *_, second, first = np.linalg.eigvalsh(offsets @ offsets.T / num_data)
  if first < threshold**2:
    return 'in one place'
  return 'on a line' if second < threshold**2 else ''


def undetermined(
  problem: problem_lib.Problem,
  model: Any,
  data: Any,
  inliers: np.ndarray,
  threshold: float,
  largest: np.ndarray,
) -> bool:
  """Whether some step of a model hardly changes its residuals.

  Args:
    problem: what was solved.
    model: pytree of numpy arrays.
    data: pytree of numpy arrays [N].
    inliers: [N] bool, data that agree with the model.
    threshold: residual of an inlier, at most.
    largest: [dof], steps by which a model that means anything is known.
  """
  _, jacobian = problem.linearize(model, chosen(data, inliers))
  slope = jacobian.reshape(problem.dof, -1) * largest[:, None]
  least = np.linalg.eigvalsh(slope @ slope.T)[0]
  return bool(least < (_TYPICAL_NOISE * threshold) ** 2)
