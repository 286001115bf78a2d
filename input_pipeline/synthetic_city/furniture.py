# SPDX-License-Identifier: Apache-2.0
"""What stands on the pavements: trees, lamps, signs, benches, bus stops."""

from typing import NamedTuple

import numpy as np

from input_pipeline.synthetic_city import assembly
from input_pipeline.synthetic_city import plants
from input_pipeline.synthetic_city import primitives
from input_pipeline.synthetic_city import roads

_DARK = (0.06, 0.07, 0.08)
_STEEL = (0.42, 0.43, 0.44)
# Per style: share of street sides with a row of trees.
_TREE_ROWS = (0.25, 0.5, 0.75, 0.3, 0.95)


class Spot(NamedTuple):
  """A place beside a street.

  Attributes:
    xy: [2], world.
    tangent: [2], unit, along the edge.
    inward: [2], unit, towards the carriageway.
  """

  xy: np.ndarray
  tangent: np.ndarray
  inward: np.ndarray

  @property
  def yaw(self) -> float:
    """Of the frame with x along the street and y towards it, radians."""
    return float(np.arctan2(-self.inward[0], self.inward[1]))

  def at(self, x: float, y: float) -> np.ndarray:
    """World xy of a point of that frame."""
    ahead = np.array([self.inward[1], -self.inward[0]])
    return self.xy + x * ahead + y * self.inward


def spot(
  network: roads.Network, edge: int, side: int, distance: float, out: float
) -> Spot:
  """The place `out` metres beyond the kerb.

  Args:
    network: the streets.
    edge: index.
    side: +1 left or -1 right of the edge.
    distance: metres along it.
    out: metres from the kerb, away from the road.
  """
  point, tangent = roads.along(
    network.curves[edge], np.asarray(distance, np.float64)
  )
  outward = side * roads.left_of(tangent)
  xy = point + (network.half_width[edge] + out) * outward
  return Spot(xy, tangent, -outward)


def furnish(
  parts: assembly.Assembly, network: roads.Network, rng: np.random.Generator
) -> None:
  """Sets up the pavements of all streets."""
  for edge, curve in enumerate(network.curves):
    length = roads.arc_lengths(curve)[-1]
    ends = network.reach[network.edges[edge]] + [1.0, -1.0]
    low, high = ends[0], length - ends[1] - 2.0
    _lamps(parts, network, edge, low, high, rng)
    for side in (1, -1):
      if rng.random() < _TREE_ROWS[network.style[edge]]:
        _trees(parts, network, edge, side, low, high, rng)
      _small_things(parts, network, edge, side, low, high, rng)
      # Signs face the traffic that arrives on this side: the right-hand lane.
      at = high if side < 0 else low
      _junction_sign(parts, spot(network, edge, side, at, 0.5), side, rng)


def _lamps(parts, network, edge, low, high, rng):
  old = network.style[edge] in (roads.OLD_TOWN, roads.PARK)
  spacing = rng.uniform(16, 24) if old else rng.uniform(24, 36)
  both = rng.random() < 0.3
  side = 1 if rng.random() < 0.5 else -1
  tall = rng.uniform(3.6, 4.6) if old else rng.uniform(6, 9)
  for distance in np.arange(low + rng.uniform(2, spacing), high, spacing):
    for s in (1, -1) if both else (side,):
      here = spot(network, edge, s, distance + rng.uniform(-1, 1), 0.4)
      _lamp(parts, here, tall, old)
    side = -side if rng.random() < 0.8 else side


def _lamp(parts, here, tall, old):
  instance = parts.thing('lamp', 'old street lamp' if old else 'street lamp')
  ground = float(parts.height(here.xy))
  look = {'instance': instance, 'semantic': 'pole', 'yaw': here.yaw}
  parts.add(
    primitives.CYLINDER, here.xy, ground - 0.2, (0.16, 0.16, tall + 0.2),
    material='metal', color=_DARK if old else _STEEL, **look,
  )  # fmt: skip
  if old:
    parts.add(
      primitives.ELLIPSOID, here.xy, ground + tall - 0.1, (0.42, 0.42, 0.6),
      material='lamp', color=(0.8, 0.75, 0.62), **look,
    )  # fmt: skip
    return
  parts.add(
    primitives.BOX, here.at(0, 0.9), ground + tall - 0.1, (0.09, 1.8, 0.09),
    material='metal', color=_STEEL, **look,
  )  # fmt: skip
  parts.add(
    primitives.BOX, here.at(0, 1.8), ground + tall - 0.2, (0.3, 0.8, 0.15),
    material='lamp', color=(0.8, 0.8, 0.75), **look,
  )  # fmt: skip


def _trees(parts, network, edge, side, low, high, rng):
  species = plants.SPECIES[rng.choice([0, 1, 2, 3, 5])]
  spacing = rng.uniform(6.5, 15)
  missing, wobble = rng.uniform(0, 0.4), rng.uniform(0, 1.5)
  age = rng.uniform(0.6, 1.2)
  out = min(0.7, 0.35 * network.pavement_width[edge])
  # Where cars may not park, crowns would reach into the lanes.
  age = age if network.half_width[edge] > 5.2 else min(age, 0.9)
  for distance in np.arange(low + rng.uniform(1, spacing), high, spacing):
    if rng.random() < missing:
      continue
    at = np.clip(distance + rng.uniform(-wobble, wobble), low, high)
    scale = age * rng.uniform(0.8, 1.15)
    plants.plant(
      parts, spot(network, edge, side, at, out).xy, species, rng, scale
    )


def _small_things(parts, network, edge, side, low, high, rng):
  back = network.pavement_width[edge] - 0.35
  style = network.style[edge]

  def somewhere(out):
    return spot(network, edge, side, rng.uniform(low + 1, high - 1), out)

  if rng.random() < 0.14:
    _bus_stop(parts, somewhere(back), rng)
  if style in (roads.OLD_TOWN, roads.PARK, roads.BLOCKS):
    for _ in range(rng.poisson(2.5 if style == roads.PARK else 0.6)):
      _bench(parts, somewhere(back), rng)
  for _ in range(rng.poisson(0.6)):
    _bin(parts, somewhere(0.5), rng)
  for _ in range(rng.poisson(0.5)):
    _cabinet(parts, somewhere(back), rng)
  for _ in range(rng.poisson(0.8)):
    _sign(parts, somewhere(0.35), rng)
  if style == roads.OLD_TOWN and rng.random() < 0.3:
    start = rng.uniform(low, high)
    for distance in np.arange(start, min(start + rng.uniform(6, 20), high), 2):
      _bollard(parts, spot(network, edge, side, distance, 0.25))


def _bus_stop(parts, here, rng):
  color = rng.uniform(0.1, 0.5, 3)
  instance = parts.thing('bus stop', 'bus stop with a glass shelter')
  ground = float(parts.height(here.xy))
  look = {'instance': instance, 'semantic': 'building', 'yaw': here.yaw}
  parts.add(
    primitives.BOX, here.at(0, -0.1), ground - 0.1, (3.8, 0.08, 2.4),
    material='glass', color=(0.3, 0.36, 0.38), **look,
  )  # fmt: skip
  parts.add(
    primitives.BOX, here.at(0, 0.3), ground + 2.3, (4.2, 1.3, 0.12),
    material='metal', color=color, **look,
  )  # fmt: skip
  parts.add(
    primitives.BOX, here.at(1.9, 0.25), ground - 0.1, (0.1, 0.8, 2.4),
    material='sign', color=rng.uniform(0.2, 0.8, 3), **look,
  )  # fmt: skip


def _bench(parts, here, rng):
  instance = parts.thing('bench', 'wooden bench')
  ground = float(parts.height(here.xy))
  color = np.array([0.30, 0.19, 0.10]) * rng.uniform(0.6, 1.4)
  look = {'instance': instance, 'semantic': 'fence', 'yaw': here.yaw}
  parts.add(
    primitives.BOX, here.xy, ground - 0.1, (1.8, 0.45, 0.57),
    material='wood_fence', color=color, **look,
  )  # fmt: skip
  parts.add(
    primitives.BOX, here.at(0, -0.2), ground + 0.4, (1.8, 0.08, 0.5),
    material='wood_fence', color=color, **look,
  )  # fmt: skip


def _bin(parts, here, rng):
  name, color = (
    ('green', (0.05, 0.22, 0.08)), ('yellow', (0.7, 0.55, 0.08)),
    ('grey', (0.25, 0.26, 0.27)), ('blue', (0.07, 0.15, 0.4)),
  )[rng.integers(4)]  # fmt: skip
  instance = parts.thing('bin', f'{name} bin')
  ground = float(parts.height(here.xy))
  parts.add(
    primitives.CYLINDER, here.xy, ground - 0.1, (0.5, 0.5, 1.1),
    yaw=here.yaw, material='plain', color=color, semantic='pole',
    instance=instance,
  )  # fmt: skip


def _cabinet(parts, here, rng):
  tall, wide = rng.uniform(1.0, 1.7), rng.uniform(0.7, 1.6)
  instance = parts.thing('cabinet', 'grey electrical cabinet')
  ground = float(parts.height(here.xy))
  parts.add(
    primitives.BOX, here.xy, ground - 0.1, (wide, 0.4, tall + 0.1),
    yaw=here.yaw, material='plain', color=np.full(3, rng.uniform(0.3, 0.55)),
    semantic='fence', instance=instance,
  )  # fmt: skip


def _bollard(parts, here):
  instance = parts.thing('bollard', 'dark bollard')
  parts.add(
    primitives.CYLINDER, here.xy, float(parts.height(here.xy)) - 0.1,
    (0.16, 0.16, 1.0), yaw=0.0, material='metal', color=_DARK,
    semantic='pole', instance=instance,
  )  # fmt: skip


_SIGNS = (
  ('red', (0.62, 0.05, 0.05), (0.65, 0.65)),
  ('blue', (0.05, 0.15, 0.55), (0.6, 0.6)),
  ('yellow', (0.75, 0.55, 0.06), (0.6, 0.6)),
  ('white', (0.75, 0.75, 0.75), (0.5, 0.7)),
  ('green', (0.05, 0.33, 0.15), (1.3, 0.4)),
)


def _sign(parts, here, rng, facing=None):
  name, color, (wide, tall) = _SIGNS[rng.integers(len(_SIGNS))]
  instance = parts.thing('sign', f'{name} road sign')
  ground = float(parts.height(here.xy))
  direction = here.tangent * np.sign(rng.uniform(-1, 1))
  direction = direction if facing is None else facing
  look = {
    'yaw': float(np.arctan2(direction[1], direction[0])),
    'instance': instance,
  }
  high = rng.uniform(2.1, 2.7)
  parts.add(
    primitives.CYLINDER, here.xy, ground - 0.2, (0.08, 0.08, high + tall + 0.2),
    material='metal', color=_STEEL, semantic='pole', **look,
  )  # fmt: skip
  parts.add(
    primitives.BOX, here.xy + 0.06 * direction, ground + high,
    (0.04, wide, tall), material='sign', color=color, semantic='sign', **look,
  )  # fmt: skip


def _junction_sign(parts, here, side, rng):
  """A sign or a traffic light, seen by those who arrive at the junction."""
  kind = rng.random()
  facing = -here.tangent if side < 0 else here.tangent
  if kind < 0.45:
    _sign(parts, here, rng, facing)
  elif kind < 0.7:
    instance = parts.thing('traffic light', 'traffic light')
    ground = float(parts.height(here.xy))
    look = {
      'yaw': float(np.arctan2(facing[1], facing[0])), 'instance': instance,
      'semantic': 'pole',
    }  # fmt: skip
    parts.add(
      primitives.CYLINDER, here.xy, ground - 0.2, (0.14, 0.14, 3.4),
      material='metal', color=_DARK, **look,
    )  # fmt: skip
    parts.add(
      primitives.BOX, here.xy + 0.15 * facing, ground + 2.4, (0.25, 0.32, 0.9),
      material='plain', color=_DARK, **look,
    )  # fmt: skip
    lit = ((0.75, 0.04, 0.03), (0.05, 0.6, 0.2))[rng.integers(2)]
    parts.add(
      primitives.ELLIPSOID, here.xy + 0.28 * facing,
      ground + (2.95 if lit[0] > 0.5 else 2.5), (0.1, 0.22, 0.22),
      material='lamp', color=lit, **look,
    )  # fmt: skip
