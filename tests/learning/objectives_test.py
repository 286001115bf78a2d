# SPDX-License-Identifier: Apache-2.0
"""Losses are told who is near whom, whatever the names of the sides."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.learning import embeddings as embeddings_lib
from i2ploc.learning import objectives
from i2ploc.losses import contrastive as contrastive_lib
from i2ploc.losses import metric
from i2ploc.losses import soft_targets as soft_targets_lib
from tests.testing import compiled

contrastive = compiled.Module(contrastive_lib)
soft_targets = compiled.Module(soft_targets_lib)

SIZE = 6
RADII = dict(positive_radius=4.0, ignore_radius=10.0)
RELATIONS = dict(relation_weights=(0.0, 0.0, 0.0), curvature=0.1)
TRIPLETS = dict(mining='random', margin=0.3)
FIELDS = {
  'info_nce': dict(form='clip'),
  'sigmoid': dict(),
  'soft_targets': dict(),
  'triplet': TRIPLETS,
  'four_triplets': dict(within_weight=0.1, **TRIPLETS),
}


def _embedded():
  """Embeddings of a street with an image every 3 m, and the batch."""
  rng = np.random.default_rng(1)
  rows = rng.normal(size=(2, SIZE, 4)).astype(np.float32)
  image, points = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
  position = np.zeros((2, SIZE, 3), np.float32)
  position[0, :, 0] = 3.0 * np.arange(SIZE)
  position[1, :, 0] = 3.5 * np.arange(SIZE) + 2.0
  town = np.zeros(SIZE, np.int32)
  return dict(
    image=embeddings_lib.Embedding(image, 3 * image),
    points=embeddings_lib.Embedding(points, points),
  ), dict(
    image_position=position[0],
    points_position=position[1],
    image_town=town,
    points_town=town,
    image_index=np.arange(SIZE),
  )


@functools.cache
def _made(**fields):
  return jax.jit(objectives.make_loss(**RADII | RELATIONS | fields))


def _loss(batch_fields=(), **fields):
  embeddings, batch = _embedded()
  params = {
    'log_scale': jnp.float32(2.0),
    'similarity_bias': jnp.float32(-1.5),
  }
  return _made(**fields)(params, embeddings, batch | dict(batch_fields))


def _relate(a, b):
  apart = np.abs(a[:, None, 0] - b[None, :, 0])
  relations = np.where(apart <= 4.0, 1, np.where(apart > 10.0, -1, 0))
  np.fill_diagonal(relations, 1)
  return relations


class MakeLossTest(parameterized.TestCase):
  def test_losses_are_told_who_is_near_whom(self):
    embeddings, batch = _embedded()
    image, points = (embeddings[s].descriptor for s in ('image', 'points'))
    places = batch['image_position'], batch['points_position']
    across = _relate(*places)
    fields = dict(mining='all', margin=0.3)
    arguments = dict(fields, key=jax.random.key(0))
    expected = {
      'info_nce': contrastive.info_nce(image, points, np.exp(2.0), across),
      'sigmoid': contrastive.sigmoid(image, points, np.exp(2.0), -1.5, across),
      'soft_targets': soft_targets.soft_targets(3 * image, points, across),
      'triplet': metric.triplet(image, points, across, **arguments),
      'four_triplets': metric.four_triplets(
        image,
        points,
        across,
        *(_relate(p, p) for p in places),
        within_weight=0.1,
        **arguments,
      ),
    }
    self.assertLessEqual(set(expected), set(objectives.LOSSES))
    for name, (value, _) in expected.items():
      own = dict(FIELDS[name], **fields if 'margin' in FIELDS[name] else {})
      found, metrics = _loss(name=name, **own)
      np.testing.assert_allclose(found, value, rtol=1e-5, err_msg=name)
      np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
      self.assertIn('recall_at_1', metrics)

  @parameterized.parameters('info_nce', 'sigmoid')
  def test_tiles_are_told_the_same(self, name):
    value, metrics = _loss(name=name, **FIELDS[name])
    tiled, in_tiles = _loss(name=name, tile=4, **FIELDS[name])
    np.testing.assert_allclose(tiled, value, rtol=1e-6)
    self.assertEqual(set(in_tiles), set(metrics))
    for key, expected in metrics.items():
      np.testing.assert_allclose(in_tiles[key], expected, rtol=1e-5, atol=1e-6)

  def test_sides_may_have_any_name(self):
    value, metrics = _loss(name='four_triplets', **FIELDS['four_triplets'])
    names = {'image': 'photo', 'points': 'rendering'}
    embeddings, batch = _embedded()
    embeddings = {names[side]: x for side, x in embeddings.items()}
    batch = {
      key.replace(side, name): x
      for side, name in names.items()
      for key, x in batch.items()
      if side in key
    }
    loss = objectives.make_loss(
      name='four_triplets',
      sides=tuple(names.values()),
      **RADII | RELATIONS | FIELDS['four_triplets'],
    )
    found, others = jax.jit(loss)({}, embeddings, batch)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    self.assertEqual(set(others), set(metrics))

  def test_a_model_without_a_bias_is_named(self):
    loss = objectives.make_loss(name='sigmoid', **RADII | RELATIONS)
    with self.assertRaisesRegex(ValueError, 'set model.initial_bias'):
      loss({'log_scale': jnp.float32(2.0)}, *_embedded())

  def test_relation_consistency_joins_any_loss(self):
    for name, fields in FIELDS.items():
      alone = _loss(name=name, **fields)[0]
      both, metrics = _loss(
        name=name, **fields, relation_weights=(0.0, 2.0, 0.0)
      )
      np.testing.assert_allclose(
        both - alone, 2 * metrics['angle'], rtol=1e-4, err_msg=name
      )

  def test_what_is_drawn_follows_from_the_readings(self):
    fields = dict(name='triplet', **TRIPLETS)
    once, again = _loss(**fields)[0], _loss(**fields)[0]
    self.assertEqual(once, again)
    others = {
      float(_loss({'image_index': i + np.arange(SIZE)}, **fields)[0])
      for i in range(1, 4)
    }
    self.assertNotEmpty(others - {float(once)})

  @parameterized.parameters(
    (dict(name='contrast'), "Unknown loss 'contrast'; known: .*'triplet'"),
    (dict(name='triplet', form='clip'), "loss 'triplet': .*'form'"),
    (dict(form='clip', margin=0.3), "loss 'info_nce': .*'margin'"),
    (dict(name='triplet', mining='all'), "loss 'triplet': .*'margin'"),
    (
      dict(FIELDS['four_triplets'], name='four_triplets', mining='easy'),
      "unknown mining 'easy'; known: ",
    ),
    (dict(name='triplet', mining='all', margin=9.0), 'margin=9.0: expected'),
    (dict(form='concatenated', tile=4), "tile=4 .*expected form='clip'"),
    (dict(name='sigmoid', tile=-1), 'tile=-1: expected rows, or 0'),
  )
  def test_wrong_fields_are_named_before_training(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      objectives.make_loss(**RADII, **RELATIONS, **fields)


def _oracle(batch, positive=0.0, ignore=0.0, overlap=None):
  """Who is near whom in a batch of one side, pair by pair."""
  size = len(batch['image_index'])
  found = np.zeros((size, size), int)
  labelled = batch.get('labelled', np.ones(size, bool))
  place = batch.get('place', np.full(size, -1))
  for i in range(size):
    for j in range(size):
      if batch['image_index'][i] == batch['image_index'][j]:
        continue
      if not (labelled[i] and labelled[j]):
        continue
      if place[i] == place[j] >= 0:
        found[i, j] = 1
      elif batch['image_town'][i] != batch['image_town'][j]:
        found[i, j] = -1
      elif overlap is not None:
        a, b = (batch['footprint'][k] for k in (i, j))
        meet = (a.max(0) >= b.min(0)).all() and (b.max(0) >= a.min(0)).all()
        found[i, j] = overlap if meet else -1
      else:
        found[i, j] = max(
          1 if near <= positive and positive else -1 if near > ignore else 0
          for near in (
            np.hypot(*(p - q)[:2])
            for p in np.atleast_2d(batch['image_position'][i])
            for q in np.atleast_2d(batch['image_position'][j])
          )
        )
  return found


def _one_side(size=7):
  """A batch of one side: a pair of one place, a row twice, another town."""
  rng = np.random.default_rng(5)
  rows = rng.normal(size=(size, 4)).astype(np.float32)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  content = rng.normal(size=(size, 3)).astype(np.float32)
  index = np.arange(size, dtype=np.int32)
  index[3] = index[2]
  position = np.zeros((size, 3), np.float32)
  position[:, 0] = [0.0, 3.0, 9.0, 9.0, 60.0, 64.0, 0.0]
  return {'image': embeddings_lib.Embedding(rows, rows, content)}, dict(
    image_index=index,
    image_position=position,
    image_town=np.int32([0, 0, 0, 0, 0, 0, 1]),
    place=np.int32([-1, 4, -1, -1, 4, -1, -1]),
  )


def _objective(
  sides=('image', 'image'), counts=(3, 2), num_domains=3, **fields
):
  learned = objectives.Learned(lambda: np.array(counts), lambda: num_domains)
  fields = dict(name='info_nce', form='clip') | fields
  if fields['name'] != 'info_nce':
    del fields['form']
  return objectives.make_objective(sides=sides, learned=learned, **fields)


PARAMS = {'log_scale': np.float32(2.0)}


class MakeObjectiveTest(parameterized.TestCase):
  """Batches that are planned."""

  def _relations(self, batch, **fields):
    """What the named loss is told, by its value."""
    embeddings, _ = _one_side()
    loss = _objective(**fields).loss
    return jax.jit(loss)(PARAMS, embeddings, batch)

  def _assert_told(self, batch, expected, **fields):
    rows = _one_side()[0]['image'].descriptor
    value, metrics = self._relations(batch, **fields)
    self.assertNotEmpty(np.flatnonzero(expected > 0))
    found, _ = contrastive.info_nce(rows, rows, np.exp(2.0), expected)
    np.testing.assert_allclose(value, found, rtol=1e-5)
    np.testing.assert_allclose(metrics['info_nce'], found, rtol=1e-5)
    self.assertIn('recall_at_1', metrics)

  @parameterized.parameters((0.0, 0.0), (4.0, 10.0), (0.0, 10.0))
  def test_places_come_before_positions(self, positive, ignore):
    _, batch = _one_side()
    expected = _oracle(batch, positive, ignore)
    self.assertEqual(expected[1, 4], 1)  # 57 m apart, put together
    self.assertEqual(expected[2, 3], 0)  # one row
    self.assertEqual(expected[0, 6], -1)  # two towns
    self._assert_told(
      batch, expected, positive_radius=positive, ignore_radius=ignore
    )

  def test_pictures_of_one_position_are_no_positives_by_themselves(self):
    _, batch = _one_side()
    batch['image_index'] = np.arange(7, dtype=np.int32)
    expected = _oracle(batch)
    self.assertEqual(expected[2, 3], 0)
    self._assert_told(batch, expected)

  def test_any_frame_of_a_sequence_counts(self):
    _, batch = _one_side()
    frames = batch['image_position'][:, None] + np.float32([-8, 0, 0])
    batch['image_position'] = np.concatenate(
      [frames, batch['image_position'][:, None]], axis=1
    )
    radii = dict(positive_radius=2.0, ignore_radius=6.0)
    expected = _oracle(batch, 2.0, 6.0)
    last = _oracle(
      batch | {'image_position': batch['image_position'][:, -1]}, 2.0, 6.0
    )
    self.assertTrue((expected != last).any())
    self._assert_told(batch, expected, **radii)

  @parameterized.parameters((True, 0), (False, -1))
  def test_tiles_that_overlap_are_neutral_or_negatives(self, neutral, overlap):
    _, batch = _one_side()
    corners = np.float32([[-3, -3], [3, -3], [3, 3], [-3, 3]])
    batch['footprint'] = batch['image_position'][:, None, :2] + corners
    expected = _oracle(batch, overlap=overlap)
    self.assertEqual(expected[0, 1], overlap)
    self.assertEqual(expected[1, 4], 1)
    self._assert_told(batch, expected, neutral=neutral)

  def test_what_is_not_labelled_is_ignored(self):
    _, batch = _one_side()
    batch['labelled'] = np.arange(7) != 5
    expected = _oracle(batch)
    self.assertFalse(expected[5].any())
    self._assert_told(batch, expected)
    moved = _oracle(batch | {'labelled': np.ones(7, bool)})
    self.assertTrue((moved != expected).any())

  def test_the_adversary_sees_what_is_not_labelled(self):
    embeddings, batch = _one_side()
    batch |= dict(domain=np.int32([0, 1, 0, 1, 0, 2, 1]))
    batch['labelled'] = np.arange(7) != 5
    plain = _objective()
    both = _objective(adversary=0.3)
    params = PARAMS | {'loss': both.init(jax.random.key(2), 4, 3)}
    self.assertEqual(set(params['loss']), {'domains'})
    self.assertEqual(params['loss']['domains']['dense_0']['kernel'].shape[0], 3)
    shape = params['loss']['domains']['dense_2']['kernel'].shape
    self.assertEqual(shape[1], 3)

    def loss(objective, content):
      image = embeddings['image']._replace(content=content)
      return objective.loss(params, {'image': image}, batch)

    content = jnp.asarray(embeddings['image'].content)
    alone = loss(plain, content)[0]
    (value, metrics), gradient = jax.value_and_grad(
      lambda x: loss(both, x), has_aux=True
    )(content)
    np.testing.assert_allclose(value - alone, metrics['domain_loss'], rtol=1e-5)
    self.assertGreater(np.abs(gradient[5]).max(), 0)

    def domain_loss(content):
      x = np.float64(content)
      for i in range(3):
        layer = params['loss']['domains'][f'dense_{i}']
        x = np.maximum(x, 0) if i else x
        x = x @ np.float64(layer['kernel']) + np.float64(layer['bias'])
      x = np.log(np.exp(x).sum(1)) - x[np.arange(7), batch['domain']]
      return x.mean()

    step, expected = 1e-5, np.zeros((7, 3))
    for where in np.ndindex(7, 3):
      change = np.zeros((7, 3))
      change[where] = step
      above, below = (
        domain_loss(np.float64(content) + s * change) for s in (1, -1)
      )
      expected[where] = -0.3 * (above - below) / (2 * step)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)

  def test_classes_have_weights_of_their_own(self):
    embeddings, batch = _one_side()
    rows = embeddings['image'].descriptor
    group = np.int32([1, 1, 1, 1, 1, -1, -1])
    label = np.int32([0, 1, 1, 0, 1, -1, -1])
    batch |= {'group': group, 'class': label}
    fields = dict(name='classes', scale=5.0, margin=0.4, num_heads=1)
    objective = _objective(**fields)
    found = objective.init(jax.random.key(0), 4, 3)
    self.assertEqual(found['classes'].shape, (2, 3, 4))
    params = PARAMS | {'loss': found}
    (value, metrics), gradient = jax.value_and_grad(
      lambda rows: objective.loss(
        params, {'image': embeddings_lib.Embedding(rows, rows)}, batch
      ),
      has_aux=True,
    )(jnp.asarray(rows))
    weights = np.float64(found['classes'][1, :2])  # the third is padding
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    losses = []
    for i in range(5):
      logits = 5.0 * (rows[i] @ weights.T - 0.4 * (np.arange(2) == label[i]))
      losses.append(np.log(np.exp(logits).sum()) - logits[label[i]])
    np.testing.assert_allclose(value, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics['classes'], value, rtol=1e-6)
    # Those of a target domain have no class.
    np.testing.assert_array_equal(gradient[5:], 0.0)
    self.assertTrue(np.abs(gradient[:5]).max(1).all())
    self.assertIn('accuracy', metrics)

  def test_the_frozen_side_is_the_aim_of_the_other(self):
    embeddings, batch = _one_side()
    other = np.roll(embeddings['image'].descriptor, 1, axis=1)
    batch |= {
      f'rendering_{key}': batch[f'image_{key}']
      for key in ('index', 'position', 'town')
    }
    loss = _objective(('image', 'rendering'), name='alignment', frozen='a').loss

    def value(image, rendering):
      sides = dict(image=image, rendering=rendering)
      sides = {k: embeddings_lib.Embedding(x, x) for k, x in sides.items()}
      return loss(PARAMS, sides, batch)

    (found, metrics), gradients = jax.value_and_grad(
      value, argnums=(0, 1), has_aux=True
    )(jnp.asarray(embeddings['image'].descriptor), jnp.asarray(other))
    difference = other - embeddings['image'].descriptor
    np.testing.assert_allclose(found, (difference**2).mean(), rtol=1e-5)
    np.testing.assert_array_equal(gradients[0], 0.0)
    np.testing.assert_allclose(
      gradients[1], 2 * difference / difference.size, rtol=1e-4, atol=1e-7
    )
    self.assertIn('recall_at_1', metrics)

  def test_only_what_a_loss_learns_is_made(self):
    def never():
      raise AssertionError('data was opened')

    learned = objectives.Learned(never, never)
    objective = objectives.make_objective(
      name='info_nce',
      form='clip',
      sides=('image', 'image'),
      learned=learned,
    )
    self.assertEmpty(objective.init(jax.random.key(0), 4, 3))

  @parameterized.parameters(
    (dict(name='contrast'), "Unknown loss 'contrast'; known: .*'classes'"),
    (dict(name='classes', scale=30.0), "loss 'classes': .*'margin'"),
    (
      dict(name='classes', scale=30.0, margin=3.0, num_heads=1),
      'margin=3.0: expected',
    ),
    (dict(margin=0.3), "loss 'info_nce': .*'margin'"),
    (dict(form='clip', tile=4), 'tile=4 of a model of one side'),
    (dict(adversary=-0.1), 'adversary=-0.1: expected a weight'),
    (dict(name='alignment', frozen='c'), "frozen='c': expected one of"),
    (
      dict(
        name='multi_similarity',
        alpha=1.0,
        beta=50.0,
        threshold=0.5,
        mining='easy',
        mining_margin=0.1,
      ),
      "'easy'",
    ),
  )
  def test_wrong_fields_are_named_before_training(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      _objective(**fields)

  def test_classes_are_of_one_side(self):
    with self.assertRaisesRegex(ValueError, "'image' asks 'rendering'"):
      _objective(
        ('image', 'rendering'),
        name='classes',
        scale=30.0,
        margin=0.4,
        num_heads=1,
      )


if __name__ == '__main__':
  absltest.main()
