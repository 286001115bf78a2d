# SPDX-License-Identifier: Apache-2.0
"""The unified projection model: limits, round trips, the real lenses."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import camera
from i2ploc.geometry import fisheye as fisheye_lib
from tests.testing import compiled

fisheye = compiled.Module(fisheye_lib)

# The two fisheyes of KITTI-360, as its calibration files print them.
LEFT = fisheye.Lens(
  xi=2.2134047507854890e00,
  k1=1.6798235660113681e-02,
  k2=1.6548773243373522e00,
  p1=4.2223943394772046e-04,
  p2=4.2462134260997584e-04,
  gamma1=1.3363220825849971e03,
  gamma2=1.3357883350012958e03,
  u0=7.1694323510126321e02,
  v0=7.0576498308221585e02,
)
RIGHT = fisheye.Lens(
  xi=2.5535139132482758e00,
  k1=4.9370396274089505e-02,
  k2=4.5068455478645308e00,
  p1=1.3477698472982495e-03,
  p2=-7.0340482615055284e-04,
  gamma1=1.4854388981875156e03,
  gamma2=1.4849477411748708e03,
  u0=6.9888316784030962e02,
  v0=6.9814541887723055e02,
)
# A mirror inside the sphere's radius, and a lens that bends the other way.
CATADIOPTRIC = LEFT._replace(xi=0.8, k1=-0.05, k2=0.01, gamma1=300.0)
PROJECT, BEARINGS = jax.jit(fisheye.project), jax.jit(fisheye.bearings)


def _lens(lens):
  return fisheye.Lens(*(jnp.asarray(x, jnp.float32) for x in lens))


def _directions(half_view, count=400, seed=0):
  """Unit vectors up to `half_view` off the axis, the axis among them."""
  rng = np.random.default_rng(seed)
  angle = np.append(0.0, rng.uniform(0, half_view, count))
  turn = rng.uniform(-np.pi, np.pi, count + 1)
  sides = np.sin(angle) * np.stack([np.cos(turn), np.sin(turn)])
  return np.stack([*sides, np.cos(angle)], -1).astype(np.float32)


def _oracle(lens, point):
  """One point in float64, straight from the paper."""
  x, y, z = np.asarray(point, np.float64) / np.linalg.norm(point)
  x, y = x / (z + lens.xi), y / (z + lens.xi)
  r2 = x * x + y * y
  radial = 1 + lens.k1 * r2 + lens.k2 * r2**2
  dx = 2 * lens.p1 * x * y + lens.p2 * (r2 + 2 * x * x)
  dy = 2 * lens.p2 * x * y + lens.p1 * (r2 + 2 * y * y)
  return (
    lens.gamma1 * (x * radial + dx) + lens.u0,
    lens.gamma2 * (y * radial + dy) + lens.v0,
  )


class ProjectTest(parameterized.TestCase):
  @parameterized.parameters(LEFT, RIGHT, CATADIOPTRIC)
  def test_equals_the_paper_point_by_point(self, *lens):
    lens = fisheye.Lens(*lens)
    points = _directions(1.9) * 7.0
    found, valid = PROJECT(_lens(lens), points)
    self.assertTrue(valid.all())
    expected = [_oracle(lens, point) for point in points]
    np.testing.assert_allclose(found, expected, atol=2e-3)
    # Swapped tangential coefficients are the mistake that formulas invite.
    swapped, _ = PROJECT(_lens(lens._replace(p1=lens.p2, p2=lens.p1)), points)
    if lens.p1 != lens.p2:
      self.assertGreater(np.abs(swapped - found).max(), 2e-3)

  def test_without_mirror_and_distortion_it_is_a_pinhole(self):
    pinhole = fisheye.Lens(0, 0, 0, 0, 0, 70, 65, 58, 21)
    matrix = np.asarray([[70, 0, 58], [0, 65, 21], [0, 0, 1]], np.float32)
    points = _directions(1.2) * 5
    found, _ = PROJECT(_lens(pinhole), points)
    expected, _ = camera.project(matrix, points)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)

  def test_with_the_centre_on_the_sphere_it_is_stereographic(self):
    lens = _lens(fisheye.Lens(1, 0, 0, 0, 0, 100, 100, 0, 0))
    directions = _directions(2.8)
    found, valid = PROJECT(lens, directions)
    self.assertTrue(valid.all())
    angle = np.arctan2(
      np.linalg.norm(directions[:, :2], axis=1), directions[:, 2]
    )
    np.testing.assert_allclose(
      np.linalg.norm(found, axis=1), 100 * np.tan(angle / 2), rtol=2e-4
    )

  def test_both_lenses_of_kitti_360_end_at_one_circle(self):
    # Computed by hand from the files: 94 degrees off axis lie 672 pixels from
    # the centre in either image of 1400 x 1400, within 1.5.
    angle = np.radians(94)
    for lens in (LEFT, RIGHT):
      pixel, _ = PROJECT(
        _lens(lens), np.asarray([np.sin(angle), 0, np.cos(angle)])
      )
      np.testing.assert_allclose(pixel[0] - lens.u0, 672, atol=1.5)

  def test_where_the_model_is_not_one_to_one_is_invalid_and_finite(self):
    # cos(117 deg) = -0.454 < -1 / 2.2134 = -0.4518 < cos(116.8 deg).
    angles = np.radians([116.8, 117.0, 180.0])
    points = np.stack([np.sin(angles), 0 * angles, np.cos(angles)], -1)
    points = np.concatenate([points, np.zeros((1, 3))]).astype(np.float32)
    pixels, valid = PROJECT(_lens(LEFT), points)
    np.testing.assert_array_equal(valid, [True, False, False, False])
    self.assertTrue(np.isfinite(pixels).all())
    gradient = jax.grad(lambda p: PROJECT(_lens(LEFT), p)[0].sum())(
      jnp.asarray(points)
    )
    self.assertTrue(np.isfinite(gradient).all())

  def test_a_distortion_that_folds_back_is_invalid_from_its_crest_on(self):
    # d/dr (r - r^3) = 0 at r^2 = 1/3: with xi = 0, 30 degrees off axis.
    lens = _lens(fisheye.Lens(0, -1, 0, 0, 0, 1, 1, 0, 0))
    angles = np.radians([29.9, 30.1])
    points = np.stack([np.sin(angles), 0 * angles, np.cos(angles)], -1)
    _, valid = PROJECT(lens, points)
    np.testing.assert_array_equal(valid, [True, False])
    # Two crests: 1 - 3 s + s^2 (k1 = -1, k2 = 0.2) is first 0 at s = 0.382.
    lens = lens._replace(k2=jnp.asarray(0.2))
    radius = np.sqrt([0.381, 0.383, 2.7])
    points = np.stack([radius, 0 * radius, np.ones(3)], -1)
    _, valid = PROJECT(lens, points)
    np.testing.assert_array_equal(valid, [True, False, False])


class BearingsTest(parameterized.TestCase):
  @parameterized.parameters(
    (LEFT, PROJECT, BEARINGS, (200,)),
    (RIGHT, PROJECT, BEARINGS, (2, 100)),
    (CATADIOPTRIC, PROJECT, BEARINGS, ()),
    (LEFT, fisheye.project, fisheye.bearings, (50,)),
  )
  def test_inverts_the_projection(self, lens, project, bearings, batch):
    count = int(np.prod(batch))
    directions = _directions(1.75, count)[-count:].reshape(*batch, 3)
    pixels, valid = project(_lens(lens), 20 * directions)
    self.assertTrue(valid.all())
    found, valid = bearings(_lens(lens), pixels)
    self.assertTrue(valid.all())
    np.testing.assert_allclose(found, directions, atol=2e-5)
    np.testing.assert_allclose(
      np.linalg.norm(found, axis=-1), np.ones(batch), atol=1e-6
    )

  @parameterized.parameters(LEFT, RIGHT)
  def test_every_pixel_of_the_image_circle_comes_back(self, *lens):
    lens = fisheye.Lens(*lens)
    rows, columns = np.mgrid[10:1400:40, 10:1400:40] + 0.5
    pixels = np.stack([columns, rows], -1).astype(np.float32)
    circle = np.hypot(columns - lens.u0, rows - lens.v0) < 675
    directions, valid = BEARINGS(_lens(lens), pixels)
    self.assertTrue(valid[circle].all())
    found, _ = PROJECT(_lens(lens), directions)
    np.testing.assert_allclose(found[circle], pixels[circle], atol=0.01)

  def test_a_pixel_of_no_direction_is_invalid_with_finite_gradients(self):
    # The crest of r - r^3 is 0.385: nothing is imaged farther out.
    lens = _lens(fisheye.Lens(0, -1, 0, 0, 0, 1, 1, 0, 0))
    pixels = jnp.asarray([[0.38, 0.0], [0.39, 0.0], [50.0, 50.0]])
    directions, valid = BEARINGS(lens, pixels)
    np.testing.assert_array_equal(valid, [True, False, False])
    self.assertTrue(np.isfinite(directions).all())
    total = jax.jit(jax.grad(lambda p: fisheye.bearings(lens, p)[0].sum()))
    gradient = total(pixels)
    self.assertTrue(np.isfinite(gradient).all())


class ResizeTest(absltest.TestCase):
  def test_a_point_keeps_its_relative_position(self):
    points = _directions(1.6)
    before, _ = PROJECT(_lens(LEFT), points)
    after, _ = fisheye.project(fisheye.resize(_lens(LEFT), 0.5), points)
    np.testing.assert_allclose(2 * after, before, atol=1e-3)


if __name__ == '__main__':
  absltest.main()
