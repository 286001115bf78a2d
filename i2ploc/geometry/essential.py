# SPDX-License-Identifier: Apache-2.0
"""Essential matrices E = [t] R, and the relative poses that they come from.

x_camera1 = R x_camera0 + t; the length of t is unknown and set to 1.
Conventions in `epipolar`.
"""

from typing import Any

import jax.numpy as jnp

from i2ploc.geometry import arrays
from i2ploc.geometry import rigid
from i2ploc.geometry import vectors


def from_pose(camera1_from_camera0: rigid.Rigid) -> Any:
  """E [3, 3]: the cross product of t with every column of R."""
  rotation, translation = camera1_from_camera0
  xp = arrays.namespace(rotation, translation)
  return xp.stack(vectors.cross(tuple(translation), tuple(rotation)))


def motions(
  essential: vectors.Matrix,
) -> tuple[vectors.Matrix, vectors.Vector]:
  """The two rotations and the translation of a matrix of norm sqrt(2).

  The cofactors of E are t t^T R, and they are R + [t] E (Horn, Recovering
  baseline and orientation from essential matrix, 1990). The other rotation
  belongs to -t; either translation goes with both.

  Args:
    essential: coordinates [...].

  Returns:
    rotations: coordinates [2, ...].
    translation: coordinates [...].
  """
  cofactors = vectors.cofactors(essential)
  translation = vectors.unit(vectors.longest(vectors.transposed(cofactors)))
  # A column of [t] E is t crossed with that of E.
  crossed = [
    vectors.cross(translation, column)
    for column in vectors.transposed(essential)
  ]
  sign = jnp.asarray([-1.0, 1.0], translation[0].dtype)
  sign = sign.reshape(2, *[1] * translation[0].ndim)
  first, second = (
    tuple(cofactors[i][j] + sign * crossed[j][i] for j in range(3))
    for i in range(2)
  )
  # If E is only nearly essential, the axes must be made orthogonal.
  first = vectors.unit(first)
  third = vectors.unit(vectors.cross(first, second))
  return (first, vectors.cross(third, first), third), translation


def depths(
  rotation: vectors.Matrix,
  translation: vectors.Vector,
  ray0: vectors.Vector,
  ray1: vectors.Vector,
) -> tuple[vectors.Coordinate, vectors.Coordinate]:
  """Distances of points along their rays, times a common square.

  x1 x (d0 R x0 + t) = 0 gives d0, and R x0 x (d1 x1 - t) = 0 gives d1.
  """
  turned = vectors.apply(rotation, ray0)
  normal = vectors.cross(ray1, turned)
  return (
    vectors.dot(vectors.cross(translation, ray1), normal),
    vectors.dot(vectors.cross(translation, turned), normal),
  )


def choose(
  essential: vectors.Matrix, rays0: vectors.Vector, rays1: vectors.Vector
) -> tuple[vectors.Matrix, vectors.Vector]:
  """Of the four poses, the one with most points ahead of both cameras.

  Args:
    essential: coordinates [V], of norm sqrt(2).
    rays0: coordinates [N, 1].
    rays1: coordinates [N, 1].

  Returns:
    rotation: coordinates [V].
    translation: coordinates [V], of length 1.
  """
  rotations, translation = motions(essential)
  near, far = depths(
    [[x[:, None] for x in row] for row in rotations], translation, rays0, rays1
  )
  ahead, behind = (near > 0) & (far > 0), (near < 0) & (far < 0)
  # [2, 2, V]: by rotation and by the sign of the translation.
  counts = jnp.sum(jnp.stack([ahead, behind], axis=1), axis=2)
  best = jnp.argmax(counts.reshape(4, -1), axis=0)
  rotation = tuple(
    tuple(jnp.where(best < 2, x[0], x[1]) for x in row) for row in rotations
  )
  return rotation, vectors.scaled(translation, jnp.where(best % 2, -1.0, 1.0))


def stacked(
  rotation: vectors.Matrix, translation: vectors.Vector
) -> rigid.Rigid:
  """Motions [V] of coordinates [V]."""
  rows = [jnp.stack(tuple(row), axis=-1) for row in rotation]
  return rigid.Rigid(jnp.stack(rows, axis=-2), jnp.stack(translation, axis=-1))


def retract(pose: rigid.Rigid, step: rigid.Array) -> rigid.Rigid:
  """A relative pose near another.

  Args:
    pose: camera1_from_camera0, with a translation of length 1.
    step: [5], rotation vector in camera 1, radians, then the turn of the
      translation along its `vectors.tangents`, radians.
  """
  xp = arrays.namespace(*pose, step)
  turn = rigid.rotation_from_vector(step[:3])
  shift = tuple(pose.translation)
  along = arrays.table(vectors.tangents(shift), shift[0])
  moved = pose.translation + arrays.matmul(step[3:], along)
  moved = moved / xp.sqrt((moved * moved).sum())
  # The error of a rotation found in float32 would remain in float64.
  rotation = rigid.orthonormalized(arrays.matmul(turn, pose.rotation))
  return rigid.Rigid(rotation, moved)


def linearized(pose: rigid.Rigid) -> tuple[Any, Any]:
  """E [3, 3] and its derivative [5, 3, 3] by the step of `retract`, at zero."""
  rotation, shift = pose
  xp = arrays.namespace(*pose)
  along = arrays.table(
    [tuple(shift), *vectors.tangents(tuple(shift))], shift[0]
  )
  crosses = rigid.skew(along)
  by_shift = arrays.matmul(crosses, rotation)
  turned = arrays.matmul(rigid.TURNS, rotation)
  by_turn = arrays.matmul(crosses[0], turned)
  return by_shift[0], xp.concatenate([by_turn, by_shift[1:]])
