# SPDX-License-Identifier: Apache-2.0
"""CosPlace's classes and groups keep what the paper promises."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.errors import InputError
from input_pipeline.plans import classes
from tests.input_pipeline.plans import tables


def _dense(seed=0, count=3000, size=70.0):
  return tables.scattered(seed, count, size)


def _classes(frames, **changes):
  wanted = dict(cell=10.0, turn=60.0, spacing=3, turn_spacing=2, min_images=4)
  return classes.cell_classes(frames, **(wanted | changes))


class CellClassesTest(parameterized.TestCase):
  @parameterized.parameters((3, 2, 60.0), (2, 3, 40.0), (3, 1, 90.0))
  def test_classes_of_a_group_are_as_far_apart_as_stated(
    self, spacing, turn_spacing, turn
  ):
    frames = _dense()
    table = _classes(
      frames, spacing=spacing, turn_spacing=turn_spacing, turn=turn
    )
    nearest, narrowest = np.inf, np.inf
    for group in range(len(table.num_classes)):
      here = table.group == group
      rows, label = table.row[here], table.label[here]
      apart = np.abs(
        frames.position[rows, None, :2] - frames.position[None, rows, :2]
      ).max(axis=2)
      turned = np.degrees(
        np.abs(
          np.angle(
            np.exp(1j * (frames.heading[rows, None] - frames.heading[rows]))
          )
        )
      )
      different = (label[:, None] != label) & (
        frames.town[rows, None] == frames.town[rows]
      )
      far = apart >= 10.0 * (spacing - 1)
      turned_away = turned >= turn * (turn_spacing - 1) - 1e-9
      self.assertTrue((far | turned_away)[different].all())
      nearest = min(nearest, apart[different & ~(turned > turn)].min())
      narrowest = min(
        [narrowest, *turned[different & (apart < 10.0 * (spacing - 1))]]
      )
    # The bounds are tight: a larger one would not hold.
    self.assertLess(nearest, 10.0 * (spacing - 1) + 3)
    if turn_spacing > 1:
      self.assertLess(narrowest, turn * (turn_spacing - 1) + 10)

  def test_entries_are_those_of_a_loop_over_the_frames(self):
    frames = _dense()
    table = _classes(frames, num_groups=100)
    members = collections.defaultdict(list)
    for row in range(len(frames.town)):
      x, y = frames.position[row, :2]
      cell = (
        frames.town[row],
        int(np.floor(x / 10)),
        int(np.floor(y / 10)),
        int(np.degrees(frames.heading[row]) % 360 // 60),
      )
      members[cell].append(row)
    groups = collections.defaultdict(list)
    for cell in sorted(members):
      if len(members[cell]) >= 4:
        groups[cell[1] % 3, cell[2] % 3, cell[3] % 2].append(cell)
    self.assertLen(groups, 18)
    self.assertSequenceEqual(
      table.num_classes.tolist(), [len(groups[g]) for g in sorted(groups)]
    )
    expected = {
      (row, i, j)
      for i, group in enumerate(sorted(groups))
      for j, cell in enumerate(groups[group])
      for row in members[cell]
    }
    found = zip(
      table.row.tolist(),
      table.group.tolist(),
      table.label.tolist(),
      strict=True,
    )
    self.assertEqual(set(found), expected)
    self.assertLen(table.row, len(expected))

  def test_groups_with_most_images_are_trained_in_the_order_of_their_keys(self):
    frames = _dense()
    every = _classes(frames, num_groups=100)
    few = _classes(frames, num_groups=4)
    images = np.bincount(every.group)
    best = np.sort(np.argsort(-images, kind='stable')[:4])
    self.assertSequenceEqual(
      few.num_classes.tolist(), every.num_classes[best].tolist()
    )
    for i, group in enumerate(best):
      np.testing.assert_array_equal(
        few.row[few.group == i], every.row[every.group == group]
      )

  def test_a_group_of_one_class_is_left_out(self):
    # The lonely class has most images.
    x = np.repeat([5.0, 35.0, 15.0], [4, 4, 20])
    frames = tables.table('a', 'a0', np.arange(28), x, 5.0, 0.1)
    table = _classes(frames, num_groups=1)
    self.assertSequenceEqual(table.num_classes.tolist(), [2])
    self.assertSequenceEqual(table.row.tolist(), list(range(8)))

  def test_towns_are_other_worlds(self):
    place = tables.table('a', 'a0', np.arange(4), 1.0, 1.0, 0.1)
    frames = tables.join(
      place,
      tables.table('b', 'b0', np.arange(4), 1.0, 1.0, 0.1),
    )
    table = _classes(frames, min_images=4)
    self.assertSequenceEqual(table.num_classes.tolist(), [2])
    self.assertSequenceEqual(table.label.tolist(), [0] * 4 + [1] * 4)

  def test_large_coordinates_keep_their_cells(self):
    # UTM north of Paris: float32 would step by half a metre there.
    number = np.arange(8)
    x = np.where(number < 4, 5411199.9, 5411200.1 + 20.0)
    frames = tables.table('a', 'a0', number, x, 4e6, 0.1)
    table = _classes(frames, min_images=4)
    self.assertSequenceEqual(table.label.tolist(), [0] * 4 + [1] * 4)

  def test_headings_on_both_sides_of_zero_share_no_group(self):
    with self.assertRaisesRegex(InputError, 'both sides of 0'):
      _classes(_dense(), turn=40.0, turn_spacing=2)
    with self.assertRaisesRegex(InputError, 'does not divide'):
      _classes(_dense(), turn=50.0)

  def test_headings_of_a_whole_turn_are_one_cell(self):
    # A heading just below zero rounds to a whole turn.
    number = np.arange(12)
    heading = np.where(number < 6, -1e-18, np.where(number < 9, -0.5, 2.0))
    frames = tables.table('a', 'a0', number, 5.0, 5.0, heading)
    table = _classes(frames, min_images=3, turn=60.0, turn_spacing=1)
    self.assertSequenceEqual(table.num_classes.tolist(), [2])

  def test_unknown_poses_and_small_cells_are_left_out(self):
    frames = tables.table(
      'a', 'a0', np.arange(12), np.arange(12) // 4 * 30.0 + 1, 1.0, 0.1
    )
    frames.world_from_body[0, :2, 3] = np.nan
    frames.world_from_body[4, :3, :3] = np.nan
    table = _classes(frames, min_images=3)
    self.assertSequenceEqual(
      table.row.tolist(), [1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    )
    frames = frames._replace(has_image=~np.isin(np.arange(12), [8, 9]))
    table = _classes(frames, min_images=3)
    self.assertSequenceEqual(table.row.tolist(), [1, 2, 3, 5, 6, 7])

  @parameterized.parameters(dict(cell=0.0), dict(min_images=0), dict(turn=-1.0))
  def test_arguments_out_of_range_are_refused(self, **changes):
    with self.assertRaises(InputError):
      _classes(_dense(), **changes)

  @parameterized.parameters(0, 3, 50)
  def test_too_few_images_are_refused(self, count):
    with self.assertRaisesRegex(InputError, f'{count} frames'):
      _classes(_dense(count=count), min_images=10)


class MakeClassesTest(parameterized.TestCase):
  def _plan(self, number=0, batch_size=12, steps=5, seed=1, **changes):
    table = _classes(_dense(), **changes)
    plan = classes.make_classes(
      table, batch_size=batch_size, steps=steps, seed=seed
    )
    return table, plan(number, tables.describe_nothing)

  def test_groups_take_turns(self):
    for number in range(20):
      _, plan = self._plan(number, num_groups=8)
      self.assertEqual(set(plan['group'].ravel().tolist()), {number % 8})

  def test_entries_are_of_their_class(self):
    table, plan = self._plan(3)
    entries = {
      (r, g): c
      for r, g, c in zip(table.row, table.group, table.label, strict=True)
    }
    for row, group, label in zip(
      plan['row'].ravel(),
      plan['group'].ravel(),
      plan['class'].ravel(),
      strict=True,
    ):
      self.assertEqual(entries[row, group], label)
    self.assertEqual(plan['row'].shape, (5, 12))
    self.assertNotIn('yaw', plan)

  def test_classes_come_equally_often_however_many_images_they_have(self):
    table, plan = self._plan(0, batch_size=32, steps=100)
    count = np.bincount(plan['class'].ravel(), minlength=table.num_classes[0])
    self.assertLen(count, table.num_classes[0])
    self.assertLessEqual(count.max() - count.min(), 1)
    sizes = np.bincount(table.label[table.group == 0])
    self.assertGreater(sizes.max(), 1.5 * sizes.min())

  def test_images_of_a_class_take_turns(self):
    table, plan = self._plan(0, batch_size=32, steps=100)
    used = np.bincount(plan['row'].ravel(), minlength=3000)
    here = table.group == 0
    for label in range(table.num_classes[0]):
      count = used[table.row[here & (table.label == label)]]
      self.assertLessEqual(count.max() - count.min(), 1)

  def test_no_row_comes_twice_in_a_step(self):
    for number in range(4):
      _, plan = self._plan(number, batch_size=24, steps=40)
      for rows in plan['row']:
        self.assertLen(set(rows.tolist()), 24)

  def test_independent_of_the_order_of_files(self):
    def make(frames, order):
      table = _classes(frames)
      return classes.make_classes(table, batch_size=12, steps=3, seed=5)

    tables.assert_independent_of_order(self, _dense(), make)


if __name__ == '__main__':
  absltest.main()
