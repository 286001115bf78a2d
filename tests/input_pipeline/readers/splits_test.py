# SPDX-License-Identifier: Apache-2.0
"""Splits: the grammar of all readers, and the 3 m rule."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.evaluation import questions
from input_pipeline import schema
from input_pipeline.readers import kitti360_splits
from input_pipeline.readers import kitti_and_kitti360
from input_pipeline.readers import kitti_odometry_splits
from input_pipeline.readers import kitti_raw
from input_pipeline.readers import splits

_KITTI360 = kitti360_splits.GRAMMAR
_ODOMETRY = kitti_odometry_splits.GRAMMAR
_BOTH = kitti_and_kitti360.GRAMMAR
_DRIVE = '2011_09_26_drive_0001_sync'


def _dataset(counts, spacing=0.4):
  """Straight drives of so many frames each."""
  drive = np.repeat(list(counts), list(counts.values()))
  frame = np.concatenate([np.arange(n) for n in counts.values()])
  poses = np.tile(np.eye(4), (len(frame), 1, 1))
  poses[:, 0, 3] = frame * spacing
  present = np.ones(len(frame), bool)
  frames = schema.FrameTable(
    drive,
    drive,
    frame,
    frame * 0.1,
    poses,
    present,
    present.copy(),
    schema.frame_names(drive, frame),
  )
  return schema.Dataset('kitti360', frames, {}, lambda row, what: {})


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
    split = _KITTI360.parse(text)
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
    '0003[-:]',
    '0003[1:2',
    '0003 ',
    '٣',
  )
  def test_anything_else_is_answered_by_the_grammar(self, text):
    with self.assertRaisesRegex(ValueError, "Expected e.g. '0000"):
      _KITTI360.parse(text)

  @parameterized.parameters(
    (_ODOMETRY, '00[:3000]+5', '00[:3000]+05'),
    (_ODOMETRY, 'spaced:03+04[10:-1]', 'spaced:03+04[10:-1]'),
    (_KITTI360, 'disjoint:3[0:]', 'disjoint:0003[0:]'),
    (kitti_raw.GRAMMAR, f'{_DRIVE}[:10]', f'{_DRIVE}[:10]'),
    (kitti_raw.GRAMMAR, 'disjoint:all', 'disjoint:all'),
    (_BOTH, '3+0003[-2:]', '03+0003[-2:]'),
  )
  def test_one_grammar_for_all_readers(self, grammar, text, written):
    self.assertEqual(str(grammar.parse(text)), written)
    self.assertEqual(grammar.parse(written), grammar.parse(text))

  @parameterized.parameters(
    (_ODOMETRY, '003', 'KITTI odometry'),
    (_ODOMETRY, 'saliency/train', 'lip_loc/large/train'),
    (_KITTI360, 'rangebev/test', 'saliency/train'),
    (kitti_raw.GRAMMAR, 'sparse:all', 'KITTI raw'),
    (kitti_raw.GRAMMAR, f'{_DRIVE}/image_02', 'all'),
    (_BOTH, '00005', 'two digits'),
  )
  def test_each_has_its_names_and_says_so(self, grammar, text, hint):
    with self.assertRaisesRegex(ValueError, f'is not a split of .*{hint}'):
      grammar.parse(text)

  def test_a_list_of_both_is_taken_apart(self):
    split = _BOTH.parse('disjoint:08[:9]+0000+9')
    kitti = split.only(lambda sequence: len(sequence) == 2)
    self.assertEqual(str(kitti), 'disjoint:08[:9]+09')
    rest = split.only(lambda sequence: len(sequence) == 4)
    self.assertEqual(str(rest), 'disjoint:0000')

  def test_a_sequence_listed_twice_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'listed twice'):
      _KITTI360.parse('0003[:9]+3[9:]')


class SpacedTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 2)
  def test_equals_the_rule_said_aloud(self, seed):
    rng = np.random.default_rng(seed)
    position = np.cumsum(rng.normal(0, 0.5, (300, 2)), axis=0)
    chosen = splits.spaced(position, 3.0)
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
    self.assertEqual(splits.spaced(circle, 3.0).sum(), 3)

  def test_one_frame_and_none(self):
    self.assertEqual(splits.spaced(np.zeros((1, 2)), 3).tolist(), [True])
    self.assertEmpty(splits.spaced(np.zeros((0, 2)), 3))


class ApplyTest(parameterized.TestCase):
  def test_spaced_keeps_few_and_disjoint_asks_with_them(self):
    dataset = _dataset({'a': 100, 'b': 50})
    rows, queries = splits.apply(
      dataset.frames, _KITTI360.parse('spaced:1+2[10:]'), 3.0
    )
    self.assertIsNone(queries)
    # Every eighth frame: 8 x 0.4 m > 3 m.
    self.assertEqual(rows.tolist(), [*range(0, 100, 8), *range(110, 150, 8)])
    rows, queries = splits.apply(
      dataset.frames, _KITTI360.parse('disjoint:1[-40:]+2'), 3.0
    )
    self.assertEqual(rows.tolist(), [*range(60, 150)])
    self.assertEqual(rows[queries].tolist()[:3], [60, 68, 76])
    rows, queries = splits.apply(dataset.frames, _KITTI360.parse('1+2'), 3.0)
    self.assertEqual((rows.tolist(), queries), ([*range(150)], None))

  def test_an_empty_slice_is_named(self):
    with self.assertRaisesRegex(
      ValueError, r'a\[200:None\] is empty; .* 100 fr'
    ):
      splits.apply(_dataset({'a': 100}).frames, _KITTI360.parse('1[200:]'), 3.0)

  def test_the_protocol_is_the_papers(self):
    dataset = _dataset({'a': 30})
    rows, queries = splits.apply(
      dataset.frames, _KITTI360.parse('disjoint:1'), 3.0
    )
    dataset = dataset._replace(
      frames=dataset.frames.take(rows), queries=queries
    )
    (protocol,) = questions.between_drives(dataset.frames, dataset.queries)
    self.assertEqual(protocol.name, 'sync')
    self.assertEqual(protocol.query_rows.tolist(), [0, 8, 16, 24])
    self.assertEqual(
      sorted([*protocol.query_rows, *protocol.map_rows]), [*range(30)]
    )


if __name__ == '__main__':
  absltest.main()
