# SPDX-License-Identifier: Apache-2.0
"""What the camera and the LiDAR of the embedded town see.

The host lists what each tile of rays may hit, the device casts and says where
the sun may shine, the host lists what may shadow that, the device shades.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline.synthetic_city import imaging
from input_pipeline.synthetic_city import patterns
from input_pipeline.synthetic_city import primitives as primitives_lib
from input_pipeline.synthetic_city import raycast
from input_pipeline.synthetic_city import rig
from input_pipeline.synthetic_city import selection
from input_pipeline.synthetic_city import shading

Array = patterns.Array

CAMERA_REACH = 200.0  # metres, beyond which only the ground is drawn
_SWEEP = 0.1  # seconds per turn of the LiDAR
_BEAM = 1.5e-3  # radians, divergence of a pulse


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


def _make_imager(camera: rig.Camera) -> _Sensor:
  grid = rig.camera_directions(camera)
  row, column = camera.shape[0] // 2, camera.shape[1] // 2
  spread = float(np.linalg.norm(grid[row, column + 1] - grid[row, column]))
  mount = camera.camera_from_lidar
  origin = -mount[:3, :3].T @ mount[:3, 3]
  return _Sensor(_tiles(grid, camera.tile), origin, CAMERA_REACH, spread)


def _make_scanner(lidar: rig.Lidar) -> _Sensor:
  grid = rig.scan_directions(lidar.elevations, lidar.azimuths)
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
  setup: str = 'kitti',
  plain: bool = False,
  yaws: Sequence[float] = (),
) -> Callable[..., dict[str, np.ndarray]]:
  """Makes the function that renders one frame.

  Args:
    size: of rig.SIZES.
    camera: of rig.CAMERAS.
    setup: of rig.SETUPS.
    plain: images without textures, shadows and noise, see `imaging.finish`.
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
    InputError: for an unknown size, camera or setup.
  """
  optics = rig.find_setup(setup, camera).optics
  cameras = {'image': rig.find_camera(size, camera, setup)}
  cameras |= {
    f'image_{i}': rig.make_camera(size, yaw, optics)
    for i, yaw in enumerate(yaws, 1)
  }
  lidar = rig.make_lidar(size, setup)
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
      world, view, bundle.spread, casters, *limits, keys, plain=plain
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
