# SPDX-License-Identifier: Apache-2.0
"""Range images: a point cloud seen from its sensor, nearest return first.

Written for one cloud and vmapped by the caller. Rows run from the upper to the
lower elevation bound, columns from the left to the right azimuth bound, evenly
in angle; azimuth is 0 ahead and positive to the right, as in `camera`.

`range_image` looks through a window and tells empty cells apart;
`spherical_image`, `quantize` and `resize_uint8` are the input of LIP-Loc
(Puligilla et al., WACV 2024) as released, to the last bit.
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

# Returns nearer than this are the sensor's own housing, and have no direction.
MIN_RANGE = 1e-3
# Of LIP-Loc: the rows and columns of the whole scan, and its elevations.
SPHERICAL_SHAPE = (64, 900)
SPHERICAL_ELEVATION = (math.radians(-25.0), math.radians(3.0))
# Grey levels per metre; an empty cell has range -1, which wraps around to 251
# and looks like a return from 49.2 m.
LEVELS_PER_METRE = 5.1
EMPTY_LEVEL = 251
# Of OpenCV's bilinear weights, and the bits it drops between its two passes.
WEIGHT_BITS, EARLY_BITS, PRODUCT_BITS = 11, 4, 16


def _usable(points, mask, max_range):
  """Points with a direction, their range, and which of them are to be used."""
  chex.assert_shape(points, (None, 4))
  chex.assert_shape(mask, points.shape[:1])
  squared = jnp.sum(points[:, :3] ** 2, axis=-1)
  # NaN compares false, so that a broken point drops out here as well.
  usable = mask & (squared > MIN_RANGE**2) & (squared < jnp.inf)
  ahead = jnp.asarray([1.0, 0.0, 0.0, 0.0], points.dtype)
  points = jnp.where(usable[:, None], points, ahead)
  distance = jnp.sqrt(jnp.sum(points[:, :3] ** 2, axis=-1))
  return points, distance, usable & (distance < max_range)


def _direction(points):
  """Azimuth and elevation of points that have one."""
  x, y, z = points[:, 0], points[:, 1], points[:, 2]
  return jnp.arctan2(-y, x), jnp.arctan2(z, jnp.hypot(x, y))


def _cell(points, azimuth_bounds, elevation_bounds, shape):
  """Flat cell index of points with a direction; H * W outside the bounds."""
  height, width = shape
  left, right = azimuth_bounds
  low, high = elevation_bounds
  azimuth, elevation = _direction(points)
  # Modulo, so that a span may cross the seam behind the sensor.
  across = jnp.mod(azimuth - left, 2 * jnp.pi) / (right - left)
  down = (high - elevation) / (high - low)
  inside = (across < 1.0) & (down >= 0.0) & (down < 1.0)
  column = jnp.minimum((across * width).astype(jnp.int32), width - 1)
  row = jnp.minimum((down * height).astype(jnp.int32), height - 1)
  return jnp.where(inside, row * width + column, height * width)


def _clamped_cell(points, elevation_bounds, shape):
  """Flat cell index; what is above or below joins the first or last row."""
  height, width = shape
  low, high = elevation_bounds
  azimuth, elevation = _direction(points)
  # Operations in the released order: a boundary of cells is a rounding away.
  across = 0.5 * (azimuth / jnp.pi + 1.0) * width
  down = (1.0 - (elevation - low) / (high - low)) * height
  column = jnp.clip(jnp.floor(across), 0, width - 1).astype(jnp.int32)
  row = jnp.clip(jnp.floor(down), 0, height - 1).astype(jnp.int32)
  return row * width + column


def _nearest(points, distance, usable, cell, shape):
  """The image [H, W, 2] and valid [H, W] of points in cells."""
  num_points, num_cells = points.shape[0], shape[0] * shape[1]
  cell = jnp.where(usable, cell, num_cells)
  fixed = jax.lax.stop_gradient(distance)
  nearest = jnp.full(num_cells, jnp.inf).at[cell].min(fixed, mode='drop')
  # A second scatter names the winner; equal ranges go to the lowest index.
  wins = fixed <= nearest.at[cell].get(mode='fill', fill_value=-1.0)
  order = jnp.arange(num_points, dtype=jnp.int32)
  index = jnp.full(num_cells, num_points, jnp.int32)
  index = index.at[jnp.where(wins, cell, num_cells)].min(order, mode='drop')
  valid = index < num_points
  values = jnp.stack([distance, points[:, 3]], axis=-1)
  image = values.at[index].get(mode='fill', fill_value=0.0)
  return image.reshape(*shape, 2), valid.reshape(shape)


def range_image(
  points: jax.Array,
  mask: jax.Array,
  azimuth_bounds: tuple[jax.Array | float, jax.Array | float],
  elevation_bounds: tuple[jax.Array | float, jax.Array | float],
  shape: tuple[int, int],
  max_range: float = math.inf,
) -> tuple[jax.Array, jax.Array]:
  """Range and intensity of the nearest return in each cell.

  Args:
    points: [P, 4], x forward, y left, z up, metres; 4th column intensity.
    mask: [P] bool, real points.
    azimuth_bounds: (left, right), radians, left < right <= left + 2 pi.
    elevation_bounds: (low, high), radians above the horizon.
    shape: (H, W).
    max_range: metres; returns at or beyond it are none.

  Returns:
    image: [H, W, 2] range in metres and intensity, zeros in empty cells.
    valid: [H, W] bool, cells that hold a return.
  """
  points, distance, usable = _usable(points, mask, max_range)
  cell = _cell(points, azimuth_bounds, elevation_bounds, shape)
  return _nearest(points, distance, usable, cell, shape)


def spherical_image(
  points: jax.Array,
  mask: jax.Array,
  max_range: float = 50.0,
  shape: tuple[int, int] = SPHERICAL_SHAPE,
  elevation_bounds: tuple[float, float] = SPHERICAL_ELEVATION,
) -> tuple[jax.Array, jax.Array]:
  """The whole scan, what is out of the elevation bounds piled on the border.

  Args:
    points: [P, 4], as `range_image` takes them; column 0 is straight behind.
    mask: [P] bool, real points.
    max_range: metres; returns at or beyond it are none.
    shape: (H, W).
    elevation_bounds: (low, high), radians above the horizon.

  Returns:
    image: [H, W, 2] range in metres and intensity, zeros in empty cells.
    valid: [H, W] bool, cells that hold a return.
  """
  points, distance, usable = _usable(points, mask, max_range)
  cell = _clamped_cell(points, elevation_bounds, shape)
  return _nearest(points, distance, usable, cell, shape)


def ahead(shape: tuple[int, int]) -> tuple[slice, slice]:
  """Rows and columns of the crop of LIP-Loc: upper half, 120 degrees ahead."""
  height, width = shape
  third = width // 3
  return slice(0, height // 2), slice(third, width - third)


def quantize(distance: jax.Array, valid: jax.Array) -> jax.Array:
  """Grey levels of ranges, as released: truncated, and 251 where nothing is.

  Args:
    distance: [..., H, W] metres; beyond 50 m there is no level left.
    valid: [..., H, W] bool, cells that hold a return.

  Returns:
    uint8 [..., H, W].
  """
  level = jnp.minimum(LEVELS_PER_METRE * distance, 255.0)
  return jnp.where(valid, level, EMPTY_LEVEL).astype(jnp.uint8)


def _taps(size, new_size):
  """The two neighbours of each new sample, and their weights, int32."""
  place = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
  below = np.floor(place).astype(np.int32)
  share = (place - below).astype(np.float32)
  one = np.float32(1 << WEIGHT_BITS)
  weights = np.rint((np.float32(1) - share) * one), np.rint(share * one)
  neighbors = (np.clip(below + i, 0, size - 1) for i in (0, 1))
  return *neighbors, *(weight.astype(np.int32) for weight in weights)


def resize_uint8(image: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Bilinear interpolation in the fixed-point arithmetic of OpenCV.

  Args:
    image: uint8 [H, W].
    shape: (H, W) wanted.

  Returns:
    uint8, of `shape`. Rounding exact bilinear values instead differs by one
    level in about a tenth of the pixels.
  """
  chex.assert_rank(image, 2)
  chex.assert_type(image, jnp.uint8)
  image = image.astype(jnp.int32)
  left, right, weight_left, weight_right = _taps(image.shape[1], shape[1])
  image = image[:, left] * weight_left + image[:, right] * weight_right
  image = image >> EARLY_BITS
  upper, lower, weight_upper, weight_lower = _taps(image.shape[0], shape[0])
  image = (weight_upper[:, None] * image[upper] >> PRODUCT_BITS) + (
    weight_lower[:, None] * image[lower] >> PRODUCT_BITS
  )
  # What is left of both weights' bits, rounded.
  left_over = 2 * WEIGHT_BITS - EARLY_BITS - PRODUCT_BITS
  return ((image + (1 << left_over - 1)) >> left_over).astype(jnp.uint8)
