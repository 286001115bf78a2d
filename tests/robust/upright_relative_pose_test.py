# SPDX-License-Identifier: Apache-2.0
"""Relative poses of cameras that know the vertical."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy.spatial import transform

from i2ploc.robust import relative_pose
from i2ploc.robust import upright_relative_pose
from tests.robust import two_views

SIZE = 200


def _scene(outliers=0.6, seed=0, tilt=0.0, num_data=SIZE, **kwargs):
  """Pixels of both images, down in both cameras, inliers, and the pose."""
  points0, points1, inliers, rotation, translation = two_views.poses(
    num_data, outliers, seed, noise=0.5, **kwargs
  )
  down0 = np.array([0.2, 1.0, -0.1])
  off = transform.Rotation.from_rotvec([np.deg2rad(tilt), 0, 0]).as_matrix()
  downs = 2 * down0, off @ rotation @ down0
  return points0, points1, *downs, inliers, rotation, translation


def _solve(points0, points1, down0, down1, **kwargs):
  lens = two_views.LENS
  return upright_relative_pose.upright_relative_pose(
    points0, points1, lens, lens, down0, down1, 2.0, **kwargs
  )


class UprightRelativePoseTest(parameterized.TestCase):
  @parameterized.parameters(
    ('any', False), ('any', True), ('forward', False), ('sideways', True)
  )
  def test_a_planted_pose_is_found(self, motion, keep_vertical):
    *given, inliers, rotation, translation = _scene(motion=motion)
    found = _solve(*given, keep_vertical=keep_vertical)
    self.assertTrue(found.valid, found.reason)
    pose = found.camera1_from_camera0
    self.assertLess(two_views.degrees(pose.rotation, rotation), 0.5)
    self.assertLess(two_views.degrees(pose.translation, translation), 4.0)
    self.assertGreater(np.mean(found.inliers[inliers]), 0.95)
    freedom = 3 if keep_vertical else 5
    self.assertEqual(found.covariance.shape, (freedom, freedom))
    if keep_vertical:
      _, _, down0, down1, *_ = _scene(motion=motion)
      turned = pose.rotation @ down0 / np.linalg.norm(down0)
      down1 = down1 / np.linalg.norm(down1)
      np.testing.assert_allclose(turned, down1, atol=1e-6)

  def test_a_vertical_that_is_off_is_mended_unless_kept(self):
    *given, _, rotation, _ = _scene(tilt=0.5, outliers=0.4)
    free, kept = (_solve(*given, keep_vertical=keep) for keep in (False, True))
    self.assertTrue(free.valid, free.reason)
    pose = free.camera1_from_camera0
    self.assertLess(two_views.degrees(pose.rotation, rotation), 0.3)
    turn = two_views.degrees(kept.model.rotation, rotation)
    self.assertGreater(turn, 0.4)

  def test_it_takes_fewer_draws_than_without_the_vertical(self):
    *given, _, rotation, _ = _scene(outliers=0.7, num_data=300)
    found = _solve(*given)
    lens = two_views.LENS
    without = relative_pose.relative_pose(*given[:2], lens, lens, 2.0)
    pose = found.camera1_from_camera0
    self.assertLess(two_views.degrees(pose.rotation, rotation), 1.0)
    self.assertLess(2 * found.num_draws, without.num_draws)

  def test_a_rotation_alone_says_that_the_translation_is_open(self):
    *given, _, rotation, _ = _scene(outliers=0.2, baseline=0.0)
    found = _solve(*given)
    self.assertFalse(found.valid)
    self.assertIn('translation is undetermined', found.reason)
    self.assertLess(two_views.degrees(found.model.rotation, rotation), 0.3)

  def test_random_pairs_are_rejected(self):
    *given, _, _, _ = _scene(outliers=1.0)
    found = _solve(*given)
    self.assertFalse(found.valid)
    self.assertIsNone(found.camera1_from_camera0)

  def test_bad_input(self):
    points0, points1, down0, down1, *_ = _scene()
    for arguments, message in (
      ((points0, points1, down0, [0, 0, 0]), 'down1 must be a direction'),
      ((points0, points1, [np.inf, 1, 0], down1), 'down0 must be a direction'),
      ((points0[:5], points1, down0, down1), 'must be as many'),
    ):
      with self.subTest(message), self.assertRaisesRegex(ValueError, message):
        _solve(*arguments)


if __name__ == '__main__':
  absltest.main()
