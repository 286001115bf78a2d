# SPDX-License-Identifier: Apache-2.0
"""Directions of pixels of real cameras."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import panorama

K = np.array([[520.9, 0.0, 325.1], [0.0, 521.0, 249.7], [0.0, 0.0, 1.0]])
# Of the TUM RGB-D camera 2, and a rational one.
TUM = (0.231222, -0.784899, -0.003257, -0.000105, 0.917205)
RATIONAL = (0.5, -0.2, 1e-3, -2e-3, 0.05, 0.4, -0.1, 0.02)


def _seen(plane, k):
  """OpenCV's model as its manual writes it, for one point."""
  k1, k2, p1, p2, k3, k4, k5, k6 = [*k, *[0.0] * (8 - len(k))]
  x, y = plane
  r2 = x**2 + y**2
  s = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (
    1 + k4 * r2 + k5 * r2**2 + k6 * r2**3
  )
  x2 = x * s + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
  y2 = y * s + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
  return K[:2, :2] @ [x2, y2] + K[:2, 2]


class LensTest(parameterized.TestCase):
  @parameterized.parameters((TUM,), (RATIONAL,), ((0.1, -0.05, 0.01, 0.02),))
  def test_undoes_the_distortion(self, k):
    rng = np.random.default_rng(0)
    plane = rng.uniform(-0.5, 0.5, (200, 2))
    pixels = np.stack([_seen(point, k) for point in plane])
    rays, valid = lens_lib.rays_from_pixels(
      lens_lib.Lens('opencv', K, np.array(k)), pixels
    )
    self.assertTrue(valid.all())
    np.testing.assert_allclose(rays[:, :2] / rays[:, 2:], plane, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1, atol=1e-12)

  def test_pinhole(self):
    rays, valid = lens_lib.rays_from_pixels(
      lens_lib.Lens('pinhole', K), K[:2, 2][None] + [[0, 0], [520.9, -521.0]]
    )
    self.assertTrue(valid.all())
    np.testing.assert_allclose(rays[0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(rays[1], np.array([1, -1, 1]) / 3**0.5)

  def test_equirectangular_is_a_panorama(self):
    intrinsics = panorama.sphere_intrinsics((256, 512))
    pixels = np.random.default_rng(1).uniform(0, 256, (50, 2))
    rays, _ = lens_lib.rays_from_pixels(
      lens_lib.Lens('equirectangular', intrinsics), pixels
    )
    expected = panorama.bearings(intrinsics, pixels.astype(np.float32))
    np.testing.assert_allclose(rays, expected, atol=1e-5)

  def test_pixels_that_no_direction_has(self):
    # r + k1 r^3 never exceeds 0.77 for k1 = -0.25.
    lens = lens_lib.Lens('opencv', K, np.array([-0.25, 0, 0, 0]))
    center = K[:2, 2]
    pixels = np.stack([center + [500, 0], center + [300, 0], [np.nan, 0]])
    rays, valid = lens_lib.rays_from_pixels(lens, pixels)
    np.testing.assert_array_equal(valid, [False, True, False])
    self.assertTrue(np.isfinite(rays).all())

  @parameterized.parameters(
    (lens_lib.Lens('fisheye', K), 'unknown camera model'),
    (lens_lib.Lens('pinhole', K[:2]), r'finite \[3, 3\]'),
    (lens_lib.Lens('pinhole', -K), 'must be positive'),
    (lens_lib.Lens('opencv', K, np.zeros(3)), '3 distortion coefficients'),
    (lens_lib.Lens('pinhole', K, np.zeros(4)), "goes with the model 'opencv'"),
    (lens_lib.Lens('pinhole', K.T), 'intrinsics are transposed'),
    (lens_lib.Lens('pinhole', np.diag([0.0, 500, 1])), 'must be positive'),
    (lens_lib.Lens('pinhole', np.full((3, 3), np.nan)), r'finite \[3, 3\]'),
    (lens_lib.Lens('pinhole', None), r'finite \[3, 3\]'),
    (lens_lib.Lens('pinhole', K + np.eye(3)), 'last row of 0, 0, 1'),
    (lens_lib.Lens('pinhole', K + np.eye(3)[[2, 0, 1]]), 'upper triangular'),
    (lens_lib.Lens('opencv', K, np.full(4, np.nan)), 'must be finite'),
    (lens_lib.Lens('opencv', K, ['a'] * 4), 'must be numbers'),
    (K, 'a camera must be a Lens'),
  )
  def test_impossible_lenses(self, lens, message):
    with self.assertRaisesRegex(ValueError, message):
      lens_lib.rays_from_pixels(lens, np.zeros((1, 2)))

  @parameterized.parameters(
    (None, np.zeros(0)),
    (np.reshape(TUM, (5, 1)), np.array(TUM)),
    (np.reshape(TUM, (1, 5)), np.array(TUM)),
    ([0, 0, 0, 0], np.zeros(4)),
  )
  def test_the_distortion_may_be_none_a_row_or_a_column(self, given, plain):
    pixels = np.random.default_rng(0).uniform(0, 480, (20, 2))
    found, expected = (
      lens_lib.rays_from_pixels(lens_lib.Lens('opencv', K, k), pixels)[0]
      for k in (given, plain)
    )
    np.testing.assert_array_equal(found, expected)

  def test_wrong_shape(self):
    with self.assertRaisesRegex(ValueError, r'pixels must be \[N, 2\]'):
      lens_lib.rays_from_pixels(lens_lib.Lens('pinhole', K), np.zeros(2))


if __name__ == '__main__':
  absltest.main()
