# SPDX-License-Identifier: Apache-2.0
"""Range images against a loop over points."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import range_image as range_image_lib
from tests.testing import compiled

range_image = compiled.Module(range_image_lib)

ELEVATION = (-0.4, 0.1)
SHAPE = (8, 20)


def _cloud(seed, num_points=400):
  rng = np.random.default_rng(seed)
  azimuth = rng.uniform(-np.pi, np.pi, num_points)
  elevation = rng.uniform(-0.5, 0.2, num_points)
  distance = rng.uniform(1.0, 50.0, num_points)
  x = distance * np.cos(elevation) * np.cos(azimuth)
  y = -distance * np.cos(elevation) * np.sin(azimuth)
  z = distance * np.sin(elevation)
  intensity = rng.uniform(size=num_points)
  points = np.stack([x, y, z, intensity], axis=1).astype(np.float32)
  return points, azimuth, elevation


def _oracle(points, azimuth, elevation, mask, bounds):
  """The same image, one point at a time."""
  image, valid = np.zeros((*SHAPE, 2)), np.zeros(SHAPE, bool)
  for i in np.flatnonzero(mask):
    column = (azimuth[i] - bounds[0]) / (bounds[1] - bounds[0]) * SHAPE[1]
    high, low = ELEVATION[1], ELEVATION[0]
    row = (high - elevation[i]) / (high - low) * SHAPE[0]
    if not (0 <= column < SHAPE[1] and 0 <= row < SHAPE[0]):
      continue
    cell = int(row), int(column)
    distance = np.linalg.norm(points[i, :3])
    if not valid[cell] or distance < image[cell][0]:
      image[cell], valid[cell] = (distance, points[i, 3]), True
  return image, valid


class RangeImageTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 2)
  def test_the_nearest_return_wins_its_cell(self, seed):
    points, azimuth, elevation = _cloud(seed, 2000)
    mask = np.random.default_rng(seed).uniform(size=2000) < 0.8
    bounds = (-0.8, 0.6)
    expected, filled = _oracle(points, azimuth, elevation, mask, bounds)
    points[~mask] = np.nan
    image, valid = jax.jit(range_image.range_image, static_argnums=(3, 4))(
      points, mask, bounds, ELEVATION, SHAPE
    )
    np.testing.assert_array_equal(valid, filled)
    np.testing.assert_allclose(image, expected, rtol=1e-5)

  def test_columns_run_to_the_right_and_rows_downwards(self):
    right_low = np.asarray([[10.0, -3.0, -3.0, 0.5]], np.float32)
    _, valid = range_image.range_image(
      right_low, np.ones(1, bool), (-0.5, 0.5), ELEVATION, SHAPE
    )
    row, column = np.argwhere(np.asarray(valid))[0]
    self.assertGreater(column, SHAPE[1] // 2)
    self.assertGreater(row, SHAPE[0] // 2)

  def test_a_span_may_cross_the_seam_behind_the_sensor(self):
    behind = np.asarray([[-9, 0.5, 0, 1], [-9, -0.5, 0, 1]], np.float32)
    _, valid = range_image.range_image(
      behind, np.ones(2, bool), (np.pi - 0.2, np.pi + 0.2), ELEVATION, SHAPE
    )
    self.assertEqual(np.asarray(valid).sum(), 2)

  def test_order_of_points_does_not_matter(self):
    points, _, _ = _cloud(3)
    order = np.random.default_rng(0).permutation(len(points))
    mask = np.ones(len(points), bool)
    args = ((-1.0, 1.0), ELEVATION, SHAPE)
    one, _ = range_image.range_image(points, mask, *args)
    other, _ = range_image.range_image(points[order], mask, *args)
    np.testing.assert_array_equal(one, other)

  def test_degenerate_points_leave_cells_empty_and_gradients_finite(self):
    points = np.zeros((4, 4), np.float32)
    points[1, :3] = np.nan
    points[2, 0] = np.inf
    points[3] = [5.0, 0.0, 0.0, 0.7]
    mask = np.asarray([True, True, True, True])

    def total(points):
      args = ((-1.0, 1.0), ELEVATION, SHAPE)
      image, valid = range_image.range_image(points, mask, *args)
      return image.sum(), valid

    (value, valid), grad = jax.value_and_grad(total, has_aux=True)(
      jnp.asarray(points)
    )
    self.assertEqual(valid.sum(), 1)
    self.assertAlmostEqual(float(value), 5.7, places=5)
    self.assertTrue(np.isfinite(grad).all())
    np.testing.assert_allclose(grad[3], [1.0, 0.0, 0.0, 1.0])

  def test_an_empty_cloud_gives_an_empty_image(self):
    image, valid = range_image.range_image(
      np.ones((5, 4), np.float32),
      np.zeros(5, bool),
      (-1.0, 1.0),
      ELEVATION,
      SHAPE,
    )
    self.assertFalse(valid.any())
    np.testing.assert_array_equal(image, 0.0)

  def test_returns_at_the_largest_range_or_beyond_are_none(self):
    points = np.zeros((3, 4), np.float32)
    points[:, 0] = [9.999, 10.0, 30.0]
    points[:, 1] = [0.0, 3.0, -9.0]
    args = (np.ones(3, bool), (-1.0, 1.0), ELEVATION, SHAPE)
    for max_range, expected in ((np.inf, 3), (10.1, 1), (9.999, 0)):
      _, valid = range_image.range_image(points, *args, max_range=max_range)
      self.assertEqual(valid.sum(), expected)


def _spherical_oracle(points, max_range):
  """The released projection in float64, one point at a time."""
  image = np.full(range_image.SPHERICAL_SHAPE, -1.0)
  height, width = image.shape
  for x, y, z, _ in np.float64(points):
    distance = math.sqrt(x * x + y * y + z * z)
    if not 0 < distance < max_range:
      continue
    across = 0.5 * (-math.atan2(y, x) / math.pi + 1)
    down = 1 - (math.degrees(math.asin(z / distance)) + 25) / 28
    row = min(max(math.floor(down * height), 0), height - 1)
    column = min(max(math.floor(across * width), 0), width - 1)
    if image[row, column] < 0 or distance < image[row, column]:
      image[row, column] = distance
  return image


class SphericalImageTest(parameterized.TestCase):
  @parameterized.parameters(50.0, 20.0)
  def test_is_the_released_projection(self, max_range):
    points = _cloud(4, 3000)[0]  # many above and below
    mask = np.random.default_rng(4).uniform(size=3000) < 0.8
    expected = _spherical_oracle(points[mask], max_range)
    image, valid = jax.jit(range_image.spherical_image)(points, mask, max_range)
    np.testing.assert_array_equal(valid, expected >= 0)
    found = np.where(valid, image[..., 0], -1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Out of the bounds lie as many as a fifth: they crowd the border.
    filled = np.asarray(valid).mean(1)
    self.assertGreater(filled[[0, -1]].min(), 2 * filled[1:-1].max())

  @parameterized.parameters(
    ((0.0, 0.0, 9.0), 0, 450), ((0.0, 0.0, -9.0), 63, 450)
  )
  def test_zenith_and_nadir_have_a_cell(self, place, row, column):
    points = np.asarray([[*place, 1.0]], np.float32)
    _, valid = range_image.spherical_image(points, np.ones(1, bool))
    np.testing.assert_array_equal(np.argwhere(valid), [[row, column]])

  def test_the_crop_is_the_upper_half_and_120_degrees(self):
    rows, columns = range_image_lib.ahead((64, 900))
    self.assertEqual((rows.start, rows.stop), (0, 32))
    self.assertEqual((columns.start, columns.stop), (300, 600))


class QuantizeTest(absltest.TestCase):
  def test_levels_are_truncated_and_nothing_looks_far(self):
    distance = jnp.asarray([0.19, 0.2, 49.3, 49.999, 80.0, 0.0])
    valid = jnp.asarray([True, True, True, True, True, False])
    levels = range_image.quantize(distance, valid)
    self.assertEqual(levels.dtype, jnp.uint8)
    # A return from 49.3 m and no return are the same, as released.
    np.testing.assert_array_equal(levels, [0, 1, 251, 254, 255, 251])


class ResizeTest(parameterized.TestCase):
  def _image(self, shape):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, shape).astype(np.uint8)

  @parameterized.parameters(((32, 300), (224, 224)), ((37, 41), (20, 90)))
  def test_is_bilinear_but_for_one_level(self, shape, new_shape):
    image = self._image(shape)
    found = np.asarray(range_image.resize_uint8(jnp.asarray(image), new_shape))
    exact = np.asarray(
      jax.image.resize(
        image.astype(np.float32), new_shape, 'linear', antialias=False
      )
    )
    self.assertEqual(found.shape, new_shape)
    self.assertLess(np.abs(found - exact).max(), 1.5)
    # It is not rounding: fixed-point weights and two truncations show.
    share = np.mean(found != np.rint(exact))
    self.assertBetween(share, 0.01, 0.3)

  def test_the_same_size_and_even_images_stay(self):
    image = self._image((9, 14))
    same = range_image.resize_uint8(jnp.asarray(image), (9, 14))
    np.testing.assert_array_equal(same, image)
    for level in (0, 1, 251, 255):
      even = jnp.full((9, 14), level, jnp.uint8)
      np.testing.assert_array_equal(
        range_image.resize_uint8(even, (31, 12)), level
      )


if __name__ == '__main__':
  absltest.main()
