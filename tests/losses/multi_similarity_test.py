# SPDX-License-Identifier: Apache-2.0
"""Multi-similarity loss against a loop, its gradient and its laws."""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.losses import contrastive
from i2ploc.losses import multi_similarity as multi_similarity_lib
from tests.losses import loops

SIZE = 8


def _descriptors(seed, size=SIZE, width=4):
  rng = np.random.default_rng(seed)
  return tuple(loops.unit(rng.normal(size=(2, size, width))).astype(np.float32))


def _relations(seed):
  """Random ternary, not symmetric; row 0 lacks positives, row 1 negatives."""
  relations = np.random.default_rng(seed).integers(-1, 2, (SIZE, SIZE))
  relations[0] = np.minimum(relations[0], 0)
  relations[1] = np.maximum(relations[1], 0)
  relations[2] = 0
  return relations.astype(np.int8)


def _loop(a, b, relations, alpha=1.0, beta=50.0, threshold=0.0, mined=False):
  similarities = a.astype(np.float64) @ b.astype(np.float64).T
  if mined:
    relations = loops.mine(similarities, relations, loops.informative, 0.1)
  losses = []
  for row, relation in zip(similarities, relations, strict=True):
    kinds = set(relation)
    if not kinds & {1, -1}:
      continue
    pull = push = 1.0
    for s, r in zip(row, relation, strict=True):
      if r > 0:
        pull += math.exp(-alpha * (s - threshold))
      elif r < 0:
        push += math.exp(beta * (s - threshold))
    losses.append(math.log(pull) / alpha + math.log(push) / beta)
  return sum(losses) / len(losses) if losses else 0.0


@functools.partial(
  jax.jit, static_argnames=('alpha', 'beta', 'threshold', 'mining')
)
def _loss(a, b, relations, mining='all', **options):
  return multi_similarity_lib.multi_similarity(
    a, b, relations, mining=mining, **options
  )


OPTIONS = (
  {},
  dict(threshold=0.5),
  dict(alpha=2.0, beta=10.0, threshold=0.3),
)


class ValuesTest(parameterized.TestCase):
  @parameterized.product(options=OPTIONS, mined=(False, True))
  def test_agrees_with_a_loop_over_pairs(self, options, mined):
    a, b = _descriptors(0)
    relations = _relations(1)
    expected = _loop(a, b, relations, mined=mined, **options)
    mining = 'informative' if mined else 'all'
    loss, _ = _loss(a, b, relations, mining=mining, **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)

  @parameterized.product(options=OPTIONS, mined=(False, True))
  def test_the_gradient_is_that_of_the_loop(self, options, mined):
    a, b = _descriptors(2)
    relations = _relations(3)
    mining = 'informative' if mined else 'all'
    gradients = jax.grad(
      lambda a, b: _loss(a, b, relations, mining=mining, **options)[0], (0, 1)
    )(a, b)
    loop = functools.partial(_loop, mined=mined, **options)
    by_a = loops.slopes(lambda x: loop(x, b, relations), a)
    by_b = loops.slopes(lambda x: loop(a, x, relations), b)
    np.testing.assert_allclose(gradients[0], by_a, atol=2e-5)
    np.testing.assert_allclose(gradients[1], by_b, atol=2e-5)

  def test_of_one_side_the_gradient_goes_both_ways(self):
    a, _ = _descriptors(4)
    place = np.arange(SIZE) // 2
    relations = np.where(place[:, None] == place, 1, -1)
    np.fill_diagonal(relations, 0)
    gradient = jax.grad(lambda x: _loss(x, x, relations)[0])(a)
    slopes = loops.slopes(lambda x: _loop(x, x, relations), a)
    np.testing.assert_allclose(gradient, slopes, atol=2e-5)

  def test_the_mean_is_of_rows_with_a_pair_left(self):
    a, b = _descriptors(5)
    relations = _relations(6)
    relations[[4, 6]] = 0
    kept = [i for i in range(SIZE) if relations[i].any()]
    single = [
      _loss(a, b, relations * (np.arange(SIZE) == i)[:, None])[0] for i in kept
    ]
    loss = _loss(a, b, relations)[0]
    np.testing.assert_allclose(loss, np.mean(single), rtol=1e-5)
    self.assertLess(len(kept), SIZE - 2)


class RelationsTest(parameterized.TestCase):
  def test_a_neutral_pair_is_no_negative(self):
    # As in EarthLoc: tiles 0 and 1 overlap, 2 and 3 are their other years.
    a = loops.unit(np.array([[1, 0, 0], [1, 0.1, 0], [1, 0, 0.1], [0, 1, 1]]))
    a = a.astype(np.float32)
    neutral = np.full((4, 4), -1)
    for i, j, kind in ((0, 2, 1), (1, 3, 1), (0, 1, 0), (1, 2, 0)):
      neutral[i, j] = neutral[j, i] = kind
    np.fill_diagonal(neutral, 0)
    negative = np.where(neutral == 0, -1, neutral)
    np.fill_diagonal(negative, 0)
    for mining in 'all', 'informative':
      loss, metrics = _loss(a, a, neutral, mining=mining)
      wrong, wrong_metrics = _loss(a, a, negative, mining=mining)
      self.assertGreater(wrong - loss, 0.1, mining)
      self.assertGreater(
        wrong_metrics['negative_pairs'], metrics['negative_pairs']
      )

  @parameterized.parameters('all', 'informative', 'hardest')
  def test_an_ignored_row_gets_no_gradient(self, mining):
    a, b = _descriptors(7)
    relations = _relations(7)
    gradient = jax.grad(lambda x: _loss(x, b, relations, mining=mining)[0])(a)
    np.testing.assert_array_equal(gradient[2], 0.0)
    self.assertGreater(np.abs(gradient).max(), 1e-3)

  def test_hard_negatives_weigh_more_than_easy_ones(self):
    similarities = np.array([[0.8, 0.7, 0.4]], np.float32)
    points = np.eye(3, dtype=np.float32)
    a = np.concatenate([similarities, 0 * points[:2]])
    relations = np.array([[1, -1, -1], [0, 0, 0], [0, 0, 0]])
    pull = jax.grad(lambda x: _loss(x, points, relations)[0])(a)[0]
    self.assertLess(pull[0], 0)
    # e^{beta (0.7 - 0.4)} with beta = 50.
    np.testing.assert_allclose(pull[1] / pull[2], math.exp(15), rtol=1e-2)


class NumericsTest(parameterized.TestCase):
  @parameterized.parameters('all', 'informative', 'hardest')
  def test_degenerate_batches_are_finite(self, mining):
    eye = np.eye(3, dtype=np.float32)
    cases = {
      'batch of one': (eye[:1], np.zeros((1, 1)), 0.0),
      'zero descriptors': (0 * eye, 2 * eye - 1, None),
      'collapsed': (eye[[0, 0, 0]], 2 * eye - 1, None),
      'all ignored': (eye, 0 * eye, 0.0),
      'all positive': (eye, 0 * eye + 1, None),
      'no positive': (eye, 0 * eye - 1, None),
    }
    run = jax.jit(
      jax.value_and_grad(
        lambda x, r: _loss(x, x, r, mining=mining), has_aux=True
      )
    )
    for name, (rows, relations, expected) in cases.items():
      (loss, metrics), gradient = run(rows, relations.astype(np.int8))
      for leaf in (loss, gradient, *metrics.values()):
        self.assertTrue(np.isfinite(leaf).all(), name)
      if expected is not None:
        self.assertEqual(loss, expected, name)
    loss, _ = _loss(eye, eye, 0 * eye - 1, mining='informative')
    self.assertEqual(loss, 0.0)

  @parameterized.parameters(50.0, 1000.0)
  def test_large_factors_do_not_overflow(self, beta):
    rows = np.ones((2, 1), np.float32)
    relations = np.array([[0, -1], [-1, 0]])
    loss, _ = _loss(rows, rows, relations, beta=beta, threshold=-1.0)
    np.testing.assert_allclose(loss, 2.0, rtol=1e-6)

  def test_half_precision_is_compared_in_float32(self):
    a, b = (x.astype(jnp.bfloat16) for x in _descriptors(11))
    relations = _relations(11)
    loss = _loss(a, b, relations)[0]
    self.assertEqual(loss.dtype, jnp.float32)
    expected = _loop(
      np.asarray(a, np.float32), np.asarray(b, np.float32), relations
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)

  def test_training_with_it_finds_the_places(self):
    start, _ = _descriptors(12, width=8)
    place = np.arange(SIZE) // 2
    relations = np.where(place[:, None] == place, 1, -1)
    np.fill_diagonal(relations, 0)

    def of_rows(rows):
      rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
      return _loss(rows, rows, relations, mining='informative')

    step = jax.jit(jax.grad(lambda x: of_rows(x)[0]))
    rows = start
    for _ in range(60):
      rows = rows - 0.5 * step(rows)
    self.assertLess(of_rows(start)[1]['recall_at_1'], 0.8)
    self.assertEqual(of_rows(rows)[1]['recall_at_1'], 1.0)


class MetricsTest(parameterized.TestCase):
  def test_metrics_are_of_all_pairs_and_counts_of_those_left(self):
    a, b = _descriptors(8)
    relations = _relations(8)
    _, metrics = _loss(a, b, relations, mining='informative')
    mined = loops.mine(a @ b.T, relations, loops.informative, 0.1)
    self.assertEqual(metrics.pop('positive_pairs'), (mined > 0).sum())
    self.assertEqual(metrics.pop('negative_pairs'), (mined < 0).sum())
    expected = contrastive.batch_metrics(
      *contrastive.compare(jnp.asarray(a), jnp.asarray(b), relations)
    )
    self.assertSetEqual(set(metrics), set(expected))
    for name, value in expected.items():
      np.testing.assert_allclose(metrics[name], value, rtol=1e-6)

  def test_wrong_options_are_named(self):
    a, b = _descriptors(0)
    relations = _relations(0)
    with self.assertRaisesRegex(ValueError, "unknown mining 'hard'"):
      _loss(a, b, relations, mining='hard')
    with self.assertRaisesRegex(ValueError, 'beta=-50.0: expected factors'):
      _loss(a, b, relations, beta=-50.0)
    with self.assertRaisesRegex(ValueError, r'expected both \[B, D\]'):
      _loss(a, b[:3], relations)
    with self.assertRaisesRegex(ValueError, r'expected \(8, 8\)'):
      _loss(a, b, relations[:3])


if __name__ == '__main__':
  absltest.main()
