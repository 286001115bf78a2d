# SPDX-License-Identifier: Apache-2.0
"""UTM against printed values, an integral and what a projection must be."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.geometry import utm

_A, _F = 6378137.0, 1 / 298.257223563
_E2 = _F * (2 - _F)


def _meridian_radius(phi):
  return _A * (1 - _E2) / (1 - _E2 * np.sin(phi) ** 2) ** 1.5


def _parallel_radius(phi):
  return _A * np.cos(phi) / np.sqrt(1 - _E2 * np.sin(phi) ** 2)


class UtmTest(parameterized.TestCase):
  @parameterized.parameters(
    # The example of the package `utm`.
    (51.2, 7.5, 32, 395201.3103811303, 5673135.241182375, 1e-3),
    # The CN Tower, as Wikipedia prints it.
    (43.64257, -79.38714, 17, 630084, 4833438, 1.0),
  )
  def test_printed_values(self, latitude, longitude, zone, east, north, near):
    self.assertEqual(utm.zone_from_longitude(longitude), zone)
    found = utm.utm_from_degrees(latitude, longitude, zone)
    np.testing.assert_allclose(found, (east, north), rtol=0, atol=near)

  def test_the_central_meridian_is_as_long_as_the_ellipsoids(self):
    for latitude in (0.0, 20.0, 55.7, 80.0, -33.0):
      phi = np.linspace(0, np.radians(latitude), 20_001)
      radius = _meridian_radius(phi)
      length = ((radius[1:] + radius[:-1]) / 2 * np.diff(phi)).sum()
      east, north = utm.utm_from_degrees(latitude, 15.0, 33)
      self.assertAlmostEqual(float(east), 500_000, places=6)
      self.assertAlmostEqual(float(north), 0.9996 * length, delta=0.01)

  @parameterized.parameters((55.7, 13.2), (-41.0, 18.0), (1.0, 23.9))
  def test_it_is_conformal(self, latitude, longitude):
    step = 1e-5
    around = np.array([[step, 0], [-step, 0], [0, step], [0, -step]])
    east, north = utm.utm_from_degrees(
      *(np.array([latitude, longitude]) + around).T, 33
    )
    phi = np.radians(latitude)
    to_north = np.array([east[0] - east[1], north[0] - north[1]])
    to_north /= np.radians(2 * step) * _meridian_radius(phi)
    to_east = np.array([east[2] - east[3], north[2] - north[3]])
    to_east /= np.radians(2 * step) * _parallel_radius(phi)
    # A rotation times one scale.
    np.testing.assert_allclose(to_east, [to_north[1], -to_north[0]], atol=1e-7)

  def test_there_and_back_is_nothing(self):
    rng = np.random.default_rng(0)
    for zone in (1, 33, 60):
      latitude = rng.uniform(-84, 84, 500)
      longitude = 6 * zone - 183 + rng.uniform(-9, 9, 500)
      found = utm.degrees_from_utm(
        *utm.utm_from_degrees(latitude, longitude, zone), zone
      )
      np.testing.assert_allclose(found[0], latitude, atol=1e-10)
      self.assertBetween(found[1].min(), -180, 180)
      turn = (found[1] - longitude + 180) % 360 - 180
      np.testing.assert_allclose(turn, 0, atol=1e-10)

  def test_places_beyond_the_border_of_a_zone_stay_near(self):
    # 100 m to the east across the border at 12 degrees.
    phi = np.radians(50.0)
    step = np.degrees(50 / _parallel_radius(phi))
    east, north = utm.utm_from_degrees(
      np.full(2, 50.0), 12 + np.array([-step, step]), 32
    )
    apart = np.hypot(np.diff(east), np.diff(north))
    np.testing.assert_allclose(apart, 100, rtol=1e-3)
    self.assertEqual(utm.zone_from_longitude(12 - step), 32)
    self.assertEqual(utm.zone_from_longitude(12 + step), 33)

  def test_the_south_is_negative_and_the_date_line_no_gap(self):
    _, north = utm.utm_from_degrees([-10.0, 10.0], [15.0, 15.0], 33)
    self.assertAlmostEqual(north[0], -north[1])
    east, _ = utm.utm_from_degrees([0.0, 0.0], [179.999, -179.999], 60)
    self.assertAlmostEqual(east[1] - east[0], 222.7, delta=0.5)
    self.assertEqual(utm.zone_from_longitude(180.0), 1)
    self.assertEqual(utm.zone_from_longitude(-180.0), 1)


if __name__ == '__main__':
  absltest.main()
