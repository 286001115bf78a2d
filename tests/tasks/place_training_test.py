# SPDX-License-Identifier: Apache-2.0
"""Every method of images among images trains, at the size of a test."""

import contextlib
import io
import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import verbs
from i2ploc.errors import InputError
from i2ploc.models import fitting
from i2ploc.tasks import places
from i2ploc.training import checkpoint
from i2ploc.training import state as state_lib
from i2ploc.training import step as step_lib
from input_pipeline.sources import drives
from tests import configs_test
from tests import shared
from tests.tasks import place_runs
from tests.tasks import recorder

METHODS = (
  ('cos_place', ''),
  ('eigen_places', ''),
  ('deep_vg', ''),
  ('gsv_cities', 'loss=info_nce,aggregator=gem'),
  ('seq_vlad', 'frames=3,fusion=transformer,aggregator=gem'),
  ('ada_geo', 'target=2'),
  ('mesh_vpr', ''),
  ('earth_loc', ''),
)
RESULTS = {
  'mesh_vpr': 'test/cross/image_to_rendering/recall@1_10m',
  'earth_loc': 'test/photos/image_to_image/recall@1_overlap',
}


class PlaceTrainingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory())
    )
    self.enterContext(contextlib.redirect_stderr(io.StringIO()))

  @parameterized.parameters(*METHODS)
  def test_the_method_trains(self, name, arg):
    config, read = place_runs.smoke(name, arg), set()
    recorded = recorder.Recorder(config, read)
    data = place_runs.source(recorded)
    verbs.train(recorded, data, self.workdir)
    verbs.index(recorded, data, self.workdir)
    queries = sorted(map(str, (self.workdir / 'queries').glob('*.png')))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      verbs.localize(recorded, data, self.workdir, queries[:3])
    for number, line in enumerate(printed.getvalue().splitlines(), 1):
      answers = json.loads(line)['answers']
      self.assertLen(answers, 5)
      frames = (number + 1) // 2 if name == 'seq_vlad' else None
      self.assertEqual(answers[0]['evidence'].get('frames'), frames)
    unread = set(configs_test.leaves(config)) - read
    self.assertEmpty(unread)
    results = json.loads((self.workdir / 'results.json').read_text())
    expected = RESULTS.get(name, 'test/cross/image_to_image/recall@1_10m')
    self.assertIn(expected, results)


class _Killed(Exception):
  """Ends a run where it stands: nothing is saved."""


class _Dying:
  """Planned batches that end the process at one of them."""

  def __init__(self, batches, left):
    self._batches, self._left = batches, left
    self.get_state, self.set_state = batches.get_state, batches.set_state

  def __next__(self):
    self._left -= 1
    if self._left < 0:
      raise _Killed
    return next(self._batches)

  def refresh(self, variables):
    self._batches.refresh(variables)


class ContinuedTest(parameterized.TestCase):
  """A run that was killed equals one that was not, to the bit."""

  @parameterized.parameters(
    ('deep_vg', dict(mining='full', pool=12)), ('cos_place', {})
  )
  def test_a_killed_run_continues(self, name, sampling):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.enterContext(contextlib.redirect_stderr(io.StringIO()))
    config = place_runs.smoke(name, 'aggregator=gem')
    config.sampling.update(sampling)
    config.sampling.steps = 2
    config.train.update(num_steps=7, eval_every=3, save_every=3)
    config.data.test = ''
    if name == 'cos_place':  # one of them is enough to choose the best
      config.data.validation = ''
    data = place_runs.source(config)
    verbs.train(config, data, root / 'whole')
    planned = data.planned_batches
    with mock.patch.object(
      data, 'planned_batches', lambda *args: _Dying(planned(*args), 5)
    ):
      with self.assertRaises(_Killed):
        verbs.train(config, data, root / 'killed')
    # Inside of the second round, whose plan is saved.
    self.assertEqual(self.steps(config, root / 'killed'), [3])
    verbs.train(config, data, root / 'killed')
    self.assertEqual(self.steps(config, root / 'killed')[-1], 7)
    self.assert_same_run(config, root / 'killed', root / 'whole')

  def steps(self, config, workdir):
    checkpoints = checkpoint.open_checkpoints(config, workdir)
    found = checkpoints.steps()
    checkpoints.close()
    return found

  def assert_same_run(self, config, one, other):
    lines = [self.metrics(workdir) for workdir in (one, other)]
    self.assertNotEmpty(lines[0])
    self.assertEqual(*lines)
    for kind in ('steps', 'best') if config.data.validation else ('steps',):
      found = [self.restored(config, workdir, kind) for workdir in (one, other)]
      self.assertEqual(*map(jax.tree.structure, found))
      jax.tree.map(np.testing.assert_array_equal, *found)

  def metrics(self, workdir):
    text = (workdir / 'metrics.jsonl').read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
      line.pop('steps_per_second', None)
    return lines

  def restored(self, config, workdir, kind):
    data = place_runs.source(config)
    training = verbs.make_task(config, data).training
    shapes = jax.eval_shape(training.init, jax.random.key(0))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), dict(shapes))
    params = variables.pop('params')
    template = state_lib.init_state(
      params, variables, training.optimizer.init, jax.random.key(0)
    )
    checkpoints = checkpoint.open_checkpoints(config, workdir)
    if kind == 'steps':
      found = checkpoints.restore_latest(template)
      value = found.value._asdict() | {'data': found.data_state}
      value['key'] = jax.random.key_data(value['key'])
    else:
      value = checkpoints.restore_best(
        state_lib.averaged_variables(template)
      ).value
    checkpoints.close()
    return jax.tree.map(np.asarray, value)


class PartsTest(parameterized.TestCase):
  """What of a published transformer is trained."""

  @parameterized.parameters(
    ('norms', (), ('norm', 'adapter', 'image_aggregator', 'log_scale')),
    (
      'last',
      ('image/blocks_1*', 'image_aggregator*'),
      ('image/blocks_1', 'image_aggregator'),
    ),
  )
  def test_only_what_is_named_moves(self, parts, trainable, expected):
    encoder = shared.GOLDEN / 'dinov2_tiny'
    config = place_runs.smoke(
      'gsv_cities', f'backbone={encoder},aggregator=gem,parts={parts}'
    )
    config.data.image_size = (42, 56)
    config.optimizer.update(warmup_steps=0, learning_rate=1e-2)
    if trainable:  # the tiny one has no twelve blocks
      config.optimizer.trainable = trainable
    training = places.make_task(config, _closed(config)).training
    variables = dict(training.init(jax.random.key(0)))
    params = variables.pop('params')
    state = state_lib.init_state(
      params, variables, training.optimizer.init, jax.random.key(1)
    )
    step = step_lib.make_train_step(
      training.embed, training.loss, training.optimizer, ema_decay=0.9
    )
    batch = _batch(config.data.image_size)
    for _ in range(2):  # adapters begin at zero
      state, metrics = step(state, batch)
    self.assertTrue(metrics['all_finite'])
    moved = {
      jax.tree_util.keystr(path, simple=True, separator='/')
      for (path, before), after in zip(
        jax.tree_util.tree_leaves_with_path(params),
        jax.tree.leaves(state.params),
        strict=True,
      )
      if (before != after).any()
    }
    names = {
      jax.tree_util.keystr(path, simple=True, separator='/')
      for path, _ in jax.tree_util.tree_leaves_with_path(params)
    }
    trained = {name for name in names if any(x in name for x in expected)}
    self.assertNotEmpty(names - trained)
    self.assertLessEqual(moved, trained)
    for part in expected:
      # The scale of similarities has no part in this loss.
      if part != 'log_scale':
        self.assertTrue(any(part in name for name in moved), part)
    state_size = sum(x.size for x in jax.tree.leaves(state.opt_state))
    trained_size = sum(
      leaf.size
      for path, leaf in jax.tree_util.tree_leaves_with_path(params)
      if jax.tree_util.keystr(path, simple=True, separator='/') in trained
    )
    self.assertLess(state_size, 2 * trained_size + 10)


class PreparedTest(absltest.TestCase):
  def test_netvlad_starts_at_clusters_of_the_data(self):
    config = place_runs.smoke('deep_vg', 'recipe=released')
    self.assertTrue(config.train.fit_clusters)
    training = places.make_task(config, place_runs.source(config)).training
    fresh = training.init(jax.random.key(0))
    found = training.prepare(fresh)
    before, after = (x['params']['image_aggregator'] for x in (fresh, found))
    self.assertEqual(jax.tree.structure(before), jax.tree.structure(after))
    self.assertEqual(
      jax.tree.map(jnp.shape, before), jax.tree.map(jnp.shape, after)
    )
    self.assertTrue((before['centers'] != after['centers']).any())
    kernel, centers = after['assign']['kernel'], np.asarray(after['centers'])
    directions = centers / np.linalg.norm(centers, axis=1, keepdims=True)
    ratio = np.asarray(kernel).T / directions
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)
    np.testing.assert_array_equal(
      jax.tree.leaves(fresh['params']['image'])[0],
      jax.tree.leaves(found['params']['image'])[0],
    )
    again = training.prepare(fresh)['params']['image_aggregator']
    jax.tree.map(np.testing.assert_array_equal, after, again)

  def test_a_run_begins_with_what_was_prepared(self):
    workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.enterContext(contextlib.redirect_stderr(io.StringIO()))
    config = place_runs.smoke('deep_vg', 'recipe=released')
    config.data.update(validation='', test='')
    config.train.num_steps = 1
    config.optimizer.update(warmup_steps=0, learning_rate=1e-9)
    data = place_runs.source(config)
    expected = []

    def prepare(*args, **kwargs):
      expected.append(init_netvlad(*args, **kwargs))
      return expected[-1]

    init_netvlad = fitting.init_netvlad
    with mock.patch.object(fitting, 'init_netvlad', prepare):
      verbs.train(config, data, workdir)
      config.train.num_steps = 2
      verbs.train(config, data, workdir)
    self.assertLen(expected, 1)  # a run that continues has it already
    task_towers = places.make_towers(config, data)
    found = places.restore(config, task_towers, workdir).value
    np.testing.assert_allclose(
      found['params']['image_aggregator']['centers'],
      expected[0]['params']['image_aggregator']['centers'],
      atol=1e-6,
    )

  def test_clusters_of_another_aggregator_are_refused(self):
    config = place_runs.smoke('deep_vg', 'aggregator=gem')
    config.train.fit_clusters = True
    training = places.make_task(config, place_runs.source(config)).training
    with self.assertRaisesRegex(InputError, 'NetVLAD.*GeM'):
      training.prepare({'params': {}})


class RefusedTest(parameterized.TestCase):
  """Nothing is read, and nothing is written."""

  @parameterized.parameters(
    ('gsv_cities', dict(train__num_chunks=2), "num_chunks=2 with .'mirror'."),
    (
      'gsv_cities',
      dict(model__aggregator=dict(name='vlad', num_clusters=4)),
      'not trained: set',
    ),
    ('gsv_cities', dict(augmentation__frozen=('map',)), "frozen=.'map'."),
    ('gsv_cities', dict(loss__tile=2), 'tile'),
    ('gsv_cities', dict(augmentation__blur=2), 'blur'),
    ('cos_place', dict(query_side='points'), "'points' asks"),
  )
  def test_what_cannot_be_trained_is_named(self, name, changes, message):
    config = place_runs.smoke(name)
    for path, value in changes.items():
      below, _, leaf = path.rpartition('__')
      (config[below] if below else config)[leaf] = value
    with self.assertRaisesRegex((InputError, TypeError), message):
      places.make_task(config, _closed(config))


def _closed(config):
  """Data that is never opened."""
  return drives.Source(data_dir='nowhere', **config.data)


def _batch(size):
  """Two places with two views each."""
  rng = np.random.default_rng(0)
  row = np.arange(4, dtype=np.int32)
  return {
    'image': rng.integers(0, 256, (4, *size, 3), np.uint8),
    'intrinsics': np.tile(np.eye(3, dtype=np.float32), (4, 1, 1)),
    'image_position': np.float32(
      [[0, 0, 0], [3, 0, 0], [90, 0, 0], [93, 0, 0]]
    ),
    'image_town': np.zeros(4, np.int32),
    'image_index': row,
    'place': row // 2,
  }


if __name__ == '__main__':
  absltest.main()
