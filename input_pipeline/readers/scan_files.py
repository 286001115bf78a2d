# SPDX-License-Identifier: Apache-2.0
"""LiDAR scans as files: KITTI's binary, PCD, PLY and NumPy arrays.

A scan is in the LiDAR's own frame, metres, with a reflectance in [0, 1].
Reflectances of 8 and 16 bit fields are divided by their largest number; of
others nobody knows the scale, and what is outside [0, 1] is refused. So are
points that no LiDAR reaches: millimetres, or places in the world.

Only points are ever dropped (non-finite, or at the origin, which is how some
converters write "no return"), and they are counted.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

from absl import logging
import numpy as np

from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError

POINT_RULES = ('non-finite', 'range 0')  # why a point is dropped
_BYTES_PER_POINT = 16
_REFLECTANCES = (
  *('intensity', 'reflectance', 'reflectivity', 'remission', 'i'),
  'scalar_intensity',  # as CloudCompare writes it
)
# Metres. LiDARs of vehicles reach 300; ten metres in millimetres are beyond.
_REACH = 1000.0
_NOWHERE = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)  # PCD's VIEWPOINT if not used


class Dropped:
  """Counts the points that are left out of a dataset's scans.

  Scans are read when they are asked for, some of them many times: each counts
  once. The log tells of the first that loses points, the tenth, the hundredth.

  Attributes:
    name: of the dataset, for the log.
    scans: by file, how many points each of POINT_RULES has dropped.
  """

  def __init__(self, name: str):
    self.name = name
    self.scans: dict[pathlib.Path, tuple[int, ...]] = {}

  def add(self, path: pathlib.Path, lost: tuple[int, ...]) -> None:
    """Notes what a scan has lost by each of POINT_RULES, if anything."""
    if not any(lost) or path in self.scans:
      return
    self.scans[path] = lost
    count = len(self.scans)
    if count == 10 ** (len(str(count)) - 1):
      logging.warning(
        '%s: dropped points of %d scans so far: %s; last %s.',
        self.name,
        count,
        ', '.join(f'{n} {rule}' for rule, n in self.total().items()),
        path,
      )

  def total(self) -> dict[str, int]:
    """Points dropped so far, by rule."""
    lost = np.array(list(self.scans.values()), int)
    sums = lost.reshape(-1, len(POINT_RULES)).sum(0)
    return dict(zip(POINT_RULES, sums.tolist(), strict=True))


def check_scans(files: Sequence[pathlib.Path]) -> None:
  """Raises InputError naming the scans that are empty or truncated."""
  faults = [fault for path in files if (fault := _size_fault(path))]
  if faults:
    more = f' (and {len(faults) - 5} more)' if len(faults) > 5 else ''
    raise InputError(
      f'{len(faults)} of {len(files)} scans cannot be read: '
      f'{"; ".join(faults[:5])}{more}. Download them again, or delete them: '
      'a missing scan is allowed.'
    )


def _size_fault(path: pathlib.Path) -> str | None:
  size = path.stat().st_size
  if not size:
    return f'{path}: empty scan, 0 bytes'
  if path.suffix.lower() == '.bin' and size % _BYTES_PER_POINT:
    return (
      f'{path}: truncated scan, {size} bytes are not a multiple of '
      f'{_BYTES_PER_POINT} (4 float32 per point)'
    )
  return None


def read_scan(path: pathlib.Path, dropped: Dropped) -> np.ndarray:
  """Reads one LiDAR scan.

  Args:
    path: little-endian float32 (x, y, z, reflectance) per point in a .bin, an
      array of these columns in a .npy; a .pcd or .ply with fields x, y, z and
      perhaps one of reflectance, which is 0 without.
    dropped: counts what is left out.

  Returns:
    [P, 4] float32: LiDAR frame (x forward, y left, z up), metres, reflectance
    in [0, 1]. Non-finite points and points at range 0 are dropped and counted.

  Raises:
    MissingFileError: no such file.
    InputError: damaged, nothing left, a library is missing, a reflectance
      outside [0, 1], which tells another scale or another format, or points
      beyond any LiDAR's reach.
  """
  if not path.is_file():
    raise MissingFileError(f'{path}: no such scan.')
  if fault := _size_fault(path):
    raise InputError(f'{fault}.')
  points = _READERS[path.suffix.lower()](path)
  finite = np.isfinite(points).all(axis=1)
  # Any, not a norm: the square of a tiny coordinate underflows to zero.
  hit = points[:, :3].any(axis=1)
  dropped.add(path, (int(np.sum(~finite)), int(np.sum(finite & ~hit))))
  points = points[finite & hit]
  if not len(points):
    raise InputError(f'{path}: no finite point with a range above 0.')
  low, high = points[:, 3].min(), points[:, 3].max()
  if low < 0 or high > 1:
    raise InputError(
      f'{path}: reflectance from {low:g} to {high:g}, expected [0, 1]; rescale '
      'the fourth column, or convert the file to float32 x, y, z, reflectance.'
    )
  median = float(np.median(np.linalg.norm(points[:, :3], axis=1)))
  if median > _REACH:
    raise InputError(
      f'{path}: half of the points are more than {median:.0f} away, expected '
      'metres from the LiDAR; divide millimetres by 1000, or take places in '
      "the world back to the LiDAR's own frame."
    )
  return points.astype(np.float32)


def _read_bin(path: pathlib.Path) -> np.ndarray:
  return np.fromfile(path, '<f4').reshape(-1, 4)


def _read_npy(path: pathlib.Path) -> np.ndarray:
  try:
    array = np.load(path, allow_pickle=False)
  # What damaged headers raise is not documented.
  except Exception as error:
    raise _damaged(path, error) from error
  if array.ndim != 2 or array.shape[1] not in (3, 4) or array.dtype.kind != 'f':
    raise InputError(
      f'{path}: an array {array.dtype} {list(array.shape)}, expected floats '
      '[N, 4] (x, y, z, reflectance in [0, 1]), or [N, 3].'
    )
  if array.shape[1] == 4:
    return array
  return np.stack([*array.T, _no_reflectance(path, len(array))], axis=-1)


def _read_pcd(path: pathlib.Path) -> np.ndarray:
  try:
    import pypcd4
  except ImportError as error:
    raise _not_installed(path, 'pypcd4') from error
  try:
    cloud = pypcd4.PointCloud.from_path(path)
    names = cloud.pc_data.dtype.names or ()
    columns = {name: cloud.pc_data[name] for name in names}
  # ValueError of pydantic, struct.error, UnicodeDecodeError, and more.
  except Exception as error:
    raise _damaged(path, error) from error
  if cloud.metadata.viewpoint != _NOWHERE:
    raise InputError(
      f'{path}: VIEWPOINT {cloud.metadata.viewpoint}, expected 0 0 0 1 0 0 0: '
      "points in the LiDAR's own frame. Move them there, and correct the line."
    )
  return _joined(path, columns, cloud.metadata.points)


def _read_ply(path: pathlib.Path) -> np.ndarray:
  try:
    import trimesh
  except ImportError as error:
    raise _not_installed(path, 'trimesh') from error
  try:
    cloud = trimesh.load(path, file_type='ply', process=False)
    vertex = cloud.metadata['_ply_raw']['vertex']
    columns = {
      name: np.asarray(vertex['data'][name]) for name in vertex['properties']
    }
  # Trimesh lets pass whatever its parser stumbles on.
  except Exception as error:
    raise _damaged(path, error) from error
  if isinstance(cloud, trimesh.Trimesh):
    raise InputError(
      f'{path} is a mesh, expected the points of a scan. Export points alone.'
    )
  return _joined(path, columns, vertex['length'])


def _joined(
  path: pathlib.Path, columns: Mapping[str, Any], count: int
) -> np.ndarray:
  """[P, 4] float64 of columns [P] by name."""
  named = {name.lower(): np.ravel(column) for name, column in columns.items()}
  place = [named[axis] for axis in 'xyz' if axis in named]
  if len(place) < 3:
    raise InputError(f'{path}: fields {list(columns)}, expected x, y and z.')
  if any(len(column) != count for column in place):
    raise InputError(
      f'{path}: {len(place[0])} points, but its header says {count}; it is cut '
      'off. Export the scan again.'
    )
  shades = [named[name] for name in _REFLECTANCES if name in named]
  shade = shades[0] if shades else _no_reflectance(path, count)
  if shade.dtype in (np.uint8, np.uint16):
    shade = shade / np.iinfo(shade.dtype).max
  return np.stack([*place, shade], axis=-1).astype(np.float64)


def _no_reflectance(path: pathlib.Path, count: int) -> np.ndarray:
  logging.log_first_n(
    logging.WARNING,
    '%s has no reflectance; took 0, as of all scans without.',
    1,
    path,
  )
  return np.zeros(count)


def _damaged(path: pathlib.Path, error: Exception) -> InputError:
  text = ' '.join(str(error).split())[:120]
  return InputError(
    f'{path}: the scan does not load ({type(error).__name__}: {text}). Export '
    'it again, or delete it: a missing scan is allowed.'
  )


def _not_installed(path: pathlib.Path, library: str) -> InputError:
  return InputError(
    f"{path} is read by {library}: pip install 'i2ploc[scans]', or pip install "
    f'{library}.'
  )


_READERS: dict[str, Callable[[pathlib.Path], np.ndarray]] = {
  '.bin': _read_bin,
  '.npy': _read_npy,
  '.pcd': _read_pcd,
  '.ply': _read_ply,
}
SUFFIXES = tuple(_READERS)
