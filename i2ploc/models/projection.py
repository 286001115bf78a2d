# SPDX-License-Identifier: Apache-2.0
"""The projection head of LIP-Loc as an aggregator, whole or per sector.

Puligilla et al., LIP-Loc, WACV 2024: pooled features f of an encoder become
  p = W1 f + b1,  h = p + dropout(W2 GELU(p) + b2),  z = LayerNorm(h).
The release searches by dot products of z, whose length is about sqrt(features);
by default the descriptor here is z at unit length.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.models import aggregators
from i2ploc.models.encoders import normalization

POOLS = ('mean', 'cls')


class ProjectionHead(nn.Module):
  """Pools tokens and projects them.

  >>> tokens = aggregators.Tokens(
  ...     jnp.ones((1, 5, 3)), jnp.zeros((1, 5)), jnp.ones((1, 5)))
  >>> head = ProjectionHead(features=4)
  >>> inputs = tokens, jnp.ones((1, 5)), None
  >>> (descriptor, out), _ = head.init_with_output(jax.random.key(0), *inputs)
  >>> descriptor.shape, bool(abs(jnp.linalg.norm(descriptor) - 1) < 1e-5)
  ((1, 4), True)

  Attributes:
    features: width of the descriptor.
    num_sectors: S, or 0 for all tokens; every sector passes through the same
      head, to features / S numbers with an own LayerNorm's statistics.
    pool: 'mean' of the tokens by their weights, or 'cls': the CLS token alone,
      the first of those given (`Tower.aggregate_cls`).
    hidden: width of a further layer in front, which the ViT of the release has
      (2048); 0 for none.
    dropout: rate, in training and if there is a 'dropout' key.
    normalized: whether the descriptor has unit length; the release has not.
    epsilon: of the LayerNorm.

  `out`: pooled [B, features], z before its normalisation to unit length.
  """

  features: int = 256
  num_sectors: int = 0
  pool: str = 'mean'
  hidden: int = 0
  dropout: float = 0.1
  normalized: bool = True
  epsilon: float = 1e-5

  def __post_init__(self):
    if self.pool not in POOLS:
      raise InputError(f'pool is {self.pool!r}; known: {POOLS}')
    if self.pool == 'cls' and self.num_sectors:
      raise InputError(
        "pool 'cls' with sectors: a CLS token lies in no direction; set "
        "num_sectors to 0 or pool to 'mean'"
      )
    if self.features % max(self.num_sectors, 1):
      raise InputError(
        f'a descriptor of {self.features} does not divide into '
        f'{self.num_sectors} sectors; make features a multiple of num_sectors'
      )
    super().__post_init__()

  def _pooled(self, tokens, weights, bounds):
    """Features [B, S, D] and whether a sector saw anything, [B, S]."""
    if self.pool == 'cls':
      aggregators.check_one_frame(tokens, "ProjectionHead with pool 'cls'")
      return tokens.features[:, :1], tokens.mask[:, :1]
    share = aggregators.sector_weights(
      tokens, weights, bounds, self.num_sectors
    )
    mass = jnp.sum(share, axis=1)
    total = jnp.einsum('bns,bnd->bsd', share, tokens.features)
    return total / jnp.maximum(mass, 1e-6)[..., None], mass > 1e-6

  @nn.compact
  def __call__(
    self,
    tokens: aggregators.Tokens,
    weights: jax.Array,
    bounds: aggregators.Bounds | None,
    train: bool = False,
  ) -> tuple[jax.Array, dict]:
    """Pools; arguments and results as in `aggregators.FirstToken`."""
    chex.assert_rank(tokens.features, 3)
    x, seen = self._pooled(tokens, weights, bounds)
    if self.hidden:
      x = nn.Dense(self.hidden, name='widen')(x)
    width = self.features // max(self.num_sectors, 1)
    x = nn.Dense(width, name='project')(x)
    y = nn.Dense(width, name='mix')(nn.gelu(x, approximate=False))
    fixed = not (train and self.has_rng('dropout'))
    y = nn.Dropout(self.dropout, deterministic=fixed)(y)
    z = nn.LayerNorm(epsilon=self.epsilon, name='norm')(x + y)
    z = jnp.where(seen[..., None], z, 0.0).reshape(x.shape[0], self.features)
    unit = normalization.unit(z) if self.normalized else z
    return unit, {'pooled': z}
