# SPDX-License-Identifier: Apache-2.0
"""Photos against photos, by the descriptors of a published encoder.

python main.py --mode=evaluate --workdir=/tmp/photos --data_dir=FOLDER \
  --config=configs/photos.py:encoder=dinov2_small,pooling=gem

Nothing is trained. FOLDER holds database/ and queries/, or photos of one
folder, which ask each other; see `input_pipeline.readers.photos` for where
positions come from. --mode=index makes a map of the database, --mode=localize
--query=PATH asks it, --mode=report shows both.

Expect R@1 of 83 % within 25 m (chance 21 %) of the 29 photos of Lund that come
with OpenSfM, by encoder=focus_vit_s14,pooling=cls, 10 seconds on two cores
after compiling. Measured 2026-11-30.

Arguments after the colon:
  encoder=dinov2_small: a name of `i2ploc.models.weights.sources` (dinov2_base,
    resnet50, ...), a folder or file of weights, or a repository of the Hugging
    Face hub, OWNER/NAME: ViT, DINOv2, the image side of CLIP, or ResNet.
    focus_vit_s14 comes from the Python index where the hub is out of reach; it
    was fine-tuned for something else
  pooling=cls | mean | gem: of the encoder's tokens; ResNets have no cls
  image_size=224x224: height x width to which photos are stretched, multiples of
    the encoder's patch
"""

import ml_collections

from configs import common

POOLING = {
  'cls': dict(name='first'),
  'mean': dict(name='mean', features=0),
  'gem': dict(name='gem', features=0),
}


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  arg = common.parse_arg(
    text, encoder='dinov2_small', pooling='cls', image_size='224x224'
  )
  pooling = common.choice('pooling', arg.pooling, POOLING)
  config = common.defaults()
  del config.seed, config.train, config.optimizer
  del config.evaluation.select, config.evaluation.exclude_self
  config.name = f'{arg.encoder}, {pooling}'
  config.task = 'places'
  config.query_side = config.map_side = 'image'
  config.checkpoint = arg.encoder
  config.data = dict(
    name='photos',
    train='',
    validation='',
    test='all',
    image_size=_image_size(arg.image_size),
    database='database',
    queries='queries',
    query_every=0,  # N: of one folder every N-th photo asks the others
    positions='',  # a CSV file in the folder, or none; '' for names and EXIF
  )
  config.model = dict(
    image=dict(
      name='published', checkpoint=config.get_oneway_ref('checkpoint')
    ),
    aggregator=POOLING[pooling],
    aggregate_cls=pooling == 'cls',
    saliency='none',
    dtype='float32',
  )
  config.evaluation.update(
    batch_size=16,
    radii=(25.0,),  # metres, as is usual for photos
  )
  config.index.update(views=(0.0,), radius=25.0)
  return config


def _image_size(text: str) -> tuple[int, int]:
  """(H, W) of 'HxW'."""
  parts = text.split('x')
  if len(parts) != 2 or not all(part.isdigit() for part in parts):
    raise ValueError(f'image_size={text!r}: expected HEIGHTxWIDTH, as 224x224')
  return int(parts[0]), int(parts[1])
