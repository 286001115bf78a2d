# SPDX-License-Identifier: Apache-2.0
"""The evaluator as a command, and the chance table of the real KITTI poses."""

import contextlib
import io
import json
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from benchmarks import protocols
from tests import shared

SIZE = 300  # frames of a made-up drive

# What random pairs reach on the ground-truth poses, as printed in percent:
# frames, path in m, within 20 m on (y, z), on (x, z), how often a wrong answer
# passes on (y, z), frames within 20 m.
RANDOM_PAIRS = {
  '00': ('4541', '3724', '10.9', '1.92', '9.1', '87'),
  '02': ('4661', '5067', '4.1', '1.02', '3.1', '47'),
  '05': ('2761', '2206', '18.5', '3.13', '15.9', '86'),
  '06': ('1101', '1233', '8.9', '7.16', '1.9', '79'),
  '07': ('1101', '695', '21.3', '7.99', '14.4', '88'),
  '08': ('4071', '3223', '10.4', '1.75', '8.8', '71'),
  '09': ('1591', '1705', '6.1', '2.56', '3.6', '41'),
  '10': ('1201', '920', '19.9', '4.95', '15.8', '59'),
}
# Within 10 m on (x, y), and on the ground.
MODALINK = {
  '00': ('5.6', '0.9'),
  '02': ('2.6', '0.5'),
  '05': ('10.6', '1.6'),
  '06': ('54', '2.7'),
  '08': ('5.5', '0.9'),
}
# Frames with a place within 3, 10, 20 m that was left 30 s ago or earlier.
REVISITS = {
  '00': ('17', '20', '23'),
  '01': ('0', '0', '0'),
  '02': ('6', '7', '9'),
  '03': ('0', '0', '0'),
  '04': ('0', '0', '0'),
  '05': ('15', '21', '24'),
  '06': ('24', '25', '39'),
  '07': ('2.5', '7', '10'),
  '08': ('8', '10', '12'),
  '09': ('1', '2', '2'),
  '10': ('0', '0', '0'),
}


def digits(value: float, like: str) -> str:
  """`value` with as many decimals as `like` has."""
  return f'{value:.{len(like.partition(".")[2])}f}'


class ChanceTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    poses = protocols.load_poses(shared.require('data/kitti_odometry/poses'))
    cls.rows = {
      name: protocols.chance_from_poses(table) for name, table in poses.items()
    }

  @parameterized.parameters(*RANDOM_PAIRS)
  def test_random_pairs_to_the_printed_digit(self, name):
    cells = protocols.chance_cells(self.rows[name])
    self.assertEqual(tuple(cells[:6]), RANDOM_PAIRS[name])

  @parameterized.parameters(*MODALINK)
  def test_axes_of_modalink_to_the_printed_digit(self, name):
    row, expected = self.rows[name], MODALINK[name]
    found = (row['modalink_axes_10m'], row['ground_10m'])
    self.assertEqual(tuple(map(digits, found, expected)), expected)

  @parameterized.parameters(*REVISITS)
  def test_true_revisits_to_the_printed_digit(self, name):
    row, expected = self.rows[name], REVISITS[name]
    found = [row[f'revisits_{radius}m'] for radius in (3, 10, 20)]
    self.assertEqual(tuple(map(digits, found, expected)), expected)

  def test_revisits_of_08_come_from_the_opposite_heading(self):
    self.assertEqual(digits(self.rows['08']['opposite_10m'], '87'), '87')
    self.assertLess(self.rows['06']['opposite_10m'], 1)
    self.assertNotIn('opposite_10m', self.rows['10'])


def run(**options):
  """Numbers, and what is printed."""
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    results = protocols.run(protocols.Options(**options))
  return results, printed.getvalue()


class CommandTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    self.folder = pathlib.Path(temporary.name)
    self.poses = self.folder / 'poses'
    self.poses.mkdir()
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4)[:3], (SIZE, 1, 1))
    poses[:, [0, 2], 3] = np.cumsum(rng.normal(size=(SIZE, 2)), 0) % 40
    np.savetxt(self.poses / '03.txt', poses.reshape(SIZE, 12))

  def test_the_demo_writes_random_descriptors_and_measures_chance(self):
    results, printed = run(
      demo=True,
      poses=str(self.poses),
      descriptors=str(self.folder / 'descriptors'),
    )
    self.assertIn('### LIP-Loc: `lip_loc`', printed)
    self.assertIn('### Loop closure: `loop_closure`', printed)
    base = 'lip_loc/03/image_to_points'
    self.assertAlmostEqual(
      results[f'{base}/recall@1_20m'], results[f'{base}/chance@1_20m'], delta=10
    )

  def test_the_command_prints_and_writes(self):
    target = self.folder / 'chance.json'
    script = pathlib.Path(protocols.__file__)
    command = [sys.executable, script, '--chance', f'--json={target}']
    done = subprocess.run(
      [*command, f'--poses={self.poses}'],
      capture_output=True,
      text=True,
      check=True,
    )
    row = json.loads(target.read_text())['03']
    self.assertEqual(row['frames'], SIZE)
    self.assertIn(f'| 03 | {SIZE} | {row["path"]:.0f} |', done.stdout)
    bad = subprocess.run(command, capture_output=True, text=True, check=False)
    self.assertEqual(bad.returncode, 1)
    self.assertEqual(
      bad.stderr, 'protocols: --chance and --demo need --poses=DIR.\n'
    )

  def test_only_the_chosen_protocols_are_scored(self):
    protocols.write_random(self.folder, {'03': np.zeros((SIZE, 4, 4))})
    folders = {'descriptors': str(self.folder), 'poses': str(self.poses)}
    _, printed = run(**folders, protocol=['rangebev'])
    self.assertEqual(printed.count('###'), 1)
    with self.assertRaisesRegex(ValueError, '03: loop_closure .*--rate'):
      run(**folders)

  def test_what_does_not_go_together_is_an_error(self):
    folder = str(self.folder)
    for options, message in (
      ({}, 'Give --descriptors=DIR'),
      ({'demo': True, 'descriptors': folder}, 'need --poses'),
      ({'descriptors': folder}, 'no SEQUENCE.npz'),
      ({'chance': True, 'poses': folder}, 'no KITTI pose files'),
    ):
      with self.assertRaisesRegex((ValueError, FileNotFoundError), message):
        run(**options)

  def test_the_demo_does_not_mix_with_descriptors(self):
    (self.folder / '03.npz').write_bytes(b'')
    with self.assertRaisesRegex(ValueError, 'holds descriptors'):
      protocols.write_random(self.folder, {})


if __name__ == '__main__':
  absltest.main()
