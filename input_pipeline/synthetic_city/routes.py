# SPDX-License-Identifier: Apache-2.0
"""Routes through the streets of a town and the paths of those who drive them.

A route is a sequence of half-edges; the path of a vehicle keeps to a lane on
the right of the centre lines.
"""

import numpy as np

from input_pipeline.synthetic_city import roads

LANE_OFFSET = 1.6  # metres from the centre line to the middle of a lane
PATH_STEP = 0.5  # metres between the samples of a driven path


def resample(path: np.ndarray, step: float) -> np.ndarray:
  """Points [N, 2] at equal arc lengths of a polyline [S, 2]."""
  arc = roads.arc_lengths(path)
  distance = np.arange(0.0, arc[-1], step)
  return np.stack([np.interp(distance, arc, c) for c in path.T], -1)


def lane_path(
  network: roads.Network, route: np.ndarray, offset: float = LANE_OFFSET
) -> np.ndarray:
  """The path of a vehicle that follows a route.

  Lanes end at the junctions' reach; a Bezier curve joins them across.

  Args:
    network: the streets.
    route: [K] int, half-edges, each starting where the one before ends.
    offset: metres to the right of the centre line.

  Returns:
    [N, 2] points, PATH_STEP apart.
  """
  pieces, exit_tangent = [], np.zeros(2)
  for half_edge in route:
    edge, backwards = divmod(int(half_edge), 2)
    curve = network.curves[edge]
    ends = network.reach[network.edges[edge]]
    if backwards:
      curve, ends = curve[::-1], ends[::-1]
    length = roads.arc_lengths(curve)[-1]
    count = int((length - ends.sum()) // 2) + 2
    point, tangent = roads.along(
      curve, np.linspace(ends[0], length - ends[1], count)
    )
    lane = point - offset * roads.left_of(tangent)
    if pieces:
      pieces.append(_turn(pieces[-1][-1], exit_tangent, lane[0], tangent[0]))
    pieces.append(lane)
    exit_tangent = tangent[-1]
  path = resample(np.concatenate(pieces), PATH_STEP)
  return _smooth(path, 9)


def _turn(
  start: np.ndarray, leave: np.ndarray, end: np.ndarray, arrive: np.ndarray
) -> np.ndarray:
  """Inner points [12, 2] of a Bezier curve, close to a circle's arc."""
  # That of a circle's arc: 4/3 tan(angle / 4) radii, chord 2 sin(angle / 2).
  angle = np.arccos(np.clip(leave @ arrive, -1, 1)) + 1e-6
  chord = np.linalg.norm(end - start)
  handle = 2 / 3 * np.tan(angle / 4) / np.sin(angle / 2) * chord
  t = np.linspace(0, 1, 14)[1:-1, None]
  return (
    (1 - t) ** 3 * start
    + 3 * (1 - t) ** 2 * t * (start + handle * leave)
    + 3 * (1 - t) * t**2 * (end - handle * arrive)
    + t**3 * end
  )


def _smooth(path: np.ndarray, width: int) -> np.ndarray:
  """Moving average of odd width; the ends stay where they are."""
  half = width // 2
  before = 2 * path[0] - path[half:0:-1]
  after = 2 * path[-1] - path[-2 : -half - 2 : -1]
  padded = np.concatenate([before, path, after])
  total = np.cumsum(np.concatenate([np.zeros((1, 2)), padded]), axis=0)
  return (total[width:] - total[:-width]) / width


def make_route(
  network: roads.Network, rng: np.random.Generator, length: float
) -> np.ndarray:
  """A walk of at least `length` metres, [K] half-edges, without U-turns.

  Streets already driven, above all in the same direction, come last.
  """
  heads = network.edges[:, ::-1].reshape(-1)  # node where each half-edge ends
  tails = network.edges.reshape(-1)
  lengths = np.repeat([roads.arc_lengths(c)[-1] for c in network.curves], 2)
  used = np.zeros(len(tails))
  half_edge = int(rng.integers(len(tails)))
  route, driven = [], 0.0
  while True:
    route.append(half_edge)
    used[half_edge] += 3
    used[half_edge ^ 1] += 1
    driven += lengths[half_edge]
    if driven >= length:
      return np.array(route)
    options = np.flatnonzero(tails == heads[half_edge])
    options = options[options != half_edge ^ 1]
    cost = used[options] + rng.random(len(options))
    half_edge = int(options[cost.argmin()])


def reverse_route(route: np.ndarray) -> np.ndarray:
  """The same streets in the opposite direction, [K] half-edges."""
  return route[::-1] ^ 1
