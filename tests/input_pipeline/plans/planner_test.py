# SPDX-License-Identifier: Apache-2.0
"""What all planners share."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.errors import InputError
from input_pipeline.plans import planner
from tests.input_pipeline.plans import tables


class PlannerTest(parameterized.TestCase):
  def test_rows_sort_by_name(self):
    frames = tables.join(tables.street('a', 'b', 3), tables.street('a', 'a', 2))
    rows = planner.rows_by_name(frames, np.array([1, 0, 1, 1, 1], bool))
    self.assertSequenceEqual(rows.tolist(), [3, 4, 0, 2])

  @parameterized.parameters((1, 5), (7, 7), (7, 24), (7, 3))
  def test_epochs_take_every_index_before_any_comes_again(self, count, length):
    rng = np.random.default_rng(0)
    drawn = planner.shuffled_epochs(rng, count, length)
    self.assertLen(drawn, length)
    for start in range(0, length, count):
      epoch = drawn[start : start + count]
      self.assertLen(set(epoch.tolist()), len(epoch))
      self.assertContainsSubset(epoch.tolist(), range(count))

  def test_epochs_differ(self):
    drawn = planner.shuffled_epochs(np.random.default_rng(0), 20, 40)
    self.assertFalse(np.array_equal(drawn[:20], drawn[20:]))

  def test_rounds_and_seeds_differ(self):
    drawn = {
      planner.random_of_round(seed, number).integers(1 << 60)
      for seed in range(3)
      for number in range(3)
    }
    self.assertLen(drawn, 9)

  @parameterized.parameters((7, 1), (0, 1), (8, 0))
  def test_sizes_that_do_not_divide_are_refused(self, batch_size, steps):
    with self.assertRaises(InputError):
      planner.check_sizes(batch_size, steps, 4, 'views of a place')


if __name__ == '__main__':
  absltest.main()
