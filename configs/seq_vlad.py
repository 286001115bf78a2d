# SPDX-License-Identifier: Apache-2.0
"""SeqVLAD (Mereu et al., RA-L 2022): one descriptor of several frames.

python main.py --mode=train --config=configs/seq_vlad.py --workdir=/tmp/seq_vlad

All tokens of the frames are one set, which NetVLAD pools: a descriptor as large
as that of one image, in whatever order the frames are. One frame is NetVLAD.
Arguments: see `configs.images`, and

  frames=5: of a sequence
  fusion=set | concatenation | mean | delta | transformer: set is SeqVLAD, the
    others join descriptors of single frames

An answer is the place of the newest frame, for sequences and single images
alike. (The authors also count places of older frames.)

ours: batches of places as in `configs.gsv_cities`.
released: triplets with five negatives, as in `configs.deep_vg`.
"""

import ml_collections

from configs import common
from configs import images

FUSIONS = ('set', 'concatenation', 'mean', 'delta', 'transformer')


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  arg = common.parse_arg(text, frames=5, fusion='set', **images.ARGUMENTS)
  common.choice('fusion', arg.fusion, FUSIONS)
  if arg.fusion == 'set' and not arg.aggregator:
    arg.aggregator = 'netvlad'
  config = images.get_config('SeqVLAD', arg)
  config.data.num_frames = arg.frames
  if arg.dataset == 'synthetic_city':
    config.data.frame_stride = 2  # maps and queries have a frame every 2.5 m
    config.data.training = dict(frame_stride=1)  # and training every 5 m
  config.loss = images.loss('multi_similarity')
  config.sampling = images.places()
  if arg.recipe == 'released':
    images.release_triplets(config, arg, num_negatives=5)
  if arg.fusion != 'set':
    inner = config.model.aggregator
    config.model.aggregator = dict(
      name='fusion', form=arg.fusion, inner=inner.to_dict()
    )
  return config
