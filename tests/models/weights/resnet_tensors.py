# SPDX-License-Identifier: Apache-2.0
"""Random tensors of a ResNet by the names of those who publish some."""

import numpy as np

from i2ploc.models.encoders import resnet

FIELDS = dict(stem_width=4, widths=(2, 3), depths=(1, 2), expansion=4)


def torchvision(model=None, channels=3):
  """Random tensors of an encoder with the names of torchvision, and a head."""
  model = model or resnet.ResNet(**FIELDS)
  rng = np.random.default_rng(0)
  tensors = {}

  def conv_norm(conv, norm, features, channels, size):
    shape = features, channels, size, size
    tensors[f'{conv}.weight'] = rng.normal(size=shape).astype(np.float32)
    for name in ('weight', 'bias', 'running_mean', 'running_var'):
      values = rng.uniform(0.5, 2.0, features).astype(np.float32)
      tensors[f'{norm}.{name}'] = values
    tensors[f'{norm}.num_batches_tracked'] = np.asarray(7)

  conv_norm('conv1', 'bn1', model.stem_width, channels, 7)
  given = model.stem_width
  stages = zip(model.widths, model.depths, strict=True)
  for stage, (width, depth) in enumerate(stages, 1):
    for i in range(depth):
      start, features = f'layer{stage}.{i}.', model.expansion * width
      conv_norm(f'{start}conv1', f'{start}bn1', width, given, 1)
      conv_norm(f'{start}conv2', f'{start}bn2', width, width, 3)
      conv_norm(f'{start}conv3', f'{start}bn3', features, width, 1)
      if not i:
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
