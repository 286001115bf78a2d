# SPDX-License-Identifier: Apache-2.0
"""Published encoders in whatever towers."""

import json
import pathlib
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from i2ploc import factory
from i2ploc.models import towers
from i2ploc.models.weights import published
from tests import shared
from tests.models import planted
from tests.models.weights import resnet_tensors

SIZE = (32, 64)
NARROW = dict(name='resnet', **resnet_tensors.FIELDS)


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


class EncodersTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / 'model.safetensors'

  @parameterized.parameters(('released', True), ('channels', False))
  def test_a_published_encoder_is_where_its_images_are(self, encoding, both):
    model, variables = _narrow(range_encoding=encoding)
    safetensors_numpy.save_file(resnet_tensors.torchvision(), self.path)
    found = published.with_encoders(self.path, model, variables)
    self.assertEqual(
      jax.tree.map(np.shape, found), jax.tree.map(np.shape, variables)
    )
    for collection in ('params', 'batch_stats'):
      for side, replaced in (('image', True), ('points', both)):
        stem = found[collection][side]['stem']['norm']
        own = variables[collection][side]['stem']['norm']
        same = all(np.array_equal(stem[name], own[name]) for name in own)
        self.assertEqual(same, not replaced)
    head = variables['params']['image_aggregator']
    self.assertIs(found['params']['image_aggregator'], head)


class PhotosTest(parameterized.TestCase):
  """Towers of images alone whose encoder is a published one."""

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)

  def _vit(self, size=(32, 48), **fields):
    """Towers of the tiny DINOv2 of the goldens."""
    self.path = shared.GOLDEN / 'dinov2_tiny'
    return factory.make_model(
      **dict(
        image=dict(name='published', checkpoint=str(self.path)),
        aggregator=dict(name='first'),
        dtype='float32',
        image_size=size,
        saliency='none',
        aggregate_cls=True,
      )
      | fields
    )

  def test_the_encoder_is_the_checkpoint_s(self):
    io = np.load((shared.GOLDEN / 'dinov2_tiny') / 'io.npz')
    model = self._vit((70, 98))
    tower = model.towers['image']
    self.assertEqual(tower.encoder.depth, 3)
    # What was normalised there was no image of bytes.
    mean, std = map(np.asarray, published.normalization(self.path))
    pixels = io['70x98/pixel_values'].transpose(0, 2, 3, 1) * std + mean
    variables = published.load_variables(self.path, model)
    found, _ = model.apply(
      variables, {'image': pixels.astype(np.float32)}, side='image'
    )
    cls = io['70x98/last_hidden_state'][:, 0]
    expected = cls / np.linalg.norm(cls, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)

  def test_the_pooling_keeps_its_initial_values(self):
    model = self._vit(
      (42, 56), aggregator=dict(name='gem', features=0), aggregate_cls=False
    )
    variables = published.load_variables(self.path, model)
    self.assertEqual(variables['params']['image_aggregator'], {'power': 3.0})
    self.assertAlmostEqual(
      float(variables['params']['log_scale']), np.log(1 / 0.07), places=5
    )
    shapes = jax.tree.map(lambda x: x.shape, towers.shapes(model))
    self.assertEqual(jax.tree.map(np.shape, variables), shapes)

  def test_a_config_chooses_the_features(self):
    path = str(shared.GOLDEN / 'dinov2_tiny')
    image = dict(name='published', checkpoint=f'{path}@2.key')
    model = self._vit((28, 42), image=image)
    encoder = model.towers['image'].encoder
    self.assertEqual((encoder.block, encoder.facet), (2, 'key'))
    variables = published.load_variables(path, model)
    params = variables['params']['image']
    self.assertEqual(set(params['blocks_1']['attention']), {'qkv'})
    with self.assertRaisesRegex(ValueError, 'no padding; it takes remat'):
      published.make_encoder(path, padding='same')

  def test_adapters_keep_their_initial_values(self):
    path = shared.GOLDEN / 'dinov2_tiny'
    image = dict(name='published', checkpoint=str(path))
    plain, model = (
      self._vit((28, 42), image=one) for one in (image, {**image, 'adapter': 4})
    )
    expected = published.load_variables(path, plain)
    fresh = towers.CompiledTowers(model, 'image').init(jax.random.key(1))
    for variables in (
      published.load_variables(path, model),
      published.with_encoders(path, model, fresh),
    ):
      encoder = variables['params']['image']
      for i in range(3):
        own = encoder[f'blocks_{i}'].pop('adapter')
        self.assertGreater(np.abs(own['down']['kernel']).max(), 0.0)
        self.assertFalse(np.any(own['up']['kernel']))
      jax.tree.map(
        np.testing.assert_array_equal, encoder, expected['params']['image']
      )
    # The caller's variables are as they were.
    self.assertIn('adapter', fresh['params']['image']['blocks_0'])
    self.assertGreater(
      np.abs(
        fresh['params']['image']['blocks_1']['expand']['kernel']
        - expected['params']['image']['blocks_1']['expand']['kernel']
      ).max(),
      1e-3,
    )

  def test_what_a_checkpoint_lacks_is_named_beside_adapters(self):
    folder = self.folder / 'damaged'
    shutil.copytree(shared.GOLDEN / 'dinov2_tiny', folder)
    folder.chmod(0o755)
    file = folder / 'model.safetensors'
    tensors = safetensors_numpy.load_file(file)
    lost = next(name for name in tensors if name.endswith('fc2.weight'))
    del tensors[lost]
    file.unlink()
    safetensors_numpy.save_file(tensors, file)
    image = dict(name='published', checkpoint=str(folder), adapter=4)
    with self.assertRaisesRegex(ValueError, f'Missing in it: .*{lost}'):
      published.load_variables(folder, self._vit((28, 42), image=image))

  @parameterized.parameters(False, True)
  def test_batch_norm_of_a_resnet_may_be_frozen(self, frozen):
    path = self.folder / 'resnet.safetensors'
    safetensors_numpy.save_file(resnet_tensors.torchvision(), path)
    model = published.make_encoder(path, frozen_norm=frozen)
    self.assertEqual(model.frozen_norm, frozen)
    with self.assertRaisesRegex(ValueError, 'no adapter; it takes frozen_norm'):
      published.make_encoder(path, adapter=4)

  def test_renderings_start_from_the_weights_of_photos(self):
    path = shared.GOLDEN / 'dinov2_tiny'
    image = dict(name='published', checkpoint=str(path))
    model = self._vit((28, 42), image=image, rendering=image)
    params = published.load_variables(path, model)['params']
    jax.tree.map(
      np.testing.assert_array_equal, params['rendering'], params['image']
    )
    self.assertEqual(model.towers['rendering'].view.std, published.IMAGENET.std)

  def test_towers_beside_each_other_have_weights_of_their_own(self):
    path = str(shared.GOLDEN / 'dinov2_tiny')
    named = f'{path}@1+{path}@2.value'
    image = dict(name='published', checkpoint=named)
    model = self._vit((28, 42), image=image)
    variables = published.load_variables(named, model)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 42, 3), np.uint8)
    descriptor = model.apply(variables, {'image': images}, side='image')[0]
    parts = []
    for one in named.split('+'):
      alone = self._vit((28, 42), image=dict(name='published', checkpoint=one))
      loaded = published.load_variables(one, alone)
      parts.append(alone.apply(loaded, {'image': images}, side='image')[0])
    expected = np.concatenate(parts, 1) / np.sqrt(2)
    np.testing.assert_allclose(descriptor, expected, atol=1e-6)
    with self.assertRaisesRegex(ValueError, '3 checkpoints, and .* 2 towers'):
      published.load_variables(f'{named}+{path}', model)

  def test_a_resnet_is_one_too(self):
    path = self.folder / 'resnet.safetensors'
    safetensors_numpy.save_file(resnet_tensors.torchvision(), path)
    fields = dict(
      image=dict(name='published', checkpoint=str(path)),
      aggregator=dict(name='mean', features=0),
      dtype='bfloat16',
      image_size=SIZE,
      saliency='none',
    )
    model = factory.make_model(**fields)
    encoder = model.towers['image'].encoder
    self.assertEqual(encoder.widths, resnet_tensors.FIELDS['widths'])
    self.assertEqual(encoder.dtype, 'bfloat16')
    variables = published.load_variables(path, model)
    self.assertEqual(set(variables), {'params', 'batch_stats'})
    with self.assertRaisesRegex(ValueError, 'image encoder has no CLS token'):
      factory.make_model(
        **fields | dict(aggregator=dict(name='first'), aggregate_cls=True)
      )

  def test_an_encoder_of_another_kind_is_named(self):
    path = self.folder / 'resnet.safetensors'
    safetensors_numpy.save_file(resnet_tensors.torchvision(), path)
    with self.assertRaisesRegex(
      ValueError, 'fits a ResNet, and the image .*ViT'
    ):
      published.load_variables(path, self._vit())
    safetensors_numpy.save_file({'x': np.ones(3, np.float32)}, path)
    model = factory.make_model(
      image=dict(name='resnet', depths=(1,), widths=(4,)),
      aggregator=dict(name='mean', features=0),
      dtype='float32',
      image_size=SIZE,
      saliency='none',
    )
    with self.assertRaisesRegex(ValueError, 'neither the names of timm'):
      published.load_variables(path, model)

  def test_pixels_are_normalised_as_the_checkpoint_says_or_its_family(self):
    self.assertEqual(
      published.normalization(shared.GOLDEN / 'dinov2_tiny'),
      published.IMAGENET,
    )
    for name, mean in (('vit_tiny', 0.5), ('clip_tiny', 0.48145466)):
      folder = self.folder / name
      shutil.copytree((shared.GOLDEN / name), folder)
      folder.chmod(0o755)
      file = folder / 'preprocessor_config.json'
      file.unlink(missing_ok=True)
      self.assertEqual(published.normalization(folder).mean[0], mean)
      file.write_text(
        json.dumps(dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]))
      )
      found = published.normalization(folder)
      self.assertEqual(found, ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
      file.write_text('[0.5]')
      with self.assertRaisesRegex(ValueError, 'config.json is no config'):
        published.normalization(folder)

  def test_a_config_may_normalise_in_its_own_way(self):
    view = self._vit(image_mean=(0.0, 0.0, 0.0)).towers['image'].view
    self.assertEqual(view.mean, (0.0, 0.0, 0.0))
    self.assertEqual(view.std, published.IMAGENET.std)

  def test_weights_that_are_not_there_are_named(self):
    with self.assertRaisesRegex(FileNotFoundError, 'no weights .no-such'):
      published.make_encoder('no-such')


if __name__ == '__main__':
  absltest.main()
