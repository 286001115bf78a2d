# SPDX-License-Identifier: Apache-2.0
"""The front of `consensus` for one problem: numpy in, numpy out.

It puts data in the order of their scores, chooses a sampler, pads to a bucket
so that nothing compiles twice for nothing, and polishes the winner in float64
on all data: float32 is enough to find a model, not to report one.
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
from i2ploc.robust import samplers
from i2ploc.robust import scoring

SAMPLERS = ('auto', 'uniform', 'prosac', 'exhaustive')
# 'auto' tries every sample where there are no more than one run would draw.
_FEW_SAMPLES = 1024
_SMALLEST_BUCKET = 32
_POLISH_STEPS = 3
_POLISH_TOGETHER = 4096
# All of a Gaussian lies within so many deviations, even where the threshold has
# cut what few inliers tell of it; that is believed within these shares of the
# threshold.
_NOISE_QUANTILE = 5.0
_NARROWEST, _WIDEST = 0.5, 1.5


class Found(NamedTuple):
  """A model and what speaks for it; data in the caller's order.

  Attributes:
    model: pytree of float64 arrays; None unless `valid`.
    inliers: [N] bool, data within the threshold.
    num_inliers: their number.
    covariance: [dof, dof] of the step of the problem's `retract`, from the
      inliers' own residuals; infinite where these do not determine the model.
    cost: sum of min(r^2, t^2) / t^2 over the data that were used.
    num_draws: minimal samples drawn.
    valid: whether there is a model.
    reason: why not; empty if valid.
  """

  model: Any
  inliers: np.ndarray
  num_inliers: int
  covariance: np.ndarray
  cost: float
  num_draws: int
  valid: bool
  reason: str


def bucket(num_data: int) -> int:
  """To how many data so many are padded: four sizes per power of two."""
  size = max(num_data, _SMALLEST_BUCKET)
  step = max(1 << (size - 1).bit_length() - 3, 8)
  return -(-size // step) * step


class Question(NamedTuple):
  """One problem of several.

  Attributes:
    data: pytree of numpy arrays [N], as the problem reads them.
    usable: [N] bool, data that may have a say; None for all.
    scores: [N], higher is better; None if unknown.
  """

  data: Any
  usable: np.ndarray | None = None
  scores: np.ndarray | None = None


def search(
  problem: problem_lib.Problem,
  data: Any,
  threshold: float,
  *,
  usable: np.ndarray | None = None,
  scores: np.ndarray | None = None,
  sampler: str = 'auto',
  seed: int = 0,
  settings: consensus.Settings = consensus.DEFAULT,
) -> Found:
  """The model that most data agree with.

  Args:
    problem: what to solve.
    data: pytree of numpy arrays [N], as the problem reads them.
    threshold: residual of an inlier, at most.
    usable: [N] bool, data that may have a say; all by default.
    scores: [N], higher is better; they turn 'auto' into PROSAC.
    sampler: of `SAMPLERS`.
    seed: of the samples.
    settings: how to search.

  Returns:
    What was found. Too few or degenerate data are no error: they give
    `valid=False` and a reason.

  Raises:
    InputError: lengths that differ, data that are not finite, a threshold that
      is not positive, an unknown sampler or cost.
  """
  question = Question(data, usable, scores)
  (found,) = search_each(
    problem,
    [question],
    threshold,
    sampler=sampler,
    seed=seed,
    settings=settings,
  )
  return found


def search_each(
  problem: problem_lib.Problem,
  questions: Sequence[Question],
  threshold: float,
  *,
  sampler: str = 'auto',
  seed: int = 0,
  settings: consensus.Settings = consensus.DEFAULT,
) -> list[Found]:
  """`search` of many problems in one call; their sizes may differ.

  They share a bucket and a sampler: sort very different ones into groups.
  """
  asked = [_checked(q, threshold, sampler, settings) for q in questions]
  found = [_too_few(problem, q) for q in asked]
  places = [i for i, answer in enumerate(found) if answer is None]
  if places:
    some = [asked[i] for i in places]
    answers = _answers(problem, some, threshold, sampler, seed, settings)
    for i, answer in zip(places, answers, strict=True):
      found[i] = answer
  return found


class _Asked(NamedTuple):
  """A question that makes sense: rows that are used, in order of quality."""

  columns: np.ndarray
  tree: Any
  rows: np.ndarray
  has_scores: bool


def _answers(problem, asked, threshold, sampler, seed, settings):
  """What is found for questions of enough data."""
  counts = [len(q.rows) for q in asked]
  capacity = bucket(max(counts))
  mask = np.arange(capacity) < np.asarray(counts)[:, None]
  columns = np.zeros((len(asked), len(asked[0].columns), capacity))
  for row, q in zip(columns, asked, strict=True):
    row[:, : len(q.rows)] = q.columns[:, q.rows]
  name = _sampler_name(sampler, problem.sample_size, asked)
  samples = [
    _sampler(name, count, problem.sample_size, capacity) for count in counts
  ]
  found = _estimate(
    problem,
    asked[0].tree,
    jax.tree.map(lambda *x: np.stack(x), *samples),
    columns.astype(np.float32),
    np.full(len(asked), threshold, np.float32),
    _keys(seed, len(asked)),
    settings,
  )
  model, valid, num_draws = jax.device_get(
    (found.model, found.valid, found.num_draws)
  )
  model = jax.tree.map(np.float64, model)
  # An accelerator has no float64 to speak of.
  with jax.enable_x64(True), jax.default_device(jax.devices('cpu')[0]):
    polished = jax.device_get(
      _polish(problem, asked[0].tree, model, columns, mask, float(threshold))
    )
  outcome = polished, valid, num_draws
  return [
    _answer(problem, q, jax.tree.map(operator.itemgetter(i), outcome))
    for i, q in enumerate(asked)
  ]


def _answer(problem, asked, outcome):
  (model, inliers, covariance, cost), valid, num_draws = outcome
  if not valid:
    size = problem.sample_size
    reason = f'no sample of {size} gave a model that other data agree with'
    return _nothing(problem, asked.columns.shape[1], int(num_draws), reason)
  chosen = np.zeros(asked.columns.shape[1], bool)
  chosen[asked.rows] = inliers[: len(asked.rows)]
  count, num_draws = int(chosen.sum()), int(num_draws)
  return Found(
    model, chosen, count, covariance, float(cost), num_draws, True, ''
  )


def _unpacked(tree, columns):
  """Leaves [B, N] of columns [B, L, N]: one transfer instead of many."""
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
    # What float32 left of a rotation is made good, wherever the best one is.
    model = problem.retract(model, jnp.zeros(problem.dof))
    width = _noise_width(problem, model, data, mask, threshold)
    model, _ = refine.refine(problem, model, data, mask, width, _POLISH_STEPS)
    squared = problem.residual(model, data)
    inliers = mask & (squared < threshold**2)
    covariance = refine.covariance(problem, model, data, inliers)
    cost = jnp.where(mask, jnp.minimum(squared / threshold**2, 1.0), 0.0)
    return model, inliers, covariance, cost.sum()

  # Small problems together, so that calls cost less than numbers.
  together = max(1, _POLISH_TOGETHER // mask.shape[1])
  return jax.lax.map(
    polish, (models, _unpacked(tree, columns), mask), batch_size=together
  )


def _noise_width(problem, model, data, mask, threshold):
  """Residual beyond which a datum is not noise, by the inliers' own spread.

  Least squares want all the noise and nothing else. A threshold cuts its tail
  or lets in more, as it was guessed; what it cuts costs several per cent.
  """
  errors = problem.errors(model, data)
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


def _sampler_name(name, size, asked):
  if name != 'auto':
    return name
  if max(math.comb(len(q.rows), size) for q in asked) <= _FEW_SAMPLES:
    return 'exhaustive'
  return 'prosac' if all(q.has_scores for q in asked) else 'uniform'


@functools.lru_cache(maxsize=1024)
def _sampler(name, num_data, size, capacity):
  """A sampler of numpy arrays."""
  if name == 'exhaustive':
    most = max(math.comb(num_data, size), _FEW_SAMPLES)
    made = samplers.make_exhaustive(num_data, size, most)
  elif name == 'prosac':
    made = samplers.make_prosac(num_data, size, capacity)
  else:
    made = samplers.Uniform(np.int32(num_data))
  return jax.tree.map(np.asarray, made)


def _too_few(problem, asked):
  """The answer where a sample is all there is, or None."""
  count, size = len(asked.rows), problem.sample_size
  if count > size:
    return None
  reason = f'{count} data, but more than {size} are needed'
  return _nothing(problem, asked.columns.shape[1], 0, reason)


def _nothing(problem, total, num_draws, reason):
  covariance = np.full((problem.dof, problem.dof), np.inf)
  return Found(
    None,
    np.zeros(total, bool),
    0,
    covariance,
    np.inf,
    num_draws,
    False,
    reason,
  )


def _checked(question, threshold, sampler, settings):
  """The question with its rows in order; ValueError for what cannot be."""
  if sampler not in SAMPLERS:
    raise InputError(f'unknown sampler {sampler!r}; known: {SAMPLERS}')
  scoring.check_score(settings.score)
  if not (np.isfinite(threshold) and threshold > 0):
    raise InputError(f'the threshold must be positive, not {threshold}')
  leaves, tree = jax.tree.flatten(question.data)
  named = [np.asarray(leaf, np.float64) for leaf in leaves]
  total = len(named[0])
  usable, scores = question.usable, question.scores
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
  return _Asked(columns[: len(leaves)], tree, rows, scores is not None)
