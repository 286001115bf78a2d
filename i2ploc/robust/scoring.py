# SPDX-License-Identifier: Apache-2.0
"""How well models explain data: a cost per datum, summed in blocks.

Costs, lower is better, of squared residuals r^2 and a squared threshold t^2:

- 'inliers': 1 unless r^2 < t^2 (Fischler and Bolles, 1981).
- 'msac': min(r^2, t^2) / t^2 (Torr and Zisserman, 2000).
- 'gaussian_uniform': -log of a mixture of a Gaussian, whose 95 % quantile in
  two dimensions is t, and a uniform distribution as dense as it at t; scaled to
  [0, 1]. MAGSAC++ is numerically of this form.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from i2ploc.errors import InputError

# 95 % of a Gaussian in two dimensions lie within sqrt(5.99) deviations.
_QUANTILE = 5.99
# Residuals of a block: as many as stay in a core's cache, or fill a GPU.
_BLOCK = {'cpu': 1 << 17}
_LARGE_BLOCK = 1 << 25


def _inliers(squared, limit):
  return jnp.where(squared < limit, 0.0, 1.0)


def _msac(squared, limit):
  return jnp.minimum(squared, limit) / limit


def _gaussian_uniform(squared, limit):
  level = jnp.exp(-_QUANTILE / 2)
  likelihood = jnp.exp(-_QUANTILE / 2 * squared / limit)
  # The uniform part has the Gaussian's density at t: 0 at best, 1 far away.
  scale = jnp.log1p(1 / level)
  return 1 - jnp.log1p(likelihood / level) / scale


COSTS: dict[str, Callable] = {
  'inliers': _inliers,
  'msac': _msac,
  'gaussian_uniform': _gaussian_uniform,
}


def check_score(name: str) -> None:
  """Raises InputError for an unknown cost."""
  if name not in COSTS:
    raise InputError(f'unknown score {name!r}; known: {sorted(COSTS)}')


def block_size(num_data: int) -> int:
  """Models whose residuals are in memory at once."""
  numbers = _BLOCK.get(jax.default_backend(), _LARGE_BLOCK)
  return max(1, numbers // max(num_data, 1))


def total_costs(
  residual: Callable,
  models: Any,
  data: Any,
  mask: jax.Array,
  threshold: jax.Array,
  score: str = 'msac',
) -> jax.Array:
  """Costs of many models.

  On CPU, XLA does not fuse a reduction over a large intermediate: all models at
  once are ten times slower than blocks of them.

  Args:
    residual: see `Problem.residual`.
    models: pytree with leading axis S.
    data: pytree of [N].
    mask: [N] bool, real data.
    threshold: residual of an inlier, at most.
    score: of COSTS.

  Returns:
    [S] sums over the data; infinite where a residual is NaN, so that such a
    model is never the best.
  """
  cost = COSTS[score]
  limit = jnp.asarray(threshold) ** 2

  def total(model):
    costs = cost(residual(model, data), limit)
    return jnp.sum(jnp.where(mask, costs, 0.0))

  size = len(jax.tree.leaves(models)[0])
  block = min(block_size(mask.size), size)
  totals = jax.lax.map(total, models, batch_size=block)
  return jnp.where(jnp.isnan(totals), jnp.inf, totals)
