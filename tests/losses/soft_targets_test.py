# SPDX-License-Identifier: Apache-2.0
"""The loss released with LIP-Loc, its formula and its faults."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.losses import soft_targets as soft_targets_lib


def _embeddings(seed=0, size=6, width=5, length=1.0):
  rng = np.random.default_rng(seed)
  return length * rng.normal(size=(2, size, width)).astype(np.float32)


@jax.jit
def _loss(image, points):
  return soft_targets_lib.soft_targets(image, points)[0]


def _softmax(rows):
  return [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in rows]


def _loop(image, points):
  """The formula entry by entry."""
  image, points = image.astype(np.float64), points.astype(np.float64)
  size = range(len(image))
  logits = points @ image.T
  ahead, back = _softmax(logits), _softmax(logits.T)
  targets = _softmax((image @ image.T + points @ points.T) / 2)
  total = 0.0
  for i in size:
    for j in size:
      total -= targets[i][j] * math.log(ahead[i][j])
      total -= targets[j][i] * math.log(back[i][j])
  return total / (2 * len(image))


class SoftTargetsTest(parameterized.TestCase):
  @parameterized.parameters(0.1, 1.0, 3.0)
  def test_agrees_with_a_loop_over_pairs(self, length):
    image, points = _embeddings(length=length)
    expected = _loop(image, points)
    np.testing.assert_allclose(_loss(image, points), expected, rtol=1e-5)
    # Discrimination: the modalities do not trade places freely.
    self.assertGreater(abs(_loop(points, image) - expected), 1e-6)

  def test_the_gradient_moves_the_targets_too(self):
    image, points = _embeddings()

    def fixed(image, points):
      within = (image @ image.T + points @ points.T) / 2
      targets = jax.lax.stop_gradient(jax.nn.softmax(within, -1))
      shares = sum(jax.nn.log_softmax(points @ image.T, a) for a in (0, 1))
      return -(targets * shares).sum() / (2 * len(image))

    value, gradient = jax.jit(jax.value_and_grad(_loss))(image, points)
    np.testing.assert_allclose(fixed(image, points), value, rtol=1e-5)
    apart = np.abs(jax.jit(jax.grad(fixed))(image, points) - gradient).max()
    self.assertGreater(apart, 0.02)
    step = np.zeros_like(image)
    step[2, 1] = 1e-2
    slope = (_loop(image + step, points) - _loop(image - step, points)) / 2e-2
    np.testing.assert_allclose(gradient[2, 1], slope, rtol=1e-3)

  def test_collapse_costs_no_more_than_the_logarithm_of_the_batch(self):
    same = np.ones((8, 4), np.float32)
    np.testing.assert_allclose(_loss(same, same), math.log(8), rtol=1e-6)
    _, metrics = soft_targets_lib.soft_targets(same, same)
    self.assertEqual(metrics['recall_at_1'], 0)

  def test_long_embeddings_make_it_a_cross_entropy_of_pairs(self):
    places = 16 * np.eye(5, dtype=np.float32)
    np.testing.assert_allclose(_loss(places, places), 0, atol=1e-6)
    self.assertGreater(_loss(places, places[[1, 0, 2, 3, 4]]), 50)

  def test_degenerate_batches_are_finite(self):
    run = jax.jit(jax.value_and_grad(_loss, argnums=(0, 1)))
    image, points = _embeddings(length=300.0)
    for rows in (
      (image[:1], points[:1]),
      (0 * image, 0 * points),
      (image, points),
    ):
      for leaf in jax.tree.leaves(run(*rows)):
        self.assertTrue(np.isfinite(leaf).all())
    value, gradients = run(image[:1], points[:1])
    self.assertEqual(value, 0)
    self.assertEqual(np.abs(gradients).max(), 0)

  def test_metrics_ask_who_is_near_whom(self):
    image, points = np.eye(3, dtype=np.float32)[[[0, 1, 2], [1, 0, 2]]]
    relations = 2 * np.eye(3, dtype=np.int8) - 1
    _, metrics = soft_targets_lib.soft_targets(image, points, relations)
    np.testing.assert_allclose(metrics['recall_at_1'], 1 / 3)
    relations[0, 1] = 1
    value, metrics = soft_targets_lib.soft_targets(image, points, relations)
    np.testing.assert_allclose(metrics['recall_at_1'], 2 / 3)
    self.assertEqual(value, _loss(jnp.asarray(image), points))

  def test_odd_shapes_are_named(self):
    image, points = _embeddings()
    with self.assertRaisesRegex(ValueError, r'expected both \[B, D\]'):
      soft_targets_lib.soft_targets(image, points[:3])
    with self.assertRaisesRegex(ValueError, r'expected \(6, 6\)'):
      soft_targets_lib.soft_targets(image, points, np.ones((6, 5)))


if __name__ == '__main__':
  absltest.main()
