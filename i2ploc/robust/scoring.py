# SPDX-License-Identifier: Apache-2.0
"""How well models explain data: a cost per datum, summed in blocks.

Costs, lower is better, of squared residuals r^2 and a squared threshold t^2:

- 'inliers': 1 unless r^2 < t^2 (Fischler and Bolles, 1981).
- 'msac': min(r^2, t^2) / t^2 (Torr and Zisserman, 2000).
- 'gaussian_uniform': -log of a mixture of a Gaussian, whose 95 % quantile in
  two dimensions is t, and a uniform distribution as dense as it at t; scaled to
  [0, 1]. MAGSAC++ is numerically of this form.

A threshold is often several times as wide as the noise. Where the scale c of
the noise is known too, a cost x counts as x (1 + q) / (x + q), q = c^2 / t^2
(Geman and McClure, 1987): residuals within the noise matter most, and those
between noise and threshold hardly differ. Without a scale it counts as it is.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.geometry import arrays

Array = arrays.Array

# 95 % of a Gaussian in two dimensions lie within sqrt(5.99) deviations.
_QUANTILE = 5.99
# Data of a block: what many models make of them stays in a core's cache, or
# fills a GPU.
_BLOCK = {'cpu': 128}
_LARGE_BLOCK = 4096


def _inliers(squared, limit):
  return arrays.namespace(squared).where(squared < limit, 0.0, 1.0)


def _msac(squared, limit):
  return arrays.namespace(squared).minimum(squared, limit) / limit


def _gaussian_uniform(squared, limit):
  xp, level = arrays.namespace(squared), math.exp(-_QUANTILE / 2)
  likelihood = xp.exp(-_QUANTILE / 2 * squared / limit)
  # The uniform part has the Gaussian's density at t: 0 at best, 1 far away.
  return 1 - xp.log1p(likelihood / level) / math.log1p(1 / level)


COSTS: dict[str, Callable] = {
  'inliers': _inliers,
  'msac': _msac,
  'gaussian_uniform': _gaussian_uniform,
}


def scaled(cost: Array, scale: Array | float) -> Array:
  """A cost from 0 to 1, seen at a scale of the noise, in thresholds."""
  square = scale**2
  return cost * (1 + square) / (cost + square)


def check_score(name: str) -> None:
  """Raises InputError for an unknown cost."""
  if name not in COSTS:
    raise InputError(f'unknown score {name!r}; known: {sorted(COSTS)}')


# Beside a scale of so many thresholds, float32 knows no threshold.
NO_SCALE = 1e4


def block_size(capacity: int) -> int:
  """Data that are looked at together; divides `capacity`, or is all of it."""
  size = min(_BLOCK.get(jax.default_backend(), _LARGE_BLOCK), capacity)
  return size if capacity % size == 0 else capacity


def sum_blocks(term: Callable, data: Any, num_data: jax.Array) -> Any:
  """The sum of a term over blocks of the real data.

  Data are padded to a capacity, so that one program serves any number of them;
  blocks of padding alone cost nothing.

  Args:
    term: `block of data, mask -> pytree` of floating numbers.
    data: pytree of [N].
    num_data: int32, real data, which come first.

  Returns:
    The pytree of sums; zeros without data.
  """
  capacity = len(jax.tree.leaves(data)[0])
  size = block_size(capacity)
  if size == capacity:
    return term(data, jnp.arange(capacity) < num_data)

  def step(i, sums):
    start = i * size
    block = jax.tree.map(
      lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), data
    )
    found = term(block, start + jnp.arange(size) < num_data)
    return jax.tree.map(jnp.add, sums, found)

  term = jax.jit(term)  # traced once
  first = jax.tree.map(lambda leaf: leaf[:size], data)
  shapes = jax.eval_shape(term, first, jnp.zeros(size, bool))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.fori_loop(0, (num_data + size - 1) // size, step, zeros)


def total_costs(
  residual: Callable,
  models: Any,
  data: Any,
  num_data: jax.Array | int,
  threshold: jax.Array,
  score: str = 'msac',
  scale: jax.Array | float = NO_SCALE,
) -> jax.Array:
  """Costs of many models.

  Args:
    residual: see `Problem.residual`.
    models: pytree with leading axis S.
    data: pytree of [N].
    num_data: real data, which come first.
    threshold: residual of an inlier, at most.
    score: of COSTS.
    scale: of the noise, in thresholds.

  Returns:
    [S] sums over the data; infinite where a residual is NaN, so that such a
    model is never the best.
  """
  cost = COSTS[score]
  limit = jnp.asarray(threshold) ** 2

  def term(block, mask):
    squared = jax.vmap(lambda model: residual(model, block))(models)
    costs = scaled(cost(squared, limit), scale)
    return jnp.sum(jnp.where(mask, costs, 0.0), axis=1)

  totals = sum_blocks(term, data, jnp.asarray(num_data, jnp.int32))
  return jnp.where(jnp.isnan(totals), jnp.inf, totals)
