# SPDX-License-Identifier: Apache-2.0
"""The released SaliencyI2PLoc in PyTorch: the peer of `full_size.py`.

Written from the formulas, with the parameter names of the authors' checkpoints,
so that one loads; `tests/benchmarks/torch_saliency_test.py` shows that it then
gives the authors' descriptors. Attention is a choice: torch's fused kernel, or
products with the whole matrix, which is what the released point branch does.
"""

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

IMAGE_MEAN = (0.396197, 0.452953, 0.490031)
IMAGE_STD = (0.315778, 0.343629, 0.369563)
SKIP_SQUARED_NORM = 1e-3
PATCH = 16


class Attention(nn.Module):
  """Multi-head self-attention."""

  def __init__(self, width, num_heads, qkv_bias, fused):
    super().__init__()
    self.num_heads, self.fused = num_heads, fused
    self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
    self.proj = nn.Linear(width, width)

  def query_key_value(self, x):
    """Queries, keys and values [B, H, N, d]."""
    split = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
    return split.permute(2, 0, 3, 1, 4).unbind(0)

  def forward(self, x):
    """Attended values [B, N, D]."""
    query, key, value = self.query_key_value(x)
    if self.fused:
      y = functional.scaled_dot_product_attention(query, key, value)
    else:
      logits = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
      y = logits.softmax(dim=-1) @ value
    return self.proj(y.transpose(1, 2).flatten(2))

  def token_weights(self, tokens):
    """The released saliency: sigmoid of the CLS row's head sum, [B, N]."""
    with torch.no_grad():
      query, key, _ = self.query_key_value(tokens)
      query = functional.layer_norm(query[:, :, :1], query.shape[-1:])
      key = functional.layer_norm(key, key.shape[-1:])
      logits = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
      return logits.softmax(dim=-1)[:, :, 0].sum(dim=1).sigmoid()


class Block(nn.Module):
  """Pre-norm transformer block."""

  def __init__(self, width, num_heads, qkv_bias, epsilon, fused):
    super().__init__()
    self.norm1 = nn.LayerNorm(width, epsilon)
    self.attn = Attention(width, num_heads, qkv_bias, fused)
    self.norm2 = nn.LayerNorm(width, epsilon)
    self.mlp = nn.ModuleDict(
      dict(fc1=nn.Linear(width, 4 * width), fc2=nn.Linear(4 * width, width))
    )

  def forward(self, x):
    """[B, N, D] to [B, N, D]."""
    x = x + self.attn(self.norm1(x))
    return x + self.mlp.fc2(functional.gelu(self.mlp.fc1(self.norm2(x))))


class ImageEncoder(nn.Module):
  """ViT over patches of 16 pixels; all tokens, CLS first."""

  def __init__(self, width, depth, num_heads, num_patches, fused):
    super().__init__()
    self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    self.pos_embed = nn.Parameter(torch.zeros(1, 1 + num_patches, width))
    self.patch_embed = nn.ModuleDict(
      dict(proj=nn.Conv2d(3, width, PATCH, PATCH))
    )
    self.blocks = nn.ModuleList(
      Block(width, num_heads, True, 1e-6, fused) for _ in range(depth)
    )
    self.norm = nn.LayerNorm(width, 1e-6)

  def forward(self, images):
    """[B, 3, H, W] to [B, N, D]."""
    x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
    cls = self.cls_token.expand(x.shape[0], -1, -1)
    x = torch.cat([cls, x], dim=1) + self.pos_embed
    for block in self.blocks:
      x = block(x)
    return self.norm(x)


def farthest_point_sampling(points, num_samples):
  """Greedy cover [B, G] of points [B, P, 3], from the first one on."""
  squared = (points**2).sum(-1)
  distance = torch.where(squared > SKIP_SQUARED_NORM, torch.inf, -1.0)
  samples = torch.zeros(len(points), num_samples, dtype=torch.long)
  rows = torch.arange(len(points))
  for i in range(1, num_samples):
    last = points[rows, samples[:, i - 1]][:, None]
    to_last = (points - last).square_().sum(-1)
    torch.minimum(distance, to_last, out=distance)
    samples[:, i] = distance.argmax(-1)
  return samples


class MiniPointNet(nn.Module):
  """One vector per group of points."""

  def __init__(self, features):
    super().__init__()
    self.first_conv = nn.Sequential(
      nn.Conv1d(3, 128, 1),
      nn.BatchNorm1d(128),
      nn.ReLU(),
      nn.Conv1d(128, 256, 1),
    )
    self.second_conv = nn.Sequential(
      nn.Conv1d(512, 512, 1),
      nn.BatchNorm1d(512),
      nn.ReLU(),
      nn.Conv1d(512, features, 1),
    )

  def forward(self, groups):
    """[B, G, k, 3] to [B, G, features]."""
    x = self.first_conv(groups.flatten(0, 1).transpose(1, 2))
    top = x.max(dim=2, keepdim=True).values.expand_as(x)
    x = self.second_conv(torch.cat([top, x], dim=1))
    return x.max(dim=2).values.unflatten(0, groups.shape[:2])


class PointEncoder(nn.Module):
  """Point transformer; all tokens, CLS first."""

  def __init__(
    self, width, depth, num_heads, num_groups, group_size, features, fused
  ):
    super().__init__()
    self.num_groups, self.group_size = num_groups, group_size
    self.emb_encoder = MiniPointNet(features)
    self.reduce_dim = nn.Linear(features, width)
    self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    self.cls_pos = nn.Parameter(torch.zeros(1, 1, width))
    self.pos_embed = nn.Sequential(
      nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width)
    )
    self.blocks = nn.ModuleDict(
      dict(
        blocks=nn.ModuleList(
          Block(width, num_heads, False, 1e-5, fused) for _ in range(depth)
        )
      )
    )
    self.norm = nn.LayerNorm(width, 1e-6)
    self.fc_norm = nn.LayerNorm(width)  # in checkpoints, and never used

  def groups(self, points, samples):
    """Centres [B, G, 3] and neighbours around them [B, G, k, 3]."""
    rows = torch.arange(len(points))[:, None]
    centers = points[rows, samples]
    squared = torch.cdist(centers, points) ** 2
    nearest = squared.topk(self.group_size, -1, largest=False, sorted=False)[1]
    return centers, points[rows[..., None], nearest] - centers[:, :, None]

  def forward(self, points, samples=None):
    """[B, P, 3] to [B, 1 + G, D]; samples [B, G] if they are known."""
    if samples is None:
      samples = farthest_point_sampling(points, self.num_groups)
    centers, groups = self.groups(points, samples)
    x = functional.normalize(self.emb_encoder(groups), dim=-1)
    x = functional.normalize(self.reduce_dim(x), dim=-1)
    front = (len(points), -1, -1)
    x = torch.cat([self.cls_token.expand(front), x], dim=1)
    position = torch.cat(
      [self.cls_pos.expand(front), self.pos_embed(centers)], dim=1
    )
    for block in self.blocks.blocks:
      x = block(x + position)
    return self.norm(x)


class Gating(nn.Module):
  """Context gating."""

  def __init__(self, features):
    super().__init__()
    self.gating_weights = nn.Parameter(torch.zeros(features, features))
    self.bn1 = nn.BatchNorm1d(features)

  def forward(self, x):
    """[B, features] to [B, features]."""
    return x * self.bn1(x @ self.gating_weights).sigmoid()


class NetVLAD(nn.Module):
  """Weighted NetVLAD with a projection and context gating."""

  def __init__(self, width, num_clusters, features):
    super().__init__()
    self.cluster_weights = nn.Parameter(torch.zeros(width, num_clusters))
    self.cluster_weights2 = nn.Parameter(torch.zeros(1, width, num_clusters))
    self.hidden1_weights = nn.Parameter(
      torch.zeros(width * num_clusters, features)
    )
    self.bn1 = nn.BatchNorm1d(num_clusters)
    self.bn2 = nn.BatchNorm1d(features)
    self.context_gating = Gating(features)

  def forward(self, x, weights):
    """Unit tokens [B, N, D] and weights [B, N] to unit [B, features]."""
    logits = self.bn1((x @ self.cluster_weights).flatten(0, 1))
    assignment = logits.unflatten(0, x.shape[:2]).softmax(-1)
    assignment = assignment * weights[..., None]
    mass = assignment.sum(dim=1, keepdim=True)
    vlad = x.transpose(1, 2) @ assignment - mass * self.cluster_weights2
    vlad = functional.normalize(vlad, dim=1).flatten(1)
    y = self.bn2(functional.normalize(vlad) @ self.hidden1_weights)
    return functional.normalize(self.context_gating(y))


class SaliencyI2PLoc(nn.Module):
  """Both towers; the defaults are the released KITTI-360 configuration."""

  def __init__(
    self,
    *,
    image_width=384,
    image_heads=6,
    num_patches=2048,
    points_width=384,
    points_heads=3,
    depth=12,
    num_groups=3072,
    group_size=32,
    pointnet_features=1024,
    num_clusters=64,
    features=256,
    fused=True,
  ):
    super().__init__()
    self.image_encoder = ImageEncoder(
      image_width, depth, image_heads, num_patches, fused
    )
    self.pc_encoder = PointEncoder(
      points_width,
      depth,
      points_heads,
      num_groups,
      group_size,
      pointnet_features,
      fused,
    )
    self.vision_proj = NetVLAD(image_width, num_clusters, features)
    self.pc_proj = NetVLAD(points_width, num_clusters, features)

  def embed_image(self, images):
    """Unit descriptors of standardised images [B, 3, H, W]."""
    tokens = functional.normalize(self.image_encoder(images), dim=-1)
    attention = self.image_encoder.blocks[-1].attn
    return self.vision_proj(tokens, attention.token_weights(tokens))

  def embed_points(self, points, samples=None):
    """Unit descriptors of points [B, P, 3]; samples as in `PointEncoder`."""
    tokens = functional.normalize(self.pc_encoder(points, samples), dim=-1)
    attention = self.pc_encoder.blocks.blocks[-1].attn
    return self.pc_proj(tokens, attention.token_weights(tokens))


def standardized(images):
  """uint8 images [B, 3, H, W] as the network takes them."""
  mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGE_MEAN, IMAGE_STD))
  return (images / 255 - mean) / std


def from_config(config, fused=True):
  """The network of a released config of ours, in evaluation mode."""
  image, points = config.model.image, config.model.points
  height, width = config.data.image_size
  return SaliencyI2PLoc(
    image_width=image.width,
    image_heads=image.num_heads,
    num_patches=height // PATCH * (width // PATCH),
    points_width=points.width,
    points_heads=points.num_heads,
    depth=points.depth,
    num_groups=points.num_groups,
    group_size=points.group_size,
    pointnet_features=points.pointnet_features,
    num_clusters=config.model.aggregator.num_clusters,
    features=config.model.aggregator.features,
    fused=fused,
  ).eval()


def save_random_weights(config, path):
  """Writes weights of that network for both sides to load."""
  torch.manual_seed(0)
  model = from_config(config)
  for parameter in model.parameters():
    if parameter.ndim > 1 and not parameter.any():
      nn.init.normal_(parameter, std=parameter.shape[-2] ** -0.5)
  safetensors.torch.save_file(model.state_dict(), path)
