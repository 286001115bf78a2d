# SPDX-License-Identifier: Apache-2.0
"""A baseline like AE-Spherical, at demonstration size.

python main.py --mode=train --workdir=/tmp/ae_spherical \
  --config=configs/ae_spherical.py

After Zhao et al., IEEE Sensors Journal 2023, in the form that was released with
SaliencyI2PLoc as its baseline: convolutions for images, PointNet for points,
NetVLAD over all tokens, four triplet losses with random negatives. Data,
descriptor size, optimizer and steps are those of `saliency_i2ploc`.

Differs from it: planar convolutions, also where `camera=panorama`; no squeeze
and excitation; PointNet sees neighbourhoods of points, not the cloud at once;
unit descriptors in training too; one random negative per positive, from the
batch, instead of five from the map; positives within 10 m and negatives beyond
20 m, half of its distances, because an answer within 10 m is right here.

Arguments after the colon: dataset, size and camera, as in `saliency_i2ploc`.
"""

import math

import ml_collections

from configs import common
from configs import saliency_i2ploc


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  arg = common.parse_arg(
    text, dataset='synthetic_city', size='small', camera='pinhole'
  )
  config = saliency_i2ploc.get_config(
    f'dataset={arg.dataset},size={arg.size},camera={arg.camera},'
    'lidar=points,aggregator=netvlad,saliency=none'
  )
  config.name = 'AE-Spherical'
  config.model.image.depth = config.model.points.depth = 0
  config.loss = dict(
    name='four_triplets',
    mining='random',
    margin=math.sqrt(0.1),
    within_weight=0.1,
    positive_radius=10.0,
    ignore_radius=20.0,
    relation_weights=(0.0, 0.0, 0.0),
    curvature=0.1,
  )
  return config
