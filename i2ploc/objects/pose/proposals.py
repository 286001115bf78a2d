# SPDX-License-Identifier: Apache-2.0
"""Which three candidate pairs are worth solving for a pose.

The size of a box roughly gives the distance of a landmark: seen along any
direction n at depth z, an ellipsoid of shape A has a box of half sides w, h on
the plane z = 1 with

  (w^2 + h^2) z^2 = trace(A) - n^T A n

up to perspective. The right side lies between the sum of the two smallest and
the sum of the two largest squared semi-axes. Two pairs contradict each other if
no distances within these bounds, along their rays, put the landmarks as far
apart as the map does. The others are the edges of a sparse graph, and triples
are its triangles: hardly any of the similar landmarks all over a large map
survive.

On the host, in numpy: the numbers of pairs and triples are not static.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import compilation
from i2ploc.errors import InputError
from i2ploc.geometry import ellipsoid as ellipsoid_lib
from i2ploc.objects import association
from i2ploc.robust import samplers

SAMPLERS = ('auto', 'prosac', 'b_prosac', 'uniform')
SAMPLE_SIZE = 3
# Factors by which a landmark may be nearer or farther than its box says:
# occluders cut boxes, detectors leave margins, boxes of thin objects fit
# poorly. 99 % of real boxes (TUM RGB-D, even frames) are within 0.94 and 1.08.
_NEARER, _FARTHER = 1.4, 1.25
# Further factor if the border of the image cuts the box: the object is nearer.
_CUT = 1.5
# Relative error of a distance between landmarks.
_SLACK = 0.05
# Standard deviation of the logarithm of a distance between two landmarks, as
# predicted from their boxes and rays.
_DEVIATION = 0.4
# Numbers in memory at once.
_CHUNK = 1 << 24
# Edges of the graph whose triangles are listed.
_MOST_EDGES = 1 << 15
_DRAWS_AT_ONCE = 1024
_MOST_TURNS = 64
# Draws after which PROSAC equals RANSAC, at most (Chum and Matas, 2005).
_PROSAC_DRAWS = 200_000
# Triples that are listed, of which the best are taken.
_MOST_LISTED = 1 << 18


class Sightings(NamedTuple):
  """Detections as directions and sizes.

  Attributes:
    ray: [M, 3], unit, through the middle of the box.
    size: [M], sqrt(w^2 + h^2) of the half sides on the plane z = 1.
    cut: bool [M], boxes that the border of the image cuts.
  """

  ray: np.ndarray
  size: np.ndarray
  cut: np.ndarray


def sightings(box: np.ndarray, cut: np.ndarray) -> Sightings:
  """The directions and sizes of boxes [M, 4] on the plane z = 1."""
  box = np.asarray(box, np.float64)
  middle = (box[:, :2] + box[:, 2:]) / 2
  ray = np.concatenate([middle, np.ones((len(box), 1))], axis=-1)
  ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
  size = np.linalg.norm(box[:, 2:] - box[:, :2], axis=-1) / 2
  return Sightings(ray, size, np.asarray(cut, bool))


def distance_bounds(
  seen: Sightings,
  ellipsoids: ellipsoid_lib.Ellipsoid,
  candidates: association.Candidates,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Distances from the camera at which a candidate pair can be right.

  Args:
    seen: the detections.
    ellipsoids: of the map.
    candidates: N pairs.

  Returns:
    low: [N] metres along the ray, the least distance.
    high: [N], the largest distance.
    middle: [N], the distance for an average view, with two thirds of the trace.
  """
  squares = np.sort(np.asarray(ellipsoids.semi_axes, np.float64) ** 2, axis=-1)
  small = np.sqrt(squares[:, 0] + squares[:, 1])[candidates.landmark]
  large = np.sqrt(squares[:, 1] + squares[:, 2])[candidates.landmark]
  row = candidates.observation
  scale = 1 / (np.maximum(seen.size[row], 1e-9) * seen.ray[row, 2])
  nearer = np.where(seen.cut[row], _CUT * _NEARER, _NEARER)
  average = np.sqrt(2 / 3 * squares.sum(-1))[candidates.landmark]
  return small * scale / nearer, large * scale * _FARTHER, average * scale


class Graph(NamedTuple):
  """Which candidate pairs can both be right, and how well they agree.

  Attributes:
    allowed: bool [N, N], symmetric, False on the diagonal.
    mismatch: float32 [N, N], |log| of the ratio of two distances: between the
      landmarks, and between the points where their boxes put them in an average
      view; 0 without sizes.
  """

  allowed: np.ndarray
  mismatch: np.ndarray


def compatible(
  seen: Sightings,
  ellipsoids: ellipsoid_lib.Ellipsoid,
  candidates: association.Candidates,
  prune: bool = True,
) -> Graph:
  """The graph of N candidate pairs.

  The distance of points at s and t along two rays is convex in (s, t) and least
  at (0, 0). Within bounds it is largest at a corner, and smallest where s or t
  is at its lower bound.

  Args:
    seen: the detections.
    ellipsoids: of the map.
    candidates: N pairs.
    prune: whether sizes count; else pairs contradict each other only if they
      share a detection or a landmark.
  """
  allowed = candidates.observation[:, None] != candidates.observation
  allowed &= candidates.landmark[:, None] != candidates.landmark
  total = len(allowed)
  mismatch = np.zeros((total, total), np.float32)
  if not prune or not total:
    return Graph(allowed, mismatch)
  bounds = distance_bounds(seen, ellipsoids, candidates)
  low, high, middle = (x.astype(np.float32) for x in bounds)
  ray = seen.ray[candidates.observation].astype(np.float32)
  center = np.asarray(ellipsoids.center, np.float64)
  center = (center - center.mean(0))[candidates.landmark].astype(np.float32)
  size = max(1, _CHUNK // (8 * total))
  for start in range(0, total, size):
    rows = slice(start, start + size)
    cosine = ray[rows] @ ray.T
    between = sum((x[rows, None] - x) ** 2 for x in center.T)
    first = low[rows, None], high[rows, None]
    nearest, farthest = _reach(cosine, first, (low, high))
    allowed[rows] &= between <= farthest * (1 + _SLACK) ** 2
    allowed[rows] &= between >= nearest * (1 - _SLACK) ** 2
    expected = _squared(cosine, middle[rows, None], middle)
    ratio = np.maximum(between, 1e-9) / np.maximum(expected, 1e-9)
    mismatch[rows] = np.abs(np.log(ratio)) / 2
  return Graph(allowed, mismatch)


def _squared(cosine, s, t):
  """Squared distance of points at s and t along two rays."""
  return s * s + t * t - 2 * cosine * s * t


def _reach(cosine, first, second):
  """Smallest and largest squared distance within (low, high) along each ray."""
  corners = [_squared(cosine, s, t) for s in first for t in second]
  nearest = np.minimum(
    _squared(cosine, first[0], np.clip(cosine * first[0], *second)),
    _squared(cosine, np.clip(cosine * second[0], *first), second[0]),
  )
  return nearest, np.max(corners, axis=0)


def triangles(total: int, edges: np.ndarray, limit: int) -> np.ndarray | None:
  """Triples of which all pairs are edges.

  Args:
    total: N.
    edges: int [E, 2], (i, j) with i < j < N.
    limit: the largest number that is listed.

  Returns:
    int [T, 3], ascending in every row; None if there are more than `limit`.
  """
  upper = np.zeros((total, total), bool)
  upper[edges[:, 0], edges[:, 1]] = True
  found, count = [np.zeros((0, 3), np.int64)], 0
  size = max(1, _CHUNK // max(total, 1))
  for start in range(0, len(edges), size):
    i, j = edges[start : start + size].T
    edge, third = np.nonzero(upper[i] & upper[j])
    found.append(np.stack([i[edge], j[edge], third], axis=-1))
    count += len(edge)
    if count > limit:
      return None
  return np.concatenate(found)


def draw(
  candidates: association.Candidates,
  allowed: np.ndarray,
  sampler: str,
  num_draws: int,
  seed: int = 0,
) -> np.ndarray:
  """Different allowed triples in the order of a sampler.

  Draws that are not allowed, or that came before, are replaced by further ones.

  Args:
    candidates: N pairs.
    allowed: bool [N, N], see `Graph`.
    sampler: 'uniform'; 'prosac', by similarity; or 'b_prosac', by rank first.
    num_draws: triples, at most; fewer if no more are found.
    seed: of the draws.

  Returns:
    int [S, 3] rows of the candidates, ascending in every row.
  """
  total = len(candidates.rank)
  order = _order(candidates, sampler)
  maker = _make_sampler(candidates, order, sampler)
  key = jax.random.key(seed)
  triples, seen = [], set()
  for turn in range(_MOST_TURNS):
    if total < SAMPLE_SIZE or len(triples) >= num_draws:
      break
    start = jnp.asarray(turn * _DRAWS_AT_ONCE, jnp.int32)
    rows, valid = _draw(maker, key, start)
    rows = np.sort(order[np.asarray(rows)], axis=-1)
    i, j, k = rows.T
    valid = np.asarray(valid) & allowed[i, j] & allowed[i, k] & allowed[j, k]
    for triple in map(tuple, rows[valid]):
      if triple not in seen:
        seen.add(triple)
        triples.append(triple)
  return np.asarray(triples[:num_draws], np.int64).reshape(-1, SAMPLE_SIZE)


@compilation.jit
def _draw(sampler, key, start):
  return sampler.draw(key, start, _DRAWS_AT_ONCE, SAMPLE_SIZE)


def _order(candidates, sampler):
  """Rows of the candidates in the sampler's order, best first."""
  if sampler == 'b_prosac':
    return samplers.balanced_order(candidates.rank, candidates.probability)
  return np.argsort(-candidates.probability, kind='stable')


def _make_sampler(candidates, order, sampler):
  """A sampler over the ordered candidates, padded to a power of two."""
  total = len(order)
  capacity = 1 << max(total - 1, 1).bit_length()
  if sampler == 'uniform':
    return samplers.Uniform(jnp.asarray(total, jnp.int32))
  # As many draws as there are triples: each pool lasts as long as its triples.
  triples = math.comb(total, SAMPLE_SIZE)
  progressive = samplers.make_prosac(
    total, SAMPLE_SIZE, capacity, max(1, min(triples, _PROSAC_DRAWS))
  )
  if sampler == 'prosac':
    return progressive
  rows = np.concatenate([order, np.zeros(capacity - total, np.int64)])
  return samplers.BalancedProsac(
    progressive,
    jnp.asarray(candidates.observation[rows], jnp.int32),
    jnp.asarray(candidates.landmark[rows], jnp.int32),
  )


def promising(
  seen: Sightings,
  candidates: association.Candidates,
  mismatch: np.ndarray,
  triples: np.ndarray,
) -> np.ndarray:
  """How likely triples [T, 3] are to give a good pose; [T], larger is better.

  The sum of three logarithms: of the probability that all its pairs are right,
  of the likelihood of their distances, and of the root of the triangle's area
  in the image, in boxes: small triangles give poor poses.
  """
  i, j, k = triples.T
  probability = np.log(np.maximum(candidates.probability, 1e-6))[triples].sum(1)
  misses = mismatch[i, j] ** 2 + mismatch[i, k] ** 2 + mismatch[j, k] ** 2
  row = candidates.observation[triples]
  area = _area(seen.ray[row]) / np.maximum(seen.size[row].mean(1) ** 2, 1e-9)
  spread = 0.5 * np.log(np.maximum(area, 1e-6))
  return probability - misses / (2 * _DEVIATION**2) + spread


def listed(graph: Graph) -> np.ndarray:
  """The triangles [T, 3] of the graph, or of its best edges if it is large."""
  edges = np.stack(np.nonzero(np.triu(graph.allowed)), axis=-1)
  order = np.argsort(graph.mismatch[edges[:, 0], edges[:, 1]], kind='stable')
  edges = edges[order[:_MOST_EDGES]]
  while (found := triangles(len(graph.allowed), edges, _MOST_LISTED)) is None:
    edges = edges[: len(edges) // 2]
  return found


def _area(corners):
  """[T] areas of triangles [T, 3, 3]."""
  sides = corners[:, 1:] - corners[:, :1]
  return np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=-1) / 2


def propose(
  seen: Sightings,
  ellipsoids: ellipsoid_lib.Ellipsoid,
  candidates: association.Candidates,
  *,
  num_draws: int,
  sampler: str = 'auto',
  prune: bool = True,
  seed: int = 0,
) -> np.ndarray:
  """Triples of candidate pairs to solve, the most promising first.

  'auto' lists all triples of compatible pairs and takes the most promising; if
  there are too many to list and sizes do not count, it is B-PROSAC. The other
  samplers draw triples.

  Args:
    seen: the detections.
    ellipsoids: of the map.
    candidates: N pairs.
    num_draws: triples, at most.
    sampler: of `SAMPLERS`.
    prune: whether sizes may rule out triples.
    seed: of the draws.

  Returns:
    int [S, 3] rows of the candidates.

  Raises:
    InputError: an unknown sampler, or a budget of no draws.
  """
  if sampler not in SAMPLERS:
    raise InputError(f'unknown sampler {sampler!r}; known: {SAMPLERS}')
  if num_draws < 1:
    raise InputError(f'{num_draws} draws give no pose; allow at least 1.')
  graph = compatible(seen, ellipsoids, candidates, prune)
  if not prune and graph.allowed.sum() > 2 * _MOST_EDGES and sampler == 'auto':
    # Without sizes all edges of the graph are equally good.
    sampler = 'b_prosac'
  if sampler != 'auto':
    return draw(candidates, graph.allowed, sampler, num_draws, seed)
  triples = listed(graph)
  quality = promising(seen, candidates, graph.mismatch, triples)
  return triples[np.argsort(-quality, kind='stable')[:num_draws]]
