# SPDX-License-Identifier: Apache-2.0
"""Procedural colour of the ground: roads, markings, pavements, meadows.

Markings and slabs lie in coordinates of the nearest road, grain in cells of the
world, hashed with integers that do not depend on the ego position.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.synthetic_city import labels as labels_lib
from input_pipeline.synthetic_city import patterns
from input_pipeline.synthetic_city import selection

Array = patterns.Array

_ROAD, _PAVEMENT, _OPEN = (
  labels_lib.CLASSES.index(name) for name in ('road', 'pavement', 'ground')
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
  bits = patterns.random(
    i + roads.cell[0] * per_anchor,
    j + roads.cell[1] * per_anchor,
    roads.seed + np.uint32(salt),
  )
  sharp = jnp.clip(1.6 - width * scale, 0.0, 1.0)
  return (2.0 * patterns.byte(bits, 0) - 1.0) * sharp


def _markings(place: _Place, roads, width_along, width_across) -> Array:
  """Share of white paint on the carriageway."""
  half_width = roads.half_width[place.road]
  period = place.along * np.float32(1 / 6)
  dash = patterns.cover_cell(
    period - jnp.floor(period), 0.0, 0.5, width_along / 6.0
  )
  center = patterns.cover(place.lateral, -0.09, 0.09, width_across) * dash
  center = jnp.where(half_width > 2.6, center, 0.0)
  edge = jnp.abs(place.lateral) - half_width + 0.4
  line = patterns.cover(edge, -0.07, 0.07, width_across)
  zebra = roads.zebra[place.road]
  stripe = place.lateral * np.float32(1.0 / 1.1)
  stripe = patterns.cover_cell(
    stripe - jnp.floor(stripe), 0.0, 0.5, width_across / 1.1
  )
  stripe *= patterns.cover(place.along - zebra, -1.6, 1.6, width_along)
  crossing = (zebra >= 0) & (jnp.abs(place.along - zebra) < 2.4)
  paint = jnp.where(crossing, stripe, jnp.maximum(center, line))
  return jnp.where(place.junction, 0.0, paint)


def _hard(roads: selection.Roads, place: _Place) -> tuple[Array, Array]:
  """What is road, and what is pavement, bool."""
  on_road = place.kerb < 0
  width = roads.pavement_width[place.road]
  return on_road, ~on_road & (place.kerb < width)


def paint_plain(
  roads: selection.Roads, x: Array, y: Array
) -> tuple[patterns.Paint, Array]:
  """Paints every class of ground in one colour.

  Args:
    roads: the nearest roads.
    x: metres, relative to the ego position, world-aligned.
    y: metres.

  Returns:
    The paint and the semantic class, int32.
  """
  on_road, on_pavement = _hard(roads, _place(roads, x, y))
  albedo = tuple(
    jnp.where(on_road, road, jnp.where(on_pavement, pavement, meadow))
    for road, pavement, meadow in zip(
      (0.15, 0.15, 0.155), (0.36, 0.36, 0.34), (0.13, 0.19, 0.06), strict=True
    )
  )
  zero = jnp.zeros_like(x)
  reflectivity = jnp.where(on_road, 0.15, 0.3)
  semantic = jnp.where(on_road, _ROAD, jnp.where(on_pavement, _PAVEMENT, _OPEN))
  return patterns.Paint(albedo, (zero,) * 3, zero, reflectivity), semantic


def paint(
  roads: selection.Roads,
  x: Array,
  y: Array,
  direction: patterns.Vector,
  distance: Array,
  spread: Array,
  snow: Array,
  wetness: Array,
) -> tuple[patterns.Paint, Array]:
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
  on_road, on_pavement = _hard(roads, place)
  white = _markings(place, roads, width_along, width_across)
  asphalt = 0.15 * (1.0 + 0.08 * fine + 0.05 * coarse)
  asphalt = patterns.mix(asphalt * (1.0 - 0.45 * wetness), 0.75, 0.9 * white)
  slab_u, slab_v = 1.6 * place.along, 1.6 * place.kerb
  joint = patterns.cover_cell(
    slab_u - jnp.floor(slab_u), 0.06, 1.0, 1.6 * width_along
  )
  joint *= patterns.cover_cell(
    slab_v - jnp.floor(slab_v), 0.06, 1.0, 1.6 * width_across
  )
  slab = (
    0.36 * (1.0 + 0.1 * fine + 0.08 * coarse) * patterns.mix(0.7, 1.0, joint)
  )
  stone = patterns.cover(place.kerb, 0.0, 0.22, width_across)
  slab = patterns.mix(slab * (1.0 - 0.3 * wetness), 0.5, stone)
  low = patterns.noise(
    (x + roads.anchor[0]) * 0.25 + 4.0 * roads.cell[0].astype(jnp.float32),
    (y + roads.anchor[1]) * 0.25 + 4.0 * roads.cell[1].astype(jnp.float32),
    roads.seed,
  )
  soil = jnp.clip(3.0 * low - 2.0, 0.0, 1.0)
  grass = patterns.mix((0.12, 0.19, 0.05), (0.2, 0.15, 0.1), soil)
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
  albedo = patterns.mix(albedo, (0.8, 0.82, 0.86), lying)
  semantic = jnp.where(on_road, _ROAD, jnp.where(on_pavement, _PAVEMENT, _OPEN))
  reflectivity = jnp.where(on_road, 0.15 + 0.7 * white, 0.3)
  gloss = wetness * jnp.where(on_road, 0.14, 0.04)
  none = (jnp.zeros_like(x),) * 3
  return patterns.Paint(albedo, none, gloss, reflectivity), semantic
