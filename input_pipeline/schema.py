# SPDX-License-Identifier: Apache-2.0
"""What every dataset looks like to the rest of the program.

A dataset is a table of frames (one row per time stamp of one drive), the rig of
each drive, and a function that reads the sensors of one row. Calibration is
part of the rigs: nobody decodes a reading to learn it.

The world frame is metric with x east, y north and z up; only differences of
positions inside one town mean anything. A body has x forward, y left and z up:
it is the LiDAR where there is one, else these axes in the centre of the camera.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np

from i2ploc.geometry import lens as lens_lib
from i2ploc.photos import truth as truth_lib

# A camera looks along the body's x axis: right is -y, down is -z.
CAMERA_AXES = np.array(
  [[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
)
CAMERA_AXES.flags.writeable = False


class Rig(NamedTuple):
  """The sensors of one drive.

  Attributes:
    lens: of the images as they are read; None without a camera, or where
      nobody knows it, as of photos.
    image_size: (H, W) of the images as they are read, pixels; None without
      images, or where each has a size of its own.
    camera_from_body: [4, 4] float64, metres.
  """

  lens: lens_lib.Lens | None
  image_size: tuple[int, int] | None
  camera_from_body: np.ndarray = CAMERA_AXES


class FrameTable(NamedTuple):
  """One row per frame, columns of equal length F.

  Attributes:
    town: [F] str; frames of different towns are never the same place. A KITTI
      sequence is a town of its own.
    drive: [F] str, unique inside a dataset.
    frame: [F] int64, the number in the dataset's own file names.
    timestamp: [F] float64, seconds, comparable inside a drive; NaN is unknown.
    world_from_body: [F, 4, 4] float64; NaN where position or rotation are
      unknown.
    has_image: [F] bool.
    has_points: [F] bool.
    name: [F] str, unique: of a photo its file, of a frame of a drive see
      `frame_names`.
    has_rendering: [F] bool, `read` knows a 'rendering' of the row; None where
      there are none.
  """

  town: np.ndarray
  drive: np.ndarray
  frame: np.ndarray
  timestamp: np.ndarray
  world_from_body: np.ndarray
  has_image: np.ndarray
  has_points: np.ndarray
  name: np.ndarray
  has_rendering: np.ndarray | None = None

  @property
  def position(self) -> np.ndarray:
    """[F, 3] float64, the body in the world frame, metres."""
    return self.world_from_body[:, :3, 3]

  @property
  def heading(self) -> np.ndarray:
    """[F] float64, yaw of the body's x axis in the world frame, radians."""
    forward = self.world_from_body[:, :2, 0]
    return np.arctan2(forward[:, 1], forward[:, 0])

  def take(self, rows: np.ndarray) -> 'FrameTable':
    """The table of these rows."""
    table = FrameTable(*(np.asarray(column)[rows] for column in self[:-1]))
    if self.has_rendering is None:
      return table
    return table._replace(has_rendering=self.has_rendering[rows])


def concatenate(tables: Iterable[FrameTable]) -> FrameTable:
  """The rows of several tables; no renderings where one has none."""
  tables = list(tables)
  columns = zip(*(table[:-1] for table in tables), strict=True)
  joined = FrameTable(*(np.concatenate(parts) for parts in columns))
  known = [t.has_rendering for t in tables if t.has_rendering is not None]
  if len(known) < len(tables):
    return joined
  return joined._replace(has_rendering=np.concatenate(known))


def frame_names(drive: np.ndarray, frame: np.ndarray) -> np.ndarray:
  """Names of the frames of drives, which may name files.

  Args:
    drive: [F] str.
    frame: [F] int.

  >>> frame_names(np.array(['00', 'a/b']), np.array([7, 12]))
  array(['00_000007', 'a_b_000012'], dtype='<U10')
  """
  return np.array(
    [
      f'{name}_{number:06d}'.replace('/', '_')
      for name, number in zip(drive, frame, strict=True)
    ],
    str,
  )


class Labels(NamedTuple):
  """The classes of pixels and points of a labelled dataset.

  Attributes:
    classes: names; a label is the place of its name.
    moving: labels of what moves.
    movable: these, and of what may be gone tomorrow, such as parked cars.
  """

  classes: tuple[str, ...]
  moving: tuple[int, ...]
  movable: tuple[int, ...]


class Dataset(NamedTuple):
  """A frame table, rigs, and the function that reads a row's sensors.

  Attributes:
    name: the dataset's name, for messages and provenance.
    frames: the table.
    rigs: of every drive in the table.
    read: `read(row, what)` with `what` a subset of ('image', 'points',
      'labels', 'rendering') returns a dict with, as asked for: image uint8
      [H, W, 3], points float32 [P, 4] (the body's frame, metres, intensity
      0..1), for labelled datasets image_semantic, image_instance [H, W],
      points_semantic, points_instance [P], and where frames.has_rendering
      rendering uint8 [H, W, 3], a model of the town from the image's pose.
    labels: what the labels mean; None without labels.
    queries: [F] bool, the frames that ask where others of their drive make the
      map; None where all do both.
    truth: which answers are right, where it is not metres between positions;
      None otherwise.
    conditions: [F] str, light, weather or year of each frame; None where nobody
      says.
    rough: [F, 2] float64, metres east and north, about where the frames that
      ask were taken, as a camera's owner knows it: the point below a space
      station. NaN where nobody knows; None for nowhere.
  """

  name: str
  frames: FrameTable
  rigs: Mapping[str, Rig]
  read: Callable[[int, tuple[str, ...]], dict[str, Any]]
  labels: Labels | None = None
  queries: np.ndarray | None = None
  truth: truth_lib.Truth | None = None
  conditions: np.ndarray | None = None
  rough: np.ndarray | None = None
