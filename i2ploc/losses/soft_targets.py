# SPDX-License-Identifier: Apache-2.0
"""The loss released with LIP-Loc: soft targets from similarities within.

With image embeddings C and point-cloud embeddings L, both [B, D] and of any
length (a LayerNorm ends the released heads: about sqrt(D)),

  S = L C^T,  T = softmax_rows((C C^T + L L^T) / 2),
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


def _products(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def soft_targets(
  image: jax.Array, points: jax.Array, relations: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Cross-entropy with targets from the embeddings themselves.

  Args:
    image: [B, D] embeddings as they come, not normalised.
    points: [B, D].
    relations: [B, B] in {+1, 0, -1}, image i to points j; for the metrics
      alone. None: pairs (i, i) are positive and all others negative.

  Returns:
    The loss, 0 for a batch of one.
    Metrics: see `contrastive.batch_metrics`, of inner products.

  Raises:
    InputError: shapes that do not fit.

  References:
    LIP-Loc, arXiv 2312.16648, as in the released code; the paper describes
    another loss.
  """
  similarities, relations = contrastive.compare(image, points, relations)
  image, points = image.astype(jnp.float32), points.astype(jnp.float32)
  within = (_products(image, image) + _products(points, points)) / 2
  targets = jax.nn.softmax(within, axis=-1)
  logits = similarities.T
  log_share = jax.nn.log_softmax(logits, -1) + jax.nn.log_softmax(logits, 0)
  loss = -(targets * log_share).sum() / (2 * len(image))
  return loss, contrastive.batch_metrics(similarities, relations)
