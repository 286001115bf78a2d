# SPDX-License-Identifier: Apache-2.0
"""How much each token counts, read from the attention of the CLS token.

Two documented options and their absence:
- 'attention' (ours): probabilities of the CLS row inside the last block, scaled
  so that an average token has weight 1, raised to a learned power and clipped.
  Gradients flow: the CLS query learns where to look because the descriptor
  improves.
- 'released' (SaliencyI2PLoc's code): the last block's queries and keys are
  computed anew from the final tokens, and the weight is the sigmoid of a sum of
  probabilities. It lies in [0.5, 0.5 + s / 4] with s about H / N, so that all
  tokens count alike up to a fraction of a percent; nothing is learned.
- 'none': every token counts 1.
"""

import math

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.models.encoders import attention as attention_lib

OPTIONS = ('attention', 'released', 'none')


def check_option(option: str, has_cls: bool, encoder: str) -> None:
  """Raises ValueError unless an encoder can provide `option`.

  Args:
    option: one of `OPTIONS`.
    has_cls: whether the encoder has a CLS token, hence a block of attention.
    encoder: its name, for the message.
  """
  if option not in OPTIONS:
    raise InputError(f'unknown saliency {option!r}; known: {OPTIONS}')
  if option != 'none' and not has_cls:
    raise InputError(
      f'saliency {option!r} reads the attention of a CLS token, and the '
      f'{encoder} encoder has none (depth 0 or use_cls=False); give it a block '
      "and a CLS token, or choose saliency 'none'"
    )


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


class AttentionSaliency(nn.Module):
  """w_i = clip((N s_i / H)^gamma, lower, upper), gamma learned.

  Attributes:
    lower: least weight of a real token.
    upper: largest weight.
  """

  lower: float = 0.1
  upper: float = 10.0

  @nn.compact
  def __call__(self, attention: jax.Array, mask: jax.Array) -> jax.Array:
    """Weighs tokens.

    Args:
      attention: [B, H, 1 + N], the CLS token's row in the last block.
      mask: [B, N] bool, real tokens.

    Returns:
      [B, N] weights, zero where masked.
    """
    batch, num_heads, length = attention.shape
    chex.assert_shape(mask, (batch, length - 1))
    gamma = self.param('gamma', nn.initializers.ones, ())
    mass = attention[:, :, 1:].sum(axis=1)
    relative = mask.sum(axis=1, keepdims=True) * mass / num_heads
    # Clipped in the logarithm: no power can overflow, whatever gamma becomes.
    exponent = gamma * jnp.log(jnp.maximum(relative, 1e-6))
    exponent = jnp.clip(exponent, math.log(self.lower), math.log(self.upper))
    return jnp.where(mask, jnp.exp(exponent), 0.0)
