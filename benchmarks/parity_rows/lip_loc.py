# SPDX-License-Identifier: Apache-2.0
"""LIP-Loc as released, from clouds and images to gradients; ResNet-50.

The reference ran with random weights and narrow stages; ours reads them as it
reads the authors' checkpoints.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parity_rows import comparison
from benchmarks.parity_rows import saliency_parts
from i2ploc import factory
from i2ploc.geometry import range_image
from i2ploc.losses import soft_targets
from i2ploc.models import aggregators
from i2ploc.models import projection
from i2ploc.models import towers
from i2ploc.models import views
from i2ploc.models.weights import lip_loc
from i2ploc.models.weights import resnet

Comparison = comparison.Comparison
Module = comparison.Module
SIZE = lip_loc.IMAGE_SIZE
MEAN, STD = lip_loc.IMAGE_MEAN, lip_loc.IMAGE_STD
# The scan of the reference, below the folder that has `golden` in it.
SCAN = 'data/kitti_object/training/velodyne/000000.bin'


def spherical(points: np.ndarray) -> dict[str, jax.Array]:
  """Everything between a cloud [P, 4] and the released encoder's input."""

  def run(points):
    mask = jnp.ones(len(points), bool)
    image, valid = range_image.spherical_image(points, mask)
    levels = range_image.quantize(image[..., 0], valid)
    crop = levels[range_image.ahead(levels.shape)]
    resized = range_image.resize_uint8(crop, SIZE)
    pixels = jnp.repeat(resized[..., None], 3, axis=-1)
    return {
      'proj_range': jnp.where(valid, image[..., 0], -1.0),
      'proj_intensity': jnp.where(valid, image[..., 1], -1.0),
      'uint8': levels,
      'crop_uint8': crop,
      'crop_resized_uint8': resized,
      'crop_normalized': views.normalize_images(pixels, MEAN, STD),
    }

  return jax.jit(run)(points)


def synthetic_cloud(path):
  """A cloud with every edge case; all cells are the same."""
  golden = saliency_parts.below(np.load(path), 'range/')
  found = spherical(golden['points'])
  for name in ('proj_range', 'proj_intensity'):
    yield Comparison('ranges, intensities', found[name], golden[name], 1e-6)
  for name in ('uint8', 'crop_uint8', 'crop_resized_uint8'):
    yield Comparison('grey levels', found[name], golden[name], 0.0)
  normalized = golden['crop_normalized'].transpose(1, 2, 0)
  yield Comparison('pixels', found['crop_normalized'], normalized, 1e-6)


def real_scan(path):
  """A scan of KITTI, if it is there, and its crop resized in any case."""
  golden = np.load(path)
  resized = range_image.resize_uint8(jnp.asarray(golden['crop_uint8']), SIZE)
  yield Comparison('resized', resized, golden['crop_resized_uint8'], 0.0)
  scan = path.parent.parent / SCAN
  if not scan.exists():
    return
  found = spherical(np.fromfile(scan, np.float32).reshape(-1, 4))
  for name in ('uint8', 'crop_uint8', 'crop_resized_uint8'):
    yield Comparison('grey levels', found[name], golden[name], 0.0)
  moved = np.abs(found['proj_range'] - golden['proj_range']) > 1e-4
  # On the border of two cells to the last bit of float32.
  yield Comparison('cells of another range', moved.sum(), 0, 2.0)


def resized_image(path):
  """Any image, a channel at a time."""
  golden = saliency_parts.below(np.load(path), 'resize/')
  found = [
    range_image.resize_uint8(jnp.asarray(channel), SIZE)
    for channel in np.moveaxis(golden['image_uint8'], -1, 0)
  ]
  expected = np.moveaxis(golden['resized224_uint8'], -1, 0)
  yield Comparison('grey levels', np.stack(found), expected, 0.0)


def released_model(**fields: Any) -> towers.Towers:
  """The released towers at the reference's size, but for `fields`."""
  encoder = dict(name='resnet', widths=(8, 16, 32, 64))
  reduced = dict(
    image=encoder,
    points=encoder,
    aggregator=dict(name='projection', normalized=False),
    dtype='float32',
    image_size=(64, 64),
    range_shape=(64, 64),
    range_encoding='released',
    max_range=50.0,
    num_points=512,
    saliency='none',
    image_mean=MEAN,
    image_std=STD,
    initial_temperature=lip_loc.TEMPERATURE,
  )
  return factory.make_model(**reduced | fields)


def _describe(head, tokens, train=False):
  """Embeddings of token features [B, N, D]."""
  shape = tokens.shape[:2]
  place = aggregators.Tokens(tokens, jnp.zeros(shape), jnp.ones(shape, bool))
  bounds = jnp.zeros(shape[0]), jnp.ones(shape[0])
  return head(place, jnp.ones(shape), bounds, train)[0]


def _towers(model, images, train=False):
  """Tokens and embeddings of normalised images, by tower."""
  tokens = {t: model.towers[t].encoder(x, train)[0] for t, x in images.items()}
  embeddings = {
    tower: _describe(model.towers[tower].aggregator, x)
    for tower, x in tokens.items()
  }
  return tokens, embeddings


def _loss(embeddings):
  return soft_targets.soft_targets(embeddings['image'], embeddings['points'])[0]


def _states(apply):
  """What `apply` gives, and the outputs of all blocks and of the stem."""
  states = {}

  def record(call, args, kwargs, context):
    y = call(*args, **kwargs)
    if context.method_name == '__call__':
      states['/'.join(context.module.path)] = y
    return y

  with nn.intercept_methods(record):
    return apply(), states


def _load(path):
  """The reference's outputs, the model, its variables and the inputs."""
  golden = saliency_parts.below(np.load(path), 'tiny/')
  model = released_model()
  variables = saliency_parts.converted(
    saliency_parts.below(golden, 'param/'),
    lip_loc.towers_rules(model),
    towers.shapes(model),
  )
  names = lip_loc.TOWERS
  images = {t: _channels_last(golden[f'{name}_image']) for t, name in names}
  return golden, model, variables, images


def _channels_last(x):
  return np.moveaxis(x, 1, -1)


def evaluation(path):
  """Encoders stage by stage, heads, loss and gradients."""
  golden, model, variables, images = _load(path)

  def run(variables, images):
    return _states(lambda: model.apply(variables, images, method=_towers))

  (tokens, embeddings), states = jax.jit(run)(variables, images)
  stages = {'camera_stem': nn.relu(states['image/stem'])}
  for i, depth in enumerate(model.towers['image'].encoder.depths):
    last = states[f'image/stage{i}_block{depth - 1}']
    stages[f'camera_layer{i + 1}'] = last
  for name, stage in stages.items():
    yield Comparison('stages', stage, _channels_last(golden[name]), 1e-5)
  for tower, name in lip_loc.TOWERS:
    pooled = tokens[tower].mean(1)
    yield Comparison('features', pooled, golden[f'{name}_feat'], 1e-5)
    expected = golden[f'{name}_emb']
    yield Comparison('embeddings', embeddings[tower], expected, 1e-5)

  def objective(params):
    both = {**variables, 'params': params}
    return _loss(model.apply(both, images, method=_towers)[1])

  loss, gradients = jax.jit(jax.value_and_grad(objective))(variables['params'])
  yield Comparison('loss', loss, golden['loss_float64'], 1e-5)
  # Those of the heads and of the first convolutions.
  names = saliency_parts.below(golden, 'grad/')
  leaves = jax.tree_util.tree_leaves_with_path({'params': gradients})
  leaves = {
    jax.tree_util.keystr(place, simple=True, separator='/'): leaf
    for place, leaf in leaves
  }
  for rule in lip_loc.towers_rules(model):
    if rule.path in leaves and names.keys() >= set(rule.sources) != set():
      expected = rule.transform(*(names[source] for source in rule.sources))
      yield Comparison('gradients', leaves[rule.path], expected, 1e-4)


def training(path):
  """BatchNorm with the statistics of the batch, and what it keeps of them."""
  golden, model, variables, images = _load(path)

  def run(variables, images):
    return model.apply(
      variables,
      images,
      method=lambda model, x: model.towers['image'].encoder(x, True)[0],
      mutable=['batch_stats'],
    )

  tokens, changed = jax.jit(run)(variables, images['image'])
  expected = golden['train_camera_feat']
  yield Comparison('features', tokens.mean(1), expected, 5e-5)
  found = {'batch_stats': {'image': changed['batch_stats']['image']}}
  buffers = saliency_parts.converted(
    saliency_parts.below(golden, 'train_buffer_after/'),
    lip_loc.towers_rules(model),
    found,
  )
  yield Comparison('buffers', found, buffers, 1e-5)


def heads(path):
  """Two sizes, batches of 1 to 8: embeddings and gradients."""
  golden = np.load(path)
  for size, width in (('head_small', 16), ('head_256', 256)):
    head = projection.ProjectionHead(width, normalized=False)
    stored = saliency_parts.below(golden, f'{size}/')
    for batch in (1, 2, 5, 8):
      yield from _head(head, stored, f'B{batch}')


def _head(head, stored, batch):
  names = dict(lip_loc.TOWERS)
  features = {t: stored[f'{batch}/{n}_feat'] for t, n in names.items()}
  params = {}
  for tower, name in names.items():
    x = features[tower][:, None]
    shapes = jax.eval_shape(
      functools.partial(head.init, method=_describe), jax.random.key(0), x
    )
    start = f'projection_{name}.'
    own = saliency_parts.below(stored, f'param/{start}')
    params[tower] = saliency_parts.converted(
      {start + key: value for key, value in own.items()},
      lip_loc.head_rules('params', f'projection_{name}', 'none'),
      shapes,
    )

  def objective(features):
    embeddings = {
      t: head.apply(params[t], features[t][:, None], method=_describe)
      for t in names
    }
    return _loss(embeddings), embeddings

  grad = jax.jit(jax.grad(objective, has_aux=True))
  gradients, embeddings = grad(features)
  for tower, name in names.items():
    found, expected = embeddings[tower], stored[f'{batch}/{name}_emb']
    yield Comparison('embeddings', found, expected, 1e-5)
    expected = stored[f'{batch}/grad_{name}_feat']
    yield Comparison('gradients', gradients[tower], expected, 1e-5)


def hugging_face_resnet(path):
  """Two sizes, one of them odd; and in training."""
  io = np.load(path / 'io.npz')
  model, variables = resnet.load_resnet(path)

  def run(variables, images):
    return _states(lambda: model.apply(variables, images))

  for size in ('64x64', '65x97'):
    images = _channels_last(io[f'{size}/pixel_values'])
    (tokens, out), states = jax.jit(run)(variables, images)
    for i, depth in enumerate(model.depths):
      expected = _channels_last(io[f'{size}/hidden_{i + 1}'])
      found = states[f'stage{i}_block{depth - 1}']
      yield Comparison('hidden states', found, expected, 1e-5)
    last = _channels_last(io[f'{size}/last_hidden_state'])
    shape = last.shape[0], -1, last.shape[-1]
    yield Comparison('output', tokens, last.reshape(shape), 1e-5)
    yield Comparison('grid', out['grid'], last.shape[1:3], 0.0)
  images = _channels_last(io['64x64/pixel_values'])
  (tokens, _), changed = model.apply(
    variables, images, True, mutable=['batch_stats']
  )
  expected = _channels_last(io['64x64/train_last_hidden_state'])
  found = tokens.reshape(expected.shape)
  yield Comparison('training, output', found, expected, 5e-5)
  buffers = saliency_parts.converted(
    saliency_parts.below(io, '64x64/train_buffer_after/'),
    resnet.resnet_rules(resnet.HUGGING_FACE, model),
    changed,
  )
  yield Comparison('training, buffers', changed, buffers, 1e-5)


GOLDEN = 'liploc_model.npz'
MODULES = (
  Module('LIP-Loc, range image', GOLDEN, synthetic_cloud),
  Module('LIP-Loc, real scan', 'liploc_realscan_range.npz', real_scan),
  Module('LIP-Loc, resized image', GOLDEN, resized_image),
  Module('LIP-Loc, heads', GOLDEN, heads),
  Module('LIP-Loc, evaluation', GOLDEN, evaluation),
  Module('LIP-Loc, training', GOLDEN, training),
  Module('ResNet', 'resnet_tiny', hugging_face_resnet),
)
