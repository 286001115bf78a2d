# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of what the authors of place-recognition models released.

From the definitions of the networks in gmberton/CosPlace, gmberton/EigenPlaces,
serizba/salad, amaralibey/MixVPR, amaralibey/Bag-of-Queries and
gmberton/deep-visual-geo-localization-benchmark. At full size by default; other
sizes have the same names.
"""

from collections.abc import Mapping
import math

import numpy as np

Shapes = dict[str, tuple[int, ...]]

DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def _linear(name, to, start, bias=True):
  shapes = {f'{name}.weight': (to, start)}
  return shapes | ({f'{name}.bias': (to,)} if bias else {})


def _norm(name, width):
  return {f'{name}.weight': (width,), f'{name}.bias': (width,)}


def _batch_norm(name, width):
  return {
    **_norm(name, width),
    f'{name}.running_mean': (width,),
    f'{name}.running_var': (width,),
    f'{name}.num_batches_tracked': (),
  }


def _conv(name, to, start, size=1, bias=False):
  shapes = {f'{name}.weight': (to, start, size, size)}
  return shapes | ({f'{name}.bias': (to,)} if bias else {})


def _resnet(depth, widths, stem, norm, layer):
  """A ResNet as torchvision builds it; `layer` names a stage by its number."""
  basic = depth == 18
  shapes = _conv(stem, widths[0], 3, 7) | _batch_norm(norm, widths[0])
  given = widths[0]
  for stage, width in enumerate(widths):
    to = width if basic else 4 * width
    for i in range(DEPTHS[depth][stage]):
      start = f'{layer(stage)}.{i}'
      sizes = [(width, given, 3), (width, width, 3)]
      if not basic:
        sizes = [(width, given, 1), (width, width, 3), (to, width, 1)]
      for k, size in enumerate(sizes):
        shapes |= _conv(f'{start}.conv{k + 1}', *size)
        shapes |= _batch_norm(f'{start}.bn{k + 1}', size[0])
      if not i and (stage or given != to):
        shapes |= _conv(f'{start}.downsample.0', to, given)
        shapes |= _batch_norm(f'{start}.downsample.1', to)
      given = to
  return shapes


def numbered_resnet(
  prefix: str, depth: int, widths: tuple[int, ...] = (64, 128, 256, 512)
) -> Shapes:
  """In an nn.Sequential; fewer widths are fewer stages."""
  return _resnet(
    depth,
    widths,
    f'{prefix}0',
    f'{prefix}1',
    lambda stage: f'{prefix}{4 + stage}',
  )


def named_resnet(
  prefix: str, depth: int, widths: tuple[int, ...] = (64, 128, 256, 512)
) -> Shapes:
  """With torchvision's names."""
  return _resnet(
    depth,
    widths,
    f'{prefix}conv1',
    f'{prefix}bn1',
    lambda stage: f'{prefix}layer{1 + stage}',
  )


def vgg16(
  prefix: str, widths: tuple[int, ...] = (64, 128, 256, 512, 512)
) -> Shapes:
  """VGG-16 up to its last convolution, as torchvision numbers it."""
  shapes, number, given = {}, 0, 3
  for width, depth in zip(widths, (2, 2, 3, 3, 3), strict=True):
    for _ in range(depth):
      shapes |= _conv(f'{prefix}{number}', width, given, 3, bias=True)
      number, given = number + 2, width
    number += 1
  return shapes


def dinov2(prefix: str, width: int = 768, depth: int = 12) -> Shapes:
  """DINOv2 as its authors name it, for 518 x 518 pixels."""
  shapes = {
    f'{prefix}cls_token': (1, 1, width),
    f'{prefix}pos_embed': (1, 1 + 37 * 37, width),
    f'{prefix}mask_token': (1, width),
    **_conv(f'{prefix}patch_embed.proj', width, 3, 14, bias=True),
    **_norm(f'{prefix}norm', width),
  }
  for i in range(depth):
    start = f'{prefix}blocks.{i}'
    shapes |= {
      **_norm(f'{start}.norm1', width),
      **_linear(f'{start}.attn.qkv', 3 * width, width),
      **_linear(f'{start}.attn.proj', width, width),
      f'{start}.ls1.gamma': (width,),
      **_norm(f'{start}.norm2', width),
      **_linear(f'{start}.mlp.fc1', 4 * width, width),
      **_linear(f'{start}.mlp.fc2', width, 4 * width),
      f'{start}.ls2.gamma': (width,),
    }
  return shapes


def cosplace(
  depth: int = 50,
  features: int = 2048,
  widths: tuple[int, ...] = (64, 128, 256, 512),
) -> Shapes:
  """CosPlace and EigenPlaces."""
  width = widths[-1] * (1 if depth == 18 else 4)
  return {
    **numbered_resnet('backbone.', depth, widths),
    'aggregation.1.p': (1,),
    **_linear('aggregation.3', features, width),
  }


def cosplace_vgg(
  features: int = 512,
  widths: tuple[int, ...] = (64, 128, 256, 512, 512),
) -> Shapes:
  """CosPlace and EigenPlaces with VGG-16."""
  return {
    **vgg16('backbone.', widths),
    'aggregation.1.p': (1,),
    **_linear('aggregation.3', features, widths[-1]),
  }


def salad(
  width: int = 768,
  depth: int = 12,
  clusters: int = 64,
  cluster: int = 128,
  token: int = 256,
  hidden: int = 512,
) -> Shapes:
  """SALAD on DINOv2."""
  start = 'aggregator'
  return {
    **dinov2('backbone.model.', width, depth),
    f'{start}.dust_bin': (),
    **_linear(f'{start}.token_features.0', hidden, width),
    **_linear(f'{start}.token_features.2', token, hidden),
    **_conv(f'{start}.cluster_features.0', hidden, width, bias=True),
    **_conv(f'{start}.cluster_features.3', cluster, hidden, bias=True),
    **_conv(f'{start}.score.0', hidden, width, bias=True),
    **_conv(f'{start}.score.3', clusters, hidden, bias=True),
  }


def mixvpr(
  channels: int = 1024,
  rows: int = 4,
  side: int = 20,
  mixers: int = 4,
  widths: tuple[int, ...] = (64, 128, 256),
  row_bias: bool = True,
) -> Shapes:
  """MixVPR on three stages of ResNet-50."""
  start, cells = 'aggregator', side * side
  shapes = {
    **named_resnet('backbone.model.', 50, widths),
    **_linear(f'{start}.channel_proj', channels, 4 * widths[-1]),
    **_linear(f'{start}.row_proj', rows, cells, row_bias),
  }
  for i in range(mixers):
    shapes |= {
      **_norm(f'{start}.mix.{i}.mix.0', cells),
      **_linear(f'{start}.mix.{i}.mix.1', cells, cells),
      **_linear(f'{start}.mix.{i}.mix.3', cells, cells),
    }
  return shapes


def _boq(start, given, width, queries, rows):
  shapes = {
    **_conv(f'{start}.proj_c', width, given, 3, bias=True),
    **_norm(f'{start}.norm_input', width),
    **_linear(f'{start}.fc', rows, 2 * queries),
  }
  for i in range(2):
    own = f'{start}.boqs.{i}'
    shapes |= {f'{own}.queries': (1, queries, width)}
    for attention in ('encoder.self_attn', 'self_attn', 'cross_attn'):
      shapes |= {
        f'{own}.{attention}.in_proj_weight': (3 * width, width),
        f'{own}.{attention}.in_proj_bias': (3 * width,),
        **_linear(f'{own}.{attention}.out_proj', width, width),
      }
    for norm in ('encoder.norm1', 'encoder.norm2', 'norm_q', 'norm_out'):
      shapes |= _norm(f'{own}.{norm}', width)
    shapes |= _linear(f'{own}.encoder.linear1', 4 * width, width)
    shapes |= _linear(f'{own}.encoder.linear2', width, 4 * width)
  return shapes


def boq_resnet(
  width: int = 512,
  queries: int = 64,
  rows: int = 32,
  widths: tuple[int, ...] = (64, 128, 256),
) -> Shapes:
  """BoQ on three stages of ResNet-50."""
  return {
    **numbered_resnet('backbone.net.', 50, widths),
    **_boq('aggregator', 4 * widths[-1], width, queries, rows),
  }


def boq_dinov2(
  width: int = 384,
  queries: int = 64,
  rows: int = 32,
  given: int = 768,
  depth: int = 12,
) -> Shapes:
  """BoQ on DINOv2."""
  return {
    **dinov2('backbone.dino.', given, depth),
    **_boq('aggregator', given, width, queries, rows),
  }


def deep_vg(
  depth: int = 18,
  clusters: int = 64,
  widths: tuple[int, ...] = (64, 128, 256),
) -> Shapes:
  """NetVLAD of the benchmark, in what its training script saves."""
  width = widths[-1] * (1 if depth == 18 else 4)
  network = {
    **numbered_resnet('backbone.', depth, widths),
    **_conv('aggregation.conv', clusters, width),
    'aggregation.centroids': (clusters, width),
  }
  start = 'model_state_dict.module.'
  moments = {'optimizer_state_dict.state.0.exp_avg': (clusters, width)}
  return {start + name: shape for name, shape in network.items()} | moments


def constant(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Tensors that take no memory: the full size costs nothing."""
  return {
    name: np.broadcast_to(np.float32(0.5), shape)
    for name, shape in shapes.items()
  }


def random(
  shapes: Mapping[str, tuple[int, ...]], seed: int = 0
) -> dict[str, np.ndarray]:
  """Tensors that neither vanish nor blow up."""
  rng = np.random.default_rng(seed)

  def tensor(name, shape):
    value = rng.normal(size=shape)
    if name.endswith(('.running_var', '.p')):
      value = 1.0 + np.abs(value)
    elif name.endswith('num_batches_tracked'):
      return np.asarray(7, np.int64)
    elif len(shape) > 1 and not name.endswith(('queries', '_token')):
      value *= 1.2 / math.sqrt(math.prod(shape[1:]))
    elif name.endswith('.weight'):  # of a norm
      value = 1.0 + 0.1 * value
    else:
      value *= 0.3
    return np.asarray(value, np.float32)

  return {name: tensor(name, shape) for name, shape in shapes.items()}
