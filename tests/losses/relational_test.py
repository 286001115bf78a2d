# SPDX-License-Identifier: Apache-2.0
"""Relation consistency against loops, reference outputs and its laws."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.losses import relational
from tests import shared

EAGER_TERMS = dict(
  euclidean=relational.euclidean_consistency,
  angle=relational.angle_consistency,
  hyperbolic=functools.partial(
    relational.hyperbolic_consistency, curvature=0.1, max_norm=2.0
  ),
)
TERMS = {name: jax.jit(term) for name, term in EAGER_TERMS.items()}
ball = jax.jit(relational.hyperbolic_consistency)
EXAMPLE = (
  np.eye(3, dtype=np.float32),
  np.asarray([[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1]], np.float32),
)


def _features(seed, size=6, width=4):
  rng = np.random.default_rng(seed)
  return tuple(rng.normal(size=(2, size, width)).astype(np.float32))


def _huber(difference):
  small = abs(difference) < 1
  return difference**2 / 2 if small else abs(difference) - 0.5


def _loop_distances(distance, rows):
  size = len(rows)
  matrix = np.zeros((size, size))
  for i in range(size):
    for j in range(size):
      if i != j:
        matrix[i, j] = distance(rows[i], rows[j])
  return matrix / (matrix.sum() / (size * size - size))


def _loop_hyperbolic_distance(a, b, c=0.1, max_norm=2.0):
  def in_ball(v):
    v = v * min(1, max_norm / np.linalg.norm(v))
    length = np.sqrt(c) * np.linalg.norm(v)
    return np.tanh(length) * v / length

  a, b = in_ball(a), in_ball(b)
  chord = ((a - b) ** 2).sum() / ((1 - c * a @ a) * (1 - c * b @ b))
  return np.arccosh(1 + 2 * c * chord) / np.sqrt(c)


def _loop_angles(rows):
  size = len(rows)
  matrix = np.zeros((size, size, size))
  for i in range(size):
    for j in range(size):
      for k in range(size):
        u, v = rows[j] - rows[i], rows[k] - rows[i]
        norms = np.linalg.norm(u) * np.linalg.norm(v)
        matrix[i, j, k] = u @ v / norms if norms > 0 else 0
  return matrix


ORACLES = dict(
  euclidean=functools.partial(
    _loop_distances, lambda a, b: np.linalg.norm(a - b)
  ),
  angle=_loop_angles,
  hyperbolic=functools.partial(_loop_distances, _loop_hyperbolic_distance),
)


class ValuesTest(parameterized.TestCase):
  @parameterized.product(term=tuple(TERMS), size=(2, 6, 19))
  def test_agrees_with_a_loop(self, term, size):
    image, points = _features(0, size)
    oracle = ORACLES[term]
    difference = oracle(image.astype(float)) - oracle(points.astype(float))
    expected = np.mean([_huber(d) for d in difference.ravel()])
    found = TERMS[term](image, points)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)
    if size == 6 and term == 'hyperbolic':
      eager = EAGER_TERMS[term](image, points)
      np.testing.assert_allclose(eager, found, rtol=1e-6)

  @parameterized.parameters(
    ('euclidean', 0.0129959), ('angle', 0.00583498), ('hyperbolic', 0.0119684)
  )
  def test_worked_example(self, term, expected):
    np.testing.assert_allclose(TERMS[term](*EXAMPLE), expected, rtol=2e-5)

  def test_duplicates_keep_the_reference_value_not_its_gradient(self):
    golden = np.load(shared.GOLDEN / 'saliency_losses.npz')
    prefix = 'relation/B4_dup/'
    image, points = golden[prefix + 'img'], golden[prefix + 'pts']
    loss, gradient = jax.value_and_grad(relational.angle_consistency)(
      image, points
    )
    self.assertGreater(np.abs(golden[prefix + 'angle_grad_img']).max(), 1e9)
    self.assertLess(np.abs(gradient).max(), 10)
    np.testing.assert_allclose(
      loss, golden[prefix + 'angle_loss_float64'], atol=1e-6
    )


class LawsTest(parameterized.TestCase):
  @parameterized.parameters(*TERMS)
  def test_agreeing_modalities_cost_nothing(self, term):
    image, points = _features(1)
    function = TERMS[term]
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))
    rotated = image @ rotation.astype(np.float32)
    np.testing.assert_allclose(function(image, rotated), 0, atol=1e-10)
    self.assertGreater(function(image, points), 1e-3)

  @parameterized.parameters(*TERMS)
  def test_permuting_the_batch_changes_nothing(self, term):
    image, points = _features(3)
    order = np.random.default_rng(4).permutation(6)
    function = TERMS[term]
    expected = function(image, points)
    np.testing.assert_allclose(
      function(image[order], points[order]), expected, rtol=1e-5
    )
    self.assertGreater(abs(function(image[order], points) - expected), 1e-3)

  def test_euclid_and_angle_ignore_scale_and_shift_the_ball_does_not(self):
    image, points = _features(5)
    moved = 0.3 * image + np.asarray([0.1, 0.2, 0.0, 0.3], np.float32)
    for name in ('euclidean', 'angle'):
      np.testing.assert_allclose(
        TERMS[name](moved, points), TERMS[name](image, points), rtol=1e-3
      )
    self.assertGreater(
      abs(
        TERMS['hyperbolic'](10 * moved, points)
        - TERMS['hyperbolic'](10 * image, points)
      ),
      1e-3,
    )

  def test_the_ball_adds_to_the_chord_only_before_normalization(self):
    image, points = _features(6)
    lengths = np.geomspace(0.1, 10, 6)[:, None].astype(np.float32)
    unit = [
      x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, points)
    ]

    def excess(image, points):
      flat = TERMS['euclidean'](image, points)
      curved = ball(image, points, curvature=0.1, max_norm=10.0)
      return abs(curved / flat - 1)

    self.assertLess(excess(*unit), 0.1)
    self.assertGreater(excess(*(lengths * x for x in unit)), 0.3)

  def test_vanishing_curvature_gives_the_euclidean_term(self):
    image, points = _features(7)
    curved = ball(image, points, curvature=1e-6, max_norm=100.0)
    flat = TERMS['euclidean'](image, points)
    np.testing.assert_allclose(curved, flat, rtol=1e-4)

  def test_curvature_can_be_learned(self):
    image, points = _features(8)

    def loss(curvature):
      return ball(image, points, curvature=curvature, max_norm=2.0)

    slope = jax.grad(loss)(0.5)
    secant = (loss(0.52) - loss(0.48)) / 0.04
    np.testing.assert_allclose(slope, secant, rtol=1e-2)
    self.assertGreater(abs(slope), 1e-4)

  def test_long_features_are_clipped_before_the_ball(self):
    image, points = _features(9)
    term = TERMS['hyperbolic']
    np.testing.assert_allclose(
      term(1000 * image, points), term(100 * image, points), rtol=1e-4
    )
    # The term vanishes for equal arguments: clipping both leaves directions.
    unit = image / np.linalg.norm(image, axis=-1, keepdims=True)
    np.testing.assert_allclose(term(100 * image, 2 * unit), 0, atol=1e-9)
    self.assertGreater(term(image, 2 * unit), 1e-4)


class NumericsTest(parameterized.TestCase):
  @parameterized.parameters(*TERMS)
  def test_degenerate_batches_have_finite_losses_and_gradients(self, term):
    image, points = _features(10)
    nearly, first = image.copy(), [0, 0, 0, 0, 0, 0]
    nearly[1] = image[0] + 1e-7
    cases = {
      'all zero': (0 * image, points),
      'collapsed': (image[first], points[first]),
      'duplicate': (image[[0, 0, 1, 2, 3, 4]], points),
      'near duplicate': (nearly, points),
      'huge': (1e6 * image, points),
      'tiny': (1e-20 * image, points),
    }
    function = jax.jit(jax.value_and_grad(EAGER_TERMS[term], (0, 1)))
    for name, sides in cases.items():
      for leaf in jax.tree.leaves(function(*sides)):
        self.assertTrue(np.isfinite(leaf).all(), name)
        self.assertLess(np.abs(leaf).max(), 1e3, name)

  @parameterized.parameters(*TERMS)
  def test_a_batch_of_one_costs_nothing(self, term):
    image, points = _features(10, 1)
    function = jax.jit(jax.value_and_grad(EAGER_TERMS[term], (0, 1)))
    loss, gradients = function(image, points)
    for leaf in (loss, *gradients):
      np.testing.assert_array_equal(leaf, 0)

  def test_half_precision_is_compared_in_float32(self):
    image, points = (x.astype(jnp.bfloat16) for x in _features(11))
    for term in TERMS.values():
      loss = term(image, points)
      self.assertEqual(loss.dtype, jnp.float32)
      expected = term(image.astype(jnp.float32), points.astype(jnp.float32))
      np.testing.assert_allclose(loss, expected, rtol=1e-6)


class WeightsTest(absltest.TestCase):
  def test_terms_are_weighted_and_weight_0_is_not_computed(self):
    image, points = _features(12)
    function = functools.partial(
      relational.relation_consistency, image, points, 3 * image, 3 * points
    )
    loss, terms = function(
      euclidean_weight=1.0, angle_weight=2.0, hyperbolic_weight=3.0
    )
    expected = {
      'euclidean': TERMS['euclidean'](image, points),
      'angle': TERMS['angle'](image, points),
      'hyperbolic': TERMS['hyperbolic'](3 * image, 3 * points),
    }
    self.assertSetEqual(set(terms), set(expected))
    for name, value in expected.items():
      np.testing.assert_allclose(terms[name], value, rtol=1e-6)
    total = sum((w + 1) * value for w, value in enumerate(expected.values()))
    np.testing.assert_allclose(loss, total, rtol=1e-6)
    loss, terms = function(
      euclidean_weight=0.0, angle_weight=2.0, hyperbolic_weight=0.0
    )
    self.assertSetEqual(set(terms), {'angle'})
    np.testing.assert_allclose(loss, 2 * expected['angle'], rtol=1e-6)
    loss, terms = function(
      euclidean_weight=0.0, angle_weight=0.0, hyperbolic_weight=0.0
    )
    self.assertEqual(loss, 0)
    self.assertEmpty(terms)


if __name__ == '__main__':
  absltest.main()
