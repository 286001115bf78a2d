# SPDX-License-Identifier: Apache-2.0
"""The loop as printed and the loop on device are the same thing."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.robust import absolute_pose
from i2ploc.robust import consensus
from i2ploc.robust import lines
from i2ploc.robust import reference
from i2ploc.robust import samplers
from i2ploc.robust import stopping
from tests.robust import planted

# Every model is scored on all data, none is refined.
PLAIN = consensus.Settings(
  batch=64, subset=0, finalists=10_000, refined=1, refine_steps=0
)
_estimate = jax.jit(consensus.estimate, static_argnames=('problem', 'settings'))


def _line(num_data, outliers, seed=0):
  """Points around x / 2 + y = 1, the better ones first; the inliers."""
  rng = np.random.default_rng(seed)
  inliers = rng.permutation(num_data) >= round(outliers * num_data)
  inliers = inliers[np.argsort(-(inliers + rng.normal(size=num_data)))]
  x = rng.uniform(-5, 5, num_data)
  y = np.where(inliers, 1 - x / 2, rng.uniform(-5, 5, num_data))
  y = y + 0.01 * rng.normal(size=num_data)
  return lines.Points(*np.float32([x, y])), inliers


def _slope(model):
  return float(model.normal[0] / model.normal[1])


class SearchTest(parameterized.TestCase):
  @parameterized.parameters('line', 'pose')
  def test_the_same_samples_have_the_same_best_cost(self, name):
    if name == 'line':
      problem, data, threshold = lines.PROBLEM, _line(90, 0.5)[0], 0.04
    else:
      problem, threshold = absolute_pose.PLANE, 3 / planted.FOCAL
      data, _, _ = planted.poses(90, 0.5)
    uniform = reference.uniform_samples(
      np.random.default_rng(1), 90, problem.sample_size
    )
    samples = np.stack([next(uniform) for _ in range(192)])
    expected = reference.search(problem, data, threshold, samples)
    sampler = samplers.Exhaustive(
      jnp.int32(90), jnp.asarray(samples, jnp.int32), jnp.int32(192)
    )
    found = _estimate(
      problem, sampler, data, threshold, jax.random.key(0), PLAIN
    )
    self.assertEqual(expected.num_draws, 192)
    np.testing.assert_allclose(found.cost, expected.cost, rtol=1e-3)
    np.testing.assert_array_equal(found.inliers, expected.inliers)
    for ours, theirs in zip(found.model, expected.model, strict=True):
      np.testing.assert_allclose(ours, theirs, atol=1e-3)

  def test_all_three_loops_find_the_same_line(self):
    data, inliers = _line(300, 0.8)
    rng = np.random.default_rng(0)
    plain = reference.ransac(lines.PROBLEM, data, 0.04, rng)
    ordered = reference.prosac(lines.PROBLEM, data, 0.04, rng)
    found = _estimate(
      lines.PROBLEM,
      samplers.make_prosac(300, 2, 300),
      data,
      0.04,
      jax.random.key(0),
      consensus.Settings(batch=64),
    )
    for answer in (plain, ordered, found):
      self.assertAlmostEqual(_slope(answer.model), 0.5, delta=0.02)
      self.assertGreater(np.mean(np.asarray(answer.inliers) == inliers), 0.95)
    self.assertLess(ordered.num_draws, plain.num_draws / 2)
    # Whole turns, and a stricter idea of chance.
    self.assertLess(found.num_draws, 500)

  def test_it_stops_no_sooner_than_it_should(self):
    data, inliers = _line(60, 0.5)
    answer = reference.ransac(
      lines.PROBLEM, data, 0.04, np.random.default_rng(0), confidence=0.99
    )
    needed = np.log(0.01) / np.log(1 - (30 * 29) / (60 * 59))
    self.assertBetween(answer.num_draws, 0.7 * needed, 1.5 * needed)
    limited = reference.ransac(
      lines.PROBLEM, data, 0.04, np.random.default_rng(0), max_draws=5
    )
    self.assertEqual(limited.num_draws, 5)

  def test_data_without_a_model_have_none(self):
    data = lines.Points(np.ones(20, np.float32), np.ones(20, np.float32))
    answer = reference.ransac(
      lines.PROBLEM, data, 0.04, np.random.default_rng(0), max_draws=50
    )
    self.assertIsNone(answer.model)
    self.assertEqual((answer.num_draws, answer.inliers.sum()), (50, 0))


class SamplesTest(parameterized.TestCase):
  @parameterized.parameters((20, 3), (100, 2), (57, 4), (5, 5))
  def test_both_growths_are_equal(self, num_data, size):
    np.testing.assert_array_equal(
      reference.prosac_growth(num_data, size),
      samplers.prosac_growth(num_data, size),
    )

  def test_pools_are_those_of_the_sampler(self):
    sampler = samplers.make_prosac(30, 3, 30)
    pools = np.asarray(sampler.pool(jnp.arange(3000)))
    drawn = reference.prosac_samples(np.random.default_rng(0), 30, 3)
    newest = np.array([max(next(drawn)) + 1 for _ in range(3000)])
    np.testing.assert_array_equal(newest, pools)

  def test_once_all_pools_are_open_samples_are_uniform(self):
    last = reference.prosac_growth(6, 2, 500)[-1]
    drawn = reference.prosac_samples(np.random.default_rng(0), 6, 2, 500)
    for _ in range(last):
      next(drawn)
    counts = np.bincount(np.ravel([next(drawn) for _ in range(3000)]))
    np.testing.assert_allclose(counts, 1000, rtol=0.1)


class NeededTest(parameterized.TestCase):
  @parameterized.parameters((50, 100, 3), (2, 100, 3), (100, 100, 2))
  def test_ransac_needs_what_the_engine_says(self, inliers, total, size):
    mask = np.arange(total) < inliers
    expected = float(stopping.ransac_draws(inliers, total, size, 0.999))
    found = reference.ransac_needed(mask, size, 0.999)
    if expected < 1:
      self.assertEqual(found, 1)
    else:
      np.testing.assert_allclose(found, expected, rtol=1e-3)

  def test_the_engine_stops_prosac_when_it_should(self):
    rng = np.random.default_rng(0)
    growth = jnp.asarray(samplers.prosac_growth(120, 3), jnp.int32)
    sizes = stopping.prefixes(120)

    @jax.jit
    def stops(inliers, draws):
      found = jnp.cumsum(inliers)[sizes - 1]
      return jnp.isfinite(
        stopping.prosac_draws(found, 120, growth, draws, 3, 0.9999, 0.05)
      )

    expected, early, late = 0, 0, 0
    for _ in range(60):
      rate = rng.uniform(0.02, 0.7) * np.exp(-np.arange(120) / 60)
      inliers = rng.uniform(size=120) < rate
      needed = reference.prosac_needed(inliers, 3, 0.9999, 0.05, level=1e-3)
      if needed == np.inf:
        early += bool(stops(inliers, 2**30))
        continue
      expected += 1
      early += bool(stops(inliers, int(0.99 * needed) - 1))
      late += not stops(inliers, int(4 * needed) + 1)
    # A bound of the binomial tail is on the safe side, but not by much.
    self.assertEqual(early, 0)
    self.assertBetween(expected, 15, 55)
    self.assertLess(late, 0.25 * expected)

  def test_chance_explains_few_inliers(self):
    self.assertTrue(reference.is_random(8, 100, 3, 0.05))
    self.assertFalse(reference.is_random(20, 100, 3, 0.05))
    self.assertTrue(reference.is_random(3, 4, 3, 0.05))
    # The printed sum, term by term.
    tail = sum(
      np.prod([(97 - k) / (k + 1) for k in range(i)])
      * 0.05**i
      * 0.95 ** (97 - i)
      for i in range(9, 98)
    )
    self.assertEqual(reference.is_random(12, 100, 3, 0.05), tail >= 0.05)


if __name__ == '__main__':
  absltest.main()
