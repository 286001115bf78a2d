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
    batch: samples per turn.
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

  batch: int = 128
  max_draws: int = 30_000
  min_draws: int = 0
  confidence: float = 0.9999
  score: str = 'msac'
  subset: int = 128
  finalists: int = 32
  refined: int = 4
  refine_steps: int = 4
  refine_data: int = 512
  chance: float = 0.01


DEFAULT = Settings()


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
  num_data = sampler.num_data
  mask = jnp.arange(len(jax.tree.leaves(data)[0])) < num_data
  sample_key, subset_key = jax.random.split(key)
  limit = jnp.asarray(threshold) ** 2
  # Any order will do for a subset, but one in which quality has no say.
  some = _subset(subset_key, mask, settings.subset, data)
  few = _subset(subset_key, mask, settings.refine_data, data)

  total = functools.partial(
    scoring.total_costs,
    problem.residual,
    data=data,
    mask=mask,
    threshold=threshold,
    score=settings.score,
  )

  def body(search):
    indices, drawn = sampler.draw(
      sample_key, search.draws, settings.batch, problem.sample_size
    )
    models, valid = _solve(problem, data, indices, drawn)
    models, valid = _finalists(
      problem, settings, models, valid, some, threshold
    )
    model, cost = _best(
      problem, settings, models, valid, few, total, search.cost, threshold
    )
    better = cost < search.cost
    model = jax.tree.map(
      lambda a, b: jnp.where(better, a, b), model, search.model
    )
    inliers = mask & (problem.residual(model, data) < limit)
    draws = search.draws + settings.batch
    return _Search(
      model,
      jnp.where(better, cost, search.cost),
      inliers,
      draws,
      _needed(problem, sampler, settings, inliers, draws),
    )

  def goes_on(search):
    left = search.draws < settings.max_draws
    left &= search.draws < sampler.num_samples
    wanted = search.draws < jnp.maximum(search.needed, settings.min_draws)
    return left & wanted

  first = _first(problem, data, mask)
  # A GPU's TF32 would lose a pixel.
  with jax.default_matmul_precision('highest'):
    search = jax.lax.while_loop(goes_on, body, first)
  valid = jnp.isfinite(search.cost)
  valid &= search.inliers.sum() > problem.sample_size
  return Estimate(
    search.model, search.inliers, search.cost, search.draws, valid
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
  easy problem does not wait for a hard one.
  """

  def one(arguments):
    return estimate(problem, *arguments, settings)

  arguments = sampler, data, threshold, key
  if jax.default_backend() == 'cpu':
    return jax.lax.map(one, arguments)
  return jax.vmap(one)(arguments)


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


def _subset(key, mask, size, data):
  """`size` of the data, drawn evenly from the real ones, and their mask."""
  if not size or size >= mask.size:
    return data, mask
  drawn = jax.random.uniform(key, mask.shape) - mask
  # The smallest are the real ones, in random order.
  _, rows = jax.lax.top_k(-drawn, size)
  return jax.tree.map(lambda leaf: leaf[rows], data), mask[rows]


def _first(problem, data, mask):
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
    jnp.zeros_like(mask),
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


def _finalists(problem, settings, models, valid, some, threshold):
  """The models that explain a subset of the data best, and whether valid."""
  subset, subset_mask = some
  cost = functools.partial(
    scoring.total_costs,
    problem.residual,
    threshold=threshold,
    score=settings.score,
  )
  # A solver has fewer solutions than slots: half of them are enough, for all
  # but a batch that has no inliers anyway.
  if problem.num_solutions > 2:
    (rows,) = jnp.nonzero(valid, size=valid.size // 2, fill_value=0)
    models, valid = _take(models, rows), valid[rows]
  costs = cost(models, subset, subset_mask)
  costs = jnp.where(valid, costs, jnp.inf)
  best, rows = jax.lax.top_k(-costs, min(settings.finalists, costs.size))
  return _take(models, rows), jnp.isfinite(best)
