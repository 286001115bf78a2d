# SPDX-License-Identifier: Apache-2.0
"""Two towers: camera images and LiDAR clouds in one descriptor space.

Consumes the device batch of raw sensor tensors and derives everything else
(crops, range images, bearings of tokens) from the calibration on device. The
LiDAR tower looks at what the camera's horizontal field covers, as groups of
points or as a range image, and both towers attach to every token its azimuth in
the camera frame, so that aggregators can keep bearing.
"""

import math

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.geometry import augmentation
from i2ploc.geometry import camera
from i2ploc.geometry import point_cloud
from i2ploc.geometry import range_image
from i2ploc.geometry import rigid
from i2ploc.models import aggregators
from i2ploc.models import saliency as saliency_lib
from i2ploc.models import views
from i2ploc.models.encoders import normalization

Batch = dict[str, jax.Array]
MAX_LOG_SCALE = math.log(100.0)
# Parts of a sector by which a turn may miss a whole number of sectors.
TURN_TOLERANCE = 1e-3


def normalize_images(
  images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
  """Standardised float images of uint8 ones, or of floats in 0..1."""
  if images.dtype == jnp.uint8:
    images = images.astype(jnp.float32) / 255.0
  return (images - jnp.asarray(mean)) / jnp.asarray(std)


class TwoTower(nn.Module):
  """Descriptors of images and clouds, and the scale of their similarities.

  Attributes:
    image: encoder of images (`vit.ViT` or alike).
    points: encoder of clouds: `PointTransformer`, or an image encoder if
      `range_shape` is given.
    image_aggregator: see `aggregators`; an own instance for each tower.
    points_aggregator: see `aggregators`.
    image_size: (H, W) to which `image` and `intrinsics` of the batch belong.
    projection: one of `camera.PROJECTIONS`. An equirectangular image shows the
      whole circle, so that every point is in view.
    saliency: see `saliency.OPTIONS`.
    aggregate_cls: released form: the CLS token is aggregated as well, the first
      of the tokens and in no direction, hence without sectors alone.
    num_points: points kept in view, drawn evenly if there are more.
    azimuth_margin: how far beyond the camera's field the LiDAR tower looks,
      radians; pi for all around. Tokens out there give context, but join no
      sector.
    range_shape: (H, W) of the range image; None for a point encoder.
    range_encoding: one of `range_view.ENCODINGS`: 'channels', or 'released'.
    scan_shape: (H, W) of the whole scan of the released encoding, about as fine
      as the LiDAR: finer leaves holes, which look far.
    range_crop: of the released encoding: the 120 degrees ahead, or everything.
    max_range: metres; a range image has no returns at or beyond it.
    elevation_bounds: (low, high) of the range image, radians, relative to the
      camera's optical axis; the released encoding has its own.
    image_mean: per channel, of images in 0..1, and of released range images.
    image_std: per channel.
    initial_temperature: of the similarities; its inverse is learned.
    initial_bias: of the similarities, for losses that want one; it is learned.

  `out` of a tower: tokens, saliency [B, N], bounds, what its encoder and its
  aggregator give (attention, sequence, grid, pooled, ...); of the LiDAR tower
  centers [B, N, 3], where its tokens are in the LiDAR frame, and of a range
  encoder range_image [B, H, W, 2] and range_valid.
  """

  image: nn.Module
  points: nn.Module
  image_aggregator: nn.Module
  points_aggregator: nn.Module
  image_size: tuple[int, int]
  projection: str = 'pinhole'
  saliency: str = 'attention'
  aggregate_cls: bool = False
  num_points: int = 1024
  azimuth_margin: float = 0.05
  range_shape: tuple[int, int] | None = None
  range_encoding: str = 'channels'
  scan_shape: tuple[int, int] = range_image.SPHERICAL_SHAPE
  range_crop: bool = True
  max_range: float = math.inf
  elevation_bounds: tuple[float, float] = (-0.44, 0.05)
  image_mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
  image_std: tuple[float, float, float] = (0.25, 0.25, 0.25)
  initial_temperature: float = 0.07
  initial_bias: float | None = None

  def __post_init__(self):
    camera.check_projection(self.projection)
    views.check_encoding(self.range_encoding)
    saliency_lib.check_option(self.saliency, self.image.has_cls, 'image')
    saliency_lib.check_option(self.saliency, self.points.has_cls, 'points')
    self._check_cls()
    super().__post_init__()

  def _check_cls(self):
    pooling = self.image_aggregator, self.points_aggregator
    if not self.aggregate_cls:
      if any(getattr(p, 'pool', None) == 'cls' for p in pooling):
        raise InputError("pool 'cls' without aggregate_cls: set both")
      return
    if not (self.image.has_cls and self.points.has_cls):
      raise InputError('aggregate_cls, but an encoder has no CLS token')
    if any(p.num_sectors for p in pooling):
      raise InputError(
        'aggregate_cls with sectors: a CLS token lies in no direction; set '
        'num_sectors to 0 or aggregate_cls to False'
      )

  @property
  def has_unit_descriptors(self) -> bool:
    """Whether descriptors are made to be compared by their angle alone."""
    return getattr(self.points_aggregator, 'normalized', True)

  @property
  def _sees_all_around(self):
    """Whether the LiDAR tower is given the points out of the camera's field."""
    return (
      self.projection == 'equirectangular'
      or self.azimuth_margin >= math.pi
      or (self.range_shape is not None and self.range_encoding == 'released')
    )

  @property
  def num_headings(self) -> int:
    """S if turning is a shift of S sectors, see `turn`; 0 if it is not.

    The sectors must go around the whole circle, and nothing may tell one from
    the others.
    """
    pooling = self.points_aggregator
    tells_apart = ('per_sector_head', 'output_batch_norm', 'gating')
    if any(getattr(pooling, name, False) for name in tells_apart):
      return 0
    return pooling.num_sectors if self.projection == 'equirectangular' else 0

  def num_sectors_turned(self, yaw: float) -> int:
    """How many sectors `yaw` radians are.

    Raises:
      InputError: if these are no whole sectors, or `num_headings` is 0.
    """
    if not self.num_headings:
      raise InputError(
        'turning is no shift of sectors: these are not around the circle, or '
        'not alike; embed the turned readings'
      )
    turned = yaw * self.num_headings / (2 * math.pi)
    if abs(turned - round(turned)) > TURN_TOLERANCE:
      raise InputError(
        f'a view turned by {yaw:g} radians, but with {self.num_headings} '
        f'sectors views are multiples of {2 * math.pi / self.num_headings:g}; '
        'change the views or num_sectors'
      )
    return round(turned)

  def turn(self, descriptors: jax.Array, yaw: float) -> jax.Array:
    """What the same places look like to a vehicle turned to the left.

    What was ahead is then on the right: every sector takes the place of another
    one. Exact as far as the encoders see a thing alike in all directions, and
    the camera stands on the axis of the turn.

    Args:
      descriptors: [..., D] of images or points.
      yaw: radians, counter-clockwise from above, whole sectors.

    Returns:
      [..., D].

    Raises:
      InputError: see `num_sectors_turned`.
    """
    shift = self.num_sectors_turned(yaw)
    shape = descriptors.shape
    sectors = descriptors.reshape(*shape[:-1], self.num_headings, -1)
    return jnp.roll(sectors, shift, axis=-2).reshape(shape)

  def setup(self) -> None:
    """Creates the layers."""
    init = nn.initializers.constant(-math.log(self.initial_temperature))
    self.log_scale = self.param('log_scale', init, ())
    if self.initial_bias is not None:
      bias = nn.initializers.constant(self.initial_bias)
      self.similarity_bias = self.param('similarity_bias', bias, ())
    if self.saliency == 'attention':
      self.image_saliency = saliency_lib.AttentionSaliency()
      self.points_saliency = saliency_lib.AttentionSaliency()

  def _cut(self, pixels, train):
    """Normalised images, with holes if the caller provides a 'cutout' key."""
    if not (train and self.has_rng('cutout')):
      return pixels
    return augmentation.cutout(self.make_rng('cutout'), pixels)

  def _weights(self, tower, tokens, out):
    """Saliency [B, 1 + N] of CLS and the tokens of 'image' or 'points'."""
    if self.saliency == 'attention':
      module = getattr(self, f'{tower}_saliency')
      weights = module(out['attention'], tokens.mask)
      # An average token has weight 1; that of CLS itself tells nothing.
      return jnp.pad(weights, ((0, 0), (1, 0)), constant_values=1.0)
    if self.saliency == 'released':
      sequence = normalization.unit(out['sequence'])
      query, key = getattr(self, tower).last_query_key(sequence)
      return saliency_lib.released_saliency(query, key)[0]
    batch, length = tokens.mask.shape
    return jnp.ones((batch, 1 + length))

  def _describe(self, tower, tokens, bounds, out, train):
    """Descriptor [B, D] and completed `out` of a tower."""
    weights = self._weights(tower, tokens, out)
    out = dict(out, tokens=tokens, saliency=weights[:, 1:], bounds=bounds)
    if self.aggregate_cls:
      tokens = aggregators.Tokens(
        out['sequence'],
        jnp.pad(tokens.azimuth, ((0, 0), (1, 0))),
        jnp.pad(tokens.mask, ((0, 0), (1, 0)), constant_values=True),
      )
    else:
      weights = weights[:, 1:]
    aggregator = getattr(self, f'{tower}_aggregator')
    descriptor, pooled = aggregator(tokens, weights, bounds, train)
    return descriptor, out | pooled

  def embed_image(
    self, batch: Batch, train: bool = False
  ) -> tuple[jax.Array, dict]:
    """Descriptors [B, D] of `image`, given `intrinsics`; and `out`."""
    images, intrinsics = batch['image'], batch['intrinsics']
    chex.assert_shape(images, (None, *self.image_size, 3))
    chex.assert_shape(intrinsics, (images.shape[0], 3, 3))
    x = normalize_images(images, self.image_mean, self.image_std)
    features, out = self.image(self._cut(x, train), train)
    rows, columns = out['grid']
    width = self.image_size[1]
    azimuth = camera.column_azimuth(intrinsics, width, columns, self.projection)
    mask = jnp.ones(features.shape[:2], bool)
    azimuth = jnp.tile(azimuth, (1, rows))
    tokens = aggregators.Tokens(features, azimuth, mask)
    bounds = camera.horizontal_span(intrinsics, width, self.projection)
    return self._describe('image', tokens, bounds, out, train)

  def _points_in_view(self, points, mask, camera_from_lidar, bounds, train):
    """At most `num_points` of what the camera's field covers, and its mask."""
    if not self._sees_all_around:
      in_camera = jax.vmap(rigid.apply)(camera_from_lidar, points[..., :3])
      in_view = jax.vmap(point_cloud.in_azimuth_span)(in_camera, *bounds)
      mask = mask & in_view
    if self.range_shape is not None and points.shape[1] <= self.num_points:
      return points, mask  # in whatever order
    # Fixed at evaluation, and where the caller provides no 'points' stream.
    drawn = train and self.has_rng('points')
    key = self.make_rng('points') if drawn else jax.random.key(0)
    keys = jax.random.split(key, points.shape[0])
    return jax.vmap(
      lambda k, p, m: point_cloud.subsample(k, p, m, self.num_points)
    )(keys, points, mask)

  def _encode_points(self, points, mask, camera_from_lidar, train):
    features, out = self.points(points, mask, train)
    centers = jax.vmap(rigid.apply)(camera_from_lidar, out['centers'])
    azimuth = camera.azimuth(centers)
    return aggregators.Tokens(features, azimuth, out['mask']), out

  def _encode_range(self, points, mask, camera_from_lidar, bounds, train):
    if self.range_encoding == 'channels':
      view = views.camera_view(
        points,
        mask,
        camera_from_lidar,
        bounds,
        self.elevation_bounds,
        self.range_shape,
        self.max_range,
      )
      pixels = view.pixels
    else:
      view = views.released_view(
        points,
        mask,
        self.range_shape,
        self.scan_shape,
        self.range_crop,
        self.max_range,
      )
      pixels = normalize_images(view.pixels, self.image_mean, self.image_std)
    features, out = self.points(self._cut(pixels, train), train)
    rows, columns = out['grid']
    azimuth = jnp.tile(views.token_azimuth(view, columns), (1, rows))
    token_mask = jnp.ones(features.shape[:2], bool)
    tokens = aggregators.Tokens(features, azimuth, token_mask)
    return tokens, dict(
      out,
      range_image=view.image,
      range_valid=view.valid,
      centers=views.token_centers(view, (rows, columns)),
    )

  def embed_points(
    self, batch: Batch, train: bool = False, yaw: jax.Array | float = 0.0
  ) -> tuple[jax.Array, dict]:
    """Descriptors [B, D] of `points`.

    Args:
      batch: with points, points_mask, camera_from_lidar and the intrinsics of
        the camera that queries will come from; needs no image.
      train: whether BatchNorm uses the batch and points are drawn at random
        (if there is a 'points' key).
      yaw: scalar or [B], radians, added to the viewing direction,
        counter-clockwise from above: pi embeds a map entry as a camera of
        opposite heading would see it.

    Returns:
      descriptor: [B, D], unit length unless the aggregator leaves it.
      out: see the class.
    """
    points, mask = batch['points'], batch['points_mask']
    chex.assert_shape(points, (None, None, 4))
    chex.assert_shape(mask, points.shape[:2])
    motion = rigid.from_matrix(batch['camera_from_lidar'])
    yaw = jnp.broadcast_to(jnp.asarray(yaw, points.dtype), points.shape[:1])
    # The world turns against the viewing direction.
    xyz = rigid.rotate(rigid.rotation_z(-yaw)[:, None], points[..., :3])
    turned = jnp.concatenate([xyz, points[..., 3:]], axis=-1)
    bounds = camera.horizontal_span(
      batch['intrinsics'], self.image_size[1], self.projection
    )
    # There is nothing beyond the whole circle.
    margin = self.azimuth_margin if self.projection == 'pinhole' else 0.0
    seen = bounds[0] - margin, bounds[1] + margin
    turned, mask = self._points_in_view(turned, mask, motion, seen, train)
    if self.range_shape is None:
      tokens, out = self._encode_points(turned, mask, motion, train)
    else:
      tokens, out = self._encode_range(turned, mask, motion, seen, train)
    centers = rigid.rotate(rigid.rotation_z(yaw)[:, None], out['centers'])
    out = dict(out, centers=centers)
    return self._describe('points', tokens, bounds, out, train)

  def __call__(
    self, batch: Batch, train: bool = False
  ) -> tuple[dict[str, jax.Array], dict]:
    """Embeds both sides of a batch.

    Returns:
      ({'image': [B, D], 'points': [B, D], 'scale': scalar in 1..100}, out) with
      out = {'image': ..., 'points': ...}; with `initial_bias` also 'bias'.
    """
    image, image_out = self.embed_image(batch, train)
    points, points_out = self.embed_points(batch, train)
    scale = jnp.exp(jnp.clip(self.log_scale, 0.0, MAX_LOG_SCALE))
    embedded = {'image': image, 'points': points, 'scale': scale}
    if self.initial_bias is not None:
      embedded['bias'] = self.similarity_bias
    return embedded, {'image': image_out, 'points': points_out}
