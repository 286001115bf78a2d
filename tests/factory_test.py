# SPDX-License-Identifier: Apache-2.0
"""What training does to a batch before and after a model sees it."""

import functools
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors_numpy

from i2ploc import factory
from i2ploc.geometry import panorama
from i2ploc.losses import contrastive as contrastive_lib
from i2ploc.losses import metric
from i2ploc.losses import soft_targets as soft_targets_lib
from i2ploc.models import aggregators
from i2ploc.models import salad
from i2ploc.models import views
from i2ploc.models import vlad
from tests import shared
from tests.models.weights import released_tensors
from tests.models.weights import resnet_tensors
from tests.testing import compiled

contrastive = compiled.Module(contrastive_lib)
soft_targets = compiled.Module(soft_targets_lib)

SIZE, HEIGHT, WIDTH = 6, 8, 32
KEY = jax.random.key(3)


class Probe:
  """Stands for a model and embeds a batch as itself."""

  def __init__(self, projection='equirectangular'):
    self.image_view = views.Image((HEIGHT, WIDTH), projection)

  def apply(self, variables, batch, **kwargs):
    del variables
    self.streams = set(kwargs['rngs'])
    out = {'pooled': batch['camera_from_lidar']}
    return {name: (value, out) for name, value in batch.items()}, {}


def _batch(size=SIZE):
  rng = np.random.default_rng(0)
  axes = [[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
  intrinsics = panorama.sphere_intrinsics((HEIGHT, WIDTH))
  # One thing in each image and cloud, straight ahead.
  image = rng.integers(0, 5, (size, HEIGHT, WIDTH, 3))
  image[:, :, WIDTH // 2 - 1 : WIDTH // 2 + 1] = 255
  return {
    'image': image.astype(np.uint8),
    'intrinsics': np.tile(intrinsics, (size, 1, 1)),
    'points': np.tile(np.float32([9, 0, 0, 1]), (size, 5, 1)),
    'camera_from_lidar': np.tile(np.float32(axes), (size, 1, 1)),
  }


def _embed(projection='equirectangular', size=SIZE, color_jitter=0.4, **fields):
  embed = factory.make_embed(
    Probe(projection),
    **dict(color_jitter=color_jitter, mirror=True, yaw=0.0, cutout=False)
    | fields,
  )
  found = jax.jit(lambda batch: embed({}, {}, batch, KEY)[0])(_batch(size))
  return {name: embedding.descriptor for name, embedding in found.items()}


@jax.jit
def _azimuth(found):
  """Where the thing is in each image and in each cloud, radians [B]."""
  column = (jnp.arange(WIDTH) + 0.5 - WIDTH / 2) * 2 * np.pi / WIDTH
  brightness = found['image'].mean((1, 3))
  x = (brightness * jnp.sin(column)).sum(1)
  z = (brightness * jnp.cos(column)).sum(1)
  points = found['points'][:, 0]
  return jnp.arctan2(x, z), jnp.arctan2(-points[:, 1], points[:, 0])


class MakeEmbedTest(parameterized.TestCase):
  def test_an_image_and_its_cloud_turn_together_each_pair_its_own_way(self):
    image, points = map(np.asarray, _azimuth(_embed(yaw=np.pi)))
    apart = np.angle(np.exp(1j * (image - points)))
    np.testing.assert_allclose(apart, 0.0, atol=0.02)
    apart = np.abs(np.angle(np.exp(1j * (points[:, None] - points))))
    self.assertGreater(apart[~np.eye(SIZE, dtype=bool)].min(), 1e-3)
    self.assertGreater(np.abs(points).max(), np.pi / 2)

  def test_both_ways_up_to_the_largest_angle_mirrored_or_not(self):
    fields = dict(size=64, color_jitter=0.0)
    _, angle = _azimuth(_embed(yaw=0.2, **fields))
    change = _embed(**fields)['image'] * 255 - _batch(64)['image']
    mirrored = np.abs(change).max((1, 2, 3)) > 0.5
    for some in (mirrored, ~mirrored):
      self.assertBetween(np.max(angle[some]), 0.15, 0.2)
      self.assertBetween(np.min(angle[some]), -0.2, -0.15)

  def test_turning_leaves_the_other_draws_as_they_were(self):
    straight, turned = _embed(), _embed(yaw=1e-7)
    for name, value in straight.items():
      np.testing.assert_allclose(turned[name], value, atol=1e-5)
    light, dark = _embed(yaw=0.5), _embed(yaw=0.5, color_jitter=0.0)
    np.testing.assert_array_equal(light['points'], dark['points'])

  @parameterized.parameters(
    (False, {'points', 'dropout'}), (True, {'points', 'dropout', 'cutout'})
  )
  def test_a_model_cuts_out_only_if_it_is_told_to(self, cutout, streams):
    probe = Probe()
    embed = factory.make_embed(
      probe, color_jitter=0.0, mirror=False, yaw=0.0, cutout=cutout
    )
    embed({}, {}, _batch(), KEY)
    self.assertEqual(probe.streams, streams)

  @parameterized.parameters(
    ('pinhole', 0.6, 'yaw=0.6: expected 0 to 0.500 .* pinhole'),
    ('equirectangular', 4.0, 'yaw=4.0: expected 0 to 3.142'),
    ('equirectangular', -0.1, 'yaw=-0.1'),
  )
  def test_angles_out_of_range_are_named(self, projection, yaw, message):
    with self.assertRaisesRegex(ValueError, message):
      _embed(projection, yaw=yaw)


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
    image=factory.Embedding(image, 3 * image),
    points=factory.Embedding(points, points),
  ), dict(
    image_position=position[0],
    points_position=position[1],
    image_town=town,
    points_town=town,
    image_index=np.arange(SIZE),
  )


@functools.cache
def _made(**fields):
  return jax.jit(factory.make_loss(**RADII | RELATIONS | fields))


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
    self.assertEqual(set(expected), set(factory.LOSSES))
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
    loss = factory.make_loss(
      name='four_triplets',
      sides=tuple(names.values()),
      **RADII | RELATIONS | FIELDS['four_triplets'],
    )
    found, others = jax.jit(loss)({}, embeddings, batch)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    self.assertEqual(set(others), set(metrics))

  def test_a_model_without_a_bias_is_named(self):
    loss = factory.make_loss(name='sigmoid', **RADII | RELATIONS)
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
      factory.make_loss(**RADII, **RELATIONS, **fields)


class ImageEncodersTest(parameterized.TestCase):
  """Photos alone, with encoders that need no checkpoint or name one."""

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / 'model.safetensors'

  def _model(self, image, size=(32, 48), **fields):
    defaults = dict(
      aggregator=dict(name='default'),
      dtype='float32',
      image_size=size,
      saliency='none',
    )
    return factory.make_model(image=image, **defaults | fields)

  @parameterized.parameters(
    dict(name='efficientnet', stage=2),
    dict(name='vgg', widths=(4, 6), depths=(1, 2)),
    dict(name='resnet', stem_width=4, widths=(4, 4), depths=(1, 1)),
    dict(name='vit', width=16, depth=1, num_heads=2, patch_size=16),
  )
  def test_every_encoder_can_be_trained_without_a_checkpoint(self, **image):
    model = self._model(image, aggregator=dict(name='gem', features=0))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)
    variables = model.init(KEY, model.example(), method='every_side')
    params = variables['params']
    others = {k: v for k, v in variables.items() if k != 'params'}

    def loss(params):
      (descriptor, _), _ = model.apply(
        {'params': params, **others},
        {'image': images},
        side='image',
        train=True,
        mutable=list(others),
      )
      return (descriptor[0] * descriptor[1]).sum()

    gradient = jax.jit(jax.grad(loss))(params)['image']
    largest = [np.abs(x).max() for x in jax.tree.leaves(gradient)]
    self.assertTrue(np.isfinite(largest).all())
    # Biases in front of a norm have none.
    self.assertGreater(np.mean(np.array(largest) > 0), 0.8)

  def test_the_default_pooling_suits_the_encoder(self):
    safetensors_numpy.save_file(resnet_tensors.torchvision(), self.path)
    named = dict(name='published', checkpoint=str(self.path))
    tower = self._model(named).towers['image']
    self.assertIsInstance(tower.aggregator, aggregators.GeM)
    dinov2 = dict(named, checkpoint=f'{shared.GOLDEN / "dinov2_tiny"}@2')
    tower = self._model(dinov2, (28, 28)).towers['image']
    self.assertIsInstance(tower.aggregator, aggregators.FirstToken)
    self.assertTrue(tower.aggregate_cls)
    self.assertEqual(tower.encoder.block, 2)
    for fields, stage in ({}, 5), ({'stage': 3}, 3):
      tower = self._model(dict(name='efficientnet', **fields)).towers['image']
      self.assertIsInstance(tower.aggregator, vlad.VLAD)
      self.assertEqual(tower.encoder.stage, stage)
    safetensors_numpy.save_file(
      released_tensors.random(released_tensors.salad(64, 1, 5, 6, 7, 20)),
      self.path,
    )
    tower = self._model(named, (28, 28)).towers['image']
    self.assertIsInstance(tower.aggregator, salad.SALAD)
    self.assertTrue(tower.with_cls)


if __name__ == '__main__':
  absltest.main()
