# SPDX-License-Identifier: Apache-2.0
"""EigenPlaces: every frame of a class looks at the focal point of its cell."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.errors import InputError
from input_pipeline.plans import classes
from input_pipeline.plans import focal
from tests.input_pipeline.plans import tables


def _road(direction, count=60, length=44.0, backwards=False, seed=0):
  """A road through the origin, frames looking along it."""
  rng = np.random.default_rng(seed)
  along = np.linspace(-length / 2, length / 2, count)
  side = rng.normal(size=count) * 0.3
  cos, sin = np.cos(direction), np.sin(direction)
  return tables.table(
    'a',
    'a0',
    np.arange(count),
    along * cos - side * sin + 500,
    along * sin + side * cos + 300,
    direction + np.pi * backwards,
  )


def _classes(frames, **changes):
  wanted = dict(cell=15.0, spacing=1, distance=10.0, min_images=5)
  return focal.focal_classes(frames, **(wanted | changes))


class AcrossTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 0.3, 1.0, np.pi / 2, 2.0, -0.6)
  def test_the_axis_is_square_to_the_road(self, direction):
    frames = _road(direction)
    mean, axis = focal.across(frames.position[:, :2], np.zeros(60, int))
    np.testing.assert_allclose(mean[0], frames.position[:, :2].mean(0))
    road = np.array([np.cos(direction), np.sin(direction)])
    self.assertLess(abs(axis[0] @ road), 0.05)
    self.assertAlmostEqual(np.linalg.norm(axis[0]), 1.0)
    self.assertGreaterEqual(axis[0, 1], 0)

  def test_cells_are_apart(self):
    rng = np.random.default_rng(0)
    position = rng.normal(size=(90, 2)) @ np.diag([4.0, 1.0]) + 5e6
    cell = rng.integers(3, size=90)
    mean, axis = focal.across(position, cell)
    for i in range(3):
      here = position[cell == i]
      np.testing.assert_allclose(mean[i], here.mean(0))
      expected = np.linalg.svd(here - here.mean(0))[2][1]
      self.assertAlmostEqual(abs(axis[i] @ expected), 1.0, places=6)

  def test_one_position_has_the_axis_to_the_north(self):
    _, axis = focal.across(np.full((4, 2), 7.0), np.zeros(4, int))
    np.testing.assert_array_equal(axis, [[0, 1]])


class FocalClassesTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 0.4, 1.2, 2.5, -1.0)
  def test_lines_of_sight_meet_in_the_focal_point(self, direction):
    frames = _road(direction)
    table = _classes(frames)
    self.assertSequenceEqual(table.blocks, ((0,), (1,)))
    road = np.array([np.cos(direction), np.sin(direction)])
    for group, along in ((0, False), (1, True)):
      for label in range(table.num_classes[group]):
        here = (table.group == group) & (table.label == label)
        rows, yaw = table.row[here], table.yaw[here]
        sight = frames.heading[rows] + yaw
        ray = np.stack([np.cos(sight), np.sin(sight)], 1)
        # The point nearest to all rays, by least squares.
        off = np.eye(2) - ray[:, :, None] * ray[:, None, :]
        origin = frames.position[rows, :2]
        point = np.linalg.solve(off.sum(0), (off @ origin[:, :, None]).sum(0))
        point = point[:, 0]
        np.testing.assert_allclose(
          (off @ (point - origin)[:, :, None]), 0, atol=1e-3
        )
        self.assertTrue((((point - origin) * ray).sum(1) > 0).all())
        step = point - origin.mean(0)
        self.assertAlmostEqual(np.linalg.norm(step), 10.0, places=2)
        cosine = abs(step @ road) / 10.0
        self.assertGreater(cosine, 0.9) if along else self.assertLess(
          cosine, 0.4
        )

  def test_yaw_is_positive_to_the_left(self):
    # Both roads run east and v points north: f is on the left.
    frames = tables.join(
      _road(0.0, length=14.0), tables.street('b', 'b0', 30, 0.5)
    )
    table = _classes(frames, cell=1000.0)
    middle = np.flatnonzero((table.group == 0) & (table.row == 30))[0]
    self.assertAlmostEqual(table.yaw[middle], np.pi / 2, delta=0.2)

  def test_a_frame_is_in_a_lateral_and_a_frontal_class(self):
    table = _classes(_road(0.4))
    for block in table.blocks:
      rows = table.row[np.isin(table.group, block)]
      self.assertLen(set(rows.tolist()), len(rows))
    self.assertGreater(len(table.row), 1.5 * len(set(table.row.tolist())))

  def test_a_narrow_camera_is_in_classes_that_it_sees(self):
    field = np.radians(80)
    frames = _road(0.4)
    every, seen = _classes(frames), _classes(frames, field=field)
    # Looking ahead, nobody sees what is beside the road.
    self.assertSequenceEqual(seen.blocks, ((0,),))
    np.testing.assert_array_equal(seen.yaw, 0)
    frontal = every.group == 1
    yaw = dict(zip(every.row[frontal], every.yaw[frontal], strict=True))
    self.assertNotEmpty(seen.row)
    for row in seen.row:
      # The focal point lies ahead of the camera or, on the same axis, behind
      # the one that panoramas take.
      angle = min(abs(yaw[row]), np.pi - abs(yaw[row]))
      self.assertLess(angle, np.pi / 2)

  @parameterized.parameters(False, True)
  def test_the_focal_point_is_where_most_cameras_look(self, backwards):
    table = _classes(_road(0.4, backwards=backwards), field=np.radians(80))
    self.assertGreater(len(table.row), 30)

  def test_frames_that_look_away_are_left_out(self):
    ahead = _road(0.4, count=60)
    back = _road(0.4, count=30, backwards=True)
    back = back._replace(
      drive=np.full(30, 'a1'), name=np.char.add('back', back.name)
    )
    table = _classes(tables.join(ahead, back), field=np.radians(80))
    self.assertLess(table.row.max(), 60)

  @parameterized.parameters(
    dict(cell=0.0), dict(field=0.0), dict(field=7.0), dict(min_images=100)
  )
  def test_arguments_out_of_range_are_refused(self, **changes):
    with self.assertRaises(InputError):
      _classes(_road(0.4), **changes)

  def test_an_empty_table_is_refused(self):
    with self.assertRaisesRegex(InputError, '0 frames'):
      _classes(_road(0.4).take(np.zeros(0, int)))


class PlanTest(absltest.TestCase):
  def _frames(self):
    return tables.scattered(0, 900, 100.0)

  def test_a_batch_has_a_lateral_and_a_frontal_half(self):
    table = focal.focal_classes(self._frames(), min_images=4, num_groups=4)
    self.assertSequenceEqual(table.blocks, ((0, 1, 2, 3), (4, 5, 6, 7)))
    self.assertLen(table.num_classes, 8)
    plan = classes.make_classes(table, batch_size=12, steps=3, seed=0)
    yaw = {
      (r, g): y
      for r, g, y in zip(table.row, table.group, table.yaw, strict=True)
    }
    for number in (0, 1, 6):
      planned = plan(number, tables.describe_nothing)
      np.testing.assert_array_equal(planned['group'][:, :6], number % 4)
      np.testing.assert_array_equal(planned['group'][:, 6:], 4 + number % 4)
      self.assertEqual(planned['yaw'].dtype, np.float32)
      expected = [
        yaw[key]
        for key in zip(
          planned['row'].ravel(), planned['group'].ravel(), strict=True
        )
      ]
      np.testing.assert_array_equal(planned['yaw'].ravel(), expected)

  def test_independent_of_the_order_of_files(self):
    def make(frames, order):
      table = focal.focal_classes(frames, min_images=4)
      return classes.make_classes(table, batch_size=12, steps=3, seed=5)

    tables.assert_independent_of_order(self, self._frames(), make)

  def test_an_odd_batch_has_no_halves(self):
    table = focal.focal_classes(self._frames(), min_images=4)
    with self.assertRaisesRegex(InputError, 'multiple of 2'):
      classes.make_classes(table, batch_size=11, steps=3, seed=5)


if __name__ == '__main__':
  absltest.main()
