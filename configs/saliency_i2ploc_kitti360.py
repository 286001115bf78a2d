# SPDX-License-Identifier: Apache-2.0
"""SaliencyI2PLoc at full size on KITTI-360.

python main.py --mode=train --data_dir=KITTI-360 --workdir=/tmp/kitti360 \
  --config=configs/saliency_i2ploc_kitti360.py

What to download and how to check it: `input_pipeline.readers.kitti360`. Images
of 512 x 1024 (2,049 tokens) or 384 x 1408 (2,113), 20,480 points in 3,072
groups. Not trained here: the data were not available. Memory and time of a step
are in `benchmarks/full_size.py`.

Arguments after the colon:
  camera=panorama | perspective: both fisheyes stitched, with submaps of 40 m;
    or image_00, with single sweeps
  released=false: sectors, layer norms, saliency that learns, a learned
    temperature, AdamW and 64 pairs in one batch through the gradient cache
  released=true: as the authors' code has it, which evaluates their checkpoints
    (--config.checkpoint=PATH). Differs from it: its 4 pairs x 64 accumulated
    steps see affine jitter of the images too, its warm-up starts at 5e-6, all
    its learning rates fall to 1e-7, and it decays norms and biases as well
"""

import math

import ml_collections

from configs import common

IMAGE_SIZES = {'panorama': (512, 1024), 'perspective': (384, 1408)}
# Radians: half of the field of image_00, 0.906, and a margin.
FRUSTUM = 1.0


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  arg = common.parse_arg(text, camera='panorama', released=False)
  camera = common.choice('camera', arg.camera, IMAGE_SIZES)
  config = common.defaults()
  config.name = 'SaliencyI2PLoc'
  panorama = camera == 'panorama'
  config.data = dict(
    name='kitti360',
    train='saliency/train',
    validation='saliency/validation',
    test='saliency/urban',
    packed='~/.cache/i2ploc/kitti360',
    camera=camera,
    points='submap' if panorama else 'scan',
    image_size=IMAGE_SIZES[camera],
    num_points=20_480,
    frustum=0.0 if panorama else FRUSTUM,
    cross_drive=0.0,  # every sequence is a place of its own
    max_offset=4.0,
    town_run=8,
  )
  config.evaluation.update(
    batch_size=8,
    select='validation/sync/image_to_points/recall@1_10m',
    sequence_stride=5,
  )
  config.model = dict(
    image=dict(name='vit', width=384, depth=12, num_heads=6, remat=False),
    points=dict(
      name='point_transformer',
      width=384,
      depth=12,
      num_heads=6,
      num_groups=3072,
      group_size=32,
      pointnet_widths=(128, 256, 512),
      pointnet_features=384,
      remat=False,
    ),
    num_points=20_480,
    projection='equirectangular' if panorama else 'pinhole',
    dtype='float32',
  )
  if arg.released:
    _release(config, panorama)
  else:
    _improve(config, panorama)
  return config


def _improve(config, panorama):
  """Our recipe: the choices of the demonstration at full size."""
  config.train.update(
    batch_size=64,
    num_chunks=32,
    num_steps=10_000,
    eval_every=500,
    save_every=100,
    ema_decay=0.999,
    yaw=math.pi if panorama else 0.0,
  )
  config.optimizer.update(
    learning_rate=3e-4,
    matrix_learning_rate=0.0,
    warmup_steps=1000,
    weight_decay=0.05,
  )
  config.model.image.residual_init_scale = 0.1
  config.model.points.residual_init_scale = 0.1
  # Two columns of patches of a panorama, four of a perspective image.
  num_sectors = 32 if panorama else 22
  config.model.aggregator = dict(
    name='netvlad',
    num_clusters=16,
    num_sectors=num_sectors,
    features=32 * num_sectors,
  )
  config.model.saliency = 'attention'
  config.loss = dict(
    form='clip',
    positive_radius=0.0,
    ignore_radius=8.0,
    relation_weights=(0.0, 0.0, 0.0),  # Euclidean, angle, hyperbolic
    curvature=0.1,
  )
  if panorama:
    config.index.views = (0.0, math.pi / 2, math.pi, -math.pi / 2)


def _release(config, panorama):
  """The released architecture, loss and optimizer."""
  # Perspective images lose their aspect, and see the cloud all around.
  config.data.update(
    image_size=IMAGE_SIZES['panorama'], frustum=0.0, max_offset=0.0, town_run=1
  )
  config.train.update(
    batch_size=4,
    num_steps=99 * 80 * 64,  # epochs, updates, accumulated steps
    eval_every=80 * 64,
    save_every=20 * 64,
    ema_decay=0.0,
    color_jitter=0.5,
    mirror=False,
  )
  lr = 1e-4 if panorama else 5e-5
  aggregators = 5.0 if panorama else 0.2
  config.optimizer = dict(
    learning_rate=lr,
    matrix_learning_rate=0.0,
    momentum=0.999,
    accumulation=64,
    warmup_steps=3 * 80 * 64,
    weight_decay=1e-3,
    clip_norm=1e9,  # none
    final_fraction=1e-7 / lr,
    factors={
      'points': 0.1,
      'image_aggregator': aggregators,
      'points_aggregator': aggregators,
      'log_scale': 0.0,
      **{f'image/blocks_{i}': 0.0 for i in range(8)},
    },
  )
  config.evaluation.radii = (5.0, 10.0, 20.0)
  config.evaluation.select = 'validation/sync/image_to_points/recall@1_20m'
  config.index.views = (0.0,)
  config.model.points.update(
    num_heads=3,
    pointnet_features=1024,
    qkv_bias=False,
    batch_norm=True,
    unit_tokens=True,
    raw_coordinates=True,
    skip_squared_norm=1e-3,
  )
  config.model.aggregator = dict(
    name='netvlad',
    num_clusters=64,
    features=256,
    norm='batch',
    output_batch_norm=True,
    gating=True,
    channel_major=True,
    epsilon=1e-12,
  )
  config.model.update(
    saliency='released',
    aggregate_cls=True,
    azimuth_margin=math.pi,
    image_mean=(0.396197, 0.452953, 0.490031),
    image_std=(0.315778, 0.343629, 0.369563),
    initial_temperature=0.07,
  )
  config.loss = dict(
    form='concatenated',
    positive_radius=0.0,
    ignore_radius=0.0,
    relation_weights=(0.0, 2.0, 0.0),  # Euclidean, angle, hyperbolic
    curvature=0.1,
  )
