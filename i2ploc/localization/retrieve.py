# SPDX-License-Identifier: Apache-2.0
"""Where was this image taken? Ranked poses of a LiDAR map, with a confidence.

An answer is the pose of a map reading, so it is right up to the distance to
the nearest one. The confidence is what the model's own temperature says: the
similarities of all places, times the learned scale, through a softmax are the
probabilities that training fitted (InfoNCE is cross-entropy over places); the
confidence of an answer is the mass of all places within a radius of it, since
neighbouring readings of one street share it. It assumes that the query lies
somewhere in the map, and it is only as calibrated as the model.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from i2ploc.retrieval import index as index_lib


class Answer(NamedTuple):
  """One place of the map as the answer to a query.

  Attributes:
    rank: 1 is the best.
    key: the place in the index.
    town, frame: which reading that was.
    view: radians, how far the best view is turned to the left of the reading.
    position: float64 [3], the LiDAR in the town's world frame, metres, z up.
    heading: radians, yaw of the vehicle's x axis in the world, in [-pi, pi].
    world_from_camera: float64 [4, 4].
    similarity: cosine, [-1, 1].
    distance_from_best: horizontal metres to the answer of rank 1; inf in
      another town.
    confidence: [0, 1], posterior mass within the radius of this answer.
  """

  rank: int
  key: int
  town: str
  frame: int
  view: float
  position: np.ndarray
  heading: float
  world_from_camera: np.ndarray
  similarity: float
  distance_from_best: float
  confidence: float


def localize(
  queries: np.ndarray,
  index: index_lib.Index,
  *,
  scale: float,
  radius: float = 10.0,
  k: int = 5,
) -> list[list[Answer]]:
  """The k most similar places of each query.

  1. Search all places, the best view of each.
  2. posterior = softmax(scale * similarity) over the places.
  3. Take the first k; the confidence of each is the posterior mass of the
     places of its town within `radius` of it, horizontally, itself included.

  Args:
    queries: [Q, D], unit norm, of the model that made the index.
    index: the map.
    scale: the model's inverse temperature, exp(log_scale).
    radius: metres.
    k: answers per query; a map of fewer places gives all of them.

  Returns:
    Q lists of min(k, places) answers, best first.

  Raises:
    InputError: no query, descriptors that are not finite, not of unit norm or
      of another width than the map's, or a scale, radius or k out of range.
  """
  for name, value in (('scale', scale), ('radius', radius)):
    if not (math.isfinite(value) and value > 0):
      raise InputError(f'{name}={value}; expected a positive number.')
  if k < 1:
    raise InputError(f'k={k} answers were asked for; ask for at least 1.')
  similarities, rows = index.search(queries, index.num_places)
  return [
    _answers(index, row, similarity, scale, radius, k)
    for row, similarity in zip(rows, similarities, strict=True)
  ]


def _answers(
  index: index_lib.Index,
  rows: np.ndarray,
  similarities: np.ndarray,
  scale: float,
  radius: float,
  k: int,
) -> list[Answer]:
  """Answers of one query from all places, most similar first."""
  logits = scale * similarities.astype(np.float64)
  posterior = np.exp(logits - logits.max())
  posterior /= posterior.sum()
  first = rows[:k]
  distances = _distances(index, first, rows)
  mass = np.where(distances <= radius, posterior, 0).sum(1)
  camera_from_lidar = np.asarray(index.rig.camera_from_lidar, np.float64)
  world_from_view = index.world_from_view(first)
  world_from_camera = world_from_view @ np.linalg.inv(camera_from_lidar)
  headings = np.arctan2(world_from_view[:, 1, 0], world_from_view[:, 0, 0])
  return [
    Answer(
      rank=i + 1,
      key=int(index.keys[row]),
      town=str(index.towns[row]),
      frame=int(index.frames[row]),
      view=float(index.views[row]),
      position=world_from_view[i, :3, 3],
      heading=float(headings[i]),
      world_from_camera=world_from_camera[i],
      similarity=float(np.clip(similarities[i], -1, 1)),
      distance_from_best=float(distances[0, i]),
      confidence=float(np.clip(mass[i], 0, 1)),
    )
    for i, row in enumerate(first)
  ]


def _distances(
  index: index_lib.Index, some: np.ndarray, others: np.ndarray
) -> np.ndarray:
  """[k, K] horizontal metres; infinite between towns."""
  position = np.asarray(index.poses, np.float64)[:, :2, 3]
  towns = np.asarray(index.towns)
  step = position[some][:, None] - position[others]
  same = towns[some][:, None] == towns[others]
  return np.where(same, np.hypot(step[..., 0], step[..., 1]), np.inf)


def record_from_answers(
  query: str, answers: Sequence[Answer]
) -> Mapping[str, Any]:
  """One query's JSON line as a dict of plain numbers, strings and lists.

  Matrices are 16 numbers, row by row; an infinite distance is null.
  """
  return {
    'query': query,
    'answers': [
      answer._asdict()
      | {
        'position': answer.position.tolist(),
        'world_from_camera': answer.world_from_camera.ravel().tolist(),
        'distance_from_best': (
          answer.distance_from_best
          if math.isfinite(answer.distance_from_best)
          else None
        ),
      }
      for answer in answers
    ],
  }
