# SPDX-License-Identifier: Apache-2.0
"""A town from a seed: streets, lots with houses, gardens and furniture."""

from typing import Any
from typing import NamedTuple

import numpy as np

from input_pipeline.synthetic_city import assembly
from input_pipeline.synthetic_city import buildings
from input_pipeline.synthetic_city import furniture
from input_pipeline.synthetic_city import plants
from input_pipeline.synthetic_city import primitives
from input_pipeline.synthetic_city import roads

HEADROOM = 4.3  # metres above the road that stay free of static things
_SLOT = 6.2  # metres of kerb per parked car
# Tags keep the draws of the parts of a town apart, so that a change to one
# of them leaves the others as they were.
_ROADS, _TERRAIN, _LOTS, _STREETS, _YARDS = range(5)


class Town(NamedTuple):
  """Everything that stays where it is.

  Attributes:
    seed: what it was made from.
    ground: terrain and roads.
    static: all primitives that do not move, in no particular order.
    things: what they are called.
    network: streets, lanes and junctions.
    slots: [S, 3] float64, parking places along the kerbs: world x, y and yaw
      of a car parked in the direction of its lane.
  """

  seed: int
  ground: primitives.Ground
  static: primitives.Primitives
  things: assembly.Things
  network: roads.Network
  slots: np.ndarray


def make_town(seed: int) -> Town:
  """Makes the town of a seed; equal seeds make equal towns."""

  def rng(tag):
    return np.random.default_rng([seed, tag])

  network = roads.make_network(rng(_ROADS))
  ground = roads.make_ground(network, rng(_TERRAIN))
  parts = assembly.Assembly(ground, first_instance=1)
  footprints = _settle(parts, network, rng(_LOTS))
  furniture.furnish(parts, network, rng(_STREETS))
  _yards(parts, network, footprints, rng(_YARDS))
  static = parts.primitives()
  blocked = on_road(ground, static)
  removed = np.isin(static.instance, np.unique(static.instance[blocked]))
  static = assembly.take(static, ~removed)
  things = parts.things()
  keep = np.isin(things.instance, static.instance)
  things = assembly.Things(*(column[keep] for column in things))
  return Town(seed, ground, static, things, network, _slots(network))


def on_road(
  ground: primitives.Ground, table: primitives.Primitives
) -> np.ndarray:
  """Which primitives [N] bool stand or hang low over a carriageway.

  Corners and middles of the sides are tested; what hangs higher than HEADROOM
  may reach over the road.
  """
  xy = table.center[:, :2]
  bottom = table.center[:, 2] - table.half_size[:, 2]
  low = bottom < primitives.height(ground, xy) + HEADROOM
  reach = np.hypot(table.half_size[:, 0], table.half_size[:, 1])
  near = low & (kerb_margin(ground, xy) < reach)
  rows = np.flatnonzero(near)
  corners = assembly.footprint_corners(assembly.take(table, rows))
  middles = (corners + np.roll(corners, 1, axis=1)) / 2
  # Round shapes do not reach the corners of their bounding box.
  boxy = table.kind[rows] <= primitives.PRISM
  outline = np.where(boxy[:, None, None], corners, middles)
  points = np.concatenate([outline, middles, xy[rows, None]], axis=1)
  margin = kerb_margin(ground, points.reshape(-1, 2))
  result = np.zeros(len(xy), bool)
  # Tree crowns may hang over parked cars.
  leafy = table.kind[rows] == primitives.ELLIPSOID
  slack = np.where(leafy, -2.0, 0.02)
  result[rows] = margin.reshape(len(rows), -1).min(1) < slack
  return result


def kerb_margin(ground: primitives.Ground, xy: np.ndarray) -> np.ndarray:
  """Signed distance [N] of points [N, 2] to the kerb, in bounded memory."""
  chunks = np.array_split(xy, max(1, len(xy) // 1024))
  return np.concatenate([roads.kerb_distance(ground, c) for c in chunks])


class _Footprints:
  """Rectangles of the houses built so far, for finding free ground."""

  def __init__(self):
    self.boxes = np.zeros((0, 5))  # x, y, half width, half depth, yaw

  def free(self, box: np.ndarray) -> bool:
    """Whether a rectangle overlaps none, by separating axes."""
    span = np.hypot(box[2], box[3])
    reach = np.hypot(self.boxes[:, 2], self.boxes[:, 3]) + span
    offset = self.boxes[:, :2] - box[:2]
    near = (offset**2).sum(-1) < reach**2
    if not near.any():
      return True
    others, offset = self.boxes[near], offset[near]
    yaw = others[:, 4] - box[4]
    cos, sin = np.abs(np.cos(yaw)), np.abs(np.sin(yaw))
    own = _turn(offset, -box[4])
    theirs = _turn(offset, -others[:, 4])
    half, width, depth = box[2:4], others[:, 2], others[:, 3]
    apart = np.abs(own[:, 0]) > half[0] + cos * width + sin * depth
    apart |= np.abs(own[:, 1]) > half[1] + sin * width + cos * depth
    apart |= np.abs(theirs[:, 0]) > width + cos * half[0] + sin * half[1]
    apart |= np.abs(theirs[:, 1]) > depth + sin * half[0] + cos * half[1]
    return bool(apart.all())

  def add(self, box: np.ndarray) -> None:
    self.boxes = np.concatenate([self.boxes, box[None]])


def _turn(xy: np.ndarray, angle: np.ndarray) -> np.ndarray:
  cos, sin = np.cos(angle), np.sin(angle)
  return np.stack(
    [cos * xy[:, 0] - sin * xy[:, 1], sin * xy[:, 0] + cos * xy[:, 1]], -1
  )


_OUTLINE = np.array(
  [[x, y] for x in (-1, -0.5, 0, 0.5, 1) for y in (-1, 0, 1)], float
)


def _settle(
  parts: assembly.Assembly, network: roads.Network, rng: np.random.Generator
) -> _Footprints:
  """Builds houses along both sides of every street."""
  footprints = _Footprints()
  sides = [(e, s) for e in range(len(network.edges)) for s in (1, -1)]
  for i in rng.permutation(len(sides)):
    edge, side = sides[i]
    if network.style[edge] != roads.PARK:
      _settle_side(parts, network, footprints, edge, side, rng)
    else:
      _meadow(parts, network, edge, side, rng)
  return footprints


def _settle_side(parts, network, footprints, edge, side, rng):
  """Lines one side of a street with houses, gardens in front."""
  style = int(network.style[edge])
  length = roads.arc_lengths(network.curves[edge])[-1]
  uniform = rng.uniform(0, 1)
  character = _front(style, rng)
  cursor = rng.uniform(2, 9)
  while cursor < length - 6:
    house = buildings.draw(style, rng, uniform)
    # A smaller house may fit where a large one does not.
    for _ in range(3):
      middle = cursor + house.width / 2
      out = network.pavement_width[edge] + house.setback + house.depth / 2
      here = furniture.spot(network, edge, side, min(middle, length), out)
      box = np.array(
        [*here.xy, house.width / 2 - 0.05, house.depth / 2, here.yaw]
      )
      fits = middle + house.width / 2 < length and footprints.free(box)
      if fits and _off_road(parts.ground, box, network.pavement_width[edge]):
        buildings.build(parts, house, here.xy, here.yaw, rng)
        footprints.add(box)
        _garden(parts, network, edge, side, cursor, house, character, rng)
        cursor += house.width + house.gap
        break
      house = buildings.draw(style, rng, uniform)
    else:
      cursor += 2.5


def _off_road(ground, box, margin):
  points = box[:2] + _turn(_OUTLINE * box[2:4], box[4])
  near = np.hypot(*(ground.start - box[:2]).T) < 110
  local = ground._replace(
    start=ground.start[near], end=ground.end[near],
    half_width=ground.half_width[near],
  )  # fmt: skip
  return roads.kerb_distance(local, points).min() > min(margin, 1.4) - 0.02


def _front(style, rng):
  """What divides the gardens of a street side from its pavement, if any."""
  if style == roads.VILLAS:
    kind = rng.choice(['hedge', 'wooden fence', 'metal fence', 'wall', 'none'])
    share = rng.uniform(0.6, 1.0)
  elif style == roads.INDUSTRY:
    kind, share = rng.choice(['metal fence', 'wall', 'none']), 0.9
  elif style == roads.BLOCKS:
    kind, share = rng.choice(['hedge', 'none', 'none']), 0.6
  else:
    kind, share = 'none', 0.0
  tall = rng.uniform(0.8, 1.3) if style != roads.INDUSTRY else 2.2
  return str(kind), share, tall + 0.5 * (rng.random() < 0.3)


_BARRIER_COLORS = {
  'hedge': (0.07, 0.17, 0.05),
  'wooden fence': (0.36, 0.25, 0.15),
  'metal fence': (0.25, 0.27, 0.27),
  'wall': (0.42, 0.25, 0.18),
}


def _garden(parts, network, edge, side, start, house, character, rng):
  """Front garden of the house whose lot begins `start` metres along."""
  kind, share, tall = character
  pavement = network.pavement_width[edge]

  def at(x, out):
    return furniture.spot(network, edge, side, start + x, out).xy

  lot = house.width + house.gap
  if rng.random() < 0.12:  # a neighbour who does it his own way
    kind = str(rng.choice(['hedge', 'wooden fence', 'none']))
  if house.setback > 1.5 and kind != 'none' and rng.random() < share:
    gate = rng.uniform(0.3, 0.8) * lot
    wide = 1.2 if house.style == roads.VILLAS else 2.5
    color = np.multiply(_BARRIER_COLORS[kind], rng.uniform(0.8, 1.3))
    height = tall * rng.uniform(0.85, 1.2)
    for a, b in ((-0.2, gate - wide), (gate + wide, lot - 0.6)):
      if b - a > 1.2:
        ends = at(a, pavement + 0.4), at(b, pavement + 0.4)
        plants.barrier(parts, *ends, kind, height, color)
  if house.style == roads.OLD_TOWN:
    return
  # Trees in the gap and in front; conifers belong to gardens.
  rate = {roads.VILLAS: 1.3, roads.BLOCKS: 1.4}.get(house.style, 0.4)
  for _ in range(rng.poisson(rate)):
    species = plants.SPECIES[rng.integers(len(plants.SPECIES))]
    if house.gap > 4 and rng.random() < 0.6:
      x, out = house.width + house.gap / 2, rng.uniform(1, 9)
    elif house.setback > 3.5:
      x, out = rng.uniform(0, house.width), 0.45 * house.setback
    else:
      continue
    plants.plant(
      parts, at(x, pavement + out), species, rng, rng.uniform(0.5, 1.0)
    )
  if house.gap > 4 and rng.random() < 0.4:  # between neighbours
    x = house.width + house.gap * rng.uniform(0.3, 0.9)
    ends = at(x, pavement + 1), at(x, pavement + rng.uniform(6, 12))
    kind = str(rng.choice(['hedge', 'wooden fence']))
    plants.barrier(parts, *ends, kind, 1.5, _BARRIER_COLORS[kind])


def _meadow(parts, network, edge, side, rng):
  """Groups of trees and a low hedge instead of houses."""
  length = roads.arc_lengths(network.curves[edge])[-1]
  pavement = network.pavement_width[edge]

  def at(x, out):
    return furniture.spot(network, edge, side, x, pavement + out).xy

  for _ in range(rng.poisson(length / 7)):
    species = plants.SPECIES[rng.integers(len(plants.SPECIES))]
    place = at(rng.uniform(8, length - 8), 2 + rng.gamma(2.0, 6.0))
    plants.plant(parts, place, species, rng, rng.uniform(0.7, 1.4))
  for start in np.arange(14, length - 24, rng.uniform(14, 30)):
    if rng.random() < 0.5:
      ends = at(start, 0.6), at(start + rng.uniform(6, 12), 0.6)
      plants.barrier(
        parts, *ends, 'hedge', rng.uniform(0.6, 1.1), _BARRIER_COLORS['hedge']
      )


def _yards(
  parts: assembly.Assembly,
  network: roads.Network,
  footprints: _Footprints,
  rng: np.random.Generator,
) -> None:
  """Trees and sheds inside the blocks and around the town."""
  low, high = network.nodes.min(0) - 70, network.nodes.max(0) + 70
  places = rng.uniform(low, high, (int(np.prod(high - low) / 420), 2))
  margin = kerb_margin(parts.ground, places)
  # What nobody sees from a street is not worth its primitives.
  seen = (margin > 9) & (margin < rng.uniform(20, 70, len(places)))
  places = places[seen]
  for place in places:
    yaw = rng.uniform(0, np.pi)
    size = rng.uniform(2.2, 4.5, 2)
    shed = rng.random() < 0.22
    half = size / 2 if shed else np.array([1.8, 1.8])
    if not footprints.free(np.array([*place, *half, yaw])):
      continue
    if not shed:
      species = plants.SPECIES[rng.integers(len(plants.SPECIES))]
      plants.plant(parts, place, species, rng, rng.uniform(0.7, 1.4))
      continue
    instance = parts.thing('shed', 'small wooden shed')
    look: dict[str, Any] = {
      'yaw': yaw,
      'semantic': 'building',
      'instance': instance,
    }
    ground = float(parts.height(place))
    parts.add(
      primitives.BOX, place, ground - 0.3, (*size, 2.5), material='wood_fence',
      color=(0.3, 0.2, 0.13), **look,
    )  # fmt: skip
    parts.add(
      primitives.PRISM, place, ground + 2.2, (*(size + 0.4), 0.9),
      material='roof', color=(0.16, 0.15, 0.15), **look,
    )  # fmt: skip


def _slots(network: roads.Network) -> np.ndarray:
  """Parking places beside both lanes, clear of the junctions."""
  rows = []
  for edge, curve in enumerate(network.curves):
    length = roads.arc_lengths(curve)[-1]
    ends = network.reach[network.edges[edge]] + 5.0
    for side, allowed in zip((1, -1), network.parking[edge], strict=True):
      if not allowed:
        continue
      distance = np.arange(ends[0], length - ends[1], _SLOT)
      point, tangent = roads.along(curve, distance)
      out = side * (network.half_width[edge] - 1.02)
      xy = point + out * roads.left_of(tangent)
      forward = -side * tangent
      yaw = np.arctan2(forward[:, 1], forward[:, 0])
      rows.append(np.concatenate([xy, yaw[:, None]], -1))
  return np.concatenate(rows)
