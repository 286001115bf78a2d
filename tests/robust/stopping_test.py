# SPDX-License-Identifier: Apache-2.0
"""Tests of the stopping rules."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from i2ploc.robust import samplers
from i2ploc.robust import stopping


def _prosac(inliers, draws, chance=0.05):
  count = len(inliers)
  growth = jnp.asarray(samplers.prosac_growth(count, 3), jnp.int32)
  found = np.cumsum(inliers)[stopping.prefixes(count) - 1]
  return float(
    stopping.prosac_draws(
      jnp.asarray(found), count, growth, draws, 3, 0.9999, chance
    )
  )


class RansacTest(parameterized.TestCase):
  @parameterized.parameters((50, 100, 3), (5, 100, 4), (990, 1000, 2))
  def test_the_formula(self, inliers, total, size):
    success = np.prod([(inliers - j) / (total - j) for j in range(size)])
    expected = np.log(1 - 0.99) / np.log(1 - success)
    found = stopping.ransac_draws(inliers, total, size, 0.99)
    np.testing.assert_allclose(found, expected, rtol=1e-3)

  def test_without_a_sample_of_inliers_it_never_ends(self):
    self.assertEqual(stopping.ransac_draws(2, 100, 3, 0.99), np.inf)
    self.assertEqual(stopping.ransac_draws(0, 0, 3, 0.99), np.inf)

  def test_all_inliers_end_it_at_once(self):
    self.assertLess(stopping.ransac_draws(100, 100, 3, 0.9999), 1.0)


class PrefixesTest(parameterized.TestCase):
  @parameterized.parameters(1, 5, 32, 33, 100, 4096, 100_000)
  def test_all_small_ones_then_few_and_the_last(self, capacity):
    sizes = stopping.prefixes(capacity)
    small = min(capacity, 32)
    np.testing.assert_array_equal(sizes[:small], np.arange(1, small + 1))
    self.assertTrue((np.diff(sizes) > 0).all())
    self.assertEqual(sizes[-1], capacity)
    self.assertLess(len(sizes), 110)


class ProsacTest(absltest.TestCase):
  def test_a_good_head_ends_it_long_before_ransac(self):
    inliers = np.arange(1000) < 60
    ransac = stopping.ransac_draws(60, 1000, 3, 0.9999)
    self.assertGreater(ransac, 10_000)
    self.assertLess(_prosac(inliers, 256), 256)

  def test_as_many_inliers_spread_evenly_do_not(self):
    inliers = np.arange(1000) % 17 == 0
    self.assertEqual(_prosac(inliers, 256), np.inf)

  def test_what_chance_explains_is_no_reason(self):
    # Ten inliers in the head of 20: enough draws, but chance gives as many.
    inliers = np.arange(1000) < 10
    self.assertLess(_prosac(inliers, 2000, chance=0.001), np.inf)
    self.assertEqual(_prosac(inliers, 2000, chance=0.9), np.inf)

  def test_all_draws_count(self):
    # Half of the best 40 are right: after 69 draws a better one is unlikely.
    inliers = (np.arange(100_000) < 40) & (np.arange(100_000) % 2 == 0)
    self.assertEqual(samplers.prosac_growth(100_000, 3)[40], 38)
    self.assertEqual(_prosac(inliers, 60), np.inf)
    self.assertLess(_prosac(inliers, 90), 90)

  def test_pools_that_are_still_to_come_do_not_count(self):
    # Nine of ten of the best 200 are right, but the pool is at 32.
    inliers = (np.arange(100_000) >= 20) & (np.arange(100_000) < 200)
    self.assertEqual(_prosac(inliers, 20), np.inf)
    self.assertLess(_prosac(inliers, 2000), np.inf)


if __name__ == '__main__':
  absltest.main()
