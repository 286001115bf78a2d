# SPDX-License-Identifier: Apache-2.0
"""Which minimal samples a consensus tries, in which order, and how many.

A sampler is a pytree of arrays. Its `draw` gives a batch of its sequence of
samples at once, on device, from the number of the first draw and a key: no draw
depends on earlier ones, and a batch of problems is a vmap. RANSAC, PROSAC and
B-PROSAC differ in the sampler alone. Where a sampler needs qualities, the data
are in the order of decreasing quality.
"""

import itertools
import math
from typing import NamedTuple
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import arrays
from i2ploc.robust import stopping

Array = arrays.Array
_ENDLESS = np.iinfo(np.int32).max
# Draws of each sample, of which the first is taken that repeats no part.
_ATTEMPTS = 4


class Sampler(Protocol):
  """The interface between samplers and the consensus.

  Attributes:
    num_data: int32 scalar, N; of padded data the real ones, which come first.
    num_samples: int32, draws after which nothing new comes.
  """

  @property
  def num_data(self) -> Array:
    """See above."""

  @property
  def num_samples(self) -> Array | int:
    """See above."""

  def draw(
    self, key: jax.Array, start: jax.Array, count: int, size: int
  ) -> tuple[jax.Array, jax.Array]:
    """Samples `start`, ..., `start + count - 1` of the sequence.

    Args:
      key: of the whole sequence.
      start: int32, number of the first draw, from 0.
      count: S.
      size: m, data of a sample.

    Returns:
      indices: [S, m] int32.
      valid: [S] bool.
    """

  def needed(
    self,
    found: jax.Array,
    draws: jax.Array,
    size: int,
    confidence: float,
    chance: float,
  ) -> Array:
    """Draws after which no better model is to be expected.

    Args:
      found: int32 [G], inliers of the best model among the `prefixes` of the
        capacity, see `stopping`; the last one is all.
      draws: int32, draws so far.
      size: m, data of a sample.
      confidence: probability of having missed nothing.
      chance: probability that a datum agrees with a wrong model.

    Returns:
      float32; the search may end once `draws` reaches it.
    """


def distinct(key: jax.Array, pool: jax.Array, size: int) -> jax.Array:
  """Distinct indices below a bound, every subset with the same probability.

  Args:
    key: PRNG key.
    pool: [S] int32, bounds; below `size` indices repeat.
    size: m, indices per sample.

  Returns:
    [S, m] int32.
  """
  uniform = jax.random.uniform(key, (size, *pool.shape))
  chosen = []
  for i in range(size):
    left = jnp.maximum(pool - i, 1)
    index = jnp.minimum((uniform[i] * left).astype(jnp.int32), left - 1)
    # The i-th of those left: it moves up by every chosen one at or below it.
    for other in _ascending(chosen):
      index = index + (index >= other)
    chosen.append(index)
  return jnp.stack(chosen, axis=-1)


def _ascending(arrays: list[jax.Array]) -> list[jax.Array]:
  """Equal-shaped arrays, sorted elementwise by compare and exchange."""
  arrays = list(arrays)
  for end in range(len(arrays) - 1, 0, -1):
    for i in range(end):
      low, high = arrays[i], arrays[i + 1]
      arrays[i], arrays[i + 1] = jnp.minimum(low, high), jnp.maximum(low, high)
  return arrays


class Uniform(NamedTuple):
  """Every subset of the data with the same probability: RANSAC's samples.

  Attributes:
    num_data: int32 scalar.
  """

  num_data: Array
  num_samples = _ENDLESS

  def draw(
    self, key: jax.Array, start: jax.Array, count: int, size: int
  ) -> tuple[jax.Array, jax.Array]:
    """See `Sampler.draw`."""
    pool = jnp.full(count, self.num_data, jnp.int32)
    indices = distinct(jax.random.fold_in(key, start), pool, size)
    return indices, pool >= size

  def needed(
    self,
    found: jax.Array,
    draws: jax.Array,
    size: int,
    confidence: float,
    chance: float,
  ) -> Array:
    """See `Sampler.needed`: one sample of inliers alone."""
    del draws, chance
    return stopping.ransac_draws(found[-1], self.num_data, size, confidence)


def prosac_growth(
  num_data: int, sample_size: int, num_draws: int = 200_000
) -> np.ndarray:
  """After how many draws PROSAC goes on to a larger pool.

  T_n = T_N prod_{i < m} (n - i) / (N - i) of T_N uniform draws are expected to
  come from the n best data; T'_m = 1, T'_{n + 1} = T'_n + ceil(T_{n+1} - T_n).

  Args:
    num_data: N.
    sample_size: m.
    num_draws: T_N, after which PROSAC equals RANSAC.

  Returns:
    int64 [N + 1], T'_n; 0 below m.

  Raises:
    InputError: fewer data than a sample holds.

  References:
    Chum and Matas, Matching with PROSAC, CVPR 2005, equations 3 to 6.
  """
  if num_data < sample_size:
    raise InputError(f'{num_data} data, but a sample holds {sample_size}.')
  n = np.arange(num_data + 1, dtype=np.float64)
  share = np.ones(num_data + 1)
  for i in range(sample_size):
    share *= np.maximum(n - i, 0.0) / (num_data - i)
  steps = num_draws * np.diff(share)
  # Rounding must not lift a whole number to the next one.
  steps = np.ceil(steps - 1e-9 * np.maximum(steps, 1.0))
  growth = np.zeros(num_data + 1, np.int64)
  growth[sample_size] = 1
  growth[sample_size + 1 :] = 1 + np.cumsum(steps[sample_size:]).astype(
    np.int64
  )
  return growth


class Prosac(NamedTuple):
  """Progressive sampling: the best data first (Chum and Matas, CVPR 2005).

  Draw t comes from the pool of the n best data, n = min {n: T'_n >= t}: it is
  the n-th datum and m - 1 others of the pool. After the last pool draws are
  uniform.

  Attributes:
    num_data: int32 scalar.
    growth: int32 [capacity + 1], `prosac_growth` of `num_data` data; padded
      with values that no draw reaches, so that no pool is larger. All zeros
      make all draws uniform.
  """

  num_data: Array
  growth: Array
  num_samples = _ENDLESS

  def pool(self, draw: jax.Array) -> jax.Array:
    """Size n of the pool of draws, counted from 0; N + 1 after the last."""
    n = jnp.searchsorted(jnp.asarray(self.growth), draw + 1, side='left')
    return jnp.minimum(n.astype(jnp.int32), self.num_data + 1)

  def draw(
    self, key: jax.Array, start: jax.Array, count: int, size: int
  ) -> tuple[jax.Array, jax.Array]:
    """See `Sampler.draw`."""
    n = self.pool(start + jnp.arange(count, dtype=jnp.int32))
    grows = n <= self.num_data
    pool = jnp.where(grows, n - 1, self.num_data)
    indices = distinct(jax.random.fold_in(key, start), pool, size)
    newest = jnp.where(grows, n - 1, indices[:, -1])
    indices = indices.at[:, -1].set(newest)
    return indices, jnp.full(count, self.num_data >= size)

  def needed(
    self,
    found: jax.Array,
    draws: jax.Array,
    size: int,
    confidence: float,
    chance: float,
  ) -> Array:
    """See `Sampler.needed`: uniform samples', or earlier by the best data."""
    return jnp.minimum(
      stopping.ransac_draws(found[-1], self.num_data, size, confidence),
      stopping.prosac_draws(
        found, self.num_data, self.growth, draws, size, confidence, chance
      ),
    )


def make_prosac(
  num_data: int, sample_size: int, capacity: int, num_draws: int = 200_000
) -> Prosac:
  """PROSAC for `num_data` data, padded to `capacity`."""
  growth = np.full(capacity + 1, _ENDLESS, np.int32)
  if num_data >= sample_size:
    table = prosac_growth(num_data, sample_size, num_draws)
    growth[: num_data + 1] = np.minimum(table, _ENDLESS - 1)
  return Prosac(np.asarray(num_data, np.int32), growth)


def make_uniform(num_data: int, capacity: int) -> Prosac:
  """`Uniform` as a `Prosac`, so that both share a program."""
  return Prosac(
    np.asarray(num_data, np.int32), np.zeros(capacity + 1, np.int32)
  )


def balanced_order(rank: np.ndarray, similarity: np.ndarray) -> np.ndarray:
  """Order of B-PROSAC: all first candidates, then all second ones, and so on.

  In an order by similarity alone the first pairs would all be of the few large
  and clear objects (Matsuzaki et al., CLIP-Loc, ICRA 2024).

  Args:
    rank: [N] int, which candidate of its observation a pair is, from 0.
    similarity: [N], higher is better.

  Returns:
    [N] indices into the pairs.
  """
  return np.lexsort((-np.asarray(similarity), np.asarray(rank)))


class BalancedProsac(NamedTuple):
  """PROSAC over pairs in `balanced_order`, each part at most once in a sample.

  A sample that names an observation or a landmark twice cannot be right. Such
  draws are repeated a few times, and invalid if all of them do.

  Attributes:
    progressive: draws of the ordered pairs.
    observation: int32 [N], of the ordered pairs.
    landmark: int32 [N].
  """

  progressive: Prosac
  observation: jax.Array
  landmark: jax.Array
  num_samples = _ENDLESS

  @property
  def num_data(self) -> Array:
    """Real pairs."""
    return self.progressive.num_data

  def draw(
    self, key: jax.Array, start: jax.Array, count: int, size: int
  ) -> tuple[jax.Array, jax.Array]:
    """See `Sampler.draw`."""
    keys = jax.random.split(key, _ATTEMPTS)
    indices, valid = jax.vmap(
      lambda k: self.progressive.draw(k, start, count, size)
    )(keys)
    valid &= ~_repeats(self.observation[indices])
    valid &= ~_repeats(self.landmark[indices])
    first = jnp.argmax(valid, axis=0)
    indices = jnp.take_along_axis(indices, first[None, :, None], axis=0)[0]
    return indices, valid.any(axis=0)

  def needed(
    self,
    found: jax.Array,
    draws: jax.Array,
    size: int,
    confidence: float,
    chance: float,
  ) -> Array:
    """See `Prosac.needed`."""
    return self.progressive.needed(found, draws, size, confidence, chance)


def _repeats(values: jax.Array) -> jax.Array:
  """[...] bool, whether any two of [..., m] are equal."""
  pairs = values[..., :, None] == values[..., None, :]
  size = values.shape[-1]
  return (pairs & ~jnp.eye(size, dtype=bool)).any((-1, -2))


class Exhaustive(NamedTuple):
  """A list of samples, each drawn once, in its order.

  Attributes:
    num_data: int32 scalar.
    samples: int32 [T, m].
    num_samples: int32 scalar, the real samples, which come first.
  """

  num_data: Array
  samples: Array
  num_samples: Array

  def draw(
    self, key: jax.Array, start: jax.Array, count: int, size: int
  ) -> tuple[jax.Array, jax.Array]:
    """See `Sampler.draw`; nothing is random."""
    del key, size
    number = start + jnp.arange(count, dtype=jnp.int32)
    indices = jnp.asarray(self.samples).at[number].get(mode='clip')
    return indices, number < self.num_samples

  def needed(
    self,
    found: jax.Array,
    draws: jax.Array,
    size: int,
    confidence: float,
    chance: float,
  ) -> Array:
    """See `Sampler.needed`: all samples, whatever the best model is."""
    del found, draws, size, confidence, chance
    return jnp.asarray(jnp.inf, jnp.float32)


def make_exhaustive(
  num_data: int, sample_size: int, capacity: int
) -> Exhaustive:
  """All samples of `num_data` data, padded to `capacity` samples.

  Raises:
    InputError: there are more samples than that.
  """
  count = math.comb(num_data, sample_size)
  if count > capacity:
    raise InputError(
      f'{num_data} data have {count:,} samples of {sample_size}, more than '
      f'{capacity:,}; draw them at random'
    )
  samples = np.zeros((capacity, sample_size), np.int32)
  chosen = itertools.combinations(range(num_data), sample_size)
  samples[:count] = np.fromiter(
    chosen, np.dtype((np.int32, sample_size)), count
  )
  return Exhaustive(
    np.asarray(num_data, np.int32), samples, np.asarray(count, np.int32)
  )


class Either(NamedTuple):
  """The samples of a list if there are any, else random ones.

  All that a search may try then shares a program.

  Attributes:
    listed: the list; with no samples in it the random ones are drawn.
    drawn: the random ones.
  """

  listed: Exhaustive
  drawn: Prosac

  @property
  def num_data(self) -> Array:
    """See `Sampler`."""
    return self.drawn.num_data

  @property
  def num_samples(self) -> jax.Array:
    """See `Sampler`."""
    listed = self.listed.num_samples
    return jnp.where(listed > 0, listed, _ENDLESS)

  def draw(
    self, key: jax.Array, start: jax.Array, count: int, size: int
  ) -> tuple[jax.Array, jax.Array]:
    """See `Sampler.draw`."""
    listed = self.listed.draw(key, start, count, size)
    drawn = self.drawn.draw(key, start, count, size)
    given = self.listed.num_samples > 0
    return jax.tree.map(lambda a, b: jnp.where(given, a, b), listed, drawn)

  def needed(
    self,
    found: jax.Array,
    draws: jax.Array,
    size: int,
    confidence: float,
    chance: float,
  ) -> Array:
    """See `Sampler.needed`."""
    drawn = self.drawn.needed(found, draws, size, confidence, chance)
    return jnp.where(self.listed.num_samples > 0, jnp.inf, drawn)
