# SPDX-License-Identifier: Apache-2.0
"""Relative poses of two cameras that know their vertical, from three points.

Where the z axes of both cameras are vertical, the rotation is a turn by an
angle about them. With x_i and y_i the directions of a point in camera 0 and 1,
the normals n_i = R x_i x y_i of three epipolar planes are orthogonal to the
translation, so that

  det(n_0 n_1 n_2) = 0,

a trigonometric polynomial of the angle with frequencies up to 2: no more than
four rotations (Fraundorfer, Tanskanen and Pollefeys, A minimal case solution to
the calibrated relative pose problem for the case of two known orientation
angles, ECCV 2010). It is given by five values, see `polynomial`. Each root is
the start of Newton's method on the pose itself, as in `five_points`.

Written for one sample and vmapped by the caller.
"""

import math

import chex
import jax
import jax.numpy as jnp

from i2ploc.geometry import essential
from i2ploc.geometry import polynomial
from i2ploc.geometry import rigid
from i2ploc.geometry import vectors

NUM_SOLUTIONS = 4
_ANGLES = polynomial.angles(NUM_SOLUTIONS)
_NUM_CELLS = 96
_CELL = math.pi / _NUM_CELLS
_NUM_ROOT_STEPS = 2
# Least spread of the rays, radians, and the tangent of half a turn that is in
# the middle of the cells, in spreads: of 0.12, 0.25, 0.5 and 1 the first loses
# the fewest solutions.
_ZOOM = 0.12
_NARROWEST = 0.05
_NUM_POLISH = 2
# Largest residual of the epipolar equations, of unit vectors, at a solution.
_SOLVED = 1e-5
# Longest step of Newton's method, radians.
_LONGEST_STEP = 0.2
# Volume, in cubes of the spread, below which all rotations are solutions.
_FLAT = 1e-7
# Squared chords, over both cameras, below which two points are one.
_CLOSE = 1e-10


def _turned(cosine, sine, ray):
  """A ray under a turn about the z axis."""
  x, y, z = ray
  return cosine * x - sine * y, sine * x + cosine * y, z + 0 * cosine


def _normals(cosine, sine, rays0, rays1):
  """Three normals of epipolar planes."""
  return [
    vectors.cross(_turned(cosine, sine, ray0), ray1)
    for ray0, ray1 in zip(rays0, rays1, strict=True)
  ]


def _volume(normals):
  first, second, third = normals
  return vectors.dot(first, vectors.cross(second, third))


def _direction(x, y):
  """Cosine and sine of the direction of (x, y); 1 and 0 of the origin."""
  squared = x * x + y * y
  some = squared > vectors.TINY
  length = jnp.sqrt(jnp.where(some, squared, 1.0))
  return jnp.where(some, x / length, 1.0), jnp.where(some, y / length, 0.0)


def _turns(rays0, rays1):
  """Cosines and sines [4] of the turns that make the volume vanish; valid [4].

  Of a narrow camera all turns are near the one that lays the mean rays onto
  each other, where the volume is tiny. So that is taken first, and the tangent
  of half the rest is a multiple of that of the polynomial's angle.
  """
  (x0, y0, _), (x1, y1, _) = vectors.total(*rays0), vectors.total(*rays1)
  cosine0, sine0 = _direction(x0 * x1 + y0 * y1, x0 * y1 - y0 * x1)
  rays0 = [_turned(cosine0, sine0, ray) for ray in rays0]
  # The mean of three unit vectors is short by the square of their spread.
  spread = 1 - (x0 * x0 + y0 * y0) / 9
  factor = _ZOOM * jnp.sqrt(jnp.clip(spread, _NARROWEST**2, 1.0))

  def volume(angle):
    c, s = jnp.cos(angle), factor * jnp.sin(angle)
    length = c * c + s * s
    cosine, sine = (c * c - s * s) / length, 2 * c * s / length
    return _volume(_normals(cosine, sine, rays0, rays1)) * length**2

  values = volume(jnp.asarray(_ANGLES, cosine0.dtype))
  where, valid = polynomial.roots(values, _NUM_CELLS)
  largest = jnp.abs(values).max()
  for _ in range(_NUM_ROOT_STEPS):
    value, slope = jax.jvp(volume, (where,), (jnp.ones_like(where),))
    steep = jnp.abs(slope) > 1e-6 * largest
    step = jnp.where(steep, value / jnp.where(steep, slope, 1.0), 0.0)
    where = where - jnp.clip(step, -_CELL, _CELL)
  c, s = jnp.cos(where), factor * jnp.sin(where)
  length = c * c + s * s
  cosine, sine = (c * c - s * s) / length, 2 * c * s / length
  return (
    cosine * cosine0 - sine * sine0,
    sine * cosine0 + cosine * sine0,
    valid & (largest > _FLAT * factor**3),
  )


def _solved(columns, right):
  """Cramer's rule for three unknowns; all are vectors."""
  a, b, c = columns
  determinant = vectors.dot(a, vectors.cross(b, c))
  some = jnp.abs(determinant) > 1e-12
  inverse = jnp.where(some, 1 / jnp.where(some, determinant, 1.0), 0.0)
  return (
    vectors.dot(right, vectors.cross(b, c)) * inverse,
    vectors.dot(a, vectors.cross(right, c)) * inverse,
    vectors.dot(a, vectors.cross(b, right)) * inverse,
  )


def _polish(pose, rays0, rays1):
  """A step of Newton's towards three epipolar equations."""
  cosine, sine, translation = pose
  normals = _normals(cosine, sine, rays0, rays1)
  first, second = vectors.tangents(translation)
  # By the angle, a turned ray moves by (-y, x, 0).
  slopes = []
  for ray0, ray1 in zip(rays0, rays1, strict=True):
    x, y, _ = _turned(cosine, sine, ray0)
    slopes.append(vectors.cross((-y, x, 0.0), ray1))
  columns = [
    tuple(vectors.dot(slope, translation) for slope in slopes),
    tuple(vectors.dot(normal, first) for normal in normals),
    tuple(vectors.dot(normal, second) for normal in normals),
  ]
  errors = tuple(vectors.dot(normal, translation) for normal in normals)
  step = tuple(
    jnp.clip(-part, -_LONGEST_STEP, _LONGEST_STEP)
    for part in _solved(columns, errors)
  )
  c, s = jnp.cos(step[0]), jnp.sin(step[0])
  moved = vectors.total(
    translation, vectors.scaled(first, step[1]), vectors.scaled(second, step[2])
  )
  return cosine * c - sine * s, sine * c + cosine * s, vectors.unit(moved)


def from_three(
  rays0: jax.Array, rays1: jax.Array
) -> tuple[rigid.Rigid, jax.Array]:
  """Relative poses about the vertical with three points in given directions.

  Args:
    rays0: [3, 3] unit directions in a frame of camera 0 whose z axis is
      vertical.
    rays1: [3, 3] of the same points in such a frame of camera 1.

  Returns:
    camera1_from_camera0: [4] poses between these frames, whose rotations turn
      about z, with translations of length 1; finite and meaningless where not
      valid.
    valid: [4] bool: all points are ahead along their rays.

  Example:
    >>> import jax
    >>> import numpy as np
    >>> from i2ploc.geometry import three_points
    >>> points = np.array([[4.0, 1, 1], [5, -1, 2], [6, 1, -1]])
    >>> rays = points / np.linalg.norm(points, axis=1, keepdims=True)
    >>> moved = points + [0, 1, 0]
    >>> moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    >>> poses, valid = jax.jit(three_points.from_three)(rays, moved)
    >>> poses.translation[valid, 1].max().round(3).item()
    1.0
  """
  chex.assert_shape([rays0, rays1], (3, 3))
  usable = jnp.isfinite(rays0).all() & jnp.isfinite(rays1).all()
  first, second = (
    tuple(tuple(ray) for ray in jnp.where(usable, rays, 0.0))
    for rays in (rays0, rays1)
  )
  fixed0, fixed1 = jax.lax.stop_gradient((first, second))
  for i, j in ((0, 1), (1, 2), (2, 0)):
    chords = [vectors.minus(fixed[i], fixed[j]) for fixed in (fixed0, fixed1)]
    usable &= (
      vectors.dot(chords[0], chords[0]) + vectors.dot(chords[1], chords[1])
      > _CLOSE
    )
  cosine, sine, real = _turns(fixed0, fixed1)
  a, b, c = _normals(cosine, sine, fixed0, fixed1)
  crossed = vectors.cross(a, b), vectors.cross(b, c), vectors.cross(c, a)
  translation = vectors.longest(crossed)
  # Where all normals are parallel any direction orthogonal to them is one.
  some = vectors.dot(translation, translation) > vectors.TINY
  translation = vectors.unit(vectors.where(some, translation, (1.0, 0.0, 0.0)))
  # The sign for which the first point is ahead.
  rotation = _about_z(cosine, sine)
  near, _ = essential.depths(rotation, translation, fixed0[0], fixed1[0])
  translation = vectors.scaled(translation, jnp.where(near < 0, -1.0, 1.0))
  pose = cosine, sine, translation
  pose = jax.lax.fori_loop(
    0,
    _NUM_POLISH,
    # The last step alone carries the whole gradient.
    lambda _, pose: _polish(jax.lax.stop_gradient(pose), first, second),
    pose,
  )
  cosine, sine, translation = pose
  rotation = _about_z(cosine, sine)
  valid = usable & real & some
  normals = _normals(cosine, sine, first, second)
  for ray0, ray1, normal in zip(first, second, normals, strict=True):
    near, far = essential.depths(rotation, translation, ray0, ray1)
    error = jnp.abs(vectors.dot(normal, translation))
    valid &= (near > 0) & (far > 0) & (error < _SOLVED)
  return essential.stacked(rotation, translation), valid


def _about_z(cosine, sine):
  """Rows of turns about the z axis."""
  zero, one = jnp.zeros_like(cosine), jnp.ones_like(cosine)
  return (cosine, -sine, zero), (sine, cosine, zero), (zero, zero, one)
