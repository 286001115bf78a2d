# SPDX-License-Identifier: Apache-2.0
"""Target frames come beside the labelled ones and say nothing of places."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.errors import InputError
from input_pipeline.plans import classes
from input_pipeline.plans import domains
from input_pipeline.plans import focal
from input_pipeline.plans import places
from tests.input_pipeline.plans import tables


def _source(number, describe):
  del describe
  rows = np.arange(24).reshape(4, 6) + 100 * number
  return {
    'row': rows,
    'place': rows.astype(np.int32) // 2,
    'yaw': np.full((4, 6), 0.5, np.float32),
  }


class DomainsTest(parameterized.TestCase):
  def _plan(self, targets=(900, 901, 902), number=0, per_step=2, **options):
    options = dict(per_step=per_step, seed=0) | options
    plan = domains.make_targets(_source, np.asarray(targets), **options)
    return plan(number, tables.describe_nothing)

  def test_the_source_is_untouched(self):
    plan = self._plan(number=3)
    for name, values in _source(3, None).items():
      np.testing.assert_array_equal(plan[name][:, :6], values)
      self.assertEqual(plan[name].dtype, values.dtype)
    self.assertTrue(plan['labelled'][:, :6].all())

  def test_targets_have_no_label_and_no_place(self):
    plan = self._plan()
    self.assertEqual(plan['labelled'].dtype, bool)
    self.assertFalse(plan['labelled'][:, 6:].any())
    np.testing.assert_array_equal(plan['place'][:, 6:], -1)
    np.testing.assert_array_equal(plan['yaw'][:, 6:], 0)
    self.assertTrue((plan['row'][:, 6:] >= 900).all())

  def test_targets_come_equally_often(self):
    plan = self._plan(targets=range(900, 920), per_step=8)
    count = np.bincount(plan['row'][:, 6:].ravel() - 900, minlength=20)
    self.assertEqual(count.min(), 1)
    self.assertEqual(count.max(), 2)
    # Fewer targets than a step holds.
    plan = self._plan(per_step=8)
    count = np.bincount(plan['row'][:, 6:].ravel() - 900)
    self.assertLessEqual(count.max() - count.min(), 1)

  def test_a_second_target_leaves_the_first_unlabelled(self):
    first = domains.make_targets(_source, [900], per_step=1, seed=0)
    second = domains.make_targets(first, [950], per_step=2, seed=1)
    plan = second(0, tables.describe_nothing)
    np.testing.assert_array_equal(plan['row'][:, 6:], [[900, 950, 950]] * 4)
    np.testing.assert_array_equal(
      plan['labelled'], [[True] * 6 + [False] * 3] * 4
    )

  @parameterized.parameters(dict(targets=()), dict(per_step=0))
  def test_nothing_to_adapt_to_is_refused(self, **options):
    with self.assertRaises(InputError):
      self._plan(**options)

  def test_classes_of_targets_are_none(self):
    frames = tables.scattered(0, 900, 60.0)
    table = focal.focal_classes(frames, min_images=4, spacing=1)
    source = classes.make_classes(table, batch_size=8, steps=2, seed=0)
    plan = domains.make_targets(source, [1], per_step=2, seed=0)
    entries = plan(0, tables.describe_nothing)
    for name in ('group', 'class'):
      np.testing.assert_array_equal(entries[name][:, 8:], -1)

  def test_few_targets_are_a_part_of_many(self):
    frames = tables.scattered(0, 90, 60.0)
    among = frames.drive == 'a1'
    few = domains.choose_targets(frames, among, 5, seed=3)
    many = domains.choose_targets(frames, among, 20, seed=3)
    self.assertContainsSubset(few.tolist(), many.tolist())
    self.assertLen(set(many.tolist()), 20)
    self.assertTrue(among[many].all())
    other = domains.choose_targets(frames, among, 5, seed=4)
    self.assertNotEqual(set(few.tolist()), set(other.tolist()))
    with self.assertRaisesRegex(InputError, '91 target frames'):
      domains.choose_targets(frames, among, 91, seed=3)

  def test_independent_of_the_order_of_files(self):
    def make(frames, order):
      targets = domains.choose_targets(frames, frames.drive == 'b1', 5, seed=0)
      source = places.make_places(
        places.near_places(frames),
        batch_size=8,
        steps=3,
        seed=7,
        num_views=2,
      )
      return domains.make_targets(source, targets, per_step=3, seed=1)

    tables.assert_independent_of_order(
      self, tables.scattered(0, 200, 30.0), make
    )


if __name__ == '__main__':
  absltest.main()
