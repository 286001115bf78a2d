# SPDX-License-Identifier: Apache-2.0
"""Encoders and poolings by name."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from i2ploc import factory
from i2ploc.losses import contrastive as contrastive_lib
from i2ploc.losses import soft_targets as soft_targets_lib
from i2ploc.models import aggregators
from i2ploc.models import salad
from i2ploc.models import vlad
from tests import shared
from tests.models.weights import released_tensors
from tests.models.weights import resnet_tensors
from tests.testing import compiled

contrastive = compiled.Module(contrastive_lib)
soft_targets = compiled.Module(soft_targets_lib)


KEY = jax.random.key(3)


class ImageEncodersTest(parameterized.TestCase):
  """Photos alone, with encoders that need no checkpoint or name one."""

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / 'model.safetensors'

  def _model(self, image, size=(32, 48), **fields):
    defaults = dict(
      aggregator=dict(name='default'),
      dtype='float32',
      image_size=size,
      saliency='none',
    )
    return factory.make_model(image=image, **defaults | fields)

  @parameterized.parameters(
    dict(name='efficientnet', stage=2),
    dict(name='vgg', widths=(4, 6), depths=(1, 2)),
    dict(name='resnet', stem_width=4, widths=(4, 4), depths=(1, 1)),
    dict(name='vit', width=16, depth=1, num_heads=2, patch_size=16),
  )
  def test_every_encoder_can_be_trained_without_a_checkpoint(self, **image):
    model = self._model(image, aggregator=dict(name='gem', features=0))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)
    variables = model.init(KEY, model.example(), method='every_side')
    params = variables['params']
    others = {k: v for k, v in variables.items() if k != 'params'}

    def loss(params):
      (descriptor, _), _ = model.apply(
        {'params': params, **others},
        {'image': images},
        side='image',
        train=True,
        mutable=list(others),
      )
      return (descriptor[0] * descriptor[1]).sum()

    gradient = jax.jit(jax.grad(loss))(params)['image']
    largest = [np.abs(x).max() for x in jax.tree.leaves(gradient)]
    self.assertTrue(np.isfinite(largest).all())
    # Biases in front of a norm have none.
    self.assertGreater(np.mean(np.array(largest) > 0), 0.8)

  def test_the_default_pooling_suits_the_encoder(self):
    safetensors_numpy.save_file(resnet_tensors.torchvision(), self.path)
    named = dict(name='published', checkpoint=str(self.path))
    tower = self._model(named).towers['image']
    self.assertIsInstance(tower.aggregator, aggregators.GeM)
    dinov2 = dict(named, checkpoint=f'{shared.GOLDEN / "dinov2_tiny"}@2')
    tower = self._model(dinov2, (28, 28)).towers['image']
    self.assertIsInstance(tower.aggregator, aggregators.FirstToken)
    self.assertTrue(tower.aggregate_cls)
    self.assertEqual(tower.encoder.block, 2)
    for fields, stage in ({}, 5), ({'stage': 3}, 3):
      tower = self._model(dict(name='efficientnet', **fields)).towers['image']
      self.assertIsInstance(tower.aggregator, vlad.VLAD)
      self.assertEqual(tower.encoder.stage, stage)
    safetensors_numpy.save_file(
      released_tensors.random(released_tensors.salad(64, 1, 5, 6, 7, 20)),
      self.path,
    )
    tower = self._model(named, (28, 28)).towers['image']
    self.assertIsInstance(tower.aggregator, salad.SALAD)
    self.assertTrue(tower.with_cls)


if __name__ == '__main__':
  absltest.main()
