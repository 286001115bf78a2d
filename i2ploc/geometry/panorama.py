# SPDX-License-Identifier: Apache-2.0
"""Equirectangular panoramas, and stitching them out of fisheye images.

A panorama has intrinsics [3, 3] as any camera, but in pixels per radian:

  (u, v, 1) = K (azimuth, elevation, 1)

with azimuth 0 on the optical axis (z) and positive to the right, elevation 0 on
the horizon and positive downwards. The centre of the top-left pixel is
(0.5, 0.5), so that resizing a panorama scales K and nothing else.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import fisheye
from i2ploc.geometry import rigid


def sphere_intrinsics(size: tuple[int, int]) -> np.ndarray:
  """Intrinsics [3, 3] float32 of the whole sphere in (H, W) pixels."""
  height, width = size
  return np.asarray(
    [
      [width / (2 * np.pi), 0, width / 2],
      [0, height / np.pi, height / 2],
      [0, 0, 1],
    ],
    np.float32,
  )


def project(
  intrinsics: jax.Array, points: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Pixels of points in the panorama's frame.

  Args:
    intrinsics: [..., 3, 3], pixels per radian.
    points: [..., 3], metres; leading axes broadcast against `intrinsics`.

  Returns:
    pixels: [..., 2]; the azimuth is cut behind the camera, at +-pi.
    valid: [...] bool, the point is not the panorama's own centre.
  """
  chex.assert_axis_dimension(points, -1, 3)
  x, y, z = jnp.moveaxis(points, -1, 0)
  square = x * x + z * z
  # Straight up, down and the centre have no azimuth; keep gradients finite.
  z = jnp.where(square > 0, z, 1.0)
  level = jnp.sqrt(jnp.where(square > 0, square, 1.0))
  level = jnp.where(square > 0, level, 0.0)
  valid = (square > 0) | (y != 0)
  azimuth = jnp.arctan2(x, z)
  elevation = jnp.arctan2(y, jnp.where(valid, level, 1.0))
  u = intrinsics[..., 0, 0] * azimuth + intrinsics[..., 0, 2]
  v = intrinsics[..., 1, 1] * elevation + intrinsics[..., 1, 2]
  return jnp.stack([u, v], axis=-1), valid


def bearings(intrinsics: jax.Array, pixels: jax.Array) -> jax.Array:
  """Unit directions [..., 3] in the panorama's frame of pixels [..., 2]."""
  chex.assert_axis_dimension(pixels, -1, 2)
  u, v = pixels[..., 0], pixels[..., 1]
  azimuth = (u - intrinsics[..., 0, 2]) / intrinsics[..., 0, 0]
  elevation = (v - intrinsics[..., 1, 2]) / intrinsics[..., 1, 1]
  level = jnp.cos(elevation)
  return jnp.stack(
    [level * jnp.sin(azimuth), jnp.sin(elevation), level * jnp.cos(azimuth)],
    axis=-1,
  )


class Seams(NamedTuple):
  """Where each pixel of a panorama comes from; leading axis: the fisheyes.

  Attributes:
    pixels: [F, H, W, 2] in the fisheye images.
    weights: [F, H, W], summing to 1 over the fisheyes, or to 0 where no lens
      looks.
  """

  pixels: jax.Array
  weights: jax.Array


def find_seams(
  lenses: Sequence[fisheye.Lens],
  camera_from_panorama: Sequence[rigid.Rigid],
  size: tuple[int, int],
  image_size: tuple[int, int],
  *,
  radius: float,
  half_view: float,
) -> Seams:
  """Where a panorama's pixels lie in the fisheye images, and how they blend.

  Fisheyes in different places see a thing in different directions. The
  panorama shows things at `radius` in their right direction; nearer and
  farther ones are drawn twice where lenses overlap. In the overlap a lens
  counts as much as the direction is inside its image circle, so that it fades
  out towards its rim.

  Args:
    lenses: of the fisheye images.
    camera_from_panorama: from the panorama's frame to each fisheye's.
    size: (H, W) of the panorama, pixels.
    image_size: (H, W) of the fisheye images, pixels.
    radius: metres.
    half_view: the rim of the image circle, radians off the lens's axis.
  """
  height, width = size
  rows, columns = jnp.mgrid[:height, :width] + 0.5
  centers = jnp.stack([columns, rows], axis=-1)
  points = radius * bearings(jnp.asarray(sphere_intrinsics(size)), centers)
  pixels, weights = zip(
    *[
      _look(lens, motion, points, image_size, half_view)
      for lens, motion in zip(lenses, camera_from_panorama, strict=True)
    ],
    strict=True,
  )
  weights = jnp.stack(weights)
  total = weights.sum(0)
  weights = weights / jnp.where(total > 0, total, 1.0)
  return Seams(jnp.stack(pixels), weights)


def _look(lens, motion, points, image_size, half_view):
  """Pixels [H, W, 2] and radians inside the circle [H, W] of one fisheye."""
  seen = rigid.apply(motion, points)
  pixels, valid = fisheye.project(lens, seen)
  off_axis = jnp.arctan2(jnp.hypot(seen[..., 0], seen[..., 1]), seen[..., 2])
  size = jnp.asarray([image_size[1], image_size[0]])
  valid &= jnp.all((pixels >= 0) & (pixels <= size), axis=-1)
  inside = jnp.where(valid, jnp.maximum(half_view - off_axis, 0.0), 0.0)
  return jnp.where(valid[..., None], pixels, 0.0), inside


def stitch(images: jax.Array, seams: Seams) -> jax.Array:
  """The panorama of fisheye images.

  Bilinear; the caller shrinks images that are much finer than the panorama.

  Args:
    images: [F, H, W, C], as many as `seams` was made for.
    seams: see `find_seams`.

  Returns:
    [H, W, C] float32; 0 where no lens looks.
  """
  chex.assert_rank(images, 4)
  chex.assert_equal(images.shape[0], seams.weights.shape[0])
  panorama = jnp.zeros(())
  for image, pixels, weights in zip(images, *seams, strict=True):
    panorama = panorama + sample(image, pixels) * weights[..., None]
  return panorama


def sample(image: jax.Array, pixels: jax.Array) -> jax.Array:
  """Bilinear values [..., C] float32 of an image [H, W, C] at pixels [..., 2].

  Beyond the outermost pixel centres the border repeats; H and W are at least 2.
  """
  chex.assert_rank(image, 3)
  chex.assert_axis_dimension_gteq(image, 0, 2)
  chex.assert_axis_dimension_gteq(image, 1, 2)
  height, width = image.shape[:2]
  limit = jnp.asarray([width - 1.0, height - 1.0])
  position = jnp.clip(pixels - 0.5, 0.0, limit)
  corner = jnp.minimum(jnp.floor(position), limit - 1.0)
  right, below = jnp.moveaxis(position - corner, -1, 0)[..., None]
  column, row = jnp.moveaxis(corner.astype(jnp.int32), -1, 0)
  # NaN becomes any integer.
  first = jnp.clip(row * width + column, 0, (height - 1) * width - 2)
  flat = jnp.asarray(image).reshape(-1, image.shape[2])

  def at(offset):
    # Unchecked: a gather that checks its bounds is 7 times slower on CPU.
    taken = flat.at[first + offset].get(mode='promise_in_bounds')
    return taken.astype(jnp.float32)

  above = (1 - right) * at(0) + right * at(1)
  under = (1 - right) * at(width) + right * at(width + 1)
  return (1 - below) * above + below * under
