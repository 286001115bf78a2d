# SPDX-License-Identifier: Apache-2.0
"""What an image encoder is shown of a cloud, and where its tokens lie.

Two ways of looking at a scan:
- 'channels' (ours): through the camera's field, in the camera's axes, so that
  columns of both sensors mean the same azimuth; five channels, validity among
  them.
- 'released' (LIP-Loc, WACV 2024): along the LiDAR's own axes, whatever the
  calibration, 8-bit range as a grey image in which an empty cell looks far; the
  120 degrees ahead, or with `crop=False` all around; stretched to the encoder's
  size.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError
from i2ploc.geometry import range_image
from i2ploc.geometry import rigid

ENCODINGS = ('channels', 'released')
OUT_OF_REACH = 200.0  # metres, beyond any LiDAR here

Bounds = tuple[jax.Array, jax.Array]


class RangeView(NamedTuple):
  """Clouds as an image encoder sees them.

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
  """Raises ValueError unless `encoding` is one of ENCODINGS."""
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
) -> RangeView:
  """Clouds in the camera's axes, the 'channels' encoding.

  Args:
    points: [B, P, 4], LiDAR frame.
    mask: [B, P] bool.
    camera_from_lidar: [B].
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
  return RangeView(
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
) -> RangeView:
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
  return RangeView(
    jnp.repeat(levels[..., None], 3, axis=-1),
    _nearest(image, shape),
    _nearest(valid, shape),
    tuple(jnp.full(batch, bound) for bound in span),
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


def token_azimuth(view: RangeView, columns: int) -> jax.Array:
  """Azimuth [B, columns] of the centres of equal parts of the view."""
  left, right = view.azimuth
  across = (jnp.arange(columns) + 0.5) / columns
  return left[:, None] + (right - left)[:, None] * across


def token_centers(view: RangeView, grid: tuple[int, int]) -> jax.Array:
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
