# SPDX-License-Identifier: Apache-2.0
"""Pose of a calibrated camera that knows where down is.

A vehicle or a phone measures gravity. Two points of the map instead of three
then make a pose: with 80 % of the matches wrong, one sample of 25 is right
instead of one of 125. A model is `camera_from_map`, where the map's z axis
points up.

`KEPT` are problems whose poses keep the vertical as it was measured, by the
model of the lens; `FREE` take it for the samples alone, and refine all six
degrees of freedom, because a degree of tilt is nine pixels at a focal length
of 500.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import arrays
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import p2p
from i2ploc.geometry import rigid
from i2ploc.geometry import vectors
from i2ploc.robust import absolute_pose
from i2ploc.robust import evidence
from i2ploc.robust import inputs
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import search as search_lib

# A pose is open where noise turns it by more than this, radians, or moves it by
# more than this share of the depth.
_MOST_UNCERTAIN = 0.3


class Correspondences(NamedTuple):
  """`absolute_pose.Correspondences` and where down is; every leaf is [N].

  Attributes:
    x: map frame, metres.
    y: metres.
    z: metres, up.
    u: image plane at distance 1, to the right.
    v: down.
    down_x: the direction of gravity in the camera, a unit vector.
    down_y: component of it.
    down_z: component of it.
  """

  x: rigid.Array
  y: rigid.Array
  z: rigid.Array
  u: rigid.Array
  v: rigid.Array
  down_x: rigid.Array
  down_y: rigid.Array
  down_z: rigid.Array


class Sightings(NamedTuple):
  """`absolute_pose.Sightings` and where down is; every leaf is [N].

  Attributes:
    x: map frame, metres.
    y: metres.
    z: metres, up.
    right: component of a unit vector in the camera frame.
    down: component of it.
    ahead: component of it.
    down_x: the direction of gravity in the camera, a unit vector.
    down_y: component of it.
    down_z: component of it.
  """

  x: rigid.Array
  y: rigid.Array
  z: rigid.Array
  right: rigid.Array
  down: rigid.Array
  ahead: rigid.Array
  down_x: rigid.Array
  down_y: rigid.Array
  down_z: rigid.Array


def level_from_camera(down: rigid.Array) -> jax.Array:
  """A rotation [3, 3] to a frame whose z axis points up.

  Args:
    down: [3] unit vector in the camera.
  """
  up = tuple(-down)
  first, _ = vectors.tangents(up)
  return jnp.stack(
    [jnp.stack(v) for v in (first, vectors.cross(up, first), up)]
  )


def _solve(
  sample: Correspondences | Sightings,
) -> tuple[rigid.Rigid, jax.Array]:
  if isinstance(sample, Sightings):
    rays = jnp.stack([sample.right, sample.down, sample.ahead], axis=-1)
  else:
    rays = jnp.stack([sample.u, sample.v, jnp.ones_like(sample.u)], axis=-1)
    rays = rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)
  # The same for all data.
  down = jnp.stack([sample.down_x[0], sample.down_y[0], sample.down_z[0]])
  level = level_from_camera(down)
  points = jnp.stack([sample.x, sample.y, sample.z], axis=-1)
  pose, valid = p2p.p2p(rigid.rotate(level, rays), points)
  back = level.T
  rotation = jnp.stack([arrays.matmul(back, turn) for turn in pose.rotation])
  return rigid.Rigid(rotation, rigid.rotate(back, pose.translation)), valid


def retract(pose: rigid.Rigid, step: rigid.Array) -> rigid.Rigid:
  """`pose` after a small motion of the camera frame that keeps the vertical.

  Args:
    pose: camera_from_map.
    step: [4], turn about the map's z axis, radians, then translation in the
      camera frame, metres.
  """
  xp = arrays.namespace(*pose, step)
  turn = step[0] * pose.rotation[:, 2]
  return absolute_pose.retract(pose, xp.concatenate([turn, step[1:]]))


def _linearize(pose, data, *, free):
  errors, jacobian = free.linearize(pose, data)
  xp = arrays.namespace(jacobian)
  up = pose.rotation[:, 2, None, None]
  return errors, xp.concatenate(
    [(up * jacobian[:3]).sum(0)[None], jacobian[3:]]
  )


def _degeneracy(pose, data, inliers, threshold, *, sphere, kept):
  """Why the pose is open; '' if it is not."""
  problem = (KEPT if kept else FREE)[sphere]
  points = np.stack([data.x, data.y, data.z])[:, inliers]
  seen = rigid.moved(*pose, tuple(points))
  depth = float(np.median(np.sqrt((np.stack(seen) ** 2).sum(0))))
  largest = np.full(problem.dof, _MOST_UNCERTAIN)
  largest[-3:] *= depth
  if evidence.undetermined(problem, pose, data, inliers, threshold, largest):
    return 'the points that agree leave the pose undetermined', pose
  return '', pose


def _problems(sphere):
  """The problems with the vertical free and kept."""
  base = absolute_pose.SPHERE if sphere else absolute_pose.PLANE
  free = base._replace(
    sample_size=2,
    models_per_sample=2,  # of two slots 1.7 are filled where noise is small
    solve=_solve,
    sides=problem_lib.Sides((3, 6 if sphere else 5), (1,)),
    degeneracy=functools.partial(_degeneracy, sphere=sphere, kept=False),
  )
  kept = free._replace(
    dof=4,
    linearize=functools.partial(_linearize, free=base),
    retract=retract,
    degeneracy=functools.partial(_degeneracy, sphere=sphere, kept=True),
  )
  return free, kept


# By whether the camera looks all around.
FREE, KEPT = zip(_problems(False), _problems(True), strict=True)


class UprightPose(absolute_pose.AbsolutePose):
  """Where a camera is: `model` is `camera_from_map`.

  The covariance is that of an `AbsolutePose`; [4, 4] of the step of `retract`
  where the vertical is kept.
  """

  __slots__ = ()


def upright_pose(
  points: np.ndarray,
  pixels: np.ndarray,
  lens: lens_lib.Lens,
  down: np.ndarray,
  threshold: float = 3.0,
  *,
  up: np.ndarray | tuple[float, float, float] = (0.0, 0.0, 1.0),
  keep_vertical: bool = False,
  scores: np.ndarray | None = None,
  search: search_lib.Search = search_lib.DEFAULT,
) -> UprightPose:
  """Pose of a camera from points of a map, where the camera knows the vertical.

  Args:
    points: [N, 3], map frame, metres; any distance from the origin.
    pixels: [N, 2] (column, row) as measured, with the lens's distortion.
    lens: the camera.
    down: [3], where gravity points in the camera frame, of any length: (0, 1,
      0) for a camera that is held level. Accelerometers at rest measure the
      opposite.
    threshold: reprojection error of an inlier, at most, pixels. The vertical's
      error, a pixel per tenth of a degree at a focal length of 573, adds to
      that of the pixels.
    up: [3], where up is in the map frame.
    keep_vertical: whether the pose has the vertical as given; else it is only
      close, because the points determine it too.
    scores: [N], higher is better: draws samples in that order (PROSAC).
    search: sampler, seed and settings.

  Returns:
    The pose; too few or degenerate correspondences give `valid=False` and a
    reason.

  Raises:
    InputError: shapes that do not fit, values that are not finite, an
      impossible lens, a vertical of no length.

  Example:
    A level camera 1.5 m above the ground; 40 of 60 matches are wrong.

    >>> import numpy as np
    >>> from i2ploc.geometry import lens
    >>> from i2ploc.robust import upright_pose
    >>> matrix = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    >>> camera = lens.Lens('pinhole', matrix)
    >>> rng = np.random.default_rng(0)
    >>> seen = rng.uniform([-2, -1, 4], [2, 1, 8], (60, 3))
    >>> pixels = 500 * seen[:, :2] / seen[:, 2:] + [320, 240]
    >>> points = np.stack([seen[:, 0], seen[:, 2], 1.5 - seen[:, 1]], axis=-1)
    >>> pixels[:40] = rng.uniform(0, 480, (40, 2))
    >>> found = upright_pose.upright_pose(points, pixels, camera, (0, 1, 0))
    >>> found.valid, found.num_inliers
    (True, 20)
    >>> bool(np.allclose(found.camera_in_map, [0, 0, 1.5], atol=1e-6))
    True
  """
  threshold = inputs.check_threshold(threshold)
  lens_lib.check_lens(lens)
  down, up = direction(down, 'down'), direction(up, 'up')
  # The map is turned, so that its z axis points up.
  turn = np.asarray(_upward(up))
  points, points_usable = inputs.points(points, 3, 'points')
  # A masked array would lose its mask in the product.
  masked = np.broadcast_to(~points_usable.mask[:, None], points.shape)
  turned = np.ma.MaskedArray(points @ turn.T, masked)
  measurements, usable, frame = absolute_pose.measured(
    turned, pixels, scores, lens
  )
  sphere = lens.is_wide
  kind = Sightings if sphere else Correspondences
  constant = (np.full(len(points), value) for value in down)
  data = kind(*measurements.data, *constant)
  problem = (KEPT if keep_vertical else FREE)[sphere]
  found = search.find(
    problem,
    data,
    threshold / lens.focal_length,
    usable=measurements.usable,
    scores=measurements.scores,
  )
  found = inputs.explained(found, problem, usable)
  scale = np.ones(problem.dof)
  scale[-3:] = frame.unit

  def moved(pose):
    pose = absolute_pose.moved(pose, frame)
    return rigid.Rigid(pose.rotation @ turn, pose.translation)

  return UprightPose(*found.changed(moved, np.diag(scale)))


def direction(vector: np.ndarray | tuple, name: str) -> np.ndarray:
  """A unit vector [3], float64; InputError where there is none."""
  found, _ = inputs.array(vector, name)
  if found.shape != (3,) or not np.isfinite(found).all() or not found.any():
    raise InputError(f'{name} must be a direction [3], not {found.tolist()}')
  return found / np.linalg.norm(found)


def _upward(up):
  """A rotation [3, 3] that takes `up` to the z axis."""
  first, _ = vectors.tangents(tuple(up))
  return np.stack([first, np.cross(up, first), up])
