# SPDX-License-Identifier: Apache-2.0
"""Vectors of locally aggregated descriptors: residuals to a vocabulary.

Tokens of unit length are assigned to K words, and what they differ from their
word by is summed, word by word, at unit length each. `NetVLAD` learns its words
and assigns softly; `VLAD` takes its words from a map without any label
(`fitting`) and assigns every token to the nearest.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.models import aggregators
from i2ploc.models.encoders import normalization


def _residuals(assignment, share, x, centers, epsilon):
  """Unit residuals [B, S, K, D] of assignment [B, N, K], share [B, N, S]."""
  shared = share[..., None] * assignment[:, :, None]
  residuals = aggregators.pool(shared, x, centers)
  return normalization.unit(residuals, epsilon=epsilon)


def closeness(x: jax.Array, words: jax.Array) -> jax.Array:
  """Largest for the word nearest to x: <x, c> - |c|^2 / 2.

  Args:
    x: [..., D].
    words: [K, D].

  Returns:
    [..., K]: half the squared distance is |x|^2 / 2 less this.
  """
  return x @ words.T - 0.5 * jnp.sum(words**2, axis=-1)


class NetVLAD(nn.Module):
  """Soft-assigned residuals to learned centroids, weighted by saliency.

  Arandjelovic et al., NetVLAD, CVPR 2016; context gating after Miech et al.,
  2017. With a_ik the assignment of token i to cluster k, w_i its saliency and
  b_is its membership in sector s,
    V_sk = sum_i w_i b_is a_ik (x_i - c_k),
  normalised per sector and cluster, flattened and projected per sector.

  The paper's form, as the Deep Visual Geo-localization Benchmark (Berton et
  al., CVPR 2022) released it, is `norm='none', features=0, epsilon=1e-12`; in
  ours the projection to `features` is learned. The form released with
  SaliencyI2PLoc is `num_sectors=0, norm='batch', output_batch_norm=True,
  gating=True, channel_major=True, epsilon=1e-12`. `fitting.init_netvlad` has
  the initial values of the paper.

  >>> place = jnp.zeros((1, 9)), jnp.ones((1, 9))
  >>> tokens = aggregators.Tokens(jnp.ones((1, 9, 4)), *place)
  >>> inputs = tokens, jnp.ones((1, 9)), (-jnp.ones(1), jnp.ones(1))
  >>> model = NetVLAD(num_clusters=2, features=6, num_sectors=3)
  >>> (descriptor, out), _ = model.init_with_output(jax.random.key(0), *inputs)
  >>> descriptor.shape, out['residuals'].shape
  ((1, 6), (1, 3, 2, 4))

  Attributes:
    num_clusters: K.
    features: width of the descriptor; 0 for the residuals themselves, not
      projected.
    num_sectors: S, or 0 for all tokens.
    per_sector_head: see `SectorHead`.
    norm: of the assignment logits: 'layer' (over the clusters), 'batch', 'bias'
      (none, but a bias) or 'none'. 'batch' normalises the gate as well.
    output_batch_norm: BatchNorm after the projection.
    gating: context gating: y * sigmoid(linear(y)).
    channel_major: flatten residuals as channel * K + cluster, as released
      checkpoints do, instead of cluster * D + channel.
    epsilon: squared norm below which a cluster's residual fades instead of
      being blown up to unit length. Tokens have unit length.

  `out`: assignment [B, N, K] before weighting, residuals [B, max(S, 1), K, D]
  after their normalisation, pooled [B, features] before the last one.
  """

  num_clusters: int = 64
  features: int = 256
  num_sectors: int = 0
  per_sector_head: bool = False
  norm: str = 'layer'
  output_batch_norm: bool = False
  gating: bool = False
  channel_major: bool = False
  epsilon: float = 1e-6

  def _assign(self, x, train):
    """Soft assignment [B, N, K] of tokens x [B, N, D]."""
    logits = nn.Dense(
      self.num_clusters,
      use_bias=self.norm == 'bias',
      kernel_init=nn.initializers.normal(x.shape[-1] ** -0.5),
      name='assign',
    )(x)
    if self.norm == 'batch':
      logits = normalization.BatchNorm(name='assign_norm')(logits, train)
    elif self.norm == 'layer':
      logits = nn.LayerNorm(name='assign_norm')(logits)
    elif self.norm not in ('bias', 'none'):
      raise InputError(
        f'NetVLAD norm is {self.norm!r}; '
        "known: 'layer', 'batch', 'bias', 'none'"
      )
    return jax.nn.softmax(logits, axis=-1)

  def _gate(self, y, train):
    """Context gating of y [B, features]."""
    width = y.shape[-1]
    gate = nn.Dense(
      width,
      use_bias=self.norm != 'batch',
      kernel_init=nn.initializers.normal(width**-0.5),
      name='gate',
    )(y)
    if self.norm == 'batch':
      gate = normalization.BatchNorm(name='gate_norm')(gate, train)
    return y * jax.nn.sigmoid(gate)

  def _flatten(self, residuals):
    """Unit vectors [B, S, K * D] of residuals [B, S, K, D]."""
    if self.channel_major:
      residuals = jnp.swapaxes(residuals, -1, -2)
    flat = residuals.reshape(*residuals.shape[:2], -1)
    return normalization.unit(flat, epsilon=self.epsilon)

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
    x = normalization.unit(tokens.features)
    stddev = x.shape[-1] ** -0.5
    assignment = self._assign(x, train)
    centers = self.param(
      'centers',
      nn.initializers.normal(stddev),
      (self.num_clusters, x.shape[-1]),
    )
    share = aggregators.sector_weights(
      tokens, weights, bounds, self.num_sectors
    )
    residuals = _residuals(assignment, share, x, centers, self.epsilon)
    pooled = aggregators.projected(
      self._flatten(residuals),
      self.features,
      per_sector=self.per_sector_head,
      init_stddev=stddev,
    )
    if self.output_batch_norm:
      pooled = normalization.BatchNorm(name='output_norm')(pooled, train)
    if self.gating:
      pooled = self._gate(pooled, train)
    out = dict(assignment=assignment, residuals=residuals, pooled=pooled)
    return normalization.unit(pooled), out


class VLAD(nn.Module):
  """Residuals to the nearest words of a map's vocabulary, weighted.

  Jegou et al., CVPR 2010; with normalisation per word, Arandjelovic and
  Zisserman, All about VLAD, CVPR 2013; on tokens of a frozen transformer,
  Keetha et al., AnyLoc, RA-L 2023. Nothing is learned: the vocabulary comes
  from the map, by `fitting.fit`, and is a variable of the collection 'map'.
  Until then it is NaN, and so are the descriptors. AnyLoc's form is the
  default.

  >>> x = jnp.asarray([[[2.0, 0.0], [0.6, 0.8]]])
  >>> tokens = aggregators.Tokens(x, jnp.zeros((1, 2)), jnp.ones((1, 2)))
  >>> words = jnp.asarray([[1.0, 1.0], [-1.0, 0.0]])
  >>> variables = {'map': {'vocabulary': words}}
  >>> descriptor, out = VLAD(2).apply(variables, tokens, jnp.ones((1, 2)), None)
  >>> out['assignment'][0].tolist()
  [[1.0, 0.0], [1.0, 0.0]]
  >>> [round(x, 3) for x in descriptor[0].tolist()]  # (1.6, 0.8) - 2 (1, 1)
  [-0.316, -0.949, 0.0, 0.0]

  Attributes:
    num_clusters: K.
    num_sectors: S, or 0 for all tokens.
    softness: a token between two words counts for both: weights are the softmax
      of minus half its squared distances over this; 0 for the nearest alone.
    centered: whether what all tokens of the map have in common, their mean, is
      taken away from them first.

  `out`: assignment [B, N, K] before weighting, residuals [B, max(S, 1), K, D]
  of unit length each, pooled [B, max(S, 1) * K * D] before the last
  normalisation.
  """

  num_clusters: int = 32
  num_sectors: int = 0
  softness: float = 0.0
  centered: bool = False

  @nn.compact
  def __call__(
    self,
    tokens: aggregators.Tokens,
    weights: jax.Array,
    bounds: aggregators.Bounds | None,
    train: bool = False,
  ) -> tuple[jax.Array, dict]:
    """Pools; arguments and results as in `aggregators.FirstToken`."""
    del train
    chex.assert_rank(tokens.features, 3)
    x = normalization.unit(tokens.features)
    width = x.shape[-1]

    def variable(name, *shape):
      return self.variable('map', name, jnp.full, shape, jnp.nan).value

    if self.centered:
      x = normalization.unit(x - variable('mean', width))
    words = variable('vocabulary', self.num_clusters, width)
    close = closeness(x, words)
    if self.softness:
      assignment = jax.nn.softmax(close / self.softness)
    else:
      assignment = jax.nn.one_hot(jnp.argmax(close, -1), self.num_clusters)
    share = aggregators.sector_weights(
      tokens, weights, bounds, self.num_sectors
    )
    residuals = _residuals(assignment, share, x, words, epsilon=1e-12)
    pooled = residuals.reshape(len(x), -1)
    out = dict(assignment=assignment, residuals=residuals, pooled=pooled)
    return normalization.unit(pooled), out
