# SPDX-License-Identifier: Apache-2.0
"""Tests of what object-based poses are measured by."""

from absl.testing import absltest
import numpy as np

from i2ploc.evaluation import poses
from i2ploc.geometry import rigid
from tests.robust import planted


def _turned(angle):
  cos, sin = np.cos(angle), np.sin(angle)
  return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


class ErrorsTest(absltest.TestCase):
  def test_it_is_the_camera_that_is_off_not_the_translation(self):
    rotation = planted.random_rotation(np.random.default_rng(0))
    center = np.array([1.0, 2.0, 3.0])
    true = rigid.Rigid(rotation, -rotation @ center)
    for angle in (1e-6, 0.3, 3.0):
      turned = _turned(angle) @ rotation
      found = rigid.Rigid(turned, -turned @ (center + [0, 0.3, 0.4]))
      metres, degrees = poses.pose_error(found, true)
      self.assertAlmostEqual(metres, 0.5)
      self.assertAlmostEqual(degrees, np.degrees(angle), places=6)

  def test_no_pose_is_a_failure_in_the_denominator(self):
    true = rigid.Rigid(np.eye(3), np.zeros(3))
    errors = poses.pose_errors([true, None], [true, true])
    np.testing.assert_array_equal(errors.distance, [0, np.inf])
    rates = poses.success_rates(errors, np.arange(2))
    self.assertEqual(rates['0.1m'].value, 0.5)
    self.assertEqual(rates['2m'].value, 0.5)

  def test_an_angle_counts_beside_the_distance(self):
    errors = poses.Errors(
      np.array([0.05, 0.3, 0.3, 3.0]), np.array([1.0, 7.0, 30.0, 1.0])
    )
    rates = poses.success_rates(errors, np.arange(4))
    values = {name: rate.value for name, rate in rates.items()}
    self.assertEqual(
      values,
      {
        '0.1m': 0.25,
        '0.2m': 0.25,
        '0.5m': 0.75,
        '1m': 0.75,
        '2m': 0.75,
        '0.5m_5deg': 0.25,
        '0.5m_10deg': 0.5,
      },
    )

  def test_intervals_are_of_blocks(self):
    rng = np.random.default_rng(0)
    distance = np.where(np.repeat(rng.uniform(size=20) < 0.7, 10), 0.01, 9.0)
    errors = poses.Errors(distance, np.zeros(200))
    wide = poses.success_rates(errors, np.arange(200) // 10)
    narrow = poses.success_rates(errors, np.arange(200))
    for rates in (wide, narrow):
      rate = rates['0.1m']
      self.assertLess(rate.low, rate.value)
      self.assertGreater(rate.high, rate.value)
    self.assertGreater(
      wide['0.1m'].high - wide['0.1m'].low,
      2 * (narrow['0.1m'].high - narrow['0.1m'].low),
    )


class DrawsTest(absltest.TestCase):
  BUDGETS = (10, 100, 1000)
  SUCCESS = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]], bool)

  def test_a_budget_for_a_share_is_between_two(self):
    def budget(share):
      return poses.budget_for(self.BUDGETS, self.SUCCESS, share)

    self.assertEqual(budget(0.5), 10)
    self.assertAlmostEqual(budget(0.75), 1000)
    self.assertAlmostEqual(budget(0.625), np.sqrt(100 * 1000))
    self.assertEqual(budget(0.9), np.inf)


class ConfidenceTest(absltest.TestCase):
  def test_what_comes_true_as_often_as_it_says_is_calibrated(self):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=20_000)
    correct = rng.uniform(size=20_000) < confidence
    error = poses.calibration_error
    self.assertLess(error(confidence, correct), 0.02)
    self.assertAlmostEqual(error(confidence**3, correct), 0.25, delta=0.02)
    self.assertAlmostEqual(error(np.ones(4), np.array([1, 0, 1, 0])), 0.5)

  def test_ranking_is_the_share_of_pairs_in_order(self):
    quality = poses.ranking_quality
    self.assertEqual(quality([0.9, 0.8, 0.1], [True, True, False]), 1.0)
    self.assertEqual(quality([0.9, 0.8, 0.85], [True, True, False]), 0.5)
    self.assertEqual(quality([0.5, 0.5], [True, False]), 0.5)
    self.assertTrue(np.isnan(quality([0.5], [True])))


if __name__ == '__main__':
  absltest.main()
