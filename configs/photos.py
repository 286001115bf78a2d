# SPDX-License-Identifier: Apache-2.0
"""Photos against photos, by the descriptors of a published network.

python main.py --config=configs/photos.py --mode=evaluate --data_dir=FOLDER

Nothing is trained. FOLDER holds database/ and queries/, or photos of one
folder, which ask each other; see docs/photos.md for where positions come from.
--mode=evaluate measures recall and leaves a map of the database, which
--mode=localize --query=PATH asks; --mode=report shows both.

Expect R@1 of 93 % in Milford's corridor (chance 4.5 %) and of 92 % within 10 m
on the walk in Lund that comes with OpenSfM (chance 12 %), of 111 and 13
queries. Measured 2026-12-01, six vocabularies each.

Arguments after the colon:
  checkpoint=: workdir of a run that was trained on images, such as that of
    configs/cos_place.py: its tower describes the photos, at its image size
  encoder=efficientnet_lite0@5: a name of `i2ploc.models.weights.sources`
    (dinov2_small, eigenplaces_resnet50_2048, ...), a folder or file of weights,
    or a repository of the Hugging Face hub, OWNER/NAME. NAME@8 are the features
    of block or stage 8, NAME@8.value its values; A@7+A@8+B are several, whose
    descriptors are joined
  pooling=vlad | cls | mean | gem | released: of the encoder's tokens; VLAD has
    words of the database, cls is for transformers, and released is what a
    released place-recognition network was trained with; without it what suits
    the encoder: released of a released network, VLAD of efficientnet_lite0, cls
    of a transformer, else gem
  words=32: of VLAD, which they imply
  whitening=0: numbers to which descriptors are whitened, as the database has
    them; fewer than its photos
  image_size=: height x width that photos get, multiples of a transformer's
    patch; by default 336x448, or 224x224 of an encoder that is named. Released
    networks have sizes of their own
  radius=25: metres (or frames, see data.positions) within which an answer is
    right
"""

import json
import pathlib

import ml_collections

from configs import common

# What does best without training, see benchmarks/place_recognition.py.
ENCODER, IMAGE_SIZE = 'efficientnet_lite0@5', '336x448'
WORDS = 32
POOLING = {
  'default': dict(name='default'),
  'cls': dict(name='first'),
  'mean': dict(name='mean', features=0),
  'gem': dict(name='gem', features=0),
  'vlad': dict(name='vlad'),
  'released': dict(name='published'),
}


def get_config(text: str | None = None) -> ml_collections.ConfigDict:
  """The config; see the module for the arguments."""
  arg = common.parse_arg(
    text,
    checkpoint='',
    encoder='',
    pooling='',
    words=0,
    whitening=0,
    image_size='',
    radius=25.0,
  )
  pooling = arg.pooling or ('vlad' if arg.words else 'default')
  common.choice('pooling', pooling, POOLING)
  if arg.words and pooling != 'vlad':
    raise ValueError(f'words={arg.words} are of pooling=vlad, not of {pooling}')
  encoder = arg.encoder or ENCODER
  size = arg.image_size or ('224x224' if arg.encoder else IMAGE_SIZE)
  config = common.defaults()
  del config.train, config.optimizer
  del config.evaluation.select, config.evaluation.exclude_self
  config.name = encoder
  if pooling != 'default':
    config.name += f', {pooling}'
  config.task = 'places'
  config.query_side = config.map_side = 'image'
  config.checkpoint = encoder
  checkpoint = config.get_oneway_ref('checkpoint')
  config.data = dict(
    name='photos',
    train='',
    validation='',
    test='all',  # or names of towns, where a folder holds several
    image_size=common.image_size(size),
    resize='stretch',  # crop: see `i2ploc.geometry.resizing`
    query_resize='',  # the same of photos that ask: five_crops, nearest_crop
    database='database',
    queries='queries',
    query_every=0,  # N: of one folder every N-th photo asks the others
    positions='',  # a file in the folder, order or none; '' for names and EXIF
  )
  config.model = dict(
    image=dict(name='published', checkpoint=checkpoint),
    aggregator=POOLING[pooling],
    aggregate_cls=pooling == 'cls',
    whitening=arg.whitening,
    saliency='none',
    dtype='float32',
  )
  if pooling == 'vlad':
    config.model.aggregator.num_clusters = arg.words or WORDS
  config.evaluation.update(
    batch_size=16,
    radii=(arg.radius,),
    descriptors='',  # npy, or h5 as hloc reads them: to keep them
  )
  config.index.update(views=(0.0,), radius=arg.radius)
  if arg.checkpoint:
    _take_run(config, arg)
  return config


def _take_run(config, arg):
  """The tower of images of a run."""
  path = pathlib.Path(arg.checkpoint).expanduser() / 'config.json'
  if not path.exists():
    raise ValueError(
      f'checkpoint={arg.checkpoint}: no {path.name} in it; expected the workdir'
      ' of a run. Published weights are named by encoder='
    )
  others = [k for k in ('encoder', 'pooling', 'words', 'image_size') if arg[k]]
  if others:
    raise ValueError(
      f'checkpoint={arg.checkpoint} with {others}: a run has its own.'
    )
  run = common.tuples(json.loads(path.read_text()))
  model = run.get('model', {})
  if 'image' not in model or 'text' in model or run['query_side'] != 'image':
    raise ValueError(
      f'checkpoint={arg.checkpoint}: {run["name"]} finds no places by images'
    )
  config.name = run['name']
  config.model = model | dict(
    points=None, rendering=None, whitening=arg.whitening
  )
  config.checkpoint = arg.checkpoint
  config.data.image_size = run['data']['image_size']
  if model['aggregator']['name'] == 'fusion':
    config.data.num_frames = run['data']['num_frames']
  if model.get('projection') == 'overhead':
    config.index.views = run['index']['views']
