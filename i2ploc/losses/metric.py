# SPDX-License-Identifier: Apache-2.0
"""Triplet losses between the descriptors of a batch.

A triplet is an anchor a, a positive p and a negative n, and its loss is
max(0, |a - p| - |a - n| + margin). Relations say who may be p or n, the mining
which triplets count:

- 'all': those that violate the margin (batch all of Hermans et al., In Defense
  of the Triplet Loss, 2017; with the others in the mean, the loss would fade
  while the model learns).
- 'hard': of every anchor, the farthest positive and the nearest negative
  (batch hard, ibid.).
- 'semi_hard': those whose negative is farther than the positive, but by less
  than the margin (Schroff et al., FaceNet, CVPR 2015). A negative that is
  nearer than the positive gives no gradient.
- 'random': of every anchor and positive, one negative, drawn evenly.

The loss of a batch is the mean over the triplets that count, 0 without any.

Departs from the baselines released with LIP-Loc, whose "hard" negative is the
easiest one, looked up on the wrong axis, and whose random negatives are drawn
once, when the data set is built.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.losses import contrastive

# Smaller squared distances are rounding noise of unit vectors: such descriptors
# count as equal, and their distance has no gradient.
_COINCIDENT = 1e-6

# Anchors whose triplets are computed at once; with the gradient recomputed,
# memory is this times B^2, not B^3.
_ANCHORS = 16


def _violating(gap, positive, negative, margin, key):
  """Mask of the triplets with a gap below the margin."""
  del positive, negative, key
  return gap < margin


def _hardest(gap, positive, negative, margin, key):
  """Mask of the farthest positive with the nearest negative."""
  del margin, key
  smallest = jnp.where(positive[:, None] & negative, gap, jnp.inf).argmin()
  return (jnp.arange(gap.size) == smallest).reshape(gap.shape)


def _semi_hard(gap, positive, negative, margin, key):
  """Mask of the triplets in the right order, but within the margin."""
  del positive, negative, key
  return (gap > 0) & (gap < margin)


def _random(gap, positive, negative, margin, key):
  """Mask of one triplet per positive, its negative drawn evenly."""
  del positive, margin
  count = jnp.maximum(negative.sum(), 1)
  drawn = jax.random.randint(key, gap.shape[:1], 0, count)
  return jnp.cumsum(negative) - 1 == drawn[:, None]


_MINING: dict[str, Callable] = {
  'all': _violating,
  'hard': _hardest,
  'semi_hard': _semi_hard,
  'random': _random,
}
MINING = tuple(_MINING)


def check_mining(mining: str, margin: float) -> None:
  """Raises InputError for an unknown mining or a margin out of range.

  Args:
    mining: one of `MINING`.
    margin: of triplets of unit vectors, which are at most 2 apart.
  """
  if mining not in MINING:
    raise InputError(f'unknown mining {mining!r}; known: {MINING}')
  if not 0 < margin < 2:
    raise InputError(
      f'margin={margin}: expected a distance of unit vectors, above 0 and '
      'below 2'
    )


def _distances(a: jax.Array, b: jax.Array) -> jax.Array:
  """Euclidean distances [B, M] of [B, D] and [M, D]; no gradient where 0."""
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  product = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
  squared = (a**2).sum(-1)[:, None] + (b**2).sum(-1) - 2 * product
  apart = squared > _COINCIDENT
  return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


def _mean_over_triplets(distances, relations, mining, margin, key):
  """Mean loss of the triplets that count, and their number.

  Args:
    distances: [B, M], anchors to those that may be positive or negative.
    relations: [B, M] in {+1, 0, -1}.
    mining: one of `MINING`.
    margin: see the module.
    key: only 'random' draws.
  """

  def of_anchor(anchor):
    distances, relations, key = anchor
    positive, negative = relations > 0, relations < 0
    gap = distances - distances[:, None]  # of positives [B] and negatives [B]
    counts = _MINING[mining](gap, positive, negative, margin, key)
    counts &= positive[:, None] & negative
    loss = jnp.where(counts, jnp.maximum(margin - gap, 0.0), 0.0)
    return loss.sum(), counts.sum()

  size = len(distances)
  losses, counts = jax.lax.map(
    jax.checkpoint(of_anchor),
    (distances, relations, jax.random.split(key, size)),
    batch_size=min(_ANCHORS, size),
  )
  return losses.sum() / jnp.maximum(counts.sum(), 1), counts.sum()


def _metrics(distances, relations, count):
  positive, negative = relations > 0, relations < 0
  nearest_positive = distances.min(-1, where=positive, initial=jnp.inf)
  nearest_negative = distances.min(-1, where=negative, initial=jnp.inf)
  # A tie is a miss: collapsed descriptors must not look like success.
  hits = (nearest_positive < nearest_negative).sum()

  def mean(where):
    total = jnp.where(where, distances, 0.0).sum()
    return total / jnp.maximum(where.sum(), 1)

  return {
    'recall_at_1': hits / jnp.maximum(positive.any(-1).sum(), 1),
    'positive_distance': mean(positive),
    'negative_distance': mean(negative),
    'triplets': count.astype(jnp.float32),
  }


def triplet(
  a: jax.Array,
  b: jax.Array,
  relations: jax.Array,
  *,
  mining: str,
  margin: float,
  key: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Triplets across the sides, the anchor of either.

  >>> a = jnp.eye(3)
  >>> relations = jnp.array([[1, -1, 0], [-1, 1, -1], [0, -1, 1]])
  >>> options = dict(mining='all', margin=0.5, key=jax.random.key(0))
  >>> loss, metrics = triplet(a, a[::-1], relations, **options)
  >>> round(float(loss), 3), int(metrics['triplets'])
  (0.5, 4)

  Args:
    a: [B, D] unit norm.
    b: [B, D] unit norm.
    relations: [B, B] in {+1, 0, -1}, a_i to b_j; ignored pairs are in no
      triplet. For a model of one side b is a, and the diagonal is 0: an anchor
      is neither its own positive nor its own negative.
    mining: one of `MINING`.
    margin: distance by which negatives shall be farther than positives.
    key: only 'random' draws.

  Returns:
    The loss, the mean of the two directions.
    Metrics: recall_at_1 (a to b, in the batch, ties are misses),
      positive_distance, negative_distance (means), triplets (how many count).

  Raises:
    InputError: see `check_mining`, or shapes that do not fit.
  """
  check_mining(mining, margin)
  _check_shapes(a, b, relations)
  distances = _distances(a, b)
  keys = jax.random.split(key)
  ahead, num_ahead = _mean_over_triplets(
    distances, relations, mining, margin, keys[0]
  )
  back, num_back = _mean_over_triplets(
    distances.T, relations.T, mining, margin, keys[1]
  )
  metrics = _metrics(distances, relations, num_ahead + num_back)
  return (ahead + back) / 2, metrics


def four_triplets(
  a: jax.Array,
  b: jax.Array,
  relations: jax.Array,
  a_relations: jax.Array,
  b_relations: jax.Array,
  *,
  mining: str,
  margin: float,
  within_weight: float,
  key: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Triplets across and within the sides, and the distance of pairs.

  L = |a - b| + T(a, b+, b-) + T(b, a+, a-) + w (T(a, a+, a-) + T(b, b+, b-)),
  the loss of AE-Spherical (w = 0.1, margin = sqrt(0.1), random negatives) as
  released with SaliencyI2PLoc, here on all that a batch holds instead of on
  lists of positives and negatives drawn for every pair, and with means instead
  of sums.

  >>> a = jnp.eye(3)
  >>> pairs = 2 * jnp.eye(3) - 1
  >>> loss, metrics = four_triplets(
  ...     a, a, pairs, pairs, pairs,
  ...     mining='all', margin=0.3, within_weight=0.1, key=jax.random.key(0))
  >>> float(loss), float(metrics['recall_at_1'])
  (0.0, 1.0)

  Args:
    a: [B, D] unit norm.
    b: [B, D] unit norm; its row i was paired with that of a.
    relations: [B, B] in {+1, 0, -1}, a_i to b_j.
    a_relations: [B, B], a_i to a_j; the diagonal does not count.
    b_relations: [B, B], b_i to b_j; the diagonal does not count.
    mining: one of `MINING`.
    margin: see `triplet`.
    within_weight: w, of the triplets within a side.
    key: only 'random' draws.

  Returns:
    The loss.
    Metrics: those of `triplet`, and the unweighted terms pair, across, within.

  Raises:
    InputError: see `triplet`.
  """
  keys = jax.random.split(key, 3)
  across, metrics = triplet(
    a, b, relations, mining=mining, margin=margin, key=keys[0]
  )
  within = 0.0
  for rows, own, own_key in (
    (a, a_relations, keys[1]),
    (b, b_relations, keys[2]),
  ):
    _check_shapes(rows, rows, own)
    own = jnp.where(jnp.eye(len(rows), dtype=bool), 0, own)
    within += _mean_over_triplets(
      _distances(rows, rows), own, mining, margin, own_key
    )[0]
  pair = jnp.diagonal(_distances(a, b)).mean()
  terms = {'pair': pair, 'across': 2 * across, 'within': within}
  loss = pair + terms['across'] + within_weight * within
  return loss, metrics | terms


def _check_shapes(a, b, relations):
  contrastive.check_pairs(a, b)
  size = len(a)
  if relations.shape != (size, size):
    raise InputError(
      f'relations {relations.shape}: expected {(size, size)}, one row per '
      'anchor.'
    )
