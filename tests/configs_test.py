# SPDX-License-Identifier: Apache-2.0
"""Every config loads, is read to its last leaf, and dies of unknown keys."""

import importlib
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_collections

from benchmarks import steps
from configs import common
from configs import lip_loc
from i2ploc import factory
from i2ploc.learning import embeddings
from i2ploc.learning import objectives
from i2ploc.models import towers as towers_lib
from i2ploc.models.weights import published
from i2ploc.training import state as state_lib
from i2ploc.training import step as step_lib
from input_pipeline.readers import kitti360_splits
from input_pipeline.readers import kitti_and_kitti360
from input_pipeline.readers import kitti_odometry_splits
from input_pipeline.sources import drives
from tests import shared

CONFIGS = pathlib.Path(common.__file__).parent
ARGS = {
  'ae_spherical': ('', 'dataset=kitti_odometry', 'camera=panorama'),
  'lip_loc': (
    '',
    'aggregator=head',
    'recipe=released',
    'dataset=kitti_raw',
    'dataset=kitti_odometry',
    'dataset=kitti_odometry,recipe=released',
    'dataset=kitti_odometry,recipe=released,experiment=largest_vit',
    'dataset=kitti_odometry,recipe=released,experiment=larger_uncropped',
    'dataset=kitti360,experiment=360_vit',
    'dataset=kitti_and_kitti360',
    'dataset=kitti_and_kitti360,recipe=released,experiment=maximum_vit',
    'dataset=kitti_and_kitti360,experiment=large,backbone=small',
  ),
  'saliency_i2ploc': (
    '',
    'dataset=kitti_raw',
    'dataset=kitti_odometry',
    'size=tiny',
    'camera=panorama',
    'camera=panorama,lidar=range',
    'camera=panorama,aggregator=netvlad',
    'lidar=range',
    'aggregator=netvlad',
    'saliency=released',
    'saliency=none',
  ),
  'saliency_i2ploc_kitti360': (
    '',
    'camera=perspective',
    'released',
    'camera=perspective,released',
  ),
}
# Without training, or of another task, tested with its verbs.
OWN_TESTS = ('clip', 'clip_loc', 'hypotheses', 'photos')
CASES = tuple((name, arg) for name, args in ARGS.items() for arg in args)


def load(name: str, arg: str) -> ml_collections.ConfigDict:
  config = importlib.import_module(f'configs.{name}').get_config(arg)
  config.lock()
  return config


def leaves(config, prefix=''):
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from leaves(value, f'{prefix}{name}.')
    else:
      yield prefix + name


def _training(config):
  """Shapes of the variables, the optimizer and the train step."""
  towers = steps.make_towers(config)
  variables = jax.eval_shape(towers.init, jax.random.key(0))
  optimizer = factory.make_optimizer(
    config.train.num_steps, **config.optimizer.to_dict()
  )
  step = step_lib.make_train_step(
    embeddings.make_embed(
      towers.model,
      color_jitter=config.train.color_jitter,
      mirror=config.train.mirror,
      yaw=config.train.yaw,
      cutout=config.train.cutout,
    ),
    objectives.make_loss(**config.loss.to_dict()),
    optimizer,
    ema_decay=config.train.ema_decay,
  )
  return variables, optimizer, step


def _batch(config):
  """Shapes of a training batch of four."""
  shapes = {
    'image': jnp.zeros((*config.data.image_size, 3), jnp.uint8),
    'intrinsics': jnp.zeros((3, 3)),
    'points': jnp.zeros((config.data.num_points, 4)),
    'points_mask': jnp.zeros((config.data.num_points,), bool),
    'camera_from_lidar': jnp.zeros((4, 4)),
    'image_position': jnp.zeros((3,)),
    'points_position': jnp.zeros((3,)),
    'image_town': jnp.zeros((), jnp.int32),
    'points_town': jnp.zeros((), jnp.int32),
    'image_index': jnp.zeros((), jnp.int32),
  }
  return {name: jnp.stack([value] * 4) for name, value in shapes.items()}


class ConfigsTest(parameterized.TestCase):
  def test_every_config_is_in_the_table(self):
    files = {p.stem for p in CONFIGS.glob('*.py')} - {'__init__', 'common'}
    self.assertEqual(files, {*ARGS, *OWN_TESTS})

  @parameterized.parameters(*CASES)
  def test_the_config_builds_a_model_and_a_step(self, name, arg):
    config = load(name, arg)
    variables, _, _ = _training(config)
    self.assertIn('log_scale', variables['params'])
    drives.Source(data_dir='nowhere', **config.data)

  @parameterized.parameters(
    *((name, '') for name in ARGS), ('lip_loc', 'recipe=released')
  )
  def test_the_config_takes_a_step(self, name, arg):
    config = load(name, arg)
    variables, optimizer, step = _training(config)
    params = variables.pop('params')
    state = jax.eval_shape(
      lambda params: state_lib.init_state(
        params, variables, optimizer.init, jax.random.key(0)
      ),
      params,
    )
    after, metrics = jax.eval_shape(step, state, _batch(config))
    self.assertEqual(jax.tree.structure(after), jax.tree.structure(state))
    self.assertContainsSubset(('loss', 'recall_at_1'), metrics)

  def test_the_smoke_version_has_the_same_leaves(self):
    config = load('saliency_i2ploc', '')
    self.assertEqual(set(leaves(config)), set(leaves(common.smoke(config))))

  @parameterized.parameters(
    ('colour=red', "Unknown config argument 'colour'; known: "),
    ('lidar=sonar', "lidar='sonar'; known: "),
    ('dataset=nuscenes', "dataset='nuscenes'; known: "),
    ('camera=fisheye', "camera='fisheye'; known: "),
    ('camera=panorama,dataset=kitti_raw', 'kitti_raw has no panoramas'),
  )
  def test_a_wrong_argument_is_named(self, arg, message):
    with self.assertRaisesRegex(ValueError, message):
      load('saliency_i2ploc', arg)

  @parameterized.parameters(
    ('dataset=nuscenes', "dataset='nuscenes'; known: "),
    ('recipe=best', "recipe='best'; known: "),
    ('backbone=vgg', "backbone='vgg'; known: "),
    ('aggregator=netvlad', "aggregator='netvlad'; known: "),
    ('experiment=large', "experiment='large'; known: "),
    ('dataset=kitti360,experiment=large', "experiment='large'; known: "),
    (
      'dataset=kitti_odometry,experiment=maximum_vit',
      'trains on all of KITTI, 08 and 09 of the test among them',
    ),
  )
  def test_a_wrong_argument_of_lip_loc_is_named(self, arg, message):
    with self.assertRaisesRegex(ValueError, message):
      load('lip_loc', arg)

  def test_no_split_of_lip_loc_is_tested_on_what_it_trains_on(self):
    grammars = {
      'kitti_odometry': kitti_odometry_splits.GRAMMAR,
      'kitti360': kitti360_splits.GRAMMAR,
      'kitti_and_kitti360': kitti_and_kitti360.GRAMMAR,
    }
    for dataset, experiments in lip_loc.KNOWN.items():
      for name in experiments:
        data = load('lip_loc', f'dataset={dataset},experiment={name}').data
        roles = ('train', 'validation', 'test')
        used = [
          {part.sequence for part in grammars[dataset].parse(data[role]).parts}
          for role in roles
        ]
        self.assertTrue(all(used), name)
        total = sum(len(sequences) for sequences in used)
        self.assertLen(set().union(*used), total, name)

  def test_both_recipes_of_lip_loc_see_as_many_pairs_with_alike_encoders(self):
    ours, released = load('lip_loc', ''), load('lip_loc', 'recipe=released')
    self.assertEqual(ours.model.image, released.model.image)
    self.assertEqual(ours.model.points, released.model.points)
    pairs = {c.train.batch_size * c.train.num_steps for c in (ours, released)}
    self.assertLen(pairs, 1)

  @parameterized.parameters('cls', 'mean', 'gem')
  def test_photos_are_described_by_the_encoder_that_is_named(self, pooling):
    encoder = shared.GOLDEN / 'dinov2_tiny'
    config = load(
      'photos', f'encoder={encoder},pooling={pooling},image_size=42x56'
    )
    model = factory.make_model(
      **config.model.to_dict(), image_size=config.data.image_size
    )
    towers = towers_lib.CompiledTowers(
      model, config.map_side, config.index.views
    )
    variables = published.load_variables(config.checkpoint, model)
    batch = model.example()
    found = jax.eval_shape(towers.embed(config.query_side), variables, batch)
    self.assertEqual(found.shape, (1, 48))

  def test_another_checkpoint_of_photos_is_another_encoder(self):
    config = load('photos', 'encoder=dinov2_small')
    config.checkpoint = 'OWNER/NAME'
    self.assertEqual(config.model.image.checkpoint, 'OWNER/NAME')

  def test_words_are_of_vlad(self):
    config = load('photos', 'words=8')
    expected = {'name': 'vlad', 'num_clusters': 8}
    self.assertEqual(config.model.aggregator.to_dict(), expected)
    self.assertEqual(config.checkpoint, load('photos', '').checkpoint)

  def test_photos_have_another_size_for_an_encoder_that_is_named(self):
    for arg, size in (
      ('', (336, 448)),
      ('encoder=dinov2_small', (224, 224)),
      ('image_size=42x56', (42, 56)),
    ):
      self.assertEqual(load('photos', arg).data.image_size, size)

  @parameterized.parameters(
    ('pooling=netvlad', "pooling='netvlad'; known: "),
    ('image_size=224', "image_size='224': expected HEIGHTxWIDTH"),
    ('pooling=gem,words=8', 'words=8 are of pooling=vlad, not of gem'),
  )
  def test_a_wrong_argument_of_photos_is_named(self, arg, message):
    with self.assertRaisesRegex(ValueError, message):
      load('photos', arg)

  @parameterized.parameters(
    (dict(steps=3), 'steps=three', "steps='three' is not of type int"),
    (dict(fast=True), 'fast=maybe', "fast='maybe' is not a boolean"),
  )
  def test_a_wrong_type_is_named(self, defaults, arg, message):
    with self.assertRaisesRegex(ValueError, message):
      common.parse_arg(arg, **defaults)

  def test_arguments_keep_their_types(self):
    arg = common.parse_arg('a=2,b=0.5,c,d=x', a=1, b=1.0, c=False, d='y')
    self.assertEqual(arg.to_dict(), dict(a=2, b=0.5, c=True, d='x'))


if __name__ == '__main__':
  absltest.main()
