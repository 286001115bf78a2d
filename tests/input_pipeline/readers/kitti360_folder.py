# SPDX-License-Identifier: Apache-2.0
"""Hand-made KITTI-360 folders in the real layout and the real file formats.

The calibration is the published one of KITTI-360, number by number (as quoted
by public repositories that read it); images, scans and poses are made up.
"""

import pathlib

import numpy as np
import PIL.Image

NAME = '2013_05_28_drive_0003_sync'
CAM_TO_VELO = (
  '0.04307104361 -0.08829286498 0.995162929 0.8043914418 -0.999004371 '
  '0.007784614041 0.04392796942 0.2993489574 -0.01162548558 -0.9960641394 '
  '-0.08786966659 -0.1770225824'
)
CAM_TO_POSE = {
  'image_00': (
    '0.0371783278 -0.0986182135 0.9944306009 1.5752681039 0.9992675562 '
    '-0.0053553387 -0.0378902567 0.0043914093 0.0090621821 0.9951109327 '
    '0.0983468786 -0.6500000000'
  ),
  'image_01': (
    '0.0194000864 -0.1051529641 0.9942668106 1.5977241400 0.9997374956 '
    '-0.0100836652 -0.0205732716 0.5981494900 0.0121891942 0.9944049345 '
    '0.1049297370 -0.6488433108'
  ),
  'image_02': (
    '0.9995185086 0.0041276589 -0.0307524527 0.7264036936 -0.0307926666 '
    '0.0100608424 -0.9994751579 -0.1499658517 -0.0038160970 0.9999408692 '
    '0.0101830998 -1.0686400091'
  ),
  'image_03': (
    '-0.9996821702 0.0005703407 -0.0252038325 0.7016842127 -0.0252033830 '
    '0.0007820814 0.9996820384 0.7463650950 0.0005898709 0.9999995315 '
    '-0.0007674583 -1.0751978255'
  ),
}
PERSPECTIVE = {
  'S_rect_00': '1408.000000 376.000000',
  'R_rect_00': (
    '0.999974 -0.007141 -0.000089 0.007141 0.999969 -0.003247 0.000112 '
    '0.003247 0.999995'
  ),
  'P_rect_00': (
    '552.554261 0.000000 682.049453 0.000000 0.000000 552.554261 238.769549 '
    '0.000000 0.000000 0.000000 1.000000 0.000000'
  ),
}
# xi, k1, k2, p1, p2, gamma1, gamma2, u0, v0.
LENSES = {
  'image_02': (
    *(2.2134047507854890e00, 1.6798235660113681e-02, 1.6548773243373522e00),
    *(4.2223943394772046e-04, 4.2462134260997584e-04),
    *(1.3363220825849971e03, 1.3357883350012958e03),
    *(7.1694323510126321e02, 7.0576498308221585e02),
  ),
  'image_03': (
    *(2.5535139132482758e00, 4.9370396274089505e-02, 4.5068455478645308e00),
    *(1.3477698472982495e-03, -7.0340482615055284e-04),
    *(1.4854388981875156e03, 1.4849477411748708e03),
    *(6.9888316784030962e02, 6.9814541887723055e02),
  ),
}
_YAML = """%YAML:1.0
---
model_type: MEI
camera_name: {sensor}
image_width: {size}
image_height: {size}
mirror_parameters:
   xi: {0:.16e}
distortion_parameters:
   k1: {1:.16e}
   k2: {2:.16e}
   p1: {3:.16e}
   p2: {4:.16e}
projection_parameters:
   gamma1: {5:.16e}
   gamma2: {6:.16e}
   u0: {7:.16e}
   v0: {8:.16e}
"""


def matrix(text: str) -> np.ndarray:
  """[4, 4] of the twelve numbers of a file."""
  values = np.array(text.split(), np.float64).reshape(3, 4)
  return np.vstack([values, [0, 0, 0, 1]])


IMU_FROM_LIDAR = matrix(CAM_TO_POSE['image_00']) @ np.linalg.inv(
  matrix(CAM_TO_VELO)
)
RECTIFICATION = np.eye(4)
RECTIFICATION[:3, :3] = np.reshape(PERSPECTIVE['R_rect_00'].split(), (3, 3))


def imu_pose(x: float, y: float, heading: float, z: float = 115.0):
  """world_from_imu [4, 4] of a level car; the IMU's z points down."""
  cos, sin = np.cos(heading), np.sin(heading)
  pose = np.eye(4)
  pose[:3, :3] = [[cos, sin, 0], [sin, -cos, 0], [0, 0, -1]]
  pose[:3, 3] = x, y, z
  return pose


def write(path: pathlib.Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


def write_image(path: pathlib.Path, pixels: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(pixels).save(path, compress_level=1)


def write_scan(path: pathlib.Path, points: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  np.asarray(points, '<f4').tofile(path)


def lens(sensor: str, shrink: int) -> tuple[float, ...]:
  """A lens whose images are 1 / shrink of the real size.

  The files count from the centre of the first pixel.
  """
  values = LENSES[sensor]
  lengths = [value / shrink for value in values[5:7]]
  centers = [(value + 0.5) / shrink - 0.5 for value in values[7:]]
  return (*values[:5], *lengths, *centers)


def write_calibration(root: pathlib.Path, shrink: int = 1) -> pathlib.Path:
  """The folder calibration; fisheye images 1 / shrink of their real size."""
  folder = root / 'calibration'
  write(folder / 'calib_cam_to_velo.txt', CAM_TO_VELO + '\n')
  write(folder / 'calib_sick_to_velo.txt', CAM_TO_VELO + '\n')
  lines = [f'{name}: {values} \n' for name, values in CAM_TO_POSE.items()]
  write(folder / 'calib_cam_to_pose.txt', ''.join(lines))
  lines = [f'{name}: {values}\n' for name, values in PERSPECTIVE.items()]
  write(folder / 'perspective.txt', ''.join(lines))
  for sensor in LENSES:
    text = _YAML.format(
      *lens(sensor, shrink), sensor=sensor, size=1400 // shrink
    )
    write(folder / f'{sensor}.yaml', text)
  return folder


def write_poses(
  root: pathlib.Path, name: str, world_from_imu: dict[int, np.ndarray]
) -> pathlib.Path:
  """The folder of a drive's poses.txt and cam0_to_world.txt."""
  folder = root / 'data_poses' / name
  imu, camera = [], []
  from_camera = matrix(CAM_TO_POSE['image_00']) @ np.linalg.inv(RECTIFICATION)
  for frame, pose in world_from_imu.items():
    values = ' '.join(f'{value:.10f}' for value in pose[:3].ravel())
    imu.append(f'{frame} {values}\n')
    values = ' '.join(f'{value:.6f}' for value in (pose @ from_camera).ravel())
    camera.append(f'{frame} {values}\n')
  write(folder / 'poses.txt', ''.join(imu))
  write(folder / 'cam0_to_world.txt', ''.join(camera))
  return folder


def image_path(root: pathlib.Path, name: str, sensor: str, frame: int):
  kind = 'data_rect' if sensor in ('image_00', 'image_01') else 'data_rgb'
  folder = root / 'data_2d_raw' / name / sensor / kind
  return folder / f'{frame:010d}.png'


def scan_path(root: pathlib.Path, name: str, frame: int) -> pathlib.Path:
  folder = root / 'data_3d_raw' / name / 'velodyne_points' / 'data'
  return folder / f'{frame:010d}.bin'


def write_times(root: pathlib.Path, name: str, count: int) -> None:
  """Both sensors' timestamps.txt, ten a second."""
  lines = [f'2013-05-28 08:46:{i / 10:012.9f}\n' for i in range(count)]
  for path in (
    root / 'data_3d_raw' / name / 'velodyne_points' / 'timestamps.txt',
    root / 'data_2d_raw' / name / 'image_00' / 'timestamps.txt',
  ):
    write(path, ''.join(lines))


def make_root(root: pathlib.Path, name: str = NAME, shrink: int = 20) -> None:
  """Frames 1, 2 and 3 of a drive; 2 and 3 have poses, 2 m apart, eastwards."""
  write_calibration(root, shrink)
  poses = {i: imu_pose(3600.0 + 2 * i, 1700.0, 0.0) for i in (2, 3)}
  write_poses(root, name, poses)
  write_times(root, name, 4)
  size = 1400 // shrink
  for i in (1, 2, 3):
    pixels = np.full((376, 1408, 3), 10 * i, np.uint8)
    write_image(image_path(root, name, 'image_00', i), pixels)
    for sensor in LENSES:
      pixels = np.full((size, size, 3), 20 * i, np.uint8)
      write_image(image_path(root, name, sensor, i), pixels)
    points = [[10 + i, 0, 0, 0.5], [5, 0, -1.5, 0.25], [20, 0, 2, 1.0]]
    write_scan(scan_path(root, name, i), points)
