# SPDX-License-Identifier: Apache-2.0
"""Relative poses from pairs of pixels of which many are wrong."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import rigid
from i2ploc.geometry import vectors
from i2ploc.robust import consensus
from i2ploc.robust import relative_pose
from i2ploc.robust import search
from tests.robust import two_views

# One number of data, one compilation.
SIZE = 200
SEARCH = search.Search(settings=consensus.Settings(batch=128, max_draws=4096))


def _solve(points0, points1, lens=two_views.LENS, **kwargs):
  return relative_pose.relative_pose(
    points0, points1, lens, lens, 2.0, search=SEARCH, **kwargs
  )


class RelativePoseTest(parameterized.TestCase):
  @parameterized.parameters(('any', 0.5), ('forward', 0.3), ('sideways', 0.7))
  def test_a_planted_pose_is_found(self, motion, outliers):
    points0, points1, inliers, rotation, translation = two_views.poses(
      SIZE, outliers, noise=0.5, motion=motion
    )
    found = _solve(points0, points1)
    self.assertTrue(found.valid, found.reason)
    pose = found.camera1_from_camera0
    self.assertLess(two_views.degrees(pose.rotation, rotation), 0.5)
    self.assertLess(two_views.degrees(pose.translation, translation), 4.0)
    self.assertGreater(np.mean(found.inliers[inliers]), 0.95)
    self.assertAlmostEqual(np.linalg.norm(pose.translation), 1.0)

  def test_without_noise_it_is_exact_in_float64(self):
    points0, points1, _, rotation, translation = two_views.poses(
      SIZE, 0.3, noise=0.0
    )
    pose = _solve(points0, points1).camera1_from_camera0
    self.assertLess(two_views.degrees(pose.rotation, rotation), 1e-6)
    self.assertLess(two_views.degrees(pose.translation, translation), 1e-5)

  def test_the_covariance_is_that_of_the_errors(self):
    squares = []
    for seed in range(15):
      points0, points1, _, rotation, translation = two_views.poses(
        SIZE, 0.0, seed, noise=0.5
      )
      found = _solve(points0, points1)
      pose = found.camera1_from_camera0
      turn = rotation @ pose.rotation.T
      shift = translation - pose.translation
      axes = vectors.tangents(tuple(pose.translation))
      step = [turn[2, 1], turn[0, 2], turn[1, 0]]
      step = np.append(step, np.stack(axes) @ shift)
      squares.append(step @ np.linalg.solve(found.covariance, step))
    self.assertBetween(np.median(squares), 2.5, 8.0)

  @parameterized.parameters(0.0, 0.5)
  def test_a_rotation_alone_says_that_the_translation_is_open(self, outliers):
    points0, points1, _, rotation, _ = two_views.poses(
      SIZE, outliers, noise=0.5, baseline=0.0
    )
    found = _solve(points0, points1)
    self.assertFalse(found.valid)
    self.assertIn('translation is undetermined', found.reason)
    self.assertIsNone(found.camera1_from_camera0)
    self.assertLess(two_views.degrees(found.model.rotation, rotation), 0.2)
    self.assertFalse(found.model.translation.any())
    self.assertFalse(np.isfinite(found.covariance).any())

  def test_a_short_baseline_is_uncertain_but_not_undetermined(self):
    spread = []
    for baseline in (1.0, 0.1):
      points0, points1, _, _, _ = two_views.poses(
        SIZE, 0.0, noise=0.3, baseline=baseline
      )
      found = _solve(points0, points1)
      self.assertTrue(found.valid, found.reason)
      spread.append(np.sqrt(np.trace(found.covariance[3:, 3:])))
    self.assertGreater(spread[1], 4 * spread[0])

  def test_random_pairs_are_rejected(self):
    points0, points1, _, _, _ = two_views.poses(SIZE, 1.0)
    found = _solve(points0, points1)
    self.assertFalse(found.valid)
    self.assertIn('by chance', found.reason)
    self.assertIsNone(found.camera1_from_camera0)

  @parameterized.named_parameters(
    ('five_pairs', lambda a, b: (a[:5], b[:5]), 'are needed'),
    ('one_place', lambda a, b: (a[:1] + 0 * a, b), 'in one place'),
  )
  def test_degenerate_data_are_not_valid(self, spoil, reason):
    points0, points1, _, _, _ = two_views.poses(SIZE, 0.0)
    found = _solve(*spoil(points0, points1))
    self.assertFalse(found.valid)
    self.assertIn(reason, found.reason)

  def test_panoramas_see_all_around(self):
    rng = np.random.default_rng(0)
    _, _, _, rotation, translation = two_views.poses(1, 0.0)
    points = rng.normal(size=(SIZE, 3)) * [5, 5, 5]
    lens = lens_lib.Lens(
      'equirectangular', np.array([[200.0, 0, 628], [0, 200, 314], [0, 0, 1]])
    )
    pixels = []
    for seen in (points, points @ rotation.T + translation):
      x, y, z = (seen / np.linalg.norm(seen, axis=1, keepdims=True)).T
      angles = np.stack([np.arctan2(x, z), np.arcsin(y)], axis=-1)
      pixels.append(
        200 * angles + [628, 314] + 0.2 * rng.normal(size=(SIZE, 2))
      )
    pixels[1][:60] = rng.uniform(0, 1, (60, 2)) * [1256, 628]
    found = _solve(*pixels, lens=lens)
    self.assertTrue(found.valid, found.reason)
    pose = found.camera1_from_camera0
    self.assertLess(two_views.degrees(pose.rotation, rotation), 0.3)
    self.assertLess(two_views.degrees(pose.translation, translation), 1.0)

  def test_errors_and_residuals_agree(self):
    points0, points1, _, rotation, translation = two_views.poses(50, 0.3)
    pose = rigid.Rigid(jnp.asarray(rotation), jnp.asarray(translation))
    rays = [np.insert(p / 500, 2, 1.0, axis=1).T for p in (points0, points1)]
    data = relative_pose.Rays(*map(jnp.asarray, [*rays[0], *rays[1]]))
    for problem in (relative_pose.PLANE, relative_pose.SPHERE):
      errors, _ = problem.linearize(pose, data)
      np.testing.assert_allclose(
        problem.residual(pose, data), (errors**2).sum(0), rtol=1e-5
      )


if __name__ == '__main__':
  absltest.main()
