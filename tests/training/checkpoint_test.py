# SPDX-License-Identifier: Apache-2.0
"""Tests of checkpoints and of the fingerprints in them."""

import os
import pathlib
import resource
import shutil
import signal
import tempfile
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.training import checkpoint
from i2ploc.training import serialization
from i2ploc.training import state as state_lib
from tests.training import linear_run


def _state(step=0, shift=0.0):
  """A state whose every array depends on `shift`."""
  state = linear_run.init_state(linear_run.make_optimizer())
  state = state._replace(step=jnp.array(step, jnp.int32))
  half = jnp.array([0.1, 0.2], jnp.bfloat16)
  state = state._replace(model_state={'batch_stats': {'mean': half}})
  shifted = [
    jax.tree.map(
      lambda x: x + jnp.asarray(shift).astype(x.dtype), getattr(state, name)
    )
    for name in ('params', 'opt_state', 'ema_params')
  ]
  return state._replace(
    params=shifted[0], opt_state=shifted[1], ema_params=shifted[2]
  )


def _bytes(tree):
  arrays = serialization.arrays_from_tree(tree)
  return {k: (v.dtype, v.shape, v.tobytes()) for k, v in arrays.items()}


def _size(tree):
  arrays = serialization.arrays_from_tree(tree)
  return sum(array.nbytes for array in arrays.values())


class CheckpointsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = (
      pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / 'run'
    )
    self.checkpoints = self.open()

  def open(self, **changes):
    checkpoints = checkpoint.Checkpoints(self.directory, **changes)
    self.addCleanup(checkpoints.close)
    return checkpoints

  def save(self, *steps, checkpoints=None):
    for step in steps:
      (checkpoints or self.checkpoints).save(_state(step, step), step, {})
    (checkpoints or self.checkpoints).wait()

  def damage(self, step, how, kind='steps'):
    """Damages the files that hold the arrays of a checkpoint."""
    root = self.directory / kind / str(step) / 'state'
    if how == 'swapped':
      shutil.rmtree(root)
      shutil.copytree(self.directory / kind / '1' / 'state', root)
      return
    paths = [p for p in root.rglob('*') if p.is_file() and p.parent.name == 'd']
    self.assertNotEmpty(paths)
    for path in paths:
      if how == 'truncated':
        os.truncate(path, path.stat().st_size // 2)
      elif how == 'missing':
        path.unlink()
      else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(bytes(content))

  @parameterized.parameters(
    ({'position': 3, 'workers': {'0': [1, 2]}},), (b'\x00\xff{}',), (None,)
  )
  def test_everything_returns_bit_for_bit(self, data_state):
    state = _state(7, 0.3)
    checkpoints = self.open(provenance={'config': {'lr': 0.1}})
    checkpoints.save(state, data_state, {'loss': 0.5})
    checkpoints.wait()
    restored = self.open().restore_latest(_state())
    self.assertEqual(_bytes(restored.value), _bytes(state))
    self.assertEqual(
      jax.tree.structure(restored.value), jax.tree.structure(state)
    )
    self.assertEqual(restored.data_state, data_state)
    self.assertEqual(restored.step, 7)
    self.assertEqual(restored.metrics, {'loss': 0.5})
    self.assertEqual(restored.provenance, {'config': {'lr': 0.1}})

  def test_the_fingerprint_is_that_of_the_averaged_parameters(self):
    self.save(7)
    restored = self.checkpoints.restore_latest(_state())
    average = serialization.fingerprint(_state(7, 7).ema_params)
    self.assertEqual(restored.fingerprint, average)
    other = serialization.fingerprint(_state(7, 8).ema_params)
    self.assertNotEqual(restored.fingerprint, other)

  @parameterized.parameters('best', 'steps')
  def test_nothing_of_the_loss_is_in_what_is_used(self, kind):
    params = linear_run.init_params(jax.random.key(1))
    optimizer = linear_run.make_optimizer()
    state = state_lib.init_state(
      params | {'loss': {'classes': {'kernel': jnp.ones((2, 3, 4))}}},
      {'batch_stats': {'mean': jnp.ones(2)}},
      optimizer.init,
      jax.random.key(0),
    )
    if kind == 'best':
      self.checkpoints.save_best(state, 0.5, {})
    else:
      self.checkpoints.save(state, None, {})
    template = {'params': params, 'batch_stats': {'mean': jnp.zeros(2)}}
    restored = self.checkpoints.restore_best(template)
    self.assertEqual(
      _bytes(restored.value), _bytes(state_lib.averaged_variables(state))
    )
    self.assertEqual(set(restored.value['params']), set(params))
    self.assertEqual(
      restored.fingerprint, serialization.fingerprint(restored.value['params'])
    )
    if kind == 'steps':
      template = jax.tree.map(jnp.zeros_like, state._replace(key=None))
      whole = self.checkpoints.restore_latest(
        template._replace(key=jax.random.key(1))
      )
      self.assertEqual(_bytes(whole.value), _bytes(state))

  @parameterized.parameters(
    (np.arange(5),),
    (np.zeros((0, 3), np.float32),),
    (np.asarray(2.5),),
    (np.asarray([np.nan, np.inf, -0.0, 1e-45], np.float32),),
    (np.asarray(['', 'Zürich']),),
    (np.arange(24, dtype='>i4').reshape(2, 3, 4).T,),
    (np.asarray([True, False]),),
  )
  def test_arrays_in_the_position_return_exactly(self, array):
    position = {
      'plan': {'row': array, 'other': [array, b'\x00\xff', {}]},
      'next': 3,
      'seed': None,
    }
    self.checkpoints.save(_state(1), position, {})
    self.checkpoints.wait()
    found = self.open().restore_latest(_state()).data_state
    self.assertEqual(found['plan']['other'][1:], [b'\x00\xff', {}])
    self.assertEqual((found['next'], found['seed']), (3, None))
    for copy in (found['plan']['row'], found['plan']['other'][0]):
      self.assertIsInstance(copy, np.ndarray)
      self.assertEqual((copy.dtype, copy.shape), (array.dtype, array.shape))
      self.assertEqual(copy.tobytes(), array.tobytes())

  def test_a_plan_of_a_hundred_thousand_rows_is_small(self):
    rows = np.random.default_rng(0).permutation(100_000)
    self.checkpoints.save(_state(1), {'row': rows}, {})
    self.checkpoints.wait()
    found = self.open().restore_latest(_state()).data_state
    np.testing.assert_array_equal(found['row'], rows)
    info = self.directory / 'steps' / '1' / 'info'
    size = sum(p.stat().st_size for p in info.rglob('*') if p.is_file())
    self.assertLess(size, 0.6 * rows.nbytes)

  def test_a_fingerprint_knows_names_shapes_and_dtypes(self):
    trees = [
      {'a': jnp.zeros(4)},
      {'b': jnp.zeros(4)},
      {'a': jnp.zeros((2, 2))},
      {'a': jnp.zeros(4, jnp.int32)},
      {'a': jnp.zeros(4), 'b': jnp.zeros(4)},
    ]
    self.assertLen({serialization.fingerprint(tree) for tree in trees}, 5)
    same = serialization.fingerprint({'a': np.zeros(4, np.float32)})
    self.assertEqual(serialization.fingerprint(trees[0]), same)

  def test_the_last_two_are_kept(self):
    self.save(1, 2, 5)
    self.assertEqual(self.checkpoints.steps(), [2, 5])
    self.assertEqual(self.open().steps(), [2, 5])

  @parameterized.parameters(('max', 2), ('min', 3))
  def test_the_best_is_chosen_by_value_and_not_by_age(self, mode, best):
    checkpoints = self.open(best_mode=mode)
    values = {1: 0.4, 2: 0.9, 3: 0.2, 4: float('nan'), 5: 0.5}
    for step, value in values.items():
      checkpoints.save_best(_state(step, step), value, {'recall': value})
    self.save(5, checkpoints=checkpoints)
    template = state_lib.averaged_variables(_state())
    restored = self.open().restore_best(template)
    expected = state_lib.averaged_variables(_state(best, best))
    self.assertEqual(restored.step, best)
    self.assertEqual(_bytes(restored.value), _bytes(expected))
    self.assertEqual(restored.metrics, {'recall': values[best]})

  def test_an_equal_value_does_not_replace_the_best(self):
    self.assertTrue(self.checkpoints.save_best(_state(1), 0.5, {}))
    self.assertFalse(self.checkpoints.save_best(_state(2), 0.5, {}))
    self.assertEqual(self.checkpoints.best_value(), 0.5)

  def test_the_best_can_be_read_into_shapes(self):
    self.checkpoints.save_best(_state(1, 1), 0.5, {})
    template = jax.eval_shape(lambda: state_lib.averaged_variables(_state()))
    restored = self.checkpoints.restore_best(template)
    expected = state_lib.averaged_variables(_state(1, 1))
    self.assertEqual(_bytes(restored.value), _bytes(expected))

  def test_before_the_first_evaluation_the_newest_stands_in_for_the_best(self):
    self.save(1, 2)
    with self.assertLogs(level='WARNING') as logs:
      restored = self.checkpoints.restore_best(
        state_lib.averaged_variables(_state())
      )
    self.assertIn('no best checkpoint', logs.output[0])
    self.assertEqual(restored.step, 2)

  @parameterized.parameters('truncated', 'missing', 'flipped', 'swapped')
  def test_a_damaged_checkpoint_is_passed_over_and_said_so(self, how):
    self.save(1, 3)
    self.damage(3, how)
    checkpoints = self.open()
    with self.assertLogs(level='WARNING') as logs:
      restored = checkpoints.restore_latest(_state())
    self.assertRegex(logs.output[0], 'steps/3 is damaged')
    self.assertEqual(_bytes(restored.value), _bytes(_state(1, 1)))
    # The run goes on and saves before and at the damaged step.
    self.save(2, checkpoints=checkpoints)
    self.assertEqual(checkpoints.steps(), [1, 2])
    self.save(3, checkpoints=checkpoints)
    restored = self.open().restore_latest(_state())
    self.assertEqual(_bytes(restored.value), _bytes(_state(3, 3)))

  def test_a_damaged_best_is_replaced_by_the_next_evaluation(self):
    self.checkpoints.save_best(_state(1), 0.9, {})
    self.checkpoints.wait()
    self.damage(1, 'truncated', kind='best')
    checkpoints = self.open()
    with self.assertLogs(level='WARNING'):
      self.assertTrue(checkpoints.save_best(_state(2), 0.1, {}))
    checkpoints.wait()
    self.assertEqual(self.open().best_value(), 0.1)

  def test_the_best_checkpoint_is_read_once_and_not_at_every_evaluation(self):
    self.checkpoints.save_best(_state(1), 0.5, {})
    self.checkpoints.wait()
    checkpoints = self.open()
    read = mock.Mock(side_effect=checkpoints._read)
    with mock.patch.object(checkpoints, '_read', read):
      for step, value in ((2, 0.4), (3, 0.6), (4, 0.5), (5, 0.7)):
        checkpoints.save_best(_state(step), value, {})
      self.assertEqual(checkpoints.best_value(), 0.7)
    self.assertEqual(read.call_count, 1)

  @parameterized.parameters(('steps', 2), ('best', 1))
  def test_the_provenance_is_read_without_the_arrays(self, kind, newest):
    for value in range(1, newest + 1):
      made = self.open(provenance={'config': {'number': value}})
      if kind == 'best':
        made.save_best(_state(value), value, {})
      else:
        made.save(_state(value), None, {})
      made.wait()
    checkpoints = self.open()
    with mock.patch.object(checkpoints, '_read') as read:
      found = checkpoints.provenance()
    self.assertEqual(found, {'config': {'number': newest}})
    read.assert_not_called()

  def test_nothing_has_no_provenance(self):
    self.assertIsNone(self.checkpoints.provenance())
    self.assertFalse(self.directory.exists())

  def test_only_damaged_checkpoints_are_an_error(self):
    self.save(1, 2)
    self.damage(1, 'truncated')
    self.damage(2, 'missing')
    with self.assertLogs(level='WARNING'):
      with self.assertRaisesRegex(ValueError, r'None of .* \[1, 2\]'):
        self.open().restore_latest(_state())

  def test_a_killed_save_leaves_the_previous_one_usable(self):
    self.save(1)
    killed = self.directory / 'steps' / '3.orbax-checkpoint-tmp'
    (killed / 'state').mkdir(parents=True)
    checkpoints = self.open()
    self.assertEqual(checkpoints.steps(), [1])
    self.assertEqual(checkpoints.restore_latest(_state()).step, 1)
    self.assertTrue(killed.exists())
    self.save(2, checkpoints=checkpoints)
    self.assertFalse(killed.exists())
    self.assertEqual(checkpoints.restore_latest(_state()).step, 2)

  def test_an_empty_workdir_says_what_to_do_and_stays_empty(self):
    with self.assertRaisesRegex(FileNotFoundError, 'train into this workdir'):
      self.checkpoints.restore_latest(_state())
    with self.assertRaisesRegex(FileNotFoundError, 'No checkpoint in .*run'):
      self.checkpoints.restore_best({'params': {}})
    self.assertFalse(self.directory.exists())

  def test_all_differences_to_another_model_are_in_one_message(self):
    self.save(1)
    params = {
      'image': {'kernel': jnp.zeros((6, 5))},
      'points': {'kernel': jnp.zeros((6, 4)), 'bias': jnp.zeros(4)},
    }
    template = _state()._replace(params=params)
    with self.assertRaises(ValueError) as caught:
      self.checkpoints.restore_latest(template)
    message = str(caught.exception)
    self.assertIn('Missing in it: params/points/bias.', message)
    self.assertIn('Unknown to this model: params/log_scale.', message)
    self.assertIn('params/image/kernel is (6, 4) instead of (6, 5).', message)
    self.assertIn('--config', message)

  def test_another_optimizer_is_named_too(self):
    self.save(1)
    template = _state()._replace(opt_state={'momentum': jnp.zeros(3)})
    with self.assertRaisesRegex(ValueError, 'Missing in it: opt_state/moment'):
      self.checkpoints.restore_latest(template)

  @parameterized.parameters((0, 'max', 'keep=0'), (2, 'best', "'best'"))
  def test_meaningless_options_are_named(self, keep, mode, message):
    with self.assertRaisesRegex(ValueError, message):
      checkpoint.Checkpoints(self.directory, keep=keep, best_mode=mode)

  def test_the_next_step_cannot_change_what_is_being_saved(self):
    optimizer = linear_run.make_optimizer()
    train_step = linear_run.shared_train_step()
    state, batches = linear_run.init_state(optimizer), linear_run.Batches()
    expected = {}
    for step in range(1, 4):
      state, _ = train_step(state, next(batches))
      expected[step] = _bytes(state)
      self.checkpoints.save(state, step, {})
    restored = self.checkpoints.restore_latest(linear_run.init_state(optimizer))
    self.assertEqual(_bytes(restored.value), expected[3])

  def test_the_best_can_be_forgotten(self):
    self.checkpoints.save_best(_state(1), 3.0, {})
    self.checkpoints.forget_best()
    self.assertIsNone(self.checkpoints.best_value())
    self.assertTrue(self.checkpoints.save_best(_state(2), 1.0, {}))
    self.checkpoints.wait()
    self.assertEqual(self.open().best_value(), 1.0)

  def test_the_space_that_checkpoints_take_is_asked_before_a_run(self):
    shapes = jax.eval_shape(_state)
    sizes = []
    with mock.patch.object(
      files, 'check_space', lambda path, size: sizes.append((path, size))
    ):
      self.checkpoints.check_space(shapes)
      self.save(1, 2)
      del sizes[1:]
      self.open().check_space(shapes)
    whole = _size(_state()._asdict())
    best = _size((_state().ema_params, _state().model_state))
    # Two of a run that goes on are there; the third is written before one goes.
    self.assertEqual(sizes[0], (self.directory, 3 * whole + 2 * best))
    self.assertEqual(sizes[1], (self.directory, whole + 2 * best))

  def test_a_disk_without_space_keeps_the_last_checkpoint(self):
    self.save(1)
    usage = shutil.disk_usage(self.directory)._replace(free=100_000)
    with mock.patch.object(shutil, 'disk_usage', return_value=usage):
      with self.assertRaisesRegex(InputError, r'0.1 MB are free on its disk'):
        self.save(2)
    self.assertEqual(os.listdir(self.directory / 'steps'), ['1'])
    self.save(2)
    self.assertEqual(self.checkpoints.steps(), [1, 2])

  def test_a_disk_that_fills_while_a_thread_writes_is_one_line(self):
    self.save(1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    self.addCleanup(signal.signal, signal.SIGXFSZ, handler)
    noise = jax.random.normal(jax.random.key(0), (100_000,))
    large = _state(2)._replace(params={'noise': noise})
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
      with self.assertRaises(InputError) as caught:
        self.checkpoints.save(large, None, {})
        self.checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)
    self.assertRegex(
      str(caught.exception),
      r'\ACannot write .*its disk or quota is full[^\n]*\Z',
    )
    self.assertEqual(self.open().steps(), [1])

  def test_saving_a_million_parameters_holds_training_up_for_a_moment(self):
    params = {
      f'layer_{i}': {'kernel': jnp.ones((100, 100))} for i in range(100)
    }
    optimizer = linear_run.make_optimizer()
    state = state_lib.init_state(params, {}, optimizer.init, jax.random.key(0))
    seconds = []
    for step in range(1, 5):
      state = state._replace(step=jnp.array(step))
      start = time.perf_counter()
      self.checkpoints.save(state, step, {})
      seconds.append(time.perf_counter() - start)
      self.checkpoints.wait()
    self.assertLess(min(seconds), 0.3)


if __name__ == '__main__':
  absltest.main()
