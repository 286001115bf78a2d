# SPDX-License-Identifier: Apache-2.0
"""Tests of the loop: what is saved, and that a stopped run continues."""

import contextlib
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.errors import InputError
from i2ploc.training import checkpoint
from i2ploc.training import loop
from i2ploc.training import serialization
from i2ploc.training import state as state_lib
from tests.training import linear_run

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _bytes(tree):
  arrays = serialization.arrays_from_tree(tree)
  return {k: (v.dtype, v.shape, v.tobytes()) for k, v in arrays.items()}


def _latest(workdir):
  checkpoints = checkpoint.Checkpoints(pathlib.Path(workdir) / 'checkpoints')
  optimizer = linear_run.make_optimizer()
  try:
    return checkpoints.restore_latest(linear_run.init_state(optimizer))
  finally:
    checkpoints.close()


def _best(workdir):
  checkpoints = checkpoint.Checkpoints(pathlib.Path(workdir) / 'checkpoints')
  state = linear_run.init_state(linear_run.make_optimizer())
  try:
    return checkpoints.restore_best(state_lib.averaged_variables(state))
  finally:
    checkpoints.close()


def _metrics(workdir):
  """The metrics of a run without its timing."""
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  return [
    {k: v for k, v in line.items() if k != 'steps_per_second'} for line in lines
  ]


class LoopTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )
    self.stderr = io.StringIO()
    self.enter_context(contextlib.redirect_stderr(self.stderr))

  def assert_same_run(self, a, b):
    first, second = _latest(a), _latest(b)
    self.assertEqual(_bytes(first.value), _bytes(second.value))
    self.assertEqual(first.data_state, second.data_state)
    self.assertEqual(_metrics(a), _metrics(b))
    first, second = _best(a), _best(b)
    self.assertEqual(first.step, second.step)
    self.assertEqual(first.fingerprint, second.fingerprint)

  def test_four_steps_are_two_and_a_restart_and_two(self):
    whole = linear_run.train(self.workdir / 'whole', 4, eval_every=2)
    linear_run.train(self.workdir / 'parts', 2, eval_every=2)
    parts = linear_run.train(self.workdir / 'parts', 4, eval_every=2)
    self.assertEqual(_bytes(whole), _bytes(parts))
    self.assert_same_run(self.workdir / 'whole', self.workdir / 'parts')
    self.assertEqual(_latest(self.workdir / 'parts').data_state['position'], 4)

  def test_a_run_has_started_once_its_checkpoint_fits(self):
    seen = []

    class Other(linear_run.Batches):
      def set_state(self, state):
        raise InputError('other data')

    def started():
      seen.append((self.workdir / 'checkpoints').exists())

    linear_run.train(self.workdir, 2, started=started)
    self.assertEqual(seen, [False])
    linear_run.train(self.workdir, 4, started=started)
    self.assertEqual(seen, [False, True])
    with self.assertRaisesRegex(InputError, 'other data'):
      linear_run.train(self.workdir, 6, Other(), started=started)
    self.assertLen(seen, 2)

  def test_without_the_position_in_the_data_the_restart_would_differ(self):
    class Forgetful(linear_run.Batches):
      def set_state(self, state):
        pass

    whole = linear_run.train(self.workdir / 'whole', 4)
    linear_run.train(self.workdir / 'parts', 2)
    parts = linear_run.train(self.workdir / 'parts', 4, Forgetful())
    self.assertNotEqual(_bytes(whole), _bytes(parts))

  def test_a_finished_run_is_returned_without_a_step(self):
    first = linear_run.train(self.workdir, 3)
    before = _metrics(self.workdir)
    batches = linear_run.Batches()
    second = linear_run.train(self.workdir, 3, batches)
    self.assertEqual(_bytes(first), _bytes(second))
    self.assertEqual(batches.position, 3)
    self.assertEqual(_metrics(self.workdir), before)

  def test_saves_at_the_multiples_and_at_the_end(self):
    saved = []

    class Recording(checkpoint.Checkpoints):
      def save(self, state, data_state, metrics):
        saved.append((int(state.step), data_state['position']))
        super().save(state, data_state, metrics)

    checkpoints = Recording(self.workdir / 'recorded')
    self.addCleanup(checkpoints.close)
    linear_run.train(self.workdir, 5, checkpoints=checkpoints, save_every=2)
    self.assertEqual(saved, [(2, 2), (4, 4), (5, 5)])

  def test_logs_and_evaluates_at_the_multiples_and_at_the_end(self):
    linear_run.train(self.workdir, 7, eval_every=3, log_every=2)
    lines = _metrics(self.workdir)
    logged = [line['step'] for line in lines if 'loss' in line]
    evaluated = [line['step'] for line in lines if 'validation/recall' in line]
    self.assertEqual(logged, [2, 4, 6, 7])
    self.assertEqual(evaluated, [3, 6, 7])

  def test_the_step_compiles_once_also_after_a_restart(self):
    train_step = linear_run.make_train_step(linear_run.make_optimizer())
    linear_run.train(self.workdir, 3, train_step=train_step)
    linear_run.train(self.workdir, 6, train_step=train_step)
    self.assertEqual(train_step._cache_size(), 1)

  def test_the_best_is_chosen_by_the_validation_metric(self):
    class Scripted:
      values = iter([0.1, 0.7, 0.3])
      seen = []

      def run(self, variables):
        self.seen.append(serialization.fingerprint(variables['params']))
        yield 'validation/recall', next(self.values)
        yield 'train/recall', float(len(self.seen))

    state = linear_run.train(
      self.workdir,
      6,
      evaluators=[Scripted()],
      eval_every=2,
      best_metric='validation/recall',
    )
    best = _best(self.workdir)
    self.assertEqual(best.step, 4)
    self.assertEqual(best.metrics['validation/recall'], 0.7)
    # What was evaluated is what is kept, and it is the moving average.
    self.assertEqual(best.fingerprint, Scripted.seen[1])
    average = serialization.fingerprint(state.ema_params)
    self.assertEqual(Scripted.seen[2], average)
    self.assertNotEqual(average, serialization.fingerprint(state.params))

  def test_a_best_metric_that_nobody_yields_is_named(self):
    with self.assertRaisesRegex(ValueError, "'recall'.*'validation/recall'"):
      linear_run.train(self.workdir, 3, best_metric='recall')

  @parameterized.parameters(1, 100)
  def test_a_loss_that_is_not_finite_stops_with_step_checkpoint_and_ids(
    self, log_every
  ):
    with self.assertRaises(ValueError) as caught:
      batches = linear_run.Batches(nan_at=4)
      linear_run.train(self.workdir, 9, batches, log_every=log_every)
    message = str(caught.exception)
    self.assertIn('stopped at step 5: loss=nan', message)
    self.assertRegex(message, 'last finite checkpoint is .*steps? 4')
    self.assertIn('image_index=[32, 33, 34, 35, 36, 37, 38, 39]', message)
    self.assertEqual(_latest(self.workdir).step, 4)

  def test_a_loss_that_is_not_finite_is_never_saved(self):
    with self.assertRaisesRegex(ValueError, 'step 2: .*No checkpoint was'):
      batches = linear_run.Batches(nan_at=1)
      linear_run.train(self.workdir, 9, batches, save_every=2, log_every=100)
    with self.assertRaises(FileNotFoundError):
      _latest(self.workdir)

  def test_data_that_ends_is_an_error(self):
    class Short(linear_run.Batches):
      def __next__(self):
        if self.position == 3:
          raise StopIteration
        return super().__next__()

    with self.assertRaisesRegex(ValueError, 'data ended after step 3'):
      linear_run.train(self.workdir, 5, Short())

  @parameterized.parameters(
    (dict(save_every=0), 'save_every'),
    (dict(eval_every=-1), 'eval_every'),
    (dict(id_keys=('points_index',)), 'points_index.*image_index'),
  )
  def test_wrong_arguments_are_named(self, change, message):
    with self.assertRaisesRegex(ValueError, message):
      linear_run.train(self.workdir, 3, **change)

  def test_a_thread_can_train(self):
    done = []
    thread = threading.Thread(
      target=lambda: done.append(linear_run.train(self.workdir, 2))
    )
    thread.start()
    thread.join()
    self.assertLen(done, 1)

  @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
  def test_a_signal_saves_and_the_next_run_continues(self, number):
    class Signalling(linear_run.Batches):
      def __next__(self):
        if self.position == 4:
          os.kill(os.getpid(), number)
        return super().__next__()

    before = signal.getsignal(number)
    with self.assertRaises(loop.Interrupted) as caught:
      linear_run.train(self.workdir / 'a', 8, Signalling(), save_every=100)
    self.assertEqual(caught.exception.code, 128 + number)
    self.assertIs(signal.getsignal(number), before)
    self.assertEqual(_latest(self.workdir / 'a').step, 5)
    self.assertRegex(self.stderr.getvalue(), r'after step 5/8 .*continues')
    linear_run.train(self.workdir / 'a', 8, save_every=100)
    linear_run.train(self.workdir / 'b', 8, save_every=100)
    self.assert_same_run(self.workdir / 'a', self.workdir / 'b')

  def test_a_signal_during_the_last_step_is_not_swallowed(self):
    class Signalling(linear_run.Evaluator):
      def run(self, variables):
        os.kill(os.getpid(), signal.SIGTERM)
        yield from super().run(variables)

    with self.assertRaises(loop.Interrupted):
      linear_run.train(self.workdir, 2, evaluators=[Signalling()])
    self.assertEqual(_latest(self.workdir).step, 2)


class _Killed(Exception):
  """Ends a run where it stands: nothing is saved."""


class _PlannedBatches(linear_run.Batches):
  """Batches whose order and noise depend on the model that planned them."""

  def __init__(self, killed_at=-1):
    super().__init__()
    self.refreshed, self.plan = [], None
    self._killed_at = killed_at

  def refresh(self, variables):
    kernel = np.asarray(variables['params']['image']['kernel'])
    noise = kernel.sum() * np.arange(linear_run.BATCH)
    self.plan = {'row': np.argsort(np.sin(1e3 * noise)), 'noise': noise}
    self.refreshed.append(self.position)

  def __next__(self):
    if self.position == self._killed_at:
      raise _Killed
    batch = super().__next__()
    shift = 0.1 * np.sin(self.plan['noise'], dtype=np.float32)[:, None]
    return {k: v[self.plan['row']] for k, v in batch.items()} | {
      'points': batch['points'] + shift
    }

  def get_state(self):
    return {'position': self.position, 'plan': self.plan}

  def set_state(self, state):
    self.position, self.plan = state['position'], state['plan']


class PlannedBatchesTest(parameterized.TestCase):
  STEPS, ROUND = 5, 2

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )
    self.enter_context(contextlib.redirect_stderr(io.StringIO()))

  def train(self, name, batches, **fields):
    fields = dict(save_every=1, eval_every=4, refresh_every=self.ROUND) | fields
    return linear_run.train(self.workdir / name, self.STEPS, batches, **fields)

  def test_a_round_is_planned_before_the_multiples(self):
    batches = _PlannedBatches()
    self.train('whole', batches)
    self.assertEqual(batches.refreshed, [0, 2, 4])

  def test_the_parameters_that_are_evaluated_plan(self):
    planned, evaluated = [], []

    class Planned(_PlannedBatches):
      def refresh(self, variables):
        super().refresh(variables)
        planned.append(_bytes(variables))

    class Evaluator(linear_run.Evaluator):
      def run(self, variables):
        evaluated.append(_bytes(variables))
        yield from super().run(variables)

    self.train('a', Planned(), evaluators=[Evaluator()], eval_every=self.ROUND)
    initial = linear_run.init_state(linear_run.make_optimizer())
    expected = _bytes(state_lib.averaged_variables(initial))
    self.assertEqual(planned, [expected, *evaluated[:2]])

  def test_killed_at_any_step_a_run_continues_as_undisturbed(self):
    whole = self.train('whole', _PlannedBatches())
    # Where it was killed, and the step it continues at: its last checkpoint.
    steps = [(step, step, 1) for step in range(self.STEPS)] + [(3, 2, 2)]
    for step, saved, save_every in steps:
      name = f'killed_{save_every}_{step}'
      with self.assertRaises(_Killed):
        self.train(name, _PlannedBatches(step), save_every=save_every)
      again = _PlannedBatches()
      found = self.train(name, again, save_every=save_every)
      self.assertEqual(_bytes(found), _bytes(whole), name)
      self.assertEqual(again.refreshed, [n for n in (0, 2, 4) if n >= saved])

  def test_without_the_plan_a_run_continues_otherwise(self):
    class Forgetful(_PlannedBatches):
      def set_state(self, state):
        super().set_state(state)
        self.plan = {
          'row': np.arange(linear_run.BATCH),
          'noise': np.zeros(linear_run.BATCH),
        }

    whole = self.train('whole', _PlannedBatches())
    with self.assertRaises(_Killed):
      self.train('killed', _PlannedBatches(3))
    found = self.train('killed', Forgetful())
    self.assertNotEqual(_bytes(found), _bytes(whole))

  def test_no_round_is_planned_by_a_model_that_is_not_finite(self):
    class Broken(_PlannedBatches):
      def __next__(self):
        batch = super().__next__()
        return batch | {'image': batch['image'] * np.float32(np.nan)}

    batches = Broken()
    with self.assertRaisesRegex(ValueError, 'stopped at step 1: loss=nan'):
      self.train('a', batches, refresh_every=1, save_every=9, log_every=9)
    self.assertEqual(batches.refreshed, [0])

  @parameterized.parameters(
    (-1, _PlannedBatches, 'refresh_every=-1'),
    (2, linear_run.Batches, 'refresh_every=2, but Batches has no `refresh`'),
  )
  def test_batches_that_cannot_be_planned_are_named(
    self, refresh_every, batches, message
  ):
    with self.assertRaisesRegex(ValueError, message):
      self.train('a', batches(), refresh_every=refresh_every)


class KilledProcessTest(absltest.TestCase):
  STEPS = 16

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )

  def start(self):
    module = 'tests.training.linear_run'
    arguments = [self.workdir / 'killed', self.STEPS, 0.1]
    process = subprocess.Popen(
      [sys.executable, '-m', module, *map(str, arguments)],
      cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      stderr=subprocess.PIPE,
      text=True,
    )
    self.addCleanup(process.stderr.close)
    return process

  def kill_between(self, process, number, after_step, seconds):
    """Sends a signal `seconds` after a step has been logged."""
    path = self.workdir / 'killed' / 'metrics.jsonl'
    deadline = time.monotonic() + 60
    while not (path.exists() and f'"step": {after_step},' in path.read_text()):
      self.assertIsNone(process.poll(), 'the run ended before the signal')
      self.assertLess(time.monotonic(), deadline)
      time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return errors

  def test_killed_runs_continue_to_the_undisturbed_result(self):
    process, wait = self.start(), random.uniform(0, 0.3)
    self.kill_between(process, signal.SIGKILL, 3, wait)
    self.assertEqual(process.returncode, -signal.SIGKILL, f'waited {wait}')
    process = self.start()
    errors = self.kill_between(process, signal.SIGTERM, 10, 0.0)
    self.assertEqual(process.returncode, 128 + signal.SIGTERM)
    self.assertRegex(errors, r'SIGTERM: stopped and saved after step \d+/16')
    self.assertNotIn('Traceback', errors)
    with contextlib.redirect_stderr(io.StringIO()):
      linear_run.train(self.workdir / 'killed', self.STEPS)
      linear_run.train(self.workdir / 'whole', self.STEPS)
    LoopTest.assert_same_run(
      self, self.workdir / 'killed', self.workdir / 'whole'
    )


if __name__ == '__main__':
  absltest.main()
