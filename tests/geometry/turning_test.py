# SPDX-License-Identifier: Apache-2.0
"""A camera turns as the pixels of its image do."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc import image_files
from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import turning

SIZE = (6, 10)
LENS = lens_lib.Lens(
  'opencv',
  np.array([[9.0, 0, 4], [0, 8, 3.5], [0, 0, 1]]),
  np.array([0.1, -0.02, 0.03, -0.05, 0.004]),
)


def _directions(lens, size):
  """The plane z = 1 seen by each pixel's centre, [H, W, 2]."""
  rows, columns = np.indices(size) + 0.5
  pixels = np.stack([columns, rows], -1).reshape(-1, 2)
  plane, valid = lens_lib.plane_from_pixels(lens, pixels)
  assert valid.all()
  return plane.reshape(*size, 2)


class TurningTest(parameterized.TestCase):
  @parameterized.parameters(*range(1, 9))
  def test_each_pixel_sees_what_it_saw_in_the_file(self, orientation):
    stored = _directions(LENS, SIZE)
    turned = turning.turn_lens(LENS, SIZE, orientation)
    size = turning.turned_size(SIZE, orientation)
    found = _directions(turned, size)
    # The pixels as image_files turns them, their directions by the same turn.
    moved = image_files.turn(stored, orientation)
    probe = np.stack(np.indices(SIZE)[::-1], -1)
    shown = image_files.turn(probe, orientation)
    self.assertEqual(found.shape, moved.shape)
    right = (shown[0, 1] - shown[0, 0]).astype(float)
    down = (shown[1, 0] - shown[0, 0]).astype(float)
    expected = np.stack([moved @ right, moved @ down], -1)
    np.testing.assert_allclose(found, expected, atol=1e-9)

  def test_none_is_the_same_lens(self):
    self.assertIs(turning.turn_lens(LENS, SIZE, 1), LENS)

  def test_the_given_lens_is_left_alone(self):
    before = LENS.intrinsics.copy(), LENS.coefficients.copy()
    turning.turn_lens(LENS, SIZE, 6)
    np.testing.assert_array_equal(LENS.intrinsics, before[0])
    np.testing.assert_array_equal(LENS.distortion, before[1])

  def test_what_cannot_be_turned(self):
    around = lens_lib.Lens('equirectangular', LENS.intrinsics)
    skewed = LENS._replace(
      intrinsics=LENS.intrinsics + [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    )
    many = LENS._replace(distortion=np.ones(12))
    for lens, message in (
      (around, 'panorama'),
      (skewed, 'skew of 1'),
      (many, '12 coefficients'),
      (many._replace(model='fisheye624'), '12 coefficients'),
    ):
      with (
        self.subTest(message),
        self.assertRaisesRegex(InputError, message),
      ):
        turning.turn_lens(lens, SIZE, 6)
    turning.turn_lens(around, SIZE, 3)


if __name__ == '__main__':
  absltest.main()
