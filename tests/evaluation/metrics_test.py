# SPDX-License-Identifier: Apache-2.0
"""The numbers mean what their names say, above all when they should be bad."""

import doctest
import itertools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.evaluation import metrics


def scene(seed, num_queries=40, num_places=60, levels=None):
  """Random similarities (on `levels` values: many ties), distances, policy."""
  rng = np.random.default_rng(seed)
  similarities = rng.normal(size=(num_queries, num_places))
  if levels:
    similarities = rng.integers(levels, size=similarities.shape) / levels
  distances = rng.uniform(0, 60, size=similarities.shape)
  candidates = rng.random(similarities.shape) < 0.9
  return similarities, distances, candidates


def found_by_loop(similarities, positives, candidates, n):
  """A positive counts if fewer than n negatives are at least as similar."""
  for m in np.flatnonzero(positives & candidates):
    above = sum(
      similarities[other] >= similarities[m]
      for other in np.flatnonzero(candidates & ~positives)
    )
    if above < n:
      return True
  return False


class RanksTest(parameterized.TestCase):
  @parameterized.product(levels=(None, 3, 1), n=(1, 5, 20))
  def test_agree_with_the_loop_also_on_ties(self, levels, n):
    similarities, distances, candidates = scene(n, levels=levels)
    positives = distances < 5
    ranks = metrics.pessimistic_ranks(similarities, positives, candidates)
    expected = [
      found_by_loop(*row, n)
      for row in zip(similarities, positives, candidates, strict=True)
    ]
    np.testing.assert_array_equal(ranks < n, expected)

  def test_a_model_that_says_the_same_about_everything_finds_nothing(self):
    _, distances, candidates = scene(0)
    positives = distances < 5
    same = np.full(distances.shape, 0.7)
    ranks = metrics.pessimistic_ranks(same, positives, candidates)
    self.assertEqual(np.mean(ranks < 20), 0)
    # The optimistic rule, strictly greater, would call all of these found.
    optimistic = (same > same.max(1, keepdims=True)).sum(1)
    answerable = (positives & candidates).any(1)
    self.assertEqual(np.mean(optimistic[answerable] < 1), 1)

  def test_a_tie_with_another_positive_costs_nothing(self):
    ranks = metrics.pessimistic_ranks(
      np.array([[0.5, 0.5, 0.1]]),
      np.array([[True, True, False]]),
      np.ones((1, 3), bool),
    )
    np.testing.assert_array_equal(ranks, [0])

  def test_recall_grows_with_n_and_with_the_radius(self):
    similarities, distances, candidates = scene(1, levels=10)
    answerable = (candidates & (distances <= 5)).any(1)
    recalls = np.array(
      [
        [
          np.mean(
            metrics.pessimistic_ranks(
              similarities, distances <= radius, candidates
            )[answerable]
            < n
          )
          for n in (1, 5, 10, 20)
        ]
        for radius in (5, 10, 20)
      ]
    )
    self.assertTrue((np.diff(recalls, axis=0) >= 0).all())
    self.assertTrue((np.diff(recalls, axis=1) >= 0).all())
    self.assertGreater(recalls[-1, -1], recalls[0, 0])

  def test_a_query_without_positive_is_never_found(self):
    ranks = metrics.pessimistic_ranks(
      np.zeros((1, 3)), np.zeros((1, 3), bool), np.ones((1, 3), bool)
    )
    np.testing.assert_array_equal(ranks, [3])

  def test_a_nan_similarity_is_an_error_not_a_hit(self):
    similarities = np.zeros((2, 3))
    similarities[1, 2] = np.nan
    with self.assertRaisesRegex(ValueError, r'1 queries.*\[1\]'):
      metrics.pessimistic_ranks(
        similarities, np.ones((2, 3), bool), np.ones((2, 3), bool)
      )


class OptimisticTest(absltest.TestCase):
  def test_differs_from_the_pessimistic_rank_by_the_ties_alone(self):
    for levels in (None, 3):
      similarities, distances, candidates = scene(0, levels=levels)
      positives = distances < 5
      low = metrics.optimistic_ranks(similarities, positives, candidates)
      high = metrics.pessimistic_ranks(similarities, positives, candidates)
      ties = np.zeros(len(low), int)
      for q, row in enumerate(similarities):
        positive = positives[q] & candidates[q]
        if positive.any():
          tied = row == row[positive].max()
          ties[q] = (tied & candidates[q] & ~positives[q]).sum()
      np.testing.assert_array_equal(high - low, ties)
      self.assertEqual(ties.any(), levels is not None)

  def test_a_query_without_positive_is_never_found(self):
    ranks = metrics.optimistic_ranks(
      np.zeros((1, 3)), np.zeros((1, 3), bool), np.ones((1, 3), bool)
    )
    np.testing.assert_array_equal(ranks, [3])


class SimilaritiesTest(parameterized.TestCase):
  def test_the_most_similar_views_count(self):
    rng = np.random.default_rng(0)
    queries, places = rng.normal(size=(300, 2, 5)), rng.normal(size=(7, 3, 5))
    apart = queries[:, None, :, None] - places[None, :, None]
    expected = {
      'dot': np.einsum('qvd,mwd->qmvw', queries, places).max((2, 3)),
      'euclidean': -np.linalg.norm(apart, axis=-1).min((2, 3)),
    }
    for kind, value in expected.items():
      found = metrics.similarities(queries, places, kind)
      np.testing.assert_allclose(found, value, rtol=1e-6, atol=1e-6)
      self.assertEqual(found.dtype, np.float32)
      # Long descriptors have narrower tiles, and the same similarities.
      for numbers in (1, 45, 75):
        with mock.patch.object(metrics, '_NUMBERS', numbers):
          again = metrics.similarities(queries, places, kind)
        np.testing.assert_allclose(again, found, rtol=1e-6, atol=1e-6)

  @parameterized.product(kind=metrics.SIMILARITIES, count=(1, 3, 259))
  def test_equal_descriptors_tie_wherever_they_stand(self, kind, count):
    rng = np.random.default_rng(1)
    place = rng.normal(size=(1, 1, 253)).astype(np.float32)
    queries = rng.normal(size=(count, 1, 253)).astype(np.float32)
    queries[-1] = place
    for places in (np.tile(place, (m, 1, 1)) for m in (7, 1031)):
      found = metrics.similarities(queries, places, kind)
      np.testing.assert_array_equal(found, np.tile(found[:, :1], len(places)))

  def test_an_unknown_kind_is_an_error(self):
    with self.assertRaisesRegex(ValueError, "'cosine'; expected"):
      metrics.similarities(np.ones((1, 1, 2)), np.ones((1, 1, 2)), 'cosine')


class F1Test(parameterized.TestCase):
  @parameterized.parameters(None, 4)
  def test_agrees_with_every_threshold(self, levels):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=80)
    if levels:
      scores = rng.integers(levels, size=80) / levels
    correct = rng.random(80) < 0.2 + 0.5 * (scores > 0.4)
    scores = np.where(rng.random(80) < 0.1, -np.inf, scores)
    correct &= np.isfinite(scores)
    answerable = int(correct.sum()) + 9
    best = 0.0
    for threshold in scores[np.isfinite(scores)]:
      given = scores >= threshold
      precision = correct[given].mean()
      recall = correct[given].sum() / answerable
      if precision + recall:
        f1 = 2 * precision * recall / (precision + recall)
        best = max(best, f1)
    self.assertAlmostEqual(metrics.f1_max(scores, correct, answerable), best)

  def test_equal_scores_pass_together(self):
    # Taken one by one, the right answer would come first: F1 = 1.
    found = metrics.f1_max(np.zeros(4), np.arange(4) < 1, 1)
    self.assertAlmostEqual(found, 0.4)

  def test_without_answers_or_revisits_it_is_zero(self):
    none = np.zeros(2, bool)
    self.assertEqual(metrics.f1_max(np.full(2, -np.inf), none, 2), 0)
    self.assertEqual(metrics.f1_max(np.zeros(2), none, 0), 0)


class BestAnswersTest(parameterized.TestCase):
  @parameterized.product(levels=(None, 3, 1), count=(0, 1, 7, 60, 70))
  def test_agrees_with_a_stable_sort(self, levels, count):
    similarities, _, candidates = scene(2, levels=levels)
    candidates[0] = False
    candidates[1, 3:] = False
    found = metrics.best_answers(similarities, candidates, count)
    self.assertEqual(found.shape, (len(similarities), count))
    for row, allowed, columns in zip(
      similarities, candidates, found, strict=True
    ):
      expected = sorted(np.flatnonzero(allowed), key=lambda m: (-row[m], m))
      expected = (expected + [-1] * count)[:count]
      np.testing.assert_array_equal(columns, expected)


class PosteriorTest(absltest.TestCase):
  def test_agrees_with_the_loop_over_all_candidates(self):
    rng = np.random.default_rng(0)
    similarities = rng.uniform(-1, 1, (9, 60))
    candidates = rng.random((9, 60)) < 0.8
    ground = rng.uniform(0, 60, (60, 2))
    ground[7] = np.nan  # near to itself alone
    similarities[3, 7], candidates[3, 7] = 2.0, True
    candidates[4] = False
    found = metrics.posterior_mass(similarities, candidates, ground, 8.0, 15.0)
    for query, mass in enumerate(found):
      allowed = np.flatnonzero(candidates[query])
      if not len(allowed):
        self.assertTrue(np.isnan(mass))
        continue
      first = max(allowed, key=lambda i: similarities[query, i])
      weights = {i: np.exp(8.0 * similarities[query, i]) for i in allowed}
      near = {
        i
        for i in allowed
        if i == first or np.linalg.norm(ground[i] - ground[first]) <= 15
      }
      expected = sum(weights[i] for i in near) / sum(weights.values())
      self.assertAlmostEqual(mass, expected, msg=str(query))

  def test_the_best_answers_alone_would_say_more(self):
    """A softmax over the first 20 of 400 equal places is not a confidence."""
    ground = np.stack([np.arange(400) * 100.0, np.zeros(400)], 1)
    similarities, everything = np.zeros((1, 400)), np.ones((1, 400), bool)
    whole = metrics.posterior_mass(similarities, everything, ground, 5.0, 10.0)
    np.testing.assert_allclose(whole, 1 / 400)


class DistancesTest(absltest.TestCase):
  def test_height_is_not_a_place_but_both_ground_axes_are(self):
    place = np.zeros((1, 3))
    queries = np.array([[3.0, 4.0, 100.0], [0.0, 4.0, 0.0], [3.0, 0.0, 0.0]])
    np.testing.assert_allclose(
      metrics.horizontal_distances(queries, place)[:, 0], [5, 4, 3]
    )

  def test_centimetres_survive_coordinates_of_a_map_projection(self):
    queries = np.array([[500000.01, 5400000.0, 0.0]])
    places = np.array([[500000.0, 5400000.0, 0.0]])
    distance = metrics.horizontal_distances(queries, places)
    np.testing.assert_allclose(distance, [[0.01]], rtol=1e-4)


class ChanceTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 7, 1), (2, 7, 3), (3, 7, 5), (7, 7, 1), (0, 7, 3), (2, 3, 20)
  )
  def test_agrees_with_counting_all_subsets(self, positives, total, n):
    subsets = list(itertools.combinations(range(total), min(n, total)))
    hits = np.mean([min(subset) < positives for subset in subsets])
    found = metrics.chance(np.array([positives]), np.array([total]), n)
    np.testing.assert_allclose(found, [hits], atol=1e-12)

  def test_agrees_with_random_similarities(self):
    rng = np.random.default_rng(0)
    positives = np.arange(50) < 4
    draws = rng.random((20000, 50))
    ranks = metrics.pessimistic_ranks(
      draws, np.tile(positives, (20000, 1)), np.ones((20000, 50), bool)
    )
    for n in (1, 5, 20):
      chance = metrics.chance(np.array([4]), np.array([50]), n)[0]
      # Four standard errors. With replacement, 1 - (46 / 50)^n, differs more.
      error = 4 * np.sqrt(chance * (1 - chance) / 20000)
      # N random entries hold a positive exactly when the best positive of a
      # random order has fewer than N negatives before it.
      self.assertAlmostEqual(np.mean(ranks < n), chance, delta=error)
    self.assertGreater(abs(1 - 0.92**20 - chance), error)

  def test_n_may_differ_between_queries(self):
    found = metrics.chance(
      np.array([1, 1]), np.array([100, 200]), np.array([1, 2])
    )
    np.testing.assert_allclose(found, [0.01, 0.01])

  def test_one_percent_rounds_up(self):
    np.testing.assert_array_equal(
      metrics.one_percent(np.array([1, 99, 100, 101, 400, 401])),
      [1, 1, 1, 2, 4, 5],
    )


class ExamplesTest(absltest.TestCase):
  def test_the_examples_of_the_docstrings_are_true(self):
    found = doctest.testmod(metrics)
    self.assertGreater(found.attempted, 15)
    self.assertEqual(found.failed, 0)


class ErrorsTest(absltest.TestCase):
  def test_ties_take_the_farthest_and_excluded_readings_are_no_answer(self):
    similarities = np.array([[0.9, 0.9, 0.1], [0.1, 0.2, 0.9], [1, 1, 1]])
    distances = np.array([[1.0, 50, 99], [1, 2, 3], [1, 2, 3]])
    candidates = np.ones((3, 3), bool)
    candidates[1, 2] = False
    candidates[2] = False
    errors = metrics.top1_errors(similarities, distances, candidates)
    np.testing.assert_array_equal(errors, [50, 2, np.inf])


class BootstrapTest(absltest.TestCase):
  def test_blocks_stay_inside_runs_and_are_nearly_equal(self):
    runs = np.repeat([0, 1, 2], [41, 3, 20])
    blocks = metrics.blocks_from_runs(runs, 20)
    sizes = np.bincount(blocks)
    np.testing.assert_array_equal(sizes, [14, 14, 13, 3, 20])
    for block in range(5):
      self.assertLen(set(runs[blocks == block]), 1)

  def test_blocks_of_travel_are_equally_long_and_swallow_a_stop(self):
    # 120 m at 1 m per frame with a stop of 500 frames after 30 m.
    along = np.concatenate(
      [np.arange(30.0), np.full(500, 30.0), np.arange(31.0, 121.0)]
    )
    positions = np.stack([0 * along, along], axis=1)
    blocks = metrics.blocks_from_travel(positions, 40)
    self.assertEqual(blocks.max(), 2)
    for block in range(3):
      inside = along[blocks == block]
      self.assertBetween(np.ptp(inside), 38, 40)
    self.assertLen(set(blocks[along == 30]), 1)
    self.assertTrue((np.diff(blocks) >= 0).all())

  def test_a_vehicle_that_stands_is_one_block(self):
    blocks = metrics.blocks_from_travel(np.ones((5, 2)))
    np.testing.assert_array_equal(blocks, np.zeros(5))
    self.assertEmpty(metrics.blocks_from_travel(np.zeros((0, 2))))

  def test_cells_hold_what_is_near_and_unknown_positions_stand_alone(self):
    positions = np.array(
      [[1, 1], [-1, 1], [49, 49], [51, 1], [np.nan, 1], [1, np.nan], [-49, 2]]
    )
    blocks = metrics.blocks_from_cells(positions)
    same = blocks[:, None] == blocks
    expected = np.eye(7, dtype=bool)
    expected[0, 2] = expected[2, 0] = expected[1, 6] = expected[6, 1] = True
    np.testing.assert_array_equal(same, expected)
    self.assertEqual(set(blocks.tolist()), set(range(5)))

  def test_covers_the_truth_of_correlated_queries_where_single_draws_fail(self):
    rng = np.random.default_rng(0)
    covered = {'blocks': [], 'queries': []}
    for seed in range(200):
      # Ten neighbours succeed or fail together, with probability 0.4.
      hits = np.repeat(rng.random(60) < 0.4, 10)[:, None]
      counted = np.ones_like(hits)
      for name, blocks in (
        ('blocks', metrics.blocks_from_runs(np.zeros(600), 20)),
        ('queries', np.arange(600)),
      ):
        low, high = metrics.bootstrap_interval(
          hits, counted, blocks, seed=seed, num_samples=200
        )
        covered[name].append(low[0] <= 0.4 <= high[0])
    self.assertBetween(np.mean(covered['blocks']), 0.88, 0.99)
    self.assertLess(np.mean(covered['queries']), 0.7)

  def test_agrees_with_resampling_by_hand(self):
    rng = np.random.default_rng(5)
    hits = rng.random((200, 2)) < [0.3, 0.8]
    counted = rng.random((200, 2)) < 0.7
    blocks = metrics.blocks_from_runs(np.zeros(200), 10)
    low, high = metrics.bootstrap_interval(
      hits, counted, blocks, num_samples=4000
    )
    for i in range(2):
      ratios = []
      for _ in range(4000):
        rows = np.concatenate(
          [np.flatnonzero(blocks == b) for b in rng.integers(20, size=20)]
        )
        used = rows[counted[rows, i]]
        ratios.append(hits[used, i].mean())
      np.testing.assert_allclose(
        [low[i], high[i]], np.quantile(ratios, [0.025, 0.975]), atol=0.02
      )

  def test_seeded_and_repeatable(self):
    hits = np.random.default_rng(0).random((100, 1)) < 0.5
    arguments = hits, np.ones_like(hits), np.arange(100) // 5
    first = metrics.bootstrap_interval(*arguments, seed=1)
    self.assertEqual(first, metrics.bootstrap_interval(*arguments, seed=1))
    self.assertNotEqual(first, metrics.bootstrap_interval(*arguments, seed=2))

  def test_one_block_or_none_says_nothing(self):
    for counted in (np.ones((16, 1), bool), np.zeros((16, 1), bool)):
      low, high = metrics.bootstrap_interval(
        counted, counted, np.zeros(16, int)
      )
      np.testing.assert_array_equal([low[0], high[0]], [0, 1])


if __name__ == '__main__':
  absltest.main()
