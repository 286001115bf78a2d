# SPDX-License-Identifier: Apache-2.0
"""Maps of photos: made, asked, and refused."""

import contextlib
import dataclasses
import io
import json
from unittest import mock

from absl.testing import absltest
import numpy as np

from i2ploc.errors import InputError
from i2ploc.retrieval import calibration as calibration_lib
from i2ploc.retrieval import index as index_lib
from i2ploc.tasks import place_map
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
    config = photo_runs.config_of(f'encoder={photo_runs.ENCODER}@1,{WHITENED}')
    with self.assertRaisesRegex(InputError, 'made by model'):
      self.localize(config, self.query(1))


class OtherConfigTest(photo_runs.PhotosTestCase):
  """A map is asked with the config that made it."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.run_verb('index', photo_runs.config_of())

  def ask(self, config, **options):
    with contextlib.redirect_stderr(io.StringIO()) as said:
      found = self.localize(config, self.query(1), **options)
    return found, said.getvalue()

  def test_what_decides_the_map_is_refused_by_name(self):
    (same,), said = self.ask(photo_runs.config_of())
    self.assertEqual(said, '')
    config = photo_runs.config_of(data__resize='crop')
    with self.assertRaises(InputError) as caught:
      self.ask(config)
    self.assertRegex(
      str(caught.exception),
      r"index.npz is a map of another config: data.resize: 'stretch' before,"
      r" 'crop' now\. Use .*--mode=index, or allow it with --allow_changes\.",
    )
    (other,), said = self.ask(config, allow_changes=True)
    self.assertIn("'crop' now; allowed", said)
    self.assertNotEqual(
      other['answers'][0]['similarity'], same['answers'][0]['similarity']
    )

  def test_the_radius_of_fitted_confidences_is_that_of_the_map(self):
    with self.assertRaisesRegex(InputError, 'index.radius: 25.0 before, 7.0'):
      self.ask(photo_runs.config_of(index__radius=7.0))

  def test_what_does_not_matter_may_be_another(self):
    config = photo_runs.config_of(
      seed=5, index__num_answers=2, evaluation__num_examples=1
    )
    (line,), said = self.ask(config)
    self.assertLen(line['answers'], 2)
    self.assertEqual(said, '')

  def test_an_index_that_does_not_name_its_fields_is_compared_by_digest(self):
    path = self.workdir / 'index.npz'
    before = path.read_bytes()
    self.addCleanup(path.write_bytes, before)
    index = index_lib.load_index(path)
    origin = dict(index.provenance)
    del origin['fields']
    index_lib.save_index(dataclasses.replace(index, provenance=origin), path)
    self.ask(photo_runs.config_of())
    with self.assertRaisesRegex(InputError, 'digest: .* before, .* now'):
      self.ask(photo_runs.config_of(seed=5))


class BesideTest(photo_runs.PhotosTestCase):
  def test_a_map_beside_an_evaluation_is_compared_with_it(self):
    config = photo_runs.config_of()
    self.run_verb('index', config)
    origin = index_lib.load_provenance(self.workdir / 'index.npz')

    def beside(config, **changes):
      embedding = mock.Mock(origin=origin | changes)
      return place_map.beside(config, embedding, self.workdir)

    self.assertEqual(beside(config), [])
    self.assertEqual(beside(photo_runs.config_of(seed=3)), [])
    (line,) = beside(photo_runs.config_of(data__resize='crop'), model='f' * 64)
    self.assertRegex(
      line,
      'index.npz is another map than the one that was measured .data.resize:'
      " 'stretch' before, 'crop' now; checkpoint: .*before, 'ffffffffffff' now"
      '.: build it again with --mode=index',
    )
    self.assertEqual(
      place_map.beside(config, mock.Mock(origin=origin), self.root), []
    )


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
