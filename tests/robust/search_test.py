# SPDX-License-Identifier: Apache-2.0
"""Tests of what a search does around the consensus."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from i2ploc.robust import consensus
from i2ploc.robust import homography
from i2ploc.robust import lines
from i2ploc.robust import search

THRESHOLD = 0.1


def _on_line(rng, angle, count, noise=0.02):
  """Points of a line through (0, 1), in a room of 10 by 10."""
  along = rng.uniform(-5, 5, count)
  across = noise * rng.normal(size=count)
  cosine, sine = np.cos(angle), np.sin(angle)
  return np.stack(
    [cosine * along - sine * across, sine * along + cosine * across + 1], -1
  )


def _scattered(rng, count):
  return rng.uniform(-5, 5, (count, 2))


def _angle(line):
  """Of a line, degrees from -90 to 90."""
  x, y = line.normal
  return np.degrees(np.arctan(-x / y))


class RivalTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.first = _on_line(rng, 0.3, 60)
    self.second = _on_line(rng, -0.8, 30)
    self.others = _scattered(rng, 10)

  @parameterized.parameters(False, True)
  def test_the_second_line_is_the_rival_of_the_first(self, is_last):
    # So few that all their samples could be listed: a turn must not try those
    # of the first data alone.
    rest = [self.second, self.others]
    both = np.concatenate([*(rest[::-1] if is_last else rest), self.first])
    found = lines.line(both, THRESHOLD)
    self.assertTrue(found.valid)
    self.assertAlmostEqual(_angle(found.model), np.degrees(0.3), delta=0.5)
    self.assertAlmostEqual(
      _angle(found.rival.model), np.degrees(-0.8), delta=0.5
    )
    self.assertBetween(found.rival.num_inliers, 25, 31)
    self.assertBetween(found.confidence, 0.5, 0.75)

  def test_scattered_points_are_no_rival(self):
    rng = np.random.default_rng(1)
    some = np.concatenate([self.first, _scattered(rng, 40)])
    found = lines.line(some, THRESHOLD)
    self.assertIsNone(found.rival)
    self.assertGreater(found.confidence, 0.99)

  def test_it_is_not_looked_for_if_not_wanted(self):
    both = np.concatenate([self.second, self.first])
    found = lines.line(both, THRESHOLD, search=search.Search(rival=False))
    self.assertIsNone(found.rival)


class SharpenedTest(parameterized.TestCase):
  @parameterized.parameters('msac', 'inliers', 'gaussian_uniform')
  def test_a_threshold_far_beyond_the_noise_does_no_harm(self, score):
    # What is near the line but not of it tilts the best line of the threshold.
    rng = np.random.default_rng(0)
    line = _on_line(rng, 0.0, 80, noise=0.002)
    beside = np.stack([rng.uniform(0, 5, 60), rng.uniform(1.02, 1.3, 60)], -1)
    settings = consensus.DEFAULT._replace(score=score)
    found = lines.line(
      np.concatenate([line, beside]),
      0.3,
      search=search.Search(settings=settings),
    )
    self.assertTrue(found.valid)
    self.assertLess(abs(_angle(found.model)), 0.25)
    self.assertAlmostEqual(float(abs(found.model.offset)), 1.0, delta=0.01)


class PrecisionTest(absltest.TestCase):
  def test_a_default_of_float64_changes_nothing(self):
    rng = np.random.default_rng(0)
    before = rng.uniform(0, 480, (60, 2))
    after = np.where(np.arange(60)[:, None] < 40, before + [30, -10], before)
    with jax.enable_x64(True):
      found = homography.homography(before, after)
      line = lines.line(_on_line(rng, 0.3, 60), THRESHOLD)
    self.assertEqual(found.num_inliers, 40)
    np.testing.assert_allclose(
      found.image1_from_image0, [[1, 0, 30], [0, 1, -10], [0, 0, 1]], atol=1e-6
    )
    self.assertAlmostEqual(_angle(line.model), np.degrees(0.3), delta=0.5)


class SeedTest(parameterized.TestCase):
  @parameterized.parameters(-1, 2**40)
  def test_any_whole_number_is_a_seed(self, seed):
    rng = np.random.default_rng(0)
    points = np.concatenate([_on_line(rng, 0.3, 60), _scattered(rng, 30)])
    found = lines.line(points, THRESHOLD, search=search.Search(seed=seed))
    self.assertTrue(found.valid)


class LimitTest(absltest.TestCase):
  def test_a_search_ends_where_nothing_valid_can_be_expected(self):
    rng = np.random.default_rng(0)
    before, after = rng.uniform(0, 480, (2, 25, 2))
    found = homography.homography(before, after)
    self.assertFalse(found.valid)
    self.assertBetween(found.num_draws, 1024, 20_000)
    self.assertLess(found.num_draws, consensus.DEFAULT.max_draws)

  def test_all_samples_of_few_data_are_enough(self):
    rng = np.random.default_rng(0)
    found = lines.line(_scattered(rng, 20), THRESHOLD)
    self.assertBetween(found.num_draws, 190, 190 + consensus.DEFAULT.batch)


class ManyTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.problems = []
    for seed, count in enumerate((40, 300, 12, 2)):
      rng = np.random.default_rng(seed)
      line = _on_line(rng, 0.2 * seed, count, noise=0.005)
      points = [line, _scattered(rng, count // 2)]
      points = np.concatenate(points)
      data = lines.Points(*(points - [0, 1]).T)
      self.problems.append(search.Measurements(data))

  def _same(self, found, expected):
    for one, other in zip(found, expected, strict=True):
      self.assertEqual(one.valid, other.valid)
      if other.valid:
        self.assertAlmostEqual(_angle(one.model), _angle(other.model), places=5)
        np.testing.assert_array_equal(one.inliers, other.inliers)

  def test_each_is_solved_as_if_alone(self):
    found = search.DEFAULT.find_each(lines.PROBLEM, self.problems, 0.03)
    expected = [
      search.DEFAULT.find(lines.PROBLEM, one.data, 0.03)
      for one in self.problems
    ]
    self._same(found, expected)
    self.assertEqual([one.valid for one in found], [True, True, True, False])
    self.assertEqual(search.DEFAULT.find_each(lines.PROBLEM, [], 1.0), [])

  def test_an_accelerator_solves_them_together(self):
    expected = search.DEFAULT.find_each(lines.PROBLEM, self.problems, 0.03)
    with (
      mock.patch.object(jax, 'default_backend', lambda: 'gpu'),
      mock.patch.object(search, '_TOGETHER', 2),
    ):
      found = search.DEFAULT.find_each(lines.PROBLEM, self.problems, 0.03)
    self._same(found, expected)


if __name__ == '__main__':
  absltest.main()
