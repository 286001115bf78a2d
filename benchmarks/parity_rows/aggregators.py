# SPDX-License-Identifier: Apache-2.0
"""Aggregators against the papers' formulas, written as loops over tokens.

These oracles are independent of the library: numpy in float64, one set of
tokens at a time, sums written out. They read our variables.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from benchmarks.parity_rows import comparison
from i2ploc.models import aggregators
from i2ploc.models import mixing
from i2ploc.models import queries
from i2ploc.models import salad
from i2ploc.models import vlad

Comparison = comparison.Comparison
Module = comparison.Module
GRID = (5, 7)


def _unit(x):
  return x / max(np.linalg.norm(x), 1e-12)


def _dense(x, layer):
  y = np.asarray(x, np.float64) @ np.asarray(layer['kernel'], np.float64)
  return y + layer['bias'] if 'bias' in layer else y


def _relu(x):
  return np.where(x > 0, x, 0.0)


def _layer_norm(x, layer):
  """LayerNorm of the last axis, vector by vector."""
  y = np.empty_like(x)
  for place in np.ndindex(x.shape[:-1]):
    row = x[place]
    deviation = math.sqrt(((row - row.mean()) ** 2).mean() + 1e-5)
    y[place] = (row - row.mean()) / deviation * layer['scale'] + layer['bias']
  return y


def gem(x: np.ndarray, params: Any, epsilon: float = 1e-6) -> np.ndarray:
  """CosPlace's descriptor [D] of tokens [N, C]."""
  power, head = float(params['power']), params['SectorHead_0']
  total = np.zeros(x.shape[1])
  for token in x.astype(np.float64):
    total += np.maximum(_unit(token), epsilon) ** power
  return _unit(_dense((total / len(x)) ** (1 / power), head))


def hard_vlad(
  x: np.ndarray, words: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Descriptor [K * D] of tokens [N, D] with weights [N]."""
  sums = np.zeros(words.shape)
  for token, weight in zip(x.astype(np.float64), weights, strict=True):
    token = _unit(token)
    nearest = np.argmin([np.linalg.norm(token - word) for word in words])
    sums[nearest] += weight * (token - words[nearest])
  return _unit(np.concatenate([_unit(row) for row in sums]))


def netvlad(x: np.ndarray, params: Any) -> np.ndarray:
  """Descriptor [K * D] of tokens [N, D], in the form of the benchmark."""
  centers = np.asarray(params['centers'], np.float64)
  sums = np.zeros(centers.shape)
  for token in x.astype(np.float64):
    token = _unit(token)
    logits = _dense(token, params['assign'])
    share = np.exp(logits - logits.max())
    share /= share.sum()
    for k, center in enumerate(centers):
      sums[k] += share[k] * (token - center)
  return _unit(np.concatenate([_unit(row) for row in sums]))


def sinkhorn(scores: np.ndarray, dustbin: float, iterations: int) -> np.ndarray:
  """Shares [N, K] of n > K tokens, by scaling rows and columns in turn."""
  count, num_clusters = scores.shape
  plan = np.exp(np.append(scores, np.full((count, 1), dustbin), axis=1))
  wanted = np.append(np.ones(num_clusters), count - num_clusters)
  for _ in range(iterations):
    for k in range(num_clusters + 1):
      plan[:, k] *= wanted[k] / plan[:, k].sum()
    for i in range(count):
      plan[i] /= plan[i].sum()
  return plan[:, :num_clusters]


def salad_descriptor(
  cls: np.ndarray, x: np.ndarray, params: Any, iterations: int = 3
) -> np.ndarray:
  """Descriptor of a CLS token [D] and tokens [N, D]."""

  def mlp(x, name):
    return _dense(_relu(_dense(x, params[f'{name}_hidden'])), params[name])

  plan = sinkhorn(mlp(x, 'score'), float(params['dustbin']), iterations)
  features = mlp(x, 'feature')
  num_clusters, width = plan.shape[1], features.shape[1]
  sums = np.zeros((width, num_clusters))
  for i, k in np.ndindex(plan.shape):
    sums[:, k] += plan[i, k] * features[i]
  for k in range(num_clusters):
    sums[:, k] = _unit(sums[:, k])
  return _unit(np.concatenate([_unit(mlp(cls, 'token')), sums.ravel()]))


def mixvpr(x: np.ndarray, params: Any) -> np.ndarray:
  """Descriptor of the cells [N, C] of a grid."""
  maps = x.astype(np.float64).T
  for i in range(sum(name.startswith('norm') for name in params)):
    hidden = _dense(_layer_norm(maps, params[f'norm{i}']), params[f'expand{i}'])
    maps = maps + _dense(_relu(hidden), params[f'contract{i}'])
  cells = _dense(maps.T, params['channels_layer'])
  return _unit(_dense(cells.T, params['rows_layer']).ravel())


def _attention(query, key, value, num_heads):
  """Attended values [Q, D], head by head and query by query."""
  width = query.shape[1] // num_heads
  y = np.zeros((len(query), query.shape[1]))
  for h in range(num_heads):
    own = slice(h * width, (h + 1) * width)
    for i in range(len(query)):
      logits = [query[i, own] @ k / math.sqrt(width) for k in key[:, own]]
      share = np.exp(logits - np.max(logits))
      share /= share.sum()
      for weight, v in zip(share, value[:, own], strict=True):
        y[i, own] += weight * v
  return y


def _self_attention(x, params, num_heads):
  parts = np.split(_dense(x, params['qkv']), 3, axis=1)
  return _dense(_attention(*parts, num_heads), params['projection'])


def _convolve(x, layer):
  """3 x 3 convolution of x [H, W, C], zeros around."""
  rows, columns, _ = x.shape
  y = np.tile(np.asarray(layer['bias'], np.float64), (rows, columns, 1))
  for i, j, a, b in np.ndindex(rows, columns, 3, 3):
    if 0 <= i + a - 1 < rows and 0 <= j + b - 1 < columns:
      y[i, j] += x[i + a - 1, j + b - 1] @ layer['kernel'][a, b]
  return y


def boq(x: np.ndarray, grid: tuple[int, int], params: Any) -> np.ndarray:
  """Descriptor of the cells [N, C] of a grid."""
  cells = x.astype(np.float64).reshape(*grid, -1)
  cells = _convolve(cells, params['reduce'])
  x = _layer_norm(cells.reshape(len(x), -1), params['norm'])
  num_heads = max(x.shape[1] // 64, 1)
  answers = []
  for i in range(sum(name.startswith('block') for name in params)):
    block = params[f'block{i}']
    x = x + _self_attention(x, block['attention'], num_heads)
    x = _layer_norm(x, block['norm1'])
    hidden = _relu(_dense(x, block['expand']))
    x = _layer_norm(x + _dense(hidden, block['contract']), block['norm2'])
    asked = np.asarray(block['queries'][0], np.float64)
    talk = _self_attention(asked, block['query_attention'], num_heads)
    asked = _layer_norm(asked + talk, block['query_norm'])
    cross = block['cross_attention']
    key, value = np.split(_dense(x, cross['key_value']), 2, axis=1)
    found = _attention(_dense(asked, cross['query']), key, value, num_heads)
    found = _dense(found, cross['projection'])
    answers.append(_layer_norm(found, block['answer_norm']))
  return _unit(_dense(np.concatenate(answers).T, params['mix']).ravel())


def random_tokens(
  batch: int = 3, width: int = 24, seed: int = 0, cls: bool = False
) -> aggregators.Tokens:
  """Tokens of GRID, behind a CLS token if wanted."""
  length = GRID[0] * GRID[1] + cls
  rng = np.random.default_rng(seed)
  return aggregators.Tokens(
    rng.normal(size=(batch, length, width)).astype(np.float32),
    np.zeros((batch, length), np.float32),
    np.ones((batch, length), bool),
    aggregators.Grid(*GRID),
  )


def random_variables(model: nn.Module, *args: Any, seed: int = 0) -> dict:
  """Variables that neither vanish nor blow up, in the model's own shapes."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
  rng = np.random.default_rng(seed)

  def leaf(path, shape):
    name, value = path[-1].key, rng.normal(size=shape.shape)
    if name == 'kernel':
      value *= 1.5 / math.sqrt(math.prod(shape.shape[:-1]))
    elif name == 'power':
      value = np.asarray(2.5)
    elif name == 'scale':
      value = 1.0 + 0.1 * value
    elif name in ('bias', 'vocabulary', 'centers'):
      value *= 0.3
    return np.asarray(value, np.float32)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def _compare(
  model: nn.Module,
  describe: Callable[..., np.ndarray],
  path: Any = None,
  cls: bool = False,
):
  """The descriptors of a batch; `describe` takes features and variables."""
  del path
  tokens = random_tokens(cls=cls)
  args = tokens, np.ones(tokens.mask.shape, np.float32), None
  variables = random_variables(model, *args)
  found, _ = jax.jit(model.apply)(variables, *args)
  expected = np.stack([describe(x, variables) for x in tokens.features])
  yield Comparison('descriptor', found, expected, 1e-5)


def _module(name, model, describe, cls=False):
  compare = functools.partial(_compare, model, describe, cls=cls)
  return Module(name, '', compare)


# Small forms of the released models, and what they are compared with.
MODULES = (
  _module(
    'GeM of CosPlace',
    aggregators.GeM(16, epsilon=1e-6, unit_tokens=True, use_bias=True),
    lambda x, v: gem(x, v['params']),
  ),
  _module(
    'NetVLAD of the benchmark',
    vlad.NetVLAD(8, features=0, norm='none', epsilon=1e-12),
    lambda x, v: netvlad(x, v['params']),
  ),
  _module(
    'VLAD',
    vlad.VLAD(8),
    lambda x, v: hard_vlad(x, v['map']['vocabulary'], np.ones(len(x))),
  ),
  _module(
    'SALAD',
    salad.SALAD(8, cluster_features=6, token_features=10, hidden=20),
    lambda x, v: salad_descriptor(x[0], x[1:], v['params']),
    cls=True,
  ),
  _module(
    'MixVPR',
    mixing.MixVPR(grid=GRID, channels=12, rows=3, depth=2),
    lambda x, v: mixvpr(x, v['params']),
  ),
  _module(
    'BoQ',
    queries.BoQ(channels=128, num_queries=6, rows=4, hidden=40),
    lambda x, v: boq(x, GRID, v['params']),
  ),
)
