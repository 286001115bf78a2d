# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0: sizes and stages; its numbers are parity rows."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models.encoders import efficientnet
from tests.models import planted
from tests.testing import compiled

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(2, 40, 56, 3))
IMAGES = IMAGES.astype(np.float32)


def _shapes(model, shape=(1, 64, 96, 3)):
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  return jax.eval_shape(model.init, KEY, images), images


class EfficientNetTest(parameterized.TestCase):
  def test_the_whole_is_efficientnet_lite0(self):
    shapes, _ = _shapes(efficientnet.EfficientNetLite0())
    count = sum(x.size for x in jax.tree.leaves(shapes['params']))
    # As published, without the classifier of 1000 classes.
    self.assertEqual(count, 4_652_008 - 1281 * 1000)

  @parameterized.parameters(
    (1, 16, 2), (2, 24, 4), (3, 40, 8), (4, 80, 16), (5, 112, 16),
    (6, 192, 32), (7, 320, 32), (0, 1280, 32),
  )  # fmt: skip
  def test_stages_are_what_leaves_them_and_the_rest_is_not_there(
    self, stage, width, down
  ):
    model = efficientnet.EfficientNetLite0(stage)
    shapes, images = _shapes(model)
    tokens, out = jax.eval_shape(model.apply, shapes, images)
    # 64 x 96 pixels.
    self.assertEqual(tokens.shape, (1, 64 * 96 // down**2, width))
    stages = {name[:6] for name in shapes['params'] if '_block' in name}
    self.assertLen(stages, stage or 7)
    self.assertEqual('head' in shapes['params'], stage == 0)
    self.assertFalse(model.has_cls)
    del out

  def test_tokens_are_the_cells_of_the_grid_row_by_row(self):
    model = efficientnet.EfficientNetLite0(4)
    variables = planted.variables(model, IMAGES)
    tokens, out = compiled.apply(model, variables, IMAGES)
    self.assertEqual(tuple(out['grid']), (3, 4))  # 40 x 56, rounded up
    self.assertEqual(tokens.shape, (2, 12, 80))
    changed = IMAGES.copy()
    changed[:, -1, -1] += 3.0
    other, _ = compiled.apply(model, variables, changed)
    moved = np.abs(other - tokens).max((0, 2))
    self.assertGreater(moved[-1], 1e-4)
    alone, _ = compiled.apply(model, variables, IMAGES[:1])
    np.testing.assert_allclose(alone[0], tokens[0], atol=1e-4)

  def test_paddings_differ_at_the_border_of_even_images(self):
    same, symmetric = (
      efficientnet.EfficientNetLite0(2, padding)
      for padding in ('same', 'symmetric')
    )
    variables = planted.variables(same, IMAGES)
    a, _ = compiled.apply(same, variables, IMAGES)
    b, _ = compiled.apply(symmetric, variables, IMAGES)
    self.assertEqual(a.shape, b.shape)
    self.assertGreater(np.abs(a - b).max(), 1e-2)

  def test_training_normalises_by_the_batch_and_remembers_it(self):
    model = efficientnet.EfficientNetLite0(2)
    variables = planted.variables(model, IMAGES)
    _, changed = compiled.apply(
      model, variables, IMAGES, True, mutable=['batch_stats']
    )
    for old, new in zip(
      jax.tree.leaves(variables['batch_stats']),
      jax.tree.leaves(changed['batch_stats']),
      strict=True,
    ):
      self.assertGreater(np.abs(old - new).max(), 1e-5)

  def test_a_frozen_norm_is_that_of_evaluation_and_stays(self):
    model = efficientnet.EfficientNetLite0(2, frozen_norm=True)
    variables = planted.variables(model, IMAGES)
    (tokens, _), changed = compiled.apply(
      model, variables, IMAGES, True, mutable=['batch_stats']
    )
    expected, _ = compiled.apply(model, variables, IMAGES)
    np.testing.assert_array_equal(tokens, expected)
    jax.tree.map(
      np.testing.assert_array_equal,
      changed['batch_stats'],
      variables['batch_stats'],
    )

  def test_half_precision(self):
    model = efficientnet.EfficientNetLite0(3, dtype=jnp.bfloat16)
    variables = planted.variables(model, IMAGES)
    tokens, _ = compiled.apply(model, variables, IMAGES)
    exact, _ = compiled.apply(
      efficientnet.EfficientNetLite0(3), variables, IMAGES
    )
    self.assertEqual(tokens.dtype, jnp.float32)
    scale = np.abs(exact).max()
    np.testing.assert_allclose(tokens / scale, exact / scale, atol=5e-2)

  @parameterized.parameters(
    (dict(stage=8), 'stage 8 of an EfficientNet: give 1 to 7'),
    (dict(padding='valid'), "unknown padding 'valid'"),
  )
  def test_impossible_options_are_named(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      _shapes(efficientnet.EfficientNetLite0(**fields))


if __name__ == '__main__':
  absltest.main()
