# SPDX-License-Identifier: Apache-2.0
"""What directions become in a camera before its glass distorts them.

  PLANE    (x, y) / z: the plane z = 1
  ANGLE    the angle off the axis, radians, in the direction of (x, y)
  SURFACE  (x, y) / (alpha d + (1 - alpha) z), d^2 = beta (x^2 + y^2) + z^2
           (EUCM: Khomutenko et al., RA-L 2016)
  SPHERE   azimuth and elevation, radians, see `panorama`

Coordinates are arrays of one shape, of numpy (float64) or of jax.
"""

from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.geometry import arrays
from i2ploc.geometry import distortion

PLANE, ANGLE, SURFACE, SPHERE = 'plane', 'angle', 'surface', 'sphere'
_SMALL = 1e-4  # squares from which on series are exact enough


class Projected(NamedTuple):
  """Positions and derivatives, all of one shape.

  Attributes:
    u: to the right.
    v: down.
    slope: du/dx, du/dy, du/dz, dv/dx, dv/dy, dv/dz.
    valid: bool, where a direction has one position.
  """

  u: Any
  v: Any
  slope: tuple[Any, ...]
  valid: Any


def project(kind: str, parameters: tuple, x: Any, y: Any, z: Any) -> Projected:
  """Positions of points in the camera frame, of any length but zero.

  Args:
    kind: of the four above.
    parameters: alpha and beta of SURFACE, else not used.
    x: any shape.
    y: the same.
    z: the same.

  Returns:
    Finite numbers; meaningless where they are not valid.
  """
  xp = arrays.namespace(x, y, z)
  if kind == PLANE:
    valid = (z > 0) & (x * x + y * y < (distortion.WIDEST * z) ** 2)
    z = xp.where(valid, z, 1.0)
    zero = xp.zeros_like(z)
    return _divided(x, y, z, (zero, zero, xp.ones_like(z)), valid)
  if kind == SURFACE:
    return _on_surface(*parameters, x, y, z)
  return _at_angle(x, y, z) if kind == ANGLE else _on_sphere(x, y, z)


def rays(kind: str, parameters: tuple, u: Any, v: Any) -> tuple[Any, ...]:
  """Unit vectors x, y, z of positions, and where there are some [bool].

  Args:
    kind: of the four above.
    parameters: as in `project`.
    u: any shape.
    v: the same.
  """
  xp = arrays.namespace(u, v)
  if kind == SPHERE:
    level = xp.cos(v)
    sines = level * xp.sin(u), xp.sin(v), level * xp.cos(u)
    return *sines, xp.isfinite(u) & xp.isfinite(v)
  square = u * u + v * v
  if kind == ANGLE:
    valid = square < np.pi**2
    u, v, square = (xp.where(valid, one, 0.0) for one in (u, v, square))
    theta = xp.sqrt(xp.where(square > 0, square, 1.0))
    scale = xp.where(square > 0, xp.sin(theta) / theta, 1.0)
    z = xp.where(square > 0, xp.cos(theta), 1.0)
    return u * scale, v * scale, z, valid
  z, valid = xp.ones_like(u), square < distortion.WIDEST**2
  if kind == SURFACE:
    alpha, beta = parameters
    inside = 1 - (2 * alpha - 1) * beta * square
    valid = valid & (inside > 0)
    bottom = alpha * xp.sqrt(xp.where(valid, inside, 1.0)) + 1 - alpha
    valid = valid & (bottom > 0)
    z = (1 - beta * alpha**2 * square) / xp.where(valid, bottom, 1.0)
  u, v, z = (
    xp.where(valid, one, other) for one, other in ((u, 0.0), (v, 0.0), (z, 1.0))
  )
  length = xp.sqrt(u * u + v * v + z * z)
  return u / length, v / length, z / length, valid


def _divided(x, y, depth, slope, valid):
  """(x, y) / depth, whose derivatives by x, y and z are the slope."""
  u, v = x / depth, y / depth
  along = [-u * one / depth for one in slope]
  down = [-v * one / depth for one in slope]
  along[0], down[1] = along[0] + 1 / depth, down[1] + 1 / depth
  return Projected(u, v, (*along, *down), valid)


def _on_surface(alpha, beta, x, y, z):
  xp = arrays.namespace(x, y, z)
  square = beta * (x * x + y * y) + z * z
  known = square > 0
  d = xp.sqrt(xp.where(known, square, 1.0))
  # Where the surface is one to one.
  lowest = -(alpha if alpha <= 0.5 else 1 - alpha) / max(alpha, 1 - alpha)
  depth = alpha * d + (1 - alpha) * z
  valid = known & (z > lowest * d) & (depth > 0)
  x, y, z = (
    xp.where(valid, one, other) for one, other in ((x, 0.0), (y, 0.0), (z, 1.0))
  )
  d, depth = xp.where(valid, d, 1.0), xp.where(valid, depth, 1.0)
  slope = alpha * beta * x / d, alpha * beta * y / d, alpha * z / d + 1 - alpha
  return _divided(x, y, depth, slope, valid)


def _at_angle(x, y, z):
  xp = arrays.namespace(x, y, z)
  square = x * x + y * y
  # Straight behind has no direction in the image.
  valid = (square > 0) | (z > 0)
  z = xp.where(valid, z, 1.0)
  beside = square > 0
  away = xp.sqrt(xp.where(beside, square, 1.0))
  length = xp.where(beside, square + z * z, z * z)
  ahead = xp.where(z > 0, z, 1.0)
  scale = xp.where(beside, xp.arctan2(away, z) / away, 1 / ahead)
  # (z / length - scale) / square loses its digits near the axis.
  ratio = square / (ahead * ahead)
  near = (z > 0) & (ratio < _SMALL)
  mixed = (z / length - scale) / xp.where(
    near, 1.0, xp.where(beside, square, 1)
  )
  mixed = xp.where(near, (-2 / 3 + 4 / 5 * ratio) / ahead**3, mixed)
  slope = (
    *(scale + mixed * x * x, mixed * x * y, -x / length),
    *(mixed * x * y, scale + mixed * y * y, -y / length),
  )
  return Projected(scale * x, scale * y, slope, valid)


def _on_sphere(x, y, z):
  xp = arrays.namespace(x, y, z)
  square = x * x + z * z
  # Straight up, down and the centre have no azimuth; keep gradients finite.
  valid = (square > 0) | (y != 0)
  beside = square > 0
  level = xp.sqrt(xp.where(beside, square, 1.0))
  azimuth = xp.arctan2(x, xp.where(beside, z, 1.0))
  height = xp.arctan2(y, xp.where(beside, level, xp.where(valid, 0.0, 1.0)))
  length = level * level + y * y
  zero = xp.zeros_like(level)
  slope = (
    *(z / (level * level), zero, -x / (level * level)),
    *(-x * y / (level * length), level / length, -z * y / (level * length)),
  )
  return Projected(azimuth, height, slope, valid)
