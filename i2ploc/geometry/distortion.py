# SPDX-License-Identifier: Apache-2.0
"""What lenses do to the plane of a projection: maps of R^2, their inverses.

Coordinates are in focal lengths from the optical axis, as two arrays of one
shape, of numpy (host, float64) or of jax; parameters are plain numbers. A
polynomial is a lens as far as it is one to one: from its first fold on, a
second direction falls onto the same pixel, and both maps say so (`valid`).
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from i2ploc.geometry import arrays

# tan(89.94 degrees): no lens on a plane sees further.
WIDEST = 1e3
# Steps until radii are exact, bisections among them; and until positions are.
_RADIAL_STEPS, _STEPS = 40, 8
# What may be left of the equation that an inverse solves.
_TOLERANCE = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 2e-6}
_SMALL = 1e-4  # squares from which on series are exact enough


class Polynomial(NamedTuple):
  """Radial, tangential and thin prism distortion (Brown; OpenCV's manual).

    s = (1 + top1 r^2 + top2 r^4 ...) / (1 + bottom1 r^2 + bottom2 r^4 ...)
    x' = x s + 2 p1 x y + p2 (r^2 + 2 x^2) + s1 r^2 + s2 r^4
    y' = y s + p1 (r^2 + 2 y^2) + 2 p2 x y + s3 r^2 + s4 r^4

  Attributes:
    top: coefficients of the numerator.
    bottom: of the denominator.
    tangential: p1, p2.
    prism: s1, s2, s3, s4.
  """

  top: tuple[float, ...] = ()
  bottom: tuple[float, ...] = ()
  tangential: tuple[float, float] = (0.0, 0.0)
  prism: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


class FieldOfView(NamedTuple):
  """r' = atan(2 r tan(omega / 2)) / omega (Devernay and Faugeras, 2001)."""

  omega: float


class Division(NamedTuple):
  """r = r' / (1 + k r'^2) (Fitzgibbon, CVPR 2001)."""

  k: float


class Tilt(NamedTuple):
  """A sensor that is turned about x and y against the lens (Scheimpflug)."""

  x: float
  y: float


Stage = Polynomial | FieldOfView | Division | Tilt


class Distorted(NamedTuple):
  """Positions and derivatives, all of one shape.

  Attributes:
    x: to the right.
    y: down.
    slope: dx'/dx, dx'/dy, dy'/dx, dy'/dy.
    valid: bool, where the map is one to one.
  """

  x: Any
  y: Any
  slope: tuple[Any, Any, Any, Any]
  valid: Any


@functools.lru_cache(maxsize=256)
def fold(top: tuple[float, ...], bottom: tuple[float, ...]) -> float:
  """The radius at which r top(r^2) / bottom(r^2) turns back; inf if nowhere.

  The first root of its derivative, or of the denominator.
  """
  poly = np.polynomial.polynomial
  above, below = np.array([1.0, *top]), np.array([1.0, *bottom])
  twice = [0.0, 2.0]  # 2 r^2
  rise = poly.polysub(
    poly.polymul(
      poly.polyadd(above, poly.polymul(twice, poly.polyder(above))), below
    ),
    poly.polymul(poly.polymul(twice, above), poly.polyder(below)),
  )
  first = np.inf
  for polynomial in (rise, below):
    roots = poly.polyroots(np.trim_zeros(polynomial, 'b'))
    real = np.abs(roots.imag) < 1e-9 * (1 + np.abs(roots))
    positive = roots.real[real & (roots.real > 0)]
    first = min(first, np.sqrt(positive.min(initial=np.inf)))
  return float(first)


def distort(stage: Stage, x: Any, y: Any, widest: float = WIDEST) -> Distorted:
  """Where a stage takes positions.

  Args:
    stage: one of the maps above.
    x: any shape.
    y: the same.
    widest: radius that the projection before it cannot exceed.

  Returns:
    Finite numbers; meaningless where they are not valid.
  """
  match stage:
    case Tilt():
      return _tilted(_tilt(stage), x, y)
    case Polynomial():
      return _polynomial(stage, x, y, _limit(stage, widest))
  xp = arrays.namespace(x, y)
  square = x * x + y * y
  if isinstance(stage, Division):
    inside = 1 - 4 * stage.k * square
    valid = (inside > 0) & (square < widest**2)
    root = xp.sqrt(xp.where(valid, inside, 1.0))
    scale = 2 / (1 + root)
    rise = scale * scale * stage.k / root
  else:
    scale, rise = _field_of_view(stage, square)
    valid = square < widest**2
  slope = _radial_slope(x, y, scale, rise)
  return Distorted(x * scale, y * scale, slope, valid)


def undistort(
  stage: Stage, x: Any, y: Any, widest: float = WIDEST
) -> tuple[Any, Any, Any]:
  """What a stage takes to positions.

  Args:
    stage: one of the maps above.
    x: any shape.
    y: the same.
    widest: as in `distort`.

  Returns:
    Positions x and y, zero where there are none, and where there are some.
  """
  xp = arrays.namespace(x, y)
  match stage:
    case Tilt():
      back = _tilted(np.linalg.inv(_tilt(stage)), x, y)
      return back.x, back.y, back.valid
    case Polynomial():
      return _undo_polynomial(stage, x, y, _limit(stage, widest))
  square = x * x + y * y
  if isinstance(stage, Division):
    bottom = 1 + stage.k * square
    # Beyond the fold r' / (1 + k r'^2) falls again.
    valid = (bottom > 0) & (stage.k * square < 1)
    scale = 1 / xp.where(valid, bottom, 1.0)
  else:
    radius = xp.sqrt(xp.where(square > 0, square, 1.0))
    angle = abs(stage.omega) * radius
    valid = angle < np.pi / 2
    stretch = 2 * np.tan(abs(stage.omega) / 2)
    tangent = xp.tan(xp.where(valid, angle, 0.0)) / (stretch * radius)
    scale = xp.where(square > 0, tangent, abs(stage.omega) / stretch)
  valid = valid & (scale * scale * square < widest**2)
  scale = xp.where(valid, scale, 0.0)
  return x * scale, y * scale, valid


def _limit(stage, widest):
  return min(fold(stage.top, stage.bottom), widest)


def _field_of_view(stage, square):
  """Scale and its derivative by r^2."""
  omega = abs(stage.omega)
  stretch = 2 * np.tan(omega / 2)
  xp = arrays.namespace(square)
  small = stretch**2 * square < _SMALL
  safe = xp.where(small, 1.0, square)
  radius = xp.sqrt(safe)
  scale = xp.arctan(stretch * radius) / (omega * radius)
  rise = stretch / omega / (1 + stretch**2 * safe) - scale
  near = stretch**2 * xp.where(small, square, 0.0)
  return (
    xp.where(small, stretch / omega * (1 - near / 3 + near**2 / 5), scale),
    xp.where(
      small,
      stretch**3 / omega * (-1 / 3 + 2 * near / 5 - 3 * near**2 / 7),
      rise / (2 * safe),
    ),
  )


def _radial_slope(x, y, scale, rise):
  mixed = 2 * rise * x * y
  return scale + 2 * rise * x * x, mixed, mixed, scale + 2 * rise * y * y


def _tilt(stage):
  """The homography [3, 3] of a tilted sensor, as OpenCV's manual has it."""
  (cos_x, sin_x), (cos_y, sin_y) = (
    (np.cos(angle), np.sin(angle)) for angle in stage
  )
  about_x = np.array([[1, 0, 0], [0, cos_x, sin_x], [0, -sin_x, cos_x]])
  about_y = np.array([[cos_y, 0, -sin_y], [0, 1, 0], [sin_y, 0, cos_y]])
  turn = about_y @ about_x
  onto = np.array(
    [[turn[2, 2], 0, -turn[0, 2]], [0, turn[2, 2], -turn[1, 2]], [0, 0, 1]]
  )
  return onto @ turn


def _tilted(matrix, x, y):
  xp = arrays.namespace(x, y)
  rows = matrix.tolist()
  top, side, depth = (row[0] * x + row[1] * y + row[2] for row in rows)
  valid = depth > 0
  depth = xp.where(valid, depth, 1.0)
  u, v = top / depth, side / depth
  slope = tuple(
    (rows[i][j] - value * rows[2][j]) / depth
    for i, value in enumerate((u, v))
    for j in (0, 1)
  )
  return Distorted(u, v, slope, valid)


def _series(coefficients, square):
  """1 + c1 s + c2 s^2 ... and its derivative."""
  value, slope = 1.0, 0.0
  for i, one in reversed(list(enumerate(coefficients, 1))):
    value = one + value * square if i < len(coefficients) else one
    slope = i * one + slope * square if i < len(coefficients) else i * one
  if not coefficients:
    return 1.0, 0.0
  return 1.0 + value * square, slope


def _ratio(stage, square):
  """s of a polynomial at r^2, and its derivative by r^2."""
  top, top_slope = _series(stage.top, square)
  if not stage.bottom:
    return top, top_slope
  xp = arrays.namespace(square)
  bottom, bottom_slope = _series(stage.bottom, square)
  bottom = xp.where(bottom == 0, 1.0, bottom)
  scale = top / bottom
  return scale, (top_slope - scale * bottom_slope) / bottom


def _polynomial(stage, x, y, limit) -> Distorted:
  xp = arrays.namespace(x, y)
  square = x * x + y * y
  inside = square < limit**2
  # Far outside powers would overflow.
  x, y, square = (xp.where(inside, one, 0.0) for one in (x, y, square))
  scale, rise = _ratio(stage, square)
  u, v = x * scale, y * scale
  a, b, c, d = _radial_slope(x, y, scale, rise)
  p1, p2 = stage.tangential
  if p1 or p2:
    u = u + 2 * p1 * x * y + p2 * (square + 2 * x * x)
    v = v + p1 * (square + 2 * y * y) + 2 * p2 * x * y
    both = 2 * (p1 * x + p2 * y)
    a, d = a + 2 * p1 * y + 6 * p2 * x, d + 6 * p1 * y + 2 * p2 * x
    b, c = b + both, c + both
  if any(stage.prism):
    s1, s2, s3, s4 = stage.prism
    u = u + square * (s1 + s2 * square)
    v = v + square * (s3 + s4 * square)
    across, down = (2 * (s1 + 2 * s2 * square), 2 * (s3 + 2 * s4 * square))
    a, b, c, d = a + across * x, b + across * y, c + down * x, d + down * y
  slope = tuple(one + xp.zeros_like(x) for one in (a, b, c, d))
  upright = (a * d - b * c > 0) & (a + d > 0)
  return Distorted(u, v, slope, inside & upright)


def _repeat(
  count: int, step: Callable[..., tuple], state: tuple, done: Callable[..., Any]
) -> tuple:
  """`count` steps; on the host only until all are done."""
  if arrays.namespace(*state) is np:
    for _ in range(count):
      if np.all(done(*state)):
        break
      state = step(*state)
    return state
  return jax.lax.fori_loop(0, count, lambda _, one: step(*one), state)


def _undo_polynomial(stage, x, y, limit):
  """Newton's method from where the radial part alone would come from."""
  xp = arrays.namespace(x, y)
  tolerance = _TOLERANCE[np.dtype(x.dtype)]
  finite = xp.isfinite(x) & xp.isfinite(y)
  x, y = xp.where(finite, x, 0.0), xp.where(finite, y, 0.0)
  tolerance = tolerance * xp.maximum(1.0, xp.abs(x) + xp.abs(y))
  goal = x, y
  if xp is not np:
    # Derivatives are those of the last step: of the implicit function.
    goal = jax.lax.stop_gradient(goal)
  # Nearly as far as the polynomial goes, where its slope is not yet zero.
  edge = limit * (1 - 1e-7)
  found = _undo_radius(stage, *goal, edge)
  if any(stage.tangential) or any(stage.prism):

    def step(u, v):
      return _newton(stage, u, v, *goal, edge)

    def done(u, v):
      at = _polynomial(stage, u, v, limit)
      return np.abs(at.x - goal[0]) + np.abs(at.y - goal[1]) < 1e-13

    found = _repeat(_STEPS, step, found, done)
  # The last step also makes good what limits the radius' precision.
  u, v = _newton(stage, *found, x, y, edge)
  at = _polynomial(stage, u, v, limit)
  miss = xp.maximum(xp.abs(at.x - x), xp.abs(at.y - y))
  valid = finite & at.valid & (miss < tolerance)
  return xp.where(valid, u, 0.0), xp.where(valid, v, 0.0), valid


def _newton(stage, u, v, x, y, edge):
  """One step towards the (u, v) that are taken to (x, y), not beyond edge."""
  xp = arrays.namespace(u, v, x, y)
  at = _polynomial(stage, u, v, np.inf)
  a, b, c, d = at.slope
  determinant = a * d - b * c
  singular = xp.abs(determinant) < 1e-12
  determinant = xp.where(singular, 1.0, determinant)
  right, down = x - at.x, y - at.y
  u = u + xp.where(singular, 0.0, (d * right - b * down) / determinant)
  v = v + xp.where(singular, 0.0, (a * down - c * right) / determinant)
  length = xp.sqrt(xp.maximum(u * u + v * v, 1e-30))
  back = xp.minimum(1.0, edge / length)
  return u * back, v * back


def _undo_radius(stage, x, y, edge):
  """The inverse without tangential and prism terms, at most at the edge."""
  if not (stage.top or stage.bottom):
    return x, y
  xp = arrays.namespace(x, y)
  square = x * x + y * y
  goal = xp.sqrt(xp.where(square > 0, square, 1.0))

  def step(radius, low, high, last):
    scale, rise = _ratio(stage, radius * radius)
    miss = radius * scale - goal
    low, high = (
      xp.where(miss < 0, radius, low),
      xp.where(miss < 0, high, radius),
    )
    slope = scale + 2 * rise * radius * radius
    new = radius - miss / xp.where(slope > 0, slope, 1.0)
    # Newton's step where it is a good one, half of the bracket elsewhere.
    good = (slope > 0) & (new >= low) & (new <= high)
    good = good & (xp.abs(new - radius) <= last / 2)
    new = xp.where(good, new, (low + high) / 2)
    return new, low, high, xp.abs(new - radius)

  def done(radius, low, high, last):
    del low, high, last
    scale, _ = _ratio(stage, radius * radius)
    return np.abs(radius * scale - goal) < 1e-14 * (1 + goal)

  whole = xp.full_like(goal, edge)
  first = xp.minimum(goal, edge), xp.zeros_like(goal), whole, whole
  radius = _repeat(_RADIAL_STEPS, step, first, done)[0]
  ratio = xp.where(square > 0, radius / goal, 1.0)
  return x * ratio, y * ratio
