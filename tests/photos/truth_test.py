# SPDX-License-Identifier: Apache-2.0
"""Right and wrong without distances."""

from absl.testing import absltest
import numpy as np

from i2ploc.photos import footprints
from i2ploc.photos import truth


class TruthTest(absltest.TestCase):
  def test_positions_tell_by_default(self):
    found = truth.Truth()
    rows = np.arange(3)
    self.assertIsNone(found.distances(rows, rows))
    self.assertIsNone(found.known(rows))

  def test_lists(self):
    answers = truth.Answers(
      offsets=np.array([0, 2, 2, 3, 3, 3]),
      rows=np.array([3, 4, 1]),
      known=np.array([True, True, True, True, False]),
    )
    found = truth.Truth(truth.LISTED, answers=answers)
    distances = found.distances(np.array([2, 0, 1]), np.array([4, 1, 3]))
    np.testing.assert_array_equal(distances, [[1, 0, 1], [0, 1, 0], [1, 1, 1]])
    self.assertEqual(found.known(np.array([4, 0])).tolist(), [False, True])
    # A right answer that is not in this database is nowhere.
    distances = found.distances(np.array([0]), np.array([1]))
    np.testing.assert_array_equal(distances, [[1]])

  def test_footprints(self):
    corners = footprints.from_names([
      '@0@0@0@2@2@2@2@0@.jpg', '@1@1@1@3@3@3@3@1@.jpg', '@5@5@5@6@6@6@6@5@.jpg'
    ])  # fmt: skip
    found = truth.Truth(truth.OVERLAP, footprints=corners)
    rows = np.arange(3)
    np.testing.assert_array_equal(
      found.distances(rows, rows), [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    )
    self.assertTrue(found.known(rows).all())


if __name__ == '__main__':
  absltest.main()
