# SPDX-License-Identifier: Apache-2.0
"""The land of a region, pixel by pixel: heights, water, what grows and stands.

Nothing here depends on a year or a season: `paint` says how it looks when.
Rows run north to south and columns west to east; x is metres east and y metres
north of the south-west corner of the picture.
"""

from typing import Any
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL import ImageDraw
from scipy import ndimage

from input_pipeline.synthetic_city import patterns
from input_pipeline.synthetic_earth import noise
from input_pipeline.synthetic_earth import water as water_lib

_CELL = 500.0  # metres, of the terrain that water runs over
_RIVER = 25e6  # square metres that feed a river of one pixel
_LAKE = 12.0  # metres of water in a hollow that is a lake
_LARGEST_LAKE = 150e6  # square metres
_DISTRICT = 7_000.0  # metres, land whose fields lie alike
_PIVOT = 900.0  # metres, of fields that a turning pipe waters


class Climate(NamedTuple):
  """What distinguishes regions.

  Attributes:
    wet: 0 desert to 1 rain forest.
    sea: share of the region below the sea.
    relief: metres of mountains.
    mountains: -1 hardly any to 1 everywhere.
    tree_line: metres.
    snow_line: metres in spring.
    farmed: 0 to 1.
    cities: how many in 10,000 square kilometres.
    red: of bare soil, 0 grey to 1 red.
    muddy: of rivers, 0 blue to 1 brown.
  """

  wet: float
  sea: float
  relief: float
  mountains: float
  tree_line: float
  snow_line: float
  farmed: float
  cities: int
  red: float
  muddy: float


_CLIMATES = (
  # Atlantic plain, desert, high mountains, taiga, tropics, Mediterranean.
  Climate(0.68, 0.15, 500, -0.25, 1500, 2200, 0.75, 14, 0.2, 0.2),
  Climate(0.13, 0.05, 1200, 0.0, 1500, 4500, 0.18, 4, 0.75, 0.3),
  Climate(0.55, 0.0, 3000, 0.35, 1900, 2300, 0.35, 6, 0.3, 0.1),
  Climate(0.62, 0.12, 700, 0.0, 900, 1100, 0.10, 3, 0.2, 0.2),
  Climate(0.88, 0.08, 900, -0.1, 2500, 4500, 0.30, 5, 0.8, 0.9),
  Climate(0.40, 0.25, 1500, 0.1, 1700, 2800, 0.60, 10, 0.55, 0.2),
)


class Land(NamedTuple):
  """Layers of one region, or of a part of it, [H, W] float32 unless said.

  Attributes:
    height: metres above the sea.
    east: rise to the east, metres per metre.
    north: rise to the north.
    wet: 0 to 1.
    grain: fine noise, -0.5 to 0.5.
    tint: the same of broad patches.
    forest: 0 to 1, share of trees.
    field: 0 to 1, share of fields.
    parcel: uint32, 32 random bits of each field.
    hedge: 0 to 1, borders of fields.
    town: 0 to 1, share of what is built.
    block: uint32, 32 random bits of each block of houses.
    street: 0 to 1, streets and roads.
    river: 0 to 1, rivers and lakes.
  """

  height: Any
  east: Any
  north: Any
  wet: Any
  grain: Any
  tint: Any
  forest: Any
  field: Any
  parcel: Any
  hedge: Any
  town: Any
  block: Any
  street: Any
  river: Any

  def at(self, rows: np.ndarray, columns: np.ndarray) -> 'Land':
    """The land at some pixels, layers [...] of rows and columns [...]."""
    return Land(*(layer[rows, columns] for layer in self))


def climate(seed: int) -> Climate:
  """The climate of a region: the kinds in turn, each with its own numbers."""
  rng = np.random.default_rng([seed, 1])
  kind = _CLIMATES[seed % len(_CLIMATES)]
  return kind._replace(
    wet=float(np.clip(kind.wet + rng.uniform(-0.08, 0.08), 0.08, 0.95)),
    sea=kind.sea * rng.uniform(0.6, 1.3),
    relief=kind.relief * rng.uniform(0.8, 1.2),
    mountains=kind.mountains + rng.uniform(-0.15, 0.15),
    farmed=kind.farmed * rng.uniform(0.8, 1.2),
    red=float(np.clip(kind.red + rng.uniform(-0.2, 0.2), 0, 1)),
  )


def make_land(seed: int, pixels: int, pixel: float) -> Land:
  """The land of a region.

  Args:
    seed: what it is made from.
    pixels: P, of either side.
    pixel: metres that a pixel spans.

  Returns:
    Layers [P, P].
  """
  kind, rng = climate(seed), np.random.default_rng([seed, 2])
  seeds = rng.integers(2**32, size=16, dtype=np.uint32)
  along = ((np.arange(pixels) + 0.5) * pixel).astype(np.float32)
  x, y = np.meshgrid(along, along[::-1])

  def fractal(wave, number, octaves=6):
    value = noise.fractal(x / wave, y / wave, seeds[number], octaves)
    return np.asarray(value)

  height = _height(kind, x, y, fractal, seeds)
  height, river, lake = _waters(kind, height, rng, pixels, pixel)
  height = height - 30 * ndimage.gaussian_filter(river, 400 / pixel)
  north, east = np.gradient(height, pixel)
  north = -north
  steep = np.hypot(east, north)
  green = ndimage.gaussian_filter(river, 700 / pixel)
  wet = kind.wet + 0.5 * fractal(25_000, 3, 3) + 2.0 * green * (1 - kind.wet)
  wet = np.clip(wet - height / 12_000, 0, 1)
  grain, tint = 1.3 * fractal(700, 4, 4), fractal(9_000, 5, 4)
  forest = _step(0.44, 0.58, wet + 0.9 * fractal(6_000, 6, 8) - 0.1)
  forest = forest * _step(kind.tree_line + 200, kind.tree_line - 200, height)
  flat = _step(0.12, 0.04, ndimage.gaussian_filter(steep, 500 / pixel))
  land = (height > 3) & (river < 0.5)
  fields = _fields(kind, x, y, pixel, seeds, flat * land, green, fractal)
  town, block, street = _towns(
    kind, rng, x, y, pixel, flat * land + green, fractal, seeds
  )
  return Land(
    *(height, east, north, wet, grain, tint, forest),
    *fields,
    *(town, block, street, np.maximum(river, lake)),
  )


def _step(low: float, high: float, value):
  """Smooth from 0 at `low` to 1 at `high`."""
  t = np.clip((value - low) / (high - low), 0, 1)
  return (t * t * (3 - 2 * t)).astype(np.float32)


def _height(kind, x, y, fractal, seeds):
  """Metres above the sea."""
  bent = [v + 6_000 * fractal(13_000, i, 6) for i, v in ((7, x), (8, y))]
  broad = np.asarray(
    noise.fractal(bent[0] / 45_000, bent[1] / 45_000, seeds[0], 3)
  )
  crest = np.asarray(
    noise.ridged(bent[0] / 14_000, bent[1] / 14_000, seeds[1], 8)
  )
  hills = fractal(7_000, 2, 8)
  mountain = _step(-0.25, 0.25, broad + 0.5 * kind.mountains - 0.05)
  height = (
    900 * broad
    + (160 + 0.3 * kind.relief * mountain) * hills
    + kind.relief * mountain * crest
  )
  shore = np.quantile(height[::4, ::4], kind.sea)
  return (height - shore + (0 if kind.sea > 0.02 else 150)).astype(np.float32)


def _waters(kind, height, rng, pixels, pixel):
  """Height without most of its hollows, rivers and lakes, [P, P] each."""
  count = max(8, round(pixels * pixel / _CELL))

  def resized(values, factor):
    return ndimage.zoom(values, factor, order=1, grid_mode=True, mode='nearest')

  coarse = resized(
    ndimage.gaussian_filter(height, 0.3 * pixels / count), count / pixels
  )
  drainage = water_lib.drain(coarse)
  # Where it seldom rains, it takes more land to feed a river.
  cell = (pixels * pixel / count) ** 2
  least = _RIVER / cell * (0.4 / max(kind.wet, 0.1)) ** 1.5
  river = water_lib.draw_rivers(drainage, rng, pixels, least, 0.55)
  # Rivers have filled most hollows with what they carry; some are lakes.
  deep = np.where(coarse > 0, drainage.filled - coarse, 0)
  hollows, number = ndimage.label(deep > 0)
  sizes = np.bincount(hollows.ravel(), minlength=number + 1) * cell
  lakes = rng.random(number + 1) < 0.5 * kind.wet
  lakes &= (sizes < _LARGEST_LAKE) & (np.arange(number + 1) > 0)
  filled = resized(np.where(lakes[hollows], 0, deep), pixels / count)
  deep = resized(np.where(lakes[hollows], deep, 0), pixels / count)
  lake = _step(_LAKE, _LAKE + 4, deep)
  height = (height + 0.9 * filled).astype(np.float32)
  return height, river, lake


def _fields(kind, x, y, pixel, seeds, flat, green, fractal):
  """Share of fields, their random bits, and their borders."""
  bent = 1_500 * fractal(8_000, 9, 2)
  district = noise.cells(
    (x + bent) / _DISTRICT, (y - bent) / _DISTRICT, seeds[10]
  )
  share, turn, size, shape = (
    np.asarray(patterns.byte(district, i)) for i in range(4)
  )
  angle = turn * np.float32(np.pi)
  wide = 350 + 700 * size
  high = wide * (0.5 + 1.2 * shape)
  u = (np.cos(angle) * x + np.sin(angle) * y) / wide
  v = (np.cos(angle) * y - np.sin(angle) * x) / high
  i, j = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
  parcel = np.asarray(patterns.random(i, j, district))
  inside = np.minimum(
    np.minimum(u - i, 1 + i - u) * wide, np.minimum(v - j, 1 + j - v) * high
  )
  hedge = np.clip(1 - inside / (0.7 * pixel), 0, 1)
  fertile = kind.farmed + 0.8 * fractal(20_000, 11, 4) + 0.7 * green
  field = flat * (share * 0.7 + 0.1 < fertile)
  # Some parcels lie fallow or are woods.
  field = field * (np.asarray(patterns.byte(parcel, 3)) > 0.12)
  if kind.wet < 0.35:
    i, j = np.floor(x / _PIVOT), np.floor(y / _PIVOT)
    away = np.hypot(x / _PIVOT - i - 0.5, y / _PIVOT - j - 0.5)
    circle = share < 0.75
    around = np.asarray(
      patterns.random(i.astype(np.int32), j.astype(np.int32), seeds[12])
    )
    parcel = np.where(circle, around, parcel)
    grown = (away < 0.47) & (np.asarray(patterns.byte(around, 3)) > 0.3)
    field = np.where(circle, field * grown, field)
    hedge = np.where(circle, 0, hedge)
  field = ndimage.gaussian_filter(field.astype(np.float32), 0.5)
  return field, parcel, hedge.astype(np.float32)


def _towns(kind, rng, x, y, pixel, habitable, fractal, seeds):
  """Share of what is built, its blocks, and streets and roads."""
  pixels = len(x)
  extent = pixels * pixel
  count = max(1, round(kind.cities * (extent / 1e5) ** 2))
  town = np.zeros_like(x)
  street, block = np.zeros_like(x), np.zeros(x.shape, np.uint32)
  ragged = fractal(1_800, 13, 4)
  places = _sites(rng, habitable, count, pixel)
  for number, (row, column) in enumerate(places):
    radius = 700 + 3_300 * rng.random() ** 2.5
    reach = int(1.7 * radius / pixel) + 1
    window = (
      slice(max(0, row - reach), row + reach + 1),
      slice(max(0, column - reach), column + reach + 1),
    )
    dx = x[window] - x[row, column]
    dy = y[window] - y[row, column]
    away = np.hypot(dx, dy) / radius
    built = _step(0.35, -0.25, away + 1.1 * ragged[window] - 0.75)
    angle, side = rng.uniform(0, np.pi), rng.uniform(240, 420)
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / side
    v = (np.cos(angle) * dy - np.sin(angle) * dx) / (1.4 * side)
    i, j = np.floor(u), np.floor(v)
    bits = np.asarray(
      patterns.random(
        i.astype(np.int32), j.astype(np.int32), seeds[14] + np.uint32(number)
      )
    )
    lane = np.minimum(
      np.minimum(u - i, 1 + i - u) * side,
      np.minimum(v - j, 1 + j - v) * 1.4 * side,
    )
    lane = np.clip(1 - lane / (0.6 * pixel), 0, 1) * built
    newer = built > town[window]
    town[window] = np.where(newer, built, town[window])
    street[window] = np.where(newer, lane, street[window])
    block[window] = np.where(newer, bits, block[window])
  town = town * (habitable > 0.05)
  roads = _roads(rng, places, habitable)
  return town, block, np.maximum(street * town, roads)


def _sites(rng, habitable, count, pixel):
  """Rows and columns of towns: on good land, apart from each other."""
  every = max(1, round(1_000 / pixel))
  some = ndimage.gaussian_filter(habitable, every)[::every, ::every]
  score = some * rng.random(some.shape)
  found = []
  for place in np.argsort(-score, axis=None).tolist():
    row, column = divmod(place, some.shape[1])
    apart = [np.hypot(row - r, column - c) for r, c in found]
    if score[row, column] > 0.1 and min(apart, default=np.inf) > 7:
      found.append((row, column))
    if len(found) == count:
      break
  return [(every * row, every * column) for row, column in found]


def _roads(rng, places, habitable):
  """Roads [P, P] that join each town to the nearest ones before it."""
  picture = Image.new('L', habitable.shape[::-1])
  draw = ImageDraw.Draw(picture)
  nodes = np.array(places, np.float64).reshape(-1, 2)[:, ::-1]
  for i in range(1, len(nodes)):
    away = np.hypot(*(nodes[:i] - nodes[i]).T)
    for j in np.argsort(away)[: 1 + (i % 3 == 0)]:
      line = np.stack([nodes[i], nodes[j]])
      for _ in range(5):  # bends of bends
        step = np.diff(line, axis=0)
        sideways = step[:, ::-1] * [1, -1] * rng.normal(0, 0.1, (len(step), 1))
        line = np.insert(
          line, range(1, len(line)), line[:-1] + step / 2 + sideways, 0
        )
      draw.line([tuple(point) for point in line], fill=200, width=1)
  return np.asarray(picture, np.float32) / 255 * (habitable > 0.03)
