# SPDX-License-Identifier: Apache-2.0
"""Range images: a point cloud seen from its sensor, nearest return first.

Written for one cloud and vmapped by the caller. Rows run from the upper to the
lower elevation bound, columns from the left to the right azimuth bound, evenly
in angle; azimuth is 0 ahead and positive to the right, as in `camera`.
"""

import chex
import jax
import jax.numpy as jnp

# Returns nearer than this are the sensor's own housing, and have no direction.
MIN_RANGE = 1e-3


def _cell(point, azimuth_bounds, elevation_bounds, shape):
  """Flat cell index of points with a direction; H * W outside the bounds."""
  height, width = shape
  left, right = azimuth_bounds
  low, high = elevation_bounds
  azimuth = jnp.arctan2(-point[:, 1], point[:, 0])
  # Modulo, so that a span may cross the seam behind the sensor.
  across = jnp.mod(azimuth - left, 2 * jnp.pi) / (right - left)
  elevation = jnp.arctan2(point[:, 2], jnp.hypot(point[:, 0], point[:, 1]))
  down = (high - elevation) / (high - low)
  inside = (across < 1.0) & (down >= 0.0) & (down < 1.0)
  column = jnp.minimum((across * width).astype(jnp.int32), width - 1)
  row = jnp.minimum((down * height).astype(jnp.int32), height - 1)
  return jnp.where(inside, row * width + column, height * width)


def range_image(
  points: jax.Array,
  mask: jax.Array,
  azimuth_bounds: tuple[jax.Array | float, jax.Array | float],
  elevation_bounds: tuple[jax.Array | float, jax.Array | float],
  shape: tuple[int, int],
) -> tuple[jax.Array, jax.Array]:
  """Range and intensity of the nearest return in each cell.

  Args:
    points: [P, 4], x forward, y left, z up, metres; 4th column intensity.
    mask: [P] bool, real points.
    azimuth_bounds: (left, right), radians, left < right <= left + 2 pi.
    elevation_bounds: (low, high), radians above the horizon.
    shape: (H, W).

  Returns:
    image: [H, W, 2] range in metres and intensity, zeros in empty cells.
    valid: [H, W] bool, cells that hold a return.
  """
  chex.assert_shape(points, (None, 4))
  chex.assert_shape(mask, points.shape[:1])
  num_points, num_cells = points.shape[0], shape[0] * shape[1]
  squared = jnp.sum(points[:, :3] ** 2, axis=-1)
  # NaN compares false, so that a broken point drops out here as well.
  usable = mask & (squared > MIN_RANGE**2) & (squared < jnp.inf)
  ahead = jnp.asarray([1.0, 0.0, 0.0, 0.0], points.dtype)
  points = jnp.where(usable[:, None], points, ahead)
  distance = jnp.sqrt(jnp.sum(points[:, :3] ** 2, axis=-1))
  cell = _cell(points, azimuth_bounds, elevation_bounds, shape)
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
