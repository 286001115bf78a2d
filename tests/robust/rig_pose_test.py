# SPDX-License-Identifier: Apache-2.0
"""Poses of rigs, as users call them."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy.spatial import transform

from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import panorama
from i2ploc.geometry import rigid
from i2ploc.robust import absolute_pose
from i2ploc.robust import rig_pose

PINHOLE = lens_lib.Lens(
  'pinhole', np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
)
LONG = lens_lib.Lens(
  'opencv',
  np.array([[900.0, 0, 320], [0, 900, 240], [0, 0, 1]]),
  np.array([-0.1, 0.01, 0.0, 0.0]),
)
SPHERE = lens_lib.Lens(
  'equirectangular', np.float64(panorama.sphere_intrinsics((512, 1024)))
)
FAR = np.array([5e5, 5.4e6, 100.0])


def _camera(lens, vector, center):
  """A camera turned by a vector, at a place of the body."""
  rotation = transform.Rotation.from_rotvec(vector).as_matrix()
  return rig_pose.RigCamera(
    lens, rigid.Rigid(rotation, -rotation @ np.asarray(center))
  )


RIG = (
  _camera(PINHOLE, [0, 0, 0], [0.3, 0, 0]),
  _camera(LONG, [0, 1.5, 0], [-0.3, 0.1, 0]),
  _camera(SPHERE, [0, 0.1, 3.0], [0, 0, -0.5]),
)


def _scene(rig, num_data=240, outliers=0.5, seed=0, noise=0.5):
  """Points, pixels, cameras, rotation and position, and which are inliers."""
  rng = np.random.default_rng(seed)
  cameras = rng.integers(0, len(rig), num_data)
  rotation = transform.Rotation.random(random_state=seed).as_matrix()
  center = rng.normal(size=3) + FAR
  inliers = rng.permutation(num_data) >= round(outliers * num_data)
  pixels, body = np.zeros((num_data, 2)), np.zeros((num_data, 3))
  for number, (lens, motion) in enumerate(rig):
    rows = np.flatnonzero(cameras == number)
    size = [1024, 512] if lens is SPHERE else [640, 480]
    pixels[rows] = rng.uniform(0, 1, (len(rows), 2)) * size
    rays, _ = lens_lib.rays_from_pixels(lens, pixels[rows])
    seen = rays * rng.uniform(2, 10, (len(rows), 1)) - motion.translation
    body[rows] = seen @ motion.rotation
    wrong = rng.uniform(0, 1, (len(rows), 2)) * size
    moved = pixels[rows] + noise * rng.normal(size=(len(rows), 2))
    pixels[rows] = np.where(inliers[rows, None], moved, wrong)
  return body @ rotation + center, pixels, cameras, rotation, center, inliers


class RigPoseTest(parameterized.TestCase):
  @parameterized.parameters((RIG,), (RIG[:2],), (RIG[:1],), (RIG[2:],))
  def test_a_planted_pose_is_found(self, *rig):
    (rig,) = rig
    points, pixels, cameras, rotation, center, inliers = _scene(rig)
    found = rig_pose.rig_pose(points, pixels, cameras, rig)
    self.assertTrue(found.valid, found.reason)
    turn = found.body_from_map.rotation @ rotation.T
    self.assertGreater(np.trace(turn), 3 - 1e-4)
    self.assertLess(np.linalg.norm(found.body_in_map - center), 0.05)
    self.assertGreater((found.inliers == inliers).mean(), 0.97)

  def test_without_noise_it_is_exact(self):
    points, pixels, cameras, rotation, center, _ = _scene(RIG, noise=0.0)
    found = rig_pose.rig_pose(points, pixels, cameras, RIG)
    turn = found.body_from_map.rotation
    np.testing.assert_allclose(turn, rotation, atol=1e-8)
    self.assertLess(np.linalg.norm(found.body_in_map - center), 1e-7)

  def test_residuals_are_pixels_to_first_order(self):
    points, pixels, cameras, rotation, center, _ = _scene(RIG, 60, 0.0, 3, 0.1)
    focal = np.mean([camera.lens.focal_length for camera in RIG])
    seen = rig_pose._seen(pixels, cameras, RIG, focal)
    parts = points - center, seen.origins, seen.rays, seen.right, seen.down
    data = rig_pose.Sightings(*(row for part in parts for row in part.T))
    pose = rigid.Rigid(rotation, np.zeros(3))
    errors, _ = rig_pose.PROBLEM.linearize(pose, data)
    # Of noise of 0.1 pixels.
    for number in (0, 2):
      some = focal * errors[:, cameras == number]
      self.assertBetween(np.sqrt((some**2).mean()), 0.06, 0.14)

  def test_the_covariance_is_that_of_the_errors(self):
    squares = []
    for seed in range(12):
      points, pixels, cameras, rotation, center, _ = _scene(RIG, 200, 0.0, seed)
      found = rig_pose.rig_pose(points, pixels, cameras, RIG)
      # About FAR a turn would move the translation by kilometres.
      turn = rotation @ found.model.rotation.T
      skew = turn - turn.T
      vector = np.array([skew[2, 1], skew[0, 2], skew[1, 0]]) / 2
      shift = turn @ (found.model.rotation @ (found.body_in_map - center))
      error = np.concatenate([vector, shift])
      squares.append(error @ np.linalg.solve(found.covariance, error))
    self.assertBetween(np.median(squares), 2.5, 10.0)

  def test_one_camera_is_an_absolute_pose(self):
    points, pixels, cameras, *_ = _scene(RIG[:1])
    found = rig_pose.rig_pose(points, pixels, cameras, RIG[:1])
    alone = absolute_pose.absolute_pose(points, pixels, PINHOLE)
    camera = rigid.compose(RIG[0].camera_from_body, found.body_from_map)
    away = camera.rotation - alone.camera_from_map.rotation
    self.assertLess(np.abs(away).max(), 1e-3)

  def test_random_matches_are_rejected(self):
    points, pixels, cameras, *_ = _scene(RIG, 100, 1.0)
    found = rig_pose.rig_pose(points, pixels, cameras, RIG)
    self.assertFalse(found.valid)
    self.assertIsNone(found.body_from_map)

  def test_bad_input(self):
    points, pixels, cameras, *_ = _scene(RIG, 20)
    for arguments, message in (
      ((points, pixels, cameras + 1, RIG), 'no camera 3 in a rig of 3'),
      ((points, pixels, cameras - 0.5, RIG), 'no camera'),
      ((points, pixels, cameras[:5], RIG), r'cameras must be \[N\]'),
      ((points, pixels, 0 * cameras, []), 'the rig has no camera'),
      ((points[:, :2], pixels, cameras, RIG), r'points must be \[N, 3\]'),
      ((points, pixels, cameras, RIG, 0.0), 'threshold must be positive'),
    ):
      with self.subTest(message), self.assertRaisesRegex(ValueError, message):
        rig_pose.rig_pose(*arguments)


if __name__ == '__main__':
  absltest.main()
