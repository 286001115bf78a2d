# SPDX-License-Identifier: Apache-2.0
"""The files of KITTI-360: where they lie, their formats, what they mean.

Frames of reference, as the files and the development kit define them:

  world   x east, y north, z up; UTM-like metres
  imu     the GPS/IMU unit: x forward, y right, z down  (poses.txt)
  velo    the LiDAR: x forward, y left, z up
  cam k   x right, y down, z forward; 0 and 1 look ahead, 2 left and 3 right

`calib_cam_to_velo.txt` is velo from camera 0 and `calib_cam_to_pose.txt` imu
from camera k, both before rectification: a point of the rectified image_00 is
R_rect_00 times one of camera 0. `cam0_to_world.txt` is world from the rectified
camera 0. A matrix that points elsewhere than its frames do is refused.

Pixels of the files count from the centre of the top-left pixel; what is
returned has the half pixel added.
"""

from collections.abc import Mapping
import pathlib
import re
from typing import NamedTuple

import numpy as np

from i2ploc import lens_files
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.geometry import fisheye
from i2ploc.geometry import trajectories
from input_pipeline import extrinsics
from input_pipeline.readers import kitti_files

FISHEYES = ('image_02', 'image_03')
# How the cameras sit in the frame of the IMU, whose z points down.
_IMU = extrinsics.Axes('IMU', (0, 0, -1), (1, 0, 0), 'forward')
_AXES = {
  'image_02': _IMU._replace(looks=(0, -1, 0), word='left'),
  'image_03': _IMU._replace(looks=(0, 1, 0), word='right'),
}


class Rig(NamedTuple):
  """Where the sensors sit.

  Attributes:
    intrinsics: [3, 3] of the rectified image_00.
    image_size: (H, W) of it as calibrated, pixels; None if the file lacks it.
    camera_from_lidar: [4, 4], the rectified image_00.
    imu_from_lidar: [4, 4].
    lenses: of image_02 and image_03; empty if only image_00 is asked for.
    image_sizes: (H, W) of their images, pixels.
    imu_from_fisheye: [4, 4] each.
  """

  intrinsics: np.ndarray
  image_size: tuple[int, int] | None
  camera_from_lidar: np.ndarray
  imu_from_lidar: np.ndarray
  lenses: tuple[fisheye.Lens, ...]
  image_sizes: tuple[tuple[int, int], ...]
  imu_from_fisheye: tuple[np.ndarray, ...]


def drive_name(sequence: str) -> str:
  """The folder of a sequence, as in '2013_05_28_drive_0003_sync'.

  Raises:
    InputError: not a number of up to four digits.
  """
  if not re.fullmatch(r'\d{1,4}', sequence, re.ASCII):
    raise InputError(
      f"{sequence!r} is not a sequence of KITTI-360; expected e.g. '0003'."
    )
  return f'2013_05_28_drive_{int(sequence):04d}_sync'


def image_folder(root: pathlib.Path, drive: str, sensor: str) -> pathlib.Path:
  """Where the images of a sensor ('image_00' ... 'image_03') lie."""
  kind = 'data_rgb' if sensor in FISHEYES else 'data_rect'
  return root / 'data_2d_raw' / drive / sensor / kind


def lidar_folder(root: pathlib.Path, drive: str) -> pathlib.Path:
  """The folder of a drive's scans (`data`) and timestamps.txt."""
  return root / 'data_3d_raw' / drive / 'velodyne_points'


def load_rig(root: pathlib.Path, fisheyes: bool) -> Rig:
  """Reads the folder `calibration`.

  Args:
    root: of the dataset.
    fisheyes: also read the lenses of image_02 and image_03.

  Raises:
    MissingFileError: files are missing; all are named.
    InputError: a file does not hold what it should.
  """
  folder = root / 'calibration'
  names = ['perspective.txt', 'calib_cam_to_velo.txt', 'calib_cam_to_pose.txt']
  names += [f'{sensor}.yaml' for sensor in FISHEYES if fisheyes]
  if missing := [name for name in names if not (folder / name).is_file()]:
    raise MissingFileError(
      f'{folder}: no {missing}; download and unpack calibration.zip there.'
    )
  path = folder / 'perspective.txt'
  entries = kitti_files.read_calibration(
    path, {'P_rect_00': (3, 4), 'R_rect_00': (3, 3)}
  )
  intrinsics, _ = kitti_files.split_projection(
    entries['P_rect_00'], f'{path}: P_rect_00'
  )
  rectified_from_camera = kitti_files.rigid_matrix(
    entries['R_rect_00'], np.zeros(3), f'{path}: R_rect_00'
  )
  lidar_from_camera = read_lidar_from_camera(folder / 'calib_cam_to_velo.txt')
  imu_from_camera = read_imu_from_cameras(
    folder / 'calib_cam_to_pose.txt',
    ('image_00', *(FISHEYES if fisheyes else ())),
  )
  lenses = [
    read_lens(folder / f'{sensor}.yaml') for sensor in FISHEYES if fisheyes
  ]
  return Rig(
    intrinsics=intrinsics,
    image_size=kitti_files.calibrated_size(
      path, 'S_rect_00', entries['P_rect_00']
    ),
    camera_from_lidar=rectified_from_camera @ np.linalg.inv(lidar_from_camera),
    imu_from_lidar=imu_from_camera['image_00']
    @ np.linalg.inv(lidar_from_camera),
    lenses=tuple(lens for lens, _ in lenses),
    image_sizes=tuple(size for _, size in lenses),
    imu_from_fisheye=tuple(
      imu_from_camera[sensor] for sensor in FISHEYES if fisheyes
    ),
  )


def read_lidar_from_camera(path: pathlib.Path) -> np.ndarray:
  """[4, 4] LiDAR from the unrectified camera 0: one line of a 3x4 matrix.

  Raises:
    MissingFileError: no such file.
    InputError: not 12 numbers, no rotation, or the inverse direction.
  """
  values = _matrix_values(_read_text(path).split(), str(path))
  matrix = kitti_files.rigid_matrix(values[:, :3], values[:, 3], str(path))
  extrinsics.check_axes(matrix, str(path))
  return matrix


def read_imu_from_cameras(
  path: pathlib.Path, sensors: tuple[str, ...]
) -> dict[str, np.ndarray]:
  """[4, 4] IMU from the cameras named: lines `image_00: ` and a 3x4 matrix.

  Raises:
    MissingFileError: no such file.
    InputError: a camera is missing, its entry is no rigid motion, or it looks
      elsewhere than that camera does.
  """
  entries = kitti_files.read_calibration(path, dict.fromkeys(sensors, (3, 4)))
  motions = {}
  for sensor, matrix in entries.items():
    source = f'{path}: {sensor}'
    motions[sensor] = kitti_files.rigid_matrix(
      matrix[:, :3], matrix[:, 3], source
    )
    extrinsics.check_axes(motions[sensor], source, _AXES.get(sensor, _IMU))
  return motions


def _read_text(path: pathlib.Path) -> str:
  try:
    return path.read_text('utf-8')
  except UnicodeDecodeError as error:
    raise InputError(f'{path}: not a text file ({error}).') from error


def _matrix_values(words: list[str], source: str) -> np.ndarray:
  """[3, 4] of twelve words."""
  try:
    values = np.array([float(word) for word in words], np.float64)
  except ValueError as error:
    raise InputError(f'{source}: not numbers ({error}).') from error
  if values.size != 12 or not np.isfinite(values).all():
    raise InputError(
      f'{source}: expected the 12 finite numbers of a 3x4 matrix, found '
      f'{words}.'
    )
  return values.reshape(3, 4)


def read_lens(path: pathlib.Path) -> tuple[fisheye.Lens, tuple[int, int]]:
  """Reads a fisheye's intrinsics from OpenCV's YAML.

  Returns:
    lens: with the half pixel added to the principal point.
    size: (H, W) of the images, pixels.

  Raises:
    MissingFileError: no such file.
    InputError: another model than MEI, or an entry missing or impossible.
  """
  entries = lens_files.flat(path)
  if entries.get('model_type') != 'MEI':
    raise InputError(
      f'{path}: model_type {entries.get("model_type")!r}, expected MEI.'
    )
  if extra := [
    f'{key} = {value}'
    for key, value in entries.items()
    if key.startswith('distortion_parameters.')
    and key.rpartition('.')[2] not in fisheye.Lens._fields
  ]:
    raise InputError(
      f'{path}: {", ".join(extra)}: MEI has k1, k2, p1 and p2 alone.'
    )
  wanted = (*fisheye.Lens._fields, 'image_width', 'image_height')
  last = {key.rpartition('.')[2]: value for key, value in entries.items()}
  try:
    values = {name: float(last[name]) for name in wanted}
  except KeyError as error:
    raise InputError(f'{path}: no entry {error}.') from error
  except (TypeError, ValueError) as error:
    raise InputError(f'{path}: not a number ({error}).') from error
  size = int(values.pop('image_height')), int(values.pop('image_width'))
  lens = fisheye.Lens(**values)
  center = np.array([lens.u0 / size[1], lens.v0 / size[0]])
  positive = min(lens.gamma1, lens.gamma2) > 0 and lens.xi >= 0
  if not positive or not (np.abs(center - 0.5) < 0.2).all():
    raise InputError(
      f'{path}: not the lens of a {size[1]}x{size[0]} image: {lens}.'
    )
  return lens._replace(u0=lens.u0 + 0.5, v0=lens.v0 + 0.5), size


def read_numbered_poses(path: pathlib.Path, rows: int) -> dict[int, np.ndarray]:
  """Reads poses that carry their frame number.

  Args:
    path: per line the frame number and a matrix of `rows` x 4, row by row.
    rows: 3 (poses.txt) or 4 (cam0_to_world.txt).

  Returns:
    Frame number to [4, 4]. Standing still, KITTI-360 has no poses: numbers
    are sparse.

  Raises:
    MissingFileError: no such file.
    InputError: nothing in it, a malformed line, a number twice, no rotation.
  """
  poses = {}
  for i, line in enumerate(_read_text(path).splitlines()):
    words = line.split()
    if not words:
      continue
    source = f'{path}, line {i + 1}'
    if len(words) != 1 + 4 * rows or not words[0].isdigit():
      raise InputError(
        f'{source}: expected a frame number and {4 * rows} numbers, found '
        f'{len(words)} words, first {words[0]!r}.'
      )
    frame = int(words[0])
    if frame in poses:
      raise InputError(f'{source}: frame {frame} has a pose already.')
    poses[frame] = _matrix_values(words[1:13], source)
  if not poses:
    raise InputError(f'{path}: no poses in the file.')
  values = np.stack(list(poses.values()))
  trajectories.check_places(values[:, :, 3], str(path))
  matrices = kitti_files.rigid_matrix(
    values[:, :, :3], values[:, :, 3], str(path)
  )
  return dict(zip(poses, matrices, strict=True))


def load_poses(
  root: pathlib.Path, drive: str, rig: Rig
) -> dict[int, np.ndarray]:
  """world_from_lidar [4, 4] by frame number.

  From poses.txt, compared with cam0_to_world.txt where both are there.

  Raises:
    MissingFileError: the drive has neither file.
    InputError: a file is damaged, or the two contradict each other.
  """
  folder = root / 'data_poses' / drive
  paths = folder / 'poses.txt', folder / 'cam0_to_world.txt'
  from_imu: dict[int, np.ndarray] = {}
  from_camera: dict[int, np.ndarray] = {}
  if paths[0].is_file():
    from_imu = {
      frame: pose @ rig.imu_from_lidar
      for frame, pose in read_numbered_poses(paths[0], 3).items()
    }
  if paths[1].is_file():
    from_camera = {
      frame: pose @ rig.camera_from_lidar
      for frame, pose in read_numbered_poses(paths[1], 4).items()
    }
  if not any(path.is_file() for path in paths):
    raise MissingFileError(
      f'{folder}: no poses.txt and no cam0_to_world.txt; download '
      'data_poses.zip. Sequences without published poses cannot be used.'
    )
  if all(path.is_file() for path in paths):
    _check_agreement(from_imu, from_camera, paths)
  return from_imu if paths[0].is_file() else from_camera


def _check_agreement(
  first: Mapping[int, np.ndarray],
  second: Mapping[int, np.ndarray],
  paths: tuple[pathlib.Path, pathlib.Path],
) -> None:
  """The same LiDAR by two ways: a wrong calibration shows here."""
  for frame in sorted(first.keys() & second.keys()):
    apart = np.linalg.norm((first[frame] - second[frame])[:3, 3])
    turn = np.abs((first[frame] - second[frame])[:3, :3]).max()
    # Digits leave 5 mm and 1e-5; a rectification left out turns by 0.007.
    if apart > 0.05 or turn > 0.002:
      raise InputError(
        f'{paths[0]} and {paths[1].name}, through the calibration, put the '
        f'LiDAR at frame {frame} {apart:.2f} m apart, turned by {turn:.3f} '
        'rad. Are calibration and poses of one release?'
      )
