# SPDX-License-Identifier: Apache-2.0
"""Verbs run whatever a task hands them, and say what it does not have."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import ml_collections
import numpy as np
from PIL import Image

from i2ploc import verbs
from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib
from i2ploc.localization import answer as answer_lib
from i2ploc.localization import query_files
from i2ploc.tasks import task as task_lib
from i2ploc.training import checkpoint
from i2ploc.training import lock
from i2ploc.training import optimizer as optimizer_lib
from tests.training import linear_run


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

  def test_how_numbers_were_measured_lies_beside_them(self):
    found = task_lib.Evaluation(
      {}, ('row',), {'radius': 25.0, 'scale': None}, ('2 of 9 lost',)
    )
    task = task_lib.Task(evaluate=lambda workdir: found)
    self.assertEqual(self.run_verb('evaluate', task), 'row\n2 of 9 lost\n')
    self.assertEqual(
      self.json('evaluation.json'),
      {
        'radius': 25.0,
        'scale': None,
        'skipped': ['2 of 9 lost'],
        'config': self.config.to_dict(),
      },
    )

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


def _training(optimizer):
  return task_lib.Training(
    init=lambda key: {'params': linear_run.init_params(key)},
    batches=linear_run.Batches,
    embed=linear_run.embed,
    loss=linear_run.loss,
    optimizer=optimizer,
    evaluators=lambda: [linear_run.Evaluator()],
    id_keys=('image_index',),
  )


class TrainTest(parameterized.TestCase):
  """Who writes a workdir, and what it may be continued with."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.optimizer = linear_run.make_optimizer()

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(folder) / 'run'
    self.said = self.enterContext(contextlib.redirect_stderr(io.StringIO()))
    self.enterContext(contextlib.redirect_stdout(io.StringIO()))
    self.data = mock.Mock(has=lambda role: False)

  def config(self, **changes):
    config = ml_collections.ConfigDict(
      dict(
        task='test',
        name='Test',
        seed=0,
        model=dict(saliency='none'),
        data=dict(validation='v', town_run=8),
        optimizer=dict(learning_rate=0.03, factors=dict()),
        train=dict(
          batch_size=8,
          num_chunks=1,
          ema_decay=0.9,
          num_steps=2,
          eval_every=2,
          save_every=2,
        ),
        evaluation=dict(select='validation/recall', num_examples=2),
      )
    )
    for name, value in changes.items():
      *folders, leaf = name.split('__')
      part = config
      for folder in folders:
        part = part[folder]
      part[leaf] = value
    return config

  def train(self, config, optimizer=None, **options):
    training = _training(optimizer or self.optimizer)
    tasks = {'test': lambda *_: task_lib.Task(training=training)}
    with mock.patch.object(verbs, 'TASKS', tasks):
      verbs.train(config, self.data, self.workdir, **options)

  def content(self):
    return {
      str(path.relative_to(self.workdir)): path.read_bytes()
      for path in self.workdir.rglob('*')
      if path.is_file() and 'events' not in path.parts
    }

  def steps(self):
    checkpoints = checkpoint.Checkpoints(self.workdir / 'checkpoints')
    self.addCleanup(checkpoints.close)
    return checkpoints.steps()

  @parameterized.parameters(
    ({'train__batch_size': 16}, 'train.batch_size: 8 before, 16 now'),
    (
      {'optimizer__learning_rate': 0.3},
      'optimizer.learning_rate: 0.03 before, 0.3 now',
    ),
    ({'seed': 1}, 'seed: 0 before, 1 now'),
    # Without a shape, and of one of the two configs alone.
    ({'model__saliency': 'x'}, "model.saliency: 'none' before, 'x' now"),
    (
      {'optimizer__factors': {'head': 0.1}},
      'optimizer.factors: .* before, absent now; optimizer.factors.head: absent'
      ' before, 0.1 now',
    ),
    ({'data__validation': 'w'}, "data.validation: 'v' before, 'w' now"),
    (
      {'evaluation__select': 'validation/negative_loss'},
      "evaluation.select: 'validation/recall' before",
    ),
  )
  def test_a_run_goes_on_with_changes_that_are_allowed(self, changes, told):
    self.train(self.config())
    before = self.content()
    config = self.config(train__num_steps=4, **changes)
    with self.assertRaises(InputError) as caught:
      self.train(config)
    self.assertRegex(str(caught.exception), told)
    self.assertRegex(str(caught.exception), 'or allow it with --allow_changes')
    self.assertNotIn('\n', str(caught.exception))
    self.assertEqual(self.content(), before)
    self.train(config, allow_changes=True)
    self.assertRegex(self.said.getvalue(), f'{told}.*; allowed')
    self.assertEqual(self.steps(), [2, 4])
    saved = json.loads((self.workdir / 'config.json').read_text())
    self.assertEqual(saved, json.loads(json.dumps(config.to_dict())))
    # What was the best of another config is no measure for this one.
    best = os.listdir(self.workdir / 'checkpoints/best')
    self.assertEqual(best, ['4'])
    self.train(config)  # now it is the config of the run

  def test_changes_of_a_run_that_has_ended_are_refused(self):
    self.train(self.config())
    before = self.content()
    with self.assertRaisesRegex(InputError, 'has ended, at step 2.*num_steps'):
      self.train(self.config(seed=1), allow_changes=True)
    self.assertEqual(self.content(), before)

  def test_a_config_that_does_not_fit_leaves_the_workdir_alone(self):
    self.train(self.config())
    before = self.content()
    other = optimizer_lib.make_optimizer(
      0.03, 2, 16, 0.1, 1.0, matrix_learning_rate=0.1
    )
    config = self.config(train__num_steps=4, seed=1)
    with self.assertRaisesRegex(InputError, 'belongs to another model'):
      self.train(config, other, allow_changes=True)
    self.assertEqual(self.content(), before)

  def test_a_second_training_stops_before_it_reads_anything(self):
    with lock.hold(self.workdir):
      self.data.reset_mock()
      with mock.patch.object(linear_run, 'Batches', side_effect=AssertionError):
        with self.assertRaisesRegex(
          InputError, rf'is being trained by process {os.getpid()} on'
        ):
          self.train(self.config())
      self.assertEqual(os.listdir(self.workdir), [lock.FILE])
    self.train(self.config())
    self.assertNotIn(lock.FILE, os.listdir(self.workdir))

  def test_of_processes_that_train_together_the_first_holds_the_lock(self):
    self.enterContext(mock.patch.object(jax, 'process_index', lambda: 1))
    with mock.patch.object(lock, 'hold', side_effect=AssertionError):
      self.train(self.config())

  def test_a_disk_without_space_is_found_before_data_is_read(self):
    full = shutil.disk_usage('/')._replace(free=1_000)
    self.enterContext(
      mock.patch.object(shutil, 'disk_usage', return_value=full)
    )
    with mock.patch.object(linear_run, 'Batches', side_effect=AssertionError):
      with self.assertRaisesRegex(InputError, 'run/checkpoints needs .* free'):
        self.train(self.config())
    self.assertFalse(self.workdir.exists())


class WritableTest(parameterized.TestCase):
  @parameterized.parameters('train', 'evaluate', 'index', 'localize')
  def test_a_workdir_is_asked_before_the_work(self, verb):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    workdir = pathlib.Path(folder) / 'run'
    workdir.write_text('')

    def work(*_):
      self.fail('it worked')

    task = task_lib.Task(
      training=work, evaluate=work, index=work, localizer=work
    )
    config = ml_collections.ConfigDict(dict(task='test', name='Test'))
    queries = [['a.png']] * (verb == 'localize')
    with mock.patch.object(verbs, 'TASKS', {'test': lambda *_: task}):
      with self.assertRaisesRegex(InputError, rf'\ACannot write {workdir}: '):
        getattr(verbs, verb)(config, None, workdir, *queries)


if __name__ == '__main__':
  absltest.main()
