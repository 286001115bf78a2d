# SPDX-License-Identifier: Apache-2.0
"""SaliencyI2PLoc at demonstration size (Li et al., Information Fusion 2025).

python main.py --mode=train --workdir=/tmp/saliency \
  --config=configs/saliency_i2ploc.py

Expect cross R@1 of about 66 % within 10 m on the test towns (chance 1.2 %)
after 480 steps. Measured 2026-11-21, one seed.

Arguments after the colon:
  dataset=synthetic_city | kitti_raw | kitti_odometry
  size=small (of synthetic_city: tiny, small, default, full; images are resized
    to data.image_size whatever the size)
  camera=pinhole | panorama (of synthetic_city): ahead, or all around
  lidar=range | points: patches of a range image, or point groups (the paper)
  aggregator=sectors | netvlad: saliency-weighted NetVLAD per azimuth sector
    (ours), or over all tokens as in the paper
  saliency=attention | released | none: weights that discriminate and learn
    (ours), the released sigmoid, or none
"""

import math

import ml_collections

from configs import common

# What each dataset calls its splits; KITTI's are drives and sequences.
SPLITS = {
  'synthetic_city': dict(
    train='train',
    validation='validation',
    test='test',
    size='small',
    camera='pinhole',
    sensors='kitti',
  ),
  'kitti_raw': dict(train='', validation='', test='all', camera=2, packed=''),
  'kitti_odometry': dict(
    train='03+04+05+06+07',
    validation='10',
    test='08+09',
    camera=2,
    packed='',
    poses_dir='',
  ),
}


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  arg = common.parse_arg(
    text,
    dataset='synthetic_city',
    size='small',
    camera='pinhole',
    lidar='range',
    aggregator='sectors',
    saliency='attention',
  )
  arg.dataset = common.choice('dataset', arg.dataset, SPLITS)
  config = common.defaults()
  config.name = 'SaliencyI2PLoc'
  config.data = dict(
    name=arg.dataset,
    image_size=(64, 208),
    num_points=4096,
    frustum=0.8,  # radians: the camera's field of 2 x 0.71 and a margin
    cross_drive=0.85,
    max_offset=4.0,
    town_run=8,  # of a batch of 64: negatives in the same streets
    **SPLITS[arg.dataset],
  )
  if arg.dataset == 'synthetic_city':
    config.data.size = arg.size
  else:  # one drive per place, a frame per metre
    config.evaluation.select = 'validation/sync/image_to_points/recall@1_10m'
    config.evaluation.sequence_stride = 5
  if arg.dataset == 'kitti_raw':  # the sample drive is 6 m long
    config.evaluation.radii = (1.0, 5.0, 10.0)
    config.index.radius = 1.0
  trunk = dict(
    name='vit',
    width=96,
    depth=1,
    num_heads=4,
    residual_init_scale=0.1,
  )
  image = dict(
    trunk,
    stem_widths=(24, 48, 96),
    stem_strides=((4, 4), (2, 2), (2, 1)),
  )
  groups = dict(
    name='point_transformer',
    width=96,
    depth=2,
    num_heads=4,
    num_groups=96,
    group_size=12,
    pointnet_widths=(32, 64, 96),
    pointnet_features=96,
    residual_init_scale=0.1,
  )
  patches = dict(
    trunk,
    stem_widths=(24, 48, 96),
    stem_strides=((4, 1), (2, 2), (2, 1)),
  )
  lidar = common.choice('lidar', arg.lidar, ('points', 'range'))
  config.model = dict(
    image=image,
    points=groups if lidar == 'points' else patches,
    range_shape=None if lidar == 'points' else (64, 64),
    num_points=1024 if lidar == 'points' else 4096,
    aggregator={
      'sectors': dict(
        name='netvlad',
        num_clusters=8,
        num_sectors=26,
        features=832,
        per_sector_head=False,
        norm='layer',
        output_batch_norm=False,
      ),
      'netvlad': dict(name='netvlad', num_clusters=64, features=256),
    }[common.choice('aggregator', arg.aggregator, ('sectors', 'netvlad'))],
    saliency=arg.saliency,
    projection='pinhole',
    dtype='float32',
  )
  config.loss = dict(
    form='clip',
    positive_radius=0.0,
    ignore_radius=8.0,
    relation_weights=(0.0, 0.0, 0.0),  # Euclidean, angle, hyperbolic
    curvature=0.1,
  )
  if common.choice('camera', arg.camera, ('pinhole', 'panorama')) != 'pinhole':
    _look_around(arg, config)
  return config


def _look_around(arg, config):
  """Panoramas, and twice the tokens for four times the field."""
  if arg.dataset != 'synthetic_city':
    raise ValueError(f'camera={arg.camera}, but {arg.dataset} has no panoramas')
  config.data.update(
    dict(camera=arg.camera, image_size=(64, 416), num_points=8192, frustum=0.0)
  )
  config.train.yaw = math.pi
  config.model.projection = 'equirectangular'
  if arg.lidar == 'points':
    config.model.num_points = 2048
    config.model.points.num_groups = 192
  else:
    config.model.num_points = 8192
    config.model.range_shape = (64, 128)
  if arg.aggregator == 'sectors':
    config.model.aggregator.num_sectors = 52
  config.index.views = (0.0, math.pi / 2, math.pi, -math.pi / 2)
