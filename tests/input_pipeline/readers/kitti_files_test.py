# SPDX-License-Identifier: Apache-2.0
"""Tests of the KITTI file formats: every bad input is named."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import PIL.Image

from input_pipeline.readers import kitti_files
from tests.testing import deep_images

_IDENTITY = '1 0 0 0 0 1 0 0 0 0 1 0'


class _FileTest(parameterized.TestCase):
  def folder(self) -> pathlib.Path:
    return pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='kitti_'))
    )

  def write(self, content: bytes | str, name: str) -> pathlib.Path:
    path = self.folder() / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class ImageTest(_FileTest):
  def image(self, array: np.ndarray) -> pathlib.Path:
    path = self.write('', '1.png')
    PIL.Image.fromarray(array).save(path)
    return path

  def test_colour_comes_back_as_written(self):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(
      kitti_files.read_image(self.image(pixels)), pixels
    )

  def test_grey_becomes_three_equal_channels(self):
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 4)
    np.testing.assert_array_equal(
      kitti_files.read_image(self.image(pixels)),
      np.repeat(pixels[..., None], 3, axis=-1),
    )

  def test_images_that_do_not_decode_are_named(self):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = self.image(noise).read_bytes()
    flipped = bytearray(whole)
    flipped[200] ^= 0xFF
    for content in (b'', b'no image', whole[:2000], bytes(flipped)):
      path = self.write(content, '000003.png')
      with self.assertRaisesRegex(ValueError, f'{path}.*does not decode'):
        kitti_files.read_image(path)

  def test_sixteen_bits_are_refused(self):
    path = self.image(np.full((2, 2), 40000, np.uint16))
    with self.assertRaisesRegex(ValueError, 'mode I;16B?, expected 8-bit'):
      kitti_files.read_image(path)

  def test_colours_of_sixteen_bits_are_refused(self):
    path = self.write(deep_images.png(np.full((20, 20, 3), 4000)), '3.png')
    with self.assertRaisesRegex(ValueError, 'mode RGB;16B, expected 8-bit'):
      kitti_files.read_image(path)

  def test_an_image_that_exif_turns_is_refused(self):
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # upside down, and of the same size
    path = self.image(np.zeros((20, 20, 3), np.uint8))
    PIL.Image.open(path).save(path, exif=exif)
    with self.assertRaisesRegex(ValueError, r'turns it \(orientation 3\)'):
      kitti_files.read_image(path)

  def test_a_missing_image_is_named(self):
    with self.assertRaisesRegex(FileNotFoundError, '/nowhere/3.png'):
      kitti_files.read_image(pathlib.Path('/nowhere/3.png'))


class CalibrationTest(_FileTest):
  @parameterized.parameters('T: 1 2 3', 'T 1 2 3', ' T:1 2 3 ', 'T:\t1 2 3')
  def test_the_colon_is_optional(self, line):
    path = self.write(f'calib_time: 09-Jan-2012 13:57:47\n\n{line}\n', 'c.txt')
    entries = kitti_files.read_calibration(path, {'T': (3,)})
    np.testing.assert_array_equal(entries['T'], [1, 2, 3])

  @parameterized.parameters(
    ('S: 1 2 3', "no entry 'T'; found .'S'."),
    ('', r"no entry 'T'; found \[\]"),
    ('T: 1 2', 'T has 2 values, expected 3'),
    ('T: 1 2 3\nT: 1 2 4', 'T is there twice, with different numbers'),
    ('T: 1 2 3 4', 'T has 4 values, expected 3'),
    ('T: 1 two 3', "T: not numbers .*'two'"),
    ('T: 1 nan 3', 'T: non-finite values'),
    (b'T: \xff\xfe', 'not a text file'),
  )
  def test_a_bad_entry_is_named(self, content, message):
    path = self.write(content, 'calib.txt')
    with self.assertRaisesRegex(ValueError, f'{path}: {message}'):
      kitti_files.read_calibration(path, {'T': (3,)})

  def test_a_missing_file_is_named(self):
    with self.assertRaisesRegex(FileNotFoundError, '/nowhere/calib.txt'):
      kitti_files.read_calibration(pathlib.Path('/nowhere/calib.txt'), {})

  @parameterized.parameters(
    (np.diag([1, 1, 1.01]), 'differs from the identity by 0.02'),
    (np.diag([1, 1, -1.0]), 'determinant -1'),
    (np.zeros((3, 3)), 'differs from the identity by 1 '),
  )
  def test_what_is_no_rotation_is_refused(self, rotation, message):
    with self.assertRaisesRegex(ValueError, f'x: R: not a rotation.*{message}'):
      kitti_files.rigid_matrix(rotation, np.zeros(3), 'x: R')

  def test_a_projection_splits_into_its_factors(self):
    intrinsics = np.array([[700, 0, 600], [0, 710, 180], [0, 0, 1.0]])
    offset = np.array([-0.06, 0.002, 0.003])
    projection = intrinsics @ np.column_stack([np.eye(3), offset])
    got, translation = kitti_files.split_projection(projection, 'P2')
    # Not P[0, 3] / P[0, 0], which takes the offset along z for one along x.
    np.testing.assert_allclose(translation, offset, atol=1e-12)
    self.assertGreater(abs(projection[0, 3] / projection[0, 0] + 0.06), 2e-3)
    intrinsics[:2, 2] += 0.5
    np.testing.assert_array_equal(got, intrinsics)

  @parameterized.parameters((0, 0), (2, 2))
  def test_a_projection_of_zeros_is_refused(self, row, column):
    projection = np.eye(3, 4)
    projection[row, column] = 0
    with self.assertRaisesRegex(ValueError, 'P2: not the projection'):
      kitti_files.split_projection(projection, 'P2')


class PosesTest(_FileTest):
  @parameterized.parameters('', '1.5 ')
  def test_twelve_numbers_or_a_time_before_them(self, time):
    path = self.write(
      f'{time}{_IDENTITY}\n{time}0 -1 0 4 1 0 0 5 0 0 1 6\n\n', 'poses.txt'
    )
    poses = kitti_files.read_poses(path)
    np.testing.assert_array_equal(poses[0], np.eye(4))
    np.testing.assert_array_equal(
      poses[1], [[0, -1, 0, 4], [1, 0, 0, 5], [0, 0, 1, 6], [0, 0, 0, 1]]
    )

  @parameterized.parameters(
    ('', ': no poses'),
    (f'{_IDENTITY}\n1 2 3', ', line 2: 3 numbers, expected 12'),
    (f'{_IDENTITY}\n\n{_IDENTITY}', ', line 2: 0 numbers, expected 12'),
    (f'{_IDENTITY}\n7 {_IDENTITY}', ', line 2: 13 numbers, expected 12'),
    ('1 2', ', line 1: 2 numbers, expected 12, or 13'),
    (f'{_IDENTITY[:-1]}x', ", line 1: not numbers .*'x'"),
    (f'{_IDENTITY[:-1]}inf', ', line 1: non-finite'),
    (f'{_IDENTITY}\n2{_IDENTITY[1:]}', ': not a rotation in row 1'),
  )
  def test_a_bad_line_is_named(self, content, message):
    path = self.write(content, 'poses.txt')
    with self.assertRaisesRegex(ValueError, f'{path}{message}'):
      kitti_files.read_poses(path)


class TimestampsTest(_FileTest):
  def test_blank_lines_keep_their_place(self):
    path = self.write(
      '2011-09-26 13:02:25.964389445\n\n2011-09-26 13:02:26.164389999\n', 't'
    )
    times = kitti_files.read_timestamps(path)
    np.testing.assert_array_equal(np.isnan(times), [False, True, False])
    self.assertAlmostEqual(times[2] - times[0], 0.2, places=5)

  def test_midnight_is_no_step_back(self):
    path = self.write('2011-09-30 23:59:59.9\n2011-10-01 00:00:00.1\n', 't')
    self.assertAlmostEqual(
      np.diff(kitti_files.read_timestamps(path))[0], 0.2, places=5
    )

  def test_seconds(self):
    path = self.write('0.000000e+00\n1.037359e-01\n', 't')
    np.testing.assert_array_equal(
      kitti_files.read_timestamps(path), [0, 0.1037359]
    )

  @parameterized.parameters('soon', 'nan', '2011-09-26 25:00:00', '12:30')
  def test_a_bad_line_is_named(self, line):
    path = self.write(f'1.0\n{line}\n', 'times.txt')
    with self.assertRaisesRegex(ValueError, f'{path}, line 2: {line!r}'):
      kitti_files.read_timestamps(path)


if __name__ == '__main__':
  absltest.main()
