# SPDX-License-Identifier: Apache-2.0
"""SALAD as released: DINOv2 with its last norm, optimal transport.

Izquierdo and Civera, CVPR 2024. The encoder has the names of DINOv2's authors
behind `backbone.model.`.
"""

from i2ploc.models import salad
from i2ploc.models.weights import load
from i2ploc.models.weights import released
from i2ploc.models.weights import vit

_START = 'aggregator.'


def _matches(tensors):
  return released.has(tensors, f'{_START}dust_bin', f'{_START}score.0.weight')


def _make_aggregator(tensors):
  def width(name):
    return len(tensors[f'{_START}{name}.weight'])

  return salad.SALAD(
    num_clusters=width('score.3'),
    cluster_features=width('cluster_features.3'),
    token_features=width('token_features.2'),
    hidden=width('score.0'),
  )


def _rules(tensors):
  del tensors
  return [
    load.Rule('params/dustbin', (f'{_START}dust_bin',)),
    *load.dense('params/token_hidden', f'{_START}token_features.0'),
    *load.dense('params/token', f'{_START}token_features.2'),
    *released.pointwise('params/feature_hidden', f'{_START}cluster_features.0'),
    *released.pointwise('params/feature', f'{_START}cluster_features.3'),
    *released.pointwise('params/score_hidden', f'{_START}score.0'),
    *released.pointwise('params/score', f'{_START}score.3'),
  ]


RELEASE = released.Release(
  'SALAD',
  _matches,
  lambda _: released.Backbone('backbone.model.', vit.DINOV2),
  _make_aggregator,
  _rules,
  lambda _: (322, 322),
)
