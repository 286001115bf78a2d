# SPDX-License-Identifier: Apache-2.0
"""The last fit of a model, on all data, in numpy and float64.

float32 is enough to find a model, not to report one. Here nothing compiles: it
costs a few small operations per step, for any number of data.
"""

from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.robust import problem as problem_lib

_NUM_STEPS = 3
_DAMPING = 1e-3
# Data count as noise up to so many standard deviations of the inliers' own
# residuals. The threshold cuts the tail from which that deviation is measured,
# so it is trusted only within these multiples of the threshold.
_NOISE_QUANTILE = 5.0
_NARROWEST, _WIDEST = 0.5, 1.5


class Fit(NamedTuple):
  """A fitted model.

  Attributes:
    model: pytree of float64 arrays.
    inliers: [N] bool, data within the threshold of it.
    covariance: [dof, dof] of the step of `retract`; infinite where the inliers
      do not determine the model.
    cost: sum of min(r^2, t^2) / t^2.
  """

  model: Any
  inliers: np.ndarray
  covariance: np.ndarray
  cost: float


def fit(
  problem: problem_lib.Problem, model: Any, data: Any, threshold: float
) -> Fit:
  """The model near a given one that fits the data best.

  Args:
    problem: see `Problem`.
    model: pytree of float64 arrays.
    data: pytree of float64 arrays [N].
    threshold: residual of an inlier, at most.
  """
  limit = threshold**2
  # The model may stay where it is, so its rotation is orthonormalized first.
  model = problem.retract(model, np.zeros(problem.dof))
  squared = problem.residual(model, data)
  width = _noise_width(problem, squared, limit)
  best, damping = np.minimum(squared, width).sum(), _DAMPING
  errors, jacobian = problem.linearize(model, data)
  for _ in range(_NUM_STEPS):
    counts = squared < width
    rows = (jacobian * counts).reshape(problem.dof, -1)
    matrix = rows @ rows.T
    gradient = rows @ errors.ravel()
    diagonal = np.diagonal(matrix)
    ridge = damping * np.maximum(diagonal, 1e-12 * diagonal.max() + 1e-300)
    step = -np.linalg.solve(matrix + np.diag(ridge), gradient)
    trial = problem.retract(model, step)
    squared_there = problem.residual(trial, data)
    cost = np.minimum(squared_there, width).sum()
    if not cost < best:
      damping *= 10
      continue
    model, squared, best, damping = trial, squared_there, cost, damping / 10
    errors, jacobian = problem.linearize(model, data)
  inliers = squared < limit
  return Fit(
    model,
    inliers,
    _covariance(errors[:, inliers], jacobian[:, :, inliers]),
    float(np.minimum(squared, limit).sum() / limit),
  )


def _noise_width(problem, squared, limit):
  """Squared residual beyond which a datum is not noise."""
  inliers = squared < limit
  freedom = np.count_nonzero(inliers) * 2 - problem.dof
  if freedom <= problem.dof:
    return limit
  variance = squared[inliers].sum() / freedom
  width = _NOISE_QUANTILE**2 * variance
  return min(max(width, _NARROWEST**2 * limit), _WIDEST**2 * limit)


def _covariance(errors, jacobian):
  """s^2 (J^T J)^-1 with s^2 the residuals' own variance."""
  dof = len(jacobian)
  freedom = errors.size - dof
  rows = jacobian.reshape(dof, -1)
  matrix = rows @ rows.T
  scale = 1 / np.sqrt(np.maximum(np.diagonal(matrix), 1e-300))
  values, vectors = np.linalg.eigh(matrix * scale[:, None] * scale)
  if freedom <= 0 or not values[0] > 1e-6:
    return np.full((dof, dof), np.inf)
  inverse = (vectors / values) @ vectors.T
  variance = (errors**2).sum() / freedom
  return variance * inverse * scale[:, None] * scale
