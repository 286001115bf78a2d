# SPDX-License-Identifier: Apache-2.0
"""What training does to a batch before a model sees it."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import panorama
from i2ploc.learning import embeddings
from i2ploc.models import aggregators
from i2ploc.models import views

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
  embed = embeddings.make_embed(
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
    embed = embeddings.make_embed(
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


class Probes:
  """Stands for towers of images, and gives back what each is shown."""

  def __init__(self, sides=('image',), size=(HEIGHT, WIDTH)):
    self.towers = dict.fromkeys(sides)
    self.image_view = views.Image(size)
    self.asked = []

  def apply(self, variables, batch, *, side, train, mutable, rngs):
    del rngs
    self.asked.append((side, train))
    size = len(batch['image'])
    features = jnp.arange(size * 6.0).reshape(size, 3, 2)
    mask = jnp.arange(3) < 2
    tokens = aggregators.Tokens(
      features, jnp.zeros((size, 3)), jnp.tile(mask, (size, 1)), None
    )
    found = (
      {k: v for k, v in batch.items() if k != 'image_town'},
      {'tokens': tokens},
    )
    if mutable is False:
      return found
    count = dict(variables.get('batch_stats', {}))
    count[side] = count.get(side, 0) + 1
    return found, {'batch_stats': count} if 'batch_stats' in mutable else {}


def _pictures(size=16, frames=(), towns=4):
  rng = np.random.default_rng(7)
  shape = (size, *frames, HEIGHT, WIDTH, 3)
  intrinsics = np.diag([20.0, 20.0, 1.0]).astype(np.float32)
  intrinsics[:2, 2] = 10.0, HEIGHT / 2
  return {
    'image': rng.integers(0, 256, shape, np.uint8),
    'rendering': rng.integers(0, 256, shape, np.uint8),
    'image_town': (np.arange(size) % towns).astype(np.int32),
    'intrinsics': np.tile(intrinsics, (size, 1, 1)),
    'labelled': np.arange(size) < size - 2,
    'variant': (np.arange(size) % 3).astype(np.int32),
  }


def _shown(batch, sides=('image',), **fields):
  """The batch that the first tower is shown."""
  embed = embeddings.make_image_embed(Probes(sides), **fields)
  found = jax.jit(lambda batch: embed({}, {}, batch, KEY)[0])(batch)
  return jax.tree.map(np.asarray, found[sides[0]].descriptor)


class MakeImageEmbedTest(parameterized.TestCase):
  def test_images_stay_as_they_are_unless_asked(self):
    batch = _pictures()
    shown = _shown(batch)
    np.testing.assert_allclose(shown['image'] * 255, batch['image'], atol=1e-3)
    np.testing.assert_array_equal(shown['intrinsics'], batch['intrinsics'])

  @parameterized.parameters(((),), ((3,),))
  def test_the_images_of_a_town_are_mirrored_alike(self, frames):
    batch = _pictures(frames=frames)
    shown = _shown(batch, ('image', 'rendering'), mirror=True)
    flips = []
    for i in range(16):
      for side, factor in ('image', 255), ('rendering', 1):
        before, after = batch[side][i], shown[side][i] * factor
        same = np.abs(after - before).max() < 1e-2
        mirrored = np.abs(after - before[..., ::-1, :]).max() < 1e-2
        self.assertNotEqual(same, mirrored)
        flips.append((batch['image_town'][i], mirrored))
      # The principal point stays on what it was on.
      center = shown['intrinsics'][i, 0, 2]
      self.assertAlmostEqual(center, WIDTH - 10.0 if mirrored else 10.0, 5)
      self.assertEqual(shown['intrinsics'][i, 1, 2], HEIGHT / 2)
    towns = dict(flips)
    self.assertEqual(set(flips), set(towns.items()))
    self.assertEqual(set(towns.values()), {True, False})

  def test_a_crop_has_no_calibration(self):
    batch = _pictures()
    shown = _shown(batch, crop_area=0.3, mirror=True)
    self.assertNotIn('intrinsics', shown)
    self.assertEqual(shown['image'].shape, batch['image'].shape)
    apart = np.abs(shown['image'] * 255 - batch['image']).max((1, 2, 3))
    self.assertTrue((apart > 1).all())

  @parameterized.parameters(((),), ((3,),))
  def test_colours_change_and_shapes_stay(self, frames):
    batch = _pictures(frames=frames)
    shown = _shown(batch, color_jitter=0.4, hue=0.1)
    self.assertEqual(shown['image'].shape, batch['image'].shape)
    self.assertBetween(shown['image'].min(), 0.0, 1.0)
    self.assertGreater(np.abs(shown['image'] * 255 - batch['image']).max(), 9)
    np.testing.assert_array_equal(shown['intrinsics'], batch['intrinsics'])

  @parameterized.parameters(((),), ((3,),))
  def test_some_take_the_colours_of_what_is_not_labelled(self, frames):
    batch = _pictures(frames=frames)
    batch['image'][~batch['labelled']] //= 4
    shown = _shown(batch, mixing=0.5)['image'] * 255
    dark = shown.reshape(16, -1, HEIGHT, WIDTH, 3).mean((2, 3, 4)) < 64
    np.testing.assert_array_equal(dark[~batch['labelled']], True)
    np.testing.assert_allclose(
      shown[~batch['labelled']], batch['image'][~batch['labelled']], atol=1e-3
    )
    self.assertBetween(dark[batch['labelled']].mean(), 0.2, 0.8)

  @parameterized.parameters(((),), ((2,),))
  def test_a_year_is_seen_in_one_way(self, frames):
    batch = _pictures(frames=frames)
    batch['image'][:] = batch['image'][:1].reshape(-1, HEIGHT, WIDTH, 3)[0]
    overhead = dict(max_rotation=0.7, crop=0.8, perspective=0.3, jitter=0.5)
    shown = _shown(batch, overhead=overhead)['image']
    for i in range(16):
      same = np.abs(shown[i] - shown[:3]).reshape(3, -1).max(1) < 1e-5
      np.testing.assert_array_equal(same, batch['variant'][i] == np.arange(3))

  @parameterized.parameters(((),), ((2,),))
  def test_panoramas_are_looked_at_where_the_plan_says(self, frames):
    batch = _pictures(4, frames)
    # Straight ahead and to the left, with one bright column each.
    intrinsics = panorama.sphere_intrinsics((HEIGHT, WIDTH))
    batch['intrinsics'] = np.tile(np.float32(intrinsics), (4, 1, 1))
    image = np.zeros_like(batch['image'])
    image[0::2, ..., WIDTH // 2 - 1 : WIDTH // 2 + 1, :] = 255
    image[1::2, ..., WIDTH // 4 - 1 : WIDTH // 4 + 1, :] = 255
    batch |= {'image': image, 'yaw': np.float32([0, np.pi / 2, 3, 0])}
    size = (HEIGHT, 17)
    embed = embeddings.make_image_embed(Probes(size=size), look_field=1.0)
    shown = embed({}, {}, batch, KEY)[0]['image'].descriptor
    self.assertNotIn('intrinsics', shown)
    image = np.asarray(shown['image'])
    self.assertEqual(image.shape, (4, *frames, *size, 3))
    bright = image[..., HEIGHT // 2, 8, 0].reshape(4, -1)
    np.testing.assert_array_equal(bright[:2] > 0.9, True)
    np.testing.assert_array_equal(image[2:].max() < 0.1, True)

  def test_a_frozen_tower_is_asked_as_in_an_evaluation(self):
    model = Probes(('image', 'rendering'))
    embed = embeddings.make_image_embed(model, frozen=('image',))
    batch = _pictures()
    state = {'batch_stats': {'image': 5, 'rendering': 7}}
    found, state = embed({}, state, batch, KEY)
    self.assertEqual(model.asked, [('image', False), ('rendering', True)])
    self.assertEqual(state, {'batch_stats': {'image': 5, 'rendering': 8}})
    shown = found['image'].descriptor['image']
    np.testing.assert_array_equal(shown, batch['image'])

  def test_all_that_is_trained_passes_on_its_statistics(self):
    embed = embeddings.make_image_embed(Probes(('image', 'rendering')))
    state = {'batch_stats': {'image': 5, 'rendering': 7}}
    _, state = embed({}, state, _pictures(), KEY)
    self.assertEqual(state, {'batch_stats': {'image': 6, 'rendering': 8}})
    _, state = embed({}, {}, _pictures(), KEY)
    self.assertEmpty(state)

  def test_content_is_the_mean_of_the_tokens_that_are_real(self):
    embed = embeddings.make_image_embed(Probes())
    content = embed({}, {}, _pictures(), KEY)[0]['image'].content
    tokens = np.arange(16 * 6.0).reshape(16, 3, 2)
    np.testing.assert_allclose(content, tokens[:, :2].mean(1), rtol=1e-6)

  @parameterized.parameters(
    (dict(frozen=('points',)), r"frozen=\['points'\]: the model has"),
    (dict(frozen=('image',), color_jitter=0.4), "there is .'color_jitter'."),
    (dict(frozen=('image',), mixing=0.4), "there is .'mixing'."),
    (dict(frozen=('rendering',), mirror=True), "there is .'mirror'."),
  )
  def test_what_is_frozen_is_not_changed(self, fields, message):
    model = Probes(('image', 'rendering'))
    with self.assertRaisesRegex(InputError, message):
      embeddings.make_image_embed(model, **fields)

  @parameterized.parameters(
    (dict(mixing=0.3), 'labelled', 'data.target'),
    (dict(look_field=1.0), 'yaw', 'focal'),
    (dict(overhead={}), 'variant', 'by_frame'),
  )
  def test_what_a_batch_lacks_is_named(self, fields, key, giver):
    batch = {k: v for k, v in _pictures().items() if k != key}
    embed = embeddings.make_image_embed(Probes(), **fields)
    with self.assertRaisesRegex(InputError, f"needs '{key}' .*{giver}"):
      embed({}, {}, batch, KEY)


if __name__ == '__main__':
  absltest.main()
