# SPDX-License-Identifier: Apache-2.0
"""A town from above, like a satellite image: north up, orthographic."""

import numpy as np
from PIL import Image
from PIL import ImageDraw

from input_pipeline.synthetic_city import assembly
from input_pipeline.synthetic_city import primitives
from input_pipeline.synthetic_city import roads
from input_pipeline.synthetic_city import town as towns

_GRASS = np.array([92, 112, 62])
_PAVEMENT = (168, 164, 156)
_ROAD = (84, 85, 88)
_PAINT = (226, 226, 220)
_SUPERSAMPLE = 2
_LIGHT = np.array([-0.5, 0.45, 0.74])  # from the north-west, as on maps
_SHADOW = 0.42  # metres of shadow per metre of height, to the south-east


def render_overview(
  town: towns.Town,
  center_xy: tuple[float, float] | None = None,
  extent_m: float | None = None,
  pixels: int = 1024,
  extra: primitives.Primitives | None = None,
) -> np.ndarray:
  """Renders a square of the town from above.

  Args:
    town: what to render.
    center_xy: world position of the middle; None takes the town's middle.
    extent_m: side of the square, metres; None shows the whole town.
    pixels: side of the image.
    extra: more primitives, such as a drive's parked cars.

  Returns:
    [pixels, pixels, 3] uint8; north is up, east is right.
  """
  nodes = town.network.nodes
  middle = (nodes.max(0) + nodes.min(0)) / 2
  center = middle if center_xy is None else np.asarray(center_xy, np.float64)
  if extent_m is None:
    extent_m = float(np.ptp(nodes, axis=0).max() + 120)
  size = pixels * _SUPERSAMPLE
  view = _View(center, extent_m, size)
  image = Image.fromarray(_meadow(town, view))
  draw = ImageDraw.Draw(image)
  _draw_roads(draw, town.ground, view)
  table = town.static
  if extra is not None:
    table = assembly.concatenate(table, extra)
  reach = extent_m * 0.75 + 60
  near = ((table.center[:, :2] - center) ** 2).sum(-1) < reach**2
  _draw_primitives(image, assembly.take(table, near), town.ground, view)
  small = image.resize((pixels, pixels), Image.Resampling.BOX)
  return np.asarray(small.convert('RGB'))


class _View:
  """Maps world xy to pixels."""

  def __init__(self, center: np.ndarray, extent: float, size: int):
    self.center, self.size = center, size
    self.scale = size / extent  # pixels per metre

  def pixels(self, xy: np.ndarray) -> np.ndarray:
    offset = (np.asarray(xy) - self.center) * self.scale
    return offset * [1, -1] + self.size / 2

  def outline(self, xy: np.ndarray) -> list[tuple[float, float]]:
    return [tuple(p) for p in self.pixels(xy)]


def _meadow(town, view) -> np.ndarray:
  """Grass with soft patches, the same at every zoom."""
  grid = (np.arange(view.size) + 0.5 - view.size / 2) / view.scale
  x = view.center[0] + grid[None, :]
  y = view.center[1] - grid[:, None]
  shift = float(town.ground.seed % 1000)
  patches = np.sin(x / 23 + shift + 1.7 * np.sin(y / 41)) * np.sin(
    y / 19 - shift + 1.3 * np.sin(x / 37)
  ) + 0.5 * np.sin(x / 5.1 + y / 7.3) * np.sin(y / 4.3 - x / 6.1)
  shade = 1 + 0.09 * patches[..., None]
  return np.clip(_GRASS * shade, 0, 255).astype(np.uint8)


def _capsules(draw, ground, view, extra, color):
  """Paints all pieces of road, wider by `extra` [R] metres on each side."""
  starts, ends = view.pixels(ground.start), view.pixels(ground.end)
  radii = (ground.half_width + extra) * view.scale
  for a, b, r in zip(starts, ends, radii, strict=True):
    draw.line([tuple(a), tuple(b)], fill=color, width=max(1, round(2 * r)))
    for x, y in (a, b):
      draw.ellipse([x - r, y - r, x + r, y + r], fill=color)


def _draw_roads(draw, ground, view):
  _capsules(draw, ground, view, ground.pavement_width, _PAVEMENT)
  _capsules(draw, ground, view, 0.0, _ROAD)
  for start, end, half_width, zebra in zip(
    ground.start, ground.end, ground.half_width, ground.zebra, strict=True
  ):
    length = np.hypot(*(end - start))
    tangent = (end - start) / length
    left = roads.left_of(tangent)
    for at in np.arange(1.5, length - 1.5, 6.0):  # dashes of 3 m
      dash = [start + tangent * at, start + tangent * min(at + 3, length)]
      middle = (dash[0] + dash[1])[None] / 2
      if roads.kerb_distance(ground, middle)[0] > -half_width - 0.3:
        draw.line(
          view.outline(np.stack(dash)), fill=_PAINT,
          width=max(1, round(0.15 * view.scale)),
        )  # fmt: skip
    if zebra >= 0:
      for aside in np.arange(-half_width + 0.5, half_width - 0.4, 1.0):
        middle = start + tangent * zebra + left * aside
        corners = [
          middle + tangent * 1.5 * a + left * 0.25 * b
          for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))
        ]
        draw.polygon(view.outline(np.stack(corners)), fill=_PAINT)


def _draw_primitives(image, table, ground, view):
  """Shadows first, then everything from the lowest top to the highest."""
  top = table.center[:, 2] + table.half_size[:, 2]
  over = top - primitives.height(ground, table.center[:, :2])
  corners = assembly.footprint_corners(table)
  shade = Image.new('L', image.size, 0)
  pen = ImageDraw.Draw(shade)
  cast = np.clip(over, 0, 14)[:, None, None] * [_SHADOW, -_SHADOW]
  for kind, base, moved in zip(
    table.kind, corners, corners + cast, strict=True
  ):
    if kind <= primitives.PRISM:
      for a, b in zip(base, np.roll(base, 1, axis=0), strict=True):
        i = np.flatnonzero((base == a).all(-1))[0]
        j = np.flatnonzero((base == b).all(-1))[0]
        side = np.stack([a, b, moved[j], moved[i]])
        pen.polygon(view.outline(side), fill=110)
    _shape(pen, kind, moved, view, 110)
  dark = Image.new('RGB', image.size, (18, 24, 34))
  image.paste(dark, mask=shade)
  draw = ImageDraw.Draw(image)
  colors = np.clip(table.color, 0, 1) ** (1 / 2.2) * 235
  for i in np.argsort(top, kind='stable'):
    color = colors[i]
    if table.kind[i] == primitives.PRISM:
      _roof(draw, corners[i], table.yaw[i], color, view)
      continue
    if primitives.MATERIALS[table.material[i]] in ('facade', 'brick_facade'):
      color = 0.4 * color + 70  # gravel on what is flat
    _shape(draw, table.kind[i], corners[i], view, _rgb(color))
    if table.kind[i] == primitives.ELLIPSOID:
      _highlight(draw, corners[i], color, view)


def _rgb(color) -> tuple[int, int, int]:
  red, green, blue = np.clip(color, 0, 255)
  return int(red), int(green), int(blue)


def _shape(draw, kind, corners, view, fill):
  if kind <= primitives.PRISM:
    draw.polygon(view.outline(corners), fill=fill)
    return
  x, y = view.pixels(corners.mean(0))
  radius = np.hypot(*(corners[0] - corners[1])) / 2 * view.scale
  draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)


def _highlight(draw, corners, color, view):
  """The sunny side of a crown."""
  half = np.hypot(*(corners[0] - corners[1])) / 2
  x, y = view.pixels(corners.mean(0) + _LIGHT[:2] * 0.5 * half)
  radius = 0.55 * half * view.scale
  box = [x - radius, y - radius, x + radius, y + radius]
  draw.ellipse(box, fill=_rgb(color * 1.25))


def _roof(draw, corners, yaw, color, view):
  """Two slopes beside a ridge along the roof's own x axis."""
  # Corners come as (+,+), (+,-), (-,-), (-,+).
  ridge = (corners[[0, 3]] + corners[[1, 2]]) / 2
  left = np.array([-np.sin(yaw), np.cos(yaw)])
  for side, outer in ((1, corners[[0, 3]]), (-1, corners[[1, 2]])):
    normal = np.array([*(0.6 * side * left), 0.8])
    light = 0.55 + 0.6 * max(0.0, float(normal @ _LIGHT))
    slope = np.concatenate([outer, ridge[::-1]])
    draw.polygon(view.outline(slope), fill=_rgb(color * light))
