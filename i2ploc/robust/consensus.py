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

Data are padded to a capacity and looked at block by block, so that one program
with one turn in it serves any number of data. A batch of problems is a vmap.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.robust import problem as problem_lib
from i2ploc.robust import refine as refine_lib
from i2ploc.robust import samplers
from i2ploc.robust import scoring
from i2ploc.robust import solutions
from i2ploc.robust import stopping

Scalar = jax.Array | np.ndarray | np.number | float


class Settings(NamedTuple):
  """How `estimate` searches; static, another value compiles anew.

  Attributes:
    batch: samples of a turn.
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

  batch: int = 128
  max_draws: int = 40_000
  min_draws: int = 0
  confidence: float = 0.9999
  score: str = 'msac'
  subset: int = 128
  finalists: int = 16
  refined: int = 2
  refine_steps: int = 4
  refine_data: int = 256
  chance: float = 0.01


DEFAULT = Settings()


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
  cost: Scalar
  num_draws: Scalar
  valid: jax.Array | bool


class State(NamedTuple):
  """A search after some draws.

  Attributes:
    model: the best model so far.
    cost: of the model, see `scoring`; infinite if there is none.
    found: int32 [G], its inliers among the first data, see
      `stopping.prefixes`; the last one counts all.
    draws: int32, samples whose models were all scored.
    needed: float32, draws after which no better model is to be expected.
  """

  model: problem_lib.Model
  cost: Scalar
  found: jax.Array | np.ndarray
  draws: Scalar
  needed: Scalar


class _View(NamedTuple):
  """Data of which the first `num_data` are real."""

  data: problem_lib.Data
  num_data: jax.Array


def start(problem: problem_lib.Problem, capacity: int) -> State:
  """The search before the first turn: no model. Numpy arrays.

  Args:
    problem: what to solve.
    capacity: N, data that there is room for.
  """
  return State(
    jax.tree.map(np.float32, problem.example()),
    np.float32(np.inf),
    np.zeros(len(stopping.prefixes(capacity)), np.int32),
    np.int32(0),
    np.float32(np.inf),
  )


class Asked(NamedTuple):
  """What a search is about.

  Attributes:
    sampler: which samples to draw, from its first `num_data` data; in order of
      decreasing quality if it needs that.
    data: pytree of [N].
    num_data: int32, real data, which come first; as many as the sampler's, or
      more: the others are not drawn, but count.
    threshold: residual of an inlier, at most.
    scale: of the noise, in thresholds, see `scoring`.
    key: of the samples.
  """

  sampler: samplers.Sampler
  data: problem_lib.Data
  num_data: Scalar
  threshold: Scalar
  scale: Scalar
  key: jax.Array | np.number


def advance(
  problem: problem_lib.Problem,
  settings: Settings,
  asked: Asked,
  state: State,
  limit: jax.Array | int,
) -> State:
  """The search after more turns: until it is over, or `limit` draws are done.

  Args:
    problem: what to solve.
    settings: how to search.
    asked: what is searched.
    state: where to go on; its model may be any.
    limit: draws, counted from the start of the search, after which no further
      turn begins.
  """
  capacity = len(jax.tree.leaves(asked.data)[0])
  padding = -capacity % scoring.block_size(1 << 30)
  whole = _View(
    jax.tree.map(lambda leaf: jnp.pad(leaf, (0, padding)), asked.data),
    jnp.asarray(asked.num_data, jnp.int32),
  )
  views = (
    whole,
    _subset(whole, settings.subset),
    _subset(whole, settings.refine_data),
  )
  sizes = stopping.prefixes(capacity)
  # Which of these every row is the first one to have.
  bins = np.searchsorted(sizes, np.arange(capacity + padding), side='right')

  def count(model):
    """Inliers among the first data, by how many these are."""

    def term(block, mask):
      data, place = block
      agree = mask & (problem.residual(model, data) < asked.threshold**2)
      return jnp.zeros(len(sizes), jnp.int32).at[place].add(agree)

    columns = whole.data, jnp.asarray(bins, jnp.int32)
    return jnp.cumsum(scoring.sum_blocks(term, columns, whole.num_data))

  def goes_on(state):
    left = state.draws < jnp.minimum(limit, asked.sampler.num_samples)
    left &= asked.sampler.num_data >= problem.sample_size
    return left & (state.draws < jnp.maximum(state.needed, settings.min_draws))

  def turn(state):
    return _turn(problem, settings, asked, views, count, state)

  return jax.lax.while_loop(goes_on, turn, state)


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
    sampler: see `Asked`.
    data: pytree of [N].
    threshold: residual of an inlier, at most.
    key: see `Asked`.
    settings: how to search.

  Returns:
    The estimate; degenerate data give `valid=False`.
  """
  asked = Asked(
    sampler, data, sampler.num_data, threshold, scoring.NO_SCALE, key
  )
  begin = start(problem, len(jax.tree.leaves(data)[0]))
  found = advance(problem, settings, asked, begin, settings.max_draws)
  valid = jnp.isfinite(found.cost) & (found.found[-1] > problem.sample_size)
  inliers = problem.residual(found.model, data) < threshold**2
  inliers &= jnp.arange(len(inliers)) < sampler.num_data
  return Estimate(found.model, inliers, found.cost, found.draws, valid)


# In TF32, a GPU's default, residuals would be a pixel off.
@jax.default_matmul_precision('highest')
def _turn(problem, settings, asked, views, count, state):
  """The search after a batch of samples more."""
  whole, scored_first, refined_on = views

  def total(models, view):
    return scoring.total_costs(
      problem.residual,
      models,
      *view,
      asked.threshold,
      settings.score,
      asked.scale,
    )

  def improve(models, costs):
    """The best of some models and of what refinement makes of them."""
    better, _ = jax.vmap(
      lambda model: refine_lib.refine(
        problem,
        model,
        *refined_on,
        asked.threshold,
        settings.refine_steps,
        asked.scale,
      )
    )(models)
    again = jnp.where(jnp.isfinite(costs), total(better, whole), jnp.inf)
    models = jax.tree.map(lambda *x: jnp.concatenate(x), models, better)
    costs = jnp.concatenate([costs, again])
    best = jnp.argmin(costs)
    model = _take(models, best)
    return model, costs[best], count(model)

  def keep(models, costs):
    del models, costs
    return state.model, state.cost, state.found

  indices, drawn = asked.sampler.draw(
    asked.key, state.draws, settings.batch, problem.sample_size
  )
  solved = _solve(problem, whole.data, indices, drawn)
  costs = jnp.where(solved.valid, total(solved.models, scored_first), jnp.inf)
  models, known = _best(solved.models, costs, settings.finalists)
  costs = jnp.where(jnp.isfinite(known), total(models, whole), jnp.inf)
  models, costs = _best(models, costs, settings.refined)
  model, cost, found = jax.lax.cond(
    costs[0] < state.cost, improve, keep, models, costs
  )
  draws = state.draws + solved.num_samples
  needed = asked.sampler.needed(
    found, draws, problem.sample_size, settings.confidence, settings.chance
  )
  return State(model, cost, found, draws, needed)


def _best(models, costs, count):
  """The models of least cost, best first, and their costs."""
  least, rows = jax.lax.top_k(-costs, min(count, costs.size))
  return _take(models, rows), -least


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
  and an easy problem does not wait for a hard one.
  """
  asked = sampler, data, threshold, key

  def one(asked):
    return estimate(problem, *asked, settings)

  if jax.default_backend() != 'cpu':
    return jax.vmap(one)(asked)
  return jax.lax.map(one, asked)


def _subset(whole, size):
  """`size` data, spread evenly over the real ones."""
  capacity = len(jax.tree.leaves(whole.data)[0])
  if not size or size >= capacity:
    return whole
  # One of every stretch: that needs no sort and covers all qualities. Not the
  # same place of each, which an order of the data might make special.
  stretch = jnp.maximum(whole.num_data / size, 1.0)
  places = np.arange(size) + np.random.default_rng(0).uniform(size=size)
  place = jnp.asarray(places, jnp.float32)
  rows = (place * stretch).astype(jnp.int32)
  data = jax.tree.map(lambda leaf: leaf[rows], whole.data)
  return _View(data, jnp.minimum(whole.num_data, size))


def _solve(problem, data, indices, drawn):
  """The models of samples [S, m], and how many samples count."""
  samples = jax.tree.map(lambda leaf: leaf[indices], data)
  models, valid = jax.vmap(problem.solve)(samples)
  # Where the user's default is float64, a solver's constants may be that.
  dtype = jax.tree.leaves(data)[0].dtype
  models = jax.tree.map(lambda leaf: leaf.astype(dtype), models)
  valid &= drawn[:, None]
  return solutions.gather(models, valid, problem.models_per_sample)


def _take(models, rows):
  return jax.tree.map(lambda leaf: leaf[rows], models)
