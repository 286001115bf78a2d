# SPDX-License-Identifier: Apache-2.0
"""Image files of every kind come out as upright uint8 RGB, or are named."""

import math
import pathlib
import struct
import tempfile
from unittest import mock
import zlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import TiffImagePlugin

from i2ploc import image_files
from tests import shared

_LUND = 'data/places/lund'


def gps_exif(latitude, longitude, **more) -> Image.Exif:
  """EXIF with a position in degrees and further entries by their names."""

  def parts(value):
    seconds = round(abs(value) * 3600 * 1000)
    degrees, rest = divmod(seconds, 3600 * 1000)
    minutes, rest = divmod(rest, 60 * 1000)
    return degrees, minutes, TiffImagePlugin.IFDRational(rest, 1000)

  exif = Image.Exif()
  exif[ExifTags.IFD.GPSInfo] = {
    ExifTags.GPS.GPSLatitudeRef: 'N' if latitude >= 0 else 'S',
    ExifTags.GPS.GPSLatitude: parts(latitude),
    ExifTags.GPS.GPSLongitudeRef: 'E' if longitude >= 0 else 'W',
    ExifTags.GPS.GPSLongitude: parts(longitude),
  } | {getattr(ExifTags.GPS, name): value for name, value in more.items()}
  return exif


class _FolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='images_'))
    )

  def save(self, image, name='image.png', **options) -> pathlib.Path:
    path = self.root / name
    image.save(path, **options)
    return path


class PixelsTest(_FolderTest):
  @parameterized.parameters(
    ('1', 255), ('L', 130), ('P', 130), ('RGB', (10, 20, 30)),
    ('LA', (130, 0)), ('RGBA', (10, 20, 30, 0)),
  )  # fmt: skip
  def test_every_mode_becomes_rgb(self, mode, color):
    image = Image.new(mode, (20, 30), color)
    if mode == 'P':
      image.putpalette([i for level in range(256) for i in (level, 9, 8)])
    found = image_files.read_image(self.save(image))
    self.assertEqual((found.shape, found.dtype), ((30, 20, 3), np.uint8))
    expected = {
      '1': [255] * 3, 'L': [130] * 3, 'LA': [130] * 3, 'P': [130, 9, 8]
    }.get(mode, [10, 20, 30])  # fmt: skip
    np.testing.assert_array_equal(found[3, 4], expected)

  def test_cmyk_is_what_it_prints(self):
    image = Image.new('CMYK', (20, 30), (0, 255, 255, 0))
    found = image_files.read_image(self.save(image, 'image.tif'))
    np.testing.assert_array_equal(found[0, 0], [255, 0, 0])

  @parameterized.parameters('image.png', 'image.tif')
  def test_sixteen_bits_keep_their_range(self, name):
    levels = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    found = image_files.read_image(self.save(Image.fromarray(levels), name))
    np.testing.assert_allclose(found[..., 1], levels / 257, atol=0.51)
    self.assertEqual(found[-1, -1, 0], 255)

  def test_cmyk_as_cameras_and_printers_write_it(self):
    image = Image.new('CMYK', (20, 30), (0, 255, 255, 0))
    found = image_files.read_image(self.save(image, 'image.jpg', quality=95))
    np.testing.assert_allclose(found[0, 0].astype(int), [255, 0, 0], atol=4)

  @parameterized.parameters((2, 3), (4, 2), (6, 4))
  def test_sixteen_bit_colours_keep_their_range(self, kind, channels):
    """PNGs that Pillow reads and does not write: RGB, grey or RGB and alpha."""
    values = np.linspace(0, 65535, 20 * 20).astype('>u2').reshape(20, 20, 1)
    rows = np.repeat(values, channels, 2).view(np.uint8).reshape(20, -1)
    data = np.concatenate([np.zeros((20, 1), np.uint8), rows], 1).tobytes()
    head = struct.pack('>IIBBBBB', 20, 20, 16, kind, 0, 0, 0)
    path = self.root / 'image.png'
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(
      struct.pack('>I', len(body)) + tag + body
      + struct.pack('>I', zlib.crc32(tag + body))
      for tag, body in ((b'IHDR', head), (b'IDAT', zlib.compress(data)),
                        (b'IEND', b''))
    ))  # fmt: skip
    found = image_files.read_image(path)
    self.assertEqual((found.shape, found.dtype), ((20, 20, 3), np.uint8))
    expected = np.repeat(values / 257, 3, 2)
    np.testing.assert_allclose(found, expected, atol=1.01)

  @parameterized.parameters('a b.PNG', 'été ½.jpg', '照片.Jpeg', "it's.BMP")
  def test_names_of_every_kind(self, name):
    path = self.save(Image.new('RGB', (20, 30), (9, 9, 9)), name)
    self.assertEqual(image_files.read_image(path)[0, 0, 0], 9)
    self.assertEqual(image_files.read_header(path).image_size, (30, 20))

  @parameterized.parameters(*range(1, 9))
  def test_an_image_stands_upright(self, orientation):
    """Pixel (row, column) of the scene, whatever way the camera was held."""
    scene = np.zeros((20, 32, 3), np.uint8)
    scene[:6, :5], scene[14:, :5] = [255, 0, 0], [0, 255, 0]
    stored = {
      1: scene, 2: scene[:, ::-1], 3: scene[::-1, ::-1], 4: scene[::-1],
      5: scene.swapaxes(0, 1), 6: np.rot90(scene),
      7: np.rot90(scene, 2).swapaxes(0, 1), 8: np.rot90(scene, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = self.save(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(image_files.read_image(path), scene)
    self.assertEqual(image_files.read_header(path).image_size, (20, 32))


class BadFileTest(_FolderTest):
  def refuse(self, path, message, read=image_files.read_header):
    with self.assertRaisesRegex(ValueError, message) as context:
      read(path)
    self.assertIn(str(path), str(context.exception))
    self.assertNotIn('\n', str(context.exception))

  def test_no_such_file(self):
    with self.assertRaisesRegex(FileNotFoundError, 'gone.png'):
      image_files.read_image(self.root / 'gone.png')

  def test_nothing_in_it(self):
    path = self.root / 'image.jpg'
    path.touch()
    self.refuse(path, 'an empty file')

  def test_text(self):
    path = self.root / 'image.jpg'
    path.write_text('hello')
    self.refuse(path, 'not a readable image')

  def test_cut_off(self):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = self.save(Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[:2000])
    self.assertEqual(image_files.read_header(path).image_size, (64, 64))
    self.refuse(path, 'not a readable image', image_files.read_image)

  def test_a_jpeg_cut_off(self):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = self.save(Image.fromarray(noise), 'image.jpg')
    path.write_bytes(path.read_bytes()[:-900])
    self.refuse(path, 'not a readable image', image_files.read_image)

  def test_a_link_to_itself(self):
    path = self.root / 'image.jpg'
    path.symlink_to(path)
    with self.assertRaisesRegex(FileNotFoundError, 'image.jpg: no such'):
      image_files.read_header(path)

  def test_another_kind_under_the_name_of_an_image(self):
    path = self.root / 'image.jpg'
    path.write_bytes(b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(64))
    self.refuse(path, 'not a readable image')

  def test_too_small(self):
    self.refuse(self.save(Image.new('L', (15, 99))), '15 x 99 pixels')

  def test_floats(self):
    image = Image.fromarray(np.ones((20, 20), np.float32))
    self.refuse(self.save(image, 'image.tif'), 'mode F')

  def test_too_large_to_be_meant(self):
    path = self.save(Image.new('L', (50, 50)))
    with mock.patch.object(Image, 'MAX_IMAGE_PIXELS', 99):
      self.refuse(path, 'not a readable image')


class GpsTest(_FolderTest):
  def gps(self, exif):
    return image_files.read_header(
      self.save(Image.new('L', (20, 20)), 'image.jpg', exif=exif)
    ).gps

  @parameterized.parameters((55.7, 13.2), (-33.85, 151.21), (37.77, -122.42))
  def test_signs_and_fractions(self, latitude, longitude):
    found = self.gps(gps_exif(latitude, longitude))
    self.assertAlmostEqual(found.latitude, latitude, places=6)
    self.assertAlmostEqual(found.longitude, longitude, places=6)
    self.assertTrue(math.isnan(found.altitude) and math.isnan(found.heading))

  def test_altitude_and_heading(self):
    found = self.gps(
      gps_exif(
        52.0, 4.0, GPSAltitude=7.5, GPSAltitudeRef=b'\x01', GPSImgDirection=91.5
      )
    )
    self.assertEqual((found.altitude, found.heading), (-7.5, 91.5))

  @parameterized.parameters(
    {'GPSLatitude': (TiffImagePlugin.IFDRational(0, 0),) * 3},
    {'GPSLatitude': (91.0, 0.0, 0.0)},
    {'GPSLatitude': (51.0, 0.0)},
    {'GPSLatitudeRef': 'X'},
    {'GPSLatitude': (0.0,) * 3, 'GPSLongitude': (0.0,) * 3},
  )
  def test_a_camera_without_a_fix_has_no_position(self, **entries):
    self.assertIsNone(self.gps(gps_exif(52.0, 4.0, **entries)))

  def test_no_exif(self):
    self.assertIsNone(self.gps(Image.Exif()))

  def test_a_real_photo(self):
    found = image_files.read_header(shared.require(_LUND) / '01.jpg')
    self.assertEqual(found.image_size, (768, 1024))
    # As its maker's note says in decimals.
    self.assertAlmostEqual(found.gps.latitude, 55.698167, places=5)
    self.assertAlmostEqual(found.gps.longitude, 13.195389, places=5)
    self.assertEqual(found.gps.altitude, 37.0)


if __name__ == '__main__':
  absltest.main()
