# SPDX-License-Identifier: Apache-2.0
"""Motions that lay one set of points onto another: least squares.

Minimal over rotations R, translations t and, if wanted, scales s > 0 is

  sum_i w_i |a_i - (s R b_i + t)|^2.

With both sets centred and H = sum_i w_i a_i b_i^T, R is the rotation that makes
tr(R^T H) largest, s = tr(R^T H) / sum_i w_i |b_i|^2, and t joins the centroids
(Kabsch 1976; Umeyama, TPAMI 1991). Of a triangle H has rank 2: its planes are
laid onto each other, and what remains is an angle in closed form (Horn, 1987,
section 5). That needs no decomposition, which is why minimal samples use it.

Written for one problem and vmapped by the caller; nothing branches.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from i2ploc.geometry import rigid

_TINY = 1e-30
# Squared sine of a triangle's corner below which its points are on a line.
FLAT = 1e-10


class Similarity(NamedTuple):
  """x_a = scale * rotation @ x_b + translation.

  Attributes:
    rotation: [..., 3, 3], orthonormal, determinant 1.
    translation: [..., 3], metres of frame a.
    scale: [...], metres of frame a per metre of frame b.
  """

  rotation: rigid.Array
  translation: rigid.Array
  scale: rigid.Array


def _root(squared):
  """sqrt of positive values, else a tiny number; with a finite gradient."""
  positive = squared > _TINY
  return jnp.where(
    positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), _TINY**0.5
  )


def _product(*matrices):
  """Matrix product, exact on every device."""
  result = matrices[0]
  for matrix in matrices[1:]:
    result = jnp.matmul(result, matrix, precision=rigid.EXACT)
  return result


def _stiffness(rotation, matrix):
  """K = tr(P) I - P of P = R^T M [3, 3], and its determinant.

  Turned by a small w, the rotation that makes tr(R^T M) largest loses w^T K w /
  2 of it: the eigenvalues of K, sums of two signed singular values of M, say
  how well it is determined, and the smallest is 0 where it is not.
  """
  inner = _product(rotation.T, matrix)
  inner = (inner + inner.T) / 2
  stiff = jnp.trace(inner) * jnp.eye(3, dtype=inner.dtype) - inner
  return stiff, jnp.dot(stiff[0], jnp.cross(stiff[1], stiff[2]))


def _flat(dtype):
  """Determinant of K, of M of norm 1, that rounding may leave of 0."""
  return 16 * jnp.finfo(dtype).eps


@jax.custom_jvp
def nearest_rotation(matrix: jax.Array) -> jax.Array:
  """The rotation R [3, 3] that makes tr(R^T M) largest.

  Its derivative is finite for every M, also where singular values coincide,
  which the one of a singular value decomposition is not: d R = R [w] with
  K w = the axial vector of R^T dM - dM^T R, see `_stiffness`. Where M does not
  determine R the derivative is 0.

  Args:
    matrix: M [3, 3], of norm about 1.
  """
  u, _, v = jnp.linalg.svd(matrix)
  side = jnp.linalg.det(u) * jnp.linalg.det(v)
  u = u.at[:, 2].multiply(jnp.where(side < 0, -1.0, 1.0))
  return _product(u, v)


@nearest_rotation.defjvp
def _nearest_rotation_jvp(primals, tangents):
  ((matrix,), (change,)) = primals, tangents
  rotation = nearest_rotation(matrix)
  stiff, determinant = _stiffness(rotation, matrix)
  turned = _product(rotation.T, change)
  skew = turned - turned.T
  axial = jnp.stack([skew[2, 1], skew[0, 2], skew[1, 0]])
  a, b, c = stiff
  adjugate = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)])
  determined = determinant > _flat(matrix.dtype)
  inverse = adjugate / jnp.where(determined, determinant, 1.0)
  x, y, z = jnp.where(determined, _product(inverse, axial), 0.0)
  zero = jnp.zeros_like(x)
  cross = jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
  return rotation, _product(rotation, cross)


def _centered(points, share):
  """Points [N, 3] about their centroid, of unit size; center, size, usable.

  Points that coincide but for rounding have no size.
  """
  center = jnp.sum(share[:, None] * points, axis=0)
  away = points - center
  size = _root(jnp.sum(share[:, None] * away**2))
  reach = jnp.abs(points).max()
  spread = size > 8 * jnp.finfo(points.dtype).eps * reach
  usable = spread & (size > _TINY**0.5)
  return away / jnp.where(usable, size, 1.0), center, size, usable


def align(
  points_a: jax.Array,
  points_b: jax.Array,
  weights: jax.Array | None = None,
  *,
  with_scale: bool = False,
) -> tuple[Similarity, jax.Array]:
  """The motion that maps points onto others best, by weighted least squares.

  Args:
    points_a: [N, 3].
    points_b: [N, 3], of the same N points.
    weights: [N], at least 0; points of weight 0 may hold anything. All 1 by
      default.
    with_scale: whether the scale is free; else it is 1.

  Returns:
    a_from_b: never a reflection; the identity unless `valid`.
    valid: bool, whether the points determine it. They do not if those with a
      weight are on a line or not finite, or if they are a mirror image that
      several rotations fit equally well.

  Example:
    >>> import jax
    >>> import numpy as np
    >>> from i2ploc.geometry import alignment
    >>> points = np.random.default_rng(0).normal(size=(9, 3))
    >>> turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    >>> moved = points @ turn.T + [3.0, 0.0, 5.0]
    >>> a_from_b, valid = jax.jit(alignment.align)(moved, points)
    >>> a_from_b.rotation.round(3).tolist() == turn.tolist(), bool(valid)
    (True, True)
  """
  chex.assert_shape([points_a, points_b], (None, 3))
  chex.assert_equal_shape([points_a, points_b])
  if weights is None:
    weights = jnp.ones_like(points_a[:, 0])
  counts = weights > 0
  finite = jnp.isfinite(points_a).all(-1) & jnp.isfinite(points_b).all(-1)
  usable = (finite | ~counts).all() & jnp.isfinite(weights).all()
  kept = (counts & finite)[:, None]
  points_a = jnp.where(kept, points_a, 0.0)
  points_b = jnp.where(kept, points_b, 0.0)
  weights = jnp.where(usable & counts, weights, 0.0)
  share = weights / jnp.maximum(weights.sum(), _TINY)
  a, center_a, size_a, spread_a = _centered(points_a, share)
  b, center_b, size_b, spread_b = _centered(points_b, share)
  matrix = _product((share[:, None] * a).T, b)
  rotation = nearest_rotation(matrix)
  _, determinant = _stiffness(rotation, matrix)
  valid = usable & spread_a & spread_b
  valid &= determinant > _flat(matrix.dtype)
  scale = jnp.ones_like(size_a)
  if with_scale:
    scale = jnp.sum(rotation * matrix) * size_a / size_b
    valid &= scale > 0
  return _joined(rotation, scale, center_a, center_b, valid), valid


def align_triangles(
  corners_a: jax.Array, corners_b: jax.Array, *, with_scale: bool = False
) -> tuple[Similarity, jax.Array]:
  """`align` for three points, in closed form.

  Args:
    corners_a: [3, 3], a point per row.
    corners_b: [3, 3].
    with_scale: whether the scale is free; else it is 1.

  Returns:
    a_from_b: the identity unless `valid`.
    valid: bool, whether the points determine it: not if they are on a line.

  Example:
    >>> import functools
    >>> import jax
    >>> import numpy as np
    >>> from i2ploc.geometry import alignment
    >>> corners = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    >>> align = functools.partial(alignment.align_triangles, with_scale=True)
    >>> a_from_b, _ = jax.jit(align)(5.0 * corners, corners)
    >>> round(float(a_from_b.scale), 3)
    5.0
  """
  chex.assert_shape([corners_a, corners_b], (3, 3))
  finite = jnp.isfinite(corners_a).all() & jnp.isfinite(corners_b).all()
  corners_a = jnp.where(finite, corners_a, 0.0)
  corners_b = jnp.where(finite, corners_b, 0.0)
  a, axes_a, center_a, size_a, usable_a = _triangle(corners_a)
  b, axes_b, center_b, size_b, usable_b = _triangle(corners_b)
  valid = finite & usable_a & usable_b
  # tr(Q^T a b^T) of a turn Q by an angle in the plane is cosine times `even`
  # plus sine times `odd`. Both triangles run the same way about their normals,
  # so that no reflection does better.
  matrix = _product(a.T, b)
  even, odd = matrix[0, 0] + matrix[1, 1], matrix[1, 0] - matrix[0, 1]
  length = jnp.sqrt(even**2 + odd**2)
  cosine, sine = even / length, odd / length
  zero, one = jnp.zeros_like(cosine), jnp.ones_like(cosine)
  turn = [cosine, -sine, zero, sine, cosine, zero, zero, zero, one]
  rotation = _product(axes_a, jnp.stack(turn).reshape(3, 3), axes_b.T)
  scale = one
  if with_scale:
    scale = length / jnp.sum(b**2) * size_a / size_b
  return _joined(rotation, scale, center_a, center_b, valid), valid


def _triangle(corners):
  """A triangle in its own plane.

  Returns:
    flat: [3, 2] corners about their centroid, of unit size, in the plane.
    axes: [3, 3] orthonormal, as columns: along a side, across it, and the
      normal about which the corners run against the clock.
    center: [3].
    size: scalar.
    usable: bool, whether it has an area.
  """
  center = corners.mean(0)
  size = jnp.abs(corners - center).max()
  sized = size > _TINY**0.5
  corners = (corners - center) / jnp.where(sized, size, 1.0)
  side, other = corners[1] - corners[0], corners[2] - corners[0]
  area = jnp.sum(jnp.cross(side, other) ** 2)
  longest = jnp.maximum(jnp.sum(side**2), jnp.sum(other**2))
  usable = sized & (area > FLAT * longest**2)
  corners = jnp.where(usable, corners, jnp.eye(3, dtype=corners.dtype))
  size = jnp.where(usable, size, 1.0)
  side, other = corners[1] - corners[0], corners[2] - corners[0]
  normal = jnp.cross(side, other)
  first = side / jnp.sqrt(jnp.sum(side**2))
  third = normal / jnp.sqrt(jnp.sum(normal**2))
  axes = jnp.stack([first, jnp.cross(third, first), third], axis=1)
  # The corners of the replacement are not about their centroid.
  flat = _product(corners - corners.mean(0), axes[:, :2])
  return flat, axes, center, size, usable


def _joined(rotation, scale, center_a, center_b, valid):
  """The motion through both centroids where valid, else the identity."""
  rotation = jnp.where(valid, rotation, jnp.eye(3, dtype=rotation.dtype))
  scale = jnp.where(valid, scale, 1.0)
  translation = center_a - scale * _product(rotation, center_b[:, None])[:, 0]
  return Similarity(rotation, jnp.where(valid, translation, 0.0), scale)
