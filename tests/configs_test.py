# SPDX-License-Identifier: Apache-2.0
"""Every config loads, is read to its last leaf, and dies of unknown keys."""

import importlib
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_collections

from configs import common
from i2ploc import commands
from i2ploc import factory
from i2ploc.training import state as state_lib
from i2ploc.training import step as step_lib
from input_pipeline import source

CONFIGS = pathlib.Path(common.__file__).parent
ARGS = {
  'ae_spherical': ('', 'dataset=kitti_odometry', 'camera=panorama'),
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
  towers = commands.Towers(config, tuple(config.data.image_size))
  variables = jax.eval_shape(towers.init, jax.random.key(0))
  optimizer = factory.make_optimizer(
    config.train.num_steps, **config.optimizer.to_dict()
  )
  step = step_lib.make_train_step(
    factory.make_embed(
      towers.model,
      color_jitter=config.train.color_jitter,
      mirror=config.train.mirror,
      yaw=config.train.yaw,
    ),
    factory.make_loss(**config.loss.to_dict()),
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
    self.assertEqual(files, set(ARGS))

  @parameterized.parameters(*CASES)
  def test_the_config_builds_a_model_and_a_step(self, name, arg):
    config = load(name, arg)
    variables, _, _ = _training(config)
    self.assertIn('log_scale', variables['params'])
    source.Source(data_dir='nowhere', **config.data)

  @parameterized.parameters(*ARGS)
  def test_the_config_takes_a_step(self, name):
    config = load(name, '')
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
