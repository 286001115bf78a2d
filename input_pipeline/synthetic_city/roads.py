# SPDX-License-Identifier: Apache-2.0
"""The road network of a town: streets, junctions and terrain.

A network is an irregular grid: nodes are junctions, edges are streets with a
curved centre line. Edge e is driven from its first to its second node by the
half-edge 2 e and back by 2 e + 1, so that `h ^ 1` is always the other
direction. Traffic keeps to the right.
"""

import functools
from typing import NamedTuple

import numpy as np

from input_pipeline.synthetic_city import primitives

STYLES = ('old_town', 'villas', 'blocks', 'industry', 'park')
OLD_TOWN, VILLAS, BLOCKS, INDUSTRY, PARK = range(5)

_SAMPLES = 33  # per centre line
_CLEARANCE = 4.5  # metres of a junction beyond the widest street's kerb

# Per style: half width, pavement width (ranges, metres), share of streets
# that allow parking. Below 5 m a lane would run through the parked cars.
_WIDTHS = {
  OLD_TOWN: ((5.2, 5.6), (1.7, 2.6), 0.9),
  VILLAS: ((5.2, 5.7), (1.5, 2.2), 0.85),
  BLOCKS: ((5.6, 6.4), (2.4, 3.6), 1.0),
  INDUSTRY: ((5.2, 6.2), (1.4, 2.4), 0.5),
  PARK: ((5.2, 5.8), (2.2, 3.6), 0.7),
}


class Network(NamedTuple):
  """Junctions and streets.

  Attributes:
    nodes: [V, 2] float64, metres, world frame.
    edges: [E, 2] int64, node indices.
    curves: [E, S, 2] float64, samples of the centre lines.
    half_width: [E] float64, of the carriageway, metres.
    pavement_width: [E] float64, of each pavement, metres.
    parking: [E, 2] bool, cars may park on the (left, right) of the edge as
      seen from its first node.
    style: [E] int64, index into STYLES.
    reach: [V] float64, metres from the node at which lanes end.
    zebra: [E, 2] float64, metres from the first node of a zebra crossing near
      the (first, second) node, negative for none.
  """

  nodes: np.ndarray
  edges: np.ndarray
  curves: np.ndarray
  half_width: np.ndarray
  pavement_width: np.ndarray
  parking: np.ndarray
  style: np.ndarray
  reach: np.ndarray
  zebra: np.ndarray


def make_network(rng: np.random.Generator) -> Network:
  """Draws the streets of a town, about half a kilometre across."""
  nodes, edges = _grid(rng)
  curves = _bend(rng, nodes, edges)
  style = _districts(rng, nodes, curves[:, _SAMPLES // 2])
  widths = [_WIDTHS[s] for s in style]
  half_width = np.array([rng.uniform(*w[0]) for w in widths])
  pavement_width = np.array([rng.uniform(*w[1]) for w in widths])
  allowed = rng.random(len(edges)) < [w[2] for w in widths]
  parking = allowed[:, None] & (rng.random((len(edges), 2)) < 0.85)
  widest = np.zeros(len(nodes))
  for column in edges.T:
    np.maximum.at(widest, column, half_width)
  # Sharp corners need a longer way round.
  sharp = np.maximum(0.0, np.cos(_corner_angles(nodes, edges, curves)))
  lengths = np.array([arc_lengths(c)[-1] for c in curves])
  zebra = widest[edges] + 3.0
  zebra[:, 1] = lengths - zebra[:, 1]
  zebra[rng.random(zebra.shape) < 0.45] = -1.0
  return Network(
    nodes=nodes,
    edges=edges,
    curves=curves,
    half_width=half_width,
    pavement_width=pavement_width,
    parking=parking,
    style=style,
    reach=widest + _CLEARANCE + 2.5 * sharp,
    zebra=zebra,
  )


def _grid(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """A rotated, stretched and jittered grid with streets missing."""
  columns, rows = rng.integers(6, 8), rng.integers(5, 7)
  x = np.cumsum(rng.uniform(78, 128, columns))
  y = np.cumsum(rng.uniform(78, 128, rows))
  nodes = np.stack(np.meshgrid(x, y, indexing='ij'), -1).reshape(-1, 2)
  nodes -= nodes.mean(0)
  nodes += rng.uniform(-13, 13, nodes.shape)
  # A slow warp bends whole streets, so that a row of blocks is no straight cut.
  phase = rng.uniform(0, 2 * np.pi, 2)
  nodes += 16 * np.sin(nodes[:, ::-1] / rng.uniform(110, 170) + phase)
  angle = rng.uniform(0, 2 * np.pi)
  cos, sin = np.cos(angle), np.sin(angle)
  nodes = nodes @ np.array([[cos, sin], [-sin, cos]])
  index = np.arange(columns * rows).reshape(columns, rows)
  across = np.stack([index[:-1].ravel(), index[1:].ravel()], -1)
  along_y = np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], -1)
  edges = np.concatenate([across, along_y])
  return nodes, _thin_out(rng, edges, len(nodes))


def _thin_out(
  rng: np.random.Generator, edges: np.ndarray, num_nodes: int
) -> np.ndarray:
  """Removes a fifth of the streets; no dead ends, still connected."""
  keep = np.ones(len(edges), bool)
  degree = np.bincount(edges.ravel(), minlength=num_nodes)
  target = int(0.2 * len(edges))
  for e in rng.permutation(len(edges)):
    if target == 0:
      break
    keep[e] = False
    degree[edges[e]] -= 1
    if degree[edges[e]].min() < 2 or not _connected(edges[keep], num_nodes):
      keep[e] = True
      degree[edges[e]] += 1
    else:
      target -= 1
  return edges[keep]


def _connected(edges: np.ndarray, num_nodes: int) -> bool:
  label = np.arange(num_nodes)
  while True:
    low = np.minimum(label[edges[:, 0]], label[edges[:, 1]])
    new = label.copy()
    np.minimum.at(new, edges[:, 0], low)
    np.minimum.at(new, edges[:, 1], low)
    if (new == label).all():
      return bool((label == 0).all())
    label = new


def _bend(
  rng: np.random.Generator, nodes: np.ndarray, edges: np.ndarray
) -> np.ndarray:
  """Cubic Bezier centre lines: a third straight, the others bowed or S."""
  start, end = nodes[edges[:, 0]], nodes[edges[:, 1]]
  chord = end - start
  normal = np.stack([-chord[:, 1], chord[:, 0]], -1)
  bow = rng.uniform(-0.16, 0.16, (len(edges), 2))
  same_side = rng.random(len(edges)) < 0.7
  bow[same_side, 1] = bow[same_side, 0]
  bow[rng.random(len(edges)) < 0.35] = 0.0
  curves = _bezier(start, end, normal, bow)
  tight = _corner_angles(nodes, edges, curves) < np.deg2rad(58)
  bow[tight[edges].any(-1)] = 0.0
  return _bezier(start, end, normal, bow)


def _bezier(start, end, normal, bow):
  chord = end - start
  control = [
    start + chord * t + normal * b[:, None]
    for t, b in zip((1 / 3, 2 / 3), bow.T, strict=True)
  ]
  t = np.linspace(0, 1, _SAMPLES)[None, :, None]
  return (
    (1 - t) ** 3 * start[:, None]
    + 3 * (1 - t) ** 2 * t * control[0][:, None]
    + 3 * (1 - t) * t**2 * control[1][:, None]
    + t**3 * end[:, None]
  )


def _corner_angles(
  nodes: np.ndarray, edges: np.ndarray, curves: np.ndarray
) -> np.ndarray:
  """The smallest angle [V] between two streets at each node, radians."""
  leave = np.concatenate(
    [curves[:, 1] - curves[:, 0], curves[:, -2] - curves[:, -1]]
  )
  angle = np.arctan2(leave[:, 1], leave[:, 0])
  at = np.concatenate([edges[:, 0], edges[:, 1]])
  result = np.zeros(len(nodes))
  for node in range(len(nodes)):
    around = np.sort(angle[at == node])
    result[node] = np.diff(around, append=around[0] + 2 * np.pi).min()
  return result


def _districts(
  rng: np.random.Generator, nodes: np.ndarray, places: np.ndarray
) -> np.ndarray:
  """The style of each place [N, 2]: that of the nearest district centre."""
  styles = np.concatenate(
    [
      [OLD_TOWN, VILLAS, BLOCKS],
      rng.permutation([VILLAS, BLOCKS, INDUSTRY, PARK, OLD_TOWN])[:4],
    ]
  )
  low, high = nodes.min(0), nodes.max(0)
  centers = rng.uniform(low, high, (len(styles), 2))
  centers[0] = nodes.mean(0) + rng.uniform(-60, 60, 2)
  distance = np.linalg.norm(places[:, None] - centers, axis=-1)
  distance += rng.normal(0, 12, distance.shape)
  return styles[distance.argmin(1)]


def arc_lengths(curve: np.ndarray) -> np.ndarray:
  """Distance along a polyline [S, 2] of each of its points, [S]."""
  steps = np.hypot(*np.diff(curve, axis=0).T)
  return np.concatenate([[0.0], np.cumsum(steps)])


def along(
  curve: np.ndarray, distance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Points and unit tangents at arc lengths of a polyline.

  Args:
    curve: [S, 2].
    distance: [...], metres, clipped to the curve.

  Returns:
    points [..., 2] and tangents [..., 2].
  """
  arc, tangent = _measured(np.asarray(curve, np.float64).tobytes())

  def at(values):
    return np.stack(
      [np.interp(distance, arc, column) for column in values.T], -1
    )

  direction = at(tangent)
  norm = np.linalg.norm(direction, axis=-1, keepdims=True)
  return at(curve), direction / norm


@functools.lru_cache(maxsize=1024)
def _measured(curve: bytes) -> tuple[np.ndarray, np.ndarray]:
  """Arc lengths and tangents of a curve that thousands of things stand along.

  Args:
    curve: float64 [S, 2].
  """
  points = np.frombuffer(curve).reshape(-1, 2)
  arc = arc_lengths(points)
  return arc, np.asarray(np.gradient(points, arc, axis=0))


def left_of(tangent: np.ndarray) -> np.ndarray:
  """The unit normals [..., 2] to the left of tangents [..., 2]."""
  return np.stack([-tangent[..., 1], tangent[..., 0]], -1)


def make_ground(
  network: Network, rng: np.random.Generator
) -> primitives.Ground:
  """Straight pieces of the centre lines on a gently rolling terrain."""
  columns = {'start': [], 'end': [], 'zebra': [], 'edge': []}
  for edge, curve in enumerate(network.curves):
    arc = arc_lengths(curve)
    straight = arc[-1] - np.linalg.norm(curve[-1] - curve[0]) < 0.01
    count = 2 if straight else 2 * int(np.ceil(arc[-1] / 22))
    cuts = np.linspace(0, arc[-1], count + 1)
    points, _ = along(curve, cuts)
    zebra = np.full(count, -1.0)
    for place in network.zebra[edge]:
      if place >= 0:
        piece = min(int(place / arc[-1] * count), count - 1)
        inside = place - cuts[piece]
        zebra[piece] = np.clip(inside, 2.2, cuts[1] - 2.2)
    columns['start'].append(points[:-1])
    columns['end'].append(points[1:])
    columns['zebra'].append(zebra)
    columns['edge'].append(np.full(count, edge))
  joined = {name: np.concatenate(v) for name, v in columns.items()}
  wavelength = rng.uniform([320, 320, 200, 140], [700, 700, 330, 220])
  direction = rng.uniform(0, 2 * np.pi, 4)
  slope = rng.uniform(
    [0.008, 0.008, 0.005, 0.003], [0.022, 0.022, 0.014, 0.008]
  )
  wave = 2 * np.pi / wavelength
  return primitives.Ground(
    start=joined['start'],
    end=joined['end'],
    half_width=network.half_width[joined['edge']].astype(np.float32),
    pavement_width=network.pavement_width[joined['edge']].astype(np.float32),
    zebra=joined['zebra'].astype(np.float32),
    amplitude=(slope / wave).astype(np.float32),
    wave=(
      wave[:, None] * np.stack([np.cos(direction), np.sin(direction)], -1)
    ).astype(np.float32),
    phase=rng.uniform(0, 2 * np.pi, 4).astype(np.float32),
    seed=np.uint32(rng.integers(2**32)),
  )


def kerb_distance(ground: primitives.Ground, points: np.ndarray) -> np.ndarray:
  """Signed distance of points [N, 2] to the nearest kerb, [N], metres.

  Negative on the road: the minimum over streets of the distance to the centre
  line less the half width.
  """
  direction = ground.end - ground.start
  squared = (direction**2).sum(-1)
  offset_x = points[:, None, 0] - ground.start[:, 0]
  offset_y = points[:, None, 1] - ground.start[:, 1]
  t = (offset_x * direction[:, 0] + offset_y * direction[:, 1]) / squared
  t = np.clip(t, 0, 1)
  offset_x -= t * direction[:, 0]
  offset_y -= t * direction[:, 1]
  return (np.hypot(offset_x, offset_y) - ground.half_width).min(1)
