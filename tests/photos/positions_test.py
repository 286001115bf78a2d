# SPDX-License-Identifier: Apache-2.0
"""Positions that people have: zones, headers, columns exchanged, gaps."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc import image_files
from i2ploc.geometry import utm
from i2ploc.photos import positions
from tests.photos import folder


def _utm_name(latitude, longitude, zone, note=''):
  """A name of the Deep VG benchmark, in the zone given."""
  east, north = utm.utm_from_degrees(latitude, longitude, zone)
  letter = 'CDEFGHJKLMNPQRSTUVWXX'[int((latitude + 80) // 8)]
  north += (latitude < 0) * utm.FALSE_NORTHING
  return f'@{east:010.2f}@{north:010.2f}@{zone:02d}@{letter}@@@{note}@@90@.jpg'


def _over_ground(x, y):
  north = math.radians(x[0] - y[0])
  east = math.radians((x[1] - y[1] + 180) % 360 - 180)
  return 6371e3 * math.hypot(north, east * math.cos(math.radians(x[0])))


class NamesTest(parameterized.TestCase):
  @parameterized.parameters(
    ((50.0, 11.9995, 32), (50.0, 12.0005, 33)),
    ((-17.0, 179.9995, 60), (-17.0, -179.9995, 1)),  # the date line
    ((0.0005, 15.0, 33), (-0.0005, 15.0, 33)),  # the equator
    ((71.0, 8.99, 31), (71.0, 9.01, 33)),  # Svalbard's zones are wide
  )
  def test_both_sides_of_a_border_are_on_one_map(self, *places):
    names = [_utm_name(*place, note=str(i)) for i, place in enumerate(places)]
    found = positions.from_names(names)
    apart = np.hypot(*np.diff(found.position[:, :2], axis=0)[0])
    expected = _over_ground(*places)
    self.assertAlmostEqual(apart / expected, 1, delta=0.01)
    np.testing.assert_allclose(found.heading, 0, atol=1e-12)

  def test_one_zone_stays_as_it_is_written(self):
    names = [_utm_name(50.0, 11.9, 32), _utm_name(50.0, 12.1, 32)]
    found = positions.from_names(names)
    self.assertEqual(
      f'{found.position[0, 0]:.2f}', names[0][1:].split('@')[0][1:]
    )

  def test_every_town_has_a_map_of_its_own(self):
    names = [_utm_name(55.7, 13.2, 33), _utm_name(37.7, -122.4, 10)]
    with self.assertRaisesRegex(ValueError, 'too far apart for one map'):
      positions.from_names(names)
    found = positions.from_names(names, ['lund', 'sf'])
    self.assertTrue(np.isfinite(found.position[:, :2]).all())

  def test_degrees_in_names(self):
    names = [f'@13.19{i}@55.70{i}@.jpg' for i in range(5)]
    with self.assertRaisesRegex(
      ValueError, '4 more names have degrees between'
    ):
      positions.from_names(names)

  def test_a_zone_that_is_not_known_is_not_guessed(self):
    names = [_utm_name(50.0, 11.9, 32), '@0551000.25@4180010.5@@@.jpg']
    with self.assertRaisesRegex(ValueError, '32 north .1, .*unknown .1, @0551'):
      positions.from_names(names)


class CsvTest(folder.FolderTest):
  NAMES = ('database/a.jpg', 'queries/a b.jpg', 'queries/é.jpg')

  def read(self, header, *rows, **options):
    path = self.write('p.csv', header, *rows)
    return positions.from_csv(path, self.NAMES, **options)

  @parameterized.parameters(
    ('name,lat,lon', '{name},{lat},{lon}'),
    ('Longitude;FILE;Latitude', '{lon};{name};{lat}'),
    ('note,lng,latitude,image', 'x,{lon},{lat},{name}'),
  )
  def test_columns_have_several_names_and_any_order(self, header, row):
    rows = [
      row.format(name=name, lat=51.2, lon=7.5 + i / 1000)
      for i, name in enumerate(self.NAMES)
    ]
    found = self.read(header, *rows)
    np.testing.assert_allclose(
      found.position[0, :2], [395201.310, 5673135.241], atol=1e-3
    )
    step = np.diff(found.position[:, 0])
    np.testing.assert_allclose(step, 69.9, atol=0.1)

  def test_metres_heading_and_altitude(self):
    found = self.read(
      'heading,northing,easting,name,alt,lat,lon',
      '0,20,10,database/a.jpg,5,55,13',
      '90,21,11,queries/a b.jpg,,55,13',
      ',22,12,queries/é.jpg,,55,13',
    )
    np.testing.assert_array_equal(
      found.position, [[10, 20, 5], [11, 21, np.nan], [12, 22, np.nan]]
    )
    np.testing.assert_allclose(found.heading[:2], [np.pi / 2, 0], atol=1e-12)
    self.assertTrue(np.isnan(found.heading[2]))

  def test_photos_without_a_row_and_rows_without_a_photo(self):
    with self.assertLogs(level='WARNING') as logs:
      found = self.read('name,x,y', 'queries/é.jpg,5,6', 'gone.jpg,1,2',
                        'queries/a b.jpg,,')  # fmt: skip
    self.assertIn('1 rows are of no photo: gone.jpg', logs.output[0])
    self.assertIn('2 of 3 photos have no position', logs.output[1])
    self.assertEqual(np.isfinite(found.position[:, 0]).tolist(), [0, 0, 1])

  def test_names_that_are_all_others_are_compared(self):
    self.refuse(
      'none of its 2 names is a photo, as a.jpg and 1 more; the photos are'
      ' called database/a.jpg',
      self.read, 'name,x,y', 'a.jpg,1,2', 'b.jpg,1,2',
    )  # fmt: skip
    self.refuse('no row', self.read, 'name,x,y')

  def test_degrees_beyond_the_poles_are_exchanged(self):
    rows = [f'{name},139.{i},35.{i}' for i, name in enumerate(self.NAMES)]
    self.refuse('3 of 3 rows have latitudes beyond 90 degrees .line 2:.*and'
                ' longitude are exchanged', self.read, 'name,lat,lon',
                *rows)  # fmt: skip
    self.refuse('1 rows without two numbers .line 2', self.read, 'name,lat,lon',
                'database/a.jpg,91,190')  # fmt: skip

  def test_the_cameras_tell_that_columns_are_exchanged(self):
    rows = [f'{name},13.2,55.{i}' for i, name in enumerate(self.NAMES)]
    gps = [image_files.Gps(55.0, 13.2), None, image_files.Gps(55.2, 13.2)]
    self.refuse('km from the EXIF of the same photos, and 0 m with the columns'
                ' exchanged: latitude and longitude are exchanged', self.read,
                'name,lat,lon', *rows, gps=gps)  # fmt: skip
    # The columns are right, or both are wrong: no reason to refuse.
    self.read('name,lon,lat', *rows, gps=gps)
    with self.assertLogs(level='WARNING') as logs:
      rows = [f'{name},13.2,56.{i}' for i, name in enumerate(self.NAMES)]
      self.read('name,lon,lat', *rows, gps=gps)
    self.assertIn('111.2 km from the EXIF', logs.output[0])

  def test_degrees_that_are_called_metres(self):
    rows = [f'{name},13.19{i},55.70{i}' for i, name in enumerate(self.NAMES)]
    self.refuse('x from 13.19 to 13.192 and y from 55.7 to 55.702 look like'
                ' degrees', self.read, 'name,x,y', *rows)  # fmt: skip
    self.read('name,easting,northing', *rows)  # a table top, as they say
    # A corridor, and one place.
    self.read('name,x,y', *(f'{n},{i},0' for i, n in enumerate(self.NAMES)))
    self.read('name,x,y', *(f'{name},13.2,55.7' for name in self.NAMES))

  def many(self, x, y, gps=(), more=(), header='name,x,y'):
    """A table of photos in a row."""
    names = [f'{i}.jpg' for i in range(len(x))]
    columns = zip(names, x, y, *more, strict=True)
    rows = [','.join(map(str, row)) for row in columns]
    path = self.write('p.csv', header, *rows)
    return positions.from_csv(path, names, gps)

  def test_the_cameras_tell_other_units_than_metres(self):
    step = np.arange(20) * np.array([[40.0], [70.0]])
    gps = [
      image_files.Gps(55 + north / 111320, 13 + east / 63850)
      for east, north in step.T
    ]
    self.many(*step, gps)  # local metres
    self.refuse('times as far apart as EXIF .* Divide millimetres by 1000',
                self.many, *(1000 * step), gps)  # fmt: skip
    # A country of degrees, which has no mark of its own.
    far = [image_files.Gps(50 + i / 4, 8 + i / 5) for i in range(20)]
    self.refuse('x and y are the degrees of longitude and latitude in EXIF',
                self.many, [place.longitude for place in far],
                [place.latitude for place in far], far)  # fmt: skip

  def test_headings_in_radians(self):
    heading = 1.5 * np.sin(np.arange(60) / 10)
    x, y = np.cumsum(3 * np.stack([np.sin(heading), np.cos(heading)]), axis=1)
    header = 'name,x,y,heading'
    found = self.many(x, y, (), [np.degrees(heading)], header)
    np.testing.assert_allclose(found.heading, np.pi / 2 - heading)
    self.refuse('headings from -1.4.* as radians', self.many, x, y, (),
                [heading], header)  # fmt: skip

  def test_the_middle_of_the_earth(self):
    x, y, z = np.full((3, 3), [3.7e6, 5.5e5, 5.16e6]).T + np.eye(3)
    self.refuse('km from the origin.*ECEF', self.many, x, y, (), [z],
                'name,x,y,z')  # fmt: skip

  def test_eastings_of_two_zones(self):
    self.refuse("UTM zones .'32', '33'. cannot be compared", self.read,
                'name,easting,northing,zone', 'database/a.jpg,1,2,32',
                'queries/é.jpg,1,2,33')  # fmt: skip

  def test_towns_have_maps_of_their_own(self):
    rows = [f'{name},5{i},{i * 90}' for i, name in enumerate(self.NAMES)]
    self.refuse('too far apart', self.read, 'name,lat,lon', *rows)
    found = self.read('name,lat,lon', *rows, towns=['a', 'b', 'c'])
    self.assertTrue(np.isfinite(found.position[:, :2]).all())


if __name__ == '__main__':
  absltest.main()
