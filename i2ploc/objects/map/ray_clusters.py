# SPDX-License-Identifier: Apache-2.0
"""Objects as places where rays through detections of one category meet.

A box tells a direction and an apparent size. Two rays of different cameras that
pass each other within an object's size propose a place and a radius; boxes
that would show such a ball support it. Places are taken greedily, the one seen
in most images first, each with its support.

In numpy and float32; an object found here is only where a fit begins.
"""

from typing import NamedTuple

import numpy as np
from scipy import spatial

# Two rays of one object pass each other within so many of its radii.
_MAX_GAP = 1.0
# Between the radii that the two boxes tell: a book from its narrow side.
_MAX_RATIO = 2.5
# A supporter's box is centred on the place up to so many of its half-sizes.
_REACH = 0.5
_MAX_SIZE_RATIO = 2.0
_NUM_PAIRS = 4000
_MAX_OBJECTS = 200
# Of cameras, among which half of the pairs are drawn: most pairs of a town's
# cameras never see the same.
_NEIGHBOURS = 100
_REFITS = 3


class Sights(NamedTuple):
  """N boxes of one category as rays; sorted by image.

  Attributes:
    frame: [N] int, the image.
    rotation: [N, 3, 3], camera_from_map.
    translation: [N, 3].
    middle: [N, 2], of the box on the plane z = 1.
    half: [N, 2], half its width and height there.
  """

  frame: np.ndarray
  rotation: np.ndarray
  translation: np.ndarray
  middle: np.ndarray
  half: np.ndarray

  @property
  def size(self) -> np.ndarray:
    """[N], apparent radius of a ball, on the plane z = 1."""
    return np.sqrt(self.half.prod(-1))

  @property
  def direction(self) -> np.ndarray:
    """[N, 3], map frame; of length 1 along the optical axis."""
    ray = np.concatenate([self.middle, np.ones_like(self.middle[:, :1])], -1)
    return np.einsum('nij,ni->nj', self.rotation, ray)

  @property
  def origin(self) -> np.ndarray:
    """[N, 3], the cameras in the map frame."""
    return -np.einsum('nij,ni->nj', self.rotation, self.translation)


class Cluster(NamedTuple):
  """A place of an object.

  Attributes:
    center: [3], map frame.
    radius: metres.
    rows: [V] int, the boxes that support it.
  """

  center: np.ndarray
  radius: float
  rows: np.ndarray


def _unit(vectors):
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def parallax(directions: np.ndarray) -> float:
  """Largest angle between any of [V, 3] directions, radians.

  Of evenly picked 128 of them; 0 if there is one.
  """
  some = np.linspace(0, len(directions) - 1, min(len(directions), 128))
  unit = _unit(directions[some.astype(int)])
  return float(np.arccos(np.clip(unit @ unit.T, -1, 1)).max())


def intersection(
  origins: np.ndarray, directions: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """The point [3] nearest to rays.

  The least squares sum of w |(I - d d^T)(x - o)|^2.

  Args:
    origins: [V, 3].
    directions: [V, 3].
    weights: [V].
  """
  unit = _unit(directions)
  across = np.eye(3) - unit[:, :, None] * unit[:, None]
  across = weights[:, None, None] * across
  right = np.einsum('nij,nj->i', across, origins)
  # Parallel rays leave their direction open: stay near the mean origin.
  matrix, mean = across.sum(0), np.average(origins, axis=0, weights=weights)
  ridge = 1e-6 * np.trace(matrix) * np.eye(3)
  return np.linalg.solve(matrix + ridge, right + ridge @ mean)


def _pairs(sights, min_parallax, rng):
  """[H, 3] points and [H] radii that two rays tell."""
  count = len(sights.frame)
  if count * (count - 1) // 2 <= _NUM_PAIRS:
    first, second = np.triu_indices(count, 1)
  else:
    first, second = rng.integers(0, count, (2, _NUM_PAIRS))
    some = sights.origin[first[::2]]
    tree = spatial.KDTree(sights.origin)
    near = tree.query(some, min(_NEIGHBOURS, count))[1]
    column = rng.integers(0, near.shape[1], len(near))
    second[::2] = near[np.arange(len(near)), column]
  direction, origin, size = sights.direction, sights.origin, sights.size
  a, b = direction[first], direction[second]
  unit_a, unit_b = _unit(a), _unit(b)
  cosine = np.sum(unit_a * unit_b, -1)
  wide = np.abs(cosine) < np.cos(min_parallax)
  wide &= sights.frame[first] != sights.frame[second]
  first, second, a, b = first[wide], second[wide], a[wide], b[wide]
  # Depths s, t minimise |o_a + s a - o_b - t b|.
  apart = origin[first] - origin[second]
  aa, ab, bb = np.sum(a * a, -1), np.sum(a * b, -1), np.sum(b * b, -1)
  pa, pb = np.sum(a * apart, -1), np.sum(b * apart, -1)
  determinant = aa * bb - ab * ab
  s = (ab * pb - bb * pa) / determinant
  t = (aa * pb - ab * pa) / determinant
  on_a = origin[first] + s[:, None] * a
  on_b = origin[second] + t[:, None] * b
  radius_a, radius_b = s * size[first], t * size[second]
  good = (s > 0) & (t > 0)
  radius = np.sqrt(np.where(good, radius_a * radius_b, 1.0))
  gap = np.linalg.norm(on_a - on_b, axis=-1)
  ratio = np.where(good, radius_a / np.where(good, radius_b, 1.0), 0.0)
  good &= (gap < _MAX_GAP * radius) & (ratio < _MAX_RATIO)
  good &= ratio > 1 / _MAX_RATIO
  return ((on_a + on_b) / 2)[good], radius[good]


def _support(sights, centers, radii):
  """[H, N] bool: would a ball there be seen about as this box is?"""
  stacked = sights.rotation.reshape(-1, 3)
  seen = (centers @ stacked.T).reshape(len(centers), -1, 3)
  seen = seen + sights.translation
  depth = seen[..., 2]
  ahead = depth > radii[:, None]
  depth = np.where(ahead, depth, 1.0)
  away = np.abs(seen[..., :2] / depth[..., None] - sights.middle)
  near = (away < _REACH * sights.half).all(-1)
  ratio = radii[:, None] / depth / sights.size
  return ahead & near & (np.abs(np.log(ratio)) < np.log(_MAX_SIZE_RATIO))


def _refitted(sights, rows):
  """Centre and radius of the boxes of some rows."""
  origin, direction = sights.origin[rows], sights.direction[rows]
  size = sights.size[rows]
  weights = np.ones(len(rows))
  for _ in range(_REFITS):
    center = intersection(origin, direction, weights)
    to_center = center - origin
    depth = np.einsum('ni,ni->n', to_center, _unit(direction))
    across = to_center - depth[:, None] * _unit(direction)
    radius = np.median(np.abs(depth) * size)
    off = np.linalg.norm(across, axis=-1) / max(radius, 1e-9)
    # The weight of an angle, and less of what misses by a radius.
    weights = 1 / (np.maximum(depth, 1e-3) ** 2 * (1 + (2 * off) ** 2))
  return center, float(radius)


def find_clusters(
  sights: Sights,
  *,
  min_views: int,
  min_parallax: float,
  rng: np.random.Generator,
) -> list[Cluster]:
  """Places where at least `min_views` images agree, the surest first.

  Args:
    sights: boxes of one category that nothing explains yet.
    min_views: images.
    min_parallax: radians between the outermost of its rays.
    rng: draws the pairs.
  """
  if len(np.unique(sights.frame)) < min_views:
    return []
  centers, radii = _pairs(sights, min_parallax, rng)
  if not len(centers):
    return []
  support = _support(sights, centers, radii)
  starts = np.flatnonzero(np.diff(sights.frame, prepend=sights.frame[0] - 1))
  free = np.ones(len(sights.frame), bool)
  clusters = []
  for _ in range(_MAX_OBJECTS):
    counts = np.logical_or.reduceat(support & free, starts, axis=1).sum(1)
    best = int(counts.argmax())
    if counts[best] < min_views:
      break
    rows = np.flatnonzero(support[best] & free)
    center, radius = _refitted(sights, rows)
    again = _support(sights, center[None], np.array([radius]))[0] & free
    if len(np.unique(sights.frame[again])) >= counts[best]:
      rows = np.flatnonzero(again)
      center, radius = _refitted(sights, rows)
    free[rows] = False
    support[best] = False
    if parallax(sights.direction[rows]) >= min_parallax:
      clusters.append(Cluster(center, radius, rows))
  return clusters
