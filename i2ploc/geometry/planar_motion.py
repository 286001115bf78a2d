# SPDX-License-Identifier: Apache-2.0
"""What a homography between two calibrated cameras says about their motion.

Points of a plane n . x = d in camera 0 are at R x + t = (R + t n^T / d) x in
camera 1: a homography, scaled so that its second singular value is 1. With
a = R^T t / d,

  H^T H - 1 = n y^T + y n^T,   y = a + |a|^2 n / 2,

a conic that consists of two lines. Either may be n, so there are two motions
(Faugeras and Lustman, Motion and structure from motion in a piecewise planar
environment, 1988; Malis and Vargas, Deeper understanding of the homography
decomposition for vision-based control, INRIA RR-6303, 2007).

Written for one homography, for numpy and jax alike, and vmapped by the caller.
"""

from typing import Any
from typing import NamedTuple

from i2ploc.geometry import arrays
from i2ploc.geometry import vectors

_TINY = 1e-30


class Motions(NamedTuple):
  """Two motions of a camera, and the plane that was seen.

  Attributes:
    rotation: [2, 3, 3], of camera1_from_camera0.
    translation: [2, 3], in units of the plane's distance from camera 0.
    normal: [2, 3], unit vectors from camera 0 towards the plane: points of it
      have n . x > 0.
    valid: [2] bool.
  """

  rotation: Any
  translation: Any
  normal: Any
  valid: Any


def _still(matrix):
  """|H^T H - 1| below which a homography is a rotation."""
  return 64 * arrays.namespace(matrix).finfo(matrix.dtype).eps


def _lines(conic, xp):
  """Two lines [3] whose product a symmetric matrix of rank 2 is, up to scale.

  Their cross product p is in the negative adjugate p p^T, and the matrix plus
  the cross matrix of p has rank 1: a row is one line, a column the other.
  """
  cofactors = vectors.cofactors(tuple(map(tuple, conic)))
  adjugate = -xp.stack([xp.stack(row) for row in cofactors])
  diagonal = xp.stack([adjugate[i, i] for i in range(3)])
  best = xp.argmax(diagonal)
  size = xp.sqrt(xp.maximum(diagonal[best], _TINY))
  x, y, z = adjugate[best] / size
  zero = xp.zeros_like(x)
  cross = xp.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
  product = conic + cross
  place = xp.argmax(xp.abs(product).reshape(-1))
  return product[place // 3], product[:, place % 3]


def from_homography(homography: Any, rays0: Any) -> Motions:
  """The motions that a homography of calibrated cameras allows.

  Args:
    homography: [3, 3] from rays of camera 0 to rays of camera 1, of any length
      and sign.
    rays0: [N, 3] directions in which camera 0 sees points of the plane: N is 1
      or more.

  Returns:
    Motions for which all these points are ahead of camera 0 and, as seen by
    camera 1, on the same side of the plane; both, one or none. A homography
    that is a rotation gives one, without translation and with normal 0.

  Example:
    A camera moves 1 m to the right, along a wall that is 2 m away.

    >>> import numpy as np
    >>> from i2ploc.geometry import planar_motion
    >>> matrix = np.eye(3) + np.outer([-1.0, 0.0, 0.0], [0.0, 0.0, 0.5])
    >>> rays = np.array([[0.0, 0.0, 1.0], [0.3, 0.2, 1.0]])
    >>> motions = planar_motion.from_homography(5 * matrix, rays)
    >>> away = np.abs(motions.translation[motions.valid] - [-0.5, 0, 0])
    >>> away.max(axis=1).min().round(6).item()
    0.0
  """
  xp = arrays.namespace(homography, rays0)
  finite = xp.isfinite(homography).all() & xp.isfinite(rays0).all()
  eye = xp.eye(3, dtype=homography.dtype)
  homography = xp.where(finite, homography, eye)
  largest = xp.abs(homography).max()
  homography = homography / xp.where(largest > 0, largest, 1.0)
  a, b, c = (tuple(row) for row in homography)
  determinant = vectors.dot(a, vectors.cross(b, c))
  regular = finite & (xp.abs(determinant) > 1e-6)
  homography = xp.where(regular, homography, eye)
  # Points stay on their side of the plane: the determinant is positive.
  homography = xp.where(regular & (determinant < 0), -homography, homography)
  gram = arrays.matmul(homography.T, homography)
  homography = homography / xp.sqrt(xp.linalg.eigvalsh(gram)[1])
  conic = arrays.matmul(homography.T, homography) - eye
  still = xp.abs(conic).max() < _still(homography)
  # A dummy for the conic of a rotation, which vanishes.
  dummy = xp.asarray([[0.0, 0, 1], [0, 0, 0], [1, 0, 0]], homography.dtype)
  lines = _lines(xp.where(still, dummy, conic), xp)
  found = [_motion(homography, conic, line, rays0, xp) for line in lines]
  rotation, translation, normal, valid = (
    xp.stack(parts) for parts in zip(*found, strict=True)
  )
  first = xp.arange(2) == 0
  # Two equal motions, of a camera that moves along the normal, are one.
  again = xp.abs(rotation[1] - rotation[0]).max() < _still(homography) ** 0.5
  again &= xp.abs(normal[1] - normal[0]).max() < _still(homography) ** 0.5
  valid = regular & xp.where(still, first, valid & (first | ~again))
  stays = still | ~regular
  return Motions(
    xp.where(stays, homography, rotation),
    xp.where(stays, 0.0, translation),
    xp.where(stays, 0.0, normal),
    valid,
  )


def _motion(homography, conic, line, rays0, xp):
  """Rotation, translation, normal and valid, if the line is the normal."""
  normal = line / xp.sqrt(xp.maximum((line**2).sum(), _TINY))
  sides = arrays.matmul(rays0, normal)
  normal = xp.where(sides.sum() < 0, -normal, normal)
  sides = arrays.matmul(rays0, normal)
  pulled = arrays.matmul(conic, normal)
  y = pulled - normal * (normal * pulled).sum() / 2
  # |a|^2 / 4 (|a|^2 - 4 (1 + y . n)) + |y|^2 = 0, and det H = 1 + a . n > 0.
  reach, squared = 1 + (y * normal).sum(), (y**2).sum()
  inside = reach**2 - squared
  some = inside > 0
  root = xp.sqrt(xp.where(some, inside, 1.0))
  total = reach + root
  square = 2 * squared / xp.where(total > 0, total, 1.0)
  a = y - square / 2 * normal
  scale = 1 + (a * normal).sum()
  possible = some & (total > 0) & (scale > 1e-6)
  scale = xp.where(possible, scale, 1.0)
  # H = R (1 + a n^T).
  mixed = xp.eye(3, dtype=homography.dtype) - a[:, None] * normal / scale
  rotation = arrays.matmul(homography, mixed)
  translation = arrays.matmul(rotation, a)
  return rotation, translation, normal, possible & (sides > 0).all()
