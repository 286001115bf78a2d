# SPDX-License-Identifier: Apache-2.0
"""GSV-Cities (Ali-bey et al., 2022): batches of places with several views each.

python main.py --mode=train --config=configs/gsv_cities.py \
  --workdir=/tmp/gsv_cities
python main.py --mode=train --workdir=DIR --data_dir=FOLDER \
  --config=configs/gsv_cities.py:dataset=photos,recipe=released

The way in which Conv-AP, MixVPR, SALAD, BoQ and MegaLoc are trained. Arguments:
see `configs.images`, and

  loss=multi_similarity | info_nce: the latter is LIP-Loc's
  parts=all | last | norms: of a published transformer what is trained, the
    last four blocks or norms and adapters; others keep their weights and have
    no optimizer state

ours: 32 places with 2 views from different drives, negatives of the same
  streets; near places are ignored.
released: MixVPR of ResNet-50's third stage, 120 places with 4 views, 320 x 320.
"""

import ml_collections

from configs import common
from configs import images

PARTS = {
  'all': (),
  'last': ('image/blocks_8*', 'image/blocks_9*', 'image/blocks_1[01]*',
           'image_aggregator*', 'log_scale'),
  'norms': ('*norm*', '*adapter*', 'image_aggregator*', 'log_scale'),
}  # fmt: skip


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  arg = common.parse_arg(
    text, loss='multi_similarity', parts='all', **images.ARGUMENTS
  )
  common.choice('loss', arg.loss, ('multi_similarity', 'info_nce'))
  common.choice('parts', arg.parts, PARTS)
  config = images.get_config('GSV-Cities', arg)
  config.loss = images.loss(arg.loss)
  config.sampling = images.places()
  config.optimizer.trainable = PARTS[arg.parts]
  if arg.parts == 'norms' and config.model.image.name == 'published':
    config.model.image.adapter = 64
  if arg.recipe == 'released':
    images.release(config, arg, pooling='mixvpr', image_size='320x320')
    if arg.loss == 'multi_similarity':
      config.loss.threshold = 0.0
    config.augmentation.update(color_jitter=0.0)
    config.sampling.update(steps=500, num_views=4, town_run=1, max_offset=10.0)
    config.optimizer.update(
      learning_rate=0.05, momentum=0.9, weight_decay=1e-3, warmup_steps=650
    )
    config.train.update(
      batch_size=480,
      num_chunks=1,
      num_steps=15_000,
      eval_every=500,
      save_every=100,
    )
  return config
