# SPDX-License-Identifier: Apache-2.0
"""Homographies between two images, from pairs of points with many outliers.

A residual is the distance, to first order, by which the points of both images
together must move to agree (Sampson's), times sqrt(2): where a homography keeps
lengths, that is the distance between a point and its partner in either image.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import arrays
from i2ploc.geometry import homography as homography_lib
from i2ploc.geometry import rigid
from i2ploc.robust import evidence
from i2ploc.robust import inputs
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import result
from i2ploc.robust import search as search_lib
from i2ploc.robust import two_views

_LEAST_DEPTH = 1e-3
# Magnification of an area beyond which, in either direction, a homography maps
# nearly everything to one point.
_LARGEST_AREA = 1e3
_ROOT = 2**0.5


def _solve(sample: two_views.Matches) -> tuple[jax.Array, jax.Array]:
  found, valid = homography_lib.from_four(
    jnp.stack([sample.x0, sample.y0], axis=-1),
    jnp.stack([sample.x1, sample.y1], axis=-1),
  )
  return found[None], valid[None]


def _misses(h, data):
  """The mapped points (x, y), the derivative (a, b, c, d), and seen [N].

  The derivative A is that of the mapped point by the point.
  """
  xp = arrays.namespace(h, *data)
  x, y, depth = arrays.mapped(h, (data.x0, data.y0, xp.ones_like(data.x0)))
  inverse = 1 / xp.maximum(depth, _LEAST_DEPTH)
  x, y = x * inverse, y * inverse
  a, b = (h[0, 0] - x * h[2, 0]) * inverse, (h[0, 1] - x * h[2, 1]) * inverse
  c, d = (h[1, 0] - y * h[2, 0]) * inverse, (h[1, 1] - y * h[2, 1]) * inverse
  area = abs(a * d - b * c)
  seen = depth > _LEAST_DEPTH
  seen &= (area < _LARGEST_AREA) & (area * _LARGEST_AREA > 1)
  return (x, y), (a, b, c, d), seen


def _determinant(derivative):
  """Of I + A A^T, without a difference that rounding would make negative."""
  a, b, c, d = derivative
  return 1 + a * a + b * b + c * c + d * d + (a * d - b * c) ** 2


def _residual(model: rigid.Array, data: two_views.Matches) -> rigid.Array:
  """2 f^T (I + A A^T)^-1 f of differences f and the derivative A.

  Twice Sampson's squared distance (Hartley and Zisserman, Multiple View
  Geometry, 2003, section 4.2.6): |f|^2 where A is a rotation.
  """
  (x, y), derivative, seen = _misses(model, data)
  a, b, c, d = derivative
  x, y = x - data.x1, y - data.y1
  squared = x * x + y * y + (c * x - a * y) ** 2 + (d * x - b * y) ** 2
  squared = 2 * squared / _determinant(derivative)
  return arrays.namespace(squared).where(seen, squared, problem_lib.NEVER)


def _linearize(
  model: rigid.Array, data: two_views.Matches
) -> tuple[rigid.Array, rigid.Array]:
  """Errors [2, N], whose squared length is the residual, and derivatives.

  With I + A A^T = L L^T the errors are e = sqrt(2) L^-1 f. The step X of
  `retract` moves a point p of image 1 by v(p), a quadratic function, so that f
  changes by v and A by D A with D the derivative of v by p. Then

    de = sqrt(2) L^-1 v - P(L^-1 (D A A^T + A A^T D^T) L^-T) e

  where P keeps what is below the diagonal, and half of the diagonal.
  """
  (x, y), (a, b, c, d), _ = _misses(model, data)
  # A A^T = [[p, m], [m, q]] and L^-1 = [[r, 0], [t, s]].
  p, m, q = a * a + b * b, a * c + b * d, c * c + d * d
  r = arrays.rsqrt(1 + p)
  s = arrays.rsqrt(_determinant((a, b, c, d)) / (1 + p))
  t = -m * r * r * s
  u, v = x - data.x1, y - data.y1
  first, second = _ROOT * r * u, _ROOT * (t * u + s * v)
  # Derivatives of the errors by f and by the entries of D.
  by_x = _ROOT * r, _ROOT * t
  by_y = _ROOT * s
  by_p = -r * r * first / 2, -t * (r * first + t * second / 2)
  by_m = -s * (r * first + t * second)
  by_q = -s * s * second / 2
  by_xx = 2 * p * by_p[0], 2 * p * by_p[1] + m * by_m
  by_xy = 2 * m * by_p[0], 2 * m * by_p[1] + q * by_m
  by_yx = p * by_m + 2 * m * by_q
  by_yy = m * by_m + 2 * q * by_q
  # v = (X (p, 1)) - p (X (p, 1))_3, entry by entry of X.
  across = y * by_x[0] + by_xy[0], y * by_x[1] + by_xy[1]
  down = x * by_y + by_yx
  along_x = x * by_x[0] + by_xx[0], x * by_x[1] + by_xx[1]
  along_y = y * by_y + by_yy
  grown_x = along_x[0] + by_xx[0], along_x[1] + by_xx[1] + by_yy
  grown_y = by_xx[0], by_xx[1] + along_y + by_yy
  jacobian = (
    (grown_x[0] + x * by_x[0], grown_x[1] + x * by_x[1] + y * by_y),
    across,
    by_x,
    (0.0, down),
    (along_x[0], along_x[1] + along_y + along_y),
    (0.0, by_y),
    (-x * grown_x[0], -x * grown_x[1] - y * down),
    (-y * grown_y[0] - x * across[0], -y * grown_y[1] - x * across[1]),
  )
  errors = arrays.table([(first,), (second,)], x)[:, 0]
  return errors, arrays.table(jacobian, x)


def retract(homography: rigid.Array, step: rigid.Array) -> rigid.Array:
  """A homography near another.

  Args:
    homography: [3, 3].
    step: [8], the first entries of a matrix X without trace; I + X moves
      image 1.
  """
  xp = arrays.namespace(homography, step)
  last = -step[0] - step[4]
  moved = xp.append(step, last).reshape(3, 3)
  moved = homography + sum(moved[:, i, None] * homography[i] for i in range(3))
  return moved / xp.sqrt(xp.sum(moved**2))


def _degeneracy(model, data, inliers, threshold):
  """Why no camera sees a plane so, or why the inliers leave it open."""
  if narrow := _narrow(data, threshold, inliers):
    return f'all points that agree are {narrow}', model
  if np.linalg.det(model) < 0:
    return 'the image is mirrored: no camera sees a plane so', model
  if _twisted(model, data[:2]) or _twisted(np.linalg.inv(model), data[2:]):
    return 'the image is twisted: a part of it would be behind a camera', model
  return '', model


def _twisted(model, points):
  """Whether corners of the box of most points are beyond the horizon."""
  ordered = np.sort(points, axis=1)
  few = ordered.shape[1] // 20
  low, high = ordered[:, few], ordered[:, -1 - few]
  depths = [
    model[2, 0] * x + model[2, 1] * y + model[2, 2]
    for x in (low[0], high[0])
    for y in (low[1], high[1])
  ]
  return min(depths) <= 0


PROBLEM = problem_lib.Problem(
  sample_size=4,
  models_per_sample=1,
  dof=8,
  example=lambda: np.eye(3),
  solve=_solve,
  residual=_residual,
  linearize=_linearize,
  retract=retract,
  sides=two_views.SIDES,
  degeneracy=_degeneracy,
)


class Homography(result.Result[np.ndarray]):
  """How one image looks in another: `model` is `image1_from_image0`.

  Without `valid` the inliers are those of a homography that chance explains, or
  that no camera can have seen. The covariance [8, 8] is of the step of
  `retract` at the model, in pixels.
  """

  __slots__ = ()

  @property
  def image1_from_image0(self) -> np.ndarray | None:
    """[3, 3], pixels, float64; None unless `valid`.

    The last entry is 1, unless it is 0: then the origin is mapped to infinity.
    """
    return self.trusted


def homography(
  points0: np.ndarray,
  points1: np.ndarray,
  threshold: float = 3.0,
  *,
  scores: np.ndarray | None = None,
  search: search_lib.Search = search_lib.DEFAULT,
) -> Homography:
  """The homography that most pairs of points agree with.

  Args:
    points0: [N, 2] (column, row) in image 0; rows that are masked are left out.
    points1: [N, 2] of their partners in image 1; many may be wrong. The unit
      may be another one than that of image 0.
    threshold: residual of an inlier, at most, pixels; of image 1 where the
      units differ.
    scores: [N], higher is better: draws samples in that order (PROSAC).
    search: sampler, seed and settings.

  Returns:
    The homography. `valid` is False, with a reason, for too few pairs, for
    points in one place or on a line, where no more pairs agree than points
    paired at random would (two images of different places), and for what no
    camera sees of a plane: its mirror image, or what is behind it.

  Raises:
    InputError: shapes that do not fit, values that are not finite.

  Example:
    Image 1 is image 0 moved by (30, -10) pixels; 20 of 60 pairs are wrong.

    >>> import numpy as np
    >>> from i2ploc.robust import homography
    >>> rng = np.random.default_rng(0)
    >>> points0 = rng.uniform(0, 480, (60, 2))
    >>> points1 = points0 + [30, -10]
    >>> points1[:20] = rng.uniform(0, 480, (20, 2))
    >>> found = homography.homography(points0, points1, threshold=3.0)
    >>> found.num_inliers
    40
    >>> moved = np.array([[1, 0, 30], [0, 1, -10], [0, 0, 1]])
    >>> bool(np.allclose(found.image1_from_image0, moved, atol=1e-6))
    True
  """
  (found,) = homographies(
    [points0],
    [points1],
    threshold,
    scores=None if scores is None else [scores],
    search=search,
  )
  return found


def homographies(
  points0: Sequence[np.ndarray],
  points1: Sequence[np.ndarray],
  threshold: float = 3.0,
  *,
  scores: Sequence[np.ndarray] | None = None,
  search: search_lib.Search = search_lib.DEFAULT,
) -> list[Homography]:
  """`homography` of many pairs of images in one call.

  Args:
    points0: B arrays [N, 2]; N may differ.
    points1: B arrays [N, 2].
    threshold: residual of an inlier, at most, pixels.
    scores: B arrays [N], higher is better.
    search: sampler, seed and settings.

  Returns:
    B homographies, see `homography`.

  Raises:
    InputError: see `homography`.

  Example:
    Lists have an entry per pair of images, here one; image 1 is enlarged.

    >>> import numpy as np
    >>> from i2ploc.robust import homography
    >>> points0 = np.random.default_rng(0).uniform(0, 480, (60, 2))
    >>> found = homography.homographies([points0], [2 * points0])
    >>> [one.image1_from_image0[0, 0].round(3).item() for one in found]
    [2.0]
  """
  quality = [None] * len(points0) if scores is None else scores
  inputs.same_length({'points0': points0, 'points1': points1, 'scores': scores})
  threshold = inputs.check_threshold(threshold)
  given = list(map(two_views.pairs, points0, points1, quality))
  if not given:
    return []
  # They share a threshold, hence a unit.
  unit = float(np.median([pairs.frames.image1.unit for pairs in given]))
  frames = [two_views.with_unit(pairs.frames, unit) for pairs in given]
  checked = [
    pairs.within(frame) for pairs, frame in zip(given, frames, strict=True)
  ]
  measurements = [
    search_lib.Measurements(data, usable.mask, pairs.scores)
    for pairs, (data, usable) in zip(given, checked, strict=True)
  ]
  limit = threshold / unit
  found = search.find_each(PROBLEM, measurements, limit)
  return [
    _in_pixels(one, *sound, frame, limit)
    for one, sound, frame in zip(found, checked, frames, strict=True)
  ]


def _in_pixels(found, data, usable, frames, threshold):
  """The homography in pixels, and why there is none."""
  found = inputs.explained(found, PROBLEM, usable)
  if not found.valid and usable.mask.sum() > PROBLEM.sample_size:
    if narrow := _narrow(data, threshold, usable.mask):
      found = found._replace(reason=f'all points are {narrow}')
  step = _step_in_pixels(frames.image1.matrix())
  return Homography(
    *found.changed(lambda model: _of_points(model, frames), step)
  )


def _of_points(model, frames):
  """A homography of the points themselves, from one of their coordinates."""
  before, after = frames.matrices()
  model = np.linalg.inv(after) @ model @ before
  return model / (model[2, 2] if abs(model[2, 2]) > 1e-12 else 1.0)


def _narrow(data, threshold, chosen):
  """Whether points of an image are in one place or on a line."""
  for columns in (data[:2], data[2:]):
    if found := evidence.narrow(np.stack(columns)[:, chosen], threshold):
      return found
  return ''


def _step_in_pixels(after):
  """[8, 8], to steps in pixels; `after` maps pixels to the unit of image 1.

  X becomes after^-1 X after.
  """
  inverse = np.linalg.inv(after)
  change = np.zeros((8, 8))
  for i in range(8):
    step = np.zeros(9)
    step[i] = 1.0
    step[8] = -step[0] - step[4]
    change[:, i] = (inverse @ step.reshape(3, 3) @ after).reshape(9)[:8]
  return change
