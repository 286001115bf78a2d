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


def _in_cells(values, slopes):
  """Roots within cells, from 0 to 1: two arrays [C], and how many there are.

  In a cell the polynomial is a cubic, to a ten-thousandth of its size.
  """
  left, right, down, up = values[:-1], values[1:], slopes[:-1], slopes[1:]
  rise = right - left
  cubic = (left, down, 3 * rise - 2 * down - up, down + up - 2 * rise)
  changes = (left > 0) != (right > 0)
  share = left / jnp.where(changes, -rise, 1.0)
  single = _newton(cubic, jnp.clip(share, 0.0, 1.0), 0.0, 1.0)
  # Both ends fall towards zero: an extremum between them may reach it.
  falls = (left * down < 0) & (right * up > 0) & ~changes
  gap = jnp.where(falls, down - up, 1.0)
  middle = jnp.clip(down / gap, 0.0, 1.0)
  bend = 2 * cubic[2] + 6 * cubic[3] * middle
  tilt = down + (2 * cubic[2] + 3 * cubic[3] * middle) * middle
  flat = jnp.abs(bend) < 1e-30
  middle -= jnp.where(flat, 0.0, tilt / jnp.where(flat, 1.0, bend))
  middle = jnp.clip(middle, 0.0, 1.0)
  least = ((cubic[3] * middle + cubic[2]) * middle + down) * middle + left
  depth = -least * jnp.sign(left)
  noise = _NOISE * jnp.abs(values).max()
  double = falls & (depth > -noise)
  spread = 2 * jnp.maximum(depth, noise) / jnp.maximum(jnp.abs(bend), 1e-30)
  spread = jnp.sqrt(jnp.where(double, spread, 1.0))
  first = _newton(cubic, middle - spread, 0.0, middle)
  second = _newton(cubic, middle + spread, middle, 1.0)
  count = jnp.where(double, 2, jnp.where(changes, 1, 0))
  return jnp.where(double, first, single), second, count


def roots(
  values: jax.Array, num_cells: int = 96
) -> tuple[jax.Array, jax.Array]:
  """Angles at which a homogeneous polynomial vanishes.

  Half a circle is divided into cells. Each may have one root, where the sign
  changes, or two, around an extremum; also two that rounding has removed are
  found. More than two in a cell are not.

  Args:
    values: [n + 1] at `angles(n)`.
    num_cells: cells of half a circle.

  Returns:
    angles: [n], from 0 to pi; good starts, without a gradient.
    valid: [n] bool; roots come first, in ascending order.
  """
  degree, values = len(values) - 1, jax.lax.stop_gradient(values)
  exact = functools.partial(jnp.matmul, precision=rigid.EXACT)
  tables = (jnp.asarray(t, values.dtype) for t in _tables(degree, num_cells))
  first, second, count = _in_cells(*(exact(table, values) for table in tables))
  # As matrix products, whose factors XLA computes once; it would fuse sums with
  # all of the above, and compute that again for every slot.
  both = [np.triu(np.ones((num_cells, num_cells)), k) for k in (0, 1)]
  both = jnp.asarray(np.concatenate(both, axis=1), values.dtype)
  until, before = jnp.split(exact(count.astype(values.dtype), both), 2)
  slots = jnp.arange(degree, dtype=values.dtype)[:, None]
  ours = (before == slots) & (until > slots)
  also = (before + 1 == slots) & (until > slots)
  start = jnp.arange(num_cells, dtype=values.dtype)
  where = exact(ours.astype(values.dtype), start + first)
  where = where + exact(also.astype(values.dtype), start + second)
  return where * (np.pi / num_cells), slots[:, 0] < until[-1]
