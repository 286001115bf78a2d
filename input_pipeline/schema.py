# SPDX-License-Identifier: Apache-2.0
"""What every dataset looks like to the rest of the program.

A dataset is a table of frames (one row per time stamp of one drive) and a
function that reads the sensors of one row. The world frame is metric with x
east, y north and z up; only differences of positions inside one town mean
anything. Intrinsics are in pixels with the centre of the top-left pixel at
(0.5, 0.5).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CLASSES = (
  'void',
  'road',
  'pavement',
  'ground',
  'building',
  'fence',
  'pole',
  'sign',
  'vegetation',
  'sky',
  'car_parked',
  'car_moving',
  'van',
  'bus',
  'pedestrian',
)
MOVING = tuple(
  CLASSES.index(name) for name in ('car_moving', 'van', 'bus', 'pedestrian')
)
MOVABLE = (CLASSES.index('car_parked'), *MOVING)


class FrameTable(NamedTuple):
  """One row per frame, columns of equal length F.

  Attributes:
    town: [F] str; frames of different towns are never the same place. A KITTI
      sequence is a town of its own.
    drive: [F] str, unique inside a dataset.
    frame: [F] int64, the number in the dataset's own file names.
    timestamp: [F] float64, seconds, comparable inside a drive.
    world_from_lidar: [F, 4, 4] float64.
    has_image: [F] bool.
    has_points: [F] bool.
  """

  town: np.ndarray
  drive: np.ndarray
  frame: np.ndarray
  timestamp: np.ndarray
  world_from_lidar: np.ndarray
  has_image: np.ndarray
  has_points: np.ndarray

  @property
  def position(self) -> np.ndarray:
    """[F, 3] float64, the LiDAR in the world frame, metres."""
    return self.world_from_lidar[:, :3, 3]

  @property
  def heading(self) -> np.ndarray:
    """[F] float64, yaw of the LiDAR's x axis in the world frame, radians."""
    forward = self.world_from_lidar[:, :2, 0]
    return np.arctan2(forward[:, 1], forward[:, 0])

  def take(self, rows: np.ndarray) -> 'FrameTable':
    """The table of these rows."""
    return FrameTable(*(column[rows] for column in self))


class Dataset(NamedTuple):
  """A frame table and the function that reads a row's sensors.

  Attributes:
    name: the dataset's name, for messages and provenance.
    frames: the table.
    read: `read(row, what)` with `what` a subset of ('image', 'points',
      'labels') returns a dict with, as asked for: image uint8 [H, W, 3],
      intrinsics float32 [3, 3], points float32 [P, 4] (LiDAR frame, metres,
      intensity 0..1), camera_from_lidar float32 [4, 4] (always), and for
      labelled datasets image_semantic, image_instance [H, W], points_semantic,
      points_instance [P].
    queries: [F] bool, the frames of a map's own drive that ask; the others
      make the map. None where all do both.
  """

  name: str
  frames: FrameTable
  read: Callable[[int, tuple[str, ...]], dict[str, np.ndarray]]
  queries: np.ndarray | None = None
