# SPDX-License-Identifier: Apache-2.0
"""VGG: sizes, and its layers one by one in numpy."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models.encoders import vgg
from tests.models import planted
from tests.testing import compiled

IMAGES = np.random.default_rng(0).normal(size=(2, 21, 30, 3))
IMAGES = IMAGES.astype(np.float32)


def convolve(x, layer):
  """A 3 x 3 convolution of [B, H, W, C] by its definition."""
  windows = np.lib.stride_tricks.sliding_window_view(
    np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (1, 2)
  )
  return (
    np.einsum('bhwcij,ijco->bhwo', windows, layer['kernel']) + layer['bias']
  )


def pool(x):
  """The largest of 2 x 2 cells; a last odd row or column is left out."""
  rows, columns = x.shape[1] // 2, x.shape[2] // 2
  x = x[:, : 2 * rows, : 2 * columns]
  return x.reshape(len(x), rows, 2, columns, 2, -1).max((2, 4))


class VGGTest(absltest.TestCase):
  def test_the_whole_is_vgg16_without_its_classifier(self):
    model = vgg.VGG()
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    count = sum(x.size for x in jax.tree.leaves(shapes))
    self.assertEqual(count, 14_714_688)
    self.assertLen(shapes['params'], 13)
    tokens, out = jax.eval_shape(model.apply, shapes, images)
    self.assertEqual(tokens.shape, (1, 4 * 6, 512))
    self.assertFalse(model.has_cls)
    del out

  def test_layers_are_those_of_the_paper(self):
    model = vgg.VGG(widths=(4, 6, 5), depths=(2, 1, 2))
    variables = planted.variables(model, IMAGES)
    tokens, out = compiled.apply(model, variables, IMAGES)
    layers = jax.device_get(variables['params'])
    x = np.maximum(convolve(IMAGES, layers['stage0_conv0']), 0)
    x = pool(np.maximum(convolve(x, layers['stage0_conv1']), 0))
    x = pool(np.maximum(convolve(x, layers['stage1_conv0']), 0))
    x = np.maximum(convolve(x, layers['stage2_conv0']), 0)
    x = convolve(x, layers['stage2_conv1'])
    self.assertEqual(tuple(out['grid']), (5, 7))
    np.testing.assert_allclose(tokens, x.reshape(2, 35, 5), atol=1e-4)
    self.assertLess(float(tokens.min()), 0)

  def test_a_token_does_not_depend_on_the_batch(self):
    model = vgg.VGG(widths=(4, 6), depths=(1, 1))
    variables = planted.variables(model, IMAGES)
    tokens, _ = compiled.apply(model, variables, IMAGES)
    alone, _ = compiled.apply(model, variables, IMAGES[1:])
    np.testing.assert_allclose(tokens[1:], alone, atol=1e-5)


if __name__ == '__main__':
  absltest.main()
