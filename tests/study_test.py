# SPDX-License-Identifier: Apache-2.0
"""Tests of how studies run, resume and count."""

import ast
import contextlib
import json
import pathlib
import subprocess
import tempfile
from unittest import mock

from absl.testing import absltest
from ml_collections.config_flags import config_path
import numpy as np

from benchmarks import ablation
from benchmarks import lip_loc
from benchmarks import scaling
from benchmarks import study

SALIENCY = 'saliency_i2ploc.py'
STUDY = study.Study(
  name='mark',
  title='what',
  rows={
    'first': study.Row('one', SALIENCY),
    'small': study.Row('other', SALIENCY, {'train.batch_size': '16'}),
    'own': study.Row('own batch', 'lip_loc.py:recipe=released'),
  },
  columns={'R@1': study.RECALL, 'R@5': 'five'},
)


class StudyTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.options = study.Options(self.folder, num_seeds=1)

  def _save(self, name, seed, value):
    folder = self.folder / f'{name}-{seed}'
    folder.mkdir()
    (folder / 'results.json').write_text(json.dumps({study.RECALL: value}))

  def _command(self, name, steps=None):
    options = self.options._replace(steps=steps)
    return study.command(STUDY, name, 3, self.folder, options)

  def test_another_batch_size_gets_as_many_pairs(self):
    first = self._command('first', 200)
    self.assertIn('--config.train.num_steps=200', first)
    small = self._command('small', 200)
    self.assertIn('--config.train.num_steps=800', small)
    self.assertIn('--config.train.batch_size=16', small)
    self.assertIn('--config.train.num_steps=400', self._command('own', 200))
    self.assertIn('--config.seed=3', small)
    self.assertNotIn('--data_dir=None', small)
    default = study.default_config(STUDY.rows['first']).train.num_steps
    self.assertIn(f'--config.train.num_steps={default}', self._command('first'))

  def test_rows_differ_in_fields_that_there_are(self):
    for script in (ablation, lip_loc, scaling):
      for name, row in script.STUDY.rows.items():
        with self.subTest(f'{script.__name__}, {name}'):
          config = study.default_config(row).lock()
          # As the command line does it.
          for field, text in row.fields.items():
            with contextlib.suppress(ValueError, SyntaxError):
              text = ast.literal_eval(text)
            config_path.set_value(field, config, text)

  def test_the_interval_is_students(self):
    mean, half = study.interval([1.0, 2.0, 6.0])
    self.assertAlmostEqual(mean, 3.0)
    self.assertAlmostEqual(half, 4.30 * np.sqrt(7.0) / np.sqrt(3), places=5)
    self.assertTrue(np.isnan(study.interval([1.0])[1]))

  def test_differences_are_taken_seed_by_seed(self):
    results = {
      'first': {0: {study.RECALL: 10.0}, 1: {study.RECALL: 30.0}},
      'small': {0: {study.RECALL: 12.0}, 1: {study.RECALL: 32.0}},
    }
    lines = study.table(STUDY, results, 3).splitlines()
    self.assertIn('| one (2 of 3 seeds) | 20.0 ± 127.1 |  |', lines[2])
    # Of equal differences the interval has no width, of the values it does.
    self.assertIn('| +2.0 ± 0.0 |', lines[3])

  def test_finished_runs_are_read_and_missing_ones_trained(self):
    self._save('first', 0, 50.0)

    def train(command, **_):
      path = pathlib.Path(command[4].partition('=')[2]) / 'results.json'
      path.write_text(json.dumps({study.RECALL: 40.0}))
      return subprocess.CompletedProcess(command, 0)

    shown = study.run_study(STUDY, self.options._replace(train=False))
    self.assertEqual(set(shown), {'first'})
    with mock.patch.object(subprocess, 'run', side_effect=train) as run:
      found = study.run_study(STUDY, self.options)
    self.assertEqual(found['first'][0][study.RECALL], 50.0)
    self.assertEqual(found['small'][0][study.RECALL], 40.0)
    self.assertEqual(run.call_count, 2)

  def test_a_failed_run_names_its_log(self):
    failed = subprocess.CompletedProcess([], 1)
    with (
      mock.patch.object(subprocess, 'run', return_value=failed),
      self.assertRaisesRegex(RuntimeError, 'first, seed 0.*log.txt'),
    ):
      study.run_study(STUDY, self.options)

  def test_an_unknown_row_is_named(self):
    with self.assertRaisesRegex(ValueError, "none.*'first'"):
      study.run_study(STUDY, self.options._replace(names=['none']))

  def test_the_table_goes_between_its_marks(self):
    path = self.folder / 'results.md'
    path.write_text('a\n<!-- mark -->\nold\n<!-- /mark -->\nb\n')
    study.insert('new\n', 'mark', path)
    self.assertEqual(
      path.read_text(), 'a\n<!-- mark -->\nnew\n<!-- /mark -->\nb\n'
    )
    with self.assertRaisesRegex(ValueError, 'other'):
      study.insert('new\n', 'other', path)


if __name__ == '__main__':
  absltest.main()
