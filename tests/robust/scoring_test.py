# SPDX-License-Identifier: Apache-2.0
"""Tests of the scores."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from i2ploc.robust import scoring
from tests.robust import planted


class ScoringTest(parameterized.TestCase):
  @parameterized.parameters('inliers', 'msac', 'gaussian_uniform')
  def test_costs_fall_from_one_to_zero(self, score):
    squared = jnp.linspace(0.0, 4.0, 50)
    costs = scoring.COSTS[score](squared, 1.0)
    self.assertAlmostEqual(float(costs[0]), 0.0, places=6)
    self.assertTrue((jnp.diff(costs) >= -1e-6).all())
    self.assertLessEqual(float(costs[-1]), 1.0)
    self.assertEqual(float(scoring.COSTS[score](jnp.inf, 1.0)), 1.0)

  @parameterized.parameters('inliers', 'msac', 'gaussian_uniform')
  def test_numpy_gives_what_jax_does(self, score):
    squared = np.linspace(0.0, 4.0, 50)
    costs = [
      scoring.scaled(scoring.COSTS[score](values, 1.0), 0.3)
      for values in (squared, jnp.asarray(squared))
    ]
    self.assertIsInstance(costs[0], np.ndarray)
    np.testing.assert_allclose(*costs, atol=1e-5)

  def test_a_small_scale_tells_small_residuals_apart(self):
    costs = np.array([0.01, 0.04, 0.5, 1.0])
    plain = scoring.scaled(costs, scoring.NO_SCALE)
    np.testing.assert_allclose(plain, costs, rtol=1e-6)
    sharp = scoring.scaled(costs, 0.1)
    self.assertGreater(sharp[1] - sharp[0], 0.25)
    self.assertLess(sharp[3] - sharp[2], 0.02)
    self.assertAlmostEqual(sharp[3], 1.0)

  def test_inliers_count_msac_measures(self):
    near, far = jnp.asarray([0.0, 0.0]), jnp.asarray([0.9, 0.9])
    count, msac = (scoring.COSTS[name] for name in ('inliers', 'msac'))
    np.testing.assert_array_equal(count(near, 1.0), count(far, 1.0))
    self.assertLess(msac(near, 1.0).sum(), msac(far, 1.0).sum())

  def test_a_gaussian_of_the_threshold_is_half_uniform_there(self):
    cost = scoring.COSTS['gaussian_uniform']
    level = np.exp(-5.99 / 2)
    expected = 1 - np.log(2) / np.log1p(1 / level)
    self.assertAlmostEqual(float(cost(1.0, 1.0)), expected, places=5)
    self.assertGreater(float(cost(9.0, 1.0)), 0.999)

  def test_a_model_without_numbers_is_never_the_best(self):
    def residual(model, data):
      return model * data

    models = jnp.array([1.0, jnp.nan, 0.5])
    costs = scoring.total_costs(residual, models, jnp.ones(5), 5, 1.0)
    self.assertEqual(float(costs[1]), np.inf)
    self.assertEqual(int(jnp.argmin(costs)), 2)

  @parameterized.parameters('inliers', 'msac', 'gaussian_uniform')
  def test_blocks_give_the_sums_of_a_plain_loop(self, score):
    # Several blocks on any device, the last one empty, one before it in part.
    size = scoring.block_size(1 << 30)
    data, _ = planted.line(4 * size, 0.3)
    count = 3 * size - size // 3
    models = jnp.stack([jnp.linspace(-3, 3, 37), jnp.linspace(1, -2, 37)], 1)
    expected = []
    for slope, offset in np.asarray(models, np.float64):
      squared = (slope * np.asarray(data['x']) + offset - data['y']) ** 2
      costs = scoring.COSTS[score](jnp.asarray(squared), 0.01)
      expected.append(np.asarray(costs)[:count].sum())
    found = scoring.total_costs(
      planted.LINE.residual, models, data, count, 0.1, score
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)

  def test_an_unknown_score_is_an_error(self):
    with self.assertRaisesRegex(ValueError, "'ransac'.*msac"):
      scoring.check_score('ransac')


if __name__ == '__main__':
  absltest.main()
