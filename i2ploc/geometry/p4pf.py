# SPDX-License-Identifier: Apache-2.0
"""Absolute pose and focal length of a camera from four points.

With w the inverse of the focal length, s the depth of the map's centre times w,
and r_i the rows of the rotation, an image point (u, v) obeys

  u (s + w r_2 . p) = r_0 . p + t_0,   v (s + w r_2 . p) = r_1 . p + t_1,

which is linear in (t_0, t_1, s, w), and smooth up to w = 0, a camera at
infinity. Four points give eight equations for seven unknowns. Three of them
have at most four poses for every w, see `p3p`, and the fourth tells how far w
is off: from a few values of w, Gauss and Newton's method reaches the solution,
whether the points are on a plane or not, where the algebraic solvers need one
case for either (Bujnak, Kukelova and Pajdla, A general solution to the P4P
problem for camera with unknown focal length, CVPR 2008).

Written for one sample and vmapped by the caller. Vectors are tuples of numbers,
see `vectors`.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import p3p
from i2ploc.geometry import vectors

NUM_SOLUTIONS = 4
# Inverse focal lengths to start from: fields of view of 6 to 105 degrees.
_STARTS = (0.05, 0.15, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3)
# How far from a start its solution may be, in distances to its neighbours.
_REACH = 0.75
_NUM_STEPS = 8
_LONGEST_STEP = 0.5
_LEAST_INVERSE, _MOST_INVERSE = 0.01, 4.0
_LEAST_DEPTH = 1e-3
_TINY = 1e-12
# Relative difference of focal lengths below which two solutions may be one.
_SAME = 1e-2


class Cameras(NamedTuple):
  """Up to four cameras.

  Attributes:
    rotation: [4, 3, 3], of camera_from_map.
    translation: [4, 3], in the unit of the points.
    focal_length: [4], in the unit of the image points.
    valid: [4] bool; the others are finite and meaningless.
  """

  rotation: jax.Array
  translation: jax.Array
  focal_length: jax.Array
  valid: jax.Array


class _State(NamedTuple):
  """Cameras [V]: rows of R, t_0, t_1, s and w."""

  rotation: vectors.Matrix
  shift_x: jax.Array
  shift_y: jax.Array
  depth: jax.Array
  inverse: jax.Array


def _at(inverse, image, points):
  """How far the fourth point is off [4, 2], and the poses of the others."""
  ahead = jnp.ones_like(image[:3, :1])
  rays = jnp.concatenate([image[:3] * inverse, ahead], axis=-1)
  rays = rays / jnp.sqrt(jnp.sum(rays**2, axis=-1, keepdims=True))
  poses = p3p.p3p(rays, points[:3])
  x, y, z = (
    (poses.rotation[:, i] * points[3]).sum(-1) + poses.translation[:, i]
    for i in range(3)
  )
  scale = 1 / (inverse * jnp.maximum(z, _LEAST_DEPTH))
  away = jnp.stack([x * scale, y * scale], axis=-1) - image[3]
  return away, (poses, poses.valid & (z > _LEAST_DEPTH))


def _starts(image, points):
  """The most promising states [V], and whether they are any."""
  grid = np.asarray(_STARTS)
  gaps = np.diff(grid)
  below = -_REACH * np.concatenate([gaps[:1], gaps])[:, None]
  above = _REACH * np.concatenate([gaps, gaps[-1:]])[:, None]
  where = jnp.asarray(grid, image.dtype)

  def at(inverse):
    away, change, found = jax.jvp(
      lambda value: _at(value, image, points),
      (inverse,),
      (jnp.ones_like(inverse),),
      has_aux=True,
    )
    return away, change, *found

  away, change, poses, valid = jax.vmap(at)(where)
  # What is left if w moves as far as it may.
  square = jnp.maximum(jnp.sum(change**2, axis=-1), _TINY)
  step = jnp.clip(-jnp.sum(away * change, axis=-1) / square, below, above)
  rest = jnp.sum((away + step[..., None] * change) ** 2, axis=-1)
  rest = jnp.where(valid & jnp.isfinite(rest), rest, jnp.inf).reshape(-1)
  _, best = jax.lax.top_k(-rest, NUM_SOLUTIONS)
  inverse = where[best // p3p.NUM_SOLUTIONS]
  rotation = poses.rotation.reshape(-1, 3, 3)[best]
  x, y, z = poses.translation.reshape(-1, 3)[best].T
  rows = tuple(tuple(rotation[:, i, j] for j in range(3)) for i in range(3))
  return _State(rows, x, y, z * inverse, inverse), jnp.isfinite(rest[best])


def _seen(state, points):
  """Points of the map turned [4, V], inverse depths, and image points."""
  turned = [vectors.dot(row, points) for row in state.rotation]
  depth = state.depth + state.inverse * turned[2]
  inverse = 1 / jnp.maximum(depth, _LEAST_DEPTH)
  image = (
    (turned[0] + state.shift_x) * inverse,
    (turned[1] + state.shift_y) * inverse,
  )
  return turned, depth, inverse, image


def _step(columns, right):
  """Least squares by orthogonalisation; columns and right side are [M, V]."""
  size = len(columns)
  left = jnp.stack([*columns, right])

  def orthogonalize(k, state):
    left, upper = state
    column = left[k]
    squared = jnp.sum(column**2, axis=0) + _TINY
    along = jnp.sum(left * column, axis=1) / squared
    along = jnp.where(jnp.arange(size + 1)[:, None] > k, along, 0.0)
    return left - along[:, None] * column, upper.at[k].set(along)

  upper = jnp.zeros((size, size + 1, left.shape[2]), left.dtype)
  _, upper = jax.lax.fori_loop(0, size, orthogonalize, (left, upper))

  def substitute(k, found):
    k = size - 1 - k
    return found.at[k].set(-jnp.sum(upper[k] * found, axis=0))

  found = jnp.zeros((size + 1, left.shape[2]), left.dtype).at[size].set(-1.0)
  return tuple(jax.lax.fori_loop(0, size, substitute, found)[:size])


def _improved(state, image, points):
  """A step of Gauss and Newton's on the eight equations."""
  (x, y, z), _, inverse, (u, v) = _seen(state, points)
  nothing, one = jnp.zeros_like(inverse), jnp.ones_like(inverse)

  def column(by_x, by_y, by_depth):
    return jnp.concatenate(
      [(by_x - u * by_depth) * inverse, (by_y - v * by_depth) * inverse]
    )

  columns = [
    column(nothing, -z, state.inverse * y),
    column(z, nothing, -state.inverse * x),
    column(-y, x, nothing),
    column(one, nothing, nothing),
    column(nothing, one, nothing),
    column(nothing, nothing, one),
    column(nothing, nothing, z),
  ]
  right = jnp.concatenate([image[0] - u, image[1] - v])
  step = _step(columns, right)
  length = jnp.sqrt(vectors.dot(step[:3], step[:3]) + _TINY)
  step = vectors.scaled(step, jnp.minimum(1.0, _LONGEST_STEP / length))
  # The rotation by 2 arctan(|step| / 2) about the step (Cayley).
  half = vectors.scaled(step[:3], 0.5)
  factor = 2 / (1 + vectors.dot(half, half))
  turned = []
  for axis in vectors.transposed(state.rotation):
    once = vectors.cross(half, axis)
    twice = vectors.total(once, vectors.cross(half, once))
    turned.append(vectors.total(axis, vectors.scaled(twice, factor)))
  return _State(
    vectors.transposed(turned),
    state.shift_x + step[3],
    state.shift_y + step[4],
    state.depth + step[5],
    jnp.clip(state.inverse + step[6], -_MOST_INVERSE, _MOST_INVERSE),
  )


def p4pf(
  image: jax.Array, points: jax.Array, tolerance: float = 0.03
) -> Cameras:
  """Cameras of unknown focal length that see four points where they are seen.

  Args:
    image: [4, 2] image points about the principal point, in a unit for which
      the focal length is between 0.5 and 20, such as half the image's width.
    points: [4, 3] positions in the map frame; on a plane or not.
    tolerance: how far an image point may be off, at most: four points with
      noise fulfil no camera exactly.

  Returns:
    Cameras with all points ahead. None is valid for three points on a line, or
    where the field of view is below 1 or beyond 150 degrees. Of points on a
    plane that faces the camera no focal length can be told, but one is given.

  Example:
    >>> import jax
    >>> import numpy as np
    >>> from i2ploc.geometry import p4pf
    >>> points = np.array([[0.0, 0, 4], [1, 0, 5], [0, 1, 6], [-1, -1, 5]])
    >>> image = 1.5 * points[:, :2] / points[:, 2:]
    >>> cameras = jax.jit(p4pf.p4pf)(image, points)
    >>> cameras.focal_length[cameras.valid].round(2).tolist()
    [1.5]
  """
  chex.assert_shape([image, points], [(4, 2), (4, 3)])
  finite = jnp.isfinite(image).all() & jnp.isfinite(points).all()
  image, points = (jnp.where(finite, x, 0.0) for x in (image, points))
  center = points.mean(0)
  near = points - center
  extent = jnp.abs(near).max()
  sized = (extent > 1e-15) & (extent < 1e15)
  extent = jnp.where(sized, extent, 1.0)
  near = jnp.where(sized, near / extent, 0.0)
  state, some = _starts(*jax.lax.stop_gradient((image, near)))
  columns = tuple(near.T[:, :, None])
  pixels = tuple(image.T[:, :, None])
  state = jax.lax.fori_loop(
    0,
    _NUM_STEPS,
    # The last step alone carries the whole gradient.
    lambda _, state: _improved(jax.lax.stop_gradient(state), pixels, columns),
    state,
  )
  _, depth, _, (u, v) = _seen(state, columns)
  away = jnp.maximum(jnp.abs(u - pixels[0]), jnp.abs(v - pixels[1])).max(0)
  valid = finite & sized & some & (away < tolerance)
  valid &= (state.inverse > _LEAST_INVERSE) & (state.inverse < _MOST_INVERSE)
  valid &= (depth > _LEAST_DEPTH).all(0)
  valid &= ~_repeated(state, valid)
  inverse = jnp.where(valid, state.inverse, 1.0)
  rows = [jnp.stack(row, axis=-1) for row in state.rotation]
  rotation = jnp.stack(rows, axis=-2)
  moved = [state.shift_x, state.shift_y, state.depth / inverse]
  # Written out: TF32 products would move the camera.
  turned = jnp.sum(rotation * center, axis=-1)
  translation = extent * jnp.stack(moved, axis=-1) - turned
  usable = finite & sized
  return Cameras(
    jnp.where(usable, rotation, jnp.eye(3, dtype=rotation.dtype)),
    jnp.where(usable, translation, 0.0),
    1 / inverse,
    valid,
  )


def _repeated(state, valid):
  """Whether a valid state before is the same [V]."""
  inverse = jnp.where(valid, state.inverse, 1.0)
  away = jnp.abs(inverse[:, None] / inverse - 1)
  for row in state.rotation:
    for value in row:
      away = jnp.maximum(away, jnp.abs(value[:, None] - value))
  before = jnp.arange(NUM_SOLUTIONS)
  before = (before < before[:, None]) & valid
  return ((away < _SAME) & before).any(axis=1)
