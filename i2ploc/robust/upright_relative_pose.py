# SPDX-License-Identifier: Apache-2.0
"""The relative pose of two cameras that know where down is.

Three pairs of pixels instead of five make a pose: with 70 % of the pairs wrong,
one sample of 37 is right instead of one of 411. A model is an `Upright`: the
pose and the vertical of camera 1. Residuals are those of `relative_pose`.

`KEPT` are problems whose poses keep the vertical as it was measured; `FREE`
take it for the samples alone, and refine all five degrees of freedom.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import arrays
from i2ploc.geometry import essential
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import rigid
from i2ploc.geometry import three_points
from i2ploc.robust import inputs
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import relative_pose
from i2ploc.robust import search as search_lib
from i2ploc.robust import upright_pose


class Rays(NamedTuple):
  """Directions of points, and of gravity, in two cameras; every leaf is [N].

  Attributes:
    x0: to the right in camera 0.
    y0: down in camera 0.
    z0: ahead in camera 0.
    down_x0: the direction of gravity in camera 0, a unit vector.
    down_y0: component of it.
    down_z0: component of it.
    x1: to the right in camera 1.
    y1: down in camera 1.
    z1: ahead in camera 1.
    down_x1: the direction of gravity in camera 1, a unit vector.
    down_y1: component of it.
    down_z1: component of it.
  """

  x0: rigid.Array
  y0: rigid.Array
  z0: rigid.Array
  down_x0: rigid.Array
  down_y0: rigid.Array
  down_z0: rigid.Array
  x1: rigid.Array
  y1: rigid.Array
  z1: rigid.Array
  down_x1: rigid.Array
  down_y1: rigid.Array
  down_z1: rigid.Array


class Upright(NamedTuple):
  """A relative pose, and what is vertical.

  Attributes:
    rotation: [3, 3], of camera1_from_camera0.
    translation: [3], of length 1.
    up: [3], unit vector in camera 1.
  """

  rotation: rigid.Array
  translation: rigid.Array
  up: rigid.Array


def _pose(model):
  return rigid.Rigid(model.rotation, model.translation)


def _rays(data):
  return relative_pose.Rays(*data[:3], *data[6:9])


def _solve(sample: Rays) -> tuple[Upright, jax.Array]:
  levels, rays = [], []
  for i in (0, 6):
    ray = jnp.stack(sample[i : i + 3], axis=-1)
    ray = ray / jnp.linalg.norm(ray, axis=-1, keepdims=True)
    # The same for all data.
    down = jnp.stack([leaf[0] for leaf in sample[i + 3 : i + 6]])
    levels.append(upright_pose.level_from_camera(down))
    rays.append(rigid.rotate(levels[-1], ray))
  pose, valid = three_points.from_three(*rays)
  back = levels[1].T
  rotation = arrays.matmul(arrays.matmul(back, pose.rotation), levels[0])
  translation = rigid.rotate(back, pose.translation)
  up = jnp.broadcast_to(back[:, 2], translation.shape)
  return Upright(rotation, translation, up), valid


def retract(model: Upright, step: rigid.Array) -> Upright:
  """A relative pose near another, with the same vertical.

  Args:
    model: where to start.
    step: [3], turn about the vertical of camera 1, radians, then the turn of
      the translation along its `vectors.tangents`, radians.
  """
  xp = arrays.namespace(*model, step)
  five = xp.concatenate([step[0] * model.up, step[1:]])
  return _retract_free(model, five)


def _retract_free(model, step):
  return Upright(*essential.retract(_pose(model), step), model.up)


def _residual(model, data, *, base):
  return base.residual(_pose(model), _rays(data))


def _linearize_free(model, data, *, base):
  return base.linearize(_pose(model), _rays(data))


def _linearize_kept(model, data, *, base):
  errors, jacobian = base.linearize(_pose(model), _rays(data))
  xp = arrays.namespace(jacobian)
  turn = (model.up[:, None, None] * jacobian[:3]).sum(0)
  return errors, xp.concatenate([turn[None], jacobian[3:]])


def _degeneracy(model, data, inliers, limit, *, base):
  """Why the translation is open, and the rotation alone; '' if it is not."""
  reason, pose = base.degeneracy(_pose(model), _rays(data), inliers, limit)
  return reason, Upright(*pose, model.up)


def _problems(base):
  """The problems with the vertical free and kept."""
  free = problem_lib.Problem(
    sample_size=3,
    models_per_sample=3,  # of four slots 2.2 are filled where noise is small
    dof=5,
    example=lambda: Upright(np.eye(3), *np.eye(3)[[2, 1]]),
    solve=_solve,
    residual=functools.partial(_residual, base=base),
    linearize=functools.partial(_linearize_free, base=base),
    retract=_retract_free,
    sides=problem_lib.Sides((6, 6), (0, 1)),
    degeneracy=functools.partial(_degeneracy, base=base),
  )
  kept = free._replace(
    dof=3,
    linearize=functools.partial(_linearize_kept, base=base),
    retract=retract,
  )
  return free, kept


# By whether a camera looks all around.
FREE, KEPT = zip(
  _problems(relative_pose.PLANE), _problems(relative_pose.SPHERE), strict=True
)


class UprightRelativePose(relative_pose.RelativePose):
  """The pose of camera 1 relative to camera 0.

  The covariance is that of a `RelativePose`; [3, 3] of the step of `retract`
  where the vertical is kept.
  """

  __slots__ = ()


def upright_relative_pose(
  pixels0: np.ndarray,
  pixels1: np.ndarray,
  lens0: lens_lib.Lens,
  lens1: lens_lib.Lens,
  down0: np.ndarray,
  down1: np.ndarray,
  threshold: float = 1.5,
  *,
  keep_vertical: bool = False,
  scores: np.ndarray | None = None,
  search: search_lib.Search = search_lib.DEFAULT,
) -> UprightRelativePose:
  """The relative pose of two cameras that know the vertical.

  Args:
    pixels0: [N, 2] (column, row) as measured by camera 0.
    pixels1: [N, 2] of their partners as measured by camera 1; many may be
      wrong.
    lens0: camera 0.
    lens1: camera 1.
    down0: [3], where gravity points in camera 0, of any length: (0, 1, 0) for a
      camera that is held level.
    down1: [3], where gravity points in camera 1.
    threshold: Sampson distance of an inlier, at most, pixels. The verticals'
      errors, a pixel per tenth of a degree at a focal length of 573, add to
      those of the pixels.
    keep_vertical: whether the pose keeps the verticals as given; else it is
      only close, because the pairs determine them too.
    scores: [N], higher is better: draws samples in that order (PROSAC).
    search: sampler, seed and settings.

  Returns:
    The pose. `valid` is False, with a reason, for too few pairs, where no more
    agree than points paired at random would, and where a rotation alone
    explains the images.

  Raises:
    InputError: shapes that do not fit, values that are not finite, an
      impossible lens, a vertical of no length.

  Example:
    Camera 1 is a metre to the right of camera 0; 40 of 80 pairs are wrong.

    >>> import numpy as np
    >>> from i2ploc.geometry import lens
    >>> from i2ploc.robust import upright_relative_pose
    >>> matrix = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    >>> camera = lens.Lens('pinhole', matrix)
    >>> rng = np.random.default_rng(0)
    >>> points = rng.uniform([-2, -1, 4], [2, 1, 8], (80, 3))
    >>> pixels0, pixels1 = (
    ...   500 * seen[:, :2] / seen[:, 2:] + [320, 240]
    ...   for seen in (points, points - [1, 0, 0])
    ... )
    >>> pixels1[:40, 1] += rng.uniform(20, 200, 40)
    >>> found = upright_relative_pose.upright_relative_pose(
    ...   pixels0, pixels1, camera, camera, (0, 1, 0), (0, 1, 0)
    ... )
    >>> found.num_inliers
    40
    >>> direction = found.camera1_from_camera0.translation
    >>> bool(np.allclose(direction, [-1, 0, 0], atol=1e-6))
    True
  """
  threshold = inputs.check_threshold(threshold)
  downs = (
    upright_pose.direction(down0, 'down0'),
    upright_pose.direction(down1, 'down1'),
  )
  data, scores, usable = relative_pose.measured(
    pixels0, pixels1, lens0, lens1, scores
  )
  limit = threshold / ((lens0.focal_length + lens1.focal_length) / 2)
  sphere = lens0.is_wide or lens1.is_wide
  problem = (KEPT if keep_vertical else FREE)[sphere]
  first, second = (
    [np.full(len(data.x0), value) for value in down] for down in downs
  )
  found = search.find(
    problem,
    Rays(*data[:3], *first, *data[3:], *second),
    limit,
    usable=usable.mask,
    scores=scores,
  )
  found = inputs.explained(found, problem, usable)
  found = relative_pose.judged(found, problem, data, usable, limit)
  return UprightRelativePose(*found.changed(_pose))
