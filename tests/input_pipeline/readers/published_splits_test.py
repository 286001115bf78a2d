# SPDX-License-Identifier: Apache-2.0
"""The papers' splits: their lists to the sequence, and who is in which role."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized

from input_pipeline.readers import kitti360_splits
from input_pipeline.readers import kitti_and_kitti360
from input_pipeline.readers import kitti_odometry_splits

_GRAMMARS = (
  ('kitti360', kitti360_splits.GRAMMAR),
  ('kitti_odometry', kitti_odometry_splits.GRAMMAR),
  ('kitti_and_kitti360', kitti_and_kitti360.GRAMMAR),
)


def _sequences(grammar, name):
  """The sequences of a split, those of KITTI-360 with four digits."""
  return [part.sequence for part in grammar.parse(name).parts]


class RolesTest(parameterized.TestCase):
  @parameterized.named_parameters(*_GRAMMARS)
  def test_no_sequence_has_two_roles(self, grammar):
    sequences = {}
    for name in grammar.published:
      paper, _, role = name.rpartition('/')
      sequences.setdefault(paper, {})[role] = {*_sequences(grammar, name)}
    for paper, roles in sequences.items():
      self.assertIn('train', roles)
      if (paper, len(roles)) == ('lip_loc/maximum', 1):
        continue  # trains on all there is; its test is in another dataset
      self.assertIn('validation', roles)
      self.assertGreater(len(roles), 2)
      for a, b in itertools.combinations(roles, 2):
        self.assertEmpty(roles[a] & roles[b], f'{paper}: {a} and {b}')


class Kitti360Test(absltest.TestCase):
  def test_the_tests_are_the_papers(self):
    grammar = kitti360_splits.GRAMMAR
    for name, sequence in (
      ('saliency/urban', '0000'),
      ('saliency/highway', '0003'),
      ('generalisation/urban', '0018'),
      ('generalisation/highway', '0007'),
      ('lip_loc/360/test', '0000'),
      ('ae/test', '0003'),
    ):
      self.assertEqual(_sequences(grammar, name), [sequence])
    every = '+'.join(grammar.published.values())
    self.assertNotIn('0008', every)  # has no published poses
    self.assertNotIn('0001', every)  # does not exist

  def test_lip_loc_trains_on_its_released_list(self):
    self.assertEqual(
      _sequences(kitti360_splits.GRAMMAR, 'lip_loc/360/train'),
      ['0003', '0004', '0005', '0006', '0007', '0009', '0010'],
    )


class OdometryTest(parameterized.TestCase):
  @parameterized.parameters(
    # Frames as counted for the four experiments.
    ('large', '03 04 05 06 07', 6035),
    ('larger', '00 01 02 03 04 05 06 07', 16338),
    (
      'largest',
      '00 01 02 03 04 05 06 07 11 12 13 15 16 17 18 19 20 21',
      36058,
    ),
    ('maximum', ' '.join(f'{i:02d}' for i in range(22)), 43552),
  )
  def test_lip_loc_trains_on_its_released_lists(self, name, listed, count):
    train = _sequences(kitti_odometry_splits.GRAMMAR, f'lip_loc/{name}/train')
    self.assertEqual(train, listed.split())
    frames = kitti_odometry_splits.NUM_FRAMES
    self.assertEqual(sum(frames[sequence] for sequence in train), count)

  def test_combined_adds_kitti_360_to_the_largest(self):
    grammar = kitti_and_kitti360.GRAMMAR
    combined = _sequences(grammar, 'lip_loc/combined/train')
    largest = _sequences(grammar, 'lip_loc/largest/train')
    self.assertEqual(combined[: len(largest)], largest)
    self.assertEqual(
      combined[len(largest) :],
      ['0002', '0003', '0004', '0005', '0006', '0007', '0009', '0010'],
    )

  def test_other_papers_lists(self):
    grammar = kitti_odometry_splits.GRAMMAR
    self.assertEqual(
      _sequences(grammar, 'rangebev/train'), [str(i) for i in range(11, 22)]
    )
    self.assertEqual(
      _sequences(grammar, 'rangebev/test'),
      ['00', '02', '05', '06', '07', '08'],
    )
    (part,) = grammar.parse('modalink/train').parts
    self.assertEqual((part.sequence, part.frames), ('02', slice(None, 3000)))


if __name__ == '__main__':
  absltest.main()
