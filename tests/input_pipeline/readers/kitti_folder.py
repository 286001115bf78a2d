# SPDX-License-Identifier: Apache-2.0
"""Hand-made KITTI odometry sequences and KITTI raw drives, two frames each."""

import pathlib

import numpy as np
import PIL.Image

NAME = '2011_09_26_drive_0001_sync'
PROJECTION = np.array([[20, 0, 11.5, 1.5], [0, 21, 7.5, 0.3], [0, 0, 1, 0.004]])
RECTIFICATION = np.array([[0.96, 0, 0.28], [0, 1, 0], [-0.28, 0, 0.96]])
_LIDAR_AXES = '0 -1 0 0 0 -1 1 0 0'  # Camera x, y, z = LiDAR -y, -z, x.


def _numbers(values: np.ndarray) -> str:
  return ' '.join(repr(float(value)) for value in np.ravel(values))


def oxts(*values: float) -> str:
  return _numbers(np.array([*values, *([0] * (30 - len(values)))]))


def write(path: pathlib.Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


def write_image(path: pathlib.Path, value: int) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(np.full((16, 24, 3), value, np.uint8)).save(path)


def write_scan(path: pathlib.Path, x: float) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  np.array([[x, 0, 0, 0.5], [x, 1, 2, 0.25]], '<f4').tofile(path)


def make_drive(root: pathlib.Path, name: str = NAME) -> pathlib.Path:
  """Two frames, 0 and 1, as the download unpacks."""
  date = root / '2011_09_26'
  write(
    date / 'calib_cam_to_cam.txt',
    'calib_time: 09-Jan-2012 13:57:47\ncorner_dist: 9.95e-02\n'
    f'R_rect_00: {_numbers(RECTIFICATION)}\n'
    f'P_rect_02: {_numbers(PROJECTION)}\n',
  )
  write(date / 'calib_velo_to_cam.txt', f'R: {_LIDAR_AXES}\nT: 0 -0.1 -0.3\n')
  write(
    date / 'calib_imu_to_velo.txt', 'R: 1 0 0 0 1 0 0 0 1\nT: -0.8 0.3 -0.8\n'
  )
  folder = date / name
  for i in range(2):
    stem = f'{i:010d}'
    write_image(folder / 'image_02' / 'data' / f'{stem}.png', 10 + i)
    write_scan(folder / 'velodyne_points' / 'data' / f'{stem}.bin', 10.0 + i)
    write(folder / 'oxts' / 'data' / f'{stem}.txt', oxts(49, 8 + 1e-5 * i))
  times = [f'2011-09-26 13:02:2{i}.500000123' for i in range(2)]
  for sensor in ('image_02', 'velodyne_points'):
    write(folder / sensor / 'timestamps.txt', '\n'.join(times))
  return folder


_ODOMETRY_PROJECTION = '20 0 11.5 {} 0 20 7.5 0 0 0 1 0'
# Camera x, y, z = LiDAR -y, -z, x; the LiDAR sits 0.3 m behind the camera.
_TR = '0 -1 0 0 0 0 -1 0 1 0 0 -0.3'


def write_frame(folder: pathlib.Path, frame: int, scan: bool = True) -> None:
  image = folder / 'image_0' / f'{frame:06d}.png'
  image.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(np.full((16, 24), 10 + frame, np.uint8)).save(image)
  if scan:
    path = folder / 'velodyne' / f'{frame:06d}.bin'
    path.parent.mkdir(parents=True, exist_ok=True)
    np.array([[10 + frame, 0, 0, 0.5]], '<f4').tofile(path)


def make_sequence(root: pathlib.Path, tr_key: str = 'Tr:') -> pathlib.Path:
  """Frames 0 and 1 of sequence 03 with the poses of four frames."""
  folder = root / 'sequences' / '03'
  for i in range(2):
    write_frame(folder, i)
  lines = [f'P{k}: {_ODOMETRY_PROJECTION.format(10 * k)}' for k in range(4)]
  write(folder / 'calib.txt', '\n'.join([*lines, f'{tr_key} {_TR}', '']))
  write(folder / 'times.txt', '0.0\n0.1\n0.2\n0.35\n')
  # One metre ahead per frame, and half a metre up (camera y points down).
  rows = [f'1 0 0 0 0 1 0 {-0.5 * i} 0 0 1 {i}' for i in range(4)]
  write(root / 'poses' / '03.txt', '\n'.join([*rows, '']))
  return folder
