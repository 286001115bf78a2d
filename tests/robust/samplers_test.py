# SPDX-License-Identifier: Apache-2.0
"""Tests of the samplers: distributions, growth, balance."""

import collections
import fractions
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.robust import samplers
from i2ploc.robust import stopping


def _growth_by_the_paper(num_data, size, num_draws):
  """T'_n in exact fractions, by the recurrence as printed."""
  expected = fractions.Fraction(num_draws)
  for i in range(size):
    expected *= fractions.Fraction(size - i, num_data - i)
  table = [0] * size + [1]
  for n in range(size, num_data):
    following = expected * fractions.Fraction(n + 1, n + 1 - size)
    table.append(table[-1] + math.ceil(following - expected))
    expected = following
  return table


def _draw(sampler, count, size=3, start=0, seed=0):
  draw = jax.jit(type(sampler).draw, static_argnums=(3, 4))
  indices, valid = draw(sampler, jax.random.key(seed), start, count, size)
  return np.asarray(indices), np.asarray(valid)


class DistinctTest(parameterized.TestCase):
  @parameterized.parameters((5, 3), (4, 4), (8, 2), (9, 5))
  def test_every_subset_has_the_same_probability(self, num_data, size):
    count = 400 * math.comb(num_data, size)
    pool = jnp.full(count, num_data)
    drawn = np.asarray(samplers.distinct(jax.random.key(0), pool, size))
    counts = collections.Counter(map(tuple, np.sort(drawn, axis=1)))
    self.assertLen(counts, math.comb(num_data, size))
    self.assertTrue(all(len(set(subset)) == size for subset in counts))
    deviation = np.asarray(list(counts.values())) - 400
    # Chi-squared over its degrees of freedom; its deviation is below 0.6 here.
    self.assertLess(np.mean(deviation**2) / 400, 2.5)


class UniformTest(absltest.TestCase):
  def test_padding_is_never_drawn(self):
    indices, valid = _draw(samplers.Uniform(jnp.int32(7)), 2000)
    self.assertTrue(valid.all())
    self.assertEqual(set(indices.ravel()), set(range(7)))

  def test_fewer_data_than_a_sample_are_no_sample(self):
    self.assertFalse(_draw(samplers.Uniform(jnp.int32(2)), 10)[1].any())

  def test_turns_differ(self):
    sampler = samplers.Uniform(jnp.int32(100))
    first, second = (_draw(sampler, 50, start=s)[0] for s in (0, 50))
    self.assertFalse((first == second).all())


class ProsacTest(parameterized.TestCase):
  @parameterized.parameters(
    (20, 3, 200_000), (100, 3, 100_000), (57, 4, 200_000), (300, 5, 1000),
    (1000, 3, 200_000), (3, 3, 10), (64, 7, 200_000), (12, 2, 66),
  )  # fmt: skip
  def test_the_growth_is_the_papers(self, num_data, size, num_draws):
    np.testing.assert_array_equal(
      samplers.prosac_growth(num_data, size, num_draws),
      _growth_by_the_paper(num_data, size, num_draws),
    )

  def test_pools_are_the_papers(self):
    sampler = samplers.make_prosac(30, 3, 64, 5000)
    growth = samplers.prosac_growth(30, 3, 5000)
    last = growth[30]
    draws = np.arange(0, last + 5)
    expected = [
      next((n for n in range(31) if growth[n] >= t + 1 and n >= 3), 31)
      for t in draws
    ]
    np.testing.assert_array_equal(sampler.pool(jnp.asarray(draws)), expected)

  def test_a_draw_holds_the_newest_of_its_pool(self):
    sampler = samplers.make_prosac(50, 3, 64, 20_000)
    indices, valid = _draw(sampler, 3000)
    pool = np.asarray(sampler.pool(jnp.arange(3000)))
    grows = pool <= 50
    self.assertTrue(valid.all())
    np.testing.assert_array_equal(indices.max(1)[grows], pool[grows] - 1)
    self.assertTrue(all(len(set(row)) == 3 for row in indices))
    np.testing.assert_array_equal(np.sort(indices[0]), [0, 1, 2])

  def test_after_the_last_pool_it_is_uniform(self):
    sampler = samplers.make_prosac(10, 3, 16, 50)
    end = int(samplers.prosac_growth(10, 3, 50)[10])
    indices, _ = _draw(sampler, 6000, start=end)
    counts = np.bincount(indices.ravel(), minlength=10)
    np.testing.assert_allclose(counts, 1800, rtol=0.12)

  def test_too_few_data_are_refused(self):
    with self.assertRaisesRegex(ValueError, '2 data'):
      samplers.prosac_growth(2, 3)
    self.assertFalse(_draw(samplers.make_prosac(2, 3, 8), 5)[1].any())


class BalancedProsacTest(absltest.TestCase):
  def test_ranks_come_before_similarities(self):
    rank = np.array([1, 0, 0, 2, 1])
    similarity = np.array([0.9, 0.1, 0.5, 1.0, 0.95])
    order = samplers.balanced_order(rank, similarity)
    np.testing.assert_array_equal(order, [2, 1, 4, 0, 3])

  def _sampler(self):
    observation = jnp.repeat(jnp.arange(6), 3)
    landmark = (jnp.arange(18) * 5) % 7
    progressive = samplers.make_prosac(18, 3, 18, 5000)
    return samplers.BalancedProsac(progressive, observation, landmark)

  def test_nothing_comes_twice_in_a_sample(self):
    sampler = self._sampler()
    indices, valid = _draw(sampler, 2000, start=100)
    # Of plain draws 45 % are.
    self.assertGreater(valid.mean(), 0.8)
    for name in ('observation', 'landmark'):
      values = np.asarray(getattr(sampler, name))[indices[valid]]
      self.assertTrue(all(len(set(row)) == 3 for row in values), name)
    # Plain PROSAC does repeat.
    plain, _ = _draw(sampler.progressive, 2000, start=100)
    values = np.asarray(sampler.observation)[plain]
    self.assertFalse(all(len(set(row)) == 3 for row in values))

  def test_one_landmark_alone_gives_no_sample(self):
    sampler = self._sampler()._replace(landmark=jnp.zeros(18, int))
    self.assertFalse(_draw(sampler, 100)[1].any())


class ExhaustiveTest(absltest.TestCase):
  def test_every_sample_comes_once(self):
    sampler = samplers.make_exhaustive(6, 3, 32)
    indices, valid = _draw(sampler, 56)
    self.assertEqual(valid.sum(), 20)
    self.assertLen(set(map(tuple, indices[valid])), 20)
    self.assertTrue(valid[:20].all())

  def test_more_samples_than_fit(self):
    with self.assertRaisesRegex(ValueError, '6 data have 20 samples of 3'):
      samplers.make_exhaustive(6, 3, 16)


class NeededTest(absltest.TestCase):
  """Each sampler says after how many draws it has given what it can."""

  def setUp(self):
    super().setUp()
    # The better half are inliers, and of the rest a tenth.
    self.inliers = jnp.arange(100) < 50
    self.inliers = self.inliers.at[55::10].set(True)
    self.found = self._counted(self.inliers)
    self.rest = jnp.int32(60), 3, 0.9999, 0.01

  def _counted(self, inliers):
    return jnp.cumsum(inliers)[stopping.prefixes(100) - 1]

  def _needed(self, sampler):
    return float(sampler.needed(self.found, *self.rest))

  def test_uniform_samples_need_one_of_inliers(self):
    expected = stopping.ransac_draws(jnp.int32(55), 100, 3, 0.9999)
    self.assertEqual(self._needed(samplers.Uniform(jnp.int32(100))), expected)

  def test_an_order_that_means_something_ends_the_search_early(self):
    prosac = samplers.make_prosac(100, 3, 100)
    early = self._needed(prosac)
    uniform = self._needed(samplers.Uniform(jnp.int32(100)))
    self.assertLess(early, uniform / 2)
    rows = jnp.arange(100, dtype=jnp.int32)
    balanced = samplers.BalancedProsac(prosac, rows, rows)
    self.assertEqual(self._needed(balanced), early)
    # In the opposite order nothing is known any sooner.
    late = prosac.needed(self._counted(self.inliers[::-1]), *self.rest)
    self.assertEqual(float(late), uniform)

  def test_all_samples_are_needed_where_all_are_asked_for(self):
    sampler = samplers.make_exhaustive(12, 3, 220)
    self.assertEqual(self._needed(sampler), np.inf)

  def test_a_table_of_zeros_makes_uniform_samples(self):
    same = samplers.make_uniform(100, 100)
    uniform = samplers.Uniform(jnp.int32(100))
    self.assertEqual(self._needed(same), self._needed(uniform))
    key = jax.random.key(0)
    np.testing.assert_array_equal(
      same.draw(key, jnp.int32(7), 64, 3)[0],
      uniform.draw(key, jnp.int32(7), 64, 3)[0],
    )


class EitherTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.drawn = samplers.make_prosac(6, 3, 8)
    self.listed = samplers.make_exhaustive(6, 3, 32)
    self.key = jax.random.key(0)

  def _same(self, sampler, expected):
    for name in ('num_data', 'num_samples'):
      self.assertEqual(getattr(sampler, name), getattr(expected, name))
    asked = self.key, jnp.int32(0), 32, 3
    for a, b in zip(sampler.draw(*asked), expected.draw(*asked), strict=True):
      np.testing.assert_array_equal(a, b)
    asked = jnp.arange(8) + 1, jnp.int32(60), 3, 0.9999, 0.01
    self.assertEqual(sampler.needed(*asked), expected.needed(*asked))

  def test_it_is_the_list_where_there_is_one(self):
    self._same(samplers.Either(self.listed, self.drawn), self.listed)

  def test_it_draws_where_the_list_is_empty(self):
    empty = self.listed._replace(num_samples=np.int32(0))
    self._same(samplers.Either(empty, self.drawn), self.drawn)


if __name__ == '__main__':
  absltest.main()
