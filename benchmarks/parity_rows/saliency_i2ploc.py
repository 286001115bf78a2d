# SPDX-License-Identifier: Apache-2.0
"""The whole of SaliencyI2PLoc as released, from checkpoint to gradients.

The reference ran with random weights at a reduced size; ours reads them as it
reads the authors' checkpoints.
"""

import functools
from typing import Any

import jax
import numpy as np

from benchmarks.parity_rows import comparison
from benchmarks.parity_rows import saliency_parts
from i2ploc import factory
from i2ploc.geometry import panorama
from i2ploc.losses import contrastive
from i2ploc.losses import relational
from i2ploc.models import towers
from i2ploc.models.weights import saliency_i2ploc

Comparison = comparison.Comparison
Module = comparison.Module
SIZE = (64, 128)
SIDES = (('image', 'img'), ('points', 'pts'))


def released_model(**fields: Any) -> towers.Towers:
  """The released towers at the reference's size, but for `fields`."""
  points = dict(
    name='point_transformer',
    width=48,
    depth=3,
    num_groups=32,
    group_size=8,
    pointnet_features=64,
    **saliency_parts.POINTS,
  )
  reduced = dict(
    image=dict(name='vit', width=96, depth=3, num_heads=6),
    points=points,
    aggregator=dict(
      name='netvlad', num_clusters=8, features=32, **saliency_parts.NETVLAD
    ),
    dtype='float32',
    image_size=SIZE,
    num_points=512,
    projection='equirectangular',
    saliency='released',
    aggregate_cls=True,
    # The reference was given images that had been normalised.
    image_mean=(0.0, 0.0, 0.0),
    image_std=(1.0, 1.0, 1.0),
  )
  return factory.make_model(**reduced | fields)


def released_batch(images: np.ndarray, points: np.ndarray) -> towers.Batch:
  """Panoramas [B, H, W, 3] and clouds [B, P, 3] as the towers take them."""
  size = len(points)
  matrix = panorama.sphere_intrinsics(images.shape[1:3])
  axes = [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
  return {
    'image': images,
    'intrinsics': np.tile(matrix, (size, 1, 1)),
    'points': np.pad(points, ((0, 0), (0, 0), (0, 1))),
    'points_mask': np.ones(points.shape[:2], bool),
    'camera_from_lidar': np.tile(np.asarray(axes, np.float32), (size, 1, 1)),
  }


def stored_batch(golden: np.lib.npyio.NpzFile) -> towers.Batch:
  """The reference's inputs."""
  images = golden['image'][:, 0].transpose(0, 2, 3, 1)
  return released_batch(images, golden['point_cloud'][:, 0])


def _load(path, **fields):
  """The reference's outputs, the model, its variables and the inputs."""
  golden = np.load(path.with_suffix('.npz'))
  model, batch = released_model(**fields), stored_batch(golden)
  variables = saliency_i2ploc.load_variables(path, model, from_size=SIZE)
  return golden, model, variables, batch


def _loss(found, params, weights):
  """The released loss, given weights of the terms of its relation loss."""
  image, points = found['image'][0], found['points'][0]
  scale = contrastive.clamped_scale(params['log_scale'])
  loss, _ = contrastive.info_nce(image, points, scale, form='concatenated')
  # Released: descriptors, not features before their normalisation.
  _, terms = relational.relation_consistency(
    image,
    points,
    image,
    points,
    euclidean_weight=1.0,
    angle_weight=1.0,
    hyperbolic_weight=1.0,
    max_norm=float('inf'),
  )
  return loss + sum(weights[name] * term for name, term in terms.items())


# As shipped, and all of them; both doubled, as released.
SHIPPED = dict(euclidean=0.0, angle=2.0, hyperbolic=0.0)
ALL_TERMS = dict(euclidean=2.0, angle=2.0, hyperbolic=2.0)


def evaluation(path):
  """Everything between inputs and loss, BatchNorm with its statistics."""
  golden, model, variables, batch = _load(path)
  expected = saliency_parts.below(golden, 'eval_w/')

  def run(variables, batch):
    found, state = model.apply(
      variables,
      batch,
      capture_intermediates=True,
      mutable=['intermediates'],
      method='every_side',
    )
    loss = _loss(found, variables['params'], SHIPPED)
    return found, state['intermediates'], loss

  towers, inside, loss = jax.jit(run)(variables, batch)
  embedded = {side: descriptor for side, (descriptor, _) in towers.items()}
  out = {side: out for side, (_, out) in towers.items()}
  patches = inside['image']['embed']['__call__'][0]
  groups = inside['points']['pointnet']['__call__'][0]
  found = {
    'img_patch_embed': patches.reshape(expected['img_patch_embed'].shape),
    'pts_mini_pointnet': groups,
  }
  for side, name in SIDES:
    found[f'{name}_tokens'] = out[side]['sequence']
    found[f'{name}_vlad_out'] = out[side]['pooled']
    for i in range(3):
      block = inside[side][f'blocks_{i}']['__call__'][0]
      found[f'{name}_block{i}'] = block[0]
  for name, value in found.items():
    yield Comparison('intermediates', value, expected[name], 1e-5)
  samples = out['points']['samples']
  yield Comparison('samples', samples, expected['fps_idx'], 0.0)
  for side, name in SIDES:
    weights = expected[f'{name}_token_weight'][:, 1:]
    yield Comparison('saliency', out[side]['saliency'], weights, 1e-6)
    descriptors = expected[f'{name}_desc']
    yield Comparison('descriptors', embedded[side], descriptors, 2e-6)
  yield Comparison('loss', loss, expected['loss_float64'], 1e-5)


def without_saliency(path):
  """As the release is configured for KITTI."""
  golden, model, variables, batch = _load(path, saliency='none')
  found = jax.jit(functools.partial(model.apply, method='every_side'))(
    variables, batch
  )
  for side, name in SIDES:
    expected = golden[f'eval_now/{name}_desc']
    yield Comparison('descriptors', found[side][0], expected, 2e-6)


def training(path):
  """A step: BatchNorm of four rows, every gradient and every buffer."""
  golden, model, variables, batch = _load(path)

  def run(params, statistics, weights):
    found, changed = model.apply(
      {'params': params, 'batch_stats': statistics},
      batch,
      train=True,
      mutable=['batch_stats'],
      method='every_side',
    )
    return _loss(found, params, weights), (found, changed)

  run = jax.jit(jax.value_and_grad(run, has_aux=True))
  state = variables['params'], variables['batch_stats']
  (loss, (towers, changed)), gradients = run(*state, SHIPPED)
  expected = saliency_parts.below(golden, 'train_w/')
  for side, name in SIDES:
    descriptors = expected[f'{name}_desc']
    yield Comparison('descriptors', towers[side][0], descriptors, 5e-5)
  yield Comparison('loss', loss, expected['loss_float64'], 5e-5)
  tensors = saliency_parts.below(expected, 'grad/')
  tensors |= saliency_parts.below(expected, 'buffer_after/')
  # Token and position are one parameter here, and share their gradient there.
  tensors['image_encoder.cls_token'] = 0 * tensors['image_encoder.cls_token']
  converted = saliency_parts.converted(
    tensors, saliency_i2ploc.towers_rules(model, SIZE), variables
  )
  # A constant of the release.
  gradients['log_scale'] = converted['params']['log_scale']
  yield Comparison('gradients', gradients, converted['params'], 5e-4)
  buffers = converted['batch_stats']
  yield Comparison('buffers', changed['batch_stats'], buffers, 1e-5)

  (loss, _), gradients = run(*state, ALL_TERMS)
  expected = saliency_parts.below(golden, 'train_w_all3/')
  yield Comparison('all terms, loss', loss, expected['loss_float64'], 5e-5)
  for side, prefix in (('image', 'vision_proj.'), ('points', 'pc_proj.')):
    found = gradients[f'{side}_aggregator']
    converted = saliency_parts.converted(
      saliency_parts.below(expected, f'grad/{prefix}'),
      saliency_i2ploc.netvlad_rules(),
      {'params': found},
    )
    yield Comparison('all terms, gradients', found, converted['params'], 5e-4)


CHECKPOINT = 'saliency_full.safetensors'
MODULES = (
  Module('SaliencyI2PLoc, evaluation', CHECKPOINT, evaluation),
  Module('SaliencyI2PLoc, no saliency', CHECKPOINT, without_saliency),
  Module('SaliencyI2PLoc, training', CHECKPOINT, training),
)
