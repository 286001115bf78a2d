# SPDX-License-Identifier: Apache-2.0
"""Tables of frames with and without renderings."""

from absl.testing import absltest
import numpy as np

from input_pipeline import schema


def _table(count: int, has_rendering=None) -> schema.FrameTable:
  present = np.ones(count, bool)
  return schema.FrameTable(
    np.full(count, 'a'), np.full(count, 'b'), np.arange(count),
    np.arange(count, dtype=np.float64), np.tile(np.eye(4), (count, 1, 1)),
    present, present, np.arange(count).astype(str), has_rendering,
  )  # fmt: skip


class FrameTableTest(absltest.TestCase):
  def test_take_keeps_renderings_with_their_rows(self):
    taken = _table(3, np.array([True, False, True])).take(np.array([1, 2]))
    self.assertEqual(taken.has_rendering.tolist(), [False, True])
    self.assertEqual(taken.frame.tolist(), [1, 2])
    self.assertIsNone(_table(3).take(np.array([1])).has_rendering)

  def test_concatenated_tables_have_renderings_where_all_have(self):
    some = _table(2, np.array([True, False]))
    joined = schema.concatenate([some, some])
    self.assertEqual(joined.has_rendering.tolist(), [True, False] * 2)
    self.assertEqual(joined.frame.tolist(), [0, 1, 0, 1])
    self.assertIsNone(schema.concatenate([some, _table(1)]).has_rendering)


if __name__ == '__main__':
  absltest.main()
