# SPDX-License-Identifier: Apache-2.0
"""Photos evaluated: numbers, and files that others read."""

import importlib.util
import json
import pathlib
from unittest import mock

from absl.testing import absltest
import h5py
import numpy as np

from i2ploc import verbs
from i2ploc.errors import InputError
from i2ploc.report import html
from i2ploc.retrieval import index as index_lib
from i2ploc.tasks import photos as photos_lib
from input_pipeline.sources import opening
from tests import configs_test
from tests.tasks import photo_runs
from tests.tasks import recorder


class EvaluateTest(photo_runs.PhotosTestCase):
  """By published weights alone."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.config = photo_runs.config_of(photo_runs.VLAD, index__num_answers=3)
    cls.config.evaluation.descriptors = 'h5'
    cls.read = set()
    config = recorder.Recorder(cls.config, cls.read)
    cls.printed = cls.run_verb('evaluate', config)
    cls.answers = cls.localize(config, cls.query(1), cls.query(4))

  def test_every_leaf_of_the_config_is_read(self):
    unread = set(configs_test.leaves(self.config)) - self.read
    self.assertEmpty(unread)

  def test_recall_stands_beside_chance(self):
    results = self.results()
    self.assertEqual(results['recall@1_25m'], 100)
    self.assertAlmostEqual(results['chance@1_25m'], 100 / 12)
    self.assertIn('of 2', self.printed)

  def test_the_map_that_was_asked_is_left_as_an_index(self):
    workdir = self.root / 'indexed'
    self.run_verb('index', self.config, workdir=workdir)
    left, made = (
      index_lib.load_index(folder / 'index.npz')
      for folder in (self.workdir, workdir)
    )
    self.assertLen(left.names, 12)
    self.assertIn('map/image_aggregator/vocabulary', left.learned)
    np.testing.assert_array_equal(left.names, made.names)
    np.testing.assert_allclose(left.descriptors, made.descriptors, atol=1e-6)
    for name, value in left.learned.items():
      np.testing.assert_array_equal(value, made.learned[name])

  def test_answers_are_photos_by_name(self):
    for line, i in zip(self.answers, (1, 4), strict=True):
      self.assertEqual(line['image_size'], [100, 160])
      self.assertLen(line['answers'], 3)
      first = line['answers'][0]
      self.assertEqual(first['evidence']['name'], self.place(i))
      # The name tells no height.
      position = [photo_runs.east(i), photo_runs.NORTH, None]
      self.assertEqual(first['evidence']['position'], position)
      path = str(self.photos / self.place(i))
      self.assertEqual(first['evidence']['image'], path)
      # A position is no pose, and a dozen photos tell no confidence.
      self.assertIn('no orientation', first['reason'])
      self.assertIn('20 are needed', first['reason'])
      self.assertIsNone(first['world_from_camera'])
      self.assertIsNone(first['confidence'])

  def test_pairs_are_read_as_hloc_does(self):
    lines = (self.workdir / 'pairs.txt').read_text().splitlines()
    pairs = [line.split() for line in lines]
    # All that the database has, most similar first.
    self.assertLen(pairs, 2 * 12)
    self.assertEqual(pairs[0], [f'queries/{self.file(1)}', self.place(1)])
    self.assertEqual(pairs[12], [f'queries/{self.file(4)}', self.place(4)])

  def file(self, i):
    return pathlib.PurePath(self.query(i)).name

  def test_descriptors_are_read_as_hloc_does(self):
    index = index_lib.load_index(self.workdir / 'index.npz')
    with h5py.File(self.workdir / 'descriptors/database.h5', 'r') as file:
      found = [
        file[name]['global_descriptor'].__array__() for name in index.names
      ]
      names = []
      file.visititems(
        lambda _, item: (
          names.append(item.parent.name.strip('/'))
          if isinstance(item, h5py.Dataset)
          else None
        )
      )
    np.testing.assert_array_equal(found, index.descriptors)
    self.assertCountEqual(names, index.names.tolist())
    with h5py.File(self.workdir / 'descriptors/queries.h5', 'r') as file:
      self.assertLen(file['queries'], 2)

  def test_the_page_knows_the_photos(self):
    page = json.loads((self.workdir / 'photos.json').read_text())
    self.assertEqual((page['unit'], page['radius']), ('m', 25))
    self.assertLen(page['names'], 14)
    self.assertIn('20 are needed', page['confidence'])
    text = pathlib.Path(html.write_report(self.workdir)).read_text()
    self.assertIn('data:image/', text)
    self.assertIn('100.0', text)

  def test_the_workdir_says_what_it_is(self):
    config = json.loads((self.workdir / 'config.json').read_text())
    self.assertEqual(config['map_side'], 'image')
    self.assertFalse((self.workdir / 'parts').exists())

  def test_nothing_is_trained(self):
    data = opening.open_source(self.config, str(self.photos))
    with self.assertRaisesRegex(ValueError, "no 'train'; it has .'evaluate'"):
      verbs.train(self.config, data, self.workdir)


class OneFolderTest(photo_runs.PhotosTestCase):
  """Photos that ask each other, one of them twice there."""

  @classmethod
  def make_photos(cls):
    for i in range(5):
      photo_runs.save_scene(cls.photos, i)
    photo_runs.save_scene(cls.photos, 2, shift=30)
    photo_runs.save_scene(cls.photos, 3, shift=3)

  def test_copies_are_named_and_descriptors_are_arrays(self):
    config = photo_runs.config_of(evaluation__descriptors='npy')
    printed = self.run_verb('evaluate', config)
    # Scene 3 is right and scene 2 is out of reach; all four are copies.
    results = self.results()
    self.assertEqual(results['answerable_25m'], 2)
    self.assertEqual(results['recall@1_25m'], 100)
    self.assertEqual(results['queries_with_duplicate'], 4)
    self.assertIn('4 queries have a duplicate in the database', printed)
    page = json.loads((self.workdir / 'photos.json').read_text())
    self.assertLen(page['duplicates'], 4)
    for query, row in page['duplicates']:
      self.assertNotEqual(query, row)
    folder = self.workdir / 'descriptors'
    # All of them do both.
    self.assertEqual(
      sorted(path.name for path in folder.iterdir()),
      ['database.npy', 'database.txt'],
    )
    self.assertEqual(np.load(folder / 'database.npy').shape, (7, 48))
    names = (folder / 'database.txt').read_text().splitlines()
    self.assertEqual(names, page['names'])


class CropsTest(photo_runs.PhotosTestCase):
  """Queries that are cut otherwise than the map."""

  @classmethod
  def make_photos(cls):
    for i in range(12):
      photo_runs.save_scene(cls.photos / 'database', i)
    # The left of scene 7 beside another scene, twice as wide as the view.
    path = photo_runs.save_scene(
      cls.photos / 'queries', 7, shift=5, size=(90, 120)
    )
    other = photo_runs.save_scene(cls.root / 'other', 99)
    beside = [np.asarray(photo_runs.Image.open(x)) for x in (path, other)]
    photo_runs.Image.fromarray(np.concatenate(beside, 1)).save(path)

  def test_the_crop_that_shows_the_place_counts(self):
    self.assertEqual(self.measure('nearest_crop'), 100)
    self.assertEqual(self.similarity('nearest_crop'), 1.0)
    self.assertLess(self.similarity('five_crops'), 0.999)

  def measure(self, policy):
    config = photo_runs.config_of(data__query_resize=policy)
    self.run_verb('evaluate', config, workdir=self.root / policy)
    return self.results(self.root / policy)['recall@1_25m']

  def similarity(self, policy):
    """Of the best answer to the wide photo."""
    self.measure(policy)
    config = photo_runs.config_of(data__query_resize=policy)
    (line,) = self.localize(config, self.query(7), workdir=self.root / policy)
    best = line['answers'][0]
    if policy == 'nearest_crop':
      self.assertEqual(best['evidence']['name'], self.place(7))
    return round(best['similarity'], 4)


class OrderedTest(photo_runs.PhotosTestCase):
  """Two traversals, photo by photo."""

  @classmethod
  def make_photos(cls):
    for i in range(12):
      photo_runs.save_scene(cls.photos / 'database', i)
      photo_runs.save_scene(cls.photos / 'queries', i, shift=5)

  def test_sequences_are_named_by_their_length(self):
    config = photo_runs.config_of(sequence__length=4)
    printed = self.run_verb('evaluate', config)
    results = self.results()
    for suffix in ('_4_frames', '_4_frames_any_frame'):
      self.assertEqual(results[f'recall@1_25m{suffix}'], 100)
    # Lines that share a frame with the query's are right, up to seven.
    chance = results['chance@1_25m_4_frames_any_frame']
    self.assertBetween(chance, 4 * 100 / 12, 7 * 100 / 12)
    self.assertIn('4 frames', printed)

  def test_a_model_of_sequences_is_asked_by_sequences(self):
    config = photo_runs.config_of()
    with config.unlocked():
      config.data.num_frames = 3
    self.run_verb('evaluate', config)
    self.assertEqual(self.results()['recall@1_25m'], 100)
    queries = sorted(map(str, (self.photos / 'queries').iterdir()))
    lines = self.localize(config, *queries)
    for i, line in enumerate(lines):
      best = line['answers'][0]
      self.assertEqual(best['evidence']['name'], self.place(i))
      self.assertEqual(best['evidence']['frames'], min(i + 1, 3))
      self.assertIn('share images with their neighbours', best['reason'])

  def test_sequences_do_not_look_for_themselves(self):
    config = photo_runs.config_of()
    with config.unlocked():
      config.data.num_frames = 3
    folder = self.photos / 'database'
    with self.assertRaisesRegex(InputError, 'share photos.*query_every=2'):
      self.run_verb(
        'evaluate', config, workdir=self.root / 'alone', photos=folder
      )
    config.data.query_every = 2
    self.run_verb(
      'evaluate', config, workdir=self.root / 'split', photos=folder
    )

  def test_frames_are_no_metres(self):
    config = photo_runs.config_of(
      'pooling=gem,radius=1', data__positions='order', sequence__length=3
    )
    self.run_verb('evaluate', config)
    results = self.results()
    self.assertEqual(results['recall@1_1frames_3_frames'], 100)
    self.assertIn('recall@1_1frames_3_frames_any_frame', results)
    page = json.loads((self.workdir / 'photos.json').read_text())
    self.assertEqual((page['unit'], page['ordered']), ('frames', True))


class ConfidentTest(photo_runs.PhotosTestCase):
  """A map that is large enough to know how sure it is."""

  @classmethod
  def make_photos(cls):
    # Ten scenes twice, and ten once: a third of the map is answered wrongly.
    # Photos of another day, that do not follow the first in order of name.
    for i in range(20):
      photo_runs.save_scene(cls.photos / 'database', i)
    for i in range(10):
      again = cls.photos / 'database/later'
      photo_runs.save_scene(again, i, shift=10, change=0.1)
    photo_runs.save_scene(cls.photos / 'queries', 3, shift=5, change=0.05)
    photo_runs.save_scene(cls.photos / 'queries', 77, shift=5)

  def test_similar_answers_are_surer(self):
    config = photo_runs.config_of(photo_runs.VLAD)
    printed = self.run_verb('evaluate', config)
    self.assertIn('confidences fitted on 30 readings', printed)
    self.assertIn('66.7 % right within 25 m', printed)
    with np.load(self.workdir / 'predictions.npz') as saved:
      known, unknown = saved['test/photos/image_to_image/confidence']
    self.assertGreater(known, 0.6)
    self.assertBetween(unknown, 0, known)
    lines = self.localize(config, self.query(3), self.query(77))
    for line, expected in zip(lines, (known, unknown), strict=True):
      self.assertAlmostEqual(
        line['answers'][0]['confidence'], expected, places=3
      )


class NamesTest(photo_runs.PhotosTestCase):
  """Names as people give them, and a database of a single photo."""

  ODD = 'Größe 日本, (1) #2 100%.png'

  @classmethod
  def make_photos(cls):
    for folder in ('database', 'queries'):
      path = photo_runs.save_scene(cls.photos / folder, 1)
      path.rename(path.with_name(cls.ODD))
    path = photo_runs.save_scene(cls.photos / 'queries', 2)
    path.rename(path.with_name('plain.png'))

  def test_odd_names_go_through_every_verb(self):
    config = photo_runs.config_of(evaluation__descriptors='h5')
    with self.subTest('evaluate'):
      printed = self.run_verb('evaluate', config)
      self.assertIn('none of 2 queries has a right answer', printed)
      self.assertIn('names hold blanks', printed)
      self.assertEqual((self.workdir / 'pairs.txt').read_text(), '')
      names = json.loads((self.workdir / 'photos.json').read_text())['names']
      self.assertIn(f'database/{self.ODD}', names)
      with h5py.File(self.workdir / 'descriptors/database.h5', 'r') as file:
        self.assertIn(f'database/{self.ODD}/global_descriptor', file)
    with self.subTest('index'):
      self.assertIn('1 places in', self.run_verb('index', config))
    with self.subTest('localize'):
      lines = self.localize(config, str(self.photos / 'queries'))
      self.assertLen(lines, 2)
      for line in lines:
        (answer,) = line['answers']
        self.assertEqual(answer['evidence']['name'], f'database/{self.ODD}')
        self.assertIsNone(answer['evidence']['position'])
    with self.subTest('report'):
      page = pathlib.Path(html.write_report(self.workdir)).read_text('utf-8')
      self.assertIn('Größe 日本', page)


class SomePositionsTest(photo_runs.PhotosTestCase):
  """A file that knows where some of the photos are."""

  def test_photos_without_position_are_answered_and_not_counted(self):
    lines = ['name,x,y']
    lines += [f'{self.place(i)},{photo_runs.east(i)},0' for i in range(6)]
    for i in (1, 4):
      name = f'queries/{pathlib.PurePath(self.query(i)).name}'
      known = i == 1
      lines += [f'{name},{photo_runs.east(i) + 5},0'] * known
    (self.photos / 'some.csv').write_text('\n'.join(lines) + '\n')
    config = photo_runs.config_of(data__positions='some.csv')
    self.run_verb('evaluate', config)
    results = self.results()
    self.assertEqual(results['answerable_25m'], 1)
    self.assertEqual(results['queries_without_position'], 1)
    self.assertEqual(results['database_without_position'], 6)
    self.assertAlmostEqual(results['chance@1_25m'], 100 / 6)
    self.assertEqual(results['recall@1_25m'], 100)


class RefusedTest(absltest.TestCase):
  def refuse(self, message, **overrides):
    config = photo_runs.config_of(**overrides)
    with self.assertRaisesRegex(InputError, message) as context:
      photos_lib.check(config)
    self.assertNotIn('\n', str(context.exception))

  def test_what_cannot_be_written_is_known_at_once(self):
    photos_lib.check(photo_runs.config_of(evaluation__descriptors='h5'))
    self.refuse("'csv': expected one of", evaluation__descriptors='csv')
    self.refuse(
      'nearest_crop.*five_crops',
      evaluation__descriptors='h5',
      data__query_resize='nearest_crop',
    )
    with mock.patch.object(importlib.util, 'find_spec', return_value=None):
      self.refuse('pip install h5py', evaluation__descriptors='h5')
      photos_lib.check(photo_runs.config_of(evaluation__descriptors='npy'))


if __name__ == '__main__':
  absltest.main()
