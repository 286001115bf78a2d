# SPDX-License-Identifier: Apache-2.0
"""Tests of candidate pairs, their calibration and their assignment."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.objects import association


def _set(pairs):
  return set(map(tuple, np.stack([pairs.observation, pairs.landmark], -1)))


def _planted(num_detections, num_landmarks, k, calibration, seed=0):
  """Candidates of random similarities, right as a calibration says."""
  rng = np.random.default_rng(seed)
  similarity = rng.normal(0.25, 0.05, (num_detections, num_landmarks))
  pairs = association.nearest(similarity, k, calibration)
  correct = rng.uniform(size=len(pairs.rank)) < pairs.probability
  return pairs, correct


def _fitted(pairs, correct):
  return association.fit_calibration(pairs.rank, pairs.similarity, correct, 3)


class CandidatesTest(parameterized.TestCase):
  def test_the_nearest_are_the_most_similar_in_order(self):
    similarity = np.array([[0.1, 0.9, 0.5, 0.3], [0.7, 0.2, 0.6, 0.8]])
    pairs = association.nearest(similarity, 2)
    np.testing.assert_array_equal(pairs.observation, [0, 0, 1, 1])
    np.testing.assert_array_equal(pairs.landmark, [1, 2, 3, 0])
    np.testing.assert_array_equal(pairs.rank, [0, 1, 0, 1])
    np.testing.assert_allclose(pairs.similarity, [0.9, 0.5, 0.8, 0.7])
    self.assertGreater(pairs.probability[0], pairs.probability[1])

  def test_a_map_smaller_than_k_gives_all_of_it(self):
    self.assertLen(association.nearest(np.ones((3, 2)), 5).rank, 6)
    self.assertEmpty(association.nearest(np.ones((3, 0)), 5).rank)
    self.assertEmpty(association.nearest(np.ones((0, 4)), 5).rank)

  def test_a_category_is_worth_less_the_more_share_it(self):
    pairs = association.same_category([7, 3, 9], [3, 7, 3, 3])
    self.assertEqual(_set(pairs), {(0, 1), (1, 0), (1, 2), (1, 3)})
    np.testing.assert_allclose(pairs.probability, [1, 1 / 3, 1 / 3, 1 / 3])
    self.assertEmpty(association.same_category([], [1, 2]).rank)

  def test_everything_is_a_candidate_of_everything(self):
    pairs = association.all_pairs(3, 4)
    self.assertEqual(_set(pairs), set(itertools.product(range(3), range(4))))

  def test_a_union_keeps_the_first_and_names_nothing_twice(self):
    first = association.nearest(np.array([[0.9, 0.1], [0.2, 0.8]]), 1)
    second = association.all_pairs(2, 2)
    both = association.union(first, second)
    self.assertLen(both.rank, 4)
    self.assertEqual(_set(both), _set(second))
    np.testing.assert_allclose(both.similarity[:2], [0.9, 0.8])

  def test_cosines_ignore_length(self):
    rng = np.random.default_rng(0)
    crops, texts = rng.normal(size=(3, 8)), rng.normal(size=(5, 8))
    crops[1] = 0
    found = association.cosines(2 * crops, texts)
    np.testing.assert_allclose(found, association.cosines(crops, 3 * texts))
    np.testing.assert_array_equal(found[1], 0)
    own = association.cosines(texts, texts)
    np.testing.assert_allclose(np.diagonal(own), 1)

  def test_what_cannot_be_compared_is_named(self):
    with self.assertRaisesRegex(ValueError, 'width 8, texts of 4'):
      association.cosines(np.ones((2, 8)), np.ones((3, 4)))
    with self.assertRaisesRegex(ValueError, r'crops \[1\]'):
      association.cosines(np.array([[1.0], [np.nan]]), np.ones((1, 1)))
    with self.assertRaisesRegex(ValueError, 'k=0'):
      association.nearest(np.ones((2, 2)), 0)
    with self.assertRaisesRegex(ValueError, 'finite'):
      association.nearest(np.full((2, 2), np.inf), 1)


class CalibrationTest(absltest.TestCase):
  TRUE = association.Calibration((-4.0, -5.5, -6.5), 20.0)

  def test_what_was_planted_is_recovered(self):
    pairs, correct = _planted(8000, 6, 3, self.TRUE)
    found = association.fit_calibration(
      pairs.rank, pairs.similarity, correct, 3
    )
    self.assertAlmostEqual(found.slope, self.TRUE.slope, delta=2.0)
    expected = found.probability(pairs.rank, pairs.similarity)
    np.testing.assert_allclose(expected, pairs.probability, atol=0.05)

  def test_probabilities_are_the_shares_of_held_out_pairs(self):
    pairs, correct = _planted(4000, 6, 3, self.TRUE)
    found = association.fit_calibration(
      pairs.rank, pairs.similarity, correct, 3
    )
    pairs, correct = _planted(4000, 6, 3, self.TRUE, seed=1)
    expected = found.probability(pairs.rank, pairs.similarity)
    for rank in range(3):
      own = pairs.rank == rank
      for rows in np.array_split(np.argsort(expected[own]), 4):
        share = correct[own][rows].mean()
        self.assertAlmostEqual(expected[own][rows].mean(), share, delta=0.06)
    # Ranks alone do not tell as much.
    blind = association.Calibration(found.offsets, 0.0)
    rough = blind.probability(pairs.rank, pairs.similarity)
    self.assertGreater(np.abs(rough - correct).mean(),
                       np.abs(expected - correct).mean() + 0.02)  # fmt: skip

  def test_ranks_that_were_always_right_stay_finite(self):
    rank, similarity = np.arange(60) % 3, np.linspace(0, 1, 60)
    found = association.fit_calibration(rank, similarity, rank == 0, 3)
    self.assertTrue(np.isfinite(found.offsets).all())
    probability = found.probability(rank, similarity)
    self.assertTrue((probability[rank == 0] > 0.9).all())
    self.assertTrue((probability[rank > 0] < 0.1).all())

  def test_later_ranks_share_the_last_offset(self):
    found = self.TRUE.probability(np.array([2, 7]), np.array([0.3, 0.3]))
    self.assertEqual(found[0], found[1])

  def test_nothing_to_fit_is_an_error(self):
    with self.assertRaisesRegex(ValueError, '0 candidates'):
      association.fit_calibration(np.zeros(0, int), np.zeros(0), np.zeros(0), 3)


if __name__ == '__main__':
  absltest.main()
