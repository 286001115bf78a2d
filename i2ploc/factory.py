# SPDX-License-Identifier: Apache-2.0
"""The only place where the strings of a config become code.

Every function takes the plain values of one sub-dict of a config as keyword
arguments: an unknown key dies here, and a notebook can call all of it.
"""

from collections.abc import Callable
from collections.abc import Mapping
import math
from typing import Any

import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.geometry import range_image
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
from i2ploc.training import optimizer as optimizer_lib

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


def make_optimizer(num_steps: int, **fields: Any) -> optimizer_lib.Optimizer:
  """AdamW with warm-up and cosine, see `optimizer.make_optimizer`."""
  return optimizer_lib.make_optimizer(num_steps=num_steps, **fields)
