# SPDX-License-Identifier: Apache-2.0
"""Published encoders: what is found in a checkpoint, and what is refused."""

import json
import pathlib
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from i2ploc.models.encoders import vit
from i2ploc.models.weights import vit as vit_lib
from tests import shared
from tests.models.weights import torch_file

RNG = np.random.default_rng(0)
VIT = dict(width=48, depth=3, num_heads=4, patch_size=8, mlp_ratio=2.0)


def timm(width=192, depth=2, patch=8, side=3):
  """Tensors of a small ViT with timm's names."""
  shapes = {
    'cls_token': (1, 1, width),
    'pos_embed': (1, 1 + side * side, width),
    'patch_embed.proj.weight': (width, 3, patch, patch),
    'patch_embed.proj.bias': (width,),
    'norm.weight': (width,),
    'norm.bias': (width,),
    'head.weight': (10, width),
  }
  for i in range(depth):
    layers = {
      'attn.qkv': (3 * width, width),
      'attn.proj': (width, width),
      'mlp.fc1': (2 * width, width),
      'mlp.fc2': (width, 2 * width),
      'norm1': (width,),
      'norm2': (width,),
    }
    for name, shape in layers.items():
      shapes[f'blocks.{i}.{name}.weight'] = shape
      shapes[f'blocks.{i}.{name}.bias'] = shape[:1]
  return {
    name: RNG.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }


class LoadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)

  def _copy(self, name='vit_tiny'):
    """A copy of a golden folder, and its tensors."""
    source = shared.GOLDEN / name
    for file in ('config.json', 'model.safetensors'):
      shutil.copyfile(source / file, self.folder / file)
    return safetensors_numpy.load_file(self.folder / 'model.safetensors')

  def _save(self, tensors):
    safetensors_numpy.save_file(tensors, self.folder / 'model.safetensors')

  def _configure(self, **fields):
    file = self.folder / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))

  def _assert_same(self, found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)

  def test_a_model_with_a_head_holds_the_same_encoder(self):
    tensors = self._copy()
    _, expected = vit_lib.load_vit(self.folder, (32, 32))
    tensors = {f'vit.{name}': array for name, array in tensors.items()}
    self._save(tensors | {'classifier.weight': np.ones((10, 48), np.float32)})
    model, found = vit_lib.load_vit(self.folder, (32, 32))
    self._assert_same(found, expected)
    self.assertEqual(model.epsilon, 1e-12)

  def test_a_damaged_checkpoint_is_one_message(self):
    tensors = self._copy()
    del tensors['layernorm.bias']
    tensors['encoder.layer.9.norm'] = tensors.pop('embeddings.cls_token')
    key = 'encoder.layer.1.attention.attention.key.weight'
    tensors[key] = tensors[key][:40]
    self._save(tensors)
    with self.assertRaises(ValueError) as caught:
      vit_lib.load_vit(self.folder, (32, 32))
    message = str(caught.exception)
    self.assertIn(str(self.folder), message)
    self.assertIn('Missing in it: embeddings.cls_token, layernorm.b', message)
    self.assertIn('Unknown to the model: encoder.layer.9.norm.', message)
    self.assertIn(f'{key} (40, 48)', message)
    self.assertIn('blocks_1/attention/qkv/kernel (48, 144)', message)

  def test_a_checkpoint_of_another_size_than_its_configuration(self):
    self._copy()
    self._configure(num_hidden_layers=2, image_size=40)
    with self.assertRaises(ValueError) as caught:
      vit_lib.load_vit(self.folder, (32, 32))
    message = str(caught.exception)
    self.assertIn('Unknown to the model: encoder.layer.2.attention', message)
    self.assertIn('16 position embeddings do not make a grid of 5 x', message)

  def test_a_given_encoder_must_be_the_same(self):
    self._copy()
    model = vit.ViT(**VIT, epsilon=1e-12, remat=True)
    _, expected = vit_lib.load_vit(self.folder, (16, 40))
    found = vit_lib.load_vit_variables(self.folder, model, (16, 40))
    self._assert_same(found, expected)
    # None of these changes a shape.
    model = vit.ViT(**dict(VIT, num_heads=6), mlp='quick_gelu')
    with self.assertRaisesRegex(ValueError, "'num_heads': 4.*'epsilon': 1e-12"):
      vit_lib.load_vit_variables(self.folder, model, (32, 32))
    stem = dict(stem_widths=(4,), stem_strides=((8, 8),), epsilon=1e-12)
    with self.assertRaisesRegex(ValueError, 'stem_widths'):
      vit_lib.load_vit_variables(self.folder, vit.ViT(**VIT, **stem), (32, 32))

  @parameterized.parameters((2, 'token'), (3, 'value'))
  def test_fewer_blocks_are_the_same_ones(self, block, facet):
    tensors = self._copy()
    _, whole = vit_lib.load_vit(self.folder, (32, 32))
    model = vit.ViT(**VIT, epsilon=1e-12, block=block, facet=facet)
    found = vit_lib.load_vit_variables(self.folder, model, (32, 32))
    params = found['params']
    self.assertNotIn('norm', params)
    self.assertLen([name for name in params if 'blocks' in name], block)
    self.assertEqual('expand' in params[f'blocks_{block - 1}'], block == 2)
    whole = dict(jax.tree_util.tree_leaves_with_path(whole))
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
      np.testing.assert_array_equal(leaf, whole[path])
    # What is left aside is what the blocks have, not whatever is there.
    tensors['encoder.layer.2.adapter.weight'] = np.ones(3, np.float32)
    self._save(tensors)
    with self.assertRaisesRegex(ValueError, 'Unknown .*layer.2.adapter'):
      vit_lib.load_vit_variables(self.folder, model, (32, 32))

  def test_images_must_tile(self):
    self._copy()
    with self.assertRaisesRegex(ValueError, '32 x 36 pixels do not tile'):
      vit_lib.load_vit(self.folder, (32, 36))

  @parameterized.parameters(
    (dict(model_type='bert'), "describes a 'bert'; known.*dinov2"),
    (dict(hidden_act='relu'), "unknown mlp 'relu'"),
  )
  def test_encoders_that_are_none_of_ours(self, fields, message):
    self._copy()
    self._configure(**fields)
    with self.assertRaisesRegex(ValueError, message):
      vit_lib.load_vit(self.folder, (32, 32))

  def test_weights_without_their_configuration(self):
    self._copy()
    with self.assertRaisesRegex(ValueError, 'folder of both weights and'):
      vit_lib.load_vit(self.folder / 'model.safetensors', (32, 32))
    (self.folder / 'config.json').write_text('[]')
    with self.assertRaisesRegex(ValueError, 'config.json is no configuration'):
      vit_lib.load_vit(self.folder, (32, 32))

  def _dinov2(self):
    """DINOv2 of 64 channels a head as an ONNX exporter leaves it."""
    width, tensors = 128, {}
    made = timm(width=width, depth=1, patch=14, side=4)
    layers = {
      'attn.proj': 'attention.output.dense',
      'mlp.fc1': 'mlp.fc1',
      'mlp.fc2': 'mlp.fc2',
      'norm1': 'norm1',
      'norm2': 'norm2',
    }
    block = 'net.encoder.layer.0.'
    for theirs, ours in layers.items():
      for part in ('weight', 'bias'):
        tensors[f'{block}{ours}.{part}'] = made[f'blocks.0.{theirs}.{part}']
    for i, name in enumerate(('query', 'key', 'value')):
      rows = slice(i * width, (i + 1) * width)
      for part in ('weight', 'bias'):
        tensors[f'{block}attention.attention.{name}.{part}'] = made[
          f'blocks.0.attn.qkv.{part}'
        ][rows]
    for i in (1, 2):
      gain = RNG.uniform(size=width).astype(np.float32)
      tensors[f'{block}layer_scale{i}.lambda1'] = gain
    start = 'net.embeddings.'
    tensors |= {
      f'{start}cls_token': made['cls_token'],
      f'{start}patch_embeddings.projection.weight': made[
        'patch_embed.proj.weight'
      ],
      f'{start}patch_embeddings.projection.bias': made['patch_embed.proj.bias'],
      'net.layernorm.weight': made['norm.weight'],
      'net.layernorm.bias': made['norm.bias'],
      'decoder.weight': np.ones(3, np.float32),
    }
    return tensors, made['pos_embed']

  def test_a_file_of_dinov2_needs_no_configuration(self):
    tensors, position = self._dinov2()
    path = self.folder / 'dinov2.safetensors'
    whole = {'net.embeddings.position_embeddings': position}
    safetensors_numpy.save_file(tensors | whole, path)
    model, expected = vit_lib.load_vit(path, (56, 56))
    found = (model.num_heads, model.patch_size, model.depth, model.qkv_bias)
    self.assertEqual(found, (2, 14, 1, True))
    self.assertEqual(vit_lib.make_vit(path), model)
    # Exporters leave the position embeddings in two nameless parts.
    parts = {
      'net.embeddings.Reshape_1': position[:, 1:],
      'net.embeddings.Concat_6': position[:, :1],
    }
    safetensors_numpy.save_file(tensors | parts, path)
    _, found = vit_lib.load_vit(path, (56, 56))
    self._assert_same(found, expected)

  def test_a_file_of_timm_needs_no_configuration(self):
    tensors = timm()
    torch_file.save({'model': tensors}, self.folder / 'vit.pth')
    model, found = vit_lib.load_vit(self.folder / 'vit.pth', (24, 24))
    expected = dict(width=192, depth=2, num_heads=3, patch_size=8, mlp_ratio=2)
    self.assertEqual({k: getattr(model, k) for k in expected}, expected)
    cls = tensors['cls_token'] + tensors['pos_embed'][:, :1]
    np.testing.assert_array_equal(found['params']['cls'], cls)
    position = tensors['pos_embed'][:, 1:]
    np.testing.assert_array_equal(found['params']['position'], position)
    shapes = jax.eval_shape(model.apply, found, np.zeros((1, 24, 24, 3)))
    self.assertEqual(shapes[0].shape, (1, 9, 192))

  def test_the_grid_of_a_timm_file_is_square_or_the_wanted_one(self):
    path = self.folder / 'vit.safetensors'
    tensors = timm(side=4)
    safetensors_numpy.save_file(tensors, path)
    _, found = vit_lib.load_vit(path, (16, 64))
    position = found['params']['position']
    self.assertEqual(position.shape, (1, 16, 192))
    self.assertFalse(np.allclose(position, tensors['pos_embed'][:, 1:]))
    tensors['pos_embed'] = tensors['pos_embed'][:, : 1 + 15]
    safetensors_numpy.save_file(tensors, path)
    _, found = vit_lib.load_vit(path, (24, 40))
    position = found['params']['position']
    np.testing.assert_array_equal(position, tensors['pos_embed'][:, 1:])
    with self.assertRaisesRegex(ValueError, '15 position embeddings'):
      vit_lib.load_vit(path, (16, 64))

  def test_heads_are_not_guessed(self):
    path = self.folder / 'vit.safetensors'
    safetensors_numpy.save_file(timm(width=96), path)
    with self.assertRaisesRegex(ValueError, 'width 96.*heads is not written'):
      vit_lib.load_vit(path, (24, 24))


if __name__ == '__main__':
  absltest.main()
