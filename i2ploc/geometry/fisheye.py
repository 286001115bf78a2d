# SPDX-License-Identifier: Apache-2.0
"""Fisheye cameras by the unified projection model (Mei and Rives, ICRA 2007).

A point is projected to the unit sphere, from there onto a plane from a centre
`xi` behind the sphere's, distorted and scaled to pixels. Axes and pixels are
those of `camera`: x right, y down, z forward, top-left pixel centre (0.5, 0.5).

  s = X / |X|,   m = (s_x, s_y) / (s_z + xi),   r = |m|
  d = m (1 + k1 r^2 + k2 r^4) + tangential(p1, p2)
  (u, v) = (gamma1 d_x + u0, gamma2 d_y + v0)
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

# Newton's method doubles the digits; the strongest lens of KITTI-360 needs six.
_NUM_ITERATIONS = 10
# What may be left of the distortion equation, on the plane; 1e-3 of a pixel.
_TOLERANCE = 1e-6


class Lens(NamedTuple):
  """Parameters in the notation of the paper, scalars or arrays of one shape.

  Attributes:
    xi: distance of the centre of projection from the sphere's, >= 0.
    k1: radial distortion of second order.
    k2: radial distortion of fourth order.
    p1: tangential distortion.
    p2: tangential distortion.
    gamma1: focal length in columns, pixels.
    gamma2: focal length in rows, pixels.
    u0: column of the principal point, pixels.
    v0: row of the principal point, pixels.
  """

  xi: jax.Array | float
  k1: jax.Array | float
  k2: jax.Array | float
  p1: jax.Array | float
  p2: jax.Array | float
  gamma1: jax.Array | float
  gamma2: jax.Array | float
  u0: jax.Array | float
  v0: jax.Array | float


def resize(lens: Lens, scale: float) -> Lens:
  """The lens of an image whose both sides are `scale` times as long."""
  return lens._replace(
    gamma1=lens.gamma1 * scale,
    gamma2=lens.gamma2 * scale,
    u0=lens.u0 * scale,
    v0=lens.v0 * scale,
  )


def _distort(lens: Lens, x, y):
  square = x * x + y * y
  radial = 1 + square * (lens.k1 + square * lens.k2)
  return (
    x * radial + 2 * lens.p1 * x * y + lens.p2 * (square + 2 * x * x),
    y * radial + 2 * lens.p2 * x * y + lens.p1 * (square + 2 * y * y),
  )


def _largest_square(lens: Lens) -> jax.Array:
  """r^2 from which on the radial distortion folds back; inf if nowhere.

  The first positive root of d/dr (r + k1 r^3 + k2 r^5) in r^2.
  """
  discriminant = 9 * lens.k1**2 - 20 * lens.k2
  root = jnp.sqrt(jnp.maximum(discriminant, 0.0)) - 3 * lens.k1
  folds = (discriminant >= 0) & (root > 0)
  return jnp.where(folds, 2 / jnp.where(folds, root, 1.0), jnp.inf)


def _lowest_height(xi: jax.Array | float) -> jax.Array:
  """The z on the unit sphere above which the projection is one to one."""
  return -jnp.where(xi > 1, 1 / jnp.maximum(xi, 1.0), xi)


def project(lens: Lens, points: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Pixels of points in the camera frame.

  Args:
    lens: leading axes broadcast against those of `points`.
    points: [..., 3], any length but zero.

  Returns:
    pixels: [..., 2]; of invalid points, finite but meaningless.
    valid: [...] bool, where the model is one to one. Whether the lens sees so
      far off its axis, and inside the image, are the caller's questions.
  """
  chex.assert_axis_dimension(points, -1, 3)
  square = jnp.sum(points**2, axis=-1)
  length = jnp.sqrt(jnp.where(square > 0, square, 1.0))
  x, y, z = jnp.moveaxis(points / length[..., None], -1, 0)
  valid = (square > 0) & (z > _lowest_height(lens.xi))
  depth = jnp.where(valid, z + lens.xi, 1.0)
  x, y = x / depth, y / depth
  valid &= x * x + y * y < _largest_square(lens)
  x, y = _distort(lens, x, y)
  pixels = [lens.gamma1 * x + lens.u0, lens.gamma2 * y + lens.v0]
  return jnp.stack(pixels, axis=-1), valid


def bearings(lens: Lens, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Directions of pixels, by Newton's method on the distortion.

  Args:
    lens: leading axes broadcast against those of `pixels`.
    pixels: [..., 2].

  Returns:
    directions: [..., 3] unit vectors in the camera frame; of invalid pixels,
      unit vectors that mean nothing.
    valid: [...] bool, the pixel is the image of a direction.
  """
  chex.assert_axis_dimension(pixels, -1, 2)
  target_x = (pixels[..., 0] - lens.u0) / lens.gamma1
  target_y = (pixels[..., 1] - lens.v0) / lens.gamma2
  x, y = jax.lax.fori_loop(
    0,
    _NUM_ITERATIONS,
    lambda _, found: _newton_step(lens, *found, target_x, target_y),
    (target_x, target_y),
  )
  found_x, found_y = _distort(lens, x, y)
  error = jnp.maximum(jnp.abs(found_x - target_x), jnp.abs(found_y - target_y))
  square = x * x + y * y
  inside = 1 + (1 - lens.xi**2) * square
  valid = (error < _TOLERANCE) & (square < _largest_square(lens)) & (inside > 0)
  x, y = jnp.where(valid, x, 0.0), jnp.where(valid, y, 0.0)
  square, inside = jnp.where(valid, square, 0.0), jnp.where(valid, inside, 1.0)
  stretch = (lens.xi + jnp.sqrt(inside)) / (1 + square)
  return jnp.stack([stretch * x, stretch * y, stretch - lens.xi], -1), valid


def _newton_step(lens: Lens, x, y, target_x, target_y):
  """One step towards the (x, y) whose distortion is the target."""
  square = x * x + y * y
  radial = 1 + square * (lens.k1 + square * lens.k2)
  slope = 2 * (lens.k1 + 2 * lens.k2 * square)
  mixed = slope * x * y + 2 * (lens.p1 * x + lens.p2 * y)
  along_x = radial + slope * x * x + 2 * lens.p1 * y + 6 * lens.p2 * x
  along_y = radial + slope * y * y + 2 * lens.p2 * x + 6 * lens.p1 * y
  found_x, found_y = _distort(lens, x, y)
  miss_x, miss_y = target_x - found_x, target_y - found_y
  determinant = along_x * along_y - mixed * mixed
  singular = jnp.abs(determinant) < 1e-6
  determinant = jnp.where(singular, 1.0, determinant)
  step_x = (along_y * miss_x - mixed * miss_y) / determinant
  step_y = (along_x * miss_y - mixed * miss_x) / determinant
  return (
    jnp.where(singular, x, x + step_x),
    jnp.where(singular, y, y + step_y),
  )
