# SPDX-License-Identifier: Apache-2.0
"""Laws of crops, views from above, and borrowed colours."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import image_augmentation as image_augmentation_lib
from tests.testing import compiled

image_augmentation = compiled.Module(image_augmentation_lib)

HEIGHT, WIDTH = 24, 36


def _random(batch, seed=0, shape=(HEIGHT, WIDTH)):
  rng = np.random.default_rng(seed)
  return rng.uniform(size=(batch, *shape, 3)).astype(np.float32)


def _ramps(batch, shape=(HEIGHT, WIDTH)):
  """Images that tell where a pixel came from: x / W, y / H, and 1."""
  rows, columns = (np.arange(n, dtype=np.float32) + 0.5 for n in shape)
  y, x = np.meshgrid(rows / shape[0], columns / shape[1], indexing='ij')
  image = np.stack([x, y, np.ones_like(x)], axis=-1)
  return np.tile(image, (batch, 1, 1, 1))


def _crop(images, seed=0, min_area=0.5):
  crop = image_augmentation.random_resized_crop
  return np.asarray(crop(jax.random.key(seed), jnp.asarray(images), min_area))


def _windows(images, seed=0, min_area=0.5):
  """left, top, right, bottom [B, 4] of crops, as parts of the image."""
  found = _crop(_ramps(len(images), images.shape[1:3]), seed, min_area)
  ends = []
  for axis, (size, channel) in enumerate(
    zip(images.shape[1:3], (1, 0), strict=True)
  ):
    line = found[..., channel].mean(2 - axis)
    # Away from the border, beyond whose pixel centres the image repeats.
    step = (line[:, -4] - line[:, 3]) / (size - 7)
    low = line[:, 3] - 3.5 * step
    ends = [(low, low + size * step), *ends]
  (left, right), (top, bottom) = ends
  return np.stack([left, top, right, bottom], axis=-1)


class RandomResizedCropTest(parameterized.TestCase):
  def test_it_shows_one_window_of_the_image(self):
    images = _random(4)
    found, windows = _crop(images), _windows(images)
    for image, out, window in zip(images, found, windows, strict=True):
      left, top, right, bottom = window
      for i in range(HEIGHT):
        for j in range(WIDTH):
          y = (top + (bottom - top) * (i + 0.5) / HEIGHT) * HEIGHT - 0.5
          x = (left + (right - left) * (j + 0.5) / WIDTH) * WIDTH - 0.5
          y, x = np.clip(y, 0, HEIGHT - 1), np.clip(x, 0, WIDTH - 1)
          row, column = int(min(y, HEIGHT - 2)), int(min(x, WIDTH - 2))
          expected = sum(
            (1 - abs(y - r)) * (1 - abs(x - c)) * image[r, c]
            for r in (row, row + 1)
            for c in (column, column + 1)
          )
          np.testing.assert_allclose(out[i, j], expected, atol=1e-4)

  @parameterized.parameters(0.5, 0.2)
  def test_windows_are_those_of_torchvision(self, min_area):
    windows = _windows(_random(2000, shape=(16, 16)), 1, min_area)
    low, high = windows[:, :2], windows[:, 2:]
    self.assertGreater(low.min(), -1e-3)
    self.assertLess(high.max(), 1 + 1e-3)
    side = high - low
    area, aspect = side.prod(1), side[:, 0] / side[:, 1]
    self.assertBetween(area.min(), min_area - 1e-3, min_area + 0.02)
    self.assertBetween(aspect.min(), 0.749, 0.77)
    self.assertBetween(aspect.max(), 1.3, 1.335)
    # Draw until a crop fits, one after the other.
    rng, expected = np.random.default_rng(0), []
    while len(expected) < 4000:
      a = rng.uniform(min_area, 1)
      r = np.exp(rng.uniform(*np.log([3 / 4, 4 / 3])))
      if max(np.sqrt(a * r), np.sqrt(a / r)) <= 1:
        x = rng.uniform() * (1 - np.sqrt(a * r))
        expected.append((a, r, x))
    for found, wanted in zip(
      (area, aspect, low[:, 0]), np.asarray(expected).T, strict=True
    ):
      levels = (0.1, 0.3, 0.5, 0.7, 0.9)
      np.testing.assert_allclose(
        np.quantile(found, levels), np.quantile(wanted, levels), atol=0.03
      )

  def test_all_of_the_area_is_the_identity(self):
    images = _random(3)
    np.testing.assert_allclose(_crop(images, 2, 1.0), images, atol=1e-6)


def _view(images, variant, seed=0, **fields):
  quiet = dict(max_rotation=0.0, crop=1.0, perspective=0.0, jitter=0.0)
  return np.asarray(
    image_augmentation.overhead_views(
      jax.random.key(seed),
      jnp.asarray(images),
      jnp.asarray(variant),
      **(quiet | fields),
    )
  )


def _fit(pixels, good, count):
  """A homography (8 numbers) or affine map (6) of pixels, largest error."""
  rows, columns = np.mgrid[: good.shape[0], : good.shape[1]] + 0.5
  u, v = columns[good], rows[good]
  x, y = pixels[good].astype(float).T
  one, zero = np.ones_like(u), np.zeros_like(u)
  a = np.concatenate(
    [
      np.stack([u, v, one, zero, zero, zero, -x * u, -x * v], -1),
      np.stack([zero, zero, zero, u, v, one, -y * u, -y * v], -1),
    ]
  )[:, :count]
  b = np.concatenate([x, y])
  found = np.linalg.lstsq(a, b, rcond=None)[0]
  return found, np.abs(a @ found - b).max()


FULL = dict(max_rotation=np.pi / 4, crop=0.875, perspective=0.5, jitter=0.9)


class OverheadViewsTest(parameterized.TestCase):
  def test_without_strength_nothing_changes(self):
    images = _random(3)
    found = _view(images, [0, 1, 2])
    np.testing.assert_allclose(found, images, atol=1e-4)

  def test_a_variant_shares_its_change_wherever_it_stands(self):
    images = np.repeat(_random(1), 6, axis=0)
    variant = np.asarray([2018, 2019, 2018, 2021, 2019, 2018])
    found = _view(images, variant, **FULL)
    for i in range(6):
      for j in range(6):
        apart = np.abs(found[i] - found[j]).max()
        if variant[i] == variant[j]:
          self.assertLess(apart, 1e-5)
        else:
          self.assertGreater(apart, 0.05)
    order = [5, 3, 1]
    np.testing.assert_allclose(
      _view(images[order], variant[order], **FULL), found[order], atol=1e-5
    )
    other = _view(images, variant, 1, **FULL)
    self.assertGreater(np.abs(other - found).max(), 0.05)

  def seen(self, count, **fields):
    """Where pixels of views lie in their images: [B, H, W, 2], and if at all.

    In pixels, of square images, away from the border, which repeats.
    """
    size = (40, 40)
    found = _view(_ramps(count, size), np.arange(count), **fields)
    inside = found[..., 2] > 0.5
    near = np.abs(found[..., :2] - 0.5).max(-1) < 0.5 - 0.6 / 40
    return 40 * found[..., :2], inside, inside & near

  def test_a_part_is_turned_by_at_most_the_angle_and_scaled_by_the_crop(self):
    pixels, inside, sure = self.seen(64, max_rotation=0.7, crop=0.6)
    angles = []
    for at, good in zip(pixels, sure, strict=True):
      steps = (at[:, 1:] - at[:, :-1])[good[:, 1:] & good[:, :-1]]
      step = np.median(steps, axis=0)
      np.testing.assert_allclose(np.linalg.norm(step), 0.6, atol=2e-3)
      angles.append(np.arctan2(step[1], step[0]))
    self.assertBetween(np.max(angles), 0.6, 0.701)
    self.assertBetween(np.min(angles), -0.701, -0.6)
    self.assertLess(inside.mean(), 1.0)  # some corners are black

  def test_the_part_lies_anywhere_in_the_image(self):
    pixels, inside, _ = self.seen(200, crop=0.5)
    self.assertTrue(inside.all())
    middle = pixels[:, 19:21, 19:21].mean((1, 2))
    np.testing.assert_allclose(middle.min(0), 10, atol=0.5)
    np.testing.assert_allclose(middle.max(0), 30, atol=0.5)

  def test_a_perspective_keeps_lines_straight_and_shows_no_background(self):
    pixels, inside, sure = self.seen(16, perspective=0.8)
    self.assertTrue(inside.all())
    affine = []
    for at, good in zip(pixels, sure, strict=True):
      self.assertLess(_fit(at, good, 8)[1], 0.05)
      affine.append(_fit(at, good, 6)[1])
    self.assertGreater(np.median(affine), 0.5)

  def test_what_is_left_is_the_largest_square_between_tilted_corners(self):
    pixels, _, sure = self.seen(32, perspective=0.6)
    corners = np.asarray([[0, 0, 1], [40, 0, 1], [40, 40, 1], [0, 40, 1.0]])
    for at, good in zip(pixels, sure, strict=True):
      back = np.linalg.inv(np.append(_fit(at, good, 8)[0], 1).reshape(3, 3))
      tilted = corners @ back.T
      (a, b), (c, d), (e, f), (g, h) = tilted[:, :2] / tilted[:, 2:]
      low = np.asarray([max(a, g), max(b, d)])
      high = np.asarray([min(c, e), min(f, h)])
      # In pixels of the view, which is the square.
      np.testing.assert_allclose((low + high) / 2, 20, atol=0.3)
      np.testing.assert_allclose((high - low).min(), 40, atol=0.3)

  @parameterized.parameters((2, 2), (5, 9))
  def test_extremes_are_finite_and_in_range(self, height, width):
    images = _random(32, shape=(height, width))
    found = _view(
      images,
      np.arange(32),
      max_rotation=np.pi,
      crop=0.05,
      perspective=0.99,
      jitter=1.0,
    )
    self.assertTrue(np.isfinite(found).all())
    self.assertBetween(found.min(), 0.0, found.max())
    self.assertLessEqual(found.max(), 1.0)


def _mix(images, donors, share, seed=0):
  found, changed = image_augmentation.mix_statistics(
    jax.random.key(seed), jnp.asarray(images), jnp.asarray(donors), share
  )
  return np.asarray(found), np.asarray(changed)


class MixStatisticsTest(parameterized.TestCase):
  def images(self, batch=8):
    """Images of their own mean and deviation in each channel."""
    rng = np.random.default_rng(3)
    mean = rng.uniform(0.4, 0.6, (batch, 1, 1, 3))
    spread = rng.uniform(0.05, 0.2, (batch, 1, 1, 3))
    noise = rng.uniform(-1, 1, (batch, HEIGHT, WIDTH, 3))
    return (mean + spread * noise).astype(np.float32)

  def test_an_image_takes_the_statistics_of_one_donor_channel_by_channel(self):
    images = self.images()
    donors = np.arange(8) >= 6
    found, changed = _mix(images, donors, 1.0)
    np.testing.assert_array_equal(changed, ~donors)
    np.testing.assert_array_equal(found[donors], images[donors])
    whose = []
    for i in range(6):
      errors = []
      for j in (6, 7):
        expected = np.empty_like(images[i])
        for c in range(3):
          x, y = images[i, :, :, c], images[j, :, :, c]
          expected[:, :, c] = y.std() * (x - x.mean()) / x.std() + y.mean()
        errors.append(np.abs(found[i] - np.clip(expected, 0, 1)).max())
      self.assertLess(min(errors), 1e-5)
      self.assertGreater(max(errors), 1e-2)
      whose.append(int(np.argmin(errors)))
    self.assertLen(set(whose), 2)

  def test_the_share_is_that_of_the_images(self):
    images = np.repeat(self.images(2), 200, axis=0)
    donors = np.arange(400) >= 200
    found, changed = _mix(images, donors, 0.3)
    self.assertBetween(changed[:200].mean(), 0.2, 0.4)
    self.assertFalse(changed[200:].any())
    np.testing.assert_array_equal(found[~changed], images[~changed])

  @parameterized.parameters((0.0, True), (1.0, False))
  def test_without_share_or_donors_nothing_changes(self, share, donors):
    images = self.images()
    found, changed = _mix(images, donors & (np.arange(8) >= 6), share)
    np.testing.assert_array_equal(found, images)
    self.assertFalse(changed.any())

  def test_images_of_one_colour_are_finite_with_finite_gradients(self):
    images = self.images()
    images[0], images[7] = 0.3, 0.8  # a receiver and the donor
    donors = jnp.arange(8) == 7

    def total(images):
      mix = image_augmentation_lib.mix_statistics
      found, _ = mix(jax.random.key(0), images, donors, 1.0)
      return (found**2).sum(), found

    (_, found), gradient = jax.value_and_grad(total, has_aux=True)(
      jnp.asarray(images)
    )
    # By the donor's mean, all of them: of its deviation there is nothing.
    np.testing.assert_allclose(found[0], 0.8, atol=1e-3)
    np.testing.assert_allclose(found[1].mean(), 0.8, atol=1e-3)
    self.assertTrue(np.isfinite(gradient).all())


if __name__ == '__main__':
  absltest.main()
