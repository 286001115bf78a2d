# SPDX-License-Identifier: Apache-2.0
"""A drive through a town: trajectory, weather, traffic and parked cars.

Usage:
  city = town.make_town(seed=7)
  mapping = drive.make_drive(city, seed=1)
  query = drive.make_drive(city, seed=2, follow=mapping)
  opposite = drive.make_drive(city, seed=3, follow=mapping, reverse=True)
  scene = drive.scene_at(city, query, frame=12)
  pose = drive.world_from_lidar(query, frame=12)
"""

from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from input_pipeline.synthetic_city import assembly
from input_pipeline.synthetic_city import primitives
from input_pipeline.synthetic_city import roads
from input_pipeline.synthetic_city import routes
from input_pipeline.synthetic_city import town as towns
from input_pipeline.synthetic_city import traffic as others
from input_pipeline.synthetic_city import vehicles
from input_pipeline.synthetic_city import weather as skies

LIDAR_HEIGHT = 1.73  # metres above the road, as on KITTI's car
SPACING = 2.5  # metres between frames
_MARGIN = 160.0  # metres of route before the first and after the last frame
_ROUTE, _STYLE, _WEATHER, _PARKED, _MOVERS, _NIGHT = range(10, 16)


class Drive(NamedTuple):
  """F frames of one drive.

  Attributes:
    town_seed: of the town.
    seed: of the drive.
    route: [K] int, half-edges of the town's network, with spare streets
      before the first and after the last frame.
    span: (first, last) metres of the frames along the route's path.
    position: [F, 3] float64, the point of the road below the LiDAR.
    heading: [F] float64, radians, unwrapped.
    pitch: [F] float64, radians, nose up.
    roll: [F] float64, radians, left side up.
    time: [F] float64, seconds from the start.
    condition: one of weather.CONDITIONS, or weather.NEUTRAL.
    weather: light and air.
    parked: primitives of the parked cars, world frame.
    parked_fleet: their names.
    movers: everything that moves.
  """

  town_seed: int
  seed: int
  route: np.ndarray
  span: tuple[float, float]
  position: np.ndarray
  heading: np.ndarray
  pitch: np.ndarray
  roll: np.ndarray
  time: np.ndarray
  condition: str
  weather: primitives.Weather
  parked: primitives.Primitives
  parked_fleet: vehicles.Fleet
  movers: others.Movers


def make_drive(
  town: towns.Town,
  seed: int,
  num_frames: int = 400,
  spacing: float = SPACING,
  *,
  follow: Drive | None = None,
  reverse: bool = False,
  condition: str | None = None,
  traffic: float = 1.0,
) -> Drive:
  """Makes the drive of a seed; equal arguments make equal drives.

  Args:
    town: where.
    seed: draws the route (unless `follow`), speed, lane offset, weather,
      parked cars and movers.
    num_frames: F.
    spacing: metres between frames.
    follow: a drive of the same town whose route is driven again.
    reverse: drive the route of `follow` in the opposite direction, in the
      other lane, starting where `follow` ended.
    condition: one of weather.CONDITIONS instead of a drawn one.
    traffic: density of movers; 1 is a normal day, 3 is heavy.

  Raises:
    InputError: there is nothing to reverse, or the followed drive is of
      another town or too short.
  """

  def rng(tag):
    return np.random.default_rng([town.seed, seed, tag])

  wanted = (num_frames - 1) * spacing
  if follow is None:
    if reverse:
      raise InputError('reverse=True needs follow=, the drive to reverse')
    route = routes.make_route(
      town.network, rng(_ROUTE), wanted + 2 * _MARGIN + 120
    )
  else:
    if follow.town_seed != town.seed:
      raise InputError(
        f'found a drive of town {follow.town_seed} to follow in town '
        f'{town.seed}, expected one of the same town'
      )
    route = routes.reverse_route(follow.route) if reverse else follow.route
  style = rng(_STYLE)
  path = routes.lane_path(
    town.network, route, routes.LANE_OFFSET + style.uniform(-0.2, 0.2)
  )
  path = _wobble(path, style)
  first = _first_metre(path, follow, reverse, style.uniform(0, spacing))
  last = first + wanted
  if last > len(path) * routes.PATH_STEP - 20:
    raise InputError(
      f'found a route with {len(path) * routes.PATH_STEP - 20 - first:.0f} m '
      f'to drive, expected {wanted:.0f} m for {num_frames} frames every '
      f'{spacing} m; follow a longer drive or ask for fewer frames'
    )
  arc = first + spacing * np.arange(num_frames)
  time = _times(arc, style)
  ego = _ego(path, arc, time)
  ground = town.ground
  xy, heading = _on_path(path, arc)
  pitch, roll = _tilt(ground, xy, heading, time, style)
  condition, weather = skies.draw(rng(_WEATHER), condition)
  fleet, parked = others.park(town.slots, ground, xy, rng(_PARKED))
  movers = others.make_movers(
    town.network, ground, ego, route, rng(_MOVERS), traffic=traffic,
    first_instance=int(fleet.things.instance[-1]) + 1,
  )  # fmt: skip
  z = primitives.height(ground, xy)
  position = np.concatenate([xy, z[:, None]], -1)
  return Drive(
    town.seed, seed, route, (first, last), position, heading, pitch, roll,
    time, condition, weather, parked, fleet, movers,
  )  # fmt: skip


def at_night(drive: Drive) -> Drive:
  """The same drive among the same traffic, at night."""
  rng = np.random.default_rng([drive.town_seed, drive.seed, _NIGHT])
  condition, weather = skies.draw(rng, 'night')
  return drive._replace(condition=condition, weather=weather)


def alone(drive: Drive) -> Drive:
  """The same poses in neutral light, without cars, vans, buses, people."""
  movers = drive.movers._replace(active=np.zeros_like(drive.movers.active))
  return drive._replace(
    condition=skies.NEUTRAL,
    weather=skies.neutral(),
    parked=assembly.take(drive.parked, np.arange(0)),
    movers=movers,
  )


def _wobble(path: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Nobody keeps a lane to the centimetre."""
  arc = np.arange(len(path)) * routes.PATH_STEP
  phase = rng.uniform(0, 2 * np.pi, 2)
  aside = 0.05 * np.sin(arc / 17 + phase[0]) + 0.03 * np.sin(arc / 7 + phase[1])
  direction = others.headings(path)
  left = np.stack([-np.sin(direction), np.cos(direction)], -1)
  return path + aside[:, None] * left


def _first_metre(path, follow, reverse, shift) -> float:
  """Where along the path the first frame is."""
  if follow is None:
    return _MARGIN + shift
  # Turns to the left are longer than turns to the right, hence the search; a
  # later loop may pass the same place, hence its bounds.
  length = len(path) * routes.PATH_STEP
  expected = length - follow.span[1] if reverse else follow.span[0]
  arc = np.arange(0, length, routes.PATH_STEP)
  arc = arc[np.abs(arc - expected) < 60]
  end = follow.position[-1 if reverse else 0, :2]
  xy, _ = _on_path(path, arc)
  return float(arc[np.hypot(*(xy - end).T).argmin()] + shift)


def _times(arc: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Seconds of the frames, at 8 to 12 m/s."""
  base, phase = rng.uniform(9, 11), rng.uniform(0, 2 * np.pi)
  speed = base + 0.9 * np.sin(arc / 60 + phase)
  steps = np.diff(arc) * 2 / (speed[1:] + speed[:-1])
  return np.concatenate([[0.0], np.cumsum(steps)])


def _on_path(path, arc):
  index = arc / routes.PATH_STEP
  grid = np.arange(len(path))
  xy = np.stack([np.interp(index, grid, column) for column in path.T], -1)
  return xy, np.interp(index, grid, others.headings(path))


def _ego(path, arc, time) -> others.Ego:
  moments = np.arange(0, time[-1] + 2 * others.TIME_STEP, others.TIME_STEP)
  if len(time) > 1:
    metres = np.interp(moments, time, arc)
  else:
    metres = np.full(len(moments), arc[0])
  return others.Ego(path, moments, metres, *_on_path(path, metres))


def _tilt(ground, xy, heading, time, rng):
  """Pitch and roll [F]: the slope of the road and the springs of the car."""
  forward = np.stack([np.cos(heading), np.sin(heading)], -1)
  left = roads.left_of(forward)
  step = 1.3

  def slope(direction):
    ahead = primitives.height(ground, xy + step * direction)
    behind = primitives.height(ground, xy - step * direction)
    return np.arctan((ahead - behind) / (2 * step))

  phase = rng.uniform(0, 2 * np.pi, 4)
  sway = 0.004 * (np.sin(2.1 * time + phase[0]) + np.sin(5.3 * time + phase[1]))
  rock = 0.004 * (np.sin(1.7 * time + phase[2]) + np.sin(4.1 * time + phase[3]))
  return slope(forward) + sway, slope(left) + rock


def world_from_lidar(drive: Drive, frame: int) -> np.ndarray:
  """Pose [4, 4] float64 of the LiDAR (x forward, y left, z up) of a frame."""
  yaw, pitch, roll = (
    column[frame] for column in (drive.heading, drive.pitch, drive.roll)
  )
  cy, sy = np.cos(yaw), np.sin(yaw)
  cp, sp = np.cos(pitch), np.sin(pitch)
  cr, sr = np.cos(roll), np.sin(roll)
  turn = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
  nose_up = np.array([[cp, 0, -sp], [0, 1, 0], [sp, 0, cp]])
  left_up = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
  pose = np.eye(4)
  pose[:3, :3] = turn @ nose_up @ left_up
  pose[:3, 3] = drive.position[frame] + LIDAR_HEIGHT * pose[:3, 2]
  return pose


def scene_at(
  town: towns.Town, drive: Drive, frame: int, radius: float = 120.0
) -> primitives.Scene:
  """What surrounds the vehicle in a frame.

  Args:
    town: the town of the drive.
    drive: the drive.
    frame: 0..F-1.
    radius: metres; primitives that are farther away are left out.
  """
  here = drive.position[frame, :2]
  position, heading, active = drive.movers.at(drive.time[frame])
  near = ((position[:, :2] - here) ** 2).sum(-1) < radius**2
  moving = vehicles.place(drive.movers.fleet, position, heading, active & near)
  tables = [
    assembly.take(table, within(table, here, radius))
    for table in (town.static, drive.parked)
  ]
  return primitives.Scene(
    assembly.concatenate(*tables, moving), town.ground, drive.weather
  )


def within(
  table: primitives.Primitives, xy: np.ndarray, radius: float
) -> np.ndarray:
  """Indices of the primitives that reach into a circle around xy [2]."""
  offset = table.center[:, :2] - xy
  reach = radius + table.half_size[:, :2].max(1)
  return np.flatnonzero((offset**2).sum(-1) < reach**2)
