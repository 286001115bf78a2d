# SPDX-License-Identifier: Apache-2.0
"""What tells that positions are no metres, or headings not those of a drive.

Positions are metres east, north and up. Files hold others under the same
columns: degrees, millimetres, metres from the middle of the Earth, numbers of
32 bits. Each of them leaves a mark that metres of a camera or a car do not, and
what has it is refused with the evidence; what could be either passes.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial import transform

from i2ploc.errors import InputError

# Degrees of a town, or metres that no radius tells apart.
_TOWN_OF_DEGREES = 0.5
# A recording in metres is not so many times further from its origin than wide.
_FAR_AND_SMALL = 10.0
# Metres from the middle of the Earth: WGS 84 and 10 km above and below.
_EARTH = 6356752.0 - 1e4, 6378137.0 + 1e4
_UTM_EAST = 1e5, 9e5
_HIGHEST = 1e4  # metres above the sea of anything on a map
# Metres between neighbouring float32 numbers at which a map shows it.
COARSE = 0.05
# Slower than what moves, and faster than any vehicle: metres a second, and a
# frame where times are not known.
_SPEEDS = 2e-3, 100.0, 'a second'
_STEPS = 2e-4, 200.0, 'a frame'
_LEAST_RISE, _STEEPEST = 0.5, 10.0  # metres up; metres up per metre along
# Steps that tell a direction of travel in spite of a GPS's noise, metres, and
# how many it takes.
_SHORTEST_STEP, _FEWEST_STEPS = 2.0, 10
# Of the mean of unit vectors. The eleven KITTI sequences have 0.99 and more; in
# degrees, transposed or inverted they have 0.7 and less where they turn.
_STEADY, _UNSTEADY = 0.9, 0.7
_WINDOW = 10  # poses over which motion is taken for quaternions


def looks_like_degrees(xy: np.ndarray) -> bool:
  """Whether x and y [N, 2] are longitudes and latitudes of a town."""
  xy = xy[np.isfinite(xy).all(1)]
  if len(np.unique(xy, axis=0)) < 2:
    return False
  spread, most = np.ptp(xy, axis=0).max(), np.abs(xy).max(0)
  return bool(
    most.max() <= 180
    and most.min() <= 90
    and spread < _TOWN_OF_DEGREES
    and most.max() > _FAR_AND_SMALL * spread
  )


def check_places(position: np.ndarray, source: str) -> None:
  """Raises InputError for positions that are no metres on a map.

  Args:
    position: [N, 3] as read, in any order; NaN is unknown.
    source: file or flag, for the message.
  """
  known = position[np.isfinite(position[:, :2]).all(1)]
  if not len(known):
    return
  height = known[np.isfinite(known[:, 2]), 2]
  rise = float(np.ptp(height)) if len(height) else 0.0
  # Metres go up less than along; altitudes beside degrees go up alone.
  if rise > max(_LEAST_RISE, _STEEPEST * np.ptp(known[:, :2], axis=0).max()):
    _check_degrees(known, source)
  check_ecef(known, source)
  _check_rounding(known, source)


def _check_degrees(known: np.ndarray, source: str) -> None:
  if looks_like_degrees(known[:, :2]):
    (west, south), (east, north) = known[:, :2].min(0), known[:, :2].max(0)
    raise InputError(
      f'{source}: x from {west:g} to {east:g} and y from {south:g} to {north:g}'
      ' look like degrees; as metres all would be at one place. Give metres'
      ' east and north, such as UTM.'
    )


def check_ecef(position: np.ndarray, source: str) -> None:
  """Raises InputError for positions seen from the middle of the Earth.

  Args:
    position: [N, 3] float64; NaN is unknown.
    source: file or flag, for the message.
  """
  known = position[np.isfinite(position[:, :2]).all(1)]
  if not len(known):
    return
  x, z = np.abs(known[:, 0]), np.abs(np.nan_to_num(known[:, 2]))
  radius = np.linalg.norm(np.nan_to_num(known), axis=1)
  # Eastings and northings of 57 degrees north are as long, but not as high.
  on_a_map = (z < _HIGHEST) & (x > _UTM_EAST[0]) & (x < _UTM_EAST[1])
  if ((radius > _EARTH[0]) & (radius < _EARTH[1]) & ~on_a_map).all():
    raise InputError(
      f'{source}: positions {radius.mean() / 1000:.0f} km from the origin, from'
      ' the middle of the Earth (ECEF). Give metres east, north and up, such as'
      ' UTM.'
    )


def _check_rounding(known: np.ndarray, source: str) -> None:
  """Refuses large numbers that have been through 32 bits."""
  known = known[:, :2]
  fractions = np.abs(known - np.round(known)).max()
  step = float(np.spacing(np.float32(np.abs(known).max())))
  rounded = np.array_equal(known, known.astype(np.float32))
  # Whole metres are rounded by whoever wrote them, and say so.
  if len(known) > 2 and step > COARSE and rounded and fractions > 0:
    raise InputError(
      f'{source}: coordinates up to {np.abs(known).max():.0f} m are rounded to'
      f' {step:g} m, as 32-bit floats are. Write them in 64 bits, or from a'
      ' local origin.'
    )


def check_speed(
  position: np.ndarray, times: np.ndarray | None, source: str
) -> None:
  """Raises InputError for what no vehicle does: then units are others.

  Args:
    position: [N, 3] in the order of travel, metres.
    times: [N] seconds, increasing; None for unknown.
    source: file or flag, for the message.
  """
  length = np.linalg.norm(np.diff(position, axis=0), axis=1)
  passed = np.ones(len(length)) if times is None else np.diff(times)
  moved = (length > 0) & (passed > 0)
  if moved.sum() < 2:
    return
  slowest, fastest, unit = _SPEEDS if times is not None else _STEPS
  speed = length[moved] / passed[moved]
  fast = float(np.percentile(speed, 90))
  if fast < slowest:
    _check_degrees(position, source)
  if float(np.median(speed)) > fastest:
    raise InputError(
      f'{source}: positions move by {np.median(speed):.0f} {unit}, expected'
      f' metres, {fastest:g} at most. Divide millimetres by 1000.'
    )


def check_heading(
  position: np.ndarray, heading: np.ndarray, source: str
) -> None:
  """Raises InputError if a drive's heading has nothing to do with its path.

  A car moves where it looks, or at a fixed angle to that. Headings in degrees
  that are read as radians, inverse poses and transposed rotations do not.

  Args:
    position: [N, 3] in the order of travel, metres.
    heading: [N] radians from east towards north.
    source: file or flag, for the message.
  """
  rows, travel = _travel(position)
  if len(travel) < _FEWEST_STEPS:
    return
  ends = np.exp(1j * heading[rows])
  steady = _steadiness(np.angle(ends[1:] + ends[:-1]) - travel)
  if steady < _UNSTEADY:
    raise InputError(
      f'{source}: headings do not follow the path (steadiness {steady:.2f} of 1'
      f' over {len(travel)} steps, expected {_STEADY} and more). Are angles in'
      ' degrees, rotations transposed, or poses body_from_world?'
    )


def check_degrees(
  position: np.ndarray, angle: np.ndarray, source: str, clockwise: bool
) -> None:
  """Raises InputError for headings in radians where degrees are expected.

  Args:
    position: [N, 2 or 3] in an order that may be that of travel, metres.
    angle: [N] from any direction, said to be degrees; NaN is unknown.
    source: file, for the message.
    clockwise: as a compass counts; otherwise from east towards north.
  """
  known = np.isfinite(angle) & np.isfinite(position[:, :2]).all(1)
  position, angle = position[known], angle[known]
  if not len(angle) or np.abs(angle).max() > 2 * np.pi + 0.01:
    return
  rows, travel = _travel(position)
  if len(travel) < _FEWEST_STEPS:
    return
  turned = (-angle if clockwise else angle)[rows[:-1]]
  as_radians = _steadiness(turned - travel)
  as_degrees = _steadiness(np.radians(turned) - travel)
  if as_radians > _STEADY and as_degrees < _UNSTEADY:
    raise InputError(
      f'{source}: headings from {angle.min():g} to {angle.max():g} follow the'
      f' path as radians (steadiness {as_radians:.2f} of 1) and not as degrees'
      f' ({as_degrees:.2f}). Give degrees.'
    )


def _travel(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Rows [S + 1] some way apart, and directions [S] from east between them."""
  rows = [0]
  for i, place in enumerate(position[:, :2]):
    step = place - position[rows[-1], :2]
    if np.hypot(*step) > _SHORTEST_STEP:
      rows.append(i)
  step = np.diff(position[rows, :2], axis=0)
  return np.array(rows), np.arctan2(step[:, 1], step[:, 0])


def _steadiness(angle: np.ndarray) -> float:
  """1 for equal angles, about 0 for any."""
  return float(np.abs(np.exp(1j * angle).mean()))


def check_quaternions(
  position: np.ndarray, quaternion: np.ndarray, source: str, remedy: str
) -> None:
  """Raises InputError if the motion tells that quaternions have w first.

  The angles between successive rotations are the same in either order, so that
  they tell nothing. What is upright stays upright, and what moves moves along a
  side of its own: where the vertical and the velocity are both steadier in the
  body of the other order, it is the right one.

  Args:
    position: [N, 3] in the order of travel, metres, z up.
    quaternion: [N, 4] of unit length, x, y, z, w, world_from_body.
    source: file, for the message.
    remedy: what to do, for the message.
  """
  if len(position) < 2 * _WINDOW:
    return
  said = _body_steadiness(position, quaternion)
  other = _body_steadiness(position, quaternion[:, [1, 2, 3, 0]])
  if (
    min(said) < _UNSTEADY
    and other[0] > _STEADY
    and other[0] - said[0] > 0.2
    and other[1] - said[1] > 0.1
  ):
    raise InputError(
      f'{source}: read as x, y, z, w the vertical turns in the body (steadiness'
      f' {said[0]:.2f} of 1, velocity {said[1]:.2f}), read as w, x, y, z it'
      f' stays ({other[0]:.2f}, {other[1]:.2f}). {remedy}'
    )


def _body_steadiness(
  position: np.ndarray, quaternion: np.ndarray
) -> Sequence[float]:
  """Of the vertical and of the velocity, in the body's frame."""
  rotation = transform.Rotation.from_quat(quaternion).as_matrix()
  vertical = float(np.linalg.norm(rotation[:, 2].mean(0)))
  moved = position[_WINDOW:] - position[:-_WINDOW]
  middle = rotation[_WINDOW // 2 :][: len(moved)]
  velocity = np.einsum('nji,nj->ni', middle, moved)
  length = np.linalg.norm(velocity, axis=1)
  fast = length > max(float(np.percentile(length, 30)), 1e-9)
  if not fast.any():
    return vertical, 0.0
  direction = velocity[fast] / length[fast, None]
  return vertical, float(np.linalg.norm(direction.mean(0)))
