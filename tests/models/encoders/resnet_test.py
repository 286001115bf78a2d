# SPDX-License-Identifier: Apache-2.0
"""ResNet: sizes, padding and statistics; its numbers are parity rows."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models.encoders import resnet
from tests.models import planted
from tests.testing import compiled

SMALL = dict(stem_width=4, widths=(2, 3), depths=(1, 2))


def _images(shape, channels=3, batch=2):
  rng = np.random.default_rng(0)
  return rng.normal(size=(batch, *shape, channels)).astype(np.float32)


def _convolved(x, kernel, stride):
  """x [H, W, C] with zeros around it, one output at a time."""
  pad = kernel.shape[0] // 2
  padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
  rows = range(0, x.shape[0], stride)
  columns = range(0, x.shape[1], stride)
  size = kernel.shape[0]
  return np.asarray(
    [
      [
        np.einsum('ijc,ijcf', padded[i : i + size, j : j + size], kernel)
        for j in columns
      ]
      for i in rows
    ]
  )


class ConvNormTest(parameterized.TestCase):
  @parameterized.product(shape=((6, 8), (5, 7)), size=(1, 3, 7), stride=(1, 2))
  def test_windows_are_centred_on_their_pixel(self, shape, size, stride):
    layer = resnet.ConvNorm(4, size, stride)
    x = _images(shape)
    variables = planted.variables(layer, x)
    found = compiled.apply(layer, variables, x)
    params, stats = variables['params'], variables['batch_stats']['norm']
    y = _convolved(x[1], params['conv']['kernel'], stride)
    y = (y - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
    y = y * params['norm']['scale'] + params['norm']['bias']
    np.testing.assert_allclose(found[1], y, atol=1e-4)


def _normed(x, part):
  """BatchNorm by running statistics."""
  params, stats = part
  y = (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
  return y * params['scale'] + params['bias']


class BasicTest(parameterized.TestCase):
  @parameterized.parameters((1, 4), (1, 5), (2, 4), (2, 5))
  def test_a_block_is_its_formula(self, stride, width):
    block = resnet.Basic(width, stride)
    x = _images((7, 8), channels=4)
    variables = planted.variables(block, x)
    params, stats = variables['params'], variables['batch_stats']

    def conv_norm(x, name, stride):
      part = params[name]
      y = _convolved(x, part['conv']['kernel'], stride) + part['conv'].get(
        'bias', 0.0
      )
      return _normed(y, (part['norm'], stats[name]['norm']))

    y = np.maximum(conv_norm(x[1], 'first', stride), 0.0)
    y = conv_norm(y, 'second', 1)
    same = stride == 1 and width == 4
    shortcut = x[1] if same else conv_norm(x[1], 'shortcut', stride)
    self.assertEqual('shortcut' in params, not same)
    found = compiled.apply(block, variables, x)
    expected = np.maximum(y + shortcut, 0.0)
    np.testing.assert_allclose(found[1], expected, atol=1e-4)

  @parameterized.parameters(
    (dict(block_kind='wide'), "unknown block_kind 'wide'"),
    (dict(block_kind='basic'), 'basic blocks have expansion=1'),
  )
  def test_impossible_kinds_are_named(self, fields, message):
    model = resnet.ResNet(**SMALL, **fields)
    with self.assertRaisesRegex(ValueError, message):
      jax.eval_shape(model.init, jax.random.key(0), _images((8, 8)))


class ResNetTest(parameterized.TestCase):
  def test_the_default_is_resnet_50(self):
    model = resnet.ResNet()
    images = jnp.zeros((1, 224, 224, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    count = sum(x.size for x in jax.tree.leaves(shapes['params']))
    self.assertEqual(count, 25_557_032 - 2049 * 1000)  # without the classifier
    tokens, _ = jax.eval_shape(model.apply, shapes, images)
    self.assertEqual(tokens.shape, (1, 49, 2048))

  @parameterized.parameters(((16, 24), (2, 3)), ((17, 9), (3, 2)))
  def test_tokens_are_the_cells_of_the_grid_row_by_row(self, shape, grid):
    model = resnet.ResNet(**SMALL)
    images = _images(shape)
    variables = planted.variables(model, images)
    tokens, out = compiled.apply(model, variables, images)
    self.assertEqual(out['grid'], grid)
    self.assertEqual(tokens.shape, (2, grid[0] * grid[1], 12))
    # What changes in the last corner reaches the last token, not the first.
    changed = images.copy()
    changed[:, -1, -1] += 3.0
    moved = np.abs(compiled.apply(model, variables, changed)[0] - tokens).max(
      (0, 2)
    )
    self.assertGreater(moved[-1], 1e-3)

  def test_training_normalises_by_the_batch_and_remembers_it(self):
    model = resnet.ResNet(**SMALL)
    images = _images((16, 16), batch=6)
    variables = planted.variables(model, images)

    def run(images):
      return compiled.apply(
        model, variables, images, True, mutable=['batch_stats']
      )

    (tokens, _), changed = run(images)
    # The first norm undoes whatever all images have in common.
    (brighter, _), _ = run(2.0 * images)
    np.testing.assert_allclose(brighter, tokens, atol=1e-2)
    plain = compiled.apply(model, variables, images)[0]
    self.assertGreater(np.abs(plain - tokens).max(), 0.1)
    for old, new in zip(
      jax.tree.leaves(variables['batch_stats']),
      jax.tree.leaves(changed['batch_stats']),
      strict=True,
    ):
      self.assertGreater(np.abs(old - new).max(), 1e-4)

  def test_a_frozen_norm_is_that_of_evaluation_and_stays(self):
    images = _images((16, 16), batch=6)
    variables = planted.variables(resnet.ResNet(**SMALL), images)
    model = resnet.ResNet(**SMALL, frozen_norm=True)
    (tokens, _), changed = compiled.apply(
      model, variables, images, True, mutable=['batch_stats']
    )
    expected, _ = compiled.apply(model, variables, images)
    np.testing.assert_array_equal(tokens, expected)
    jax.tree.map(
      np.testing.assert_array_equal,
      changed['batch_stats'],
      variables['batch_stats'],
    )

  def test_any_number_of_channels_and_half_precision(self):
    model = resnet.ResNet(**SMALL, dtype=jnp.bfloat16)
    images = _images((16, 16), channels=5)
    variables = planted.variables(model, images)
    tokens, _ = compiled.apply(model, variables, images)
    exact = compiled.apply(resnet.ResNet(**SMALL), variables, images)[0]
    self.assertEqual(tokens.dtype, jnp.float32)
    scale = np.abs(exact).max()
    np.testing.assert_allclose(tokens / scale, exact / scale, atol=5e-2)


if __name__ == '__main__':
  absltest.main()
