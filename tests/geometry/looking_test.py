# SPDX-License-Identifier: Apache-2.0
"""Views of panoramas show what lies in their direction."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import looking as looking_lib
from i2ploc.geometry import panorama
from input_pipeline.synthetic_city import rig
from tests.testing import compiled

looking = compiled.Module(looking_lib)

SIZE, FIELD = (31, 41), 1.2


def _look(images, intrinsics, yaw):
  return np.asarray(
    looking.look(
      jnp.asarray(images, jnp.float32),
      jnp.asarray(intrinsics, jnp.float32),
      jnp.asarray(yaw, jnp.float32),
      size=SIZE,
      field=FIELD,
    )
  )


def _slow_look(image, intrinsics, yaw):
  """Pixel by pixel, by angles instead of rotated rays, columns modulo W."""
  (height, width), (rows, columns) = SIZE, image.shape[:2]
  out = np.zeros((height, width, image.shape[2]))
  focal = width / 2 / np.tan(FIELD / 2)
  for i in range(height):
    for j in range(width):
      x, y = (j + 0.5 - width / 2) / focal, (i + 0.5 - height / 2) / focal
      azimuth = np.arctan(x) - yaw
      elevation = np.arctan(y / np.hypot(1.0, x))
      u = intrinsics[0, 0] * azimuth + intrinsics[0, 2] - 0.5
      v = intrinsics[1, 1] * elevation + intrinsics[1, 2] - 0.5
      v = np.clip(v, 0, rows - 1)
      for column in (np.floor(u), np.floor(u) + 1):
        for row in (np.floor(v), np.floor(v) + 1):
          weight = (1 - abs(u - column)) * (1 - abs(v - row))
          row = int(min(row, rows - 1))
          out[i, j] += weight * image[row, int(column) % columns]
  return out


class LookTest(parameterized.TestCase):
  def test_the_middle_shows_what_lies_in_the_direction_in_the_city(self):
    city = rig.make_panorama('tiny')
    # Coloured by direction: x forward, y left, z up.
    image = 0.5 + 0.5 * rig.camera_directions(city)
    yaw = np.asarray([0.0, np.pi / 2, -np.pi / 2, np.pi, 0.7, -2.5, 9.0])
    n = len(yaw)
    views = _look(
      np.tile(image, (n, 1, 1, 1)), np.tile(city.intrinsics, (n, 1, 1)), yaw
    )
    middle = 2 * views[:, SIZE[0] // 2, SIZE[1] // 2] - 1
    expected = np.stack([np.cos(yaw), np.sin(yaw), 0 * yaw], axis=-1)
    np.testing.assert_allclose(middle, expected, atol=0.01)
    # To the left of the middle lies what is further left: a greater yaw.
    left = 2 * views[:, SIZE[0] // 2, 0] - 1
    found = np.arctan2(left[:, 1], left[:, 0])
    half = np.arctan(np.tan(FIELD / 2) * (1 - 1 / SIZE[1]))
    apart = (found - yaw - half + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(apart, 0.0, atol=0.02)

  @parameterized.parameters(0.0, 0.9, -1.7, 3.1, -3.1)
  def test_a_dot_in_the_direction_is_in_the_middle_column(self, yaw):
    size = (64, 200)
    intrinsics = panorama.sphere_intrinsics(size)
    columns = np.arange(size[1]) + 0.5
    azimuth = (columns - intrinsics[0, 2]) / intrinsics[0, 0]
    apart = np.abs((azimuth + yaw + np.pi) % (2 * np.pi) - np.pi)
    image = np.zeros((*size, 1))
    image[:, apart.argmin()] = 1.0
    view = _look(image[None], intrinsics[None], [yaw])[0, :, :, 0]
    brightest = view[SIZE[0] // 2].argmax()
    self.assertLessEqual(abs(int(brightest) - SIZE[1] // 2), 1)

  @parameterized.parameters(0.3, 3.0, -2.0)
  def test_all_pixels_are_those_of_a_slow_loop(self, yaw):
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(24, 60, 2))
    # 80 degrees high, so that the view reaches beyond it, and off its middle.
    intrinsics = np.asarray(
      [[60 / (2 * np.pi), 0, 25.0], [0, 17.0, 11.0], [0, 0, 1]]
    )
    found = _look(image[None], intrinsics[None], [yaw])[0]
    expected = _slow_look(image, intrinsics, yaw)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    other = _slow_look(image, intrinsics, -yaw)
    self.assertGreater(np.abs(found - other).max(), 0.1)


if __name__ == '__main__':
  absltest.main()
