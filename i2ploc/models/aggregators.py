# SPDX-License-Identifier: Apache-2.0
"""From tokens to one descriptor: CLS, mean, GeM and NetVLAD.

Every aggregator is called as `NetVLAD` is. Those that pool all tokens take
`num_sectors`: 0 pools them together, as in the papers; S pools the tokens of
each of S equal azimuth sectors of the camera's horizontal field and
concatenates, so that bearing survives the pooling and a camera's columns line
up with a LiDAR's sweep through the calibration. Membership in sectors is linear
in azimuth between their centres, hence differentiable and without seams; of a
panorama's, the first and the last are neighbours. An empty sector contributes
zeros.
"""

from typing import NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.models.encoders import normalization

Bounds = tuple[jax.Array, jax.Array]
# Radians that a whole circle may lack, for rounding.
CIRCLE_TOLERANCE = 1e-3


class Tokens(NamedTuple):
  """What an encoder saw and where, without the CLS token.

  Attributes:
    features: [B, N, D].
    azimuth: [B, N], camera frame, radians, positive to the right.
    mask: [B, N] bool, real tokens.
  """

  features: jax.Array
  azimuth: jax.Array
  mask: jax.Array


def sector_membership(
  azimuth: jax.Array, bounds: Bounds, num_sectors: int
) -> jax.Array:
  """Share of each token in each azimuth sector.

  Inside the bounds the shares of a token sum to one; outside they are zero.
  Between the centres of two sectors they change linearly, around the seam of a
  whole circle too.

  Args:
    azimuth: [B, N], radians.
    bounds: (left, right), each [B], radians, left < right <= left + 2 pi.
    num_sectors: S.

  Returns:
    [B, N, S].
  """
  chex.assert_rank(azimuth, 2)
  chex.assert_shape(list(bounds), azimuth.shape[:1])
  left, right = bounds[0][:, None], bounds[1][:, None]
  circle = right - left > 2 * jnp.pi - CIRCLE_TOLERANCE
  offset = azimuth - left
  offset = jnp.where(circle, jnp.mod(offset, 2 * jnp.pi), offset)
  across = offset / (right - left)
  inside = circle | ((across >= 0.0) & (across <= 1.0))
  place = across * num_sectors - 0.5
  place = jnp.where(circle, place, jnp.clip(place, 0.0, num_sectors - 1.0))
  distance = jnp.abs(place[..., None] - jnp.arange(num_sectors))
  share = jnp.maximum(1.0 - distance, 0.0)
  # The other way round; with one sector, both ways lead to it.
  around = jnp.maximum(1.0 - (num_sectors - distance), 0.0)
  return (share + around * circle[..., None]) * inside[..., None]


def sector_weights(
  tokens: Tokens, weights: jax.Array, bounds: Bounds | None, num_sectors: int
) -> jax.Array:
  """Weight [B, N, S] of each token in each sector; S = 1 for all tokens.

  Raises:
    InputError: sectors without bounds.
  """
  batch, length, _ = tokens.features.shape
  chex.assert_shape([tokens.azimuth, tokens.mask, weights], (batch, length))
  weights = jnp.where(tokens.mask, weights, 0.0)[..., None]
  if not num_sectors:
    return weights
  if bounds is None:
    raise InputError(
      'the field is divided into sectors, but the batch has no intrinsics to '
      'tell directions by; set num_sectors to 0 or calibrate the camera'
    )
  return weights * sector_membership(tokens.azimuth, bounds, num_sectors)


class SectorHead(nn.Module):
  """Linear projection of each sector's vector, concatenated.

  Attributes:
    features: width of the whole descriptor.
    per_sector: an own matrix for every sector instead of a shared one.
    init_stddev: of the initial weights; None for one over the square root of
      the input width.
  """

  features: int
  per_sector: bool = False
  init_stddev: float | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, S, X] to [B, features], sector by sector."""
    batch, num_sectors, width = x.shape
    if self.features % num_sectors:
      raise InputError(
        f'a descriptor of {self.features} does not divide into {num_sectors} '
        'sectors; make features a multiple of num_sectors'
      )
    init = nn.initializers.normal(self.init_stddev or width**-0.5)
    share = self.features // num_sectors
    if self.per_sector:
      kernel = self.param('kernel', init, (num_sectors, width, share))
      y = jnp.einsum('bsx,sxf->bsf', x, kernel)
    else:
      y = x @ self.param('kernel', init, (width, share))
    return y.reshape(batch, self.features)


def _projected(pooled, features, per_sector):
  """[B, features] of sectors [B, S, D]; [B, S * D] for `features=0`."""
  if not features:
    return pooled.reshape(len(pooled), -1)
  return SectorHead(features, per_sector)(pooled)


class FirstToken(nn.Module):
  """The first of the tokens, projected without a bias.

  With `Tower.aggregate_cls` that is the CLS token; of a text it is the only
  one. The head of CLIP (Radford et al., ICML 2021).

  >>> tokens = Tokens(jnp.ones((2, 5, 3)), jnp.zeros((2, 5)), jnp.ones((2, 5)))
  >>> descriptor, out = FirstToken().apply({}, tokens, jnp.ones((2, 5)), None)
  >>> descriptor.shape, out['pooled'][0].tolist()
  ((2, 3), [1.0, 1.0, 1.0])

  Attributes:
    features: width of the descriptor; 0 for the token itself, not projected.

  `out`: pooled [B, features] before its normalisation.
  """

  features: int = 0

  @property
  def num_sectors(self) -> int:
    """One token lies in no sector."""
    return 0

  @nn.compact
  def __call__(
    self,
    tokens: Tokens,
    weights: jax.Array,
    bounds: Bounds | None,
    train: bool = False,
  ) -> tuple[jax.Array, dict]:
    """Takes the token; arguments and results as in `NetVLAD`."""
    del weights, bounds, train
    pooled = tokens.features[:, 0]
    if self.features:
      init = nn.initializers.lecun_normal()
      shape = pooled.shape[-1], self.features
      pooled = pooled @ self.param('kernel', init, shape)
    return normalization.unit(pooled), {'pooled': pooled}


class Mean(nn.Module):
  """Weighted mean of the tokens, projected.

  >>> tokens = Tokens(jnp.eye(3)[None], jnp.zeros((1, 3)), jnp.ones((1, 3)))
  >>> weights = jnp.array([[1.0, 1.0, 0.0]])
  >>> descriptor, _ = Mean(features=0).apply({}, tokens, weights, None)
  >>> [round(x, 4) for x in descriptor[0].tolist()]
  [0.7071, 0.7071, 0.0]

  Attributes:
    features: width of the descriptor; 0 for the pooled tokens themselves, not
      projected.
    num_sectors: S, or 0 for all tokens.
    per_sector_head: see `SectorHead`.

  `out`: pooled [B, features] before the last normalisation.
  """

  features: int = 256
  num_sectors: int = 0
  per_sector_head: bool = False

  @nn.compact
  def __call__(
    self,
    tokens: Tokens,
    weights: jax.Array,
    bounds: Bounds | None,
    train: bool = False,
  ) -> tuple[jax.Array, dict]:
    """Pools; arguments and results as in `NetVLAD`."""
    del train
    share = sector_weights(tokens, weights, bounds, self.num_sectors)
    mass = jnp.sum(share, axis=1)[..., None]
    total = jnp.einsum('bns,bnd->bsd', share, tokens.features)
    pooled = total / (mass + 1e-3)
    pooled = _projected(pooled, self.features, self.per_sector_head)
    return normalization.unit(pooled), {'pooled': pooled}


class GeM(nn.Module):
  """Generalised mean (Radenovic et al., TPAMI 2018), weighted and projected.

  Negative activations count as zero, as in the paper.

  >>> tokens = Tokens(jnp.eye(2)[None], jnp.zeros((1, 2)), jnp.ones((1, 2)))
  >>> weights = jnp.array([[3.0, 1.0]])
  >>> model = GeM(features=0, initial_power=2.0)
  >>> variables = {'params': {'power': 2.0}}
  >>> descriptor, _ = model.apply(variables, tokens, weights, None)
  >>> [round(x, 3) for x in descriptor[0].tolist()]
  [0.866, 0.5]

  Attributes:
    features: width of the descriptor; 0 for the pooled tokens themselves, not
      projected.
    num_sectors: S, or 0 for all tokens.
    per_sector_head: see `SectorHead`.
    initial_power: learned exponent p; 1 is the mean, infinity the maximum.

  `out`: pooled [B, features] before the last normalisation.
  """

  features: int = 256
  num_sectors: int = 0
  per_sector_head: bool = False
  initial_power: float = 3.0

  @nn.compact
  def __call__(
    self,
    tokens: Tokens,
    weights: jax.Array,
    bounds: Bounds | None,
    train: bool = False,
  ) -> tuple[jax.Array, dict]:
    """Pools; arguments and results as in `NetVLAD`."""
    del train
    share = sector_weights(tokens, weights, bounds, self.num_sectors)
    power = self.param(
      'power', nn.initializers.constant(self.initial_power), ()
    )
    power = jnp.clip(power, 1.0, 20.0)
    x = jnp.maximum(tokens.features, 1e-3) ** power
    mass = jnp.sum(share, axis=1)[..., None]
    mean = jnp.einsum('bns,bnd->bsd', share, x) / jnp.maximum(mass, 1e-6)
    occupied = mass > 1e-6
    mean = jnp.where(occupied, jnp.maximum(mean, 1e-30), 1.0)
    root = jnp.where(occupied, mean ** (1.0 / power), 0.0)
    pooled = _projected(root, self.features, self.per_sector_head)
    return normalization.unit(pooled), {'pooled': pooled}


class NetVLAD(nn.Module):
  """Soft-assigned residuals to learned centroids, weighted by saliency.

  Arandjelovic et al., NetVLAD, CVPR 2016; context gating after Miech et al.,
  2017. With a_ik the assignment of token i to cluster k, w_i its saliency and
  b_is its membership in sector s,
    V_sk = sum_i w_i b_is a_ik (x_i - c_k),
  normalised per sector and cluster, flattened and projected per sector.

  Departs from the paper: the projection to `features` is learned. The form
  released with SaliencyI2PLoc is `num_sectors=0, norm='batch',
  output_batch_norm=True, gating=True, channel_major=True, epsilon=1e-12`.

  >>> tokens = Tokens(jnp.ones((1, 9, 4)), jnp.zeros((1, 9)), jnp.ones((1, 9)))
  >>> inputs = tokens, jnp.ones((1, 9)), (-jnp.ones(1), jnp.ones(1))
  >>> model = NetVLAD(num_clusters=2, features=6, num_sectors=3)
  >>> (descriptor, out), _ = model.init_with_output(jax.random.key(0), *inputs)
  >>> descriptor.shape, out['residuals'].shape
  ((1, 6), (1, 3, 2, 4))

  Attributes:
    num_clusters: K.
    features: width of the descriptor.
    num_sectors: S, or 0 for all tokens.
    per_sector_head: see `SectorHead`.
    norm: of the assignment logits: 'layer' (over the clusters), 'batch' or
      'bias' (none, but a bias). 'batch' normalises the gate as well.
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
    elif self.norm != 'bias':
      raise InputError(
        f"NetVLAD norm is {self.norm!r}; known: 'layer', 'batch', 'bias'"
      )
    return jax.nn.softmax(logits, axis=-1)

  def _gate(self, y, train):
    """Context gating of y [B, features]."""
    gate = nn.Dense(
      self.features,
      use_bias=self.norm != 'batch',
      kernel_init=nn.initializers.normal(self.features**-0.5),
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
    tokens: Tokens,
    weights: jax.Array,
    bounds: Bounds | None,
    train: bool = False,
  ) -> tuple[jax.Array, dict]:
    """Pools.

    Args:
      tokens: see `Tokens`.
      weights: [B, N] saliency of the tokens; ones for the plain aggregator.
      bounds: (left, right) azimuth of the field that the sectors divide, each
        [B]; without sectors not used.
      train: whether BatchNorm uses the batch.

    Returns:
      descriptor: [B, features], unit length (zero if no token counts).
      out: see the class.
    """
    chex.assert_rank(tokens.features, 3)
    x = normalization.unit(tokens.features)
    width = x.shape[-1]
    share = sector_weights(tokens, weights, bounds, self.num_sectors)
    assignment = self._assign(x, train)
    # sum_i a x - c sum_i a: no [B, N, K, D] array of residuals.
    shared = share[..., None] * assignment[:, :, None]
    sums = jnp.einsum('bnsk,bnd->bskd', shared, x)
    mass = jnp.sum(shared, axis=1)
    stddev = width**-0.5
    centers = self.param(
      'centers', nn.initializers.normal(stddev), (self.num_clusters, width)
    )
    residuals = sums - mass[..., None] * centers
    residuals = normalization.unit(residuals, epsilon=self.epsilon)
    pooled = SectorHead(self.features, self.per_sector_head, stddev)(
      self._flatten(residuals)
    )
    if self.output_batch_norm:
      pooled = normalization.BatchNorm(name='output_norm')(pooled, train)
    if self.gating:
      pooled = self._gate(pooled, train)
    out = dict(assignment=assignment, residuals=residuals, pooled=pooled)
    return normalization.unit(pooled), out
