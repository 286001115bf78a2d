# SPDX-License-Identifier: Apache-2.0
"""First hits of rays with analytic shapes and terrain.

Every shape is the intersection of the same five sets in its own unit
coordinates p = diag(1 / half_size) R(-yaw) (x - center): the slabs |p_x| <= 1
and |p_z| <= 1, the half spaces +-k p_y + g p_z <= 1 (k = 1, g = 0 but for the
gabled roof, whose k = 2, g = 1), and the quadric p_x^2 + p_y^2 + e p_z^2 <= 1
(cylinder e = 0, ellipsoid e = 1, absent from boxes and roofs). A set that a
shape does not need is implied by the others, so one test serves all kinds.

Rays come in tiles of neighbours, [3, T, R]. The host lists for each tile the
shapes that overlap its solid angle, nearest first (`selection`); the
device walks each list until every ray of the tile has met something nearer
than the next candidate. Coordinates are world-aligned and relative to the ego
position, which the host subtracts in float64. A caster on meshes only has to
offer `cast`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.synthetic_city import patterns
from input_pipeline.synthetic_city import terrain as terrain_lib

Array = patterns.Array
Vector = patterns.Vector

GROUND = -1
NOTHING = -2
MAX_CANDIDATES = 120  # of one tile; the slot of the nearest takes 7 bits
_SLOT = 127
CHUNK = 4
INFINITE = terrain_lib.INFINITE
TOUCH = terrain_lib.TOUCH


class Rays(NamedTuple):
  """Rays in T tiles of R neighbours, components first.

  Attributes:
    origin: [3, T, R] metres, relative to the ego position.
    direction: [3, T, R] unit.
  """

  origin: Array
  direction: Array


class Solids(NamedTuple):
  """N shapes, padded to a static number, relative to the ego position.

  Attributes:
    center: [3, N] metres, or its three components.
    half_size: [3, N] metres, or its three components.
    cos: [N] of the yaw.
    sin: [N] of the yaw.
    gable: [N] 1 for a roof, else 0.
    quadric: [N] 1 for cylinders and ellipsoids, else 0.
    round: [N] 1 for ellipsoids, else 0.
    mask: [N] bool, real and not padding.
  """

  center: Array | Vector
  half_size: Array | Vector
  cos: Array
  sin: Array
  gable: Array
  quadric: Array
  round: Array
  mask: Array


class Candidates(NamedTuple):
  """What each of T tiles may hit, nearest first.

  Attributes:
    index: [T, K] int32 into the solids.
    near: [T, K] float32, a lower bound of the distance, metres; K is a
      multiple of the chunk that the device takes at a time.
    count: [T] int32.
  """

  index: Array
  near: Array
  count: Array


class Hit(NamedTuple):
  """Where a ray meets its first shape in unit coordinates of that shape.

  Attributes:
    distance: metres, `INFINITE` for no hit.
    normal: three components, unit, world-aligned, facing the ray's origin.
    local: three components, metres along the shape's own axes from its centre.
    facet: three components, unit, the outward normal along the shape's axes.
  """

  distance: Array
  normal: Vector
  local: Vector
  facet: Vector


def _divisor(x: Array) -> Array:
  """`x` moved away from zero, so that a quotient stays finite."""
  return jnp.where(jnp.abs(x) < 1e-9, jnp.where(x < 0, -1e-9, 1e-9), x)


def _unit_ray(solid: Solids, origin, direction):
  """The ray in unit coordinates; components broadcast over the solid's."""
  px, py, pz = (o - c for o, c in zip(origin, solid.center, strict=True))
  cx, sx = solid.cos / solid.half_size[0], solid.sin / solid.half_size[0]
  cy, sy = solid.cos / solid.half_size[1], solid.sin / solid.half_size[1]
  iz = 1.0 / solid.half_size[2]
  dx, dy, dz = direction
  return (
    (cx * px + sx * py, cy * py - sy * px, iz * pz),
    (cx * dx + sx * dy, cy * dy - sy * dx, iz * dz),
  )


def _quadric(solid: Solids, o, d) -> tuple[Array, Array]:
  """Interval of p_x^2 + p_y^2 + e p_z^2 <= 1; everything where it is absent.

  The discriminant comes from the cross product o x d, not from b^2 - a c: a
  thin pole far away would drown in the rounding of |o|^2 - 1.
  """
  e = solid.round
  a = d[0] * d[0] + d[1] * d[1] + e * d[2] * d[2]
  b = o[0] * d[0] + o[1] * d[1] + e * o[2] * d[2]
  cross_x = o[1] * d[2] - o[2] * d[1]
  cross_y = o[2] * d[0] - o[0] * d[2]
  cross_z = o[0] * d[1] - o[1] * d[0]
  miss = cross_z * cross_z + e * (cross_x * cross_x + cross_y * cross_y)
  root = jnp.sqrt(jnp.maximum(a - miss, 0.0))
  inverse = 1.0 / jnp.maximum(a, 1e-12)
  present = solid.quadric > 0
  enter = jnp.where(miss < a, (-b - root) * inverse, INFINITE)
  leave = jnp.where(miss < a, (root - b) * inverse, -INFINITE)
  return (
    jnp.where(present, enter, -INFINITE),
    jnp.where(present, leave, INFINITE),
  )


def _intervals(solid: Solids, o, d) -> list[tuple[Array, Array]]:
  """(enter, leave) distances of slab x, slab z, the two sides, the quadric."""
  intervals = []
  for axis in (0, 2):
    inverse = 1.0 / _divisor(d[axis])
    middle, half = -o[axis] * inverse, jnp.abs(inverse)
    intervals.append((middle - half, middle + half))
  for sign in (1.0, -1.0):
    side = sign * (1.0 + solid.gable)
    rate = _divisor(side * d[1] + solid.gable * d[2])
    crossing = (1.0 - side * o[1] - solid.gable * o[2]) / rate
    intervals.append(
      (
        jnp.where(rate < 0, crossing, -INFINITE),
        jnp.where(rate < 0, INFINITE, crossing),
      )
    )
  intervals.append(_quadric(solid, o, d))
  return intervals


def _distance(intervals) -> Array:
  """First boundary ahead; from inside a shape, its far wall."""
  enter, leave = intervals[0]
  for low, high in intervals[1:]:
    enter, leave = jnp.maximum(enter, low), jnp.minimum(leave, high)
  first = jnp.where(enter > TOUCH, enter, leave)
  hit = (enter <= leave) & (leave > TOUCH) & (first < 1e9)
  return jnp.where(hit, first, INFINITE)


def intersect(solid: Solids, origin, direction) -> Array:
  """Distance to a shape, `INFINITE` for none; everything broadcasts."""
  return _distance(_intervals(solid, *_unit_ray(solid, origin, direction)))


def take(solids: Solids, index: Array) -> Solids:
  """The shape of each ray: fields of `solids` gathered by `index` [...]."""
  index = jnp.clip(index, 0, solids.cos.shape[0] - 1)
  return Solids(*(gathered(field, index) for field in solids))


def gathered(field, index):
  """`field` [N] or [3, N] at `index`; of three rows a tuple."""
  return tuple(row[index] for row in field) if field.ndim == 2 else field[index]


def surface(solid: Solids, origin, direction) -> Hit:
  """Distance, normal and own coordinates where rays meet a known shape.

  Args:
    solid: one shape per ray (`take`).
    origin: three components.
    direction: three components, unit.

  Returns:
    The hit; finite everywhere, meaningless where the ray misses.
  """
  o, d = _unit_ray(solid, origin, direction)
  intervals = _intervals(solid, o, d)
  distance = _distance(intervals)
  finite = jnp.where(distance < INFINITE, distance, 0.0)
  p = [x + finite * y for x, y in zip(o, d, strict=True)]
  # The boundary met is the one whose own crossing is the distance.
  gap = [
    jnp.minimum(jnp.abs(low - finite), jnp.abs(high - finite))
    for low, high in intervals
  ]
  gradients = (
    (jnp.sign(p[0]), 0.0, 0.0),
    (0.0, 0.0, jnp.sign(p[2])),
    (0.0, 1.0 + solid.gable, solid.gable),
    (0.0, -1.0 - solid.gable, solid.gable),
    (p[0], p[1], solid.round * p[2]),
  )
  nearest, gradient = gap[0], gradients[0]
  for value, candidate in zip(gap[1:], gradients[1:], strict=True):
    better = value < nearest
    nearest = jnp.where(better, value, nearest)
    gradient = tuple(
      jnp.where(better, new, old)
      for new, old in zip(candidate, gradient, strict=True)
    )
  x, y, z = (g / h for g, h in zip(gradient, solid.half_size, strict=True))
  scale = jax.lax.rsqrt(jnp.maximum(x * x + y * y + z * z, 1e-20))
  facet = (x * scale, y * scale, z * scale)
  normal = (
    solid.cos * facet[0] - solid.sin * facet[1],
    solid.sin * facet[0] + solid.cos * facet[1],
    facet[2],
  )
  facing = sum(n * v for n, v in zip(normal, direction, strict=True))
  flip = jnp.where(facing > 0, -1.0, 1.0)
  return Hit(
    distance=distance,
    normal=tuple(n * flip for n in normal),
    local=tuple(x * h for x, h in zip(p, solid.half_size, strict=True)),
    facet=facet,
  )


def _walk(origin, direction, table, index, near, count, key) -> Array:
  """Keys of the nearest hits of one tile.

  A key is the bit pattern of the distance (monotone for positive floats) with
  the slot of the candidate in its lowest 7 bits: one integer minimum keeps
  both, where a pair would cost XLA two passes over every shape test.
  """

  def body(state):
    start, key = state
    rows = jax.lax.dynamic_slice(index, (start,), (CHUNK,))
    shapes = table[rows]
    for lane in range(CHUNK):
      solid = _unpack(shapes[lane])
      t = intersect(solid, origin, direction)
      t = jnp.where(start + lane < count, t, INFINITE)
      bits = jax.lax.bitcast_convert_type(t, jnp.int32)
      key = jnp.minimum(key, (bits & ~_SLOT) | (start + lane))
    return start + CHUNK, key

  def more(state):
    start, key = state
    reach = jax.lax.bitcast_convert_type(jnp.max(key), jnp.float32)
    at = jnp.minimum(start, index.shape[0] - 1)
    return (start < count) & (near[at] < reach)

  return jax.lax.while_loop(more, body, (jnp.int32(0), key))[1]


def _pack(solids: Solids) -> Array:
  """[N, 11] rows of what the test reads."""
  fields = (solids.cos, solids.sin, solids.gable, solids.quadric, solids.round)
  return jnp.stack((*solids.center, *solids.half_size, *fields), axis=1)


def _unpack(row: Array) -> Solids:
  return Solids(
    (row[0], row[1], row[2]),
    (row[3], row[4], row[5]),
    *row[6:11],
    np.ones((), bool),
  )


def cast(
  rays: Rays,
  solids: Solids,
  terrain: terrain_lib.Terrain,
  candidates: Candidates,
) -> tuple[Array, Array]:
  """First hit of each ray.

  Args:
    rays: in T tiles of R.
    solids: the shapes.
    terrain: the ground.
    candidates: lists of the T tiles.

  Returns:
    distance [T, R] in metres (`INFINITE`: nothing) and index [T, R] int32
    into the solids, or GROUND or NOTHING.
  """
  table = _pack(solids)

  def tile(args):
    origin, direction, ground, index, near, count = args
    bits = jax.lax.bitcast_convert_type(ground, jnp.int32)
    key = _walk(origin, direction, table, index, near, count, bits | _SLOT)
    slot = key & _SLOT
    shape = index[jnp.minimum(slot, index.shape[0] - 1)]
    rough = jax.lax.bitcast_convert_type(key & ~_SLOT, jnp.float32)
    met = (slot != _SLOT) & (rough < 1e9)
    # The key's distance lost 7 bits: the winner is tested once more (another
    # rounding may call a grazing hit a miss).
    exact = intersect(take(solids, shape), origin, direction)
    exact = jnp.where(exact < 1e9, exact, rough)
    rest = jnp.where(ground < INFINITE, GROUND, NOTHING)
    return jnp.where(met, exact, ground), jnp.where(met, shape, rest)

  tiles = (
    jnp.moveaxis(rays.origin, 1, 0),
    jnp.moveaxis(rays.direction, 1, 0),
  )
  ground = terrain_lib.cast(terrain, tuple(rays.origin), tuple(rays.direction))
  return jax.lax.map(tile, (*tiles, ground, *candidates))


def occluded(
  rays: Rays, wanted: Array, solids: Solids, candidates: Candidates
) -> Array:
  """Whether anything lies ahead of each `wanted` ray, [T, R] bool."""
  table = _pack(solids)
  clear = jax.lax.bitcast_convert_type(jnp.float32(INFINITE), jnp.int32)

  def tile(args):
    origin, direction, wanted, index, near, count = args
    key = jnp.where(wanted, clear | _SLOT, 0)
    key = _walk(origin, direction, table, index, near, count, key)
    return wanted & (key < (clear & ~_SLOT))

  tiles = (
    jnp.moveaxis(rays.origin, 1, 0),
    jnp.moveaxis(rays.direction, 1, 0),
    wanted,
  )
  return jax.lax.map(tile, (*tiles, *candidates))
