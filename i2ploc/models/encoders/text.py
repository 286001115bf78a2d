# SPDX-License-Identifier: Apache-2.0
"""Causal transformer over the words of a text.

The text side of Radford et al., Learning Transferable Visual Models From
Natural Language Supervision, ICML 2021: every token sees itself and those
before it, so that the first end token has read the whole text, and whatever
pads the row behind it changes nothing.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.models.encoders import vit


class TextTransformer(nn.Module):
  """Features of texts that were cut into numbered tokens.

  Attributes:
    vocabulary_size: V, how many tokens there are.
    width: D.
    depth: number of blocks.
    num_heads: H.
    max_length: longest row of tokens, those for start and end included.
    end: number of the token that ends a text; None for the highest number of a
      row, wherever that is (the rule of the first CLIP checkpoints).
    mlp_ratio: see `vit.Block`.
    mlp: see `vit.Block`.
    epsilon: of all LayerNorms.
    residual_init_scale: see `vit.Block`.
    dtype: of the computation.

  `out`: sequence [B, N, D], all tokens after the last norm.
  """

  vocabulary_size: int
  width: int = 512
  depth: int = 12
  num_heads: int = 8
  max_length: int = 77
  end: int | None = None
  mlp_ratio: float = 4.0
  mlp: str = 'gelu'
  epsilon: float = 1e-6
  residual_init_scale: float = 1.0
  dtype: jnp.dtype = jnp.float32

  def setup(self) -> None:
    """Creates the layers."""
    init = nn.initializers.normal(0.02)
    self.embed = nn.Embed(
      self.vocabulary_size, self.width, embedding_init=init, dtype=self.dtype
    )
    self.position = self.param('position', init, (self.max_length, self.width))
    self.blocks = [
      vit.Block(
        self.width,
        self.num_heads,
        self.mlp_ratio,
        epsilon=self.epsilon,
        residual_init_scale=self.residual_init_scale,
        dtype=self.dtype,
        mlp=self.mlp,
      )
      for _ in range(self.depth)
    ]
    self.norm = nn.LayerNorm(self.epsilon, dtype=self.dtype)

  @property
  def has_cls(self) -> bool:
    """The end token stands for the text; there is no CLS token in front."""
    return False

  def __call__(
    self, tokens: jax.Array, train: bool = False
  ) -> tuple[jax.Array, dict]:
    """Encodes.

    Args:
      tokens: [B, N] int32, N at most `max_length`.
      train: unused: nothing here differs between training and evaluation.

    Returns:
      features: [B, D] float32 of the first end token; of the last token in a
        row without one.
      out: see the class.
    """
    del train
    chex.assert_rank(tokens, 2)
    length = tokens.shape[1]
    if length > self.max_length:
      raise InputError(
        f'texts of {length} tokens, but this encoder has positions for '
        f'{self.max_length}: truncate them'
      )
    x = self.embed(tokens) + self.position[:length].astype(self.dtype)
    causal = jnp.tril(jnp.ones((1, length, length), bool))
    x, _ = vit.run_blocks(self.blocks, x, mask=causal)
    x = self.norm(x).astype(jnp.float32)
    end = tokens.max(1, keepdims=True) if self.end is None else self.end
    ends = tokens == end
    last = jnp.where(ends.any(1), jnp.argmax(ends, axis=1), length - 1)
    return x[jnp.arange(len(x)), last], {'sequence': x}
