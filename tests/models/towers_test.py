# SPDX-License-Identifier: Apache-2.0
"""Towers on small batches of raw sensor tensors."""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import factory
from i2ploc.geometry import augmentation
from i2ploc.geometry import panorama
from i2ploc.losses import contrastive
from i2ploc.models import aggregators
from i2ploc.models import salad
from i2ploc.models import towers as towers_lib
from i2ploc.models import views
from i2ploc.models import whitening
from i2ploc.models.encoders import resnet
from i2ploc.models.encoders import text
from i2ploc.models.encoders import vit
from i2ploc.retrieval import index as index_lib
from tests.models import planted
from tests.testing import compiled

KEY = jax.random.key(0)
HEIGHT, WIDTH = 16, 48
CAMERA_FROM_LIDAR = np.asarray(
  [[0, -1, 0, 0.1], [0, 0, -1, -0.1], [1, 0, 0, -0.3], [0, 0, 0, 1]], np.float32
)


def _batch(seed=0, size=2, num_points=300):
  rng = np.random.default_rng(seed)
  azimuth = rng.uniform(-np.pi, np.pi, (size, num_points))
  distance = rng.uniform(3.0, 30.0, (size, num_points))
  points = np.stack(
    [
      distance * np.cos(azimuth),
      distance * np.sin(azimuth),
      rng.uniform(-2.0, 1.0, (size, num_points)),
      rng.uniform(size=(size, num_points)),
    ],
    axis=-1,
  )
  intrinsics = np.asarray([[30, 0, 24], [0, 30, 8], [0, 0, 1]], np.float32)
  return {
    'image': rng.integers(0, 256, (size, HEIGHT, WIDTH, 3), np.uint8),
    'intrinsics': np.tile(intrinsics, (size, 1, 1)),
    'points': points.astype(np.float32),
    'points_mask': rng.uniform(size=(size, num_points)) < 0.9,
    'camera_from_lidar': np.tile(CAMERA_FROM_LIDAR, (size, 1, 1)),
  }


VIT = dict(name='vit', width=8, depth=1, num_heads=2, patch_size=8)


def _model(lidar='points', depth=1, num_sectors=4, **fields):
  points = dict(
    name='point_transformer',
    width=8,
    depth=depth,
    num_heads=2,
    num_groups=8,
    group_size=4,
    pointnet_widths=(8, 8, 8),
    pointnet_features=8,
  )
  if lidar == 'range':
    points = VIT
    fields = dict(range_shape=(16, 48)) | fields
  defaults = dict(
    image=VIT,
    points=points,
    aggregator=dict(
      name='netvlad', num_clusters=2, features=8, num_sectors=num_sectors
    ),
    dtype='float32',
    image_size=(HEIGHT, WIDTH),
    num_points=128,
  )
  return factory.make_places(**defaults | fields)


def _changed(model, side, **parts):
  """The model with other parts in a tower."""
  tower = model.towers[side]._replace(**parts)
  return model.clone(towers={**model.towers, side: tower})


@functools.partial(jax.jit, static_argnames=('model', 'side', 'train'))
def _apply(model, variables, batch, side, **kwargs):
  return model.apply(variables, batch, side=side, **kwargs)


@functools.partial(jax.jit, static_argnames='model')
def _both(model, variables, batch):
  """Descriptors and `out` of both sides."""
  found = model.apply(variables, batch, method='every_side')
  embedded = {side: descriptor for side, (descriptor, _) in found.items()}
  return embedded, {side: out for side, (_, out) in found.items()}


class Rings(nn.Module):
  """Encoder of points alike in all directions: each point is a token."""

  has_cls = False

  @nn.compact
  def __call__(self, points, mask, train):
    centers = points[..., :3]
    level = jnp.linalg.norm(centers[..., :2], axis=-1)
    seen = jnp.stack([jnp.log1p(level), centers[..., 2], points[..., 3]], -1)
    features = nn.tanh(nn.Dense(8)(seen))
    return features, dict(centers=centers, mask=mask)


def _surround():
  """A model of panoramas with 4 sectors, and a batch turning about one axis."""
  model = _model(projection='equirectangular', saliency='none')
  model, batch = _changed(model, 'points', encoder=Rings()), _batch()
  panoramic = panorama.sphere_intrinsics((HEIGHT, WIDTH))
  batch['intrinsics'] = np.tile(panoramic, (2, 1, 1))
  batch['camera_from_lidar'] = batch['camera_from_lidar'].copy()
  batch['camera_from_lidar'][:, :3, 3] = 0.0
  return model, batch


def _turn(points, angle):
  """Points [..., 3 or more] turned counter-clockwise about z."""
  rotation = np.eye(points.shape[-1], dtype=np.float32)
  rotation[:2, :2] = [
    [math.cos(angle), -math.sin(angle)],
    [math.sin(angle), math.cos(angle)],
  ]
  return np.asarray(points) @ rotation.T


class TowersTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 2.0)
  def test_centers_of_range_tokens_lie_where_the_returns_are(self, yaw):
    model, batch = _model('range'), _batch()
    # One small thing ahead and to the left, as seen after the turn.
    thing = _turn(np.asarray([12.0, 4.0, -1.0, 0.5], np.float32), yaw)
    spread = np.random.default_rng(1).normal(scale=0.05, size=(2, 300, 4))
    batch['points'] = (thing + spread).astype(np.float32)
    variables = planted.towers(model)
    _, out = _apply(model, variables, batch, side='points', yaw=yaw)
    away = np.linalg.norm(np.asarray(out['centers']) - thing[:3], axis=-1)
    # A token covers a third of 16 rows and a sixth of the field.
    self.assertTrue((away.min(axis=1) < 3.0).all(), away.min(axis=1))
    self.assertGreater(np.median(away), 50.0)  # the others saw nothing

  @parameterized.product(
    lidar=('points', 'range'), saliency=('attention', 'released', 'none')
  )
  def test_embeds_both_sides_and_tells_what_overlays_need(
    self, lidar, saliency
  ):
    model, batch = _model(lidar, saliency=saliency), _batch()
    variables = planted.towers(model)
    embedded, out = _both(model, variables, batch)
    lengths = {'image': 12, 'points': 8 if lidar == 'points' else 12}
    for side, length in lengths.items():
      self.assertEqual(embedded[side].shape, (2, 8))
      np.testing.assert_allclose(
        np.linalg.norm(embedded[side], axis=1), 1.0, rtol=1e-4
      )
      tokens = out[side]['tokens']
      self.assertEqual(tokens.features.shape, (2, length, 8))
      self.assertEqual(tokens.azimuth.shape, (2, length))
      self.assertEqual(out[side]['saliency'].shape, (2, length))
      self.assertEqual(out[side]['attention'].shape, (2, 2, length + 1))
    self.assertEqual(tuple(map(int, out['image']['grid'])), (2, 6))
    name, shape = ('centers', (2, 8, 3))
    if lidar == 'range':
      name, shape = 'range_image', (2, 16, 48, 2)
    self.assertEqual(out['points'][name].shape, shape)

  @parameterized.parameters('points', 'range')
  def test_a_yaw_equals_the_cloud_turned_the_other_way(self, lidar):
    model, batch = _model(lidar), _batch()
    variables = planted.towers(model)
    embed = functools.partial(_apply, model, variables, side='points')
    for yaw in (math.pi, 0.7):
      looking, out = embed(batch, yaw=yaw)
      turned, turned_out = embed(
        dict(batch, points=_turn(batch['points'], -yaw))
      )
      np.testing.assert_allclose(looking, turned, atol=2e-4)
      if lidar == 'points':
        # Centres stay in the LiDAR frame that was given.
        np.testing.assert_allclose(
          _turn(out['centers'], -yaw), turned_out['centers'], atol=1e-4
        )
    ahead, _ = embed(batch)
    self.assertGreater(np.abs(ahead - looking).max(), 1e-2)

  @parameterized.parameters('points', 'range')
  def test_what_the_camera_cannot_see_changes_nothing(self, lidar):
    model, batch = _model(lidar), _batch()
    variables = planted.towers(model)
    embed = functools.partial(_apply, model, variables, side='points')
    one, _ = embed(batch)
    # Half the width over the focal length: the field ends at 38.7 degrees.
    points = batch['points']
    behind = np.abs(np.arctan2(points[..., 1], points[..., 0] - 0.3)) > 1.0
    without = dict(batch, points_mask=batch['points_mask'] & ~behind)
    other, _ = embed(without)
    np.testing.assert_allclose(one, other, atol=1e-6)
    hidden = dict(batch, points=np.where(behind[..., None], np.nan, points))
    hidden['points_mask'] = without['points_mask']
    other, _ = embed(hidden)
    np.testing.assert_allclose(one, other, atol=1e-6)

  def test_azimuths_of_columns_and_groups_agree_through_the_calibration(self):
    model, batch = _model(), _batch()
    variables = planted.towers(model)
    _, out = _both(model, variables, batch)
    azimuth = out['image']['tokens'].azimuth[0].reshape(2, 6)
    columns = (np.arange(6) + 0.5) * 8
    np.testing.assert_allclose(
      azimuth, np.tile(np.arctan((columns - 24) / 30), (2, 1)), atol=1e-6
    )
    centers = out['points']['centers'][0]
    pixels = 24 + 30 * (0.1 - centers[:, 1]) / (centers[:, 0] - 0.3)
    np.testing.assert_allclose(
      out['points']['tokens'].azimuth[0],
      np.arctan((pixels - 24) / 30),
      atol=1e-5,
    )

  def test_range_columns_hold_what_lies_at_their_azimuth(self):
    model, batch = _model('range', azimuth_margin=0.0), _batch()
    batch['points'] = np.tile(
      np.asarray([[10.0, -4.0, -1.0, 0.5]], np.float32), (2, 300, 1)
    )
    variables = planted.towers(model)
    _, out = _apply(model, variables, batch, side='points')
    column = np.argwhere(np.asarray(out['range_valid'][0]))[0, 1]
    left, right = (float(b[0]) for b in out['bounds'])
    azimuth = left + (right - left) * (column + 0.5) / 48
    self.assertAlmostEqual(azimuth, math.atan2(4, 10), delta=0.02)
    self.assertAlmostEqual(
      float(out['range_image'][0].max()), math.sqrt(117.0), places=3
    )

  @parameterized.parameters('points', 'range')
  def test_a_panorama_sees_the_whole_cloud(self, lidar):
    model, batch = _model(lidar, projection='equirectangular'), _batch()
    panoramic = panorama.sphere_intrinsics((HEIGHT, WIDTH))
    batch['intrinsics'] = np.tile(panoramic, (2, 1, 1))
    # One thing in each direction, hence in each block of columns.
    azimuth = (np.arange(300) % 6 + 0.5) / 6 * 2 * np.pi - np.pi
    x, y = 20 * np.cos(azimuth), -20 * np.sin(azimuth)
    points = np.stack([x, y, 0 * x - 1.0, 0 * x + 0.5], -1)
    batch['points'] = np.tile(points.astype(np.float32), (2, 1, 1))
    variables = planted.towers(model)
    _, out = _both(model, variables, batch)
    centers = (np.arange(6) + 0.5) / 6 * 2 * np.pi - np.pi
    for side in ('image', 'points'):
      bounds = np.stack(out[side]['bounds'])
      np.testing.assert_allclose(bounds[:, 0], [-np.pi, np.pi], rtol=1e-6)
      azimuth = np.asarray(out[side]['tokens'].azimuth[0])
      away = np.abs(azimuth[:, None] - centers).min(0)
      np.testing.assert_array_less(away, 0.05)  # some seen there, all round
    if lidar == 'range':
      self.assertTrue(np.asarray(out['points']['range_valid'][0]).any(0).sum())

  def test_a_turning_panorama_shifts_the_sectors_of_the_cloud(self):
    model, batch = _model(projection='equirectangular'), _batch()
    panoramic = panorama.sphere_intrinsics((HEIGHT, WIDTH))
    batch['intrinsics'] = np.tile(panoramic, (2, 1, 1))
    batch['camera_from_lidar'] = CAMERA_FROM_LIDAR[None] * np.ones((2, 1, 1))
    batch['camera_from_lidar'][:, :3, 3] = 0.0  # turns about the camera
    variables = planted.towers(model)
    embed = functools.partial(_apply, model, variables, side='points')
    ahead, out = embed(batch)
    turned, turned_out = embed(batch, yaw=math.pi / 2)
    share, turned_share = (
      aggregators.sector_membership(o['tokens'].azimuth, o['bounds'], 4)
      for o in (out, turned_out)
    )
    # What was to the left is ahead: one sector of four further right.
    np.testing.assert_allclose(turned_share, jnp.roll(share, 1, 2), atol=1e-4)
    self.assertGreater(np.abs(ahead - turned).max(), 1e-2)

  @parameterized.parameters(1, 2, -1)
  def test_a_turned_descriptor_is_that_of_the_turned_cloud(self, sectors):
    model, batch = _surround()
    variables = planted.towers(model)
    embed = functools.partial(_apply, model, variables, side='points')
    yaw, (ahead, _) = sectors * math.pi / 2, embed(batch)
    turned, _ = embed(batch, yaw=yaw)
    np.testing.assert_allclose(
      model.towers['points'].turn(ahead, yaw), turned, atol=1e-5
    )
    np.testing.assert_allclose(
      model.towers['points'].turn(
        model.towers['points'].turn(ahead, yaw), -yaw
      ),
      ahead,
      atol=1e-6,
    )
    if abs(sectors) == 1:  # two sectors are the opposite, whichever way
      error = np.abs(model.towers['points'].turn(ahead, -yaw) - turned).max()
      self.assertGreater(error, 0.05)
    # The same turn as that of the augmentation.
    rolled = augmentation.turn(batch, jnp.full(2, yaw), 'equirectangular')
    np.testing.assert_allclose(embed(rolled)[0], turned, atol=1e-5)

  def test_a_turned_image_has_the_turned_descriptor(self):
    model, batch = _surround()
    # Columns are alike but for their learned position.
    flat = model.towers['image'].encoder.clone(depth=0)
    model = _changed(model, 'image', encoder=flat)
    variables = planted.towers(model)
    position = variables['params']['image']['position']
    variables['params']['image']['position'] = jnp.zeros_like(position)
    embed = functools.partial(_apply, model, variables, side='image')
    batch['image'] = batch['image'].astype(np.float32) / 255
    rolled = augmentation.turn(batch, jnp.full(2, math.pi), 'equirectangular')
    ahead, back = embed(batch)[0], embed(rolled)[0]
    np.testing.assert_allclose(
      model.towers['points'].turn(ahead, math.pi), back, atol=1e-4
    )
    self.assertGreater(np.abs(ahead - back).max(), 0.05)

  def test_views_between_sectors_are_named(self):
    model, _ = _surround()
    self.assertEqual(model.towers['points'].num_headings, 4)
    self.assertEqual(
      model.towers['points'].num_sectors_turned(-3 * math.pi), -6
    )
    with self.assertRaisesRegex(ValueError, '0.3 radians.*4.*1.5708'):
      model.towers['points'].turn(jnp.zeros(8), 0.3)

  def test_what_cannot_be_turned_says_so(self):
    pinhole, (around, _) = _model(), _surround()
    own = around.towers['points'].aggregator
    for model in (
      pinhole,
      *(
        _changed(around, 'points', aggregator=aggregator)
        for aggregator in (
          own.clone(per_sector_head=True),
          own.clone(gating=True),
          own.clone(num_sectors=0),
          aggregators.GeM(features=8),
        )
      ),
      _changed(around, 'points', head=whitening.Whitening(8)),
    ):
      self.assertEqual(model.towers['points'].num_headings, 0)
      with self.assertRaisesRegex(ValueError, 'no shift of sectors'):
        model.towers['points'].turn(jnp.zeros(8), 0.0)

  @parameterized.parameters('points', 'range')
  def test_empty_clouds_and_black_images_are_finite_with_their_gradients(
    self, lidar
  ):
    model, batch = _model(lidar), _batch()
    variables = planted.towers(model)
    batch['points_mask'] = np.zeros_like(batch['points_mask'])
    batch['points'] = np.full_like(batch['points'], np.nan)
    batch['image'] = np.zeros_like(batch['image'])

    def total(variables):
      (image, _), (points, _) = model.apply(
        variables, batch, True, rngs={'points': KEY}, method='every_side'
      ).values()
      return (image @ points.T).sum()

    value, grads = jax.jit(jax.value_and_grad(total))(variables)
    self.assertTrue(np.isfinite(value))
    finite = jax.tree.map(lambda g: bool(np.isfinite(g).all()), grads)
    self.assertTrue(all(jax.tree.leaves(finite)))

  def test_every_parameter_learns(self):
    model, batch = _model(), _batch()
    variables = planted.towers(model)
    target = jax.random.normal(KEY, (2, 8))

    def total(variables):
      found = model.apply(variables, batch, True, method='every_side')
      score = sum(
        (descriptor * target).sum() for descriptor, _ in found.values()
      )
      return score * contrastive.clamped_scale(variables['params']['log_scale'])

    grads = jax.jit(jax.grad(total))(variables)['params']
    silent = {
      jax.tree_util.keystr(path)
      for path, grad in jax.tree_util.tree_leaves_with_path(grads)
      if not np.abs(grad).max() > 0
    }
    self.assertEmpty(silent)

  def test_training_draws_points_anew_and_evaluation_does_not(self):
    model, batch = _model(num_points=16), _batch()
    variables = planted.towers(model)

    def embed(seed, train):
      rngs = {'points': jax.random.key(seed)}
      return model.apply(
        variables, batch, side='points', train=train, rngs=rngs
      )[0]

    embed = jax.jit(embed, static_argnums=1)
    self.assertGreater(np.abs(embed(0, True) - embed(1, True)).max(), 1e-3)
    np.testing.assert_array_equal(embed(0, False), embed(1, False))

  def test_uint8_images_and_their_floats_embed_alike(self):
    model, batch = _model(), _batch()
    variables = planted.towers(model)
    floats = dict(batch, image=batch['image'].astype(np.float32) / 255)
    one, _ = _apply(model, variables, batch, side='image')
    other, _ = _apply(model, variables, floats, side='image')
    np.testing.assert_allclose(one, other, atol=1e-6)

  @parameterized.parameters('attention', 'released', 'none')
  def test_the_cls_token_is_aggregated_on_demand(self, saliency):
    fields = dict(saliency=saliency, num_sectors=0)
    with_cls, without = _model(aggregate_cls=True, **fields), _model(**fields)
    batch = _batch()
    variables = planted.towers(without)
    embedded, out = _both(with_cls, variables, batch)
    plain, plain_out = _both(without, variables, batch)
    for side, length in (('image', 12), ('points', 8)):
      self.assertGreater(np.abs(embedded[side] - plain[side]).max(), 1e-3)
      self.assertEqual(out[side]['assignment'].shape, (2, length + 1, 2))
      # What overlays show are places, hence without CLS.
      self.assertEqual(out[side]['saliency'].shape, (2, length))
      # Two programs: they may round differently.
      np.testing.assert_allclose(
        out[side]['saliency'], plain_out[side]['saliency'], rtol=1e-5
      )

  def test_a_cls_token_cannot_be_aggregated_by_sectors_or_without_one(self):
    with self.assertRaisesRegex(ValueError, 'lies in no direction'):
      _model(aggregate_cls=True)
    with self.assertRaisesRegex(ValueError, 'points encoder has no CLS'):
      _model(depth=0, saliency='none', aggregate_cls=True, num_sectors=0)

  def test_an_unknown_projection_is_refused_at_construction(self):
    with self.assertRaisesRegex(ValueError, "unknown projection 'cube'"):
      _model(projection='cube')

  def test_saliency_without_attention_is_refused_at_construction(self):
    with self.assertRaisesRegex(ValueError, 'the points encoder has none'):
      _model(depth=0)
    _model(depth=0, saliency='none')

  def test_a_margin_of_pi_sees_all_around(self):
    batch = _batch()
    model = _model(azimuth_margin=math.pi, num_points=300)
    variables = planted.towers(model)
    _, out = _apply(model, variables, batch, side='points')
    azimuth = np.asarray(out['tokens'].azimuth)
    quarters = np.unique(np.floor(azimuth / (math.pi / 2)))
    self.assertLen(quarters, 4)

  def test_a_bias_is_a_parameter_only_where_one_is_wanted(self):
    for initial_bias in (None, -10.0):
      variables = towers_lib.shapes(_model(initial_bias=initial_bias))
      wanted = initial_bias is not None
      self.assertEqual('similarity_bias' in variables['params'], wanted)

  def test_parameters_are_named_after_their_side(self):
    params = towers_lib.shapes(_model())['params']
    parts = ('', '_aggregator', '_saliency')
    names = {f'{side}{x}' for side in ('image', 'points') for x in parts}
    self.assertEqual(set(params), {*names, 'log_scale'})

  def test_the_names_of_modules_are_theirs_where_they_have_some(self):
    model = _model()
    tower = model.towers['image']
    shared = tower.encoder.clone(name='shared')
    towers = {
      side: tower._replace(encoder=shared, aggregator=tower.aggregator)
      for side in ('image', 'rendering')
    }
    params = towers_lib.shapes(model.clone(towers=towers))['params']
    self.assertIn('shared', params)
    self.assertNotIn('image', params)

  def test_initial_values_depend_on_the_name_alone(self):
    model, alone = _model(), _model()
    alone = alone.clone(towers={'points': alone.towers['points']})
    one, other = (
      towers_lib.CompiledTowers(m, 'points').init(KEY)['params']
      for m in (model, alone)
    )
    self.assertNotIn('image', other)
    jax.tree.map(np.testing.assert_array_equal, one['points'], other['points'])

  def test_a_side_that_is_not_there_is_named(self):
    with self.assertRaisesRegex(ValueError, "'radar', and the model has"):
      towers_lib.CompiledTowers(_model(), 'radar')


class PhotosTest(parameterized.TestCase):
  """Towers of images alone."""

  def _photos(self, pool, **fields):
    features = {} if pool == 'vlad' else dict(features=0)
    return _model(
      points=None,
      aggregator=dict(name=pool, **features),
      saliency='none',
      aggregate_cls=pool == 'first',
      **fields,
    )

  @parameterized.parameters(('first', 8), ('mean', 8), ('gem', 8))
  def test_photos_need_no_calibration(self, pool, width):
    model, batch = self._photos(pool), {'image': _batch()['image']}
    variables = planted.towers(model)
    towers = towers_lib.CompiledTowers(model, 'image')
    self.assertEqual(towers.sides, ('image',))
    found = towers.embed('image')(variables, batch)
    self.assertEqual(found.shape, (2, width))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-5)
    calibrated = towers.embed('image', (0.0,))(variables, _batch())
    np.testing.assert_allclose(calibrated[:, 0], found, atol=1e-6)
    self.assertIsNone(towers.out('image')(variables, batch)['bounds'])

  def test_the_cls_token_alone_is_the_descriptor(self):
    model, batch = self._photos('first'), _batch()
    variables = planted.towers(model)
    descriptor, out = _apply(model, variables, batch, side='image')
    cls = np.asarray(out['cls'])
    expected = cls / np.linalg.norm(cls, axis=1, keepdims=True)
    np.testing.assert_allclose(descriptor, expected, atol=1e-6)

  def test_a_head_is_of_the_descriptor(self):
    bare, batch = self._photos('mean'), _batch()
    head = whitening.Whitening(3)
    model = _changed(bare, 'image', head=head)
    variables = planted.towers(model)
    self.assertEqual(set(variables['map']), {'image_head'})
    self.assertEqual(set(towers_lib.shapes(bare)), {'params'})
    z, _ = _apply(bare, variables, batch, side='image')
    found, out = _apply(model, variables, batch, side='image')
    expected = head.apply({'map': variables['map']['image_head']}, z)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    tower = model.towers['image']
    self.assertEqual(tower.head.name, 'image_head')
    self.assertTrue(tower.has_unit_descriptors)

  def test_an_aggregator_that_needs_the_cls_token_gets_it(self):
    aggregator = salad.SALAD(3, cluster_features=4, token_features=5, hidden=6)
    bare, batch = self._photos('mean'), _batch()
    model = _changed(bare, 'image', aggregator=aggregator)
    self.assertFalse(model.towers['image'].aggregate_cls)
    variables = planted.towers(model)
    descriptor, out = _apply(model, variables, batch, side='image')
    self.assertEqual(descriptor.shape, (2, 5 + 3 * 4))
    length = out['tokens'].mask.shape[1]
    self.assertEqual(out['assignment'].shape, (2, length, 3))
    params = variables['params']['image_aggregator']
    hidden, last = params['token_hidden'], params['token']
    token = np.asarray(out['cls']) @ hidden['kernel'] + hidden['bias']
    token = np.maximum(token, 0.0) @ last['kernel'] + last['bias']
    token /= np.linalg.norm(token, axis=1, keepdims=True)
    np.testing.assert_allclose(out['pooled'][:, :5], token, atol=1e-5)
    with self.assertRaisesRegex(ValueError, 'image encoder has no CLS'):
      _changed(bare, 'image', aggregator=aggregator, encoder=resnet.ResNet())

  def test_variables_of_a_map_pass_through_initialisation(self):
    model = _changed(self._photos('vlad'), 'image', head=whitening.Whitening(3))
    variables = towers_lib.CompiledTowers(model, 'image').init(KEY)
    leaves = jax.tree.leaves(variables['map'])
    self.assertLen(leaves, 3)
    self.assertTrue(all(np.isnan(x).all() for x in leaves))

  def test_tokens_of_images_know_their_grid(self):
    model, batch = self._photos('mean'), _batch()
    _, out = _apply(model, planted.towers(model), batch, side='image')
    grid, length = out['tokens'].grid, out['tokens'].mask.shape[1]
    self.assertEqual((grid.rows, grid.columns), tuple(out['grid']))
    self.assertEqual(grid.rows * grid.columns, length)

  def test_sectors_without_directions_are_named(self):
    model = _model(points=None, saliency='none')
    with self.assertRaisesRegex(
      ValueError, 'sectors, but the batch has no intr'
    ):
      model.apply(
        planted.towers(model), {'image': _batch()['image']}, side='image'
      )

  def test_images_cannot_be_turned(self):
    model = self._photos('mean')
    with self.assertRaisesRegex(ValueError, "'image' cannot be turned"):
      towers_lib.CompiledTowers(model, 'image', (0.0, math.pi))
    with self.assertRaisesRegex(ValueError, 'an image cannot be turned'):
      model.apply(planted.towers(model), _batch(), side='image', yaw=0.1)


def _sequence(frames, size=2, seed=0):
  """Sequences of images, and the camera that took each of them."""
  shape = size, frames, HEIGHT, WIDTH, 3
  images = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
  intrinsics = _batch(size=size)['intrinsics']
  intrinsics[:, 0, 0] += 4.0 * np.arange(size)
  return {'image': images, 'intrinsics': intrinsics}


class SequencesTest(parameterized.TestCase):
  """Towers of images alone that are given sequences."""

  def _model(self, aggregator, **fields):
    model = _model(
      points=None, aggregator=aggregator, **dict(saliency='none') | fields
    )
    return model, planted.towers(model)

  @parameterized.parameters(('attention', False), ('none', True))
  def test_a_sequence_of_one_frame_is_an_image(self, saliency, with_cls):
    netvlad = dict(name='netvlad', num_clusters=2, features=8)
    model, variables = self._model(
      netvlad, saliency=saliency, aggregate_cls=with_cls
    )
    batch = _batch()
    image, out = _apply(model, variables, batch, side='image')
    found, same = _apply(
      model, variables, dict(batch, image=batch['image'][:, None]), side='image'
    )
    np.testing.assert_array_equal(found, image)
    jax.tree.map(np.testing.assert_array_equal, same, out)

  @parameterized.product(saliency=('attention', 'none'), with_cls=(False, True))
  def test_netvlad_of_a_sequence_is_that_of_all_its_tokens(
    self, saliency, with_cls
  ):
    sectors = 0 if with_cls else 4
    model, variables = self._model(
      dict(name='netvlad', num_clusters=2, features=8, num_sectors=sectors),
      saliency=saliency,
      aggregate_cls=with_cls,
    )
    batch = _sequence(3)
    found, out = _apply(model, variables, batch, side='image')
    self.assertEqual(out['tokens'].grid, aggregators.Grid(2, 6, frames=3))
    parts = []
    for t in range(3):
      frame = dict(batch, image=batch['image'][:, t])
      one = _apply(model, variables, frame, side='image')[1]
      weights, tokens = one['saliency'], one['tokens']
      if with_cls:
        # A CLS token counts 1, and lies in no direction.
        pad = ((0, 0), (1, 0))
        tokens = aggregators.Tokens(
          one['sequence'],
          np.pad(tokens.azimuth, pad),
          np.pad(tokens.mask, pad, constant_values=True),
        )
        weights = np.pad(weights, pad, constant_values=1.0)
      parts.append((tokens._replace(grid=None), weights))
      np.testing.assert_allclose(
        out['saliency'].reshape(2, 3, 12)[:, t], one['saliency'], atol=1e-6
      )
      np.testing.assert_allclose(
        out['tokens'].azimuth.reshape(2, 3, 12)[:, t], one['tokens'].azimuth
      )
    tokens, weights = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
    expected, _ = compiled.apply(
      model.towers['image'].aggregator.clone(),
      {'params': variables['params']['image_aggregator']},
      tokens,
      weights,
      out['bounds'],
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)

  @parameterized.parameters(
    (dict(name='netvlad', num_clusters=2, features=8), True),
    (dict(name='mean', features=0), True),
    (dict(name='gem', features=0), True),
    ('mean', True),
    ('concatenation', False),
    ('delta', False),
    ('transformer', False),
  )
  def test_the_order_of_frames_counts_or_not(self, aggregator, unordered):
    if isinstance(aggregator, str):
      inner = dict(name='mean', features=0)
      aggregator = dict(name='fusion', inner=inner, form=aggregator)
    model, variables = self._model(aggregator, frames=4)
    batch = _sequence(4)
    embed = functools.partial(_apply, model, variables, side='image')
    one, _ = embed(batch)
    for order in ((3, 2, 1, 0), (1, 3, 0, 2)):
      other, _ = embed(dict(batch, image=batch['image'][:, order]))
      apart = np.abs(other - one).max()
      self.assertEqual(apart < 1e-5, unordered, apart)
      if aggregator.get('form') == 'delta' and order[0] == 3:
        np.testing.assert_allclose(other, -one, atol=1e-5)
    # Sequences of a batch do not mix.
    alone, _ = embed({k: v[1:] for k, v in batch.items()})
    np.testing.assert_allclose(alone, one[1:], atol=1e-5)

  @parameterized.parameters(
    dict(name='first'),
    dict(name='salad', num_clusters=3, cluster_features=4, hidden=8),
    dict(name='projection', features=8, pool='cls'),
    dict(name='mixvpr', grid=(2, 6), channels=4, rows=2, depth=1),
    dict(name='boq', channels=8, num_queries=3, rows=2),
  )
  def test_what_describes_single_images_fuses_sequences_alone(self, **inner):
    fields = dict(aggregate_cls=inner['name'] in ('first', 'projection'))
    model, variables = self._model(inner, **fields)
    batch = _sequence(3)
    with self.assertRaisesRegex(
      ValueError, "single images, and these are sequences of 3.*'fusion'"
    ):
      model.apply(variables, batch, side='image')
    fused, _ = self._model(
      dict(name='fusion', inner=inner, form='concatenation'), **fields
    )
    params = dict(variables['params'])
    params['image_aggregator'] = {'inner': params.get('image_aggregator', {})}
    found, _ = _apply(fused, {'params': params}, batch, side='image')
    found = found.reshape(2, 3, -1) * np.sqrt(3)
    for t in range(3):
      frame = dict(batch, image=batch['image'][:, t])
      one, _ = _apply(model, variables, frame, side='image')
      np.testing.assert_allclose(found[:, t], one, atol=1e-5)

  def test_an_example_has_the_frames_that_a_difference_needs(self):
    inner = dict(name='mean', features=0)
    delta = dict(name='fusion', inner=inner, form='delta')
    model, variables = self._model(delta, frames=2)
    self.assertEqual(model.example()['image'].shape, (1, 2, HEIGHT, WIDTH, 3))
    embed = towers_lib.CompiledTowers(model, 'image').embed('image')
    self.assertEqual(embed(variables, _sequence(5)).shape, (2, 8))
    with self.assertRaisesRegex(ValueError, 'of 1 frame'):
      embed(variables, _batch())
    with self.assertRaisesRegex(ValueError, 'frames=0'):
      self._model(inner, frames=0)

  def test_tokens_of_no_grid_cannot_be_told_apart(self):
    class Gridless(nn.Module):
      has_cls = False

      @nn.compact
      def __call__(self, images, train):
        return images.reshape(len(images), -1, 3), {}

    model, _ = self._model(dict(name='mean', features=0))
    model = _changed(model, 'image', encoder=Gridless())
    batch = {'image': _sequence(3)['image']}
    with self.assertRaisesRegex(ValueError, '3 frames, and the encoder names'):
      model.apply({'params': {'log_scale': 0.0}}, batch, side='image')


class OverheadTest(parameterized.TestCase):
  """Pictures of the ground from above."""

  SIDE = 16

  def _ground(self, bearing):
    """A picture of one ground whose top has a bearing, clockwise from north.

    The ground is a sum of waves of the place, east and north.
    """
    rng = np.random.default_rng(3)
    waves, phase = rng.normal(size=(3, 6, 2)), rng.uniform(0, 6, (3, 6))
    picture = np.zeros((self.SIDE, self.SIDE, 3))
    for row, column in np.ndindex(self.SIDE, self.SIDE):
      up = self.SIDE / 2 - row - 0.5
      right = column + 0.5 - self.SIDE / 2
      east = up * np.sin(bearing) + right * np.cos(bearing)
      north = up * np.cos(bearing) - right * np.sin(bearing)
      angle = waves @ [east, north] / 3 + phase
      picture[row, column] = 0.5 + np.sin(angle).sum(-1) / 12
    return (picture.clip(0, 1) * 255).astype(np.uint8)

  def _model(self, **fields):
    fields = dict(image_size=(self.SIDE, self.SIDE)) | fields
    model = _model(
      points=None,
      aggregator=dict(name='first'),
      aggregate_cls=True,
      saliency='none',
      projection='overhead',
      **fields,
    )
    return model, planted.towers(model)

  @parameterized.parameters(*range(4))
  def test_a_photo_is_found_in_the_view_that_undoes_its_bearing(self, quarters):
    model, variables = self._model()
    views_of_map = tuple(k * math.pi / 2 for k in range(4))
    towers = towers_lib.CompiledTowers(model, 'image', views_of_map)
    tile = {'image': self._ground(0.0)[None]}
    described = towers.embed('image', towers.views)(variables, tile)
    bearing = quarters * math.pi / 2
    photo = {'image': self._ground(bearing)[None]}
    asked = towers.embed('image')(variables, photo)
    similarity = np.asarray(described[0] @ asked[0])
    best = int(similarity.argmax())
    self.assertAlmostEqual(float(similarity[best]), 1.0, places=4)
    self.assertLess(np.delete(similarity, best).max(), 0.999)
    yaw = towers.views[best]
    self.assertAlmostEqual((yaw + bearing) % (2 * math.pi), 0.0)
    # The index turns a tile, x to its top and y to its left, to the photo's.
    north_up = np.eye(4)
    north_up[:2, :2] = [[0, -1], [1, 0]]
    found = index_lib.Index(
      descriptors=described[0],
      keys=np.zeros(4),
      towns=np.zeros(4),
      poses=np.tile(north_up, (4, 1, 1)),
      frames=np.arange(4),
      names=np.full(4, 'tile'),
      views=np.asarray(towers.views),
      provenance={},
      rig=index_lib.Rig(None, None, np.eye(4)),
    ).world_from_view(best)
    np.testing.assert_allclose(
      found[:2, 0], [math.sin(bearing), math.cos(bearing)], atol=1e-9
    )

  def test_there_are_no_directions_in_it(self):
    model, variables = self._model()
    self.assertNotIn('intrinsics', model.example())
    batch = dict(_batch(), image=np.tile(self._ground(0.0), (2, 1, 1, 1)))
    _, out = _apply(model, variables, batch, side='image')
    self.assertIsNone(out['bounds'])
    self.assertFalse(np.any(out['tokens'].azimuth))

  def test_other_turns_and_shapes_are_named(self):
    model, variables = self._model()
    batch = {'image': self._ground(0.0)[None]}
    with self.assertRaisesRegex(ValueError, 'yaw=0.3 .*multiple of 1.5708'):
      model.apply(variables, batch, side='image', yaw=0.3)
    with self.assertRaisesRegex(ValueError, 'cannot be turned'):
      model.apply(variables, batch, side='image', yaw=jnp.zeros(()))
    with self.assertRaisesRegex(ValueError, '16 x 24 pixels .*square'):
      self._model(image_size=(16, 24))


class RenderingsTest(absltest.TestCase):
  def test_renderings_have_a_tower_of_their_own(self):
    model = _model(points=None, rendering=VIT, saliency='none', num_sectors=0)
    self.assertEqual(list(model.towers), ['image', 'rendering'])
    self.assertEqual(
      model.towers['rendering'].view,
      model.image_view._replace(reading='rendering'),
    )
    variables, batch = planted.towers(model), _batch()
    rendering = _batch(seed=1)['image']
    embedded, _ = _both(model, variables, dict(batch, rendering=rendering))
    image = _apply(model, variables, {'image': batch['image']}, side='image')
    np.testing.assert_allclose(embedded['image'], image[0], atol=1e-6)
    # By its own weights: those of photos describe renderings otherwise.
    alone = {'rendering': rendering}
    found, _ = _apply(model, variables, alone, side='rendering')
    np.testing.assert_allclose(embedded['rendering'], found, atol=1e-6)
    other, _ = _apply(model, variables, {'image': rendering}, side='image')
    self.assertGreater(np.abs(other - found).max(), 1e-2)
    params = variables['params']
    copied = params | {
      name.replace('image', 'rendering'): tree
      for name, tree in params.items()
      if name.startswith('image')
    }
    same, _ = _apply(model, {'params': copied}, alone, side='rendering')
    np.testing.assert_allclose(same, other, atol=1e-6)


class ImageAndTextTest(absltest.TestCase):
  """Crops and texts in one space."""

  IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
  TOKENS = np.array([[0, 4, 5, 1], [0, 3, 1, 1], [0, 8, 8, 1]])

  def setUp(self):
    super().setUp()
    self.model = self._clip()
    self.variables = planted.towers(self.model)
    self.batch = {'image': self.IMAGES, 'tokens': self.TOKENS}

  def _clip(self, use_cls=True, **pixels):
    return towers_lib.image_and_text(
      vit.ViT(width=12, depth=1, num_heads=3, patch_size=8, use_cls=use_cls),
      text.TextTransformer(
        vocabulary_size=9, width=8, depth=1, num_heads=2, max_length=6, end=1
      ),
      views.Image((16, 24), **pixels),
      5,
    )

  def test_descriptors_are_unit_projections_of_cls_and_end(self):
    params = self.variables['params']
    for side, count in (('image', 2), ('text', 3)):
      found, out = _apply(self.model, self.variables, self.batch, side=side)
      first = out['cls'] if side == 'image' else out['tokens'].features[:, 0]
      features = first @ params[f'{side}_projection']['kernel']
      np.testing.assert_allclose(out['pooled'], features, atol=1e-5)
      length = np.linalg.norm(features, axis=1, keepdims=True)
      np.testing.assert_allclose(found, features / length, atol=1e-5)
      self.assertEqual(found.shape, (count, 5))

  def test_images_are_normalised_as_the_view_says(self):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    x = (self.IMAGES / np.float32(255) - np.array(mean)) / np.array(std)
    one = _apply(
      self._clip(mean=mean, std=std), self.variables, self.batch, side='image'
    )[0]
    other = _apply(
      self._clip(mean=(0.0,) * 3, std=(1.0,) * 3),
      self.variables,
      {'image': x.astype(np.float32)},
      side='image',
    )[0]
    np.testing.assert_allclose(one, other, atol=1e-5)

  def test_an_encoder_without_cls_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'image encoder has no CLS token'):
      self._clip(use_cls=False)


def _lip_loc(**fields):
  """The released form with narrow towers."""
  narrow = dict(name='resnet', stem_width=4, widths=(2, 2), depths=(1, 1))
  released = dict(
    image=narrow,
    points=narrow,
    aggregator=dict(
      name='projection', features=8, normalized=False, dropout=0.5
    ),
    dtype='float32',
    image_size=(HEIGHT, WIDTH),
    range_shape=(16, 48),
    range_encoding='released',
    scan_shape=(16, 90),
    max_range=50.0,
    saliency='none',
    num_points=300,
  )
  return factory.make_places(**released | fields)


class LipLocTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.batch = _batch()
    self.model = _lip_loc()
    self.variables = planted.towers(self.model)

  def _points(self, model=None, **changes):
    return _apply(
      model or self.model,
      self.variables,
      self.batch | changes,
      side='points',
    )

  def test_descriptors_are_raw_and_their_lengths_say_so(self):
    descriptor, out = self._points()
    np.testing.assert_array_equal(descriptor, out['pooled'])
    self.assertFalse(self.model.has_unit_descriptors)
    self.assertTrue(_model().has_unit_descriptors)
    self.assertEqual(out['range_image'].shape, (2, 16, 48, 2))
    self.assertEqual(out['centers'].shape[0], 2)

  def test_the_scan_is_seen_along_its_own_axes_without_the_calibration(self):
    one, _ = self._points()
    # Other axes altogether.
    turn = CAMERA_FROM_LIDAR @ CAMERA_FROM_LIDAR
    motion = self.batch['camera_from_lidar'] @ turn
    other, _ = self._points(camera_from_lidar=motion)
    np.testing.assert_array_equal(one, other)
    # 50 degrees to the side is in the crop, and not in the camera's field.
    mask = self.batch['points_mask']
    points = self.batch['points']
    azimuth = np.abs(np.arctan2(points[..., 1], points[..., 0]))
    beside = (azimuth > 0.8) & (azimuth < 1.0)
    without, _ = self._points(points_mask=mask & ~beside)
    self.assertGreater(np.abs(one - without).max(), 1e-3)
    # What is beyond the crop, or 50 m, is not seen.
    beyond, _ = self._points(points_mask=mask & (azimuth < 1.1))
    np.testing.assert_array_equal(one, beyond)
    far = points * np.where(azimuth > 1.1, 1.0, 20.0)[..., None]
    nothing, _ = self._points(points=far.astype(np.float32))
    empty, _ = self._points(points_mask=np.zeros_like(mask))
    np.testing.assert_array_equal(nothing, empty)

  def test_without_the_crop_it_sees_all_around(self):
    model = _lip_loc(range_crop=False)
    azimuth = np.arctan2(
      self.batch['points'][..., 1], self.batch['points'][..., 0]
    )
    ahead = self.batch['points_mask'] & (np.abs(azimuth) < 1.0)
    one, _ = self._points(model)
    other, _ = self._points(model, points_mask=ahead)
    self.assertGreater(np.abs(one - other).max(), 1e-3)

  def test_training_drops_and_cuts_with_keys_of_its_own(self):
    model = self.model

    @jax.jit
    def train(rngs):
      found, _ = model.apply(
        self.variables,
        self.batch,
        True,
        rngs=rngs,
        mutable=['batch_stats'],
        method='every_side',
      )
      return {side: descriptor for side, (descriptor, _) in found.items()}

    plain = train({})
    for name in ('dropout', 'cutout'):
      changed = train({name: jax.random.key(1)})
      for side in ('image', 'points'):
        moved = np.abs(changed[side] - plain[side]).max()
        self.assertGreater(moved, 1e-2, name)

  def test_a_pooled_cls_token_has_to_be_among_those_given(self):
    head = dict(name='projection', features=8, pool='cls')
    with self.assertRaisesRegex(ValueError, "'cls' without aggregate_cls"):
      _lip_loc(aggregator=head)
    model = _lip_loc(aggregator=head, aggregate_cls=True, image=VIT, points=VIT)
    self.assertNotIn('batch_stats', towers_lib.shapes(model))

  def test_an_unknown_encoding_is_refused_at_construction(self):
    with self.assertRaisesRegex(ValueError, "range_encoding is 'polar'"):
      _lip_loc(range_encoding='polar')


class ParameterCountTest(parameterized.TestCase):
  # Features 256, tokens of width 96, demonstration settings.
  COUNTS = {
    # 16 x 96 to assign and to centre, 32 of the norm, 16 x 96 x 32 projected.
    'netvlad': (dict(features=256, num_clusters=16, num_sectors=8), 52_256),
    'gem': (dict(features=256, num_sectors=8), 96 * 32 + 1),
    'mean': (
      dict(features=256, num_sectors=8, per_sector_head=True),
      8 * 96 * 32,
    ),
    # 96 x 32 and 32 x 32 with biases, 64 of the norm.
    'projection': (dict(features=256, num_sectors=8), 97 * 32 + 33 * 32 + 64),
    'first': (dict(features=256), 96 * 256),
    # Of the inner one, and a block of 32 numbers.
    'fusion': (
      dict(inner=dict(name='mean', features=32), form='transformer'),
      96 * 32 + 2 * 64 + 33 * 96 + 33 * 32 + 33 * 128 + 129 * 32,
    ),
    # Its words are of the map, and no parameters.
    'vlad': (dict(num_clusters=4), 0),
    # Scores and residuals by a hidden layer of 512, and the dustbin.
    'salad': (
      dict(num_clusters=3, cluster_features=2, token_features=0),
      2 * 97 * 512 + 513 * 5 + 1,
    ),
  }
  # Counted in the test of the module, or as many as were published.
  ELSEWHERE = {
    *('vit', 'resnet', 'vgg', 'efficientnet', 'point_transformer'),
    *('mixvpr', 'boq', 'published'),
  }

  @parameterized.parameters(*COUNTS)
  def test_aggregators_have_the_parameters_they_should(self, name):
    fields, expected = self.COUNTS[name]
    model = factory.AGGREGATORS[name](**fields)
    tokens = aggregators.Tokens(
      jnp.zeros((1, 5, 96)), jnp.zeros((1, 5)), jnp.ones((1, 5), bool)
    )
    bounds = (jnp.zeros(1), jnp.ones(1))
    shapes = jax.eval_shape(model.init, KEY, tokens, jnp.ones((1, 5)), bounds)
    parameters = shapes.get('params', {})
    count = sum(x.size for x in jax.tree.leaves(parameters))
    self.assertEqual(count, expected)

  def test_every_part_that_a_config_can_name_is_counted(self):
    named = {
      *factory.IMAGE_ENCODERS,
      *factory.POINTS_ENCODERS,
      *factory.AGGREGATORS,
    }
    self.assertEmpty(named.difference(self.COUNTS, self.ELSEWHERE))


if __name__ == '__main__':
  absltest.main()
