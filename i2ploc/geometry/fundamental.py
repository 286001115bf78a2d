# SPDX-License-Identifier: Apache-2.0
"""Fundamental matrices from seven points.

Conventions in `epipolar`. Written for one sample and vmapped by the caller.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from i2ploc.geometry import epipolar
from i2ploc.geometry import polynomial

NUM_SOLUTIONS = 3
# Length that a unit row has beside those before it, below which the rows are
# dependent.
_DEPENDENT = 1e-5
_WHERE = polynomial.angles(NUM_SOLUTIONS)


def _frame(points):
  """Origin [2] and unit of coordinates in which points [N, 2] are around 1.

  The mean point, and the mean distance from it divided by sqrt(2) (Hartley, In
  defense of the eight-point algorithm, PAMI 1997).
  """
  center = points.mean(0)
  squared = jnp.sum((points - center) ** 2, axis=-1)
  extent = jnp.sqrt(jnp.maximum(squared, 1e-30)).mean() / jnp.sqrt(2.0)
  return center, jnp.where(extent > 1e-12, extent, 1.0)


def _homogeneous(points, frame):
  center, extent = frame
  points = (points - center) / extent
  return jnp.concatenate([points, jnp.ones_like(points[:, :1])], axis=-1)


def _restore(core, frame0, frame1):
  """F of image points from F [..., 3, 3] of points in frames; of norm 1."""
  (center0, extent0), (center1, extent1) = frame0, frame1
  left = core[..., :2] / extent0
  last = core[..., 2] - (left * center0).sum(-1)
  core = jnp.concatenate([left, last[..., None]], axis=-1)
  top = core[..., :2, :] / extent1
  last = core[..., 2, :] - (top * center1[:, None]).sum(-2)
  core = jnp.concatenate([top, last[..., None, :]], axis=-2)
  squared = jnp.sum(core**2, axis=(-2, -1), keepdims=True)
  return core / jnp.sqrt(jnp.maximum(squared, 1e-30))


def from_seven(
  points0: jax.Array, points1: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The fundamental matrices of seven pairs of points.

  Seven equations leave F = sin(s) A + cos(s) B, and det F = 0 is a cubic
  (Hartley and Zisserman, 2003, section 11.1.2).

  Args:
    points0: [7, 2].
    points1: [7, 2].

  Returns:
    matrices: [3, 3, 3]; of norm 1.
    valid: [3] bool; one or three are, or none if the pairs are dependent.

  Example:
    Of a camera that moves sideways, points move along the rows.

    >>> import jax
    >>> import numpy as np
    >>> from i2ploc.geometry import fundamental
    >>> rng = np.random.default_rng(0)
    >>> points0 = rng.uniform(0, 100, (7, 2))
    >>> points1 = points0 - rng.uniform([1, 0], [9, 0], (7, 2))
    >>> matrices, valid = jax.jit(fundamental.from_seven)(points0, points1)
    >>> sideways = np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]]) / 2**0.5
    >>> aligned = np.abs((matrices[valid] * sideways).sum((1, 2)))
    >>> aligned.max().round(3).item()
    1.0
  """
  chex.assert_shape([points0, points1], (7, 2))
  finite = jnp.isfinite(points0).all() & jnp.isfinite(points1).all()
  points0, points1 = (jnp.where(finite, p, 0.0) for p in (points0, points1))
  frame0, frame1 = _frame(points0), _frame(points1)
  basis, smallest = epipolar.complement(
    epipolar.equations(
      _homogeneous(points0, frame0), _homogeneous(points1, frame1)
    )
  )
  usable = (smallest > _DEPENDENT) & jnp.isfinite(basis).all()
  basis = jnp.where(usable, basis, jnp.eye(9, dtype=basis.dtype)[:2])
  determinant = functools.partial(_determinant, basis=basis)
  where = jnp.asarray(_WHERE, basis.dtype)
  where, valid = polynomial.roots(determinant(where))
  for _ in range(2):
    # The gradient of the last step alone is that of the root.
    where = jax.lax.stop_gradient(where)
    value, slope = jax.jvp(determinant, (where,), (jnp.ones_like(where),))
    steep = jnp.abs(slope) > 1e-6
    where -= jnp.where(steep, value / jnp.where(steep, slope, 1.0), 0.0)
  found = _restore(_mixed(where, basis), frame0, frame1)
  valid &= usable & jnp.isfinite(found).all((-2, -1))
  return jnp.where(valid[:, None, None], found, 0.0), valid


def _determinant(where, basis):
  return epipolar.determinant(_mixed(where, basis))


def _mixed(where, basis):
  """Matrices [V, 3, 3] that are mixtures of [2, 9], by angles [V]."""
  first, second = jnp.sin(where)[:, None], jnp.cos(where)[:, None]
  return (first * basis[0] + second * basis[1]).reshape(-1, 3, 3)
