# SPDX-License-Identifier: Apache-2.0
"""Image files of every kind come out as upright uint8 RGB, or are named."""

import math
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import TiffImagePlugin

from i2ploc import image_files
from tests import shared
from tests.testing import deep_images

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

  def test_cmyk_as_cameras_and_printers_write_it(self):
    image = Image.new('CMYK', (20, 30), (0, 255, 255, 0))
    found = image_files.read_image(self.save(image, 'image.jpg', quality=95))
    np.testing.assert_allclose(found[0, 0].astype(int), [255, 0, 0], atol=4)

  @parameterized.parameters('a b.PNG', 'été ½.jpg', '照片.Jpeg', "it's.BMP")
  def test_names_of_every_kind(self, name):
    path = self.save(Image.new('RGB', (20, 30), (9, 9, 9)), name)
    self.assertEqual(image_files.read_image(path)[0, 0, 0], 9)
    self.assertEqual(image_files.read_header(path).image_size, (30, 20))


class DepthTest(_FolderTest):
  """An image is the same whatever number of bits its samples have."""

  def write(self, content, name) -> pathlib.Path:
    path = self.root / name
    path.write_bytes(content)
    return path

  def check(self, path, parts, atol=0.5):
    """The file is an image of these parts of white."""
    found = image_files.read_image(path)
    self.assertEqual((found.shape, found.dtype), ((20, 30, 3), np.uint8))
    expected = np.broadcast_to(parts * 255, found.shape)
    np.testing.assert_allclose(found, expected, atol=atol)

  def ramp(self, channels):
    """[20, 30, C] from black to white, other in each channel."""
    parts = np.linspace(0, 1, 20 * 30 * channels).reshape(20, 30, channels)
    return parts[::-1] if channels > 1 else parts

  @parameterized.product(
    white=(255, 1023, 4095, 16383, 65535), channels=(1, 2, 3, 4)
  )
  def test_png(self, white, channels):
    parts = self.ramp(channels)
    levels = np.round(parts * white)
    if channels in (2, 4):
      # Whoever adds alpha writes it in the full range: it says nothing.
      parts = parts[..., :-1] / parts[..., :-1].max()
      levels = np.round(parts * white)
      opaque = np.full((20, 30, 1), 65535)
      levels = np.concatenate([levels, opaque], 2)
    path = self.write(deep_images.png(levels), 'image.png')
    self.check(path, parts, atol=0.5 + 127 / white)

  @parameterized.product(
    white=(1023, 4095, 65535), order=('<', '>'), deflate=(False, True),
    channels=(1, 3),
  )  # fmt: skip
  def test_tiff(self, white, order, deflate, channels):
    parts = self.ramp(channels)
    levels = np.round(parts * white)
    content = deep_images.tiff(levels, order, deflate)
    self.check(self.write(content, 'image.tif'), parts, 0.5 + 127 / white)

  def test_a_dark_image_that_says_its_depth(self):
    """12 bits are white at 4095 although no sample is above 900."""
    parts = self.ramp(1) * 900 / 4095
    levels = np.round(parts * 4095)
    content = deep_images.tiff_of_12_bits(levels[..., 0])
    self.check(self.write(content, 'image.tif'), parts, 0.54)
    content = b'P5 30 20 4095\n' + levels.astype('>u2').tobytes()
    self.check(self.write(content, 'image.pgm'), parts, 0.54)

  @parameterized.parameters(1023, 4095, 65535)
  def test_pgm_with_the_white_of_its_container(self, white):
    parts = self.ramp(1)
    levels = np.round(parts * white).astype('>u2')
    content = b'P5 30 20 65535\n' + levels.tobytes()
    self.check(self.write(content, 'image.pgm'), parts, 0.5 + 127 / white)

  @parameterized.parameters(1, 255, 1023, 4095, 65535)
  def test_floats(self, white):
    parts = self.ramp(1)
    image = Image.fromarray((parts[..., 0] * white).astype(np.float32))
    self.check(self.save(image, 'image.tif'), parts, 0.51)

  def test_integers_of_32_bits(self):
    parts = self.ramp(1)
    image = Image.fromarray(np.round(parts[..., 0] * 4095).astype(np.int32))
    self.check(self.save(image, 'image.tif'), parts, 0.54)

  def test_black_stays_black(self):
    for kind in (np.uint16, np.int32, np.float32):
      image = Image.fromarray(np.zeros((20, 30), kind))
      self.check(self.save(image, 'image.tif'), np.zeros(1))


class OrientationTest(_FolderTest):
  @parameterized.product(
    orientation=tuple(range(1, 9)), name=('i.png', 'i.tif', 'i.webp', 'i.jpg')
  )
  def test_an_image_stands_upright(self, orientation, name):
    """Pixel (row, column) of the scene, whatever way the camera was held."""
    scene = np.zeros((24, 32, 3), np.uint8)
    scene[:8, :8], scene[16:, :8] = [255, 0, 0], [0, 0, 255]
    stored = {
      1: scene, 2: scene[:, ::-1], 3: scene[::-1, ::-1], 4: scene[::-1],
      5: scene.swapaxes(0, 1), 6: np.rot90(scene),
      7: np.rot90(scene, 2).swapaxes(0, 1), 8: np.rot90(scene, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    exact = name in ('i.png', 'i.tif')
    lossless = {'i.webp': {'lossless': True}, 'i.jpg': {'quality': 95}}
    path = self.save(image, name, exif=exif, **lossless.get(name, {}))

    def check(found, expected):
      self.assertEqual(found.shape, expected.shape)
      error = np.abs(found.astype(int) - expected).mean()
      self.assertLessEqual(error, 0 if exact else 3)

    check(image_files.read_image(path), scene)
    self.assertEqual(image_files.read_header(path).image_size, (24, 32))
    pixels, said = image_files.read_oriented(path)
    check(pixels, scene)
    self.assertEqual(said, orientation)
    pixels, said = image_files.read_oriented(path, upright=False)
    check(pixels, stored)
    self.assertEqual(said, 1)

  def test_an_orientation_that_is_none(self):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 9
    path = self.save(Image.new('L', (20, 30)), exif=exif)
    self.assertEqual(image_files.read_oriented(path).orientation, 1)

  def test_a_small_jpeg_is_enough_where_a_small_one_is_shown(self):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = Image.fromarray(np.full((400, 800, 3), 99, np.uint8))
    path = self.save(image, 'i.jpg', exif=exif)
    found = image_files.read_image(path, at_least=80)
    self.assertEqual(found.shape, (200, 100, 3))


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

  @parameterized.parameters(
    (np.float32(np.nan), 'floats from nan'),
    (np.float32(np.inf), 'to inf'),
    (np.float32(-0.5), 'floats from -0.5'),
    (np.float32(1.5), 'floats up to 1.5, and their white is not known'),
    (np.float32(70000), 'a level of 70000, expected at most 65535'),
    (np.int32(70000), 'a level of 70000, expected at most 65535'),
    (np.int32(-3), 'a level of -3, expected none below 0'),
  )
  def test_levels_without_a_known_white(self, level, message):
    levels = np.zeros((20, 20), level.dtype)
    levels[3, 4] = level
    path = self.save(Image.fromarray(levels), 'image.tif')
    self.refuse(path, message, image_files.read_image)

  def test_too_large_to_be_meant(self):
    path = self.save(Image.new('1', (16000, 13000)))
    self.refuse(path, '208 megapixels, expected at most 178')

  def test_a_large_one_is_read_without_a_word(self):
    path = self.save(Image.new('1', (10000, 9500)))
    code = f'from i2ploc import image_files as f; f.read_header({str(path)!r})'
    done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    self.assertEqual(done.stderr, '')


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
