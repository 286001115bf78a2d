# SPDX-License-Identifier: Apache-2.0
"""Two configs are compared field by field, as JSON keeps them."""

import pathlib
import tempfile

from absl.testing import absltest
import jax
import jax.numpy as jnp
import ml_collections

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

  def test_lists_are_tuples_and_new_fields_are_no_change(self):
    saved = {'model': {'shape': [64, 64], 'gone': 1}, 'seed': 0}
    self.assertEqual(provenance.config_changes(saved, _config().to_dict()), {})
    saved['model']['shape'] = [64, 32]
    found = provenance.config_changes(saved, _config().to_dict())
    self.assertEqual(list(found), ['model.shape'])

  def test_many_changes_are_counted(self):
    changes = {f'field_{i}': (0, 1) for i in range(11)}
    self.assertIn('and 3 more', provenance.describe_changes(changes))


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
    with self.assertRaisesRegex(ValueError, 'model.width: 64 before, 65 now'):
      provenance.check_model(self.checkpoints, _config(**{'model.width': 65}))


if __name__ == '__main__':
  absltest.main()
