# SPDX-License-Identifier: Apache-2.0
"""Every config loads, is read to its last leaf, and dies of unknown keys."""

import importlib
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks import steps
from configs import common
from configs import lip_loc
from i2ploc import factory
from i2ploc import verbs
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
# Methods of images among images, whose batches are planned.
PLANNED = (
  'ada_geo',
  'cos_place',
  'deep_vg',
  'earth_loc',
  'eigen_places',
  'gsv_cities',
  'mesh_vpr',
  'seq_vlad',
)
RELEASED = 'recipe=released,dataset=photos,backbone='
PLANNED_CASES = (
  *((name, '') for name in PLANNED),
  *((name, 'recipe=released') for name in ('ada_geo', 'earth_loc')),
  *(
    (name, f'{RELEASED}resnet18')
    for name in PLANNED
    if name != 'ada_geo'  # nobody knows the light of photos
  ),
  ('cos_place', f'{RELEASED}resnet50'),
  ('gsv_cities', f'{RELEASED}resnet50'),
  ('ada_geo', 'target=0'),
  ('deep_vg', 'mining=full,aggregator=netvlad'),
  ('earth_loc', 'neutral=false,clusters=false,variation=false'),
  ('eigen_places', 'panoramas=false'),
  ('gsv_cities', 'loss=info_nce,aggregator=boq'),
  ('gsv_cities', 'aggregator=salad,size=tiny'),
  ('seq_vlad', 'fusion=transformer,aggregator=gem'),
  ('seq_vlad', f'{RELEASED}resnet18,fusion=concatenation'),
)
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


class _Closed(drives.Source):
  """Data that is not there, but whose numbers are known."""

  def class_counts(self, sampling):
    return np.full(2 * sampling['num_groups'], 5)

  @property
  def num_domains(self):
    return 3


def _planned_batch(config):
  """Shapes of a planned batch of four."""
  size = config.data.get('training', {}).get(
    'image_size', config.data.image_size
  )
  frames = config.data.num_frames
  frames = (frames,) if frames > 1 else ()
  shapes = {
    'intrinsics': jnp.zeros((3, 3)),
    'domain': jnp.zeros((), jnp.int32),
    'labelled': jnp.zeros((), bool),
    'yaw': jnp.zeros(()),
    **{
      name: jnp.zeros((), jnp.int32)
      for name in ('place', 'group', 'class', 'variant')
    },
  }
  for side in ('image', 'rendering'):
    shapes |= {
      side: jnp.zeros((*frames, *size, 3), jnp.uint8),
      f'{side}_position': jnp.zeros((*frames, 3)),
      f'{side}_town': jnp.zeros((), jnp.int32),
      f'{side}_index': jnp.zeros((), jnp.int32),
    }
  if 'clusters' in config.sampling.name:
    shapes['footprint'] = jnp.zeros((4, 2))
  return {name: jnp.stack([value] * 4) for name, value in shapes.items()}


class ConfigsTest(parameterized.TestCase):
  def test_every_config_is_in_the_table(self):
    files = {p.stem for p in CONFIGS.glob('*.py')}
    files -= {'__init__', 'common', 'images'}  # what methods share
    self.assertEqual(files, {*ARGS, *PLANNED, *OWN_TESTS})

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

  @parameterized.parameters(*PLANNED_CASES)
  def test_the_config_of_a_planned_training_takes_a_step(self, name, arg):
    config = load(name, arg)
    data = _Closed(data_dir='nowhere', **config.data)
    training = verbs.make_task(config, data).training
    variables = dict(jax.eval_shape(training.init, jax.random.key(0)))
    params = variables.pop('params')
    self.assertTrue(any(jax.tree.leaves(training.optimizer.trains(params))))
    state = jax.eval_shape(
      lambda *args: state_lib.init_state(
        *args, training.optimizer.init, jax.random.key(0)
      ),
      params,
      variables,
    )
    step = step_lib.make_train_step(
      training.embed,
      training.loss,
      training.optimizer,
      num_chunks=config.train.num_chunks,
      ema_decay=config.train.ema_decay,
    )
    after, metrics = jax.eval_shape(step, state, _planned_batch(config))
    self.assertEqual(jax.tree.structure(after), jax.tree.structure(state))
    self.assertContainsSubset(('loss', config.loss.name), metrics)
    learns = 'recall_at_1' in metrics or 'accuracy' in metrics
    self.assertTrue(learns)
    self.assertEqual(training.refresh_every, config.sampling.steps)
    # Whole rounds and evaluations fit.
    self.assertEqual(config.train.num_steps % config.train.eval_every, 0)
    self.assertEqual(config.train.eval_every % config.train.save_every, 0)

  @parameterized.parameters(*PLANNED)
  def test_the_smoke_version_of_a_planned_training_is_one(self, name):
    config = load(name, 'size=tiny')
    small = common.smoke(config)
    self.assertEqual(set(leaves(config)), set(leaves(small)))
    self.assertEqual(small.sampling.steps, 1)
    towers = verbs.make_task(
      small, _Closed(data_dir='nowhere', **small.data)
    ).training
    jax.eval_shape(towers.init, jax.random.key(0))

  @parameterized.parameters(
    ('gsv_cities', 'loss=sigmoid', "loss='sigmoid'; known: "),
    ('gsv_cities', 'parts=half', "parts='half'; known: "),
    ('gsv_cities', 'dataset=nordland', "dataset='nordland'; known: "),
    ('gsv_cities', 'recipe=best', "recipe='best'; known: "),
    ('gsv_cities', 'aggregator=head', "aggregator='head'; known: "),
    ('gsv_cities', 'image_size=64x64', 'image_size=64x64 is of photos'),
    ('gsv_cities', 'backbone=dinov2_small', 'aggregator=mixvpr with backbone'),
    ('gsv_cities', 'mining=full', "Unknown config argument 'mining'"),
    ('deep_vg', 'mining=hard', "mining='hard'; known: "),
    ('seq_vlad', 'fusion=sum', "fusion='sum'; known: "),
    ('ada_geo', 'dataset=photos', 'nobody knows its light'),
    ('earth_loc', 'dataset=synthetic_city', "'synthetic_city'; known: "),
    ('earth_loc', 'size=full', "size='full'; known: "),
    ('earth_loc', 'neutral=maybe', "neutral='maybe' is not a boolean"),
    ('mesh_vpr', 'dataset=nordland', "dataset='nordland'; known: "),
    ('eigen_places', 'panoramas=2', "panoramas='2' is not a boolean"),
  )
  def test_a_wrong_argument_of_a_method_is_named(self, name, arg, message):
    with self.assertRaisesRegex(ValueError, message):
      load(name, arg)

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
