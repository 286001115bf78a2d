# SPDX-License-Identifier: Apache-2.0
"""How much each token counts, read from the attention of the CLS token.

- `AttentionSaliency` (ours): probabilities of the CLS row inside the last
  block, scaled so that an average token has weight 1, raised to a learned power
  and clipped. Gradients flow: the CLS query learns where to look because the
  descriptor improves.
- `RecomputedSaliency` (SaliencyI2PLoc's released code): the last block's
  queries and keys are computed anew from the final tokens, and the weight is
  the sigmoid of a sum of probabilities. It lies in [0.5, 0.5 + s / 4] with s
  about H / N, so that all tokens count alike up to a fraction of a percent;
  nothing is learned.

Both are called with an encoder that has a CLS token (bound to its variables),
what it gave (`out`) and the mask [B, N] of its tokens, and return weights
[B, 1 + N], CLS first.
"""

import math

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.models.encoders import attention as attention_lib
from i2ploc.models.encoders import normalization


def released_saliency(
  query: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Token weights as in the released code of SaliencyI2PLoc.

  A = softmax(LN(q) LN(k)^T / sqrt(d)) with LayerNorm without parameters,
  s_i = sum over heads of A[0, i], weight = sigmoid(s_i), without gradient.

  Args:
    query: [B, H, N, d] of the last block, from the final, unit-length tokens,
      CLS first.
    key: [B, H, N, d].

  Returns:
    weights: [B, N], that of the CLS token included.
    attention: [B, H, N], the CLS token's row of A.
  """
  chex.assert_rank(query, 4)
  chex.assert_equal_shape([query, key])
  # Row 0 alone: nothing reads the others.
  query = jax.nn.standardize(query[:, :, :1], axis=-1, epsilon=1e-5)
  key = jax.nn.standardize(key, axis=-1, epsilon=1e-5)
  row = attention_lib.probabilities(query, key)[:, :, 0]
  row = jax.lax.stop_gradient(row)
  return jax.nn.sigmoid(row.sum(axis=1)), row


class RecomputedSaliency(nn.Module):
  """The released weights, see `released_saliency`; it has no parameters."""

  def __call__(
    self, encoder: nn.Module, out: dict, mask: jax.Array
  ) -> jax.Array:
    """Weights [B, 1 + N], CLS first; see the module."""
    del mask
    sequence = normalization.unit(out['sequence'])
    query, key = encoder.last_query_key(sequence)
    return released_saliency(query, key)[0]


class AttentionSaliency(nn.Module):
  """w_i = clip((N s_i / H)^gamma, lower, upper), gamma learned.

  Attributes:
    lower: least weight of a real token.
    upper: largest weight.
  """

  lower: float = 0.1
  upper: float = 10.0

  @nn.compact
  def __call__(
    self, encoder: nn.Module, out: dict, mask: jax.Array
  ) -> jax.Array:
    """Weights [B, 1 + N], CLS first (weight 1), 0 where masked.

    Args:
      encoder: see the module.
      out: of the encoder, with attention [B, H, 1 + N], the CLS token's row in
        the last block.
      mask: [B, N] bool, real tokens.
    """
    del encoder
    attention = out['attention']
    batch, num_heads, length = attention.shape
    chex.assert_shape(mask, (batch, length - 1))
    gamma = self.param('gamma', nn.initializers.ones, ())
    mass = attention[:, :, 1:].sum(axis=1)
    relative = mask.sum(axis=1, keepdims=True) * mass / num_heads
    # Clipped in the logarithm: no power can overflow, whatever gamma becomes.
    exponent = gamma * jnp.log(jnp.maximum(relative, 1e-6))
    exponent = jnp.clip(exponent, math.log(self.lower), math.log(self.upper))
    weights = jnp.where(mask, jnp.exp(exponent), 0.0)
    # An average token has weight 1; the attention of CLS to itself is no guide.
    return jnp.pad(weights, ((0, 0), (1, 0)), constant_values=1.0)
