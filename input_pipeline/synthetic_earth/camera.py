# SPDX-License-Identifier: Apache-2.0
"""What an astronaut's camera sees of flat ground."""

from typing import NamedTuple

import numpy as np

# Tangent of half the angle of view: a long lens.
_HALF_VIEW = 0.15


class Camera(NamedTuple):
  """A camera that looks down.

  Attributes:
    center: [2] metres east and north, of the ground in the picture's middle.
    side: metres of ground across the picture's middle.
    tilt: radians from straight down.
    azimuth: radians from east to north, where it is tilted to.
    turn: radians, counter-clockwise, of the camera about its optical axis; 0
      with the picture's top towards the azimuth.
  """

  center: np.ndarray
  side: float
  tilt: float
  azimuth: float
  turn: float

  @property
  def heading(self) -> float:
    """Radians from east to north, where the picture's top points to."""
    return (self.azimuth + self.turn + np.pi) % (2 * np.pi) - np.pi


def ground_from_picture(camera: Camera, points: np.ndarray) -> np.ndarray:
  """Where on the ground points of the picture are.

  Args:
    camera: whose picture.
    points: [..., 2], right and down, -1 to 1 from border to border.

  Returns:
    [..., 2] metres east and north.
  """
  tilt, azimuth = camera.tilt, camera.azimuth
  ahead = np.array([np.cos(azimuth), np.sin(azimuth)])
  forward = np.array([*(np.sin(tilt) * ahead), -np.cos(tilt)])
  up = np.array([*(np.cos(tilt) * ahead), np.sin(tilt)])
  right = np.cross(forward, up)
  up, right = (
    np.cos(camera.turn) * up - np.sin(camera.turn) * right,
    np.cos(camera.turn) * right + np.sin(camera.turn) * up,
  )
  x, y = _HALF_VIEW * np.moveaxis(np.asarray(points, np.float64), -1, 0)
  rays = forward + x[..., None] * right - y[..., None] * up
  away = camera.side / (2 * _HALF_VIEW)
  # Seen from the camera, the ground is `away` along the optical axis.
  reach = away * np.cos(tilt) / -rays[..., 2]
  eye = camera.center - away * forward[:2]
  return eye + reach[..., None] * rays[..., :2]


def footprint(camera: Camera) -> np.ndarray:
  """Corners [4, 2] of the picture, metres, counter-clockwise on the ground."""
  corners = np.array([[-1.0, 1], [1, 1], [1, -1], [-1, -1]])
  return ground_from_picture(camera, corners)
