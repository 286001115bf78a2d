# SPDX-License-Identifier: Apache-2.0
"""The equation between two images of the same points: x1^T F x0 = 0.

Image points are homogeneous: for fundamental matrices pixels with 1 appended;
for essential matrices E = [t] R, with x_camera1 = R x_camera0 + t, directions
in the camera frame, of any length. The length and the sign of t, F and E do not
change the equation.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from i2ploc.geometry import rigid

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
  axes = jnp.eye(n, dtype=rows.dtype)
  mirrors, smallest = [], jnp.asarray(jnp.inf, rows.dtype)
  mirrored = list(rows)
  for k in range(m):
    rest = jnp.where(jnp.arange(n) < k, 0.0, mirrored[k])
    squared = jnp.sum(rest**2)
    length = jnp.sqrt(jnp.maximum(squared, _TINY**2))
    smallest = jnp.minimum(smallest, length)
    mirror = rest + jnp.where(rest[k] < 0, -length, length) * axes[k]
    # |mirror|^2 = 2 length (length + |rest_k|), without cancellation.
    mirror = mirror / jnp.sqrt(length * (length + jnp.abs(rest[k])))
    mirrors.append(mirror)
    for j in range(k + 1, m):
      mirrored[j] = mirrored[j] - jnp.sum(mirror * mirrored[j]) * mirror
  # The first product is a column: as a sum over a constant, XLA 0.10 on CPU
  # computes it wrongly for 1,000 samples at once.
  basis = axes[m:] - mirror[m:, None] * mirror
  for mirror in mirrors[-2::-1]:
    basis = basis - jnp.sum(basis * mirror, -1, keepdims=True) * mirror
  return basis, smallest


def determinant(matrix: jax.Array) -> jax.Array:
  """[...] of matrices [..., 3, 3], written out."""
  a, b, c = matrix[..., 0, :], matrix[..., 1, :], matrix[..., 2, :]
  return jnp.sum(a * jnp.cross(b, c), axis=-1)


def sampson(
  matrix: jax.Array,
  points0: Sequence[rigid.Array],
  points1: Sequence[rigid.Array],
  *,
  sphere: bool = False,
) -> jax.Array:
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
  f, (x0, y0, z0), (x1, y1, z1) = matrix, points0, points1
  a = f[0, 0] * x0 + f[0, 1] * y0 + f[0, 2] * z0
  b = f[1, 0] * x0 + f[1, 1] * y0 + f[1, 2] * z0
  c = f[2, 0] * x0 + f[2, 1] * y0 + f[2, 2] * z0
  d = f[0, 0] * x1 + f[1, 0] * y1 + f[2, 0] * z1
  e = f[0, 1] * x1 + f[1, 1] * y1 + f[2, 1] * z1
  value = a * x1 + b * y1 + c * z1
  squared = a * a + b * b + d * d + e * e
  if sphere:
    g = f[0, 2] * x1 + f[1, 2] * y1 + f[2, 2] * z1
    # Minus the part along the vectors, in which they cannot move.
    squared = squared + c * c + g * g - 2 * value * value
  return value * jax.lax.rsqrt(jnp.maximum(squared, _TINY))
