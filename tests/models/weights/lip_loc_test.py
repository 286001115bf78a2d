# SPDX-License-Identifier: Apache-2.0
"""LIP-Loc's checkpoints: everything finds its place, or is named.

That the converted model computes what theirs does is a row of the parity table.
"""

import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from configs import lip_loc as config_lib
from i2ploc import factory
from i2ploc.models import towers
from i2ploc.models.encoders import position_embedding
from i2ploc.models.encoders import resnet
from i2ploc.models.weights import lip_loc as lip_loc_lib
from i2ploc.models.weights import load
from i2ploc.models.weights import published
from tests import shared
from tests.models import planted
from tests.models.weights import resnet_tensors

SIZE = (32, 64)
NARROW = dict(name='resnet', **resnet_tensors.FIELDS)


def _released(experiment):
  """The model of the released config, and the shapes of its variables."""
  config = config_lib.get_config(
    f'dataset=kitti_odometry,recipe=released,experiment={experiment}'
  )
  model = factory.make_model(
    **config.model.to_dict(), image_size=config.data.image_size
  )
  return model, towers.shapes(model)


def _narrow(**fields):
  """Towers with narrow ResNets and their variables."""
  defaults = dict(
    image=NARROW,
    points=NARROW,
    aggregator=dict(name='projection', features=8, normalized=False),
    dtype='float32',
    image_size=SIZE,
    range_shape=SIZE,
    range_encoding='released',
    num_points=64,
    saliency='none',
    initial_temperature=1.0,
  )
  model = factory.make_model(**defaults | fields)
  return model, planted.towers(model)


def _checkpoint(variables):
  """Tensors with the names of the release that hold these variables."""
  encoder = resnet.ResNet(**resnet_tensors.FIELDS)
  tensors = {}
  for _, name in lip_loc_lib.TOWERS:
    inside = resnet_tensors.torchvision(encoder)
    tensors |= {
      f'encoder_{name}.model.{key}': tensor
      for key, tensor in inside.items()
      if not key.startswith('fc.')
    }
    head = variables['params']['image_aggregator']
    for ours, theirs in (
      ('project', 'projection'),
      ('mix', 'fc'),
      ('norm', 'layer_norm'),
    ):
      layer = head[ours]
      weight = layer['kernel'].T if 'kernel' in layer else layer['scale']
      start = f'projection_{name}.{theirs}'
      tensors[f'{start}.weight'] = np.ascontiguousarray(weight)
      tensors[f'{start}.bias'] = layer['bias']
  return tensors


class KeysTest(parameterized.TestCase):
  @parameterized.parameters(
    ('large', 'resnet50', 'resnet50_num_params', 648),
    ('largest_vit', 'vit_small_patch16_224', 'vit_num_params', 316),
  )
  def test_all_tensors_of_the_release_and_nothing_else_are_ours(
    self, experiment, name, count, num_tensors
  ):
    keys = json.loads((shared.GOLDEN / 'liploc_keys.json').read_text())
    tensors = {
      key: np.broadcast_to(np.float32(1), shape)
      for key, shape in keys[name].items()
    }
    self.assertLen(tensors, num_tensors)
    model, shapes = _released(experiment)
    rules = lip_loc_lib.towers_rules(model)
    variables = load.convert(tensors, rules, shapes, ignore=lip_loc_lib.UNUSED)
    found = jax.tree.map(lambda x: (x.shape, x.dtype), variables)
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    self.assertEqual(found, expected)
    size = sum(x.size for x in jax.tree.leaves(variables['params']))
    # A scale of ours; CLS and its position are one parameter in each tower.
    cls = 2 * 384 if experiment == 'largest_vit' else 0
    self.assertEqual(size, keys[count] + 1 - cls)
    used = {source for rule in rules for source in rule.sources}
    left = {
      key for key in tensors if not key.endswith('num_batches_tracked')
    } - used
    self.assertEmpty(left)

  def test_another_image_size_resamples_the_grid(self):
    model, _ = _released('largest_vit')
    image = model.towers['image']
    image = image._replace(view=image.view._replace(size=(128, 416)))
    model = model.clone(towers={**model.towers, 'image': image})
    rules = lip_loc_lib.towers_rules(model)
    made = {rule.path: rule for rule in rules}
    position = np.random.default_rng(0).normal(size=(1, 197, 384))
    for side, grid in (('image', (8, 26)), ('points', (14, 14))):
      found = made[f'params/{side}/position'].transform(position)
      expected = position_embedding.resample(
        position[0, 1:], (14, 14), grid, True
      )
      np.testing.assert_allclose(found[0], expected, atol=1e-6)


class FileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / 'model.safetensors'

  def test_a_checkpoint_is_that_of_the_method_of_the_model(self):
    model, planned = _narrow()
    tensors = _checkpoint(planned)
    safetensors_numpy.save_file(tensors, self.path)
    found = published.load_variables(self.path, model)
    self.assertEqual(found['params']['log_scale'], 0.0)  # temperature 1
    for side in ('image', 'points'):
      jax.tree.map(
        np.testing.assert_array_equal,
        found['params'][f'{side}_aggregator'],
        planned['params']['image_aggregator'],
      )
    for fields, message in (
      (dict(aggregator=dict(name='mean')), 'nobody published .* a Mean'),
      (dict(range_encoding='channels'), "instead of 'channels'"),
    ):
      model, _ = _narrow(**fields)
      with self.assertRaisesRegex(ValueError, message):
        published.load_variables(self.path, model)

  def test_what_does_not_fit_is_one_message(self):
    model, planned = _narrow()
    tensors = _checkpoint(planned)
    del tensors['projection_lidar.fc.bias']
    tensors['encoder_lidar.model.bn1.gain'] = np.ones(4, np.float32)
    name = 'projection_camera.layer_norm.weight'
    tensors[name] = np.ones(9, np.float32)
    safetensors_numpy.save_file(tensors, self.path)
    with self.assertRaises(ValueError) as caught:
      published.load_variables(self.path, model)
    for part in (
      'Missing in it: projection_lidar.fc.bias.',
      'Unknown to the model: encoder_lidar.model.bn1.gain.',
      f'{name} (9,)',
    ):
      self.assertIn(part, str(caught.exception))


if __name__ == '__main__':
  absltest.main()
