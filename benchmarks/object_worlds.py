# SPDX-License-Identifier: Apache-2.0
"""Worlds of random ellipsoids, and what cameras in them detect."""

from typing import Any

import jax
import numpy as np

from i2ploc.geometry import ellipsoid as ellipsoid_lib
from i2ploc.geometry import rigid
from i2ploc.objects import association
from i2ploc.objects import detections as detections_lib
from i2ploc.objects.map import landmarks
from i2ploc.objects.pose import scene
from i2ploc.objects.pose import search

IMAGE_SIZE = (480, 640)
INTRINSICS = np.array([[520.0, 0, 320], [0, 520, 240], [0, 0, 1]])
NUM_CATEGORIES = 8
# Square metres of floor per object; how far detectors see; objects at most.
AREA, RANGE, MOST_SEEN = 4.0, 12.0, 12
EDGE_NOISE = 0.03
_NEAREST = 1.5
_project = jax.jit(ellipsoid_lib.project)


def _pixels(box):
  """Boxes in pixels, of boxes on the plane z = 1."""
  scale = np.tile(np.diagonal(INTRINSICS)[:2], 2)
  return np.asarray(box) * scale + np.tile(INTRINSICS[:2, 2], 2)


def random_map(
  num_landmarks: int, rng: np.random.Generator
) -> landmarks.ObjectMap:
  """Objects of few kinds, up to 2 m above a square floor."""
  side = np.sqrt(AREA * num_landmarks)
  center = rng.uniform(0, 1, (num_landmarks, 3)) * [side, side, 2.0]
  kinds = rng.uniform(0.08, 0.5, (NUM_CATEGORIES, 3))
  category = rng.integers(0, NUM_CATEGORIES, num_landmarks)
  axes = kinds[category] * rng.uniform(0.9, 1.1, (num_landmarks, 3))
  angle = rng.uniform(0, 2 * np.pi, num_landmarks)
  rotation = np.tile(np.eye(3), (num_landmarks, 1, 1))
  rotation[:, 0, 0] = rotation[:, 1, 1] = np.cos(angle)
  rotation[:, 1, 0] = np.sin(angle)
  rotation[:, 0, 1] = -np.sin(angle)
  return landmarks.make_map(center, axes, rotation, category)


def random_pose(side: float, rng: np.random.Generator) -> rigid.Rigid:
  """camera_from_map of an upright camera inside a square floor."""
  angle, tilt = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.1)
  forward = np.array([np.cos(angle), np.sin(angle), tilt])
  forward /= np.linalg.norm(forward)
  right = np.cross(forward, [0.0, 0, 1])
  right /= np.linalg.norm(right)
  rotation = np.stack([right, np.cross(forward, right), forward])
  center = np.append(rng.uniform(0.1, 0.9, 2) * side, rng.uniform(1.0, 1.8))
  return rigid.Rigid(rotation, -rotation @ center)


def visible_boxes(
  object_map: landmarks.ObjectMap, pose: rigid.Rigid
) -> tuple[np.ndarray, np.ndarray]:
  """Boxes [M, 4] in pixels, clipped, of the nearest objects, and their rows."""
  outline = _project(object_map.ellipsoid, pose)
  box = _pixels(outline.box)
  height, width = IMAGE_SIZE
  clipped = np.clip(box, 0, [width, height, width, height])
  depth = object_map.center @ pose.rotation[2] + pose.translation[2]
  whole = np.prod(box[:, 2:] - box[:, :2], axis=-1)
  left = np.prod(clipped[:, 2:] - clipped[:, :2], axis=-1)
  seen = np.asarray(outline.valid) & (depth > _NEAREST) & (depth < RANGE)
  seen &= left > 0.6 * np.maximum(whole, 1e-9)
  rows = np.flatnonzero(seen)
  rows = rows[np.argsort(depth[rows], kind='stable')[:MOST_SEEN]]
  return clipped[rows], rows


def detect(
  object_map: landmarks.ObjectMap,
  pose: rigid.Rigid,
  rng: np.random.Generator,
  noise: float = EDGE_NOISE,
) -> tuple[detections_lib.Detections, np.ndarray]:
  """What a detector says, and the landmarks it shows [M].

  Args:
    object_map: what there is.
    pose: camera_from_map.
    rng: of the noise.
    noise: deviation of an edge, as a share of the box.
  """
  box, rows = visible_boxes(object_map, pose)
  sides = np.tile(box[:, 2:] - box[:, :2], 2)
  height, width = IMAGE_SIZE
  limits = np.array([width, height, width, height])
  inside = (box > 0) & (box < limits)
  box = box + inside * noise * sides * rng.normal(size=box.shape)
  score = rng.uniform(0.5, 1.0, len(rows))
  category = object_map.category[rows]
  box = np.clip(box, 0, limits)
  return (
    detections_lib.make_detections(box, category, score, IMAGE_SIZE),
    rows,
  )


def make_queries(
  num_landmarks: int, num_queries: int, seed: int = 0
) -> dict[str, Any]:
  """Fields of the benchmark's `Queries`, of images with objects in them."""
  rng = np.random.default_rng(seed)
  object_map = random_map(num_landmarks, rng)
  side = np.sqrt(AREA * num_landmarks)
  frames, poses = [], []
  while len(poses) < num_queries:
    pose = random_pose(side, rng)
    found, _ = detect(object_map, pose, rng)
    if len(found.box) >= 5:
      frames.append(found)
      poses.append(pose)
  return {
    'object_maps': [object_map] * num_queries,
    'detections': frames,
    'poses': poses,
    'blocks': np.arange(num_queries),
    'intrinsics': INTRINSICS,
    'image_size': IMAGE_SIZE,
    'calibrations': [association.UNCALIBRATED] * num_queries,
  }


def crowded_scene(
  rng: np.random.Generator, num_triples: int = 1024
) -> tuple[Any, ...]:
  """Arguments of `object_search.search`: 16 boxes, 21 ellipsoids, 8 kinds.

  Returns:
    The scene, triples of detections and of landmarks, their number, no prior.
  """
  object_map = random_map(21, rng)
  spread = rng.uniform([-2.5, -2, 4], [2.5, 2, 8], (21, 3))
  object_map = object_map._replace(center=spread)
  pose = rigid.Rigid(np.eye(3), np.zeros(3))
  box, rows = _boxes_ahead(object_map, pose)
  category = object_map.category
  pairs = association.same_category(category[rows], category)
  placed = scene.make_scene(
    scene.plane_boxes(box, INTRINSICS),
    np.ones(len(rows)),
    np.zeros((len(rows), 4), bool),
    object_map.ellipsoid,
    pairs,
    np.arange(21),
    INTRINSICS,
    IMAGE_SIZE,
  )
  triples = _any_triples(pairs, num_triples, rng)
  sides = pairs.observation[triples], pairs.landmark[triples]
  anything = search.Prior(
    np.float32([0, 0, 1]),
    np.float32(-2),
    np.float32([-np.inf, np.inf]),
    np.zeros(2, np.float32),
    np.float32(np.inf),
  )
  sides = tuple(np.asarray(side, np.int32) for side in sides)
  return placed.scene, sides, np.int32(num_triples), anything


def _boxes_ahead(object_map, pose):
  """Boxes of the first 16 objects in pixels, and their rows."""
  outline = _project(object_map.ellipsoid, pose)
  box = _pixels(outline.box)
  return box[:16], np.arange(16)


def _any_triples(pairs, count, rng):
  """Random triples of different detections and landmarks."""
  found = []
  while len(found) < count:
    rows = rng.choice(len(pairs.rank), 3, replace=False)
    names = (pairs.observation[rows], pairs.landmark[rows])
    if all(len(set(name)) == 3 for name in names):
      found.append(rows)
  return np.asarray(found)
