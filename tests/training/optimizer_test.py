# SPDX-License-Identifier: Apache-2.0
"""Tests of the optimizer."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from i2ploc.training import optimizer as optimizer_lib

PARAMS = {
  'dense': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)},
  'attention': {
    'query': {'kernel': jnp.ones((2, 2, 1)), 'bias': jnp.ones((2, 1))}
  },
  'norm': {'scale': jnp.ones(3)},
  'cls_token': jnp.ones((1, 1, 3)),
  'log_scale': jnp.ones(()),
}


def _first_update(optimizer, gradients):
  # One compilation instead of one per operation.
  @jax.jit
  def update(gradients):
    return optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)

  return update(gradients)


class OptimizerTest(parameterized.TestCase):
  @parameterized.parameters(
    (0, 0.0), (5, 0.5), (10, 1.0), (60, 0.55), (110, 0.1), (200, 0.1)
  )
  def test_learning_rate_warms_up_and_falls_along_a_cosine(self, step, rate):
    optimizer = optimizer_lib.make_optimizer(
      1.0, 10, 110, 0.0, 1.0, final_fraction=0.1
    )
    self.assertAlmostEqual(float(optimizer.learning_rate(step)), rate, places=6)

  def test_a_run_without_warm_up_starts_at_the_peak(self):
    optimizer = optimizer_lib.make_optimizer(0.5, 0, 10, 0.0, 1.0)
    self.assertAlmostEqual(float(optimizer.learning_rate(0)), 0.5, places=6)
    self.assertLess(float(optimizer.learning_rate(1)), 0.5)

  def test_weight_decay_moves_kernels_and_nothing_else(self):
    # By rank instead of by name, the rank 2 bias and the token would decay.
    optimizer = optimizer_lib.make_optimizer(0.1, 0, 10, 0.5, 1.0)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = _first_update(optimizer, zeros)
    moved = jax.tree.map(lambda x: bool((x != 0).any()), updates)
    np.testing.assert_allclose(updates['dense']['kernel'], -0.05, rtol=1e-6)
    self.assertEqual(moved, optimizer_lib.decayed(PARAMS))
    self.assertEqual(sum(jax.tree.leaves(moved)), 2)

  @parameterized.parameters((1e3, 2.0), (1e-3, 1e-3))
  def test_gradients_reach_adam_with_at_most_the_clipping_norm(
    self, norm, expected
  ):
    optimizer = optimizer_lib.make_optimizer(0.1, 0, 10, 0.5, 2.0)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    scale = norm / optax.tree.norm(ones)
    gradients = jax.tree.map(lambda x: scale * x, ones)
    _, opt_state = _first_update(optimizer, gradients)
    first_moment = optax.tree_utils.tree_get(opt_state, 'mu')
    # Adam's b1 is 0.9: the first moment is a tenth of the first gradient.
    np.testing.assert_allclose(
      optax.tree.norm(first_moment), 0.1 * expected, rtol=1e-5
    )

  @parameterized.parameters(
    (dict(warmup_steps=10), 'warmup_steps is 10 and num_steps is 10'),
    (dict(learning_rate=0.0), 'learning_rate=0.0'),
    (dict(clip_norm=-1.0), 'clip_norm=-1.0'),
    (dict(weight_decay=-1.0), 'weight_decay=-1.0'),
  )
  def test_meaningless_numbers_are_named(self, change, message):
    good = dict(
      learning_rate=0.1,
      warmup_steps=1,
      num_steps=10,
      weight_decay=0.1,
      clip_norm=1.0,
    )
    with self.assertRaisesRegex(ValueError, message):
      optimizer_lib.make_optimizer(**(good | change))


if __name__ == '__main__':
  absltest.main()
