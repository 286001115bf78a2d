# SPDX-License-Identifier: Apache-2.0
"""Pose of a calibrated camera from points of a map: the problem.

A model is `camera_from_map`. Image points are on the plane z = 1 of the camera
(see `camera.normalize`); residuals are distances there, focal lengths turn a
threshold in pixels into one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from i2ploc.geometry import p3p
from i2ploc.geometry import rigid
from i2ploc.robust import problem as problem_lib

# Distance on the image plane of what is behind the camera, squared.
_BEHIND = 1e6
_MIN_DEPTH = 1e-3


class Correspondences(NamedTuple):
  """Points of a map and where a camera sees them; every leaf is [N].

  Attributes:
    x: map frame, metres.
    y: metres.
    z: metres.
    u: image plane at distance 1, to the right.
    v: down.
  """

  x: jax.Array
  y: jax.Array
  z: jax.Array
  u: jax.Array
  v: jax.Array


def _solve(sample: Correspondences) -> tuple[rigid.Rigid, jax.Array]:
  rays = jnp.stack([sample.u, sample.v, jnp.ones_like(sample.u)], axis=-1)
  rays = rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)
  points = jnp.stack([sample.x, sample.y, sample.z], axis=-1)
  found = p3p.p3p(rays, points)
  return rigid.Rigid(found.rotation, found.translation), found.valid


def _camera_points(pose: rigid.Rigid, data: Correspondences):
  """Coordinates [N] of the points in the camera, one array each."""
  # Written out: a matrix product of three columns does not vectorise on CPU.
  return tuple(
    pose.rotation[i, 0] * data.x
    + pose.rotation[i, 1] * data.y
    + pose.rotation[i, 2] * data.z
    + pose.translation[i]
    for i in range(3)
  )


def _errors(pose: rigid.Rigid, data: Correspondences) -> jax.Array:
  """[N, 2] on the image plane; bounded for points at or behind the camera."""
  x, y, z = _camera_points(pose, data)
  inverse = 1 / jnp.maximum(z, _MIN_DEPTH)
  return jnp.stack([x * inverse - data.u, y * inverse - data.v], axis=-1)


def _residual(pose: rigid.Rigid, data: Correspondences) -> jax.Array:
  x, y, z = _camera_points(pose, data)
  inverse = 1 / jnp.maximum(z, _MIN_DEPTH)
  squared = (x * inverse - data.u) ** 2 + (y * inverse - data.v) ** 2
  return jnp.where(z > _MIN_DEPTH, squared, _BEHIND)


def retract(pose: rigid.Rigid, step: jax.Array) -> rigid.Rigid:
  """`pose` after a small motion of the camera frame.

  Args:
    pose: camera_from_map.
    step: [6], rotation vector in the camera frame, radians, then translation,
      metres.
  """
  turn = rigid.rotation_from_vector(step[:3])
  return rigid.Rigid(turn @ pose.rotation, turn @ pose.translation + step[3:])


PROBLEM = problem_lib.Problem(
  sample_size=3,
  num_solutions=p3p.NUM_SOLUTIONS,
  dof=6,
  solve=_solve,
  residual=_residual,
  errors=_errors,
  retract=retract,
)
