# SPDX-License-Identifier: Apache-2.0
"""Descriptors of frames fused: formulas, order, refusals."""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import factory
from i2ploc.models import aggregators
from i2ploc.models import fusion
from i2ploc.models import vlad
from tests.models import planted

BATCH, WIDTH, ROWS, COLUMNS = 2, 8, 2, 3
LENGTH = ROWS * COLUMNS
KEY = jax.random.key(0)


def _features(frames, seed=0):
  shape = BATCH, frames, LENGTH, WIDTH
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _tokens(features):
  """Tokens of sequences [B, T, N, D]."""
  batch, frames, length, width = features.shape
  shape = batch, frames * length
  return aggregators.Tokens(
    features.reshape(*shape, width),
    jnp.zeros(shape),
    jnp.ones(shape, bool),
    aggregators.Grid(ROWS, COLUMNS, frames),
  )


def _weights(frames):
  shape = BATCH, frames * LENGTH
  return np.random.default_rng(1).uniform(0.5, 2.0, shape).astype(np.float32)


@functools.cache
def _fused(form):
  """The compiled fusion of means, and its variables."""
  model = fusion.Fusion(aggregators.Mean(features=0), form)
  args = _tokens(_features(2)), _weights(2), None
  variables = planted.variables(model, *args)

  def run(features, weights):
    return model.apply(variables, _tokens(features), weights, None)[0]

  return jax.jit(run), variables.get('params', {})


def _normed(x, params):
  """LayerNorm of x [D]."""
  x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
  return x * params['scale'] + params['bias']


def _dense(x, params):
  return x @ params['kernel'] + params['bias']


def _related(z, params):
  """Mean of z [T, D] after the block, one head and frame at a time."""
  frames, width = z.shape
  place = np.zeros((frames, width))
  half = width // 2
  for t, i in np.ndindex(frames, half):
    angle = t / 10_000 ** (2 * i / width)
    place[t, i], place[t, half + i] = np.sin(angle), np.cos(angle)
  x = np.sqrt(width) * z + place
  qkv = np.stack(
    [
      _dense(_normed(one, params['norm1']), params['attention']['qkv'])
      for one in x
    ]
  )
  query, key, value = qkv.reshape(frames, 3, 4, -1).transpose(1, 2, 0, 3)
  attended = np.zeros((frames, 4, width // 4))
  for t, h in np.ndindex(frames, 4):
    share = np.exp(key[h] @ query[h, t] / np.sqrt(width // 4))
    attended[t, h] = (share / share.sum()) @ value[h]
  erf = np.vectorize(math.erf)
  total = np.zeros(width)
  for t in range(frames):
    y = _dense(attended[t].ravel(), params['attention']['projection'])
    y = x[t] + y
    hidden = _dense(_normed(y, params['norm2']), params['expand'])
    hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
    total += y + _dense(hidden, params['contract']) - place[t]
  return total / frames


def _oracle(features, weights, form, params):
  """[B, features], in float64."""
  batch, frames = features.shape[:2]
  weights = weights.reshape(batch, frames, LENGTH).astype(np.float64)
  found = []
  for b in range(batch):
    z = []
    for t in range(frames):
      mean = sum(
        w * x for w, x in zip(weights[b, t], features[b, t], strict=True)
      )
      mean = mean / (weights[b, t].sum() + 1e-3)
      z.append(mean / np.linalg.norm(mean))
    if form == 'concatenation':
      fused = np.concatenate(z)
    elif form == 'mean':
      fused = sum(z) / frames
    elif form == 'delta':
      half = frames // 2
      fused = sum(z[frames - half :]) - sum(z[:half])
    else:
      fused = _related(np.stack(z), params['block'])
    found.append(fused / np.linalg.norm(fused))
  return np.stack(found)


class FusionTest(parameterized.TestCase):
  @parameterized.product(form=fusion.FORMS, frames=(2, 3, 5))
  def test_fused_descriptors_are_their_formula(self, form, frames):
    run, params = _fused(form)
    features, weights = _features(frames), _weights(frames)
    expected = _oracle(features.astype(np.float64), weights, form, params)
    np.testing.assert_allclose(run(features, weights), expected, atol=2e-5)

  @parameterized.parameters(*fusion.FORMS)
  def test_gradients_are_those_of_the_formula(self, form):
    run, params = _fused(form)
    features, weights = _features(3), _weights(3)
    target = np.random.default_rng(2).normal(size=run(features, weights).shape)
    found = jax.jit(jax.grad(lambda x: (run(x, weights) * target).sum()))(
      features
    )
    for at in ((0, 0, 1, 2), (1, 1, 3, 5), (1, 2, 5, 7)):
      step = np.zeros(features.shape)
      step[at] = 1e-5
      above, below = (
        (_oracle(features + sign * step, weights, form, params) * target).sum()
        for sign in (1, -1)
      )
      self.assertAlmostEqual(
        float(found[at]), (above - below) / 2e-5, delta=1e-4
      )

  @parameterized.parameters(
    ('concatenation', False),
    ('mean', True),
    ('delta', False),
    ('transformer', False),
  )
  def test_the_order_of_frames_counts_or_not(self, form, unordered):
    run, _ = _fused(form)
    features = _features(4)
    weights = np.ones((BATCH, 4 * LENGTH), np.float32)
    one = run(features, weights)
    for order in ((3, 2, 1, 0), (2, 0, 3, 1)):
      other = run(features[:, order], weights)
      apart = np.abs(other - one).max()
      self.assertEqual(apart < 1e-5, unordered, apart)
      if form == 'delta' and order[0] == 3:
        np.testing.assert_allclose(other, -one, atol=1e-5)
      if form == 'concatenation':
        parts = one.reshape(BATCH, 4, WIDTH)[:, order]
        np.testing.assert_allclose(other, parts.reshape(BATCH, -1), atol=1e-6)

  def test_a_transformer_starts_as_the_mean(self):
    model = fusion.Fusion(aggregators.Mean(features=0), 'transformer')
    args = _tokens(_features(3)), _weights(3), None
    variables = jax.jit(model.init)(KEY, *args)
    found, _ = jax.jit(model.apply)(variables, *args)
    run, _ = _fused('mean')
    expected = run(_features(3), _weights(3))
    np.testing.assert_allclose(found, expected, atol=1e-5)

  @parameterized.parameters(*fusion.FORMS)
  def test_nothing_seen_is_zero_with_finite_gradients(self, form):
    run, _ = _fused(form)
    features = np.zeros((BATCH, 3, LENGTH, WIDTH), np.float32)
    weights = _weights(3)
    np.testing.assert_array_equal(run(features, weights), 0.0)
    grads = jax.jit(jax.grad(lambda x: run(x, weights).sum()))(features)
    self.assertTrue(np.isfinite(grads).all())
    # A vehicle that stands: a difference of zero.
    features = np.repeat(_features(1), 4, axis=1)

    def still(x):
      return run(x, np.ones((BATCH, 4 * LENGTH), np.float32)).sum()

    value, grads = jax.jit(jax.value_and_grad(still))(features)
    self.assertTrue(np.isfinite(value) and np.isfinite(grads).all())

  def test_weights_of_a_difference(self):
    for frames in range(2, 8):
      found = fusion.delta_weights(frames)
      np.testing.assert_allclose(found, -found[::-1])
      self.assertAlmostEqual(float(found.sum()), 0.0, places=6)
      half = frames // 2
      np.testing.assert_allclose(found[:half], -2 / frames)
      self.assertEqual(np.sum(found == 0), frames % 2)

  def test_a_single_image_has_no_difference(self):
    run, _ = _fused('delta')
    with self.assertRaisesRegex(ValueError, 'of 1 frame; give sequences'):
      run(_features(1), _weights(1))

  def test_what_cannot_be_fused_is_named(self):
    with self.assertRaisesRegex(ValueError, "'sum'; known"):
      fusion.Fusion(aggregators.Mean(), 'sum')
    with self.assertRaisesRegex(ValueError, 'take VLAD itself'):
      fusion.Fusion(vlad.VLAD(), 'mean')
    with self.assertRaisesRegex(ValueError, 'fusion of sectors'):
      fusion.Fusion(aggregators.Mean(num_sectors=4), 'mean')
    for name in ('vlad', 'fusion', 'published', 'nothing'):
      with self.assertRaisesRegex(
        ValueError, f"Unknown inner aggregator '{name}'; known: .*'netvlad'"
      ):
        factory.make(
          factory.AGGREGATORS,
          'aggregator',
          dict(name='fusion', inner=dict(name=name), form='mean'),
        )


if __name__ == '__main__':
  absltest.main()
