# SPDX-License-Identifier: Apache-2.0
"""What a pinhole camera would see of a panorama in some direction."""

import chex
import jax
import jax.numpy as jnp

from i2ploc.geometry import camera
from i2ploc.geometry import panorama
from i2ploc.geometry import rigid


def look(
  panoramas: jax.Array,
  intrinsics: jax.Array,
  yaw: jax.Array,
  *,
  size: tuple[int, int],
  field: float,
) -> jax.Array:
  """Pinhole images of panoramas, each in its own level direction.

  EigenPlaces (Berton et al., 2023) trains on crops that look at a focal point.
  Yaw counts as headings do, counter-clockwise from above: 0 looks forward, into
  the panorama's middle, and pi / 2 to the left, so that it is the azimuth of
  `panorama` with the other sign. Towards a point p of the map from position c
  at heading h it is atan2(p_y - c_y, p_x - c_x) - h.

  Pixels are square and the principal point is in the middle. Interpolation is
  linear, around the seam too, and nothing is averaged: a view should not have
  much fewer pixels per radian than its panorama.

  Args:
    panoramas: [B, H, W, C], the whole circle around.
    intrinsics: [B, 3, 3], pixels per radian, see `panorama`.
    yaw: [B], radians, of any number of turns.
    size: (h, w) of a view, pixels.
    field: width of a view, radians, below pi.

  Returns:
    [B, h, w, C] float32 in unchanged units. Above and below the panorama its
    border repeats.
  """
  chex.assert_rank([panoramas, intrinsics, yaw], [4, 3, 1])
  height, width = size
  focal = width / 2 / jnp.tan(field / 2)
  pinhole = jnp.asarray(
    [[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]
  )
  rows, columns = jnp.mgrid[:height, :width] + 0.5
  rays = camera.bearings(pinhole, jnp.stack([columns, rows], axis=-1))

  def view(image, intrinsics, yaw):
    # About the downward axis, which turns the view to the right.
    cos, sin = jnp.cos(yaw), jnp.sin(yaw)
    zero, one = jnp.zeros_like(yaw), jnp.ones_like(yaw)
    turn = jnp.stack([cos, zero, -sin, zero, one, zero, sin, zero, cos])
    seen = rigid.rotate(turn.reshape(3, 3), rays)
    pixels, _ = panorama.project(intrinsics, seen)
    # A column more on either side, so that the seam is no border.
    circle = jnp.concatenate([image[:, -1:], image, image[:, :1]], axis=1)
    u = pixels[..., 0] % image.shape[1] + 1.0
    return panorama.sample(circle, jnp.stack([u, pixels[..., 1]], axis=-1))

  return jax.vmap(view)(panoramas, intrinsics, yaw)
