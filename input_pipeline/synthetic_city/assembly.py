# SPDX-License-Identifier: Apache-2.0
"""Puts primitives together into things with a name and an instance number."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from input_pipeline.synthetic_city import labels as labels_lib
from input_pipeline.synthetic_city import primitives

# Of LiDAR returns, per material.
_REFLECTIVITY = {
  'plain': 0.35,
  'facade': 0.4,
  'brick_facade': 0.3,
  'roof': 0.25,
  'bark': 0.3,
  'leaves': 0.45,
  'hedge': 0.45,
  'car_body': 0.55,
  'glass': 0.12,
  'metal': 0.5,
  'wood_fence': 0.35,
  'cloth': 0.4,
  'sign': 0.95,
  'lamp': 0.4,
}


class Things(NamedTuple):
  """Names of the instances of a table of primitives, one row each.

  Attributes:
    instance: [K] int32, ascending.
    category: [K] str, such as 'building', 'tree', 'van'.
    description: [K] str, a noun phrase without article.
  """

  instance: np.ndarray
  category: np.ndarray
  description: np.ndarray


class Assembly:
  """Collects primitives row by row, in metres above the terrain."""

  def __init__(self, ground: primitives.Ground, first_instance: int):
    self.ground = ground
    self._next = first_instance
    self._rows: list[tuple] = []
    self._things: list[tuple[int, str, str]] = []

  def thing(self, category: str, description: str) -> int:
    """Registers a new thing and returns its instance number."""
    instance = self._next
    self._next += 1
    self._things.append((instance, category, description))
    return instance

  def add(
    self,
    kind: int,
    xy: Sequence[float] | np.ndarray,
    base: float,
    size: Sequence[float] | np.ndarray,
    *,
    yaw: float,
    material: str,
    color: Sequence[float] | np.ndarray,
    semantic: str,
    instance: int,
    seed: int = 0,
  ) -> None:
    """Adds a shape of full `size` (length, width, height) at world height.

    Args:
      kind: BOX, PRISM, CYLINDER or ELLIPSOID.
      xy: world position of its centre.
      base: world z of its lowest point.
      size: full extents along its own axes.
      yaw: radians.
      material: a name of primitives.MATERIALS.
      color: albedo, 0..1.
      semantic: a name of `labels.CLASSES`.
      instance: a number from `thing`.
      seed: of the texture; 0 takes it from the instance.
    """
    length, width, tall = size
    self._rows.append(
      (
        kind,
        (xy[0], xy[1], base + tall / 2),
        (length / 2, width / 2, tall / 2),
        yaw,
        primitives.MATERIALS.index(material),
        tuple(color),
        _REFLECTIVITY[material],
        (seed or instance * 2654435761) % 2**32,
        labels_lib.CLASSES.index(semantic),
        instance,
      )
    )

  def height(self, xy: npt.ArrayLike) -> np.ndarray:
    """Terrain height at xy [..., 2]."""
    return primitives.height(self.ground, np.asarray(xy, np.float64))

  def primitives(self) -> primitives.Primitives:
    """Everything added so far."""
    columns = zip(*self._rows, strict=True)
    types = (
      np.int8,
      np.float64,
      np.float32,
      np.float32,
      np.int16,
      np.float32,
      np.float32,
      np.uint32,
      np.uint8,
      np.int32,
    )
    return primitives.Primitives(
      *(np.array(c, t) for c, t in zip(columns, types, strict=True))
    )

  def things(self) -> Things:
    """The names of everything registered so far."""
    instance, category, description = zip(*self._things, strict=True)
    return Things(
      np.array(instance, np.int32), np.array(category), np.array(description)
    )


def take(
  table: primitives.Primitives, rows: np.ndarray
) -> primitives.Primitives:
  """The primitives of these rows (indices or mask)."""
  return primitives.Primitives(*(column[rows] for column in table))


def concatenate(*tables: primitives.Primitives) -> primitives.Primitives:
  """The primitives of several tables, one after the other."""
  return primitives.Primitives(
    *(np.concatenate(columns) for columns in zip(*tables, strict=True))
  )


def footprint_corners(table: primitives.Primitives) -> np.ndarray:
  """World xy of the corners of the bounding rectangles, [N, 4, 2]."""
  corner = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
  local = corner * table.half_size[:, None, :2]
  cos, sin = np.cos(table.yaw)[:, None], np.sin(table.yaw)[:, None]
  turned = np.stack(
    [
      cos * local[..., 0] - sin * local[..., 1],
      sin * local[..., 0] + cos * local[..., 1],
    ],
    -1,
  )
  return table.center[:, None, :2] + turned
