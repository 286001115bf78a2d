# SPDX-License-Identifier: Apache-2.0
"""Crops: what PIL cuts out, and nothing where there is nothing."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from i2ploc.geometry import cropping as cropping_lib
from tests.testing import compiled

cropping = compiled.Module(cropping_lib)

RNG = np.random.default_rng(0)
IMAGES = RNG.random((2, 20, 30, 3)).astype(np.float32)
FILL = (0.2, 0.5, 0.7)


def _crop(boxes, size, images=IMAGES):
  return np.asarray(cropping.crop(images, jnp.asarray(boxes), size, FILL))


class CropTest(parameterized.TestCase):
  def test_the_image_itself_stays_as_it_is(self):
    boxes = np.tile(np.float32([0, 0, 30, 20]), (2, 1, 1))
    np.testing.assert_allclose(_crop(boxes, (20, 30))[:, 0], IMAGES, atol=1e-6)

  @parameterized.parameters(
    ((3.3, 2.1, 25.9, 17.4), (5, 6)),  # smaller
    ((3.3, 2.1, 11.9, 9.4), (16, 21)),  # larger
    ((3.0, 2.0, 27.0, 5.0), (9, 4)),  # both
  )
  def test_equals_pil_inside_of_the_image(self, box, size):
    found = _crop(np.float32([[box], [box]]), size)
    for image, crop in zip(IMAGES, found, strict=True):
      for channel in range(3):
        picture = Image.fromarray(image[..., channel], mode='F')
        expected = picture.resize(
          size[::-1], Image.Resampling.BILINEAR, box=box
        )
        np.testing.assert_allclose(crop[0, ..., channel], expected, atol=1e-5)

  def test_each_image_has_its_own_boxes(self):
    boxes = RNG.uniform(0, 9, (2, 3, 4)).astype(np.float32)
    boxes[..., 2:] += 10
    together = _crop(boxes, (4, 4))
    for i in range(2):
      for k in range(3):
        alone = _crop(boxes[i, k][None, None], (4, 4), IMAGES[i : i + 1])
        np.testing.assert_allclose(together[i, k], alone[0, 0], atol=1e-6)

  def test_what_is_beyond_the_image_is_filled(self):
    boxes = np.float32([[[-30, -20, 30, 20]], [[90, 0, 120, 20]]])
    found = _crop(boxes, (8, 12))
    np.testing.assert_allclose(
      found[0, 0, :4], np.broadcast_to(FILL, (4, 12, 3)), atol=1e-6
    )
    np.testing.assert_allclose(
      found[0, 0, :, :6], np.broadcast_to(FILL, (8, 6, 3)), atol=1e-6
    )
    self.assertGreater(np.abs(found[0, 0, 4:, 6:] - FILL).min(-1).max(), 0.05)
    np.testing.assert_allclose(
      found[1, 0], np.broadcast_to(FILL, (8, 12, 3)), atol=1e-6
    )

  def test_a_crop_at_the_border_does_not_fade(self):
    white = np.ones((1, 20, 30, 3), np.float32)
    boxes = np.float32([[[20.2, -4.7, 37.9, 13]]])
    found = _crop(boxes, (7, 9), white)[0, 0]
    white = np.isclose(found, 1.0, atol=1e-5).all(-1)
    filled = np.isclose(found, FILL, atol=1e-5).all(-1)
    self.assertTrue((white ^ filled).all())
    self.assertTrue(white.any() and filled.any())

  def test_gradients_are_finite_for_a_box_without_extent(self):
    windows = cropping.windows(jnp.full((1, 1, 4), 5.0), 0.1)
    grad = jax.grad(lambda x: cropping.crop(x, windows, (4, 4), FILL).sum())
    self.assertTrue(np.isfinite(grad(jnp.asarray(IMAGES[:1]))).all())


class WindowsTest(absltest.TestCase):
  def test_windows_are_squares_around_the_boxes_with_context(self):
    boxes = np.float32([[2, 3, 12, 5], [0, 0, 4, 20], [7, 7, 7, 7]])
    found = np.asarray(cropping.windows(boxes, 0.25))
    side = found[:, 2:] - found[:, :2]
    np.testing.assert_allclose(side[:, 0], side[:, 1])
    np.testing.assert_allclose(side[:, 0], [15, 30, 6], atol=1e-5)
    np.testing.assert_allclose(
      found[:, :2] + found[:, 2:], boxes[:, :2] + boxes[:, 2:], atol=1e-5
    )

  def test_jitter_moves_and_scales_each_window_on_its_own(self):
    windows = np.tile(np.float32([10, 20, 30, 60]), (64, 8, 1))
    found = np.asarray(cropping.jitter(jax.random.key(0), windows, 0.2))
    side = found[..., 2:] - found[..., :2]
    np.testing.assert_allclose(side[..., 1], 2 * side[..., 0], rtol=1e-5)
    scale = np.log(side[..., 0] / 20)
    shift = (found[..., :2] + found[..., 2:]) / 2 - [20, 40]
    for draws in (scale, shift[..., 0] / 20, shift[..., 1] / 40):
      self.assertBetween(np.abs(draws).max(), 0.19, 0.2 + 1e-5)
      self.assertLess(abs(draws.mean()), 0.03)
    same = cropping.jitter(jax.random.key(0), windows, 0.0)
    np.testing.assert_allclose(same, windows, atol=1e-5)


if __name__ == '__main__':
  absltest.main()
