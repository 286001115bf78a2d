# SPDX-License-Identifier: Apache-2.0
"""Absolute pose of a rig of calibrated cameras from three points.

Every ray has an origin of its own, o_i. With distances d_i along unit rays r_i,

  |o_i + d_i r_i - o_j - d_j r_j| = s_ij,   (i, j) = (0, 1), (0, 2), (1, 2),

three quadrics with eight common points (Nister and Stewenius, A minimal
solution to the generalised 3-point pose problem, JMIV 2007). The first equation
says that o_0 + d_0 r_0 - o_1 - d_1 r_1 ends on a sphere, and in the plane of
both rays on a circle: an angle on that circle gives d_0 and d_1. The difference
of the other equations is linear in d_2, and with it the second one becomes a
trigonometric polynomial of the angle with frequencies up to 4. All real
solutions are on the circle, none is at infinity, and nine values are enough,
see `polynomial`. Newton's method on the distances restores the digits that
float32 lost, and carries the gradient.

Written for one sample and vmapped by the caller. Vectors are tuples of numbers,
see `vectors`.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from i2ploc.geometry import polynomial
from i2ploc.geometry import rigid
from i2ploc.geometry import vectors

NUM_SOLUTIONS = 8
_NUM_POLISH = 4
_TINY = 1e-12
# Squared sine below which points are on a line, and squared chord of rays in
# the same direction.
_FLAT = 1e-12
# Largest residual of a solution, in squares of the typical distance.
_SOLVED = 1e-5
# Relative difference below which two solutions are the same.
_SAME = 1e-3
_FARTHEST = 1e5
# Squares of larger coordinates, and of smaller sides, are none in float32.
_HUGE = 1e15
# Dummy input for degenerate samples: origins, rays and points.
_EXAMPLE = (
  ((0.0, 0.0, 0.0), (0.1, 0.0, 0.0), (0.0, 0.1, 0.0)),
  ((0.6, 0.0, 0.8), (0.0, 0.6, 0.8), (0.0, 0.0, 1.0)),
  ((1.8, 0.0, 2.4), (0.1, 2.4, 3.2), (0.0, 0.1, 5.0)),
)


class _Pair(NamedTuple):
  """x^2 + y^2 - 2 m x y + 2 a x - 2 b y + c = 0 of two distances x and y."""

  m: jax.Array
  a: jax.Array
  b: jax.Array
  c: jax.Array

  def residual(self, x, y):
    """Half the left side."""
    square = (x - y) ** 2 + 2 * (1 - self.m) * x * y
    return square / 2 + self.a * x - self.b * y + self.c / 2

  def slopes(self, x, y):
    """Its derivatives by x and y."""
    return x - self.m * y + self.a, y - self.m * x - self.b


def _pair(origins, rays, points, i, j):
  between = vectors.minus(origins[i], origins[j])
  side = vectors.minus(points[i], points[j])
  return _Pair(
    vectors.dot(rays[i], rays[j]),
    vectors.dot(rays[i], between),
    vectors.dot(rays[j], between),
    vectors.dot(between, between) - vectors.dot(side, side),
  )


def _newton(distances, pairs, residuals):
  """The step, to subtract from three distances, by the residuals."""
  x, y, z = distances
  first, second, third = pairs
  a, b = first.slopes(x, y)
  c, e = second.slopes(x, z)
  g, h = third.slopes(y, z)
  r0, r1, r2 = residuals
  determinant = -(a * e * g + b * c * h)
  some = jnp.abs(determinant) > _TINY
  inverse = jnp.where(some, 1 / jnp.where(some, determinant, 1.0), 0.0)
  mixed = r1 * h - e * r2
  return (
    (-r0 * e * g - b * mixed) * inverse,
    (a * mixed - r0 * c * h) * inverse,
    (r0 * c * g - a * r1 * g - b * c * r2) * inverse,
  )


def _residuals(distances, pairs):
  x, y, z = distances
  first, second, third = pairs
  return first.residual(x, y), second.residual(x, z), third.residual(y, z)


@jax.custom_jvp
def _polished(distances, pairs):
  """Distances that fulfil the equations, from nearly correct ones.

  Their derivative is that of the equations, not of the iteration.
  """

  def polish(_, distances):
    steps = _newton(distances, pairs, _residuals(distances, pairs))
    limits = [0.2 * jnp.abs(distance) + 0.02 for distance in distances]
    return tuple(
      distance - jnp.clip(step, -limit, limit)
      for distance, step, limit in zip(distances, steps, limits, strict=True)
    )

  return jax.lax.fori_loop(0, _NUM_POLISH, polish, distances)


@_polished.defjvp
def _polished_jvp(primals, tangents):
  distances = _polished(*primals)
  # The residuals are linear in the coefficients of the pairs.
  x, y, z = distances
  changes = [
    -change.m * p * q + change.a * p - change.b * q + change.c / 2
    for (p, q), change in zip(
      ((x, y), (x, z), (y, z)), tangents[1], strict=True
    )
  ]
  steps = _newton(distances, primals[1], changes)
  return distances, tuple(-step for step in steps)


def _circle(origins, rays, side):
  """The function from an angle to d_0 and d_1; whether there are such."""
  between = vectors.minus(origins[0], origins[1])
  total = vectors.total(rays[0], rays[1])
  difference = vectors.minus(rays[0], rays[1])
  squares = [jnp.maximum(vectors.dot(v, v), _TINY) for v in (total, difference)]
  # x r_0 - y r_1 = (x - y) / 2 (r_0 + r_1) + (x + y) / 2 (r_0 - r_1).
  long, wide = (jnp.sqrt(square) for square in squares)
  along = vectors.dot(between, total) / long
  across = vectors.dot(between, difference) / wide
  off = vectors.dot(between, between) - along**2 - across**2
  squared = side - jnp.maximum(off, 0.0)
  radius = jnp.sqrt(jnp.maximum(squared, _TINY))

  def distances(angle):
    half_difference = (radius * jnp.cos(angle) - along) / long
    half_sum = (radius * jnp.sin(angle) - across) / wide
    return half_sum + half_difference, half_sum - half_difference

  return distances, squared > 0


def _starts(origins, rays, points, pairs):
  """Twice three distances [8], near solutions, and whether they are [8].

  Where the last distance is twice nearly the same, one of the two may be near.
  """
  first, second, third = pairs
  side = vectors.minus(points[0], points[1])
  circle, real = _circle(origins, rays, vectors.dot(side, side))

  def parts(angle):
    """d_2 = top / bottom, and d_2^2 - 2 half d_2 + last = 0."""
    x, y = circle(angle)
    bottom = 2 * (second.m * x - third.m * y + second.b - third.b)
    top = (x - y) * (x + y) + 2 * second.a * x - 2 * third.a * y
    top = top + second.c - third.c
    half = second.m * x + second.b
    last = x * x + 2 * second.a * x + second.c
    return x, y, top, bottom, half, last

  angles = 2 * jnp.asarray(polynomial.angles(NUM_SOLUTIONS), first.m.dtype)
  _, _, top, bottom, half, last = parts(angles)
  values = top * top - 2 * half * top * bottom + last * bottom * bottom
  halves, valid = polynomial.roots(values)
  x, y, top, bottom, half, last = parts(2 * halves)
  root = jnp.sqrt(jnp.maximum(half * half - last, 0.0))
  far, near = half + root, half - root
  nearer = jnp.abs(far * bottom - top) < jnp.abs(near * bottom - top)
  likely, other = jnp.where(nearer, far, near), jnp.where(nearer, near, far)
  return (x, y, likely), (x, y, other), valid & real & (first.m < 1)


def _distances(origins, rays, points):
  """Three distances [8], and whether they are a solution [8]."""
  pairs = tuple(
    _pair(origins, rays, points, i, j) for i, j in ((0, 1), (0, 2), (1, 2))
  )
  fixed = jax.lax.stop_gradient((origins, rays, points))
  likely, other, valid = _starts(*fixed, jax.lax.stop_gradient(pairs))
  found, also = _polished(likely, pairs), _polished(other, pairs)
  # Of two neighbouring roots that led to the same, the second means the other.
  away = [jnp.abs(value - jnp.roll(value, 1)) for value in found]
  size = functools.reduce(jnp.maximum, [jnp.abs(value) for value in found])
  again = functools.reduce(jnp.maximum, away) < _SAME * size
  again &= jnp.arange(NUM_SOLUTIONS) > 0
  found = vectors.where(again, also, found)
  wrong = [jnp.abs(value) for value in _residuals(found, pairs)]
  valid &= functools.reduce(jnp.maximum, wrong) < _SOLVED
  valid &= functools.reduce(jnp.minimum, found) > 0
  valid &= functools.reduce(jnp.maximum, found) < _FARTHEST
  return tuple(jnp.where(valid, value, 1.0) for value in found), valid


def _axes(first, second, third):
  """Rows: three orthonormal axes that a triangle spans."""
  side, other = vectors.minus(second, first), vectors.minus(third, first)
  normal = vectors.unit(vectors.cross(side, other))
  side = vectors.unit(side)
  return side, vectors.cross(normal, side), normal


def gp3p(
  origins: jax.Array, rays: jax.Array, points: jax.Array
) -> tuple[rigid.Rigid, jax.Array]:
  """Poses of a rig that sees three points in three directions.

  Args:
    origins: [3, 3] where the rays begin, in the frame of the rig, metres. They
      may be the same: then this is `p3p`, which is five times as fast.
    rays: [3, 3] unit directions in that frame.
    points: [3, 3] positions in the map frame, metres.

  Returns:
    rig_from_map: [8] poses with which each point lies on its ray, ahead of its
      origin; finite and meaningless where not valid.
    valid: [8] bool. None is for points on a line.

  Example:
    >>> import jax
    >>> import numpy as np
    >>> from i2ploc.geometry import gp3p
    >>> origins = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> rays = np.array([[0.6, 0.0, 0.8], [0.0, 0.6, 0.8], [0.0, 0.0, 1.0]])
    >>> points = origins + rays * [[5.0], [6.0], [4.0]]
    >>> poses, valid = jax.jit(gp3p.gp3p)(origins, rays, points - [9, 0, 0])
    >>> found = np.asarray(poses.translation)[valid] - [9, 0, 0]
    >>> np.linalg.norm(found, axis=1).min().round(3).item()
    0.0
  """
  chex.assert_shape([origins, rays, points], (3, 3))
  given = jnp.stack([origins, rays, points])
  usable = (jnp.abs(given) < _HUGE).all()  # and not nan
  starts, ways, corners = (
    tuple(tuple(row) for row in rows) for rows in jnp.where(usable, given, 0.0)
  )
  # About their centres, in units of the distance at which a central camera
  # would see points so far apart.
  center, body = (
    vectors.scaled(vectors.total(*rows), 1 / 3) for rows in (corners, starts)
  )
  corners = [vectors.minus(corner, center) for corner in corners]
  starts = [vectors.minus(start, body) for start in starts]
  extent, usable = _extent(ways, corners, usable)
  choose = functools.partial(vectors.where, usable)
  made = [
    tuple(map(choose, rows, dummy))
    for rows, dummy in zip(
      (
        [vectors.scaled(start, 1 / extent) for start in starts],
        ways,
        [vectors.scaled(corner, 1 / extent) for corner in corners],
      ),
      _EXAMPLE,
      strict=True,
    )
  ]
  distances, valid = _distances(*made)
  seen = [
    vectors.total(origin, vectors.scaled(ray, distance))
    for origin, ray, distance in zip(made[0], made[1], distances, strict=True)
  ]
  # R maps the axes of the triangle in the map to those in the rig.
  here, there = vectors.transposed(_axes(*seen)), _axes(*made[2])
  rotation = tuple(
    tuple(vectors.dot(row, column) for column in vectors.transposed(there))
    for row in here
  )
  middle = vectors.scaled(vectors.total(*seen), extent / 3)
  middle = vectors.total(middle, choose(body, (0.0, 0.0, 0.0)))
  center = choose(center, (0.0, 0.0, 0.0))
  translation = vectors.minus(middle, vectors.apply(rotation, center))
  pose = rigid.Rigid(
    jnp.stack(sum(rotation, ()), axis=-1).reshape(NUM_SOLUTIONS, 3, 3),
    jnp.stack(translation, axis=-1),
  )
  return pose, valid & usable


def _extent(rays, points, usable):
  """Typical distance of the points; and whether all determine a pose."""
  sides = [vectors.minus(points[i], points[j]) for i, j in ((1, 2), (0, 2))]
  sides.append(vectors.minus(points[0], points[1]))
  largest = functools.reduce(
    jnp.maximum, [jnp.abs(value) for side in sides for value in side]
  )
  usable &= largest > 1 / _HUGE
  largest = jnp.where(usable, largest, 1.0)
  sides = [vectors.scaled(side, 1 / largest) for side in sides]
  normal = vectors.cross(sides[0], sides[1])
  usable &= vectors.dot(normal, normal) > _FLAT
  squared = sum(vectors.dot(side, side) for side in sides)
  chords = [
    vectors.minus(rays[i], rays[j]) for i, j in ((1, 2), (0, 2), (0, 1))
  ]
  chord = sum(vectors.dot(chord, chord) for chord in chords)
  # Rays that are parallel as to the first two have no circle.
  usable &= vectors.dot(chords[2], chords[2]) > _FLAT
  ratio = jnp.where(usable, squared / jnp.maximum(chord, _FLAT), 1.0)
  return jnp.where(usable, largest * jnp.sqrt(ratio), 1.0), usable
