# SPDX-License-Identifier: Apache-2.0
"""How to look for a model: numpy in, numpy out, over `consensus`.

A search puts data in the order of their scores, chooses a sampler, pads to a
bucket so that similar sizes share a compiled program, and refines the winner in
float64 on all data: float32 is enough to find a model, not to report one.
"""

from collections.abc import Sequence
import functools
import math
import operator
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import compilation
from i2ploc.errors import InputError
from i2ploc.robust import consensus
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import refine
from i2ploc.robust import result
from i2ploc.robust import samplers
from i2ploc.robust import scoring

SAMPLERS = ('auto', 'uniform', 'prosac', 'exhaustive')
# 'auto' tries every sample where there are no more than one run would draw.
_FEW_SAMPLES = 1024
_SMALLEST_BUCKET = 32
_POLISH_STEPS = 3
# Data, over all problems, that are refined together.
_POLISH_TOGETHER = 4096
# Data count as noise up to so many standard deviations of the inliers' own
# residuals. The threshold cuts the tail from which that deviation is measured,
# so it is trusted only within these multiples of the threshold.
_NOISE_QUANTILE = 5.0
_NARROWEST, _WIDEST = 0.5, 1.5


class Measurements(NamedTuple):
  """The data of one problem.

  Attributes:
    data: pytree of numpy arrays [N], as the problem reads them.
    usable: [N] bool, data that may be used; None for all.
    scores: [N], higher is better; None if unknown.
  """

  data: Any
  usable: np.ndarray | None = None
  scores: np.ndarray | None = None


class Search(NamedTuple):
  """How to look for a model.

  Attributes:
    sampler: of `SAMPLERS`. 'auto' tries every sample of few data; else it is
      'prosac' where data have scores, and 'uniform' where they have none.
    seed: of the samples.
    settings: of the consensus; another value compiles anew.
  """

  sampler: str = 'auto'
  seed: int = 0
  settings: consensus.Settings = consensus.DEFAULT

  def find(
    self,
    problem: problem_lib.Problem,
    data: Any,
    threshold: float,
    *,
    usable: np.ndarray | None = None,
    scores: np.ndarray | None = None,
  ) -> result.Result:
    """The model that most data agree with.

    Args:
      problem: what to solve.
      data: pytree of numpy arrays [N], as the problem reads them.
      threshold: residual of an inlier, at most.
      usable: [N] bool, data that may be used; None for all.
      scores: [N], higher is better; they turn 'auto' into PROSAC.

    Returns:
      The result. Too few or degenerate data are no error: they give
      `valid=False` and a reason.

    Raises:
      InputError: lengths that differ, data that are not finite, a threshold
        that is not positive, an unknown sampler or cost.
    """
    measurements = Measurements(data, usable, scores)
    (found,) = self.find_each(problem, [measurements], threshold)
    return found

  def find_each(
    self,
    problem: problem_lib.Problem,
    measurements: Sequence[Measurements],
    threshold: float,
  ) -> list[result.Result]:
    """`find` for many problems in one call.

    Their sizes may differ, but all are padded to the largest and share a
    sampler: group problems of very different sizes.

    Args:
      problem: what to solve.
      measurements: of B problems.
      threshold: residual of an inlier, at most.

    Returns:
      B results.

    Raises:
      InputError: see `find`.
    """
    checked = [_checked(one, threshold, self) for one in measurements]
    found = [_too_few(problem, one) for one in checked]
    places = [i for i, answer in enumerate(found) if answer is None]
    if places:
      some = [checked[i] for i in places]
      results = _results(problem, some, threshold, self)
      for i, one in zip(places, results, strict=True):
        found[i] = one
    return found


DEFAULT = Search()


def bucket(num_data: int) -> int:
  """The number of data to pad to: one of four sizes per power of two."""
  size = max(num_data, _SMALLEST_BUCKET)
  step = max(1 << (size - 1).bit_length() - 3, 8)
  return -(-size // step) * step


class _Checked(NamedTuple):
  """Sound measurements as columns [L, N]; the rows to use, best ones first."""

  columns: np.ndarray
  tree: Any
  rows: np.ndarray
  has_scores: bool


def _results(problem, checked, threshold, search):
  """The results of problems that have enough data."""
  counts = [len(one.rows) for one in checked]
  capacity = bucket(max(counts))
  mask = np.arange(capacity) < np.asarray(counts)[:, None]
  columns = np.zeros((len(checked), len(checked[0].columns), capacity))
  for row, one in zip(columns, checked, strict=True):
    row[:, : len(one.rows)] = one.columns[:, one.rows]
  name = _sampler_name(search.sampler, problem.sample_size, checked)
  samples = [
    _sampler(name, count, problem.sample_size, capacity) for count in counts
  ]
  found = _estimate(
    problem,
    checked[0].tree,
    jax.tree.map(lambda *x: np.stack(x), *samples),
    columns.astype(np.float32),
    np.full(len(checked), threshold, np.float32),
    _keys(search.seed, len(checked)),
    search.settings,
  )
  model, valid, num_draws = jax.device_get(
    (found.model, found.valid, found.num_draws)
  )
  model = jax.tree.map(np.float64, model)
  # float64 is slow or missing on accelerators.
  with jax.enable_x64(True), jax.default_device(jax.devices('cpu')[0]):
    polished = jax.device_get(
      _polish(problem, checked[0].tree, model, columns, mask, float(threshold))
    )
  outcome = polished, valid, num_draws
  return [
    _result(problem, one, jax.tree.map(operator.itemgetter(i), outcome))
    for i, one in enumerate(checked)
  ]


def _result(problem, checked, outcome):
  """The result of one problem, in the caller's order."""
  (model, inliers, covariance, cost), valid, num_draws = outcome
  total, num_draws = checked.columns.shape[1], int(num_draws)
  if not valid:
    size = problem.sample_size
    reason = f'no sample of {size} gave a model that other data agree with'
    return result.failure(total, problem.dof, reason, num_draws)
  chosen = np.zeros(total, bool)
  chosen[checked.rows] = inliers[: len(checked.rows)]
  return result.Result(
    model, chosen, covariance, float(cost), num_draws, True, ''
  )


def _unpacked(tree, columns):
  """Leaves [B, N] of columns [B, L, N], which are one transfer, not L."""
  return jax.tree.unflatten(tree, jnp.moveaxis(columns, 1, 0))


@functools.partial(
  compilation.jit, static_argnames=('problem', 'tree', 'settings')
)
def _estimate(problem, tree, sampler, columns, threshold, key, settings):
  data = _unpacked(tree, columns)
  return consensus.estimate_each(
    problem, sampler, data, threshold, key, settings
  )


@functools.partial(compilation.jit, static_argnames=('problem', 'tree'))
def _polish(problem, tree, models, columns, mask, threshold):
  """Refined models, their inliers, covariances and costs; [B] of each."""

  def polish(arguments):
    model, data, mask = arguments
    # The model may stay where it is, so its rotation is orthonormalized first.
    model = problem.retract(model, jnp.zeros(problem.dof))
    width = _noise_width(problem, model, data, mask, threshold)
    model, _ = refine.refine(problem, model, data, mask, width, _POLISH_STEPS)
    squared = problem.residual(model, data)
    inliers = mask & (squared < threshold**2)
    covariance = refine.covariance(problem, model, data, inliers)
    cost = jnp.where(mask, jnp.minimum(squared / threshold**2, 1.0), 0.0)
    return model, inliers, covariance, cost.sum()

  # Small problems together, to save the overhead of many small operations.
  together = max(1, _POLISH_TOGETHER // mask.shape[1])
  return jax.lax.map(
    polish, (models, _unpacked(tree, columns), mask), batch_size=together
  )


def _noise_width(problem, model, data, mask, threshold):
  """Residual beyond which a datum is not noise, by the inliers' own spread.

  Least squares are best on all data with noise and no others. A threshold is a
  guess: one that cuts the tail of the noise costs several per cent of accuracy.
  """
  errors, _ = problem.linearize(model, data)
  squared = problem.residual(model, data)
  inliers = mask & (squared < threshold**2)
  freedom = inliers.sum() * len(errors) - problem.dof
  variance = jnp.sum(jnp.where(inliers, squared, 0.0)) / jnp.maximum(freedom, 1)
  width = _NOISE_QUANTILE * jnp.sqrt(variance)
  width = jnp.clip(width, _NARROWEST * threshold, _WIDEST * threshold)
  return jnp.where(freedom > problem.dof, width, threshold)


@functools.lru_cache(maxsize=64)
def _keys(seed, count):
  return jax.random.split(jax.random.key(seed), count)


def _sampler_name(name, size, checked):
  if name != 'auto':
    return name
  if max(math.comb(len(one.rows), size) for one in checked) <= _FEW_SAMPLES:
    return 'exhaustive'
  return 'prosac' if all(one.has_scores for one in checked) else 'uniform'


@functools.lru_cache(maxsize=1024)
def _sampler(name, num_data, size, capacity):
  """A sampler of numpy arrays."""
  if name == 'exhaustive':
    most = max(math.comb(num_data, size), _FEW_SAMPLES)
    made = samplers.make_exhaustive(num_data, size, most)
  elif name == 'prosac':
    made = samplers.make_prosac(num_data, size, capacity)
  else:
    made = samplers.Uniform(jnp.asarray(num_data, jnp.int32))
  return jax.tree.map(np.asarray, made)


def _too_few(problem, checked):
  """The result where there are no data beyond a sample; else None."""
  count, size = len(checked.rows), problem.sample_size
  if count > size:
    return None
  reason = f'{count} data, but more than {size} are needed'
  return result.failure(checked.columns.shape[1], problem.dof, reason)


def _checked(measurements, threshold, search):
  """Measurements with their rows in order; InputError for unsound ones."""
  if search.sampler not in SAMPLERS:
    raise InputError(f'unknown sampler {search.sampler!r}; known: {SAMPLERS}')
  scoring.check_score(search.settings.score)
  if not (np.isfinite(threshold) and threshold > 0):
    raise InputError(f'the threshold must be positive, not {threshold}')
  data, usable, scores = measurements
  leaves, tree = jax.tree.flatten(data)
  named = [np.asarray(leaf, np.float64) for leaf in leaves]
  total = len(named[0])
  usable = np.ones(total, bool) if usable is None else np.asarray(usable, bool)
  if scores is not None:
    named.append(np.asarray(scores, np.float64))
  for column in [*named, usable]:
    if column.shape != (total,):
      raise InputError(
        f'data, scores and usable must be [N]: {list(column.shape)} beside '
        f'{total} data'
      )
  columns = np.stack(named)
  spoiled = usable & ~np.isfinite(columns).all(axis=0)
  if spoiled.any():
    raise InputError(
      f'{spoiled.sum()} data or scores are not finite, first row '
      f'{np.flatnonzero(spoiled)[0]}; leave them out'
    )
  rows = np.flatnonzero(usable)
  if scores is not None:
    rows = rows[np.argsort(-columns[-1, rows], kind='stable')]
  return _Checked(columns[: len(leaves)], tree, rows, scores is not None)
