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


if __name__ == '__main__':
  absltest.main()
