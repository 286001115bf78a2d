# SPDX-License-Identifier: Apache-2.0
"""Tests of the optimizer."""

import functools

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

  def test_factors_slow_what_lies_below_a_path(self):
    optimizer = optimizer_lib.make_optimizer(
      0.1, 0, 10, 0.5, 1.0, factors={'dense': 0.5, 'dense/bias': 2.0}
    )
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    plain = optimizer_lib.make_optimizer(0.1, 0, 10, 0.5, 1.0)
    updates, _ = _first_update(optimizer, ones)
    expected, _ = _first_update(plain, ones)
    expected['dense']['kernel'] *= 0.5
    expected['dense']['bias'] *= 2.0
    jax.tree.map(np.testing.assert_array_equal, updates, expected)

  def test_a_factor_for_nothing_is_named(self):
    optimizer = optimizer_lib.make_optimizer(
      0.1, 0, 10, 0.5, 1.0, factors={'dens': 0.5}
    )
    with self.assertRaisesRegex(ValueError, "'dens', which no parameter"):
      optimizer.init(PARAMS)

  @parameterized.parameters(
    (dict(warmup_steps=10), 'warmup_steps is 10 and num_steps is 10'),
    (dict(learning_rate=0.0), "'learning_rate': 0.0"),
    (dict(clip_norm=-1.0), "'clip_norm': -1.0"),
    (dict(weight_decay=-1.0), "'weight_decay': -1.0"),
    (dict(matrix_learning_rate=-1.0), "'matrix_learning_rate': -1.0"),
    (dict(class_learning_rate=0.0), "'class_learning_rate': 0.0"),
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


# No two leaves are of one size, so that a size names its leaf.
NETWORK = {
  'image': {
    'blocks_1': {'kernel': jnp.ones((2, 3)), 'norm': {'scale': jnp.ones(5)}},
    'blocks_11': {'kernel': jnp.ones((7, 1)), 'norm': {'scale': jnp.ones(8)}},
  },
  'image_aggregator': {'kernel': jnp.ones((3, 3))},
  'loss': {'adversary': {'kernel': jnp.ones((2, 5))}},
}
ALL = {5, 6, 7, 8, 9, 10}


def _sizes(tree):
  # Steps are counted in arrays of 1, and Muon keeps its 3 coefficients.
  return {x.size for x in jax.tree.leaves(tree)} - {1, 3}


class TrainableTest(parameterized.TestCase):
  @parameterized.parameters(
    ((), {}, ALL),
    (('image_aggregator/*',), {}, {9, 10}),
    (('image/blocks_1*',), {}, {5, 6, 7, 8, 10}),
    (('image/blocks_1/*',), {}, {5, 6, 10}),
    (('*norm*', 'image/blocks_11/kernel'), {}, {5, 7, 8, 10}),
    ((), {'image': 0.0, 'image/blocks_11': 1.0}, {7, 8, 9, 10}),
    (('image/*',), {'image/blocks_1': 0.0}, {7, 8, 10}),
    ((), {'loss/adversary': 0.0}, ALL - {10}),
  )
  def test_only_what_trains_has_a_state(self, trainable, factors, trained):
    for fields in (
      {},
      dict(momentum=0.9),
      dict(matrix_learning_rate=0.1),
      dict(accumulation=2),
    ):
      optimizer = optimizer_lib.make_optimizer(
        0.1, 0, 10, 0.5, 1.0, trainable=trainable, factors=factors, **fields
      )
      state = jax.eval_shape(optimizer.init, NETWORK)
      self.assertEqual(_sizes(state), trained, fields)
      flagged, others = optimizer_lib.split(NETWORK, optimizer.trains(NETWORK))
      self.assertEqual(_sizes(flagged), trained)
      self.assertEqual(_sizes(others), ALL - trained)
      jax.tree.map(
        np.testing.assert_array_equal,
        optimizer_lib.join(flagged, others),
        NETWORK,
      )

  def test_a_pattern_of_nothing_names_what_there_is(self):
    optimizer = optimizer_lib.make_optimizer(
      0.1, 0, 10, 0.5, 1.0, trainable=('image/*', 'image/block_1*')
    )
    with self.assertRaisesRegex(
      ValueError, "'image/block_1.*'image/blocks_1', 'image/blocks_11'"
    ):
      optimizer.init(NETWORK)

  def test_if_nothing_trains_it_is_an_error(self):
    names = ('image', 'image_aggregator', 'loss')
    optimizer = optimizer_lib.make_optimizer(
      0.1, 0, 10, 0.5, 1.0, factors=dict.fromkeys(names, 0.0)
    )
    with self.assertRaisesRegex(ValueError, 'Nothing trains'):
      optimizer.init(NETWORK)

  def test_an_empty_dictionary_survives(self):
    params = {'a': {'b': 1, 'c': {}}, 'd': {'e': 2}}
    flags = {'a': {'b': True, 'c': {}}, 'd': {'e': False}}
    parts = optimizer_lib.split(params, flags)
    self.assertEqual(parts[0], {'a': {'b': 1}})
    self.assertEqual(optimizer_lib.join(*parts), params)


GROUPS, CLASSES, WIDTH = 3, 4, 2
# The group of each step: long rests, short ones, and one group that never is.
TURNS = (0, 0, 2, 0, 2, 2, 2, 0)


@functools.cache
def _turns():
  """Weights [G, C, D], and the gradient of each step in one group alone."""
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(GROUPS, CLASSES, WIDTH)).astype(np.float32)
  gradients = np.zeros((len(TURNS), *weights.shape), np.float32)
  for step, group in enumerate(TURNS):
    gradients[step, group] = rng.normal(size=weights.shape[1:])
  # A zero in the gradient of a group that moves is a gradient.
  gradients[3, 0, 1] = 0.0
  return weights, gradients


def _moved(init, update, weights, gradients):
  state = init(weights)
  update = jax.jit(update)
  for gradient in gradients:
    updates, state = update(gradient, state, weights)
    weights = optax.apply_updates(weights, updates)
  return weights, state


class PerGroupTest(parameterized.TestCase):
  def expected(self):
    """Each group on its own, by an Adam that sees only its turns."""
    weights, gradients = _turns()
    own = [
      _moved(
        optax.adam(0.1).init,
        optax.adam(0.1).update,
        jnp.asarray(weights[group]),
        [g[group] for g, t in zip(gradients, TURNS, strict=True) if t == group],
      )[0]
      for group in range(GROUPS)
    ]
    return np.stack(own)

  def test_each_group_moves_as_with_an_adam_of_its_own(self):
    weights, gradients = map(jnp.asarray, _turns())
    adam = optimizer_lib.per_group(optax.adam(0.1))
    found, state = _moved(adam.init, adam.update, weights, gradients)
    np.testing.assert_allclose(found, self.expected(), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found[1], weights[1])
    np.testing.assert_array_equal(
      optax.tree_utils.tree_get(state, 'count'), [4, 0, 4]
    )

  def test_one_adam_for_all_groups_is_something_else(self):
    weights, gradients = map(jnp.asarray, _turns())
    adam = optax.adam(0.1)
    found, _ = _moved(adam.init, adam.update, weights, gradients)
    self.assertGreater(np.abs(found - self.expected()).max(), 0.05)

  def test_a_resting_group_keeps_its_state_to_the_bit(self):
    weights, gradients = map(jnp.asarray, _turns())
    adam = optimizer_lib.per_group(optax.adam(0.1))
    before, state = _moved(adam.init, adam.update, weights, gradients[:2])
    after, later = _moved(lambda _: state, adam.update, before, gradients[4:7])
    np.testing.assert_array_equal(after[0], before[0])
    for a, b in zip(*map(jax.tree.leaves, (state, later)), strict=True):
      np.testing.assert_array_equal(a[0], b[0])

  def test_a_gradient_at_one_parameter_of_a_group_moves_all_of_them(self):
    params = {'a': jnp.ones((2, 3)), 'b': jnp.ones((2, 1, 4))}
    adam = optimizer_lib.per_group(optax.adam(0.1))
    gradients = jax.tree.map(jnp.ones_like, params)
    _, state = adam.update(gradients, adam.init(params), params)
    gradients = {'a': jnp.zeros((2, 3)).at[1, 2].set(1), 'b': 0 * params['b']}
    updates, _ = adam.update(gradients, state, params)
    np.testing.assert_array_equal(updates['b'][0], 0)
    np.testing.assert_array_less(updates['b'][1], 0)  # by its momentum

  def test_parameters_that_disagree_on_the_groups_are_named(self):
    adam = optimizer_lib.per_group(optax.adam(0.1))
    for b in (jnp.ones((3, 4)), jnp.ones(())):
      with self.assertRaisesRegex(ValueError, "'x/a': .2,.*'x/b'"):
        adam.init({'x': {'a': jnp.ones((2, 4)), 'b': b}})

  def test_classifiers_of_groups_have_their_own_rate_and_are_not_clipped(self):
    weights, gradients = map(jnp.asarray, _turns())
    params = {'loss': {'classes': {'kernel': weights}}, **PARAMS}
    fields = dict(clip_norm=1e-3, weight_decay=0.5)
    optimizer = optimizer_lib.make_optimizer(
      0.01, 2, 10, class_learning_rate=0.1, **fields
    )
    plain = optimizer_lib.make_optimizer(0.01, 2, 10, **fields)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    found, state = _moved(
      optimizer.init,
      optimizer.update,
      params,
      [{'loss': {'classes': {'kernel': g}}, **ones} for g in gradients],
    )
    classes = found.pop('loss')['classes']['kernel']
    np.testing.assert_allclose(classes, self.expected(), rtol=1e-6, atol=1e-7)
    # The others neither decay, warm up nor are clipped otherwise than alone.
    alone, alone_state = _moved(
      plain.init, plain.update, PARAMS, [ones] * len(TURNS)
    )
    jax.tree.map(np.testing.assert_array_equal, found, alone)
    jax.tree.map(np.testing.assert_array_equal, state['rest'], alone_state)

  def test_accumulation_counts_the_turns_of_a_group(self):
    weights, gradients = map(jnp.asarray, _turns())
    optimizer = optimizer_lib.make_optimizer(
      0.01, 0, 10, 0.0, 1.0, class_learning_rate=0.1, accumulation=2
    )

    def wrapped(x):
      return {'loss': {'classes': x}, 'model': {'bias': jnp.ones(3)}}

    found, _ = _moved(
      optimizer.init,
      optimizer.update,
      wrapped(weights),
      map(wrapped, gradients),
    )
    adam, expected = optax.adam(0.1), []
    for group in range(GROUPS):
      own = [
        g[group] for g, t in zip(gradients, TURNS, strict=True) if t == group
      ]
      means = [(a + b) / 2 for a, b in zip(own[::2], own[1::2], strict=True)]
      expected.append(_moved(adam.init, adam.update, weights[group], means)[0])
    np.testing.assert_allclose(
      found['loss']['classes'], np.stack(expected), rtol=1e-5, atol=1e-6
    )


if __name__ == '__main__':
  absltest.main()
