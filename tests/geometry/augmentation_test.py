# SPDX-License-Identifier: Apache-2.0
"""Augmentation keeps image, cloud and calibration one physical scene."""

import colorsys
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import augmentation as augmentation_lib
from i2ploc.geometry import camera
from i2ploc.geometry import panorama
from i2ploc.geometry import rigid
from tests.testing import compiled

augmentation = compiled.Module(augmentation_lib)
# Whether there is a hue at all is decided while compiling.
_jitter = jax.jit(augmentation_lib.color_jitter, static_argnums=(2, 3))

HEIGHT, WIDTH, SIZE = 20, 50, 3


def _batch(seed=0):
  rng = np.random.default_rng(seed)
  intrinsics = np.asarray([[30.0, 0.7, 22.0], [0, 28.0, 11.0], [0, 0, 1]])
  # Axes x forward, y left, z up to x right, y down, z forward, then tilted.
  axes = np.asarray([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
  tilt, _ = np.linalg.qr(np.eye(3) + 0.1 * rng.normal(size=(3, 3)))
  tilt *= np.sign(np.diag(tilt))
  motion = np.eye(4)
  motion[:3, :3] = tilt @ axes
  motion[:3, 3] = 0.1, -0.3, 0.2
  points = rng.uniform((4, -3, -1, 0), (9, 3, 1, 1), (SIZE, 8, 4))

  def repeat(x):
    return jnp.asarray(np.broadcast_to(x, (SIZE, *x.shape)), jnp.float32)

  return {
    'image': jnp.asarray(
      rng.integers(0, 256, (SIZE, HEIGHT, WIDTH, 3)), jnp.uint8
    ),
    'intrinsics': repeat(intrinsics),
    'points': jnp.asarray(points, jnp.float32),
    'points_mask': jnp.ones((SIZE, 8), bool),
    'camera_from_lidar': repeat(motion),
  }


@jax.jit
def _pixels(batch):
  motion = rigid.from_matrix(batch['camera_from_lidar'][:, None])
  in_camera = rigid.apply(motion, batch['points'][..., :3])
  return camera.project(batch['intrinsics'][:, None], in_camera)


class MirrorTest(parameterized.TestCase):
  def test_a_mirrored_point_projects_to_the_mirrored_pixel(self):
    batch = _batch()
    mirrored = augmentation.mirror(batch, jnp.ones(SIZE, bool))
    before, valid = _pixels(batch)
    after, _ = _pixels(mirrored)
    self.assertTrue(np.all(valid))
    np.testing.assert_allclose(after[..., 0], WIDTH - before[..., 0], atol=1e-4)
    np.testing.assert_allclose(after[..., 1], before[..., 1], atol=1e-4)
    # The image alone, or the cloud alone, would be another scene.
    half = batch | {'points': mirrored['points']}
    self.assertGreater(np.abs(_pixels(half)[0] - after).max(), 1.0)

  def test_the_colour_under_a_projected_point_is_the_same(self):
    batch = _batch(1)
    mirrored = augmentation.mirror(batch, jnp.ones(SIZE, bool))
    num_inside = 0
    for i in range(SIZE):
      colors = []
      for scene in (batch, mirrored):
        # A pixel of coordinates (u, v) is the array entry [floor v, floor u].
        column, row = np.floor(np.asarray(_pixels(scene)[0][i])).astype(int).T
        inside = (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
        colors.append(
          np.asarray(scene['image'][i])[row[inside], column[inside]]
        )
      num_inside += len(colors[0])
      np.testing.assert_array_equal(*colors)
    self.assertGreater(num_inside, 10)

  def test_twice_is_the_identity(self):
    batch, flags = _batch(), jnp.asarray([True, False, True])
    twice = augmentation.mirror(augmentation.mirror(batch, flags), flags)
    self.assertSetEqual(set(twice), set(batch))
    for name, value in batch.items():
      self.assertEqual(twice[name].dtype, value.dtype, name)
      np.testing.assert_allclose(twice[name], value, rtol=1e-6, err_msg=name)

  def test_only_flagged_entries_change(self):
    batch = _batch()
    mirrored = augmentation.mirror(batch, jnp.asarray([True, False, True]))
    for name in ('image', 'intrinsics', 'points', 'camera_from_lidar'):
      same = [
        np.array_equal(a, b)
        for a, b in zip(batch[name], mirrored[name], strict=True)
      ]
      self.assertEqual(same, [False, True, False], name)
    np.testing.assert_array_equal(mirrored['points_mask'], batch['points_mask'])

  def test_the_calibration_stays_a_rigid_motion(self):
    mirrored = augmentation.mirror(_batch(), jnp.ones(SIZE, bool))
    matrix = np.asarray(mirrored['camera_from_lidar'])
    rotation = matrix[:, :3, :3]
    np.testing.assert_allclose(
      np.linalg.det(rotation), np.ones(SIZE), rtol=1e-5
    )
    np.testing.assert_allclose(
      rotation @ rotation.swapaxes(1, 2),
      np.tile(np.eye(3), (SIZE, 1, 1)),
      atol=1e-5,
    )
    np.testing.assert_array_equal(matrix[:, 3], [[0, 0, 0, 1]] * SIZE)

  def test_azimuth_changes_sign(self):
    batch = _batch()
    mirrored = augmentation.mirror(batch, jnp.ones(SIZE, bool))

    def azimuth(scene):
      motion = rigid.from_matrix(scene['camera_from_lidar'][:, None])
      return camera.azimuth(rigid.apply(motion, scene['points'][..., :3]))

    np.testing.assert_allclose(azimuth(mirrored), -azimuth(batch), atol=1e-5)


@functools.cache
def _painted(projection, size=(64, 192)):
  """A batch whose pixels and points have the color of their direction.

  The world is a sphere around the camera with a smooth pattern, so that a
  pixel, a point and the direction in the world that both show can be compared.
  """
  batch, (height, width) = _batch(3), size
  if projection == 'pinhole':
    focal = width / 2  # 45 degrees to either side
    intrinsics = [[focal, 0, width / 2 - 3], [0, focal, height / 2], [0, 0, 1]]
    project, bearings, spread = camera.project, camera.bearings, 0.5
  else:
    intrinsics = panorama.sphere_intrinsics(size)
    intrinsics[1, 1] *= 2  # 90 degrees from top to bottom
    project, bearings, spread = panorama.project, panorama.bearings, np.pi
  intrinsics = jnp.tile(jnp.asarray(intrinsics, jnp.float32), (SIZE, 1, 1))
  rows, columns = np.mgrid[:height, :width] + 0.5
  pixels = np.stack([columns, rows], -1)
  image = _pattern(bearings(intrinsics[:, None, None], pixels))
  rng = np.random.default_rng(5)
  angles = rng.uniform((-spread, -0.2), (spread, 0.2), (SIZE, 64, 2))
  azimuth, down = angles[..., 0], angles[..., 1]
  directions = np.stack(
    [
      np.cos(down) * np.sin(azimuth),
      np.sin(down),
      np.cos(down) * np.cos(azimuth),
    ],
    axis=-1,
  )
  lidar = rigid.inverse(rigid.from_matrix(batch['camera_from_lidar'][:, None]))
  points = rigid.apply(lidar, jnp.asarray(2 * directions, jnp.float32))
  batch |= {
    'image': image,
    'intrinsics': intrinsics,
    'points': jnp.concatenate([points, _pattern(directions)[..., :1]], -1),
  }

  @jax.jit
  def colors(scene):
    """Colours [B, P, 3] of the image where the points are, and which are in."""
    motion = rigid.from_matrix(scene['camera_from_lidar'][:, None])
    seen = rigid.apply(motion, scene['points'][..., :3])
    at, valid = project(scene['intrinsics'][:, None], seen)
    inside = valid & (jnp.abs(at[..., 0] - width / 2) < width / 2 - 12)
    return jax.vmap(panorama.sample)(scene['image'], at), inside

  return batch, colors


@jax.jit
def _pattern(directions):
  x, y, z = jnp.moveaxis(jnp.asarray(directions, jnp.float32), -1, 0)
  waves = [jnp.sin(3 * x + y), jnp.sin(4 * z - 2 * y), jnp.cos(2 * x - 3 * z)]
  return 0.5 + 0.5 * jnp.stack(waves, axis=-1)


ANGLES = {'pinhole': (0.1, 0.0, -0.13), 'equirectangular': (2.0, 0.013, -3.1)}


class TurnTest(parameterized.TestCase):
  @parameterized.parameters(*ANGLES)
  def test_turned_points_land_on_the_same_colours(self, projection):
    batch, colors = _painted(projection)
    angle = jnp.asarray(ANGLES[projection])
    turned = augmentation.turn(batch, angle, projection)
    painted = _pattern(
      rigid.apply(
        rigid.from_matrix(batch['camera_from_lidar'][:, None]),
        batch['points'][..., :3],
      )
      / 2
    )
    for scene in (batch, turned):
      found, inside = colors(scene)
      self.assertGreater(inside.sum(), 100)
      error = np.abs(found - painted)[inside]
      np.testing.assert_array_less(error, 0.01)
    # What the LiDAR measures beside positions does not turn.
    np.testing.assert_array_equal(
      turned['points'][..., 3], batch['points'][..., 3]
    )
    # The plausible mistakes: one of the three turns the other way.
    back = augmentation.turn(batch, -angle, projection)
    for name in ('points', 'camera_from_lidar', 'image'):
      found, inside = colors(turned | {name: back[name]})
      error = np.abs(found - painted).max(-1)
      self.assertGreater(np.median(error[0][inside[0]]), 0.02, name)

  @parameterized.parameters(*ANGLES)
  def test_back_again_is_the_identity(self, projection):
    batch, _ = _painted(projection)
    angle = jnp.asarray(ANGLES[projection])
    again = augmentation.turn(
      augmentation.turn(batch, angle, projection), -angle, projection
    )
    self.assertSetEqual(set(again), set(batch))
    for name in ('points', 'camera_from_lidar'):
      np.testing.assert_allclose(again[name], batch[name], atol=1e-5)
    # Away from the borders, where a pinhole image had to be made up.
    inner = np.s_[:, 8:-8, 24:-24] if projection == 'pinhole' else np.s_[:]
    np.testing.assert_allclose(
      again['image'][inner], batch['image'][inner], atol=5e-3
    )

  @parameterized.parameters(*ANGLES)
  def test_no_angle_changes_nothing(self, projection):
    batch, _ = _painted(projection)
    same = augmentation.turn(batch, jnp.zeros(SIZE), projection)
    for name, value in batch.items():
      np.testing.assert_allclose(same[name], value, atol=1e-5, err_msg=name)

  def test_a_quarter_turn_rolls_a_quarter_of_the_columns(self):
    batch, _ = _painted('equirectangular')
    turned = augmentation.turn(
      batch, jnp.full(SIZE, np.pi / 2), 'equirectangular'
    )
    # What was ahead is on the right, and what was on the left is ahead.
    np.testing.assert_allclose(
      turned['image'], np.roll(batch['image'], 48, 2), atol=1e-4
    )
    x, y = np.moveaxis(np.asarray(batch['points'][..., :2]), -1, 0)
    np.testing.assert_allclose(turned['points'][..., 0], y, atol=1e-5)
    np.testing.assert_allclose(turned['points'][..., 1], -x, atol=1e-5)

  def test_the_camera_stays_where_it_was(self):
    batch, _ = _painted('equirectangular')
    angle = jnp.asarray(ANGLES['equirectangular'])
    turned = augmentation.turn(batch, angle, 'equirectangular')

    def center(scene):
      return rigid.inverse(
        rigid.from_matrix(scene['camera_from_lidar'])
      ).translation

    np.testing.assert_allclose(
      np.einsum('bij,bj->bi', rigid.rotation_z(angle), center(turned)),
      center(batch),
      atol=1e-5,
    )
    rotation = np.asarray(turned['camera_from_lidar'])[:, :3, :3]
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0, rtol=1e-5)

  def test_columns_are_interpolated_around_the_seam(self):
    batch, _ = _painted('equirectangular')
    half = jnp.full(SIZE, np.pi / 192)
    image = augmentation.turn(batch, half, 'equirectangular')['image']
    expected = (batch['image'] + jnp.roll(batch['image'], 1, 2)) / 2
    np.testing.assert_allclose(image, expected, atol=1e-5)

  def test_images_of_bytes_keep_their_units(self):
    batch, angle = _batch(), jnp.asarray([0.05, 0.0, -0.05])
    image = augmentation.turn(batch, angle, 'pinhole')['image']
    self.assertEqual(image.dtype, jnp.float32)
    np.testing.assert_allclose(image[1], batch['image'][1], atol=0.1)

  def test_an_unknown_projection_is_named(self):
    with self.assertRaisesRegex(ValueError, "unknown projection 'cube'"):
      augmentation.turn(_batch(), jnp.zeros(SIZE), 'cube')


class ColorJitterTest(parameterized.TestCase):
  def _images(self):
    rng = np.random.default_rng(2)
    return jnp.asarray(rng.uniform(size=(16, 4, 6, 3)), jnp.float32)

  def test_stays_in_range_and_keeps_shape(self):
    images = self._images()
    for strength in (0.0, 0.4, 1.0):
      out = augmentation.color_jitter(jax.random.key(0), images, strength)
      self.assertEqual(out.shape, images.shape)
      self.assertEqual(out.dtype, images.dtype)
      self.assertGreaterEqual(out.min(), 0)
      self.assertLessEqual(out.max(), 1)

  def test_strength_0_changes_nothing(self):
    images = self._images()
    out = augmentation.color_jitter(jax.random.key(0), images, 0.0)
    np.testing.assert_allclose(out, images, atol=1e-6)

  def test_the_key_decides_and_images_differ_in_their_change(self):
    images = jnp.tile(self._images()[:1], (16, 1, 1, 1))
    out = augmentation.color_jitter(jax.random.key(1), images, 0.4)
    again = augmentation.color_jitter(jax.random.key(1), images, 0.4)
    other = augmentation.color_jitter(jax.random.key(2), images, 0.4)
    np.testing.assert_array_equal(out, again)
    self.assertGreater(np.abs(out - other).max(), 0.01)
    self.assertGreater(np.abs(out[0] - out[1]).max(), 0.01)

  def test_black_stays_black_without_contrast_of_its_own(self):
    out = augmentation.color_jitter(
      jax.random.key(3), jnp.zeros((16, 4, 6, 3)), 0.9
    )
    np.testing.assert_array_equal(out, 0)

  def test_changes_are_bounded_by_the_strength(self):
    gray = jnp.full((16, 4, 6, 3), 0.4)
    out = augmentation.color_jitter(jax.random.key(4), gray, 0.2)
    # A uniform image has no contrast; saturation scales the cast's excess.
    self.assertLess(np.abs(out / 0.4 - 1).max(), 1.2 * 1.05 * 1.02 - 1 + 1e-2)
    self.assertGreater(np.abs(out / 0.4 - 1).max(), 0.1)

  @parameterized.parameters(0.5, 0.1)
  def test_hues_turn_and_nothing_else_does(self, hue):
    images = np.array(self._images())
    images[:, 0, 0] = 0.8, 0.3, 0.2  # of a hue that tells the turn
    out = _jitter(jax.random.key(5), images, 0.0, hue)
    turns = []
    for before, after in zip(images, np.asarray(out), strict=True):
      hues = [colorsys.rgb_to_hsv(*image[0, 0])[0] for image in (before, after)]
      turn = (hues[1] - hues[0] + 0.5) % 1.0 - 0.5
      for pixel, found in zip(
        before.reshape(-1, 3), after.reshape(-1, 3), strict=True
      ):
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        expected = colorsys.hsv_to_rgb((h + turn) % 1.0, s, v)
        np.testing.assert_allclose(found, expected, atol=1e-4)
      turns.append(turn)
    self.assertLess(np.abs(turns).max(), hue + 1e-4)
    self.assertGreater(np.max(turns) - np.min(turns), hue)

  def test_what_else_is_drawn_does_not_depend_on_the_hue(self):
    images = self._images()
    plain = _jitter(jax.random.key(6), images, 0.4, 0.0)
    turned = _jitter(jax.random.key(6), images, 0.4, 0.5)
    np.testing.assert_allclose(turned.max(-1), plain.max(-1), atol=1e-6)
    np.testing.assert_allclose(turned.min(-1), plain.min(-1), atol=1e-6)
    self.assertGreater(np.abs(turned - plain).max(), 0.1)

  def test_what_has_no_hue_stays_with_finite_gradients(self):
    gray = jnp.tile(
      jnp.asarray([0.0, 0.4, 1.0])[:, None, None, None], (1, 2, 2, 3)
    )

    def total(images):
      out = _jitter(jax.random.key(7), images, 0.0, 0.5)
      return out.sum(), out

    (_, out), gradient = jax.value_and_grad(total, has_aux=True)(gray)
    np.testing.assert_allclose(out, gray, atol=1e-6)
    self.assertTrue(np.isfinite(gradient).all())


class CutoutTest(parameterized.TestCase):
  def _hidden(self, seed=0, size=200, shape=(40, 60), **fields):
    """Which pixels [B, H, W] of images of ones are gone."""
    images = jnp.ones((size, *shape, 3))
    out = np.asarray(
      augmentation.cutout(jax.random.key(seed), images, **fields)
    )
    gone = (out == 0).all(-1)
    np.testing.assert_array_equal(out[~gone], 1)  # all channels or none
    return gone

  def test_a_hole_is_a_rectangle_of_the_sides_asked_for(self):
    gone = self._hidden(probability=1.0, num_holes=1, sides=(0.25, 0.5))
    rows, columns = gone.any(2), gone.any(1)
    np.testing.assert_array_equal(gone, rows[:, :, None] & columns[:, None])
    for along, length in ((rows, 40), (columns, 60)):
      runs = np.abs(np.diff(np.pad(along, ((0, 0), (1, 1))).astype(int)))
      np.testing.assert_array_equal(runs.sum(1), 2)  # one piece
      sides = along.sum(1)
      self.assertBetween(sides.min(), 0.25 * length - 1, 0.3 * length)
      self.assertBetween(sides.max(), 0.45 * length, 0.5 * length + 1)
    self.assertGreater(len(np.unique(gone, axis=0)), 190)
    # Anywhere in the image, up to its borders.
    self.assertTrue(rows.any(0).all() and columns.any(0).all())

  def test_nine_in_ten_images_lose_a_third_to_a_half(self):
    gone = self._hidden(seed=1, size=600).mean((1, 2))
    self.assertBetween(np.mean(gone > 0), 0.86, 0.94)
    # Five of 0.33^2 of the image on average; less, where they overlap.
    self.assertBetween(gone[gone > 0].mean(), 0.3, 0.5)
    self.assertEqual(self._hidden(probability=0.0).sum(), 0)


if __name__ == '__main__':
  absltest.main()
