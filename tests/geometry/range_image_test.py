# SPDX-License-Identifier: Apache-2.0
"""Range images against a loop over points."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import range_image

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


if __name__ == '__main__':
  absltest.main()
