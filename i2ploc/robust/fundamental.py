# SPDX-License-Identifier: Apache-2.0
"""Fundamental matrices, from pairs of points of which many are wrong.

For cameras of which nothing is known. Residuals are Sampson distances, see
`epipolar.sampson`.
"""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import epipolar
from i2ploc.geometry import fundamental as fundamental_lib
from i2ploc.geometry import rigid
from i2ploc.geometry import vectors
from i2ploc.robust import consensus
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import search
from i2ploc.robust import two_views

_PLANE_STEPS = 10


def _solve(sample: two_views.Matches) -> tuple[jax.Array, jax.Array]:
  return fundamental_lib.from_seven(
    jnp.stack([sample.x0, sample.y0], axis=-1),
    jnp.stack([sample.x1, sample.y1], axis=-1),
  )


def _distances(matrix: jax.Array, data: two_views.Matches) -> jax.Array:
  """[N], signed."""
  one = jnp.ones_like(data.x0)
  return epipolar.sampson(
    matrix, (data.x0, data.y0, one), (data.x1, data.y1, one)
  )


def retract(matrix: jax.Array, step: jax.Array) -> jax.Array:
  """A fundamental matrix near another.

  F is a 2 x 2 matrix between the planes orthogonal to its epipoles. The step
  turns both planes and moves that matrix along the sphere on which it is. (Of
  F = U diag(1, s, 0) V^T, turning U and V and moving s, two of the turns are
  the same where s = 1: wherever F is essential.)

  Args:
    matrix: [3, 3], of rank 2.
    step: [7], radians: of the epipoles of image 1 and of image 0, two each,
      and three for the rest.
  """
  cofactors = vectors.cofactors(tuple(matrix))
  epipole1 = vectors.unit(vectors.longest(vectors.transposed(cofactors)))
  epipole0 = vectors.unit(vectors.longest(cofactors))
  plane0, plane1 = (
    jnp.stack([jnp.stack(v) for v in vectors.tangents(e)])
    for e in (epipole0, epipole1)
  )
  inner = _product(_product(plane1, matrix), plane0.T)
  (a, b), (c, d) = inner
  # A quaternion times i, j, k is orthogonal to it and to each other.
  around = jnp.stack(
    [
      jnp.stack([-b, a, -d, c]),
      jnp.stack([-c, d, a, -b]),
      jnp.stack([-d, -c, b, a]),
    ]
  )
  moved = inner + _product(step[4:], around).reshape(2, 2)
  moved = moved / jnp.sqrt(jnp.sum(moved**2))
  turn1 = rigid.rotation_from_vector(_product(step[:2], plane1))
  turn0 = rigid.rotation_from_vector(_product(step[2:4], plane0))
  left = _product(turn1, plane1.T)
  right = _product(plane0, turn0.T)
  return _product(_product(left, moved), right)


def _product(a, b):
  return jnp.matmul(a, b, precision=rigid.EXACT)


PROBLEM = problem_lib.Problem(
  sample_size=7,
  num_solutions=fundamental_lib.NUM_SOLUTIONS,
  dof=7,
  solve=_solve,
  residual=lambda model, data: _distances(model, data) ** 2,
  errors=lambda model, data: _distances(model, data)[None],
  retract=retract,
)


class Fundamental(NamedTuple):
  """What is common to all points of two images.

  Attributes:
    matrix: float64 [3, 3] of norm 1, pixels; None unless `valid`.
    inliers: [N] bool, pairs within the threshold.
    num_inliers: their number; without `valid`, of what is no more than chance.
    covariance: [7, 7] of the step of `retract` before pixels, in coordinates
      around the mean points, from the inliers' own residuals.
    num_draws: minimal samples drawn.
    valid: whether there is a matrix that means something.
    reason: why not; empty if valid.
  """

  matrix: Any
  inliers: np.ndarray
  num_inliers: int
  covariance: np.ndarray
  num_draws: int
  valid: bool
  reason: str


def fundamental(
  points0: np.ndarray,
  points1: np.ndarray,
  threshold: float = 1.5,
  *,
  scores: np.ndarray | None = None,
  sampler: str = 'auto',
  seed: int = 0,
  settings: consensus.Settings = consensus.DEFAULT,
) -> Fundamental:
  """The fundamental matrix that most pairs of points agree with.

  Args:
    points0: [N, 2] (column, row) in image 0.
    points1: [N, 2] of the same points, perhaps, in image 1.
    threshold: Sampson distance of an inlier, at most, pixels.
    scores: [N], higher is better: draws samples in that order (PROSAC).
    sampler: of `search.SAMPLERS`.
    seed: of the samples.
    settings: how to search.

  Returns:
    The matrix; `valid` is False, with a reason, of too few pairs, of no more
    that agree than strangers would, and where a homography explains the images:
    of a plane, or of a camera that only turns.

  Raises:
    InputError: shapes that do not fit, values that are not finite.
  """
  points0, points1 = two_views.checked(points0, points1)
  frame = two_views.frame(points0, points1)
  data, limit = frame.matches(points0, points1), threshold / frame.extent
  found = search.search(
    PROBLEM,
    data,
    limit,
    scores=scores,
    sampler=sampler,
    seed=seed,
    settings=settings,
  )
  matrix, covariance, reason = None, found.covariance, found.reason
  if found.valid:
    reason = _doubt(found, data, limit)
  if reason:
    covariance = np.full_like(covariance, np.inf)
  else:
    before, after = frame.matrices()
    matrix = after.T @ found.model @ before
    matrix = matrix / np.linalg.norm(matrix)
  return Fundamental(
    matrix,
    found.inliers,
    found.num_inliers,
    covariance,
    found.num_draws,
    not reason,
    reason,
  )


def _doubt(found, data, limit):
  """Why the matrix may mean nothing; '' if it does mean something.

  What a homography leaves must agree with F more often than strangers do.
  """
  inliers = found.inliers
  reason = two_views.doubt(PROBLEM, found.model, data, inliers, limit)
  if reason:
    return reason
  # Sampson's distance moves both points: sqrt(2) times less than one of them.
  rest = _off_plane(data, inliers, np.sqrt(2) * limit)
  share = two_views.chance(PROBLEM, found.model, data, limit)
  total = two_views.distinct(data, rest, limit)
  count = two_views.distinct(data, rest & inliers, limit)
  alarms = two_views.false_alarms(total, count, 2, share)
  if alarms < two_views.FALSE_ALARMS:
    return ''
  return (
    f'a homography explains all but {count} of {inliers.sum()} pairs that '
    'agree: a plane, or a camera that only turns, leaves F undetermined'
  )


def _off_plane(data, inliers, reach):
  """[N] bool, pairs out of reach of the homography of the nearest inliers.

  Where there is one plane alone, least squares find it without a search, and
  only then it matters.
  """
  points0, points1 = (np.stack(part, axis=-1) for part in (data[:2], data[2:]))
  a, b = (np.insert(p, 2, 1.0, axis=1) for p in (points0, points1))
  near = inliers
  for _ in range(_PLANE_STEPS):
    zero = np.zeros_like(a[near])
    seen = b[near, :, None] * a[near, None]
    rows = [
      np.concatenate([zero, -a[near], seen[:, 1]], axis=1),
      np.concatenate([a[near], zero, -seen[:, 0]], axis=1),
    ]
    _, _, v = np.linalg.svd(np.concatenate(rows), full_matrices=False)
    mapped = a @ v[-1].reshape(3, 3).T
    mapped = mapped[:, :2] / np.where(mapped[:, 2:] == 0, 1.0, mapped[:, 2:])
    away = np.linalg.norm(mapped - points1, axis=1)
    # At first what is nearest, at last what is near.
    near = inliers & (away <= max(np.quantile(away[inliers], 0.5), reach))
  return away > reach
