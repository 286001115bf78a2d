# SPDX-License-Identifier: Apache-2.0
"""Training pairs follow from the frame table as stated."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from input_pipeline import pairing
from input_pipeline import schema


def _pose(x, y, heading):
  pose = np.eye(4)
  cos, sin = np.cos(heading), np.sin(heading)
  pose[:2, :2] = [[cos, -sin], [sin, cos]]
  pose[:2, 3] = x, y
  return pose


def _table(rows):
  """Rows of (town, drive, frame, x, y, heading)."""
  town, drive, frame, *_ = zip(*rows, strict=True)
  poses = np.stack([_pose(*row[3:]) for row in rows])
  present = np.ones(len(rows), bool)
  return schema.FrameTable(
    np.array(town),
    np.array(drive),
    np.array(frame),
    np.array(frame, float),
    poses,
    present,
    present.copy(),
    schema.frame_names(drive, frame),
  )


def _straight(town, drive, count, heading=0.0, side=0.0):
  xs = np.arange(count) * 2.5
  xs = xs if heading == 0 else xs[::-1]
  return [(town, drive, i, x, side, heading) for i, x in enumerate(xs)]


def _three_drives():
  return _table(
    [
      *_straight('a', 'a0', 12),
      *_straight('a', 'a1', 8, side=1.5),
      *_straight('a', 'a2', 6, heading=np.pi, side=3.0),
      *_straight('b', 'b0', 5),
    ]
  )


class TrainingPairsTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 2)
  def test_pairs_equal_a_loop_over_all_rows(self, seed):
    rng = np.random.default_rng(seed)
    frames = _table(
      [
        (
          f't{rng.integers(2)}',
          f'd{rng.integers(3)}',
          i,
          *rng.uniform(0, 15, 2),
          rng.uniform(-np.pi, np.pi),
        )
        for i in range(60)
      ]
    )
    frames = frames._replace(
      drive=np.char.add(frames.town, frames.drive),
      has_image=rng.random(60) < 0.8,
      has_points=rng.random(60) < 0.8,
    )
    pairs = pairing.training_pairs(frames, 5.0)
    expected = {}
    for a in range(60):
      own, other = [], []
      for b in range(60):
        turn = np.angle(np.exp(1j * (frames.heading[a] - frames.heading[b])))
        near = np.linalg.norm((frames.position[a] - frames.position[b])[:2])
        if (
          frames.has_image[a]
          and frames.has_points[b]
          and frames.town[a] == frames.town[b]
          and near <= 5
          and abs(turn) < np.pi / 6
        ):
          (own if frames.drive[a] == frames.drive[b] else other).append(b)
      if own or other:
        expected[a] = (own, other)
    self.assertSequenceEqual(pairs.anchors.tolist(), list(expected))
    for i, (own, other) in enumerate(expected.values()):
      self.assertSequenceEqual(pairs.own[i].tolist(), own)
      self.assertSequenceEqual(pairs.other[i].tolist(), other)

  def test_opposite_headings_are_no_pair_across_the_wrap(self):
    frames = _table(
      [
        ('a', 'a0', 0, 0.0, 0.0, np.pi - 0.05),
        ('a', 'a1', 0, 0.0, 0.0, -np.pi + 0.05),
        ('a', 'a2', 0, 0.0, 0.0, 0.0),
      ]
    )
    pairs = pairing.training_pairs(frames, 1.0)
    self.assertSequenceEqual(pairs.other[0].tolist(), [1])
    self.assertSequenceEqual(pairs.other[2].tolist(), [])

  def test_images_without_any_scan_near_are_left_out(self):
    frames = _three_drives()._replace(has_points=np.zeros(31, bool))
    self.assertEmpty(pairing.training_pairs(frames, 5.0).anchors)


if __name__ == '__main__':
  absltest.main()
