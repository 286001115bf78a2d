# SPDX-License-Identifier: Apache-2.0
"""Tests of the named objects of the synthetic city."""

from absl.testing import absltest
import numpy as np

from input_pipeline.synthetic_city import drive as drives
from input_pipeline.synthetic_city import objects
from input_pipeline.synthetic_city import primitives
from input_pipeline.synthetic_city import town as towns


class ObjectsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.town = towns.make_town(5)
    cls.drive = drives.make_drive(cls.town, 1, 60, condition='autumn')
    cls.found = [
      objects.objects_at(cls.town, cls.drive, frame)
      for frame in range(0, 60, 9)
    ]

  def test_ellipsoids_are_finite_and_near(self):
    for frame, found in zip(range(0, 60, 9), self.found, strict=True):
      self.assertGreater(len(found.instance), 10)
      for column in (found.center, found.semi_axes, found.yaw):
        self.assertTrue(np.isfinite(column).all())
      self.assertGreater(found.semi_axes.min(), 0)
      here = drives.world_from_lidar(self.drive, frame)[:3, 3]
      gap = np.linalg.norm((found.center - here)[:, :2], axis=-1)
      self.assertLess(gap.max(), 61)
      self.assertLen(np.unique(found.instance), len(found.instance))

  def test_captions_say_what_and_where(self):
    found = self.found[0]
    pose = drives.world_from_lidar(self.drive, 0)
    local = (found.center - pose[:3, 3]) @ pose[:3, :3]
    for caption, place in zip(found.caption, local, strict=True):
      self.assertRegex(caption, r'^an? .* (ahead|behind|(left|right))$')
      if caption.endswith('left'):
        self.assertGreater(place[1], 0)
      if caption.endswith('right'):
        self.assertLess(place[1], 0)

  def test_states_agree_with_classes(self):
    for found in self.found:
      for category, caption, moving in zip(
        found.category, found.caption, found.moving, strict=True
      ):
        if category == 'pedestrian':
          self.assertIn('walking', caption)
        elif category in ('car', 'van', 'bus'):
          self.assertIn('driving' if moving else 'parked', caption)
        else:
          self.assertFalse(moving)
        if category == 'tree' and 'fir' not in caption:
          self.assertIn('yellow leaves', caption)

  def test_the_ellipsoid_of_a_turned_box_is_its_own(self):
    table = primitives.Primitives(
      np.zeros(2, np.int8),
      np.array([[10.0, 5.0, 1.0], [10.0, 5.0, 2.5]]),
      np.array([[4.0, 1.0, 1.0], [2.0, 0.5, 0.5]], np.float32),
      np.array([0.7, 0.7], np.float32),
      np.zeros(2, np.int16),
      np.zeros((2, 3), np.float32),
      np.zeros(2, np.float32),
      np.zeros(2, np.uint32),
      np.zeros(2, np.uint8),
      np.array([9, 9], np.int32),
    )
    instance, center, semi_axes, yaw = objects.ellipsoids(table)
    np.testing.assert_array_equal(instance, [9])
    np.testing.assert_allclose(center, [[10, 5, 1.5]], atol=1e-6)
    np.testing.assert_allclose(semi_axes, [[4, 1, 1.5]], atol=1e-6)
    np.testing.assert_allclose(yaw, [0.7], atol=1e-6)


if __name__ == '__main__':
  absltest.main()
