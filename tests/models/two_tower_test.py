# SPDX-License-Identifier: Apache-2.0
"""Two towers on a small batch of raw sensor tensors."""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import factory
from i2ploc.models import aggregators
from i2ploc.models import point_transformer
from i2ploc.models import two_tower
from i2ploc.models import vit
from tests.models import planted

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


def _image_encoder(**fields):
  return vit.ViT(**dict(width=8, depth=1, num_heads=2, patch_size=8) | fields)


def _model(lidar='points', depth=1, **fields):
  points = point_transformer.PointTransformer(
    width=8,
    depth=depth,
    num_heads=2,
    num_groups=8,
    group_size=4,
    pointnet_widths=(8, 8, 8),
    pointnet_features=8,
  )
  if lidar == 'range':
    points = _image_encoder()
    fields = dict(range_shape=(16, 48)) | fields
  aggregator = functools.partial(
    aggregators.NetVLAD, num_clusters=2, features=8, num_sectors=4
  )
  return two_tower.TwoTower(
    _image_encoder(),
    points,
    aggregator(),
    aggregator(),
    (HEIGHT, WIDTH),
    **dict(num_points=128) | fields,
  )


@functools.partial(jax.jit, static_argnames=('model', 'method'))
def _apply(model, variables, batch, method=None, **kwargs):
  return model.apply(variables, batch, method=method, **kwargs)


def _turn(points, angle):
  """Points [..., 3 or more] turned counter-clockwise about z."""
  rotation = np.eye(points.shape[-1], dtype=np.float32)
  rotation[:2, :2] = [
    [math.cos(angle), -math.sin(angle)],
    [math.sin(angle), math.cos(angle)],
  ]
  return np.asarray(points) @ rotation.T


class TwoTowerTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 2.0)
  def test_centers_of_range_tokens_lie_where_the_returns_are(self, yaw):
    model, batch = _model('range'), _batch()
    # One small thing ahead and to the left, as seen after the turn.
    thing = _turn(np.asarray([12.0, 4.0, -1.0, 0.5], np.float32), yaw)
    spread = np.random.default_rng(1).normal(scale=0.05, size=(2, 300, 4))
    batch['points'] = (thing + spread).astype(np.float32)
    variables = planted.variables(model, batch)
    _, out = _apply(model, variables, batch, method='embed_points', yaw=yaw)
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
    variables = planted.variables(model, batch)
    embedded, out = _apply(model, variables, batch)
    self.assertAlmostEqual(float(embedded['scale']), 1 / 0.07, places=3)
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
      self.assertEqual(
        out[side]['attention'].shape, (2, 2, length + 1, length + 1)
      )
    self.assertEqual(tuple(map(int, out['image']['grid'])), (2, 6))
    name, shape = ('centers', (2, 8, 3))
    if lidar == 'range':
      name, shape = 'range_image', (2, 16, 48, 2)
    self.assertEqual(out['points'][name].shape, shape)

  @parameterized.parameters('points', 'range')
  def test_a_yaw_equals_the_cloud_turned_the_other_way(self, lidar):
    model, batch = _model(lidar), _batch()
    variables = planted.variables(model, batch)
    embed = functools.partial(_apply, model, variables, method='embed_points')
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
    variables = planted.variables(model, batch)
    embed = functools.partial(_apply, model, variables, method='embed_points')
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
    variables = planted.variables(model, batch)
    _, out = _apply(model, variables, batch)
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
    variables = planted.variables(model, batch)
    _, out = _apply(model, variables, batch, method='embed_points')
    column = np.argwhere(np.asarray(out['range_valid'][0]))[0, 1]
    left, right = (float(b[0]) for b in out['bounds'])
    azimuth = left + (right - left) * (column + 0.5) / 48
    self.assertAlmostEqual(azimuth, math.atan2(4, 10), delta=0.02)
    self.assertAlmostEqual(
      float(out['range_image'][0].max()), math.sqrt(117.0), places=3
    )

  @parameterized.parameters('points', 'range')
  def test_empty_clouds_and_black_images_are_finite_with_their_gradients(
    self, lidar
  ):
    model, batch = _model(lidar), _batch()
    variables = planted.variables(model, batch)
    batch['points_mask'] = np.zeros_like(batch['points_mask'])
    batch['points'] = np.full_like(batch['points'], np.nan)
    batch['image'] = np.zeros_like(batch['image'])

    def total(variables):
      embedded, _ = model.apply(variables, batch, True, rngs={'points': KEY})
      return (embedded['image'] @ embedded['points'].T).sum()

    value, grads = jax.jit(jax.value_and_grad(total))(variables)
    self.assertTrue(np.isfinite(value))
    finite = jax.tree.map(lambda g: bool(np.isfinite(g).all()), grads)
    self.assertTrue(all(jax.tree.leaves(finite)))

  def test_every_parameter_learns(self):
    model, batch = _model(), _batch()
    variables = planted.variables(model, batch)
    target = jax.random.normal(KEY, (2, 8))

    def total(variables):
      embedded, _ = model.apply(variables, batch, True)
      score = sum((embedded[s] * target).sum() for s in ('image', 'points'))
      return score * embedded['scale']

    grads = jax.jit(jax.grad(total))(variables)['params']
    silent = {
      jax.tree_util.keystr(path)
      for path, grad in jax.tree_util.tree_leaves_with_path(grads)
      if not np.abs(grad).max() > 0
    }
    self.assertEmpty(silent)

  def test_training_draws_points_anew_and_evaluation_does_not(self):
    model, batch = _model(num_points=16), _batch()
    variables = planted.variables(model, batch)

    def embed(seed, train):
      rngs = {'points': jax.random.key(seed)}
      return model.apply(
        variables, batch, train, rngs=rngs, method='embed_points'
      )[0]

    embed = jax.jit(embed, static_argnums=1)
    self.assertGreater(np.abs(embed(0, True) - embed(1, True)).max(), 1e-3)
    np.testing.assert_array_equal(embed(0, False), embed(1, False))

  def test_uint8_images_and_their_floats_embed_alike(self):
    model, batch = _model(), _batch()
    variables = planted.variables(model, batch)
    floats = dict(batch, image=batch['image'].astype(np.float32) / 255)
    one, _ = _apply(model, variables, batch, method='embed_image')
    other, _ = _apply(model, variables, floats, method='embed_image')
    np.testing.assert_allclose(one, other, atol=1e-6)

  @parameterized.parameters((9.0, 100.0), (-9.0, 1.0))
  def test_the_scale_is_clamped(self, log_scale, expected):
    model, batch = _model(), _batch()
    variables = planted.variables(model, batch)
    variables['params']['log_scale'] = jnp.asarray(log_scale)
    embedded, _ = _apply(model, variables, batch)
    self.assertAlmostEqual(float(embedded['scale']), expected, places=3)

  def test_saliency_without_attention_is_refused_at_construction(self):
    with self.assertRaisesRegex(ValueError, 'points encoder has none'):
      _model(depth=0)
    _model(depth=0, saliency='none')


class ParameterCountTest(parameterized.TestCase):
  # Features 256, tokens of width 96, demonstration settings.
  COUNTS = {
    # 16 x 96 to assign and to centre, 32 of the norm, 16 x 96 x 32 projected.
    'netvlad': (dict(num_clusters=16, num_sectors=8), 52_256),
    'gem': (dict(num_sectors=8), 96 * 32 + 1),
    'mean': (dict(num_sectors=8, per_sector_head=True), 8 * 96 * 32),
  }
  # Counted in the test of the module.
  ELSEWHERE = {'vit', 'point_transformer'}

  @parameterized.parameters(*COUNTS)
  def test_aggregators_have_the_parameters_they_should(self, name):
    fields, expected = self.COUNTS[name]
    model = factory.AGGREGATORS[name](features=256, **fields)
    tokens = aggregators.Tokens(
      jnp.zeros((1, 5, 96)), jnp.zeros((1, 5)), jnp.ones((1, 5), bool)
    )
    bounds = (jnp.zeros(1), jnp.ones(1))
    shapes = jax.eval_shape(model.init, KEY, tokens, jnp.ones((1, 5)), bounds)
    count = sum(x.size for x in jax.tree.leaves(shapes))
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
