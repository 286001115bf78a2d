# SPDX-License-Identifier: Apache-2.0
"""Rigid motions: `a_from_b` maps coordinates in frame b to frame a.

Everything broadcasts over leading axes. Composition reads itself:
`compose(camera_from_lidar, lidar_from_world)` is `camera_from_world`.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

# A motion of the host goes to the device with the call that takes it.
Array = jax.Array | np.ndarray
# TF32 and bfloat16 products would move a point at 100 m by centimetres.
EXACT = jax.lax.Precision.HIGHEST


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
    jnp.matmul(a_from_b.rotation, b_from_c.rotation, precision=EXACT),
    apply(a_from_b, b_from_c.translation),
  )


def inverse(a_from_b: Rigid) -> Rigid:
  """b_from_a."""
  rotation = jnp.swapaxes(a_from_b.rotation, -1, -2)
  translation = rotate(rotation, a_from_b.translation)
  return Rigid(rotation, -translation)


def apply(a_from_b: Rigid, points: Array) -> jax.Array:
  """Maps points [..., 3] of frame b to frame a.

  The leading axes of the motion broadcast against those of the points: for a
  cloud [B, P, 3] under motions [B] expand the motions to [B, 1] first, or vmap.
  """
  chex.assert_axis_dimension(points, -1, 3)
  return rotate(a_from_b.rotation, points) + a_from_b.translation


def rotate(rotation: Array, vectors: Array) -> jax.Array:
  """Rotations [..., 3, 3] times vectors [..., 3]; leading axes broadcast.

  Written out: a product this narrow does not vectorise on CPU, where a scan
  turns 15 times as fast this way.
  """
  rotation, vectors = jnp.asarray(rotation), jnp.asarray(vectors)
  x, y, z = (vectors[..., i : i + 1] * rotation[..., i] for i in range(3))
  return x + y + z


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


def rotation_from_vector(vector: jax.Array) -> jax.Array:
  """Rotations [..., 3, 3] by |v| radians about v [..., 3] (Rodrigues).

  Smooth at zero, to all orders that float32 can tell.
  """
  squared = jnp.sum(vector**2, axis=-1)[..., None, None]
  small = squared < 1e-4
  angle = jnp.sqrt(jnp.where(small, 1.0, squared))
  sine = jnp.where(small, 1 - squared / 6, jnp.sin(angle) / angle)
  half = jnp.sin(angle / 2) / angle
  cosine = jnp.where(small, 0.5 - squared / 24, 2 * half**2)
  x, y, z = jnp.moveaxis(vector, -1, 0)
  zero = jnp.zeros_like(x)
  rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
  cross = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
  square = jnp.matmul(cross, cross, precision=EXACT)
  return jnp.eye(3, dtype=vector.dtype) + sine * cross + cosine * square


def orthonormalized(rotation: Array) -> jax.Array:
  """The rotations next to matrices [..., 3, 3] that are nearly that.

  One Newton step of the polar decomposition: an error of 1e-7 becomes 1e-14.
  """
  square = jnp.matmul(jnp.swapaxes(rotation, -1, -2), rotation, precision=EXACT)
  half = 1.5 * jnp.eye(3, dtype=rotation.dtype) - 0.5 * square
  return jnp.matmul(rotation, half, precision=EXACT)
