# SPDX-License-Identifier: Apache-2.0
"""Absolute pose of a camera that knows its vertical, from two points.

Where the z axes of camera and map are vertical, the rotation is a turn about
them and keeps heights. The distances d_0 and d_1 along the unit rays r_0 and
r_1 then obey

  z(d_0 r_0 - d_1 r_1) = z(p_0 - p_1),
  |d_0 r_0 - d_1 r_1| = |p_0 - p_1|,

a line and an ellipse (Kukelova, Bujnak and Pajdla, Closed-form solutions to
minimal absolute pose problems with known vertical direction, ACCV 2010; there
with the tangent of half the angle, here with the distances themselves, which
are needed in any case and have no angle at infinity).

Written for one sample and vmapped by the caller; nothing branches. Vectors are
tuples of numbers, see `vectors`.
"""

import chex
import jax
import jax.numpy as jnp

from i2ploc.geometry import rigid
from i2ploc.geometry import vectors

NUM_SOLUTIONS = 2
# Squared sine below which rays coincide, or points are above each other.
_FLAT = 1e-12
# Relative rounding error of a discriminant.
_NOISE = 1e-6
# Largest distance, in distances of the points: beyond it they are one point.
_FARTHEST = 1e5


def _root(value):
  """sqrt of positive values, else 0; with a finite gradient."""
  positive = value > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1.0)), 0.0)


def _distances(rays, side):
  """Distances along two rays, [2] each, and whether they are real."""
  (x0, y0, z0), (x1, y1, z1) = rays
  # On the line of the heights: (d_0, d_1) = foot + s * along.
  squared = z0 * z0 + z1 * z1
  level = squared < _FLAT
  norm = jnp.sqrt(jnp.where(level, 1.0, squared))
  normal, along = (z0 / norm, -z1 / norm), (z1 / norm, z0 / norm)
  foot = vectors.scaled(normal, side[2] / norm)
  # The level part of d_0 r_0 - d_1 r_1 is start + s * way.
  way = x0 * along[0] - x1 * along[1], y0 * along[0] - y1 * along[1]
  start = x0 * foot[0] - x1 * foot[1], y0 * foot[0] - y1 * foot[1]
  square = way[0] ** 2 + way[1] ** 2
  linear = way[0] * start[0] + way[1] * start[1]
  # Of the discriminant, linear^2 - square |start|^2 is -(way x start)^2.
  across = way[0] * start[1] - way[1] * start[0]
  reach = square * (side[0] ** 2 + side[1] ** 2)
  discriminant = reach - across**2
  real = (discriminant > -_NOISE * (reach + across**2)) & ~level
  real &= square > _FLAT
  inverse = 1 / jnp.where(square > _FLAT, square, 1.0)
  root = _root(discriminant)
  step = jnp.stack([-linear - root, -linear + root]) * inverse
  return foot[0] + step * along[0], foot[1] + step * along[1], real


def p2p(rays: jax.Array, points: jax.Array) -> tuple[rigid.Rigid, jax.Array]:
  """Poses that see two points in two directions and keep the vertical.

  Args:
    rays: [2, 3] unit directions in a frame of the camera whose z axis is
      vertical.
    points: [2, 3] positions in the map frame, whose z axis is vertical and
      points the same way.

  Returns:
    camera_from_map: [2] poses into the frame of the rays, whose rotations turn
      about z; finite and meaningless where not valid.
    valid: [2] bool. Neither is for points above each other, rays that coincide
      and rays that are both level: these leave the pose open.

  Example:
    >>> import jax
    >>> import numpy as np
    >>> from i2ploc.geometry import p2p
    >>> points = np.array([[4.0, 1.0, 1.0], [5.0, -1.0, 2.0]])
    >>> rays = points / np.linalg.norm(points, axis=1, keepdims=True)
    >>> poses, valid = jax.jit(p2p.p2p)(rays, points + [10, 20, 0])
    >>> found = np.asarray(poses.translation)[valid] + [10, 20, 0]
    >>> np.linalg.norm(found, axis=1).min().round(3).item()
    0.0
  """
  chex.assert_shape([rays, points], (2, 3))
  ray0, ray1 = (tuple(ray) for ray in rays)
  point0, point1 = (tuple(point) for point in points)
  # Scaled to a distance of 1: no power overflows, however far the points are.
  side = vectors.minus(point0, point1)
  largest = jnp.maximum(jnp.abs(side[0]), jnp.abs(side[1]))
  scale = jnp.maximum(largest, jnp.abs(side[2]))
  chord = vectors.minus(ray0, ray1)
  usable = jnp.isfinite(rays).all() & jnp.isfinite(points).all()
  usable &= (largest**2 > _FLAT * scale**2) & (largest > 0)
  usable &= vectors.dot(chord, chord) > _FLAT
  scale = jnp.where(usable, scale, 1.0)
  ray0 = vectors.where(usable, ray0, (1.0, 0.0, 0.6))
  ray1 = vectors.where(usable, ray1, (0.0, 1.0, 0.8))
  side = vectors.where(
    usable, vectors.scaled(side, 1 / scale), (1.0, -1.0, -0.2)
  )
  first, second, real = _distances((ray0, ray1), side)
  nearest = jnp.minimum(first, second)
  farthest = jnp.maximum(first, second)
  valid = usable & real & (nearest > 0) & (farthest < _FARTHEST)
  # What is not real becomes finite, and stays so in all that follows.
  first = jnp.where(valid, first, 1.0)
  second = jnp.where(valid, second, 1.0)
  seen0, seen1 = vectors.scaled(ray0, first), vectors.scaled(ray1, second)
  seen = vectors.minus(seen0, seen1)
  cosine = seen[0] * side[0] + seen[1] * side[1]
  sine = seen[1] * side[0] - seen[0] * side[1]
  squared = cosine**2 + sine**2
  turned = squared > 0
  length = jnp.sqrt(jnp.where(turned, squared, 1.0))
  cosine = jnp.where(turned, cosine / length, 1.0)
  sine = jnp.where(turned, sine / length, 0.0)
  middle = vectors.scaled(vectors.total(seen0, seen1), scale / 2)
  x, y, z = (
    jnp.where(usable, (a + b) / 2, 0.0)
    for a, b in zip(point0, point1, strict=True)
  )
  translation = (
    middle[0] - (cosine * x - sine * y),
    middle[1] - (sine * x + cosine * y),
    middle[2] - z,
  )
  zero, one = jnp.zeros_like(cosine), jnp.ones_like(cosine)
  rotation = [cosine, -sine, zero, sine, cosine, zero, zero, zero, one]
  pose = rigid.Rigid(
    jnp.stack(rotation, axis=-1).reshape(NUM_SOLUTIONS, 3, 3),
    jnp.stack(translation, axis=-1),
  )
  return pose, valid
