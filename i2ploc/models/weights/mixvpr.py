# SPDX-License-Identifier: Apache-2.0
"""MixVPR as released: ResNet-50 cut after its third stage, MLPs over cells.

Ali-bey, Chaib-draa and Giguere, WACV 2023. The encoder has torchvision's names
behind `backbone.model.`.
"""

import math

from i2ploc.errors import InputError
from i2ploc.models import mixing
from i2ploc.models.weights import load
from i2ploc.models.weights import released
from i2ploc.models.weights import resnet

_START = 'aggregator.'
# Pixels of a cell's side.
_STRIDE = 16


def _matches(tensors):
  return released.has(
    tensors, f'{_START}mix.0.mix.0.weight', f'{_START}row_proj.weight'
  )


def _side(tensors):
  """Cells of a row of the square grid."""
  count = tensors[f'{_START}row_proj.weight'].shape[1]
  side = math.isqrt(count)
  if side * side != count:
    raise InputError(
      f'a MixVPR of {count} cells, which make no square, and rows and columns '
      'are not written. Name the aggregator mixvpr and give its grid'
    )
  return side


def _depth(tensors):
  starts = {n for n in tensors if n.startswith(f'{_START}mix.')}
  return len({name.split('.')[2] for name in starts})


def _make_aggregator(tensors):
  side = _side(tensors)
  hidden = len(tensors[f'{_START}mix.0.mix.1.weight'])
  return mixing.MixVPR(
    grid=(side, side),
    channels=len(tensors[f'{_START}channel_proj.weight']),
    rows=len(tensors[f'{_START}row_proj.weight']),
    depth=_depth(tensors),
    mlp_ratio=hidden / side**2,
    row_bias=f'{_START}row_proj.bias' in tensors,
  )


def _rules(tensors):
  bias = f'{_START}row_proj.bias' in tensors
  rules = [
    *load.dense('params/channels_layer', f'{_START}channel_proj'),
    *load.dense('params/rows_layer', f'{_START}row_proj', bias=bias),
  ]
  for i in range(_depth(tensors)):
    start = f'{_START}mix.{i}.mix'
    rules += [
      *load.norm(f'params/norm{i}', f'{start}.0'),
      *load.dense(f'params/expand{i}', f'{start}.1'),
      *load.dense(f'params/contract{i}', f'{start}.3'),
    ]
  return rules


RELEASE = released.Release(
  'MixVPR',
  _matches,
  lambda _: released.Backbone('backbone.model.', resnet.TORCHVISION),
  _make_aggregator,
  _rules,
  lambda tensors: (_STRIDE * _side(tensors),) * 2,
  any_size=False,
)
