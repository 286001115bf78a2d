# SPDX-License-Identifier: Apache-2.0
"""The file formats of TUM RGB-D sequences, and what joins them by time.

Every function believes nothing it finds and raises an error that names the
file, the line, what stands there and what should.
"""

import pathlib

import numpy as np
import PIL.Image

from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import trajectories
from input_pipeline.readers import clocks
from input_pipeline.readers import kitti_files

MAX_APART = 0.02  # seconds
_ROUNDING = 1e-6  # of printed times
# Motion capture runs at 100 Hz or more; beyond a longer hole it was lost.
_MAX_HOLE = 0.1
DEPTH_UNITS = 5000.0  # of a 16-bit depth image, per metre
_QUATERNION_TOLERANCE = 1e-2
# Metres between poses that one time may have: a few milliseconds of motion.
_SAME_PLACE = 0.1
# The calibrations that the authors recommend: fx fy cx cy, k1 k2 p1 p2 k3. The
# images of the third camera come undistorted.
PUBLISHED = {
  'freiburg1': (
    (517.3, 516.5, 318.6, 255.3),
    (0.2624, -0.9531, -0.0054, 0.0026, 1.1633),
  ),
  'freiburg2': (
    (520.9, 521.0, 325.1, 249.7),
    (0.2312, -0.7849, -0.0033, -0.0001, 0.9172),
  ),
  'freiburg3': ((535.4, 539.2, 320.1, 247.6), ()),
}
SIZE = 480, 640  # (H, W) of the images of all three, pixels


def _read_rows(path):
  """Words of every line that is no comment, by line number from 1."""
  try:
    lines = path.read_text('utf-8').splitlines()
  except FileNotFoundError:
    raise MissingFileError(
      f'There is no {path}; download it with the sequence.'
    ) from None
  except UnicodeDecodeError as error:
    raise InputError(f'{path}: not a text file ({error}).') from error
  rows = {
    i: line.split()
    for i, line in enumerate(lines, 1)
    if line.strip() and not line.lstrip().startswith('#')
  }
  if not rows:
    raise InputError(f'{path}: no entries in the file.')
  return rows


def _floats(path, line, words):
  try:
    values = [float(word) for word in words]
  except ValueError as error:
    raise InputError(f'{path}, line {line}: not numbers ({error}).') from None
  if not np.isfinite(values).all():
    raise InputError(f'{path}, line {line}: non-finite numbers {words}.')
  return values


def read_list(
  path: pathlib.Path, column: int = 0
) -> tuple[np.ndarray, tuple[pathlib.Path, ...]]:
  """Reads a list of images.

  Args:
    path: lines `timestamp file`, once or twice.
    column: 0, or 2 for the second pair of columns.

  Returns:
    times: [F] seconds, increasing.
    files: F of them, in this order.

  Raises:
    MissingFileError: no such file.
    InputError: no entries, a malformed line, or a time that occurs twice.
  """
  times, files = [], []
  for line, words in _read_rows(path).items():
    if len(words) not in (2, 4) or len(words) < column + 2:
      raise InputError(
        f'{path}, line {line}: {len(words)} words, expected '
        f'{"timestamp file timestamp file" if column else "timestamp file"}.'
      )
    times += _floats(path, line, words[column : column + 1])
    files.append(path.parent / words[column + 1])
  times = clocks.seconds(np.array(times), str(path))
  order = np.argsort(times, kind='stable')
  times = times[order]
  if len(repeated := times[1:][np.diff(times) == 0]):
    raise InputError(
      f'{path}: the time {repeated[0]:.6f} is listed twice; remove one.'
    )
  return times, tuple(files[i] for i in order)


def nearest_pairs(times: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Which of `others` [N] goes with each of `times` [F]; -1 for none.

  The closest pair first, each at most once, none further than `MAX_APART`.
  """
  after = np.clip(np.searchsorted(others, times), 1, max(len(others) - 1, 1))
  choices = np.minimum(np.stack([after - 1, after], -1), len(others) - 1)
  apart = np.abs(others[choices] - times[:, None])
  matches = np.full(len(times), -1)
  taken = set()
  for flat in np.argsort(apart, axis=None, kind='stable').tolist():
    i, j = flat // 2, int(choices.flat[flat])
    if apart.flat[flat] > MAX_APART + _ROUNDING:
      break
    if matches[i] < 0 and j not in taken:
      matches[i] = j
      taken.add(j)
  return matches


def read_trajectory(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Reads a trajectory.

  Args:
    path: lines `timestamp tx ty tz qx qy qz qw`; others start with '#'. One of
      these may name the columns, and then quaternions are as it says.

  Returns:
    times: [N] seconds, increasing; of poses with one time, which the published
      files have, the first is taken, and the others are counted.
    poses: [N, 7] positions and unit quaternions (x, y, z, w).

  Raises:
    MissingFileError: no such file.
    InputError: a malformed line, a time before the last one, a quaternion that
      is not of unit length, poses of one time at two places; times or positions
      of another unit, or quaternions in another order, see `clocks` and
      `trajectories`.
  """
  rows, first = _read_rows(path), _scalar_first(path)
  values = []
  for line, words in rows.items():
    if len(words) != 8:
      raise InputError(
        f'{path}, line {line}: {len(words)} numbers, expected 8: '
        'timestamp tx ty tz qx qy qz qw.'
      )
    values.append(_floats(path, line, words))
  table, lines = np.array(values), list(rows)
  table[:, 0] = clocks.seconds(table[:, 0], str(path))
  clocks.check_order(table[:, 0], str(path), lines)
  norm = np.linalg.norm(table[:, 4:], axis=-1)
  if len(bad := np.flatnonzero(np.abs(norm - 1) > _QUATERNION_TOLERANCE)):
    raise InputError(
      f'{path}, line {lines[bad[0]]}: a quaternion of length '
      f'{norm[bad[0]]:.4g}, expected 1 (order qx qy qz qw).'
    )
  table[:, 4:] /= norm[:, None]
  if first:
    table[:, 4:] = table[:, [5, 6, 7, 4]]
  again = clocks.doubled(table[:, 0], str(path), 'took the first pose')
  _check_doubled(path, table, again, lines)
  table = table[~again]
  _check_trajectory(path, table, first)
  return table[:, 0], table[:, 1:]


def _scalar_first(path: pathlib.Path) -> bool:
  """Whether a comment says that quaternions are qw qx qy qz."""
  comments = [
    line.lower().replace(',', ' ').split()
    for line in path.read_text('utf-8').splitlines()
    if line.lstrip().startswith('#')
  ]
  return any(
    {'qx', 'qw'} <= {*words} and words.index('qw') < words.index('qx')
    for words in comments
  )


def _check_doubled(path, table, again, lines) -> None:
  """Refuses poses of one time that are not of one place."""
  rows = np.flatnonzero(again)
  apart = np.linalg.norm(table[rows, 1:4] - table[rows - 1, 1:4], axis=1)
  if len(bad := np.flatnonzero(apart > _SAME_PLACE)):
    row = rows[bad[0]]
    raise InputError(
      f'{path}, line {lines[row]}: the time {table[row, 0]:.6f} of the line '
      f'above, at a place {apart[bad[0]]:.2f} m away. Take trajectories apart.'
    )


def _check_trajectory(path, table, scalar_first) -> None:
  """Refuses poses in other units than metres, and quaternions out of order."""
  times, position = table[:, 0], table[:, 1:4]
  trajectories.check_places(position, str(path))
  trajectories.check_speed(position, times, str(path))
  # A header that says which is first has the last word.
  if not scalar_first:
    trajectories.check_quaternions(
      position,
      table[:, 4:],
      str(path),
      "Write '# timestamp tx ty tz qw qx qy qz' above the poses, or exchange "
      'the columns.',
    )


def poses_at(
  times: np.ndarray, stamps: np.ndarray, poses: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Poses at other times than those of the trajectory.

  Positions are interpolated linearly, rotations along the shortest arc; at a
  hole in the trajectory and at its ends the nearest pose is taken.

  Args:
    times: [F] seconds.
    stamps: [N] of the trajectory, increasing.
    poses: [N, 7], see `read_trajectory`.

  Returns:
    posed: [F] bool, the nearest sample is within `MAX_APART`.
    matrices: [F, 4, 4] world_from_camera; the identity where there is none.
  """
  last = len(stamps) - 1
  after = np.clip(np.searchsorted(stamps, times), 1, max(last, 1))
  low, high = after - 1, np.minimum(after, last)
  hole = stamps[high] - stamps[low]
  share = (times - stamps[low]) / np.maximum(hole, 1e-9)
  share = np.where(hole > _MAX_HOLE, np.round(share), share)
  share = np.clip(share, 0, 1)
  apart = np.minimum(np.abs(times - stamps[low]), np.abs(times - stamps[high]))
  posed = apart <= MAX_APART + _ROUNDING
  position = poses[low, :3] + share[:, None] * (
    poses[high, :3] - poses[low, :3]
  )
  turn = _interpolated(poses[low, 3:], poses[high, 3:], share)
  matrices = kitti_files.rigid_matrix(_rotations(turn), position, 'quaternions')
  return posed, np.where(posed[:, None, None], matrices, np.eye(4))


def _interpolated(first, second, share):
  """Unit quaternions [F, 4] on the shortest arcs between two."""
  cosine = np.sum(first * second, -1, keepdims=True)
  second, cosine = np.where(cosine < 0, -second, second), np.abs(cosine)
  angle = np.arccos(np.clip(cosine, 0, 1))
  small = angle < 1e-6
  sine = np.sin(np.where(small, 1.0, angle))
  share = share[:, None]
  weight = np.where(small, 1 - share, np.sin((1 - share) * angle) / sine)
  other = np.where(small, share, np.sin(share * angle) / sine)
  mixed = weight * first + other * second
  return mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)


def _rotations(quaternions):
  """[F, 3, 3] of unit quaternions [F, 4], w last: I + 2 w [v] + 2 [v]^2."""
  vector, w = quaternions[:, :3], quaternions[:, 3, None, None]
  x, y, z = vector.T
  zero = np.zeros_like(x)
  cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1)
  cross = cross.reshape(-1, 3, 3)
  return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def read_depth(path: pathlib.Path, units: float = DEPTH_UNITS) -> np.ndarray:
  """Reads a depth image as float32 [H, W] metres, 0 for no measurement.

  Args:
    path: a 16-bit grey image.
    units: of it, per metre.

  Raises:
    MissingFileError: no such file.
    InputError: it does not decode, or is not a 16-bit grey image.
  """
  try:
    with PIL.Image.open(path) as image:
      if not image.mode.startswith('I'):
        raise InputError(f'mode {image.mode}, expected 16-bit grey')
      values = np.array(image)
  except FileNotFoundError:
    raise
  # Pillow's PNG plugin reports broken chunks as SyntaxError.
  except (OSError, SyntaxError, ValueError) as error:
    raise InputError(
      f'{path}: the depth image does not decode ({error}); download it again, '
      'or delete it: a missing image is allowed.'
    ) from error
  return (values / units).astype(np.float32)


def published_lens(name: str) -> lens_lib.Lens:
  """The published lens of the camera that a sequence's name tells.

  Raises:
    InputError: none of the names of `PUBLISHED` is in it.
  """
  camera = next((camera for camera in PUBLISHED if camera in name), None)
  if camera is None:
    raise InputError(
      f'The name {name!r} has none of {sorted(PUBLISHED)} in it, so the camera '
      'is not known; give its settings file with data.lens=FILE.'
    )
  return _lens(*PUBLISHED[camera])


def _lens(pinhole, distortion):
  fx, fy, cx, cy = pinhole
  intrinsics = np.array([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1.0]])
  model = 'opencv' if distortion else 'pinhole'
  return lens_lib.Lens(model, intrinsics, np.array(distortion, np.float64))
