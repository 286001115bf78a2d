# SPDX-License-Identifier: Apache-2.0
"""BoQ: learned queries ask the tokens.

Ali-bey, Chaib-draa and Giguere, BoQ: A Place is Worth a Bag of Learnable
Queries, CVPR 2024.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.models import aggregators
from i2ploc.models.encoders import attention as attention_lib
from i2ploc.models.encoders import normalization

# Channels of an attention head, in the released models.
HEAD_WIDTH = 64


def _norm(name):
  return nn.LayerNorm(epsilon=1e-5, name=name)


class CrossAttention(nn.Module):
  """Multi-head attention of queries to tokens, weighted.

  Attributes:
    width: D.
    num_heads: H.
  """

  width: int
  num_heads: int

  @nn.compact
  def __call__(
    self, queries: jax.Array, x: jax.Array, weights: jax.Array
  ) -> jax.Array:
    """Attended values.

    Args:
      queries: [1, Q, D], the same for all.
      x: [B, N, D].
      weights: [B, N]: a token of twice the weight counts as two.

    Returns:
      [B, Q, D].
    """

    def heads(y):
      return jnp.moveaxis(y.reshape(*y.shape[:2], self.num_heads, -1), 2, 1)

    query = heads(nn.Dense(self.width, name='query')(queries))
    key, value = jnp.split(
      nn.Dense(2 * self.width, name='key_value')(x), 2, axis=-1
    )
    query = jnp.broadcast_to(query, (len(x), *query.shape[1:]))
    share = attention_lib.probabilities(query, heads(key), weights > 0)
    share *= weights[:, None, None]
    share /= jnp.maximum(jnp.sum(share, axis=-1, keepdims=True), 1e-30)
    y = jnp.einsum('bhqn,bhnd->bqhd', share, heads(value))
    y = y.reshape(len(x), -1, self.width)
    return nn.Dense(self.width, name='projection')(y)


class _Block(nn.Module):
  """Transformer layer of the tokens, and what its queries find in them."""

  width: int
  num_queries: int
  hidden: int

  @nn.compact
  def __call__(self, x, weights):
    """Tokens [B, N, D] -> tokens, answers [B, Q, D]."""
    num_heads = self.width // HEAD_WIDTH or 1
    attend = attention_lib.Attention(self.width, num_heads, name='attention')
    x = _norm('norm1')(x + attend(x, weights > 0)[0])
    y = nn.relu(nn.Dense(self.hidden, name='expand')(x))
    x = _norm('norm2')(x + nn.Dense(self.width, name='contract')(y))
    # The same for all images: computed once a call.
    shape = 1, self.num_queries, self.width
    queries = self.param('queries', nn.initializers.normal(1.0), shape)
    talk = attention_lib.Attention(
      self.width, num_heads, name='query_attention'
    )
    queries = _norm('query_norm')(queries + talk(queries)[0])
    ask = CrossAttention(self.width, num_heads, name='cross_attention')
    return x, _norm('answer_norm')(ask(queries, x, weights))


class BoQ(nn.Module):
  """Learned queries, answered by cross-attention to the tokens, and mixed.

  Each of `depth` blocks passes the tokens through a transformer layer, lets its
  own queries attend to each other and then to the tokens. All answers go
  through a linear layer over the queries. Tokens may be of any number. The
  defaults are the released form for ResNet-50 cut after its third stage.

  >>> grid = aggregators.Grid(2, 3)
  >>> tokens = aggregators.Tokens(
  ...     jnp.ones((1, 6, 4)), jnp.zeros((1, 6)), jnp.ones((1, 6), bool), grid)
  >>> model = BoQ(channels=8, num_queries=3, rows=2)
  >>> inputs = tokens, jnp.ones((1, 6)), None
  >>> (descriptor, _), _ = model.init_with_output(jax.random.key(0), *inputs)
  >>> descriptor.shape
  (1, 16)

  Attributes:
    channels: width of tokens after the convolution in front, and of queries; a
      multiple of 64, or a single head.
    num_queries: of each block.
    depth: number of blocks.
    rows: answers after the linear layer; the descriptor has channels * rows
      numbers.
    hidden: of the transformer layers' MLP; 0 for four times `channels`.
    kernel_size: window of the convolution in front, in cells; 1 for tokens that
      are of no grid, such as points, whose order then does not matter.

  `out`: pooled [B, channels * rows] before its normalisation.
  """

  channels: int = 512
  num_queries: int = 64
  depth: int = 2
  rows: int = 32
  hidden: int = 0
  kernel_size: int = 3

  @property
  def num_sectors(self) -> int:
    """There are none: a query looks where it likes."""
    return 0

  def _reduce(self, x, tokens):
    """x [B, N, D], the features of `tokens`, as [B, N, channels]."""
    grid = tokens.grid
    window = (self.kernel_size,) * 2
    reduce = nn.Conv(self.channels, window, name='reduce')
    if self.kernel_size == 1:
      return reduce(x[:, :, None])[:, :, 0]
    if grid is None:
      raise InputError(
        f'BoQ looks at windows of {self.kernel_size} x {self.kernel_size} '
        'cells, and its tokens are of no grid; set kernel_size to 1'
      )
    aggregators.check_one_frame(tokens, 'BoQ with a window of cells')
    x = x[:, -grid.rows * grid.columns :]  # a CLS token is in no cell
    x = x.reshape(len(x), grid.rows, grid.columns, x.shape[-1])
    return reduce(x).reshape(len(x), -1, self.channels)

  @nn.compact
  def __call__(
    self,
    tokens: aggregators.Tokens,
    weights: jax.Array,
    bounds: aggregators.Bounds | None,
    train: bool = False,
  ) -> tuple[jax.Array, dict]:
    """Asks; arguments and results as in `aggregators.FirstToken`.

    Raises:
      InputError: a window of cells, and tokens of no grid or of a sequence.
    """
    del bounds, train
    chex.assert_rank(tokens.features, 3)
    weights = jnp.where(tokens.mask, weights, 0.0)
    x = jnp.where(weights[..., None] > 0, tokens.features, 0.0)
    x = _norm('norm')(self._reduce(x, tokens))
    weights = weights[:, -x.shape[1] :]
    hidden = self.hidden or 4 * self.channels
    answers = []
    for i in range(self.depth):
      block = _Block(self.channels, self.num_queries, hidden, name=f'block{i}')
      x, answer = block(x, weights)
      answers.append(answer)
    answers = jnp.swapaxes(jnp.concatenate(answers, axis=1), 1, 2)
    y = nn.Dense(self.rows, name='mix')(answers)
    pooled = y.reshape(len(y), -1)
    # Where nothing was seen, the biases alone say nothing.
    pooled = jnp.where(jnp.any(weights > 0, axis=1)[:, None], pooled, 0.0)
    return normalization.unit(pooled), {'pooled': pooled}
