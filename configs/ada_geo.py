# SPDX-License-Identifier: Apache-2.0
"""AdaGeo (Berton et al., WACV 2021): from day to night with a few photos.

python main.py --mode=train --config=configs/ada_geo.py --workdir=/tmp/ada_geo

A handful of photos of another light, of unknown place, join the training: a
share of the labelled images takes over their colours, and an adversary may ask
the towers not to tell lights and weathers apart. Maps are of the day, queries
of the night. Arguments: see `configs.images`, and

  target=20: photos of the night; 0 for none, 5 as in the paper
  adversary=: weight of the adversary; 0.1 of recipe=released, otherwise none,
    since it costs recall here, see docs/place_training.md
  mixing=0.3: share of the labelled images that look like the night

Departs from the paper: colours are moved by their statistics instead of by
style transfer, and there is no attention of a network for scenes.
"""

import ml_collections

from configs import common
from configs import images


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  arg = common.parse_arg(
    text, target=20, adversary='', mixing=0.3, **images.ARGUMENTS
  )
  default = 0.1 if arg.recipe == 'released' else 0.0
  adversary = float(arg.adversary or default) if arg.target else 0.0
  if arg.dataset != 'synthetic_city':
    raise ValueError(
      f'dataset={arg.dataset}: nobody knows its light and weather'
    )
  config = images.get_config('AdaGeo', arg)
  config.loss = images.loss('multi_similarity')
  config.loss.adversary = adversary
  config.sampling = images.places()
  config.sampling.even_conditions = True
  config.data.look = 'night'  # of all but the maps
  config.data.training = dict(look='photo')
  if arg.target:
    config.sampling.per_step = 8
    config.train.batch_size += 8  # beside as many labelled ones
    config.augmentation.mixing = arg.mixing
    config.data.target = dict(
      split='train[:1]' if arg.size != 'tiny' else 'train',
      condition='night',
      count=arg.target,
      look='night',
    )
  if arg.recipe == 'released':
    images.release(config, arg, pooling='netvlad', image_size='')
    config.train.update(
      num_steps=25_000, eval_every=1_250, save_every=250, fit_clusters=True
    )
  return config
