# SPDX-License-Identifier: Apache-2.0
"""The five verbs in a row on the tiny town, as a user runs them."""

import contextlib
import io
import json
import pathlib
import shutil
import tempfile

from absl.testing import absltest
import ml_collections
import numpy as np

from configs import common
from configs import saliency_i2ploc
from i2ploc import commands
from i2ploc.report import html
from input_pipeline import source
from tests import configs_test


class Recorder:
  """Stands for a ConfigDict and remembers which leaves were read.

  Writing the whole config down is not reading it; unpacking a sub-dict into a
  signature is, because the signature refuses what it does not know.
  """

  def __init__(self, config, read, prefix=''):
    self._config, self._read, self._prefix = config, read, prefix

  def __getattr__(self, name):
    return self[name]

  def __getitem__(self, name):
    value = self._config[name]
    if isinstance(value, ml_collections.ConfigDict):
      return Recorder(value, self._read, f'{self._prefix}{name}.')
    self._read.add(self._prefix + name)
    return value

  def keys(self):
    return self._config.keys()

  def to_dict(self):
    if self._prefix:
      self._read.update(configs_test.leaves(self._config, self._prefix))
    return self._config.to_dict()


class CommandsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(tempfile.mkdtemp())
    cls.workdir = cls.root / 'run'
    cls.config = common.smoke(saliency_i2ploc.get_config())
    cls.read = set()
    cls.recorder = Recorder(cls.config, cls.read)
    data_dir = pathlib.Path(tempfile.gettempdir()) / 'i2ploc_test_data'
    cls.data = source.Source(data_dir=str(data_dir), **cls.recorder.data)
    commands.train(cls.recorder, cls.data, cls.workdir)
    commands.index(cls.recorder, cls.data, cls.workdir)
    queries = sorted(map(str, (cls.workdir / 'queries').glob('*.png')))
    with contextlib.redirect_stdout(io.StringIO()) as cls.printed:
      commands.localize(cls.recorder, cls.data, cls.workdir, queries[:2], ())

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.root)
    super().tearDownClass()

  def test_every_leaf_of_the_config_is_read(self):
    unread = set(configs_test.leaves(self.config)) - self.read
    self.assertEmpty(unread)

  def test_results_are_a_flat_dictionary_of_numbers(self):
    results = json.loads((self.workdir / 'results.json').read_text())
    for protocol in ('sync', 'cross', 'opposite'):
      for name in (
        f'test/{protocol}/image_to_points/recall@1_10m',
        f'test/{protocol}/points_to_image/recall@1%_20m',
        f'test/{protocol}/chance@1_10m',
        f'test/{protocol}/answerable_5m',
      ):
        self.assertIn(name, results)
        self.assertIsInstance(results[name], float)
    for sensor in ('image', 'points'):
      self.assertIn(f'test/saliency/{sensor}/moving_share', results)

  def test_evaluating_again_gives_the_same_numbers(self):
    before = json.loads((self.workdir / 'results.json').read_text())
    self.assertEqual(
      commands.evaluate(self.config, self.data, self.workdir), before
    )

  def test_answers_are_json_lines_with_ranked_poses(self):
    lines = self.printed.getvalue().splitlines()
    self.assertLen(lines, 2)
    for line in lines:
      answers = json.loads(line)['answers']
      self.assertEqual([a['rank'] for a in answers], [1, 2, 3, 4, 5])
      similarities = [a['similarity'] for a in answers]
      self.assertEqual(similarities, sorted(similarities, reverse=True))
      self.assertTrue(all(0 <= a['confidence'] <= 1 for a in answers))

  def test_the_index_holds_each_scan_of_the_map_once_per_view(self):
    with np.load(self.workdir / 'index.npz') as saved:
      keys = saved['keys']
    maps = [p.map_rows for p in self.data.split('test').protocols]
    self.assertLen(set(keys.tolist()), len(np.unique(np.concatenate(maps))))
    self.assertLen(keys, len(set(keys.tolist())) * 2)

  def test_an_index_that_another_model_made_is_refused(self):
    other = self.root / 'other'
    config = common.smoke(saliency_i2ploc.get_config())
    config.seed, config.data.test = 1, ''
    data_dir = pathlib.Path(tempfile.gettempdir()) / 'i2ploc_test_data'
    data = source.Source(data_dir=str(data_dir), **config.data)
    commands.train(config, data, other)
    shutil.copy(self.workdir / 'index.npz', other / 'index.npz')
    with self.assertRaisesRegex(ValueError, 'another model|made by'):
      commands.localize(config, data, other, ['query.png'], ())

  def test_the_report_shows_the_run(self):
    page = pathlib.Path(html.write_report(self.workdir)).read_text()
    results = json.loads((self.workdir / 'results.json').read_text())
    recall = results['test/cross/image_to_points/recall@1_10m']
    self.assertIn(f'{recall:.1f}', page)
    self.assertIn('data:image/', page)


class OptionsTest(absltest.TestCase):
  def test_the_options_of_training_work_together(self):
    config = common.smoke(saliency_i2ploc.get_config('lidar=range'))
    config.data.test = ''
    config.model.dtype = 'bfloat16'
    config.train.num_chunks = 2
    config.loss.form = 'concatenated'
    config.loss.relation_weights = (1.0, 2.0, 1.0)
    data_dir = pathlib.Path(tempfile.gettempdir()) / 'i2ploc_test_data'
    data = source.Source(data_dir=str(data_dir), **config.data)
    with tempfile.TemporaryDirectory() as workdir:
      commands.train(config, data, workdir)
      lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
    trained = [json.loads(x) for x in lines.splitlines() if '"loss"' in x]
    self.assertTrue(trained)
    for line in trained:
      self.assertTrue(np.isfinite(list(line.values())).all(), line)
      self.assertLessEqual({'euclidean', 'angle', 'hyperbolic'}, set(line))


if __name__ == '__main__':
  absltest.main()
