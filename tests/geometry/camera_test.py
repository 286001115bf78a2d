# SPDX-License-Identifier: Apache-2.0
"""Cameras: round trips, the half-pixel law, azimuth."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import camera as camera_lib
from i2ploc.geometry import panorama
from i2ploc.geometry import resizing
from tests.testing import compiled

camera = compiled.Module(camera_lib)

HEIGHT, WIDTH = 40, 120
INTRINSICS = np.asarray(
  [[70.0, 1.5, 58.0], [0.0, 65.0, 21.0], [0.0, 0.0, 1.0]], np.float32
)
STRAIGHT = np.asarray(
  [[70.0, 0.0, 58.0], [0.0, 65.0, 21.0], [0.0, 0.0, 1.0]], np.float32
)


def _pixels(seed, batch=(50,)):
  rng = np.random.default_rng(seed)
  return rng.uniform((0, 0), (WIDTH, HEIGHT), (*batch, 2)).astype(np.float32)


class ProjectionTest(parameterized.TestCase):
  @parameterized.product(batch=((), (7,), (2, 3)), jit=(False, True))
  def test_bearings_and_projection_are_inverse(self, batch, jit):
    pixels = _pixels(0, batch)
    bearings, project = camera.bearings, camera.project
    if jit:
      bearings, project = jax.jit(bearings), jax.jit(project)
    rays = bearings(INTRINSICS, pixels)
    np.testing.assert_allclose(
      np.linalg.norm(rays, axis=-1), np.ones(batch), rtol=1e-6
    )
    for depth in (0.5, 10.0, 1e4):
      found, valid = project(INTRINSICS, depth * rays)
      np.testing.assert_allclose(found, pixels, atol=2e-4)
      self.assertTrue(np.all(valid))

  def test_agrees_with_the_homogeneous_product(self):
    points = np.random.default_rng(1).uniform(1, 9, (30, 3)).astype(np.float32)
    homogeneous = points @ INTRINSICS.T
    found, _ = camera.project(INTRINSICS, points)
    np.testing.assert_allclose(
      found, homogeneous[:, :2] / homogeneous[:, 2:], rtol=1e-5
    )

  def test_right_and_down_are_larger_columns_and_rows(self):
    ahead, right, down = [0.0, 0, 5], [1.0, 0, 5], [0.0, 1, 5]
    pixels, _ = camera.project(STRAIGHT, jnp.asarray([ahead, right, down]))
    np.testing.assert_allclose(
      pixels, [[58, 21], [58 + 14, 21], [58, 21 + 13]], rtol=1e-6
    )

  def test_points_behind_or_at_the_camera_are_invalid_and_finite(self):
    points = jnp.asarray(
      [[0.0, 0, 0], [1, 1, -5], [1, 1, 0], [1, 1, 0.05], [1e30, 0, -0.0]]
    )
    pixels, valid = camera.project(INTRINSICS, points)
    self.assertFalse(np.any(valid))
    self.assertTrue(np.isfinite(pixels).all())

    def total(intrinsics, points):
      return jnp.sum(camera.project(intrinsics, points)[0])

    for leaf in jax.grad(total, (0, 1))(jnp.asarray(INTRINSICS), points):
      self.assertTrue(np.isfinite(leaf).all())

  def test_intrinsics_broadcast_against_points(self):
    two = np.stack([INTRINSICS, STRAIGHT])[:, None]
    points = np.random.default_rng(2).uniform(1, 9, (2, 6, 3)).astype('f')
    pixels, valid = camera.project(two, points)
    self.assertEqual((pixels.shape, valid.shape), ((2, 6, 2), (2, 6)))
    for i in range(2):
      alone, _ = camera.project(two[i, 0], points[i])
      np.testing.assert_allclose(pixels[i], alone, rtol=1e-6)


class AzimuthTest(parameterized.TestCase):
  def test_signs_and_the_whole_circle(self):
    points = jnp.asarray(
      [[0.0, 3, 1], [1, 0, 1], [-1, 9, 1], [1, 0, -1], [-1, 0, -1]]
    )
    expected = np.pi / 4 * np.asarray([0, 1, -1, 3, -3])
    np.testing.assert_allclose(camera.azimuth(points), expected, atol=1e-6)

  def test_columns_and_points_share_their_azimuth(self):
    columns = camera.column_azimuth(STRAIGHT, WIDTH, 8)
    centers = (np.arange(8) + 0.5) * WIDTH / 8
    for row in (0.0, 17.0, 40.0):
      pixels = np.stack([centers, np.full(8, row)], -1).astype(np.float32)
      rays = camera.bearings(STRAIGHT, pixels)
      np.testing.assert_allclose(camera.azimuth(rays), columns, atol=1e-6)

  def test_blocks_lie_inside_the_span_and_grow_with_the_column(self):
    left, right = camera.horizontal_span(STRAIGHT, WIDTH)
    columns = np.asarray(camera.column_azimuth(STRAIGHT, WIDTH, 8))
    self.assertTrue(np.all(np.diff(columns) > 0))
    self.assertLess(left, columns[0])
    self.assertGreater(right, columns[-1])
    np.testing.assert_allclose(left, np.arctan2(-58, 70), rtol=1e-6)
    np.testing.assert_allclose(right, np.arctan2(WIDTH - 58, 70), rtol=1e-6)

  def test_one_column_is_the_centre_of_the_image_not_the_axis(self):
    found = camera.column_azimuth(STRAIGHT, WIDTH, 1)
    np.testing.assert_allclose(found, [np.arctan2(2, 70)], rtol=1e-5)

  def test_batches_of_cameras(self):
    two = np.stack([STRAIGHT, 2 * STRAIGHT])
    self.assertEqual(camera.column_azimuth(two, WIDTH, 5).shape, (2, 5))
    left, right = camera.horizontal_span(two, WIDTH)
    self.assertEqual((left.shape, right.shape), ((2,), (2,)))

  def test_a_panorama_has_even_columns_and_the_whole_circle(self):
    size = (HEIGHT, WIDTH)
    matrix = panorama.sphere_intrinsics(size)
    named = dict(projection='equirectangular')
    left, right = camera.horizontal_span(matrix, WIDTH, **named)
    np.testing.assert_allclose([left, right], [-np.pi, np.pi], rtol=1e-6)
    columns = np.asarray(camera.column_azimuth(matrix, WIDTH, 8, **named))
    np.testing.assert_allclose(np.diff(columns), np.pi / 4, rtol=1e-5)
    for row in (3.0, 20.0, 33.0):
      pixels = np.stack([(np.arange(8) + 0.5) * WIDTH / 8, np.full(8, row)], -1)
      rays = panorama.bearings(matrix, pixels)
      np.testing.assert_allclose(camera.azimuth(rays), columns, atol=1e-5)
    resized = resizing.resize_intrinsics(matrix, size, (20, 64))
    found = camera.column_azimuth(resized, 64, 8, **named)
    np.testing.assert_allclose(found, columns, atol=1e-5)

  def test_an_unknown_projection_is_named(self):
    with self.assertRaisesRegex(ValueError, "unknown projection 'fisheye'"):
      camera.horizontal_span(STRAIGHT, WIDTH, 'fisheye')

  def test_straight_up_and_the_centre_have_finite_gradients(self):
    points = jnp.asarray([[0.0, 0, 0], [0, -4, 0], [0, 0, -1], [0, 0, 1]])
    gradient = jax.grad(lambda p: camera.azimuth(p).sum())(points)
    self.assertTrue(np.isfinite(gradient).all())


if __name__ == '__main__':
  absltest.main()
