# SPDX-License-Identifier: Apache-2.0
"""How one camera stands to another, from pixels of the same points.

A model is `camera1_from_camera0`, whose translation has length 1: images do not
tell lengths. `PLANE` is for cameras that look ahead: points are on the plane
z = 1. `SPHERE` is for those that look all around: unit directions. Residuals
are Sampson distances there, see `epipolar.sampson`.
"""

import functools
from typing import Any
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
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import search
from i2ploc.robust import two_views

# Rays that leave a lens further off its axis do not belong on a plane: tan 80.
_MAX_SLOPE = 5.67
_ROTATION_STEPS = 10


class Rays(NamedTuple):
  """Directions of points, perhaps the same, in two cameras; [N] each.

  Attributes:
    x0: in camera 0, to the right.
    y0: down.
    z0: ahead.
    x1: in camera 1.
    y1: down.
    z1: ahead.
  """

  x0: jax.Array
  y0: jax.Array
  z0: jax.Array
  x1: jax.Array
  y1: jax.Array
  z1: jax.Array


def _solve(sample: Rays) -> tuple[rigid.Rigid, jax.Array]:
  rays0, rays1 = jnp.stack(sample[:3], axis=-1), jnp.stack(sample[3:], axis=-1)
  rays0, rays1 = (
    rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)
    for rays in (rays0, rays1)
  )
  return five_points.from_five(rays0, rays1)


def _distances(pose: rigid.Rigid, data: Rays, *, sphere: bool) -> jax.Array:
  """[N], signed."""
  matrix = essential.from_pose(pose)
  return epipolar.sampson(matrix, data[:3], data[3:], sphere=sphere)


def _problem(sphere):
  distances = functools.partial(_distances, sphere=sphere)
  return problem_lib.Problem(
    sample_size=5,
    num_solutions=five_points.NUM_SOLUTIONS,
    dof=5,
    solve=_solve,
    residual=lambda model, data: distances(model, data) ** 2,
    errors=lambda model, data: distances(model, data)[None],
    retract=essential.retract,
  )


PLANE, SPHERE = _problem(False), _problem(True)


class RelativePose(NamedTuple):
  """How camera 1 stands to camera 0.

  Attributes:
    camera1_from_camera0: float64 motion with a translation of length 1; of
      length 0 where a rotation is all that can be told; None if there is none.
    inliers: [N] bool, pairs within the threshold.
    num_inliers: their number; without `valid`, of what is no more than chance.
    covariance: [5, 5] of the step of `essential.retract`, radians, from the
      inliers' own residuals.
    num_draws: minimal samples drawn.
    valid: whether there is a pose that means something, translation included.
    reason: why not; empty if valid.
  """

  camera1_from_camera0: Any
  inliers: np.ndarray
  num_inliers: int
  covariance: np.ndarray
  num_draws: int
  valid: bool
  reason: str


def relative_pose(
  pixels0: np.ndarray,
  pixels1: np.ndarray,
  lens0: lens_lib.Lens,
  lens1: lens_lib.Lens,
  threshold: float = 1.5,
  *,
  scores: np.ndarray | None = None,
  sampler: str = 'auto',
  seed: int = 0,
  settings: consensus.Settings = consensus.DEFAULT,
) -> RelativePose:
  """The relative pose that most pairs of pixels agree with.

  Args:
    pixels0: [N, 2] (column, row) as measured by camera 0.
    pixels1: [N, 2] of the same points, perhaps, by camera 1.
    lens0: camera 0.
    lens1: camera 1.
    threshold: Sampson distance of an inlier, at most, pixels.
    scores: [N], higher is better: draws samples in that order (PROSAC).
    sampler: of `search.SAMPLERS`.
    seed: of the samples.
    settings: how to search.

  Returns:
    The pose; `valid` is False, with a reason, of too few pairs, of no more that
    agree than strangers would, and where a rotation alone explains the images.

  Raises:
    InputError: shapes that do not fit, values that are not finite, an
      impossible lens.
  """
  pixels0, pixels1 = two_views.checked(pixels0, pixels1)
  sphere = 'equirectangular' in (lens0.model, lens1.model)
  rays0, usable0 = _rays(lens0, pixels0, sphere)
  rays1, usable1 = _rays(lens1, pixels1, sphere)
  usable = usable0 & usable1
  data = Rays(*rays0.T, *rays1.T)
  limit = threshold / ((lens0.focal_length + lens1.focal_length) / 2)
  problem = SPHERE if sphere else PLANE
  found = search.search(
    problem,
    data,
    limit,
    usable=usable,
    scores=scores,
    sampler=sampler,
    seed=seed,
    settings=settings,
  )
  return _pose_from_found(problem, found, data, usable, limit)


def _rays(lens, pixels, sphere):
  """Directions [N, 3], on the plane z = 1 unless on the sphere; valid [N]."""
  rays, valid = lens_lib.rays_from_pixels(lens, pixels)
  if sphere:
    return rays, valid
  plane = rays / np.maximum(rays[:, 2:], 1e-9)
  valid &= np.abs(plane).max(axis=-1, initial=0.0) < _MAX_SLOPE
  return np.where(valid[:, None], plane, [0.0, 0.0, 1.0]), valid


def _pose_from_found(problem, found, data, usable, limit):
  """The answer, or the reason why there is none."""
  pose, covariance, reason = found.model, found.covariance, found.reason
  some = type(data)(*(leaf[usable] for leaf in data))
  inliers = found.inliers[usable]
  if found.valid:
    reason = two_views.doubt(problem, pose, some, inliers, limit)
    pose = None if reason else pose
  if pose is not None:
    rotation, reason = _only_rotation(problem, pose, some, inliers, limit)
    if reason:
      pose = rigid.Rigid(rotation, np.zeros(3))
      covariance = np.full_like(covariance, np.inf)
  elif narrow := _narrow(some, limit):
    reason = f'all points are {narrow}'
  return RelativePose(
    pose,
    found.inliers,
    found.num_inliers,
    covariance,
    found.num_draws,
    not reason,
    reason,
  )


def _narrow(data, limit):
  """Whether the directions of a camera are one."""
  for rays in (data[:3], data[3:]):
    if two_views.narrow(np.stack(rays, axis=-1), limit) == 'in one place':
      return 'in one place'
  return ''


def _only_rotation(problem, pose, data, inliers, limit):
  """The best rotation, and why it may be all that the images tell.

  Where nothing moves against anything else, noise alone chooses a translation.
  What the rotation leaves must agree with the pose more often than strangers.
  """
  rays = [np.stack(part, axis=-1) for part in (data[:3], data[3:])]
  rays0, rays1 = (r / np.linalg.norm(r, axis=-1, keepdims=True) for r in rays)
  # Sampson's distance moves both points: sqrt(2) times less than one of them.
  limit_one, near = np.sqrt(2) * limit, inliers
  for _ in range(_ROTATION_STEPS):
    u, _, v = np.linalg.svd(rays1[near].T @ rays0[near])
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ v)]) @ v
    away = np.linalg.norm(rays1 - rays0 @ rotation.T, axis=-1)
    # At first what is nearest, at last what is near.
    reach = max(np.quantile(away[inliers], 0.5), limit_one)
    near = inliers & (away <= reach)
  rest = away > limit_one
  share = two_views.chance(problem, pose, data, limit)
  total = two_views.distinct(data, rest, limit)
  count = two_views.distinct(data, rest & inliers, limit)
  alarms = two_views.false_alarms(total, count, 2, share)
  if alarms < two_views.FALSE_ALARMS:
    return rotation, ''
  return rotation, (
    f'a rotation explains all but {count} of {inliers.sum()} pairs that agree: '
    'the translation is undetermined'
  )
