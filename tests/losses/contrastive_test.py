# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses against loops, and their laws."""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from i2ploc.losses import contrastive as contrastive_lib
from tests.losses import loops
from tests.testing import compiled

contrastive = compiled.Module(contrastive_lib)

FORMS = ('clip', 'concatenated')


def _unit(rows):
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _descriptors(seed, size=7, width=5):
  rng = np.random.default_rng(seed)
  return tuple(_unit(rng.normal(size=(2, size, width))).astype(np.float32))


def _relations(seed, size=7):
  """Random ternary, not symmetric, the diagonal positive."""
  relations = np.random.default_rng(seed).integers(-1, 2, (size, size))
  np.fill_diagonal(relations, 1)
  return relations.astype(np.int8)


def _from_similarities(similarities):
  """Descriptors whose image @ points^T is the given matrix."""
  similarities = np.asarray(similarities, np.float32)
  return similarities, np.eye(len(similarities), dtype=np.float32)


def _loop_direction(logits, relations):
  losses = []
  for row, relation in zip(logits, relations, strict=True):
    negatives = [
      math.exp(s) for s, r in zip(row, relation, strict=True) if r < 0
    ]
    terms = [
      -math.log(math.exp(s) / (math.exp(s) + sum(negatives)))
      for s, r in zip(row, relation, strict=True)
      if r > 0
    ]
    losses.append(sum(terms) / len(terms))
  return sum(losses) / len(losses)


def _loop(image, points, scale, relations, form):
  logits = scale * image.astype(np.float64) @ points.astype(np.float64).T
  if form == 'clip':
    return (
      _loop_direction(logits, relations)
      + _loop_direction(logits.T, relations.T)
    ) / 2
  rows, kinds = [], []
  for i in range(len(logits)):
    others = [j for j in range(len(logits)) if j != i]
    rows.append([*logits[i], *(logits[j, i] for j in others)])
    kinds.append([*relations[i], *(relations[j, i] for j in others)])
  return _loop_direction(rows, kinds)


@functools.partial(jax.jit, static_argnames='form')
def _loss(image, points, scale, relations=None, form='clip'):
  return contrastive.info_nce(image, points, scale, relations, form)[0]


class ValuesTest(parameterized.TestCase):
  @parameterized.parameters(*FORMS)
  def test_agrees_with_a_loop_over_pairs(self, form):
    image, points = _descriptors(0)
    function = functools.partial(contrastive.info_nce, form=form)
    for relations in (2 * np.eye(7, dtype=np.int8) - 1, _relations(1)):
      expected = _loop(image, points, 9.0, relations, form)
      loss, _ = function(image, points, 9.0, relations)
      np.testing.assert_allclose(loss, expected, rtol=1e-5)

  @parameterized.parameters(
    ([[0.9, 0.1], [0.2, 0.8]], 7.27754e-5, 1.455463e-4),
    (
      [[0.5, 0.4, 0.3], [0.45, 0.6, 0.2], [0.1, 0.35, 0.7]],
      0.1446247,
      0.2601920,
    ),
  )
  def test_worked_examples_at_temperature_007(self, matrix, clip, concatenated):
    image, points = _from_similarities(matrix)
    for form, expected in ('clip', clip), ('concatenated', concatenated):
      loss = _loss(image, points, 1 / 0.07, form=form)
      np.testing.assert_allclose(loss, expected, rtol=1e-5)

  def test_the_clip_form_is_the_mean_of_two_cross_entropies(self):
    image, points = _descriptors(2)
    logits = 20.0 * image @ points.T
    labels = jnp.arange(7)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    one_way = cross_entropy(logits, labels).mean()
    other_way = cross_entropy(logits.T, labels).mean()
    loss = _loss(image, points, 20.0)
    np.testing.assert_allclose(loss, (one_way + other_way) / 2, rtol=1e-5)
    self.assertGreater(abs(loss - one_way), 1e-2)

  def test_the_concatenated_form_is_neither_clip_nor_twice_clip(self):
    image, points = _descriptors(2)
    clip = _loss(image, points, 20.0)
    concatenated = _loss(image, points, 20.0, form='concatenated')
    self.assertGreater(abs(concatenated - clip), 0.05)
    self.assertGreater(abs(concatenated - 2 * clip), 0.05)

  def test_an_unknown_form_and_odd_shapes_are_named(self):
    image, points = _descriptors(0)
    with self.assertRaisesRegex(ValueError, "expected 'clip'"):
      contrastive.info_nce(image, points, 1.0, form='sigmoid')
    with self.assertRaisesRegex(ValueError, r'expected both \[B, D\]'):
      contrastive.info_nce(image, points[:3], 1.0)
    with self.assertRaisesRegex(ValueError, r'expected \(7, 7\)'):
      contrastive.info_nce(image, points, 1.0, np.ones((7, 6)))


class LawsTest(parameterized.TestCase):
  @parameterized.parameters(*FORMS)
  def test_a_rotation_of_all_descriptors_changes_nothing(self, form):
    image, points = _descriptors(3)
    rotation, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(5, 5)))
    rotation = rotation.astype(np.float32)
    relations = _relations(3)
    np.testing.assert_allclose(
      _loss(image @ rotation, points @ rotation, 10.0, relations, form),
      _loss(image, points, 10.0, relations, form),
      rtol=1e-5,
    )

  @parameterized.parameters(*FORMS)
  def test_permuting_the_batch_changes_nothing(self, form):
    image, points = _descriptors(5)
    relations = _relations(5)
    order = np.random.default_rng(6).permutation(7)
    permuted = _loss(
      image[order], points[order], 10.0, relations[order][:, order], form
    )
    expected = _loss(image, points, 10.0, relations, form)
    np.testing.assert_allclose(permuted, expected, rtol=1e-5)
    # Discrimination: permuting one side alone is another problem.
    wrong = _loss(image[order], points, 10.0, relations, form)
    self.assertGreater(abs(wrong - expected), 0.1)

  @parameterized.parameters(*FORMS)
  def test_the_modalities_may_change_places(self, form):
    image, points = _descriptors(7)
    relations = _relations(7)
    if form == 'concatenated':
      relations = np.maximum(relations, relations.T)
    np.testing.assert_allclose(
      _loss(points, image, 10.0, relations.T, form),
      _loss(image, points, 10.0, relations, form),
      rtol=1e-5,
    )

  def test_gradient_is_the_closed_form(self):
    image, points = _descriptors(8)
    scale = 12.0
    logits = scale * image @ points.T
    both = jax.nn.softmax(logits, 1) + jax.nn.softmax(logits, 0)
    expected = scale / 14 * (both @ points - 2 * points)
    gradient = jax.grad(_loss)(image, points, scale)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    by_log_scale = jax.grad(
      lambda t: _loss(image, points, contrastive_lib.clamped_scale(t))
    )(jnp.log(scale))
    expected = ((both * logits).sum() - 2 * jnp.trace(logits)) / 14
    np.testing.assert_allclose(by_log_scale, expected, rtol=1e-4)


class RelationsTest(parameterized.TestCase):
  @parameterized.parameters(('clip', 2), ('concatenated', 3))
  def test_ignoring_a_near_duplicate_changes_the_loss(self, form, equals):
    places = np.eye(7, dtype=np.float32)
    places[1] = places[0]
    relations = 2 * np.eye(7, dtype=np.int8) - 1
    # Two rows of seven choose among this many equal logits.
    as_negative = _loss(places, places, 30.0, relations, form)
    np.testing.assert_allclose(as_negative, 2 * math.log(equals) / 7, rtol=1e-4)
    relations[[0, 1], [1, 0]] = 0
    as_ignored = _loss(places, places, 30.0, relations, form)
    np.testing.assert_allclose(as_ignored, 0, atol=1e-6)

  @parameterized.parameters(*FORMS)
  def test_an_ignored_pair_has_no_say_at_all(self, form):
    matrix = np.full((4, 4), 0.1)
    np.fill_diagonal(matrix, 0.2)
    relations = 2 * np.eye(4, dtype=np.int8) - 1
    relations[1, 2] = 0
    image, points = _from_similarities(matrix)
    gradient = jax.grad(_loss)(image, points, 10.0, relations, form)
    # points is the identity: the gradient is that of the similarities.
    self.assertEqual(gradient[1, 2], 0)
    self.assertGreater(np.abs(gradient)[relations != 0].min(), 1e-3)

  @parameterized.parameters(*FORMS)
  def test_every_positive_is_pulled_and_the_harder_one_more(self, form):
    # The sum inside the logarithm would pull the easy one harder; positives in
    # one another's denominator would push it away.
    matrix = np.full((3, 3), 0.0)
    np.fill_diagonal(matrix, 0.9)
    matrix[0, 1] = 0.2
    relations = 2 * np.eye(3, dtype=np.int8) - 1
    relations[0, 1] = 1
    image, points = _from_similarities(matrix)
    gradient = jax.grad(_loss)(image, points, 5.0, relations, form)
    self.assertLess(gradient[0, 0], 0)
    self.assertLess(gradient[0, 1], 2 * gradient[0, 0])

  @parameterized.parameters(*FORMS)
  def test_separated_places_have_no_loss_however_many_positives(self, form):
    places = np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)
    relations = np.where(places @ places.T > 0, 1, -1)
    loss = _loss(places, places, 100.0, relations, form)
    np.testing.assert_allclose(loss, 0, atol=1e-6)

  def test_rows_without_a_positive_do_not_count(self):
    image, points = _descriptors(10)
    relations = 2 * np.eye(7, dtype=np.int8) - 1
    relations[6] = relations[:, 6] = 0
    np.testing.assert_allclose(
      _loss(image, points, 10.0, relations),
      _loss(image[:6], points[:6], 10.0),
      rtol=1e-5,
    )


class NumericsTest(parameterized.TestCase):
  @parameterized.parameters(*FORMS)
  def test_degenerate_batches_have_finite_losses_and_gradients(self, form):
    eye = np.eye(3, dtype=np.float32)
    cases = {
      'batch of one': (eye[:1], eye[:1], None),
      'zero descriptors': (0 * eye, 0 * eye, None),
      'collapsed': (eye[[0, 0, 0]], eye[[0, 0, 0]], None),
      'opposite': (eye, -eye, None),
      'all ignored': (eye, eye, np.zeros((3, 3), np.int8)),
      'all positive': (eye, eye, np.ones((3, 3), np.int8)),
      'no positive': (eye, eye, -np.ones((3, 3), np.int8)),
    }
    function = jax.value_and_grad(
      functools.partial(_loss, form=form), argnums=(0, 1, 2)
    )
    function = jax.jit(function)
    for name, (image, points, relations) in cases.items():
      loss, gradients = function(image, points, 100.0, relations)
      for leaf in (loss, *gradients):
        self.assertTrue(np.isfinite(leaf).all(), name)
      if name in ('batch of one', 'all ignored', 'all positive'):
        self.assertEqual(loss, 0, name)

  @parameterized.parameters(*FORMS)
  def test_scale_100_neither_overflows_nor_loses_the_loss(self, form):
    image, points = _from_similarities([[-1.0, 1.0], [1.0, -1.0]])
    # Both off-diagonal negatives of the union weigh the same: log 2 on top.
    expected = 200 + (math.log(2) if form == 'concatenated' else 0)
    loss = _loss(image, points, 100.0, form=form)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)

  def test_half_precision_descriptors_are_compared_in_float32(self):
    image, points = (x.astype(jnp.bfloat16) for x in _descriptors(11))
    loss, metrics = contrastive.info_nce(image, points, 100.0)
    self.assertEqual(loss.dtype, jnp.float32)
    self.assertEqual(metrics['positive_similarity'].dtype, jnp.float32)
    expected = _loss(
      image.astype(jnp.float32), points.astype(jnp.float32), 100.0
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    products = (image @ points.T).astype(jnp.bfloat16)
    coarse = _loss(*_from_similarities(products), 100.0)
    self.assertGreater(abs(coarse - expected), 1e-3)

  def test_scale_is_clamped_and_finds_its_way_back(self):
    scale = contrastive_lib.clamped_scale
    np.testing.assert_allclose(scale(jnp.log(14.0)), 14, rtol=1e-6)
    np.testing.assert_allclose(scale(jnp.float32(9.0)), 100, rtol=1e-5)
    np.testing.assert_allclose(scale(jnp.float32(9.0), 50.0), 50, rtol=1e-5)
    for beyond in (jnp.float32(math.log(100)), jnp.float32(9.0)):
      outwards = jax.grad(lambda t: -scale(t))(beyond)
      inwards = jax.jit(jax.grad(scale))(beyond)
      self.assertEqual(outwards, 0)
      np.testing.assert_allclose(inwards, 100, rtol=1e-5)
    inside = jax.grad(lambda t: -scale(t))(jnp.log(14.0))
    np.testing.assert_allclose(inside, -14, rtol=1e-6)


@jax.jit
def _sigmoid(image, points, scale, bias, relations=None):
  return contrastive.sigmoid(image, points, scale, bias, relations)[0]


class SigmoidTest(parameterized.TestCase):
  def test_agrees_with_a_loop_over_pairs(self):
    image, points = _descriptors(12)
    for relations in (None, _relations(13)):
      total = 0.0
      for i in range(7):
        for j in range(7):
          sign = 2 * (i == j) - 1 if relations is None else relations[i, j]
          logit = 9.0 * float(image[i] @ points[j]) - 3.0
          if sign:
            total += math.log(1 + math.exp(-sign * logit))
      loss = _sigmoid(image, points, 9.0, -3.0, relations)
      np.testing.assert_allclose(loss, total / 7, rtol=1e-5)

  def test_pairs_do_not_know_of_each_other(self):
    image, points = _descriptors(14)
    relations = 2 * np.eye(7, dtype=np.int8) - 1
    relations[2, 4] = 1
    by_points = jax.grad(_sigmoid, argnums=1)
    gradient = by_points(image, points, 9.0, -3.0, relations)
    ignored = relations.copy()
    ignored[3, 5] = 0
    without = by_points(image, points, 9.0, -3.0, ignored)
    moved = np.abs(gradient - without).max(1) > 0
    self.assertEqual(moved.tolist(), [j == 5 for j in range(7)])
    pull = jax.grad(_sigmoid)(image, points, 9.0, -3.0, relations)[2] @ points.T
    # Softmax would divide the pull among the positives.
    logit = 9.0 * image[2] @ points.T - 3.0
    slopes = np.where(relations[2] > 0, -1.0, 1.0) / 7 * 9.0
    slopes /= 1 + np.exp(np.where(relations[2] > 0, logit, -logit))
    np.testing.assert_allclose(pull, slopes @ points @ points.T, atol=1e-5)

  def test_a_bias_of_minus_log_of_the_batch_starts_low(self):
    image, points = _descriptors(15, size=64, width=200)
    unbiased = _sigmoid(image, points, 10.0, 0.0)
    started = _sigmoid(image, points, 10.0, -math.log(64))
    self.assertLess(started, 0.2 * unbiased)

  def test_extremes_are_finite(self):
    eye = np.eye(3, dtype=np.float32)
    function = jax.jit(jax.value_and_grad(_sigmoid, argnums=(0, 1, 2, 3)))
    for points in (eye, -eye, 0 * eye):
      for relations in (np.zeros((3, 3)), np.ones((3, 3)), -np.ones((3, 3))):
        for leaf in jax.tree.leaves(
          function(eye, points, 100.0, -90.0, relations)
        ):
          self.assertTrue(np.isfinite(leaf).all())

  def test_metrics_are_those_of_info_nce_and_the_bias(self):
    image, points = _descriptors(16)
    relations = _relations(17)
    _, metrics = contrastive.sigmoid(image, points, 9.0, -3.0, relations)
    _, expected = contrastive.info_nce(image, points, 9.0, relations)
    self.assertEqual(metrics, expected | {'bias': -3.0})

  def test_odd_shapes_are_named(self):
    image, points = _descriptors(0)
    with self.assertRaisesRegex(ValueError, r'expected both \[B, D\]'):
      contrastive.sigmoid(image, points[:3], 1.0, 0.0)


class OneSideTest(parameterized.TestCase):
  """A batch against itself: b is a, and the diagonal is 0."""

  def _side(self):
    rows, _ = _descriptors(20)
    place = np.array([0, 0, 0, 1, 1, 2, 3])  # 2 and 3 are alone
    relations = np.where(place[:, None] == place, 1, -1)
    relations[1, 4] = relations[4, 1] = 0
    np.fill_diagonal(relations, 0)
    return rows, relations

  def _expected(self, rows, relations):
    # Rows and columns are alike, and only those of places 0 and 1 count.
    logits = 9.0 * rows.astype(np.float64) @ rows.astype(np.float64).T
    return _loop_direction(logits[:5], relations[:5])

  def test_agrees_with_a_loop_and_its_gradient(self):
    rows, relations = self._side()
    value, gradient = jax.value_and_grad(lambda x: _loss(x, x, 9.0, relations))(
      rows
    )
    np.testing.assert_allclose(
      value, self._expected(rows, relations), rtol=1e-5
    )
    slopes = loops.slopes(lambda x: self._expected(x, relations), rows)
    np.testing.assert_allclose(gradient, slopes, atol=1e-4)

  def test_a_reading_is_no_answer_to_itself(self):
    rows, relations = self._side()
    loss = _loss(rows, rows, 9.0, relations)
    for own in 1, -1:
      wrong = np.where(np.eye(7, dtype=bool), own, relations)
      self.assertGreater(abs(_loss(rows, rows, 9.0, wrong) - loss), 0.1)

  def test_recall_is_of_the_rows_that_have_an_answer(self):
    rows = np.eye(4, dtype=np.float32)[[0, 0, 1, 2, 3]]
    relations = np.full((5, 5), -1)
    for i, j in (0, 1), (2, 3):
      relations[i, j] = relations[j, i] = 1
    np.fill_diagonal(relations, 0)
    _, metrics = contrastive.info_nce(rows, rows, 9.0, relations)
    self.assertEqual(metrics['recall_at_1'], 0.5)


class MetricsTest(absltest.TestCase):
  def test_metrics_of_a_batch_worked_by_hand(self):
    image, points = _from_similarities(
      [[0.9, 0.1, 0.2], [0.8, 0.7, 0.6], [0.3, 0.95, 0.4]]
    )
    relations = np.asarray([[1, -1, -1], [-1, 1, -1], [-1, 0, 1]])
    _, metrics = contrastive.info_nce(image, points, 10.0, relations)
    # Row 1 fails; row 2 is right because what beats it is ignored.
    expected = {
      'recall_at_1': 2 / 3,
      'scale': 10.0,
      'positive_similarity': (0.9 + 0.7 + 0.4) / 3,
      'negative_similarity': (0.1 + 0.2 + 0.8 + 0.6 + 0.3) / 5,
    }
    self.assertSetEqual(set(metrics), set(expected))
    for name, value in expected.items():
      np.testing.assert_allclose(metrics[name], value, rtol=1e-6)

  def test_collapsed_descriptors_recall_nothing(self):
    same = np.ones((4, 1), np.float32)
    _, metrics = contrastive.info_nce(same, same, 10.0)
    self.assertEqual(metrics['recall_at_1'], 0)


if __name__ == '__main__':
  absltest.main()
