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

  def turn(_, state):
    found = linearize(state.trial)
    better = (found.cost < state.equations.cost) & _finite(state.trial)
    model, equations = jax.tree.map(
      lambda a, b: jnp.where(better, a, b),
      (state.trial, found),
      (state.model, state.equations),
    )
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
    # The last turn judges the last step. Its own step is for nothing, but a
    # second copy of the equations would take as long again to compile.
    state = jax.lax.fori_loop(
      0, num_steps + 1, turn, _State(model, nothing, strength, model)
    )
  return state.model, state.equations


def _solve(matrix, vector):
  """x of A x = b for a small positive definite A; zero if A is not.

  Gauss and Jordan's elimination; such a matrix needs no exchange of rows. A
  call of LAPACK takes longer to run, and Cholesky's method written out takes
  as long to compile as all the rest of a step.
  """
  rows = jnp.arange(len(vector))

  def eliminate(k, table):
    row = table[k] / jnp.maximum(table[k, k], 1e-30)
    factors = jnp.where(rows == k, table[:, k] - 1, table[:, k])
    return table - factors[:, None] * row

  table = jnp.concatenate([matrix, vector[:, None]], axis=1)
  x = jax.lax.fori_loop(
    0, len(vector), eliminate, table, unroll=jax.default_backend() != 'cpu'
  )[:, -1]
  return jnp.where(jnp.isfinite(x).all(), x, 0.0)


def _finite(model):
  leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(model)]
  return jnp.stack(leaves).all()


def _linearize(problem, model, data, mask, limit, scale):
  """The equations of the data within the limit, a squared threshold."""
  value, jacobian = problem.linearize(model, data)
  squared = problem.residual(model, data)
  counts = mask & (squared < limit)
  # Without a limit all data count, in their own unit.
  unit = jnp.where(jnp.isfinite(limit), limit, 1.0)
  part = jnp.minimum(squared, limit) / unit
  # The slope of the cost, but for a factor.
  weights = jnp.where(counts, (scale**2 / (part + scale**2)) ** 2, 0.0)
  # One product per component: joined, they would be copied number by number.
  parts = [
    (jnp.where(counts, rows, 0.0), rows * weights)
    for rows in jnp.unstack(jacobian, axis=1)
  ]
  value = jnp.where(counts, value, 0.0)
  return Equations(
    jnp.sum(jnp.where(mask, scoring.scaled(part, scale), 0.0)),
    _total([weighted @ rows.T for rows, weighted in parts]),
    _total(
      [
        jnp.where(counts, weighted, 0.0) @ errors
        for (_, weighted), errors in zip(parts, value, strict=True)
      ]
    ),
  )


def _total(arrays: list[jax.Array]) -> jax.Array:
  return functools.reduce(jnp.add, arrays)


def refine(
  problem: problem_lib.Problem,
  model: problem_lib.Model,
  data: problem_lib.Data,
  num_data: jax.Array | int,
  threshold: jax.Array | float,
  num_steps: int = 10,
  scale: jax.Array | float = scoring.NO_SCALE,
) -> tuple[problem_lib.Model, jax.Array]:
  """Fits one model to the data that agree with it.

  Args:
    problem: see `Problem`.
    model: where to start.
    data: pytree of [N].
    num_data: real data, which come first.
    threshold: residual beyond which a datum has no influence.
    num_steps: steps to try.
    scale: of the noise, in thresholds, see `scoring`.

  Returns:
    model: never of a higher cost than the given one.
    cost: its sum over the real data, 'msac' at that scale.
  """
  limit = jnp.asarray(threshold) ** 2
  mask = jnp.arange(len(jax.tree.leaves(data)[0])) < num_data

  def linearize(model):
    return _linearize(problem, model, data, mask, limit, scale)

  model, equations = minimize(linearize, problem.retract, model, num_steps)
  return model, equations.cost
