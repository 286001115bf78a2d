# SPDX-License-Identifier: Apache-2.0
"""CosPlace (Berton et al., CVPR 2022): places as classes, in groups.

python main.py --mode=train --config=configs/cos_place.py \
  --workdir=/tmp/cos_place
python main.py --mode=train --workdir=DIR --data_dir=FOLDER \
  --config=configs/cos_place.py:dataset=photos,recipe=released,backbone=resnet50

A class is a cell of 10 m and 30 degrees. Classes of a group are far apart, and
the groups take turns, each with class weights and an optimizer of its own.
Images need positions and headings. Arguments: see `configs.images`.

ours: smaller cells in fewer groups, as the towns are small, all of them used.
released: 8 of 50 groups, 10,000 steps of 32 images each, Adam with 1e-5, the
  last two stages of the backbone trained. Differs from their code: the groups
  used are those with most images and not those first in the list of files.
"""

import ml_collections

from configs import common
from configs import images


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  arg = common.parse_arg(text, **images.ARGUMENTS)
  config = images.get_config('CosPlace', arg)
  config.augmentation.mirror = False  # a mirrored class is another one
  config.loss = dict(name='classes', scale=30.0, margin=0.4, num_heads=1)
  config.sampling = dict(
    name='classes',
    steps=20,  # of a group, then the next has its turn
    cell=10.0,  # metres
    turn=30.0,  # degrees
    spacing=2,  # cells between two classes of a group
    turn_spacing=1,
    min_images=2,
    num_groups=4,
  )
  if arg.recipe == 'released':
    images.release(config, arg, pooling='gem', image_size='512x512')
    config.augmentation.update(color_jitter=0.7, hue=0.5, crop_area=0.5)
    config.sampling.update(
      steps=10_000, spacing=5, turn_spacing=2, min_images=10, num_groups=8
    )
    config.train.update(
      batch_size=32, num_steps=500_000, eval_every=10_000, save_every=2_000
    )
  return config
