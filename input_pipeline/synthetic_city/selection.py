# SPDX-License-Identifier: Apache-2.0
"""Which shapes and roads a sensor may see: the renderer's work on the host.

Positions become float32 only here, after the ego position was subtracted in
float64. A tile of neighbouring rays spans an interval of azimuth and one of
slope (z over horizontal distance); so does each shape, seen from the sensor.
The tile's candidates are the shapes whose two intervals overlap its own,
nearest first. Shadow rays are parallel, so there the intervals are those of a
projection along the sun.
"""

from typing import NamedTuple

import numpy as np

from input_pipeline.synthetic_city import patterns
from input_pipeline.synthetic_city import primitives as primitives_lib
from input_pipeline.synthetic_city import raycast
from input_pipeline.synthetic_city import terrain

Array = patterns.Array

MAX_SOLIDS = 512
MAX_ROADS = 24
ANCHOR = 16.0  # metres; every texture cell of the ground divides it
_MARGIN = 2e-3  # radians, for edges of tiles that bulge between samples


class Coats(NamedTuple):
  """How the N selected shapes look and what they are.

  Attributes:
    material: [N] int32.
    color: [3, N], or its three components.
    reflectivity: [N].
    seed: [N] uint32.
    semantic: [N] int32.
    instance: [N] int32.
  """

  material: Array
  color: Array | patterns.Vector
  reflectivity: Array
  seed: Array
  semantic: Array
  instance: Array


class Roads(NamedTuple):
  """The R nearest road segments, relative to the ego position.

  Attributes:
    start: [R, 2] metres.
    heading: [R, 2] unit vector from start to end.
    length: [R] metres.
    half_width: [R] metres; very negative on the padding.
    pavement_width: [R] metres.
    zebra: [R] metres along the segment, negative for none.
    anchor: [2] ego position relative to the nearest multiple of ANCHOR.
    cell: [2] int32, that multiple.
    seed: uint32.
  """

  start: Array
  heading: Array
  length: Array
  half_width: Array
  pavement_width: Array
  zebra: Array
  anchor: Array
  cell: Array
  seed: Array | np.uint32


def select(
  shapes: primitives_lib.Primitives,
  position: np.ndarray,
  reach: float,
  limit: int = MAX_SOLIDS,
) -> tuple[raycast.Solids, Coats]:
  """The shapes that matter around a position.

  Args:
    shapes: of the scene, world frame.
    position: [3] float64, the ego position; becomes the origin.
    reach: metres; what lies farther is left out.
    limit: the static number of shapes; beyond it those go first whose
      distance is greatest relative to the root of their size.

  Returns:
    Solids and coats of numpy arrays with `limit` columns; `mask` of the solids
    is false on the padding.
  """
  extent = np.asarray(shapes.half_size, np.float64)
  radius = np.hypot(extent[:, 0], extent[:, 1])
  offset = shapes.center[:, :2] - position[:2]
  distance = np.hypot(offset[:, 0], offset[:, 1]) - radius
  rows = np.flatnonzero(distance < reach)
  if rows.size > limit:
    size = np.maximum(radius[rows], extent[rows, 2])
    rank = np.maximum(distance[rows], 0.0) / np.sqrt(size + 0.5)
    rows = np.sort(rows[np.argpartition(rank, limit)[:limit]])
  pad = limit - rows.size

  def column(values, fill=0, dtype=np.float32):
    return np.pad(values[rows].astype(dtype), (0, pad), constant_values=fill)

  center = shapes.center - position
  yaw, kind = column(shapes.yaw, dtype=np.float64), column(shapes.kind)
  half = [column(np.maximum(extent[:, i], 1e-3), 1) for i in range(3)]
  solids = raycast.Solids(
    center=np.stack([column(center[:, i], 1e6) for i in range(3)]),
    half_size=np.stack(half),
    cos=np.cos(yaw).astype(np.float32),
    sin=np.sin(yaw).astype(np.float32),
    gable=(kind == primitives_lib.PRISM).astype(np.float32),
    quadric=(kind >= primitives_lib.CYLINDER).astype(np.float32),
    round=(kind == primitives_lib.ELLIPSOID).astype(np.float32),
    mask=np.arange(limit) < rows.size,
  )
  return solids, Coats(
    material=column(shapes.material, dtype=np.int32),
    color=np.stack([column(shapes.color[:, i]) for i in range(3)]),
    reflectivity=column(shapes.reflectivity),
    seed=column(shapes.seed, dtype=np.uint32),
    semantic=column(shapes.semantic, dtype=np.int32),
    instance=column(shapes.instance, dtype=np.int32),
  )


def select_ground(
  ground: primitives_lib.Ground, position: np.ndarray, limit: int = MAX_ROADS
) -> tuple[terrain.Terrain, Roads]:
  """The terrain and the nearest roads, relative to the ego position."""
  wave = np.asarray(ground.wave, np.float64)
  angle = wave @ position[:2] + ground.phase
  height = terrain.Terrain(
    amplitude=np.asarray(ground.amplitude, np.float32),
    wave=(wave / (2 * np.pi)).astype(np.float32),
    phase=np.mod(angle / (2 * np.pi), 1.0).astype(np.float32),
    base=position[2].astype(np.float32),
  )
  start = np.asarray(ground.start, np.float64) - position[:2]
  along = np.asarray(ground.end, np.float64) - position[:2] - start
  length = np.maximum(np.linalg.norm(along, axis=-1), 1e-6)
  heading = along / length[:, None]
  station = np.clip(-(start * heading).sum(-1), 0.0, length)
  distance = np.linalg.norm(start + station[:, None] * heading, axis=-1)
  rows = np.argsort(distance - ground.half_width, kind='stable')[:limit]
  pad = limit - rows.size

  def column(values, fill=0.0):
    width = ((0, pad),) + ((0, 0),) * (values.ndim - 1)
    return np.pad(values[rows].astype(np.float32), width, constant_values=fill)

  cell = np.round(position[:2] / ANCHOR)
  return height, Roads(
    start=column(start, 1e6),
    heading=column(heading),
    length=column(length),
    half_width=column(ground.half_width, -1e6),
    pavement_width=column(ground.pavement_width),
    zebra=column(ground.zebra, -1.0),
    anchor=(position[:2] - cell * ANCHOR).astype(np.float32),
    cell=cell.astype(np.int32),
    seed=np.uint32(ground.seed),
  )


def _wrap(angle: np.ndarray) -> np.ndarray:
  return angle - 2 * np.pi * np.round(angle / (2 * np.pi))


def _windows(solids: raycast.Solids, origin: np.ndarray, slack: float):
  """Azimuth (middle, half), slope (low, high), nearest distance of shapes."""
  center = solids.center - np.asarray(origin, np.float32)[:, None]
  hx, hy, hz = np.asarray(solids.half_size) + np.float32(slack)
  x, y, z = center
  azimuth = np.arctan2(y, x)
  corner_x, corner_y = [], []
  for i, j in ((1, 1), (1, -1), (-1, -1), (-1, 1)):
    corner_x.append(x + solids.cos * (i * hx) - solids.sin * (j * hy))
    corner_y.append(y + solids.sin * (i * hx) + solids.cos * (j * hy))
  corner_x, corner_y = np.stack(corner_x), np.stack(corner_y)
  bearing = np.arctan2(x * corner_y - y * corner_x, x * corner_x + y * corner_y)
  low, high = bearing.min(0), bearing.max(0)
  own_x = np.abs(solids.cos * x + solids.sin * y) - hx
  own_y = np.abs(solids.cos * y - solids.sin * x) - hy
  nearest = np.hypot(np.maximum(own_x, 0.0), np.maximum(own_y, 0.0))
  farthest = np.sqrt((corner_x**2 + corner_y**2).max(0))
  inside = nearest < 0.05
  half = np.where(inside, 4.0, (high - low) / 2 + _MARGIN)
  middle = azimuth + (low + high) / 2
  near, far = np.maximum(nearest, 0.05), np.maximum(farthest, 0.05)
  top, bottom = z + hz, z - hz
  slope_low = bottom / np.where(bottom < 0, near, far) - _MARGIN
  slope_high = top / np.where(top > 0, near, far) + _MARGIN
  gap = np.maximum(np.maximum(bottom, -top), 0.0)
  return middle, half, slope_low, slope_high, np.hypot(nearest, gap)


def _lists(
  overlap: np.ndarray, near: np.ndarray, limit: int
) -> raycast.Candidates:
  """Rows of `overlap` [T, N] as lists; columns are in order of `near` [N].

  Beyond `limit` the farthest are left out.
  """
  tile, shape = np.nonzero(overlap)
  total = overlap.sum(1)
  slot = np.arange(tile.size) - np.repeat(np.cumsum(total) - total, total)
  keep = slot < limit
  tile, shape, slot = tile[keep], shape[keep], slot[keep]
  index = np.zeros((overlap.shape[0], limit), np.int32)
  index[tile, slot] = shape
  bound = np.full(index.shape, terrain.INFINITE, np.float32)
  bound[tile, slot] = near[shape]
  count = np.minimum(total, limit).astype(np.int32)
  return raycast.Candidates(index, bound, count)


def candidates(
  solids: raycast.Solids,
  origin: np.ndarray,
  outline: np.ndarray,
  reach: float,
  slack: float = 0.0,
) -> raycast.Candidates:
  """Lists of what the tiles of a sensor may hit.

  Args:
    solids: the shapes (numpy).
    origin: [3] where the rays start, relative to the ego position.
    outline: [T, E, 3] directions on the outline of each tile, world-aligned;
      a tile spans less than half a turn.
    reach: metres; shapes wholly beyond are left out.
    slack: metres by which ray origins may differ from `origin`.

  Returns:
    The lists, at most `raycast.MAX_CANDIDATES` long; beyond, the farthest
    shapes of the tile are left out.
  """
  middle, half, low, high, near = _windows(solids, origin, slack)
  order = np.argsort(near, kind='stable')
  order = order[solids.mask[order] & (near[order] < reach)]
  azimuth = np.arctan2(outline[..., 1], outline[..., 0])
  spread = _wrap(azimuth - azimuth[:, :1])
  left, right = spread.min(1), spread.max(1)
  center = azimuth[:, 0] + (left + right) / 2
  slope = outline[..., 2] / np.hypot(outline[..., 0], outline[..., 1])
  away = np.abs(_wrap(middle[order] - center[:, None]))
  overlap = away <= half[order] + ((right - left) / 2)[:, None]
  overlap &= low[order] <= slope.max(1, keepdims=True)
  overlap &= high[order] >= slope.min(1, keepdims=True)
  lists = _lists(overlap, near[order], raycast.MAX_CANDIDATES)
  row = np.append(order, 0).astype(np.int32)  # an empty order pads with 0
  return lists._replace(index=row[lists.index])


def sun_axes(sun: np.ndarray) -> np.ndarray:
  """[3, 3] orthonormal rows: two across the sun's direction, then itself."""
  sun = np.asarray(sun, np.float32) / max(float(np.linalg.norm(sun)), 1e-6)
  across = np.cross(sun, (0.0, 0.0, 1.0))
  if np.linalg.norm(across) < 1e-3:
    across = np.array([1.0, 0.0, 0.0])
  across = across / np.linalg.norm(across)
  return np.stack([across, np.cross(sun, across), sun]).astype(np.float32)


def shadow_candidates(
  solids: raycast.Solids, axes: np.ndarray, low: np.ndarray, high: np.ndarray
) -> raycast.Candidates:
  """Lists of what may stand between the sun and the points of each tile.

  Args:
    solids: the shapes (numpy).
    axes: [3, 3] of `sun_axes`.
    low: [T, 3] least coordinates of the tile's points along the axes; above
      `high` where the tile has no point in the light.
    high: [T, 3] greatest.

  Returns:
    The lists; bounds of distance are such that only tiles wholly in shadow
    stop early.
  """
  center = axes @ solids.center
  side_x = np.abs(axes[:, :1] * solids.cos + axes[:, 1:2] * solids.sin)
  side_y = np.abs(axes[:, 1:2] * solids.cos - axes[:, :1] * solids.sin)
  hx, hy, hz = solids.half_size
  extent = side_x * hx + side_y * hy + np.abs(axes[:, 2:]) * hz + 0.05
  overlap = solids.mask & (low[:, :1] <= high[:, :1])
  for axis in range(3):
    overlap &= center[axis] + extent[axis] >= low[:, axis : axis + 1]
  for axis in range(2):
    overlap &= center[axis] - extent[axis] <= high[:, axis : axis + 1]
  far = np.full(center.shape[1], 1e9, np.float32)
  return _lists(overlap, far, 2 * raycast.MAX_CANDIDATES)
