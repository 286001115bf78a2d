# SPDX-License-Identifier: Apache-2.0
"""Point transformer: order and padding laws, degenerate clouds."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models.encoders import point_transformer
from tests.models import planted

KEY = jax.random.key(0)
SMALL = dict(
  width=12,
  depth=2,
  num_heads=3,
  num_groups=8,
  group_size=4,
  pointnet_widths=(8, 8, 16),
  pointnet_features=16,
)
RELEASED = dict(
  batch_norm=True,
  unit_tokens=True,
  raw_coordinates=True,
  skip_squared_norm=1e-3,
  qkv_bias=False,
)


def _cloud(seed=0, batch=2, num_points=40):
  rng = np.random.default_rng(seed)
  points = rng.normal(0.0, 8.0, (batch, num_points, 4))
  points[..., 3] = rng.uniform(size=points.shape[:2])
  return points.astype(np.float32), np.ones(points.shape[:2], bool)


class PointTransformerTest(parameterized.TestCase):
  @parameterized.parameters(
    # mini-PointNet, reduction, position MLP, two blocks, norm, CLS.
    (dict(SMALL), 744 + 204 + 2188 + 2 * 1884 + 24 + 24),
    (dict(SMALL, **RELEASED), 696 + 204 + 2060 + 2 * 1848 + 24 + 24),
    # Spec 1.2 of the released branch: 22,548,480 with an unused fc_norm (768).
    (
      dict(
        num_heads=3,
        num_groups=64,
        pointnet_features=1024,
        **RELEASED,
      ),
      22_548_480 - 768,
    ),
  )
  def test_parameter_counts(self, fields, expected):
    model = point_transformer.PointTransformer(**fields)
    points = jax.ShapeDtypeStruct((1, 64, 4), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, 64), bool)
    params = jax.eval_shape(model.init, KEY, points, mask)['params']
    self.assertEqual(sum(x.size for x in jax.tree.leaves(params)), expected)

  def test_tokens_belong_to_centres_whatever_the_order_of_points(self):
    model = point_transformer.PointTransformer(**SMALL)
    points, mask = _cloud()
    variables = planted.variables(model, points, mask)
    apply = jax.jit(model.apply)
    tokens, out = apply(variables, points, mask)
    # The first point stays: it is where sampling starts.
    order = np.r_[0, 1 + np.random.default_rng(0).permutation(39)]
    moved, moved_out = apply(variables, points[:, order], mask)
    np.testing.assert_array_equal(moved_out['centers'], out['centers'])
    np.testing.assert_allclose(moved, tokens, atol=2e-6)

  def test_padding_changes_nothing(self):
    model = point_transformer.PointTransformer(**SMALL)
    points, mask = _cloud(1)
    variables = planted.variables(model, points, mask)
    apply = jax.jit(model.apply)
    tokens, _ = apply(variables, points, mask)
    junk = np.full((2, 9, 4), np.nan, np.float32)
    padded, _ = apply(
      variables,
      np.concatenate([junk, points], 1),
      np.concatenate([np.zeros((2, 9), bool), mask], 1),
    )
    np.testing.assert_allclose(padded, tokens, atol=2e-6)

  def test_repeated_centres_are_masked_out_of_the_attention(self):
    model = point_transformer.PointTransformer(**SMALL)
    points, mask = _cloud(2)
    mask[0, 5:] = False
    variables = planted.variables(model, points, mask)
    _, out = jax.jit(model.apply)(variables, points, mask)
    np.testing.assert_array_equal(out['mask'][0], np.arange(8) < 5)
    np.testing.assert_array_equal(out['attention'][0, :, 6:], 0.0)
    self.assertTrue(out['mask'][1].all())

  @parameterized.product(num_real=(0, 1), released=(False, True))
  def test_degenerate_clouds_are_finite_with_their_gradients(
    self, num_real, released
  ):
    fields = dict(SMALL, **(RELEASED if released else {}))
    model = point_transformer.PointTransformer(**fields)
    points, mask = _cloud(3)
    variables = planted.variables(model, points, mask)
    mask[:] = np.arange(40) < num_real
    points[:] = points[:1, :1]
    points[~mask] = np.nan

    def total(params, points):
      variables_ = dict(variables, params=params)
      tokens, out = model.apply(variables_, points, mask)
      return (tokens**2).sum() + out['attention'].sum()

    value, grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(
      variables['params'], points
    )
    self.assertTrue(np.isfinite(value))
    finite = jax.tree.map(lambda g: bool(np.isfinite(g).all()), grads)
    self.assertTrue(all(jax.tree.leaves(finite)))

  @parameterized.parameters(
    dict(depth=0),
    dict(depth=0, remat=True),
    dict(depth=0, remat=True, **RELEASED),
    dict(depth=2, remat=True),
  )
  def test_chunks_and_remat_change_neither_values_nor_gradients(self, **fields):
    points, mask = _cloud(6)
    mask[1, 9:] = False
    fields = dict(SMALL, num_groups=19) | fields
    model = point_transformer.PointTransformer(**fields)
    variables = planted.variables(model, points, mask)

    @functools.partial(jax.jit, static_argnums=0)
    def run(model, params):
      def total(params):
        tokens, _ = model.apply(dict(variables, params=params), points, mask)
        return (tokens**2).sum(), tokens

      (_, tokens), grads = jax.value_and_grad(total, has_aux=True)(params)
      return tokens, grads

    tokens, grads = run(model.copy(remat=False), variables['params'])
    # Chunks of three groups, of which the seventh is filled up.
    with mock.patch.object(point_transformer, 'POINTS_PER_CHUNK', 13):
      chunked = run(model.clone(name='chunked'), variables['params'])
    np.testing.assert_allclose(chunked[0], tokens, atol=2e-6)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-3),
      chunked[1],
      grads,
    )

  def test_batch_statistics_are_those_of_all_groups(self):
    points, mask = _cloud(7)
    fields = dict(SMALL, **RELEASED) | dict(depth=0)
    model = point_transformer.PointTransformer(**fields)
    variables = planted.variables(model, points, mask)

    @functools.partial(jax.jit, static_argnums=0)
    def train(model):
      return model.apply(
        variables, points, mask, train=True, mutable=['batch_stats']
      )

    (tokens, _), after = train(model)
    with mock.patch.object(point_transformer, 'POINTS_PER_CHUNK', 1):
      (small, _), small_after = train(model.copy(remat=True))
    np.testing.assert_allclose(small, tokens, atol=2e-6)
    jax.tree.map(np.testing.assert_allclose, small_after, after)

  @parameterized.parameters(
    dict(depth=0, num_groups=512, group_size=16),  # the mini-PointNet
    dict(depth=6, num_groups=96),  # the blocks
  )
  def test_remat_saves_memory(self, **fields):
    points, mask = _cloud(8, batch=1, num_points=512)

    def memory(remat):
      model = point_transformer.PointTransformer(
        **(SMALL | fields), remat=remat
      )
      variables = planted.variables(model, points, mask)
      grad = jax.grad(lambda v: (model.apply(v, points, mask)[0] ** 2).sum())
      stats = jax.jit(grad).lower(variables).compile().memory_analysis()
      return stats.temp_size_in_bytes

    self.assertLess(memory(remat=True), memory(remat=False) / 2)

  def test_height_and_bearing_of_a_group_reach_its_token(self):
    model = point_transformer.PointTransformer(**SMALL)
    points, mask = _cloud(4)
    variables = planted.variables(model, points, mask)
    apply = jax.jit(model.apply)
    tokens, _ = apply(variables, points, mask)
    turned = points * np.asarray([-1, -1, 1, 1], np.float32)
    for changed in (turned, points + np.asarray([0, 0, 2, 0], np.float32)):
      other, _ = apply(variables, changed, mask)
      self.assertGreater(np.abs(other - tokens).max(), 1e-2)


if __name__ == '__main__':
  absltest.main()
