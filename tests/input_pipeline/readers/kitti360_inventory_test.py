# SPDX-License-Identifier: Apache-2.0
"""The inventory says what is there and what is missing, and for whom."""

import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from input_pipeline.readers import kitti360_inventory
from tests.input_pipeline.readers import kitti360_folder as folder_lib


class InventoryTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='kitti360_'))
    )
    folder_lib.make_root(self.root)

  def report(self, splits=('0003',), camera='panorama'):
    return list(kitti360_inventory.report(self.root, list(splits), camera))

  def test_a_complete_root_lacks_nothing(self):
    lines = self.report()
    self.assertFalse(any(missing for _, missing in lines))
    self.assertEqual(lines[0][0], 'calibration: complete and consistent')
    self.assertEqual(lines[2][0].split(), ['0003', '2', '2', '2', '2', '2'])

  def test_a_missing_sensor_is_named_with_the_splits_that_need_it(self):
    for frame in (1, 2, 3):
      folder_lib.image_path(
        self.root, folder_lib.NAME, 'image_03', frame
      ).unlink()
    line, missing = self.report(['0003', 'saliency/highway'])[2]
    self.assertTrue(missing)
    self.assertEndsWith(line, 'lacks image_03 for 0003, saliency/highway')
    # Who takes image_00 misses nothing; nor do splits of other sequences.
    self.assertFalse(self.report(camera='perspective')[2][1])
    line, missing = self.report(['0007'])[2]
    self.assertFalse(missing)
    self.assertNotIn('lacks', line)

  def test_a_single_frame_without_a_scan_is_told_and_tolerated(self):
    pose = {i: folder_lib.imu_pose(3600.0 + i, 1700.0, 0.0) for i in (1, 2, 3)}
    folder_lib.write_poses(self.root, folder_lib.NAME, pose)
    folder_lib.scan_path(self.root, folder_lib.NAME, 2).unlink()
    line, missing = self.report()[2]
    self.assertEndsWith(line, 'lacks velodyne_points for 0003')
    self.assertFalse(missing)

  def test_a_sequence_without_poses_is_missing(self):
    lines = self.report(['saliency/urban'])
    line, missing = lines[2]
    self.assertEqual(line.split()[:2], ['0000', '0'])
    self.assertEndsWith(line, 'lacks poses for saliency/urban')
    self.assertTrue(missing)

  def test_damage_is_named(self):
    path = folder_lib.scan_path(self.root, folder_lib.NAME, 2)
    path.write_bytes(path.read_bytes()[:-1])
    line, missing = self.report()[2]
    self.assertRegex(line, f'0003 +damaged: 1 of 3 scans .*{path}')
    self.assertTrue(missing)
    (self.root / 'calibration' / 'image_02.yaml').unlink()
    line, missing = self.report()[0]
    self.assertIn("no ['image_02.yaml']", line)
    self.assertTrue(missing)

  def test_the_command_says_what_to_download_and_ends_with_a_status(self):
    done = subprocess.run(
      [
        *(sys.executable, '-m', 'input_pipeline.readers.kitti360_inventory'),
        *(f'--root={self.root}', '--splits=0003,0009'),
      ],
      cwd=pathlib.Path(__file__).parents[3],
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.returncode, 1, done.stderr)
    self.assertIn('is not complete for', done.stderr)
    for text in ('CC BY-NC-SA 3.0', '355 GB', 'lacks poses for 0009'):
      self.assertIn(text, done.stdout)


if __name__ == '__main__':
  absltest.main()
