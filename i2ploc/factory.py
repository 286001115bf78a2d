# SPDX-License-Identifier: Apache-2.0
"""The only place where the strings of a config become code.

Every function takes the plain values of one sub-dict of a config as keyword
arguments: an unknown key dies here, and a notebook can call all of it.
"""

from collections.abc import Callable
from collections.abc import Mapping
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.geometry import augmentation
from i2ploc.geometry import cropping
from i2ploc.geometry import range_image
from i2ploc.losses import contrastive
from i2ploc.losses import metric
from i2ploc.losses import relational
from i2ploc.losses import soft_targets
from i2ploc.losses import tiled
from i2ploc.losses import tiles
from i2ploc.models import aggregators
from i2ploc.models import fusion
from i2ploc.models import mixing
from i2ploc.models import projection as projection_lib
from i2ploc.models import queries
from i2ploc.models import salad
from i2ploc.models import saliency as saliency_lib
from i2ploc.models import towers as towers_lib
from i2ploc.models import views
from i2ploc.models import vlad
from i2ploc.models import whitening as whitening_lib
from i2ploc.models.encoders import efficientnet
from i2ploc.models.encoders import point_transformer
from i2ploc.models.encoders import resnet
from i2ploc.models.encoders import text as text_lib
from i2ploc.models.encoders import vgg
from i2ploc.models.encoders import vit
from i2ploc.models.encoders import vocabulary
from i2ploc.models.weights import names
from i2ploc.models.weights import published
from i2ploc.retrieval import relations as relations_lib
from i2ploc.training import optimizer as optimizer_lib
from i2ploc.training import step as step_lib

Fields = Mapping[str, Any]

IMAGE_ENCODERS = {
  'efficientnet': efficientnet.EfficientNetLite0,
  'published': published.make_encoder,
  'resnet': resnet.ResNet,
  'vgg': vgg.VGG,
  'vit': vit.ViT,
}
POINTS_ENCODERS = {
  'point_transformer': point_transformer.PointTransformer,
  **IMAGE_ENCODERS,  # on range images
}


def _fusion(*, inner: Fields, **fields: Any) -> fusion.Fusion:
  """See `fusion.Fusion`; `inner` is a sub-dict of a config like its own."""
  # Weights of a release, and words of a map, have no place inside another.
  known = set(AGGREGATORS) - {'fusion', 'published', 'vlad'}
  table = {name: AGGREGATORS[name] for name in known}
  return fusion.Fusion(make(table, 'inner aggregator', inner), **fields)


AGGREGATORS = {
  'boq': queries.BoQ,
  'first': aggregators.FirstToken,
  'fusion': _fusion,
  'gem': aggregators.GeM,
  'mean': aggregators.Mean,
  'mixvpr': mixing.MixVPR,
  'netvlad': vlad.NetVLAD,
  'projection': projection_lib.ProjectionHead,
  'published': published.make_aggregator,
  'salad': salad.SALAD,
  'vlad': vlad.VLAD,
}
SALIENCIES = {
  'attention': saliency_lib.AttentionSaliency,
  'none': lambda: None,
  'released': saliency_lib.RecomputedSaliency,
}
# Radians. Turned further, a pinhole image is mostly what it had not seen.
MAX_YAW = {'pinhole': 0.5, 'equirectangular': math.pi}


def make(table: Mapping[str, Callable], kind: str, fields: Fields) -> Any:
  """What `fields['name']` names, made of the other fields."""
  fields = dict(fields)
  name = fields.pop('name')
  if name not in table:
    raise InputError(f'Unknown {kind} {name!r}; known: {sorted(table)}.')
  try:
    return table[name](**fields)
  except TypeError as error:
    raise InputError(f'{kind} {name!r}: {error}') from error


def make_model(
  *, points: Fields | None = None, text: Fields | None = None, **fields: Any
) -> towers_lib.Towers:
  """The towers of a config: images against scans, texts, renderings or images.

  Args:
    points: the LiDAR encoder: `name` of POINTS_ENCODERS and its attributes.
    text: attributes of `TextTransformer`.
    **fields: see `make_image_and_text` with a text, else `make_places`.

  Raises:
    InputError: an unknown name or attribute.
  """
  try:
    if text is not None:
      return make_image_and_text(text=text, **fields)
    return make_places(points=points, **fields)
  except TypeError as error:
    raise InputError(f'model: {error}') from error


def make_places(
  *,
  image: Fields,
  points: Fields | None,
  aggregator: Fields,
  dtype: str,
  image_size: tuple[int, int],
  rendering: Fields | None = None,
  frames: int = 1,
  projection: str = 'pinhole',
  saliency: str = 'attention',
  aggregate_cls: bool = False,
  whitening: int = 0,
  num_points: int = 1024,
  azimuth_margin: float = 0.05,
  range_shape: tuple[int, int] | None = None,
  range_encoding: str = 'channels',
  scan_shape: tuple[int, int] = range_image.SPHERICAL_SHAPE,
  range_crop: bool = True,
  max_range: float = math.inf,
  elevation_bounds: tuple[float, float] = (-0.44, 0.05),
  image_mean: tuple[float, float, float] | None = None,
  image_std: tuple[float, float, float] | None = None,
  initial_temperature: float = 0.07,
  initial_bias: float | None = None,
) -> towers_lib.Towers:
  """Towers {'image'}, with 'points' or 'rendering' if they have an encoder.

  Args:
    image: the image encoder: `name` of IMAGE_ENCODERS and its attributes. A
      published one may name several, see `names`: towers beside each other.
    points: the LiDAR encoder: `name` of POINTS_ENCODERS and its attributes; an
      image encoder if `range_shape` is given. None for no LiDAR.
    aggregator: of each tower (an own instance each): `name` of AGGREGATORS and
      its attributes; or of the name 'default', what suits the image encoder,
      see `with_default_pooling`.
    dtype: of the encoders' computation, 'float32' or 'bfloat16'.
    image_size: (H, W), pixels.
    rendering: the encoder of renderings, as `image` and of its images' size and
      kind; None for none (MeshVPR, Berton et al., ECCV 2024).
    frames: T of the sequences of images, see `views.Image`.
    projection: of images, see `views.Image`.
    saliency: of SALIENCIES.
    aggregate_cls: see `towers.Tower`.
    whitening: numbers to which descriptors are whitened, as the map has them,
      see `whitening.Whitening`; 0 for none.
    num_points: see `views.Field`.
    azimuth_margin: see `views.Field`.
    range_shape: (H, W) of the range image; None for a point encoder.
    range_encoding: see `views.RangeImage`.
    scan_shape: see `views.RangeImage`.
    range_crop: see `views.RangeImage`.
    max_range: see `views.RangeImage`.
    elevation_bounds: see `views.RangeImage`.
    image_mean: per channel, of images (and released range images) in 0..1; None
      for what a published encoder was trained with, else that of the view.
    image_std: per channel; None as for `image_mean`.
    initial_temperature: see `towers.Towers`.
    initial_bias: see `towers.Towers`.

  Raises:
    InputError: an unknown name or attribute.
  """
  compute = dict(dtype=jnp.dtype(dtype))
  given = dict(mean=image_mean, std=image_std)
  given = {k: tuple(v) for k, v in given.items() if v is not None}
  size = tuple(image_size)

  def tower(view, encoder, pooling=aggregator, with_cls=aggregate_cls):
    return towers_lib.Tower(
      view,
      encoder,
      make(AGGREGATORS, 'aggregator', pooling),
      make(SALIENCIES, 'saliency', {'name': saliency}),
      with_cls,
    )

  def image_tower(image, reading):
    pooling, with_cls = aggregator, aggregate_cls
    if pooling.get('name') == 'default':
      image, pooling, with_cls = with_default_pooling(image)
    if pooling.get('name') == 'published' and 'checkpoint' in image:
      pooling = {**pooling, 'checkpoint': image['checkpoint']}
      published.check_image_size(image['checkpoint'], size)
    pixels = _pixels(image) | given
    view = views.Image(
      size, projection, **pixels, reading=reading, frames=frames
    )
    encoder = make(IMAGE_ENCODERS, 'image encoder', {**image, **compute})
    return tower(view, encoder, pooling, with_cls)

  head = whitening_lib.Whitening(whitening) if whitening else None
  towers = {}
  for side, fields in (('image', image), ('rendering', rendering)):
    if fields is not None:
      first, *others = (image_tower(one, side) for one in _beside(fields))
      towers[side] = first._replace(beside=tuple(others), head=head)
  if points is not None:
    view = views.PointCloud(
      views.Field(size, projection, num_points, azimuth_margin)
    )
    if range_shape is not None:
      view = views.RangeImage(
        view.field,
        tuple(range_shape),
        range_encoding,
        tuple(scan_shape),
        range_crop,
        max_range,
        tuple(elevation_bounds),
        **(_pixels(image) | given),
      )
    encoder = make(POINTS_ENCODERS, 'points encoder', {**points, **compute})
    towers['points'] = tower(view, encoder)._replace(head=head)
  return towers_lib.Towers(towers, initial_temperature, initial_bias)


def _pixels(image: Fields) -> dict[str, Any]:
  """Mean and deviation of the images of a published encoder."""
  if image.get('name') != 'published':
    return {}
  return published.normalization(image['checkpoint'])._asdict()


def _beside(image: Fields) -> list[Fields]:
  """The encoders of towers beside each other."""
  if image.get('name') != 'published':
    return [image]
  return [
    {**image, 'checkpoint': name} for name in names.split(image['checkpoint'])
  ]


def with_default_pooling(image: Fields) -> tuple[Fields, Fields, bool]:
  """What works for an image encoder where nothing else is asked for.

  Args:
    image: the image encoder: `name` of IMAGE_ENCODERS and its attributes.

  Returns:
    image: the same, perhaps with other features than its last.
    aggregator: that of a release with its release; VLAD for EfficientNet, whose
      words have to be fitted to a map; the CLS token where there is one; else
      GeM.
    aggregate_cls: see `towers.Tower`.

  Raises:
    InputError: an unknown name or attribute.
  """
  checkpoint = image.get('checkpoint')
  if checkpoint is not None and published.image_size(checkpoint) is not None:
    return image, dict(name='published', checkpoint=checkpoint), False
  encoder = make(IMAGE_ENCODERS, 'image encoder', image)
  if isinstance(encoder, efficientnet.EfficientNetLite0):
    # What does best, see benchmarks/place_recognition.py.
    if checkpoint is None:
      image = {'stage': 5, **image}
    elif names.parse(checkpoint).layer is None:
      image = {**image, 'checkpoint': f'{checkpoint}@5'}
    return image, dict(name='vlad'), False
  if encoder.has_cls:
    return image, dict(name='first'), True
  return image, dict(name='gem', features=0), False


def make_image_and_text(
  *,
  image: Fields,
  text: Fields,
  words: tuple[str, ...],
  dtype: str,
  image_size: tuple[int, int],
  features: int,
  image_mean: tuple[float, float, float],
  image_std: tuple[float, float, float],
  initial_temperature: float = 0.07,
  initial_bias: float | None = None,
) -> towers_lib.Towers:
  """Towers {'image', 'text'} with a closed vocabulary, as of CLIP.

  Args:
    image: the image encoder: `name` of IMAGE_ENCODERS and its attributes; its
      CLS token is taken.
    text: attributes of `TextTransformer`.
    words: the vocabulary, see `vocabulary`.
    dtype: of the encoders' computation, 'float32' or 'bfloat16'.
    image_size: (H, W) of a crop, pixels.
    features: width of the descriptors.
    image_mean: per channel, of images in 0..1.
    image_std: per channel.
    initial_temperature: see `towers.Towers`.
    initial_bias: see `towers.Towers`.

  Raises:
    InputError: an unknown name or attribute.
  """
  compute = dict(dtype=jnp.dtype(dtype))
  numbers = dict(vocabulary_size=vocabulary.size(words), end=vocabulary.END)
  return towers_lib.image_and_text(
    make(IMAGE_ENCODERS, 'image encoder', {**image, **compute}),
    text_lib.TextTransformer(**text, **numbers, **compute),
    views.Image(
      tuple(image_size), mean=tuple(image_mean), std=tuple(image_std)
    ),
    features,
    initial_temperature=initial_temperature,
    initial_bias=initial_bias,
  )


class Embedding(NamedTuple):
  """What a loss gets of one side of a batch.

  Attributes:
    descriptor: [B, D].
    features: [B, D] the same before the last normalisation.
  """

  descriptor: jax.Array
  features: jax.Array


def make_embed(
  model: towers_lib.Towers,
  *,
  color_jitter: float,
  mirror: bool,
  yaw: float,
  cutout: bool,
) -> step_lib.Embed:
  """The training side of a model: augmentation on device, then all towers.

  Args:
    model: the towers, 'image' and 'points'.
    color_jitter: strength, see `augmentation.color_jitter`; 0 for none.
    mirror: whether half of the pairs are mirrored.
    yaw: largest angle by which pairs are turned to either side, radians, see
      `augmentation.turn`; 0 for none, pi for all around.
    cutout: whether rectangles are cut out of what image encoders are given, of
      either tower on its own, see `augmentation.cutout`.

  Returns:
    `params, model_state, batch, key -> embeddings, model_state`, see
    `step.make_train_step`; an `Embedding` by side.

  Raises:
    InputError: a yaw that the images cannot be turned by.
  """
  projection = model.image_view.projection
  limit = MAX_YAW[projection]
  if not 0.0 <= yaw <= limit:
    raise InputError(
      f'yaw={yaw}: expected 0 to {limit:.3f} radians for {projection} images'
    )

  def embed(params, model_state, batch, key):
    keys = jax.random.split(key, 3)
    batch = dict(batch, image=batch['image'].astype(jnp.float32) / 255.0)
    if color_jitter:
      image = augmentation.color_jitter(keys[0], batch['image'], color_jitter)
      batch = dict(batch, image=image)
    if mirror:
      flags = jax.random.bernoulli(keys[1], shape=batch['image'].shape[:1])
      batch = augmentation.mirror(batch, flags)
    if yaw:
      # Not split off: what else is drawn does not depend on whether this is.
      angle = jax.random.uniform(
        jax.random.fold_in(key, len(keys)),
        batch['image'].shape[:1],
        minval=-yaw,
        maxval=yaw,
      )
      batch = augmentation.turn(batch, angle, projection)
    streams = ('dropout', 'cutout') if cutout else ('dropout',)
    rngs = {
      name: jax.random.fold_in(keys[2], i) for i, name in enumerate(streams)
    }
    found, model_state = model.apply(
      {'params': params, **model_state},
      batch,
      train=True,
      rngs={'points': keys[2], **rngs},
      mutable=list(model_state),
      method='every_side',
    )
    embeddings = {
      side: Embedding(descriptor, out['pooled'])
      for side, (descriptor, out) in found.items()
    }
    return embeddings, model_state

  return embed


def make_crop_embed(
  model: towers_lib.Towers,
  *,
  margin: float,
  color_jitter: float,
  mirror: bool,
  box_jitter: float,
) -> step_lib.Embed:
  """The training side of crops and texts: crops with variations, both towers.

  Args:
    model: the towers, 'image' and 'text'.
    margin: context around a box, see `cropping.windows`.
    color_jitter: strength, see `augmentation.color_jitter`; 0 for none.
    mirror: whether half of the crops are mirrored: no text may tell left from
      right.
    box_jitter: how far windows are moved and scaled, see `cropping.jitter`.

  Returns:
    `params, model_state, batch, key -> embeddings, model_state`, see
    `step.make_train_step`; an `Embedding` [B, K, D] by side, of the objects of
    a frame.
  """
  view = model.image_view

  def embed(params, model_state, batch, key):
    del model_state  # there is none
    keys = jax.random.split(key, 3)
    images = batch['image'].astype(jnp.float32) / 255.0
    if color_jitter:
      images = augmentation.color_jitter(keys[0], images, color_jitter)
    windows = cropping.windows(batch['box'], margin)
    windows = cropping.jitter(keys[1], windows, box_jitter)
    crops = cropping.crop(images, windows, view.size, view.mean)
    if mirror:
      flags = jax.random.bernoulli(keys[2], shape=(*crops.shape[:2], 1, 1, 1))
      crops = jnp.where(flags, crops[:, :, :, ::-1], crops)
    tokens = batch['tokens']
    found: Any = model.apply(
      {'params': params},
      {
        'image': crops.reshape(-1, *crops.shape[2:]),
        'tokens': tokens.reshape(-1, tokens.shape[-1]),
      },
      train=True,
      method='every_side',
    )
    shape = (*tokens.shape[:2], -1)
    embeddings = {
      side: Embedding(descriptor.reshape(shape), out['pooled'].reshape(shape))
      for side, (descriptor, out) in found.items()
    }
    return embeddings, {}

  return embed


class _Relations:
  """Who is near whom in a batch: all pairs at once, or a tile of them."""

  def __init__(
    self,
    batch: Fields,
    sides: Mapping[str, str],
    positive_radius: float,
    ignore_radius: float,
  ):
    self._batch, self._sides = batch, sides
    self._positive_radius, self._ignore_radius = positive_radius, ignore_radius

  def __call__(self, one: str = 'a', other: str = 'b') -> jax.Array:
    """[B, B] of the readings of two sides; row i of both is a pair."""
    return self._relate(self._places(one), self._places(other), paired=True)

  def in_tiles(self) -> tiles.Places:
    """The same of a and b, for a loss that asks tile by tile."""
    return tiles.Places(self._relate_tile, self._places('a'), self._places('b'))

  def _places(self, side):
    side = self._sides[side]
    position = self._batch[f'{side}_position']
    row = jnp.arange(len(position))
    return {
      'position': position,
      'town': self._batch[f'{side}_town'],
      'row': row,
    }

  def _relate(self, a, b, paired):
    return relations_lib.from_positions(
      a['position'],
      a['town'],
      b['position'],
      b['town'],
      positive_radius=self._positive_radius,
      ignore_radius=self._ignore_radius,
      paired=paired,
    )

  def _relate_tile(self, a, b):
    own = a['row'][:, None] == b['row']
    return jnp.where(own, 1, self._relate(a, b, paired=False))


class _TextRelations:
  """Which crop is described by which text: all pairs at once, or a tile."""

  def __init__(self, texts: Fields):
    self._texts = texts

  def __call__(self) -> jax.Array:
    """[N, N] of crops and texts; text i is that of crop i."""
    return self._relate(self._texts, self._texts)

  def in_tiles(self) -> tiles.Places:
    """The same, for a loss that asks tile by tile."""
    return tiles.Places(self._relate, self._texts, self._texts)

  def _relate(self, a, b):
    return relations_lib.from_texts(
      a['tokens'], a['mask'], b['tokens'], b['mask']
    )


def _check_tile(tile: int) -> None:
  if tile < 0:
    raise InputError(f'tile={tile}: expected rows, or 0 for all pairs at once')


def _info_nce(*, form: str, tile: int = 0) -> Callable:
  """InfoNCE with the model's scale.

  Args:
    form: 'clip' or 'concatenated'.
    tile: rows compared at once, see `tiled.info_nce`; 0 for all.
  """
  _check_tile(tile)
  if tile and form != 'clip':
    raise InputError(f"tile={tile} with form={form!r}: expected form='clip'")

  def loss(params, a, b, relate, key):
    del key
    scale = contrastive.clamped_scale(params['log_scale'])
    rows = a.descriptor, b.descriptor
    if tile:
      return tiled.info_nce(*rows, scale, relate.in_tiles(), tile=tile)
    return contrastive.info_nce(*rows, scale, relate(), form)

  return loss


def _sigmoid(*, tile: int = 0) -> Callable:
  """The sigmoid loss with the model's scale and bias; `tile` as of InfoNCE."""
  _check_tile(tile)

  def loss(params, a, b, relate, key):
    del key
    if 'similarity_bias' not in params:
      raise InputError(
        "loss 'sigmoid' learns a bias that the model lacks: set "
        'model.initial_bias, to -10.0 or about -log(batch size)'
      )
    scale = contrastive.clamped_scale(params['log_scale'])
    rows = a.descriptor, b.descriptor
    factors = scale, params['similarity_bias']
    if tile:
      return tiled.sigmoid(*rows, *factors, relate.in_tiles(), tile=tile)
    return contrastive.sigmoid(*rows, *factors, relate())

  return loss


def _soft_targets() -> Callable:
  """See `soft_targets.soft_targets`; it takes descriptors before their norm."""

  def loss(params, a, b, relate, key):
    del params, key
    return soft_targets.soft_targets(a.features, b.features, relate())

  return loss


def _triplet(*, mining: str, margin: float) -> Callable:
  """See `metric.triplet`."""
  metric.check_mining(mining, margin)

  def loss(params, a, b, relate, key):
    del params
    return metric.triplet(
      a.descriptor,
      b.descriptor,
      relate(),
      mining=mining,
      margin=margin,
      key=key,
    )

  return loss


def _four_triplets(
  *, mining: str, margin: float, within_weight: float
) -> Callable:
  """See `metric.four_triplets`."""
  metric.check_mining(mining, margin)

  def loss(params, a, b, relate, key):
    del params
    return metric.four_triplets(
      a.descriptor,
      b.descriptor,
      relate('a', 'b'),
      relate('a', 'a'),
      relate('b', 'b'),
      mining=mining,
      margin=margin,
      within_weight=within_weight,
      key=key,
    )

  return loss


# Each makes `params, a, b, relate, key -> value, metrics`: a and b are
# `Embedding`s, and `relate` tells who is near whom.
LOSSES = {
  'info_nce': _info_nce,
  'sigmoid': _sigmoid,
  'soft_targets': _soft_targets,
  'triplet': _triplet,
  'four_triplets': _four_triplets,
}


def make_loss(
  *,
  name: str = 'info_nce',
  positive_radius: float,
  ignore_radius: float,
  relation_weights: tuple[float, float, float],
  curvature: float,
  sides: tuple[str, str] = ('image', 'points'),
  **fields: Any,
) -> step_lib.Loss:
  """A loss over pose-aware relations, plus relation consistency.

  Args:
    name: of LOSSES.
    positive_radius: metres; readings of other pairs this near are positives
      too. 0 for none.
    ignore_radius: metres; pairs nearer than this and not positive count for
      nothing. 0 for the papers' loss, which pushes near duplicates apart.
    relation_weights: of the Euclidean, angle and hyperbolic term.
    curvature: of the ball of the hyperbolic term.
    sides: of the model that are a and b of the loss; the batch says where
      their readings were taken.
    **fields: what the named loss takes.

  Returns:
    `params, embeddings, batch -> loss, metrics`, see `step.make_train_step`;
    the embeddings are those of `make_embed`.

  Raises:
    InputError: an unknown name, field, or value of a field.
  """
  tell_apart = make(LOSSES, 'loss', {**fields, 'name': name})
  euclidean, angle, hyperbolic = relation_weights
  by_letter = dict(zip('ab', sides, strict=True))

  def loss(params, embeddings, batch):
    a, b = (embeddings[side] for side in sides)
    relate = _Relations(
      batch,
      by_letter,
      positive_radius=positive_radius,
      ignore_radius=max(ignore_radius, positive_radius),
    )
    # What a loss draws follows from the batch: a resumed run draws the same.
    drawn = batch[f'{sides[0]}_index'].sum()
    key = jax.random.fold_in(jax.random.key(0), drawn)
    value, metrics = tell_apart(params, a, b, relate, key)
    consistency, terms = relational.relation_consistency(
      a.descriptor,
      b.descriptor,
      a.features,
      b.features,
      euclidean_weight=euclidean,
      angle_weight=angle,
      hyperbolic_weight=hyperbolic,
      curvature=curvature,
    )
    return value + consistency, metrics | {name: value} | terms

  return loss


def make_text_loss(*, name: str, **fields: Any) -> step_lib.Loss:
  """A loss over the relations of crops (side a) and texts (side b).

  Args:
    name: 'info_nce' or 'sigmoid', of LOSSES.
    **fields: what the named loss takes.

  Returns:
    `params, embeddings, batch -> loss, metrics`, see `step.make_train_step`;
    the embeddings are those of `make_crop_embed`.

  Raises:
    InputError: an unknown name, field, or value of a field.
  """
  known = {name: LOSSES[name] for name in ('info_nce', 'sigmoid')}
  tell_apart = make(known, 'loss', {**fields, 'name': name})

  def loss(params, embeddings, batch):
    a, b = (
      jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), embeddings[side])
      for side in ('image', 'text')
    )
    tokens = batch['tokens']
    texts = {
      'tokens': tokens.reshape(-1, tokens.shape[-1]),
      'mask': batch['mask'].reshape(-1),
    }
    return tell_apart(params, a, b, _TextRelations(texts), None)

  return loss


def make_optimizer(num_steps: int, **fields: Any) -> optimizer_lib.Optimizer:
  """AdamW with warm-up and cosine, see `optimizer.make_optimizer`."""
  return optimizer_lib.make_optimizer(num_steps=num_steps, **fields)
