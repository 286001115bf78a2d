# SPDX-License-Identifier: Apache-2.0
"""Pixels of directions, and directions of pixels, of real cameras."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import lens_files
from i2ploc.geometry import distortion as distortion_lib
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


GOLDEN = json.loads(
  (
    pathlib.Path(__file__).parents[1] / 'golden' / 'lenses' / 'pixels.json'
  ).read_text()
)
FISHEYE = (-0.0137, 0.0207, -0.0122, 0.0025)
FOURTEEN = (*RATIONAL, 0.01, -0.02, 0.03, 0.005, 0.05, -0.08)
# One of every kind, and the largest angle off its axis that is tried.
KINDS = {
  'pinhole': (lens_lib.Lens('pinhole', K + [[0, 7, 0], [0] * 3, [0] * 3]), 80),
  'opencv5': (lens_lib.Lens('opencv', K, np.array(TUM)), 35),
  'opencv14': (lens_lib.Lens('opencv', K, np.array(FOURTEEN)), 40),
  'fisheye': (lens_lib.Lens('fisheye', K, np.array(FISHEYE)), 100),
  'equidistant': (lens_lib.Lens('fisheye', K), 175),
  'fov': (lens_lib.Lens('fov', K, np.array([0.9])), 80),
  'division': (lens_lib.Lens('division', K, np.array([-0.2])), 80),
  'eucm': (lens_lib.Lens('eucm', K, np.array([0.6, 1.1])), 110),
  'thin_prism': (
    lens_lib.Lens(
      'thin_prism_fisheye',
      K,
      np.array([-0.01, 0.02, 3e-3, -2e-3, -0.01, 2e-3, 5e-3, -4e-3]),
    ),
    75,
  ),
  'equirectangular': (
    lens_lib.Lens('equirectangular', panorama.sphere_intrinsics((256, 512))),
    170,
  ),
}


def _directions(degrees, count=300):
  """Unit vectors [N, 3] evenly off the axis, the axis itself among them."""
  rng = np.random.default_rng(3)
  off = np.radians(degrees) * rng.uniform(0, 1, count)
  around = rng.uniform(-np.pi, np.pi, count)
  off[:3] = 0, 1e-9, 1e-3
  sine = np.sin(off)
  return np.stack(
    [sine * np.cos(around), sine * np.sin(around), np.cos(off)], -1
  )


class PublishedTest(parameterized.TestCase):
  """The pixels that OpenCV and COLMAP give."""

  @parameterized.parameters(*GOLDEN['opencv'])
  def test_opencv(self, name):
    row = GOLDEN['opencv'][name]
    lens = lens_lib.Lens(
      'fisheye' if name == 'fisheye' else 'opencv',
      np.array(GOLDEN['intrinsics']),
      np.array(row['distortion']),
    )
    pixels, valid = lens_lib.project(lens, GOLDEN['points'])
    self.assertTrue(valid.all())
    np.testing.assert_allclose(pixels, row['pixels'], atol=1e-6)

  @parameterized.parameters(*GOLDEN['colmap'])
  def test_colmap(self, name):
    row = GOLDEN['colmap'][name]
    lens = lens_files.colmap_lens(name, row['parameters'])
    pixels, valid = lens_lib.project(lens, row['points'])
    self.assertTrue(valid.all())
    np.testing.assert_allclose(pixels, row['pixels'], atol=1e-6)

  def test_a_fisheye_read_as_brown_is_wrong_by_hundreds_of_pixels(self):
    row = GOLDEN['colmap']['OPENCV_FISHEYE']
    fisheye = lens_files.colmap_lens('OPENCV_FISHEYE', row['parameters'])
    brown = fisheye._replace(model='opencv')
    pixels, _ = lens_lib.project(brown, row['points'])
    self.assertGreater(np.abs(pixels - row['pixels']).max(), 300)


class InverseTest(parameterized.TestCase):
  @parameterized.parameters(*KINDS)
  def test_pixels_come_back_as_directions(self, kind):
    lens, degrees = KINDS[kind]
    directions = _directions(degrees)
    pixels, valid = lens_lib.project(lens, 7 * directions)
    self.assertTrue(valid.all())
    rays, valid = lens_lib.rays_from_pixels(lens, pixels)
    self.assertTrue(valid.all())
    np.testing.assert_allclose(rays, directions, atol=1e-9)

  @parameterized.parameters('opencv14', 'fisheye', 'fov', 'eucm')
  def test_the_plane_ahead(self, kind):
    lens, _ = KINDS[kind]
    directions = _directions(35)
    pixels, _ = lens_lib.project(lens, directions)
    plane, valid = lens_lib.plane_from_pixels(lens, pixels)
    self.assertTrue(valid.all())
    expected = directions[:, :2] / directions[:, 2:]
    np.testing.assert_allclose(plane, expected, atol=1e-9)

  def test_beside_the_camera_there_is_no_plane(self):
    lens, _ = KINDS['fisheye']
    beside = np.array([[np.sin(1.6), 0, np.cos(1.6)], [0, 0, 1.0]])
    pixels, _ = lens_lib.project(lens, beside)
    plane, valid = lens_lib.plane_from_pixels(lens, pixels)
    self.assertEqual(valid.tolist(), [False, True])
    self.assertTrue(np.isfinite(plane).all())

  @parameterized.parameters('opencv14', 'fisheye', 'eucm', 'equirectangular')
  def test_on_a_device(self, kind):
    lens, degrees = KINDS[kind]
    directions = _directions(degrees)[3:]
    expected, _ = lens_lib.project(lens, directions)
    project = jax.jit(lambda points: lens_lib.project(lens, points))
    look = jax.jit(lambda pixels: lens_lib.rays_from_pixels(lens, pixels))
    pixels, valid = project(jnp.asarray(directions, jnp.float32))
    self.assertTrue(bool(valid.all()))
    np.testing.assert_allclose(pixels, expected, atol=2e-3, rtol=2e-6)
    rays, valid = look(pixels)
    self.assertTrue(bool(valid.all()))
    np.testing.assert_allclose(rays, directions, atol=2e-5)
    shaped, _ = lens_lib.project(lens, directions.reshape(3, -1, 3))
    np.testing.assert_array_equal(shaped.reshape(-1, 2), expected)


class JacobianTest(parameterized.TestCase):
  @parameterized.parameters(*KINDS)
  def test_equals_finite_differences(self, kind):
    lens, degrees = KINDS[kind]
    points = 2 * _directions(degrees, 60)
    found, valid = lens_lib.jacobian(lens, points)
    self.assertTrue(valid.all())
    step = 1e-6
    numeric = [
      lens_lib.project(lens, points + step * axis)[0]
      - lens_lib.project(lens, points - step * axis)[0]
      for axis in np.eye(3)
    ]
    numeric = np.stack(numeric, -1) / (2 * step)
    scale = 1 + np.abs(numeric).max((1, 2), keepdims=True)
    np.testing.assert_allclose(found / scale, numeric / scale, atol=1e-6)

  @parameterized.parameters('opencv14', 'fisheye', 'division', 'eucm')
  def test_of_rays_equals_finite_differences(self, kind):
    lens, degrees = KINDS[kind]
    pixels, _ = lens_lib.project(lens, _directions(degrees, 60))
    rays, _ = lens_lib.rays_from_pixels(lens, pixels)
    found, _ = lens_lib.ray_jacobian(lens, rays)
    numeric = [
      lens_lib.rays_from_pixels(lens, pixels + 1e-3 * axis)[0]
      - lens_lib.rays_from_pixels(lens, pixels - 1e-3 * axis)[0]
      for axis in np.eye(2)
    ]
    np.testing.assert_allclose(
      found, np.stack(numeric, -1) / 2e-3, rtol=1e-4, atol=1e-8
    )

  @parameterized.parameters('opencv14', 'fisheye')
  def test_of_the_inverse_on_a_device(self, kind):
    lens, degrees = KINDS[kind]
    rays = _directions(degrees, 20)[3:]
    expected, _ = lens_lib.ray_jacobian(lens, rays)
    pixels, _ = lens_lib.project(lens, jnp.asarray(rays, jnp.float32))
    slope = jax.vmap(
      jax.jacrev(lambda p: lens_lib.rays_from_pixels(lens, p)[0])
    )
    np.testing.assert_allclose(slope(pixels), expected, rtol=1e-3, atol=2e-6)


class FoldTest(parameterized.TestCase):
  def test_where_a_polynomial_turns_back(self):
    self.assertAlmostEqual(
      distortion_lib.fold((-0.25,), ()), (4 / 3) ** 0.5, places=12
    )
    self.assertEqual(distortion_lib.fold(TUM[:2] + TUM[4:], ()), np.inf)
    # A denominator that vanishes at r = 2.
    self.assertAlmostEqual(distortion_lib.fold((), (-0.25,)), 2.0, places=12)

  def test_beyond_the_fold_nothing_is_projected(self):
    lens = lens_lib.Lens('opencv', K, np.array([-0.25, 0, 0, 0]))
    radius = np.array([1.1, 1.2, 3.0, 1e6])
    points = np.stack([radius, 0 * radius, np.ones(4)], -1)
    pixels, valid = lens_lib.project(lens, points)
    self.assertEqual(valid.tolist(), [True, False, False, False])
    self.assertTrue(np.isfinite(pixels).all())

  def test_a_second_turn_makes_no_second_lens(self):
    # r (1 - r^2 + 0.19 r^4) rises to r = 0.68, falls, and rises from 1.59 on:
    # upright again, and at r = 2 over the pixels of the middle.
    lens = lens_lib.Lens('opencv', K, np.array([-1, 0.19, 0, 0]))
    points = np.array([[0.6, 0, 1], [1.0, 0, 1], [2.0, 0, 1], [3.0, 0, 1]])
    _, valid = lens_lib.project(lens, points)
    self.assertEqual(valid.tolist(), [True, False, False, False])
    pixels = K[:2, 2] + 520.9 * np.array([[0.2, 0], [5.0, 0]])
    rays, valid = lens_lib.rays_from_pixels(lens, pixels)
    self.assertEqual(valid.tolist(), [True, False])
    self.assertLess(rays[0, 0] / rays[0, 2], 0.68)

  def test_a_fisheye_folds_too(self):
    lens = lens_lib.Lens('fisheye', K, np.array([-0.1, 0, 0, 0]))
    crest = (1 / 0.3) ** 0.5  # radians, 105 degrees
    off = np.array([crest - 0.01, crest + 0.01, 2.5])
    points = np.stack([np.sin(off), 0 * off, np.cos(off)], -1)
    _, valid = lens_lib.project(lens, points)
    self.assertEqual(valid.tolist(), [True, False, False])
    far = K[:2, 2] + [[520.9 * crest, 0]]
    self.assertFalse(lens_lib.rays_from_pixels(lens, far)[1].any())

  @parameterized.parameters(*KINDS)
  def test_what_cannot_be_seen_is_finite(self, kind):
    lens, _ = KINDS[kind]
    points = np.array(
      [[0, 0, 0], [0, 0, -1], [np.nan, 0, 1], [1e9, 0, -1], [1e9, 1, 1e-3]]
    )
    pixels, valid = lens_lib.project(lens, points)
    self.assertTrue(np.isfinite(pixels).all())
    self.assertFalse(valid[[0, 2]].any())
    if kind != 'equirectangular':
      self.assertFalse(valid[1])
    slope = jax.grad(lambda x: lens_lib.project(lens, x)[0].sum())
    self.assertTrue(bool(jnp.isfinite(slope(jnp.asarray(points[:2]))).all()))
    pixels = np.array([[np.nan, 0], [1e7, -1e7], [np.inf, 0]])
    rays, valid = lens_lib.rays_from_pixels(lens, pixels)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1)
    self.assertFalse(valid[[0, 2]].any())
    back = jax.grad(lambda x: lens_lib.rays_from_pixels(lens, x)[0].sum())
    self.assertTrue(bool(jnp.isfinite(back(jnp.asarray(pixels[1]))).all()))


class UseTest(absltest.TestCase):
  def test_only_a_pinhole_is_its_matrix(self):
    zero = lens_lib.Lens('opencv', K, np.zeros(5))
    np.testing.assert_array_equal(lens_lib.plain_intrinsics(zero), K)
    for kind in ('opencv5', 'equidistant', 'fov', 'eucm'):
      with self.assertRaisesRegex(ValueError, 'expected a pinhole: undistort'):
        lens_lib.plain_intrinsics(KINDS[kind][0])

  def test_pixels_per_radian(self):
    for kind in ('pinhole', 'fisheye', 'fov', 'division', 'eucm'):
      lens, _ = KINDS[kind]
      slope, _ = lens_lib.jacobian(lens, np.array([0, 0, 1.0]))
      self.assertAlmostEqual(
        lens.focal_length, np.linalg.det(slope[:, :2]) ** 0.5, places=9
      )


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
    (lens_lib.Lens('fishy', K), 'unknown camera model'),
    (lens_lib.Lens('pinhole', K[:2]), r'finite \[3, 3\]'),
    (lens_lib.Lens('pinhole', -K), 'must be positive'),
    (lens_lib.Lens('opencv', K, np.zeros(3)), '3 distortion coefficients'),
    (lens_lib.Lens('pinhole', K, np.zeros(4)), "4 dist.*'pinhole' takes 0"),
    (
      lens_lib.Lens('fisheye', K, np.zeros(5)),
      "'fisheye' takes 0 or 4, in the",
    ),
    (lens_lib.Lens('fov', K), "0 distortion coefficients; 'fov' takes 1"),
    (lens_lib.Lens('fov', K, np.zeros(1)), 'omega = 0 must be between'),
    (lens_lib.Lens('eucm', K, np.array([2.0, 1])), r'alpha = 2 must be of'),
    (
      lens_lib.Lens('opencv', K, np.array([0.0] * 13 + [2])),
      'tilts of the sensor',
    ),
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
    lens = lens_lib.Lens('pinhole', K)
    with self.assertRaisesRegex(ValueError, r'pixels must be \[\.\.\., 2\]'):
      lens_lib.rays_from_pixels(lens, np.zeros(3))
    with self.assertRaisesRegex(ValueError, r'points must be \[\.\.\., 3\]'):
      lens_lib.project(lens, np.zeros((3, 2)))


if __name__ == '__main__':
  absltest.main()
