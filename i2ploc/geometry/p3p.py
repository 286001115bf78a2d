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

Written for one sample and vmapped by the caller; nothing branches.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

NUM_SOLUTIONS = 4
_TINY = 1e-30
NUM_POLISH = 2
# Squared sine and squared chord below which points are on a line, rays one.
FLAT = 1e-12
# What is solved, to no effect, in the place of what cannot be.
EXAMPLE = ((1.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (1.0, -1.0, 1.0))
# Relative error of a discriminant, and a ratio of distances beyond reason.
NOISE, FAR = 1e-5, 1e4


class Poses(NamedTuple):
  """Up to four poses `camera_from_map`.

  Attributes:
    rotation: [4, 3, 3].
    translation: [4, 3], in the unit of the points.
    valid: [4] bool; the others hold finite numbers of no meaning.
  """

  rotation: jax.Array
  translation: jax.Array
  valid: jax.Array


def _safe(value):
  """`value`, moved away from zero, for a division."""
  tiny = jnp.asarray(_TINY, value.dtype)
  return jnp.where(jnp.abs(value) < tiny, tiny, value)


def _root(value):
  """sqrt of what is positive, else 0; with a finite gradient."""
  positive = value > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1.0)), 0.0)


def _adjugate(c):
  """Adjugate [3, 3] of a symmetric matrix [3, 3]: its cofactors."""
  return jnp.stack(
    [jnp.cross(c[1], c[2]), jnp.cross(c[2], c[0]), jnp.cross(c[0], c[1])]
  )


def _real_root(c3, c2, c1, c0):
  """A real root of c3 s^3 + c2 s^2 + c1 s + c0, the largest if it has three."""
  c3 = _safe(c3)
  a, b, c = c2 / c3, c1 / c3, c0 / c3
  third = a / 3
  p = b - a * third
  q = c - third * b + 2 * third**3
  # s = t - a / 3: t^3 + p t + q = 0.
  half, discriminant = -q / 2, q * q / 4 + p**3 / 27
  u = jnp.cbrt(half + jnp.where(half < 0, -1.0, 1.0) * _root(discriminant))
  single = u - p / (3 * _safe(u))
  radius = _root(-p / 3)
  cosine = jnp.clip(half / _safe(radius**3), -1.0 + 1e-7, 1.0 - 1e-7)
  triple = 2 * radius * jnp.cos(jnp.arccos(cosine) / 3)
  s = jnp.where(discriminant > 0, single, triple) - third
  for _ in range(2):
    value = ((s + a) * s + b) * s + c
    slope = (3 * s + 2 * a) * s + b
    s = s - jnp.where(jnp.abs(slope) > _TINY, value / _safe(slope), 0.0)
  return s


def _degenerate(first, second):
  """A singular matrix [3, 3] of the pencil of two conics."""
  of_first, of_second = _adjugate(first), _adjugate(second)
  c0 = jnp.sum(first[0] * of_first[0])
  c1 = jnp.sum(of_first * second)
  c2 = jnp.sum(of_second * first)
  c3 = jnp.sum(second[0] * of_second[0])
  # The multiple belongs to the conic with the larger determinant: the leading
  # coefficient does not vanish, and roots at infinity become roots at 0.
  swap = jnp.abs(c0) > jnp.abs(c3)
  falling = jnp.stack([c3, c2, c1, c0])
  s = _real_root(*jnp.where(swap, falling[::-1], falling))
  base = jnp.where(swap, second, first)
  multiple = jnp.where(swap, first, second)
  return base + s * multiple


def _lines(conic):
  """Two lines [2, 3] whose product a singular conic [3, 3] is."""
  adjugate = -_adjugate(conic)
  diagonal = jnp.diagonal(adjugate)
  best = jnp.argmax(diagonal)
  corner = adjugate[:, best] / jnp.sqrt(jnp.maximum(diagonal[best], _TINY))
  x, y, z = corner
  zero = jnp.zeros_like(x)
  skew = jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
  product = conic + skew
  row, column = jnp.divmod(jnp.argmax(jnp.abs(product)), 3)
  return jnp.stack([product[row], product[:, column]])


def _ratios(line, conic):
  """Where a line [3] meets a conic [3, 3]: [2, 2] of (x, y), and valid [2]."""
  norm = _safe(jnp.hypot(line[0], line[1]))
  a, b, c = line / norm
  one, zero = jnp.ones_like(a), jnp.zeros_like(a)
  foot, along = jnp.stack([-a * c, -b * c, one]), jnp.stack([-b, a, zero])
  square = along @ conic @ along
  linear = along @ conic @ foot
  constant = foot @ conic @ foot
  discriminant = linear**2 - square * constant
  # Of a double root rounding leaves a discriminant on either side of zero.
  noise = NOISE * (linear**2 + jnp.abs(square * constant))
  q = -(linear + jnp.where(linear < 0, -1.0, 1.0) * _root(discriminant))
  steps = jnp.stack([q / _safe(square), constant / _safe(q)])
  steps = jnp.clip(steps, -FAR, FAR)
  valid = (discriminant > -noise) & (jnp.abs(steps) < FAR)
  return foot[:2] + steps[:, None] * along[:2], valid


def _polish(distances, chords, squares):
  """One Newton step on the three laws of cosines, for distances [3].

  With the chord h = |r_i - r_j|^2 = 2 - 2 m, d_i^2 + d_j^2 - 2 m d_i d_j is
  (d_i - d_j)^2 + h d_i d_j, of which rounding leaves more where rays are close.
  """
  x, y, z = distances
  h01, h02, h12 = chords
  s01, s02, s12 = squares
  r0 = (x - y) ** 2 + h01 * x * y - s01
  r1 = (x - z) ** 2 + h02 * x * z - s02
  r2 = (y - z) ** 2 + h12 * y * z - s12
  # Half the Jacobian: every equation lacks one of the distances.
  a, b = x - y + h01 * y / 2, y - x + h01 * x / 2
  c, d = x - z + h02 * z / 2, z - x + h02 * x / 2
  e, f = y - z + h12 * z / 2, z - y + h12 * y / 2
  step = jnp.stack(
    [
      -d * e * r0 - b * f * r1 + b * d * r2,
      -c * f * r0 + a * f * r1 - a * d * r2,
      c * e * r0 - a * e * r1 - b * c * r2,
    ]
  )
  step = step / (2 * _safe(-(a * d * e + b * c * f)))
  limit = 0.1 * jnp.abs(distances)
  return distances - jnp.clip(step, -limit, limit)


def _frame(corners):
  """Orthonormal axes [3, 3], as columns, that a triangle [3, 3] spans."""
  side, other = corners[1] - corners[0], corners[2] - corners[0]
  first = side / _safe(_root(side @ side))
  normal = jnp.cross(side, other)
  third = normal / _safe(_root(normal @ normal))
  return jnp.stack([first, jnp.cross(third, first), third], axis=1)


def _usable(rays, points):
  """Whether three rays and points are finite and determine a pose at all."""
  sides = points - points[jnp.array([1, 2, 0])]
  squares = jnp.sum(sides**2, axis=-1)
  area = jnp.cross(sides[0], sides[1])
  apart = jnp.sum((rays - rays[jnp.array([1, 2, 0])]) ** 2, axis=-1)
  usable = area @ area > FLAT * squares.max() ** 2
  return usable & (apart.min() > FLAT) & jnp.isfinite(area @ area)


def p3p(rays: jax.Array, points: jax.Array) -> Poses:
  """Poses that see three points in three directions.

  Args:
    rays: [3, 3] unit directions in the camera frame.
    points: [3, 3] positions in the map frame.

  Returns:
    Poses, with which `rotation @ point + translation` lies on the ray, ahead of
    the camera. None is valid of points on a line or rays that coincide.
  """
  chex.assert_shape([rays, points], (3, 3))
  # Of lengths around 1 no power overflows, and the map's origin may be far.
  center = points.mean(0)
  scale = jnp.maximum(jnp.abs(points - center).max(), 1e-12)
  points = (points - center) / scale
  usable = _usable(rays, points)
  example = jnp.asarray(EXAMPLE, points.dtype)
  rays = jnp.where(usable, rays, example / jnp.sqrt(3.0))
  points = jnp.where(usable, points, example)
  rotation, translation, valid = _solve(rays, points)
  translation = scale * translation - rotation @ center
  finite = jnp.isfinite(translation).all(-1) & jnp.isfinite(rotation).all(
    (1, 2)
  )
  rotation = jnp.where(finite[:, None, None], rotation, jnp.eye(3))
  translation = jnp.where(finite[:, None], translation, 0.0)
  return Poses(rotation, translation, valid & finite & usable)


def _solve(rays, points):
  """See `p3p`; of centred points of about unit size."""
  sides = points[jnp.array([1, 2, 0])] - points[jnp.array([2, 0, 1])]
  squares = jnp.sum(sides**2, axis=-1)
  # The longest side lies opposite point 0, so that a and b are at most 1.
  order = (jnp.argmax(squares) + jnp.arange(3)) % 3
  rays, points, squares = rays[order], points[order], squares[order]
  s12, s02, s01 = squares
  apart = rays[jnp.array([1, 2, 0])] - rays[jnp.array([2, 0, 1])]
  chords = jnp.sum(apart**2, axis=-1)
  m12, m02, m01 = 1 - chords / 2
  a, b = s01 / s12, s02 / s12
  one, zero = jnp.ones_like(a), jnp.zeros_like(a)
  conic_01 = jnp.stack(
    [one, -m01, zero, -m01, 1 - a, a * m12, zero, a * m12, -a]
  ).reshape(3, 3)
  conic_02 = jnp.stack(
    [one, zero, -m02, zero, -b, b * m12, -m02, b * m12, 1 - b]
  ).reshape(3, 3)
  lines = _lines(_degenerate(conic_01, conic_02))
  ratios, met = jax.vmap(_ratios, in_axes=(0, None))(lines, conic_02)
  x, y = jnp.moveaxis(ratios.reshape(4, 2), -1, 0)
  d2 = jnp.sqrt(s12 / jnp.maximum(y * y + 1 - 2 * m12 * y, 1e-12))
  distances = jnp.stack([x * d2, y * d2, d2], axis=-1)
  polish = jax.vmap(_polish, in_axes=(0, None, None))
  for _ in range(NUM_POLISH):
    distances = polish(distances, chords[::-1], squares[::-1])
  seen = distances[:, :, None] * rays
  rotation = jax.vmap(_frame)(seen) @ _frame(points).T
  valid = met.reshape(4) & (x > 0) & (y > 0) & (distances > 0).all(-1)
  return rotation, seen.mean(1), valid
