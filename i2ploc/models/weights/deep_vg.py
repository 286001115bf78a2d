# SPDX-License-Identifier: Apache-2.0
"""NetVLAD of the Deep Visual Geo-localization Benchmark: ResNet, NetVLAD.

Berton et al., CVPR 2022. The checkpoints of its training script hold the
network as `model_state_dict`, a ResNet of torchvision in an nn.Sequential, cut
after its third stage (conv4) or whole.
"""

from i2ploc.models import vlad
from i2ploc.models.weights import load
from i2ploc.models.weights import released

_ASSIGN, _CENTERS = 'aggregation.conv.weight', 'aggregation.centroids'


def _matches(tensors):
  return released.has(tensors, _ASSIGN, _CENTERS)


def _make_aggregator(tensors):
  return vlad.NetVLAD(
    len(tensors[_CENTERS]), features=0, norm='none', epsilon=1e-12
  )


def _rules(tensors):
  del tensors
  return [
    load.Rule(
      'params/assign/kernel', (_ASSIGN,), lambda w: w.reshape(len(w), -1).T
    ),
    load.Rule('params/centers', (_CENTERS,)),
  ]


RELEASE = released.Release(
  'NetVLAD of the Deep VG benchmark',
  _matches,
  released.numbered('backbone.'),
  _make_aggregator,
  _rules,
  lambda _: (480, 640),
)
