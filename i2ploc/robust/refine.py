# SPDX-License-Identifier: Apache-2.0
"""Nonlinear least squares, for any model, and the covariance of a fit.

`minimize` is Levenberg and Marquardt's method on any cost that can be
linearized. `refine` applies it to a `Problem`: it minimises the truncated sum
of min(r^2, t^2), so that data beyond the threshold have no influence, and which
these are is decided again at every step (as in LO-RANSAC; Chum et al., 2003).
The number of steps is fixed: all models of a batch take them together.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from i2ploc.robust import problem as problem_lib
from i2ploc.robust import scoring


class Equations(NamedTuple):
  """A cost at a model, and the normal equations of a step from there.

  Attributes:
    cost: what is minimised; an infinite or undefined cost is never accepted.
    matrix: [dof, dof], J^T J, weighted.
    gradient: [dof], J^T e, weighted.
    rest: pytree of what else the caller wants to know of the best model.
  """

  cost: jax.Array
  matrix: jax.Array
  gradient: jax.Array
  rest: Any = ()


class Damping(NamedTuple):
  """How the damping of steps changes.

  Each diagonal entry d of the matrix grows by damping * max(d, floor * largest
  d): small damping gives Gauss and Newton's step, large damping a short step
  along the gradient.

  Attributes:
    first: damping of the first step.
    least: damping, at least.
    most: damping, at most.
    easier: factor after a step that lowers the cost.
    harder: factor after any other step.
    floor: share of the largest diagonal entry that the others count as.
  """

  first: float = 1e-3
  least: float = 1e-8
  most: float = 1e6
  easier: float = 0.1
  harder: float = 10.0
  floor: float = 1e-12


DAMPING = Damping()


class _State(NamedTuple):
  """The best model so far, its equations, and the next model to try."""

  model: problem_lib.Model
  equations: Equations
  damping: jax.Array
  trial: problem_lib.Model


def minimize(
  linearize: Callable[[problem_lib.Model], Equations],
  retract: Callable[[problem_lib.Model, jax.Array], problem_lib.Model],
  model: problem_lib.Model,
  num_steps: int | jax.Array,
  damping: Damping = DAMPING,
) -> tuple[problem_lib.Model, Equations]:
  """The model of least cost near a given one (Levenberg and Marquardt).

  Every model is linearized once: the equations that decide whether a step is
  accepted are those of the next step.

  Args:
    linearize: `model -> equations`.
    retract: `model, step [dof] -> model`, a nearby model.
    model: where to start; it is linearized as it is.
    num_steps: steps to try.
    damping: how far steps go.

  Returns:
    model: the best one, the given one if no step lowers its cost.
    equations: at this model.
  """

  linearize = jax.jit(linearize)  # traced once

  def judged(state):
    found = linearize(state.trial)
    better = (found.cost < state.equations.cost) & _finite(state.trial)
    model, equations = jax.tree.map(
      lambda a, b: jnp.where(better, a, b),
      (state.trial, found),
      (state.model, state.equations),
    )
    return model, equations, better

  def turn(_, state):
    model, equations, better = judged(state)
    strength = jnp.clip(
      state.damping * jnp.where(better, damping.easier, damping.harder),
      damping.least,
      damping.most,
    )
    diagonal = jnp.diagonal(equations.matrix)
    least = damping.floor * diagonal.max() + 1e-30
    ridge = jnp.diag(strength * jnp.maximum(diagonal, least))
    step = -_solve(equations.matrix + ridge, equations.gradient)
    return _State(model, equations, strength, retract(model, step))

  nothing = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(linearize, model),
  )
  # Any finite cost is less: the first turn accepts the start.
  nothing = nothing._replace(cost=jnp.full_like(nothing.cost, jnp.inf))
  strength = jnp.full_like(nothing.cost, damping.first / damping.easier)
  with jax.default_matmul_precision('highest'):
    state = jax.lax.fori_loop(
      0, num_steps, turn, _State(model, nothing, strength, model)
    )
    # Outside of the loop XLA computes no more of the last equations than the
    # caller uses: often the cost alone.
    model, equations, _ = judged(state)
  return model, equations


def _solve(matrix, vector):
  """x of A x = b for a small positive definite A; zero if A is not.

  Gauss and Jordan's elimination, which needs no pivots there: a call of LAPACK
  takes longer than these few operations.
  """
  size = len(vector)
  rows = jnp.arange(size)

  def eliminate(k, system):
    row = jax.lax.dynamic_index_in_dim(system, k, axis=0, keepdims=False)
    column = jax.lax.dynamic_index_in_dim(system, k, axis=1, keepdims=False)
    pivot = jnp.sum(jnp.where(rows == k, column, 0.0))
    row = row / jnp.maximum(pivot, 1e-30)
    left = system - column[:, None] * row
    return jnp.where((rows == k)[:, None], row, left)

  system = jnp.concatenate([matrix, vector[:, None]], axis=1)
  x = jax.lax.fori_loop(0, size, eliminate, system)[:, size]
  return jnp.where(jnp.isfinite(x).all(), x, 0.0)


def _finite(model):
  leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(model)]
  return jnp.stack(leaves).all()


def _linearize(problem, model, data, mask, limit):
  """The equations of the data within the limit, a squared threshold."""
  value, jacobian = problem.linearize(model, data)
  squared = problem.residual(model, data)
  counts = mask & (squared < limit)
  # One product per component: joined, they would be copied number by number.
  parts = [
    jnp.where(counts, rows, 0.0) for rows in jnp.unstack(jacobian, axis=1)
  ]
  value = jnp.where(counts, value, 0.0)
  return Equations(
    jnp.sum(jnp.where(mask, jnp.minimum(squared, limit), 0.0)),
    _total([rows @ rows.T for rows in parts]),
    _total([rows @ errors for rows, errors in zip(parts, value, strict=True)]),
  )


def _total(arrays: list[jax.Array]) -> jax.Array:
  return functools.reduce(jnp.add, arrays)


def refine(
  problem: problem_lib.Problem,
  model: problem_lib.Model,
  data: problem_lib.Data,
  num_data: jax.Array | int,
  threshold: jax.Array,
  num_steps: int = 10,
) -> tuple[problem_lib.Model, jax.Array]:
  """Fits one model to the data that agree with it.

  Args:
    problem: see `Problem`.
    model: where to start.
    data: pytree of [N].
    num_data: real data, which come first.
    threshold: residual beyond which a datum has no influence.
    num_steps: steps to try.

  Returns:
    model: never of a higher cost than the given one.
    cost: its sum of min(r^2, threshold^2) over the real data.
  """
  limit = jnp.asarray(threshold) ** 2
  num_data = jnp.asarray(num_data, jnp.int32)

  def linearize(model):
    return scoring.sum_blocks(
      lambda block, mask: _linearize(problem, model, block, mask, limit),
      data,
      num_data,
    )

  model, equations = minimize(linearize, problem.retract, model, num_steps)
  return model, equations.cost


def covariance(
  problem: problem_lib.Problem,
  model: problem_lib.Model,
  data: problem_lib.Data,
  inliers: jax.Array,
) -> jax.Array:
  """Covariance [dof, dof] of the step that `retract` takes at a model.

  s^2 (J^T J)^-1 with s^2 the residuals' own variance, over the inliers.
  Infinite where these do not determine the model.
  """
  matrix = _linearize(problem, model, data, inliers, jnp.inf).matrix
  errors, _ = problem.linearize(model, data)
  count = inliers.sum() * len(errors)
  squared = jnp.sum(jnp.where(inliers, errors**2, 0.0))
  freedom = count - problem.dof
  variance = squared / jnp.maximum(freedom, 1)
  scale = 1 / jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), 1e-30))
  scaled = matrix * scale[:, None] * scale
  values, vectors = jnp.linalg.eigh(scaled)
  determined = (freedom > 0) & (values[0] > 1e-6)
  inverse = vectors @ jnp.diag(1 / jnp.maximum(values, 1e-6)) @ vectors.T
  inverse = variance * inverse * scale[:, None] * scale
  return jnp.where(determined, inverse, jnp.inf)
