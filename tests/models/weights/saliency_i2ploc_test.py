# SPDX-License-Identifier: Apache-2.0
"""The authors' checkpoints: everything finds its place, or is named.

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

from benchmarks.parity_rows import saliency_i2ploc
from benchmarks.parity_rows import saliency_parts
from i2ploc.models import towers
from i2ploc.models.encoders import position_embedding
from i2ploc.models.weights import load
from i2ploc.models.weights import saliency_i2ploc as saliency_i2ploc_lib
from tests import shared
from tests.models.weights import torch_file

SMALL = saliency_i2ploc.SIZE


def _full_size(image_size):
  """The released model of the release's size."""
  return saliency_i2ploc.released_model(
    image=dict(name='vit', width=384, depth=12, num_heads=6),
    points=dict(
      name='point_transformer',
      width=384,
      depth=12,
      num_groups=3072,
      group_size=32,
      pointnet_features=1024,
      **saliency_parts.POINTS,
    ),
    aggregator=dict(
      name='netvlad', num_clusters=64, features=256, **saliency_parts.NETVLAD
    ),
    image_size=image_size,
    image_mean=saliency_i2ploc_lib.IMAGE_MEAN,
    image_std=saliency_i2ploc_lib.IMAGE_STD,
    num_points=20480,
  )


class FullSizeTest(parameterized.TestCase):
  def _tensors(self, **shapes):
    """A released checkpoint of ones and nothing; and what is said of it."""
    keys = json.loads((shared.GOLDEN / 'saliency_full_keys.json').read_text())
    tensors = {}
    for name, about in keys['tensors'].items():
      shape = shapes.get(name, about['shape'])
      tensors[name] = np.broadcast_to(np.ones((), about['dtype']), shape)
    return tensors, keys

  @parameterized.parameters(
    # For KITTI-360, for KITTI, and that for KITTI-360 on images of KITTI.
    (saliency_i2ploc_lib.KITTI_360_SIZE, saliency_i2ploc_lib.KITTI_360_SIZE),
    (saliency_i2ploc_lib.KITTI_SIZE, saliency_i2ploc_lib.KITTI_SIZE),
    (saliency_i2ploc_lib.KITTI_360_SIZE, saliency_i2ploc_lib.KITTI_SIZE),
  )
  def test_all_tensors_of_the_release_and_nothing_else_are_ours(
    self, from_size, to_size
  ):
    num_patches = from_size[0] * from_size[1] // 256
    position = {'image_encoder.pos_embed': (1, 1 + num_patches, 384)}
    tensors, keys = self._tensors(**position)
    self.assertLen(tensors, 350)
    model = _full_size(to_size)
    shapes = towers.shapes(model)
    variables = load.convert(
      tensors,
      saliency_i2ploc_lib.towers_rules(model, from_size),
      shapes,
      ignore=saliency_i2ploc_lib.UNUSED,
    )
    found = jax.tree.map(lambda x: (x.shape, x.dtype), variables)
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    self.assertEqual(found, expected)
    if from_size == to_size == saliency_i2ploc_lib.KITTI_360_SIZE:
      count = sum(x.size for x in jax.tree.leaves(variables['params']))
      # Without fc_norm, CLS and its position in one, and a scale.
      self.assertEqual(count, keys['num_params'] - 2 * 384 - 384 + 1)

  def test_nothing_but_what_the_release_ignores_is_ignored(self):
    tensors, _ = self._tensors()
    model = _full_size(saliency_i2ploc_lib.KITTI_360_SIZE)
    rules = saliency_i2ploc_lib.towers_rules(
      model, saliency_i2ploc_lib.KITTI_360_SIZE
    )
    used = {source for rule in rules for source in rule.sources}
    left = {
      name for name in tensors if not name.endswith('num_batches_tracked')
    }
    self.assertEqual(
      left - used, {'pc_encoder.fc_norm.weight', 'pc_encoder.fc_norm.bias'}
    )


class LoadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    self.source = shared.GOLDEN / 'saliency_full.safetensors'
    self.tensors = safetensors_numpy.load_file(self.source)

  def _load(self, path, image_size=SMALL, from_size=SMALL, part=None):
    model = saliency_i2ploc.released_model(image_size=image_size)
    return saliency_i2ploc_lib.load_variables(
      path, model, from_size=from_size, part=part
    )

  def test_a_training_checkpoint_of_torch_is_the_same(self):
    path = self.folder / 'ckpt-best.pth'
    state = {f'module.{k}': v for k, v in self.tensors.items()}
    moments = {'momentum_buffer': np.ones(3, np.float32)}
    content = dict(
      base_model=state, optimizer={'state': {0: moments}}, epoch=99
    )
    torch_file.save(content, path)
    expected = self._load(self.source)
    for part in (None, 'base_model'):
      found = self._load(path, part=part)
      jax.tree.map(np.testing.assert_array_equal, found, expected)

  def test_of_student_and_teacher_the_one_that_is_named(self):
    path = self.folder / 'ckpt.pth'
    halved = {k: v / 2 for k, v in self.tensors.items()}
    torch_file.save(dict(student=halved, teacher=self.tensors), path)
    with self.assertRaisesRegex(ValueError, '2 networks.*#student, .*#teacher'):
      self._load(path)
    found, expected = self._load(path, part='teacher'), self._load(self.source)
    jax.tree.map(np.testing.assert_array_equal, found, expected)

  def test_the_position_of_cls_is_part_of_it_and_the_grid_is_resampled(self):
    image = self._load(self.source)['params']['image']
    position = self.tensors['image_encoder.pos_embed'][0]
    cls = self.tensors['image_encoder.cls_token'][0, 0]
    np.testing.assert_allclose(image['cls'][0, 0], cls + position[0])
    np.testing.assert_array_equal(image['position'][0], position[1:])
    larger = self._load(self.source, image_size=(96, 160))['params']['image']
    expected = position_embedding.resample(position[1:], (4, 8), (6, 10), True)
    np.testing.assert_allclose(larger['position'][0], expected, atol=1e-6)
    np.testing.assert_array_equal(larger['cls'], image['cls'])

  def test_what_does_not_fit_is_one_message(self):
    tensors = self.tensors
    del tensors['pc_proj.bn2.running_var']
    tensors['vision_proj.gating'] = tensors.pop('vision_proj.cluster_weights')
    tensors['pc_encoder.reduce_dim.weight'] = np.ones((48, 65), np.float32)
    tensors['pc_encoder.blocks.blocks.3.norm1.bias'] = np.ones(48, np.float32)
    path = self.folder / 'renamed.safetensors'
    safetensors_numpy.save_file(tensors, path)
    with self.assertRaises(ValueError) as caught:
      self._load(path, from_size=(64, 64))
    message = str(caught.exception)
    for part in (
      str(path),
      'Missing in it: pc_proj.bn2.running_var, vision_proj.cluster_weights.',
      'Unknown to the model: pc_encoder.blocks.blocks.3.norm1.bias, '
      'vision_proj.gating.',
      'pc_encoder.reduce_dim.weight (48, 65)',
      'points/reduce/kernel (64, 48)',
      'image_encoder.pos_embed (1, 33, 96) fails',
      '32 position embeddings do not make a grid of 4 x 4',
    ):
      self.assertIn(part, message)

  def test_a_truncated_file_and_a_missing_one_are_named(self):
    path = self.folder / 'half.safetensors'
    path.write_bytes(self.source.read_bytes()[:100_000])
    with self.assertRaisesRegex(ValueError, 'half.safetensors is no whole'):
      self._load(path)
    with self.assertRaisesRegex(FileNotFoundError, 'nowhere.pth'):
      self._load(self.folder / 'nowhere.pth')
    # A truncation that leaves a whole file is one of tensors.
    del (
      self.tensors['pc_proj.hidden1_weights'],
      self.tensors['pc_proj.bn1.bias'],
    )
    safetensors_numpy.save_file(self.tensors, path)
    with self.assertRaisesRegex(ValueError, 'pc_proj.bn1.bias, pc_proj.hidden'):
      self._load(path)

  def test_the_wrong_place_of_the_weights_is_named(self):
    with self.assertRaisesRegex(ValueError, '#base_model: no network begins'):
      self._load(self.source, part='base_model')


if __name__ == '__main__':
  absltest.main()
