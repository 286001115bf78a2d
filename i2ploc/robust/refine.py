# SPDX-License-Identifier: Apache-2.0
"""Nonlinear least squares on what agrees with a model, and its covariance.

Levenberg-Marquardt on the truncated quadratic sum of min(r^2, t^2): data beyond
the threshold have no say, and which those are is decided anew in every step
(as LO-RANSAC does; Chum et al., 2003). The number of steps is fixed: all models
of a batch take them together.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from i2ploc.robust import problem as problem_lib

_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-3, 1e-8, 1e6


class _Fit(NamedTuple):
  model: problem_lib.Model
  cost: jax.Array
  damping: jax.Array


def _normal_equations(problem, model, data, mask, limit):
  """J^T J, J^T e and the cost over what is within the limit."""
  zero = jnp.zeros(problem.dof, jax.tree.leaves(data)[0].dtype)

  def errors(step):
    return problem.errors(problem.retract(model, step), data)

  value, push = jax.linearize(errors, zero)
  jacobian = jax.vmap(push)(jnp.eye(problem.dof, dtype=zero.dtype))
  squared = problem.residual(model, data)
  counts = mask & (squared < limit)
  # One product per component: joined, they would be copied number by number.
  parts = [
    jnp.where(counts, rows, 0.0) for rows in jnp.unstack(jacobian, axis=1)
  ]
  matrix = sum(rows @ rows.T for rows in parts)
  value = jnp.where(counts, value, 0.0)
  vector = sum(rows @ errors for rows, errors in zip(parts, value, strict=True))
  return matrix, vector


def _solve(matrix, vector):
  """x of A x = b for a small positive definite A; zero where it is not that.

  Cholesky's method written out: LAPACK costs more in calls than in numbers.
  """
  size = len(vector)
  low, x = {}, []
  for i in range(size):
    for j in range(i + 1):
      rest = matrix[i, j] - sum(low[i, k] * low[j, k] for k in range(j))
      pivot = jnp.sqrt(jnp.maximum(rest, 1e-30)) if i == j else low[j, j]
      low[i, j] = pivot if i == j else rest / pivot
    rest = vector[i] - sum(low[i, k] * x[k] for k in range(i))
    x.append(rest / low[i, i])
  for i in reversed(range(size)):
    rest = x[i] - sum(low[k, i] * x[k] for k in range(i + 1, size))
    x[i] = rest / low[i, i]
  x = jnp.stack(x)
  return jnp.where(jnp.isfinite(x).all(), x, 0.0)


def _cost(problem, model, data, mask, limit):
  squared = problem.residual(model, data)
  return jnp.sum(jnp.where(mask, jnp.minimum(squared, limit), 0.0))


def _finite(model):
  leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(model)]
  return jnp.stack(leaves).all()


def refine(
  problem: problem_lib.Problem,
  model: problem_lib.Model,
  data: problem_lib.Data,
  mask: jax.Array,
  threshold: jax.Array,
  num_steps: int = 10,
) -> tuple[problem_lib.Model, jax.Array]:
  """Fits one model to the data that agree with it.

  Args:
    problem: see `Problem`.
    model: where to start.
    data: pytree of [N].
    mask: [N] bool, data that may count.
    threshold: residual beyond which a datum has no say.
    num_steps: of Levenberg and Marquardt.

  Returns:
    The model, never worse than the given one, and its cost, the sum of
    min(r^2, threshold^2).
  """
  limit = jnp.asarray(threshold) ** 2
  cost = functools.partial(_cost, problem, data=data, mask=mask, limit=limit)

  def step(_, fit):
    matrix, gradient = _normal_equations(problem, fit.model, data, mask, limit)
    diagonal = jnp.diagonal(matrix)
    ridge = fit.damping * jnp.maximum(diagonal, 1e-12 * diagonal.max() + 1e-30)
    change = _solve(matrix + jnp.diag(ridge), gradient)
    model = problem.retract(fit.model, -change)
    found = cost(model)
    better = (found < fit.cost) & _finite(model)
    damping = fit.damping * jnp.where(better, 0.1, 10.0)
    return _Fit(
      jax.tree.map(lambda a, b: jnp.where(better, a, b), model, fit.model),
      jnp.where(better, found, fit.cost),
      jnp.clip(damping, _LEAST_DAMPING, _MOST_DAMPING),
    )

  first = cost(model)
  fit = _Fit(model, first, jnp.full_like(first, _FIRST_DAMPING))
  with jax.default_matmul_precision('highest'):
    fit = jax.lax.fori_loop(0, num_steps, step, fit)
  return fit.model, fit.cost


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
  matrix, _ = _normal_equations(problem, model, data, inliers, jnp.inf)
  errors = problem.errors(model, data)
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
