# SPDX-License-Identifier: Apache-2.0
"""CosPlace and EigenPlaces as released: ResNet or VGG-16, GeM, a linear layer.

Berton et al., CVPR 2022 and ICCV 2023. Both have the same network: a ResNet or
VGG-16 of torchvision in an nn.Sequential (`backbone.4.0.conv1.weight`,
`backbone.28.weight`), and the second and the fourth of five layers of
`aggregation` have parameters. VGG-16 ends with its last convolution, which has
no ReLU behind it then.
"""

from i2ploc.models import aggregators
from i2ploc.models.weights import load
from i2ploc.models.weights import released

_POWER, _LINEAR = 'aggregation.1.p', 'aggregation.3'


def _matches(tensors):
  return released.has(tensors, _POWER, f'{_LINEAR}.weight')


def _make_aggregator(tensors):
  features = len(tensors[f'{_LINEAR}.weight'])
  return aggregators.GeM(
    features, epsilon=1e-6, unit_tokens=True, use_bias=True
  )


def _rules(tensors):
  del tensors
  return [
    load.Rule('params/power', (_POWER,), lambda p: p.reshape(())),
    *load.dense('params/SectorHead_0', _LINEAR),
  ]


RELEASE = released.Release(
  'CosPlace or EigenPlaces',
  _matches,
  released.numbered('backbone.'),
  _make_aggregator,
  _rules,
  lambda _: (512, 512),
)
