# SPDX-License-Identifier: Apache-2.0
"""Tests of sensors' folders: nothing in them is passed over in silence."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from input_pipeline.readers import scan_files
from input_pipeline.readers import sensor_folders


class _FileTest(parameterized.TestCase):
  def folder(self) -> pathlib.Path:
    return pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='kitti_'))
    )

  def write(self, content: bytes | str, name: str) -> pathlib.Path:
    path = self.folder() / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class NumberedFilesTest(_FileTest):
  def test_files_are_keyed_by_number_not_by_position(self):
    folder = self.write('', '000002.png').parent
    for name in ('000010.png', '9.jpg', '._000003.png', 'notes.txt'):
      (folder / name).touch()
    files = sensor_folders.numbered_files(folder, ('.png', '.jpg'))
    self.assertEqual(list(files), [2, 9, 10])
    self.assertEqual(files[9].name, '9.jpg')

  def test_a_missing_folder_is_empty(self):
    folder = self.folder() / 'velodyne'
    self.assertEqual(
      sensor_folders.numbered_files(folder, scan_files.SUFFIXES), {}
    )

  @parameterized.parameters('copy of 1.bin', '0000²0.bin', '-1.bin')
  def test_a_name_that_is_no_number_is_named(self, name):
    folder = self.write(b'', name).parent
    with self.assertRaisesRegex(ValueError, f'{name}: .*not a frame number'):
      sensor_folders.numbered_files(folder, scan_files.SUFFIXES)

  def test_two_files_of_one_frame_are_named(self):
    folder = self.write(b'', '01.bin').parent
    (folder / '0001.bin').touch()
    with self.assertRaisesRegex(ValueError, '0001.bin and 01.bin .*frame 1'):
      sensor_folders.numbered_files(folder, scan_files.SUFFIXES)

  def test_suffixes_in_upper_case_count(self):
    folder = self.write('', '1.PNG').parent
    for name in ('2.JPG', '3.jpeg', '4.png'):
      (folder / name).touch()
    files = sensor_folders.numbered_files(folder, ('.png', '.jpg', '.jpeg'))
    self.assertEqual(list(files), [1, 2, 3, 4])

  def test_files_of_other_kinds_alone_are_counted(self):
    folder = self.write('', '1.laz').parent
    for name in ('2.laz', 'notes.txt', '.DS_Store', 'Thumbs.db'):
      (folder / name).touch()
    with self.assertRaisesRegex(
      ValueError, r'2 \.laz, 1 \.txt, expected files that end in \.bin, \.npy'
    ):
      sensor_folders.numbered_files(folder, scan_files.SUFFIXES)

  def test_frames_in_sub_folders_are_counted(self):
    folder = self.write('', '1.bin').parent
    (folder / 'more' / 'part').mkdir(parents=True)
    sensor_folders.numbered_files(folder, ('.bin',))  # an empty one is none
    (folder / 'more' / 'part' / '2.BIN').touch()
    with self.assertRaisesRegex(
      ValueError, r'more: 1 files in a sub-folder, such as 2.BIN, expected in'
    ):
      sensor_folders.numbered_files(folder, ('.bin',))


class PassedOverTest(_FileTest):
  def test_what_lies_beside_is_counted(self):
    path = self.write('', '1.bin')
    for name in ('2.txt', '3.txt', 'README', '._1.bin', 'desktop.ini'):
      (path.parent / name).touch()
    found = sensor_folders.passed_over([path])
    self.assertEqual(found, {'.txt': 2, 'no suffix': 1})
    self.assertEqual(sensor_folders.counted(found), '2 .txt, 1 no suffix')
    self.assertEmpty(sensor_folders.passed_over([]))

  def test_gaps(self):
    self.assertEqual(sensor_folders.gaps([]), 0)
    self.assertEqual(sensor_folders.gaps([5, 6, 7]), 0)
    self.assertEqual(sensor_folders.gaps([9, 5, 6]), 2)


if __name__ == '__main__':
  absltest.main()
