# SPDX-License-Identifier: Apache-2.0
"""EigenPlaces (Berton et al., ICCV 2023): classes that look at one point.

python main.py --mode=train --config=configs/eigen_places.py \
  --workdir=/tmp/eigen_places

A cell of 15 m has two focal points, beside the street and along it. Panoramas
are seen in the direction of the focal point, so that a place is learned from
all sides; half of a batch looks aside, half ahead. Arguments: see
`configs.images`, and

  panoramas=true: of synthetic_city. false takes images as they are, those that
    have the focal point in view: for photos that are no panoramas
  field=81.4: degrees from left to right, of the town's camera; give that of
    your own photos

ours: cells as CosPlace's of `configs.cos_place`, all groups used.
released: 9 groups of each kind, 5,000 steps of 32 + 32 images each, s = 100
  instead of 30.
"""

import math

import ml_collections

from configs import common
from configs import images


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  arg = common.parse_arg(text, panoramas=True, field=81.4, **images.ARGUMENTS)
  panoramas = arg.panoramas and arg.dataset == 'synthetic_city'
  config = images.get_config('EigenPlaces', arg)
  config.augmentation.mirror = False
  config.loss = dict(name='classes', scale=30.0, margin=0.4, num_heads=2)
  config.sampling = dict(
    name='focal',
    steps=20,
    cell=15.0,  # metres
    spacing=2,
    distance=10.0,  # metres to the focal point
    min_images=2,
    num_groups=4,  # of each kind
    field=None,
  )
  if panoramas:
    height, width = config.data.image_size
    config.augmentation.look_field = math.radians(arg.field)
    config.data.training = dict(
      camera='panorama', image_size=(height, 2 * width)
    )
  else:  # cameras that look ahead see the points along the street alone
    config.sampling.field = math.radians(arg.field)
    config.loss.num_heads = 1
  if arg.recipe == 'released':
    images.release(config, arg, pooling='gem', image_size='512x512')
    config.loss.scale = 100.0
    config.augmentation.update(color_jitter=0.7, hue=0.5, crop_area=0.5)
    config.sampling.update(steps=5_000, spacing=3, min_images=10, num_groups=9)
    config.train.update(
      batch_size=64, num_steps=200_000, eval_every=5_000, save_every=1_000
    )
  return config
