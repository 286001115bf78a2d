# SPDX-License-Identifier: Apache-2.0
"""The one loop of this library: samples, models, scores, refinement, stop.

Every turn takes a batch of minimal samples, solves them all, scores all models
on some of the data and the best of them on all (preemption; Nister, 2003),
refines the few that remain if one of them is a new best, and asks whether a
better one is to be expected. Refinement of several models is no luxury: a
minimal sample of noisy data is rarely within reach of all inliers, and at a
fixed budget it decides between success and failure (LO-RANSAC; Chum et al.,
2003).

Shapes are static, data are padded, and a batch of problems is a vmap.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from i2ploc.robust import problem as problem_lib
from i2ploc.robust import refine as refine_lib
from i2ploc.robust import samplers
from i2ploc.robust import scoring
from i2ploc.robust import stopping


class Settings(NamedTuple):
  """How `estimate` searches; static, a change compiles anew.

  Attributes:
    first_batch: samples of the first turn, which is all that most need.
    batch: samples of every other turn.
    max_draws: of samples, at most; whole turns are taken.
    min_draws: at least.
    confidence: with which no better model is left, see `stopping`.
    score: of `scoring.COSTS`.
    subset: data of the first scores; 0 for all.
    finalists: models of a turn that are scored on all data.
    refined: of these, models that are refined.
    refine_steps: of Levenberg and Marquardt, for each of these.
    refine_data: data that refinement looks at; 0 for all.
    chance: probability with which a datum agrees with a wrong model; used to
      stop PROSAC.
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
# Data of the problems whose first turns a CPU takes at once.
_STARTED_TOGETHER = 1024


class Estimate(NamedTuple):
  """What was found.

  Attributes:
    model: the best model.
    inliers: [N] bool, data within the threshold.
    cost: of the model, see `scoring`.
    num_draws: int32, samples drawn.
    valid: bool; False where no sample gave a model with more inliers than a
      sample holds. Degenerate data end here.
  """

  model: problem_lib.Model
  inliers: jax.Array
  cost: jax.Array
  num_draws: jax.Array
  valid: jax.Array


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
    sampler: which samples to draw; its `num_data` says how many data are real,
      which come first, the best of them first where it asks for quality.
    data: pytree of [N].
    threshold: residual of an inlier, at most.
    key: of the samples, and of the data that are looked at first.
    settings: how to search.

  Returns:
    The estimate; `valid` is False where there is none.
  """
  asked = _Asked(sampler, data, threshold, key)
  return _finish(problem, settings, asked, *_start(problem, settings, asked))


class _Asked(NamedTuple):
  sampler: samplers.Sampler
  data: problem_lib.Data
  threshold: jax.Array
  key: jax.Array


class _Views(NamedTuple):
  """Which data are real, and parts of all data with their masks."""

  mask: jax.Array
  scored_first: Any
  refined_on: Any


def _start(problem, settings, asked):
  """The search after its first turn, and what every turn looks at."""
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
    return search, views  # one program less to compile
  search = _turn(problem, settings, asked, views, search, settings.first_batch)
  return search, views


def _finish(problem, settings, asked, search, views):
  """What is found when the search has come to its end."""

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


# A GPU's TF32 would lose a pixel.
@jax.default_matmul_precision('highest')
def _turn(problem, settings, asked, views, search, count):
  """The search after `count` more samples."""
  sampler, data, threshold, key = asked
  cost = functools.partial(
    scoring.total_costs,
    problem.residual,
    threshold=threshold,
    score=settings.score,
  )
  indices, drawn = sampler.draw(
    jax.random.split(key)[0], search.draws, count, problem.sample_size
  )
  models, valid = _solve(problem, data, indices, drawn)
  models, valid = _finalists(problem, settings, models, valid, views, cost)
  model, found = _best(
    problem,
    settings,
    models,
    valid,
    views.refined_on,
    lambda models: cost(models, data, views.mask),
    search.cost,
    threshold,
  )
  better = found < search.cost
  model = jax.tree.map(
    lambda a, b: jnp.where(better, a, b), model, search.model
  )
  inliers = views.mask & (problem.residual(model, data) < threshold**2)
  draws = search.draws + count
  return _Search(
    model,
    jnp.where(better, found, search.cost),
    inliers,
    draws,
    _needed(problem, sampler, settings, inliers, draws),
  )


def estimate_each(
  problem: problem_lib.Problem,
  sampler: samplers.Sampler,
  data: problem_lib.Data,
  threshold: jax.Array,
  key: jax.Array,
  settings: Settings = DEFAULT,
) -> Estimate:
  """`estimate` of many problems in one call; all but two gain an axis B.

  An accelerator takes a turn of all problems at once, until the last is done.
  A CPU takes one problem after the other: its data stay in the cache, and an
  easy problem does not wait for a hard one. Only the first turns of small
  problems, which all need, are taken together: calls cost more than numbers.
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
  """The best of the models and its cost; refined if better than is known."""
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


def _needed(problem, sampler, settings, inliers, draws):
  """Draws after which the search may end."""
  if isinstance(sampler, samplers.Exhaustive):
    return jnp.asarray(jnp.inf, jnp.float32)  # whoever asks for all gets all
  m, confidence = problem.sample_size, settings.confidence
  needed = stopping.ransac_draws(inliers.sum(), sampler.num_data, m, confidence)
  if not hasattr(sampler, 'growth'):
    return needed
  early = stopping.prosac_draws(
    inliers, sampler.growth, draws, m, confidence, settings.chance
  )
  return jnp.minimum(needed, early)


def _subset(key, num_data, size, data):
  """`size` of the data, spread evenly over the real ones, and their mask."""
  capacity = len(jax.tree.leaves(data)[0])
  if not size or size >= capacity:
    return data, jnp.arange(capacity) < num_data
  # One from every stretch: no sort, and all qualities have a say.
  stretch = jnp.maximum(num_data / size, 1.0)
  place = jnp.arange(size) + jax.random.uniform(key, (size,))
  rows = (place * stretch).astype(jnp.int32)
  return jax.tree.map(lambda leaf: leaf[rows], data), rows < num_data


def _first(problem, data):
  """Before the first turn: no model."""
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
  """Models [S V] of samples [S, m], and which are valid."""
  samples = jax.tree.map(lambda leaf: leaf[indices], data)
  models, valid = jax.vmap(problem.solve)(samples)
  valid &= drawn[:, None]
  flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), models)
  return flat, valid.reshape(-1)


def _take(models, rows):
  return jax.tree.map(lambda leaf: leaf[rows], models)


def _finalists(problem, settings, models, valid, views, cost):
  """The models that explain a subset of the data best, and whether valid."""
  # A solver has fewer solutions than slots: half of them are enough, for all
  # but a batch that has no inliers anyway.
  if problem.num_solutions > 2:
    (rows,) = jnp.nonzero(valid, size=valid.size // 2, fill_value=0)
    models, valid = _take(models, rows), valid[rows]
  costs = cost(models, *views.scored_first)
  costs = jnp.where(valid, costs, jnp.inf)
  best, rows = jax.lax.top_k(-costs, min(settings.finalists, costs.size))
  return _take(models, rows), jnp.isfinite(best)
