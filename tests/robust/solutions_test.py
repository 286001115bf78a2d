# SPDX-License-Identifier: Apache-2.0
"""No model of a sample that counts is lost."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import fundamental as fundamental_lib
from i2ploc.robust import consensus
from i2ploc.robust import fundamental
from i2ploc.robust import reference
from i2ploc.robust import samplers
from i2ploc.robust import solutions
from i2ploc.robust import two_views as two_views_lib
from tests.robust import two_views

_gather = jax.jit(solutions.gather, static_argnames='models_per_sample')
_estimate = jax.jit(consensus.estimate, static_argnames=('problem', 'settings'))
# Every model is scored on all data, none is refined.
PLAIN = consensus.Settings(
  batch=512, subset=0, finalists=10_000, refined=1,
  refine_steps=0,
)  # fmt: skip
THRESHOLD = 2.0


def _kept(valid, room):
  """Slots that are kept and samples that count, one after another."""
  kept, count = [], 0
  for sample, row in enumerate(valid):
    slots = [(sample, slot) for slot in np.flatnonzero(row)]
    if len(kept) + len(slots) > room:
      break
    kept += slots
    count += 1
  return kept, count


class GatherTest(parameterized.TestCase):
  @parameterized.product(share=(0.0, 0.1, 0.5, 0.85, 1.0), room=(1, 2, 3, 4))
  def test_models_are_those_of_a_slow_loop(self, share, room):
    rng = np.random.default_rng(0)
    for count in (1, 2, 50):
      valid = rng.uniform(size=(count, 4)) < share
      models = {'slot': np.arange(4 * count).reshape(count, 4)}
      found = _gather(models, valid, models_per_sample=room)
      kept, num_samples = _kept(valid, max(room * count, 4))
      self.assertEqual(found.num_samples, num_samples)
      self.assertGreater(num_samples, 0)
      rows = np.flatnonzero(found.valid)
      slots = [4 * sample + slot for sample, slot in kept]
      np.testing.assert_array_equal(found.models['slot'][rows], slots)
      np.testing.assert_array_equal(found.sample[rows], [s for s, _ in kept])


class SevenPointsTest(absltest.TestCase):
  """A solver that fills five slots in six."""

  def setUp(self):
    super().setUp()
    points0, points1, inliers, _, _ = two_views.poses(60, 0.5, noise=0.3)
    frames = two_views_lib.pairs(points0, points1).frames
    self.threshold = np.float32(THRESHOLD / frames.image1.unit)
    data = frames.matches(points0, points1)
    self.data = two_views_lib.Matches(*np.float32(data))
    rng = np.random.default_rng(0)
    samples = np.stack([rng.choice(60, 7, replace=False) for _ in range(512)])
    # Only the last one consists of inliers.
    samples[:, 0] = np.flatnonzero(~inliers)[0]
    samples[:-1, 1:] = np.where(
      samples[:-1, 1:] == samples[:1, 0], 59, samples[:-1, 1:]
    )
    samples[-1] = np.flatnonzero(inliers)[:7]
    self.samples = samples

  def _search(self, problem):
    sampler = samplers.Exhaustive(
      jnp.int32(60), jnp.asarray(self.samples, jnp.int32), jnp.int32(512)
    )
    return _estimate(
      problem, sampler, self.data, self.threshold, jax.random.key(0), PLAIN
    )

  def test_most_slots_are_filled(self):
    _, valid = jax.jit(jax.vmap(fundamental.PROBLEM.solve))(
      jax.tree.map(lambda leaf: leaf[self.samples], self.data)
    )
    self.assertGreater(valid.mean(), 0.7)
    self.assertEqual(
      fundamental.PROBLEM.models_per_sample, fundamental_lib.NUM_SOLUTIONS
    )

  def test_the_last_sample_of_a_turn_is_scored(self):
    expected = reference.search(
      fundamental.PROBLEM, self.data, self.threshold, self.samples
    )
    others = reference.search(
      fundamental.PROBLEM, self.data, self.threshold, self.samples[:-1]
    )
    self.assertLess(expected.cost, 0.9 * others.cost)
    # Also where a turn has room for a part of the models.
    for room in (3, 2, 1):
      problem = fundamental.PROBLEM._replace(models_per_sample=room)
      found = self._search(problem)
      np.testing.assert_allclose(found.cost, expected.cost, rtol=1e-3)
      self.assertGreaterEqual(found.num_draws, 512)

  def test_samples_without_room_do_not_count(self):
    problem = fundamental.PROBLEM._replace(models_per_sample=1)
    settings = PLAIN._replace(max_draws=1)
    found = _estimate(
      problem, samplers.Uniform(jnp.int32(60)), self.data, self.threshold,
      jax.random.key(0), settings,
    )  # fmt: skip
    # Of 512 samples with 2.5 models each 512 models are kept.
    self.assertBetween(int(found.num_draws), 190, 225)


if __name__ == '__main__':
  absltest.main()
