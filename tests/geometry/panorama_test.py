# SPDX-License-Identifier: Apache-2.0
"""Panoramas: the convention, and stitching a world of known colours."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import camera
from i2ploc.geometry import fisheye
from i2ploc.geometry import panorama as panorama_lib
from i2ploc.geometry import resizing
from i2ploc.geometry import rigid
from tests.geometry import fisheye_test
from tests.testing import compiled

panorama = compiled.Module(panorama_lib)

# The fisheyes of KITTI-360 in the frame of its GPS/IMU unit (x forward, y
# right, z down), as calib_cam_to_pose.txt prints them.
IMU_FROM_LEFT = np.asarray(
  [
    [0.9995185086, 0.0041276589, -0.0307524527, 0.7264036936],
    [-0.0307926666, 0.0100608424, -0.9994751579, -0.1499658517],
    [-0.0038160970, 0.9999408692, 0.0101830998, -1.0686400091],
  ]
)
IMU_FROM_RIGHT = np.asarray(
  [
    [-0.9996821702, 0.0005703407, -0.0252038325, 0.7016842127],
    [-0.0252033830, 0.0007820814, 0.9996820384, 0.7463650950],
    [0.0005898709, 0.9999995315, -0.0007674583, -1.0751978255],
  ]
)
# Panorama x is the vehicle's right, y its down, z its forward.
IMU_FROM_PANORAMA = np.asarray([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
CENTER = (IMU_FROM_LEFT[:, 3] + IMU_FROM_RIGHT[:, 3]) / 2
LENSES = (fisheye_test.LEFT, fisheye_test.RIGHT)
SOURCE = (350, 350)  # a quarter of the real images
HALF_VIEW = np.radians(94)
SIZE = (128, 256)


def _motions(swap=False):
  poses = (IMU_FROM_LEFT, IMU_FROM_RIGHT)
  motions = []
  for pose in poses[::-1] if swap else poses:
    rotation = pose[:, :3].T @ IMU_FROM_PANORAMA
    translation = pose[:, :3].T @ (CENTER - pose[:, 3])
    motions.append(
      rigid.Rigid(
        jnp.asarray(rotation, jnp.float32),
        jnp.asarray(translation, jnp.float32),
      )
    )
  return motions


def _small(lens):
  lens = fisheye.Lens(*(jnp.asarray(x, jnp.float32) for x in lens))
  return fisheye.resize(lens, SOURCE[0] / 1400)


@jax.jit
def _find_seams(motions, radius, half_view):
  return panorama.find_seams(
    [_small(lens) for lens in LENSES],
    motions,
    SIZE,
    SOURCE,
    radius=radius,
    half_view=half_view,
  )


def _seams(radius=20.0, half_view=HALF_VIEW, swap=False):
  return _find_seams(_motions(swap), radius, half_view)


def _paint(directions):
  """A colour for every direction, smooth, each direction its own."""
  x, y, z = np.moveaxis(np.asarray(directions), -1, 0)
  return 128 + 100 * np.stack([x + 0.2 * y * z, y, z + 0.2 * x], -1)


@jax.jit
def _rays(lens):
  rows, columns = jnp.mgrid[: SOURCE[0], : SOURCE[1]] + 0.5
  return fisheye.bearings(lens, jnp.stack([columns, rows], -1))


def _photograph(radius):
  """[2, H, W, 3] what the fisheyes see of a painted sphere about the rig."""
  images = []
  for lens, motion in zip(LENSES, _motions(), strict=True):
    rays, valid = _rays(_small(lens))
    rays = np.asarray(rays) @ np.asarray(motion.rotation)
    origin = np.asarray(rigid.inverse(motion).translation)
    along = rays @ origin
    to_sphere = -along + np.sqrt(along**2 + radius**2 - origin @ origin)
    hit = origin + to_sphere[..., None] * rays
    images.append(np.where(valid[..., None], _paint(hit / radius), 0))
  return np.stack(images)


class ConventionTest(parameterized.TestCase):
  def test_a_pixel_is_intrinsics_times_angles(self):
    matrix = panorama.sphere_intrinsics((90, 180))
    directions = {
      (0, 0): (0, 0, 1),
      (np.pi / 2, 0): (1, 0, 0),
      (-np.pi / 2, 0): (-1, 0, 0),
      (0, np.pi / 4): (0, 1, 1),
      (3 * np.pi / 4, -np.pi / 4): (1, -np.sqrt(2), -1),
    }
    angles = np.asarray(list(directions), np.float32)
    points = 7 * np.asarray(list(directions.values()), np.float32)
    expected = np.column_stack([angles, np.ones(5)]) @ matrix.T
    found, valid = panorama.project(matrix, points)
    np.testing.assert_allclose(found, expected[:, :2], atol=1e-4)
    self.assertTrue(valid.all())
    np.testing.assert_allclose(found[0], [90, 45])  # ahead is the centre
    np.testing.assert_allclose(found[1], [135, 45])  # right of it, right
    self.assertGreater(found[3, 1], 45)  # down is down

  def test_azimuth_is_the_cameras(self):
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    matrix = panorama.sphere_intrinsics((64, 128))
    pixels, _ = panorama.project(matrix, points)
    np.testing.assert_allclose(
      (pixels[:, 0] - 64) / matrix[0, 0], camera.azimuth(points), atol=1e-5
    )

  @parameterized.parameters((), (5,), (2, 3))
  def test_bearings_and_projection_are_inverse(self, *batch):
    matrix = panorama.sphere_intrinsics(SIZE)
    pixels = np.random.default_rng(1).uniform((0, 0), (256, 128), (*batch, 2))
    rays = panorama.bearings(matrix, pixels)
    np.testing.assert_allclose(
      np.linalg.norm(rays, axis=-1), np.ones(batch), rtol=1e-5
    )
    found, _ = jax.jit(panorama.project)(matrix, 12 * rays)
    np.testing.assert_allclose(found, pixels, atol=1e-3)

  def test_resizing_scales_the_intrinsics(self):
    resized = resizing.resize_intrinsics(
      panorama.sphere_intrinsics((64, 128)), (64, 128), (96, 144)
    )
    np.testing.assert_allclose(
      resized, panorama.sphere_intrinsics((96, 144)), rtol=1e-6
    )

  def test_poles_and_the_centre_are_finite_with_finite_gradients(self):
    matrix = jnp.asarray(panorama.sphere_intrinsics(SIZE))
    points = jnp.asarray([[0.0, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, -1]])
    pixels, valid = panorama.project(matrix, points)
    np.testing.assert_array_equal(valid, [False, True, True, True])
    np.testing.assert_allclose(pixels[1:3, 1], [128, 0], atol=1e-4)
    gradient = jax.grad(lambda p: panorama.project(matrix, p)[0].sum())(points)
    self.assertTrue(np.isfinite(gradient).all())


class SampleTest(absltest.TestCase):
  def test_pixel_centres_give_pixels_and_between_is_linear(self):
    image = np.arange(24, dtype=np.uint8).reshape(3, 4, 2)
    pixels = np.asarray([[0.5, 0.5], [3.5, 2.5], [1.5, 1.0], [2.0, 1.5]])
    found = panorama.sample(jnp.asarray(image), jnp.asarray(pixels))
    expected = [
      image[0, 0],
      image[2, 3],
      (image[0, 1] + image[1, 1]) / 2,
      (image[1, 1] + image[1, 2]) / 2,
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)

  def test_beyond_the_border_it_repeats_and_nan_harms_no_other(self):
    image = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    pixels = np.asarray([[-3.0, -3], [9, 9], [0, 1.5], [np.nan, 1]])
    found = panorama.sample(jnp.asarray(image), jnp.asarray(pixels))
    np.testing.assert_allclose(found[:3, 0], [0, 11, 4])


class StitchTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.seams = _seams()
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    cls.rays = np.asarray(
      panorama.bearings(
        jnp.asarray(panorama.sphere_intrinsics(SIZE)),
        jnp.stack([columns, rows], -1),
      )
    )

  def test_planted_colours_appear_in_their_directions(self):
    photographs = _photograph(20.0)
    found = np.asarray(jax.jit(panorama.stitch)(photographs, self.seams))
    expected = _paint(self.rays)
    # A third of a degree is half a level here; a quarter of a pixel less.
    np.testing.assert_allclose(found, expected, atol=0.7)
    # The cameras exchanged, the rig's extent forgotten (0.45 m of 12 m): both
    # give a panorama, of another world.
    swapped = panorama.stitch(photographs, _seams(swap=True))
    self.assertGreater(np.abs(swapped - expected).max(), 50)
    near = _photograph(12.0)
    wrong = np.asarray(panorama.stitch(near, _seams(radius=1e6)))
    right = np.asarray(panorama.stitch(near, _seams(radius=12.0)))
    np.testing.assert_allclose(right, expected, atol=0.7)
    self.assertGreater(np.abs(wrong - expected).max(), 2)

  def test_ahead_is_the_middle_and_left_comes_from_the_left_camera(self):
    weights = np.asarray(self.seams.weights)
    row = SIZE[0] // 2
    quarter, three_quarters = SIZE[1] // 4, 3 * SIZE[1] // 4
    np.testing.assert_array_equal(weights[:, row, quarter], [1, 0])
    np.testing.assert_array_equal(weights[:, row, three_quarters], [0, 1])
    for column in (0, SIZE[1] // 2, SIZE[1] - 1):
      self.assertGreater(weights[:, row, column].min(), 0)

  def test_the_real_rig_leaves_no_hole_and_blends_without_a_step(self):
    for radius in (20.0, 1e6):
      weights = np.asarray(_seams(radius=radius).weights)
      np.testing.assert_allclose(weights.sum(0), 1, atol=1e-5)
    left = np.asarray(self.seams.weights[0])
    inside = (left > 0) & (left < 1)
    self.assertBetween(inside[SIZE[0] // 2].mean(), 0.02, 0.1)
    # Behind, they overlap by five pixels and fade into each other.
    behind = np.roll(left, SIZE[1] // 2, axis=1)[SIZE[0] // 2]
    behind = behind[SIZE[1] // 2 - 20 : SIZE[1] // 2 + 20]
    self.assertEqual((behind[0], behind[-1]), (0, 1))
    self.assertLess(np.abs(np.diff(behind)).max(), 0.35)

  def test_where_no_lens_looks_it_is_black_not_nan(self):
    seams = _seams(half_view=np.radians(80))
    found = panorama.stitch(np.full((2, *SOURCE, 3), 200.0), seams)
    ahead = found[SIZE[0] // 2, SIZE[1] // 2]
    np.testing.assert_array_equal(ahead, 0)
    self.assertTrue(np.isfinite(found).all())
    np.testing.assert_allclose(found[SIZE[0] // 2, SIZE[1] // 4], 200)


if __name__ == '__main__':
  absltest.main()
