# SPDX-License-Identifier: Apache-2.0
"""From where a mesh is rendered: poses of a file, or all over its ground.

A CSV file has a header and the columns x, y (or easting, northing) and perhaps
name, z, a direction, and others that are left alone. Directions, degrees:

  heading           clockwise from north, as a compass has it
  yaw               counter-clockwise from east; either of the two
  pitch, roll       upwards; clockwise as the camera sees it; 0 if missing
  qx, qy, qz, qw    or a quaternion, world_from_camera (camera x right, y down,
                    z forward)

Without z a camera stands on the ground, and without a direction it looks all
around. A file of another suffix holds lines of TUM's format, timestamp tx ty tz
qx qy qz qw, world_from_camera.

The ground is the surface seen from above without what is narrower than
`WIDEST_BUILDING` and has steep sides: roofs, trees and bridges. The mesh has to
have ground between its buildings.
"""

import collections
import pathlib
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import transform

from i2ploc.errors import InputError
from i2ploc.geometry import trajectories
from i2ploc.photos import csv_tables
from i2ploc.photos import listing
from i2ploc.photos import positions
from input_pipeline import schema
from input_pipeline.readers import mesh_files
from input_pipeline.readers import mesh_rays
from input_pipeline.readers import tum_files

_ANGLES = ('yaw', 'heading', 'pitch', 'roll')
_QUATERNION = ('qx', 'qy', 'qz', 'qw')
COLUMNS = {
  **{key: positions.COLUMNS[key] for key in ('name', 'x', 'y', 'z', 'heading')},
  **{key: (key,) for key in ('yaw', 'pitch', 'roll', *_QUATERNION)},
}
_UNIT_TOLERANCE = 1e-2
WIDEST_BUILDING = 80.0  # metres
_CELL = 2.0  # metres, of the grid on which the ground is found
_GROWTH = 4.0  # metres, of the window's radius from step to step
_STEEPEST = 0.3  # slope of streets
_KERB = 0.5  # metres, of steps that belong to the ground
_MAX_CELLS = 5e7
_ABOVE_GROUND = 1.0  # metres, what still is ground: kerbs, stairs, slopes
_CLEARANCE = 1.0  # metres, free ahead of a camera that is put somewhere
_ABOVE_MESH = 10.0  # metres, where rays start down


class Poses(NamedTuple):
  """N cameras.

  Attributes:
    names: [N] str, unique; '' where a file has none.
    timestamp: [N] float64, seconds; NaN is unknown.
    position: [N, 3] float64, metres, x east, y north, z up; z may be NaN.
    rotation: [N, 3, 3] float64, world_from_camera; NaN is unknown.
  """

  names: np.ndarray
  timestamp: np.ndarray
  position: np.ndarray
  rotation: np.ndarray


def level_rotations(yaw: np.ndarray) -> np.ndarray:
  """world_from_camera [N, 3, 3] of level cameras; yaw [N] radians from east."""
  zero = np.zeros_like(yaw)
  return rotations(np.stack([yaw, zero, zero], axis=-1))


def rotations(angles: np.ndarray) -> np.ndarray:
  """world_from_camera of cameras with these angles.

  Args:
    angles: [N, 3] radians: yaw from east counter-clockwise, pitch upwards, roll
      clockwise as the camera sees it.

  Returns:
    [N, 3, 3] float64.
  """
  signs = np.array([1, -1, 1])  # the body's y axis is to the left
  body = transform.Rotation.from_euler('ZYX', angles * signs).as_matrix()
  return body @ schema.CAMERA_AXES[:3, :3].T


def read_poses(path: pathlib.Path) -> Poses:
  """Reads poses; see the module.

  Raises:
    MissingFileError: there is no such file.
    InputError: a header or a line that is not as the module says.
  """
  if path.suffix.lower() == '.csv':
    return _read_csv(path)
  times, values = tum_files.read_trajectory(path)
  rotation = transform.Rotation.from_quat(values[:, 3:]).as_matrix()
  return Poses(np.full(len(times), ''), times, values[:, :3], rotation)


def _read_csv(path: pathlib.Path) -> Poses:
  table = csv_tables.read_table(path, COLUMNS, 'poses')
  has = {*table.columns}
  turned, aimed = has & {*_QUATERNION}, has & {*_ANGLES}
  if not {'x', 'y'} <= has or not table.rows:
    raise InputError(
      f'{path}: the first line is {",".join(table.header)!r}, expected columns'
      ' x and y (metres), and poses below.'
    )
  if len(turned) not in (0, 4) or (turned and aimed):
    raise InputError(
      f'{path}: columns {sorted(turned | aimed)}; expected qx,qy,qz,qw, or yaw'
      ' or heading with pitch and roll, or no direction.'
    )
  if {'yaw', 'heading'} <= has or (aimed and not aimed & {'yaw', 'heading'}):
    raise InputError(
      f'{path}: columns {sorted(aimed)}; expected one of yaw (from east) and'
      ' heading (from north).'
    )
  wanted = ['x', 'y', *sorted(aimed), *sorted(turned)]
  columns = {key: [] for key in ('z', *wanted)}
  for line, cells in table.rows.items():
    for key in wanted:
      text = table.cell(cells, key)
      value = csv_tables.number(text)
      if not np.isfinite(value):
        raise InputError(
          f'{path}, line {line}: {key} is {text!r}, expected a number.'
        )
      columns[key].append(value)
    columns['z'].append(csv_tables.number(table.cell(cells, 'z')))
  values = {key: np.array(column) for key, column in columns.items()}
  names = [
    csv_tables.photo_name(table.cell(cells, 'name'))
    for cells in table.rows.values()
  ]
  counts = collections.Counter(name for name in names if name)
  if twice := [name for name, count in counts.items() if count > 1]:
    raise InputError(f'{path}: names come twice: {listing.examples(twice)}.')
  position = np.stack([values['x'], values['y'], values['z']], axis=-1)
  trajectories.check_places(position, str(path))
  for name, clockwise in ('heading', True), ('yaw', False):
    if name in values:
      trajectories.check_degrees(position, values[name], str(path), clockwise)
  return Poses(
    np.array(names, str),
    np.full(len(names), np.nan),
    position,
    _csv_rotations(path, values),
  )


def _csv_rotations(path, values) -> np.ndarray:
  zero = np.zeros(len(values['x']))
  if 'qw' in values:
    quaternion = np.stack([values[key] for key in _QUATERNION], axis=-1)
    norm = np.linalg.norm(quaternion, axis=-1)
    bad = np.flatnonzero(np.abs(norm - 1) > _UNIT_TOLERANCE)
    if len(bad):
      raise InputError(
        f'{path}: pose {bad[0] + 1} has a quaternion of length '
        f'{norm[bad[0]]:.4g}, expected 1.'
      )
    return transform.Rotation.from_quat(quaternion).as_matrix()
  if 'heading' in values:
    yaw = positions.yaw_from_compass(values['heading'])
  elif 'yaw' in values:
    yaw = np.radians(values['yaw'])
  else:
    return np.full((len(zero), 3, 3), np.nan)
  tilt = [np.radians(values.get(key, zero)) for key in ('pitch', 'roll')]
  return rotations(np.stack([yaw, *tilt], axis=-1))


class Ground(NamedTuple):
  """Heights of the ground in cells.

  Attributes:
    corner: [2] float64, x and y of the first cell's middle, metres.
    cell: the side of a cell, metres.
    height: [R, C] float64 along y and x, metres; below roofs and in holes that
      of the nearest ground.
  """

  corner: np.ndarray
  cell: float
  height: np.ndarray

  def at(self, xy: np.ndarray) -> np.ndarray:
    """Heights [N] of places [N, 2]; NaN outside of the cells."""
    column, row = np.round((xy - self.corner) / self.cell).astype(np.int64).T
    rows, columns = self.height.shape
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    row, column = np.where(inside, row, 0), np.where(inside, column, 0)
    return np.where(inside, self.height[row, column], np.nan)


def _bounds(mesh: mesh_files.Mesh) -> np.ndarray:
  """[2, 3] float64, the lowest and the highest corner in the world."""
  used = mesh.vertices[np.unique(mesh.faces)].astype(np.float64)
  return np.stack([used.min(0), used.max(0)]) + mesh.origin


def _seen_from_above(caster, xy, start) -> np.ndarray:
  origins = np.concatenate([xy, np.full((len(xy), 1), start)], axis=-1)
  down = np.broadcast_to([0.0, 0.0, -1.0], origins.shape)
  distance = caster.cast(origins, down).distance.astype(np.float64)
  return np.where(np.isfinite(distance), start - distance, np.nan)


def find_ground(mesh: mesh_files.Mesh, caster: mesh_rays.Caster) -> Ground:
  """The ground of a mesh; see the module.

  Raises:
    InputError: the mesh is too large to be in metres, or only has walls.
  """
  low, high = _bounds(mesh)
  size = high - low
  counts = np.floor(size[:2] / _CELL).astype(np.int64) + 1
  if counts.prod() > _MAX_CELLS:
    raise InputError(
      f'The mesh is {size[0]:.0f} x {size[1]:.0f} m, too large for poses all'
      ' over its ground. Is it in metres? Else cut it, or give data.poses=FILE.'
    )
  # Cells in the middle of what a row of them leaves.
  corner = (low + high)[:2] / 2 - (counts - 1) / 2 * _CELL
  x, y = (corner[i] + _CELL * np.arange(counts[i]) for i in range(2))
  xy = np.stack(np.meshgrid(x, y), axis=-1)
  surface = _seen_from_above(caster, xy.reshape(-1, 2), high[2] + _ABOVE_MESH)
  surface = surface.reshape(xy.shape[:2])
  found = _is_ground(surface)
  if not found.any():
    raise InputError(
      'The mesh has no surface that is seen from above. Is its z up? Else set'
      ' data.up.'
    )
  nearest = ndimage.distance_transform_edt(
    ~found, return_distances=False, return_indices=True
  )
  return Ground(corner, _CELL, surface[tuple(nearest)])


def _is_ground(surface: np.ndarray) -> np.ndarray:
  """Where a surface [R, C], NaN where there is none, is ground: bool [R, C].

  Zhang et al., 'A progressive morphological filter for removing nonground
  measurements', 2003: with a growing window, what the opening lowers at once by
  more than a steep slope explains is no ground.
  """
  there = ~np.isnan(surface)
  found = there
  steps = int(np.ceil(WIDEST_BUILDING / 2 / _GROWTH))
  for radius in range(1, steps + 1):
    window = 2 * radius * round(_GROWTH / _CELL) + 1
    lowest = ndimage.minimum_filter(np.where(there, surface, np.inf), window)
    lowest = np.where(np.isposinf(lowest), -np.inf, lowest)
    opened = np.where(there, ndimage.maximum_filter(lowest, window), np.nan)
    found = found & (surface - opened <= _STEEPEST * _GROWTH + _KERB)
    surface = opened
  return found


def all_over(
  mesh: mesh_files.Mesh,
  caster: mesh_rays.Caster,
  *,
  spacing: float,
  headings: int,
  height: float,
) -> Poses:
  """Level cameras on a grid over the ground, looking all around.

  Places below roofs, trees and bridges, on them, and less than 1 m from what a
  camera looks at are left out.

  Args:
    mesh: to be seen.
    caster: of this mesh.
    spacing: between places, metres.
    headings: directions at each place, evenly from east.
    height: above ground, metres.

  Raises:
    InputError: no place is free, or the mesh is too large.
  """
  low, high = _bounds(mesh)
  if (high - low)[:2].prod() > _MAX_CELLS * spacing**2:
    raise InputError(f'spacing={spacing:g} m is too fine for this mesh.')
  ground = find_ground(mesh, caster)
  counts = np.floor((high - low)[:2] / spacing).astype(np.int64) + 1
  first = (low + high)[:2] / 2 - (counts - 1) / 2 * spacing
  x, y = (first[i] + spacing * np.arange(counts[i]) for i in range(2))
  xy = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
  surface = _seen_from_above(caster, xy, high[2] + _ABOVE_MESH)
  free = np.abs(surface - ground.at(xy)) <= _ABOVE_GROUND
  places = np.concatenate([xy, surface[:, None] + height], axis=-1)[free]
  rotation = level_rotations(2 * np.pi * np.arange(headings) / headings)
  ahead = np.broadcast_to(rotation[:, :, 2], (len(places), headings, 3))
  hits = caster.cast(np.repeat(places, headings, axis=0), ahead.reshape(-1, 3))
  nearest = hits.distance.reshape(-1, headings).min(axis=1, initial=np.inf)
  places = places[nearest >= _CLEARANCE]
  if not len(places):
    raise InputError(
      f'No place on the ground of the mesh is free, of {len(xy)} every'
      f' {spacing:g} m. Is the mesh in metres, and its z up? Set data.up or a'
      ' finer data.spacing, or give data.poses=FILE.'
    )
  count = len(places) * headings
  return Poses(
    np.full(count, ''),
    np.full(count, np.nan),
    np.repeat(places, headings, axis=0),
    np.tile(rotation, (len(places), 1, 1)),
  )


def completed(
  poses: Poses,
  mesh: mesh_files.Mesh,
  caster: mesh_rays.Caster,
  *,
  headings: int,
  height: float,
) -> Poses:
  """Poses of a file with heights and directions where it has none.

  Args:
    poses: of the file.
    mesh: to be seen.
    caster: of this mesh.
    headings: directions of a camera without one, evenly from east; its name
      gets their degrees.
    height: above ground of a camera without one, metres.

  Raises:
    InputError: a camera without height is outside of the mesh.
  """
  position = poses.position.copy()
  flying = np.flatnonzero(np.isnan(position[:, 2]))
  if len(flying):
    below = find_ground(mesh, caster).at(position[flying, :2])
    position[flying, 2] = below + height
    if outside := flying[np.isnan(below)].tolist():
      raise InputError(
        f'{len(outside)} of {len(position)} poses have no z and lie outside of'
        f' the mesh: {listing.examples([i + 1 for i in outside])}. Are x and y'
        ' in its frame? Else set data.origin.'
      )
  if not len(position) or not np.isnan(poses.rotation).any():
    return poses._replace(position=position)
  turns = np.arange(headings) / headings
  names = [
    f'{name}_{360 * turn:03.0f}' if name else ''
    for name in poses.names
    for turn in turns
  ]
  return Poses(
    np.array(names, str),
    np.repeat(poses.timestamp, headings),
    np.repeat(position, headings, axis=0),
    np.tile(level_rotations(2 * np.pi * turns), (len(position), 1, 1)),
  )
