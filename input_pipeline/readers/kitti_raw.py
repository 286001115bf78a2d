# SPDX-License-Identifier: Apache-2.0
"""KITTI raw data (Geiger et al., IJRR 2013), synced and rectified drives.

  ROOT/<date>/calib_cam_to_cam.txt  calib_velo_to_cam.txt  calib_imu_to_velo.txt
  ROOT/<date>/<date>_drive_<number>_sync/image_0<k>/data/<frame>.png
                                         velodyne_points/data/<frame>.bin
                                         oxts/data/<frame>.txt
                                         <sensor>/timestamps.txt

Poses come from the GPS/IMU unit (oxts), or else from a file `poses_velo*.txt`
in the drive's folder: row i is velo_0 from velo_i, 12 numbers, i the frame
number. The world is x east, y north, z up and starts at the first GPS fix; from
a pose file it is the LiDAR's own frame 0 (z up, x forward). GPS altitude drifts
by metres within a drive: compare places by x and y.

Scans are as measured, not corrected for the car's motion during a turn.
"""

from collections.abc import Mapping
import pathlib
import re

from absl import logging
import numpy as np

from i2ploc import image_files
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.geometry import lens as lens_lib
from input_pipeline import schema
from input_pipeline.readers import calibrated
from input_pipeline.readers import drive as drive_lib
from input_pipeline.readers import kitti_files
from input_pipeline.readers import scan_files
from input_pipeline.readers import sensor_folders
from input_pipeline.readers import splits

ALL = 'all'  # stands for every drive
GRAMMAR = splits.Grammar(
  dataset='KITTI raw',
  sequence=lambda text: text if re.fullmatch(r'[\w-]+', text) else None,
  example="'all', '2011_09_26_drive_0001_sync[:50]', 'spaced:DRIVE+DRIVE'",
  published={},
)
_EARTH_RADIUS = 6378137.0  # Metres, as in the development kit.
_OXTS_VALUES = 30
_ROUNDING = 1e-3  # radians, of printed angles


def load(
  root: str | pathlib.Path,
  split: str = ALL,
  *,
  camera: int = 2,
  query_spacing: float = 3.0,
) -> schema.Dataset:
  """Loads the frame tables of KITTI raw drives; sensors are read lazily.

  Args:
    root: the folder of the date folders.
    split: drives joined by '+' with optional slices and a rule, such as
      '2011_09_26_drive_0001_sync[:50]', see `splits`; 'all' stands for every
      drive there is.
    camera: 0, 1 (grey), 2 or 3 (colour).
    query_spacing: metres, of the rules 'spaced' and 'disjoint'.

  Returns:
    A dataset; every drive is a town of its own.

  Raises:
    MissingFileError: a folder, calibration or pose file is missing.
    InputError: a file does not hold what it should; the message names it.
  """
  root = pathlib.Path(root)
  folders = {path.name: path for path in sorted(root.glob('*/*_drive_*_sync'))}
  if not folders:
    raise MissingFileError(
      f'{root}: no drive found; expected folders such as '
      '2011_09_26/2011_09_26_drive_0001_sync.'
    )
  wanted = GRAMMAR.parse(split)
  if [part.sequence for part in wanted.parts] == [ALL]:
    (every,) = wanted.parts
    parts = tuple(every._replace(sequence=name) for name in folders)
    wanted = wanted._replace(parts=parts)
  names = [part.sequence for part in wanted.parts]
  if missing := [name for name in names if name not in folders]:
    raise MissingFileError(
      f'{root}: no drive {missing}; found {list(folders)}.'
    )
  dataset = drive_lib.make_dataset(
    f'kitti_raw/{split}', [_load_drive(folders[name], camera) for name in names]
  )
  return drive_lib.take_split(dataset, wanted, query_spacing)


def _load_drive(folder: pathlib.Path, camera: int) -> drive_lib.Drive:
  sensor = f'image_{camera:02d}'
  images = sensor_folders.numbered_files(
    folder / sensor / 'data', image_files.SUFFIXES
  )
  scans = sensor_folders.numbered_files(
    folder / 'velodyne_points' / 'data', scan_files.SUFFIXES
  )
  if not images:
    drive_lib.check_other_cameras(folder, sensor)
  times = drive_lib.times_of_both(
    (folder / 'velodyne_points' / 'timestamps.txt', scans),
    (folder / sensor / 'timestamps.txt', images),
  )
  lens, size, camera_from_lidar = _load_calibration(
    folder.parent, camera, list(images.values())
  )
  poses, source = _load_poses(folder, images | scans)
  return drive_lib.Drive(
    name=folder.name,
    images=images,
    scans=scans,
    world_from_lidar=poses,
    times=times,
    rig=schema.Rig(lens, size, camera_from_lidar),
    calibration=str(folder.parent / 'calib_velo_to_cam.txt'),
    poses=str(source),
  )


def _load_calibration(
  folder: pathlib.Path, camera: int, images: list[pathlib.Path]
) -> tuple[lens_lib.Lens, tuple[int, int] | None, np.ndarray]:
  """The lens of images, their (H, W), camera_from_lidar [4, 4] of a date."""
  path = folder / 'calib_cam_to_cam.txt'
  key = f'P_rect_{camera:02d}'
  entries = kitti_files.read_calibration(
    path, {key: (3, 4), 'R_rect_00': (3, 3)}
  )
  intrinsics, offset = kitti_files.split_projection(
    entries[key], f'{path}: {key}'
  )
  lens, size = calibrated.fit(
    lens_lib.Lens('pinhole', intrinsics),
    kitti_files.calibrated_size(path, f'S_rect_{camera:02d}', entries[key]),
    images,
    f'{path}: {key}',
  )
  # All cameras are rectified to camera 0's rotation; R_rect_0k is not it.
  rectified_from_camera = kitti_files.rigid_matrix(
    entries['R_rect_00'], np.zeros(3), f'{path}: R_rect_00'
  )
  camera_from_rectified = kitti_files.rigid_matrix(np.eye(3), offset, str(path))
  camera_from_lidar = (
    camera_from_rectified
    @ rectified_from_camera
    @ _load_rigid(folder / 'calib_velo_to_cam.txt')
  )
  return lens, size, camera_from_lidar


def _load_rigid(path: pathlib.Path) -> np.ndarray:
  entries = kitti_files.read_calibration(path, {'R': (3, 3), 'T': (3,)})
  return kitti_files.rigid_matrix(entries['R'], entries['T'], f'{path}: R')


def _load_poses(
  folder: pathlib.Path, files: Mapping[int, pathlib.Path]
) -> tuple[Mapping[int, np.ndarray], pathlib.Path]:
  """world_from_lidar by frame number, and where it is from."""
  oxts = sensor_folders.numbered_files(folder / 'oxts' / 'data', ('.txt',))
  pose_files = sorted(folder.glob('poses_velo*.txt'))
  if oxts:
    logging.info('Drive %s: poses from %d oxts files.', folder.name, len(oxts))
    lidar_from_imu = _load_rigid(folder.parent / 'calib_imu_to_velo.txt')
    frames = list(oxts)
    packets = np.stack([_read_oxts(oxts[i]) for i in frames])
    poses = world_from_imu(packets) @ np.linalg.inv(lidar_from_imu)
    return dict(zip(frames, poses, strict=True)), folder / 'oxts'
  if not pose_files:
    raise MissingFileError(
      f'{folder}: no poses; expected oxts/data/<frame>.txt, or a file '
      'poses_velo*.txt with a row of 12 numbers (velo_0 from velo_i) per frame '
      'number.'
    )
  if len(pose_files) > 1:
    raise InputError(
      f'{folder}: several pose files {[path.name for path in pose_files]}; '
      'keep one.'
    )
  logging.info('Drive %s: poses from %s.', folder.name, pose_files[0].name)
  poses = drive_lib.poses_by_row(pose_files[0], files, np.eye(3))
  return dict(enumerate(poses)), pose_files[0]


def _read_oxts(path: pathlib.Path) -> np.ndarray:
  """[6] latitude, longitude (degrees), altitude (m), roll, pitch, yaw."""
  lines = [line for line in path.read_text('utf-8').splitlines() if line]
  words = lines[0].split() if len(lines) == 1 else []
  try:
    packet = np.array([float(word) for word in words[:6]], np.float64)
  except ValueError as error:
    raise InputError(f'{path}: not numbers ({error}).') from error
  if len(words) != _OXTS_VALUES or not np.isfinite(packet).all():
    raise InputError(
      f'{path}: expected one line of {_OXTS_VALUES} finite numbers, found '
      f'{len(lines)} lines, {len(words)} numbers.'
    )
  if abs(packet[0]) >= 90 or abs(packet[1]) > 180:
    raise InputError(
      f'{path}: latitude {packet[0]:g}, longitude {packet[1]:g} are not on '
      'the Earth (degrees).'
    )
  if np.abs(packet[3:]).max() > 2 * np.pi + _ROUNDING:
    raise InputError(
      f'{path}: roll, pitch, yaw {packet[3]:g}, {packet[4]:g}, {packet[5]:g}, '
      'expected radians. Multiply degrees by pi / 180.'
    )
  return packet


def world_from_imu(packets: np.ndarray) -> np.ndarray:
  """Poses of the GPS/IMU unit in a metric world.

  x = s r lon, y = s r log tan(pi/4 + lat/2), z = altitude, with the Mercator
  scale s = cos(lat of the first packet), minus the first packet's position;
  R = Rz(yaw) Ry(pitch) Rx(roll), yaw 0 towards east, counter-clockwise.

  Args:
    packets: [F, 6] latitude, longitude (degrees), altitude (metres), roll,
      pitch, yaw (radians) of one drive.

  Returns:
    [F, 4, 4] float64, x east, y north, z up.

  Reference:
    Geiger et al., Vision meets Robotics: The KITTI Dataset, IJRR 2013.
  """
  latitude, longitude = np.radians(packets[:, :2].T)
  scale = np.cos(latitude[0]) * _EARTH_RADIUS
  position = np.stack(
    [
      scale * longitude,
      scale * np.log(np.tan(np.pi / 4 + latitude / 2)),
      packets[:, 2],
    ],
    axis=-1,
  )
  roll, pitch, yaw = packets[:, 3:6].T
  rotation = _turn(yaw, 2) @ _turn(pitch, 1) @ _turn(roll, 0)
  return kitti_files.rigid_matrix(rotation, position - position[0], 'oxts')


def _turn(angle: np.ndarray, axis: int) -> np.ndarray:
  """[F, 3, 3] right-handed rotations by `angle` about a coordinate axis."""
  i, j = (axis + 1) % 3, (axis + 2) % 3
  rotation = np.zeros((len(angle), 3, 3))
  rotation[:, axis, axis] = 1
  rotation[:, i, i] = rotation[:, j, j] = np.cos(angle)
  rotation[:, j, i] = np.sin(angle)
  rotation[:, i, j] = -np.sin(angle)
  return rotation
