# SPDX-License-Identifier: Apache-2.0
"""Maps of photos: made, asked, and refused."""

import json

from absl.testing import absltest
import numpy as np

from i2ploc.errors import InputError
from i2ploc.retrieval import calibration as calibration_lib
from i2ploc.retrieval import index as index_lib
from tests.tasks import photo_runs

WHITENED = 'pooling=vlad,words=4,whitening=6'


class FittedTest(photo_runs.PhotosTestCase):
  """A vocabulary and a whitening belong to the map."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.config = photo_runs.config_of(WHITENED)
    cls.printed = cls.run_verb('index', cls.config)

  def test_a_photo_of_the_map_finds_itself(self):
    self.assertIn('12 places in', self.printed)
    path = str(self.photos / self.place(3))
    (line,) = self.localize(self.config, path)
    first = line['answers'][0]
    self.assertEqual(first['evidence']['name'], self.place(3))
    self.assertAlmostEqual(first['similarity'], 1, places=5)

  def test_what_the_map_taught_is_saved_with_it(self):
    index = index_lib.load_index(self.workdir / 'index.npz')
    shapes = {name: value.shape for name, value in index.learned.items()}
    self.assertEqual(
      shapes,
      {
        'map/image_aggregator/vocabulary': (4, 48),
        'map/image_head/mean': (192,),
        'map/image_head/projection': (192, 6),
      },
    )
    self.assertEqual(index.descriptors.shape, (12, 6))
    self.assertEqual(index.unit, 'm')
    # A page can be made of a map alone.
    page = json.loads((self.workdir / 'photos.json').read_text())
    self.assertLen(page['names'], 14)

  def test_another_map_is_asked_with_its_own_vocabulary(self):
    photos, workdir = self.root / 'elsewhere', self.root / 'elsewhere_run'
    for i in range(50, 60):
      path = photo_runs.save_scene(photos / 'database', i)
    photo_runs.save_scene(photos / 'queries', 50)
    where = dict(workdir=workdir, photos=photos)
    self.run_verb('index', self.config, **where)
    here, there = (
      index_lib.load_index(folder / 'index.npz').learned
      for folder in (self.workdir, workdir)
    )
    for name, value in here.items():
      self.assertGreater(np.abs(value - there[name]).max(), 0.001, name)
    (line,) = self.localize(self.config, str(path), **where)
    self.assertAlmostEqual(line['answers'][0]['similarity'], 1, places=5)

  def test_a_vocabulary_of_another_shape_is_refused(self):
    for arg in ('pooling=vlad,words=5,whitening=6', 'pooling=gem'):
      with self.subTest(arg):
        config = photo_runs.config_of(arg)
        with self.assertRaisesRegex(InputError, '--mode=index') as context:
          self.localize(config, self.query(1))
        self.assertNotIn('\n', str(context.exception))

  def test_other_weights_are_refused(self):
    # Tokens of a block are those of a smaller network.
    config = photo_runs.config_of(f'{WHITENED},block=1')
    with self.assertRaisesRegex(InputError, 'made by model'):
      self.localize(config, self.query(1))


class OrderedTest(photo_runs.PhotosTestCase):
  """Two traversals, photo by photo."""

  @classmethod
  def make_photos(cls):
    for i in range(12):
      photo_runs.save_scene(cls.photos / 'database', i)
    for i in range(3, 7):
      photo_runs.save_scene(cls.photos / 'queries', i, shift=5)

  def test_the_last_images_ask_together(self):
    config = photo_runs.config_of(sequence__length=3)
    self.run_verb('index', config)
    lines = self.localize(config, str(self.photos / 'queries'))
    for line, i in zip(lines, range(3, 7), strict=True):
      evidence = line['answers'][0]['evidence']
      self.assertEqual(evidence['name'], self.place(i))
      # The first photo has none before it.
      self.assertEqual(evidence.get('frames', 1), min(i - 2, 3))

  def test_frames_are_no_metres(self):
    config = photo_runs.config_of(
      'pooling=gem,radius=1', data__positions='order'
    )
    workdir = self.root / 'frames'
    self.run_verb('index', config, workdir=workdir)
    index = index_lib.load_index(workdir / 'index.npz')
    self.assertEqual(index.unit, 'frames')
    found = calibration_lib.fit(index, 1.0)
    self.assertEqual(found.unit, 'frames')
    self.assertIn('within 1 frames', found._replace(reason='').describe())
    for config.sequence.length in (1, 3):
      lines = self.localize(
        config, str(self.photos / 'queries'), workdir=workdir
      )
      for answer in lines[-1]['answers']:
        evidence = answer['evidence']
        self.assertIsNone(evidence['position'])
        self.assertIsNone(evidence['distance_from_best'])
        self.assertIsNone(answer['world_from_camera'])
      self.assertEqual(lines[-1]['answers'][0]['evidence']['frame'], 6)


if __name__ == '__main__':
  absltest.main()
