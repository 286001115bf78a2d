# SPDX-License-Identifier: Apache-2.0
"""A query, its answers, and what makes one of the other: stages.

A chain of stages answers a query: each takes the query and a ranked list of
answers and returns a better one, the first starts from []. answers.jsonl has
one line per query, see `record`; its fields do not depend on the stages.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc import files
from i2ploc.geometry import lens as lens_lib
from i2ploc.objects import detections as detections_lib


class Prior(NamedTuple):
  """What else is known of the camera; None is not known.

  Attributes:
    down: [3], gravity in the camera frame, of any length; the map's z is up.
    tolerance: largest angle from it, radians.
    height: (low, high), z of the camera in the map, metres.
    position: [2], about where it is in the map, metres east and north.
    radius: metres from `position` within which it certainly is.
  """

  down: np.ndarray | None = None
  tolerance: float = 0.1
  height: tuple[float, float] | None = None
  position: np.ndarray | None = None
  radius: float = math.inf


UNKNOWN = Prior()


class Query(NamedTuple):
  """An image that asks where it was taken.

  Attributes:
    name: for people: a path, as given.
    image: uint8 [H, W, 3], of the file.
    lens: of this image; None if unknown.
    prior: what else is known of the camera.
    detections: boxes in this image; None where nothing looked for objects.
    previous: what the camera saw before, oldest first, each without what came
      before it; () for a single image. The question is where the camera is
      now: where `image` was taken.
    upright: whether `image` was turned as the EXIF of the file says.
  """

  name: str
  image: np.ndarray
  lens: lens_lib.Lens | None = None
  prior: Prior = UNKNOWN
  detections: detections_lib.Detections | None = None
  previous: 'tuple[Query, ...]' = ()
  upright: bool = True


class Answer(NamedTuple):
  """Where a query may have been taken, or why there is no pose.

  Attributes:
    rank: 1 is the best.
    place: town, folder or map that the answer is in.
    world_from_camera: float64 [4, 4]; None without a pose.
    covariance: [6, 6] of a small motion of the camera frame: rotation vector,
      radians, then translation, metres; infinite where the data do not
      determine the pose. None where nothing is known.
    similarity: of the query to the place, by which answers are ranked: a
      cosine, a dot product, or the share of the detections that are explained.
    confidence: [0, 1], probability that the answer is right; None where the
      method cannot say.
    reason: why there is no pose, or no confidence; '' otherwise.
    evidence: what a page draws, by name: numbers, texts, arrays, lists or dicts
      of them. `stage` says who made the answer; `position` [3] and `heading`
      (radians, yaw in the world), None where unknown, say where it is drawn.
  """

  rank: int
  place: str
  world_from_camera: np.ndarray | None
  covariance: np.ndarray | None
  similarity: float
  confidence: float | None
  reason: str
  evidence: Mapping[str, Any]


Stage = Callable[[Query, list[Answer]], list[Answer]]


def record(query: Query, answers: Sequence[Answer]) -> dict[str, Any]:
  """One query's line of answers.jsonl, ready for JSON.

  Args:
    query: whose image size goes along: evidence is in its pixels.
    answers: best first.

  Returns:
    {query, image_size, upright, answers: [fields of `Answer`]}, matrices as
    nested lists, null for what is not known or not finite.
  """
  return files.plain(
    {
      'query': query.name,
      'image_size': list(query.image.shape[:2]),
      'upright': query.upright,
      'answers': [one._asdict() for one in answers],
    }
  )
