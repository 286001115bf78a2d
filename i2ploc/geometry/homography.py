# SPDX-License-Identifier: Apache-2.0
"""Homographies: what a plane, or a camera that only turns, does to an image.

A homography [3, 3] maps image 0 to image 1, (x1, y1, 1) ~ H (x0, y0, 1). It is
kept with Frobenius norm 1 and the sign for which points that are seen have a
positive third coordinate; beyond the line where that vanishes nothing is seen.

Written for one sample and vmapped by the caller; nothing branches.
"""

import chex
import jax
import jax.numpy as jnp

from i2ploc.geometry import rigid

# Twice the area of three points, in squares of the sample's extent, below
# which they are on a line.
_FLAT = 1e-6
# What is solved, to no effect, in the place of what cannot be.
_EXAMPLE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
# Of a linear system, relative to its largest eigenvalue: what rounding leaves.
_NOISE = 1e-5


def apply(homography: jax.Array, points: jax.Array) -> jax.Array:
  """Points [N, 2] of image 0 in image 1; far away where they are not seen."""
  chex.assert_axis_dimension(points, -1, 2)
  seen = jnp.matmul(points, homography[:, :2].T, precision=rigid.EXACT)
  seen = seen + homography[:, 2]
  return seen[:, :2] / jnp.maximum(seen[:, 2:], 1e-12)


def _cross(a, b):
  return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _corner(points):
  """Three points [3, 2] as seen from the fourth, their extent, and areas.

  The areas [4], twice and signed, of the triangles without point 0, 1, 2 and 3
  are the coordinates of point 3 in the basis of the others, and their sum.
  """
  offsets = points[:3] - points[3]
  extent = jnp.abs(offsets).max()
  extent = jnp.where(extent > 0, extent, 1.0)
  offsets = offsets / extent
  areas = _cross(offsets[jnp.array([1, 2, 0])], offsets[jnp.array([2, 0, 1])])
  return offsets, extent, jnp.append(areas, areas.sum())


def _usable(points0, points1):
  """Whether four pairs determine a homography that a camera could see.

  No three are on a line, and the triangles keep their orientations, all of
  them or none: else the vanishing line passes between the points.
  """
  areas0, areas1 = _corner(points0)[2], _corner(points1)[2]
  smallest = jnp.minimum(jnp.abs(areas0).min(), jnp.abs(areas1).min())
  same = (areas0 > 0) == (areas1 > 0)
  return (smallest > _FLAT) & (same.all() | ~same.any())


def from_four(
  points0: jax.Array, points1: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The homography of four pairs of points.

  Four points p_i are a projective basis: p_3 = sum of l_i p_i / sum of l_i with
  l_i the signed areas of the triangles that leave out p_i. With m_i those of
  image 1, H = sum of m_i l_j l_k q_i r_i^T maps all p_i to q_i, where r_i are
  the rows of the adjugate of (p_0 p_1 p_2): products and sums alone (Hartley
  and Zisserman, Multiple View Geometry, 2003, section 2.4). The origin is p_3,
  of which no digits are lost however small the quadrangle is.

  Args:
    points0: [4, 2].
    points1: [4, 2].

  Returns:
    homography: [3, 3]; the identity where there is none.
    valid: bool; False if three points of an image are on a line, or if not all
      can be in front of both cameras.
  """
  chex.assert_shape([points0, points1], (4, 2))
  usable = _usable(points0, points1)
  example = jnp.asarray(_EXAMPLE, points0.dtype)
  points0 = jnp.where(usable, points0, example)
  points1 = jnp.where(usable, points1, example)
  a, extent0, areas0 = _corner(points0)
  b, extent1, areas1 = _corner(points1)
  after, before = a[jnp.array([1, 2, 0])], a[jnp.array([2, 0, 1])]
  rows = [after[:, 1] - before[:, 1], before[:, 0] - after[:, 0], areas0[:3]]
  others = areas0[jnp.array([1, 2, 0])] * areas0[jnp.array([2, 0, 1])]
  rows = (areas1[:3] * others)[:, None] * jnp.stack(rows, axis=-1)
  core = sum(jnp.append(b[i], 1.0)[:, None] * rows[i] for i in range(3))
  # The last column is known: point 3 goes to point 3, and is in front.
  last = areas0[:3].prod() * areas1[3]
  core = core.at[:, 2].set(jnp.stack([0.0 * last, 0.0 * last, last]))
  core = jnp.where(last < 0, -core, core)
  found = _unit(_restore(core, (points0[3], extent0), (points1[3], extent1)))
  valid = usable & jnp.isfinite(found).all()
  return jnp.where(valid, found, _unit(jnp.eye(3))), valid


def _restore(core, frame0, frame1):
  """The homography between images from one between frames (center, extent)."""
  (center0, extent0), (center1, extent1) = frame0, frame1
  linear = core[:, :2] / extent0
  last = core[:, 2] - (linear * center0).sum(-1)
  columns = jnp.concatenate([linear, last[:, None]], axis=-1)
  top = extent1 * columns[:2] + center1[:, None] * columns[2]
  return jnp.concatenate([top, columns[2:]])


def _unit(matrix):
  squared = jnp.sum(matrix**2)
  some = squared > 0
  return matrix / jnp.sqrt(jnp.where(some, squared, 1.0))


def frame(points: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Where to put the origin and the unit for a linear system of points.

  Hartley, In defense of the eight-point algorithm, PAMI 1997.

  Args:
    points: [N, 2].
    weights: [N], not negative; 0 leaves a point out.

  Returns:
    center: [2], of the weighted points.
    extent: their mean distance from it, divided by sqrt(2).
  """
  total = jnp.maximum(weights.sum(), 1e-12)
  points = jnp.where(weights[:, None] > 0, points, 0.0)
  center = (weights[:, None] * points).sum(0) / total
  offsets = jnp.where(weights[:, None] > 0, points - center, 1.0)
  distances = jnp.sqrt(jnp.maximum(jnp.sum(offsets**2, axis=-1), 1e-30))
  extent = (weights * distances).sum() / total / jnp.sqrt(2.0)
  return center, jnp.where(extent > 1e-12, extent, 1.0)


def least_vector(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The unit vector that rows map closest to zero.

  Args:
    rows: [N, D].

  Returns:
    vector: [D].
    valid: bool; False where rounding alone would choose among several.
  """
  matrix = jnp.matmul(rows.T, rows, precision=rigid.EXACT)
  values = jnp.linalg.eigvalsh(jax.lax.stop_gradient(matrix))
  valid = (values[1] > _NOISE * values[-1]) & jnp.isfinite(values).all()
  # Eigenvectors of equal eigenvalues have no gradient.
  example = jnp.diag(jnp.arange(len(matrix), dtype=matrix.dtype))
  matrix = jnp.where(valid, matrix, example)
  return jnp.linalg.eigh(matrix)[1][:, 0], valid


def fit(
  points0: jax.Array, points1: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The homography of many pairs, by a linear system.

  Of (x1, y1, 1) x H (x0, y0, 1) = 0 two equations per pair, in frames in which
  the points are around 1 (the normalised direct linear transformation; Hartley
  and Zisserman, 2003, algorithm 4.2).

  Args:
    points0: [N, 2].
    points1: [N, 2].
    weights: [N], not negative; 0 leaves a pair out.

  Returns:
    homography: [3, 3]; the identity where there is none.
    valid: bool; False if the pairs determine none.
  """
  chex.assert_equal_shape([points0, points1])
  frame0, frame1 = frame(points0, weights), frame(points1, weights)
  real = weights[:, None] > 0
  a = jnp.where(real, (points0 - frame0[0]) / frame0[1], 0.0)
  b = jnp.where(real, (points1 - frame1[0]) / frame1[1], 0.0)
  a = jnp.concatenate([a, jnp.ones_like(a[:, :1])], axis=-1)
  root = jnp.sqrt(jnp.where(weights > 0, weights, 1.0)) * (weights > 0)
  a = root[:, None] * a
  zero = jnp.zeros_like(a)
  rows = jnp.concatenate(
    [
      jnp.concatenate([zero, -a, b[:, 1:] * a], axis=-1),
      jnp.concatenate([a, zero, -b[:, :1] * a], axis=-1),
    ]
  )
  core, valid = least_vector(rows)
  core = core.reshape(3, 3)
  # Most points are in front.
  sides = jnp.sign((a * core[2]).sum(-1)) * root
  core = jnp.where(sides.sum() < 0, -core, core)
  found = _unit(_restore(core, frame0, frame1))
  valid &= jnp.isfinite(found).all()
  return jnp.where(valid, found, _unit(jnp.eye(3))), valid
