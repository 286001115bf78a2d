# SPDX-License-Identifier: Apache-2.0
"""Two configs are compared field by field, as JSON keeps them."""

import contextlib
import io
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_collections

from i2ploc.errors import InputError
from i2ploc.training import checkpoint
from i2ploc.training import provenance
from i2ploc.training import state as state_lib


def _config(**changes):
  config = ml_collections.ConfigDict(
    dict(
      name='a',
      seed=0,
      model=dict(width=64, shape=(64, 64), bias=None, dtype='float32'),
    )
  )
  config.update_from_flattened_dict(changes)
  return config


class ChangesTest(absltest.TestCase):
  def test_fields_are_named_with_both_values(self):
    found = provenance.config_changes(
      _config().to_dict(), _config(**{'model.width': 96, 'seed': 1}).to_dict()
    )
    self.assertEqual(found, {'model.width': (64, 96), 'seed': (0, 1)})
    self.assertEqual(
      provenance.describe_changes(found),
      'model.width: 64 before, 96 now; seed: 0 before, 1 now',
    )

  def test_lists_are_tuples_and_integers_floats(self):
    saved = json.loads(json.dumps(_config().to_dict())) | {'seed': 0.0}
    self.assertEqual(provenance.config_changes(saved, _config().to_dict()), {})
    saved['model']['shape'] = [64, 32]
    found = provenance.config_changes(saved, _config().to_dict())
    self.assertEqual(list(found), ['model.shape'])

  def test_a_field_that_only_one_has_is_a_change(self):
    """An option without a shape, such as a factor per layer."""
    saved = _config().to_dict()
    now = _config().to_dict()
    saved['model']['gone'] = 1
    now['model'] = now['model'] | {'factors': {'head': 0.1}}
    found = provenance.config_changes(saved, now)
    self.assertEqual(
      provenance.describe_changes(found),
      'model.factors.head: absent before, 0.1 now; model.gone: 1 before,'
      ' absent now',
    )

  def test_many_changes_are_counted(self):
    changes = {f'field_{i}': (0, 1) for i in range(11)}
    self.assertIn('and 3 more', provenance.describe_changes(changes))


class CheckTest(absltest.TestCase):
  CHANGES = {'seed': (0, 1)}

  def check(self, changes, allowed):
    with contextlib.redirect_stderr(io.StringIO()) as said:
      provenance.check_changes('x holds a run', changes, 'Go', allowed=allowed)
    return said.getvalue()

  def test_changes_are_listed_and_refused(self):
    with self.assertRaises(InputError) as caught:
      self.check(self.CHANGES, allowed=False)
    self.assertEqual(
      str(caught.exception),
      'x holds a run of another config: seed: 0 before, 1 now. Go, or allow it'
      ' with --allow_changes.',
    )

  def test_what_is_allowed_is_said(self):
    said = self.check(self.CHANGES, allowed=True)
    self.assertEqual(
      said, 'x holds a run of another config: seed: 0 before, 1 now; allowed\n'
    )
    self.assertEqual(self.check({}, allowed=False), '')


class FieldsTest(parameterized.TestCase):
  @parameterized.parameters(
    'model.width',
    'data.image_size',
    'data.test',
    'data.name',
    'data.resize',
    'map_side',
  )
  def test_what_a_map_holds(self, name):
    self.assertTrue(provenance.is_of_map(name))

  @parameterized.parameters(
    'model.dtype',
    'data.train',
    'data.poses_dir',
    'data.query_resize',
    'train.batch_size',
    'seed',
    'index.num_answers',
  )
  def test_what_it_does_not(self, name):
    self.assertFalse(provenance.is_of_map(name))

  def test_a_digest_is_of_all_fields_in_any_order(self):
    config = _config()
    other = ml_collections.ConfigDict(
      dict(reversed(list(config.to_dict().items())))
    )
    self.assertEqual(provenance.digest(config), provenance.digest(other))
    self.assertNotEqual(
      provenance.digest(config), provenance.digest(_config(seed=1))
    )


class ModelTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.checkpoints = checkpoint.open_checkpoints(
      _config(), pathlib.Path(folder)
    )
    self.addCleanup(self.checkpoints.close)
    state = state_lib.init_state(
      {'w': jnp.ones(2)}, {}, lambda _: (), jax.random.key(0)
    )
    self.checkpoints.save(state, None, {})
    self.checkpoints.wait()

  def test_the_same_model_may_be_asked_in_another_experiment(self):
    provenance.check_model(
      self.checkpoints,
      _config(**{'name': 'b', 'seed': 3, 'model.dtype': 'bfloat16'}),
    )

  def test_another_model_is_refused(self):
    other = _config(**{'model.width': 65})
    with self.assertRaisesRegex(ValueError, 'model.width: 64 before, 65 now'):
      provenance.check_model(self.checkpoints, other)
    with contextlib.redirect_stderr(io.StringIO()) as said:
      provenance.check_model(self.checkpoints, other, allow_changes=True)
    self.assertIn('model.width: 64 before, 65 now; allowed', said.getvalue())

  def test_before_the_first_checkpoint_nothing_has_changed(self):
    with tempfile.TemporaryDirectory() as folder:
      empty = checkpoint.open_checkpoints(_config(), folder)
      self.addCleanup(empty.close)
      provenance.check_model(empty, _config())


if __name__ == '__main__':
  absltest.main()
