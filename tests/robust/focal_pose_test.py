# SPDX-License-Identifier: Apache-2.0
"""Poses of cameras of unknown focal length, as users call them."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy.spatial import transform

from i2ploc.robust import focal_pose

MIDDLE = np.array([320.0, 240.0])
FAR = np.array([5e5, 5.4e6, 100.0])


def _scene(focal=700.0, num_data=200, outliers=0.5, seed=0, flat=False):
  """Points, pixels, rotation and position."""
  rng = np.random.default_rng(seed)
  plane = (rng.uniform(0, 1, (num_data, 2)) * 2 - 1) * MIDDLE / focal
  depth = rng.uniform(4, 12, (num_data, 1))
  if flat:
    depth = 6 / (1 + plane @ np.array([[0.9], [0.5]]))
  seen = np.append(plane, np.ones((num_data, 1)), axis=1) * depth
  rotation = transform.Rotation.random(random_state=seed).as_matrix()
  center = rng.normal(size=3) + FAR
  points = seen @ rotation + center
  pixels = focal * plane + MIDDLE + 0.5 * rng.normal(size=plane.shape)
  wrong = rng.uniform(0, 1, plane.shape) * 2 * MIDDLE
  outlying = rng.permutation(num_data) < round(outliers * num_data)
  pixels = np.where(outlying[:, None], wrong, pixels)
  return points, pixels, rotation, center


class FocalPoseTest(parameterized.TestCase):
  @parameterized.parameters(
    (300.0, False), (700.0, False), (2000.0, False), (500.0, True)
  )
  def test_a_planted_camera_is_found(self, focal, flat):
    points, pixels, rotation, center = _scene(focal, flat=flat)
    found = focal_pose.focal_pose(points, pixels, MIDDLE)
    self.assertTrue(found.valid, found.reason)
    self.assertBetween(found.num_inliers, 95, 108)
    self.assertAlmostEqual(found.focal_length / focal, 1, delta=0.03)
    turn = found.camera_from_map.rotation @ rotation.T
    self.assertGreater(np.trace(turn), 3 - 1e-4)
    self.assertLess(np.linalg.norm(found.camera_in_map - center), 0.3)
    # The stated deviation is that of the error.
    deviation = np.sqrt(found.covariance[6, 6])
    self.assertLess(abs(np.log(found.focal_length / focal)), 4 * deviation)
    self.assertLess(deviation, 0.03)

  def test_a_plane_that_faces_the_camera_leaves_the_focal_length_open(self):
    points, pixels, rotation, center = _scene(outliers=0.0)
    seen = (points - center) @ rotation.T
    points = (6 / seen[:, 2:] * seen) @ rotation + center
    found = focal_pose.focal_pose(points, pixels, MIDDLE)
    self.assertFalse(found.valid)
    self.assertIn('focal length undetermined', found.reason)
    self.assertIsNone(found.focal_length)

  def test_random_matches_are_rejected(self):
    points, pixels, *_ = _scene(num_data=100, outliers=1.0)
    found = focal_pose.focal_pose(points, pixels, MIDDLE)
    self.assertFalse(found.valid)
    self.assertIsNone(found.camera_from_map)

  def test_a_pixel_far_away_changes_nothing(self):
    points, pixels, _, center = _scene()
    pixels[:6] = 1e10
    points[6:12] = 1e15
    found = focal_pose.focal_pose(points, pixels, MIDDLE)
    self.assertAlmostEqual(found.focal_length, 700.0, delta=20)
    self.assertLess(np.linalg.norm(found.camera_in_map - center), 0.3)

  def test_bad_input(self):
    points, pixels, *_ = _scene(num_data=20)
    for arguments, message in (
      ((points, pixels, [320.0]), 'the principal point must be'),
      ((points, pixels, [320.0, np.nan]), 'the principal point must be'),
      ((points[:, :2], pixels, MIDDLE), r'points must be \[N, 3\]'),
      ((points[:9], pixels, MIDDLE), 'must be as many'),
      ((points, pixels, MIDDLE, -1.0), 'threshold must be positive'),
    ):
      with self.subTest(message), self.assertRaisesRegex(ValueError, message):
        focal_pose.focal_pose(*arguments)
    few = focal_pose.focal_pose(points[:4], pixels[:4], MIDDLE)
    self.assertIn('more than 4 are needed', few.reason)


if __name__ == '__main__':
  absltest.main()
