# SPDX-License-Identifier: Apache-2.0
"""Homographies: the map between two images of a plane, or of a turning camera.

A homography [3, 3] maps image 0 to image 1, (x1, y1, 1) ~ H (x0, y0, 1). It has
Frobenius norm 1 and the sign for which points in front of both cameras have a
positive third coordinate; the vanishing line, where that is zero, is the limit
of what the second camera can see.

Written for one sample and vmapped by the caller; nothing branches.
"""

import chex
import jax
import jax.numpy as jnp

# Twice the area of three points, in squares of the sample's extent, below
# which they are on a line.
_FLAT = 1e-6
# Dummy input for degenerate samples.
_EXAMPLE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))


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
  """Whether four pairs determine a homography of points in front of cameras.

  No three are on a line, and either all triangles keep their orientation or
  none does: else the vanishing line passes between the points.
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
  so that small quadrangles lose no digits.

  Args:
    points0: [4, 2].
    points1: [4, 2].

  Returns:
    homography: [3, 3]; the identity where there is none.
    valid: bool; False if three points of an image are on a line, or if not all
      can be in front of both cameras.

  Example:
    >>> import jax
    >>> import numpy as np
    >>> from i2ploc.geometry import homography
    >>> square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> found, valid = jax.jit(homography.from_four)(square, 4 * square + 1)
    >>> expected = [[4, 0, 1], [0, 4, 1], [0, 0, 1]]
    >>> bool(np.allclose(found / found[2, 2], expected, atol=1e-5)), bool(valid)
    (True, True)
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
