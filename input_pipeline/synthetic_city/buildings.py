# SPDX-License-Identifier: Apache-2.0
"""Houses: drawn from a district's style, then built from primitives.

A house has its own frame: x along the street, y towards the street, z from
its ground floor.
"""

from typing import NamedTuple

import numpy as np

from input_pipeline.synthetic_city import assembly
from input_pipeline.synthetic_city import primitives
from input_pipeline.synthetic_city import roads

_COLORS = {
  'white': (0.78, 0.77, 0.73),
  'cream': (0.74, 0.66, 0.48),
  'yellow': (0.72, 0.55, 0.22),
  'ochre': (0.58, 0.38, 0.16),
  'pink': (0.68, 0.42, 0.38),
  'green': (0.36, 0.47, 0.33),
  'blue': (0.34, 0.45, 0.58),
  'grey': (0.46, 0.46, 0.47),
  'brown': (0.30, 0.20, 0.13),
  'red': (0.46, 0.17, 0.12),
  'dark red': (0.33, 0.11, 0.08),
}
_PALETTES = {
  roads.OLD_TOWN: (
    'white',
    'cream',
    'yellow',
    'ochre',
    'pink',
    'green',
    'blue',
  ),
  roads.VILLAS: ('white', 'white', 'cream', 'yellow', 'grey', 'pink'),
  roads.BLOCKS: ('white', 'grey', 'cream', 'blue', 'ochre', 'green'),
  roads.INDUSTRY: ('grey', 'white', 'blue', 'green', 'brown'),
}
_BRICK = ('red', 'dark red', 'brown', 'ochre')
_ROOFS = (
  (0.36, 0.13, 0.08),
  (0.28, 0.10, 0.07),
  (0.12, 0.12, 0.13),
  (0.22, 0.18, 0.16),
  (0.42, 0.20, 0.12),
)
_FLOOR = 3.0


class House(NamedTuple):
  """What a house will be; metres.

  Attributes:
    style: index into roads.STYLES.
    noun: 'house', 'villa', 'apartment block', 'hall' or 'church'.
    width: along the street.
    depth: away from it.
    floors: number of storeys.
    wall: height of the walls.
    roof: 'gabled' (ridge along the street), 'cross' (gable to the street) or
      'flat'.
    rise: height of the roof.
    material: of the walls.
    color_name: of the walls.
    color: [3].
    roof_color: [3].
    setback: from the pavement to the wall.
    gap: to the next house.
  """

  style: int
  noun: str
  width: float
  depth: float
  floors: int
  wall: float
  roof: str
  rise: float
  material: str
  color_name: str
  color: np.ndarray
  roof_color: np.ndarray
  setback: float
  gap: float

  @property
  def description(self) -> str:
    """A noun phrase: height, colour, wall and roof."""
    size = 'tall' if self.wall > 11 else 'low' if self.wall < 4.5 else ''
    wall = {'brick_facade': 'brick', 'metal': 'metal'}.get(self.material, '')
    roof = 'a flat roof' if self.roof == 'flat' else 'a gabled roof'
    words = (size, self.color_name, wall, self.noun, 'with', roof)
    return ' '.join(word for word in words if word)


def draw(style: int, rng: np.random.Generator, uniform: float) -> House:
  """Draws a house of a style.

  Args:
    style: index into roads.STYLES, not PARK.
    rng: source of randomness.
    uniform: 0..1, how alike the houses of this street are: the draws of
      setback and gap shrink towards their means.
  """
  spread = 1 - 0.7 * uniform

  def near(low, high):
    middle = (low + high) / 2
    return middle + spread * (rng.uniform(low, high) - middle)

  roof_color = np.array(_ROOFS[rng.integers(len(_ROOFS))])
  roof_color = roof_color * rng.uniform(0.8, 1.25)
  brick = rng.random() < (0.3, 0.2, 0.22, 0.35)[style]
  names = _BRICK if brick else _PALETTES[style]
  name = names[rng.integers(len(names))]
  color = np.clip(_COLORS[name] * rng.uniform(0.85, 1.12, 3), 0.03, 0.9)
  material = 'brick_facade' if brick else 'facade'
  noun, roof, rise = 'house', 'gabled', 0.0
  if style == roads.OLD_TOWN:
    width, depth = rng.uniform(6.2, 11.5), near(9, 12)
    floors = int(rng.integers(2, 5))
    wall = floors * rng.uniform(2.9, 3.4)
    roof = ('gabled', 'cross', 'flat')[rng.choice(3, p=(0.6, 0.3, 0.1))]
    rise = 0.0 if roof == 'flat' else rng.uniform(2.2, 4.5)
    setback = 0.0 if rng.random() < 0.7 else rng.uniform(0.3, 1.6)
    gap = 0.0 if rng.random() < 0.8 else rng.uniform(2.0, 6.0)
    if rng.random() < 0.02:
      noun, width, depth, roof = 'church', 13.0, 24.0, 'cross'
      wall, rise, setback, gap = 9.0, 6.5, 3.0, 8.0
  elif style == roads.VILLAS:
    noun = 'villa'
    width, depth = rng.uniform(8, 13.5), near(8, 12)
    floors = int(rng.integers(1, 3))
    wall = floors * rng.uniform(2.7, 3.1)
    roof = ('gabled', 'cross', 'flat')[rng.choice(3, p=(0.5, 0.35, 0.15))]
    rise = 0.0 if roof == 'flat' else rng.uniform(2.2, 4.2)
    setback, gap = near(3, 8), near(4.5, 12)
  elif style == roads.BLOCKS:
    noun = 'apartment block'
    width, depth = rng.uniform(18, 38), near(11, 14)
    floors = int(rng.integers(3, 8))
    wall = floors * 2.9
    roof = 'flat' if rng.random() < 0.7 else 'gabled'
    rise = 0.0 if roof == 'flat' else rng.uniform(2.5, 3.5)
    setback, gap = near(2, 9), near(6, 18)
  else:
    noun = 'hall'
    width, depth = rng.uniform(20, 45), rng.uniform(16, 28)
    floors, wall = 1, rng.uniform(5, 10)
    roof = 'flat' if rng.random() < 0.5 else 'gabled'
    rise = 0.0 if roof == 'flat' else rng.uniform(1.2, 2.6)
    material = 'metal' if not brick and rng.random() < 0.65 else material
    setback, gap = near(3, 11), near(6, 16)
  return House(
    style, noun, width, depth, floors, wall, roof, rise, material, name, color,
    roof_color, setback, gap,
  )  # fmt: skip


class _Site:
  """A house under construction: its frame, its instance and its level."""

  def __init__(self, parts, house, center, yaw, rng):
    self.parts, self.house, self.rng = parts, house, rng
    self.center, self.yaw = np.asarray(center), yaw
    self.axes = np.array(
      [[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]]
    )
    half = np.array([house.width, house.depth]) / 2
    corners = [[x, y] for x in (-1, 1) for y in (-1, 1)] * half
    levels = parts.height(self.center + corners @ self.axes)
    self.low, self.level = levels.min() - 0.15, levels.max()
    self.instance = parts.thing('building', house.description)

  def add(self, kind, at, bottom, size, turn=0.0, **look):
    """Adds a shape in the house's frame; bottom None reaches the terrain."""
    top = bottom + size[2] if bottom is not None else size[2]
    base = self.low if bottom is None else self.level + bottom
    look = {'semantic': 'building', 'instance': self.instance} | look
    look.setdefault('color', self.house.color)
    self.parts.add(
      kind,
      self.center + np.asarray(at) @ self.axes,
      base,
      (size[0], size[1], self.level + top - base),
      yaw=self.yaw + turn,
      **look,
    )

  def wall(self, at, size, **look):
    """A box of wall from the terrain up to size[2] above the ground floor."""
    look.setdefault('material', self.house.material)
    self.add(primitives.BOX, at, None, size, **look)

  def gable(self, at, bottom, size, cross=False, **look):
    """A gabled roof; `cross` turns the ridge towards the street."""
    if cross:
      size = (size[1], size[0], size[2])
    look.setdefault('color', self.house.roof_color)
    self.add(
      primitives.PRISM, at, bottom, size, np.pi / 2 if cross else 0.0,
      material='roof', **look,
    )  # fmt: skip


def build(
  parts: assembly.Assembly,
  house: House,
  center: np.ndarray,
  yaw: float,
  rng: np.random.Generator,
) -> int:
  """Builds a house and returns its instance.

  Args:
    parts: receives the primitives.
    house: what to build.
    center: [2], world position of the middle of the walls.
    yaw: of the house's x axis; its y axis points to the street.
    rng: draws the details.
  """
  site = _Site(parts, house, center, yaw, rng)
  width, depth, wall = house.width, house.depth, house.wall
  site.wall((0, 0), (width, depth, wall))
  if house.roof == 'flat':
    site.add(
      primitives.BOX, (0, 0), wall, (width + 0.3, depth + 0.3, 0.35),
      material='plain', color=house.roof_color * 0.6 + 0.12,
    )  # fmt: skip
  else:
    # Row houses share their walls: only free ends get an overhang.
    over = 0.0 if house.style == roads.OLD_TOWN else 0.7
    site.gable(
      (0, 0), wall, (width + over, depth + 0.8, house.rise),
      house.roof == 'cross',
    )  # fmt: skip
  details = {
    'house': _town_house,
    'villa': _villa,
    'apartment block': _apartments,
    'hall': _hall,
    'church': _church,
  }
  details[house.noun](site)
  return site.instance


def _chimney(site: _Site, x: float, y: float) -> None:
  house = site.house
  site.add(
    primitives.BOX, (x, y), house.wall, (0.7, 0.7, house.rise + 0.9),
    material='brick_facade', color=(0.3, 0.14, 0.1),
  )  # fmt: skip


def _town_house(site: _Site) -> None:
  house, rng = site.house, site.rng
  front = house.depth / 2
  if house.roof != 'flat' and rng.random() < 0.6:
    _chimney(site, rng.uniform(-0.35, 0.35) * house.width, rng.uniform(-2, 2))
  kind = rng.random()
  x = rng.uniform(-0.2, 0.2) * house.width
  if kind < 0.22:  # bay window, above the heads of those who walk below
    site.add(
      primitives.BOX, (x, front + 0.3), _FLOOR,
      (rng.uniform(1.8, 3.0), 0.9, house.wall - _FLOOR - rng.uniform(0, 1.5)),
      material=house.material, color=house.color * rng.uniform(0.7, 1.1),
    )  # fmt: skip
  elif kind < 0.45:  # awning of a shop
    site.add(
      primitives.BOX, (0, front + 0.5), rng.uniform(2.5, 2.9),
      (house.width * rng.uniform(0.5, 0.9), 1.0, 0.18), material='cloth',
      color=rng.uniform(0.08, 0.7, 3),
    )  # fmt: skip
  if house.roof == 'gabled' and rng.random() < 0.4:  # dormer
    site.add(
      primitives.BOX, (x, front - 1.8), house.wall, (1.8, 2.6, 1.7),
      material='plain', color=house.color,
    )  # fmt: skip
    site.gable((x, front - 1.9), house.wall + 1.7, (2.1, 3.0, 0.8), True)
  if rng.random() < 0.25:
    site.add(
      primitives.BOX, (x + 1.5, front + 0.5), rng.uniform(2.6, 3.4),
      (0.12, 1.0, 0.7), material='sign', color=rng.uniform(0.1, 0.8, 3),
      semantic='sign',
    )  # fmt: skip


def _villa(site: _Site) -> None:
  house, rng = site.house, site.rng
  front, side = house.depth / 2, np.sign(rng.uniform(-1, 1))
  if house.roof != 'flat' and rng.random() < 0.7:
    _chimney(site, rng.uniform(-0.3, 0.3) * house.width, rng.uniform(-2, 2))
  if rng.random() < 0.55 and house.gap > 5:  # garage beside the house
    wide = rng.uniform(2.9, 3.4)
    y = front - 3.2 + rng.uniform(-2, 1)
    x = side * (house.width / 2 + wide / 2 + 0.02)
    site.wall((x, y), (wide, 5.6, 2.5), material='plain')
    if rng.random() < 0.5:
      site.gable((x, y), 2.5, (wide + 0.3, 5.9, 1.3), True)
  kind = rng.random()
  x = -side * rng.uniform(0, 0.25) * house.width
  if kind < 0.35:  # porch
    site.add(
      primitives.BOX, (x, front + 0.8), 2.4, (2.6, 1.6, 0.2), material='plain',
      color=house.roof_color,
    )  # fmt: skip
    for dx in (-1.1, 1.1):
      site.add(
        primitives.CYLINDER, (x + dx, front + 1.4), -0.3, (0.2, 0.2, 2.7),
        material='plain', color=(0.7, 0.7, 0.68),
      )  # fmt: skip
  elif kind < 0.65:  # wing towards the street with a gable of its own
    wide = house.width * rng.uniform(0.3, 0.45)
    deep = min(2.5, 0.6 * house.setback)
    site.wall((x, front + deep / 2), (wide, deep, house.wall))
    if house.roof != 'flat':
      site.gable(
        (x, front - 0.5 + deep / 2), house.wall,
        (wide + 0.5, deep + 1.5, min(house.rise, wide * 0.5)), True,
      )  # fmt: skip


def _apartments(site: _Site) -> None:
  house, rng = site.house, site.rng
  front = house.depth / 2
  stacks = int(rng.integers(0, 1 + house.width // 9))
  color = house.color * rng.uniform(0.5, 1.2)
  for x in (np.arange(stacks) + 0.5) / max(stacks, 1) - 0.5:
    style = rng.random()
    for floor in range(1, house.floors):
      if style < 0.75 or floor % 2:
        site.add(
          primitives.BOX, (x * house.width, front + 0.6),
          floor * 2.9 - 0.1, (2.8, 1.2, 1.1), material='plain', color=color,
        )  # fmt: skip
  x = rng.uniform(-0.35, 0.35) * house.width
  site.add(
    primitives.BOX, (x, front + 0.7), 2.5, (2.8, 1.4, 0.25), material='plain',
    color=(0.25, 0.25, 0.27),
  )  # fmt: skip
  if house.roof == 'flat':  # lift tower, stairs
    for _ in range(int(rng.integers(1, 3))):
      site.add(
        primitives.BOX,
        (rng.uniform(-0.4, 0.4) * house.width, rng.uniform(-2, 1)),
        house.wall, (*rng.uniform(2.5, 5, 2), rng.uniform(1.8, 3)),
        material='plain', color=house.color * 0.8,
      )  # fmt: skip


def _hall(site: _Site) -> None:
  house, rng = site.house, site.rng
  front = house.depth / 2
  if rng.random() < 0.6:  # offices in front of the hall
    wide, deep = rng.uniform(6, 11), min(4.5, 0.5 * house.setback)
    side = np.sign(rng.uniform(-1, 1))
    site.wall(
      (side * (house.width - wide) / 2, front + deep / 2),
      (wide, deep, min(house.wall, 6.0)), material='facade',
    )  # fmt: skip
  for x in rng.uniform(-0.4, 0.4, int(rng.integers(0, 3))):  # gates
    site.add(
      primitives.BOX, (x * house.width, front + 0.05), -0.3, (4.0, 0.2, 4.2),
      material='metal', color=rng.uniform(0.1, 0.5, 3),
    )  # fmt: skip
  kind = rng.random()
  at = (rng.uniform(-0.35, 0.35) * house.width, -0.25 * house.depth)
  if kind < 0.2:
    site.add(
      primitives.CYLINDER, at, house.wall, (1.8, 1.8, rng.uniform(8, 16)),
      material='brick_facade', color=(0.4, 0.18, 0.13),
    )  # fmt: skip
  elif kind < 0.45:
    radius = rng.uniform(1.5, 2.6)
    site.add(
      primitives.CYLINDER,
      (house.width / 2 + radius + 0.3, rng.uniform(-3, 3)), -0.6,
      (2 * radius, 2 * radius, rng.uniform(5, 10)), material='metal',
      color=(0.6, 0.6, 0.58),
    )  # fmt: skip


def _church(site: _Site) -> None:
  house = site.house
  y, high = house.depth / 2 - 1.0, site.rng.uniform(20, 30)
  site.wall((0, y), (6.0, 6.0, high))
  site.gable((0, y), high, (6.4, 6.4, site.rng.uniform(5, 9)))
