# SPDX-License-Identifier: Apache-2.0
"""Pairs of points of two images as data."""

from absl.testing import absltest
import numpy as np

from i2ploc.robust import two_views


class FramesTest(absltest.TestCase):
  def test_matrices_are_what_matches_are_made_by(self):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1000, (2, 30, 2))
    frames = two_views.pairs(*points).frames
    data = frames.matches(*points)
    self.assertBetween(float(np.mean(np.square(data))), 0.5, 2.0)
    for i, matrix in enumerate(frames.matrices()):
      seen = np.insert(points[i], 2, 1.0, axis=1) @ matrix.T
      np.testing.assert_allclose(
        seen[:, :2].T, data[2 * i : 2 * i + 2], atol=1e-12
      )

  def test_images_share_a_unit_unless_theirs_differ(self):
    points = np.random.default_rng(0).uniform(0, 1000, (30, 2))
    same = two_views.pairs(points, 3 * points).frames
    self.assertEqual(same.image0.unit, same.image1.unit)
    other = two_views.pairs(points, 1e-3 * points).frames
    self.assertAlmostEqual(other.image0.unit / other.image1.unit, 1e3)
    moved = two_views.with_unit(other, 7.0)
    self.assertEqual(moved.image1.unit, 7.0)
    self.assertEqual(moved.image0, other.image0)
    moved = two_views.with_unit(same, 7.0)
    self.assertEqual((moved.image0.unit, moved.image1.unit), (7.0, 7.0))


if __name__ == '__main__':
  absltest.main()
