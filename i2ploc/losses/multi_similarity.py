# SPDX-License-Identifier: Apache-2.0
"""Multi-similarity loss: pairs weigh by how they compare with their row.

With S the cosines of a and b, P_i the positives and N_i the negatives of row i,

  loss = mean_i (1/alpha ln(1 + sum_{p in P_i} e^{-alpha (S_ip - lambda)})
                 + 1/beta ln(1 + sum_{n in N_i} e^{beta (S_in - lambda)})),

after a miner has set aside the pairs that do not count. The mean goes over the
rows that have a pair left. The released codes divide by all rows of the batch,
with which the loss fades while the miner finds less and less.
"""

import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.losses import contrastive
from i2ploc.losses import mining as mining_lib


def check_factors(alpha: float, beta: float) -> None:
  """Raises InputError unless both factors are above 0."""
  if not (alpha > 0 and beta > 0):
    raise InputError(
      f'alpha={alpha} and beta={beta}: expected factors above 0 on the '
      'similarities of positives and negatives'
    )


def multi_similarity(
  a: jax.Array,
  b: jax.Array,
  relations: jax.Array,
  *,
  alpha: float = 1.0,
  beta: float = 50.0,
  threshold: float = 0.0,
  mining: str = 'informative',
  mining_margin: float = 0.1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The rows of a as anchors, those of b as their positives and negatives.

  For a model of one side b is a, and the diagonal of the relations is 0.
  Neutral pairs of EarthLoc are pairs that are ignored.

  >>> a = jnp.eye(4)[jnp.array([0, 0, 1, 1])]
  >>> relations = jnp.array(
  ...     [[0, 1, -1, -1], [1, 0, -1, -1], [-1, -1, 0, 1], [-1, -1, 1, 0]])
  >>> loss, metrics = multi_similarity(a, a, relations)
  >>> float(loss), int(metrics['negative_pairs'])  # none within the margin
  (0.0, 0)
  >>> loss, metrics = multi_similarity(a, a, relations, mining='all')
  >>> round(float(loss), 3)  # ln(1 + 1/e) + ln(1 + 2) / 50
  0.335

  Args:
    a: [B, D] unit norm.
    b: [B, D] unit norm.
    relations: [B, B] in {+1, 0, -1}, a_i to b_j; ignored pairs are in no sum.
    alpha: on the similarities of positives.
    beta: on the similarities of negatives.
    threshold: lambda, the similarity beyond which a negative costs much and a
      positive little; 0 in EarthLoc, 0.5 in the paper.
    mining: which pairs count, one of `mining.FORMS`.
    mining_margin: of the mining 'informative'.

  Returns:
    The loss, 0 if no row has a pair left.
    Metrics: those of `contrastive.batch_metrics`, of all pairs; positive_pairs
      and negative_pairs, how many the miner left.

  Raises:
    InputError: see `mining.check_form` and `check_factors`, or shapes that do
      not fit.

  References:
    Wang et al., Multi-Similarity Loss with General Pair Weighting for Deep
    Metric Learning, CVPR 2019. Berton et al., EarthLoc, CVPR 2024.
  """
  check_factors(alpha, beta)
  similarities, relations = contrastive.compare(a, b, relations)
  counted = mining_lib.mine(
    similarities, relations, mining, margin=mining_margin
  )
  positive, negative = counted > 0, counted < 0

  def pull(factor, where):
    exponents = factor * (similarities - threshold)
    # ln(1 + sum e^x) without overflow; of no pair, softplus(-inf) = 0.
    total = jax.nn.logsumexp(exponents, axis=1, where=where)
    return jax.nn.softplus(total) / abs(factor)

  rows = pull(-alpha, positive) + pull(beta, negative)
  has_pair = (positive | negative).any(1)
  loss = rows.sum() / jnp.maximum(has_pair.sum(), 1)
  return loss, contrastive.batch_metrics(similarities, relations) | {
    'positive_pairs': positive.sum().astype(jnp.float32),
    'negative_pairs': negative.sum().astype(jnp.float32),
  }
