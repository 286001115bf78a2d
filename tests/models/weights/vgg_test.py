# SPDX-License-Identifier: Apache-2.0
"""VGGs of torchvision: every tensor has its place, and numbers are torch's."""

import importlib.util
import pathlib
import tempfile
import unittest

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from i2ploc.models.encoders import vgg
from i2ploc.models.weights import published
from i2ploc.models.weights import vgg as vgg_lib
from tests.models.weights import released_tensors


class VGGWeightsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / 'vgg.safetensors'

  def _save(self, shapes):
    shapes = shapes | {'classifier.0.weight': (7, 5), 'classifier.0.bias': (7,)}
    tensors = released_tensors.random(shapes)
    safetensors_numpy.save_file(tensors, self.path)
    return tensors

  def test_sizes_are_those_of_the_tensors(self):
    tensors = released_tensors.constant(released_tensors.vgg16('features.'))
    self.assertTrue(vgg_lib.is_vgg(tensors))
    self.assertEqual(vgg.VGG(**vgg_lib.attributes_of(tensors)), vgg.VGG())
    self.assertFalse(vgg_lib.is_vgg(tensors, ''))
    normed = tensors | {'features.1.weight': np.ones(64, np.float32)}
    self.assertFalse(vgg_lib.is_vgg(normed))

  @parameterized.parameters(0, 2, 5)
  def test_stages_that_are_left_out_are_known(self, stage):
    widths = (4, 5, 6, 7, 8)
    self._save(released_tensors.vgg16('features.', widths))
    model = published.make_encoder(
      f'{self.path}@{stage}' if stage else self.path
    )
    self.assertEqual(model.widths, widths[: stage or None])
    found = vgg_lib.load_vgg_variables(self.path, model)
    count = {0: 13, 2: 4, 5: 13}[stage]
    self.assertLen(found['params'], count)

  def test_what_does_not_fit_is_named(self):
    tensors = self._save(released_tensors.vgg16('features.', (4, 5, 6, 7, 8)))
    with self.assertRaisesRegex(ValueError, 'has 5 stages, and stage is 6'):
      published.make_encoder(f'{self.path}@6')
    model = published.make_encoder(self.path)
    del tensors['features.5.bias']
    safetensors_numpy.save_file(
      tensors | {'features.x.weight': np.ones(2, np.float32)}, self.path
    )
    with self.assertRaisesRegex(
      ValueError, r'(?s)Missing in it: features.5.bias.*features.x.weight'
    ):
      vgg_lib.load_vgg_variables(self.path, model)

  @unittest.skipUnless(importlib.util.find_spec('torch'), 'torch is absent')
  def test_numbers_are_those_of_torch(self):
    import torch
    from torch import nn

    widths = (4, 5, 6, 7, 8)
    tensors = self._save(released_tensors.vgg16('features.', widths))
    layers, given = [], 3
    for width, depth in zip(widths, (2, 2, 3, 3, 3), strict=True):
      for _ in range(depth):
        layers += [nn.Conv2d(given, width, 3, padding=1), nn.ReLU()]
        given = width
      layers.append(nn.MaxPool2d(2))
    # The numbers are torch's own: of an nn.Sequential without its last two.
    network = nn.Sequential(*layers[:-2])
    network.load_state_dict(
      {
        name.removeprefix('features.'): torch.tensor(tensor)
        for name, tensor in tensors.items()
        if name.startswith('features.')
      }
    )
    images = np.random.default_rng(0).normal(size=(2, 50, 67, 3))
    images = images.astype(np.float32)
    with torch.no_grad():
      expected = network(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    model = published.make_encoder(self.path)
    variables = vgg_lib.load_vgg_variables(self.path, model)
    tokens, out = jax.jit(model.apply)(variables, images)
    self.assertEqual(expected.shape[2:], tuple(out['grid']))
    expected = expected.reshape(2, 8, -1).transpose(0, 2, 1)
    np.testing.assert_allclose(tokens, expected, atol=1e-5)
    self.assertGreater(np.std(expected), 0.05)


if __name__ == '__main__':
  absltest.main()
