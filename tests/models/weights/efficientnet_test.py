# SPDX-License-Identifier: Apache-2.0
"""The published EfficientNet-Lite0: its names and shapes, and strangers."""

import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from i2ploc.models.encoders import efficientnet
from i2ploc.models.weights import efficientnet as efficientnet_lib
from i2ploc.models.weights import published
from i2ploc.models.weights import tensors as tensors_lib
from tests.models.weights import torch_file


def tensors():
  """Random tensors with the names and shapes of the published file."""
  rng = np.random.default_rng(0)
  made = {}

  def conv_norm(conv, norm, shape):
    made[f'{conv}.weight'] = rng.normal(size=shape).astype(np.float32)
    for part in ('weight', 'bias', 'running_mean', 'running_var'):
      values = rng.uniform(0.5, 2.0, shape[0]).astype(np.float32)
      made[f'{norm}.{part}'] = values
    made[f'{norm}.num_batches_tracked'] = np.asarray(7)

  conv_norm('_conv_stem', '_bn0', (32, 3, 3, 3))
  # (expansion, window, channels of the output) of the blocks.
  blocks = [
    (1, 3, 16), *[(6, 3, 24)] * 2, *[(6, 5, 40)] * 2, *[(6, 3, 80)] * 3,
    *[(6, 5, 112)] * 3, *[(6, 5, 192)] * 4, (6, 3, 320),
  ]  # fmt: skip
  given = 32
  for i, (expansion, size, features) in enumerate(blocks):
    start, wide = f'_blocks.{i}.', expansion * given
    if expansion > 1:
      names = f'{start}_expand_conv', f'{start}_bn0'
      conv_norm(*names, (wide, given, 1, 1))
    names = f'{start}_depthwise_conv', f'{start}_bn1'
    conv_norm(*names, (wide, 1, size, size))
    names = f'{start}_project_conv', f'{start}_bn2'
    conv_norm(*names, (features, wide, 1, 1))
    given = features
  conv_norm('_conv_head', '_bn1', (1280, 320, 1, 1))
  made['_fc.weight'] = np.ones((1000, 1280), np.float32)
  made['_fc.bias'] = np.ones(1000, np.float32)
  return made


class LoadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.tensors = tensors()

  def _load(self, **fields):
    given = tensors_lib.Tensors(self.tensors, 'x')
    with mock.patch.object(
      efficientnet_lib.tensor_files, 'read_tensors', return_value=given
    ):
      model = efficientnet.EfficientNetLite0(**fields)
      return efficientnet_lib.load_efficientnet_variables('net.pth', model)

  def test_every_tensor_has_its_place(self):
    found = self._load()
    count = sum(x.size for x in self.tensors.values())
    left = 1281 * 1000 + sum('num_batches' in name for name in self.tensors)
    ours = sum(x.size for x in jax.tree.leaves(found))
    self.assertEqual(ours, count - left)
    np.testing.assert_array_equal(
      found['params']['stage3_block1']['mix']['kernel'],
      self.tensors['_blocks.4._depthwise_conv.weight'].transpose(2, 3, 1, 0),
    )
    np.testing.assert_array_equal(
      found['params']['stage7_block0']['reduce']['kernel'],
      self.tensors['_blocks.15._project_conv.weight'][:, :, 0, 0].T,
    )
    np.testing.assert_array_equal(
      found['batch_stats']['head_norm']['norm']['var'],
      self.tensors['_bn1.running_var'],
    )

  def test_the_first_stages_alone(self):
    whole, found = self._load(), self._load(stage=3)
    self.assertNotIn('stage4_block0', found['params'])
    for collection, tree in found.items():
      for name, leaves in tree.items():
        jax.tree.map(
          np.testing.assert_array_equal, leaves, whole[collection][name]
        )
    self.tensors['_blocks.9._se_reduce.weight'] = np.ones(3, np.float32)
    with self.assertRaisesRegex(ValueError, r'Unknown .*9\._se_reduce'):
      self._load(stage=3)

  def test_what_does_not_fit_is_one_message(self):
    del self.tensors['_bn0.running_var']
    self.tensors['_conv_head.weight'] = np.ones((640, 320, 1, 1), np.float32)
    with self.assertRaises(ValueError) as caught:
      self._load()
    for part in (
      'net.pth does not fit',
      'Missing in it: _bn0.running_var.',
      '_conv_head.weight (640, 320, 1, 1)',
    ):
      self.assertIn(part, str(caught.exception))

  def test_a_file_is_known_by_its_names(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = pathlib.Path(folder) / 'net.pth'
    torch_file.save_old(self.tensors, path)
    model = published.make_encoder(f'{path}@5', padding='symmetric')
    self.assertEqual(
      model, efficientnet.EfficientNetLite0(5, padding='symmetric')
    )
    mean, std = published.normalization(path)
    pixels = np.asarray([0.0, 127.0, 255.0])
    np.testing.assert_allclose(
      (pixels / 255 - mean[0]) / std[0], (pixels - 127) / 128, atol=1e-6
    )
    with self.assertRaisesRegex(ValueError, 'no remat; it takes padding'):
      published.make_encoder(path, remat=True)
    with self.assertRaisesRegex(ValueError, 'EfficientNetLite0 has no key'):
      published.make_encoder(f'{path}@3.key')


if __name__ == '__main__':
  absltest.main()
