# SPDX-License-Identifier: Apache-2.0
"""Absolute pose of a calibrated camera from three points.

With distances d_i along unit rays r_i, m_ij = r_i . r_j and squared sides s_ij
of the triangle, the law of cosines says

  d_i^2 + d_j^2 - 2 m_ij d_i d_j = s_ij,   (i, j) = (0, 1), (0, 2), (1, 2).

Divided by the last equation, the others are two conics in x = d_0 / d_2 and
y = d_1 / d_2. Their pencil holds a degenerate one, a root of a cubic, which is
a pair of lines that pass through all common points (Persson and Nordberg,
Lambda Twist, ECCV 2018; Ding et al., Revisiting the P3P problem, CVPR 2023).
A cubic and two quadratics are safe in float32; the quartic of the classical
solvers fails ten times as often.

Written for one sample and vmapped by the caller; nothing branches. Vectors and
matrices are tuples of numbers: under a vmap each is an array of its own, whose
loop the compiler vectorises, where rows of three would stay rows of three.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from i2ploc import compilation
from i2ploc.geometry import vectors

NUM_SOLUTIONS = 4
_TINY = 1e-30
_NUM_POLISH = 2
_NUM_ROOT_STEPS = 3
# Squared sine below which points are on a line, and squared chord below which
# rays coincide.
_FLAT = 1e-12
# Dummy input for degenerate samples.
_EXAMPLE = ((1.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (1.0, -1.0, 1.0))
# Relative rounding error of a discriminant, and the largest ratio of distances.
_NOISE, _FAR = 1e-5, 1e4
# Largest distance, in sides of the triangle: beyond it the triangle is a point
# (see _FLAT), and below it no product overflows.
_FARTHEST = 1e6


class Poses(NamedTuple):
  """Up to four poses `camera_from_map`.

  Attributes:
    rotation: [4, 3, 3].
    translation: [4, 3], in the unit of the points.
    valid: [4] bool; the others are finite and meaningless.
  """

  rotation: jax.Array
  translation: jax.Array
  valid: jax.Array


class _Conic(NamedTuple):
  """A symmetric matrix [3, 3]."""

  xx: jax.Array
  xy: jax.Array
  xz: jax.Array
  yy: jax.Array
  yz: jax.Array
  zz: jax.Array

  def rows(self):
    """Its rows."""
    xx, xy, xz, yy, yz, zz = self
    return (xx, xy, xz), (xy, yy, yz), (xz, yz, zz)

  def times(self, v):
    """Its product with a vector."""
    return vectors.apply(self.rows(), v)

  def adjugate(self):
    """Its cofactors."""
    xx, xy, xz, yy, yz, zz = self
    return _Conic(
      yy * zz - yz * yz,
      xz * yz - xy * zz,
      xy * yz - xz * yy,
      xx * zz - xz * xz,
      xy * xz - xx * yz,
      xx * yy - xy * xy,
    )

  def trace_with(self, other):
    """Trace of the product with another one."""
    once = self.xx * other.xx + self.yy * other.yy + self.zz * other.zz
    twice = self.xy * other.xy + self.xz * other.xz + self.yz * other.yz
    return once + 2 * twice


def _sides(corners):
  """Differences of three vectors, each opposite the vector of its number."""
  a, b, c = corners
  return vectors.minus(b, c), vectors.minus(c, a), vectors.minus(a, b)


def _squares(sides):
  return tuple(vectors.dot(v, v) for v in sides)


def _largest(values):
  """Number, 0 to 2, of the largest of three."""
  a, b, c = values
  return jnp.where((a >= b) & (a >= c), 0, jnp.where(b >= c, 1, 2))


def _pick(number, values):
  """The value of that number, of three numbers or three vectors."""
  if isinstance(values[0], tuple):
    return tuple(_pick(number, parts) for parts in zip(*values, strict=True))
  a, b, c = values
  return jnp.where(number == 0, a, jnp.where(number == 1, b, c))


def _turned(number, values):
  """Three values in the same cyclic order, that of the number first."""
  return tuple(_pick(number, values[i:] + values[:i]) for i in range(3))


def _safe(value):
  """`value`, moved away from zero, for a division."""
  tiny = jnp.asarray(_TINY, value.dtype)
  return jnp.where(jnp.abs(value) < tiny, tiny, value)


def _root(value):
  """sqrt of positive values, else 0; with a finite gradient."""
  positive = value > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1.0)), 0.0)


def _real_root(c3, c2, c1, c0):
  """A real root of c3 s^3 + c2 s^2 + c1 s + c0, the largest if it has three."""
  c3 = _safe(c3)
  a, b, c = c2 / c3, c1 / c3, c0 / c3
  third = a / 3
  p = b - a * third
  q = c - third * b + 2 * third**3
  # s = t - a / 3: t^3 + p t + q = 0.
  half, discriminant = -q / 2, q * q / 4 + p**3 / 27
  cube = half + jnp.where(half < 0, -1.0, 1.0) * _root(discriminant)
  # Starts for Newton's method: exact powers and angles would be slow.
  u = jnp.sign(cube) * jnp.exp(jnp.log(jnp.maximum(jnp.abs(cube), _TINY)) / 3)
  single = u - p / (3 * _safe(u))
  radius = _root(-p / 3)
  cosine = half / _safe(radius**3)
  # 2 cos(arccos(c) / 3) is 1 + sqrt((1 + c) / 2) to within 1.5 %.
  triple = radius * (1 + _root((1 + cosine) / 2))

  def newton(_, s):
    value = ((s + a) * s + b) * s + c
    slope = (3 * s + 2 * a) * s + b
    return s - jnp.where(jnp.abs(slope) > _TINY, value / _safe(slope), 0.0)

  # The loop also keeps XLA from computing all this again for each use of it.
  start = jnp.where(discriminant > 0, single, triple) - third
  return jax.lax.fori_loop(0, _NUM_ROOT_STEPS, newton, start)


def _degenerate(first, second):
  """A singular conic of the pencil of two."""
  of_first, of_second = first.adjugate(), second.adjugate()
  c0 = first.trace_with(of_first) / 3
  c1 = of_first.trace_with(second)
  c2 = of_second.trace_with(first)
  c3 = second.trace_with(of_second) / 3
  # The multiple belongs to the conic with the larger determinant: the leading
  # coefficient does not vanish, and roots at infinity become roots at 0.
  swap = jnp.abs(c0) > jnp.abs(c3)
  falling = zip((c3, c2, c1, c0), (c0, c1, c2, c3), strict=True)
  s = _real_root(*(jnp.where(swap, b, a) for a, b in falling))
  return _Conic(
    *(
      jnp.where(swap, b, a) + s * jnp.where(swap, a, b)
      for a, b in zip(first, second, strict=True)
    )
  )


def _lines(conic):
  """Two lines whose product a singular conic is."""
  adjugate = _Conic(*(-x for x in conic.adjugate()))
  diagonal = adjugate.xx, adjugate.yy, adjugate.zz
  best = _largest(diagonal)
  size = jnp.sqrt(jnp.maximum(_pick(best, diagonal), _TINY))
  x, y, z = vectors.scaled(_pick(best, adjugate.rows()), 1 / size)
  (xx, xy, xz), (_, yy, yz), (_, _, zz) = conic.rows()
  product = (xx, xy - z, xz + y), (xy + z, yy, yz - x), (xz - y, yz + x, zz)
  sizes = [[jnp.abs(value) for value in row] for row in product]
  most = [jnp.maximum(jnp.maximum(a, b), c) for a, b, c in sizes]
  row = _pick(_largest(most), product)
  column = _largest([jnp.abs(value) for value in row])
  return row, _pick(column, tuple(zip(*product, strict=True)))


def _ratios(line, conic):
  """Where a line meets a conic: twice (x, y); x is -1 where it does not."""
  a, b, c = vectors.scaled(line, 1 / _safe(jnp.hypot(line[0], line[1])))
  foot, along = (-a * c, -b * c, 1.0), (-b, a, 0.0)
  square = vectors.dot(along, conic.times(along))
  linear = vectors.dot(along, conic.times(foot))
  constant = vectors.dot(foot, conic.times(foot))
  discriminant = linear**2 - square * constant
  # Rounding may make the discriminant of a double root negative.
  noise = _NOISE * (linear**2 + jnp.abs(square * constant))
  q = -(linear + jnp.where(linear < 0, -1.0, 1.0) * _root(discriminant))
  found = []
  for step in (q / _safe(square), constant / _safe(q)):
    valid = (discriminant > -noise) & (jnp.abs(step) < _FAR)
    step = jnp.clip(step, -_FAR, _FAR)
    x, y = foot[0] + step * along[0], foot[1] + step * along[1]
    found.append((jnp.where(valid, x, -1.0), y))
  return found


def _newton(distances, chords, residuals):
  """Newton's step, to subtract from three distances, by the residuals."""
  x, y, z = distances
  h12, h02, h01 = chords
  r12, r02, r01 = residuals
  # Half the Jacobian: every equation lacks one of the distances.
  a, b = x - y + h01 * y / 2, y - x + h01 * x / 2
  c, d = x - z + h02 * z / 2, z - x + h02 * x / 2
  e, f = y - z + h12 * z / 2, z - y + h12 * y / 2
  factor = 1 / (2 * _safe(-(a * d * e + b * c * f)))
  return (
    (-d * e * r01 - b * f * r02 + b * d * r12) * factor,
    (-c * f * r01 + a * f * r02 - a * d * r12) * factor,
    (c * e * r01 - a * e * r02 - b * c * r12) * factor,
  )


def _polish(distances, chords, squares):
  """One Newton step on the three laws of cosines, for three distances.

  With the chord h = |r_i - r_j|^2 = 2 - 2 m, d_i^2 + d_j^2 - 2 m d_i d_j is
  (d_i - d_j)^2 + h d_i d_j, which loses fewer digits where rays are close.
  """
  x, y, z = distances
  residuals = [
    (p - q) ** 2 + chord * p * q - square
    for p, q, chord, square in zip(
      (y, x, x), (z, z, y), chords, squares, strict=True
    )
  ]
  steps = _newton(distances, chords, residuals)
  limits = [0.1 * jnp.abs(distance) for distance in distances]
  return tuple(
    distance - jnp.clip(step, -limit, limit)
    for distance, step, limit in zip(distances, steps, limits, strict=True)
  )


@jax.custom_jvp
def _polished(distances, chords, squares):
  """Distances that fulfil the laws of cosines, from nearly correct ones.

  Their derivative is that of the laws, not of the iteration.
  """

  def polish(_, distances):
    return _polish(distances, chords, squares)

  return jax.lax.fori_loop(0, _NUM_POLISH, polish, distances)


@_polished.defjvp
def _polished_jvp(primals, tangents):
  _, chords, squares = primals
  _, chord_tangents, square_tangents = tangents
  distances = _polished(*primals)
  x, y, z = distances
  changes = [
    p * q * chord - square
    for p, q, chord, square in zip(
      (y, x, x), (z, z, y), chord_tangents, square_tangents, strict=True
    )
  ]
  steps = _newton(distances, chords, changes)
  return distances, tuple(-step for step in steps)


def _frame(corners):
  """Three orthonormal axes that a triangle spans."""
  side = vectors.minus(corners[1], corners[0])
  other = vectors.minus(corners[2], corners[0])
  normal = vectors.cross(side, other)
  first = vectors.scaled(side, 1 / _safe(_root(vectors.dot(side, side))))
  third = vectors.scaled(normal, 1 / _safe(_root(vectors.dot(normal, normal))))
  return first, vectors.cross(third, first), third


def _distances(chords, squares):
  """Four times three distances, [4] each; positive where they are real."""
  s12, s02, s01 = squares
  m12, m02, m01 = (1 - chord / 2 for chord in chords)
  a, b = s01 / s12, s02 / s12
  one, zero = jnp.ones_like(a), jnp.zeros_like(a)
  conic_01 = _Conic(one, -m01, zero, 1 - a, a * m12, -a)
  conic_02 = _Conic(one, zero, -m02, -b, b * m12, 1 - b)
  both = _lines(_degenerate(conic_01, conic_02))
  line = [jnp.stack(parts) for parts in zip(*both, strict=True)]
  found = _ratios(line, conic_02)
  x, y = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
  d2 = jnp.sqrt(s12 / jnp.maximum(y * y + 1 - 2 * m12 * y, 1e-12))
  return x * d2, y * d2, d2


@compilation.once
def _usable(rays, points):
  """Whether three rays and points are finite and determine a pose at all."""
  sides = _sides(points)
  s12, s02, s01 = _squares(sides)
  h12, h02, h01 = _squares(_sides(rays))
  normal = vectors.cross(sides[0], sides[1])
  area = vectors.dot(normal, normal)
  largest = jnp.maximum(jnp.maximum(s12, s02), s01)
  usable = (area > _FLAT * largest**2) & jnp.isfinite(area)
  return usable & (jnp.minimum(jnp.minimum(h12, h02), h01) > _FLAT)


def p3p(rays: jax.Array, points: jax.Array) -> Poses:
  """Poses that see three points in three directions.

  Args:
    rays: [3, 3] unit directions in the camera frame.
    points: [3, 3] positions in the map frame.

  Returns:
    Poses with which each `rotation @ point + translation` lies on its ray,
    ahead of the camera. None is valid for points on a line or rays that
    coincide.

  Example:
    >>> import jax
    >>> import numpy as np
    >>> from i2ploc.geometry import p3p
    >>> points = np.array([[0.0, 0.0, 4.0], [1.0, 0.0, 5.0], [0.0, 1.0, 6.0]])
    >>> rays = points / np.linalg.norm(points, axis=1, keepdims=True)
    >>> poses = jax.jit(p3p.p3p)(rays, points)
    >>> seen = points @ poses.rotation.mT + poses.translation[:, None]
    >>> seen /= np.linalg.norm(seen, axis=2, keepdims=True)
    >>> bool(np.allclose(seen[poses.valid], rays, atol=1e-5))
    True
  """
  chex.assert_shape([rays, points], (3, 3))
  rays, points = _rows(rays), _rows(points)
  # Scaled to lengths around 1 and centred: no power overflows, however far the
  # map's origin is.
  center = vectors.scaled(vectors.total(*points), 1 / 3)
  near = tuple(vectors.minus(point, center) for point in points)
  lengths = [jnp.abs(value) for point in near for value in point]
  scale = jnp.maximum(functools.reduce(jnp.maximum, lengths), 1e-12)
  near = tuple(vectors.scaled(point, 1 / scale) for point in near)
  usable = _usable(rays, near)
  directions = tuple(vectors.scaled(ray, 3**-0.5) for ray in _EXAMPLE)
  choose = functools.partial(vectors.where, usable)
  rotation, seen, met = _solve(
    tuple(map(choose, rays, directions)), tuple(map(choose, near, _EXAMPLE))
  )
  seen = vectors.scaled(seen, jnp.where(usable, scale, 1.0))
  center = choose(center, (0.0, 0.0, 0.0))
  translation = vectors.minus(seen, vectors.apply(rotation, center))
  return Poses(
    jnp.stack(sum(rotation, ()), axis=-1).reshape(NUM_SOLUTIONS, 3, 3),
    jnp.stack(translation, axis=-1),
    met & usable,
  )


def _rows(matrix):
  return tuple(tuple(matrix[i, j] for j in range(3)) for i in range(3))


def _solve(rays, points):
  """Rotation, translation, whether valid; of centred points of unit size."""
  squares, chords = _squares(_sides(points)), _squares(_sides(rays))
  # The longest side takes the place opposite point 0: a and b are at most 1.
  first = _largest(squares)
  start = _distances(
    *jax.lax.stop_gradient((_turned(first, chords), _turned(first, squares)))
  )
  start = _turned(jnp.where(first == 0, 0, 3 - first), start)
  nearest = functools.reduce(jnp.minimum, start)
  met = (nearest > 0) & (functools.reduce(jnp.maximum, start) < _FARTHEST)
  # Distances that are not real become finite, and stay so in all that follows.
  start = tuple(jnp.where(met, distance, 1.0) for distance in start)
  distances = _polished(start, chords, squares)
  seen = [
    vectors.scaled(ray, distance)
    for ray, distance in zip(rays, distances, strict=True)
  ]
  camera_axes, axes = _frame(seen), _frame(points)
  rotation = tuple(
    tuple(
      vectors.dot([axis[i] for axis in camera_axes], [axis[j] for axis in axes])
      for j in range(3)
    )
    for i in range(3)
  )
  return rotation, vectors.scaled(vectors.total(*seen), 1 / 3), met
