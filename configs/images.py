# SPDX-License-Identifier: Apache-2.0
"""What all configs of images among images share: data, tower, training.

Their arguments after the colon, beside those of each:
  dataset=synthetic_city | photos: towns of the embedded data set, or a folder
    with train/, val/ and test/, each with database/ and queries/ (see
    docs/photos.md for where positions come from)
  recipe=ours | released: released has the authors' own numbers
  backbone=small | resnet18 | resnet50 | a name or folder of published weights,
    which training then starts from
  aggregator=mixvpr | gem | netvlad | salad | boq; vlad, which is not trained,
    for published weights that are named by --config.checkpoint
  image_size=HEIGHTxWIDTH: of photos
  size=small: of synthetic_city: tiny, small, default, full
  towns=16: that synthetic_city trains on
  pretrained=: a folder, a name of published weights or the workdir of a run,
    to start from
"""

import math

import ml_collections

from configs import common

ARGUMENTS = dict(
  dataset='synthetic_city',
  recipe='ours',
  backbone='',
  aggregator='',
  image_size='',
  size='small',
  towns=16,
  pretrained='',
)
DATASETS = ('synthetic_city', 'photos')
AGGREGATORS = ('mixvpr', 'gem', 'netvlad', 'salad', 'boq', 'vlad')
STRIDES = {'small': (16, 8), 'resnet18': (32, 32), 'resnet50': (32, 32)}
SIZES = {'tiny': (48, 160), 'small': (64, 208), 'default': (128, 416)}


def get_config(
  name: str, arg: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
  """The config that a method starts from; no loss and no sampling yet.

  Args:
    name: of the method.
    arg: `ARGUMENTS`, parsed.
  """
  common.choice('dataset', arg.dataset, DATASETS)
  common.choice('recipe', arg.recipe, ('ours', 'released'))
  config = common.defaults()
  config.name = name
  config.query_side = config.map_side = 'image'
  config.index.views = (0.0,)
  del config.train.color_jitter, config.train.mirror
  del config.train.yaw, config.train.cutout
  config.train.update(
    batch_size=64,
    num_steps=240,
    eval_every=120,
    save_every=60,
    pretrained=arg.pretrained,
    fit_clusters=False,  # NetVLAD starts at clusters of the data
  )
  config.optimizer.update(
    warmup_steps=10,
    trainable=(),  # patterns of paths, such as '*norm*'; () for everything
    class_learning_rate=1e-2,  # of class weights, by Adam of their own
  )
  config.augmentation = dict(
    color_jitter=0.4,
    hue=0.0,
    mirror=True,  # all images of a town alike
    crop_area=1.0,  # smallest share of an image that is taken
    mixing=0.0,  # share of images that look like those of a target domain
    look_field=0.0,  # radians of panoramas that are looked at; 0 for images
    overhead=None,
    frozen=(),
  )
  backbone = arg.backbone or 'small'
  size = _image_size(arg, backbone)
  config.data = dict(
    name=arg.dataset,
    image_size=size,
    num_frames=1,  # images of a reading
    frame_stride=1,
    **_splits(arg),
  )
  if arg.dataset == 'synthetic_city':
    config.data.size = arg.size
    config.evaluation.select = 'validation/cross/image_to_image/recall@1_10m'
  else:
    config.evaluation.select = 'validation/photos/image_to_image/recall@1_25m'
    config.evaluation.radii = (25.0,)
    config.evaluation.descriptors = ''  # see configs.photos
    del config.evaluation.exclude_self  # photos are never their own answers
    config.index.radius = 25.0
  config.model = dict(
    image=_backbone(backbone),
    points=None,
    aggregator=aggregator(arg.aggregator or 'mixvpr', backbone, size),
    saliency='none',
    dtype='float32',
    initial_temperature=0.07,
  )
  if backbone not in STRIDES:
    if not arg.pretrained:
      config.train.pretrained = backbone
    # What published weights know is not to be learned again.
    config.optimizer.update(learning_rate=1e-4, matrix_learning_rate=1e-3)
    config.train.fit_clusters = arg.aggregator == 'netvlad'
  return config


def aggregator(name: str, backbone: str, size: tuple[int, int]) -> dict:
  """An aggregator of few numbers, for small towers.

  Args:
    name: of AGGREGATORS.
    backbone: see the module.
    size: (H, W) of images, pixels.
  """
  common.choice('aggregator', name, AGGREGATORS)
  if name == 'mixvpr':
    if backbone not in STRIDES:
      raise ValueError(
        f'aggregator=mixvpr with backbone={backbone}: it needs to know the grid'
        ' of the tokens. Choose gem, netvlad, salad or boq.'
      )
    rows, columns = (
      math.ceil(n / s) for n, s in zip(size, STRIDES[backbone], strict=True)
    )
    return dict(
      name='mixvpr', grid=(rows, columns), channels=64, rows=8, depth=2
    )
  netvlad = dict(num_clusters=16, features=512, norm='layer')
  if backbone not in STRIDES:  # as VLAD has them
    netvlad = dict(num_clusters=32, features=0, norm='none')
  return {
    'gem': dict(name='gem', features=512, unit_tokens=True, epsilon=1e-6),
    'netvlad': dict(name='netvlad', **netvlad),
    'salad': dict(
      name='salad', num_clusters=16, cluster_features=32, token_features=64
    ),
    'boq': dict(name='boq', channels=64, num_queries=16, depth=1, rows=8),
    'vlad': dict(name='vlad', num_clusters=32),
  }[name]


def _backbone(name):
  """An image encoder by name."""
  if name == 'small':
    return dict(
      name='vit',
      width=96,
      depth=1,
      num_heads=4,
      residual_init_scale=0.1,
      stem_widths=(24, 48, 96),
      stem_strides=((4, 4), (2, 2), (2, 1)),
    )
  if name == 'resnet18':
    return dict(
      name='resnet', depths=(2, 2, 2, 2), expansion=1, block_kind='basic'
    )
  if name == 'resnet50':
    return dict(name='resnet')
  return dict(name='published', checkpoint=name)


def _splits(arg):
  """Train, validation and test in the dataset's own terms."""
  if arg.dataset == 'photos':
    return dict(
      train='train',
      validation='val',
      test='test',
      resize='stretch',
      query_resize='',
      database='database',
      queries='queries',
      query_every=0,
      positions='',
    )
  towns = f'train[:{arg.towns}]' if arg.size != 'tiny' else 'train'
  return dict(train=towns, validation='validation', test='test')


def _image_size(arg, backbone):
  """(H, W) of the images, pixels."""
  if arg.dataset == 'synthetic_city':
    if arg.image_size:
      raise ValueError(
        f'image_size={arg.image_size} is of photos; synthetic_city has size='
      )
    return SIZES.get(arg.size, (376, 1241))
  text = arg.image_size or ('128x160' if backbone == 'small' else '224x224')
  return common.image_size(text)


def places() -> dict:
  """Batches of places with two views each, from different drives."""
  return dict(
    name='places',
    steps=60,
    num_views=2,
    max_offset=4.0,  # metres
    cross_drive=0.85,
    town_run=8,  # negatives in the same streets
    by_frame=False,
    even_conditions=False,
  )


def loss(name: str) -> dict:
  """A loss on places: those that are near each other count for nothing."""
  fields = {
    'multi_similarity': dict(
      alpha=1.0,
      beta=50.0,
      threshold=0.5,
      mining='informative',
      mining_margin=0.1,
    ),
    'info_nce': dict(form='clip'),
  }[name]
  return dict(
    name=name,
    positive_radius=0.0,
    ignore_radius=8.0,
    neutral=True,
    adversary=0.0,
    **fields,
  )


def triplets() -> dict:
  """All triplets of a batch; positives are those of a query."""
  return dict(
    name='triplet',
    mining='all',
    margin=0.1,
    positive_radius=0.0,
    ignore_radius=25.0,
  )


def release_triplets(
  config: ml_collections.ConfigDict,
  arg: ml_collections.ConfigDict,
  num_negatives: int,
) -> None:
  """Triplets of the Deep VG benchmark, which others took over.

  Args:
    config: is changed.
    arg: `ARGUMENTS`, parsed; what it names stays.
    num_negatives: of each of four queries in a batch.
  """
  release(config, arg, pooling='netvlad', image_size='480x640')
  config.augmentation.color_jitter = 0.0
  config.loss = triplets()
  config.sampling = dict(
    name='mined',
    steps=250,
    mining='partial',
    num_negatives=num_negatives,
    pool=1000,
    positive_radius=10.0,
    negative_radius=25.0,
  )
  config.train.update(
    batch_size=4 * (2 + num_negatives),
    num_steps=62_500,
    eval_every=1_250,
    save_every=250,
    fit_clusters=True,
  )


def release(
  config: ml_collections.ConfigDict,
  arg: ml_collections.ConfigDict,
  *,
  pooling: str,
  image_size: str,
) -> None:
  """What recipes of the authors share: plain Adam with 1e-5, no averages.

  Args:
    config: is changed.
    arg: `ARGUMENTS`, parsed; what it names stays.
    pooling: of AGGREGATORS, in the released form unless the argument names one.
    image_size: of photos.
  """
  backbone = arg.backbone or 'small'
  if arg.dataset == 'photos' and image_size and not arg.image_size:
    config.data.image_size = common.image_size(image_size)
  size = config.data.image_size
  config.optimizer.update(
    learning_rate=1e-5,
    matrix_learning_rate=0.0,
    warmup_steps=0,
    weight_decay=0.0,
    clip_norm=1e9,  # none
    final_fraction=1.0,
  )
  config.train.ema_decay = 0.0
  config.augmentation.mirror = False
  if backbone.startswith('resnet'):
    if pooling in ('mixvpr', 'netvlad'):  # ends with the third stage
      config.model.image.widths = (64, 128, 256)
      config.model.image.depths = (
        (2, 2, 2) if backbone == 'resnet18' else (3, 4, 6)
      )
    else:
      config.optimizer.trainable = (
        'image/stage[23]*',
        'image_aggregator*',
        'loss*',
      )
  if arg.aggregator:
    return
  if pooling == 'mixvpr' and backbone == 'small':
    config.model.aggregator = aggregator(pooling, backbone, size)
  elif pooling == 'mixvpr':
    cells = tuple(math.ceil(n / 16) for n in size)
    config.model.aggregator = dict(
      name='mixvpr', grid=cells, channels=1024, rows=4, depth=4
    )
  elif pooling == 'netvlad':
    config.model.aggregator = dict(
      name='netvlad', num_clusters=64, features=0, norm='none', epsilon=1e-12
    )
  else:
    config.model.aggregator = dict(
      name='gem', features=512, unit_tokens=True, epsilon=1e-6, use_bias=True
    )
