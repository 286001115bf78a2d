# SPDX-License-Identifier: Apache-2.0
"""The cosine margin against a loop; groups that never meet."""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.losses import classes
from tests.losses import loops

WIDTH = 5
NUM_CLASSES = np.array([4, 6, 3])  # of three groups, padded to 6
OPTIONS = (
  {},
  dict(scale=100.0, margin=0.4),
  dict(scale=4.0, margin=0.1),
  dict(scale=10.0, margin=0.0),
)


def _batch(groups, size=6, seed=0):
  """Unit rows, weights of any length, and labels of a block per group."""
  rng = np.random.default_rng(seed)
  x = loops.unit(rng.normal(size=(size * len(groups), WIDTH)))
  weights = 3 * rng.normal(size=(3, 6, WIDTH))
  group = np.repeat(groups, size)
  label = rng.integers(0, NUM_CLASSES[group])
  return x.astype(np.float32), weights.astype(np.float32), group, label


def _loop(x, weights, group, label, num_heads=1, scale=30.0, margin=0.4):
  """The sum of the blocks' means, and the rows' own cosines and hits."""
  total, cosines, hits = 0.0, [], []
  for block in np.array_split(np.arange(len(x)), num_heads):
    losses = []
    for i in block:
      own_group = weights[group[i]].astype(np.float64)
      angles = [
        float(x[i] @ own_group[j]) / np.linalg.norm(own_group[j])
        for j in range(NUM_CLASSES[group[i]])
      ]
      if group[i] != group[block[0]] or not 0 <= label[i] < len(angles):
        continue
      logits = [
        scale * (c - margin * (j == label[i])) for j, c in enumerate(angles)
      ]
      largest = max(logits)
      denominator = sum(math.exp(z - largest) for z in logits)
      losses.append(math.log(denominator) + largest - logits[label[i]])
      cosines.append(angles[label[i]])
      hits.append(max(angles) == angles[label[i]])
    total += np.mean(losses) if losses else 0.0
  return total, cosines, hits


@functools.partial(jax.jit, static_argnames=('num_heads', 'scale', 'margin'))
def _loss(x, weights, group, label, num_classes=NUM_CLASSES, **options):
  return classes.cosine_margin(
    x, weights, group, label, jnp.asarray(num_classes), **options
  )


class ValuesTest(parameterized.TestCase):
  @parameterized.product(options=OPTIONS, groups=([0], [2], [1, 2], [0, 0]))
  def test_agrees_with_a_loop_over_classes(self, options, groups):
    batch = _batch(groups)
    heads = len(groups)
    expected, cosines, hits = _loop(*batch, num_heads=heads, **options)
    loss, metrics = _loss(*batch, num_heads=heads, **options)
    np.testing.assert_allclose(loss, expected, rtol=2e-5)
    np.testing.assert_allclose(
      metrics['own_cosine'], np.mean(cosines), atol=1e-6
    )
    np.testing.assert_allclose(metrics['accuracy'], np.mean(hits), rtol=1e-6)

  @parameterized.parameters(dict(scale=30.0), dict(scale=4.0, margin=0.1))
  def test_the_gradient_is_that_of_the_loop(self, **options):
    x, weights, group, label = _batch([1, 2], size=4)
    gradients = jax.grad(
      lambda x, w: _loss(x, w, group, label, num_heads=2, **options)[0], (0, 1)
    )(x, weights)
    loop = functools.partial(_loop, num_heads=2, **options)
    by_x = loops.slopes(lambda x: loop(x, weights, group, label)[0], x)
    by_weights = loops.slopes(lambda w: loop(x, w, group, label)[0], weights)
    np.testing.assert_allclose(gradients[0], by_x, atol=2e-4)
    np.testing.assert_allclose(gradients[1], by_weights, atol=2e-4)

  def test_worked_by_hand(self):
    weights = np.array([[[2.0, 0], [0, 5.0]]], np.float32)
    x = np.array([[0.6, 0.8]], np.float32)
    zero, size = np.array([0]), np.array([2])
    # The own class at 0.6 - 0.4, the other at 0.8.
    loss, metrics = _loss(x, weights, zero, zero, size)
    np.testing.assert_allclose(loss, math.log(1 + math.exp(18)), rtol=1e-6)
    self.assertEqual(metrics['accuracy'], 0.0)
    loss, metrics = _loss(x, weights, zero, zero + 1, size)
    np.testing.assert_allclose(loss, math.log(1 + math.exp(6)), rtol=1e-6)
    self.assertEqual(metrics['accuracy'], 1.0)


class MarginTest(parameterized.TestCase):
  def test_the_margin_makes_the_own_class_harder_to_win(self):
    batch = _batch([1])
    losses = [_loss(*batch, margin=m)[0] for m in (0.0, 0.2, 0.4)]
    self.assertLess(losses[0] + 1, losses[1])
    self.assertLess(losses[1] + 1, losses[2])

  def test_only_the_own_class_has_it(self):
    # With the margin on the others instead, two classes give the same loss,
    # and so do any number; on all of them it changes nothing.
    batch = _batch([1])
    plain, margin = _loss(*batch, margin=0.0)[0], _loss(*batch)[0]
    self.assertGreater(margin - plain, 5.0)
    x, weights, group, label = batch
    cosines = x @ loops.unit(weights[1]).T
    cosines[np.arange(len(x)), label] += 0.4
    on_wrong_side = -np.mean(
      jax.nn.log_softmax(30 * cosines)[np.arange(len(x)), label]
    )
    self.assertGreater(margin - on_wrong_side, 10.0)


class GroupsTest(parameterized.TestCase):
  def test_other_groups_and_padding_have_no_say_and_no_gradient(self):
    x, weights, group, label = _batch([0])
    run = jax.jit(jax.value_and_grad(lambda w: _loss(x, w, group, label)[0]))
    value, gradient = run(weights)
    self.assertGreater(np.abs(gradient[0, :4]).min(1).max(), 1e-4)
    np.testing.assert_array_equal(gradient[0, 4:], 0.0)
    np.testing.assert_array_equal(gradient[1:], 0.0)
    changed = weights.copy()
    changed[1:] = changed[0, 4:] = x[0]  # would win everywhere
    self.assertEqual(run(changed)[0], value)

  def test_classes_of_two_groups_never_compete(self):
    # The label 0 of both groups lies where the image is; mixed, each would be
    # the other's worst rival.
    x = np.tile(np.eye(2, 3, dtype=np.float32)[:1], (2, 1))
    weights = np.tile(np.eye(3, dtype=np.float32), (2, 1, 1))
    loss, metrics = _loss(
      x,
      weights,
      np.array([0, 1]),
      np.array([0, 0]),
      np.array([3, 3]),
      num_heads=2,
    )
    expected = 2 * math.log(1 + 2 * math.exp(-30 * 0.6))
    np.testing.assert_allclose(loss, expected, atol=1e-6)
    self.assertEqual(metrics['accuracy'], 1.0)

  def test_losses_of_blocks_are_added(self):
    x, weights, group, label = _batch([2, 1])
    halves = [
      _loss(x[part], weights, group[part], label[part])[0]
      for part in (slice(0, 6), slice(6, 12))
    ]
    loss, _ = _loss(x, weights, group, label, num_heads=2)
    np.testing.assert_allclose(loss, sum(halves), rtol=1e-6)

  def test_rows_of_no_class_do_not_count(self):
    x, weights, group, label = _batch([0], size=8)
    for place, wrong in ((2, -1), (4, NUM_CLASSES[0]), (5, 99)):
      label[place] = wrong
    group[7] = 1
    kept = [0, 1, 3, 6]
    np.testing.assert_allclose(
      _loss(x, weights, group, label)[0],
      _loss(x[kept], weights, group[kept], label[kept])[0],
      rtol=1e-6,
    )
    gradient = jax.grad(lambda x: _loss(x, weights, group, label)[0])(x)
    np.testing.assert_array_equal(np.abs(gradient).max(1) > 0, [
      i in kept for i in range(8)
    ])  # fmt: skip

  def test_the_length_of_weights_does_not_matter(self):
    x, weights, group, label = _batch([1])
    lengths = np.random.default_rng(1).uniform(0.1, 10, (3, 6, 1))
    np.testing.assert_allclose(
      _loss(x, weights * lengths.astype(np.float32), group, label)[0],
      _loss(x, weights, group, label)[0],
      rtol=1e-5,
    )


class DegenerateTest(parameterized.TestCase):
  def test_losses_and_gradients_are_finite(self):
    x, weights, group, label = _batch([2])
    one = np.array([1, 1, 1])
    cases = {
      'zero weights': (x, 0 * weights, group, label, NUM_CLASSES),
      'zero rows': (0 * x, weights, group, label, NUM_CLASSES),
      'one class': (x, weights, group, 0 * label, one),
      'no class': (x, weights, group, label, 0 * one),
      'no label': (x, weights, group, 0 * label - 1, NUM_CLASSES),
      'no group': (x, weights, 0 * group - 1, label, NUM_CLASSES),
    }
    run = jax.jit(
      jax.value_and_grad(
        lambda x, w, *rest: _loss(x, w, *rest, scale=100.0),
        (0, 1),
        has_aux=True,
      )
    )
    for name, case in cases.items():
      (value, metrics), gradients = run(*case)
      for leaf in (value, *metrics.values(), *gradients):
        self.assertTrue(np.isfinite(leaf).all(), name)
      if name not in ('zero weights', 'zero rows'):
        self.assertEqual(value, 0.0, name)
        np.testing.assert_array_equal(gradients[1], 0.0)
      if name == 'zero weights':  # a tie is a miss
        self.assertEqual(metrics['accuracy'], 0.0)

  def test_half_precision_is_compared_in_float32(self):
    x, weights, group, label = _batch([1])
    x = jnp.asarray(x, jnp.bfloat16)
    loss, _ = _loss(x, weights, group, label)
    self.assertEqual(loss.dtype, jnp.float32)
    expected, _, _ = _loop(np.asarray(x, np.float32), weights, group, label)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)

  @parameterized.parameters(
    (dict(scale=0.0), 'scale=0.0: expected a factor above 0'),
    (dict(margin=-0.4), 'margin=-0.4: expected a difference of cosines'),
    (dict(num_heads=4), 'num_heads=4, a batch of 6: expected equal blocks'),
  )
  def test_wrong_options_are_named(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      _loss(*_batch([0]), **options)

  def test_odd_shapes_are_named(self):
    x, weights, group, label = _batch([0])
    with self.assertRaisesRegex(ValueError, r'\[B, D\] and \[G, C, D\]'):
      _loss(x, weights[0], group, label)
    with self.assertRaisesRegex(ValueError, r'label \(5,\): expected \(6,\)'):
      _loss(x, weights, group, label[:5])
    with self.assertRaisesRegex(ValueError, r'num_classes \(2,\): expected'):
      _loss(x, weights, group, label, NUM_CLASSES[:2])


class InitTest(absltest.TestCase):
  def test_weights_are_drawn_alike_for_every_group(self):
    weights = classes.init_classes(jax.random.key(0), 4, 30, 20)
    self.assertEqual(weights.shape, (4, 30, 20))
    limit = math.sqrt(6 / 50)
    self.assertBetween(np.abs(weights).max(), 0.95 * limit, limit)
    np.testing.assert_allclose(
      weights.std((1, 2)), limit / math.sqrt(3), rtol=0.1
    )
    self.assertGreater(np.abs(weights[0] - weights[1]).max(), 0.1)

  def test_training_with_it_finds_the_classes(self):
    x, _, group, label = _batch([1], size=12)
    weights = classes.init_classes(jax.random.key(1), 3, 6, WIDTH)

    def of(parts):
      rows, weights = parts
      rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
      return _loss(rows, weights, group, label)

    step = jax.jit(jax.grad(lambda parts: of(parts)[0]))
    parts = x, weights
    before = of(parts)[1]['accuracy']
    for _ in range(100):
      parts = jax.tree.map(lambda p, g: p - 0.05 * g, parts, step(parts))
    self.assertLess(before, 0.5)
    self.assertEqual(of(parts)[1]['accuracy'], 1.0)


if __name__ == '__main__':
  absltest.main()
