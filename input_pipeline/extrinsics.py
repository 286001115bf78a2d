# SPDX-License-Identifier: Apache-2.0
"""Whether a camera sees what the LiDAR beside it measures.

A transform that is inverted, transposed, left at the identity or made with
degrees for radians is a rigid motion like the right one. Two things tell it:

  axes   the image's top is up, and the camera looks where its reader knows
  share  returns that fall into the image, out of a few scans, beside the part
         of a turn that the camera sees

An inverted or transposed transform between a LiDAR (x forward) and a camera (z
forward) turns both axes by a right angle, the identity looks up into the sky,
and a translation in millimetres leaves every return behind the camera. What
turns by less than the tolerances, or moves by a metre, is not found here; nor
are, of rigs whose camera may look anywhere, those that fit their own inverse.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import spatial

from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib
from input_pipeline import schema

# Axes differ by the mounting of sensors. KITTI-360's camera is 6 degrees off,
# robots' are tilted by more; angles of -90 that are taken for radians leave 37.
_LOOKS_THERE = np.cos(np.radians(30))
_IS_UP = np.cos(np.radians(45))
# Scans that are read of each rig, and returns that are looked at in each.
_NUM_SCANS = 3
_NUM_RETURNS = 20_000
# Fewer returns say nothing.
_ENOUGH = 500
# Of the returns that a LiDAR that measures alike all around would have in the
# camera's field. Of 110 real pairs of camera and scan the least is 0.19, on
# open water with the LiDAR at the bow; a translation in millimetres leaves 0,
# in centimetres less than 0.1 of 107.
_LEAST_SHARE = 0.1
# Rows and columns of the rays that stand for an image.
_GRID = 24, 48


class Axes(NamedTuple):
  """How a camera sits in a frame of reference.

  Attributes:
    frame: whose frame it is.
    up: [3], its direction that is up.
    looks: [3], where the camera looks; None if nobody knows.
    word: for `looks`.
  """

  frame: str
  up: tuple[float, float, float]
  looks: tuple[float, float, float] | None = None
  word: str = ''


LIDAR = Axes('LiDAR', (0, 0, 1))
AHEAD = LIDAR._replace(looks=(1, 0, 0), word='forward')


def check_axes(
  frame_from_camera: np.ndarray, source: str, axes: Axes = AHEAD
) -> None:
  """Refuses a camera that lies on its side or looks elsewhere.

  Args:
    frame_from_camera: [4, 4] rigid motion; the camera's x points right, its y
      down, its z forward.
    source: where it was read, for the message.
    axes: what is expected.

  Raises:
    InputError: it looks more than 30 degrees elsewhere, or its top is more than
      45 degrees from up.
  """
  if _fits(frame_from_camera, axes):
    return
  expected = [f'up {list(axes.up)}']
  if axes.looks is not None:
    expected.insert(0, f'{axes.frame} {axes.word} {list(axes.looks)}')
  if np.allclose(frame_from_camera[:3, :3], np.eye(3)):
    advice = 'It is no rotation at all: was a calibration ever written?'
  elif _fits(frame_from_camera.T, axes):
    advice = 'The inverse fits: was it written the other way round?'
  else:
    advice = 'Is it of another camera, or in degrees for radians?'
  look, down = frame_from_camera[:3, 2], frame_from_camera[:3, 1]
  raise InputError(
    f'{source}: the camera looks along {_told(look)} of the {axes.frame} and '
    f'the top of its image points along {_told(-down)}, expected '
    f'{" and ".join(expected)}. {advice}'
  )


def _fits(frame_from_camera, axes: Axes) -> bool:
  """Whether both axes are about where they should be."""
  down, look = frame_from_camera[:3, 1], frame_from_camera[:3, 2]
  upright = -down @ np.asarray(axes.up) >= _IS_UP
  if axes.looks is None:
    return bool(upright)
  return bool(upright and look @ np.asarray(axes.looks) >= _LOOKS_THERE)


def _told(direction) -> list[float]:
  return (direction.round(2) + 0.0).tolist()  # no -0.0


def check(
  dataset: schema.Dataset, sources: Mapping[str, str], axes: Axes = AHEAD
) -> None:
  """Refuses rigs whose LiDAR is not where their camera looks.

  Of drives with one rig three scans are read, however many there are.

  Args:
    dataset: its bodies are LiDARs.
    sources: by drive, where its rig was read, for messages.
    axes: how the cameras sit in the LiDAR's frame.

  Raises:
    InputError: a camera's axes are off, see `check_axes`, or hardly any return
      is in its image; a scan that is read for it is damaged.
  """
  frames = dataset.frames
  for drives in _same_rigs(dataset):
    source, rig = sources[drives[0]], dataset.rigs[drives[0]]
    check_axes(np.linalg.inv(rig.camera_from_body), source, axes)
    own = np.isin(frames.drive, drives)
    rows = np.flatnonzero(own & frames.has_points)
    if rig.image_size is None or not len(rows):
      continue
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, _NUM_SCANS, dtype=int))]
    scans = [dataset.read(int(r), ('points',))['points'][:, :3] for r in rows]
    _check_share(*rig, scans, source, frames.name[rows].tolist())


def _same_rigs(dataset: schema.Dataset) -> list[list[str]]:
  """The drives of the table, those with equal rigs together."""
  groups: dict[object, list[str]] = {}
  for drive in dict.fromkeys(dataset.frames.drive.tolist()):
    lens, size, motion = dataset.rigs[drive]
    if lens is not None:
      numbers = (lens.intrinsics, lens.coefficients, motion)
      content = lens.model, size, *(array.tobytes() for array in numbers)
      groups.setdefault(content, []).append(drive)
  return list(groups.values())


def _check_share(lens, size, motion, scans, source: str, names) -> None:
  """Raises InputError where the image shows hardly anything of the scans."""
  points = np.concatenate(
    [scan[:: -(-len(scan) // _NUM_RETURNS)] for scan in scans]
  ).astype(np.float64)
  if len(points) < _ENOUGH:
    return
  seen = points @ motion[:3, :3].T + motion[:3, 3]
  share, field = _share(lens, size, seen)
  if share >= _LEAST_SHARE * field:
    return
  height, width = size
  away = np.linalg.norm(np.linalg.inv(motion)[:3, 3])
  raise InputError(
    f'{source}: {share:.1%} of the returns of {", ".join(names)} fall into an '
    f'image of {width}x{height} that sees {field:.0%} of a turn, and '
    f'{(seen[:, 2] > 0).mean():.0%} are ahead of the camera, {away:.3g} m from '
    f'the LiDAR; expected {_LEAST_SHARE * field:.1%} or more in the image. Is '
    'the transform that of these sensors, and in metres?'
  )


def _share(lens, size, points) -> tuple[float, float]:
  """The parts of points [P, 3] and of a turn that an image (H, W) shows."""
  rows, columns = _GRID
  v = (np.arange(rows) + 0.5) / rows * size[0]
  u = (np.arange(columns) + 0.5) / columns * size[1]
  pixels = np.stack(np.meshgrid(u, v), -1)
  rays, valid = lens_lib.rays_from_pixels(lens, pixels.reshape(-1, 2))
  rays = rays.reshape(rows, columns, 3)
  # Half the longest diagonal of a cell: whatever is inside is as near to a ray.
  cells = np.linalg.norm(rays[1:, 1:] - rays[:-1, :-1], axis=-1)
  valid = valid.reshape(rows, columns)
  whole = valid[1:, 1:] & valid[:-1, :-1]
  reach = cells[whole].max(initial=0.0) / 2
  directions = points / np.linalg.norm(points, axis=-1, keepdims=True)
  tree = spatial.KDTree(rays[valid])
  apart, _ = tree.query(directions, distance_upper_bound=reach)
  middle = rays[rows // 2][valid[rows // 2]]
  azimuth = np.unwrap(np.arctan2(middle[:, 0], middle[:, 2]))
  turn = np.ptp(azimuth) / (2 * np.pi) * columns / (columns - 1)
  return float(np.isfinite(apart).mean()), float(min(turn, 1.0))
