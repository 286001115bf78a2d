# SPDX-License-Identifier: Apache-2.0
"""SALAD: tokens are assigned to clusters by optimal transport, or to none.

Izquierdo and Civera, Optimal Transport Aggregation for Visual Place
Recognition, CVPR 2024.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.models import aggregators
from i2ploc.models.encoders import normalization


def transport(
  scores: jax.Array, dustbin: jax.Array, mass: jax.Array, num_iterations: int
) -> jax.Array:
  """What share of each token goes to each cluster; the rest is for no one.

  Sinkhorn's iterations in the logarithm, between tokens and K + 1 sinks: every
  cluster wants 1, and the dustbin what is left, n - K of n tokens.

  That needs more tokens than clusters. With n <= K, of which the paper says
  nothing, all sinks want the same: n / (K + 1). At n = K + 1 both agree.

  >>> scores = jnp.asarray([[[9.0], [0.0], [0.0]]])
  >>> shares = transport(scores, jnp.asarray(1.0), jnp.ones((1, 3)), 30)
  >>> [round(x, 2) for x in shares[0, :, 0].tolist()]  # nearly 1 in all
  [0.97, 0.0, 0.0]

  Args:
    scores: [B, N, K].
    dustbin: scalar, the score of the dustbin for every token.
    mass: [B, N], how much of each token there is: 0 for none of it, else 1 on
      average.
    num_iterations: of Sinkhorn; the last step makes a token's shares, that of
      the dustbin among them, sum to its mass.

  Returns:
    [B, N, K].
  """
  chex.assert_rank([scores, mass], [3, 2])
  batch, length, num_clusters = scores.shape
  real = mass > 0
  count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1.0)
  # Of an empty set all count, so that nothing is infinite, and then none.
  counted = real | ~jnp.any(real, axis=1, keepdims=True)
  left = jnp.maximum(count - num_clusters, count / (num_clusters + 1))
  wanted = (count - left) / num_clusters
  sinks = jnp.concatenate([jnp.tile(wanted, (1, num_clusters)), left], axis=1)
  log_sinks = jnp.log(sinks)
  log_mass = jnp.log(jnp.where(real, mass, 1.0))
  column = jnp.broadcast_to(dustbin, (batch, length, 1))
  z = jnp.concatenate([scores, column], axis=-1)

  def step(_, scalings):
    _, by_token = scalings
    by_sink = log_sinks - jax.nn.logsumexp(
      z + by_token[..., None], axis=1, where=counted[..., None]
    )
    by_token = log_mass - jax.nn.logsumexp(z + by_sink[:, None], axis=2)
    return by_sink, by_token

  # A token counts by its mass from the start.
  start = jnp.zeros(log_sinks.shape), log_mass
  by_sink, by_token = jax.lax.fori_loop(0, num_iterations, step, start)
  shares = jnp.exp(z + by_sink[:, None] + by_token[..., None])
  return jnp.where(real[..., None], shares[..., :-1], 0.0)


class SALAD(nn.Module):
  """Sums of projected tokens by cluster beside a projected CLS token.

  V_k = sum_i P_ik f(x_i) with P of `transport`, at unit length each; together
  with g(CLS) at unit length, and all of it at unit length. The defaults are the
  released form.

  >>> tokens = aggregators.Tokens(
  ...     jnp.ones((1, 10, 4)), jnp.zeros((1, 10)), jnp.ones((1, 10), bool))
  >>> model = SALAD(num_clusters=3, cluster_features=2, token_features=5)
  >>> inputs = tokens, jnp.ones((1, 10)), None
  >>> (descriptor, out), _ = model.init_with_output(jax.random.key(0), *inputs)
  >>> descriptor.shape, out['assignment'].shape  # 5 + 2 * 3; without CLS
  ((1, 11), (1, 9, 3))

  Attributes:
    num_clusters: K. Fewer tokens than that are pooled too, see `transport`.
    cluster_features: width of a cluster's sum.
    token_features: width of the projected CLS token; 0 for none, and then all
      tokens are pooled.
    hidden: width of the hidden layers.
    num_iterations: of Sinkhorn.
    dropout: rate, in training and if there is a 'dropout' key.

  `out`: assignment [B, N, K], residuals [B, K, cluster_features] at unit
  length, pooled [B, features] before the last normalisation.
  """

  num_clusters: int = 64
  cluster_features: int = 128
  token_features: int = 256
  hidden: int = 512
  num_iterations: int = 3
  dropout: float = 0.3

  @property
  def num_sectors(self) -> int:
    """There are none: clusters take what is theirs wherever it lies."""
    return 0

  @property
  def needs_cls(self) -> bool:
    """Whether the first of the tokens must be the CLS token."""
    return self.token_features > 0

  def _mlp(self, x, features, name, rate, train):
    x = nn.Dense(self.hidden, name=f'{name}_hidden')(x)
    fixed = not (train and self.has_rng('dropout'))
    x = nn.Dropout(rate, deterministic=fixed)(x)
    return nn.Dense(features, name=name)(nn.relu(x))

  @nn.compact
  def __call__(
    self,
    tokens: aggregators.Tokens,
    weights: jax.Array,
    bounds: aggregators.Bounds | None,
    train: bool = False,
  ) -> tuple[jax.Array, dict]:
    """Pools; arguments and results as in `aggregators.FirstToken`."""
    del bounds
    chex.assert_rank(tokens.features, 3)
    parts, x, mask = [], tokens.features, tokens.mask
    if self.token_features:
      aggregators.check_one_frame(tokens, 'SALAD with a CLS token')
      cls = self._mlp(x[:, 0], self.token_features, 'token', 0.0, train)
      parts.append(normalization.unit(cls))
      x, mask, weights = x[:, 1:], mask[:, 1:], weights[:, 1:]
    mass = jnp.where(mask, weights, 0.0)
    count = jnp.sum(mass > 0, axis=1, keepdims=True)
    mass *= count / jnp.maximum(jnp.sum(mass, axis=1, keepdims=True), 1e-12)
    scores = self._mlp(x, self.num_clusters, 'score', self.dropout, train)
    dustbin = self.param('dustbin', nn.initializers.ones, ())
    assignment = transport(scores, dustbin, mass, self.num_iterations)
    features = self._mlp(
      x, self.cluster_features, 'feature', self.dropout, train
    )
    sums = normalization.unit(aggregators.pool(assignment, features))
    # Channel by channel, as released.
    parts.append(jnp.swapaxes(sums, 1, 2).reshape(len(x), -1))
    pooled = jnp.concatenate(parts, axis=-1)
    out = dict(assignment=assignment, residuals=sums, pooled=pooled)
    return normalization.unit(pooled), out
