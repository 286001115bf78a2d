# SPDX-License-Identifier: Apache-2.0
"""BoQ as released, on ResNet-50 cut after its third stage or on DINOv2.

Ali-bey, Chaib-draa and Giguere, CVPR 2024. The ResNet is numbered behind
`backbone.net.`; DINOv2 has its authors' names behind `backbone.dino.`, and its
tokens are taken without its last norm.
"""

from i2ploc.models import queries
from i2ploc.models.weights import load
from i2ploc.models.weights import released
from i2ploc.models.weights import vit

_START = 'aggregator.'
_CONV = f'{_START}proj_c.weight'
_DINO, _NET = 'backbone.dino.', 'backbone.net.'


def _matches(tensors):
  return released.has(tensors, _CONV, f'{_START}boqs.0.queries')


def _is_dino(tensors):
  return any(name.startswith(_DINO) for name in tensors)


def _backbone(tensors):
  if _is_dino(tensors):
    return released.Backbone(_DINO, vit.DINOV2, last_norm=False)
  return released.Backbone(_NET, released.NUMBERED)


def _depth(tensors):
  starts = {n for n in tensors if n.startswith(f'{_START}boqs.')}
  return len({name.split('.')[2] for name in starts})


def _make_aggregator(tensors):
  return queries.BoQ(
    channels=len(tensors[_CONV]),
    num_queries=tensors[f'{_START}boqs.0.queries'].shape[1],
    depth=_depth(tensors),
    rows=len(tensors[f'{_START}fc.weight']),
    hidden=len(tensors[f'{_START}boqs.0.encoder.linear1.weight']),
    kernel_size=tensors[_CONV].shape[-1],
  )


def _attention(path, name):
  """Rules of an `Attention` from torch's MultiheadAttention."""
  return [
    load.Rule(f'{path}/qkv/kernel', (f'{name}.in_proj_weight',), lambda w: w.T),
    load.Rule(f'{path}/qkv/bias', (f'{name}.in_proj_bias',)),
    *load.dense(f'{path}/projection', f'{name}.out_proj'),
  ]


def _cross_attention(path, name):
  """Rules of a `CrossAttention`: queries are the first third of the rows."""

  def part(first, last):
    def take(w):
      width = len(w) // 3
      return w[first * width : last * width].T

    return take

  weight, bias = (f'{name}.in_proj_{x}' for x in ('weight', 'bias'))
  return [
    load.Rule(f'{path}/query/kernel', (weight,), part(0, 1)),
    load.Rule(f'{path}/query/bias', (bias,), part(0, 1)),
    load.Rule(f'{path}/key_value/kernel', (weight,), part(1, 3)),
    load.Rule(f'{path}/key_value/bias', (bias,), part(1, 3)),
    *load.dense(f'{path}/projection', f'{name}.out_proj'),
  ]


def _rules(tensors):
  rules = [
    *load.conv('params/reduce', f'{_START}proj_c'),
    *load.norm('params/norm', f'{_START}norm_input'),
    *load.dense('params/mix', f'{_START}fc'),
  ]
  for i in range(_depth(tensors)):
    path, start = f'params/block{i}', f'{_START}boqs.{i}'
    layer = f'{start}.encoder'
    rules += [
      load.Rule(f'{path}/queries', (f'{start}.queries',)),
      *_attention(f'{path}/attention', f'{layer}.self_attn'),
      *load.norm(f'{path}/norm1', f'{layer}.norm1'),
      *load.dense(f'{path}/expand', f'{layer}.linear1'),
      *load.dense(f'{path}/contract', f'{layer}.linear2'),
      *load.norm(f'{path}/norm2', f'{layer}.norm2'),
      *_attention(f'{path}/query_attention', f'{start}.self_attn'),
      *load.norm(f'{path}/query_norm', f'{start}.norm_q'),
      *_cross_attention(f'{path}/cross_attention', f'{start}.cross_attn'),
      *load.norm(f'{path}/answer_norm', f'{start}.norm_out'),
    ]
  return rules


RELEASE = released.Release(
  'BoQ',
  _matches,
  _backbone,
  _make_aggregator,
  _rules,
  lambda tensors: (322, 322) if _is_dino(tensors) else (384, 384),
)
