# SPDX-License-Identifier: Apache-2.0
"""LIP-Loc: ours, and as released (Puligilla et al., WACV 2024).

python main.py --mode=train --workdir=/tmp/lip_loc --config=configs/lip_loc.py
python main.py --mode=train --workdir=/tmp/lip_loc_released \
  --config=configs/lip_loc.py:recipe=released

Both train on synthetic_city at demonstration size, with the same encoders and
as many pairs. Not trained on KITTI: the data were not available.

Arguments after the colon:
  dataset=synthetic_city | kitti_odometry | kitti_raw | kitti360 |
    kitti_and_kitti360
  experiment: which sequences, see EXPERIMENTS. Of kitti_odometry large (the
    default), larger, larger_uncropped, largest or largest_vit; of kitti360 360
    or 360_vit; of kitti_and_kitti360 combined, and all of KITTI's as zero-shot
    transfer: trained on KITTI, tested on KITTI-360. maximum_vit trains on the
    test sequences of KITTI, and is allowed as zero-shot transfer alone
  recipe=ours | released
  backbone=small | resnet50 | vit_s16 (the experiment's)
  aggregator=sectors | head: of our recipe, a projection head per azimuth
    sector, or LIP-Loc's one head of 256 numbers
  size=small (of synthetic_city: tiny, small, default, full)

ours: unit descriptors, InfoNCE with a learned temperature that ignores what is
  near, the range image of the camera's own field with validity, colour jitter,
  joint mirroring, Muon (AdamW at full size), moving average of the parameters
released: see `_release`. With --config.checkpoint=PATH it evaluates the
  authors' weights; --config.train.pretrained=PATH starts both towers from
  ImageNet, as they do. Differs from their code: validation on sequences that
  are not trained on instead of random frames; learning rates fall along a
  cosine instead of by plateaus; the encoders decay too, a thousandth of their
  rate, and biases and norms do not; a last batch that is not full is dropped;
  images are resized by an antialiased bicubic filter
"""

from typing import NamedTuple

import ml_collections

from configs import common


class Experiment(NamedTuple):
  """An experiment of the paper.

  Attributes:
    split: its sequences, below 'lip_loc/'.
    backbone: of both towers.
    num_frames: that it trains on; of KITTI-360 about.
    crop: whether the range image is that of the 120 degrees ahead.
    batch_size: of the released recipe.
    epochs: of the released recipe.
  """

  split: str
  backbone: str
  num_frames: int
  crop: bool = True
  batch_size: int = 32
  epochs: int = 100


EXPERIMENTS = {
  'large': Experiment('large', 'resnet50', 6_035),  # KITTI 03-07
  'larger': Experiment('larger', 'resnet50', 16_338),  # 00-07
  'larger_uncropped': Experiment('larger', 'resnet50', 16_338, crop=False),
  'largest': Experiment('largest', 'resnet50', 36_058),  # + 11-13, 15-21
  'largest_vit': Experiment('largest', 'vit_s16', 36_058),
  'maximum_vit': Experiment('maximum', 'vit_s16', 43_552),  # 00-21
  # KITTI-360 0003-0007, 0009, 0010.
  '360': Experiment('360', 'resnet50', 47_000, batch_size=16),
  '360_vit': Experiment('360', 'vit_s16', 47_000, epochs=50),
  'combined': Experiment('combined', 'resnet50', 97_000),  # largest, 360, 0002
}
KITTI = ('large', 'larger', 'larger_uncropped', 'largest', 'largest_vit')
KNOWN = {  # the first is the default
  'kitti_odometry': KITTI,
  'kitti360': ('360', '360_vit'),
  'kitti_and_kitti360': ('combined', *KITTI, 'maximum_vit'),
}
# Radians: half of the camera's field, and a margin. KITTI-360 sees farther.
FRUSTUM = {'kitti360': 1.0, 'kitti_and_kitti360': 1.0}
DATA = {  # what only one reader takes
  'synthetic_city': dict(camera='pinhole', sensors='kitti'),
  'kitti_raw': dict(camera=2, packed=''),
  'kitti_odometry': dict(camera=2, packed='', poses_dir=''),
  'kitti360': dict(camera='perspective', points='scan', packed=''),
  'kitti_and_kitti360': dict(
    camera=2, packed='', poses_dir='', kitti360_dir=''
  ),
}
# Of ImageNet.
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  arg = common.parse_arg(
    text,
    dataset='synthetic_city',
    experiment='',
    recipe='ours',
    backbone='',
    aggregator='sectors',
    size='small',
  )
  common.choice('dataset', arg.dataset, DATA)
  common.choice('recipe', arg.recipe, ('ours', 'released'))
  common.choice('aggregator', arg.aggregator, ('sectors', 'head'))
  experiment = _experiment(arg)
  default = experiment.backbone if experiment else 'small'
  backbone = common.choice('backbone', arg.backbone or default, BACKBONES)
  config = common.defaults()
  config.name = 'LIP-Loc'
  config.data = dict(
    name=arg.dataset, **_splits(arg, experiment), **DATA[arg.dataset]
  )
  if arg.dataset == 'synthetic_city':
    config.data.size = arg.size
  else:  # one drive per place, a frame per metre
    config.evaluation.select = 'validation/sync/image_to_points/recall@1_10m'
    config.evaluation.sequence_stride = 5
  if arg.dataset == 'kitti_raw':  # the sample drive is 6 m long
    config.evaluation.radii = (1.0, 5.0, 10.0)
    config.index.radius = 1.0
  config.model = dict(
    saliency='none',
    projection='pinhole',
    dtype='float32',
    **BACKBONES[backbone](),
  )
  if arg.recipe == 'released':
    _release(config, arg, experiment, backbone)
  else:
    _improve(config, arg, backbone)
  return config


def _experiment(arg):
  """The experiment of a recorded dataset; None for other datasets."""
  known = KNOWN.get(arg.dataset, ())
  if not known and not arg.experiment:
    return None
  name = arg.experiment or next(iter(known))
  if name == 'maximum_vit' and name not in known:
    raise ValueError(
      f'experiment={name} trains on all of KITTI, 08 and 09 of the test among '
      'them, so that only another dataset can test it; choose '
      'dataset=kitti_and_kitti360'
    )
  return EXPERIMENTS[common.choice('experiment', name, known)]


def _splits(arg, experiment):
  """Train, validation and test in the dataset's own terms."""
  roles = ('train', 'validation', 'test')
  if arg.dataset == 'synthetic_city':
    return {role: role for role in roles}
  if arg.dataset == 'kitti_raw':
    return dict(train='', validation='', test='all')
  splits = {role: f'lip_loc/{experiment.split}/{role}' for role in roles}
  if arg.dataset == 'kitti_and_kitti360' and experiment.split != 'combined':
    splits['test'] = 'lip_loc/360/test'
  return splits


def _small():
  """Small encoders, trained from scratch on a CPU."""
  trunk = dict(
    name='vit', width=96, depth=1, num_heads=4, residual_init_scale=0.1
  )
  stem = dict(trunk, stem_widths=(24, 48, 96))
  return dict(
    image=dict(stem, stem_strides=((4, 4), (2, 2), (2, 1))),
    points=dict(stem, stem_strides=((4, 1), (2, 2), (2, 1))),
  )


def _resnet50():
  encoder = dict(name='resnet')
  return dict(image=encoder, points=dict(encoder))


def _vit_s16():
  encoder = dict(name='vit', width=384, depth=12, num_heads=6, remat=False)
  return dict(image=encoder, points=dict(encoder))


BACKBONES = {'small': _small, 'resnet50': _resnet50, 'vit_s16': _vit_s16}


def _improve(config, arg, backbone):
  """Our recipe."""
  small = backbone == 'small'
  frustum = FRUSTUM.get(arg.dataset, 0.8)
  config.data.update(
    image_size=(64, 208) if small else (128, 416),
    num_points=4096 if small else 32_768,
    frustum=frustum,
    cross_drive=0.85,
    max_offset=4.0,
    town_run=8,
  )
  if not small:
    config.train.update(
      num_steps=10_000, eval_every=500, save_every=100, ema_decay=0.999
    )
    config.optimizer.update(
      learning_rate=3e-4,
      matrix_learning_rate=0.0,
      warmup_steps=1000,
      weight_decay=0.05,
    )
    config.evaluation.batch_size = 32
  # As many as an image has columns of tokens.
  num_sectors = {'small': 26, 'resnet50': 13, 'vit_s16': 26}[backbone]
  if arg.aggregator == 'sectors':
    pooling = dict(num_sectors=num_sectors, features=32 * num_sectors)
  else:
    pooling = dict(num_sectors=0, features=256)
  config.model.update(
    range_shape=(64, 64) if small else (64, 416),
    range_encoding='channels',
    max_range=80.0,
    num_points=config.data.num_points,
    aggregator=dict(name='projection', pool='mean', dropout=0.1, **pooling),
  )
  config.loss = dict(
    form='clip',
    positive_radius=0.0,
    ignore_radius=8.0,
    relation_weights=(0.0, 0.0, 0.0),  # Euclidean, angle, hyperbolic
    curvature=0.1,
  )


def _release(config, arg, experiment, backbone):
  """The released input, head, loss and optimizer."""
  small = backbone == 'small'
  crop = experiment is None or experiment.crop
  config.data.update(
    image_size=(64, 208) if small else (224, 224),
    num_points=8192 if arg.dataset == 'synthetic_city' else 131_072,
    # Radians: beyond 0.8 m, what the 120 degrees of the crop can need.
    frustum=1.4 if crop else 0.0,
    cross_drive=0.0,
    max_offset=0.0,
    town_run=1,
  )
  # Small: as many pairs as in our recipe.
  batch, num_steps, eval_every = 32, 960, 320
  if experiment is not None:
    batch = experiment.batch_size
    eval_every = experiment.num_frames // batch
    num_steps = experiment.epochs * eval_every
  config.train.update(
    batch_size=batch,
    num_steps=num_steps,
    eval_every=eval_every,
    save_every=eval_every,
    ema_decay=0.0,
    color_jitter=0.0,
    mirror=False,
    cutout=True,
  )
  # Released: camera 1e-5, LiDAR 1e-4. Small encoders start from random weights,
  # which 1e-5 would hardly move: all learn at the rate of the heads.
  rates = {} if small else {'image': 1e-2, 'points': 1e-1}
  vit = backbone == 'vit_s16'
  if vit:  # this layer is part of the encoders there
    heads = {f'{tower}_aggregator/widen': rates[tower] for tower in rates}
    rates = rates | heads
  config.optimizer = dict(
    learning_rate=1e-3,
    matrix_learning_rate=0.0,
    warmup_steps=0,
    weight_decay=1e-3,
    clip_norm=1e9,  # none
    momentum=0.0,
    accumulation=1,
    final_fraction=0.01,
    factors={**rates, 'log_scale': 0.0},
  )
  config.index.views = (0.0,)
  config.model.update(
    range_shape=(64, 96) if small else (224, 224),
    range_encoding='released',
    # A scan of synthetic_city at size=small has 256 columns.
    scan_shape=(64, 256) if small else (64, 900),
    range_crop=crop,
    max_range=50.0,
    num_points=config.data.num_points,
    image_mean=IMAGE_MEAN,
    image_std=IMAGE_STD,
    initial_temperature=1.0,
    aggregate_cls=vit,
    aggregator=dict(
      name='projection',
      features=256,
      pool='cls' if vit else 'mean',
      hidden=2048 if vit else 0,
      dropout=0.1,
      normalized=False,
    ),
  )
  config.loss = dict(
    name='soft_targets',
    positive_radius=0.0,
    ignore_radius=0.0,
    relation_weights=(0.0, 0.0, 0.0),  # Euclidean, angle, hyperbolic
    curvature=0.1,
  )
