# SPDX-License-Identifier: Apache-2.0
"""The equation between two images of the same points: x1^T F x0 = 0.

Image points are homogeneous: for fundamental matrices pixels with 1 appended;
for essential matrices E = [t] R, with x_camera1 = R x_camera0 + t, directions
in the camera frame, of any length. The length and the sign of t, F and E do not
change the equation.
"""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from i2ploc.geometry import arrays
from i2ploc.geometry import rigid
from i2ploc.geometry import vectors

_TINY = 1e-12


def equations(rays0: jax.Array, rays1: jax.Array) -> jax.Array:
  """Unit rows [N, 9] that are orthogonal to F, from rays [N, 3]."""
  chex.assert_equal_shape([rays0, rays1])
  rows = (rays1[:, :, None] * rays0[:, None, :]).reshape(-1, 9)
  squared = jnp.sum(rows**2, axis=-1, keepdims=True)
  return rows / jnp.sqrt(jnp.maximum(squared, _TINY))


def complement(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
  """A basis of the orthogonal complement of a few vectors.

  The last columns of Q in a QR decomposition by reflections (Householder).

  Args:
    rows: [m, n], m < n.

  Returns:
    basis: [n - m, n], orthonormal.
    smallest: the least length that a row has beside those before it; about 0
      if the rows are dependent, so that the basis is one of many.
  """
  m, n = rows.shape
  places = jnp.arange(n)

  def mirrored(k, state):
    matrix, smallest = state
    row = jax.lax.dynamic_index_in_dim(matrix, k, keepdims=False)
    rest = jnp.where(places < k, 0.0, row)
    first = jnp.sum(jnp.where(places == k, row, 0.0))
    length = jnp.sqrt(jnp.maximum(jnp.sum(rest**2), _TINY**2))
    turned = jnp.where(first < 0, -length, length)
    mirror = rest + jnp.where(places == k, turned, 0.0)
    # |mirror|^2 = 2 length (length + |first|), without cancellation.
    mirror = mirror * jax.lax.rsqrt(length * (length + jnp.abs(first)))
    along = jnp.sum(matrix * mirror, axis=-1, keepdims=True)
    return matrix - along * mirror, jnp.minimum(smallest, length)

  # The rows become a triangle, and the axes below them become Q.
  start = jnp.concatenate([rows, jnp.eye(n, dtype=rows.dtype)])
  matrix, smallest = jax.lax.fori_loop(
    0, m, mirrored, (start, jnp.asarray(jnp.inf, rows.dtype))
  )
  return matrix[m:, m:].T, smallest


def determinant(matrix: jax.Array) -> jax.Array:
  """[...] of matrices [..., 3, 3], written out."""
  a, b, c = matrix[..., 0, :], matrix[..., 1, :], matrix[..., 2, :]
  return jnp.sum(a * jnp.cross(b, c), axis=-1)


def sampson(
  matrix: rigid.Array,
  points0: Sequence[rigid.Array],
  points1: Sequence[rigid.Array],
  *,
  sphere: bool = False,
) -> Any:
  """Signed distance of pairs of points from agreement with F or E.

  To first order the least movement, of both points together, that makes them
  agree: x1^T F x0 divided by the length of its gradient (Sampson, 1982; Hartley
  and Zisserman, 2003, section 11.4.3). Moving one point only would take sqrt(2)
  times as much.

  Args:
    matrix: [3, 3].
    points0: three arrays [N], coordinates in image 0.
    points1: of the same points in image 1.
    sphere: whether points are unit vectors and move on the sphere, in radians;
      else they move on the plane where the third coordinate is 1.

  Returns:
    [N]; 0 where the gradient vanishes, at both epipoles.
  """
  value, inverse, _, _ = _gradient(matrix, points0, points1, sphere)
  return value * inverse


def _gradient(matrix, points0, points1, sphere):
  """x1^T F x0, the inverse length of its gradient, F x0 and F^T x1."""
  xp = arrays.namespace(matrix, *points0, *points1)
  lines1 = a, b, c = arrays.mapped(matrix, points0)
  lines0 = d, e, f = arrays.mapped(matrix.T, points1)
  value = vectors.dot(points1, lines1)
  squared = a * a + b * b + d * d + e * e
  if sphere:
    # Minus the part along the vectors, in which they cannot move.
    squared = squared + c * c + f * f - 2 * value * value
  inverse = arrays.rsqrt(xp.maximum(squared, _TINY))
  return value, inverse, lines0, lines1


def linearized(
  matrix: rigid.Array,
  tangents: rigid.Array,
  points0: Sequence[rigid.Array],
  points1: Sequence[rigid.Array],
  *,
  sphere: bool = False,
) -> tuple[Any, Any]:
  """`sampson` and its derivatives.

  Args:
    matrix: [3, 3].
    tangents: [D, 3, 3], derivatives of the matrix.
    points0: as in `sampson`.
    points1: as in `sampson`.
    sphere: as in `sampson`.

  Returns:
    distances: [N].
    derivatives: [D, N].
  """
  value, inverse, lines0, lines1 = _gradient(matrix, points0, points1, sphere)
  distance = value * inverse
  # Of r = v / |g|: dr = dv / |g| - v / |g|^3 (g . dg), with dv = x1^T dF x0.
  pull = distance * inverse * inverse
  weight = inverse + 2 * value * pull if sphere else inverse
  # Together dr = left^T dF x0 + x1^T dF right; on the plane the gradient has
  # no third coordinates.
  left = [weight * x for x in points1]
  right = [0.0, 0.0, 0.0]
  for i in range(3 if sphere else 2):
    left[i], right[i] = left[i] - pull * lines1[i], -pull * lines0[i]
  left, right, points0, points1 = arrays.table(
    [left, right, points0, points1], distance
  )
  by_entry = left[:, None] * points0 + points1[:, None] * right
  flat = by_entry.reshape(9, -1)
  return distance, arrays.matmul(tangents.reshape(-1, 9), flat)
