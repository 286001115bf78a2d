# SPDX-License-Identifier: Apache-2.0
"""The number of draws after which no better model is to be expected."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import arrays

# Probability that chance passes for a model, per pool; there are many pools.
_CHANCE_LEVEL = 1e-3


def _draws(inliers, total, sample_size, confidence):
  """Draws of which one consists of inliers, with the given probability."""
  xp = arrays.namespace(inliers, total)
  success = xp.ones_like(inliers)
  for j in range(sample_size):
    share = (inliers - j) / xp.maximum(total - j, 1.0)
    success = success * xp.clip(share, 0.0, 1.0)
  # log1p keeps a success rate of 1e-9, which 1 - x would round away.
  miss = xp.log1p(-xp.clip(success, 1e-30, 1 - 1e-7))
  needed = math.log1p(-confidence) / miss
  return xp.where(success > 0, needed, xp.inf)


def ransac_draws(
  num_inliers: arrays.Array | int,
  num_data: arrays.Array | int,
  sample_size: int,
  confidence: float,
) -> arrays.Array:
  """Draws of which one consists of inliers, with the given probability.

  log(1 - p) / log(1 - prod_{j < m} (I - j) / (N - j)) (Fischler and Bolles,
  1981, without replacement).

  Args:
    num_inliers: I.
    num_data: N.
    sample_size: m.
    confidence: p.

  Returns:
    float32, infinite for fewer than m inliers; numpy of numbers and numpy.
  """
  xp = arrays.namespace(num_inliers, num_data)
  inliers = xp.asarray(num_inliers, xp.float32)
  total = xp.asarray(num_data, xp.float32)
  return _draws(inliers, total, sample_size, confidence)


@functools.lru_cache
def prefixes(capacity: int) -> np.ndarray:
  """How many of the best data PROSAC's stopping rule looks at.

  Every number up to 32, then every eighth part more: a rule that looked at all
  of thousands of data after every turn would cost as much as the turn.

  Args:
    capacity: N.

  Returns:
    int32 [G], ascending; the last one is N.
  """
  sizes = [min(32, capacity)]
  while sizes[-1] < capacity:
    sizes.append(min(sizes[-1] + sizes[-1] // 8, capacity))
  return np.asarray([*range(1, sizes[0]), *sizes], np.int32)


def prosac_draws(
  found: jax.Array,
  num_data: arrays.Array | int,
  growth: arrays.Array,
  num_draws: jax.Array,
  sample_size: int,
  confidence: float,
  chance: float,
) -> jax.Array:
  """Draws after which PROSAC may stop; one expression over many pools.

  The n best data end the search if they have more inliers than chance explains
  (non-randomness) and if enough samples were drawn for these (maximality). The
  binomial tail is bounded by Chernoff's exp(-n KL(share | chance)): the usual
  Gaussian approximation would accept four inliers of five data. As in the
  paper all draws count once pool n is reached: samples of smaller pools are
  better than uniform samples of pool n, and later samples are of pools that
  include it.

  Args:
    found: int32 [G], inliers of the best model among the `prefixes` of N.
    num_data: real data, at most N, which come first.
    growth: int32 [N + 1] of `samplers.prosac_growth`; zeros if draws are not in
      the order of quality.
    num_draws: draws so far.
    sample_size: m.
    confidence: p, of maximality.
    chance: probability that a datum agrees with a wrong model.

  Returns:
    float32: at most `num_draws` if the search may stop, else infinite.

  References:
    Chum and Matas, Matching with PROSAC, CVPR 2005, section 2.2.
  """
  m, sizes = sample_size, prefixes(len(growth) - 1)
  n = jnp.asarray(sizes, jnp.float32)
  found = jnp.asarray(found, jnp.float32)
  others = jnp.maximum(n - m, 1.0)
  share = jnp.clip((found - m) / others, chance, 1 - 1e-6)
  divergence = share * jnp.log(share / chance)
  divergence += (1 - share) * jnp.log((1 - share) / (1 - chance))
  surprising = others * divergence >= -math.log(_CHANCE_LEVEL)
  needed = _draws(found, n, m, confidence)
  drawn = jnp.asarray(num_draws, jnp.float32)
  # T'_{n - 1} draws come before the first one of pool n.
  before = jnp.asarray(growth)[sizes - 1]
  reached = (before > 0) & (before < num_draws) & (sizes <= num_data)
  # A few of the best data make a model that may be far off, the more so the
  # larger a sample is.
  many = found >= m * (m - 1)
  admissible = (n > m) & reached & surprising & (drawn >= needed) & many
  return jnp.min(jnp.where(admissible, needed, jnp.inf))
