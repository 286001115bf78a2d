# SPDX-License-Identifier: Apache-2.0
"""Poses of cameras that know the vertical, as users call them."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy.spatial import transform

from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import panorama
from i2ploc.robust import absolute_pose
from i2ploc.robust import upright_pose

K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
PINHOLE = lens_lib.Lens('pinhole', K)
SPHERE = lens_lib.Lens(
  'equirectangular', np.float64(panorama.sphere_intrinsics((512, 1024)))
)
FAR = np.array([5e5, 5.4e6, 100.0])  # such as UTM coordinates


def _scene(lens, num_data=200, outliers=0.6, seed=0, noise=0.5, tilt=0.0):
  """Points, pixels, down in the camera, and the true rotation and position."""
  rng = np.random.default_rng(seed)
  size = [640, 480] if lens is PINHOLE else [1024, 512]
  pixels = rng.uniform(0, 1, (num_data, 2)) * size
  rays, _ = lens_lib.rays_from_pixels(lens, pixels)
  rotation = transform.Rotation.random(random_state=seed).as_matrix()
  center = rng.normal(size=3) + FAR
  points = rays * rng.uniform(2, 10, (num_data, 1)) @ rotation + center
  inliers = rng.permutation(num_data) >= round(outliers * num_data)
  pixels += rng.normal(size=pixels.shape) * noise
  wrong = rng.uniform(0, 1, pixels.shape) * size
  pixels = np.where(inliers[:, None], pixels, wrong)
  axis = np.cross(rotation[:, 2], rng.normal(size=3))
  axis *= np.deg2rad(tilt) / np.linalg.norm(axis)
  off = transform.Rotation.from_rotvec(axis).as_matrix()
  return points, pixels, -9.81 * off @ rotation[:, 2], rotation, center


def _degrees(a, b):
  return np.degrees(2 * np.arcsin(min(np.linalg.norm(a - b) / 8**0.5, 1)))


class UprightPoseTest(parameterized.TestCase):
  @parameterized.product(lens=(PINHOLE, SPHERE), keep_vertical=(False, True))
  def test_a_planted_pose_is_found(self, lens, keep_vertical):
    points, pixels, down, rotation, center = _scene(lens)
    found = upright_pose.upright_pose(
      points, pixels, lens, down, keep_vertical=keep_vertical
    )
    self.assertTrue(found.valid, found.reason)
    turn = found.camera_from_map.rotation
    self.assertLess(_degrees(turn, rotation), 0.3)
    self.assertLess(np.linalg.norm(found.camera_in_map - center), 0.05)
    self.assertBetween(found.num_inliers, 76, 86)
    freedom = 4 if keep_vertical else 6
    self.assertEqual(found.covariance.shape, (freedom, freedom))
    if keep_vertical:
      up = -down / np.linalg.norm(down)
      np.testing.assert_allclose(turn[:, 2], up, atol=1e-6)

  def test_what_is_up_in_the_map_may_be_told(self):
    points, pixels, down, rotation, center = _scene(PINHOLE)
    # From z up to y up.
    turn = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    found = upright_pose.upright_pose(
      points @ turn.T, pixels, PINHOLE, down, up=(0, 3, 0)
    )
    found_rotation = found.camera_from_map.rotation
    self.assertLess(_degrees(found_rotation, rotation @ turn.T), 0.3)
    away = np.linalg.norm(found.camera_in_map - turn @ center)
    self.assertLess(away, 0.05)

  def test_a_vertical_that_is_off_is_mended_unless_kept(self):
    points, pixels, down, rotation, _ = _scene(PINHOLE, tilt=0.5)
    free, kept = (
      upright_pose.upright_pose(
        points, pixels, PINHOLE, down, 4.0, keep_vertical=keep
      )
      for keep in (False, True)
    )
    self.assertTrue(free.valid, free.reason)
    self.assertLess(_degrees(free.camera_from_map.rotation, rotation), 0.2)
    self.assertGreater(_degrees(kept.model.rotation, rotation), 0.4)

  def test_it_takes_fewer_draws_than_without_the_vertical(self):
    points, pixels, down, _, center = _scene(PINHOLE, 300, 0.85)
    found = upright_pose.upright_pose(points, pixels, PINHOLE, down)
    without = absolute_pose.absolute_pose(points, pixels, PINHOLE)
    self.assertLess(np.linalg.norm(found.camera_in_map - center), 0.1)
    self.assertLess(2 * found.num_draws, without.num_draws)

  def test_random_matches_are_rejected(self):
    points, pixels, down, *_ = _scene(PINHOLE, 100, 1.0)
    found = upright_pose.upright_pose(points, pixels, PINHOLE, down)
    self.assertFalse(found.valid)
    self.assertIsNone(found.camera_from_map)

  def test_masked_points_are_left_out(self):
    points, pixels, down, _, center = _scene(PINHOLE, 100, 0.0)
    mask = np.zeros_like(points, bool)
    mask[:50] = True
    found = upright_pose.upright_pose(
      np.ma.MaskedArray(points, mask), pixels, PINHOLE, down
    )
    self.assertFalse(found.inliers[:50].any())
    self.assertLess(np.linalg.norm(found.camera_in_map - center), 0.1)

  def test_bad_input(self):
    points, pixels, down, *_ = _scene(PINHOLE, 20)
    for arguments, message in (
      ((points, pixels, PINHOLE, [0, 0, 0]), 'down must be a direction'),
      ((points, pixels, PINHOLE, [0, 1]), 'down must be a direction'),
      ((points[:, :2], pixels, PINHOLE, down), r'points must be \[N, 3\]'),
      ((points[:9], pixels, PINHOLE, down), 'must be as many'),
      ((points, pixels, PINHOLE, down, 0.0), 'threshold must be positive'),
    ):
      with self.subTest(message), self.assertRaisesRegex(ValueError, message):
        upright_pose.upright_pose(*arguments)


if __name__ == '__main__':
  absltest.main()
