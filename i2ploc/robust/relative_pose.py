# SPDX-License-Identifier: Apache-2.0
"""The pose of one camera relative to another, from pixels of the same points.

A model is `camera1_from_camera0`, whose translation has length 1: images do not
show lengths. `PLANE` is for cameras that look ahead: points are on the plane
z = 1. `SPHERE` is for cameras that look all around: points are unit vectors.
Residuals are Sampson distances there, see `epipolar.sampson`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import epipolar
from i2ploc.geometry import essential
from i2ploc.geometry import five_points
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import rigid
from i2ploc.robust import consensus
from i2ploc.robust import evidence
from i2ploc.robust import inputs
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import result
from i2ploc.robust import search as search_lib

# Rays further off the lens's axis than 80 degrees (the tangent of that) are not
# projected to a plane.
_MAX_SLOPE = 5.67
_ROTATION_STEPS = 10
# After so many steps half of the points are further from where a rotation takes
# them than so many thresholds: then no rotation explains the images.
_SETTLED, _MOVING = 2, 4.0


class Rays(NamedTuple):
  """Directions of points in two cameras; every leaf is [N].

  Attributes:
    x0: to the right in camera 0.
    y0: down in camera 0.
    z0: ahead in camera 0.
    x1: to the right in camera 1.
    y1: down in camera 1.
    z1: ahead in camera 1.
  """

  x0: rigid.Array
  y0: rigid.Array
  z0: rigid.Array
  x1: rigid.Array
  y1: rigid.Array
  z1: rigid.Array


def _solve(sample: Rays) -> tuple[rigid.Rigid, jax.Array]:
  rays0, rays1 = jnp.stack(sample[:3], axis=-1), jnp.stack(sample[3:], axis=-1)
  rays0, rays1 = (
    rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)
    for rays in (rays0, rays1)
  )
  return five_points.from_five(rays0, rays1)


def _residual(pose: rigid.Rigid, data: Rays, *, sphere: bool) -> rigid.Array:
  matrix = essential.from_pose(pose)
  return epipolar.sampson(matrix, data[:3], data[3:], sphere=sphere) ** 2


def _linearize(
  pose: rigid.Rigid, data: Rays, *, sphere: bool
) -> tuple[rigid.Array, rigid.Array]:
  """Signed distances [1, N] and their derivatives."""
  distances, derivatives = epipolar.linearized(
    *essential.linearized(pose), data[:3], data[3:], sphere=sphere
  )
  return distances[None], derivatives[:, None]


def _degeneracy(pose, data, inliers, limit, *, sphere):
  """Why the translation is open, and the rotation alone; '' if it is not.

  Where no point moves relative to another, noise alone determines the
  translation. Of the pairs that the rotation does not explain, more must agree
  with the pose than of points paired at random.
  """
  rays = [np.stack(part, axis=-1) for part in (data[:3], data[3:])]
  rays0, rays1 = (r / np.sqrt((r**2).sum(1))[:, None] for r in rays)
  # Sampson's distance moves both points; moving one takes sqrt(2) times that.
  limit_one = np.sqrt(2) * limit
  from0, from1 = rays0[inliers], rays1[inliers]
  rotation, near = pose.rotation, np.zeros(len(from0), bool)
  for step in range(_ROTATION_STEPS):
    away = np.sqrt(((from1 - from0 @ rotation.T) ** 2).sum(axis=1))
    middle = np.sort(away)[len(away) // 2]
    if step >= _SETTLED and middle > _MOVING * limit_one:
      return '', pose
    # The nearest half first, at last all within the limit.
    before, near = near, away <= max(middle, limit_one)
    if (near == before).all():
      break
    u, _, v = np.linalg.svd(from1[near].T @ from0[near])
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ v)]) @ v
  away = np.sqrt(((rays1 - rays0 @ rotation.T) ** 2).sum(axis=1))
  count = evidence.beyond(
    SPHERE if sphere else PLANE, pose, data, inliers, away > limit_one, limit
  )
  if count is None:
    return '', pose
  return (
    f'a rotation explains all but {count} of {inliers.sum()} pairs that agree: '
    'the translation is undetermined'
  ), rigid.Rigid(rotation, np.zeros(3))


def _problem(sphere):
  return problem_lib.Problem(
    sample_size=5,
    models_per_sample=3,  # of eight slots 2.4 are filled where noise is small
    dof=5,
    example=lambda: rigid.Rigid(np.eye(3), np.array([0.0, 0.0, 1.0])),
    solve=_solve,
    residual=functools.partial(_residual, sphere=sphere),
    linearize=functools.partial(_linearize, sphere=sphere),
    retract=essential.retract,
    sides=problem_lib.Sides((3, 3), (0, 1)),
    degeneracy=functools.partial(_degeneracy, sphere=sphere),
  )


PLANE, SPHERE = _problem(False), _problem(True)


# A sample of five costs as much as dozens of three.
SEARCH = search_lib.Search(
  settings=consensus.DEFAULT._replace(batch=32, max_draws=10_000)
)


class RelativePose(result.Result[rigid.Rigid]):
  """The pose of camera 1 relative to camera 0.

  `model` is `camera1_from_camera0`. Without `valid` the inliers are those of a
  pose that chance explains, or of one whose translation is undetermined. The
  covariance [5, 5] is of the step of `essential.retract`, radians.
  """

  __slots__ = ()

  @property
  def camera1_from_camera0(self) -> rigid.Rigid | None:
    """The motion, float64, with a translation of length 1.

    None unless `valid`. Where the images determine a rotation only, that is the
    rotation of `model`, whose translation is zero.
    """
    return self.trusted


def relative_pose(
  pixels0: np.ndarray,
  pixels1: np.ndarray,
  lens0: lens_lib.Lens,
  lens1: lens_lib.Lens,
  threshold: float = 1.5,
  *,
  scores: np.ndarray | None = None,
  search: search_lib.Search = SEARCH,
) -> RelativePose:
  """The relative pose that most pairs of pixels agree with.

  Args:
    pixels0: [N, 2] (column, row) as measured by camera 0.
    pixels1: [N, 2] of their partners as measured by camera 1; many may be
      wrong.
    lens0: camera 0.
    lens1: camera 1.
    threshold: Sampson distance of an inlier, at most, pixels.
    scores: [N], higher is better: draws samples in that order (PROSAC).
    search: sampler, seed and settings.

  Returns:
    The pose. `valid` is False, with a reason, for too few pairs, where no more
    agree than points paired at random would, and where a rotation alone
    explains the images.

  Raises:
    InputError: shapes that do not fit, values that are not finite, an
      impossible lens.

  Example:
    Camera 1 is a metre to the right of camera 0; 20 of 60 pairs are wrong.

    >>> import numpy as np
    >>> from i2ploc.geometry import lens
    >>> from i2ploc.robust import relative_pose
    >>> matrix = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    >>> camera = lens.Lens('pinhole', matrix)
    >>> rng = np.random.default_rng(0)
    >>> points = rng.uniform([-2, -1, 4], [2, 1, 8], (60, 3))
    >>> pixels0, pixels1 = (
    ...   500 * seen[:, :2] / seen[:, 2:] + [320, 240]
    ...   for seen in (points, points - [1, 0, 0])
    ... )
    >>> pixels1[:20, 1] += rng.uniform(20, 200, 20)
    >>> found = relative_pose.relative_pose(pixels0, pixels1, camera, camera)
    >>> found.num_inliers
    40
    >>> direction = found.camera1_from_camera0.translation
    >>> bool(np.allclose(direction, [-1, 0, 0], atol=1e-6))
    True
  """
  threshold = inputs.check_threshold(threshold)
  data, scores, usable = measured(pixels0, pixels1, lens0, lens1, scores)
  limit = threshold / ((lens0.focal_length + lens1.focal_length) / 2)
  sphere = lens0.is_wide or lens1.is_wide
  problem = SPHERE if sphere else PLANE
  found = search.find(problem, data, limit, usable=usable.mask, scores=scores)
  found = inputs.explained(found, problem, usable)
  return RelativePose(*judged(found, problem, data, usable, limit))


def measured(
  pixels0: np.ndarray,
  pixels1: np.ndarray,
  lens0: lens_lib.Lens,
  lens1: lens_lib.Lens,
  scores: np.ndarray | None,
) -> tuple[Rays, np.ndarray | None, inputs.Usable]:
  """Data, scores, and which may be used.

  Args:
    pixels0: as in `relative_pose`.
    pixels1: as in `relative_pose`.
    lens0: camera 0.
    lens1: camera 1.
    scores: as in `relative_pose`.

  Raises:
    InputError: see `relative_pose`.
  """
  lens_lib.check_lens(lens0)
  lens_lib.check_lens(lens1)
  pixels0, pixels1, usable = inputs.pairs(
    pixels0, pixels1, (2, 2), ('pixels0', 'pixels1')
  )
  scores, usable = inputs.quality(scores, usable)
  sphere = lens0.is_wide or lens1.is_wide
  rays0, seen0 = _rays(lens0, pixels0, sphere)
  rays1, seen1 = _rays(lens1, pixels1, sphere)
  usable = usable.but(seen0 & seen1, 'have pixels beyond the lens')
  return Rays(*rays0.T, *rays1.T), scores, usable


def judged(
  found: result.Result,
  problem: problem_lib.Problem,
  data: Rays,
  usable: inputs.Usable,
  limit: float,
) -> result.Result:
  """The result; where all points are in one place, that is the reason."""
  if not found.valid and usable.mask.sum() > problem.sample_size:
    narrow = _narrow(data, usable.mask, limit)
    if narrow:
      return found._replace(reason=f'all points are {narrow}')
  return found


def _rays(lens, pixels, sphere):
  """Directions [N, 3], on the plane z = 1 unless on the sphere; valid [N]."""
  rays, valid = lens_lib.rays_from_pixels(lens, pixels)
  if sphere:
    return rays, valid
  plane = rays / np.maximum(rays[:, 2:], 1e-9)
  valid &= np.abs(plane).max(axis=-1, initial=0.0) < _MAX_SLOPE
  return np.where(valid[:, None], plane, [0.0, 0.0, 1.0]), valid


def _narrow(data, chosen, limit):
  """'in one place' if all directions of a camera are the same, else ''."""
  for rays in (data[:3], data[3:]):
    points = np.stack(rays)[:, chosen]
    if evidence.narrow(points, limit) == 'in one place':
      return 'in one place'
  return ''
