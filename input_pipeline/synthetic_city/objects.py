# SPDX-License-Identifier: Apache-2.0
"""Objects with names: ellipsoids, categories and captions of a frame."""

from typing import NamedTuple

import numpy as np

from input_pipeline.synthetic_city import assembly
from input_pipeline.synthetic_city import drive as drives
from input_pipeline.synthetic_city import primitives
from input_pipeline.synthetic_city import town as towns
from input_pipeline.synthetic_city import vehicles

_ROUND = 0.1  # metres; thinner ellipsoids are no use to a solver


class Objects(NamedTuple):
  """K objects around the vehicle, nearest first.

  Attributes:
    instance: [K] int32, as in the labels of pixels and points.
    category: [K] str, such as 'building', 'tree', 'car'.
    caption: [K] str, a noun phrase with the object's attributes and its place
      as seen from the vehicle: 'a red van parked on the right'.
    center: [K, 3] float64, of the ellipsoid, world frame, metres.
    semi_axes: [K, 3] float64, metres, along the object's own x, y and z.
    yaw: [K] float64, of the object's x axis, radians.
    moving: [K] bool.
  """

  instance: np.ndarray
  category: np.ndarray
  caption: np.ndarray
  center: np.ndarray
  semi_axes: np.ndarray
  yaw: np.ndarray
  moving: np.ndarray


def objects_at(
  town: towns.Town, drive: drives.Drive, frame: int, radius: float = 60.0
) -> Objects:
  """The named objects whose ellipsoid's centre is within `radius` metres.

  The ellipsoid is inscribed in the bounding box of all the object's
  primitives. Whether it can be seen is for the renderer's instance labels
  to say.

  Args:
    town: the town of the drive.
    drive: the drive.
    frame: 0..F-1.
    radius: metres, measured on the ground.
  """
  scene = drives.scene_at(town, drive, frame, radius + 30)
  table = scene.primitives
  instance, center, semi_axes, yaw = ellipsoids(table)
  pose = drives.world_from_lidar(drive, frame)
  local = (center - pose[:3, 3]) @ pose[:3, :3]
  distance = np.hypot(local[:, 0], local[:, 1])
  order = np.argsort(distance, kind='stable')
  order = order[distance[order] < radius]
  category, description = _names(town, drive, instance[order])
  moving = _moving(table, instance[order])
  captions = [
    _caption(*row, float(drive.weather.autumn), float(drive.weather.snow))
    for row in zip(
      instance[order], category, description, moving, local[order], strict=True
    )
  ]
  return Objects(
    instance[order],
    category,
    np.array(captions, dtype=np.str_),
    center[order],
    semi_axes[order],
    yaw[order],
    moving,
  )


def ellipsoids(
  table: primitives.Primitives,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """The ellipsoid of each instance of a table of primitives.

  Its axes are those of the instance's first primitive.

  Returns:
    instance [K] ascending, center [K, 3], semi_axes [K, 3], yaw [K].
  """
  named = np.flatnonzero(table.instance > 0)
  table = assembly.take(table, named)
  instance, first, row = np.unique(
    table.instance, return_index=True, return_inverse=True
  )
  yaw = table.yaw[first].astype(np.float64)
  origin = table.center[first]
  corners = assembly.footprint_corners(table) - origin[row][:, None, :2]
  cos, sin = np.cos(yaw)[row][:, None], np.sin(yaw)[row][:, None]
  local = np.stack(
    [
      cos * corners[..., 0] + sin * corners[..., 1],
      cos * corners[..., 1] - sin * corners[..., 0],
    ],
    -1,
  )
  low = np.full((len(instance), 3), np.inf)
  high = -low
  height = table.center[:, 2] - origin[row][:, 2]
  half = table.half_size[:, 2]
  below = np.concatenate([local.min(1), (height - half)[:, None]], -1)
  above = np.concatenate([local.max(1), (height + half)[:, None]], -1)
  np.minimum.at(low, row, below)
  np.maximum.at(high, row, above)
  middle = (low + high) / 2
  cos, sin = np.cos(yaw), np.sin(yaw)
  center = origin + np.stack(
    [
      cos * middle[:, 0] - sin * middle[:, 1],
      sin * middle[:, 0] + cos * middle[:, 1],
      middle[:, 2],
    ],
    -1,
  )
  return instance, center, np.maximum((high - low) / 2, _ROUND), yaw


def _names(town, drive, instance):
  """Categories and descriptions of instances [K]."""
  tables = (
    town.things, drive.parked_fleet.things, drive.movers.fleet.things
  )  # fmt: skip
  known = np.concatenate([t.instance for t in tables])
  place = np.searchsorted(known, instance)  # each table begins after the last
  category = np.concatenate([t.category for t in tables])[place]
  return category, np.concatenate([t.description for t in tables])[place]


def _moving(table, instance):
  moving = np.unique(table.instance[vehicles.is_moving(table.semantic)])
  return np.isin(instance, moving)


def _caption(instance, category, description, moving, local, autumn, snow):
  """A noun phrase of what, how and where."""
  words = [_with_article(str(description))]
  if category == 'tree' and 'fir' not in description:
    if snow > 0.3:
      words.append('covered with snow')
    elif autumn > 0.4:
      words.append('with yellow leaves')
  if instance >= vehicles.FIRST_INSTANCE:
    walks = category == 'pedestrian'
    verb = 'walking' if walks else 'driving' if moving else 'parked'
    words.append(verb)
  return ' '.join((*words, _where(local)))


def _with_article(description: str) -> str:
  return ('an ' if description[0] in 'aeiou' else 'a ') + description


def _where(local: np.ndarray) -> str:
  """Place relative to the vehicle: x forward, y left."""
  x, y = local[:2]
  side = 'left' if y > 0 else 'right'
  if abs(y) < 0.25 * abs(x):
    return 'ahead' if x > 0 else 'behind'
  return f'on the {side}' if x > -2 else f'behind on the {side}'
