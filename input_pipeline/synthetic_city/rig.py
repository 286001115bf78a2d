# SPDX-License-Identifier: Apache-2.0
"""Where the camera and the LiDAR of the embedded town sit, and where they look.

The rig is KITTI's: a camera 0.27 m ahead of and 0.08 m below a spinning LiDAR
(x forward, y left, z up). A scan is a range image [beams, columns]: row 0 is
the highest beam, column 0 looks backward and azimuth falls with the column, so
that forward is the middle and left is left, as in a panorama.

Other setups carry another LiDAR, another camera or both in the same places, to
train with one car and be tested with another.
"""

import functools
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError

# Camera rows and columns, beams and columns of the scan, rows and columns of
# their tiles; a tile has equally many rays for both.
SIZES = {
  'tiny': ((32, 104), (32, 128), (16, 8), (16, 8)),
  'small': ((64, 208), (64, 256), (16, 16), (32, 8)),
  'default': ((128, 416), (64, 1024), (32, 32), (32, 32)),
  'full': ((376, 1241), (64, 2048), (32, 32), (32, 32)),
}
CAMERAS = ('pinhole', 'panorama')


class Optics(NamedTuple):
  """A pinhole camera at its full size.

  Attributes:
    size: (rows, columns), pixels.
    focal: pixels.
    center: (u, v), pixels from the centre of the top-left pixel.
  """

  size: tuple[int, int]
  focal: float
  center: tuple[float, float]


class Setup(NamedTuple):
  """What the car carries.

  Attributes:
    optics: of the pinhole camera.
    beams: beams of the LiDAR, of the 64 that a size counts with.
    elevations: of its highest and its lowest beam, degrees.
  """

  optics: Optics
  beams: int
  elevations: tuple[float, float]


_KITTI = Optics((375, 1242), 721.5, (609.6, 172.9))  # 81 x 29 degrees
_WIDE = Optics((376, 1408), 552.6, (682.0, 238.8))  # KITTI-360's, 104 x 37
_HDL_64E, _HDL_32E = (64, (2.0, -24.8)), (32, (10.67, -30.67))
SETUPS = {
  'kitti': Setup(_KITTI, *_HDL_64E),
  '32_beams': Setup(_KITTI, *_HDL_32E),
  'wide_camera': Setup(_WIDE, *_HDL_64E),
  'other_car': Setup(_WIDE, *_HDL_32E),
}


class Camera(NamedTuple):
  """A pinhole camera or a panorama.

  Attributes:
    kind: of CAMERAS.
    shape: rows, columns.
    intrinsics: [3, 3] float64, pixels (of a panorama pixels per radian, see
      `i2ploc.geometry.panorama`), top-left pixel centre at (0.5, 0.5).
    camera_from_lidar: [4, 4] float64.
    tile: rows and columns of rays cast together.
  """

  kind: str
  shape: tuple[int, int]
  intrinsics: np.ndarray
  camera_from_lidar: np.ndarray
  tile: tuple[int, int]


class Lidar(NamedTuple):
  """A spinning LiDAR.

  Attributes:
    elevations: [beams] float64, radians, descending.
    azimuths: [columns] float64, radians, counter-clockwise from forward;
      descending from +pi.
    reach: metres.
    noise: standard deviation of a range, metres.
    tile: beams and columns of rays cast together.
  """

  elevations: np.ndarray
  azimuths: np.ndarray
  reach: float = 80.0
  noise: float = 0.02
  tile: tuple[int, int] = (32, 8)


def find_setup(name: str, camera: str) -> Setup:
  """The setup of a name, if a camera of this kind can be part of it.

  Raises:
    InputError: an unknown setup or camera, or a panorama with the optics of a
      setup of its own.
  """
  for what, value, known in (
    ('sensors', name, tuple(SETUPS)),
    ('camera', camera, CAMERAS),
  ):
    if value not in known:
      raise InputError(f'Unknown {what} {value!r}; known: {known}.')
  if camera == 'panorama' and SETUPS[name].optics != _KITTI:
    raise InputError(
      f"sensors={name!r} is another pinhole camera; with camera='panorama' "
      'there is none.'
    )
  return SETUPS[name]


def make_camera(size: str, yaw: float = 0.0, optics: Optics = _KITTI) -> Camera:
  """A pinhole camera at a size of SIZES, turned left by `yaw` radians.

  It has the rows of the size, and as many columns as keep its shape.
  """
  (height, columns), _, tile, _ = _size(size)
  width = round(columns * optics.size[1] / _KITTI.size[1])
  x, y = width / optics.size[1], height / optics.size[0]
  u, v = optics.center
  intrinsics = np.array(
    [
      [optics.focal * x, 0, (u + 0.5) * x],
      [0, optics.focal * y, (v + 0.5) * y],
      [0, 0, 1],
    ]
  )
  return Camera('pinhole', (height, width), intrinsics, _mount(yaw), tile)


def make_panorama(size: str) -> Camera:
  """An equirectangular camera, 360 x 80 degrees, forward in the middle."""
  (height, width), _, tile, _ = _size(size)
  width *= 2
  x, y = width / (2 * np.pi), height / np.deg2rad(80.0)
  intrinsics = np.array([[x, 0, width / 2], [0, y, height / 2], [0, 0, 1]])
  return Camera('panorama', (height, width), intrinsics, _mount(0.0), tile)


def find_camera(size: str, camera: str, setup: str) -> Camera:
  """The camera of images: a panorama, or the pinhole of a setup."""
  if camera == 'panorama':
    return make_panorama(size)
  return make_camera(size, optics=SETUPS[setup].optics)


def make_lidar(size: str, setup: str = 'kitti') -> Lidar:
  """The LiDAR of a setup of SETUPS at a size of SIZES."""
  _, (beams, columns), _, tile = _size(size)
  beams = beams * SETUPS[setup].beams // 64
  return Lidar(
    elevations=np.deg2rad(np.linspace(*SETUPS[setup].elevations, beams)),
    azimuths=np.pi * (1 - 2 * (np.arange(columns) + 0.5) / columns),
    tile=tile,
  )


def _size(size: str):
  if size not in SIZES:
    raise InputError(f'Unknown size {size!r}; known: {tuple(SIZES)}.')
  return SIZES[size]


def _mount(yaw: float) -> np.ndarray:
  cos, sin = np.cos(yaw), np.sin(yaw)
  axes = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
  turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
  camera_from_lidar = np.eye(4)
  camera_from_lidar[:3, :3] = axes @ turn
  camera_from_lidar[:3, 3] = -axes @ turn @ (0.27, 0.0, -0.08)
  return camera_from_lidar


def scan_directions(elevations: np.ndarray, azimuths: np.ndarray) -> np.ndarray:
  """Unit directions [beams, columns, 3] of a scan in the LiDAR frame."""
  elevation, azimuth = np.asarray(elevations)[:, None], np.asarray(azimuths)
  return np.stack(
    [
      np.cos(elevation) * np.cos(azimuth),
      np.cos(elevation) * np.sin(azimuth),
      np.sin(elevation) + 0.0 * azimuth,
    ],
    axis=-1,
  ).astype(np.float32)


@functools.cache
def directions(size: str, setup: str = 'kitti') -> np.ndarray:
  """Unit directions [beams, columns, 3] of the scans of a size; read-only."""
  lidar = make_lidar(size, setup)
  result = scan_directions(lidar.elevations, lidar.azimuths)
  result.flags.writeable = False
  return result


def points_from_scan(
  scan_range: np.ndarray, scan_intensity: np.ndarray, rays: np.ndarray
) -> np.ndarray:
  """The returns of a stored scan.

  Args:
    scan_range: [beams, columns] metres, 0 for no return.
    scan_intensity: [beams, columns] uint8.
    rays: [beams, columns, 3] of `directions` or `scan_directions`.

  Returns:
    [P, 4] float32, LiDAR frame, metres, intensity in 0..1; P counts the
    returns, in the order of `array[scan_range > 0]` for labels.
  """
  hit = scan_range > 0
  points = np.empty((np.count_nonzero(hit), 4), np.float32)
  points[:, :3] = rays[hit] * scan_range[hit].astype(np.float32)[:, None]
  points[:, 3] = scan_intensity[hit] * np.float32(1 / 255)
  return points


def camera_directions(camera: Camera) -> np.ndarray:
  """Unit directions [H, W, 3] of the pixel centres, LiDAR axes."""
  height, width = camera.shape
  pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1) + 0.5
  focal = camera.intrinsics[[0, 1], [0, 1]]
  plane = (pixels - camera.intrinsics[:2, 2]) / focal
  if camera.kind == 'panorama':  # the plane of azimuth and elevation
    return scan_directions(-plane[:, 0, 1], -plane[0, :, 0])
  rays = np.concatenate([plane, np.ones((height, width, 1))], -1)
  rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
  return (rays @ camera.camera_from_lidar[:3, :3]).astype(np.float32)
