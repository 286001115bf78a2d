# SPDX-License-Identifier: Apache-2.0
"""Poses from boxes: three for a start, the edges of all for the end.

The centres of three boxes and ellipsoids give up to four poses (P3P). Edges
say more: where an object is and how large, that is, how far away. Errors e, in
tolerances, are of single edges, because that is how boxes go wrong: an occluder
hides one side. Each costs 2 (sqrt(1 + e^2) - 1), which grows linearly. An edge
on the border of the image bounds the object from one side only.

All for one pose or three pairs; vmapped by the caller.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from i2ploc.geometry import ellipsoid as ellipsoid_lib
from i2ploc.geometry import rigid
from i2ploc.robust import absolute_pose

# Of left, top, right, bottom: what is outward, and the planes x = 0, y = 0.
_OUTWARD = (-1.0, -1.0, 1.0, 1.0)
_NORMALS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)) * 2
_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-3, 1e-8, 1e6


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
  """A pose and the least-squares problem around it.

  Attributes:
    pose: camera_from_map.
    matrix: [6, 6], weighted J^T J for a small motion of the camera frame:
      rotation vector, radians, then metres.
    gradient: [6], weighted J^T e.
    squares: sum of the costs of boxes that count.
    count: edges that count.
    cost: the same, and threshold^2 for every box that does not count.
  """

  pose: rigid.Rigid
  matrix: jax.Array
  gradient: jax.Array
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

  The box around an ellipsoid is not centred where its centre appears, by about
  (size / depth)^2. One step of the fixed point: move the centres of the boxes
  by what the pose predicts, solve again, take the solution next to the pose.

  Args:
    pose: camera_from_map, a solution of the sample.
    sample: three ellipsoids.

  Returns:
    camera_from_map; the same where nothing solves what was moved.
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
  """Where edges are predicted, and how far off that is.

  Args:
    pose: camera_from_map.
    data: what was seen.

  Returns:
    edges: [N, 4] of the predicted boxes on the plane z = 1.
    error: [N, 4] less those seen, in tolerances; 0 where they bound nothing.
    bounds: bool [N, 4], edges that say where the object ends.
    valid: bool [N], ellipsoids that are all in front of the camera.
  """
  outline = ellipsoid_lib.project(data.ellipsoid, pose)
  error = (outline.box - data.box) * data.scale[:, None]
  # Where an object goes on, its own edge lies outward of the box.
  beyond = data.open & (error * jnp.asarray(_OUTWARD) > 0)
  bounds = ~beyond & outline.valid[:, None]
  return outline.box, jnp.where(bounds, error, 0.0), bounds, outline.valid


def _edge_slopes(pose, data, edges):
  """[N, 4, 6], how edges move with the camera frame.

  An edge x is the plane n = (1, 0, -x) through the camera, tangential to the
  ellipsoid: n^T C n = 0 with the dual conic C. A turn w and a shift v of the
  frame move the centre y by w x y + v and leave

    dx = ((q x n) . w - (n . y) n . v) / q_z,  q = C n,

  q being where the plane touches. Likewise n = (0, 1, -y) for the others.
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
) -> Fit:
  """The weighted least-squares problem around a pose.

  Args:
    pose: camera_from_map.
    data: what was seen.
    mask: [N] bool, what may count.
    threshold: root of a box's cost beyond which it does not.
  """
  edges, error, bounds, valid = edge_errors(pose, data)
  root = jnp.sqrt(1 + error**2)
  # 2 (sqrt(1 + e^2) - 1), without the difference of what is nearly equal.
  costs = jnp.sum(2 * error**2 / (1 + root), axis=-1)
  counts = mask & valid & (costs < threshold**2)
  slope = _edge_slopes(pose, data, edges) * data.scale[:, None, None]
  says = counts[:, None] & bounds
  weight = jnp.where(says, 1 / root, 0.0)
  slope = jnp.where(says[..., None], slope, 0.0)
  weighted = weight[..., None] * slope
  cost = jnp.where(counts, costs, threshold**2)
  return Fit(
    pose,
    jnp.einsum('nei,nej->ij', weighted, slope, precision=rigid.EXACT),
    jnp.einsum('nei,ne->i', weighted, error, precision=rigid.EXACT),
    jnp.sum(jnp.where(counts, costs, 0.0)),
    jnp.sum(says),
    jnp.sum(jnp.where(mask, cost, 0.0)),
  )


def refine(
  pose: rigid.Rigid,
  data: SeenEllipsoids,
  mask: jax.Array,
  threshold: float,
  num_steps: int,
) -> Fit:
  """The pose that fits edges best, near the given one.

  Levenberg and Marquardt; what a step is judged by is what the next one starts
  from, so that every pose is linearized once.

  Args:
    pose: camera_from_map, where to start.
    data: what was seen.
    mask: [N] bool, what may count.
    threshold: root of a box's cost beyond which it has no say.
    num_steps: at most; some are rejected.

  Returns:
    The best fit; of a cost not above the start's.
  """

  def step(_, state):
    best, damping = state
    diagonal = jnp.diagonal(best.matrix)
    ridge = damping * jnp.maximum(diagonal, 1e-6 * diagonal.max() + 1e-12)
    change = -jnp.linalg.solve(best.matrix + jnp.diag(ridge), best.gradient)
    change = jnp.where(jnp.isfinite(change), change, 0.0)
    found = linearize(
      absolute_pose.retract(best.pose, change), data, mask, threshold
    )
    better = found.cost < best.cost
    best = jax.tree.map(lambda a, b: jnp.where(better, a, b), found, best)
    damping = damping * jnp.where(better, 0.1, 10.0)
    return best, jnp.clip(damping, _LEAST_DAMPING, _MOST_DAMPING)

  # Of infinite cost, without a gradient: the first step accepts the start.
  zero = jnp.zeros((), data.box.dtype)
  nothing = Fit(
    pose,
    jnp.eye(6, dtype=zero.dtype),
    jnp.zeros(6, zero.dtype),
    zero,
    jnp.zeros((), jnp.int32),
    zero + jnp.inf,
  )
  return jax.lax.fori_loop(
    0, num_steps + 1, step, (nothing, zero + _FIRST_DAMPING)
  )[0]
