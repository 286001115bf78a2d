# SPDX-License-Identifier: Apache-2.0
"""Published ResNets: what is found in a checkpoint, and what is refused."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from i2ploc.models.encoders import resnet
from i2ploc.models.weights import resnet as resnet_lib
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

  def test_basic_blocks_are_not_bottlenecks(self):
    tensors = {k: v for k, v in self.tensors.items() if 'conv3' not in k}
    with self.assertRaisesRegex(ValueError, 'no ResNet of bottlenecks'):
      self._load(tensors)
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
