# SPDX-License-Identifier: Apache-2.0
"""ViT: sizes, laws of attention, stems."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models import vit

KEY = jax.random.key(0)
SMALL = dict(width=12, depth=2, num_heads=3, patch_size=8)
STEM = dict(stem_widths=(4, 8), stem_strides=(4, 2))


def _images(channels=3, height=16, width=32):
  return jax.random.uniform(KEY, (2, height, width, channels))


def _init_with_output(model, *args):
  return jax.jit(model.init_with_output)(KEY, *args)


def _num_parameters(model, images):
  variables = jax.eval_shape(model.init, KEY, images)
  return sum(x.size for x in jax.tree.leaves(variables))


class ViTTest(parameterized.TestCase):
  @parameterized.parameters(
    # The released image branch; its CLS token has a position of its own (384).
    (dict(), 512, 1024, 22_376_832 - 384),
    # Patches, positions, CLS, norm and two blocks of 12 D^2 + 13 D.
    (dict(SMALL), 16, 32, 2316 + 96 + 12 + 24 + 2 * 1884),
    # Convolutions 592 and 296, branches 304 and 1184, projection 108.
    (dict(SMALL, **STEM), 16, 32, 2484 + 96 + 12 + 24 + 2 * 1884),
    (dict(SMALL, depth=0, **STEM), 16, 32, 2484 + 96 + 24),
  )
  def test_parameter_counts(self, fields, height, width, expected):
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    self.assertEqual(_num_parameters(vit.ViT(**fields), images), expected)

  @parameterized.product(stem=(False, True), channels=(1, 3, 5), depth=(0, 1))
  def test_any_channels_any_stem_any_depth(self, stem, channels, depth):
    fields = dict(SMALL, depth=depth, **(STEM if stem else {}))
    tokens, out = _init_with_output(vit.ViT(**fields), _images(channels))[0]
    self.assertEqual(tokens.shape, (2, 8, 12))
    self.assertEqual(tuple(map(int, out['grid'])), (2, 4))
    self.assertEqual('attention' in out, depth > 0)
    self.assertEqual(out['sequence'].shape[1], 8 + (depth > 0))

  def test_attention_rows_sum_to_one_and_include_the_cls_token(self):
    _, out = _init_with_output(vit.ViT(**SMALL), _images())[0]
    self.assertEqual(out['attention'].shape, (2, 3, 9, 9))
    np.testing.assert_allclose(out['attention'].sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(out['cls'], out['sequence'][:, 0])

  def test_tokens_are_row_major_over_the_grid(self):
    model = vit.ViT(**dict(SMALL, depth=0))
    images = _images()
    variables = jax.jit(model.init)(KEY, images)
    tokens, _ = model.apply(variables, images)
    changed = images.at[:, 8:, 16:24].add(1.0)
    moved, _ = model.apply(variables, changed)
    differs = np.abs(moved - tokens).max((0, 2)) > 1e-6
    np.testing.assert_array_equal(np.flatnonzero(differs), [1 * 4 + 2])

  def test_samples_do_not_influence_each_other(self):
    model = vit.ViT(**SMALL, **STEM)
    images = _images()
    variables = jax.jit(model.init)(KEY, images)
    both, _ = model.apply(variables, images, True)
    alone, _ = model.apply(variables, images[:1], True)
    np.testing.assert_allclose(both[:1], alone, atol=2e-6)

  def test_zero_residual_scale_starts_as_the_identity(self):
    block = vit.Block(12, 3, residual_init_scale=0.0)
    x = jax.random.normal(KEY, (2, 5, 12))
    (y, _), _ = _init_with_output(block, x)
    np.testing.assert_array_equal(y, x)

  def test_remat_and_bfloat16_change_cost_not_meaning(self):
    plain = vit.ViT(**SMALL)
    images = _images()
    variables = jax.jit(plain.init)(KEY, images)
    expected, _ = plain.apply(variables, images)
    remat, _ = vit.ViT(**SMALL, remat=True).apply(variables, images)
    np.testing.assert_allclose(remat, expected, atol=1e-6)
    half, _ = vit.ViT(**SMALL, dtype=jnp.bfloat16).apply(variables, images)
    self.assertEqual(half.dtype, jnp.float32)
    np.testing.assert_allclose(half, expected, atol=0.1)

  def test_masked_tokens_are_not_attended_to(self):
    block = vit.Block(12, 3)
    x = jax.random.normal(KEY, (2, 5, 12))
    mask = jnp.asarray([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    (y, attention), variables = _init_with_output(block, x, mask)
    np.testing.assert_array_equal(attention[0, :, :, 3:], 0.0)
    short, _ = block.apply(variables, x[:1, :3])
    np.testing.assert_allclose(y[:1, :3], short, atol=1e-6)
    self.assertTrue(np.isfinite(attention).all())

  @parameterized.parameters(
    (dict(SMALL), 'images of 16 x 36 pixels'),
    (dict(SMALL, num_heads=5), 'not a multiple of num_heads 5'),
  )
  def test_impossible_sizes_are_named(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      vit.ViT(**fields).init(
        KEY, _images(width=36 if 'images' in message else 32)
      )


if __name__ == '__main__':
  absltest.main()
