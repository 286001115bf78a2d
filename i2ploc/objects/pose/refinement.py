# SPDX-License-Identifier: Apache-2.0
"""Poses from boxes: a start from three, refined on the edges of all.

The centres of three boxes and ellipsoids give up to four poses (P3P). Edges
contain more: where an object is and how large, hence how far away. Errors e, in
tolerances, are those of single edges, because an occluder hides one side of a
box and not the others. Each edge costs 2 (sqrt(1 + e^2) - 1), which grows
linearly. An edge on the border of the image bounds the object from one side
only.

Written for one pose or three pairs and vmapped by the caller.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from i2ploc.geometry import ellipsoid as ellipsoid_lib
from i2ploc.geometry import rigid
from i2ploc.robust import absolute_pose
from i2ploc.robust import refine as refine_lib

# Of the edges left, top, right, bottom: the outward side, and the normals of
# the planes x = 0 and y = 0.
_OUTWARD = (-1.0, -1.0, 1.0, 1.0)
_NORMALS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)) * 2
# Two boxes do not determine a pose: the floor keeps steps short where nothing
# holds it.
_DAMPING = refine_lib.Damping(first=1e-4, floor=1e-6)


class SeenEllipsoids(NamedTuple):
  """Ellipsoids and the boxes they were seen in; leading axis N.

  Attributes:
    ellipsoid: of the map.
    box: [N, 4] on the plane z = 1.
    scale: [N], 1 / tolerance of its edges, on the plane z = 1.
    open: bool [N, 4], edges beyond which the object may go on.
  """

  ellipsoid: ellipsoid_lib.Ellipsoid
  box: jax.Array
  scale: jax.Array
  open: jax.Array


class Fit(NamedTuple):
  """A refined pose and what is known around it.

  Attributes:
    pose: camera_from_map.
    matrix: [6, 6], weighted J^T J for a small motion of the camera frame:
      rotation vector, radians, then metres.
    squares: sum of the costs of the boxes that count.
    count: int32, edges that count.
    cost: the sum, plus threshold^2 for every box that does not count.
  """

  pose: rigid.Rigid
  matrix: jax.Array
  squares: jax.Array
  count: jax.Array
  cost: jax.Array


def _middle(box):
  return (box[:, :2] + box[:, 2:]) / 2


def _solve_at(points, ellipsoid):
  """Poses that see the centres of three ellipsoids at points [3, 2]."""
  plane = absolute_pose.Correspondences(*ellipsoid.center.T, *points.T)
  return absolute_pose.PLANE.solve(plane)


def solve(sample: SeenEllipsoids) -> tuple[rigid.Rigid, jax.Array]:
  """Four poses of three boxes, and which are valid [4]."""
  return _solve_at(_middle(sample.box), sample.ellipsoid)


def correct(pose: rigid.Rigid, sample: SeenEllipsoids) -> rigid.Rigid:
  """`pose` of three ellipsoids, without the bias of their boxes' centres.

  The centre of the box around an ellipsoid is off the ellipsoid's centre by
  about (size / depth)^2. This is one step of a fixed-point iteration: move the
  centres of the boxes by what the pose predicts, solve again, and take the
  solution next to the pose.

  Args:
    pose: camera_from_map, a solution of the sample.
    sample: three ellipsoids.

  Returns:
    camera_from_map; the given pose if the moved centres have no solution.
  """
  outline = ellipsoid_lib.project(sample.ellipsoid, pose)
  bias = _middle(outline.box) - outline.point
  bias = jnp.where(outline.valid[:, None], bias, 0.0)
  found, valid = _solve_at(_middle(sample.box) - bias, sample.ellipsoid)
  turned = jnp.sum((found.rotation - pose.rotation) ** 2, axis=(1, 2))
  best = jnp.argmin(jnp.where(valid, turned, jnp.inf))
  return jax.tree.map(
    lambda new, old: jnp.where(valid.any(), new[best], old), found, pose
  )


def edge_errors(
  pose: rigid.Rigid, data: SeenEllipsoids
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """The predicted edges and their errors.

  Args:
    pose: camera_from_map.
    data: what was seen.

  Returns:
    edges: [N, 4] of the predicted boxes on the plane z = 1.
    error: [N, 4], predicted minus seen, in tolerances; 0 where `bounds` is
      False.
    bounds: bool [N, 4], edges at which the object ends.
    valid: bool [N], ellipsoids that are entirely in front of the camera.
  """
  outline = ellipsoid_lib.project(data.ellipsoid, pose)
  error = (outline.box - data.box) * data.scale[:, None]
  # Of an object that goes on beyond the box, the edge may lie further out.
  beyond = data.open & (error * jnp.asarray(_OUTWARD) > 0)
  bounds = ~beyond & outline.valid[:, None]
  return outline.box, jnp.where(bounds, error, 0.0), bounds, outline.valid


def _edge_slopes(pose, data, edges):
  """[N, 4, 6], derivatives of the edges by a motion of the camera frame.

  An edge x is the plane n = (1, 0, -x) through the camera, tangential to the
  ellipsoid: n^T C n = 0 with the dual conic C. A turn w and a shift v of the
  frame move the centre y by w x y + v, and the edge by

    dx = ((q x n) . w - (n . y) n . v) / q_z,  q = C n,

  where q is the point of contact. An edge y is the plane n = (0, 1, -y).
  """
  conic = ellipsoid_lib.dual_conic(data.ellipsoid, pose)
  center = rigid.apply(pose, data.ellipsoid.center)
  normal = jnp.asarray(_NORMALS) - edges[..., None] * jnp.asarray([0.0, 0, 1])
  touched = jnp.einsum('nij,nej->nei', conic, normal, precision=rigid.EXACT)
  depth = touched[..., 2:]
  depth = jnp.where(jnp.abs(depth) > 1e-12, depth, 1.0)
  height = jnp.einsum('nej,nj->ne', normal, center, precision=rigid.EXACT)
  turned = jnp.cross(touched, normal)
  return jnp.concatenate([turned, -height[..., None] * normal], -1) / depth


def linearize(
  pose: rigid.Rigid,
  data: SeenEllipsoids,
  mask: jax.Array,
  threshold: float,
) -> refine_lib.Equations:
  """The weighted least-squares problem around a pose.

  Args:
    pose: camera_from_map.
    data: what was seen.
    mask: [N] bool, boxes that may count.
    threshold: root of a box's cost beyond which it does not count.

  Returns:
    The equations; the rest are `squares` and `count` of `Fit`.
  """
  edges, error, bounds, valid = edge_errors(pose, data)
  root = jnp.sqrt(1 + error**2)
  # 2 (sqrt(1 + e^2) - 1), without the cancellation of nearly equal numbers.
  costs = jnp.sum(2 * error**2 / (1 + root), axis=-1)
  counts = mask & valid & (costs < threshold**2)
  slope = _edge_slopes(pose, data, edges) * data.scale[:, None, None]
  used = counts[:, None] & bounds
  weight = jnp.where(used, 1 / root, 0.0)
  slope = jnp.where(used[..., None], slope, 0.0)
  weighted = weight[..., None] * slope
  cost = jnp.where(counts, costs, threshold**2)
  return refine_lib.Equations(
    jnp.sum(jnp.where(mask, cost, 0.0)),
    jnp.einsum('nei,nej->ij', weighted, slope, precision=rigid.EXACT),
    jnp.einsum('nei,ne->i', weighted, error, precision=rigid.EXACT),
    (jnp.sum(jnp.where(counts, costs, 0.0)), jnp.sum(used)),
  )


def refine(
  pose: rigid.Rigid,
  data: SeenEllipsoids,
  mask: jax.Array,
  threshold: float,
  num_steps: int,
) -> Fit:
  """The pose near the given one that fits the edges best.

  Args:
    pose: camera_from_map, where to start.
    data: what was seen.
    mask: [N] bool, boxes that may count.
    threshold: root of a box's cost beyond which it has no influence.
    num_steps: steps to try; some are rejected.

  Returns:
    The best fit; its cost is not above that of the start.
  """
  pose, equations = refine_lib.minimize(
    lambda pose: linearize(pose, data, mask, threshold),
    absolute_pose.retract,
    pose,
    num_steps,
    _DAMPING,
  )
  return Fit(pose, equations.matrix, *equations.rest, equations.cost)
