# SPDX-License-Identifier: Apache-2.0
"""What training does to a batch before a model sees it."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import panorama
from i2ploc.learning import embeddings
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


if __name__ == '__main__':
  absltest.main()
