# SPDX-License-Identifier: Apache-2.0
"""Places: images at known poses, some to make an object map of, some to ask it.

Here those of towns of a labelled dataset, whose labels stand for a detector; of
recordings with a file of detections see `rgbd`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import pathlib
from typing import NamedTuple
from typing import Protocol

import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib
from input_pipeline import schema
from input_pipeline.sources import crops as crops_lib
from input_pipeline.synthetic_city import detections as detections_lib

# Frames of a town within which queries fail together.
_BLOCK_FRAMES = 20


class Question(Protocol):
  """Which frames of a town ask which, see `i2ploc.evaluation.questions`."""

  name: str
  town: str
  query_rows: np.ndarray
  map_rows: np.ndarray


class Shots(NamedTuple):
  """F images of one camera.

  Attributes:
    names: F file names, as detectors' files call them.
    world_from_camera: [F, 4, 4] float64.
    lens: of all of them.
    image_size: (H, W), pixels.
    blocks: int [F]; queries of one fail together.
    has_image: [F] bool.
    read: row to the image uint8 [H, W, 3].
    labels: row to what a perfect, or a worse, detector says; None where a file
      says it.
  """

  names: tuple[str, ...]
  world_from_camera: np.ndarray
  lens: lens_lib.Lens
  image_size: tuple[int, int]
  blocks: np.ndarray
  has_image: np.ndarray
  read: Callable[[int], np.ndarray]
  labels: Callable[[int], detections_lib.Detections] | None = None

  @property
  def position(self) -> np.ndarray:
    """[F, 3] of the camera, metres."""
    return self.world_from_camera[:, :3, 3]


class Place(NamedTuple):
  """What one object map covers.

  Attributes:
    name: of the place.
    mapping: images of which the map is made.
    queries: images that ask.
    detections: file of what is seen in all of them; None where labels tell.
    categories: names of the detector's numbers, () where nobody knows.
    landmarks: what the place's labels say there is; None where nobody knows.
  """

  name: str
  mapping: Shots
  queries: Shots
  detections: pathlib.Path | None
  categories: tuple[str, ...]
  landmarks: Callable[[], detections_lib.Landmarks] | None = None


def town_places(
  dataset: schema.Dataset,
  crops: crops_lib.Crops,
  questions: Sequence[Question],
  rig: Callable[[int], schema.Rig],
  *,
  edge: float,
  missed: float,
  seed: int,
) -> list[Place]:
  """Towns that a later drive comes to, in the map's own direction.

  Args:
    dataset: labelled.
    crops: of it.
    questions: between its drives; those named 'cross' count.
    rig: row to its sensors, for images of the crops' size.
    edge: noise of the edges of boxes, see `detections.with_noise`.
    missed: probability that an object is not detected.
    seed: of this noise, which depends on nothing else than the row.
  """

  def shots(rows):
    sensors = rig(int(rows[0]))
    if sensors.lens is None:
      raise InputError(
        f'{dataset.name}: objects need a camera whose lens is known.'
      )
    frames = dataset.frames.take(rows)

    def labels(i):
      found = crops.frame(int(rows[i]))[1]
      rng = np.random.default_rng((seed, int(rows[i])))
      return detections_lib.with_noise(
        found, rng, crops.image_size, edge, missed
      )

    return Shots(
      names=tuple(f'{name}.png' for name in frames.name),
      world_from_camera=frames.world_from_body
      @ np.linalg.inv(sensors.camera_from_body),
      lens=sensors.lens,
      image_size=crops.image_size,
      blocks=frames.frame // _BLOCK_FRAMES,
      has_image=frames.has_image,
      read=lambda i: crops.frame(int(rows[i]))[0],
      labels=labels,
    )

  has_image = dataset.frames.has_image
  return [
    Place(
      question.town,
      shots(question.map_rows[has_image[question.map_rows]]),
      shots(question.query_rows),
      None,
      detections_lib.CATEGORIES,
      functools.partial(crops.landmarks, question.town),
    )
    for question in questions
    if question.name == 'cross'
  ]
