# SPDX-License-Identifier: Apache-2.0
"""Augmentation keeps image, cloud and calibration one physical scene."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import augmentation
from i2ploc.geometry import camera
from i2ploc.geometry import rigid

HEIGHT, WIDTH, SIZE = 20, 50, 3

color_jitter = jax.jit(augmentation.color_jitter)


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


def _pixels(batch):
  motion = rigid.from_matrix(batch['camera_from_lidar'][:, None])
  in_camera = rigid.apply(motion, batch['points'][..., :3])
  return camera.project(batch['intrinsics'][:, None], in_camera)


class MirrorTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_a_mirrored_point_projects_to_the_mirrored_pixel(self, jit):
    batch = _batch()
    function = jax.jit(augmentation.mirror) if jit else augmentation.mirror
    mirrored = function(batch, jnp.ones(SIZE, bool))
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


class ColorJitterTest(parameterized.TestCase):
  def _images(self):
    rng = np.random.default_rng(2)
    return jnp.asarray(rng.uniform(size=(16, 4, 6, 3)), jnp.float32)

  def test_stays_in_range_and_keeps_shape(self):
    images = self._images()
    for strength in (0.0, 0.4, 1.0):
      out = color_jitter(jax.random.key(0), images, strength)
      self.assertEqual(out.shape, images.shape)
      self.assertEqual(out.dtype, images.dtype)
      self.assertGreaterEqual(out.min(), 0)
      self.assertLessEqual(out.max(), 1)

  def test_strength_0_changes_nothing(self):
    images = self._images()
    out = color_jitter(jax.random.key(0), images, 0.0)
    np.testing.assert_allclose(out, images, atol=1e-6)

  def test_the_key_decides_and_images_differ_in_their_change(self):
    images = jnp.tile(self._images()[:1], (16, 1, 1, 1))
    out = color_jitter(jax.random.key(1), images, 0.4)
    again = color_jitter(jax.random.key(1), images, 0.4)
    other = color_jitter(jax.random.key(2), images, 0.4)
    np.testing.assert_array_equal(out, again)
    self.assertGreater(np.abs(out - other).max(), 0.01)
    self.assertGreater(np.abs(out[0] - out[1]).max(), 0.01)

  def test_black_stays_black_without_contrast_of_its_own(self):
    out = color_jitter(jax.random.key(3), jnp.zeros((16, 4, 6, 3)), 0.9)
    np.testing.assert_array_equal(out, 0)

  def test_changes_are_bounded_by_the_strength(self):
    gray = jnp.full((16, 4, 6, 3), 0.4)
    out = color_jitter(jax.random.key(4), gray, 0.2)
    # A uniform image has no contrast; saturation scales the cast's excess.
    self.assertLess(np.abs(out / 0.4 - 1).max(), 1.2 * 1.05 * 1.02 - 1 + 1e-2)
    self.assertGreater(np.abs(out / 0.4 - 1).max(), 0.1)


if __name__ == '__main__':
  absltest.main()
