# SPDX-License-Identifier: Apache-2.0
"""Cameras: x right, y down, z forward; pinholes unless said otherwise.

Pixels are (u, v) = (column, row); the centre of the top-left pixel is
(0.5, 0.5), as in COLMAP, so that resizing an image scales its intrinsics and
nothing else. Azimuth is the angle about the camera's y axis, 0 on the optical
axis and positive to the right: the coordinate in which a camera's columns and
a LiDAR's sweep are the same thing. An equirectangular camera, see `panorama`,
has columns even in azimuth.
"""

import chex
import jax
import jax.numpy as jnp

from i2ploc.errors import InputError

# Nearer points are treated as behind the camera: no sensor here sees them, and
# the division stays finite.
MIN_DEPTH = 0.1
PROJECTIONS = ('pinhole', 'equirectangular')


def project(
  intrinsics: jax.Array, points: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Pixels of points in the camera frame.

  Args:
    intrinsics: [..., 3, 3], upper triangular.
    points: [..., 3], metres; leading axes broadcast against `intrinsics`.

  Returns:
    pixels: [..., 2]; of invalid points, finite but meaningless.
    valid: [...] bool, in front of the camera by at least `MIN_DEPTH`. Whether
      the pixel lies inside the image is the caller's question.
  """
  chex.assert_axis_dimension(points, -1, 3)
  depth = points[..., 2]
  valid = depth > MIN_DEPTH
  plane = points[..., :2] / jnp.where(valid, depth, 1.0)[..., None]
  linear, center = intrinsics[..., :2, :2], intrinsics[..., :2, 2]
  # TF32 products would move a pixel by a third.
  offset = jnp.einsum(
    '...ij,...j->...i', linear, plane, precision=jax.lax.Precision.HIGHEST
  )
  return offset + center, valid


def bearings(intrinsics: jax.Array, pixels: jax.Array) -> jax.Array:
  """Unit directions [..., 3] in the camera frame of pixels [..., 2]."""
  v = (pixels[..., 1] - intrinsics[..., 1, 2]) / intrinsics[..., 1, 1]
  skew = intrinsics[..., 0, 1] * v
  u = (pixels[..., 0] - intrinsics[..., 0, 2] - skew) / intrinsics[..., 0, 0]
  ray = jnp.stack([u, v, jnp.ones_like(u)], axis=-1)
  return ray / jnp.linalg.norm(ray, axis=-1, keepdims=True)


def azimuth(points: jax.Array) -> jax.Array:
  """Azimuth [...] of points [..., 3] in the camera frame, radians."""
  x, z = points[..., 0], points[..., 2]
  at_center = (x == 0) & (z == 0)
  return jnp.arctan2(x, jnp.where(at_center, 1.0, z))


def check_projection(projection: str) -> None:
  """Raises ValueError unless it is one of `PROJECTIONS`."""
  if projection not in PROJECTIONS:
    raise InputError(f'unknown projection {projection!r}; known: {PROJECTIONS}')


def _azimuth_of_column(
  intrinsics: jax.Array, column: jax.Array, projection: str
) -> jax.Array:
  check_projection(projection)
  offset = column - intrinsics[..., 0, 2, None]
  offset = offset / intrinsics[..., 0, 0, None]
  return jnp.arctan(offset) if projection == 'pinhole' else offset


def column_azimuth(
  intrinsics: jax.Array,
  width: int,
  num_columns: int,
  projection: str = 'pinhole',
) -> jax.Array:
  """Azimuth of the centres of equal blocks of columns.

  Args:
    intrinsics: [..., 3, 3].
    width: of the image, pixels.
    num_columns: blocks.
    projection: one of `PROJECTIONS`.

  Returns:
    [..., num_columns], radians.
  """
  centers = (jnp.arange(num_columns) + 0.5) * (width / num_columns)
  return _azimuth_of_column(intrinsics, centers, projection)


def horizontal_span(
  intrinsics: jax.Array, width: int, projection: str = 'pinhole'
) -> tuple[jax.Array, jax.Array]:
  """Azimuth of the left and right border of an image.

  Args:
    intrinsics: [..., 3, 3].
    width: of the image, pixels.
    projection: one of `PROJECTIONS`.

  Returns:
    left: [...], radians.
    right: [...]; 2 pi more than `left` if a panorama shows the whole circle.
  """
  borders = jnp.asarray([0.0, width])
  span = _azimuth_of_column(intrinsics, borders, projection)
  return span[..., 0], span[..., 1]
