# SPDX-License-Identifier: Apache-2.0
"""What tells a model from chance."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
from scipy import stats

from i2ploc.robust import problem as problem_lib
from i2ploc.robust import two_views

# Points that stay where they are agree; a model moves all to the right.
_SHIFT = problem_lib.Problem(
  sample_size=1,
  models_per_sample=1,
  dof=1,
  solve=lambda sample: (sample.x1 - sample.x0, jnp.ones(1, bool)),
  residual=lambda model, data: (
    (data.x0 + model - data.x1) ** 2 + (data.y0 - data.y1) ** 2
  ),
  linearize=lambda model, data: (
    (data.x0 + model - data.x1)[None],
    jnp.ones((1, 1, len(data.x0))),
  ),
  retract=lambda model, step: model + step[0],
)


def _matches(points0, points1):
  return two_views.Matches(*points0.T, *points1.T)


class ChanceTest(parameterized.TestCase):
  @parameterized.parameters(0.02, 0.1)
  def test_it_is_the_share_of_the_area_for_points_all_over(self, threshold):
    points = np.random.default_rng(0).uniform(0, 1, (2000, 2))
    share = two_views.chance(
      _SHIFT, np.zeros(1), _matches(points, points), threshold
    )
    expected = np.pi * threshold**2
    self.assertBetween(share, 0.5 * expected, 1.5 * expected)

  def test_it_knows_where_points_crowd(self):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (2000, 2))
    crowd = np.where(rng.uniform(size=(2000, 1)) < 0.5, 0.01 * points, points)
    shares = [
      two_views.chance(_SHIFT, np.zeros(1), _matches(p, p), 0.03)
      for p in (points, crowd)
    ]
    self.assertGreater(shares[1], 20 * shares[0])

  @parameterized.parameters((100, 10, 0.02), (100, 40, 0.02), (1000, 80, 0.05))
  def test_false_alarms_bound_the_binomial_tail(self, total, count, share):
    found = two_views.false_alarms(total, count, 1, share)
    tail = total * stats.binom.sf(count - 2, total - 1, share)
    self.assertGreaterEqual(found, 0.99 * tail)
    self.assertLess(np.log(found) - np.log(tail), 4.0)

  def test_what_the_sample_itself_agrees_with_is_no_proof(self):
    self.assertEqual(two_views.false_alarms(50, 4, 4, 1e-3), np.inf)
    self.assertEqual(two_views.false_alarms(50, 8, 4, 0.5), np.inf)
    self.assertLess(two_views.false_alarms(50, 50, 4, 1e-3), 1e-100)

  def test_copies_are_counted_once(self):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (40, 2))
    points[10:] = points[0] + 1e-6 * points[10:]
    data = _matches(points, rng.uniform(0, 1, (40, 2)))
    everything = np.ones(40, bool)
    self.assertBetween(two_views.distinct(data, everything, 0.01), 10, 13)
    self.assertEqual(two_views.distinct(data, ~everything, 0.01), 0)

  def test_doubt_tells_the_truth_from_chance(self):
    rng = np.random.default_rng(0)
    points0 = rng.uniform(0, 1, (100, 2))
    points1 = np.where(
      rng.uniform(size=(100, 1)) < 0.3, points0, rng.uniform(0, 1, (100, 2))
    )
    for points, means in ((points1, True), (points1[::-1], False)):
      data = _matches(points0, points)
      inliers = np.asarray(_SHIFT.residual(0.0, data)) < 0.02**2
      doubt = two_views.doubt(_SHIFT, np.zeros(1), data, inliers, 0.02)
      self.assertEqual(not doubt, means)


class FrameTest(absltest.TestCase):
  def test_matrices_are_what_matches_are_made_by(self):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1000, (2, 30, 2))
    frame = two_views.frame(*points)
    data = frame.matches(*points)
    self.assertAlmostEqual(float(np.mean(np.square(data))), 1.0)
    for i, matrix in enumerate(frame.matrices()):
      seen = np.insert(points[i], 2, 1.0, axis=1) @ matrix.T
      np.testing.assert_allclose(seen[:, :2].T, data[2 * i : 2 * i + 2])

  def test_narrow_tells_a_place_from_a_line_from_neither(self):
    points = np.random.default_rng(0).normal(size=(30, 2))
    self.assertEqual(two_views.narrow(points, 0.1), '')
    self.assertEqual(two_views.narrow(points * [1, 0.01], 0.1), 'on a line')
    self.assertEqual(two_views.narrow(points * 0.01, 0.1), 'in one place')


if __name__ == '__main__':
  absltest.main()
