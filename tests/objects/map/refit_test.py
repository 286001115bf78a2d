# SPDX-License-Identifier: Apache-2.0
"""A map that does not agree with a detector's boxes is fitted to them."""

from absl.testing import absltest
import numpy as np

from i2ploc.objects.map import landmarks
from i2ploc.objects.map import refit
from tests.objects import planted_objects

SIZE, INTRINSICS = planted_objects.SIZE, planted_objects.INTRINSICS


def _surveyed(scene):
  """The planted objects, half as tall again, and not quite in place."""
  rng = np.random.default_rng(0)
  size = scene.ellipsoid.semi_axes.mean(-1, keepdims=True)
  return landmarks.make_map(
    scene.ellipsoid.center + 0.2 * size * rng.normal(size=(len(size), 3)),
    scene.ellipsoid.semi_axes * [1.0, 1.0, 1.5],
    scene.ellipsoid.rotation,
    scene.category,
    labels=[(f'thing {i}',) for i in range(len(size))],
  )


def _refit(objects, scene, frames=None):
  frames = scene.frames if frames is None else frames
  poses = scene.poses[: len(frames)]
  return refit.refit(objects, frames, poses, INTRINSICS, SIZE)


def _overlap(scene, objects):
  """IoU of all boxes of the planted and the map's objects, in the mean."""
  boxes, valid = planted_objects.boxes_of(scene.ellipsoid, scene.poses)
  own, _ = planted_objects.boxes_of(objects.ellipsoid, scene.poses)
  return planted_objects.box_iou(boxes, own)[valid].mean()


class MapRefitTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.scene = planted_objects.make_scene(seed=1)
    cls.before = _surveyed(cls.scene)
    cls.after = _refit(cls.before, cls.scene)

  def test_ellipsoids_are_what_the_boxes_show(self):
    self.assertLess(_overlap(self.scene, self.before), 0.75)
    self.assertGreater(_overlap(self.scene, self.after), 0.9)
    away = [
      np.linalg.norm(one.center - self.scene.ellipsoid.center, axis=-1)
      for one in (self.before, self.after)
    ]
    self.assertLess(np.median(away[1]), np.median(away[0]) / 3)

  def test_everything_else_stays(self):
    self.assertEqual(self.after.labels, self.before.labels)
    np.testing.assert_array_equal(self.after.ids, self.before.ids)
    np.testing.assert_array_equal(self.after.category, self.before.category)

  def test_what_few_boxes_show_stays_as_it_is(self):
    found = _refit(self.before, self.scene, self.scene.frames[:3])
    np.testing.assert_array_equal(found.center, self.before.center)

  def test_an_empty_map_stays_empty(self):
    nothing = self.before.take(np.zeros(0, int))
    self.assertEqual(_refit(nothing, self.scene).num_landmarks, 0)

  def test_a_broken_box_is_named(self):
    frames = list(self.scene.frames)
    box = frames[2].box.copy()
    box[0, 1] = np.nan
    frames[2] = frames[2]._replace(box=box)
    with self.assertRaisesRegex(ValueError, 'frame 2: box 0'):
      _refit(self.before, self.scene, frames)


if __name__ == '__main__':
  absltest.main()
