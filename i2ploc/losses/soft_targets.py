# SPDX-License-Identifier: Apache-2.0
"""The loss released with LIP-Loc: soft targets from similarities within.

With embeddings a (the camera's in LIP-Loc) and b (the LiDAR's), both [B, D]
and of any length (a LayerNorm ends the released heads: about sqrt(D)),

  S = b a^T,  T = softmax_rows((a a^T + b b^T) / 2),
  loss = 1/2B sum_ij -T_ij (log softmax_rows(S)_ij + log softmax_columns(S)_ij).

What to know before using it for more than comparison:

- The columns' targets are T again, transposed along with S: its columns do not
  sum to 1, and so weigh the columns of S as they please.
- T moves with the gradient, which can lower the loss by making all embeddings
  equal: log B instead of punishment. Lengths around 16 keep T nearly one-hot
  and training alive; of unit vectors T is nearly uniform.
- No temperature, and no relations: a second reading of a place is a negative
  as far as its embedding lies away.

`contrastive` has none of these.
"""

import jax
import jax.numpy as jnp

from i2ploc.losses import contrastive


def _products(x: jax.Array) -> jax.Array:
  return jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)


def soft_targets(
  a: jax.Array, b: jax.Array, relations: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Cross-entropy with targets from the embeddings themselves.

  >>> a = 4.0 * jnp.eye(3)
  >>> loss, metrics = soft_targets(a, a)
  >>> round(float(loss), 6), float(metrics['recall_at_1'])
  (4e-06, 1.0)

  Args:
    a: [B, D] embeddings as they come, not normalised.
    b: [B, D].
    relations: [B, B] in {+1, 0, -1}, a_i to b_j; for the metrics alone. None:
      pairs (i, i) are positive and all others negative.

  Returns:
    The loss, 0 for a batch of one.
    Metrics: see `contrastive.batch_metrics`, of inner products.

  Raises:
    InputError: shapes that do not fit.

  References:
    LIP-Loc, arXiv 2312.16648, as in the released code; the paper describes
    another loss.
  """
  similarities, relations = contrastive.compare(a, b, relations)
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  within = (_products(a) + _products(b)) / 2
  targets = jax.nn.softmax(within, axis=-1)
  logits = similarities.T
  log_share = jax.nn.log_softmax(logits, -1) + jax.nn.log_softmax(logits, 0)
  loss = -(targets * log_share).sum() / (2 * len(a))
  return loss, contrastive.batch_metrics(similarities, relations)
