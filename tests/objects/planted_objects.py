# SPDX-License-Identifier: Apache-2.0
"""Objects on a table, cameras around it, and boxes with everything wrong."""

from typing import NamedTuple

import jax
import numpy as np

from i2ploc.geometry import ellipsoid
from i2ploc.geometry import rigid
from i2ploc.objects import detections as detections_lib

SIZE = (480, 640)
_project = jax.jit(ellipsoid.project)
INTRINSICS = np.array([[520.0, 0, 320], [0, 520.0, 240], [0, 0, 1]])


class Scene(NamedTuple):
  """Objects L and cameras F; see `make_scene`."""

  ellipsoid: ellipsoid.Ellipsoid
  category: np.ndarray
  poses: np.ndarray
  frames: list[detections_lib.Detections]


def look_at(centers, target):
  """world_from_camera [F, 4, 4] of cameras that look at a point, upright."""
  forward = target - centers
  forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
  right = np.cross(forward, [0, 0, 1.0])
  right /= np.linalg.norm(right, axis=-1, keepdims=True)
  poses = np.tile(np.eye(4), (len(centers), 1, 1))
  poses[:, :3, :3] = np.stack(
    [right, np.cross(forward, right), forward], axis=-1
  )
  poses[:, :3, 3] = centers
  return poses


def table(rng, count):
  """Objects a step apart, each upright and turned about the vertical."""
  turn = rng.uniform(0, np.pi, count)
  zero, one = np.zeros(count), np.ones(count)
  rows = [
    [np.cos(turn), -np.sin(turn), zero],
    [np.sin(turn), np.cos(turn), zero],
    [zero, zero, one],
  ]
  grid = np.stack(np.meshgrid([-0.6, 0, 0.6], [-0.4, 0.1, 0.6]), -1)
  center = np.concatenate(
    [grid.reshape(-1, 2)[:count], rng.uniform(0.7, 0.9, (count, 1))], -1
  )
  return ellipsoid.Ellipsoid(
    center,
    rng.uniform(0.05, 0.18, (count, 3)),
    np.moveaxis(np.array(rows), -1, 0),
  )


def boxes_of(shapes, poses):
  """Pixels [F, L, 4] and valid."""
  motions = np.linalg.inv(poses)[:, None]
  outline = _project(
    jax.tree.map(np.float32, shapes),
    rigid.Rigid(
      np.float32(motions[..., :3, :3]), np.float32(motions[..., :3, 3])
    ),
  )
  pixels = ellipsoid.pixel_box(np.float32(INTRINSICS), outline.box)
  return np.asarray(pixels, np.float64), np.asarray(outline.valid)


def box_iou(a, b):
  """Intersection over union [...] of boxes [..., 4]; flat ones have none."""
  low, high = np.maximum(a, b)[..., :2], np.minimum(a, b)[..., 2:]
  both = np.maximum(high - low, 0).prod(-1)
  areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b)]
  return both / np.maximum(sum(areas) - both, 1e-12)


def make_scene(
  *,
  num_objects=7,
  num_frames=40,
  noise=1.0,
  missed=0.2,
  false=0.1,
  arc=2 * np.pi,
  wander=1.0,
  seed=0,
) -> Scene:
  """Cameras on an arc around a table, which detect objects badly.

  Args:
    num_objects: of three categories in turn.
    num_frames: cameras.
    noise: pixels, of every edge.
    missed: share of the objects that a camera does not detect.
    false: share of boxes that show nothing, of the right categories.
    arc: radians, of the cameras around the table.
    wander: how much their heights and distances differ.
    seed: of everything.
  """
  rng = np.random.default_rng(seed)
  shapes = table(rng, num_objects)
  category = np.arange(num_objects) % 3
  angle = np.linspace(0, arc, num_frames, endpoint=False)
  away = wander * rng.uniform(-0.3, 0.3, (2, num_frames))
  radius, height = 2.1 + away[0], 1.9 + away[1]
  centers = np.stack(
    [radius * np.cos(angle), radius * np.sin(angle), height], -1
  )
  poses = look_at(centers, np.array([0.1, 0.1, 0.8]))
  pixels, valid = boxes_of(shapes, poses)
  frames = []
  bounds = np.array([SIZE[1], SIZE[0]] * 2)
  for seen, ahead in zip(pixels, valid, strict=True):
    seen = seen + rng.normal(0, noise, seen.shape)
    wrong = rng.uniform(0, 1, len(seen)) < false
    size = seen[:, 2:] - seen[:, :2]
    moved = rng.uniform(0, 1, (len(seen), 2)) * (bounds[:2] - size)
    astray = np.concatenate([moved, moved + size], -1)
    seen = np.where(wrong[:, None], astray, seen)
    seen = np.clip(seen, 0, bounds)
    keep = ahead & (rng.uniform(0, 1, len(seen)) > missed)
    keep &= (seen[:, 2:] - seen[:, :2] > 8).all(-1)
    frames.append(
      detections_lib.make_detections(
        seen[keep], category[keep], np.full(keep.sum(), 0.9), SIZE
      )
    )
  return Scene(shapes, category, poses, frames)
