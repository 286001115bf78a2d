# SPDX-License-Identifier: Apache-2.0
"""Procedural colour of shapes.

Cells lie in coordinates fixed to the shape and are hashed with its seed. Two
grids make every material: a fine one (bricks, tiles, slats, leaves) and a
coarse one (windows, doors, signs).
"""

import functools
import operator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from input_pipeline.synthetic_city import labels as labels_lib
from input_pipeline.synthetic_city import patterns
from input_pipeline.synthetic_city import primitives as primitives_lib
from input_pipeline.synthetic_city import raycast
from input_pipeline.synthetic_city import selection

Array = patterns.Array

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


def _is(material: Array, *names: str) -> Array:
  """Whether the material is one of these names, [...] bool."""
  numbers = map(primitives_lib.MATERIALS.index, names)
  return functools.reduce(operator.or_, (material == i for i in numbers))


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
  bits = patterns.random(
    column.astype(jnp.int32),
    row.astype(jnp.int32) * 64 + face.layer,
    coat.seed,
  )
  whole = patterns.cover_cell(u - column, a, b, width_u)
  whole *= patterns.cover_cell(v - row, c, d, width_v)
  sharp = jnp.clip(1.6 - jnp.maximum(width_u, width_v), 0.15, 1.0)
  shade = 1.0 + variation * sharp * (2.0 * patterns.byte(bits, 0) - 1.0)
  hue = sharp * (2.0 * patterns.byte(bits, 1) - 1.0)
  # Foliage has lumps of leaves too.
  lump = patterns.random(
    jnp.floor(0.2 * column).astype(jnp.int32),
    jnp.floor(0.2 * row).astype(jnp.int32) * 64 + face.layer // 5,
    coat.seed + 3,
  )
  leafy = jnp.where(_is(coat.material, 'leaves', 'hedge'), 0.3, 0.0)
  shade += leafy * (2.0 * patterns.byte(lump, 0) - 1.0)
  return shade * patterns.mix(joint, 1.0, whole), hue


def _openings(
  face: _Face, coat: selection.Coats, base: patterns.Vector
) -> tuple[patterns.Paint, Array]:
  """The coarse grid: windows, doors, balconies; panes of cars; signs.

  Also returns a draw in 0..1 for each pane of a house, 2 elsewhere.
  """
  house = _is(coat.material, 'facade', 'brick_facade') & face.wall
  house &= (face.extent > 0.8) & (face.tall > 2.6)
  car = _is(coat.material, 'car_body') & face.wall
  sign = _is(coat.material, 'sign') & face.wall
  style = patterns.random(coat.semantic, coat.semantic, coat.seed)
  pitch = 2.1 + 1.5 * patterns.byte(style, 0)
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
  bits = patterns.random(
    column.astype(jnp.int32), row.astype(jnp.int32) * 64 + face.layer, coat.seed
  )
  stack = patterns.random(column.astype(jnp.int32), face.layer, coat.seed + 7)

  street = house & (row == 0) & face.front
  shop = street & (patterns.byte(style, 1) > 0.62)
  door = street & (patterns.byte(stack, 2) > 0.72) & ~shop
  blind = house & ~face.front & (patterns.byte(stack, 0) > 0.45)
  half = 0.18 + 0.14 * patterns.byte(style, 2)
  low_u = jnp.where(house, 0.5 - half, jnp.where(car, 0.06, 0.12))
  low_u = jnp.where(shop, 0.06, jnp.where(door, 0.3, low_u))
  low_v = jnp.where(house, 0.3, jnp.where(car, 0.55, 0.12))
  low_v = jnp.where(shop, 0.14, jnp.where(door, 0.0, low_v))
  high_v = jnp.where(house, 0.78, jnp.where(car, 0.92, 0.88))
  present = (house & ~blind) | car | sign

  def rectangle(grow):
    inside = patterns.cover_cell(u, low_u - grow, 1.0 - low_u + grow, width_u)
    return inside * patterns.cover_cell(v, low_v - grow, high_v + grow, width_v)

  pane = jnp.where(present, rectangle(0.0), 0.0)
  frame = jnp.where(house & present, rectangle(0.05), pane) - pane
  dark = 0.03 + 0.10 * patterns.byte(bits, 0) * patterns.byte(bits, 0)
  wood = jnp.where(door, 0.10 + 0.25 * patterns.byte(style, 3), dark)
  inner = (
    jnp.where(door, wood, dark),
    jnp.where(door, wood * 0.6, dark * 1.1),
    jnp.where(door, wood * 0.45, dark * 1.25),
  )
  print_ = jnp.where(patterns.byte(style, 0) > 0.5, 0.85, 0.05)
  inner = tuple(jnp.where(sign, print_, c) for c in inner)
  trim = jnp.where(patterns.byte(style, 3) > 0.4, 0.75, 0.22)
  albedo = patterns.mix(
    patterns.mix(base, (trim, trim, trim), frame), inner, pane
  )

  balcony = house & (row > 0) & face.front & (patterns.byte(stack, 1) > 0.78)
  rail = patterns.cover_cell(u, 0.06, 0.94, width_u) * patterns.cover_cell(
    v, 0.02, 0.32, width_v
  )
  rail = jnp.where(balcony & (patterns.byte(style, 1) > 0.4), rail, 0.0)
  albedo = patterns.mix(albedo, (0.16, 0.16, 0.18), rail)
  plinth = patterns.cover(face.v, -1.0, 0.7, face.width_v)
  albedo = patterns.mix(
    albedo, tuple(0.55 * c for c in base), jnp.where(house, plinth, 0.0)
  )
  glass = pane * (1.0 - rail) * jnp.where(door | sign, 0.0, 1.0)
  draw = jnp.where(house & (glass > 0.5), patterns.byte(bits, 1), 2.0)
  none = (jnp.zeros_like(glass),) * 3
  return patterns.Paint(albedo, none, 0.22 * glass, 1.0 - 0.75 * glass), draw


def _foliage(
  coat: selection.Coats, autumn: Array, hue: Array
) -> patterns.Vector:
  """Leaf colour by season: the tree's own draw turns it yellow, red, brown."""
  own = patterns.random(coat.instance, coat.instance, np.uint32(99))
  turn = jnp.clip(1.6 * autumn - 0.6 * patterns.byte(own, 0), 0.0, 1.0)
  turn = jnp.where(_is(coat.material, 'leaves'), turn, 0.0)
  tone = patterns.byte(own, 1)
  leaves = (0.42 + 0.1 * tone, 0.13 + 0.22 * tone, 0.03 + 0.02 * tone)
  color = patterns.mix(coat.color, leaves, turn)
  leafy = jnp.where(_is(coat.material, 'leaves', 'hedge'), hue, 0.0)
  return (color[0] * (1.0 + 0.3 * leafy), color[1], color[2])


def paint_solids(
  hit: raycast.Hit,
  solid: raycast.Solids,
  coat: selection.Coats,
  direction: patterns.Vector,
  spread: Array,
  autumn: Array,
  dusk: Array,
) -> patterns.Paint:
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
  return patterns.Paint(
    albedo=paint.albedo,
    emission=emission,
    gloss=jnp.maximum(paint.gloss, table[coat.material]),
    reflectivity=coat.reflectivity * paint.reflectivity * (0.7 + 0.3 * shade),
  )


def snow_over(
  paint: patterns.Paint, normal: patterns.Vector, semantic: Array, snow: Array
) -> patterns.Paint:
  """Snow on what faces up and stays where it is."""
  lies = jnp.clip(3.0 * normal[2] - 0.8, 0.0, 1.0) * snow
  moving = np.isin(np.arange(len(labels_lib.CLASSES)), labels_lib.MOVING)
  lies = jnp.where(jnp.asarray(moving)[semantic], 0.2 * lies, lies)
  return paint._replace(
    albedo=patterns.mix(paint.albedo, (0.8, 0.82, 0.86), lies),
    gloss=paint.gloss * (1.0 - lies),
  )
