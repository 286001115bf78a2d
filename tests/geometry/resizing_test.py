# SPDX-License-Identifier: Apache-2.0
"""Resizing: intrinsics go with their image, and any host does the same."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from i2ploc.geometry import camera
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import resizing

HEIGHT, WIDTH = 40, 120
INTRINSICS = np.asarray(
  [[70.0, 1.5, 58.0], [0.0, 65.0, 21.0], [0.0, 0.0, 1.0]], np.float32
)


class ImageTest(absltest.TestCase):
  def test_an_image_is_resized_bicubically_and_antialiased(self):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    found = resizing.resize_image(image, (10, 30))
    self.assertEqual((found.shape, found.dtype), ((10, 30, 3), np.uint8))
    expected = Image.fromarray(image).resize((30, 10), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, np.asarray(expected))
    other = Image.fromarray(image).resize((30, 10), Image.Resampling.BILINEAR)
    self.assertGreater(np.abs(found.astype(int) - np.asarray(other)).max(), 9)

  def test_an_image_of_the_size_is_left_alone(self):
    image = np.zeros((4, 5, 3), np.uint8)
    self.assertIs(resizing.resize_image(image, (4, 5)), image)

  def test_labels_are_never_mixed(self):
    labels = np.random.default_rng(0).choice([3, 200], (40, 60))
    found = resizing.resize_labels(labels.astype(np.uint8), (17, 23))
    self.assertEqual(found.shape, (17, 23))
    self.assertEqual({*found.ravel().tolist()}, {3, 200})


class IntrinsicsTest(parameterized.TestCase):
  @parameterized.parameters(((20, 60),), ((80, 240),), ((37, 55),))
  def test_a_point_keeps_its_relative_position(self, to_size):
    points = np.random.default_rng(3).uniform(1, 9, (30, 3)).astype(np.float32)
    resized = resizing.resize_intrinsics(INTRINSICS, (HEIGHT, WIDTH), to_size)
    before, _ = camera.project(INTRINSICS, points)
    after, _ = camera.project(resized, points)
    np.testing.assert_allclose(
      after / np.asarray(to_size[::-1]),
      before / np.asarray((WIDTH, HEIGHT)),
      rtol=1e-5,
    )
    np.testing.assert_allclose(resized[2], [0, 0, 1])

  def test_half_an_image_moves_a_drawn_point_with_its_pixels(self):
    # Draws a point into a block of 2 x 2 pixels and averages it down: its
    # centre of mass must be where the resized camera projects it. Intrinsics
    # counted from pixel CENTRES would be half a pixel off.
    block = np.zeros((HEIGHT, WIDTH))
    block[10:12, 30:32] = 1
    center = np.asarray([31.0, 11.0])  # of pixel centres 30.5, 31.5 ...
    small = block.reshape(HEIGHT // 2, 2, WIDTH // 2, 2).mean((1, 3))
    row, column = np.argwhere(small == 1).squeeze()
    point = 4.0 * camera.bearings(INTRINSICS, center)
    resized = resizing.resize_intrinsics(
      INTRINSICS, (HEIGHT, WIDTH), (HEIGHT // 2, WIDTH // 2)
    )
    found, _ = camera.project(resized, point)
    np.testing.assert_allclose(found, [column + 0.5, row + 0.5], atol=1e-4)

  def test_there_and_back_is_nothing(self):
    sizes = (HEIGHT, WIDTH), (224, 768)
    there = resizing.resize_intrinsics(INTRINSICS, *sizes)
    back = resizing.resize_intrinsics(there, *sizes[::-1])
    np.testing.assert_allclose(back, INTRINSICS, rtol=1e-6)

  def test_any_leading_axes_and_any_type(self):
    many = np.tile(INTRINSICS.astype(np.float64), (2, 3, 1, 1))
    found = resizing.resize_intrinsics(many, (40, 120), (20, 30))
    self.assertEqual((found.shape, found.dtype), ((2, 3, 3, 3), np.float64))
    np.testing.assert_allclose(found[1, 2, 0], INTRINSICS[0] / 4)
    np.testing.assert_allclose(found[1, 2, 1], INTRINSICS[1] / 2)

  def test_a_lens_keeps_its_distortion(self):
    lens = lens_lib.Lens('opencv', INTRINSICS, np.array([0.1, 0, 0, 0]))
    found = resizing.resize_lens(lens, (40, 120), (20, 30))
    self.assertEqual(found.model, 'opencv')
    np.testing.assert_array_equal(found.distortion, lens.distortion)
    np.testing.assert_allclose(
      found.intrinsics, [[17.5, 0.375, 14.5], [0, 32.5, 10.5], [0, 0, 1]]
    )


if __name__ == '__main__':
  absltest.main()
