# SPDX-License-Identifier: Apache-2.0
"""MixVPR: layers along the cells of an image, for a grid of one size.

Ali-bey, Chaib-draa and Giguere, MixVPR, WACV 2023.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.models import aggregators
from i2ploc.models.encoders import normalization


class MixVPR(nn.Module):
  """Each channel's map passes through MLPs over the cells, then is projected.

  With x [C, N] the maps, depth times x <- x + MLP(LayerNorm(x)) along the N
  cells; then linear over channels and linear over cells. The defaults are the
  released form, for ResNet-50 cut after its third stage and 320 x 320 pixels.

  The order of the tokens matters, and so does their number. A masked token is a
  cell of zeros; weights scale the tokens.

  >>> tokens = aggregators.Tokens(
  ...     jnp.ones((1, 6, 4)), jnp.zeros((1, 6)), jnp.ones((1, 6), bool))
  >>> model = MixVPR(grid=(2, 3), channels=5, rows=2, depth=1)
  >>> inputs = tokens, jnp.ones((1, 6)), None
  >>> (descriptor, _), _ = model.init_with_output(jax.random.key(0), *inputs)
  >>> descriptor.shape
  (1, 10)

  Attributes:
    grid: (rows, columns) of the cells.
    channels: width of a cell after the linear layer over channels.
    rows: number of cells after the linear layer over cells; the descriptor has
      channels * rows numbers.
    depth: number of MLPs.
    mlp_ratio: hidden width of an MLP over the number of cells.
    row_bias: whether the layer over cells has a bias.

  `out`: pooled [B, channels * rows] before its normalisation.
  """

  grid: tuple[int, int] = (20, 20)
  channels: int = 1024
  rows: int = 4
  depth: int = 4
  mlp_ratio: float = 1.0
  row_bias: bool = True

  @property
  def num_sectors(self) -> int:
    """There are none: cells have directions already."""
    return 0

  def _cells(self, tokens):
    """Number of cells, if the tokens are of this grid."""
    count, found = self.grid[0] * self.grid[1], tokens.grid
    length = tokens.features.shape[1]
    if found is None:
      found = 'no grid' if length != count else None
    elif (found.rows, found.columns) != tuple(self.grid):
      found = f'a grid of {found.rows} x {found.columns}'
    else:
      found = None
    if found is not None:
      raise InputError(
        f'MixVPR mixes a grid of {self.grid[0]} x {self.grid[1]} cells, and '
        f'the encoder gives {found} ({length} tokens). Its layers are for one '
        'size of images: set image_size to that of the checkpoint (320 x 320 '
        'for 20 x 20 cells of 16 pixels), or train one with another grid'
      )
    return count

  @nn.compact
  def __call__(
    self,
    tokens: aggregators.Tokens,
    weights: jax.Array,
    bounds: aggregators.Bounds | None,
    train: bool = False,
  ) -> tuple[jax.Array, dict]:
    """Mixes; arguments and results as in `aggregators.FirstToken`.

    Raises:
      InputError: tokens of another grid, or of a sequence.
    """
    del bounds, train
    chex.assert_rank(tokens.features, 3)
    aggregators.check_one_frame(tokens, 'MixVPR')
    count = self._cells(tokens)
    x = tokens.features * jnp.where(tokens.mask, weights, 0.0)[..., None]
    # A CLS token is in no cell.
    x = jnp.swapaxes(x[:, -count:], 1, 2)
    for i in range(self.depth):
      y = nn.LayerNorm(epsilon=1e-5, name=f'norm{i}')(x)
      y = nn.Dense(int(count * self.mlp_ratio), name=f'expand{i}')(y)
      x = x + nn.Dense(count, name=f'contract{i}')(nn.relu(y))
    x = nn.Dense(self.channels, name='channels_layer')(jnp.swapaxes(x, 1, 2))
    x = nn.Dense(self.rows, use_bias=self.row_bias, name='rows_layer')(
      jnp.swapaxes(x, 1, 2)
    )
    seen = jnp.any(tokens.mask & (weights > 0), axis=1)
    # Where nothing was seen, the biases alone say nothing.
    pooled = jnp.where(seen[:, None], x.reshape(len(x), -1), 0.0)
    return normalization.unit(pooled), {'pooled': pooled}
