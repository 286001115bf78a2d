# SPDX-License-Identifier: Apache-2.0
"""K-means of tokens, for vocabularies."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import compilation
from i2ploc.errors import InputError
from i2ploc.models import vlad

# Tokens whose distances to all centres are held at once.
BLOCK = 4096


def kmeans(
  x: np.ndarray, num_clusters: int, seed: int = 0, num_iterations: int = 30
) -> np.ndarray:
  """Centres of `num_clusters` clusters, the same for the same seed.

  Starts as greedy k-means++ (Arthur and Vassilvitskii, 2007), then Lloyd's
  iterations until no centre moves. A cluster that lost all its tokens starts
  again at one of those that are farthest from their centres.

  >>> x = np.asarray([[0.0, 0.0], [0.0, 0.5], [5.0, 5.0], [5.0, 5.5]])
  >>> sorted(kmeans(x, 2).tolist())
  [[0.0, 0.25], [5.0, 5.25]]

  Args:
    x: [N, D].
    num_clusters: K <= N.
    seed: of the start.
    num_iterations: at most.

  Returns:
    [K, D] float32. Fewer than K different tokens give equal centres.

  Raises:
    InputError: fewer tokens than clusters.
  """
  count = len(x)
  if count < num_clusters:
    raise InputError(
      f'{num_clusters} clusters of {count} tokens: set num_clusters to at most '
      f'{count}, or take a larger map'
    )
  padding = -count % BLOCK
  rows = np.pad(np.asarray(x, np.float32), ((0, padding), (0, 0)))
  blocks = rows.reshape(-1, BLOCK, rows.shape[1])
  real = (np.arange(len(rows)) < count).reshape(blocks.shape[:2])
  key = jax.random.key(seed)
  start = _start(blocks, real, key, num_clusters)
  return np.asarray(_lloyd(blocks, real, start, num_iterations))


@functools.partial(compilation.jit, static_argnames='num_clusters')
def _start(blocks, real, key, num_clusters):
  """Centres [K, D]: tokens drawn by their squared distance to those before.

  Of a few that are drawn, the one that brings all tokens nearest.
  """
  rows = blocks.reshape(-1, blocks.shape[-1])
  real = real.reshape(-1)
  squared = jnp.sum(rows**2, axis=1)
  num_drawn = 2 + int(math.log(num_clusters))

  def draw(distance, key):
    # Of equal tokens the distance is rounding or zero: any of them will do.
    logits = jnp.where(real, jnp.log(jnp.maximum(distance, 1e-30)), -jnp.inf)
    drawn = rows[jax.random.categorical(key, logits, shape=(num_drawn,))]
    apart = squared - 2 * vlad.closeness(rows, drawn).T
    apart = jnp.minimum(distance, jnp.maximum(apart, 0.0))
    best = jnp.argmin(jnp.sum(jnp.where(real, apart, 0.0), axis=1))
    return apart[best], drawn[best]

  # Farther than any token: the first is drawn from all alike.
  distance = jnp.full(len(rows), 4 * squared.max() + 1.0)
  return jax.lax.scan(draw, distance, jax.random.split(key, num_clusters))[1]


@compilation.jit
def _lloyd(blocks, real, start, num_iterations):
  """Centres [K, D] after at most `num_iterations`."""
  num_clusters = len(start)

  def sums(centers, block):
    """Sums and counts by cluster, and the tokens that fit worst."""
    x, real = block
    close = vlad.closeness(x, centers)
    nearest = jax.nn.one_hot(close.argmax(axis=1), num_clusters)
    nearest *= real[:, None]
    distance = jnp.sum(x**2, axis=1) - 2 * close.max(axis=1)
    distance = jnp.where(real, distance, -jnp.inf)
    worst, index = jax.lax.top_k(distance, min(num_clusters, BLOCK))
    return nearest.T @ x, nearest.sum(axis=0), worst, x[index]

  def step(carry):
    centers, _, i = carry
    total, count, worst, tokens = jax.lax.map(
      functools.partial(sums, centers), (blocks, real)
    )
    total, count = total.sum(axis=0), count.sum(axis=0)
    tokens = tokens.reshape(-1, tokens.shape[-1])
    empty = count == 0
    order = jax.lax.top_k(worst.reshape(-1), num_clusters)[1]
    again = tokens[order[jnp.cumsum(empty) - 1]]
    mean = total / jnp.maximum(count, 1.0)[:, None]
    moved = jnp.where(empty[:, None], again, mean)
    return moved, jnp.any(moved != centers), i + 1

  def goes_on(carry):
    return carry[1] & (carry[2] < num_iterations)

  return jax.lax.while_loop(goes_on, step, (start, True, 0))[0]
