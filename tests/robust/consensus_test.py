# SPDX-License-Identifier: Apache-2.0
"""Tests of the loop on planted problems."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.robust import absolute_pose
from i2ploc.robust import consensus
from i2ploc.robust import samplers
from tests.robust import planted

PIXEL = 1 / planted.FOCAL
SETTINGS = consensus.Settings(batch=128, max_draws=2048)
_estimate = jax.jit(consensus.estimate, static_argnames=('problem', 'settings'))


def _pose(data, sampler, seed=0, settings=SETTINGS):
  return _estimate(
    absolute_pose.PLANE,
    sampler,
    data,
    3 * PIXEL,
    jax.random.key(seed),
    settings,
  )


def _uniform(num_data):
  return samplers.Uniform(jnp.int32(num_data))


def _angle(a, b):
  cosine = (jnp.trace(a @ b.T) - 1) / 2
  return float(jnp.degrees(jnp.arccos(jnp.clip(cosine, -1, 1))))


class ConsensusTest(parameterized.TestCase):
  @parameterized.parameters('inliers', 'msac', 'gaussian_uniform')
  def test_a_planted_pose_is_found_under_every_score(self, score):
    data, pose, inliers = planted.poses(200, 0.5)
    settings = SETTINGS._replace(score=score)
    found = _pose(data, _uniform(200), settings=settings)
    self.assertTrue(found.valid)
    self.assertLess(_angle(found.model.rotation, pose.rotation), 0.3)
    np.testing.assert_allclose(
      found.model.translation, pose.translation, atol=0.05
    )
    agreement = np.mean(np.asarray(found.inliers) == inliers)
    self.assertGreater(agreement, 0.95)

  def test_prosac_needs_fewer_draws(self):
    data, pose, _ = planted.poses(300, 0.85, seed=3)
    sampler = samplers.make_prosac(300, 3, 300)
    ordered = _pose(data, sampler)
    uniform = _pose(data, _uniform(300))
    self.assertLess(_angle(ordered.model.rotation, pose.rotation), 0.5)
    self.assertLess(ordered.num_draws, uniform.num_draws)

  def test_easy_problems_end_after_one_turn_and_noise_never(self):
    easy, _, _ = planted.poses(200, 0.2)
    self.assertEqual(_pose(easy, _uniform(200)).num_draws, SETTINGS.batch)
    noise, _, _ = planted.poses(200, 1.0)
    found = _pose(noise, _uniform(200))
    self.assertEqual(found.num_draws, SETTINGS.max_draws)
    self.assertLess(found.inliers.sum(), 15)

  def test_refinement_makes_models_better(self):
    data, pose, _ = planted.poses(200, 0.5, seed=1)
    plain = SETTINGS._replace(refine_steps=0, max_draws=128)
    refined = SETTINGS._replace(max_draws=128)
    costs = [
      float(_pose(data, _uniform(200), settings=s).cost)
      for s in (plain, refined)
    ]
    self.assertLess(costs[1], 0.95 * costs[0])
    del pose

  def test_padding_has_no_say(self):
    data, pose, _ = planted.poses(200, 0.5)
    padded = jax.tree.map(
      lambda leaf: jnp.concatenate([leaf, jnp.full(56, 1e3)]), data
    )
    found = _pose(padded, _uniform(200))
    self.assertLess(_angle(found.model.rotation, pose.rotation), 0.3)
    self.assertFalse(found.inliers[200:].any())

  def test_a_batch_of_problems_is_a_vmap(self):
    problems = [planted.poses(128, 0.4, seed) for seed in range(5)]
    data = jax.tree.map(
      lambda *leaves: jnp.stack(leaves), *(p[0] for p in problems)
    )
    keys = jax.random.split(jax.random.key(0), 5)
    solve = functools.partial(
      consensus.estimate, absolute_pose.PLANE, settings=SETTINGS
    )
    found = jax.jit(
      jax.vmap(lambda d, k: solve(_uniform(128), d, 3 * PIXEL, k))
    )(data, keys)
    for i, (_, pose, _) in enumerate(problems):
      self.assertLess(_angle(found.model.rotation[i], pose.rotation), 0.5)

  def test_degenerate_data_are_not_valid(self):
    data, _, _ = planted.poses(64, 0.0)
    line = data._replace(y=2 * data.x, z=3 * data.x)
    few = _uniform(2)
    for case in ((line, _uniform(64)), (data, few)):
      found = _pose(*case)
      self.assertFalse(found.valid)
      for leaf in jax.tree.leaves(found.model):
        self.assertTrue(np.isfinite(leaf).all())

  def test_exhaustive_search_ends_with_its_samples(self):
    data, _ = planted.line(12, 0.5, noise=0.0)
    sampler = samplers.make_exhaustive(12, 2, 66)
    found = consensus.estimate(
      planted.LINE, sampler, data, 0.01, jax.random.key(0),
      SETTINGS._replace(batch=16),
    )  # fmt: skip
    np.testing.assert_allclose(found.model, [2.0, -1.0], atol=1e-3)
    self.assertEqual(found.num_draws, 80)

  def test_a_second_call_compiles_nothing(self):
    data, _, _ = planted.poses(200, 0.5, seed=5)
    _pose(data, _uniform(200))
    size = _estimate._cache_size()
    _pose(planted.poses(200, 0.3, seed=6)[0], _uniform(150), seed=9)
    self.assertEqual(_estimate._cache_size(), size)


if __name__ == '__main__':
  absltest.main()
