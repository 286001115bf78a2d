# SPDX-License-Identifier: Apache-2.0
"""Images at known poses, some to make an object map of and some to ask it.

Two sources: towns of `synthetic_city`, whose labels stand for a detector, and a
TUM RGB-D sequence with a file of detections.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import os
import pathlib
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib
from input_pipeline import pairing
from input_pipeline import schema
from input_pipeline.readers import tum_files
from input_pipeline.readers import tum_rgbd
from input_pipeline.sources import crops as crops_lib
from input_pipeline.synthetic_city import detections as detections_lib

# Frames of a town within which queries fail together.
_BLOCK_FRAMES = 20
# The same of a hand-held camera.
_BLOCK_SECONDS = 5.0


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
  protocols: Sequence[pairing.Protocol],
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
    protocols: of it; those named 'cross' count.
    rig: row to its sensors, for images of the crops' size.
    edge: see `detections.with_noise`.
    missed: likewise.
    seed: of this noise, which depends on nothing else than the row.
  """

  def shots(rows):
    sensors = rig(int(rows[0]))
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
      protocol.town,
      shots(protocol.map_rows[has_image[protocol.map_rows]]),
      shots(protocol.query_rows),
      None,
      detections_lib.CATEGORIES,
      functools.partial(crops.landmarks, protocol.town),
    )
    for protocol in protocols
    if protocol.name == 'cross'
  ]


class RgbdSource:
  """A TUM RGB-D sequence as one place.

  Attributes:
    name: of the sequence.
    image_size: (H, W), pixels.
  """

  def __init__(
    self,
    *,
    data_dir: str | None,
    image_size: tuple[int, int],
    mapping: str,
    queries: str,
    detections: str,
    lens: str = '',
    categories: Sequence[str] = (),
  ):
    """Reads nothing yet.

    Args:
      data_dir: folder of the sequence, see `readers.tum_rgbd`.
      image_size: (H, W) of the images, pixels.
      mapping: frames of which the map is made, as start:stop:step.
      queries: frames that ask.
      detections: file in the folder, see `localization.detection_files`.
      lens: file in the folder, see `tum_files.load_lens`; '' for the published
        lens of the camera that the folder's name tells.
      categories: names of the detector's numbers.

    Raises:
      InputError: no folder is given.
    """
    if not data_dir:
      raise InputError('Give the folder of the sequence with --data_dir=PATH.')
    self._root = pathlib.Path(os.path.expanduser(data_dir))
    self.name, self.image_size = self._root.name, tuple(image_size)
    self._frames = {'mapping': mapping, 'queries': queries}
    self._detections, self._lens = detections, lens
    self._categories = tuple(categories)

  @functools.cache  # noqa: B019  a source lives as long as the program
  def places(self) -> list[Place]:
    """The sequence.

    Raises:
      MissingFileError: a file is missing.
      InputError: a file that is damaged, or no frames are asked for.
    """
    lens = tum_files.load_lens(self._root / self._lens) if self._lens else None
    recording = tum_rgbd.load(self._root, lens=lens)
    if recording.rig.image_size not in (None, self.image_size):
      raise InputError(
        f'{self._root} has images of {list(recording.rig.image_size)} pixels, '
        f'but data.image_size is {list(self.image_size)}.'
      )
    return [
      Place(
        self.name,
        self._shots(recording, 'mapping'),
        self._shots(recording, 'queries'),
        self._root / self._detections,
        self._categories,
      )
    ]

  def _shots(self, recording, use):
    count = len(recording.timestamp)
    rows = np.arange(count)[_slice(f'data.{use}', self._frames[use])]
    if not len(rows):
      raise InputError(
        f'data.{use}={self._frames[use]!r} selects none of the {count} frames'
        f' of {self.name}.'
      )
    return Shots(
      names=tuple(recording.images[i].name for i in rows),
      world_from_camera=recording.world_from_camera[rows],
      lens=recording.rig.lens,
      image_size=self.image_size,
      blocks=(recording.timestamp[rows] // _BLOCK_SECONDS).astype(np.int64),
      has_image=recording.has_image[rows],
      read=lambda i: recording.read(int(rows[i]), ('image',))['image'],
    )


def _slice(name: str, text: str) -> slice:
  parts = text.split(':')
  try:
    numbers = [int(part) if part else None for part in parts]
    if not 2 <= len(parts) <= 3 or 0 in numbers[2:]:
      raise ValueError
  except ValueError:
    raise InputError(
      f'{name}={text!r}: expected frames as start:stop:step, such as 0::2.'
    ) from None
  return slice(*numbers)
