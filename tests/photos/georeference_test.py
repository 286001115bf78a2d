# SPDX-License-Identifier: Apache-2.0
"""Georeferenced pictures, written as GDAL and ArcGIS write them."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image
from PIL import TiffImagePlugin

from i2ploc.geometry import utm
from i2ploc.photos import album
from i2ploc.photos import footprints
from i2ploc.photos import georeference
from tests import image_files_test
from tests.photos import folder

_EAST, _NORTH = 395_000.0, 5_673_000.0  # UTM 32 north: 51.2 N, 7.5 E
_WKT = (
  'PROJCS["WGS 84 / UTM zone 32N",GEOGCS["WGS 84",AUTHORITY["EPSG","4326"]],'
  'UNIT["metre",1,AUTHORITY["EPSG","9001"]]{}]'
)
_ESRI = (
  'PROJCS["{}",GEOGCS["GCS_WGS_1984",DATUM["D_WGS_1984",'
  'SPHEROID["WGS_1984",6378137.0,298.257223563]]],UNIT["Meter",1.0]]'
)


def save_geotiff(path, size, tags, keys):
  """A grey GeoTIFF of (W, H); keys of the directory, tags of doubles."""
  path.parent.mkdir(parents=True, exist_ok=True)
  info = TiffImagePlugin.ImageFileDirectory_v2()
  for tag, numbers in tags.items():
    info.tagtype[tag] = 12  # doubles
    info[tag] = tuple(map(float, numbers))
  directory = [1, 1, 0, len(keys)]
  for key, value in sorted(keys.items()):
    directory += [key, 0, 1, value]
  info.tagtype[34735] = 3  # shorts
  info[34735] = tuple(directory)
  Image.new('L', size).save(path, tiffinfo=info)


def utm_square(east, north, wide, high, zone=32, south=False):
  """Corners [4, 2] in degrees of a box with its north-west corner given."""
  x = np.array([east, east + wide, east + wide, east])
  y = np.array([north - high, north - high, north, north])
  y = y - south * utm.FALSE_NORTHING
  return np.stack(utm.degrees_from_utm(x, y, zone), 1)


def _read(test, name, epsg=0):
  (found,) = georeference.read_footprints(test.root, [name], epsg)
  return found


class GeoTiffTest(folder.FolderTest):
  def test_a_grid_in_utm(self):
    save_geotiff(
      self.root / 'a.tif',
      (40, 20),
      {33550: (10, 10, 0), 33922: (0, 0, 0, _EAST, _NORTH, 0)},
      {1024: 1, 1025: 1, 3072: 32632},
    )
    expected = utm_square(_EAST, _NORTH, 400, 200)
    np.testing.assert_allclose(_read(self, 'a.tif'), expected, atol=1e-9)
    # 400 m are 400 m: the axes are not exchanged.
    latitude, longitude = np.ptp(_read(self, 'a.tif'), axis=0)
    # UTM turns them by a degree.
    self.assertAlmostEqual(latitude * 111_300, 200, delta=10)
    self.assertAlmostEqual(longitude * 69_900, 400, delta=5)

  def test_the_tie_point_may_be_any_pixel_and_its_middle(self):
    tags = {
      33550: (10, 10, 0),
      33922: (4, 3, 0, _EAST + 40, _NORTH - 30, 0),
    }
    keys = {1025: 1, 3072: 32632}
    save_geotiff(self.root / 'a.tif', (40, 20), tags, keys)
    expected = utm_square(_EAST, _NORTH, 400, 200)
    np.testing.assert_allclose(_read(self, 'a.tif'), expected, atol=1e-9)
    save_geotiff(self.root / 'b.tif', (40, 20), tags, keys | {1025: 2})
    expected = utm_square(_EAST - 5, _NORTH + 5, 400, 200)
    np.testing.assert_allclose(_read(self, 'b.tif'), expected, atol=1e-9)

  def test_a_turned_grid(self):
    cos, sin = 10 * np.cos(0.5), 10 * np.sin(0.5)
    matrix = [cos, sin, 0, _EAST, sin, -cos, 0, _NORTH, *[0] * 7, 1]
    save_geotiff(
      self.root / 'a.tif', (40, 20), {34264: matrix}, {1025: 1, 3072: 32632}
    )
    pixels = np.array([[0, 20], [40, 20], [40, 0], [0, 0]])
    x = _EAST + cos * pixels[:, 0] + sin * pixels[:, 1]
    y = _NORTH + sin * pixels[:, 0] - cos * pixels[:, 1]
    expected = np.stack(utm.degrees_from_utm(x, y, 32), 1)
    found = _read(self, 'a.tif')
    order = [int(np.abs(expected - x).sum(1).argmin()) for x in found]
    self.assertCountEqual(order, range(4))
    np.testing.assert_allclose(found, expected[order], atol=1e-9)
    self.assertIn(order, [[i, (i + 1) % 4, (i + 2) % 4, (i + 3) % 4]
                          for i in range(4)])  # fmt: skip

  @parameterized.parameters(
    ({1024: 2, 2048: 4326}, (0.01, 0.02), (7.5, 51.2), (51, 7.5, 51.2, 7.7)),
    (
      # 2 pi times the radius is once around the globe.
      {1024: 1, 3072: 3857},
      (1e6 / 9, 1e6 / 10),
      (834_895.2, 0.0),
      (-8.983152, 7.5, 0, 7.5 + 19.962562),
    ),
  )
  def test_other_projections(self, keys, scale, origin, expected):
    save_geotiff(
      self.root / 'a.tiff',
      (20, 10),
      {33550: (*scale, 0), 33922: (0, 0, 0, *origin, 0)},
      keys,
    )
    found = _read(self, 'a.tiff')
    south, west, north, east = expected
    self.assertAlmostEqual(found[:, 1].min(), west, delta=1e-5)
    self.assertAlmostEqual(found[:, 1].max(), east, delta=1e-4)
    self.assertAlmostEqual(found[:, 0].max(), north, delta=1e-9)
    self.assertAlmostEqual(found[:, 0].min(), south, delta=0.05)

  def test_the_southern_hemisphere(self):
    north = 10_000_000 - 3_000_000.0
    save_geotiff(
      self.root / 'a.tif',
      (20, 20),
      {33550: (10, 10, 0), 33922: (0, 0, 0, _EAST, north, 0)},
      {3072: 32756},
    )
    expected = utm_square(_EAST, north, 200, 200, 56, south=True)
    np.testing.assert_allclose(_read(self, 'a.tif'), expected, atol=1e-9)
    self.assertLess(expected.max(0)[0], -26)

  @parameterized.parameters(
    ({3072: 31467}, 'EPSG:31467.*gdalwarp -t_srs EPSG:4326 a.tif'),
    ({3072: 32661}, 'EPSG:32661'),  # polar, not UTM
    ({3072: 32767}, 'a projection of its own.*gdalwarp'),
    ({1024: 1}, r'a.prj.*EPSG:32633'),
  )
  def test_another_projection_is_refused_by_name(self, keys, message):
    save_geotiff(
      self.root / 'a.tif',
      (20, 20),
      {33550: (10, 10, 0), 33922: (0, 0, 0, _EAST, _NORTH, 0)},
      keys,
    )
    self.refuse(message, _read, self, 'a.tif')

  def test_what_is_no_grid_is_refused(self):
    ties = [x for i in range(3) for x in (i, i * i, 0, _EAST + i, _NORTH, 0)]
    keys = {3072: 32632}
    save_geotiff(self.root / 'a.tif', (20, 20), {33922: ties}, keys)
    self.refuse('control points.*gdalwarp', _read, self, 'a.tif')
    tags = {33550: (0, 10, 0), 33922: (0, 0, 0, _EAST, _NORTH, 0)}
    save_geotiff(self.root / 'b.tif', (20, 20), tags, keys)
    self.refuse('which is nowhere', _read, self, 'b.tif')
    tags = {33550: (10, 10, 0), 33922: (0, 0, 0, 10, 100, 0)}
    save_geotiff(self.root / 'c.tif', (20, 20), tags, {2048: 4326})
    self.refuse('which is nowhere', _read, self, 'c.tif')

  def test_a_whole_map_is_refused_with_what_cuts_it(self):
    tags = {33550: (1, 1, 0), 33922: (0, 0, 0, _EAST, _NORTH, 0)}
    keys = {3072: 32632}
    save_geotiff(self.root / 'a.tif', (4097, 16), tags, keys)
    self.refuse('4097 x 16.*gdal_retile.py', _read, self, 'a.tif')

  def test_plain_pictures_lie_nowhere(self):
    self.save('a.tif')
    self.save('b.jpg')
    self.write('b.prj', _WKT.format(''))
    names = ['a.tif', 'b.jpg']
    found = georeference.read_footprints(self.root, names, 32632)
    self.assertEqual(found, [None, None])


class WorldFileTest(folder.FolderTest):
  def world(self, name, east=_EAST, north=_NORTH, size=10.0):
    """Of a picture whose north-west corner is given."""
    half = size / 2
    self.write(
      name, *map(str, (size, 0.0, 0.0, -size, east + half, north - half))
    )

  @parameterized.parameters(
    ('a.jpg', 'a.jgw'),
    ('a.jpg', 'a.JGW'),
    ('a.jpeg', 'a.jpegw'),
    ('a.png', 'a.pgw'),
    ('a.png', 'a.wld'),
    ('a.tif', 'a.tfw'),
    ('a.tiff', 'a.tfw'),
    ('in/a.jpg', 'in/a.jgw'),
  )
  def test_every_name_of_a_world_file(self, name, beside):
    self.save(name, size=(20, 40))
    self.world(beside)
    expected = utm_square(_EAST, _NORTH, 400, 200)
    np.testing.assert_allclose(_read(self, name, 32632), expected, atol=1e-9)
    self.refuse('a.prj beside it', _read, self, name)

  @parameterized.parameters(
    _WKT.format(',AUTHORITY["EPSG","32632"]'),
    _WKT.format(',ID["EPSG",32632]'),
    _WKT.format(''),
    _ESRI.format('WGS_1984_UTM_Zone_32N'),
    _ESRI.format('ETRS_1989_UTM_Zone_32N'),
  )
  def test_the_projection_beside_it(self, text):
    self.save('a.png', size=(20, 40))
    self.world('a.pgw')
    self.write('a.prj', text)
    expected = utm_square(_EAST, _NORTH, 400, 200)
    # What the picture says goes before what the user says.
    np.testing.assert_allclose(_read(self, 'a.png', 4326), expected, atol=1e-9)

  def test_web_mercator_and_degrees_by_name(self):
    for text, size in (
      (_ESRI.format('WGS_1984_Web_Mercator_Auxiliary_Sphere'), 111_319.49),
      ('GEOGCS["GCS_WGS_1984",UNIT["Degree",0.0174532925199433]]', 1.0),
    ):
      self.save('a.png', size=(20, 20))
      self.world('a.pgw', 0, 0, size)
      self.write('a.prj', text)
      found = _read(self, 'a.png')
      self.assertAlmostEqual(found[:, 1].max(), 20, delta=1e-4)

  def test_an_unknown_projection_is_not_guessed(self):
    self.save('a.png')
    self.world('a.pgw')
    self.write('a.prj', _ESRI.format('DHDN_3_Degree_Gauss_Zone_3'))
    self.refuse('in which projection', _read, self, 'a.png')

  def test_what_gdal_writes_beside_a_picture(self):
    self.save('a.png', size=(20, 40))
    srs = _WKT.format(',AUTHORITY["EPSG","32632"]').replace('"', '&quot;')
    numbers = f'{_EAST}, 10.0, 0.0, {_NORTH}, 0.0, -10.0'
    self.write(
      'a.png.aux.xml',
      '<PAMDataset>',
      f'  <SRS dataAxisToSRSAxisMapping="1,2">{srs}</SRS>',
      f'  <GeoTransform> {numbers}</GeoTransform>',
      '</PAMDataset>',
    )
    expected = utm_square(_EAST, _NORTH, 400, 200)
    np.testing.assert_allclose(_read(self, 'a.png'), expected, atol=1e-9)
    # Statistics alone say nothing of where a picture lies.
    self.write('a.png.aux.xml', '<PAMDataset></PAMDataset>')
    self.assertIsNone(_read(self, 'a.png'))

  def test_broken_files_are_named(self):
    self.save('a.png')
    self.write('a.pgw', '1', '2', 'x')
    self.refuse('a.pgw: expected six numbers', _read, self, 'a.png', 32632)
    self.write('a.png.aux.xml', '<PAMData')
    self.refuse('a.png.aux.xml is no XML', _read, self, 'a.png', 32632)


class AlbumTest(folder.FolderTest):
  """Tiles of 400 m, side by side with half of it shared."""

  def tiles(self, count=3):
    for i in range(count):
      save_geotiff(
        self.root / f'database/{i}.tif',
        (40, 40),
        {33550: (10, 10, 0), 33922: (0, 0, 0, _EAST + 200 * i, _NORTH, 0)},
        {3072: 32632},
      )

  def test_a_drone_photo_is_in_the_tiles_that_show_its_place(self):
    self.tiles()
    (place,) = utm_square(_EAST + 250, _NORTH - 100, 0, 0)[:1]
    exif = image_files_test.gps_exif(*place)
    self.save('queries/a.jpg', exif=exif)
    self.save('queries/b.jpg')
    with self.assertLogs(level='WARNING') as logs:
      found = album.open_album(self.root)
    self.assertIn('1 of 5 pictures lie nowhere', logs.output[0])
    rows = np.arange(3)
    np.testing.assert_array_equal(
      found.truth.distances(np.array([3, 4]), rows), [[0, 0, 1], [1, 1, 1]]
    )
    self.assertEqual(
      found.truth.known(np.arange(5)).tolist(), [True] * 4 + [False]
    )
    np.testing.assert_allclose(
      found.positions.position[:4, :2],
      np.array([_EAST, _NORTH])
      + [[200, -200], [400, -200], [600, -200], [250, -100]],
      atol=0.05,
    )

  def test_corners_in_the_names_of_those_that_ask(self):
    self.tiles()
    corners = utm_square(_EAST + 450, _NORTH - 50, 100, 100)
    name = '@'.join(['', *map(str, corners.ravel()), 'iss@.jpg'])
    self.save(f'queries/{name}')
    found = album.open_album(self.root)
    self.assertEqual(found.truth.unit, 'overlap')
    np.testing.assert_array_equal(
      found.truth.distances(np.array([3]), np.arange(3)), [[1, 0, 0]]
    )

  def test_the_projection_of_world_files_may_be_given(self):
    self.save('a.jpg')
    self.refuse('for georeferenced', album.open_album, self.root,
                positions='EPSG:32632')  # fmt: skip
    lines = (10, 0, 0, -10, _EAST, _NORTH)
    self.write('a.jgw', *map(str, lines))
    found = album.open_album(self.root, positions='epsg:32632')
    np.testing.assert_allclose(
      found.truth.footprints[0],
      utm_square(_EAST - 5, _NORTH + 5, 300, 200),
      atol=1e-9,
    )

  def test_tiles_of_the_whole_globe_have_no_common_metres(self):
    for i, longitude in enumerate((0, 120)):
      save_geotiff(
        self.root / f'{i}.tif',
        (40, 40),
        {33550: (0.1, 0.1, 0), 33922: (0, 0, 0, longitude, 50, 0)},
        {2048: 4326},
      )
    with self.assertLogs(level='WARNING'):
      found = album.open_album(self.root)
    self.assertTrue(np.isnan(found.positions.position).all())
    self.assertTrue(found.truth.known(np.arange(2)).all())

  def test_a_point_is_where_a_footprint_holds_it(self):
    square = np.array([[0.0, 0], [0, 2], [2, 2], [2, 0]])
    points = np.repeat([[1.0, 1.0], [1.0, 3.0], [2.1, 1.0]], 4, 0)
    found = footprints.overlap(points.reshape(3, 4, 2), square[None])
    self.assertEqual(found[:, 0].tolist(), [True, False, False])


if __name__ == '__main__':
  absltest.main()
