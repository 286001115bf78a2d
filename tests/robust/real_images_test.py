# SPDX-License-Identifier: Apache-2.0
"""Two views of real places: accepted, rejected, and where the camera went."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.geometry import lens as lens_lib
from i2ploc.robust import consensus
from i2ploc.robust import homography
from i2ploc.robust import relative_pose
from i2ploc.robust import search
from tests import shared
from tests.robust import keypoints
from tests.robust import two_views

# One number of data, one compilation.
_NUM_PAIRS, _NUM_FAR_PAIRS = 120, 400
SEARCH = search.Search(settings=consensus.Settings(batch=128, max_draws=8192))


@functools.cache
def _described(path, longest):
  grey, shrink = keypoints.load(path, longest)
  points, descriptors = keypoints.keypoints(grey, 1500)
  return points * shrink, descriptors


def _pairs(paths, longest, count, ratio=0.9):
  """The clearest pairs of points of two images, and their scores."""
  described = [_described(path, longest) for path in paths]
  first, second, scores = keypoints.match(*(d for _, d in described), ratio)
  best = np.argsort(-scores)[:count]
  points0, points1 = (points for points, _ in described)
  return points0[first[best]], points1[second[best]], scores[best]


class PlacesTest(parameterized.TestCase):
  def _solve(self, name, files, shrink=1.0):
    folder = shared.require('data/places/matching_pairs') / name
    points0, points1, scores = _pairs(
      [folder / file for file in files], 640, _NUM_PAIRS
    )
    return homography.homography(
      points0, points1, 3.0 * shrink, scores=scores, search=SEARCH
    )

  # Matrices by another detector and another estimator (OpenCV's, MAGSAC++),
  # in whole pixels at four places. The second scene is no plane: PoseLib's
  # homography of our pairs is 51 pixels off.
  @parameterized.parameters(
    ('sat2iss', ('satellite_img.jpg', 'photo_from_iss.jpg'), 10.0,
     [[0.9401, -0.2037, 115.57], [0.4068, 1.1213, -63.79], [8e-5, 2e-4, 1]]),
    ('outdoor', ('montmartre_close.jpg', 'montmartre_far.jpg'), 55.0,
     [[1.0066, 0.1574, -3.883], [-0.0366, 1.188, 1.711], [-3e-5, 1.6e-4, 1]]),
  )  # fmt: skip
  def test_the_same_place_is_accepted(self, name, files, within, expected):
    found = self._solve(name, files)
    self.assertTrue(found.valid, found.reason)
    self.assertGreater(found.num_inliers, 10)
    places = np.array([[250.0, 250], [300, 350], [350, 200], [280, 300]])
    there = []
    for matrix in (found.image1_from_image0, np.array(expected)):
      seen = np.insert(places, 2, 1.0, axis=1) @ matrix.T
      there.append(seen[:, :2] / seen[:, 2:])
    self.assertLess(np.abs(there[0] - there[1]).max(), within)

  def test_an_image_and_its_warped_copy_agree_all_over(self):
    found = self._solve('example_test', ('original.jpg', 'warped.jpg'))
    self.assertTrue(found.valid, found.reason)
    self.assertGreater(found.num_inliers, 100)

  def test_two_cathedrals_are_not_one_place(self):
    found = self._solve('false_positive', ('chartres.jpg', 'notre_dame.jpg'))
    self.assertFalse(found.valid)
    self.assertIsNone(found.image1_from_image0)
    self.assertRegex(found.reason, 'by chance|no sample')
    # And not because of a threshold that was too tight.
    found = self._solve(
      'false_positive', ('chartres.jpg', 'notre_dame.jpg'), shrink=3.0
    )
    self.assertFalse(found.valid)
    self.assertIn('by chance', found.reason)


class KittiTest(parameterized.TestCase):
  @parameterized.parameters((0, 2), (12, 14), (20, 22))
  def test_the_motion_of_the_car_is_found(self, before, after):
    folder = shared.require('data/kitti_odometry/sequences/06/image_0')
    poses = shared.require('data/kitti_odometry/poses/06.txt')
    intrinsics = (folder.parent / 'calib.txt').read_text().split()[1:13]
    intrinsics = np.float64(intrinsics).reshape(3, 4)[:, :3]
    intrinsics[:2, 2] += 0.5
    lens = lens_lib.Lens('pinhole', intrinsics)
    world = np.loadtxt(poses).reshape(-1, 3, 4)
    world0, world1 = world[before], world[after]
    rotation = world1[:, :3].T @ world0[:, :3]
    translation = world1[:, :3].T @ (world0[:, 3] - world1[:, 3])
    translation /= np.linalg.norm(translation)
    paths = [folder / f'{number:06d}.png' for number in (before, after)]
    points0, points1, scores = _pairs(paths, 2000, _NUM_FAR_PAIRS, 0.85)
    found = relative_pose.relative_pose(
      points0, points1, lens, lens, 1.0, scores=scores, search=SEARCH
    )
    self.assertTrue(found.valid, found.reason)
    pose = found.camera1_from_camera0
    self.assertLess(two_views.degrees(pose.rotation, rotation), 0.3)
    self.assertLess(two_views.degrees(pose.translation, translation), 1.0)


if __name__ == '__main__':
  absltest.main()
