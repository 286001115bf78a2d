# SPDX-License-Identifier: Apache-2.0
"""An experiment on planted problems, as a user runs it."""

import contextlib
import io
import json
import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest

from configs import hypotheses as hypotheses_config
from i2ploc import verbs
from i2ploc.evaluation import hypotheses
from i2ploc.report import html
from input_pipeline.sources import opening
from tests import configs_test
from tests.tasks import recorder as recorder_lib


def _evaluate(config, workdir):
  """The verb, silently; what it printed, by lines."""
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    verbs.evaluate(config, None, workdir)
  return printed.getvalue().splitlines()


class HypothesesTaskTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = pathlib.Path(tempfile.mkdtemp())
    cls.config = configs_test.load('hypotheses', 'problem=line,smoke')
    cls.read = set()
    recorder = recorder_lib.Recorder(cls.config, cls.read)
    cls.printed = _evaluate(recorder, cls.workdir)

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.workdir)
    super().tearDownClass()

  def _copy(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    copied = pathlib.Path(folder) / 'run'
    shutil.copytree(self.workdir, copied)
    return copied

  def _saved(self, workdir):
    return json.loads((workdir / 'hypotheses.json').read_text())

  def test_every_leaf_of_the_config_is_read(self):
    unread = set(configs_test.leaves(self.config)) - self.read
    self.assertEqual(unread, {'name'})  # for the report

  def test_there_is_a_row_and_a_line_per_cell(self):
    rows = self._saved(self.workdir)['rows']
    self.assertLen(rows, 8)
    self.assertLen(self.printed, 8)
    self.assertRegex(self.printed[0], '1 of 8 .*line uniform.*success')

  def test_results_are_a_flat_dictionary_of_numbers(self):
    results = json.loads((self.workdir / 'results.json').read_text())
    for sampler in ('uniform', 'prosac'):
      self.assertGreater(results[f'line/{sampler}/msac/success'], 80)
      self.assertBetween(results[f'line/{sampler}/msac/draws'], 20, 130)
      self.assertGreater(
        results[f'line/{sampler}/msac/hypotheses_per_second'], 0
      )

  def test_a_run_that_was_killed_goes_on(self):
    workdir = self._copy()
    content = self._saved(workdir)
    content['rows'] = content['rows'][:5]
    (workdir / 'hypotheses.json').write_text(json.dumps(content))
    made = []

    def solver(*args):
      made.append(args)
      return make_solver(*args)

    make_solver = hypotheses.make_solver
    with mock.patch.object(hypotheses, 'make_solver', solver):
      printed = _evaluate(self.config, workdir)
    self.assertLen(printed, 3)
    self.assertLen(made, 1)
    before, after = (self._saved(w)['rows'] for w in (self.workdir, workdir))
    self.assertEqual(after[:5], before[:5])
    for x, y in zip(before, after, strict=True):
      self.assertEqual(x['success'], y['success'])
      self.assertEqual(x['error'], y['error'])

  def test_another_experiment_is_not_mixed_in(self):
    config = self.config.copy_and_resolve_references()
    config.trials.seed = 7
    with self.assertRaisesRegex(ValueError, 'other trials: choose another'):
      _evaluate(config, self._copy())

  def test_a_broken_file_is_named(self):
    workdir = self._copy()
    (workdir / 'hypotheses.json').write_text('{"rows": [')
    with self.assertRaisesRegex(
      ValueError, 'hypotheses.json is truncated.*anew'
    ):
      _evaluate(self.config, workdir)

  def test_there_is_no_data_and_nothing_to_train(self):
    self.assertIsNone(opening.open_source(self.config, None))
    with self.assertRaisesRegex(ValueError, "no 'train'; it has .'evaluate'"):
      verbs.train(self.config, None, self.workdir)

  def test_the_report_shows_curves_and_cells(self):
    page = pathlib.Path(html.write_report(self._copy())).read_text()
    for text in (
      'line, 64 data, noise 1 cm',
      'Success (%), 30 % outliers',
      'Median offset error of successes (m), 50 % outliers',
      'Million hypotheses per second',
      'offset &lt; 0.05 m, angle &lt; 1 °',
      '8 planted problems per cell',
    ):
      self.assertIn(text, page)
    self.assertEqual(page.count('<tr>'), 1 + 4)
    self.assertNotIn('Where was this camera image taken', page)
    self.assertNotIn('is missing', page)

  def test_problems_are_joined_by_a_plus(self):
    config = hypotheses_config.get_config('problem=line+plane')
    self.assertEqual(config.grid.problem, ('line', 'plane'))


if __name__ == '__main__':
  absltest.main()
