# SPDX-License-Identifier: Apache-2.0
"""Fundamental matrices, from pairs of points with many outliers.

For cameras without a calibration. Residuals are Sampson distances, see
`epipolar.sampson`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import arrays
from i2ploc.geometry import epipolar
from i2ploc.geometry import fundamental as fundamental_lib
from i2ploc.geometry import rigid
from i2ploc.geometry import vectors
from i2ploc.robust import consensus
from i2ploc.robust import evidence
from i2ploc.robust import inputs
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import result
from i2ploc.robust import search as search_lib
from i2ploc.robust import two_views

_PLANE_STEPS = 10
# A quaternion times i, j and k, three 4 x 4 matrices side by side.
_AROUND = np.array(
  [
    [0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    [-1, 0, 0, 0, 0, 0, 0, -1, 0, 0, 1, 0],
    [0, 0, 0, 1, -1, 0, 0, 0, 0, -1, 0, 0],
    [0, 0, -1, 0, 0, 1, 0, 0, -1, 0, 0, 0],
  ],
  np.float32,
)
# After so many steps half of the points are further from where a homography
# takes them than so many thresholds: then there is no plane.
_SETTLED, _MOVING = 3, 4.0


def _solve(sample: two_views.Matches) -> tuple[jax.Array, jax.Array]:
  return fundamental_lib.from_seven(
    jnp.stack([sample.x0, sample.y0], axis=-1),
    jnp.stack([sample.x1, sample.y1], axis=-1),
  )


def _homogeneous(data):
  """Coordinates of the points of either image, three arrays [N] each."""
  one = arrays.namespace(data.x0).ones_like(data.x0)
  return (data.x0, data.y0, one), (data.x1, data.y1, one)


def _residual(matrix: rigid.Array, data: two_views.Matches) -> rigid.Array:
  return epipolar.sampson(matrix, *_homogeneous(data)) ** 2


def _linearize(
  matrix: rigid.Array, data: two_views.Matches
) -> tuple[rigid.Array, rigid.Array]:
  """Signed distances [1, N] and their derivatives."""
  distances, derivatives = epipolar.linearized(
    matrix, _tangents(matrix), *_homogeneous(data)
  )
  return distances[None], derivatives[:, None]


def _planes(matrix):
  """The planes [2, 3] orthogonal to the epipoles, and F between them [2, 2].

  A plane is two unit vectors. F is plane1^T inner plane0.
  """
  cofactors = vectors.cofactors(tuple(matrix))
  epipole1 = vectors.unit(vectors.longest(vectors.transposed(cofactors)))
  epipole0 = vectors.unit(vectors.longest(cofactors))
  plane0, plane1 = (
    arrays.table(vectors.tangents(epipole), matrix[0, 0])
    for epipole in (epipole0, epipole1)
  )
  inner = arrays.matmul(arrays.matmul(plane1, matrix), plane0.T)
  return plane0, plane1, inner


def _around(inner):
  """Three 2 x 2 matrices orthogonal to one and to each other: [3, 4]."""
  return arrays.matmul(inner.reshape(4), _AROUND).reshape(3, 4)


def retract(matrix: rigid.Array, step: rigid.Array) -> rigid.Array:
  """A fundamental matrix near another.

  F is a 2 x 2 matrix between the planes orthogonal to its epipoles. The step
  turns both planes and moves that matrix on the sphere of matrices of its norm.
  (Turning U and V of F = U diag(1, s, 0) V^T and moving s would not do: two of
  these turns are the same where s = 1, which is where F is essential.)

  Args:
    matrix: [3, 3], of rank 2 and norm 1.
    step: [7], radians: two for the epipole of image 1, two for that of image
      0, three for the 2 x 2 matrix.
  """
  xp = arrays.namespace(matrix, step)
  plane0, plane1, inner = _planes(matrix)
  moved = inner + arrays.matmul(step[4:], _around(inner)).reshape(2, 2)
  moved = moved / xp.sqrt(xp.sum(moved**2))
  turn1 = rigid.rotation_from_vector(arrays.matmul(step[:2], plane1))
  turn0 = rigid.rotation_from_vector(arrays.matmul(step[2:4], plane0))
  left = arrays.matmul(turn1, plane1.T)
  right = arrays.matmul(plane0, turn0.T)
  return arrays.matmul(arrays.matmul(left, moved), right)


def _tangents(matrix):
  """Derivative [7, 3, 3] of F by the step of `retract`, at zero."""
  xp = arrays.namespace(matrix)
  plane0, plane1, inner = _planes(matrix)
  turned1 = arrays.matmul(rigid.skew(plane1), matrix)
  turned0 = arrays.matmul(matrix, rigid.skew(-plane0))
  around = arrays.matmul(plane1.T, _around(inner).reshape(3, 2, 2))
  return xp.concatenate([turned1, turned0, arrays.matmul(around, plane0)])


def _degeneracy(matrix, data, inliers, threshold):
  """Why a plane leaves the matrix open; '' if it does not.

  Of the pairs that a homography does not explain, more must agree with F than
  of points paired at random.
  """
  # Sampson's distance moves both points; moving one takes sqrt(2) times that.
  rest = _off_plane(data, inliers, np.sqrt(2) * threshold)
  if rest is None:
    return '', matrix
  count = evidence.beyond(PROBLEM, matrix, data, inliers, rest, threshold)
  if count is None:
    return '', matrix
  return (
    f'a homography explains all but {count} of {inliers.sum()} pairs that '
    'agree: a plane, or a camera that only turns, leaves F undetermined'
  ), matrix


PROBLEM = problem_lib.Problem(
  sample_size=7,
  models_per_sample=fundamental_lib.NUM_SOLUTIONS,  # five in six are filled
  dof=7,
  example=lambda: np.diag([1.0, 1.0, 0.0]),
  solve=_solve,
  residual=_residual,
  linearize=_linearize,
  retract=retract,
  sides=two_views.SIDES,
  degeneracy=_degeneracy,
)


# A sample of seven costs as much as dozens of three.
SEARCH = search_lib.Search(
  settings=consensus.DEFAULT._replace(batch=64, max_draws=20_000)
)


class Fundamental(result.Result[np.ndarray]):
  """The epipolar geometry of two images: `model` is `matrix`.

  Without `valid` the inliers are those of a matrix that chance explains, or
  that is undetermined. The covariance [7, 7] is of the step of `retract`, in
  coordinates around the median points.
  """

  __slots__ = ()

  @property
  def matrix(self) -> np.ndarray | None:
    """F [3, 3], float64, pixels, of norm 1; None unless `valid`."""
    return self.trusted


def fundamental(
  points0: np.ndarray,
  points1: np.ndarray,
  threshold: float = 1.5,
  *,
  scores: np.ndarray | None = None,
  search: search_lib.Search = SEARCH,
) -> Fundamental:
  """The fundamental matrix that most pairs of points agree with.

  Args:
    points0: [N, 2] (column, row) in image 0; rows that are masked are left out.
    points1: [N, 2] of their partners in image 1; many may be wrong.
    threshold: Sampson distance of an inlier, at most, pixels.
    scores: [N], higher is better: draws samples in that order (PROSAC).
    search: sampler, seed and settings.

  Returns:
    The matrix. `valid` is False, with a reason, for too few pairs, where no
    more agree than points paired at random would, and where a homography
    explains the images: those of a plane, or of a camera that only turns.

  Raises:
    InputError: shapes that do not fit, values that are not finite.

  Example:
    Camera 1 is a metre to the right of camera 0, so that points keep their
    rows; 20 of 60 pairs are wrong.

    >>> import numpy as np
    >>> from i2ploc.robust import fundamental
    >>> rng = np.random.default_rng(0)
    >>> points = rng.uniform([-2, -1, 4], [2, 1, 8], (60, 3))
    >>> points0, points1 = (
    ...   500 * seen[:, :2] / seen[:, 2:] + [320, 240]
    ...   for seen in (points, points - [1, 0, 0])
    ... )
    >>> points1[:20, 1] += rng.uniform(20, 200, 20)
    >>> found = fundamental.fundamental(points0, points1)
    >>> found.num_inliers
    40
    >>> rows = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0]]) / np.sqrt(2)
    >>> bool(np.allclose(np.abs(found.matrix), rows, atol=1e-6))
    True
  """
  threshold = inputs.check_threshold(threshold)
  pairs = two_views.pairs(points0, points1, scores)
  data, usable = pairs.within(pairs.frames)
  found = search.find(
    PROBLEM,
    data,
    threshold / pairs.frames.image1.unit,
    usable=usable.mask,
    scores=pairs.scores,
  )
  found = inputs.explained(found, PROBLEM, usable)
  return Fundamental(
    *found.changed(lambda matrix: _of_points(matrix, pairs.frames))
  )


def _of_points(matrix, frames):
  """A matrix of the points themselves, from one of their coordinates."""
  before, after = frames.matrices()
  matrix = after.T @ matrix @ before
  return matrix / np.linalg.norm(matrix)


def _off_plane(data, inliers, reach):
  """[N] bool, pairs out of reach of the homography of the nearest inliers.

  Least squares find it without a search where there is a single plane, which is
  the only case that matters here. None where they are far off: no plane.
  """
  points0, points1 = (
    np.stack([*part, np.ones_like(part[0])]) for part in (data[:2], data[2:])
  )
  a, b = points0[:, inliers], points1[:, inliers]
  near = np.ones(a.shape[1], bool)
  for step in range(_PLANE_STEPS):
    homography = _least_squares(a[:, near], b[:, near])
    away = _miss(homography, a, b)
    middle = np.sort(away)[len(away) // 2]
    if step >= _SETTLED and middle > _MOVING * reach:
      return None
    # The nearest half first, at last all within reach.
    before, near = near, away <= max(middle, reach)
    if (near == before).all():
      break
  return _miss(homography, points0, points1) > reach


def _least_squares(a, b):
  """The homography [3, 3] of points [3, N], by the direct linear transform."""
  seen = (b[:2, None] * a).reshape(6, -1)
  corner = a @ a.T
  x, y = a @ seen[:3].T, a @ seen[3:].T
  last = seen[:3] @ seen[:3].T + seen[3:] @ seen[3:].T
  zero = np.zeros((3, 3))
  rows = [[corner, zero, -x], [zero, corner, -y], [-x.T, -y.T, last]]
  matrix = np.concatenate([np.concatenate(row, axis=1) for row in rows])
  return np.linalg.eigh(matrix)[1][:, 0].reshape(3, 3)


def _miss(homography, a, b):
  """Distances [N] in image 1."""
  mapped = homography @ a
  mapped = mapped[:2] / np.where(mapped[2] == 0, 1.0, mapped[2])
  return np.sqrt(((mapped - b[:2]) ** 2).sum(axis=0))
