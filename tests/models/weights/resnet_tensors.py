# SPDX-License-Identifier: Apache-2.0
"""Random tensors of a ResNet by the names of those who publish some."""

import numpy as np

from i2ploc.models.encoders import resnet

FIELDS = dict(stem_width=4, widths=(2, 3), depths=(1, 2), expansion=4)


# Of the networks that torchvision and timm publish under these names.
PUBLISHED = {
  'resnet18': dict(depths=(2, 2, 2, 2), expansion=1, block_kind='basic'),
  'resnet34': dict(depths=(3, 4, 6, 3), expansion=1, block_kind='basic'),
  'resnet50': dict(depths=(3, 4, 6, 3)),
  'resnet101': dict(depths=(3, 4, 23, 3)),
  'resnet152': dict(depths=(3, 8, 36, 3)),
}


def torchvision(model=None, channels=3, fill=None):
  """Tensors of an encoder with the names of torchvision, and a head.

  Args:
    model: whose; by default that of FIELDS.
    channels: of its images.
    fill: takes a shape, returns numbers; by default random ones.
  """
  model = model or resnet.ResNet(**FIELDS)
  rng = np.random.default_rng(0)
  tensors = {}

  def numbers(shape, draw):
    return fill(shape) if fill else draw(size=shape).astype(np.float32)

  def positive(size):
    return rng.uniform(0.5, 2.0, size)

  def conv_norm(conv, norm, features, channels, size):
    shape = features, channels, size, size
    tensors[f'{conv}.weight'] = numbers(shape, rng.normal)
    for name in ('weight', 'bias', 'running_mean', 'running_var'):
      tensors[f'{norm}.{name}'] = numbers((features,), positive)
    tensors[f'{norm}.num_batches_tracked'] = np.asarray(7)

  conv_norm('conv1', 'bn1', model.stem_width, channels, 7)
  given = model.stem_width
  stages = zip(model.widths, model.depths, strict=True)
  for stage, (width, depth) in enumerate(stages, 1):
    for i in range(depth):
      start, features = f'layer{stage}.{i}.', model.expansion * width
      basic = model.block_kind == 'basic'
      size = 3 if basic else 1
      conv_norm(f'{start}conv1', f'{start}bn1', width, given, size)
      conv_norm(f'{start}conv2', f'{start}bn2', width, width, 3)
      if not basic:
        conv_norm(f'{start}conv3', f'{start}bn3', features, width, 1)
      # ResNet-18 and ResNet-34 have none in their first stage.
      if not i and (stage > 1 or given != features):
        names = (f'{start}downsample.{k}' for k in (0, 1))
        conv_norm(*names, features, given, 1)
      given = features
  tensors['fc.weight'] = np.ones((10, given), np.float32)
  tensors['fc.bias'] = np.ones(10, np.float32)
  return tensors


def as_hugging_face(tensors):
  """The same tensors by the names of Hugging Face, without the head."""
  renamed = {}
  for name, tensor in tensors.items():
    parts = name.split('.')
    if parts[0] == 'fc':
      continue
    kind, last = parts[-2], parts[-1]
    if parts[0].startswith('layer'):
      stage, i = int(parts[0][5:]) - 1, parts[1]
      place = f'encoder.stages.{stage}.layers.{i}.'
      if parts[2] == 'downsample':
        layer = 'shortcut'
        norm = kind == '1'
      else:
        layer, norm = f'layer.{int(kind[-1]) - 1}', kind.startswith('bn')
    else:
      place, layer, norm = 'embedder.', 'embedder', kind == 'bn1'
    part = 'normalization' if norm else 'convolution'
    renamed[f'{place}{layer}.{part}.{last}'] = tensor
  return renamed
