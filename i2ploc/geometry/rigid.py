# SPDX-License-Identifier: Apache-2.0
"""Rigid motions: `a_from_b` maps coordinates in frame b to frame a.

Everything broadcasts over leading axes. Composition reads itself:
`compose(camera_from_lidar, lidar_from_world)` is `camera_from_world`. What the
final fit of an estimate needs computes with numpy or jax, see `arrays`.
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import arrays

Array = arrays.Array
EXACT = arrays.EXACT
# [i, j, k]: entries of a small turn about axis i, divided by its angle.
TURNS = np.zeros((3, 3, 3), np.float32)
TURNS[[0, 1, 2], [2, 0, 1], [1, 2, 0]] = 1
TURNS[[0, 1, 2], [1, 2, 0], [2, 0, 1]] = -1


class Rigid(NamedTuple):
  """x_a = rotation @ x_b + translation.

  Attributes:
    rotation: [..., 3, 3], orthonormal, determinant 1.
    translation: [..., 3], metres.
  """

  rotation: Array
  translation: Array


def identity() -> Rigid:
  """The motion that moves nothing."""
  return Rigid(jnp.eye(3), jnp.zeros(3))


def compose(a_from_b: Rigid, b_from_c: Rigid) -> Rigid:
  """a_from_c."""
  return Rigid(
    arrays.matmul(a_from_b.rotation, b_from_c.rotation),
    apply(a_from_b, b_from_c.translation),
  )


def inverse(a_from_b: Rigid) -> Rigid:
  """b_from_a."""
  rotation = jnp.swapaxes(a_from_b.rotation, -1, -2)
  translation = rotate(rotation, a_from_b.translation)
  return Rigid(rotation, -translation)


def apply(a_from_b: Rigid, points: Array) -> Any:
  """Maps points [..., 3] of frame b to frame a.

  The leading axes of the motion broadcast against those of the points: for a
  cloud [B, P, 3] under motions [B] expand the motions to [B, 1] first, or vmap.
  """
  chex.assert_axis_dimension(points, -1, 3)
  return rotate(a_from_b.rotation, points) + a_from_b.translation


def rotate(rotation: Array, vectors: Array) -> Any:
  """Rotations [..., 3, 3] times vectors [..., 3]; leading axes broadcast.

  Written out: a product this narrow does not vectorise on CPU, where a scan
  turns 15 times as fast this way.
  """
  xp = arrays.namespace(rotation, vectors)
  rotation, vectors = xp.asarray(rotation), xp.asarray(vectors)
  x, y, z = (vectors[..., i : i + 1] * rotation[..., i] for i in range(3))
  return x + y + z


def moved(
  matrix: Array, translation: Array, points: Sequence[Array] | Array
) -> Sequence[Any]:
  """Coordinates of `matrix @ point + translation`, one array each.

  Args:
    matrix: [3, 3], a rotation or any other.
    translation: [3].
    points: three arrays [N], the coordinates of the points.
  """
  turned = arrays.mapped(matrix, points)
  return tuple(x + t for x, t in zip(turned, translation, strict=True))


def from_matrix(matrix: jax.Array) -> Rigid:
  """The motion of homogeneous matrices [..., 4, 4]."""
  chex.assert_axis_dimension(matrix, -1, 4)
  chex.assert_axis_dimension(matrix, -2, 4)
  return Rigid(matrix[..., :3, :3], matrix[..., :3, 3])


def to_matrix(motion: Rigid) -> jax.Array:
  """The homogeneous matrices [..., 4, 4] of a motion."""
  top = jnp.concatenate(
    [motion.rotation, motion.translation[..., None]], axis=-1
  )
  bottom = jnp.broadcast_to(
    jnp.asarray([0.0, 0.0, 0.0, 1.0], top.dtype), (*top.shape[:-2], 1, 4)
  )
  return jnp.concatenate([top, bottom], axis=-2)


def rotation_z(angle: jax.Array) -> jax.Array:
  """Rotations [..., 3, 3] by `angle` [...] radians about the z axis."""
  angle = jnp.asarray(angle)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  zero, one = jnp.zeros_like(angle), jnp.ones_like(angle)
  rows = [
    jnp.stack([cos, -sin, zero], axis=-1),
    jnp.stack([sin, cos, zero], axis=-1),
    jnp.stack([zero, zero, one], axis=-1),
  ]
  return jnp.stack(rows, axis=-2)


def skew(vector: Array) -> Any:
  """Matrices [..., 3, 3] whose product with x is v x x, of v [..., 3]."""
  flat = arrays.matmul(vector, TURNS.reshape(3, 9))
  return flat.reshape(*vector.shape, 3)


def rotation_from_vector(vector: Array) -> Any:
  """Rotations [..., 3, 3] by |v| radians about v [..., 3] (Rodrigues).

  Smooth at zero, to all orders that float32 can tell.
  """
  xp = arrays.namespace(vector)
  squared = (vector * vector).sum(-1)
  if vector.ndim > 1:
    squared = squared[..., None, None]
  small = squared < 1e-4
  angle = xp.sqrt(xp.where(small, 1.0, squared))
  sine = xp.where(small, 1 - squared / 6, xp.sin(angle) / angle)
  half = xp.sin(angle / 2) / angle
  cosine = xp.where(small, 0.5 - squared / 24, 2 * half**2)
  cross = skew(vector)
  square = arrays.matmul(cross, cross)
  return xp.eye(3, dtype=vector.dtype) + sine * cross + cosine * square


def orthonormalized(rotation: Array) -> Any:
  """The rotations next to matrices [..., 3, 3] that are nearly that.

  One Newton step of the polar decomposition: an error of 1e-7 becomes 1e-14.
  """
  xp = arrays.namespace(rotation)
  square = arrays.matmul(xp.swapaxes(rotation, -1, -2), rotation)
  half = 1.5 * xp.eye(3, dtype=rotation.dtype) - 0.5 * square
  return arrays.matmul(rotation, half)
