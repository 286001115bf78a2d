# SPDX-License-Identifier: Apache-2.0
"""Folders of photos: who asks, where each was taken, and what is refused."""

import math
import pathlib
import pickle
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from i2ploc.geometry import utm
from input_pipeline import batches
from input_pipeline import datasets
from input_pipeline.readers import photos
from input_pipeline.sources import drives
from tests import image_files_test
from tests import shared


class _FolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='photos_'))
    )

  def save(self, name, value=0, size=(20, 30), exif=None, mode='RGB'):
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    color = (value,) * 3 if mode == 'RGB' else value
    Image.new(mode, size[::-1], color).save(path, exif=exif or Image.Exif())

  def write(self, name, text):
    (self.root / name).write_text(text)

  def load(self, **options):
    return photos.load(self.root, **options)

  def refuse(self, message, error=ValueError, **options):
    with self.assertRaisesRegex(error, message) as context:
      self.load(**options)
    self.assertNotIn('\n', str(context.exception))


class FolderTest(_FolderTest):
  def test_two_folders_tell_who_asks(self):
    self.save('database/b.jpg', 2)
    self.save('database/a/c.PNG', 1)
    self.save('queries/b.jpg', 3)
    self.save('beside.jpg')
    dataset = self.load()
    frames = dataset.frames
    self.assertEqual(
      frames.name.tolist(),
      ['database/a/c.PNG', 'database/b.jpg', 'queries/b.jpg'],
    )
    self.assertEqual(frames.drive.tolist(), ['database'] * 2 + ['queries'])
    self.assertEqual(frames.frame.tolist(), [0, 1, 0])
    self.assertEqual(set(frames.town), {self.root.name})
    self.assertEqual(dataset.queries.tolist(), [False, False, True])
    self.assertTrue(frames.has_image.all() and not frames.has_points.any())
    self.assertEqual(
      [dataset.read(i, ('image',))['image'][0, 0, 0] for i in range(3)],
      [1, 2, 3],
    )

  def test_the_two_folders_may_have_other_names(self):
    self.save('ref/0.jpg')
    self.save('query/0.jpg')
    dataset = self.load(database='ref', queries='query')
    self.assertEqual(dataset.frames.name.tolist(), ['ref/0.jpg', 'query/0.jpg'])
    self.assertEqual(dataset.frames.drive.tolist(), ['database', 'queries'])
    self.refuse(
      "no folder refs; found .'query', 'ref'.", FileNotFoundError,
      database='refs', queries='query',
    )  # fmt: skip

  def test_half_of_the_pair_is_not_taken_for_a_whole(self):
    self.save('database/0.jpg')
    self.save('query/0.jpg')
    self.refuse("no folder queries; found .'database', 'query'.",
                FileNotFoundError)  # fmt: skip

  def test_one_folder_asks_itself_or_every_nth_the_others(self):
    for i in range(1, 13):
      self.save(f'walk/{i}.jpg', i)
    self.assertIsNone(self.load().queries)
    dataset = self.load(query_every=2)
    self.assertEqual(
      dataset.frames.name.tolist(), [f'walk/{i}.jpg' for i in range(1, 13)]
    )
    self.assertEqual(dataset.queries.tolist(), [False, True] * 6)
    self.assertEqual(dataset.frames.drive.tolist(), ['database', 'queries'] * 6)
    self.assertEqual(dataset.frames.frame.tolist(), list(range(12)))
    self.assertEqual(self.load(query_every=5).queries.sum(), 2)
    self.refuse('query_every=1', query_every=1)
    (self.root / 'walk').rename(self.root / 'database')
    self.save('queries/1.jpg')
    self.refuse('query_every=2 is for one folder', query_every=2)

  def test_links_are_followed_but_not_in_circles(self):
    self.save('a/0.jpg')
    other = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    Image.new('L', (20, 20)).save(other / '1.jpg')
    (self.root / 'linked').symlink_to(other)
    (self.root / 'a/back').symlink_to(self.root)
    names = self.load().frames.name.tolist()
    self.assertEqual(names, ['a/0.jpg', 'linked/1.jpg'])

  def test_nothing_to_show_is_named(self):
    self.refuse(
      'no photos; expected files that end in',
    )
    self.write('text.txt', 'hello')
    self.refuse('no photos')
    with self.assertRaisesRegex(FileNotFoundError, 'no such folder'):
      photos.load(self.root / 'gone')
    self.refuse("'train' is not a split", split='train')

  def test_photos_that_are_none_are_counted_and_named(self):
    for i in range(3):
      self.save(f'{i}.jpg')
    self.write('3.jpg', 'hello')
    self.write('4.png', '')
    self.save('5.png', size=(20, 4))
    self.refuse(
      '3 of 6 photos cannot be used: .*3.jpg is not .*, .*4.png: an empty .*, '
      '.*5.png .* 4 x 20 pixels'
    )

  def test_every_mode_and_size_is_read_as_rgb(self):
    self.save('0.png', 30, mode='L')
    self.save('1.png', (9, 8, 7, 0), size=(50, 20), mode='RGBA')
    self.save('2.png', 5)
    dataset = self.load()
    found = [dataset.read(i, ('image',))['image'] for i in range(3)]
    self.assertEqual(
      [x.shape[:2] for x in found], [(20, 30), (50, 20), (20, 30)]
    )
    self.assertEqual(found[1][0, 0].tolist(), [9, 8, 7])
    (batch,) = batches.read_batches(
      dataset, np.arange(3), what=('image',), batch_size=3, image_size=(16, 32),
      num_points=1,
    )  # fmt: skip
    self.assertEqual(batch['image'].shape, (3, 16, 32, 3))
    self.assertNotIn('intrinsics', batch)

  def test_pixels_are_read_when_asked_for(self):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = self.root / 'a.jpg'
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    dataset = self.load()
    with self.assertRaisesRegex(ValueError, f'{path} is not a readable image'):
      dataset.read(0, ('image',))
    with self.assertRaisesRegex(ValueError, r"Asked for \['points'\]"):
      dataset.read(0, ('image', 'points'))

  def test_a_dataset_can_be_sent_to_a_worker_process(self):
    self.save('0.jpg', 77)
    dataset = pickle.loads(pickle.dumps(self.load()))
    self.assertEqual(dataset.read(0, ('image',))['image'][0, 0, 0], 77)

  def test_photos_are_not_packed(self):
    self.save('0.jpg')
    with self.assertRaisesRegex(ValueError, 'packed=.* photos is read from'):
      datasets.load('photos', split='all', data_dir=self.root, packed='x')


class PositionsTest(_FolderTest):
  def test_without_any_all_are_unknown(self):
    self.save('0.jpg')
    with self.assertLogs(level='WARNING') as logs:
      frames = self.load().frames
    self.assertIn('1 of 1 photos have no position', logs.output[0])
    self.assertTrue(np.isnan(frames.position).all())
    self.assertTrue(np.isnan(frames.heading).all())

  def test_names_of_the_deep_vg_format(self):
    for name in (
      '@0551000.25@4180000.50@10@S@37.76@-122.41@pano@@90@@@12.5@201311@@.jpg',
      '@0551003.25@4180004.50@10@S@@@@@@@@@@@.jpg',
      '@0551000.25@4180010.5@.jpg',
    ):
      self.save(f'x/{name}')
    self.refuse('different UTM zones.*10 north .2, .*unknown .1, ')
    next(self.root.glob('x/*10.5@.jpg')).unlink()
    frames = self.load().frames
    np.testing.assert_array_equal(
      frames.position[0], [551000.25, 4180000.5, 12.5]
    )
    np.testing.assert_array_equal(
      frames.position[1], [551003.25, 4180004.5, np.nan]
    )
    # East, by compass; nobody knows of the other one.
    self.assertAlmostEqual(frames.heading[0], 0)
    self.assertTrue(np.isnan(frames.heading[1]))

  def test_headings_turn_the_other_way_than_compasses(self):
    self.save('@1@2@10@S@@@@@0@@@@@@.jpg')
    self.save('@1@3@10@S@@@@@270@@@@@@.jpg')
    heading = self.load().frames.heading
    np.testing.assert_allclose(np.cos(heading), [0, -1], atol=1e-12)
    np.testing.assert_allclose(np.sin(heading), [1, 0], atol=1e-12)

  def test_names_without_numbers_are_counted(self):
    self.save('@1@2@.jpg')
    self.save('@1@north@.jpg')
    self.save('plain.jpg')
    self.refuse('2 of 3 names have no position, but .*@1@north@.jpg, plain')

  def test_exif_becomes_metres(self):
    places = [(55.70, 13.19), (55.7001, 13.19), (55.70, 13.1902)]
    for i, place in enumerate(places):
      exif = image_files_test.gps_exif(
        *place, GPSAltitude=37.0, GPSImgDirection=90.0
      )
      self.save(f'{i}.jpg', exif=exif)
    frames = self.load().frames
    expected = utm.utm_from_degrees(*np.array(places).T, zone=33)
    np.testing.assert_allclose(
      frames.position[:, :2], np.stack(expected, -1), atol=0.02
    )
    np.testing.assert_array_equal(frames.position[:, 2], 37)
    np.testing.assert_allclose(frames.heading, 0, atol=1e-12)
    step = np.linalg.norm(frames.position[1:] - frames.position[0], axis=1)
    np.testing.assert_allclose(step, [11.13, 12.57], atol=0.03)

  def test_a_photo_without_gps_is_counted_and_kept(self):
    self.save('0.jpg')
    self.save('1.jpg', exif=image_files_test.gps_exif(55.7, 13.19))
    with self.assertLogs(level='WARNING') as logs:
      dataset = self.load()
    self.assertIn('1 of 2 photos have no position', logs.output[0])
    known = np.isfinite(dataset.frames.position[:, :2]).all(1)
    self.assertEqual(known.tolist(), [False, True])
    # Batches count from the first that is known.
    (batch,) = batches.read_batches(
      dataset, [0, 1], what=('image',), batch_size=2, image_size=(16, 16),
      num_points=1,
    )  # fmt: skip
    np.testing.assert_array_equal(batch['image_position'][1, :2], [0, 0])

  @parameterized.parameters(
    ((50.0, 11.999), (50.0, 12.001)),  # zones 32 and 33
    ((0.001, 15.0), (-0.001, 15.0)),  # across the equator
    ((0.0, 179.999), (0.001, -179.999)),  # across the date line
  )
  def test_borders_are_no_gaps(self, first, second):
    self.write('p.csv', f'name,lat,lon\n0.jpg,{first[0]},{first[1]}\n'
               f'1.jpg,{second[0]},{second[1]}\n')  # fmt: skip
    self.save('0.jpg')
    self.save('1.jpg')
    position = self.load(positions='p.csv').frames.position
    apart = np.hypot(*(position[1] - position[0])[:2])
    north = math.radians(second[0] - first[0])
    east = math.radians((second[1] - first[1] + 180) % 360 - 180)
    east *= math.cos(math.radians(first[0]))
    round_earth = 6371e3 * math.hypot(north, east)
    self.assertAlmostEqual(apart / round_earth, 1, delta=0.01)

  def test_photos_of_two_continents_are_refused(self):
    self.save('0.jpg', exif=image_files_test.gps_exif(55.7, 13.19))
    self.save('1.jpg', exif=image_files_test.gps_exif(37.7, -122.4))
    self.refuse('between -122.4 and 13.19 degrees of longitude are too far')

  def test_positions_may_be_left_out_on_purpose(self):
    self.save('0.jpg', exif=image_files_test.gps_exif(55.7, 13.19))
    position = self.load(positions='none').frames.position
    self.assertTrue(np.isnan(position).all())


class CsvTest(_FolderTest):
  def setUp(self):
    super().setUp()
    self.save('database/a.jpg')
    self.save('queries/a.jpg')
    self.save('queries/b.jpg')

  def csv(self, *rows, header='name,x,y'):
    self.write('p.csv', '\n'.join([header, *rows]) + '\n')

  def test_metres(self):
    self.csv('queries/b.jpg,5,6', '"database/a.jpg", 1.5 ,2e3', '',
             './queries/a.jpg,-3,4')  # fmt: skip
    frames = self.load(positions='p.csv').frames
    np.testing.assert_array_equal(
      frames.position[:, :2], [[1.5, 2000], [-3, 4], [5, 6]]
    )
    self.assertTrue(np.isnan(frames.position[:, 2]).all())
    elsewhere = self.load(positions=str(self.root / 'p.csv')).frames
    np.testing.assert_array_equal(elsewhere.position, frames.position)

  def test_degrees_and_the_mark_of_spreadsheets(self):
    self.csv(
      'database/a.jpg,51.2,7.5', 'queries/a.jpg,51.2,7.5',
      'queries/b.jpg,51.2,7.5', header='\ufeffName, Lat, Lon',
    )  # fmt: skip
    position = self.load(positions='p.csv').frames.position
    np.testing.assert_allclose(
      position[:, :2], [[395201.310, 5673135.241]] * 3, atol=1e-3
    )

  def test_every_fault_is_counted_and_named_at_once(self):
    self.csv('database/a.jpg,1,2', 'queries/a.jpg,1,north', 'c.jpg,1,2',
             'd.jpg,1,2', 'c.jpg,1,2', 'queries/a.jpg,inf')  # fmt: skip
    self.refuse(
      '2 rows without two numbers .line 3: queries/a.jpg,1,north, line 7.*; '
      '2 names more than once .c.jpg, queries/a.jpg.',
      positions='p.csv',
    )

  @parameterized.parameters(
    'x,y', 'database/a.jpg,1,2', 'name,lon,y', 'name,x', ''
  )
  def test_another_header(self, header):
    self.csv('database/a.jpg,1,2', header=header)
    self.refuse('the first line is .*expected a column name', positions='p.csv')

  def test_no_such_file(self):
    self.refuse('q.csv: no such file', FileNotFoundError, positions='q.csv')

  def test_no_text(self):
    (self.root / 'p.csv').write_bytes(b'name,x,y\n\xff\xfe,1,2\n')
    self.refuse('p.csv is not a CSV file', positions='p.csv')


class RealTest(absltest.TestCase):
  def test_a_walk_with_gps(self):
    root = shared.require('data/places/lund')
    dataset = photos.load(root, query_every=2)
    self.assertEqual(dataset.queries.sum(), 14)
    self.assertLen(dataset.frames.name, 29)
    step = np.diff(dataset.frames.position[:, :2], axis=0)
    self.assertBetween(np.linalg.norm(step, axis=1).max(), 10, 20)
    self.assertEqual(dataset.read(3, ('image',))['image'].shape, (768, 1024, 3))

  def test_two_walks_of_a_corridor(self):
    root = shared.require('data/places/corridor')
    dataset = photos.load(root, database='ref', queries='query')
    self.assertEqual(dataset.queries.sum(), 111)
    self.assertEqual(dataset.frames.name[200], 'query/0000089.jpg')
    self.assertEqual(
      dataset.read(200, ('image',))['image'].shape[:2], (120, 160)
    )

  def test_a_split_of_photos_has_no_camera_and_no_scan(self):
    root = shared.require('data/places/toy_vpr')
    source = drives.Source(
      name='photos', data_dir=str(root), train='', validation='', test='all',
      image_size=(64, 64),
    )  # fmt: skip
    split = source.split('test')
    self.assertEqual(split.queries.sum(), 5)
    self.assertIsNone(split.labels)
    rig = split.rig(0)
    self.assertIsNone(rig.lens)
    self.assertEqual(rig.image_size, (64, 64))
    (batch,) = split.batches(np.arange(3), ('image',), 3)
    self.assertEqual(batch['image'].shape, (3, 64, 64, 3))
    self.assertFalse(source.has('train'))
    with self.assertRaisesRegex(ValueError, 'names no train split'):
      source.train_batches(2, 0)


if __name__ == '__main__':
  absltest.main()
