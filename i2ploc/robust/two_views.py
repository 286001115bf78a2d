# SPDX-License-Identifier: Apache-2.0
"""Pairs of points of two images, and whether a model of them means anything.

Some model agrees with part of any data. A model is more than chance if points
agree with their own partners and not with those of others. So partners are
exchanged at random, and the share of these random pairs that still agree is
the probability that a wrong pair agrees by chance; this share accounts for
clustered points. The number of models that could have been tried, times a bound
of the probability of so many agreements, is the expected number of false alarms
(Moisan and Stival, A probabilistic criterion to detect rigid point matches,
IJCV 2004; here the background is measured).
"""

import functools
import math
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from i2ploc import compilation
from i2ploc.errors import InputError
from i2ploc.robust import problem as problem_lib

# Random pairs whose agreement is measured.
_NUM_RANDOM = 8192
# Expected number of false alarms below which a model is more than chance.
FALSE_ALARMS = 1e-3


class Matches(NamedTuple):
  """Pairs of points, one of either image; every leaf is [N].

  Attributes:
    x0: to the right in image 0.
    y0: down in image 0.
    x1: to the right in image 1.
    y1: down in image 1.
  """

  x0: jax.Array
  y0: jax.Array
  x1: jax.Array
  y1: jax.Array


class Frame(NamedTuple):
  """Origin and unit of the coordinates of two images.

  Attributes:
    center0: [2], origin in image 0, pixels.
    center1: [2], origin in image 1, pixels.
    extent: the unit, pixels; the same in both images, so that distances in
      them can be compared.
  """

  center0: np.ndarray
  center1: np.ndarray
  extent: float

  def matches(self, points0: np.ndarray, points1: np.ndarray) -> Matches:
    """Data from pixels [N, 2]."""
    points0 = (points0 - self.center0) / self.extent
    points1 = (points1 - self.center1) / self.extent
    return Matches(*points0.T, *points1.T)

  def matrices(self) -> tuple[np.ndarray, np.ndarray]:
    """From pixels to the coordinates of either image, [3, 3]."""
    found = []
    for center in (self.center0, self.center1):
      matrix = np.diag([1 / self.extent, 1 / self.extent, 1.0])
      matrix[:2, 2] = -center / self.extent
      found.append(matrix)
    return found[0], found[1]


def checked(
  points0: np.ndarray, points1: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Both as float64 [N, 2]; InputError if their shapes or values are wrong."""
  points0, points1 = (np.asarray(p, np.float64) for p in (points0, points1))
  if points0.shape != points1.shape or points0.shape[1:] != (2,):
    raise InputError(
      f'points must be [N, 2] in both images: {list(points0.shape)} beside '
      f'{list(points1.shape)}'
    )
  finite = np.isfinite(points0).all(-1) & np.isfinite(points1).all(-1)
  if not finite.all():
    raise InputError(
      f'{(~finite).sum()} pairs of points are not finite, first row '
      f'{np.flatnonzero(~finite)[0]}; leave them out'
    )
  return points0, points1


def frame(points0: np.ndarray, points1: np.ndarray) -> Frame:
  """The frame around the mean points, with their spread as the unit."""
  if not len(points0):
    return Frame(np.zeros(2), np.zeros(2), 1.0)
  center0, center1 = points0.mean(0), points1.mean(0)
  offsets = np.stack([points0 - center0, points1 - center1])
  extent = float(np.sqrt((offsets**2).mean()))
  return Frame(center0, center1, extent if extent > 0 else 1.0)


def narrow(points: np.ndarray, threshold: float) -> str:
  """'in one place' or 'on a line' where points [N, D] are that, else ''."""
  if len(points) < 2:
    return ''
  offsets = points - points.mean(0)
  *_, second, first = np.linalg.eigvalsh(offsets.T @ offsets / len(points))
  if first < threshold**2:
    return 'in one place'
  return 'on a line' if second < threshold**2 else ''


@functools.partial(compilation.jit, static_argnames='problem')
def _agree(problem, model, data, threshold):
  return (problem.residual(model, data) < threshold**2).mean()


@functools.lru_cache(maxsize=64)
def _strangers(num_data):
  """Rows [2, _NUM_RANDOM] of data, the two of a column never the same."""
  rng = np.random.default_rng(num_data)
  first = rng.integers(0, num_data, _NUM_RANDOM)
  second = first + rng.integers(1, num_data, _NUM_RANDOM)
  return np.stack([first, second % num_data])


def chance(
  problem: problem_lib.Problem, model: Any, data: Any, threshold: float
) -> float:
  """Share of random pairs that agree with a model.

  Args:
    problem: of two images: the first half of its data's leaves are of image 0,
      the second half of image 1.
    model: the one that was found.
    data: NamedTuple of numpy arrays [N].
    threshold: residual of an inlier, at most.
  """
  half = len(data) // 2
  first, second = _strangers(len(data[0]))
  columns = [np.float32(leaf[first]) for leaf in data[:half]]
  columns += [np.float32(leaf[second]) for leaf in data[half:]]
  model = jax.tree.map(np.float32, model)
  share = float(_agree(problem, model, type(data)(*columns), threshold))
  return (share * _NUM_RANDOM + 1) / (_NUM_RANDOM + 1)


def distinct(data: Any, chosen: np.ndarray, threshold: float) -> int:
  """How many of the chosen pairs count as independent.

  Keypoints on top of each other agree together or not at all, so points in the
  same cell, two thresholds wide, count once.

  Args:
    data: NamedTuple of numpy arrays [N].
    chosen: [N] bool.
    threshold: residual of an inlier, at most.
  """
  counts = []
  half = len(data) // 2
  for leaves in (data[:half], data[half:]):
    cells = [np.floor(leaf[chosen] / (2 * threshold)) for leaf in leaves]
    counts.append(len(set(zip(*cells, strict=True))))
  return min(counts)


def false_alarms(
  num_data: int, num_inliers: int, sample_size: int, share: float
) -> float:
  """Expected number of models as good as this one among random pairs.

  The number of all samples, times Chernoff's bound of the binomial tail.

  Args:
    num_data: N.
    num_inliers: data that agree with the model.
    sample_size: m, data that the model was made of, which agree in any case.
    share: probability that a random pair agrees.
  """
  left, agreeing = num_data - sample_size, num_inliers - sample_size
  if agreeing <= 0 or agreeing <= share * left:
    return math.inf
  part = agreeing / left
  bits = part * math.log(part / share)
  if part < 1:
    bits += (1 - part) * math.log((1 - part) / (1 - share))
  exponent = math.log(math.comb(num_data, sample_size)) - left * bits
  return math.exp(max(exponent, -700.0)) if exponent < 700 else math.inf


def doubt(
  problem: problem_lib.Problem,
  model: Any,
  data: Any,
  inliers: np.ndarray,
  threshold: float,
) -> str:
  """Why a model may be due to chance; '' if it is not."""
  share = chance(problem, model, data, threshold)
  everything = np.ones(len(inliers), bool)
  total = distinct(data, everything, threshold)
  count = distinct(data, inliers, threshold)
  if false_alarms(total, count, problem.sample_size, share) < FALSE_ALARMS:
    return ''
  return (
    f'{count} of {total} distinct pairs agree, of which {problem.sample_size} '
    f'would in any case and {share * total:.1f} by chance'
  )
