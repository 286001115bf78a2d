# SPDX-License-Identifier: Apache-2.0
"""Un-curling: a scan as if the LiDAR had taken it in one instant.

KITTI-360's scans are as measured: the car moves while the LiDAR turns, and a
wall is bent by up to half a sweep's travel (0.5 m at 36 km/h) on either side.

Points carry no time. As the development kit does, a point's time is taken from
its azimuth: the sweep begins behind the car, runs over its left side, looks
ahead at the time of the frame (when it triggers the cameras), and ends behind
the car over its right side,

  time = frame time - azimuth / (2 pi) * period,   -pi < azimuth <= pi, left > 0

Unlike the kit, which extrapolates the motion since the previous frame over the
whole sweep, the two halves follow the motion to the previous and to the next
pose, as screws: braking in a bend is followed, too.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

# Frames apart. Farther neighbours say nothing about a sweep: the car stood.
_MAX_GAP = 5


class Screw(NamedTuple):
  """A motion at constant speed along and about a fixed axis.

  Attributes:
    turn: [3] axis times angle, radians.
    shift: [3] metres; the translation of `exp` for a turn of zero.
  """

  turn: np.ndarray
  shift: np.ndarray

  def scaled(self, factor: float) -> 'Screw':
    """`factor` times as far."""
    return Screw(self.turn * factor, self.shift * factor)


class Motion(NamedTuple):
  """The LiDAR around one frame, each from there to the frame's own LiDAR.

  Attributes:
    before: one period before the frame.
    after: one period after it.
  """

  before: Screw
  after: Screw


def _cross_matrix(vector: np.ndarray) -> np.ndarray:
  x, y, z = vector
  return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])


def screw_from_matrix(matrix: np.ndarray) -> Screw:
  """The logarithm of a rigid motion [4, 4] that turns by less than pi."""
  rotation = matrix[:3, :3]
  double = np.array(
    [
      rotation[2, 1] - rotation[1, 2],
      rotation[0, 2] - rotation[2, 0],
      rotation[1, 0] - rotation[0, 1],
    ]
  )
  sin, cos = np.linalg.norm(double) / 2, (np.trace(rotation) - 1) / 2
  angle = np.arctan2(sin, cos)
  turn = double / 2 * (angle / sin if sin > 1e-9 else 1.0)
  shift = np.linalg.solve(_mean_rotation(turn), matrix[:3, 3])
  return Screw(turn, shift)


def _mean_rotation(turn: np.ndarray) -> np.ndarray:
  """[3, 3] the mean of exp(s turn) over s in [0, 1]."""
  angle = np.linalg.norm(turn)
  cross = _cross_matrix(turn)
  if angle < 1e-6:
    return np.eye(3) + cross / 2
  first = (1 - np.cos(angle)) / angle**2
  second = (angle - np.sin(angle)) / angle**3
  return np.eye(3) + first * cross + second * cross @ cross


def move(screw: Screw, share: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Each point moved by its own share of the screw.

  Args:
    screw: of the whole motion.
    share: [P] float32, as in exp(share * screw).
    points: [P, 3] float32.

  Returns:
    [P, 3] float32; rounding is below 0.1 mm at 100 m.
  """
  angle = np.linalg.norm(screw.turn)
  turns = angle > 1e-9
  cross = _cross_matrix(screw.turn / angle if turns else np.zeros(3))
  cross, twice = cross.astype(np.float32), (cross @ cross).astype(np.float32)
  shift = screw.shift.astype(np.float32)
  phi = (share * np.float32(angle))[:, None]
  sin, versine = np.sin(phi), 1 - np.cos(phi)
  moved = points + share[:, None] * shift
  moved += sin * (points @ cross.T) + versine * (points @ twice.T)
  if turns:
    moved += versine * (cross @ shift / np.float32(angle))
    moved += (phi - sin) * (twice @ shift / np.float32(angle))
  return moved


def uncurl(points: np.ndarray, motion: Motion) -> np.ndarray:
  """The scan as taken at the frame's own time.

  Args:
    points: [P, 4] float32 as measured, each in the LiDAR's frame at its time.
    motion: around the frame.

  Returns:
    [P, 4] float32, all in the LiDAR's frame at the time of the frame.
  """
  lead = np.arctan2(points[:, 1], points[:, 0]) / np.float32(2 * np.pi)
  early = lead > 0
  moved = points.copy()
  for half, screw in ((early, motion.before), (~early, motion.after)):
    moved[half, :3] = move(screw, np.abs(lead[half]), points[half, :3])
  return moved


def motion_at(world_from_lidar: Mapping[int, np.ndarray], frame: int) -> Motion:
  """The motion around a posed frame, from its posed neighbours.

  A frame is one period. With a neighbour on one side only, the motion is taken
  as uniform; with none near, as standing still.

  Args:
    world_from_lidar: [4, 4] by frame number.
    frame: one of them.
  """
  before = _to_neighbor(world_from_lidar, frame, -1)
  after = _to_neighbor(world_from_lidar, frame, 1)
  still = Screw(np.zeros(3), np.zeros(3))
  return Motion(
    before or (after.scaled(-1) if after else still),
    after or (before.scaled(-1) if before else still),
  )


def _to_neighbor(
  world_from_lidar: Mapping[int, np.ndarray], frame: int, direction: int
) -> Screw | None:
  """The motion of one period to the next posed frame, or None."""
  for gap in range(1, _MAX_GAP + 1):
    other = world_from_lidar.get(frame + direction * gap)
    if other is not None:
      pose = np.linalg.solve(world_from_lidar[frame], other)
      return screw_from_matrix(pose).scaled(1 / gap)
  return None
