# SPDX-License-Identifier: Apache-2.0
"""Published ResNets: what is found in a checkpoint, and what is refused."""

import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from i2ploc.models.encoders import resnet
from i2ploc.models.weights import resnet as resnet_lib
from i2ploc.models.weights import tensor_files
from i2ploc.models.weights import tensors as tensors_lib
from tests import shared
from tests.models.weights import resnet_tensors
from tests.models.weights import torch_file

FIELDS = resnet_tensors.FIELDS


class LoadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.folder / 'model.safetensors'
    self.tensors = resnet_tensors.torchvision()

  def _load(self, tensors=None, **fields):
    safetensors_numpy.save_file(tensors or self.tensors, self.path)
    if fields:
      model = resnet.ResNet(**FIELDS | fields)
      return resnet_lib.load_resnet_variables(self.path, model)
    return resnet_lib.load_resnet(self.path)

  def test_sizes_are_read_from_the_tensors(self):
    model, variables = self._load()
    self.assertEqual({k: getattr(model, k) for k in FIELDS}, FIELDS)
    params, stats = variables['params'], variables['batch_stats']
    np.testing.assert_array_equal(
      params['stage1_block0']['mix']['conv']['kernel'],
      self.tensors['layer2.0.conv2.weight'].transpose(2, 3, 1, 0),
    )
    np.testing.assert_array_equal(
      stats['stage0_block0']['shortcut']['norm']['var'],
      self.tensors['layer1.0.downsample.1.running_var'],
    )

  def test_both_families_files_and_prefixes_hold_the_same_encoder(self):
    _, expected = self._load()
    given = self._load(widths=list(FIELDS['widths']))
    other = resnet_tensors.as_hugging_face(self.tensors)
    inside = {f'resnet.{name}': tensor for name, tensor in other.items()}
    inside['classifier.1.weight'] = np.ones((10, 12), np.float32)
    found = [given, self._load(other)[1], self._load(inside)[1]]
    path = self.folder / 'model.pth'
    torch_file.save(self.tensors, path)
    found.append(resnet_lib.load_resnet(path)[1])
    for variables in found:
      jax.tree.map(np.testing.assert_array_equal, variables, expected)

  def test_what_does_not_fit_is_one_message(self):
    tensors = self.tensors
    tensors['layer2.1.bn2.scale'] = tensors.pop('layer2.1.bn2.weight')
    tensors['layer1.0.conv2.weight'] = np.ones((2, 2, 5, 5), np.float32)
    with self.assertRaises(ValueError) as caught:
      self._load(tensors)
    message = str(caught.exception)
    for part in (
      str(self.path),
      'Missing in it: layer2.1.bn2.weight.',
      'Unknown to the model: layer2.1.bn2.scale.',
      'layer1.0.conv2.weight (2, 2, 5, 5)',
    ):
      self.assertIn(part, message)

  def test_another_encoder_is_told_what_it_should_be(self):
    with self.assertRaisesRegex(ValueError, r'fits an encoder with .*\(1, 2\)'):
      self._load(depths=(2, 2))

  def test_the_first_stages_alone(self):
    _, whole = self._load()
    model, found = resnet_lib.load_resnet(self.path, stage=1)
    self.assertEqual((model.widths, model.depths), ((2,), (1,)))
    for name, tree in found.items():
      self.assertEqual(set(tree), {'stem', 'stage0_block0'})
      for part, leaves in tree.items():
        self._assert_same(leaves, whole[name][part])
    given = self._load(widths=(2,), depths=(1,))
    self._assert_same(given, found)
    with self.assertRaisesRegex(ValueError, 'has 2 stages, and stage is'):
      resnet_lib.make_resnet(self.path, stage=3)
    with self.assertRaisesRegex(ValueError, r'fits an encoder with .*\(1, 2\)'):
      self._load(widths=(2, 3, 4), depths=(1, 2, 1))
    # What is left aside is what the stages have, not whatever is there.
    strange = {'layer2.0.se.weight': np.ones(3, np.float32)}
    with self.assertRaisesRegex(ValueError, r'Unknown .*layer2.0.se.weight\.'):
      self._load(self.tensors | strange, widths=(2,), depths=(1,))

  def _assert_same(self, found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)

  @parameterized.parameters(
    ('resnet18', 11_689_512, 512),
    ('resnet34', 21_797_672, 512),
    ('resnet50', 25_557_032, 2048),
    ('resnet101', 44_549_160, 2048),
    ('resnet152', 60_192_808, 2048),
  )
  def test_the_published_sizes_by_their_names(self, name, count, features):
    fields = resnet_tensors.PUBLISHED[name]
    model = resnet.ResNet(**fields)
    tensors = resnet_tensors.torchvision(
      model, fill=lambda shape: np.broadcast_to(np.float32(0.5), shape)
    )
    tensors = tensors_lib.Tensors(tensors, 'x')
    with mock.patch.object(tensor_files, 'read_tensors', return_value=tensors):
      self.assertEqual(resnet_lib.make_resnet('x'), model)
      cut = resnet_lib.make_resnet('x', stage=3)
      found = resnet_lib.load_resnet_variables('x', cut)
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), np.float32)
    tokens, out = jax.eval_shape(cut.apply, found, images)
    self.assertEqual(tokens.shape, (1, 24, features // 2))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    own = sum(x.size for x in jax.tree.leaves(shapes['params']))
    self.assertEqual(own, count - 1000 * (features + 1))  # no classifier
    # Every tensor has its rule, and every array its tensor.
    rules = resnet_lib.resnet_rules(resnet_lib.TORCHVISION, model)
    named = {source for rule in rules for source in rule.sources}
    unused = {n for n in tensors if n.startswith('fc.') or 'num_batches' in n}
    self.assertEqual(named, set(tensors) - unused)
    self.assertLen({rule.path for rule in rules}, len(rules))

  @parameterized.parameters('torchvision', 'hugging_face')
  def test_basic_blocks(self, family):
    fields = dict(FIELDS, expansion=1, block_kind='basic')
    tensors = resnet_tensors.torchvision(resnet.ResNet(**fields))
    kernel = tensors['layer2.1.conv2.weight']
    if family == 'hugging_face':
      tensors = resnet_tensors.as_hugging_face(tensors)
    model, found = self._load(tensors)
    self.assertEqual({k: getattr(model, k) for k in fields}, fields)
    np.testing.assert_array_equal(
      found['params']['stage1_block1']['second']['conv']['kernel'],
      kernel.transpose(2, 3, 1, 0),
    )

  def test_networks_of_other_kinds_are_told(self):
    tensors = {k: v for k, v in self.tensors.items() if 'conv2' not in k}
    with self.assertRaisesRegex(ValueError, 'is no ResNet: .*18, 34'):
      self._load(tensors)
    # The variant of timm that averages before its shortcut.
    shortcut = 'layer2.0.downsample'
    for part in ('weight', 'bias', 'running_mean', 'running_var'):
      name = f'{shortcut}.1.{part}'
      self.tensors[f'{shortcut}.2.{part}'] = self.tensors.pop(name)
    name = f'{shortcut}.0.weight'
    self.tensors[f'{shortcut}.1.weight'] = self.tensors.pop(name)
    with self.assertRaisesRegex(ValueError, 'Unknown .*downsample.2.bias'):
      self._load(self.tensors)
    with self.assertRaisesRegex(FileNotFoundError, 'nowhere'):
      resnet_lib.load_resnet(self.folder / 'nowhere.pth')

  def test_a_saved_folder_of_transformers(self):
    folder = shared.GOLDEN / 'resnet_tiny'
    model, variables = resnet_lib.load_resnet(folder)
    self.assertEqual(model.widths, (8, 16, 24, 32))
    self.assertEqual((model.stem_width, model.depths), (16, (2, 2, 1, 1)))
    tensors = safetensors_numpy.load_file(folder / 'model.safetensors')
    expected = sum(
      tensor.size
      for name, tensor in tensors.items()
      if not name.endswith('num_batches_tracked')
    )
    count = sum(x.size for x in jax.tree.leaves(variables))
    self.assertEqual(count, expected)


if __name__ == '__main__':
  absltest.main()
