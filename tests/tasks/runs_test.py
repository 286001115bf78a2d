# SPDX-License-Identifier: Apache-2.0
"""What another model takes of a run that was trained here."""

import json
import logging
import pathlib
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from i2ploc import files
from i2ploc import verbs
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.report import html
from i2ploc.tasks import runs
from tests import configs_test
from tests.tasks import photo_runs
from tests.tasks import place_runs


class LoadVariablesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.workdir = self.root / 'run'

  def _photos(self, arg=''):
    return configs_test.load('photos', f'checkpoint={self.workdir}{arg}')

  def _assert_same(self, found, expected):
    self.assertEqual(jax.tree.structure(found), jax.tree.structure(expected))
    jax.tree.map(np.testing.assert_array_equal, found, expected)

  @parameterized.parameters(
    ('gsv_cities', ''),  # MixVPR, whose grid JSON makes a list
    ('gsv_cities', 'aggregator=boq,backbone=resnet18'),
    ('seq_vlad', 'frames=3,fusion=transformer,aggregator=gem'),
    ('seq_vlad', 'frames=3'),
    ('mesh_vpr', 'aggregator=gem'),
    ('earth_loc', ''),
    ('lip_loc', 'aggregator=head'),
  )
  def test_photos_are_described_by_the_tower_of_images(self, name, arg):
    config = place_runs.smoke(name, arg)
    saved = place_runs.save_run(self.workdir, config)
    photos = self._photos()
    self.assertEqual(photos.name, config.name)
    self.assertEqual(photos.data.image_size, config.data.image_size)
    model = place_runs.model_of(photos)
    self.assertEqual(list(model.towers), ['image'])
    found = runs.load_variables(self.workdir, model)
    expected = {
      collection: {
        name: value
        for name, value in modules.items()
        if name.startswith(('image', 'log_scale', 'similarity_bias'))
      }
      for collection, modules in saved.items()
    }
    self._assert_same(found, expected)
    frames = photos.data.get('num_frames', 1)
    self.assertEqual(frames, 3 if 'transformer' in arg else 1)
    turns = 4 if name == 'earth_loc' else 1
    self.assertLen(photos.index.views, turns)
    descriptor, _ = jax.eval_shape(
      lambda x: model.apply(x, model.example(), side='image'), found
    )
    self.assertEqual(descriptor.shape[0], 1)

  def test_renderings_start_as_the_images_do(self):
    saved = place_runs.save_run(
      self.workdir, place_runs.smoke('gsv_cities', 'aggregator=gem')
    )
    model = place_runs.model_of(place_runs.smoke('mesh_vpr', 'aggregator=gem'))
    found = runs.load_variables(self.workdir, model)['params']
    params = saved['params']
    for side in ('image', 'rendering'):
      for part in ('', '_aggregator'):
        self._assert_same(found[side + part], params[f'image{part}'])
    self._assert_same(found['log_scale'], params['log_scale'])

  def test_both_towers_of_its_own_run_are_taken(self):
    config = place_runs.smoke('mesh_vpr', 'aggregator=gem')
    saved = place_runs.save_run(self.workdir, config)
    self._assert_same(
      runs.load_variables(str(self.workdir), place_runs.model_of(config)), saved
    )

  def test_what_belongs_to_a_map_is_fitted_later(self):
    place_runs.save_run(
      self.workdir, place_runs.smoke('gsv_cities', 'aggregator=gem')
    )
    model = place_runs.model_of(self._photos(',whitening=6'))
    found = runs.load_variables(self.workdir, model)
    self.assertEqual(set(found), {'params', 'map'})
    self.assertTrue(np.isnan(found['map']['image_head']['mean']).all())

  def test_without_an_evaluation_the_newest_checkpoint_counts(self):
    config = place_runs.smoke('gsv_cities', 'aggregator=gem')
    saved = place_runs.save_run(self.workdir, config, best=False)
    with self.assertLogs(level=logging.WARNING) as logs:
      found = runs.load_variables(self.workdir, place_runs.model_of(config))
    self.assertIn('no best checkpoint', logs.output[0])
    self._assert_same(found, saved)

  def test_other_towers_are_named(self):
    place_runs.save_run(
      self.workdir, place_runs.smoke('gsv_cities', 'aggregator=gem')
    )
    for arg, name in (
      ('aggregator=netvlad', 'image_aggregator'),
      ('aggregator=gem,backbone=resnet18', 'image'),
    ):
      model = place_runs.model_of(place_runs.smoke('gsv_cities', arg))
      with self.assertRaisesRegex(InputError, f"its '{name}' does not fit"):
        runs.load_variables(self.workdir, model)

  def test_a_workdir_that_is_not_whole_is_named(self):
    config = place_runs.smoke('gsv_cities', 'aggregator=gem')
    place_runs.save_run(self.workdir, config)
    self.assertTrue(runs.is_run(self.workdir))
    model = place_runs.model_of(config)
    (self.workdir / 'config.json').unlink()
    with self.assertRaisesRegex(MissingFileError, 'config.json is missing'):
      runs.load_variables(self.workdir, model)
    with self.assertRaisesRegex(ValueError, 'no config.json in it'):
      self._photos()
    files.save_json(self.workdir / 'config.json', config.to_dict())
    shutil.rmtree(self.workdir / 'checkpoints')
    self.assertFalse(runs.is_run(self.workdir))
    with self.assertRaises(MissingFileError):
      runs.load_variables(self.workdir, model)

  def test_a_run_of_no_images_is_named(self):
    for config in (
      configs_test.load('clip', ''),
      configs_test.load('hypotheses', ''),
    ):
      files.save_json(self.workdir / 'config.json', config.to_dict())
      with self.assertRaisesRegex(ValueError, 'finds no places by images'):
        self._photos()

  @parameterized.parameters('encoder=clip_base', 'words=4', 'image_size=42x56')
  def test_a_run_has_what_is_otherwise_an_argument(self, other):
    place_runs.save_run(
      self.workdir, place_runs.smoke('gsv_cities', 'aggregator=gem')
    )
    with self.assertRaisesRegex(ValueError, 'a run has its own'):
      self._photos(f',{other}')


class PhotosTest(photo_runs.PhotosTestCase):
  """A method that was trained on towns describes a folder of photos."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.run_dir = cls.root / 'gsv_cities'
    config = place_runs.smoke('gsv_cities', 'aggregator=gem')
    config.data.test = ''
    verbs.train(
      config,
      place_runs.source(config),
      cls.run_dir,
    )
    cls.config = configs_test.load('photos', f'checkpoint={cls.run_dir}')
    cls.printed = cls.run_verb('evaluate', cls.config)

  def test_it_is_measured_and_asked(self):
    self.assertEqual(self.results()['answerable_25m'], 2)
    self.assertIn('recall@1_25m', self.results())
    path = str(self.photos / self.place(3))
    (line,) = self.localize(self.config, path)
    first = line['answers'][0]
    self.assertEqual(first['evidence']['name'], self.place(3))
    self.assertAlmostEqual(first['similarity'], 1, places=4)

  def test_its_map_can_be_made_alone(self):
    workdir = self.root / 'map'
    printed = self.run_verb('index', self.config, workdir=workdir)
    self.assertIn('12 places', printed)
    answers = self.localize(self.config, self.query(1), workdir=workdir)
    self.assertEqual(answers, self.localize(self.config, self.query(1)))

  def test_the_page_names_the_run(self):
    page = json.loads((self.workdir / 'photos.json').read_text())
    weights = {'name': str(self.run_dir), 'what': 'GSV-Cities'}
    self.assertEqual(page['weights'], weights)
    text = pathlib.Path(html.write_report(self.workdir)).read_text()
    self.assertIn(str(self.run_dir), text)
    self.assertIn('GSV-Cities', text)

  def test_descriptors_are_whitened_by_the_photos(self):
    config = configs_test.load(
      'photos', f'checkpoint={self.run_dir},whitening=4'
    )
    workdir = self.root / 'whitened'
    self.run_verb('evaluate', config, workdir=workdir)
    self.assertIn('recall@1_25m', self.results(workdir))

  def test_sectors_need_to_know_the_camera(self):
    folder = self.root / 'lip_loc'
    place_runs.save_run(folder, place_runs.smoke('lip_loc', ''))
    config = configs_test.load('photos', f'checkpoint={folder}')
    with self.assertRaisesRegex(InputError, 'no intrinsics.*calibrate'):
      self.run_verb('evaluate', config, workdir=self.root / 'sectors')


if __name__ == '__main__':
  absltest.main()
