# SPDX-License-Identifier: Apache-2.0
"""Which network of a file is meant, and what of it was not used."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from i2ploc import factory
from i2ploc.models.weights import published
from i2ploc.models.weights import tensor_files
from i2ploc.models.weights import tensors as tensors_lib
from tests.models import planted
from tests.models.weights import released_tensors
from tests.models.weights import resnet_tensors
from tests.models.weights import torch_file
from tests.models.weights import vit_test

SIZE = (32, 64)


RESNET = resnet_tensors.torchvision()


def _resnet(scale):
  """A narrow ResNet whose first convolution tells it from others."""
  return RESNET | {'conv1.weight': scale * RESNET['conv1.weight']}


def _below(place, tensors):
  return {f'{place}.{name}': tensor for name, tensor in tensors.items()}


class _FileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / 'weights.pth'

  def save(self, content) -> pathlib.Path:
    torch_file.save(content, self.path)
    return self.path

  def load(self, name):
    """The variables of the image encoder that a name says."""
    model = factory.make_model(
      image=dict(name='published', checkpoint=str(name)),
      aggregator=dict(name='mean', features=0),
      dtype='float32',
      image_size=SIZE,
      saliency='none',
    )
    return published.load_variables(name, model)['params']['image']

  def stem(self, name):
    return np.asarray(self.load(name)['stem']['conv']['kernel'])

  def check(self, name, scale):
    """The encoder is the one of this scale."""
    expected = _resnet(scale)['conv1.weight'].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(self.stem(name), expected)

  def refuse(self, name, message):
    with self.assertRaisesRegex(ValueError, message) as context:
      self.load(name)
    self.assertIn(str(self.path), str(context.exception))
    self.assertNotIn('\n', str(context.exception))


class PartsTest(_FileTest):
  """Of a file with several networks, the one that was asked for."""

  def test_two_encoders(self):
    """LIP-Loc's: without a word the LiDAR's was taken, its name is shorter."""
    path = self.save(
      _below('encoder_camera.model', _resnet(1))
      | _below('encoder_lidar.model', _resnet(2))
    )
    for part, scale in (('camera', 1), ('lidar', 2)):
      self.check(f'{path}#encoder_{part}', scale)
      self.check(f'{path}#encoder_{part}.model', scale)
    self.refuse(
      path,
      'holds 2 networks: name the one that is meant, of '
      r'.*pth#encoder_camera\.model, .*pth#encoder_lidar\.model\.$',
    )
    self.refuse(f'{path}#encoder', '#encoder: no network begins there; known:')

  @parameterized.parameters(
    ('student', 'teacher'),
    ('state_dict', 'state_dict_ema'),
    ('model', 'ema'),
    ('state_dict.model', 'state_dict.model_ema'),
  )
  def test_two_states_of_one_network(self, one, other):
    """In nested dicts, one of them as a parallel wrapper has it."""
    content = _below(one, _resnet(1)) | _below(f'{other}.module', _resnet(2))
    path = self.save({'epoch': 3, **content})
    self.check(f'{path}#{one}', 1)
    self.check(f'{path}#{other}', 2)
    first, second = sorted((one, other))
    self.refuse(path, f'2 networks.*pth#{first}, .*pth#{second}')

  def test_an_average_beside_the_network_itself(self):
    path = self.save(_resnet(1) | {'ema': _resnet(2)})
    self.check(f'{path}#', 1)
    self.check(f'{path}#ema', 2)
    self.refuse(path, '2 networks.*pth#, .*pth#ema')

  @parameterized.parameters('module', 'state_dict', 'ema.module', 'a.b.c')
  def test_what_surrounds_a_single_one_needs_no_name(self, place):
    self.check(self.save(_below(place, _resnet(1))), 1)

  def test_networks_of_two_kinds(self):
    path = self.save(
      _below('camera', _resnet(1)) | _below('lidar', vit_test.timm())
    )
    self.refuse(path, '2 networks.*pth#camera, .*pth#lidar')
    self.check(f'{path}#camera', 1)
    self.assertIn('blocks_1', self.load(f'{path}#lidar'))
    self.assertEqual(published.make_encoder(f'{path}#lidar@1').block, 1)

  def test_a_release_and_its_average(self):
    shapes = released_tensors.cosplace_vgg(32, (4, 4, 4, 8, 8))
    first, second = (released_tensors.random(shapes, i) for i in (0, 1))
    path = self.save(dict(model_state_dict=first, ema=second))
    with self.assertRaisesRegex(ValueError, '2 networks.*#ema, .*#model_state'):
      published.make_aggregator(path)
    self.assertEqual(published.make_aggregator(f'{path}#ema').features, 32)
    self.assertEqual(published.image_size(f'{path}#ema'), (512, 512))

  def test_two_tensors_of_one_name(self):
    path = self.save(_resnet(1) | _below('module', _resnet(2)))
    self.refuse(path, 'several tensors of the names bn1.bias, .*module')

  def test_both_sides_of_towers_start_from_the_one_that_is_named(self):
    narrow = dict(name='resnet', **resnet_tensors.FIELDS)
    model = factory.make_model(
      image=narrow,
      points=narrow,
      aggregator=dict(name='projection', features=8, normalized=False),
      dtype='float32',
      image_size=SIZE,
      range_shape=SIZE,
      range_encoding='released',
      num_points=64,
      saliency='none',
      initial_temperature=1.0,
    )
    path = self.save(dict(student=_resnet(1), teacher=_resnet(2)))
    found = published.with_encoders(
      f'{path}#teacher', model, planted.towers(model)
    )['params']
    expected = _resnet(2)['conv1.weight'].transpose(2, 3, 1, 0)
    for side in ('image', 'points'):
      kernel = found[side]['stem']['conv']['kernel']
      np.testing.assert_array_equal(kernel, expected)


class UnusedTest(_FileTest):
  """What of a file did not become part of a model is said in a line."""

  def told(self, name):
    with self.assertLogs('absl', 'WARNING') as logs:
      self.load(name)
    (line,) = logs.output
    return line

  def test_head_counters_and_optimizer_are_listed(self):
    tensors = _resnet(1)
    counters = [
      name for name in tensors if name.endswith('num_batches_tracked')
    ]
    moments = {'exp_avg': np.ones(3, np.float32)}
    path = self.save(
      dict(state_dict=tensors, optimizer={'state': {'0': moments}})
    )
    line = self.told(path)
    unused = len(counters) + 3
    self.assertIn(f'{path}: {unused} of {len(tensors) + 1} tensors', line)
    self.assertIn(
      'not used: optimizer.state.0.exp_avg, state_dict.fc.bias, '
      'state_dict.fc.weight, state_dict.bn1.num_batches_tracked',
      line,
    )
    self.assertIn(f'and {unused - 6} more', line)
    # And again, by another model of the same tensors in memory.
    kept = tensor_files.read_tensors(path)
    self.assertEqual(self.told(path), line)
    del kept

  def test_the_other_network_is_listed(self):
    path = self.save(
      _below('encoder_camera', vit_test.timm())
      | _below('encoder_lidar', vit_test.timm())
    )
    count = len(vit_test.timm())
    line = self.told(f'{path}#encoder_camera')
    self.assertIn(f'of {2 * count} tensors', line)
    self.assertIn('encoder_lidar.blocks.0', line)
    self.assertNotIn('encoder_camera.blocks.0.attn', line)

  def test_nothing_is_said_where_all_is_used(self):
    tensors = {k: v for k, v in vit_test.timm().items() if 'head' not in k}
    path = self.save(tensors)
    with self.assertNoLogs('absl', 'WARNING'):
      self.load(path)

  def test_an_aggregator_that_is_left_out_is_listed(self):
    shapes = released_tensors.cosplace_vgg(32, (4, 4, 4, 8, 8))
    path = self.save(released_tensors.random(shapes))
    line = self.told(path)
    self.assertIn('3 of ', line)
    self.assertIn('aggregation.1.p, aggregation.3.bias', line)

  def test_nothing_is_said_of_what_was_refused(self):
    tensors = _resnet(1)
    del tensors['bn1.bias']
    path = self.save(tensors)
    with self.assertNoLogs('absl', 'WARNING'):
      self.refuse(path, 'Missing in it: bn1.bias')


class DamageTest(_FileTest):
  def test_every_layer_counts(self):
    """Not a number or nothing at all, wherever it stands, is named."""
    for name in ('conv1.weight', 'layer1.0.bn2.weight', 'bn1.running_var'):
      for value, fault in ((np.nan, 'Not finite'), (0, 'All zeros')):
        with self.subTest(name=name, fault=fault):
          tensors = _resnet(1)
          tensors[name] = np.full_like(tensors[name], value)
          self.save(tensors)
          self.refuse(self.path, f'{fault}: {name}')

  def test_a_layer_of_another_shape(self):
    tensors = _resnet(1)
    tensors['layer1.0.conv1.weight'] = tensors['layer1.0.conv1.weight'][:, :1]
    self.save(tensors)
    self.refuse(self.path, r'Other shapes: layer1\.0\.conv1\.weight \(')

  def test_a_token_is_not_spread(self):
    tensors = vit_test.timm()
    tensors['cls_token'] = np.ones((1, 1, 1), np.float32)
    self.save(tensors)
    self.refuse(self.path, r'Other shapes: cls_token .*\(1 numbers of a token')


class ChooseTest(parameterized.TestCase):
  def test_a_whole_name_comes_before_a_beginning(self):
    places = ['a', 'a.b']
    self.assertEqual(tensors_lib.choose('f', places, 'a'), 'a')
    self.assertEqual(tensors_lib.choose('f', places, 'a.b'), 'a.b')
    with self.assertRaisesRegex(ValueError, '2 networks'):
      tensors_lib.choose('f', places, None)

  def test_a_beginning_ends_at_a_dot(self):
    with self.assertRaisesRegex(ValueError, 'f#enc: no network .* f#encoder.x'):
      tensors_lib.choose('f', ['encoder.x'], 'enc')

  def test_a_view_knows_its_place_in_the_file(self):
    tensors = tensors_lib.Tensors({'a.b.c': np.ones(1)}, 'f')
    inside = tensors.below('a').below('b')
    self.assertEqual((list(inside), inside.start), (['c'], 'a.b.'))
    self.assertIs(jax.tree.leaves(dict(inside))[0], tensors['a.b.c'])


if __name__ == '__main__':
  absltest.main()
