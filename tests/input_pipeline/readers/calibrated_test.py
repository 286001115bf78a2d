# SPDX-License-Identifier: Apache-2.0
"""Copies of KITTI's images in the sizes that people have them."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import PIL.Image

from i2ploc.geometry import lens as lens_lib
from input_pipeline.readers import calibrated
from input_pipeline.readers import kitti_files

# 2011_09_26, with the half pixel.
LENS = lens_lib.Lens(
  'pinhole',
  np.array([[721.5377, 0, 610.0593], [0, 721.5377, 173.354], [0, 0, 1]]),
)
PROJECTION = np.column_stack([LENS.intrinsics, [44.9, 0.2, 0.003]])
PROJECTION[:2, 2] -= 0.5
SIZE = 375, 1242


class FitTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def images(self, *sizes):
    """Files of sizes (W, H)."""
    paths = []
    for i, size in enumerate(sizes):
      paths.append(self.root / f'{i:06d}.png')
      PIL.Image.new('L', size).save(paths[-1])
    return paths

  def fit(self, *sizes, size=SIZE, lens=LENS):
    return calibrated.fit(lens, size, self.images(*sizes), 'calib.txt: P2')

  def test_the_calibrated_size_keeps_the_lens(self):
    lens, size = self.fit((1242, 375), (1242, 375))
    self.assertIs(lens, LENS)
    self.assertEqual(size, SIZE)

  @parameterized.parameters(
    (931, 281), (621, 187), (621, 188), (310, 93), (640, 192)
  )
  def test_a_factor_scales_the_lens(self, width, height):
    lens, size = self.fit((width, height))
    self.assertEqual(size, (height, width))
    # What was in the middle of the image still is, and the field is the same.
    x, y = width / 1242, height / 375
    expected = [
      [721.5377 * x, 0, 610.0593 * x],
      [0, 721.5377 * y, 173.354 * y],
      [0, 0, 1],
    ]
    np.testing.assert_allclose(lens.intrinsics, expected, rtol=1e-12)

  @parameterized.parameters(
    (1216, 352),  # cropped, as depth completion has them
    (1024, 320),  # stretched, as networks of depth have them
    (1226, 370),  # of another day
    (1241, 376),
    (1242, 376),
    (1242, 300),
  )
  def test_what_no_factor_explains_is_refused(self, width, height):
    with self.assertRaisesRegex(
      ValueError,
      f'0.png: an image of {width}x{height}, but calib.txt: P2 is of 1242x375',
    ):
      self.fit((width, height))

  def test_two_sizes_in_one_folder_are_refused(self):
    sizes = [(1242, 375)] * 20 + [(621, 187)] * 20
    with self.assertRaisesRegex(
      ValueError, r'\d.png: an image of 621x187, where 000000.png has 1242x375'
    ):
      self.fit(*sizes)

  def test_without_a_size_the_principal_point_tells(self):
    lens, size = self.fit((1000, 350), size=None)
    self.assertIs(lens, LENS)
    self.assertEqual(size, (350, 1000))
    with self.assertRaisesRegex(
      ValueError, r'an image of 621x187, but the principal .*610.1, 173.4'
    ):
      self.fit((621, 187), size=None)

  def test_a_lens_that_was_scaled_beside_a_size_that_was_not(self):
    half = LENS._replace(intrinsics=LENS.intrinsics * [[0.5], [0.5], [1]])
    with self.assertRaisesRegex(ValueError, 'P2 is of images of 1242x375 by'):
      self.fit((621, 187), lens=half)

  def test_no_images_have_no_size(self):
    lens, size = self.fit()
    self.assertIs(lens, LENS)
    self.assertIsNone(size)

  def test_a_broken_header_leaves_the_others(self):
    paths = self.images((621, 187), (621, 187))
    paths[0].write_bytes(b'PNG')
    _, size = calibrated.fit(LENS, SIZE, paths, '')
    self.assertEqual(size, (187, 621))


class CalibratedSizeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(root) / 'calib.txt'
    self.path.write_text('P2: 1\n')

  def size(self, projection=PROJECTION):
    return kitti_files.calibrated_size(self.path, 'S_rect_02', projection)

  def test_the_file_comes_before_what_is_published(self):
    self.assertEqual(self.size(), SIZE)
    self.path.write_text('S_rect_02: 1.200000e+03 3.000000e+02\n')
    self.assertEqual(self.size(), (300, 1200))

  @parameterized.parameters(
    (707.0912, 601.8873, 183.1104, (370, 1226)),
    (718.856, 607.1928, 185.2157, (376, 1241)),
    (707.0493, 604.0814, 180.5066, (370, 1224)),
    (718.3351, 600.3891, 181.5122, (374, 1238)),
    (707.0912, 607.1928, 183.1104, None),
  )
  def test_published_cameras_are_known(self, focal, x, y, size):
    projection = np.array([[focal, 0, x, 9], [0, focal, y, 9], [0, 0, 1, 0]])
    self.assertEqual(self.size(projection), size)


if __name__ == '__main__':
  absltest.main()
