# SPDX-License-Identifier: Apache-2.0
"""The camera and the LiDAR of the embedded town.

The rig is KITTI's: a camera 0.27 m ahead of and 0.08 m below a spinning LiDAR
(x forward, y left, z up). A scan is a range image [beams, columns]: row 0 is
the highest beam, column 0 looks backward and azimuth falls with the column, so
that forward is the middle and left is left, as in a panorama.

The host lists what each tile of rays may hit, the device casts and says where
the sun may shine, the host lists what may shadow that, the device shades.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import NamedTuple

from jax import Array
import numpy as np

from input_pipeline.synthetic_city import imaging
from input_pipeline.synthetic_city import primitives as primitives_lib
from input_pipeline.synthetic_city import raycast
from input_pipeline.synthetic_city import selection
from input_pipeline.synthetic_city import shading

# Camera rows and columns, beams and columns of the scan, rows and columns of
# their tiles; a tile has equally many rays for both.
SIZES = {
  'tiny': ((32, 104), (32, 128), (16, 8), (16, 8)),
  'small': ((64, 208), (64, 256), (16, 16), (32, 8)),
  'default': ((128, 416), (64, 1024), (32, 32), (32, 32)),
  'full': ((376, 1241), (64, 2048), (32, 32), (32, 32)),
}
CAMERAS = ('pinhole', 'panorama')
CAMERA_REACH = 200.0  # metres, beyond which only the ground is drawn
_SWEEP = 0.1  # seconds per turn of the LiDAR
_BEAM = 1.5e-3  # radians, divergence of a pulse


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


def make_camera(size: str, yaw: float = 0.0) -> Camera:
  """KITTI's colour camera at a size of SIZES, turned left by `yaw` radians."""
  shape, _, tile, _ = _size(size)
  height, width = shape
  x, y = width / 1242, height / 375
  intrinsics = np.array(
    [
      [721.5 * x, 0, (609.6 + 0.5) * x],
      [0, 721.5 * y, (172.9 + 0.5) * y],
      [0, 0, 1],
    ]
  )
  return Camera('pinhole', shape, intrinsics, _mount(yaw), tile)


def make_panorama(size: str) -> Camera:
  """An equirectangular camera, 360 x 80 degrees, forward in the middle."""
  (height, width), _, tile, _ = _size(size)
  width *= 2
  x, y = width / (2 * np.pi), height / np.deg2rad(80.0)
  intrinsics = np.array([[x, 0, width / 2], [0, y, height / 2], [0, 0, 1]])
  return Camera('panorama', (height, width), intrinsics, _mount(0.0), tile)


def make_lidar(size: str) -> Lidar:
  """A LiDAR from +2 to -24.8 degrees at a size of SIZES."""
  _, (beams, columns), _, tile = _size(size)
  return Lidar(
    elevations=np.deg2rad(np.linspace(2.0, -24.8, beams)),
    azimuths=np.pi * (1 - 2 * (np.arange(columns) + 0.5) / columns),
    tile=tile,
  )


def _size(size: str):
  if size not in SIZES:
    raise ValueError(f'Unknown size {size!r}; known: {tuple(SIZES)}.')
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
def directions(size: str) -> np.ndarray:
  """Unit directions [beams, columns, 3] of the scans of a size; read-only."""
  lidar = make_lidar(size)
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


def _camera_directions(camera: Camera) -> np.ndarray:
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


class _Tiles(NamedTuple):
  """A grid of rays cut into tiles; the last ones repeat the border.

  Attributes:
    shape: rows and columns of the grid.
    counts: tiles down and across.
    tile: rows and columns of a tile.
    rays: [T, R, 3] unit, LiDAR axes.
    turn: [T, R] phase of the sweep in -0.5..0.5.
  """

  shape: tuple[int, int]
  counts: tuple[int, int]
  tile: tuple[int, int]
  rays: np.ndarray
  turn: np.ndarray

  def untile(self, values: Array) -> np.ndarray:
    """[T, R, ...] as an image [H, W, ...]."""
    values = np.asarray(values)
    rest = values.shape[2:]
    grid = values.reshape(*self.counts, *self.tile, *rest).swapaxes(1, 2)
    height, width = self.shape
    full = grid.reshape(
      self.counts[0] * self.tile[0], self.counts[1] * self.tile[1], *rest
    )
    return np.ascontiguousarray(full[:height, :width])


def _tiles(grid: np.ndarray, tile: tuple[int, int]) -> _Tiles:
  height, width = grid.shape[:2]
  counts = -(-height // tile[0]), -(-width // tile[1])
  rows = np.minimum(np.arange(counts[0] * tile[0]), height - 1)
  columns = np.minimum(np.arange(counts[1] * tile[1]), width - 1)

  def cut(values):
    values = values[rows][:, columns]
    rest = values.shape[2:]
    values = values.reshape(counts[0], tile[0], counts[1], tile[1], *rest)
    return values.swapaxes(1, 2).reshape(
      counts[0] * counts[1], tile[0] * tile[1], *rest
    )

  turn = np.broadcast_to((np.arange(width) + 0.5) / width - 0.5, grid.shape[:2])
  return _Tiles((height, width), counts, tile, cut(grid), cut(turn))


def _outline(rays: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
  """Corners and middles of the sides [T, 9, 3] of tiles of rays [T, R, 3]."""
  height, width = tile
  rows = np.repeat([0, height // 2, height - 1], 3)
  columns = np.tile([0, width // 2, width - 1], 3)
  return rays[:, rows * width + columns]


class _Sensor(NamedTuple):
  """A camera or a LiDAR ready to render.

  Attributes:
    tiles: its rays.
    origin: [3] metres from the LiDAR.
    reach: metres.
    spread: radians between rays.
  """

  tiles: _Tiles
  origin: np.ndarray
  reach: float
  spread: float

  def rays(self, motion) -> tuple[np.ndarray, np.ndarray, float]:
    """Directions [T, R, 3], origins, and how far these are from `origin`.

    With `motion` each column leaves from where the sensor is at its own time
    of the sweep, and its readings stay in that moment's frame.
    """
    local = self.tiles.rays
    if motion is None:
      start = np.broadcast_to(self.origin, (*local.shape[:2], 3))
      return local, start, 0.0
    time = _SWEEP * self.tiles.turn
    velocity = np.array([motion[0], motion[1], 0.0])
    start = self.origin + velocity * time[..., None]
    slack = 0.5 * _SWEEP * float(np.linalg.norm(velocity))
    return _turned(local, motion[2] * time), start, slack


def _make_imager(camera: Camera) -> _Sensor:
  grid = _camera_directions(camera)
  row, column = camera.shape[0] // 2, camera.shape[1] // 2
  spread = np.linalg.norm(grid[row, column + 1] - grid[row, column])
  mount = camera.camera_from_lidar
  origin = -mount[:3, :3].T @ mount[:3, 3]
  return _Sensor(_tiles(grid, camera.tile), origin, CAMERA_REACH, spread)


def _make_scanner(lidar: Lidar) -> _Sensor:
  grid = scan_directions(lidar.elevations, lidar.azimuths)
  return _Sensor(_tiles(grid, lidar.tile), np.zeros(3), lidar.reach, _BEAM)


def _turned(rays: np.ndarray, angle: np.ndarray) -> np.ndarray:
  """Directions [T, R, 3] turned about z by angles [T, R]."""
  cos, sin = np.cos(angle), np.sin(angle)
  x, y, z = np.moveaxis(rays, -1, 0)
  turned = np.stack([cos * x - sin * y, sin * x + cos * y, z], -1)
  return turned.astype(np.float32)


def make_world(
  scene: primitives_lib.Scene, position: np.ndarray
) -> imaging.World:
  """What surrounds a position [3], as float32 arrays relative to it."""
  solids, coats = selection.select(scene.primitives, position, CAMERA_REACH)
  terrain, roads = selection.select_ground(scene.ground, position)
  air = shading.make_air(scene.weather)
  return imaging.World(solids, coats, terrain, roads, air)


def _gather(
  sensors: Sequence[_Sensor], world: imaging.World, rotation, motion
) -> tuple[imaging.Bundle, raycast.Candidates]:
  """The rays of all sensors and what they may hit; the LiDAR comes last."""
  local, start, spread, lists = [], [], [], []
  for sensor in sensors:
    moves = motion if sensor is sensors[-1] else None
    rays, origin, slack = sensor.rays(moves)
    outline = _outline(rays, sensor.tiles.tile) @ rotation.T
    position = rotation @ sensor.origin
    lists.append(
      selection.candidates(
        world.solids, position, outline, sensor.reach + slack, slack
      )
    )
    local.append(rays)
    start.append(origin)
    spread.append(np.full((len(rays), 1), sensor.spread))
  joined = [
    np.concatenate(parts).astype(np.float32) for parts in (local, start, spread)
  ]
  bundle = imaging.Bundle(joined[0], joined[1], rotation, joined[2])
  fields = zip(*lists, strict=True)
  return bundle, raycast.Candidates(*(np.concatenate(f) for f in fields))


def make_renderer(
  size: str,
  *,
  camera: str = 'pinhole',
  yaws: Sequence[float] = (),
) -> Callable[..., dict[str, np.ndarray]]:
  """Makes the function that renders one frame.

  Args:
    size: of SIZES.
    camera: of CAMERAS.
    yaws: of further pinhole cameras, radians to the left of forward.

  Returns:
    `render(scene, world_from_lidar [4, 4], key_seed, motion=None)` with
    `motion` (metres per second forward and left, radians per second) of the
    ego during the sweep. It returns a dict of numpy arrays: image uint8
    [H, W, 3], image_semantic uint8 and image_instance int32 [H, W],
    intrinsics float64 [3, 3], camera_from_lidar float64 [4, 4], scan_range
    float32 [beams, columns] (metres, 0 for no return), scan_intensity uint8,
    scan_semantic uint8, scan_instance int32; of further cameras image_1,
    image_1_semantic, image_1_instance, camera_1_from_lidar and so on. Any
    thread may call it; equal arguments give equal bits.

  Raises:
    ValueError: for an unknown size or camera.
  """
  if camera not in CAMERAS:
    raise ValueError(f'Unknown camera {camera!r}; known: {CAMERAS}.')
  make = make_panorama if camera == 'panorama' else make_camera
  cameras = {'image': make(size)}
  cameras |= {f'image_{i}': make_camera(size, y) for i, y in enumerate(yaws, 1)}
  lidar = make_lidar(size)
  imagers = [_make_imager(mounted) for mounted in cameras.values()]
  sensors = (*imagers, _make_scanner(lidar))
  starts = np.cumsum([0] + [len(sensor.tiles.rays) for sensor in sensors])
  limits = np.float32(lidar.reach), np.float32(lidar.noise)

  def render(
    scene: primitives_lib.Scene,
    world_from_lidar: np.ndarray,
    key_seed: int,
    motion: tuple[float, float, float] | None = None,
  ) -> dict[str, np.ndarray]:
    world = make_world(scene, world_from_lidar[:3, 3])
    rotation = np.asarray(world_from_lidar[:3, :3], np.float32)
    keys = np.random.SeedSequence(int(key_seed)).generate_state(2)
    axes = selection.sun_axes(scene.weather.sun_direction)
    bundle, lists = _gather(sensors, world, rotation, motion)
    view = imaging.look(world, bundle, lists, axes, num_images=int(starts[-2]))
    casters = selection.shadow_candidates(
      world.solids, axes, np.asarray(view.low), np.asarray(view.high)
    )
    pixels, *scan, labels = imaging.finish(
      world, view, bundle.spread, casters, *limits, keys
    )
    pixels, labels = np.stack(pixels, -1), [np.asarray(x) for x in labels]
    frame = {'intrinsics': cameras['image'].intrinsics}
    for i, name in enumerate([*cameras, 'scan']):
      part, tiles = slice(starts[i], starts[i + 1]), sensors[i].tiles
      frame[f'{name}_semantic'] = tiles.untile(labels[0][part])
      frame[f'{name}_instance'] = tiles.untile(labels[1][part])
      if name in cameras:
        frame[name] = tiles.untile(pixels[part])
        mount = name.replace('image', 'camera') + '_from_lidar'
        frame[mount] = cameras[name].camera_from_lidar
    tiles = sensors[-1].tiles
    frame['scan_range'], frame['scan_intensity'] = map(tiles.untile, scan)
    return frame

  return render
