# SPDX-License-Identifier: Apache-2.0
"""Triplet losses against loops over triplets; the names of the minings."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.losses import metric
from tests.losses import loops

KEY = jax.random.key(0)
SIZE = 9
MARGIN = 0.4


def _unit(rows):
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _unit_rows(rows):
  return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)


def _descriptors(seed, size=SIZE, width=4):
  rng = np.random.default_rng(seed)
  return tuple(_unit(rng.normal(size=(2, size, width))).astype(np.float32))


def _relations(seed, size=SIZE):
  """Random ternary, not symmetric; row 0 has no positive, column 1 neither."""
  relations = np.random.default_rng(seed).integers(-1, 2, (size, size))
  np.fill_diagonal(relations, 1)
  relations[0] = np.minimum(relations[0], 0)
  relations[:, 1] = np.minimum(relations[:, 1], 0)
  return relations


def _loop_distances(a, b):
  a, b = a.astype(np.float64), b.astype(np.float64)
  return np.linalg.norm(a[:, None] - b[None], axis=-1)


def _all(row, positives, negatives):
  return [
    (p, n) for p in positives for n in negatives if row[p] - row[n] + MARGIN > 0
  ]


def _hard(row, positives, negatives):
  farthest = max(positives, key=lambda p: row[p])
  nearest = min(negatives, key=lambda n: row[n])
  return [(farthest, nearest)]


def _semi_hard(row, positives, negatives):
  return [
    (p, n)
    for p in positives
    for n in negatives
    if row[p] < row[n] < row[p] + MARGIN
  ]


LOOPS = {'all': _all, 'hard': _hard, 'semi_hard': _semi_hard}


def _loop(distances, relations, mine):
  losses = []
  for row, relation in zip(distances, relations, strict=True):
    positives, negatives = np.where(relation > 0)[0], np.where(relation < 0)[0]
    if len(positives) and len(negatives):
      losses += [
        max(0.0, row[p] - row[n] + MARGIN)
        for p, n in mine(row, positives, negatives)
      ]
  return np.mean(losses) if losses else 0.0, len(losses)


def _loop_both(image, points, relations, mine):
  distances = _loop_distances(image, points)
  ahead, num_ahead = _loop(distances, relations, mine)
  back, num_back = _loop(distances.T, relations.T, mine)
  return (ahead + back) / 2, num_ahead + num_back


@functools.partial(jax.jit, static_argnames=('mining', 'margin'))
def _triplet(image, points, relations, key=KEY, mining='all', margin=MARGIN):
  return metric.triplet(
    image, points, relations, mining=mining, margin=margin, key=key
  )


@functools.partial(jax.jit, static_argnames=('mining', 'within_weight'))
def _four(image, points, *relations, mining='all', within_weight=0.1, key=KEY):
  return metric.four_triplets(
    image,
    points,
    *relations,
    mining=mining,
    margin=MARGIN,
    within_weight=within_weight,
    key=key,
  )


@functools.cache
def _total(mining):
  """`image, points, relations -> (four triplets, metrics), gradients`."""
  return jax.jit(
    jax.value_and_grad(
      lambda image, points, relations: _four(
        image, points, *[relations] * 3, mining=mining
      ),
      argnums=(0, 1),
      has_aux=True,
    )
  )


def _at(positions):
  """Unit vectors [N, 2] at these distances from (1, 0)."""
  angle = 2 * np.arcsin(np.asarray(positions) / 2)
  return np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)


class TripletTest(parameterized.TestCase):
  @parameterized.product(mining=sorted(LOOPS), seed=(0, 1))
  def test_agrees_with_a_loop_over_triplets(self, mining, seed):
    image, points = _descriptors(seed)
    relations = _relations(seed)
    expected, count = _loop_both(image, points, relations, LOOPS[mining])
    loss, metrics = _triplet(image, points, relations, mining=mining)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    self.assertEqual(metrics['triplets'], count)
    self.assertGreater(count, 5)

  @parameterized.parameters(
    ('all', [(0.9, 0.5), (0.9, 1.0), (0.9, 1.2)]),  # not 1.4
    ('hard', [(0.9, 0.5)]),
    ('semi_hard', [(0.9, 1.0), (0.9, 1.2)]),
  )
  def test_the_names_say_which_triplets_count(self, mining, counted):
    # One image at (1, 0); its positive at 0.9, negatives around it.
    places = [0.9, 0.5, 1.0, 1.2, 1.4]
    points = _at(places)
    image = np.tile(_at([0.0]), (5, 1))
    relations = np.zeros((5, 5), np.int8)
    relations[0] = [1, -1, -1, -1, -1]
    loss, metrics = _triplet(image, points, relations, mining=mining)
    expected = np.mean([p - n + MARGIN for p, n in counted])
    # Of the other direction, no anchor has both a positive and a negative.
    np.testing.assert_allclose(2 * loss, expected, rtol=1e-5)
    self.assertEqual(metrics['triplets'], len(counted))

  def test_hard_is_the_upper_bound_of_every_choice_of_an_anchor(self):
    image, points = _descriptors(5)
    relations = 2 * np.eye(SIZE, dtype=int) - 1
    hard = _triplet(image, points, relations, mining='hard')[0]
    easiest = _loop_both(
      image,
      points,
      relations,
      lambda row, ps, ns: [(ps[0], max(ns, key=lambda n: row[n]))],
    )[0]
    self.assertGreater(hard, easiest + 0.3)
    for i in range(10):
      key = jax.random.key(i)
      drawn = _triplet(image, points, relations, key, mining='random')[0]
      self.assertLessEqual(drawn, hard)

  def test_random_draws_every_negative_alike_and_nothing_else(self):
    points = _at([0.9, 0.5, 1.0, 1.2, 1.4])
    image = np.tile(_at([0.0]), (5, 1))
    relations = np.zeros((5, 5), np.int8)
    relations[0] = [1, -1, 0, -1, -1]
    expected = {
      round(max(0.0, 0.9 - n + MARGIN), 3): 0 for n in (0.5, 1.2, 1.4)
    }
    draw = jax.jit(
      jax.vmap(lambda k: _triplet(image, points, relations, k, 'random'))
    )
    losses, metrics = draw(jax.random.split(KEY, 3000))
    np.testing.assert_array_equal(metrics['triplets'], 1)
    values, counts = np.unique(np.round(2 * losses, 3), return_counts=True)
    np.testing.assert_allclose(values, sorted(expected), atol=1e-3)
    np.testing.assert_allclose(counts, 1000, atol=100)

  @parameterized.parameters(*metric.MINING)
  def test_an_ignored_pair_gets_no_gradient(self, mining):
    image, points = _descriptors(3)
    relations = _relations(3)
    relations[2] = 0  # image 2 takes no part
    gradient = jax.jit(
      jax.grad(lambda x: _triplet(x, points, relations, mining=mining)[0])
    )(image)
    np.testing.assert_array_equal(gradient[2], 0.0)
    self.assertGreater(np.abs(gradient).max(), 1e-3)

  @parameterized.parameters('all', 'hard', 'semi_hard')
  def test_order_and_a_rotation_change_nothing(self, mining):
    image, points = _descriptors(4)
    relations = _relations(4)
    expected = _triplet(image, points, relations, mining=mining)[0]
    order = np.random.default_rng(0).permutation(SIZE)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    rotation = rotation.astype(np.float32)
    permuted = _triplet(
      image[order] @ rotation,
      points[order] @ rotation,
      relations[order][:, order],
      mining=mining,
    )[0]
    np.testing.assert_allclose(permuted, expected, rtol=1e-4)
    swapped = _triplet(points, image, relations.T, mining=mining)[0]
    np.testing.assert_allclose(swapped, expected, rtol=1e-5)

  def test_descent_orders_the_triplets(self):
    start = _descriptors(6)
    relations = 2 * np.eye(SIZE, dtype=int) - 1

    def of_rows(rows, key):
      image, points = (_unit_rows(x) for x in rows)
      return _triplet(image, points, relations, key, mining='random')

    step = jax.jit(jax.grad(lambda rows, key: of_rows(rows, key)[0]))
    rows = start
    for i in range(150):
      gradients = step(rows, jax.random.key(i))
      rows = jax.tree.map(lambda x, g: x - 0.5 * g, rows, gradients)
    before, after = (of_rows(x, KEY)[1]['recall_at_1'] for x in (start, rows))
    self.assertLess(before, 0.7)
    self.assertEqual(after, 1.0)

  def test_metrics_of_a_batch_worked_by_hand(self):
    image = np.tile(_at([0.0]), (3, 1))
    points = _at([0.3, 0.3, 1.0])
    relations = np.asarray([[1, -1, 0], [0, 1, -1], [-1, 0, 1]])
    metrics = _triplet(image, points, relations)[1]
    # Row 0 is a tie, hence a miss; row 2 is wrong.
    np.testing.assert_allclose(metrics['recall_at_1'], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics['positive_distance'], 1.6 / 3, rtol=1e-5)
    np.testing.assert_allclose(metrics['negative_distance'], 1.6 / 3, rtol=1e-5)


class OneSideTest(parameterized.TestCase):
  """A batch against itself: b is a, and the diagonal is 0."""

  def _side(self):
    rows, _ = _descriptors(20)
    place = np.array([0, 0, 0, 1, 1, 2, 2, 3, 4])
    relations = np.where(place[:, None] == place, 1, -1)
    relations[1, 4] = relations[4, 1] = 0
    np.fill_diagonal(relations, 0)
    return rows, relations

  @parameterized.parameters(*sorted(LOOPS))
  def test_agrees_with_a_loop_and_its_gradient(self, mining):
    rows, relations = self._side()

    def loop(x):
      return _loop(_loop_distances(x, x), relations, LOOPS[mining])

    (value, metrics), gradient = jax.value_and_grad(
      lambda x: _triplet(x, x, relations, mining=mining), has_aux=True
    )(rows)
    expected, count = loop(rows)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    self.assertEqual(metrics['triplets'], 2 * count)  # either way the same
    slopes = loops.slopes(lambda x: loop(x)[0], rows)
    np.testing.assert_allclose(gradient, slopes, atol=1e-4)

  @parameterized.parameters(*metric.MINING)
  def test_the_anchor_is_neither_positive_nor_negative(self, mining):
    # Pairs of a place far apart, other places beyond reach: nothing violates
    # the margin by itself. As its own positive an anchor would always be right,
    # as its own negative always wrong.
    rows = _unit(
      np.array([[1, 0.3, 0], [1, -0.3, 0], [-1, 0, 3], [-1, 0, 2.5]])
    )
    rows = rows.astype(np.float32)
    place = np.array([0, 0, 1, 1])
    relations = np.where(place[:, None] == place, 1, -1)
    own = np.eye(4, dtype=bool)
    relations[own] = 0
    loss, metrics = _triplet(rows, rows, relations, mining=mining)
    self.assertEqual(loss, 0.0)
    apart = _loop_distances(rows, rows)
    np.testing.assert_allclose(
      metrics['positive_distance'], (apart[0, 1] + apart[2, 3]) / 2, rtol=1e-4
    )
    self.assertEqual(metrics['recall_at_1'], 1.0)
    wrong = _triplet(rows, rows, np.where(own, -1, relations), mining=mining)
    self.assertEqual(wrong[1]['recall_at_1'], 0.0)
    if mining in ('all', 'hard'):
      self.assertGreater(wrong[0], 0.4)

  def test_recall_is_of_the_rows_that_have_an_answer(self):
    rows, relations = self._side()
    _, metrics = _triplet(rows, rows, relations)
    apart = _loop_distances(rows, rows)
    hits = [
      apart[i][relations[i] > 0].min() < apart[i][relations[i] < 0].min()
      for i in range(7)
    ]
    np.testing.assert_allclose(metrics['recall_at_1'], sum(hits) / 7)
    self.assertBetween(sum(hits), 1, 6)


class FourTripletsTest(parameterized.TestCase):
  @parameterized.parameters(*sorted(LOOPS))
  def test_agrees_with_loops(self, mining):
    image, points = _descriptors(7)
    mine = LOOPS[mining]
    relations = [_relations(seed) for seed in (7, 8, 9)]
    across, _ = _loop_both(image, points, relations[0], mine)
    within = 0.0
    for rows, own in (image, relations[1]), (points, relations[2]):
      own = own.copy()
      np.fill_diagonal(own, 0)
      within += _loop(_loop_distances(rows, rows), own, mine)[0]
    pair = np.linalg.norm(image - points, axis=-1).mean()
    loss, metrics = _four(image, points, *relations, mining=mining)
    expected = pair + 2 * across + 0.1 * within
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics['within'], within, rtol=1e-5)
    self.assertGreater(within, 0.05)
    heavier = _four(image, points, *relations, mining=mining, within_weight=1.0)
    np.testing.assert_allclose(heavier[0] - loss, 0.9 * within, rtol=1e-4)

  def test_an_anchor_is_not_its_own_positive(self):
    image, points = _descriptors(8)
    alone = 2 * np.eye(SIZE, dtype=int) - 1
    metrics = _four(image, points, alone, alone, alone)[1]
    self.assertEqual(metrics['within'], 0.0)
    self.assertGreater(metrics['across'], 0.0)

  def test_images_and_points_are_drawn_apart(self):
    rows, place = _descriptors(9, size=40)[0], np.arange(40) // 4
    relations = np.where(place[:, None] == place, 1, -1)
    nothing = 0 * relations
    images, points = (
      _four(rows, rows, nothing, *within, mining='random')[1]['within']
      for within in ((relations, nothing), (nothing, relations))
    )
    self.assertGreater(images, 0.0)
    self.assertNotAlmostEqual(float(images), float(points), places=4)


class DegenerateTest(parameterized.TestCase):
  @parameterized.parameters(*metric.MINING)
  def test_losses_and_gradients_are_finite(self, mining):
    eye = np.eye(3, dtype=np.float32)
    cases = {
      'zero descriptors': (0 * eye, 0 * eye, 2 * eye - 1),
      'collapsed': (eye[[0, 0, 0]], eye[[0, 0, 0]], 2 * eye - 1),
      'paired': (eye, eye, 2 * eye - 1),
      'all ignored': (eye, -eye, 0 * eye),
      'all positive': (eye, -eye, 0 * eye + 1),
      'no positive': (eye, -eye, 0 * eye - 1),
    }
    without = ('all ignored', 'all positive', 'no positive')
    for name, (image, points, relations) in cases.items():
      (value, metrics), gradients = _total(mining)(image, points, relations)
      for leaf in (value, *gradients):
        self.assertTrue(np.isfinite(leaf).all(), name)
      if name in without:
        pair = np.linalg.norm(image - points, axis=-1).mean()
        np.testing.assert_allclose(value, pair, rtol=1e-6, err_msg=name)
        self.assertEqual(metrics['triplets'], 0, name)
      if name == 'collapsed':
        self.assertEqual(metrics['recall_at_1'], 0.0)

  def test_a_batch_of_one_has_no_triplet(self):
    one = np.eye(1, 3, dtype=np.float32)
    (value, metrics), gradients = _total('hard')(one, one, np.ones((1, 1)))
    self.assertEqual(value, 0.0)
    self.assertEqual(metrics['triplets'], 0)
    np.testing.assert_array_equal(gradients[0], 0.0)

  def test_half_precision_is_compared_in_float32(self):
    image, points = (x.astype(jnp.bfloat16) for x in _descriptors(11))
    relations = 2 * np.eye(SIZE, dtype=int) - 1
    loss = _triplet(image, points, relations)[0]
    self.assertEqual(loss.dtype, jnp.float32)
    expected, _ = _loop_both(
      np.asarray(image, np.float32),
      np.asarray(points, np.float32),
      relations,
      _all,
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)

  @parameterized.parameters(
    (dict(mining='semihard'), "unknown mining 'semihard'; known: .*semi_hard"),
    (dict(margin=0.0), 'margin=0.0: expected a distance'),
    (dict(margin=3.0), 'margin=3.0'),
  )
  def test_wrong_options_are_named(self, fields, message):
    image, points = _descriptors(0)
    with self.assertRaisesRegex(ValueError, message):
      _triplet(image, points, _relations(0), **fields)

  def test_odd_shapes_are_named(self):
    image, points = _descriptors(0)
    relations = _relations(0)
    with self.assertRaisesRegex(ValueError, r'expected both \[B, D\]'):
      _triplet(image, points[:3], relations)
    with self.assertRaisesRegex(ValueError, r'expected \(9, 9\)'):
      _triplet(image, points, relations[:3])
    with self.assertRaisesRegex(ValueError, r'expected \(9, 9\)'):
      _four(image, points, relations, relations, relations[:3])


if __name__ == '__main__':
  absltest.main()
