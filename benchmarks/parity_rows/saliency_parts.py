# SPDX-License-Identifier: Apache-2.0
"""The parts of SaliencyI2PLoc as released.

The reference ran with random weights at reduced sizes; ours takes them through
the rules that read the authors' checkpoints.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parity_rows import comparison
from i2ploc.geometry import point_cloud
from i2ploc.models import aggregators
from i2ploc.models import saliency
from i2ploc.models import vlad
from i2ploc.models.encoders import normalization
from i2ploc.models.encoders import point_transformer
from i2ploc.models.encoders import vit
from i2ploc.models.weights import load
from i2ploc.models.weights import saliency_i2ploc
from i2ploc.models.weights import vit as vit_lib

Comparison = comparison.Comparison
Module = comparison.Module

# The released forms of two parts.
POINTS = dict(
  num_heads=3,
  batch_norm=True,
  unit_tokens=True,
  raw_coordinates=True,
  skip_squared_norm=1e-3,
  qkv_bias=False,
)
NETVLAD = dict(
  norm='batch',
  output_batch_norm=True,
  gating=True,
  channel_major=True,
  epsilon=1e-12,
)


def below(
  arrays: Mapping[str, np.ndarray], prefix: str
) -> dict[str, np.ndarray]:
  """The arrays whose names start with `prefix`, by the rest of their names."""
  return {
    name.removeprefix(prefix): arrays[name]
    for name in arrays
    if name.startswith(prefix)
  }


def converted(
  tensors: Mapping[str, np.ndarray],
  rules: Sequence[load.Rule],
  shapes: Any,
  ignore: Sequence[str] = (),
) -> Any:
  """Tensors in our layout; also gradients and statistics, which look alike."""
  return load.convert(
    tensors, rules, shapes, ignore=(*saliency_i2ploc.UNUSED, *ignore)
  )


def netvlad(path):
  """Three variants, with and without the weights of saliency."""
  golden = np.load(path)
  for variant, fields in {
    'bn': {},
    'nogate': dict(gating=False),
    'bias': dict(norm='bias'),
  }.items():
    model = vlad.NetVLAD(8, 16, **NETVLAD | fields)
    for mode in ('eval', 'train'):
      yield from _netvlad_mode(golden, model, variant, mode)


def _netvlad_mode(golden, model, variant, mode):
  x = golden['x']
  mask = np.ones(x.shape[:2], bool)
  bounds = (jnp.zeros(len(x)), jnp.ones(len(x)))
  rules = saliency_i2ploc.netvlad_rules()
  score = functools.partial(_netvlad_score, model, mode == 'train')
  score = jax.jit(jax.grad(score, argnums=(0, 1), has_aux=True))
  weights = {
    'none': np.ones(x.shape[:2], np.float32),
    'w': jax.nn.sigmoid(golden['token_weight']),
    'wsmall': jax.nn.sigmoid(golden['token_weight_small']),
  }
  shapes = jax.eval_shape(
    model.init,
    jax.random.key(0),
    aggregators.Tokens(x, 0 * x[..., 0], mask),
    weights['w'],
    bounds,
  )
  params = below(golden, f'{variant}/param/')
  variables = converted(params, rules, shapes)
  # BatchNorm sees five rows, which amplifies the last bits.
  tolerance = 1e-5 if mode == 'eval' else 5e-5
  for name, weight in weights.items():
    (by_variables, by_x), (descriptor, out, statistics) = score(
      variables, x, weight, golden['cotangent']
    )
    expected = below(golden, f'{variant}/{mode}/{name}/')
    yield Comparison(
      f'{mode}, assignment', out['assignment'], expected['assign'], 1e-5
    )
    residuals = out['residuals'][:, 0].swapaxes(1, 2)
    yield Comparison(
      f'{mode}, residuals', residuals, expected['vlad_intranorm_BCK'], 1e-5
    )
    yield Comparison(
      f'{mode}, output',
      (out['pooled'], descriptor),
      (expected['out'], expected['out_l2']),
      tolerance,
    )
    # Ours normalises its tokens: of the gradient the radial part is gone.
    radial = (x * expected['grad_x']).sum(-1, keepdims=True)
    tensors = params | below(expected, 'grad/')
    wanted = converted(tensors, rules, shapes)
    yield Comparison(
      f'{mode}, gradients',
      (by_variables['params'], by_x),
      (wanted['params'], expected['grad_x'] - x * radial),
      tolerance,
    )
    if mode == 'train':
      tensors = params | below(expected, 'buffer_after/')
      wanted = converted(tensors, rules, shapes)['batch_stats']
      yield Comparison('train, buffers', statistics, wanted, 1e-5)


def _netvlad_score(model, train, variables, x, weights, cotangent):
  """Sum of the descriptor times the cotangent, and all there is."""
  tokens = aggregators.Tokens(x, 0 * x[..., 0], jnp.ones(x.shape[:2], bool))
  bounds = (jnp.zeros(len(x)), jnp.ones(len(x)))
  (descriptor, out), changed = model.apply(
    variables, tokens, weights, bounds, train, mutable='batch_stats'
  )
  aux = (descriptor, out, changed['batch_stats'])
  return jnp.sum(descriptor * cotangent), aux


def attention_saliency(path):
  """The released form, CLS token included."""
  golden = np.load(path)
  for case in ('img_plain', 'img_peaked', 'pts_plain', 'pts_peaked'):
    case = below(golden, f'{case}/')
    qkv = case['tokens'] @ case['qkv.weight'].T + case.get('qkv.bias', 0.0)
    split = qkv.reshape(*qkv.shape[:2], 3, int(case['num_heads']), -1)
    query, key, _ = split.transpose(2, 0, 3, 1, 4)
    weights, attention = saliency.released_saliency(query, key)
    yield Comparison('attention', attention, case['attention'][:, :, 0], 1e-6)
    yield Comparison('weights', weights, case['weight'], 1e-6)


def position_embeddings(path):
  """Resampled as the release does it; CLS keeps its own."""
  golden = np.load(path)
  position = golden['pos_embed_1x197x6']
  model = vit.ViT(width=6, depth=0)
  for rows, columns in ((32, 64), (23, 77), (7, 10), (20, 11)):
    rules = vit_lib.vit_rules(vit_lib.TIMM, model, (14, 14), (rows, columns))
    made = {rule.path: rule.transform for rule in rules}
    found = [
      made['params/cls'](np.zeros(6), position),
      made['params/position'](position),
    ]
    expected = golden[f'saliency_resample_{rows}x{columns}']
    found = np.concatenate(found, axis=1)
    yield Comparison('bicubic, CLS in front', found, expected, 3e-6)


def farthest_points(path):
  """Indices, which have to be equal."""
  golden = np.load(path)
  for case in ('uniform', 'allskipped', 'exhausted', 'grid'):
    points = golden[f'fps_{case}/points'][0]
    if case == 'grid':
      # The released operator resolves exact ties by its blocks of threads.
      quantity, expected = 'ties, lowest index', 'fps_grid/idx_lowest_index_tie'
    else:
      quantity, expected = 'samples', f'fps_{case}/idx'
    expected = golden[expected].reshape(-1)
    samples = point_cloud.farthest_point_sampling(
      points, np.ones(len(points), bool), len(expected), 1e-3
    )
    yield Comparison(quantity, samples, expected, 0.0)


def point_branch(path):
  """Samples, groups and tokens of three clouds."""
  golden = np.load(path)
  model = point_transformer.PointTransformer(
    width=48,
    depth=2,
    num_groups=32,
    group_size=8,
    pointnet_features=64,
    **POINTS,
  )
  points = golden['points']
  mask = np.ones(points.shape[:2], bool)
  shapes = jax.eval_shape(model.init, jax.random.key(0), points, mask)
  params = below(golden, 'param/')
  rules = saliency_i2ploc.point_transformer_rules(model.depth)
  ignore = ('fc_norm.*',)
  variables = converted(params, rules, shapes, ignore)
  for mode in ('eval', 'train'):
    apply = functools.partial(
      model.apply, train=mode == 'train', mutable='batch_stats'
    )
    (_, out), changed = jax.jit(apply)(variables, points, mask)
    expected = below(golden, f'{mode}/')
    yield Comparison('samples', out['samples'], expected['fps_idx'], 0.0)
    # Where the k-th and the next neighbour are duplicates either is right.
    unique = golden['knn_gap_k_kplus1'] > 0
    found, wanted = (
      np.sort(groups, -1)[unique]
      for groups in (out['groups'], expected['knn_idx_sorted'])
    )
    yield Comparison('groups', found, wanted, 0.0)
    yield Comparison(
      f'{mode}, tokens', out['sequence'], expected['tokens'], 1e-5
    )
    directions = normalization.unit(out['sequence'])
    yield Comparison(
      f'{mode}, directions', directions, expected['tokens_l2'], 2e-6
    )
    if mode == 'train':
      tensors = params | below(expected, 'buffer_after/')
      wanted = converted(tensors, rules, shapes, ignore)['batch_stats']
      yield Comparison('train, buffers', changed['batch_stats'], wanted, 1e-5)


BRANCH = 'saliency_point_branch.npz'
MODULES = (
  Module('NetVLAD', 'saliency_netvlad.npz', netvlad),
  Module('released saliency', 'saliency_attention.npz', attention_saliency),
  Module('released positions', 'torch_bicubic.npz', position_embeddings),
  Module('farthest points', BRANCH, farthest_points),
  Module('point branch', BRANCH, point_branch),
)
