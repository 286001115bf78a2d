# SPDX-License-Identifier: Apache-2.0
"""What a tower sees of a batch of readings, and where its tokens lie.

A view is a NamedTuple of settings with three functions that `towers.Towers`
calls: `example` gives a batch of one with the readings that it looks at, `show`
makes the encoder's input of a batch, and `place` gives the encoder's output
back its place in the world. There are four views: `Image`, `PointCloud` and
`RangeImage` (a scan as points, or as an image), and `Text`.

Everything derived by geometry is computed here, on device, from raw readings
and the calibration. What a view of a scan sees is bounded by the camera's
horizontal field, and every token has its azimuth in the camera frame, so that
aggregators can keep bearing.

A range image is made in one of two ways, see `RangeImage.encoding`:
- 'channels' (ours): through the camera's field, in the camera's axes, so that
  columns of both sensors mean the same azimuth; five channels, validity among
  them.
- 'released' (LIP-Loc, WACV 2024): along the LiDAR's own axes, whatever the
  calibration, 8-bit range as a grey image in which an empty cell looks far; the
  120 degrees ahead, or with `crop=False` all around; stretched to the encoder's
  size.
"""

from collections.abc import Callable
import math
from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.geometry import augmentation
from i2ploc.geometry import camera
from i2ploc.geometry import point_cloud
from i2ploc.geometry import range_image
from i2ploc.geometry import rigid
from i2ploc.models import aggregators

ENCODINGS = ('channels', 'released')
OUT_OF_REACH = 200.0  # metres, beyond any LiDAR here
OVERHEAD = 'overhead'
PROJECTIONS = (*camera.PROJECTIONS, OVERHEAD)
# Quarters of a turn by which a yaw may miss a whole number of them.
TURN_TOLERANCE = 1e-3

Batch = dict[str, jax.Array]
Bounds = aggregators.Bounds
# `draw('cutout')` is the key of a random stream in training, else None.
Draw = Callable[[str], jax.Array | None]


class Shown(NamedTuple):
  """What an encoder is given, and what its output is placed by.

  Attributes:
    inputs: the encoder's arguments before `train`.
    bounds: (left, right) azimuth of the field that sectors divide, each [B];
      None where no calibration tells.
    context: what `place` of the same view needs.
    frames: T of a batch of sequences, whose frames the encoder gets as B * T
      inputs, those of a sequence one after another.
  """

  inputs: tuple
  bounds: Bounds | None
  context: Any
  frames: int = 1


class Raster(NamedTuple):
  """Scans on a grid, as an image encoder sees them.

  Attributes:
    pixels: [B, H, W, C] what the encoder is given: float of about unit scale,
      or uint8 that is still to be normalised as images are.
    image: [B, H, W, 2] range in metres and intensity.
    valid: [B, H, W] bool, cells that hold a return.
    azimuth: (left, right) of the columns, each [B], radians.
    elevation: (low, high) of the rows, radians.
    lidar_from_view: rotations [B, 3, 3] from the view's axes (x forward, y
      left, z up) to the LiDAR's.
  """

  pixels: jax.Array
  image: jax.Array
  valid: jax.Array
  azimuth: Bounds
  elevation: tuple[float, float]
  lidar_from_view: jax.Array


def check_encoding(encoding: str) -> None:
  """Raises InputError unless `encoding` is one of ENCODINGS."""
  if encoding not in ENCODINGS:
    raise InputError(f'range_encoding is {encoding!r}; known: {ENCODINGS}')


def range_channels(
  image: jax.Array, valid: jax.Array, elevation_bounds: tuple[float, float]
) -> jax.Array:
  """Input of a range-image encoder.

  Args:
    image: [B, H, W, 2] range in metres and intensity.
    valid: [B, H, W] bool.
    elevation_bounds: (low, high) of the rows, radians.

  Returns:
    [B, H, W, 5]: log range, inverse range, height, intensity, validity; about
    unit scale, zero in empty cells.
  """
  distance, intensity = image[..., 0], image[..., 1]
  low, high = elevation_bounds
  rows = image.shape[1]
  elevation = high - (jnp.arange(rows) + 0.5) / rows * (high - low)
  height = distance * jnp.sin(elevation)[:, None]
  inverse = 5.0 / jnp.maximum(distance, 1.0)
  parts = [jnp.log1p(distance) - 2.5, inverse, height / 1.5, intensity]
  channels = jnp.where(valid[..., None], jnp.stack(parts, axis=-1), 0.0)
  return jnp.concatenate([channels, valid[..., None]], axis=-1)


def camera_view(
  points: jax.Array,
  mask: jax.Array,
  camera_from_lidar: rigid.Rigid,
  azimuth: Bounds,
  elevation: tuple[float, float],
  shape: tuple[int, int],
  max_range: float,
) -> Raster:
  """Clouds in the camera's axes, the 'channels' encoding.

  Args:
    points: [B, P, 4], LiDAR frame.
    mask: [B, P] bool.
    camera_from_lidar: B motions.
    azimuth: (left, right) of the columns, each [B], radians.
    elevation: (low, high) of the rows, radians.
    shape: (H, W).
    max_range: metres; returns at or beyond it are none.
  """
  # Directions turn into the camera's axes, positions stay: seen from its own
  # origin a scan has one return per cell, seen from the camera it has holes.
  turned = rigid.rotate(camera_from_lidar.rotation[:, None], points[..., :3])
  x, y, z = turned[..., 0], turned[..., 1], turned[..., 2]
  seen = jnp.stack([z, -x, -y, points[..., 3]], axis=-1)
  image, valid = jax.vmap(
    lambda p, m, b: range_image.range_image(
      p, m, b, elevation, shape, max_range
    )
  )(seen, mask, azimuth)
  lidar_from_camera = jnp.swapaxes(camera_from_lidar.rotation, -1, -2)
  # Columns: forward, left and up are z, -x and -y of the camera.
  lidar_from_view = lidar_from_camera[..., jnp.asarray([2, 0, 1])]
  return Raster(
    range_channels(image, valid, elevation),
    image,
    valid,
    azimuth,
    elevation,
    lidar_from_view * jnp.asarray([1.0, -1.0, -1.0]),
  )


def released_view(
  points: jax.Array,
  mask: jax.Array,
  shape: tuple[int, int],
  scan_shape: tuple[int, int],
  crop: bool,
  max_range: float,
) -> Raster:
  """Clouds along the LiDAR's own axes, the 'released' encoding.

  Args:
    points: [B, P, 4], LiDAR frame.
    mask: [B, P] bool.
    shape: (H, W) of the pixels, bilinear; range and validity take the nearest.
    scan_shape: (H, W) of the whole scan; (64, 900) in the release.
    crop: the 120 degrees ahead and the upper half of the rows; else everything.
    max_range: metres; returns at or beyond it are none. 50 in the release.
  """
  image, valid = jax.vmap(
    lambda p, m: range_image.spherical_image(p, m, max_range, scan_shape)
  )(points, mask)
  height, width = scan_shape
  rows, columns = slice(0, height), slice(0, width)
  if crop:
    rows, columns = range_image.ahead(scan_shape)
  image, valid = image[:, rows, columns], valid[:, rows, columns]
  levels = range_image.quantize(image[..., 0], valid)
  levels = jax.vmap(lambda x: range_image.resize_uint8(x, shape))(levels)
  low, high = range_image.SPHERICAL_ELEVATION
  down = [(high - low) * row / height for row in (rows.start, rows.stop)]
  span = [
    2 * math.pi * column / width - math.pi
    for column in (columns.start, columns.stop)
  ]
  batch = points.shape[:1]
  return Raster(
    jnp.repeat(levels[..., None], 3, axis=-1),
    _nearest(image, shape),
    _nearest(valid, shape),
    (jnp.full(batch, span[0]), jnp.full(batch, span[1])),
    (high - down[1], high - down[0]),
    jnp.broadcast_to(jnp.eye(3), (*batch, 3, 3)),
  )


def _nearest(image, shape):
  """image [B, H, W, ...] at `shape` for its H and W."""
  rows, columns = (
    (jnp.arange(size) * 2 + 1) * given // (2 * size)
    for size, given in zip(shape, image.shape[1:3], strict=True)
  )
  return image[:, rows[:, None], columns]


def token_azimuth(view: Raster, columns: int) -> jax.Array:
  """Azimuth [B, columns] of the centres of equal parts of the view."""
  left, right = view.azimuth
  across = (jnp.arange(columns) + 0.5) / columns
  return left[:, None] + (right - left)[:, None] * across


def token_centers(view: Raster, grid: tuple[int, int]) -> jax.Array:
  """Mean position [B, N, 3] of each token's returns, LiDAR frame.

  Args:
    view: what the encoder saw.
    grid: (rows, columns) of its tokens, which have to tile the view.

  Raises:
    InputError: they do not.
  """
  rows, columns = grid
  batch, height, width = view.valid.shape
  if height % rows or width % columns:
    raise InputError(
      f'a range image of {height} x {width} does not tile into tokens of '
      f'{rows} x {columns}; make range_shape a multiple of it'
    )
  distance, valid = view.image[..., 0], view.valid
  tiles = (batch, rows, height // rows, columns, width // columns)
  total = jnp.where(valid, distance, 0.0).reshape(tiles).sum((2, 4))
  count = valid.reshape(tiles).sum((2, 4))
  # Where nothing returned, a token stands for what is out of reach.
  mean = jnp.where(count > 0, total / jnp.maximum(count, 1), OUT_OF_REACH)
  low, high = view.elevation
  elevation = high - (jnp.arange(rows) + 0.5) / rows * (high - low)
  elevation = elevation[None, :, None]
  azimuth = token_azimuth(view, columns)[:, None, :]
  direction = jnp.stack(
    jnp.broadcast_arrays(
      jnp.cos(elevation) * jnp.cos(azimuth),
      -jnp.cos(elevation) * jnp.sin(azimuth),
      jnp.sin(elevation),
    ),
    axis=-1,
  )
  centers = (mean[..., None] * direction).reshape(batch, -1, 3)
  chex.assert_shape(view.lidar_from_view, (batch, 3, 3))
  lidar_from_view = jnp.swapaxes(view.lidar_from_view, -1, -2)
  return jnp.matmul(centers, lidar_from_view, precision=rigid.EXACT)


def normalize_images(
  images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
  """Standardised float images of uint8 ones, or of floats in 0..1."""
  if images.dtype == jnp.uint8:
    images = images.astype(jnp.float32) / 255.0
  return (images - jnp.asarray(mean)) / jnp.asarray(std)


def _cut(pixels, draw):
  """Encoder input with holes, if the caller draws 'cutout' keys."""
  key = draw('cutout')
  return pixels if key is None else augmentation.cutout(key, pixels)


def _grid(out):
  """The cells of an encoder's tokens; None where it names none."""
  return aggregators.Grid(*out['grid']) if 'grid' in out else None


class Image(NamedTuple):
  """Images, or sequences of images.

  Reads images [B, H, W, 3] (uint8, or float in 0..1), or sequences of T of them
  [B, T, H, W, 3], oldest first, and, where the batch has them, `intrinsics`
  [B, 3, 3]. Without them a token's azimuth is 0 and there are no bounds, hence
  no sectors.

  A picture of the ground taken from above can be seen in four directions. Its
  yaw is that of whoever looks down: of a picture whose top is north, the view
  of yaw y has its top y counter-clockwise from north as seen from above, west
  for pi / 2, and what it shows has turned clockwise. So a photo whose top has
  the compass bearing b (clockwise from north) is like the view of yaw -b. That
  is the turn of `Index.world_from_view` for poses of the picture with x to its
  top, y to its left and z up.

  Attributes:
    size: (H, W), to which images and `intrinsics` belong.
    projection: one of `PROJECTIONS`: those of `camera`, of which an
      equirectangular image shows the whole circle, or 'overhead', a square
      picture of the ground from above, without intrinsics.
    mean: per channel, of images in 0..1.
    std: per channel.
    reading: the key of the images in a batch.
    frames: T of the example; 1 for single images. Batches may have another.
  """

  size: tuple[int, int]
  projection: str = 'pinhole'
  mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
  std: tuple[float, float, float] = (0.25, 0.25, 0.25)
  reading: str = 'image'
  frames: int = 1

  @property
  def can_turn(self) -> bool:
    """From above, by quarters of a turn; other pictures show what they show."""
    return self.projection == OVERHEAD

  def check(self) -> None:
    """Raises InputError for settings of no meaning."""
    if self.projection not in PROJECTIONS:
      raise InputError(
        f'unknown projection {self.projection!r}; known: {PROJECTIONS}'
      )
    if self.can_turn and self.size[0] != self.size[1]:
      raise InputError(
        f'overhead images of {self.size[0]} x {self.size[1]} pixels cannot be '
        'turned by a quarter; make image_size square'
      )
    if self.frames < 1:
      raise InputError(f'frames={self.frames}: expected 1 or more')

  def example(self) -> Batch:
    """A batch of one, of zeros."""
    frames = (self.frames,) if self.frames > 1 else ()
    images = {self.reading: jnp.zeros((1, *frames, *self.size, 3), jnp.uint8)}
    if self.can_turn:
      return images
    return images | {'intrinsics': jnp.eye(3)[None]}

  def _quarters(self, yaw):
    """Quarters of a turn, 0 to 3."""
    if not isinstance(yaw, int | float) or (yaw and not self.can_turn):
      raise InputError(f'an image cannot be turned by yaw={yaw} radians')
    quarters = yaw / (math.pi / 2)
    if abs(quarters - round(quarters)) > TURN_TOLERANCE:
      raise InputError(
        f'an overhead image turned by yaw={yaw:g} radians: expected a multiple '
        f'of {math.pi / 2:g}; change the views'
      )
    return round(quarters) % 4

  def show(self, batch: Batch, yaw: jax.Array | float, draw: Draw) -> Shown:
    """See the module.

    Raises:
      InputError: a yaw that is not 0, or from above no multiple of pi / 2.
    """
    images, quarters = batch[self.reading], self._quarters(yaw)
    frames = images.shape[1] if images.ndim == 5 else 1
    batch_size = images.shape[0]
    images = images.reshape(-1, *images.shape[-3:])
    chex.assert_shape(images, (batch_size * frames, *self.size, 3))
    images = jnp.rot90(images, -quarters, axes=(1, 2))
    x = normalize_images(images, self.mean, self.std)
    intrinsics = None if self.can_turn else batch.get('intrinsics')
    bounds = None
    if intrinsics is not None:
      chex.assert_shape(intrinsics, (batch_size, 3, 3))
      bounds = camera.horizontal_span(intrinsics, self.size[1], self.projection)
    return Shown((_cut(x, draw),), bounds, intrinsics, frames)

  def place(
    self, shown: Shown, features: jax.Array, out: dict
  ) -> tuple[aggregators.Tokens, dict]:
    """Tokens [B * T, N] of the encoder's `features` and `out`."""
    batch, length, _ = features.shape
    if shown.context is None:
      azimuth = jnp.zeros((batch, length))
    else:
      rows, columns = out['grid']
      azimuth = camera.column_azimuth(
        shown.context, self.size[1], columns, self.projection
      )
      azimuth = jnp.tile(azimuth, (1, rows))
      # One camera takes all frames of a sequence.
      azimuth = jnp.repeat(azimuth, shown.frames, axis=0)
    mask = jnp.ones((batch, length), bool)
    return aggregators.Tokens(features, azimuth, mask, _grid(out)), out


class Text(NamedTuple):
  """Texts as numbered tokens: `tokens` [B, N] int32.

  An encoder of texts gives one feature per text, which is the only token.

  Attributes:
    length: N of the example; shorter and longer texts may come.
  """

  length: int

  @property
  def can_turn(self) -> bool:
    """A text has no viewing direction."""
    return False

  def check(self) -> None:
    """Nothing can be wrong."""

  def example(self) -> Batch:
    """A batch of one, of zeros."""
    return {'tokens': jnp.zeros((1, self.length), jnp.int32)}

  def show(self, batch: Batch, yaw: jax.Array | float, draw: Draw) -> Shown:
    """See the module; `yaw` must be 0."""
    del draw
    if not (isinstance(yaw, int | float) and yaw == 0):
      raise InputError(f'a text cannot be turned by yaw={yaw} radians')
    return Shown((batch['tokens'],), None, None)

  def place(
    self, shown: Shown, features: jax.Array, out: dict
  ) -> tuple[aggregators.Tokens, dict]:
    """One token [B, 1] of the encoder's `features` [B, D]."""
    del shown
    shape = features.shape[0], 1
    tokens = aggregators.Tokens(
      features[:, None], jnp.zeros(shape), jnp.ones(shape, bool)
    )
    return tokens, out


class Sweep(NamedTuple):
  """The part of B scans that a view gets, turned into the viewing direction.

  Attributes:
    points: [B, P, 4], LiDAR frame after the turn.
    mask: [B, P] bool.
    camera_from_lidar: B motions.
    yaw: [B] the turn, radians.
    bounds: (left, right) azimuth of the camera's field, each [B].
    seen: the same with the margin.
  """

  points: jax.Array
  mask: jax.Array
  camera_from_lidar: rigid.Rigid
  yaw: jax.Array
  bounds: Bounds
  seen: Bounds


class Field(NamedTuple):
  """Which points of a scan a view gets: what the camera's field covers.

  Attributes:
    image_size: (H, W) of the images that `intrinsics` belong to.
    projection: of the camera; in an equirectangular image every point is in
      view.
    num_points: points kept in view, drawn evenly if there are more.
    margin: how far beyond the camera's field it reaches, radians; pi for all
      around. Tokens out there give context, but join no sector.
  """

  image_size: tuple[int, int]
  projection: str = 'pinhole'
  num_points: int = 1024
  margin: float = 0.05

  def example(self) -> Batch:
    """A batch of one scan, of zeros."""
    return {
      'intrinsics': jnp.eye(3)[None],
      'points': jnp.zeros((1, self.num_points, 4)),
      'points_mask': jnp.ones((1, self.num_points), bool),
      'camera_from_lidar': jnp.eye(4)[None],
    }

  def sweep(
    self,
    batch: Batch,
    yaw: jax.Array | float,
    draw: Draw,
    *,
    all_around: bool,
    in_any_order: bool,
  ) -> Sweep:
    """At most `num_points` points in view of each scan of a batch.

    Args:
      batch: with points, points_mask, camera_from_lidar and intrinsics.
      yaw: scalar or [B], radians, see `Towers`.
      draw: gives the key of 'points' in training; else which points stay is
        fixed.
      all_around: whether points out of the field stay as well.
      in_any_order: whether scans of few enough points may stay as they are.
    """
    points, mask = batch['points'], batch['points_mask']
    chex.assert_shape(points, (None, None, 4))
    chex.assert_shape(mask, points.shape[:2])
    motion = rigid.from_matrix(batch['camera_from_lidar'])
    yaw = jnp.broadcast_to(jnp.asarray(yaw, points.dtype), points.shape[:1])
    # The world turns against the viewing direction.
    xyz = rigid.rotate(rigid.rotation_z(-yaw)[:, None], points[..., :3])
    points = jnp.concatenate([xyz, points[..., 3:]], axis=-1)
    bounds = camera.horizontal_span(
      batch['intrinsics'], self.image_size[1], self.projection
    )
    # There is nothing beyond the whole circle.
    margin = self.margin if self.projection == 'pinhole' else 0.0
    seen = bounds[0] - margin, bounds[1] + margin
    whole_circle = self.projection == 'equirectangular'
    if not (all_around or whole_circle or self.margin >= math.pi):
      in_camera = jax.vmap(rigid.apply)(motion, points[..., :3])
      in_view = jax.vmap(point_cloud.in_azimuth_span)(in_camera, *seen)
      mask = mask & in_view
    if not (in_any_order and points.shape[1] <= self.num_points):
      points, mask = self._thinned(points, mask, draw)
    return Sweep(points, mask, motion, yaw, bounds, seen)

  def _thinned(self, points, mask, draw):
    key = draw('points')
    # Without a stream of keys, as at evaluation, the draw is always the same.
    key = jax.random.key(0) if key is None else key
    keys = jax.random.split(key, points.shape[0])
    return jax.vmap(
      lambda k, p, m: point_cloud.subsample(k, p, m, self.num_points)
    )(keys, points, mask)


def _turned_back(sweep, centers):
  """Centres [B, N, 3] of tokens in the LiDAR frame that was given."""
  return rigid.rotate(rigid.rotation_z(sweep.yaw)[:, None], centers)


class PointCloud(NamedTuple):
  """Scans as points.

  Reads `points` [B, P, 4] (x, y, z, intensity), `points_mask` [B, P] and
  `camera_from_lidar` [B, 4, 4], and the `intrinsics` of the camera that queries
  will come from; it needs no image. The encoder says where its tokens are
  (`centers`).

  Attributes:
    field: which points it gets.
  """

  field: Field

  @property
  def can_turn(self) -> bool:
    """A scan can be seen in any viewing direction."""
    return True

  @property
  def projection(self) -> str:
    """Of the camera."""
    return self.field.projection

  def check(self) -> None:
    """Raises InputError for settings of no meaning."""
    camera.check_projection(self.field.projection)

  def example(self) -> Batch:
    """A batch of one, of zeros."""
    return self.field.example()

  def show(self, batch: Batch, yaw: jax.Array | float, draw: Draw) -> Shown:
    """See the module."""
    sweep = self.field.sweep(
      batch, yaw, draw, all_around=False, in_any_order=False
    )
    return Shown((sweep.points, sweep.mask), sweep.bounds, sweep)

  def place(
    self, shown: Shown, features: jax.Array, out: dict
  ) -> tuple[aggregators.Tokens, dict]:
    """Tokens [B, N] at the encoder's centres."""
    sweep = shown.context
    centers = jax.vmap(rigid.apply)(sweep.camera_from_lidar, out['centers'])
    azimuth = camera.azimuth(centers)
    tokens = aggregators.Tokens(features, azimuth, out['mask'])
    return tokens, dict(out, centers=_turned_back(sweep, out['centers']))


class RangeImage(NamedTuple):
  """Scans as range images, for an encoder of images.

  Reads what `PointCloud` reads.

  Attributes:
    field: which points it gets.
    shape: (H, W) of the range image.
    encoding: one of `ENCODINGS`, see the module.
    scan_shape: (H, W) of the whole scan of the released encoding, about as fine
      as the LiDAR: finer leaves holes, which look far.
    crop: of the released encoding: the 120 degrees ahead, or everything.
    max_range: metres; there are no returns at or beyond it.
    elevation_bounds: (low, high), radians, relative to the camera's optical
      axis; the released encoding has its own.
    mean: per channel, of released range images in 0..1.
    std: per channel.

  `place` adds to `out`: centers [B, N, 3], where tokens are in the LiDAR frame,
  range_image [B, H, W, 2] and range_valid.
  """

  field: Field
  shape: tuple[int, int]
  encoding: str = 'channels'
  scan_shape: tuple[int, int] = range_image.SPHERICAL_SHAPE
  crop: bool = True
  max_range: float = math.inf
  elevation_bounds: tuple[float, float] = (-0.44, 0.05)
  mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
  std: tuple[float, float, float] = (0.25, 0.25, 0.25)

  @property
  def can_turn(self) -> bool:
    """A scan can be seen in any viewing direction."""
    return True

  @property
  def projection(self) -> str:
    """Of the camera."""
    return self.field.projection

  def check(self) -> None:
    """Raises InputError for settings of no meaning."""
    camera.check_projection(self.field.projection)
    check_encoding(self.encoding)

  def example(self) -> Batch:
    """A batch of one, of zeros."""
    return self.field.example()

  def show(self, batch: Batch, yaw: jax.Array | float, draw: Draw) -> Shown:
    """See the module."""
    released = self.encoding == 'released'
    sweep = self.field.sweep(
      batch, yaw, draw, all_around=released, in_any_order=True
    )
    if released:
      raster = released_view(
        sweep.points,
        sweep.mask,
        self.shape,
        self.scan_shape,
        self.crop,
        self.max_range,
      )
      pixels = normalize_images(raster.pixels, self.mean, self.std)
    else:
      raster = camera_view(
        sweep.points,
        sweep.mask,
        sweep.camera_from_lidar,
        sweep.seen,
        self.elevation_bounds,
        self.shape,
        self.max_range,
      )
      pixels = raster.pixels
    return Shown((_cut(pixels, draw),), sweep.bounds, (sweep, raster))

  def place(
    self, shown: Shown, features: jax.Array, out: dict
  ) -> tuple[aggregators.Tokens, dict]:
    """Tokens [B, N] where the image's parts are."""
    sweep, raster = shown.context
    rows, columns = out['grid']
    azimuth = jnp.tile(token_azimuth(raster, columns), (1, rows))
    mask = jnp.ones(features.shape[:2], bool)
    centers = token_centers(raster, (rows, columns))
    return aggregators.Tokens(features, azimuth, mask, _grid(out)), dict(
      out,
      range_image=raster.image,
      range_valid=raster.valid,
      centers=_turned_back(sweep, centers),
    )


View = Image | Text | PointCloud | RangeImage
