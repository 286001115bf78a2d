# SPDX-License-Identifier: Apache-2.0
"""Sequences stay in their drive and in the order of its frames."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.errors import InputError
from input_pipeline.plans import sequences
from tests.input_pipeline.plans import tables


def _drives():
  return tables.join(tables.street('a', 'a0', 6), tables.street('a', 'a1', 4))


class SequenceRowsTest(parameterized.TestCase):
  def test_oldest_first_and_nothing_before_a_drive(self):
    rows = sequences.sequence_rows(_drives(), 3)
    np.testing.assert_array_equal(
      rows,
      [
        [-1, -1, 0],
        [-1, 0, 1],
        [0, 1, 2],
        [1, 2, 3],
        [2, 3, 4],
        [3, 4, 5],
        [-1, -1, 6],
        [-1, 6, 7],
        [6, 7, 8],
        [7, 8, 9],
      ],
    )

  def test_stride(self):
    rows = sequences.sequence_rows(_drives(), 2, 3)
    np.testing.assert_array_equal(rows[[2, 3, 5]], [[-1, 2], [0, 3], [2, 5]])
    np.testing.assert_array_equal(rows[9], [6, 9])

  def test_one_frame_is_itself(self):
    rows = sequences.sequence_rows(_drives(), 1, 5)
    np.testing.assert_array_equal(rows[:, 0], np.arange(10))

  def test_frames_without_image_are_passed_over(self):
    frames = _drives()._replace(has_image=np.arange(10) != 2)
    rows = sequences.sequence_rows(frames, 3)
    np.testing.assert_array_equal(rows[2], -1)
    np.testing.assert_array_equal(rows[4], [1, 3, 4])

  def test_runs_of_a_drive_are_drives_of_their_own(self):
    frames = tables.street('a', 'a0', 8)
    frames.position[:4] = frames.position[0]  # stands still
    frames.position[6:, 0] += 400.0
    rows = sequences.sequence_rows(frames, 3)
    np.testing.assert_array_equal(rows[[3, 5]], [[1, 2, 3], [3, 4, 5]])
    np.testing.assert_array_equal(rows[6:], [[-1, -1, 6], [-1, 6, 7]])

  def test_numbers_tell_runs_where_positions_are_unknown(self):
    frames = tables.street('a', 'a0', 6)
    frames.position[2, 0] = np.nan
    frames = frames._replace(frame=np.array([0, 2, 4, 6, 90, 92]))
    rows = sequences.sequence_rows(frames, 2)
    np.testing.assert_array_equal(rows[3:], [[2, 3], [-1, 4], [4, 5]])

  @parameterized.parameters((1, 1), (3, 1), (3, 2))
  def test_independent_of_the_order_of_files(self, length, stride):
    frames = _drives()
    order = np.random.default_rng(0).permutation(10)
    rows = sequences.sequence_rows(frames, length, stride)
    shuffled = sequences.sequence_rows(frames.take(order), length, stride)
    found = np.where(shuffled >= 0, order[shuffled], -1)
    np.testing.assert_array_equal(found, rows[order])

  @parameterized.parameters((0, 1), (2, 0))
  def test_nothing_is_refused(self, length, stride):
    with self.assertRaises(InputError):
      sequences.sequence_rows(_drives(), length, stride)


if __name__ == '__main__':
  absltest.main()
