# SPDX-License-Identifier: Apache-2.0
"""Cars, vans, buses and pedestrians, as parts in their own frames.

A movable's frame has its origin on the ground below its middle, x forward, y
left and z up. The same fleet is placed again at every moment of a drive.
"""

from typing import NamedTuple

import numpy as np

from input_pipeline.synthetic_city import assembly
from input_pipeline.synthetic_city import labels as labels_lib
from input_pipeline.synthetic_city import primitives

FIRST_INSTANCE = 1 << 20  # of movables; towns number their things below

# Length, width, height; cabin length, its shift forward, and sill height.
_CARS = {
  'small car': (3.7, 1.68, 1.48, 2.3, -0.25, 0.86),
  'hatchback': (4.2, 1.78, 1.46, 2.5, -0.35, 0.88),
  'saloon': (4.7, 1.82, 1.43, 2.4, -0.15, 0.86),
  'estate car': (4.7, 1.82, 1.48, 3.0, -0.6, 0.88),
  'off-road car': (4.6, 1.90, 1.74, 2.9, -0.5, 1.02),
}
MODELS = (*_CARS, 'van', 'bus', 'pedestrian')
CARS = tuple(_CARS)
_PAINTS = {
  'white': (0.75, 0.75, 0.74),
  'black': (0.025, 0.025, 0.03),
  'silver': (0.5, 0.51, 0.52),
  'grey': (0.20, 0.21, 0.22),
  'red': (0.48, 0.03, 0.03),
  'blue': (0.04, 0.11, 0.40),
  'dark blue': (0.03, 0.05, 0.13),
  'green': (0.04, 0.20, 0.08),
  'yellow': (0.72, 0.52, 0.04),
  'orange': (0.68, 0.24, 0.03),
}
_PAINT_ODDS = np.array([5, 4, 4, 4, 2.5, 2.5, 2, 1, 0.6, 0.6]) / 26.2
_RUBBER = (0.02, 0.02, 0.022)


class Fleet(NamedTuple):
  """M movables made of N parts.

  Attributes:
    parts: N primitives with `center` and `yaw` in the movables' own frames.
    owner: [N] int, the movable of each part.
    size: [M, 3] float64, length, width and height, metres.
    things: M names; `things.instance` matches `parts.instance`.
  """

  parts: primitives.Primitives
  owner: np.ndarray
  size: np.ndarray
  things: assembly.Things


class _Workshop:
  """Collects the parts of a fleet: an Assembly on flat ground at the origin."""

  def __init__(self, first_instance: int):
    flat = primitives.Ground(
      *(np.zeros((0, 2)),) * 2, *(np.zeros(0, np.float32),) * 3,
      np.zeros(1), np.zeros((1, 2)), np.zeros(1), np.uint32(0),
    )  # fmt: skip
    self.assembly = assembly.Assembly(flat, first_instance)
    self.owner: list[int] = []
    self.size: list[tuple[float, float, float]] = []

  def add(self, kind, x, base, size, *, y=0.0, **look):
    self.owner.append(len(self.size) - 1)
    self.assembly.add(kind, (x, y), base, size, yaw=0.0, **look)


def build_fleet(
  models: list[str],
  rng: np.random.Generator,
  *,
  parked: bool,
  first_instance: int = FIRST_INSTANCE,
) -> Fleet:
  """Builds movables with drawn colours and sizes.

  Args:
    models: M names of MODELS, at least one.
    rng: source of randomness.
    parked: parked ones have no lights and the class `car_parked`.
    first_instance: of the first movable; the others follow.
  """
  shop = _Workshop(first_instance)
  for model in models:
    name = tuple(_PAINTS)[rng.choice(len(_PAINTS), p=_PAINT_ODDS)]
    color = np.clip(_PAINTS[name] * rng.uniform(0.8, 1.2, 3), 0.01, 0.85)
    if model == 'pedestrian':
      _pedestrian(shop, name, color, rng)
    elif model == 'bus':
      _bus(shop, name, color)
    elif model == 'van':
      _van(shop, name, color, rng, parked)
    else:
      _car(shop, model, name, color, rng, parked)
  return Fleet(
    shop.assembly.primitives(),
    np.array(shop.owner),
    np.array(shop.size),
    shop.assembly.things(),
  )


def _car(shop, model, name, color, rng, parked):
  length, width, high, cabin, shift, sill = _CARS[model]
  length, high = (length, high) * rng.uniform(0.96, 1.04, 2)
  shop.size.append((length, width, high))
  look = {
    'semantic': 'car_parked' if parked else 'car_moving',
    'instance': shop.assembly.thing('car', f'{name} {model}'),
  }
  box = primitives.BOX
  shop.add(
    box, 0, 0.22, (length, width, sill - 0.22), material='plain', color=color,
    **look,
  )  # fmt: skip
  # The cabin's windows are its upper half: the lower hides in the body.
  low = 2 * sill - high
  shop.add(
    box, shift, low, (cabin, width - 0.16, high - low), material='car_body',
    color=color, **look,
  )  # fmt: skip
  _wheels(shop, length, width, look)
  if not parked:
    _lights(shop, length, width, 0.62, look)


def _wheels(shop, length, width, look):
  for x in (0.31 * length, -0.31 * length):
    shop.add(
      primitives.BOX, x, 0.0, (0.62, width + 0.02, 0.6), material='plain',
      color=_RUBBER, **look,
    )  # fmt: skip


def _lights(shop, length, width, high, look):
  for x, color in ((0.5, (0.8, 0.8, 0.7)), (-0.5, (0.5, 0.03, 0.02))):
    for y in (-0.38, 0.38):
      shop.add(
        primitives.BOX, x * length, high, (0.06, 0.3, 0.15), y=y * width,
        material='lamp', color=color, **look,
      )  # fmt: skip


def _van(shop, name, color, rng, parked):
  length, width, high = rng.uniform(4.8, 5.5), 1.96, rng.uniform(1.95, 2.4)
  shop.size.append((length, width, high))
  look = {
    'semantic': 'car_parked' if parked else 'van',
    'instance': shop.assembly.thing('van', f'{name} van'),
  }
  panel = rng.random() < 0.5  # no windows in the cargo space
  shop.add(
    primitives.BOX, -0.45, 0.28, (length - 0.9, width, high - 0.28),
    material='plain' if panel else 'car_body', color=color, **look,
  )  # fmt: skip
  shop.add(
    primitives.BOX, length / 2 - 0.6, 0.28, (1.2, width - 0.06, 0.85),
    material='plain', color=color, **look,
  )  # fmt: skip
  if panel:
    shop.add(
      primitives.BOX, length / 2 - 1.5, high - 0.85, (1.3, width + 0.01, 0.65),
      material='glass', color=(0.05, 0.06, 0.07), **look,
    )  # fmt: skip
  _wheels(shop, length, width, look)
  if not parked:
    _lights(shop, length, width, 0.75, look)


def _bus(shop, name, color):
  length, width, high = 11.0, 2.5, 3.0
  shop.size.append((length, width, high))
  look = {
    'semantic': 'bus',
    'instance': shop.assembly.thing('bus', f'{name} bus'),
  }
  shop.add(
    primitives.BOX, 0, 0.32, (length, width, high - 0.32), material='car_body',
    color=color, **look,
  )  # fmt: skip
  for x in (0.3 * length, -0.26 * length):
    shop.add(
      primitives.BOX, x, 0.0, (0.95, width + 0.02, 0.92), material='plain',
      color=_RUBBER, **look,
    )  # fmt: skip
  _lights(shop, length, width, 0.7, look)


def _pedestrian(shop, name, color, rng):
  high = rng.uniform(1.45, 1.9)
  shop.size.append((0.5, 0.5, high))
  look = {
    'semantic': 'pedestrian',
    'instance': shop.assembly.thing('pedestrian', f'pedestrian in {name}'),
  }
  shop.add(
    primitives.CYLINDER, 0, 0.0, (0.3, 0.3, 0.5 * high), material='cloth',
    color=rng.uniform(0.02, 0.18, 3), **look,
  )  # fmt: skip
  shop.add(
    primitives.CYLINDER, 0, 0.45 * high, (0.46, 0.46, 0.4 * high),
    material='cloth', color=color, **look,
  )  # fmt: skip
  shop.add(
    primitives.ELLIPSOID, 0, 0.84 * high, (0.22, 0.22, 0.16 * high),
    material='plain', color=np.array([0.5, 0.36, 0.28]) * rng.uniform(0.4, 1.2),
    **look,
  )  # fmt: skip


def place(
  fleet: Fleet, position: np.ndarray, heading: np.ndarray, shown: np.ndarray
) -> primitives.Primitives:
  """The parts in the world frame.

  Args:
    fleet: M movables.
    position: [M, 3] float64, of their origins.
    heading: [M] float64, radians.
    shown: [M] bool, the others are left out.
  """
  rows = np.flatnonzero(shown[fleet.owner])
  owner = fleet.owner[rows]
  yaw = heading[owner]
  cos, sin = np.cos(yaw), np.sin(yaw)
  local = fleet.parts.center[rows]
  center = position[owner]
  center[:, 0] += cos * local[:, 0] - sin * local[:, 1]
  center[:, 1] += sin * local[:, 0] + cos * local[:, 1]
  center[:, 2] += local[:, 2]
  return assembly.take(fleet.parts, rows)._replace(
    center=center, yaw=yaw.astype(np.float32)
  )


def is_moving(semantic: np.ndarray) -> np.ndarray:
  """Which classes [...] are of things that move."""
  return np.isin(semantic, labels_lib.MOVING)
