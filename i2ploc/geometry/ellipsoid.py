# SPDX-License-Identifier: Apache-2.0
"""Ellipsoids, and the boxes that cameras see around them.

An ellipsoid of centre c, semi-axes a along the columns of R is the set
(x - c)^T A^-1 (x - c) <= 1 with the shape A = R diag(a)^2 R^T. With the camera
frame's y = R_c c + t and M = R_c R diag(a), whose rows are m_0, m_1, m_2, a
plane n^T x = 0 through the camera touches it where (n^T y)^2 = |M^T n|^2. That
is the dual conic M M^T - y y^T; its tangents of constant x are the roots of

  (y_2^2 - m_2.m_2) x^2 - 2 (y_0 y_2 - m_0.m_2) x + y_0^2 - m_0.m_0 = 0.

Divided by the depth y_2, with p = y_0 / y_2, n = m_2 / y_2 and
v = m_0 / y_2 - p n, all terms of their discriminant that cancel are gone:

  x = p + (-v.n +- sqrt((1 - n.n) v.v + (v.n)^2)) / (1 - n.n).

So a box is not centred on the projected centre p but off by -v.n / (1 - n.n),
about (size / depth)^2; and float32 loses no digits. The ellipsoid is entirely
in front of the camera's plane z = 0 iff y_2 > 0 and n.n < 1, which excludes a
camera inside it.

Everything is elementwise and broadcasts over leading axes: for poses [S] and
ellipsoids [L] expand the poses to [S, 1]. Boxes are (left, top, right, bottom),
on the plane z = 1 unless they are said to be in pixels. Cameras have no skew:
a box of the plane is a box of the image.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from i2ploc.geometry import rigid

# Least 1 - n.n: below it rounding decides on which side of the camera's plane
# the nearest point lies, and the box is a thousand times wider than from afar.
MIN_ROOM = 1e-6


class Ellipsoid(NamedTuple):
  """Ellipsoids in one frame, the map's unless another one is named.

  Attributes:
    center: [..., 3], metres.
    semi_axes: [..., 3], metres, positive: half the lengths.
    rotation: [..., 3, 3], map_from_object; columns are the axes' directions.
  """

  center: rigid.Array
  semi_axes: rigid.Array
  rotation: rigid.Array


class Outline(NamedTuple):
  """What a camera sees of ellipsoids, on the plane z = 1.

  Attributes:
    box: [..., 4], the smallest box around the outline.
    point: [..., 2], image of the ellipsoid's centre, which is not the box's.
    valid: [...] bool, entirely in front of the camera; else box and point are
      zero.
  """

  box: jax.Array
  point: jax.Array
  valid: jax.Array


def _factor(ellipsoid):
  """[..., 3, 3] whose product with its transpose is the shape matrix."""
  return ellipsoid.rotation * ellipsoid.semi_axes[..., None, :]


def _finite(tree, fallback):
  """The tree, or the fallback where a leaf is not finite; and where it is."""
  checks = [
    jnp.isfinite(leaf).all(tuple(range(-jnp.ndim(like), 0)))
    for leaf, like in zip(tree, fallback, strict=True)
  ]
  finite = jnp.stack(jnp.broadcast_arrays(*checks)).all(0)
  leaves = [
    jnp.where(finite[(...,) + (None,) * jnp.ndim(like)], leaf, like)
    for leaf, like in zip(tree, fallback, strict=True)
  ]
  return type(tree)(*leaves), finite


def _in_camera(ellipsoid, camera_from_map):
  """y as 3 arrays [...] and M as 3 rows of 3 arrays [...]."""
  turn, factor = camera_from_map.rotation, _factor(ellipsoid)
  # Written out: a matrix product of three columns does not vectorise on CPU.
  center = [
    turn[..., i, 0] * ellipsoid.center[..., 0]
    + turn[..., i, 1] * ellipsoid.center[..., 1]
    + turn[..., i, 2] * ellipsoid.center[..., 2]
    + camera_from_map.translation[..., i]
    for i in range(3)
  ]
  rows = [
    [
      turn[..., i, 0] * factor[..., 0, k]
      + turn[..., i, 1] * factor[..., 1, k]
      + turn[..., i, 2] * factor[..., 2, k]
      for k in range(3)
    ]
    for i in range(3)
  ]
  return center, rows


def _dot(a, b):
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _extent(point, row, normal, room):
  """Middle and half the width of the box along one axis of the image."""
  v = [m - point * n for m, n in zip(row, normal, strict=True)]
  slant = _dot(v, normal)
  square = room * _dot(v, v) + slant**2
  flat = square <= 0
  half = jnp.where(flat, 0.0, jnp.sqrt(jnp.where(flat, 1.0, square)))
  return point - slant / room, half / room


def project(ellipsoid: Ellipsoid, camera_from_map: rigid.Rigid) -> Outline:
  """The boxes around ellipsoids in a camera.

  Args:
    ellipsoid: leading axes [...].
    camera_from_map: leading axes that broadcast with these.

  Returns:
    The outlines, finite and with finite gradients for any input.
  """
  chex.assert_axis_dimension(ellipsoid.center, -1, 3)
  chex.assert_axis_dimension(camera_from_map.translation, -1, 3)
  ellipsoid, sound = _finite(
    ellipsoid, Ellipsoid(jnp.zeros(3), jnp.ones(3), jnp.eye(3))
  )
  camera_from_map, posed = _finite(camera_from_map, rigid.identity())
  center, rows = _in_camera(ellipsoid, camera_from_map)
  ahead = sound & posed & (center[2] > 0)
  inverse = 1 / jnp.where(ahead, center[2], 1.0)
  normal = [m * inverse for m in rows[2]]
  room = 1 - _dot(normal, normal)
  valid = ahead & (room > MIN_ROOM)
  room = jnp.where(valid, room, 1.0)
  scale = jnp.where(valid, inverse, 0.0)
  x, y = center[0] * scale, center[1] * scale
  u, half_u = _extent(x, [m * scale for m in rows[0]], normal, room)
  v, half_v = _extent(y, [m * scale for m in rows[1]], normal, room)
  box = jnp.stack([u - half_u, v - half_v, u + half_u, v + half_v], axis=-1)
  return Outline(
    jnp.where(valid[..., None], box, 0.0), jnp.stack([x, y], axis=-1), valid
  )


def dual_conic(ellipsoid: Ellipsoid, camera_from_map: rigid.Rigid) -> jax.Array:
  """M M^T - y y^T [..., 3, 3]: a line l touches the outline iff l^T C l = 0."""
  center, rows = _in_camera(ellipsoid, camera_from_map)
  entries = [
    jnp.stack(
      [_dot(rows[i], rows[j]) - center[i] * center[j] for j in range(3)], -1
    )
    for i in range(3)
  ]
  return jnp.stack(entries, axis=-2)


def outline_points(
  ellipsoid: Ellipsoid, camera_from_map: rigid.Rigid, count: int = 48
) -> jax.Array:
  """Points [..., count, 2] around the outlines, on the plane z = 1.

  Meaningless for ellipsoids not entirely in front of the camera, see `project`.
  """
  conic = dual_conic(ellipsoid, camera_from_map)
  last = conic[..., 2:, 2:]
  conic = conic / jnp.where(jnp.abs(last) > 1e-12, last, 1e-12)
  center = conic[..., :2, 2]
  spread = center[..., :, None] * center[..., None, :] - conic[..., :2, :2]
  # The Cholesky factor of a symmetric [2, 2], written out.
  first = jnp.sqrt(jnp.maximum(spread[..., 0, 0], 1e-12))
  slant = spread[..., 0, 1] / first
  second = jnp.sqrt(jnp.maximum(spread[..., 1, 1] - slant**2, 0.0))
  angle = jnp.linspace(0.0, 2 * jnp.pi, count, endpoint=False)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  x = first[..., None] * cos
  y = slant[..., None] * cos + second[..., None] * sin
  return center[..., None, :] + jnp.stack([x, y], axis=-1)


def pixel_box(intrinsics: jax.Array, box: jax.Array) -> jax.Array:
  """Boxes [..., 4] in pixels, of boxes on the plane z = 1."""
  fx, fy = intrinsics[..., 0, 0], intrinsics[..., 1, 1]
  cx, cy = intrinsics[..., 0, 2], intrinsics[..., 1, 2]
  scale = jnp.stack([fx, fy, fx, fy], axis=-1)
  return box * scale + jnp.stack([cx, cy, cx, cy], axis=-1)


def clip_box(box: jax.Array, bounds: jax.Array) -> jax.Array:
  """The part of boxes [..., 4] inside bounds [..., 4]; flat if there is none.

  The bounds of an image, in pixels, are (0, 0, width, height).
  """
  low, high = bounds[..., :2], bounds[..., 2:]
  return jnp.concatenate(
    [jnp.clip(box[..., :2], low, high), jnp.clip(box[..., 2:], low, high)], -1
  )
