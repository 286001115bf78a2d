# SPDX-License-Identifier: Apache-2.0
"""Hypothesise and verify: samples, models, scores, refinement, stopping.

Every turn

1. draws a batch of minimal samples and solves them;
2. scores all models on a part of the data, and the best of them, the finalists,
   on all data (preemption; Nister, 2003);
3. refines the best finalists if one of them is a new best;
4. stops if no better model is to be expected.

Several models are refined because a minimal sample of noisy data seldom gives a
model that all inliers agree with: at a fixed number of samples this decides
between success and failure (LO-RANSAC; Chum et al., 2003).

Shapes are static, data are padded, and a batch of problems is a vmap.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.robust import problem as problem_lib
from i2ploc.robust import refine as refine_lib
from i2ploc.robust import samplers
from i2ploc.robust import scoring
from i2ploc.robust import solutions


class Settings(NamedTuple):
  """How `estimate` searches; static, another value compiles anew.

  Attributes:
    first_batch: samples of the first turn; easy problems need no second one.
    batch: samples of every other turn.
    max_draws: samples after which no further turn begins.
    min_draws: samples before which the search does not stop.
    confidence: probability that no better model is left, see `stopping`.
    score: name of a cost in `scoring.COSTS`.
    subset: data that all models are scored on; 0 for all data.
    finalists: models of a turn that are scored on all data.
    refined: finalists that are refined.
    refine_steps: steps of `refine.refine`.
    refine_data: data that a refinement looks at; 0 for all data.
    chance: probability that a datum agrees with a wrong model; used to stop
      PROSAC.
  """

  first_batch: int = 128
  batch: int = 512
  max_draws: int = 40_000
  min_draws: int = 0
  confidence: float = 0.9999
  score: str = 'msac'
  subset: int = 128
  finalists: int = 64
  refined: int = 4
  refine_steps: int = 4
  refine_data: int = 512
  chance: float = 0.01


DEFAULT = Settings()
# Data, over all problems, whose first turns a CPU computes together.
_STARTED_TOGETHER = 1024


class Estimate(NamedTuple):
  """The best model of a search, on device and in float32; see also `result`.

  Attributes:
    model: the best model; finite, and without meaning unless `valid`.
    inliers: [N] bool, data within the threshold.
    cost: of the model, see `scoring`; infinite if no sample gave a model.
    num_draws: int32, samples that were drawn and whose models were all scored.
    valid: bool, whether more data agree with the model than a sample holds.
  """

  model: problem_lib.Model
  inliers: jax.Array | np.ndarray
  cost: jax.Array | float
  num_draws: jax.Array | int
  valid: jax.Array | bool


class _Search(NamedTuple):
  model: problem_lib.Model
  cost: jax.Array
  inliers: jax.Array
  draws: jax.Array
  needed: jax.Array


def estimate(
  problem: problem_lib.Problem,
  sampler: samplers.Sampler,
  data: problem_lib.Data,
  threshold: jax.Array,
  key: jax.Array,
  settings: Settings = DEFAULT,
) -> Estimate:
  """The model that most data agree with.

  Jit it with `problem` and `settings` static, and vmap it over the others.

  Args:
    problem: what to solve.
    sampler: which samples to draw, from its first `num_data` data; in order of
      decreasing quality if it needs that.
    data: pytree of [N].
    threshold: residual of an inlier, at most.
    key: of the samples, and of the data that models are scored on first.
    settings: how to search.

  Returns:
    The estimate; degenerate data give `valid=False`.
  """
  asked = _Asked(sampler, data, threshold, key)
  return _finish(problem, settings, asked, *_start(problem, settings, asked))


class _Asked(NamedTuple):
  sampler: samplers.Sampler
  data: problem_lib.Data
  threshold: jax.Array
  key: jax.Array


class _Views(NamedTuple):
  """Which data are real, and two parts of the data with their masks."""

  mask: jax.Array
  scored_first: Any
  refined_on: Any


def _start(problem, settings, asked):
  """The search after its first turn, and the data that every turn uses."""
  sampler, data, _, key = asked
  mask = jnp.arange(len(jax.tree.leaves(data)[0])) < sampler.num_data
  key, other = jax.random.split(jax.random.split(key)[1])
  views = _Views(
    mask,
    _subset(key, sampler.num_data, settings.subset, data),
    _subset(other, sampler.num_data, settings.refine_data, data),
  )
  search = _first(problem, data)
  if settings.first_batch == settings.batch:
    return search, views  # leaves the only turn to `_finish`
  search = _turn(problem, settings, asked, views, search, settings.first_batch)
  return search, views


def _finish(problem, settings, asked, search, views):
  """The estimate at the end of a search."""

  def goes_on(search):
    left = search.draws < settings.max_draws
    left &= search.draws < asked.sampler.num_samples
    wanted = search.draws < jnp.maximum(search.needed, settings.min_draws)
    return left & wanted

  def turn(search):
    return _turn(problem, settings, asked, views, search, settings.batch)

  search = jax.lax.while_loop(goes_on, turn, search)
  valid = jnp.isfinite(search.cost)
  valid &= search.inliers.sum() > problem.sample_size
  return Estimate(
    search.model, search.inliers, search.cost, search.draws, valid
  )


# In TF32, a GPU's default, residuals would be a pixel off.
@jax.default_matmul_precision('highest')
def _turn(problem, settings, asked, views, search, count):
  """The search after `count` more samples."""
  sampler, data, threshold, key = asked
  total = functools.partial(
    scoring.total_costs,
    problem.residual,
    threshold=threshold,
    score=settings.score,
  )
  indices, drawn = sampler.draw(
    jax.random.split(key)[0], search.draws, count, problem.sample_size
  )
  solved = _solve(problem, data, indices, drawn)
  models, valid = _finalists(settings, solved, views, total)
  model, found = _best(
    problem,
    settings,
    models,
    valid,
    views.refined_on,
    lambda models: total(models, data, views.mask),
    search.cost,
    threshold,
  )
  better = found < search.cost
  model = jax.tree.map(
    lambda a, b: jnp.where(better, a, b), model, search.model
  )
  inliers = views.mask & (problem.residual(model, data) < threshold**2)
  draws = search.draws + solved.num_samples
  needed = sampler.needed(
    inliers,
    draws,
    problem.sample_size,
    settings.confidence,
    settings.chance,
  )
  least = jnp.where(better, found, search.cost)
  return _Search(model, least, inliers, draws, needed)


def estimate_each(
  problem: problem_lib.Problem,
  sampler: samplers.Sampler,
  data: problem_lib.Data,
  threshold: jax.Array,
  key: jax.Array,
  settings: Settings = DEFAULT,
) -> Estimate:
  """`estimate` of B problems in one call.

  All arguments but `problem` and `settings` gain a leading axis B. An
  accelerator computes a turn of all problems at once, until the last one is
  done. A CPU solves one problem after the other: its data stay in the cache,
  and an easy problem does not wait for a hard one. Only the first turns of
  small problems are computed together, which saves the overhead of many small
  operations.
  """
  asked = _Asked(sampler, data, threshold, key)
  if jax.default_backend() != 'cpu':
    return jax.vmap(lambda one: estimate(problem, *one, settings))(asked)
  number, size = jax.tree.leaves(data)[0].shape
  together = min(max(_STARTED_TOGETHER // size, 1), number)
  started = jax.lax.map(
    functools.partial(_start, problem, settings),
    asked,
    batch_size=together if together > 1 else None,
  )
  return jax.lax.map(
    lambda one: _finish(problem, settings, one[0], *one[1]), (asked, started)
  )


def _best(problem, settings, models, valid, few, total, known, threshold):
  """The best model and its cost; refined only if it beats the known cost."""
  costs = jnp.where(valid, total(models), jnp.inf)
  rows = jax.lax.top_k(-costs, min(settings.refined, costs.size))[1]
  models, costs = _take(models, rows), costs[rows]

  def refined(models, costs):
    better, _ = jax.vmap(
      lambda model: refine_lib.refine(
        problem, model, *few, threshold, settings.refine_steps
      )
    )(models)
    again = jnp.where(jnp.isfinite(costs), total(better), jnp.inf)
    models = jax.tree.map(lambda *x: jnp.concatenate(x), models, better)
    costs = jnp.concatenate([costs, again])
    best = jnp.argmin(costs)
    return _take(models, best), costs[best]

  def as_they_are(models, costs):
    return _take(models, 0), costs[0]

  return jax.lax.cond(costs[0] < known, refined, as_they_are, models, costs)


def _subset(key, num_data, size, data):
  """`size` data, spread evenly over the real ones, and their mask."""
  capacity = len(jax.tree.leaves(data)[0])
  if not size or size >= capacity:
    return data, jnp.arange(capacity) < num_data
  # One of every stretch: that needs no sort and covers all qualities.
  stretch = jnp.maximum(num_data / size, 1.0)
  place = jnp.arange(size) + jax.random.uniform(key, (size,))
  rows = (place * stretch).astype(jnp.int32)
  return jax.tree.map(lambda leaf: leaf[rows], data), rows < num_data


def _first(problem, data):
  """The state before the first turn: no model."""
  sample = jax.tree.map(lambda leaf: leaf[: problem.sample_size], data)
  shape = jax.eval_shape(problem.solve, sample)[0]
  model = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), shape
  )
  dtype = jax.tree.leaves(model)[0].dtype
  return _Search(
    model,
    jnp.asarray(jnp.inf, dtype),
    jnp.zeros(len(jax.tree.leaves(data)[0]), bool),
    jnp.asarray(0, jnp.int32),
    jnp.asarray(jnp.inf, jnp.float32),
  )


def _solve(problem, data, indices, drawn):
  """The models of samples [S, m], and how many samples count."""
  samples = jax.tree.map(lambda leaf: leaf[indices], data)
  models, valid = jax.vmap(problem.solve)(samples)
  valid &= drawn[:, None]
  return solutions.gather(models, valid, problem.models_per_sample)


def _take(models, rows):
  return jax.tree.map(lambda leaf: leaf[rows], models)


def _finalists(settings, solved, views, cost):
  """The models that explain a part of the data best, and whether valid."""
  costs = cost(solved.models, *views.scored_first)
  costs = jnp.where(solved.valid, costs, jnp.inf)
  best, rows = jax.lax.top_k(-costs, min(settings.finalists, costs.size))
  return _take(solved.models, rows), jnp.isfinite(best)
