# SPDX-License-Identifier: Apache-2.0
"""The last fit of a model to the data that agree with it, and its covariance.

A search finds a model whose inliers are right; how exact it is, the last fit
decides. A threshold is a guess of the caller's, several times as wide as the
noise, and the errors of real keypoints have heavy tails: most are far smaller
than the few that a mean follows. So the scale and the tails of the noise are
measured from the inliers. With s the deviation of a Gaussian that has the same
median of residuals, a datum weighs

  w(r) = 1 / (1 + a (r / s)^2) for r < c s, else 0.

Were the noise Gaussian, the root of the mean of r^2 would be s too: then a = 0,
and what is beyond c s are outliers, which pull the harder at a pose of two
views as they are not where true points can be. The more this root exceeds s,
the larger are a, up to the weights of a Cauchy distribution, and c. The
weighted equations are solved and weighted anew until a step is small beside the
model's own deviation.

All is numpy in float64: for 100 data that takes a third of a millisecond, less
than a call of a compiled function for each part would.
"""

import math
from typing import Any
from typing import NamedTuple

import numpy as np
from scipy import special

from i2ploc.robust import problem as problem_lib

# Data without noise take more than five.
_MOST_STEPS = 10
# Of the slopes by which steps are divided.
_LEAST_SLOPE = 0.3
# a, for noise with heavy tails.
_HEAVY = 1.0
# How much larger c is then.
_WIDER = 0.5
# c for errors in 1, 2 and 3 dimensions: 99.4 % of Gaussian ones are nearer.
_CUTS = 2.75, 3.2, 3.53
# Mean derivative of w(e) e for Gaussian noise, where the cut takes its part.
_CUT_SLOPE = 0.955
# Tails are heavy where the root of the mean square is so many times s, and by
# 1 / sqrt(N) more, by which the ratio of N Gaussian data is off.
_HEAVY_RATIO, _SLOPE = 1.35, 2.5
# s is at least that part of the root of the mean square, and of the threshold.
_LEAST_RATIO, _LEAST_NOISE = 1 / 3, 1e-6
# Thresholds beyond which a datum has no weight.
_REACH = 1.5
# A step is small if it is less than that share of the model's deviation.
_SMALL = 0.25
# Share of the largest eigenvalue of the scaled matrix that an undetermined
# direction has at most.
_UNDETERMINED = 1e-6
# Data per degree of freedom whose own pulls count as much as the assumption of
# equal variances.
_FEW = 5
# Leverage beyond which a datum is in doubt: so many times the mean; but among
# few data so much, and where they are fewer yet so many times the mean. Of what
# such a datum says that part is not believed.
_LEVERAGE, _FEW_LEVERAGE, _LEAST_LEVERAGE = 6.0, 0.6, 1.75
_DOUBT = 0.97
# How much larger the variance is, beside the degrees of freedom of a datum,
# where a search chose the model.
_CHOSEN = 2.0
_LEVEL = 0.95
# Median length of a Gaussian vector of deviation 1 in 1, 2 and 3 dimensions.
_MEDIANS = 0.67449, 1.17741, 1.53817


class Fit(NamedTuple):
  """A model and what the data say of it.

  Attributes:
    model: pytree of float64 arrays.
    inliers: [N] bool, data within the threshold of the model.
    covariance: [dof, dof] of the step that `retract` takes at the model;
      infinite where the inliers do not determine it.
    cost: sum of min(r^2, t^2) / t^2.
  """

  model: Any
  inliers: np.ndarray
  covariance: np.ndarray
  cost: float


class _State(NamedTuple):
  """A model, its residuals, and the equations of a step from there.

  Attributes:
    model: pytree.
    errors: [E, N].
    jacobian: [dof, E, N].
    squared: [N] squared residuals.
    weights: [N].
    heavy: a / s^2 of the weights.
    limit: (c s)^2 of them.
    matrix: [dof, dof], J^T W J; None where too few data have a weight.
    step: [dof], that solves it.
    dimensions: of the error of a datum.
  """

  model: Any
  errors: np.ndarray
  jacobian: np.ndarray
  squared: np.ndarray
  weights: np.ndarray
  heavy: float
  limit: float
  matrix: np.ndarray | None
  step: np.ndarray
  dimensions: int


def fit(
  problem: problem_lib.Problem,
  model: problem_lib.Model,
  data: problem_lib.Data,
  threshold: float,
) -> Fit:
  """Fits a model that was found to the data around it.

  Args:
    problem: what to solve.
    model: near the wanted one; pytree of float64 arrays.
    data: pytree of numpy arrays [N], float64.
    threshold: residual of an inlier, at most.

  Returns:
    The fit. Where no more data agree with the model than determine it, it stays
    as it is.
  """
  # Errors are those of every datum, residuals beyond any threshold where the
  # model cannot have made it: a point behind the camera.
  squared = np.asarray(problem.residual(model, data))
  never = squared >= problem_lib.NEVER
  state = _linearized(problem, model, data, threshold, never)
  step, moved = state.step, False
  for _ in range(_MOST_STEPS):
    if state.matrix is None:
      break
    size = step @ state.matrix @ step
    small = size < _SMALL**2 * problem.dof * _variance(state)
    trial = problem.retract(state.model, step)
    there = np.asarray(problem.residual(trial, data))
    if not _loss(there, state) <= _loss(squared, state):
      step = step / 4
      continue
    moved, squared = True, there
    if small:
      # The equations of the last model are those of this one too.
      state = state._replace(model=trial)
      break
    state = _linearized(problem, trial, data, threshold, never)
    step = state.step
  model = state.model
  if not moved:
    # A rotation found in float32 is made orthonormal.
    model = problem.retract(model, np.zeros(problem.dof))
    squared = np.asarray(problem.residual(model, data))
  limit = threshold**2
  inliers = squared < limit
  cost = float(np.minimum(squared, limit).sum() / limit)
  return Fit(model, inliers, _covariance(problem, state), cost)


def _loss(squared, state):
  """What the weights of `state` minimise, at other residuals."""
  squared = np.minimum(squared, state.limit)
  if state.heavy:
    squared = np.log1p(state.heavy * squared) / state.heavy
  return squared.sum()


def _linearized(problem, model, data, threshold, never):
  """The state at a model; data that it `never` made [N] have no weight."""
  errors, jacobian = problem.linearize(model, data)
  squared = errors[0] ** 2 if len(errors) == 1 else (errors**2).sum(axis=0)
  squared = np.where(never, problem_lib.NEVER, squared)
  dimensions = _dimensions(jacobian)
  near = squared[squared < threshold**2]
  freedom = dimensions * len(near) - problem.dof
  if freedom <= 0:
    nothing = np.zeros(problem.dof)
    return _State(
      model,
      errors,
      jacobian,
      squared,
      nothing,
      0.0,
      0.0,
      None,
      nothing,
      dimensions,
    )
  heavy, limit = _noise(near, freedom, dimensions, threshold)
  weights = (squared < limit) / (1 + heavy * squared)
  weighted = (jacobian * weights).reshape(problem.dof, -1)
  matrix = weighted @ jacobian.reshape(problem.dof, -1).T
  step = _solution(matrix, weighted @ errors.ravel())
  # Weights follow a step, which is why it falls short.
  step /= max(_slope(squared, weights, heavy, dimensions), _LEAST_SLOPE)
  return _State(
    model,
    errors,
    jacobian,
    squared,
    weights,
    heavy,
    limit,
    matrix,
    step,
    dimensions,
  )


def _slope(squared, weights, heavy, dimensions):
  """The mean derivative of w(e) e but for its cut, over the mean weight."""
  if not heavy:
    return 1.0
  curved = weights * weights * squared
  return 1 - 2 / dimensions * heavy * curved.sum() / weights.sum()


def _dimensions(jacobian):
  """In how many directions the error of a datum can go."""
  components = jacobian.shape[1]
  if components < 3:
    return components
  # Between unit vectors there are three components, of two directions.
  one = jacobian[:, :, jacobian.shape[2] // 2]
  square = one.T @ one
  flat = np.linalg.det(square) < 1e-9 * (np.trace(square) / components) ** 3
  return components - int(flat)


def _noise(near, freedom, dimensions, threshold):
  """a / s^2 and (c s)^2 by the squared residuals [n] within the threshold."""
  count = len(near)
  # Least squares follow the noise; what is left of it is less.
  mean = near.sum() / freedom
  middle = np.partition(near, count // 2)[count // 2]
  middle *= dimensions * count / (freedom * _MEDIANS[dimensions - 1] ** 2)
  noise = max(middle, _LEAST_RATIO**2 * mean, (_LEAST_NOISE * threshold) ** 2)
  excess = math.sqrt(mean / noise) - _HEAVY_RATIO - 1 / math.sqrt(count)
  share = min(max(1 + _SLOPE * excess, 0.0), 1.0)
  cut = _CUTS[dimensions - 1] * (1 + _WIDER * share)
  limit = min(cut**2 * noise, (_REACH * threshold) ** 2)
  return _HEAVY * share / noise, limit


def _solution(matrix, vector):
  """-A^-1 b; zero where A is singular."""
  diagonal = np.diagonal(matrix)
  ridge = np.diag(1e-9 * diagonal + 1e-30)
  try:
    step = np.linalg.solve(matrix + ridge, -vector)
  except np.linalg.LinAlgError:
    return np.zeros_like(vector)
  return step if np.isfinite(step).all() else np.zeros_like(vector)


def _variance(state):
  """Of an error, as the weights see it."""
  weights = state.weights
  return (weights @ state.squared) / (weights.sum() * state.dimensions)


def _covariance(problem, state):
  """Of the step at the fit: A^-1 B A^-1 (Huber and Ronchetti, 2009, 7.6).

  A is J^T W J times the mean derivative of w(e) e over the mean of w. B is the
  sum of the squared pulls of the data, or, of few, that of errors of equal
  variance. Of its own error a datum of high leverage shows little, and such are
  often outliers that the model went to: they add next to nothing to A.
  The ellipsoid of 95 % of a Gaussian distribution is as large as Fisher's is.
  """
  dof, dimensions = problem.dof, state.dimensions
  unknown = np.full((dof, dof), np.inf)
  if state.matrix is None:
    return unknown
  weights, squared = state.weights, state.squared
  total = weights.sum()
  # So many data of equal weight would be as good.
  count = total**2 / (weights @ weights)
  freedom = dimensions * count - dof
  slope = _slope(squared, weights, state.heavy, dimensions)
  if freedom <= 0 or slope <= 0:
    return unknown
  scale = 1 / np.sqrt(np.maximum(np.diagonal(state.matrix), 1e-30))
  values, vectors = np.linalg.eigh(state.matrix * scale[:, None] * scale)
  if values[0] < _UNDETERMINED:
    return unknown
  # In white coordinates J^T W J is the identity.
  white = scale[:, None] * vectors / np.sqrt(values)
  rows = (white.T @ state.jacobian.reshape(dof, -1)).reshape(
    state.jacobian.shape
  )
  pulls = (rows * state.errors).sum(axis=1) * weights
  variance = (weights**2 * squared).sum() / (dimensions * total)
  share = count / (count + _FEW * dof)
  spread = share * (pulls @ pulls.T) + (1 - share) * variance * np.eye(dof)
  left = np.linalg.inv(np.eye(dof) - _doubtful(rows, weights, count))
  spread = left @ spread @ left
  spread *= dimensions * count / (freedom * (_CUT_SLOPE * slope) ** 2)
  # The best of many models fits few data better than the truth does.
  spread *= 1 + _CHOSEN * dof / (dimensions**2 * count)
  return _few(dof, freedom) * white @ spread @ white.T


def _doubtful(rows, weights, count):
  """What data of high leverage add to the identity, [dof, dof].

  Args:
    rows: [dof, E, N], the Jacobian in white coordinates.
    weights: [N].
    count: of data.
  """
  dof = len(rows)
  leverage = (rows**2).sum(axis=(0, 1)) * weights
  mean = dof / count
  most = min(_LEVERAGE * mean, max(_FEW_LEVERAGE, _LEAST_LEVERAGE * mean))
  (few,) = (leverage > most).nonzero()
  rows = (rows[:, :, few] * np.sqrt(weights[few])).reshape(dof, -1)
  # All of it but a rest, so that some information is left.
  return _DOUBT * rows @ rows.T


def _few(dof, freedom):
  """Squared size of Fisher's 95 % region beside that of a Gaussian's."""
  fisher = special.fdtri(dof, freedom, _LEVEL)
  return dof * fisher / special.chdtri(dof, 1 - _LEVEL)
