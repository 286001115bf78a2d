# SPDX-License-Identifier: Apache-2.0
"""Where water runs and stands: rivers and lakes of a terrain.

The terrain is flooded from the sea and from its border, the lowest cell first
(priority flood, Barnes et al. 2014): every cell drains into the one it was
flooded from, and a hollow is filled up to its lowest way out.
"""

import heapq
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL import ImageDraw

_NEIGHBOURS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]


class Drainage(NamedTuple):
  """How a terrain of N x N cells drains.

  Attributes:
    into: int [N * N], the cell that each drains into; -1 out of the terrain or
      into the sea.
    catchment: float [N * N], cells whose water passes, itself included.
    filled: float [N, N], the terrain with its hollows full of water.
  """

  into: np.ndarray
  catchment: np.ndarray
  filled: np.ndarray


def drain(height: np.ndarray) -> Drainage:
  """How water leaves a terrain.

  Args:
    height: [N, N] metres; the sea is below 0.
  """
  rows, columns = height.shape
  filled = height.astype(np.float64)
  into = np.full(height.size, -1)
  seen = height < 0
  seen[[0, -1]] = seen[:, [0, -1]] = True
  front = [(filled[i, j], i, j) for i, j in np.argwhere(seen).tolist()]
  heapq.heapify(front)
  order = []
  while front:
    level, i, j = heapq.heappop(front)
    order.append(i * columns + j)
    for di, dj in _NEIGHBOURS:
      k, m = i + di, j + dj
      if 0 <= k < rows and 0 <= m < columns and not seen[k, m]:
        seen[k, m] = True
        filled[k, m] = max(filled[k, m], level)
        into[k * columns + m] = i * columns + j
        heapq.heappush(front, (filled[k, m], k, m))
  catchment = np.ones(height.size)
  for cell in reversed(order):
    if into[cell] >= 0:
      catchment[into[cell]] += catchment[cell]
  return Drainage(into, catchment, filled)


def draw_rivers(
  drainage: Drainage,
  rng: np.random.Generator,
  pixels: int,
  least: float,
  growth: float,
) -> np.ndarray:
  """Rivers as lines through the cells, the wider the more water they carry.

  Args:
    drainage: of N x N cells.
    rng: of the bends.
    pixels: P, of either side of the picture.
    least: cells that feed a river of one pixel.
    growth: pixels of width that a river of four times as many cells has more.

  Returns:
    float32 [P, P], 1 in a river.
  """
  count = drainage.filled.shape[1]
  scale = pixels / count
  row, column = np.divmod(np.arange(len(drainage.into)), count)
  middle = np.stack([column, row], 1) + 0.5
  nodes = (middle + rng.uniform(-0.35, 0.35, middle.shape)) * scale
  bends = rng.normal(0, 0.18 * scale, middle.shape)
  picture = Image.new('L', (pixels, pixels))
  draw = ImageDraw.Draw(picture)
  wet = np.flatnonzero((drainage.catchment >= least) & (drainage.into >= 0))
  for cell in wet[np.argsort(drainage.catchment[wet])].tolist():
    start, end = nodes[cell], nodes[drainage.into[cell]]
    bend = (start + end) / 2 + bends[cell]
    wide = 1 + growth * (np.sqrt(drainage.catchment[cell] / least) - 1)
    line = [tuple(point) for point in (start, bend, end)]
    draw.line(line, fill=255, width=round(wide), joint='curve')
    if wide > 2.5:
      x, y, r = *end, wide / 2
      draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
  return np.asarray(picture, np.float32) / 255
