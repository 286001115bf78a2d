# SPDX-License-Identifier: Apache-2.0
"""Choosing points: sampling, neighbourhoods and the camera's field of view.

Everything is written for one cloud and vmapped by the caller. The indices that
come back are decisions, not functions to differentiate: gradients flow through
the coordinates gathered with them. Masked points may hold anything, NaN too.
"""

import chex
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError

# Queries per block of a neighbour search: the distances of more of them to
# 20,000 points leave the cache, which takes 1.7 times as long on CPU.
QUERY_BLOCK = 64


def farthest_point_sampling(
  points: jax.Array,
  mask: jax.Array,
  num_samples: int,
  skip_squared_norm: float | None = None,
) -> jax.Array:
  """Greedy cover: each sample is the point farthest from those before it.

  Starts at the first real point; exact ties go to the lowest index. When every
  real point has been taken, the first of them repeats.

  Args:
    points: [P, 3], metres.
    mask: [P] bool, real points.
    num_samples: G.
    skip_squared_norm: points with |p|^2 at or below it are never candidates,
      but may be the start: the rule of the released CUDA operator (1e-3), in
      which the origin marks padding. None considers every real point.

  Returns:
    [G] int32; zeros if no point is real.
  """
  chex.assert_shape(points, (None, 3))
  chex.assert_shape(mask, points.shape[:1])
  x, y, z = jnp.where(mask[:, None], points, 0.0).T
  candidate = mask
  if skip_squared_norm is not None:
    candidate = mask & (x * x + y * y + z * z > skip_squared_norm)
  order = jnp.arange(points.shape[0], dtype=jnp.int32)

  def first_maximum(values):
    # Two plain reductions: 4-6 times faster on CPU than argmax, whose
    # (value, index) reduction XLA does not vectorise.
    return jnp.min(jnp.where(values == jnp.max(values), order, order[-1]))

  def body(i, carry):
    distance, samples, last = carry
    to_last = (x - x[last]) ** 2 + (y - y[last]) ** 2 + (z - z[last]) ** 2
    distance = jnp.minimum(distance, to_last)
    last = first_maximum(distance)
    return distance, samples.at[i].set(last), last

  start = first_maximum(mask.astype(jnp.int32))
  distance = jnp.where(candidate, jnp.inf, jnp.where(mask, -1.0, -2.0))
  samples = jnp.full(num_samples, start)
  return jax.lax.fori_loop(1, num_samples, body, (distance, samples, start))[1]


def _nearest(queries, points, mask, k):
  """`nearest_neighbors` with all distances at once."""
  distance = sum(
    (queries[:, None, axis] - points[None, :, axis]) ** 2 for axis in range(3)
  )
  distance = jnp.where(mask, distance, jnp.inf)
  # Only the float top_k has a fast CPU kernel: indices packed into the low
  # bits of an integer cost 20 times more, and lose the order of near ties.
  # Without the barrier XLA merges the slice below into the top_k, no longer
  # recognises it, and sorts all P distances: 30 times slower.
  indices = jax.lax.optimization_barrier(jax.lax.top_k(-distance, k)[1])
  real = jnp.asarray(mask)[indices]
  return jnp.where(real, indices, indices[:, :1])


def nearest_neighbors(
  queries: jax.Array, points: jax.Array, mask: jax.Array, k: int
) -> jax.Array:
  """Indices of the k nearest real points, nearest first.

  Distances are exact differences, not |q|^2 - 2qp + |p|^2, which at 50 m would
  leave millimetres to rounding; no more than 2 QUERY_BLOCK P of them exist at
  once. With fewer than k real points the nearest one repeats: a duplicate
  changes no maximum over a neighbourhood.

  Args:
    queries: [G, 3].
    points: [P, 3].
    mask: [P] bool, real points.
    k: number of neighbours, at most P.

  Returns:
    [G, k] int32.
  """
  chex.assert_shape([queries, points], (None, 3))
  chex.assert_shape(mask, points.shape[:1])
  num_queries = queries.shape[0]
  if num_queries <= 2 * QUERY_BLOCK:
    return _nearest(queries, points, mask, k)
  padding = -num_queries % QUERY_BLOCK
  blocks = jnp.pad(queries, ((0, padding), (0, 0))).reshape(-1, QUERY_BLOCK, 3)
  indices = jax.lax.map(lambda block: _nearest(block, points, mask, k), blocks)
  return indices.reshape(-1, k)[:num_queries]


def subsample(
  key: jax.Array, points: jax.Array, mask: jax.Array, num_points: int
) -> tuple[jax.Array, jax.Array]:
  """A fixed number of real points, each equally likely, without replacement.

  Stratified along the input order (one draw from each of `num_points` equal
  runs of real points, after a random rotation), which costs one cumulative sum
  instead of a sort and covers a scan evenly. Real points come first.

  Args:
    key: PRNG key.
    points: [P, C].
    mask: [P] bool, real points.
    num_points: size of the result, at most 65,536.

  Returns:
    points: [num_points, C]; zeros where there were too few.
    mask: [num_points] bool.
  """
  chex.assert_rank(points, 2)
  chex.assert_shape(mask, points.shape[:1])
  if num_points > 65_536:
    raise InputError(f'num_points is {num_points}; at most 65,536 (uint32)')
  points, real = jnp.asarray(points), jnp.cumsum(mask)
  total = real[-1].astype(jnp.uint32)
  slot = jnp.arange(num_points + 1, dtype=jnp.uint32)
  start = slot * (total // num_points) + slot * (total % num_points) // (
    num_points
  )
  size = start[1:] - start[:-1]
  draw_key, shift_key = jax.random.split(key)
  draw = jax.random.uniform(draw_key, (num_points,)) * size
  shift = jax.random.randint(shift_key, (), 0, jnp.maximum(real[-1], 1))
  pick = start[:-1] + draw.astype(jnp.uint32) + shift.astype(jnp.uint32)
  slot = slot[:-1]
  rank = jnp.where(
    total > num_points, pick % jnp.maximum(total, jnp.uint32(1)), slot
  )
  index = jnp.searchsorted(real, rank.astype(real.dtype) + 1)
  chosen = slot < total
  index = jnp.minimum(index, points.shape[0] - 1)
  return jnp.where(chosen[:, None], points[index], 0.0), chosen


def in_azimuth_span(
  points: jax.Array, left: jax.Array, right: jax.Array
) -> jax.Array:
  """Whether points of the camera frame lie between two azimuths.

  The intersection of two half-planes: no arc tangent for each of the hundred
  thousand points of a scan, most of which are dropped here.

  Args:
    points: [P, 3], camera frame (x right, z forward).
    left: scalar azimuth of the left border, radians.
    right: scalar azimuth of the right border, less than pi from `left`.

  Returns:
    [P] bool.
  """
  chex.assert_shape(points, (None, 3))
  x, z = points[:, 0], points[:, 2]
  past_left = x * jnp.cos(left) >= z * jnp.sin(left)
  past_right = x * jnp.cos(right) > z * jnp.sin(right)
  return past_left & ~past_right & ((x != 0) | (z != 0))
