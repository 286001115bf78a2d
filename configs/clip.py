# SPDX-License-Identifier: Apache-2.0
"""A small CLIP of a town's objects, trained on generated captions.

python main.py --mode=train --workdir=/tmp/clip --config=configs/clip.py

Radford et al., ICML 2021, at the size of a laptop: crops of 32 x 32 pixels with
context, texts of a closed vocabulary ('a tall red brick house with a gabled
roof'), InfoNCE in which equal texts are all right. It knows nothing but
synthetic_city; for photographs, see `i2ploc.models.weights.clip`.

Expect 29 % of the detections of a later drive of the test towns to find their
landmark first among those within 50 m, and 59 % among three (by category 14 and
36, by chance 3 and 9). Measured 2026-11-21, one seed.

Arguments after the colon:
  size=small (tiny, small, default, full)
"""

import ml_collections

from configs import common

# The words in captions of synthetic_city, without those that hold for a moment
# only (parked, covered with snow).
WORDS = (
  *('a', 'an', 'in', 'like', 'with'),
  *('black', 'blue', 'brown', 'cream', 'dark', 'green', 'grey', 'ochre'),
  *('orange', 'pink', 'red', 'silver', 'white', 'yellow'),
  *('high', 'low', 'old', 'small', 'tall'),
  *('brick', 'electrical', 'glass', 'metal', 'wooden'),
  *('apartment', 'block', 'church', 'hall', 'house', 'shed', 'villa'),
  *('flat', 'gabled', 'roof', 'shelter'),
  *('birch', 'cherry', 'fir', 'lime', 'maple', 'poplar', 'tree', 'hedge'),
  *('bench', 'bin', 'bollard', 'cabinet', 'fence', 'lamp', 'light', 'road'),
  *('sign', 'stop', 'street', 'traffic', 'wall'),
  *('bus', 'car', 'estate', 'hatchback', 'off', 'pedestrian', 'saloon', 'van'),
)
# (H, W) of the images of a size.
IMAGE_SIZE = {
  'tiny': (64, 208),
  'small': (64, 208),
  'default': (128, 416),
  'full': (376, 1241),
}


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  arg = common.parse_arg(text, size='small')
  common.choice('size', arg.size, IMAGE_SIZE)
  config = common.defaults()
  del (
    config.checkpoint,
    config.index,
    config.sequence,
    config.query_side,
    config.map_side,
  )
  config.task = 'captions'
  config.name = 'CLIP'
  config.margin = 0.15  # context on every side of a box, of its longer side
  config.data = dict(
    name='synthetic_city',
    size=arg.size,
    camera='pinhole',
    sensors='kitti',
    train='train',
    validation='validation',
    test='test',
    image_size=IMAGE_SIZE[arg.size],
    crops=dict(
      per_image=8,  # objects that a batch takes of an image
      min_pixels=30,  # that show an object
      min_side=5,
      min_share=0.2,  # of a box that shows its object
    ),
  )
  config.model = dict(
    image_size=(32, 32),
    image=dict(
      name='vit',
      width=96,
      depth=2,
      num_heads=4,
      stem_widths=(16, 32, 64),
      stem_strides=((2, 2), (2, 2), (2, 2)),
      residual_init_scale=0.1,
    ),
    text=dict(
      width=64, depth=2, num_heads=4, max_length=14, residual_init_scale=0.1
    ),
    words=WORDS,
    features=128,
    dtype='float32',
    image_mean=(0.45, 0.45, 0.45),
    image_std=(0.25, 0.25, 0.25),
    initial_temperature=0.1,
  )
  config.loss = dict(name='info_nce', form='clip')
  config.train = dict(
    batch_size=32,  # images
    num_steps=2000,
    num_chunks=1,
    ema_decay=0.99,
    eval_every=500,
    save_every=200,
    color_jitter=0.15,  # colours are words
    mirror=True,
    box_jitter=0.15,
  )
  config.evaluation = dict(
    num_frames=120,  # of every protocol
    radius=50.0,  # metres within which landmarks may answer
    select='validation/cross/association@1',
  )
  return config
