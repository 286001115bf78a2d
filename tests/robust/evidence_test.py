# SPDX-License-Identifier: Apache-2.0
"""What tells a model from chance."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from scipy import stats

from i2ploc.evaluation import planted_problems
from i2ploc.robust import evidence
from i2ploc.robust import planes
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import two_views

# Points that stay where they are agree; a model moves all to the right.
_SHIFT = problem_lib.Problem(
  sample_size=1,
  models_per_sample=1,
  dof=1,
  example=lambda: np.zeros(1),
  solve=lambda sample: (sample.x1 - sample.x0, np.ones(1, bool)),
  residual=lambda model, data: (
    (data.x0 + model - data.x1) ** 2 + (data.y0 - data.y1) ** 2
  ),
  linearize=lambda model, data: (
    (data.x0 + model - data.x1)[None],
    np.ones((1, 1, len(data.x0))),
  ),
  retract=lambda model, step: model + step[0],
  sides=two_views.SIDES,
)
_STILL = np.zeros(1)


def _matches(points0, points1):
  return two_views.Matches(*points0.T, *points1.T)


def _chance(points, threshold):
  data = _matches(points, points)
  return evidence.chance(_SHIFT, _STILL, data, data, threshold, 8192)


def _weigh(data, threshold):
  inliers = _SHIFT.residual(0.0, data) < threshold**2
  return evidence.weigh(_SHIFT, _STILL, data, inliers, threshold)


class ChanceTest(parameterized.TestCase):
  @parameterized.parameters(0.02, 0.1)
  def test_it_is_the_share_of_the_area_for_points_all_over(self, threshold):
    share = _chance(
      np.random.default_rng(0).uniform(0, 1, (2000, 2)), threshold
    )
    expected = np.pi * threshold**2
    self.assertBetween(share, 0.5 * expected, 1.5 * expected)

  def test_it_knows_where_points_crowd(self):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (2000, 2))
    crowd = np.where(rng.uniform(size=(2000, 1)) < 0.5, 0.01 * points, points)
    self.assertGreater(_chance(crowd, 0.03), 20 * _chance(points, 0.03))

  def test_no_datum_is_paired_with_itself(self):
    points = np.arange(10.0)[:, None] * [1, 1]
    self.assertLess(_chance(points, 0.1), 1e-3)

  @parameterized.parameters((5.0, 0.1), (5.0, 0.5))
  def test_of_points_around_a_plane_it_is_what_a_turned_plane_meets(
    self, radius, threshold
  ):
    """Points on a sphere: a plane through its middle meets t / r of them."""
    ways = np.random.default_rng(0).normal(size=(1000, 3))
    points = radius * ways / np.linalg.norm(ways, axis=1, keepdims=True)
    data = planes.Points(*points.T)
    model = planes.Plane(np.array([0.0, 0.0, 1.0]), np.asarray(0.0))
    share = evidence.chance(planes.PROBLEM, model, data, data, threshold, 8192)
    self.assertBetween(share * radius / threshold, 0.8, 1.2)


class DistinctTest(parameterized.TestCase):
  def _count(self, points0, points1, threshold=0.01):
    return evidence.distinct(_SHIFT, _matches(points0, points1), threshold)

  def test_points_apart_are_all_distinct(self):
    x, y = np.meshgrid(np.arange(20.0), np.arange(20.0))
    points = np.stack([x.ravel(), y.ravel()], axis=-1)
    self.assertEqual(self._count(points, points), 400)
    self.assertEqual(self._count(points[:5], points[:5]), 5)

  @parameterized.parameters(10, 1000)
  def test_copies_and_near_copies_count_once(self, copies):
    rng = np.random.default_rng(0)
    for scale in (0.0, 1e-6, 5e-3):
      points = np.repeat(rng.uniform(0, 1, (3, 2)), copies, axis=0)
      points = points + scale * rng.uniform(size=points.shape)
      self.assertEqual(self._count(points, points), 3)

  def test_copies_on_one_side_are_enough(self):
    rng = np.random.default_rng(0)
    apart, one = rng.uniform(0, 1, (40, 2)), np.zeros((40, 2))
    self.assertEqual(self._count(apart, one), 1)
    self.assertEqual(self._count(one, apart), 1)

  def test_of_nothing_there_is_nothing(self):
    self.assertEqual(self._count(np.zeros((0, 2)), np.zeros((0, 2))), 0)


class FalseAlarmsTest(parameterized.TestCase):
  @parameterized.parameters((100, 10, 0.02), (100, 40, 0.02), (1000, 80, 0.05))
  def test_they_are_the_samples_times_the_binomial_tail(
    self, total, count, share
  ):
    found = evidence.false_alarms(total, count, 1, share)
    tail = total * stats.binom.sf(count - 2, total - 1, share)
    self.assertAlmostEqual(np.log(found), np.log(tail), places=6)
    three = evidence.false_alarms(total, count, 1, share, 3)
    self.assertAlmostEqual(three / found, 3.0, places=6)

  def test_what_the_sample_itself_agrees_with_is_no_proof(self):
    self.assertEqual(evidence.false_alarms(50, 4, 4, 1e-3), np.inf)
    self.assertEqual(evidence.false_alarms(50, 8, 4, 0.5), np.inf)
    self.assertLess(evidence.false_alarms(50, 50, 4, 1e-3), 1e-100)

  @parameterized.parameters((100, 3, 1e-3), (300, 5, 0.02), (20, 2, 0.1))
  def test_the_smallest_valid_number_is_the_first_that_is(
    self, total, size, share
  ):
    least = evidence.smallest_valid(total, size, share)
    alarms = [
      evidence.false_alarms(total, count, size, share)
      for count in (least - 1, least)
    ]
    self.assertGreaterEqual(alarms[0], evidence.FALSE_ALARMS)
    self.assertLess(alarms[1], evidence.FALSE_ALARMS)

  def test_no_number_is_enough_where_all_agree_by_chance(self):
    self.assertEqual(evidence.smallest_valid(30, 3, 0.9), 31)
    self.assertEqual(evidence.smallest_valid(4, 3, 0.1), 5)


class WeighTest(parameterized.TestCase):
  def test_it_tells_the_truth_from_chance(self):
    rng = np.random.default_rng(0)
    points0 = rng.uniform(0, 1, (100, 2))
    points1 = np.where(
      rng.uniform(size=(100, 1)) < 0.3, points0, rng.uniform(0, 1, (100, 2))
    )
    for points, means in ((points1, True), (points1[::-1], False)):
      proof = _weigh(_matches(points0, points), 0.02)
      self.assertEqual(proof.valid, means, proof.reason)
      self.assertEqual(evidence.confidence(proof) > 0.99, means)

  def test_copies_are_no_evidence(self):
    rng = np.random.default_rng(0)
    points0 = rng.uniform(0, 1, (60, 2))
    points1 = rng.uniform(0, 1, (60, 2))
    points1[:3] = points0[:3]
    for some in (slice(3), slice(6)):
      copies0, copies1 = (
        np.concatenate([np.repeat(p[some], 10, axis=0), p])
        for p in (points0, points1)
      )
      self.assertFalse(_weigh(_matches(copies0, copies1), 0.02).valid)

  def test_few_data_that_agree_are_counted(self):
    points = np.random.default_rng(0).uniform(0, 1, (20, 2))
    proof = _weigh(_matches(points, points + [0, 5]), 0.02)
    self.assertIn('0 data agree, but more than 1 are needed', proof.reason)

  @parameterized.parameters(*planted_problems.KINDS)
  def test_every_problem_tells_its_truth_from_another(self, name):
    kind = planted_problems.KINDS[name]
    planted = planted_problems.plant(kind, 100, 0.5, 1.0, 2)
    data, other = (
      jax.tree.map(lambda leaf, i=i: np.float64(leaf[i]), planted.data)
      for i in (0, 1)
    )
    model = jax.tree.map(lambda leaf: np.float64(leaf[0]), planted.truth)
    threshold = 3 * kind.unit
    for some, means in ((data, True), (other, False)):
      inliers = kind.problem.residual(model, some) < threshold**2
      proof = evidence.weigh(kind.problem, model, some, inliers, threshold)
      self.assertEqual(proof.valid, means, proof.reason)
      self.assertIsInstance(proof.false_alarms, float)


class RivalTest(absltest.TestCase):
  def _proof(self, num_inliers, valid=True):
    return evidence.Evidence(
      100, num_inliers, 0.01, 1e-9, '' if valid else 'no', None
    )

  def test_a_rival_takes_its_share_of_the_confidence(self):
    confidence = evidence.confidence
    alone = confidence(self._proof(61))
    beside = confidence(self._proof(61), self._proof(16))
    equal = confidence(self._proof(61), self._proof(61))
    self.assertGreater(alone, 0.99)
    self.assertBetween(beside, 0.75, 0.85)
    self.assertAlmostEqual(equal, 0.5)
    self.assertEqual(confidence(self._proof(61, valid=False)), 0.0)
    chance = self._proof(16)._replace(false_alarms=1.0)
    self.assertEqual(confidence(self._proof(61), chance), alone)

  def test_what_is_just_out_of_reach_supports_no_rival(self):
    points = np.zeros((4, 2))
    data = _matches(points, points + np.array([[0, 1, 2.5, 4]]).T * [0.1, 0])
    others = evidence.others(_SHIFT, _STILL, data, 0.1)
    np.testing.assert_array_equal(others, [False, False, False, True])


class NarrowTest(absltest.TestCase):
  def test_it_tells_a_place_from_a_line_from_neither(self):
    points = np.random.default_rng(0).normal(size=(2, 30))
    self.assertEqual(evidence.narrow(points, 0.1), '')
    flat = points * np.array([[1], [0.01]])
    self.assertEqual(evidence.narrow(flat, 0.1), 'on a line')
    self.assertEqual(evidence.narrow(points * 0.01, 0.1), 'in one place')


if __name__ == '__main__':
  absltest.main()
