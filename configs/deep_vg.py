# SPDX-License-Identifier: Apache-2.0
"""Deep VG benchmark (Berton et al., CVPR 2022): triplets from mined negatives.

python main.py --mode=train --config=configs/deep_vg.py --workdir=/tmp/deep_vg
python main.py --mode=train --workdir=DIR --data_dir=FOLDER \
  --config=configs/deep_vg.py:dataset=photos,recipe=released,backbone=resnet18

Every round describes some of the database anew, and each query takes its
hardest negatives of these. Arguments: see `configs.images`, and

  mining=partial | full | random: of some of the database, of all, or drawn

ours: batches of eight queries with their positives and six negatives, all
  triplets of a batch.
released: four queries with ten negatives, Adam with 1e-5, NetVLAD of 64
  clusters that starts at clusters of the data.
"""

import ml_collections

from configs import common
from configs import images


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  arg = common.parse_arg(text, mining='partial', **images.ARGUMENTS)
  common.choice('mining', arg.mining, ('partial', 'full', 'random'))
  config = images.get_config('Deep VG', arg)
  config.loss = images.triplets()
  config.sampling = dict(
    name='mined',
    steps=40,
    mining=arg.mining,
    num_negatives=6,
    pool=500,  # of the database that a round describes
    positive_radius=5.0,
    negative_radius=25.0,
  )
  if arg.recipe == 'released':
    images.release_triplets(config, arg, num_negatives=10)
    config.sampling.mining = arg.mining
  return config
