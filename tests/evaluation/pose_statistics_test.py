# SPDX-License-Identifier: Apache-2.0
"""Chance and revisits from poses: by hand, and of the real KITTI drives."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.evaluation import pose_statistics
from tests.evaluation import drives


class PairsTest(absltest.TestCase):
  def test_agrees_with_counting_pairs_one_by_one(self):
    rng = np.random.default_rng(0)
    track = drives.make_track(
      rng.uniform(0, 60, (300, 2)), height=rng.normal(0, 10, 300)
    )
    found = pose_statistics.random_pairs(track, 20.0, (1, 2))
    near, passes, both = 0, 0, 0
    for a in track.positions:
      for b in track.positions:
        hit = np.hypot(a[0] - b[0], a[2] - b[2]) < 20
        wrong_axes = np.hypot(a[1] - b[1], a[2] - b[2]) < 20
        near, passes = near + hit, passes + wrong_axes
        both += hit and wrong_axes
    self.assertAlmostEqual(found.rate, near / 300**2)
    self.assertAlmostEqual(found.rate_on_axes, passes / 300**2)
    self.assertAlmostEqual(
      found.rate_when_wrong, (passes - both) / (300**2 - near)
    )
    self.assertAlmostEqual(found.neighbors, near / 300)
    self.assertEqual(found.frames, 300)

  def test_path_counts_height_and_a_pair_counts_itself(self):
    track = drives.make_track(
      [[0, 0], [0, 30], [0, 60]], height=np.array([0.0, 40.0, 0.0])
    )
    found = pose_statistics.random_pairs(track, 20.0, (0, 1))
    self.assertAlmostEqual(found.path, 100)
    self.assertAlmostEqual(found.rate, 1 / 3)
    self.assertAlmostEqual(found.rate_when_wrong, 2 / 6)
    # Exactly as far apart as the radius is not within it.
    self.assertAlmostEqual(
      pose_statistics.random_pairs(track, 30.0, (0, 1)).rate, 1 / 3
    )


class RevisitsTest(parameterized.TestCase):
  def test_out_and_back_is_a_revisit_in_the_opposite_heading(self):
    # 50 places 20 m apart at 1 Hz; the way back takes another 50 s.
    along = 20.0 * np.concatenate([np.arange(50), np.arange(50)[::-1]])
    track = drives.make_track(
      np.stack([0 * along, along], 1), headings=np.repeat([0.0, np.pi], 50)
    )
    near, far = pose_statistics.revisits(track, (3.0, 20.5))
    # Place p is seen again 2 (49 - p) + 1 s later: p <= 34.
    self.assertAlmostEqual(near.share, 35 / 100)
    self.assertEqual(near.opposite, 1)
    # At place 35, 29 s after its own visit, place 34 is one second older.
    self.assertAlmostEqual(far.share, 36 / 100)
    (never,) = pose_statistics.revisits(track, (3.0,), exclude_recent=200.0)
    self.assertEqual(never.share, 0)
    self.assertTrue(np.isnan(never.opposite))


if __name__ == '__main__':
  absltest.main()
