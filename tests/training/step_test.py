# SPDX-License-Identifier: Apache-2.0
"""Tests of the train step and its gradient cache."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from i2ploc.training import optimizer as optimizer_lib
from i2ploc.training import state as state_lib
from i2ploc.training import step as step_lib
from tests.training import linear_run

GOLDEN = {
  'loss': 2.701514,
  'gradient_norm': 3.127839,
  'update_norm': 0.08600572,
}


class _PlainGradient:
  """An optimizer whose update is the gradient: it shows what came in."""

  init = staticmethod(lambda params: ())
  update = staticmethod(lambda gradients, opt_state, params: (gradients, ()))
  learning_rate = staticmethod(lambda step: 0.0)
  trains = staticmethod(lambda params: jax.tree.map(lambda _: True, params))


def _state(optimizer=_PlainGradient):
  return linear_run.init_state(optimizer)


@functools.cache
def _step(embed, num_chunks):
  return step_lib.make_train_step(
    embed,
    linear_run.loss,
    _PlainGradient,
    ema_decay=0.9,
    num_chunks=num_chunks,
  )


def _gradient(embed, batch, num_chunks=1):
  before = _state()
  after, metrics = _step(embed, num_chunks)(_state(), batch)
  return jax.tree.map(jnp.subtract, after.params, before.params), metrics


def _largest_difference(a, b):
  differences = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), a, b)
  return float(jnp.stack(jax.tree.leaves(differences)).max())


class GradientCacheTest(parameterized.TestCase):
  @parameterized.parameters(2, 4, 8)
  def test_chunks_give_the_gradient_and_metrics_of_the_full_batch(self, n):
    batch = next(linear_run.Batches())
    embed = linear_run.embed_without_noise
    full, full_metrics = _gradient(embed, batch)
    chunked, metrics = _gradient(embed, batch, n)
    self.assertLess(_largest_difference(full, chunked), 1e-6)
    for name, value in full_metrics.items():
      np.testing.assert_allclose(metrics[name], value, rtol=1e-5)

  def test_averaging_the_gradients_of_small_batches_is_something_else(self):
    batch = next(linear_run.Batches())
    embed = linear_run.embed_without_noise
    full, _ = _gradient(embed, batch)
    halves = [
      _gradient(embed, {k: v[rows] for k, v in batch.items()})[0]
      for rows in (slice(0, 4), slice(4, 8))
    ]
    naive = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    self.assertGreater(_largest_difference(full, naive), 1e-2)

  def test_both_encodings_of_a_chunk_use_the_same_key(self):
    batch = next(linear_run.Batches())
    num_chunks = 2

    def embed_all(params, model_state, batch, key):
      keys = jax.random.split(key, num_chunks)
      parts = [
        linear_run.embed(
          params,
          model_state,
          {k: v[4 * i : 4 * i + 4] for k, v in batch.items()},
          keys[i],
        )[0]
        for i in range(num_chunks)
      ]
      return jax.tree.map(lambda *x: jnp.concatenate(x), *parts), model_state

    expected, _ = _gradient(embed_all, batch)
    found, _ = _gradient(linear_run.embed, batch, num_chunks)
    self.assertLess(_largest_difference(expected, found), 1e-6)
    other, _ = _gradient(linear_run.embed_without_noise, batch, num_chunks)
    self.assertGreater(_largest_difference(expected, other), 1e-4)

  def test_chunks_need_less_memory(self):
    def embed(params, model_state, batch, key):
      x = batch['image']
      for _ in range(8):
        x = jnp.tanh(x @ params['kernel'])
      return x, model_state

    def loss(params, embeddings, batch):
      return jnp.mean(embeddings**2), {}

    def temporary_bytes(num_chunks):
      state = state_lib.init_state(
        {'kernel': jnp.ones((64, 64))}, {}, lambda _: (), jax.random.key(0)
      )
      train_step = step_lib.make_train_step(
        embed, loss, _PlainGradient, ema_decay=0.9, num_chunks=num_chunks
      )
      batch = {'image': jnp.ones((1024, 64))}
      compiled = train_step.lower(state, batch).compile()
      return compiled.memory_analysis().temp_size_in_bytes

    self.assertLess(temporary_bytes(8), 0.5 * temporary_bytes(1))

  def test_batch_statistics_are_refused(self):
    state = _state()._replace(model_state={'batch_stats': jnp.zeros(3)})
    train_step = step_lib.make_train_step(
      linear_run.embed,
      linear_run.loss,
      _PlainGradient,
      ema_decay=0.9,
      num_chunks=2,
    )
    with self.assertRaisesRegex(ValueError, r"keeps \['batch_stats'\]"):
      train_step(state, next(linear_run.Batches()))

  def test_a_batch_that_does_not_divide_is_refused(self):
    with self.assertRaisesRegex(ValueError, '8 rows of .*num_chunks=3'):
      _gradient(linear_run.embed, next(linear_run.Batches()), 3)

  @parameterized.parameters((1.0, 1), (-0.1, 1), (0.9, 0))
  def test_numbers_out_of_range_are_refused(self, ema_decay, num_chunks):
    with self.assertRaisesRegex(ValueError, 'ema_decay=.*num_chunks='):
      step_lib.make_train_step(
        linear_run.embed,
        linear_run.loss,
        _PlainGradient,
        ema_decay=ema_decay,
        num_chunks=num_chunks,
      )


class TrainableTest(parameterized.TestCase):
  def frozen_run(self, **fields):
    """States before and after steps in which 'points' does not train."""
    optimizer = optimizer_lib.make_optimizer(0.03, 0, 16, 0.1, 1.0, **fields)
    train_step = linear_run.make_train_step(optimizer)
    before, batches = linear_run.init_state(optimizer), linear_run.Batches()
    # Averages that are not the parameters show whether they stay.
    params = jax.tree.map(lambda x: x + 0.1, before.ema_params)
    state = before._replace(ema_params=params)
    before = jax.tree.map(np.asarray, state._replace(key=None))
    for _ in range(3):
      state, metrics = train_step(state, next(batches))
    return before, state, metrics

  @parameterized.parameters(
    dict(trainable=('image/*', 'log_scale')), dict(factors={'points': 0})
  )
  def test_what_is_frozen_stays_to_the_bit_and_the_rest_moves(self, **fields):
    before, after, _ = self.frozen_run(**fields)
    for name in ('params', 'ema_params'):
      old, new = getattr(before, name), getattr(after, name)
      np.testing.assert_array_equal(
        old['points']['kernel'], new['points']['kernel'], name
      )
      for path in (('image', 'kernel'), ('log_scale',)):
        a, b = old, new
        for key in path:
          a, b = a[key], b[key]
        self.assertGreater(np.abs(a - b).max(), 1e-4, (name, path))

  def test_the_norm_of_the_gradient_is_that_of_what_trains(self):
    batch = next(linear_run.Batches())
    optimizer = optimizer_lib.make_optimizer(
      0.03, 0, 16, 0.1, 1.0, trainable=('image/*',)
    )
    full, _ = _gradient(linear_run.embed, batch)
    train_step = linear_run.make_train_step(optimizer)
    _, metrics = train_step(linear_run.init_state(optimizer), batch)
    np.testing.assert_allclose(
      metrics['gradient_norm'], optax.tree.norm(full['image']), rtol=1e-5
    )

  def test_no_gradient_of_a_frozen_layer_is_computed(self):
    width, depth = 256, 6

    def embed(params, model_state, batch, key):
      x = batch['image']
      for i in range(depth):
        x = jnp.tanh(x @ params[f'layer_{i}']['kernel'])
      return x, model_state

    def loss(params, embeddings, batch):
      return jnp.mean(embeddings**2), {}

    def flops(**fields):
      optimizer = optimizer_lib.make_optimizer(0.1, 0, 10, 0.0, 1.0, **fields)
      params = {
        f'layer_{i}': {'kernel': jnp.ones((width, width))} for i in range(depth)
      }
      state = state_lib.init_state(
        params, {}, optimizer.init, jax.random.key(0)
      )
      step = step_lib.make_train_step(embed, loss, optimizer, ema_decay=0.9)
      batch = {'image': jnp.ones((512, width))}
      return step.lower(state, batch).compile().cost_analysis()['flops']

    # Forward once, and backward twice that: only of the last layer here.
    product = 2 * 512 * width**2
    whole, last = flops(), flops(trainable=(f'layer_{depth - 1}/*',))
    np.testing.assert_allclose(whole / product, 3 * depth - 1, rtol=0.1)
    np.testing.assert_allclose(last / product, depth + 1, rtol=0.1)

  def test_the_losss_parameters_train_and_are_not_averaged(self):
    def loss(params, embeddings, batch):
      value, metrics = linear_run.loss(params, embeddings, batch)
      return value + (params['loss']['w'] ** 2).sum(), metrics

    optimizer = optimizer_lib.make_optimizer(
      0.03, 0, 16, 0.1, 1.0, trainable=('image/*',)
    )
    params = linear_run.init_params(jax.random.key(1))
    params['loss'] = {'w': jnp.ones(3)}
    state = state_lib.init_state(params, {}, optimizer.init, jax.random.key(2))
    step = step_lib.make_train_step(
      linear_run.embed, loss, optimizer, ema_decay=0.9
    )
    state, _ = step(state, next(linear_run.Batches()))
    self.assertLess(state.params['loss']['w'].max(), 1.0)
    self.assertEqual(set(state.ema_params), {'image', 'points', 'log_scale'})
    variables = state_lib.averaged_variables(state)
    self.assertNotIn('loss', variables['params'])


class TrainStepTest(absltest.TestCase):
  def test_golden_step(self):
    optimizer = linear_run.make_optimizer()
    train_step = linear_run.shared_train_step()
    state = linear_run.init_state(optimizer)
    batches = linear_run.Batches()
    for _ in range(2):
      state, metrics = train_step(state, next(batches))
    for name, expected in GOLDEN.items():
      np.testing.assert_allclose(
        metrics[name],
        expected,
        rtol=1e-4,
        err_msg=(
          f'{name} of the second step moved. If the step, the optimizer or'
          ' linear_run.py was meant to change, put the new values into GOLDEN'
          ' and say in the commit why; otherwise something has broken.'
        ),
      )

  def test_parameters_move_by_the_update_and_the_step_counts(self):
    gradient, metrics = _gradient(linear_run.embed, next(linear_run.Batches()))
    norm = float(optax.tree.norm(gradient))
    self.assertAlmostEqual(float(metrics['update_norm']), norm, places=5)
    self.assertAlmostEqual(float(metrics['gradient_norm']), norm, places=5)

  def test_learning_rate_is_that_of_the_step(self):
    optimizer = linear_run.make_optimizer()
    train_step = linear_run.shared_train_step()
    state, batches = linear_run.init_state(optimizer), linear_run.Batches()
    rates = []
    for _ in range(3):
      state, metrics = train_step(state, next(batches))
      rates.append(float(metrics['learning_rate']))
    np.testing.assert_allclose(rates, [0.0, 0.015, 0.03], rtol=1e-6)

  def test_moving_average_follows_its_definition(self):
    optimizer = linear_run.make_optimizer()
    train_step = linear_run.shared_train_step()
    state, batches = linear_run.init_state(optimizer), linear_run.Batches()
    average = np.asarray(state.params['image']['kernel'])
    for step in range(4):
      state, _ = train_step(state, next(batches))
      decay = min(0.9, (1 + step) / (10 + step))
      params = np.asarray(state.params['image']['kernel'])
      average = decay * average + (1 - decay) * params
    found = state.ema_params['image']['kernel']
    np.testing.assert_allclose(found, average, rtol=1e-5)
    self.assertGreater(np.abs(found - params).max(), 1e-4)

  def test_every_step_has_its_own_key_and_repeats_it(self):
    def loss(params, embeddings, batch):
      return jnp.sum(params['image']['kernel'] ** 2) * 0, {
        'noise': jnp.sum(embeddings)
      }

    def embed(params, model_state, batch, key):
      return jax.random.normal(key, (8,)), model_state

    train_step = step_lib.make_train_step(
      embed, loss, _PlainGradient, ema_decay=0.9
    )

    def noises():
      state, found = _state(), []
      for _ in range(3):
        state, metrics = train_step(state, next(linear_run.Batches()))
        found.append(float(metrics['noise']))
      return found

    self.assertLen(set(noises()), 3)
    self.assertEqual(noises(), noises())

  def test_model_state_is_carried_on(self):
    def embed(params, model_state, batch, key):
      embeddings, _ = linear_run.embed(params, model_state, batch, key)
      mean = 0.5 * model_state['batch_stats'] + 0.5 * batch['image'].mean(0)
      return embeddings, {'batch_stats': mean}

    state = _state()._replace(model_state={'batch_stats': jnp.zeros(6)})
    train_step = step_lib.make_train_step(
      embed, linear_run.loss, _PlainGradient, ema_decay=0.9
    )
    batch = next(linear_run.Batches())
    state, _ = train_step(state, batch)
    np.testing.assert_allclose(
      state.model_state['batch_stats'], batch['image'].mean(0) / 2, rtol=1e-5
    )

  def test_a_bfloat16_model_trains_with_float32_parameters_and_loss(self):
    seen = []

    def embed(params, model_state, batch, key):
      half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, batch))
      return linear_run.embed(half[0], model_state, half[1], None)

    def loss(params, embeddings, batch):
      seen.append({x.dtype for x in jax.tree.leaves((params, embeddings))})
      return linear_run.loss(params, embeddings, batch)

    optimizer = linear_run.make_optimizer(60)
    train_step = step_lib.make_train_step(embed, loss, optimizer, ema_decay=0.9)
    state, batches = linear_run.init_state(optimizer), linear_run.Batches()
    losses = []
    for _ in range(60):
      state, metrics = train_step(state, next(batches))
      losses.append(float(metrics['loss']))
    self.assertEqual(seen[0], {jnp.dtype('float32')})
    dtypes = {x.dtype for x in jax.tree.leaves(state.params)}
    self.assertEqual(dtypes, {jnp.dtype('float32')})
    self.assertLess(np.mean(losses[-10:]), 0.7 * np.mean(losses[:10]))

  def test_a_batch_that_is_not_finite_is_flagged(self):
    train_step = linear_run.make_train_step(_PlainGradient)
    _, good = train_step(_state(), next(linear_run.Batches()))
    _, bad = train_step(_state(), next(linear_run.Batches(nan_at=0)))
    self.assertTrue(good['all_finite'])
    self.assertFalse(bad['all_finite'])

  def test_the_step_compiles_once(self):
    optimizer = linear_run.make_optimizer()
    train_step = linear_run.make_train_step(optimizer)
    state, batches = linear_run.init_state(optimizer), linear_run.Batches()
    for _ in range(3):
      state, _ = train_step(state, next(batches))
    self.assertEqual(train_step._cache_size(), 1)

  def test_the_given_state_is_donated_but_the_callers_parameters_are_not(self):
    optimizer = linear_run.make_optimizer()
    params = linear_run.init_params(jax.random.key(1))
    state = state_lib.init_state(params, {}, optimizer.init, jax.random.key(2))
    linear_run.shared_train_step()(state, next(linear_run.Batches()))
    self.assertTrue(state.params['image']['kernel'].is_deleted())
    self.assertFalse(params['image']['kernel'].is_deleted())


if __name__ == '__main__':
  absltest.main()
