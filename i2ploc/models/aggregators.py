# SPDX-License-Identifier: Apache-2.0
"""From tokens to one descriptor: what all aggregators share, CLS, mean and GeM.

Most of them pool a weighted set: with A the weight of each token x in each of K
parts, and centres C where there are any, they are A^T X - (A^T 1) C, see
`pool`. `Mean` and `GeM` here have one part; `vlad` and `salad` have clusters.
`mixing` needs a grid of one size and `queries` asks the tokens; neither is a
sum.

Of a sequence of T images all tokens are one set: a sum is of the same size
whatever T, and does not depend on the order of the frames (SeqVLAD, Mereu et
al., Learning Sequential Descriptors, RA-L 2022, is `NetVLAD` of that set).
`fusion` describes frame by frame.

Every aggregator is called as `FirstToken` is. Those with sectors take
`num_sectors`: 0 pools all tokens together, as in the papers; S pools the tokens
of each of S equal azimuth sectors of the camera's horizontal field and
concatenates, so that bearing survives the pooling and a camera's columns line
up with a LiDAR's sweep through the calibration. Membership in sectors is linear
in azimuth between their centres, hence differentiable and without seams; of a
panorama's, the first and the last are neighbours. An empty sector contributes
zeros.
"""

import dataclasses
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


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Grid:
  """The cells of an image that tokens are of, row by row.

  A constant of a compiled function, as a shape is.

  Attributes:
    rows: number of rows.
    columns: number of columns.
    frames: T of a sequence of images, whose tokens follow each other frame by
      frame.
  """

  rows: int
  columns: int
  frames: int = 1


class Tokens(NamedTuple):
  """What an encoder saw and where.

  Attributes:
    features: [B, N, D].
    azimuth: [B, N], camera frame, radians, positive to the right.
    mask: [B, N] bool, real tokens.
    grid: the cells that the last tokens are of, if they are of an image; a CLS
      token may come before them (`Tower.aggregate_cls`). Of a sequence, the
      tokens of every frame are so.
  """

  features: jax.Array
  azimuth: jax.Array
  mask: jax.Array
  grid: Grid | None = None

  @property
  def frames(self) -> int:
    """T of a sequence; 1 for a single reading."""
    return 1 if self.grid is None else self.grid.frames


def join_frames(
  tokens: Tokens, weights: jax.Array, frames: int
) -> tuple[Tokens, jax.Array]:
  """The tokens of all frames of a sequence as one set.

  Args:
    tokens: [B * T, N], frame by frame.
    weights: [B * T, N].
    frames: T.

  Returns:
    tokens: [B, T * N]; their grid says T.
    weights: [B, T * N].

  Raises:
    InputError: a sequence whose tokens are of no grid, which could not say T.
  """
  if frames == 1:
    return tokens, weights
  if tokens.grid is None:
    raise InputError(
      f'a batch of sequences of {frames} frames, and the encoder names no grid '
      "of its tokens; take an encoder whose `out` has 'grid', or single images"
    )

  def join(x):
    return x.reshape(-1, frames * x.shape[1], *x.shape[2:])

  grid = dataclasses.replace(tokens.grid, frames=frames)
  return Tokens(*map(join, tokens[:3]), grid), join(weights)


def split_frames(
  tokens: Tokens, weights: jax.Array
) -> tuple[Tokens, jax.Array]:
  """The tokens of every frame by itself; undoes `join_frames`.

  Args:
    tokens: [B, T * N].
    weights: [B, T * N].

  Returns:
    tokens: [B * T, N], frame by frame.
    weights: [B * T, N].
  """
  grid = tokens.grid
  if grid is None or grid.frames == 1:
    return tokens, weights

  def split(x):
    return x.reshape(-1, x.shape[1] // grid.frames, *x.shape[2:])

  one = dataclasses.replace(grid, frames=1)
  return Tokens(*map(split, tokens[:3]), one), split(weights)


def check_one_frame(tokens: Tokens, name: str) -> None:
  """Raises InputError for the tokens of a sequence.

  Args:
    tokens: see `Tokens`.
    name: of what describes single images alone.
  """
  if tokens.frames > 1:
    raise InputError(
      f'{name} describes single images, and these are sequences of '
      f"{tokens.frames} frames; take the aggregator 'fusion' with it as inner, "
      'or one that pools a set of tokens, such as NetVLAD'
    )


def pool(
  assignment: jax.Array, x: jax.Array, centers: jax.Array | None = None
) -> jax.Array:
  """Sums of weighted tokens, or of their residuals to centres.

  V_k = sum_i a_ik (x_i - c_k), as a product of matrices and a correction: no
  array of all residuals exists. What is assigned nowhere counts nowhere.

  >>> assignment = jnp.asarray([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
  >>> x = jnp.asarray([[[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]]])
  >>> pool(assignment, x)[0].tolist()
  [[1.0, 0.0], [0.0, 4.0]]
  >>> pool(assignment, x, jnp.ones((2, 2)))[0].tolist()
  [[0.0, -1.0], [-2.0, 2.0]]

  Args:
    assignment: [B, N, ..., K] weight of each token in each of K parts.
    x: [B, N, D] tokens.
    centers: [K, D]; None for sums of the tokens themselves.

  Returns:
    [B, ..., K, D].
  """
  sums = jnp.einsum('bn...,bnd->b...d', assignment, x)
  if centers is None:
    return sums
  return sums - jnp.sum(assignment, axis=1)[..., None] * centers


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
    use_bias: whether a vector is added to every sector's.
  """

  features: int
  per_sector: bool = False
  init_stddev: float | None = None
  use_bias: bool = False

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
    if self.use_bias:
      shape = (num_sectors, share) if self.per_sector else (share,)
      y = y + self.param('bias', nn.initializers.zeros, shape)
    return y.reshape(batch, self.features)


def projected(pooled: jax.Array, features: int, **fields) -> jax.Array:
  """[B, features] of sectors [B, S, D]; [B, S * D] for `features=0`.

  Called in the `__call__` of a module, which owns the `SectorHead`.
  """
  if not features:
    return pooled.reshape(len(pooled), -1)
  return SectorHead(features, **fields)(pooled)


class FirstToken(nn.Module):
  """The first of the tokens, projected without a bias.

  With `Tower.aggregate_cls` that is the CLS token; of a text it is the only
  one. The head of CLIP (Radford et al., ICML 2021). Sequences have no first
  token of all frames and are refused.

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
    """Takes the token.

    Args:
      tokens: see `Tokens`.
      weights: [B, N] saliency of the tokens, of which only the ratios count;
        ones for the plain aggregator.
      bounds: (left, right) azimuth of the field that sectors divide, each [B];
        without sectors not used.
      train: whether BatchNorm uses the batch.

    Returns:
      descriptor: [B, features], unit length (zero if no token counts).
      out: see the class.

    Raises:
      InputError: a sequence, where an aggregator describes single images.
    """
    del weights, bounds, train
    check_one_frame(tokens, 'FirstToken')
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
    """Pools; arguments and results as in `FirstToken`."""
    del train
    share = sector_weights(tokens, weights, bounds, self.num_sectors)
    mass = jnp.sum(share, axis=1)[..., None]
    pooled = pool(share, tokens.features) / (mass + 1e-3)
    pooled = projected(pooled, self.features, per_sector=self.per_sector_head)
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
    epsilon: activations below it count as it.
    unit_tokens: whether tokens are brought to unit length first, as in CosPlace
      (Berton et al., CVPR 2022), whose form is `unit_tokens=True,
      use_bias=True, epsilon=1e-6`.
    use_bias: see `SectorHead`.

  `out`: pooled [B, features] before the last normalisation.
  """

  features: int = 256
  num_sectors: int = 0
  per_sector_head: bool = False
  initial_power: float = 3.0
  epsilon: float = 1e-3
  unit_tokens: bool = False
  use_bias: bool = False

  @nn.compact
  def __call__(
    self,
    tokens: Tokens,
    weights: jax.Array,
    bounds: Bounds | None,
    train: bool = False,
  ) -> tuple[jax.Array, dict]:
    """Pools; arguments and results as in `FirstToken`."""
    del train
    share = sector_weights(tokens, weights, bounds, self.num_sectors)
    power = self.param(
      'power', nn.initializers.constant(self.initial_power), ()
    )
    power = jnp.clip(power, 1.0, 20.0)
    x = tokens.features
    if self.unit_tokens:
      x = normalization.unit(x)
    x = jnp.maximum(x, self.epsilon) ** power
    mass = jnp.sum(share, axis=1)[..., None]
    mean = pool(share, x) / jnp.maximum(mass, 1e-6)
    occupied = mass > 1e-6
    mean = jnp.where(occupied, jnp.maximum(mean, 1e-30), 1.0)
    root = jnp.where(occupied, mean ** (1.0 / power), 0.0)
    pooled = projected(
      root,
      self.features,
      per_sector=self.per_sector_head,
      use_bias=self.use_bias,
    )
    return normalization.unit(pooled), {'pooled': pooled}
