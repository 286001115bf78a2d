# SPDX-License-Identifier: Apache-2.0
"""The domain adversary: what it returns, and where its gradients point."""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.losses import adversary
from tests.losses import loops

SIZE, WIDTH, DOMAINS = 7, 6, 3


def _batch(seed=0):
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(SIZE, WIDTH)).astype(np.float32)
  domain = rng.integers(0, DOMAINS, SIZE)
  params = adversary.init_classifier(jax.random.key(seed), WIDTH, DOMAINS)
  # No bias is at its start, where ReLUs would have a common zero.
  params = jax.tree.map(
    lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params
  )
  return jax.tree.map(np.asarray, params), features, domain


def _loop_logits(params, row):
  for name in ('dense_0', 'dense_1', 'dense_2'):
    if name != 'dense_0':
      row = np.maximum(row, 0)
    row = row @ np.asarray(params[name]['kernel'], np.float64)
    row = row + params[name]['bias']
  return row


def _loop(params, features, domain, mask=None):
  losses, hits = [], []
  for i, row in enumerate(np.asarray(features, np.float64)):
    if not 0 <= domain[i] < DOMAINS or (mask is not None and not mask[i]):
      continue
    logits = _loop_logits(params, row)
    exps = [math.exp(z - max(logits)) for z in logits]
    losses.append(math.log(sum(exps)) + max(logits) - logits[domain[i]])
    hits.append(np.argmax(logits) == domain[i])
  return np.mean(losses) if losses else 0.0, np.mean(hits) if hits else 0.0


@functools.partial(jax.jit, static_argnames='weight')
def _loss(params, features, domain, mask=None, weight=0.1):
  return adversary.domain_adversary(
    params, features, domain, weight=weight, mask=mask
  )


class AdversaryTest(parameterized.TestCase):
  @parameterized.parameters(0, 1)
  def test_agrees_with_a_loop_over_rows(self, seed):
    batch = _batch(seed)
    value, metrics = _loss(*batch)
    expected, hits = _loop(*batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics['domain_loss'], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics['domain_accuracy'], hits, rtol=1e-6)
    # The weight is on a gradient, not on the value.
    self.assertEqual(_loss(*batch, weight=3.0)[0], value)

  @parameterized.parameters(0.1, 2.5, 0.0)
  def test_the_gradient_of_the_features_is_reversed_and_weighed(self, weight):
    params, features, domain = _batch()
    gradient = jax.grad(lambda x: _loss(params, x, domain, weight=weight)[0])(
      features
    )
    slopes = loops.slopes(lambda x: _loop(params, x, domain)[0], features)
    np.testing.assert_allclose(gradient, -weight * slopes, atol=1e-6)
    self.assertGreater(np.abs(slopes).max(), 0.01)

  @parameterized.parameters('kernel', 'bias')
  def test_the_classifier_learns_at_full_strength(self, leaf):
    params, features, domain = _batch()
    gradients = jax.grad(lambda p: _loss(p, features, domain)[0])(params)
    for name in params:

      def loop(x, name=name):
        changed = params | {name: params[name] | {leaf: x}}
        return _loop(changed, features, domain)[0]

      slopes = loops.slopes(loop, params[name][leaf])
      np.testing.assert_allclose(gradients[name][leaf], slopes, atol=1e-5)
      self.assertGreater(np.abs(slopes).max(), 0.005, name)

  def test_beside_another_loss_the_weighted_gradient_is_taken_off(self):
    params, features, domain = _batch()

    def main(x):
      return (x**2).sum()

    total = jax.grad(lambda x: main(x) + _loss(params, x, domain)[0])(features)
    slopes = loops.slopes(lambda x: _loop(params, x, domain)[0], features)
    np.testing.assert_allclose(total, 2 * features - 0.1 * slopes, atol=1e-5)

  def test_rows_that_do_not_count_leave_no_trace(self):
    params, features, domain = _batch()
    mask = np.array([True] * 5 + [False] * 2)
    domain[0], domain[1] = -1, DOMAINS
    run = jax.jit(
      jax.value_and_grad(lambda x: _loss(params, x, domain, mask), has_aux=True)
    )
    (value, metrics), gradient = run(features)
    kept = slice(2, 5)
    expected, hits = _loop(params, features[kept], domain[kept])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics['domain_accuracy'], hits, rtol=1e-6)
    moved = np.abs(gradient).max(1) > 0
    np.testing.assert_array_equal(moved, [0, 0, 1, 1, 1, 0, 0])

  def test_descent_teaches_the_classifier_and_misleads_it(self):
    params, features, domain = _batch()
    step = jax.jit(
      jax.grad(lambda p, x: _loss(p, x, domain, weight=1.0)[0], (0, 1))
    )

    def accuracy():
      return _loss(params, features, domain)[1]['domain_accuracy']

    for _ in range(200):
      gradient = step(params, features)[0]
      params = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)
    self.assertEqual(accuracy(), 1.0)
    for _ in range(200):
      features = features - 0.3 * step(params, features)[1]
    self.assertLess(accuracy(), 0.8)


class DegenerateTest(parameterized.TestCase):
  def test_losses_and_gradients_are_finite(self):
    params, features, domain = _batch()
    none = np.zeros(SIZE, bool)
    run = jax.jit(jax.value_and_grad(_loss, (0, 1), has_aux=True))
    for name, case in {
      'zero features': (params, 0 * features, domain, ~none),
      'huge features': (params, 1e6 * features, domain, ~none),
      'zero parameters': (
        jax.tree.map(np.zeros_like, params),
        features,
        domain,
        ~none,
      ),
      'no row': (params, features, domain, none),
    }.items():
      (value, metrics), gradients = run(*case)
      for leaf in (value, *metrics.values(), *jax.tree.leaves(gradients)):
        self.assertTrue(np.isfinite(leaf).all(), name)
      if name == 'no row':
        self.assertEqual(value, 0.0)
      if name == 'zero parameters':  # a tie is a miss
        self.assertEqual(metrics['domain_accuracy'], 0.0)

  def test_the_classifier_has_the_widths_of_adageo(self):
    params = adversary.init_classifier(jax.random.key(0), 256, 5)
    shapes = jax.tree.map(jnp.shape, params)
    self.assertEqual(
      shapes,
      {
        'dense_0': {'kernel': (256, 50), 'bias': (50,)},
        'dense_1': {'kernel': (50, 20), 'bias': (20,)},
        'dense_2': {'kernel': (20, 5), 'bias': (5,)},
      },
    )
    np.testing.assert_allclose(
      params['dense_0']['kernel'].std(), 1 / 16, rtol=0.05
    )

  def test_wrong_arguments_are_named(self):
    params, features, domain = _batch()
    with self.assertRaisesRegex(ValueError, 'weight=-0.1: expected at least 0'):
      _loss(params, features, domain, weight=-0.1)
    with self.assertRaisesRegex(
      ValueError, r'domain \(3,\): expected \[B, D\]'
    ):
      _loss(params, features, domain[:3])
    with self.assertRaisesRegex(ValueError, r'mask \(3,\)'):
      _loss(params, features, domain, domain[:3] > 0)
    with self.assertRaisesRegex(ValueError, '1 domains: expected at least two'):
      adversary.init_classifier(jax.random.key(0), WIDTH, 1)


if __name__ == '__main__':
  absltest.main()
