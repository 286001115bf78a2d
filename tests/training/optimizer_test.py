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

  @parameterized.parameters(((6, 4),), ((3, 3, 2, 5),), ((2, 6, 4),))
  def test_muon_moves_all_directions_of_a_matrix_alike(self, shape):
    # A gradient that one direction dominates by a factor of a thousand.
    optimizer = optimizer_lib.make_optimizer(
      1e-3, 0, 10, 0.0, 1e6, matrix_learning_rate=0.1
    )
    key = jax.random.key(0)
    gradient = jax.random.normal(key, shape)
    gradient += 1e3 * jnp.ones(shape)
    params = {'layer': {'kernel': jnp.zeros(shape), 'bias': jnp.zeros(3)}}
    gradients = {'layer': {'kernel': gradient, 'bias': jnp.ones(3)}}
    updates, _ = jax.jit(
      lambda g: optimizer.update(g, optimizer.init(params), params)
    )(gradients)
    bias = updates['layer']['bias']  # Adam with Nesterov's momentum
    np.testing.assert_allclose(bias, -1.474e-3, rtol=1e-3)
    moved = np.asarray(updates['layer']['kernel'])
    stack = moved if len(shape) == 3 else moved.reshape(1, -1, shape[-1])
    for matrix in stack:
      values = np.linalg.svd(matrix, compute_uv=False)
      self.assertLess(values.max(), 10 * values.min())
      self.assertBetween(values.max(), 0.05, 0.2)

  def test_factors_slow_and_freeze_what_lies_below_a_path(self):
    optimizer = optimizer_lib.make_optimizer(
      0.1, 0, 10, 0.5, 1.0, factors={'dense': 0.5, 'dense/bias': 0.0}
    )
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    plain = optimizer_lib.make_optimizer(0.1, 0, 10, 0.5, 1.0)
    updates, _ = _first_update(optimizer, ones)
    expected, _ = _first_update(plain, ones)
    expected['dense']['kernel'] *= 0.5
    expected['dense']['bias'] *= 0.0
    jax.tree.map(np.testing.assert_array_equal, updates, expected)

  def test_a_factor_for_nothing_is_named(self):
    optimizer = optimizer_lib.make_optimizer(
      0.1, 0, 10, 0.5, 1.0, factors={'dens': 0.5}
    )
    with self.assertRaisesRegex(ValueError, "'dens', which no parameter"):
      _first_update(optimizer, PARAMS)

  @parameterized.parameters(
    (dict(warmup_steps=10), 'warmup_steps is 10 and num_steps is 10'),
    (dict(learning_rate=0.0), 'learning_rate=0.0'),
    (dict(clip_norm=-1.0), 'clip_norm=-1.0'),
    (dict(weight_decay=-1.0), "'weight_decay': -1.0"),
    (dict(matrix_learning_rate=-1.0), "'matrix_learning_rate': -1.0"),
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
