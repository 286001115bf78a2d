# SPDX-License-Identifier: Apache-2.0
"""Verbs run whatever a task hands them, and say what it does not have."""

import contextlib
import io
import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
import ml_collections
import numpy as np
from PIL import Image

from i2ploc import verbs
from i2ploc.geometry import lens as lens_lib
from i2ploc.localization import answer as answer_lib
from i2ploc.localization import query_files
from i2ploc.tasks import task as task_lib


def _answer(place, similarity=1.0):
  return answer_lib.Answer(
    rank=1,
    place=place,
    world_from_camera=np.eye(4),
    covariance=None,
    similarity=similarity,
    confidence=0.5,
    reason='',
    evidence={'stage': 'test'},
  )


class VerbsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(folder) / 'run'
    self.config = ml_collections.ConfigDict(dict(task='test', name='Test'))

  def run_verb(self, verb, task, *args):
    """Runs a verb of a task; what it printed."""
    tasks = {'test': lambda config, data, allow_changes: task}
    with mock.patch.object(verbs, 'TASKS', tasks):
      with contextlib.redirect_stdout(io.StringIO()) as printed:
        getattr(verbs, verb)(self.config, None, self.workdir, *args)
    return printed.getvalue()

  def json(self, name):
    return json.loads((self.workdir / name).read_text())

  def test_localize_folds_the_stages_over_nothing(self):
    path = self.workdir.parent / 'a.png'
    Image.new('RGB', (64, 48)).save(path)
    seen = []

    def retrieve(query, answers):
      seen.append((query, list(answers)))
      return [_answer('far', 0.9), _answer('near', 0.8)]

    def verify(query, answers):
      seen.append((query, list(answers)))
      return answers[::-1]

    lens = lens_lib.Lens('pinhole', np.diag([30.0, 30.0, 1.0]))
    localizer = task_lib.Localizer(
      (retrieve, verify), query_files.Camera(lens, (24, 32))
    )
    task = task_lib.Task(localizer=lambda workdir: localizer)
    printed = self.run_verb('localize', task, [str(path)])
    (first, second) = seen
    self.assertEqual(first[1], [])
    self.assertEqual([one.place for one in second[1]], ['far', 'near'])
    self.assertIs(first[0], second[0])
    np.testing.assert_allclose(first[0].lens.intrinsics[0, 0], 60)
    text = (self.workdir / 'answers.jsonl').read_text()
    self.assertEqual(text, printed)
    (line,) = map(json.loads, text.splitlines())
    self.assertEqual(line['query'], str(path))
    self.assertEqual([a['place'] for a in line['answers']], ['near', 'far'])

  def test_evaluate_keeps_results_and_prints_the_table(self):
    found = task_lib.Evaluation({'a/b': np.float32(0.5)}, ('row 1', 'row 2'))
    task = task_lib.Task(evaluate=lambda workdir: found)
    printed = self.run_verb('evaluate', task)
    self.assertEqual(printed, 'row 1\nrow 2\n')
    self.assertEqual(self.json('results.json'), {'a/b': 0.5})
    self.assertEqual(self.json('config.json'), self.config.to_dict())

  def test_only_training_describes_the_workdir_of_a_training(self):
    (self.workdir / 'checkpoints').mkdir(parents=True)
    task = task_lib.Task(
      evaluate=lambda workdir: task_lib.Evaluation({}),
      index=lambda workdir: '3 places',
    )
    self.run_verb('evaluate', task)
    self.assertEqual(self.run_verb('index', task), '3 places\n')
    self.assertFalse((self.workdir / 'config.json').exists())

  def test_an_evaluation_that_fails_leaves_no_config(self):
    def fail(workdir):
      raise ZeroDivisionError

    with self.assertRaises(ZeroDivisionError):
      self.run_verb('evaluate', task_lib.Task(evaluate=fail))
    self.assertFalse((self.workdir / 'config.json').exists())

  def test_a_verb_that_a_task_lacks_is_named(self):
    task = task_lib.Task(index=lambda workdir: '')
    for verb in ('train', 'evaluate'):
      with self.assertRaisesRegex(
        ValueError, rf"Test has no '{verb}'; it has \['index'\]"
      ):
        self.run_verb(verb, task)

  def test_an_unknown_task_is_named(self):
    self.config.task = 'walk'
    with self.assertRaisesRegex(ValueError, "Unknown task 'walk'; known: "):
      verbs.index(self.config, None, self.workdir)


if __name__ == '__main__':
  absltest.main()
