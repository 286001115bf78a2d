# SPDX-License-Identifier: Apache-2.0
"""The tree finds what a loop over all pairs finds."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from input_pipeline import pairing
from input_pipeline.plans import neighbours
from tests.input_pipeline.plans import tables


class NearTest(parameterized.TestCase):
  @parameterized.parameters(None, np.pi / 6)
  def test_near_rows_are_those_of_a_loop(self, max_heading):
    frames = tables.scattered(0, 120, 40.0)
    rng = np.random.default_rng(1)
    asking, among = rng.permutation(120)[:50], rng.permutation(120)[:90]
    found = neighbours.near(frames, asking, among, 9.0, max_heading)
    for i, a in enumerate(asking):
      expected = []
      for b in among:
        apart = np.linalg.norm((frames.position[a] - frames.position[b])[:2])
        turn = np.angle(np.exp(1j * (frames.heading[a] - frames.heading[b])))
        if frames.town[a] == frames.town[b] and apart <= 9.0:
          if max_heading is None or abs(turn) < max_heading:
            expected.append(b)
      self.assertSequenceEqual(found[i].tolist(), expected)

  def test_height_does_not_count_and_the_radius_is_near(self):
    frames = tables.table('a', 'a0', np.arange(2), [0.0, 3.0], 0.0, 0.0)
    frames.world_from_body[1, 2, 3] = 50.0
    rows = np.arange(2)
    found = neighbours.near(frames, rows, rows, 3.0, pairing.MAX_HEADING)
    self.assertSequenceEqual(found[0].tolist(), [0, 1])

  def test_an_unknown_heading_agrees_with_none(self):
    frames = tables.street('a', 'a0', 2)
    frames.world_from_body[0, :3, :3] = np.nan
    rows = np.arange(2)
    found = neighbours.near(frames, rows, rows, 3.0, pairing.MAX_HEADING)
    self.assertSequenceEqual(found.length.tolist(), [0, 1])
    found = neighbours.near(frames, rows, rows, 3.0, None)
    self.assertSequenceEqual(found.length.tolist(), [2, 2])


if __name__ == '__main__':
  absltest.main()
