# SPDX-License-Identifier: Apache-2.0
"""Motions of cameras that see a plane."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import panorama
from i2ploc.robust import plane_motion
from tests.geometry import two_views as cameras
from tests.robust import two_views

BENT = two_views.LENS._replace(
  model='opencv', distortion=np.array([-0.2, 0.03, 0.001, 0.0])
)


def _scene(outliers=0.4, baseline=0.5, seed=0, num_data=200):
  """Pixels of both images, rotation, translation and normal."""
  rng = np.random.default_rng(seed)
  rotation, translation = cameras.poses(rng, 1)
  rotation, translation = rotation[0], baseline * translation[0]
  normal = np.array([0.3, -0.2, 1.0])
  normal /= np.linalg.norm(normal)
  points0 = rng.uniform(0, 1, (num_data, 2)) * two_views.SIZE
  plane = (points0 - two_views.SIZE / 2) / cameras.FOCAL
  rays = np.append(plane, np.ones((num_data, 1)), axis=1)
  seen = rays @ (rotation + np.outer(translation, normal)).T
  points1 = cameras.FOCAL * seen[:, :2] / seen[:, 2:] + two_views.SIZE / 2
  points0, points1, inliers = two_views.spoilt(
    rng, points0, points1, outliers, 0.3
  )
  return points0, points1, rotation, translation, normal, inliers


def _solve(points0, points1, lens=two_views.LENS):
  return plane_motion.plane_motion(points0, points1, lens, lens)


class PlaneMotionTest(parameterized.TestCase):
  def test_a_planted_motion_is_among_them(self):
    points0, points1, rotation, translation, normal, inliers = _scene()
    found = _solve(points0, points1)
    self.assertBetween(len(found.motions), 1, 2)
    errors = [
      two_views.degrees(motion.camera1_from_camera0.rotation, rotation)
      + two_views.degrees(motion.normal, normal)
      + np.linalg.norm(motion.camera1_from_camera0.translation - translation)
      for motion in found.motions
    ]
    self.assertLess(min(errors), 2.0)
    self.assertGreater(np.mean(found.homography.inliers[inliers]), 0.97)

  def test_the_lens_is_taken_away(self):
    points0, points1, rotation, *_ = _scene(outliers=0.0)
    bent = []
    for points in (points0, points1):
      plane = (points - two_views.SIZE / 2) / cameras.FOCAL
      # The positions at which the bent lens shows what the other one does.
      moved, _ = lens_lib.project(BENT, np.insert(plane, 2, 1.0, axis=1))
      bent.append(moved)
    found = _solve(*bent, BENT)
    errors = [
      two_views.degrees(motion.camera1_from_camera0.rotation, rotation)
      for motion in found.motions
    ]
    self.assertLess(min(errors), 0.5)

  def test_random_pairs_have_no_motion(self):
    points0, points1, *_ = _scene(outliers=1.0)
    found = _solve(points0, points1)
    self.assertEqual(found.motions, ())
    self.assertFalse(found.homography.valid)

  def test_a_camera_that_looks_all_around_is_refused(self):
    sphere = lens_lib.Lens(
      'equirectangular', np.float64(panorama.sphere_intrinsics((512, 1024)))
    )
    points0, points1, *_ = _scene()
    with self.assertRaisesRegex(ValueError, 'no plane ahead'):
      _solve(points0, points1, sphere)


if __name__ == '__main__':
  absltest.main()
