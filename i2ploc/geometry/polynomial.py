# SPDX-License-Identifier: Apache-2.0
"""Real roots of polynomials that are given by their values.

A homogeneous polynomial of degree n in (sin t, cos t) is a trigonometric
polynomial of t with the frequencies n, n - 2, ..., and its values at n + 1
angles, evenly spaced over half a circle, determine it by an orthogonal
transformation. No root is at infinity, and none is lost to rounding: in float32
the coefficients of powers would have no correct digits at degree 10.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import rigid

# An extremum this close to zero, relative to the largest value, is two roots.
_NOISE = 1e-4
_NUM_STEPS = 3
_CELLS_PER_DEGREE = 10


def angles(degree: int) -> np.ndarray:
  """Angles [degree + 1] at which values determine a polynomial, radians."""
  return np.arange(degree + 1) * (np.pi / (degree + 1))


def _basis(degree, where):
  """[T, degree + 1] of cosines and sines at angles [T], and their slopes."""
  frequencies = np.arange(degree % 2, degree + 1, 2, dtype=np.float64)
  turns = where[:, None] * frequencies
  first = 1 - degree % 2  # the sine of nothing is nothing
  cosines, sines = np.cos(turns), np.sin(turns)
  value = np.concatenate([cosines, sines[:, first:]], axis=1)
  slope = np.concatenate([-sines, cosines[:, first:]], axis=1)
  repeated = np.concatenate([frequencies, frequencies[first:]])
  return value, slope * repeated


@functools.lru_cache
def _tables(degree, num_cells):
  """Values, and slopes times a cell, at the ends of cells, from values."""
  from_values = np.linalg.inv(_basis(degree, angles(degree))[0])
  ends = np.arange(num_cells + 1) * (np.pi / num_cells)
  value, slope = _basis(degree, ends)
  return value @ from_values, slope @ from_values * (np.pi / num_cells)


def _newton(cubic, where, low, high):
  """Roots of cubics in a cell, between bounds, from nearby starts."""
  c0, c1, c2, c3 = cubic
  for _ in range(_NUM_STEPS):
    value = ((c3 * where + c2) * where + c1) * where + c0
    slope = (3 * c3 * where + 2 * c2) * where + c1
    flat = jnp.abs(slope) < 1e-30
    step = jnp.where(flat, 0.0, value / jnp.where(flat, 1.0, slope))
    where = jnp.clip(where - step, low, high)
  return where


def _cubic(left, right, down, up):
  """Coefficients in a cell, from values and slopes at its ends.

  The polynomial is this cubic to a ten-thousandth of its size.
  """
  rise = right - left
  return left, down, 3 * rise - 2 * down - up, down + up - 2 * rise


def _extremum(cubic, up):
  """Where a cubic has one, from 0 to 1; its value and curvature there."""
  value, down, square, cube = cubic
  gap = down - up
  middle = down / jnp.where(gap == 0, 1.0, gap)
  middle = jnp.clip(middle, 0.0, 1.0)
  bend = 2 * square + 6 * cube * middle
  tilt = down + (2 * square + 3 * cube * middle) * middle
  flat = jnp.abs(bend) < 1e-30
  middle -= jnp.where(flat, 0.0, tilt / jnp.where(flat, 1.0, bend))
  middle = jnp.clip(middle, 0.0, 1.0)
  least = ((cube * middle + square) * middle + down) * middle + value
  return middle, least, bend


def _numbers(left, right, down, up, noise):
  """How many roots there are in every cell: 0, 1 or 2."""
  changes = (left > 0) != (right > 0)
  # Both ends fall towards zero: an extremum between them may reach it.
  falls = (left * down < 0) & (right * up > 0) & ~changes
  _, least, _ = _extremum(_cubic(left, right, down, up), up)
  double = falls & (-least * jnp.sign(left) > -noise)
  return jnp.where(double, 2, jnp.where(changes, 1, 0))


def _root(left, right, down, up, which, noise):
  """The root of that number, 0 to 1, in a cell of one (-1) or two (0, 1)."""
  cubic = _cubic(left, right, down, up)
  changes = (left > 0) != (right > 0)
  share = left / jnp.where(changes, left - right, 1.0)
  middle, least, bend = _extremum(cubic, up)
  depth = jnp.maximum(-least * jnp.sign(left), noise)
  spread = jnp.sqrt(2 * depth / jnp.maximum(jnp.abs(bend), 1e-30))
  first, second = which == 0, which == 1
  start = jnp.where(first, middle - spread, middle + spread)
  start = jnp.where(first | second, start, jnp.clip(share, 0.0, 1.0))
  low = jnp.where(second, middle, 0.0)
  return _newton(cubic, start, low, jnp.where(first, middle, 1.0))


def roots(
  values: jax.Array, num_cells: int | None = None
) -> tuple[jax.Array, jax.Array]:
  """Angles at which a homogeneous polynomial vanishes.

  Half a circle is divided into cells. Each may have one root, where the sign
  changes, or two, around an extremum; also two that rounding has removed are
  found. More than two in a cell are not.

  Args:
    values: [n + 1] at `angles(n)`.
    num_cells: cells of half a circle; by default about ten per degree.

  Returns:
    angles: [n], from 0 to pi; good starts, without a gradient.
    valid: [n] bool; roots come first, in ascending order.
  """
  degree, values = len(values) - 1, jax.lax.stop_gradient(values)
  num_cells = num_cells or _CELLS_PER_DEGREE * degree
  exact = functools.partial(jnp.matmul, precision=rigid.EXACT)
  tables = (jnp.asarray(t, values.dtype) for t in _tables(degree, num_cells))
  value, slope = (exact(table, values) for table in tables)
  noise = _NOISE * jnp.abs(value).max()
  cells = jnp.stack([value[:-1], value[1:], slope[:-1], slope[1:]])
  count = _numbers(*cells, noise).astype(values.dtype)
  # As a matrix product, whose factor XLA computes once; it would fuse a sum
  # with all of the above, and compute that again for every slot.
  triangle = jnp.asarray(np.tri(num_cells).T, values.dtype)
  until = exact(count, triangle)
  slots = jnp.arange(degree, dtype=values.dtype)
  valid = slots < until[-1]
  place = jnp.sum(until <= slots[:, None], axis=-1)
  place = jnp.minimum(place, num_cells - 1)
  # Newton's method in the cells that have roots only.
  chosen = jnp.concatenate([cells, until[None], count[None]])[:, place]
  which = jnp.where(chosen[5] > 1, slots + 2 - chosen[4], -1.0)
  where = place + _root(*chosen[:4], which, noise)
  return jnp.where(valid, where * (np.pi / num_cells), 0.0), valid
