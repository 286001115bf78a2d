# SPDX-License-Identifier: Apache-2.0
"""EarthLoc (Berton et al., CVPR 2024): photos from space in satellite tiles.

python main.py --mode=train --config=configs/earth_loc.py \
  --workdir=/tmp/earth_loc

A place is a tile in the pictures of four years, and all pictures of a year are
seen in one random way. Tiles that overlap are neither positives nor negatives,
and a batch comes from one cluster of the descriptors. The map is described in
four rotations; the best one counts. Arguments: see `configs.images`, and

  dataset=synthetic_earth | photos: of the latter, tiles with footprints
  loss=info_nce | multi_similarity: by default what the recipe has
  neutral=true: false takes tiles that overlap for negatives
  clusters=true: false draws batches from everywhere
  variation=true: false shows tiles as they are

ours: InfoNCE, two years of 32 tiles, views that are closer to north up. A small
  tower learns slower by multi-similarity and from the released views.
released: multi-similarity, ResNet-50's third stage, MixVPR and 4,096 numbers,
  96 tiles of four years, Adam with 1e-4, 20 x 500 steps, 320 x 320 pixels.
"""

import math

import ml_collections

from configs import common
from configs import images

# Of `image_augmentation.overhead_views`.
MILD = dict(max_rotation=math.pi / 4, crop=0.75, perspective=0.2, jitter=0.5)
RELEASED = dict(
  max_rotation=math.pi / 4, crop=0.875, perspective=0.5, jitter=0.9
)
SIZES = {'tiny': (32, 32), 'small': (64, 64), 'default': (128, 128)}


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  fields = images.ARGUMENTS | dict(dataset='synthetic_earth')
  arg = common.parse_arg(
    text,
    loss='',
    neutral=True,
    clusters=True,
    variation=True,
    **fields,
  )
  released = arg.recipe == 'released'
  arg.loss = arg.loss or ('multi_similarity' if released else 'info_nce')
  common.choice('loss', arg.loss, ('info_nce', 'multi_similarity'))
  common.choice('dataset', arg.dataset, ('synthetic_earth', 'photos'))
  embedded = arg.dataset == 'synthetic_earth'
  if embedded:
    height, width = SIZES[common.choice('size', arg.size, SIZES)]
    arg.update(dataset='photos', image_size=f'{height}x{width}')
  arg.image_size = arg.image_size or '128x128'
  config = images.get_config('EarthLoc', arg)
  if embedded:
    config.data = dict(
      name='synthetic_earth',
      size=arg.size,
      train='train',
      validation='validation',
      test='test',
      image_size=config.data.image_size,
      resize='stretch',
      query_resize='',
      num_frames=1,
      frame_stride=1,
    )
  config.evaluation.select = 'validation/photos/image_to_image/recall@1_overlap'
  config.evaluation.disc = 0.0  # metres around rough positions; 0 for all tiles
  config.index.views = (0.0, math.pi / 2, math.pi, 3 * math.pi / 2)
  config.model.projection = 'overhead'
  config.loss = images.loss(arg.loss)
  config.loss.update(neutral=arg.neutral, ignore_radius=0.0)
  config.sampling = dict(
    name='clusters' if arg.clusters else 'places',
    steps=60,
    num_views=2,
    cross_drive=1.0,
    by_frame=True,  # years of a tile have its number
    even_conditions=False,
  )
  if arg.clusters:
    config.sampling.num_clusters = 12
  config.augmentation.update(
    mirror=False,
    color_jitter=0.0,
    overhead=MILD if arg.variation else None,
  )
  config.train.update(num_steps=1_500, eval_every=300, save_every=150)
  if released:
    images.release(config, arg, pooling='mixvpr', image_size='320x320')
    if arg.loss == 'multi_similarity':
      config.loss.threshold = 0.0
    if arg.variation:
      config.augmentation.overhead = RELEASED
    config.optimizer.learning_rate = 1e-4
    config.sampling.update(steps=2_000, num_views=4)  # four epochs of 500
    if arg.clusters:
      config.sampling.num_clusters = 50
    config.train.update(
      batch_size=384, num_steps=10_000, eval_every=500, save_every=100
    )
  return config
