# SPDX-License-Identifier: Apache-2.0
"""One result for every problem."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.robust import absolute_pose
from i2ploc.robust import alignment
from i2ploc.robust import fundamental
from i2ploc.robust import homography
from i2ploc.robust import relative_pose
from i2ploc.robust import result

# The name of each problem's model.
NAMES = {
  absolute_pose.AbsolutePose: 'camera_from_map',
  homography.Homography: 'image1_from_image0',
  relative_pose.RelativePose: 'camera1_from_camera0',
  fundamental.Fundamental: 'matrix',
  alignment.Alignment: 'a_from_b',
}


class ResultTest(parameterized.TestCase):
  @parameterized.parameters(*NAMES)
  def test_where_there_is_no_model_the_result_says_so(self, kind):
    found = kind(*result.failure(5, 6, 'too few', num_draws=3))
    self.assertIsNone(getattr(found, NAMES[kind]))
    self.assertEqual((found.valid, found.reason), (False, 'too few'))
    self.assertEqual((found.num_inliers, found.num_draws), (0, 3))
    self.assertEqual(found.inliers.shape, (5,))
    self.assertTrue(np.isinf(found.covariance).all())
    self.assertIsInstance(found._replace(valid=True), kind)

  def test_inliers_are_counted(self):
    found = result.failure(3, 2, '')._replace(inliers=np.array([1, 0, 1], bool))
    self.assertEqual(found.num_inliers, 2)


if __name__ == '__main__':
  absltest.main()
