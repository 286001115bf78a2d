# SPDX-License-Identifier: Apache-2.0
"""What an image encoder sees of a cloud, and where its tokens are."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import rigid
from i2ploc.models import views
from tests.testing import compiled

released_view = compiled.function(views.released_view)
camera_view = compiled.function(views.camera_view)
token_centers = compiled.function(views.token_centers)
token_azimuth = compiled.function(views.token_azimuth)

SCAN = (16, 36)  # 10 degrees a column
AXES = np.asarray([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]], np.float32)


def _cloud(*points):
  """Clouds [1, P, 4] of given places with an intensity of 0.5, and a mask."""
  points = np.asarray([[*point, 0.5] for point in points], np.float32)
  return points[None], np.ones((1, len(points)), bool)


def _polar(distance, azimuth, elevation):
  level = distance * math.cos(elevation)
  x, y = level * math.cos(azimuth), -level * math.sin(azimuth)
  return x, y, distance * math.sin(elevation)


def _released(cloud, shape=(8, 12), crop=True, max_range=50.0):
  return released_view(*cloud, shape, SCAN, crop, max_range)


def _camera(cloud, rotation=AXES, max_range=math.inf):
  motion = rigid.Rigid(jnp.asarray(rotation)[None], jnp.zeros((1, 3)))
  bounds = jnp.full(1, -0.6), jnp.full(1, 0.6)
  return camera_view(*cloud, motion, bounds, (-0.4, 0.1), (8, 12), max_range)


class ReleasedViewTest(parameterized.TestCase):
  def test_the_crop_is_120_degrees_ahead_and_the_upper_half(self):
    view = _released(_cloud((9.0, 0.0, 0.0)))
    third = math.pi / 3
    np.testing.assert_allclose(np.ravel(view.azimuth), [-third, third], 1e-6)
    np.testing.assert_allclose(np.rad2deg(view.elevation), [-11, 3], 1e-5)
    whole = _released(_cloud((9.0, 0.0, 0.0)), crop=False)
    np.testing.assert_allclose(np.ravel(whole.azimuth), [-np.pi, np.pi], 1e-6)
    np.testing.assert_allclose(np.rad2deg(whole.elevation), [-25, 3], 1e-5)

  @parameterized.parameters((0.5, True), (-0.9, True), (1.2, False), (3, False))
  def test_a_thing_is_in_its_column_or_out_of_the_crop(self, azimuth, seen):
    view = _released(_cloud(_polar(20.0, azimuth, -0.05)), shape=(8, 12))
    self.assertEqual(np.any(view.valid), seen)
    if seen:
      row, column = np.argwhere(np.asarray(view.valid[0]))[0]
      self.assertEqual(
        row, int((math.radians(3) + 0.05) / math.radians(14) * 8)
      )
      across = (azimuth + math.pi / 3) / (2 * math.pi / 3)
      self.assertEqual(column, int(across * 12))
      self.assertEqual(view.pixels[0, row, column, 0], int(5.1 * 20.0))

  def test_pixels_are_three_times_grey_and_empty_ones_look_far(self):
    view = _released(_cloud((9.0, 0.0, 0.0)), shape=(16, 24))
    pixels = np.asarray(view.pixels[0])
    self.assertEqual(pixels.dtype, np.uint8)
    for channel in (1, 2):
      np.testing.assert_array_equal(pixels[..., channel], pixels[..., 0])
    self.assertEqual(pixels[0, 0, 0], 251)
    # Interpolated between a return and nothing.
    self.assertTrue(((pixels > 46) & (pixels < 250)).any())

  def test_the_threshold_on_range_acts(self):
    cloud = _cloud((30.0, 0.0, 0.0))
    self.assertTrue(np.any(_released(cloud).valid))
    self.assertFalse(np.any(_released(cloud, max_range=30.0).valid))


class CameraViewTest(absltest.TestCase):
  def test_columns_are_those_of_the_camera_however_it_is_mounted(self):
    thing = _polar(20.0, 0.33, -0.1)
    ahead = _camera(_cloud(thing))
    # A LiDAR that is mounted the other way round, the camera looks as before.
    turned = np.diag([-1.0, -1.0, 1.0]).astype(np.float32)
    cloud = _cloud(turned @ np.asarray(thing))
    other = _camera(cloud, rotation=AXES @ turned)
    np.testing.assert_array_equal(ahead.valid, other.valid)
    self.assertEqual(np.sum(ahead.valid), 1)
    released = [_released(c) for c in (_cloud(thing), cloud)]
    self.assertTrue(np.any(released[0].valid))
    self.assertFalse(np.any(released[1].valid))

  def test_the_threshold_on_range_acts(self):
    cloud = _cloud((30.0, 0.0, -1.0))
    self.assertTrue(np.any(_camera(cloud).valid))
    self.assertFalse(np.any(_camera(cloud, max_range=30.0).valid))

  def test_empty_cells_are_zero_in_all_channels_and_others_valid(self):
    pixels = np.asarray(_camera(_cloud((30.0, 0.0, -1.0))).pixels[0])
    self.assertEqual(pixels.shape, (8, 12, 5))
    filled = np.abs(pixels).max(-1) > 0
    self.assertEqual(filled.sum(), 1)
    np.testing.assert_array_equal(pixels[..., 4], filled)


class TokensTest(parameterized.TestCase):
  @parameterized.parameters(_released, _camera)
  def test_centers_lie_where_the_returns_are(self, look):
    thing = _polar(20.0, 0.3, -0.1)
    view = look(_cloud(thing))
    centers = token_centers(view, (4, 6))
    self.assertEqual(centers.shape, (1, 24, 3))
    away = np.linalg.norm(np.asarray(centers[0]) - thing, axis=-1)
    self.assertLess(away.min(), 3.5)  # half a token at 20 m
    self.assertEqual((away < 100.0).sum(), 1)  # the others saw nothing

  def test_azimuths_are_the_centres_of_equal_parts(self):
    view = _released(_cloud((9.0, 0.0, 0.0)))
    azimuth = np.rad2deg(token_azimuth(view, 4)[0])
    np.testing.assert_allclose(azimuth, [-45, -15, 15, 45], rtol=1e-5)

  def test_tokens_that_do_not_tile_the_view_are_named(self):
    view = _released(_cloud((9.0, 0.0, 0.0)))
    with self.assertRaisesRegex(ValueError, '8 x 12 does not tile .* 3 x 4'):
      token_centers(view, (3, 4))

  def test_an_unknown_encoding_is_named(self):
    with self.assertRaisesRegex(ValueError, "'polar'; known: "):
      views.check_encoding('polar')


if __name__ == '__main__':
  absltest.main()
