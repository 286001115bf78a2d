# SPDX-License-Identifier: Apache-2.0
"""Splits of KITTI-360: the grammar, the 3 m rule, and who is in which role."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from input_pipeline import grouping
from input_pipeline import schema
from input_pipeline.readers import kitti360_splits


def _dataset(counts, spacing=0.4):
  """Straight drives of so many frames each."""
  drive = np.repeat(list(counts), list(counts.values()))
  frame = np.concatenate([np.arange(n) for n in counts.values()])
  poses = np.tile(np.eye(4), (len(frame), 1, 1))
  poses[:, 0, 3] = frame * spacing
  present = np.ones(len(frame), bool)
  frames = schema.FrameTable(
    drive, drive, frame, frame * 0.1, poses, present, present.copy()
  )
  return schema.Dataset('kitti360', frames, lambda row, what: {})


class ParseTest(parameterized.TestCase):
  @parameterized.parameters(
    ('0003', 'all', [('0003', slice(None, None))]),
    ('3+18', 'all', [('0003', slice(None, None)), ('0018', slice(None, None))]),
    ('spaced:0002', 'spaced', [('0002', slice(None, None))]),
    ('disjoint:0000[-1501:]', 'disjoint', [('0000', slice(-1501, None))]),
    (
      '0000[:-2]+5[3:9]',
      'all',
      [('0000', slice(None, -2)), ('0005', slice(3, 9))],
    ),
  )
  def test_what_is_written_is_what_is_meant(self, text, rule, parts):
    split = kitti360_splits.parse(text)
    self.assertEqual(split.rule, rule)
    self.assertEqual(
      [(part.sequence, part.frames) for part in split.parts], parts
    )

  @parameterized.parameters(
    '',
    'train',
    'saliency/tets',
    '0003+',
    '00003',
    'sparse:0003',
    '0003[1]',
    '٣',
  )
  def test_anything_else_is_answered_by_the_grammar(self, text):
    with self.assertRaisesRegex(ValueError, "Expected e.g. '0000"):
      kitti360_splits.parse(text)

  def test_a_sequence_listed_twice_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'listed twice'):
      kitti360_splits.parse('0003[:9]+3[9:]')


class PublishedTest(parameterized.TestCase):
  def test_no_sequence_has_two_roles(self):
    sequences = {}
    for name in kitti360_splits.PUBLISHED:
      paper, role = name.split('/')
      parts = kitti360_splits.parse(name).parts
      sequences.setdefault(paper, {})[role] = {part.sequence for part in parts}
    for paper, roles in sequences.items():
      self.assertIn('train', roles)
      self.assertIn('validation', roles)
      self.assertGreater(len(roles), 2)
      for a, b in itertools.combinations(roles, 2):
        self.assertEmpty(roles[a] & roles[b], f'{paper}: {a} and {b}')

  def test_the_tests_are_the_papers(self):
    published = kitti360_splits.PUBLISHED
    for name, sequence in (
      ('saliency/urban', '0000'),
      ('saliency/highway', '0003'),
      ('generalisation/urban', '0018'),
      ('generalisation/highway', '0007'),
      ('lip_loc/test', '0000'),
      ('ae/test', '0003'),
    ):
      parts = kitti360_splits.parse(published[name]).parts
      self.assertEqual([part.sequence for part in parts], [sequence])
    every = '+'.join(published.values())
    self.assertNotIn('0008', every)  # has no published poses
    self.assertNotIn('0001', every)  # does not exist


class SpacedTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 2)
  def test_equals_the_rule_said_aloud(self, seed):
    rng = np.random.default_rng(seed)
    position = np.cumsum(rng.normal(0, 0.5, (300, 2)), axis=0)
    chosen = kitti360_splits.spaced(position, 3.0)
    expected, since = [0], 0.0
    for i in range(1, 300):
      since += np.hypot(*(position[i] - position[i - 1]))
      if since > 3.0:
        expected.append(i)
        since = 0.0
    self.assertEqual(np.flatnonzero(chosen).tolist(), expected)

  def test_a_loop_is_measured_along_its_path(self):
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angle), np.sin(angle)], -1)
    # 6.28 m of path never 3 m away from its beginning.
    self.assertEqual(kitti360_splits.spaced(circle, 3.0).sum(), 3)

  def test_one_frame_and_none(self):
    self.assertEqual(
      kitti360_splits.spaced(np.zeros((1, 2)), 3).tolist(), [True]
    )
    self.assertEmpty(kitti360_splits.spaced(np.zeros((0, 2)), 3))


class ApplyTest(parameterized.TestCase):
  def test_spaced_keeps_few_and_disjoint_asks_with_them(self):
    dataset = _dataset({'a': 100, 'b': 50})
    rows, queries = kitti360_splits.apply(
      dataset, kitti360_splits.parse('spaced:1+2[10:]'), 3.0
    )
    self.assertIsNone(queries)
    # Every eighth frame: 8 x 0.4 m > 3 m.
    self.assertEqual(rows.tolist(), [*range(0, 100, 8), *range(110, 150, 8)])
    rows, queries = kitti360_splits.apply(
      dataset, kitti360_splits.parse('disjoint:1[-40:]+2'), 3.0
    )
    self.assertEqual(rows.tolist(), [*range(60, 150)])
    self.assertEqual(rows[queries].tolist()[:3], [60, 68, 76])
    rows, queries = kitti360_splits.apply(
      dataset, kitti360_splits.parse('1+2'), 3.0
    )
    self.assertEqual((rows.tolist(), queries), ([*range(150)], None))

  def test_an_empty_slice_is_named(self):
    with self.assertRaisesRegex(
      ValueError, r'a\[200:None\] is empty; .* 100 fr'
    ):
      kitti360_splits.apply(
        _dataset({'a': 100}), kitti360_splits.parse('1[200:]'), 3.0
      )

  def test_the_protocol_is_the_papers(self):
    dataset = _dataset({'a': 30})
    rows, queries = kitti360_splits.apply(
      dataset, kitti360_splits.parse('disjoint:1'), 3.0
    )
    dataset = dataset._replace(
      frames=dataset.frames.take(rows), queries=queries
    )
    (protocol,) = grouping.protocols(dataset)
    self.assertEqual(protocol.name, 'sync')
    self.assertEqual(protocol.query_rows.tolist(), [0, 8, 16, 24])
    self.assertEqual(
      sorted([*protocol.query_rows, *protocol.map_rows]), [*range(30)]
    )


if __name__ == '__main__':
  absltest.main()
