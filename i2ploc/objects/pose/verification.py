# SPDX-License-Identifier: Apache-2.0
"""How well poses explain the boxes of an image, by the overlap of boxes.

Under a pose every ellipsoid has a box. A detection is explained by the
candidate whose box overlaps its own best, and a landmark explains one detection
at most. The score is the explained share of the detections' weight, times the
overlap:

  score = sum over assigned pairs of weight * support * IoU / sum of weights.

Boxes are clipped to the image, as a detector's boxes are. Without the limit of
one detection per landmark the score is an upper bound that needs no loop:
thousands of poses are sorted by the bound, and the best are scored in full.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from i2ploc.geometry import ellipsoid as ellipsoid_lib
from i2ploc.geometry import rigid
from i2ploc.objects.pose import scene as scene_lib


class Assignment(NamedTuple):
  """Which candidates explain which detections, under poses [S].

  Attributes:
    column: int32 [M, S], of the scene's [M, K].
    overlap: [M, S], IoU of the two boxes.
    explained: bool [M, S]; other detections have column and overlap 0.
    score: [S] in [0, 1].
  """

  column: jax.Array
  overlap: jax.Array
  explained: jax.Array
  score: jax.Array


def _edges(scene, poses):
  """Left, top, right, bottom [L, S] of all ellipsoids under poses [S]."""

  def last(leaf):
    # The barrier makes XLA write this layout, so that slices are contiguous.
    return jax.lax.optimization_barrier(jnp.moveaxis(leaf, 0, -1))

  turned = last(poses.rotation), last(poses.translation)
  poses = rigid.Rigid(*(jnp.moveaxis(leaf, -1, 0) for leaf in turned))
  along = jax.tree.map(lambda leaf: leaf[:, None], scene.ellipsoids)
  box = ellipsoid_lib.project(along, poses).box
  return tuple(box[..., i] for i in range(4))


def _limits(scene):
  """Lower and upper limits [M, 2] to which boxes are clipped per detection.

  These are the image's, or the detection's own edges where the border cuts it:
  the border of an undistorted image is not straight.
  """
  low = jnp.where(scene.open[:, :2], scene.box[:, :2], scene.bounds[:2])
  high = jnp.where(scene.open[:, 2:], scene.box[:, 2:], scene.bounds[2:])
  return low, high


def _overlap(scene, edges, landmark, support):
  """support * IoU [M, S] of one candidate [M] of every detection."""
  low, high = _limits(scene)
  seen = [scene.box[:, i, None] for i in range(4)]
  left, top, right, bottom = (
    jnp.clip(edge[landmark], low[:, i % 2, None], high[:, i % 2, None])
    for i, edge in enumerate(edges)
  )
  width = jnp.minimum(right, seen[2]) - jnp.maximum(left, seen[0])
  height = jnp.minimum(bottom, seen[3]) - jnp.maximum(top, seen[1])
  both = jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0)
  either = (right - left) * (bottom - top) - both
  either += (seen[2] - seen[0]) * (seen[3] - seen[1])
  # An ellipsoid partly behind the camera is a flat box, and overlaps nothing.
  return support[:, None] * both / jnp.maximum(either, 1e-12)


def overlaps(scene: scene_lib.Scene, poses: rigid.Rigid) -> jax.Array:
  """[M, K, S] support * IoU of candidates under poses [S], camera_from_map."""
  edges = _edges(scene, poses)
  columns = jax.lax.map(
    lambda column: _overlap(scene, edges, *column),
    (scene.landmark.T, scene.support.T),
  )
  return jnp.moveaxis(columns, 0, 1)


def bound(scene: scene_lib.Scene, poses: rigid.Rigid) -> jax.Array:
  """Upper bound [S] of the score of poses [S]: every detection its best."""
  edges = _edges(scene, poses)

  def larger(best, column):
    return jnp.maximum(best, _overlap(scene, edges, *column)), None

  best = jnp.zeros((len(scene.box), len(poses.translation)), jnp.float32)
  best, _ = jax.lax.scan(larger, best, (scene.landmark.T, scene.support.T))
  return jnp.sum(_share(scene) * best, axis=0)


def _share(scene):
  """Share [M, 1] of each detection in the total weight."""
  return (scene.weight / jnp.maximum(scene.weight.sum(), 1e-9))[:, None]


def judge(
  scene: scene_lib.Scene, poses: rigid.Rigid, least: float
) -> Assignment:
  """Assigns one to one: the best pair first, then the best of the others.

  Args:
    scene: the detections and their candidates.
    poses: [S], camera_from_map.
    least: overlap below which a pair explains nothing.
  """
  overlap = overlaps(scene, poses)
  num_detections, num_candidates, num_poses = overlap.shape
  share = _share(scene)
  value = jnp.where(overlap >= least, overlap * share[:, None], 0.0)
  pair = jnp.arange(num_detections * num_candidates).reshape(share.size, -1, 1)
  row = jnp.arange(num_detections)[:, None]
  landmarks = jnp.asarray(scene.landmark).reshape(-1)

  def step(state):
    left, column, chosen = state
    best = left.max((0, 1))
    # The first of the best: argmax does not vectorise.
    first = jnp.where(left == best, pair, pair.size).min((0, 1))
    first = jnp.where(best > 0, first, pair.size)
    hit = row == first // num_candidates
    column = jnp.where(hit, first % num_candidates, column)
    landmark = landmarks.at[first].get(mode='fill', fill_value=-1)
    taken = hit[:, None] | (scene.landmark[..., None] == landmark)
    return jnp.where(taken, 0.0, left), column, chosen | hit

  nothing = jnp.zeros((num_detections, num_poses), jnp.int32)
  _, column, explained = jax.lax.while_loop(
    lambda state: (state[0] > 0).any(),
    step,
    (value, nothing, nothing.astype(bool)),
  )
  chosen = jnp.take_along_axis(overlap, column[:, None], axis=1)[:, 0]
  chosen = jnp.where(explained, chosen, 0.0)
  return Assignment(column, chosen, explained, jnp.sum(share * chosen, axis=0))
