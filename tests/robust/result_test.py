# SPDX-License-Identifier: Apache-2.0
"""One result for every problem."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.geometry import alignment as alignment_lib
from i2ploc.geometry import rigid
from i2ploc.robust import absolute_pose
from i2ploc.robust import alignment
from i2ploc.robust import fundamental
from i2ploc.robust import homography
from i2ploc.robust import relative_pose
from i2ploc.robust import result

_POSE = rigid.Rigid(np.eye(3), np.zeros(3))
# The name of each problem's model, and a model.
NAMES = {
  absolute_pose.AbsolutePose: ('camera_from_map', _POSE),
  homography.Homography: ('image1_from_image0', np.eye(3)),
  relative_pose.RelativePose: ('camera1_from_camera0', _POSE),
  fundamental.Fundamental: ('matrix', np.eye(3)),
  alignment.Alignment: (
    'a_from_b',
    alignment_lib.Similarity(*_POSE, np.ones(())),
  ),
}


class ResultTest(parameterized.TestCase):
  @parameterized.parameters(*NAMES)
  def test_where_there_is_no_model_the_result_says_so(self, kind):
    found = kind(*result.failure(5, 6, 'too few', num_draws=3))
    self.assertIsNone(getattr(found, NAMES[kind][0]))
    self.assertEqual((found.valid, found.reason), (False, 'too few'))
    self.assertEqual((found.num_inliers, found.num_draws), (0, 3))
    self.assertEqual((found.rival, found.confidence), (None, 0.0))
    self.assertEqual(found.inliers.shape, (5,))
    self.assertTrue(np.isinf(found.covariance).all())
    self.assertIsInstance(found._replace(valid=True), kind)

  @parameterized.parameters(*NAMES)
  def test_a_model_goes_by_its_name_only_where_it_is_valid(self, kind):
    name, model = NAMES[kind]
    found = kind(*result.failure(5, 6, ''))._replace(model=model, valid=True)
    self.assertIsNotNone(getattr(found, name))
    doubtful = found._replace(valid=False)
    self.assertIsNone(getattr(doubtful, name))
    self.assertIs(doubtful.model, model)

  def test_inliers_are_counted(self):
    found = result.failure(3, 2, '')._replace(inliers=np.array([1, 0, 1], bool))
    self.assertEqual(found.num_inliers, 2)


if __name__ == '__main__':
  absltest.main()
