# SPDX-License-Identifier: Apache-2.0
"""Point transformer: groups of neighbours become tokens.

Farthest points are centres, their neighbours a group, a mini-PointNet makes a
token of each group, and a position MLP of the centre is added before every
block (Yu et al., Point-BERT, CVPR 2022; Pang et al., Point-MAE, ECCV 2022).

Departs from them by default: LayerNorm for BatchNorm, and each point also says
where it is as seen from the sensor, which is what small models learn from. The
form released with SaliencyI2PLoc is `batch_norm=True, unit_tokens=True,
raw_coordinates=True, skip_squared_norm=1e-3, qkv_bias=False`.
"""

import math

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.geometry import point_cloud
from i2ploc.models.encoders import normalization
from i2ploc.models.encoders import vit

# Points that the mini-PointNet sees at once: the activations of more of them
# leave the cache, which takes 1.5 times as long on CPU.
POINTS_PER_CHUNK = 1024


def _gather(points: jax.Array, indices: jax.Array) -> jax.Array:
  """points [B, P, C] at indices [B, ...]: [B, ..., C]."""
  return jax.vmap(lambda p, i: p[i])(points, indices)


def viewpoint_features(points: jax.Array) -> jax.Array:
  """Where points are as seen from the sensor, about unit scale.

  Args:
    points: [..., 3 or more], x forward, y left, z up, metres; further columns
      (intensity) are passed on.

  Returns:
    [..., 4 or more]: sine and cosine of the azimuth, log range, height, rest.
  """
  x, y, z = points[..., 0], points[..., 1], points[..., 2]
  across = jnp.sqrt(x * x + y * y + 1e-6)
  distance = jnp.sqrt(across * across + z * z)
  # 1.5 m and e^2.5 = 12 m: typical height and range of a street's returns.
  parts = [-y / across, x / across, jnp.log1p(distance) - 2.5, z / 1.5]
  return jnp.concatenate([jnp.stack(parts, -1), points[..., 3:]], axis=-1)


def _group_features(groups: jax.Array, centers: jax.Array) -> jax.Array:
  """Input [B, G, k, C] of the mini-PointNet for groups [B, G, k, 3 or more]."""
  offset = groups[..., :3] - centers[:, :, None]
  squared = jnp.sum(offset * offset, axis=-1, keepdims=True)
  # Groups grow with range: shape and size of a group are told apart.
  radius = jnp.sqrt(jnp.max(squared, axis=2, keepdims=True) + 1e-4)
  size = jnp.broadcast_to(jnp.log(radius), squared.shape)
  return jnp.concatenate(
    [offset / radius, size, viewpoint_features(groups)], axis=-1
  )


class MiniPointNet(nn.Module):
  """One vector per group of points, whatever their order.

  Attributes:
    widths: of the three hidden layers; the group's maximum joins each point
      between the second and the third.
    features: width of the result.
    batch_norm: the released normalisation, over all points of all groups;
      LayerNorm otherwise.
    dtype: of the computation.
  """

  widths: tuple[int, int, int]
  features: int
  batch_norm: bool = False
  dtype: jnp.dtype = jnp.float32

  def _norm(self, x, train, name):
    if self.batch_norm:
      return normalization.BatchNorm(dtype=self.dtype, name=name)(x, train)
    return nn.LayerNorm(dtype=self.dtype, name=name)(x)

  @nn.compact
  def __call__(self, groups: jax.Array, train: bool) -> jax.Array:
    """Maps groups [B, G, k, C] to [B, G, features]."""
    chex.assert_rank(groups, 4)
    first, second, third = self.widths
    x = nn.Dense(first, dtype=self.dtype, name='point1')(groups)
    x = nn.relu(self._norm(x, train, 'norm1'))
    x = nn.Dense(second, dtype=self.dtype, name='point2')(x)
    group = jnp.max(x, axis=2, keepdims=True)
    # A layer on [group, point] in two halves: the group's is k times cheaper.
    group = nn.Dense(third, dtype=self.dtype, name='group')(group)
    x = nn.Dense(third, use_bias=False, dtype=self.dtype, name='point3')(x)
    x = nn.relu(self._norm(x + group, train, 'norm2'))
    x = nn.Dense(self.features, dtype=self.dtype, name='point4')(x)
    return jnp.max(x, axis=2)


def _in_chunks(pointnet, groups, train):
  """`pointnet(groups, train)`, some groups after others."""
  batch, num_groups, group_size, channels = groups.shape
  chunk = max(1, POINTS_PER_CHUNK // group_size)
  padding = -num_groups % chunk
  groups = jnp.pad(groups, ((0, 0), (0, padding), (0, 0), (0, 0)))
  groups = groups.reshape(batch, -1, chunk, group_size, channels)
  scan = nn.scan(
    lambda module, carry, chunk: (carry, module(chunk, train)),
    variable_broadcast=('params', 'batch_stats'),
    split_rngs={'params': False},
    in_axes=1,
    out_axes=1,
  )
  _, x = scan(pointnet, None, groups)
  return x.reshape(batch, num_groups + padding, -1)[:, :num_groups]


class PointTransformer(nn.Module):
  """Tokens of a point cloud.

  Attributes:
    width: D.
    depth: number of blocks; with 0 there is no CLS and no attention.
    num_heads: H.
    num_groups: G, tokens per cloud.
    group_size: k, points per group; groups may overlap.
    pointnet_widths: hidden layers of the mini-PointNet.
    pointnet_features: width of its result, reduced to D.
    use_cls: whether a CLS token attends with the others.
    mlp_ratio: see `vit.Block`.
    qkv_bias: see `vit.Block`.
    epsilon: of the blocks' LayerNorms (the last norm has 1e-6).
    residual_init_scale: see `vit.Block`.
    batch_norm: released form, see `MiniPointNet`.
    unit_tokens: released form: the mini-PointNet's vectors are normalised to
      unit length before and after their reduction to D.
    raw_coordinates: released form: points are offsets from their centre and
      positions are centres, in metres, and nothing else.
    skip_squared_norm: released form, see `farthest_point_sampling`.
    remat: recompute blocks and the mini-PointNet in the backward pass, for
      memory.
    dtype: of the computation.

  `out`: cls [B, D] and attention [B, H, N], its row in the last block (with a
  CLS token), sequence [B, N, D] all tokens after the last norm, CLS first;
  centers [B, G, 3]; mask [B, G], tokens that stand for a point of their own;
  groups [B, G, k] and samples [B, G], indices into the points.
  """

  width: int = 384
  depth: int = 12
  num_heads: int = 6
  num_groups: int = 1024
  group_size: int = 32
  pointnet_widths: tuple[int, int, int] = (128, 256, 512)
  pointnet_features: int = 384
  use_cls: bool = True
  mlp_ratio: float = 4.0
  qkv_bias: bool = True
  epsilon: float = 1e-5
  residual_init_scale: float = 1.0
  batch_norm: bool = False
  unit_tokens: bool = False
  raw_coordinates: bool = False
  skip_squared_norm: float | None = None
  remat: bool = False
  dtype: jnp.dtype = jnp.float32

  @property
  def has_cls(self) -> bool:
    """Whether the sequence starts with a CLS token."""
    return self.use_cls and self.depth > 0

  def setup(self) -> None:
    """Creates the layers."""
    pointnet = MiniPointNet
    if self.remat:
      pointnet = nn.remat(MiniPointNet, static_argnums=2)
    self.pointnet = pointnet(
      tuple(self.pointnet_widths),
      self.pointnet_features,
      self.batch_norm,
      self.dtype,
    )
    self.reduce = nn.Dense(self.width, dtype=self.dtype)
    self.position1 = nn.Dense(128, dtype=self.dtype)
    self.position2 = nn.Dense(self.width, dtype=self.dtype)
    self.blocks = [
      vit.Block(
        self.width,
        self.num_heads,
        self.mlp_ratio,
        self.qkv_bias,
        self.epsilon,
        self.residual_init_scale,
        self.dtype,
      )
      for _ in range(self.depth)
    ]
    self.norm = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)
    if self.has_cls:
      init = nn.initializers.normal(0.02)
      self.cls = self.param('cls', init, (1, 1, self.width))
      self.cls_position = self.param('cls_position', init, (1, 1, self.width))

  def _group(self, points, mask):
    """Indices of centres [B, G] and of their neighbours [B, G, k]."""
    xyz = jax.lax.stop_gradient(points[..., :3])
    samples = jax.vmap(
      lambda p, m: point_cloud.farthest_point_sampling(
        p, m, self.num_groups, self.skip_squared_norm
      )
    )(xyz, mask)
    groups = jax.vmap(
      lambda q, p, m: point_cloud.nearest_neighbors(q, p, m, self.group_size)
    )(_gather(xyz, samples), xyz, mask)
    return samples, groups

  def _tokenize(self, points, groups, centers, train):
    """Tokens [B, G, D] and their positions [B, G, D]."""
    neighbors = _gather(points, groups)
    if self.raw_coordinates:
      features = neighbors[..., :3] - centers[:, :, None]
      place = centers
    else:
      features = _group_features(neighbors, centers)
      place = viewpoint_features(centers)
    # Statistics of a batch are those of all its points.
    whole = self.batch_norm and train
    if whole or math.prod(groups.shape[1:]) <= 4 * POINTS_PER_CHUNK:
      x = self.pointnet(features, train)
    else:
      x = _in_chunks(self.pointnet, features, train)
    if self.unit_tokens:
      x = normalization.unit(self.reduce(normalization.unit(x)))
    else:
      x = self.reduce(x)
    hidden = nn.gelu(self.position1(place), approximate=False)
    return x, self.position2(hidden)

  def __call__(
    self, points: jax.Array, mask: jax.Array, train: bool = False
  ) -> tuple[jax.Array, dict]:
    """Encodes.

    Args:
      points: [B, P, C], x forward, y left, z up, metres, then other channels;
        P at least `group_size`.
      mask: [B, P] bool, real points.
      train: whether BatchNorm uses the batch.

    Returns:
      tokens: [B, G, D] float32, CLS excluded; of value where `out['mask']`.
      out: see the class.
    """
    chex.assert_rank(points, 3)
    chex.assert_shape(mask, points.shape[:2])
    points = jnp.where(mask[..., None], points, 0.0)
    samples, groups = self._group(points, mask)
    centers = _gather(points[..., :3], samples)
    # Samples beyond the number of real points repeat the first.
    token_mask = jnp.arange(self.num_groups) < mask.sum(1, keepdims=True)
    x, position = self._tokenize(points, groups, centers, train)
    if self.has_cls:
      front = (x.shape[0], 1, self.width)
      cls = jnp.broadcast_to(self.cls, front).astype(x.dtype)
      cls_position = jnp.broadcast_to(self.cls_position, front)
      x = jnp.concatenate([cls, x], axis=1)
      position = jnp.concatenate(
        [cls_position.astype(position.dtype), position], axis=1
      )
    out = dict(samples=samples, groups=groups, centers=centers, mask=token_mask)
    attended = vit.sequence_mask(token_mask, self.has_cls)
    x, cls_row = vit.run_blocks(self.blocks, x, position, attended, self.remat)
    x = out['sequence'] = self.norm(x).astype(jnp.float32)
    if self.has_cls:
      out['cls'], out['attention'] = x[:, 0], cls_row
    return x[:, int(self.has_cls) :], out

  def last_query_key(self, sequence: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Queries and keys of the last block for [B, N, D]; see `saliency`."""
    return self.blocks[-1].query_key(sequence)
