# SPDX-License-Identifier: Apache-2.0
"""Procedural colour of shapes and ground.

A pattern is a grid of cells in coordinates fixed to the shape (or, for open
ground, to the world); an integer hash of the cell and the shape's seed draws
whatever differs from cell to cell. Two grids make every material: a fine one
(bricks, tiles, slats, leaves) and a coarse one (windows, doors, signs). Edges
are box-filtered with the footprint of the pixel and patterns fade to their mean
where a cell is smaller than it, so nothing flickers with distance.

Arrays are one component each, [...] alike; XLA then fuses without copies.
"""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from input_pipeline import schema
from input_pipeline.synthetic_city import primitives as primitives_lib
from input_pipeline.synthetic_city import raycast
from input_pipeline.synthetic_city import selection

Vector = tuple[Array, Array, Array]


class Paint(NamedTuple):
  """What a surface does with light.

  Attributes:
    albedo: three components, linear, 0..1.
    emission: radiance of lit windows and lamps, three components.
    gloss: 0..1, share of the mirrored sky at normal incidence.
    reflectivity: of LiDAR pulses, 0..1.
  """

  albedo: Vector
  emission: Vector
  gloss: Array
  reflectivity: Array


# The fine grid of each material: cell width and height in metres, the part of
# the cell that is not joint (from, to, from, to), shift of odd rows, variation
# of brightness between cells, brightness of the joints.
_FINE = {
  'plain': (0.9, 0.9, 0, 1, 0, 1, 0, 0.06, 1),
  'facade': (0.7, 0.6, 0, 1, 0, 1, 0, 0.07, 1),
  'brick_facade': (0.5, 0.22, 0.05, 0.95, 0.1, 0.9, 0.5, 0.25, 1.5),
  'roof': (0.45, 0.4, 0.04, 1, 0.18, 1, 0.5, 0.3, 0.45),
  'bark': (0.12, 0.7, 0.15, 1, 0, 1, 0.5, 0.4, 0.5),
  'leaves': (0.17, 0.17, 0, 1, 0, 1, 0, 0.5, 1),
  'hedge': (0.2, 0.2, 0, 1, 0, 1, 0, 0.5, 1),
  'car_body': (9.0, 9.0, 0, 1, 0, 1, 0, 0, 1),
  'glass': (1.2, 9.0, 0.04, 0.96, 0, 1, 0, 0.1, 1.6),
  'metal': (0.5, 9.0, 0.06, 1, 0, 1, 0, 0.08, 0.8),
  'wood_fence': (0.18, 9.0, 0.12, 0.88, 0, 1, 0, 0.25, 0.25),
  'cloth': (0.4, 0.45, 0, 1, 0, 1, 0, 0.3, 1),
  'sign': (9.0, 9.0, 0, 1, 0, 1, 0, 0, 1),
  'lamp': (9.0, 9.0, 0, 1, 0, 1, 0, 0, 1),
}
_WARM = (1.0, 0.72, 0.4)
_GLOSS = {'glass': 0.45, 'car_body': 0.12, 'metal': 0.08, 'sign': 0.05}
_ROAD, _PAVEMENT, _OPEN = (
  schema.CLASSES.index(name) for name in ('road', 'pavement', 'ground')
)


def _is(material: Array, *names: str) -> Array:
  """Whether the material is one of these names, [...] bool."""
  answer = False
  for name in names:
    answer |= material == primitives_lib.MATERIALS.index(name)
  return answer


def mix(a, b, weight):
  """a where `weight` is 0, b where it is 1; vectors by component."""
  if isinstance(a, tuple):
    return tuple(mix(x, y, weight) for x, y in zip(a, b, strict=True))
  return a + (b - a) * weight


def random(x: Array, y: Array, seed: Array) -> Array:
  """32 random bits of an integer cell, uint32 [...]."""
  bits = x.astype(jnp.uint32) * np.uint32(0x9E3779B1)
  bits ^= y.astype(jnp.uint32) * np.uint32(0x85EBCA77)
  bits ^= seed
  for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
    bits = (bits ^ (bits >> shift)) * np.uint32(factor)
  return bits ^ (bits >> 15)


def byte(bits: Array, which: int) -> Array:
  """One of the four bytes of `random`, as a float in [0, 1]."""
  part = (bits >> (8 * which)) & np.uint32(255)
  return part.astype(jnp.int32).astype(jnp.float32) * np.float32(1 / 255)


def cover(x: Array, low, high, width: Array) -> Array:
  """Share of the window [x - width / 2, x + width / 2] inside [low, high]."""
  half = 0.5 * width
  inside = jnp.minimum(x + half, high) - jnp.maximum(x - half, low)
  return jnp.clip(inside / width, 0.0, 1.0)


def _cover_cell(x: Array, low, high, width: Array) -> Array:
  """`cover` in a periodic cell [0, 1]: the mean once the window exceeds it."""
  fade = jnp.clip(2.0 * width - 0.6, 0.0, 1.0)
  return mix(cover(x, low, high, jnp.maximum(width, 1e-3)), high - low, fade)


def noise(x: Array, y: Array, seed: Array) -> Array:
  """Smooth noise in [0, 1] with one node per unit; x, y in float32."""
  i, j = jnp.floor(x), jnp.floor(y)
  u, v = x - i, y - j
  u, v = u * u * (3.0 - 2.0 * u), v * v * (3.0 - 2.0 * v)
  i, j = i.astype(jnp.int32), j.astype(jnp.int32)
  a, b = byte(random(i, j, seed), 0), byte(random(i + 1, j, seed), 0)
  c, d = byte(random(i, j + 1, seed), 0), byte(random(i + 1, j + 1, seed), 0)
  return mix(mix(a, b, u), mix(c, d, u), v)


class _Face(NamedTuple):
  """Coordinates on the face that a ray meets, metres.

  Attributes:
    u: along the face, from its middle.
    v: up the face, from its bottom; across the ridge on roofs.
    extent: half the face's width.
    tall: the face's height.
    width_u: extent of the pixel's footprint along u.
    width_v: along v.
    layer: int32, tells faces (and depths in foliage) apart.
    wall: bool, vertical.
    front: bool, a wall along the shape's x axis (towards or off the street).
  """

  u: Array
  v: Array
  extent: Array
  tall: Array
  width_u: Array
  width_v: Array
  layer: Array
  wall: Array
  front: Array


def _face(hit: raycast.Hit, solid: raycast.Solids, direction, spread) -> _Face:
  x, y, z = hit.local
  hx, hy, hz = solid.half_size
  fx, fy, fz = (jnp.abs(f) for f in hit.facet)
  along_x = solid.cos * direction[0] + solid.sin * direction[1]
  along_y = solid.cos * direction[1] - solid.sin * direction[0]
  facing = -sum(n * d for n, d in zip(hit.normal, direction, strict=True))
  facing = jnp.maximum(facing, 0.05)
  wall, front = fz < 0.4, fy >= fx
  ball, tube = solid.round > 0, (solid.quadric > 0) & (solid.round == 0)
  # The angle about a pole, by the side of a diamond instead of an arctangent.
  size = jnp.maximum(jnp.abs(x) + jnp.abs(y), 1e-6)
  turn = (1.0 - x / size) * jnp.where(y < 0, -1.0, 1.0) * (0.5 * jnp.pi) * hx
  u = jnp.where(wall & ~front, y, x)
  # Foliage: cubes askew to all axes.
  u = jnp.where(tube & wall, turn, u)
  u = jnp.where(ball, 0.8 * x - 0.36 * y + 0.48 * z, u)
  v = jnp.where(wall, z + hz, y / jnp.maximum(fz, 0.2))
  v = jnp.where(ball, -0.6 * x - 0.48 * y + 0.64 * z, v)
  depth = jnp.floor(6.0 * (0.8 * y + 0.6 * z))
  depth = jnp.where(ball, depth, hit.facet[0] * 2.0)
  slant_u = jnp.where(wall & ~front, along_y, along_x) / facing
  slant_v = jnp.where(wall, direction[2], along_y) / facing
  foot = jnp.where(hit.distance < 1e6, hit.distance, 1.0) * spread
  return _Face(
    u=u,
    v=v,
    extent=jnp.where(wall & ~front, hy, hx),
    tall=2.0 * hz,
    width_u=foot * jnp.sqrt(1.0 + slant_u * slant_u),
    width_v=foot * jnp.sqrt(1.0 + slant_v * slant_v),
    layer=jnp.round(depth).astype(jnp.int32),
    wall=wall & ~ball,
    front=front,
  )


def _fine(face: _Face, coat: selection.Coats) -> tuple[Array, Array]:
  """Brightness factor of the fine grid, and a random hue in [-1, 1]."""
  columns = np.array([_FINE[name] for name in primitives_lib.MATERIALS])
  cell_u, cell_v, a, b, c, d, shift, variation, joint = (
    jnp.asarray(column, jnp.float32)[coat.material] for column in columns.T
  )
  v = face.v / cell_v
  row = jnp.floor(v)
  odd = row - 2.0 * jnp.floor(0.5 * row)
  u = face.u / cell_u + shift * odd
  column = jnp.floor(u)
  width_u, width_v = face.width_u / cell_u, face.width_v / cell_v
  bits = random(
    column.astype(jnp.int32),
    row.astype(jnp.int32) * 64 + face.layer,
    coat.seed,
  )
  whole = _cover_cell(u - column, a, b, width_u)
  whole *= _cover_cell(v - row, c, d, width_v)
  sharp = jnp.clip(1.6 - jnp.maximum(width_u, width_v), 0.15, 1.0)
  shade = 1.0 + variation * sharp * (2.0 * byte(bits, 0) - 1.0)
  hue = sharp * (2.0 * byte(bits, 1) - 1.0)
  # Foliage has lumps of leaves too.
  lump = random(
    jnp.floor(0.2 * column).astype(jnp.int32),
    jnp.floor(0.2 * row).astype(jnp.int32) * 64 + face.layer // 5,
    coat.seed + 3,
  )
  leafy = jnp.where(_is(coat.material, 'leaves', 'hedge'), 0.3, 0.0)
  shade += leafy * (2.0 * byte(lump, 0) - 1.0)
  return shade * mix(joint, 1.0, whole), hue


def _openings(face: _Face, coat: selection.Coats, base: Vector) -> Paint:
  """The coarse grid: windows, doors, balconies; panes of cars; signs."""
  house = _is(coat.material, 'facade', 'brick_facade') & face.wall
  house &= (face.extent > 0.8) & (face.tall > 2.6)
  car = _is(coat.material, 'car_body') & face.wall
  sign = _is(coat.material, 'sign') & face.wall
  style = random(coat.semantic, coat.semantic, coat.seed)
  pitch = 2.1 + 1.5 * byte(style, 0)
  across = jnp.maximum(jnp.round(2.0 * face.extent / pitch), 1.0)
  storeys = jnp.maximum(jnp.round(face.tall / 3.0), 1.0)
  across = jnp.where(house, across, jnp.where(car & face.front, 2.0, 1.0))
  storeys = jnp.where(house, storeys, 1.0)
  u = (face.u + face.extent) / (2.0 * face.extent) * across
  v = face.v / face.tall * storeys
  column = jnp.clip(jnp.floor(u), 0.0, across - 1.0)
  row = jnp.clip(jnp.floor(v), 0.0, storeys - 1.0)
  u, v = u - column, v - row
  width_u = face.width_u * across / (2.0 * face.extent)
  width_v = face.width_v * storeys / face.tall
  bits = random(
    column.astype(jnp.int32), row.astype(jnp.int32) * 64 + face.layer, coat.seed
  )
  stack = random(column.astype(jnp.int32), face.layer, coat.seed + 7)

  street = house & (row == 0) & face.front
  shop = street & (byte(style, 1) > 0.62)
  door = street & (byte(stack, 2) > 0.72) & ~shop
  blind = house & ~face.front & (byte(stack, 0) > 0.45)
  half = 0.18 + 0.14 * byte(style, 2)
  low_u = jnp.where(house, 0.5 - half, jnp.where(car, 0.06, 0.12))
  low_u = jnp.where(shop, 0.06, jnp.where(door, 0.3, low_u))
  low_v = jnp.where(house, 0.3, jnp.where(car, 0.55, 0.12))
  low_v = jnp.where(shop, 0.14, jnp.where(door, 0.0, low_v))
  high_v = jnp.where(house, 0.78, jnp.where(car, 0.92, 0.88))
  present = (house & ~blind) | car | sign

  def rectangle(grow):
    inside = _cover_cell(u, low_u - grow, 1.0 - low_u + grow, width_u)
    return inside * _cover_cell(v, low_v - grow, high_v + grow, width_v)

  pane = jnp.where(present, rectangle(0.0), 0.0)
  frame = jnp.where(house & present, rectangle(0.05), pane) - pane
  dark = 0.03 + 0.10 * byte(bits, 0) * byte(bits, 0)
  wood = jnp.where(door, 0.10 + 0.25 * byte(style, 3), dark)
  inner = (
    jnp.where(door, wood, dark),
    jnp.where(door, wood * 0.6, dark * 1.1),
    jnp.where(door, wood * 0.45, dark * 1.25),
  )
  print_ = jnp.where(byte(style, 0) > 0.5, 0.85, 0.05)
  inner = tuple(jnp.where(sign, print_, c) for c in inner)
  trim = jnp.where(byte(style, 3) > 0.4, 0.75, 0.22)
  albedo = mix(mix(base, (trim, trim, trim), frame), inner, pane)

  balcony = house & (row > 0) & face.front & (byte(stack, 1) > 0.78)
  rail = _cover_cell(u, 0.06, 0.94, width_u) * _cover_cell(
    v, 0.02, 0.32, width_v
  )
  rail = jnp.where(balcony & (byte(style, 1) > 0.4), rail, 0.0)
  albedo = mix(albedo, (0.16, 0.16, 0.18), rail)
  plinth = cover(face.v, -1.0, 0.7, face.width_v)
  albedo = mix(
    albedo, tuple(0.55 * c for c in base), jnp.where(house, plinth, 0.0)
  )
  glass = pane * (1.0 - rail) * jnp.where(door | sign, 0.0, 1.0)
  draw = jnp.where(house & (glass > 0.5), byte(bits, 1), 2.0)
  none = (jnp.zeros_like(glass),) * 3
  return Paint(albedo, none, 0.22 * glass, 1.0 - 0.75 * glass), draw


def _foliage(coat: selection.Coats, autumn: Array, hue: Array) -> Vector:
  """Leaf colour by season: the tree's own draw turns it yellow, red, brown."""
  own = random(coat.instance, coat.instance, np.uint32(99))
  turn = jnp.clip(1.6 * autumn - 0.6 * byte(own, 0), 0.0, 1.0)
  turn = jnp.where(_is(coat.material, 'leaves'), turn, 0.0)
  tone = byte(own, 1)
  leaves = (0.42 + 0.1 * tone, 0.13 + 0.22 * tone, 0.03 + 0.02 * tone)
  color = mix(coat.color, leaves, turn)
  leafy = jnp.where(_is(coat.material, 'leaves', 'hedge'), hue, 0.0)
  return (color[0] * (1.0 + 0.3 * leafy), color[1], color[2])


def paint_solids(
  hit: raycast.Hit,
  solid: raycast.Solids,
  coat: selection.Coats,
  direction: Vector,
  spread: float,
  autumn: Array,
  dusk: Array,
) -> Paint:
  """Paints the shape that each ray meets.

  Args:
    hit: of `raycast.surface`.
    solid: shape of each ray.
    coat: coat of each ray.
    direction: unit, three components.
    spread: radians between neighbouring rays, for filtering.
    autumn: 0..1.
    dusk: 0..1, share of lit windows and lamps.

  Returns:
    The paint, meaningless where the ray misses.
  """
  face = _face(hit, solid, direction, spread)
  shade, hue = _fine(face, coat)
  base = tuple(shade * c for c in _foliage(coat, autumn, hue))
  paint, draw = _openings(face, coat, base)
  # A pane's draw says whether and how brightly it is lit.
  light = jnp.where((draw > 0.02) & (draw < 0.5 * dusk), 0.5 + draw, 0.0)
  lamp = jnp.where(_is(coat.material, 'lamp'), 3.0 * dusk, 0.0)
  emission = tuple(
    warm * light + lamp * c for warm, c in zip(_WARM, coat.color, strict=True)
  )
  table = jnp.asarray(
    [_GLOSS.get(name, 0.0) for name in primitives_lib.MATERIALS], jnp.float32
  )
  return Paint(
    albedo=paint.albedo,
    emission=emission,
    gloss=jnp.maximum(paint.gloss, table[coat.material]),
    reflectivity=coat.reflectivity * paint.reflectivity * (0.7 + 0.3 * shade),
  )


class _Place(NamedTuple):
  """Where a point of the ground lies with respect to the roads."""

  kerb: Array
  along: Array
  lateral: Array
  road: Array
  junction: Array


def _place(roads: selection.Roads, x: Array, y: Array) -> _Place:
  """Nearest road (by distance to its kerb) and whether two cross here."""

  def relative(start, heading, length):
    px, py = x - start[0], y - start[1]
    along = px * heading[0] + py * heading[1]
    beyond = along - jnp.clip(along, 0.0, length)
    lateral = heading[0] * py - heading[1] * px
    return along, lateral, jnp.sqrt(lateral * lateral + beyond * beyond)

  def visit(i, state):
    kerb, road, hx, hy, junction = state
    heading = roads.heading[i]
    distance = relative(roads.start[i], heading, roads.length[i])[2]
    signed = distance - roads.half_width[i]
    inside = signed < 0
    cross = jnp.abs(hx * heading[1] - hy * heading[0])
    junction = junction | (inside & (cross > 0.35))
    road = jnp.where(signed < kerb, i, road)
    return (
      jnp.minimum(kerb, signed),
      road,
      jnp.where(inside, heading[0], hx),
      jnp.where(inside, heading[1], hy),
      junction,
    )

  zero = jnp.zeros_like(x)
  start = (zero + 1e6, zero.astype(jnp.int32), zero, zero, zero > 0)
  count = roads.length.shape[0]
  kerb, road, _, _, junction = jax.lax.fori_loop(0, count, visit, start)
  along, lateral, _ = relative(
    (roads.start[:, 0][road], roads.start[:, 1][road]),
    (roads.heading[:, 0][road], roads.heading[:, 1][road]),
    roads.length[road],
  )
  return _Place(kerb, along, lateral, road, junction)


def _grain(roads: selection.Roads, x, y, size: float, salt: int, width):
  """Random brightness in [-1, 1] of world cells of `size` metres, filtered."""
  scale = np.float32(1.0 / size)
  i = jnp.floor((x + roads.anchor[0]) * scale).astype(jnp.int32)
  j = jnp.floor((y + roads.anchor[1]) * scale).astype(jnp.int32)
  per_anchor = int(selection.ANCHOR / size)
  bits = random(
    i + roads.cell[0] * per_anchor,
    j + roads.cell[1] * per_anchor,
    roads.seed + np.uint32(salt),
  )
  sharp = jnp.clip(1.6 - width * scale, 0.0, 1.0)
  return (2.0 * byte(bits, 0) - 1.0) * sharp


def _markings(place: _Place, roads, width_along, width_across) -> Array:
  """Share of white paint on the carriageway."""
  half_width = roads.half_width[place.road]
  period = place.along * np.float32(1 / 6)
  dash = _cover_cell(period - jnp.floor(period), 0.0, 0.5, width_along / 6.0)
  center = cover(place.lateral, -0.09, 0.09, width_across) * dash
  center = jnp.where(half_width > 2.6, center, 0.0)
  edge = jnp.abs(place.lateral) - half_width + 0.4
  line = cover(edge, -0.07, 0.07, width_across)
  zebra = roads.zebra[place.road]
  stripe = place.lateral * np.float32(1.0 / 1.1)
  stripe = _cover_cell(stripe - jnp.floor(stripe), 0.0, 0.5, width_across / 1.1)
  stripe *= cover(place.along - zebra, -1.6, 1.6, width_along)
  crossing = (zebra >= 0) & (jnp.abs(place.along - zebra) < 2.4)
  paint = jnp.where(crossing, stripe, jnp.maximum(center, line))
  return jnp.where(place.junction, 0.0, paint)


def paint_ground(
  roads: selection.Roads,
  x: Array,
  y: Array,
  direction: Vector,
  distance: Array,
  spread: float,
  snow: Array,
  wetness: Array,
) -> tuple[Paint, Array]:
  """Paints the ground at points relative to the ego position.

  Args:
    roads: the nearest roads.
    x: metres, world-aligned.
    y: metres.
    direction: of the rays, unit.
    distance: along the rays, metres.
    spread: radians between neighbouring rays.
    snow: 0..1.
    wetness: 0..1.

  Returns:
    The paint and the semantic class, int32.
  """
  place = _place(roads, x, y)
  head_x = roads.heading[:, 0][place.road]
  head_y = roads.heading[:, 1][place.road]
  facing = jnp.maximum(jnp.abs(direction[2]), 0.01)
  slant = (direction[0] * head_x + direction[1] * head_y) / facing
  across = (direction[1] * head_x - direction[0] * head_y) / facing
  foot = distance * spread
  width_along = foot * jnp.sqrt(1.0 + slant * slant)
  width_across = foot * jnp.sqrt(1.0 + across * across)
  width = jnp.maximum(width_along, width_across)

  fine = _grain(roads, x, y, 0.25, 1, width)
  coarse = _grain(roads, x, y, 1.0, 2, width)
  on_road = place.kerb < 0
  on_pavement = ~on_road & (place.kerb < roads.pavement_width[place.road])
  white = _markings(place, roads, width_along, width_across)
  asphalt = 0.15 * (1.0 + 0.08 * fine + 0.05 * coarse)
  asphalt = mix(asphalt * (1.0 - 0.45 * wetness), 0.75, 0.9 * white)
  slab_u, slab_v = 1.6 * place.along, 1.6 * place.kerb
  joint = _cover_cell(slab_u - jnp.floor(slab_u), 0.06, 1.0, 1.6 * width_along)
  joint *= _cover_cell(
    slab_v - jnp.floor(slab_v), 0.06, 1.0, 1.6 * width_across
  )
  slab = 0.36 * (1.0 + 0.1 * fine + 0.08 * coarse) * mix(0.7, 1.0, joint)
  stone = cover(place.kerb, 0.0, 0.22, width_across)
  slab = mix(slab * (1.0 - 0.3 * wetness), 0.5, stone)
  low = noise(
    (x + roads.anchor[0]) * 0.25 + 4.0 * roads.cell[0].astype(jnp.float32),
    (y + roads.anchor[1]) * 0.25 + 4.0 * roads.cell[1].astype(jnp.float32),
    roads.seed,
  )
  soil = jnp.clip(3.0 * low - 2.0, 0.0, 1.0)
  grass = mix((0.12, 0.19, 0.05), (0.2, 0.15, 0.1), soil)
  grass = tuple(c * (1.0 + 0.3 * fine + 0.2 * coarse) for c in grass)
  hard = jnp.where(on_road, asphalt, slab)
  tint = jnp.where(on_road, 1.03, 0.95)
  hard = (hard, hard, hard * tint)
  is_hard = on_road | on_pavement
  albedo = tuple(
    jnp.where(is_hard, a, b) for a, b in zip(hard, grass, strict=True)
  )
  # Traffic keeps the road clearer than the rest; ruts show first.
  rut = jnp.abs(jnp.abs(place.lateral) - 1.6) < 0.5
  most = jnp.where(on_road, jnp.where(rut, 0.1, 0.55), 0.95)
  lying = jnp.clip(snow * most * (1.15 + 0.3 * fine + 0.5 * (low - 0.5)), 0, 1)
  albedo = mix(albedo, (0.8, 0.82, 0.86), lying)
  semantic = jnp.where(on_road, _ROAD, jnp.where(on_pavement, _PAVEMENT, _OPEN))
  reflectivity = jnp.where(on_road, 0.15 + 0.7 * white, 0.3)
  gloss = wetness * jnp.where(on_road, 0.14, 0.04)
  none = (jnp.zeros_like(x),) * 3
  return Paint(albedo, none, gloss, reflectivity), semantic


def snow_over(
  paint: Paint, normal: Vector, semantic: Array, snow: Array
) -> Paint:
  """Snow on what faces up and stays where it is."""
  lies = jnp.clip(3.0 * normal[2] - 0.8, 0.0, 1.0) * snow
  moving = np.isin(np.arange(len(schema.CLASSES)), schema.MOVING)
  lies = jnp.where(jnp.asarray(moving)[semantic], 0.2 * lies, lies)
  return paint._replace(
    albedo=mix(paint.albedo, (0.8, 0.82, 0.86), lies),
    gloss=paint.gloss * (1.0 - lies),
  )
