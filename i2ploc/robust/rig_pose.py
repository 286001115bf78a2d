# SPDX-License-Identifier: Apache-2.0
"""Pose of a rig of calibrated cameras from points of a map.

A rig is a body with several cameras: they see more than one, and their
correspondences together need one search. A model is `body_from_map`. A residual
is, to first order, a distance in the image of the camera that saw the point, in
pixels of the rig's mean focal length: a point of the body frame is projected to
the plane that touches the sphere around the camera where the point was seen.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import arrays
from i2ploc.geometry import gp3p
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import rigid
from i2ploc.geometry import vectors
from i2ploc.robust import absolute_pose
from i2ploc.robust import evidence
from i2ploc.robust import inputs
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import result
from i2ploc.robust import search as search_lib

_MIN_DEPTH = 1e-3
# A pose is open where noise turns it by more than this, radians, or moves it by
# more than this share of the depth.
_MOST_UNCERTAIN = 0.3
# Rays further off a lens's axis than 80 degrees (the cosine of that) are left
# out, unless the camera looks all around.
_LEAST_COSINE = 0.17


class RigCamera(NamedTuple):
  """A camera of a rig.

  Attributes:
    lens: its lens.
    camera_from_body: where it is.
  """

  lens: lens_lib.Lens
  camera_from_body: rigid.Rigid


class Sightings(NamedTuple):
  """Points of a map and how a rig sees them; every leaf is [N].

  Attributes:
    x: map frame, metres.
    y: metres.
    z: metres.
    from_x: where the ray begins, body frame, metres.
    from_y: metres.
    from_z: metres.
    ray_x: component of a unit vector along the ray, body frame.
    ray_y: component of it.
    ray_z: component of it.
    right_x: the derivative of the column by the ray, divided by the rig's focal
      length; orthogonal to the ray.
    right_y: component of it.
    right_z: component of it.
    down_x: the derivative of the row, likewise.
    down_y: component of it.
    down_z: component of it.
  """

  x: rigid.Array
  y: rigid.Array
  z: rigid.Array
  from_x: rigid.Array
  from_y: rigid.Array
  from_z: rigid.Array
  ray_x: rigid.Array
  ray_y: rigid.Array
  ray_z: rigid.Array
  right_x: rigid.Array
  right_y: rigid.Array
  right_z: rigid.Array
  down_x: rigid.Array
  down_y: rigid.Array
  down_z: rigid.Array


def _solve(sample: Sightings) -> tuple[rigid.Rigid, jax.Array]:
  points, origins, rays = (
    jnp.stack(sample[i : i + 3], axis=-1) for i in (0, 3, 6)
  )
  return gp3p.gp3p(origins, rays, points)


def _projected(pose, data):
  """Points in the body, their depth, its inverse, and errors; all [N]."""
  body = rigid.moved(*pose, data[:3])
  offset = vectors.minus(body, data[3:6])
  depth = vectors.dot(offset, data[6:9])
  inverse = 1 / arrays.namespace(depth).maximum(depth, _MIN_DEPTH)
  x = vectors.dot(offset, data[9:12]) * inverse
  y = vectors.dot(offset, data[12:15]) * inverse
  return body, depth, inverse, x, y


def _residual(pose: rigid.Rigid, data: Sightings) -> rigid.Array:
  _, depth, _, x, y = _projected(pose, data)
  xp = arrays.namespace(depth)
  return xp.where(depth > _MIN_DEPTH, x * x + y * y, problem_lib.NEVER)


def _linearize(
  pose: rigid.Rigid, data: Sightings
) -> tuple[rigid.Array, rigid.Array]:
  """Errors [2, N] and their derivatives.

  A turn w and a shift s of the body frame move a point p by w x p + s.
  """
  body, _, inverse, x, y = _projected(pose, data)
  by_shift = [
    vectors.scaled(
      vectors.minus(data[i : i + 3], vectors.scaled(data[6:9], error)), inverse
    )
    for i, error in ((9, x), (12, y))
  ]
  by_turn = [vectors.cross(body, slope) for slope in by_shift]
  rows = [*zip(*by_turn, strict=True), *zip(*by_shift, strict=True)]
  return arrays.table([(x,), (y,)], x)[:, 0], arrays.table(rows, x)


def _degeneracy(pose, data, inliers, threshold):
  """Why the pose is open; '' if it is not."""
  _, depth, *_ = _projected(pose, data)
  largest = np.full(6, _MOST_UNCERTAIN)
  largest[3:] *= float(np.median(depth[inliers]))
  if evidence.undetermined(PROBLEM, pose, data, inliers, threshold, largest):
    return 'the points that agree leave the pose undetermined', pose
  return '', pose


PROBLEM = problem_lib.Problem(
  sample_size=3,
  models_per_sample=3,  # of eight slots 1.3 to 2 are filled
  dof=6,
  example=lambda: rigid.Rigid(np.eye(3), np.zeros(3)),
  solve=_solve,
  residual=_residual,
  linearize=_linearize,
  retract=absolute_pose.retract,
  sides=problem_lib.Sides((3, 6, 6), (1,)),
  degeneracy=_degeneracy,
)


class RigPose(result.Result[rigid.Rigid]):
  """Where a rig is: `model` is `body_from_map`.

  The covariance [6, 6] is of a small motion of the body frame: rotation
  vector, radians, then translation, metres.
  """

  __slots__ = ()

  @property
  def body_from_map(self) -> rigid.Rigid | None:
    """The motion, float64; None unless `valid`."""
    return self.trusted

  @property
  def body_in_map(self) -> np.ndarray | None:
    """Position [3] of the body, metres; None unless `valid`."""
    pose = self.trusted
    if pose is None:
      return None
    return np.asarray(-pose.rotation.T @ pose.translation)


def rig_pose(
  points: np.ndarray,
  pixels: np.ndarray,
  cameras: np.ndarray,
  rig: Sequence[RigCamera],
  threshold: float = 3.0,
  *,
  scores: np.ndarray | None = None,
  search: search_lib.Search = search_lib.DEFAULT,
) -> RigPose:
  """Pose of several cameras on a body from points of a map.

  Args:
    points: [N, 3], map frame, metres; any distance from the origin.
    pixels: [N, 2] (column, row) as measured, with the lens's distortion.
    cameras: [N], the number in the rig of the camera that saw the point.
    rig: its cameras; of any models, mixed.
    threshold: reprojection error of an inlier, at most, pixels.
    scores: [N], higher is better: draws samples in that order (PROSAC).
    search: sampler, seed and settings.

  Returns:
    The pose; too few or degenerate correspondences give `valid=False` and a
    reason. Pixels that a lens cannot have imaged are outliers.

  Raises:
    InputError: shapes that do not fit, values that are not finite, an
      impossible lens, a camera that the rig does not have.

  Example:
    Two cameras that look ahead and back; 20 of 60 matches are wrong.

    >>> import numpy as np
    >>> from i2ploc.geometry import lens
    >>> from i2ploc.geometry import rigid
    >>> from i2ploc.robust import rig_pose
    >>> matrix = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    >>> camera = lens.Lens('pinhole', matrix)
    >>> ahead = rigid.Rigid(np.eye(3), np.array([0.0, 0.0, -1.0]))
    >>> back = rigid.Rigid(np.diag([-1.0, 1.0, -1.0]), np.array([0.0, 0, -1]))
    >>> rig = [rig_pose.RigCamera(camera, motion) for motion in (ahead, back)]
    >>> rng = np.random.default_rng(0)
    >>> seen = rng.uniform([-2, -1, 4], [2, 1, 8], (60, 3))
    >>> cameras = np.arange(60) % 2
    >>> points = np.where(cameras[:, None], seen * [-1, 1, -1], seen)
    >>> points[:, 2] += np.where(cameras, -1, 1)
    >>> pixels = 500 * seen[:, :2] / seen[:, 2:] + [320, 240]
    >>> pixels[:20] = rng.uniform(0, 480, (20, 2))
    >>> found = rig_pose.rig_pose(points + [7, 8, 9], pixels, cameras, rig)
    >>> found.num_inliers, found.body_in_map.round(3).tolist()
    (40, [7.0, 8.0, 9.0])
  """
  threshold = inputs.check_threshold(threshold)
  points, pixels, usable = inputs.pairs(
    points, pixels, (3, 2), ('points', 'pixels')
  )
  scores, usable = inputs.quality(scores, usable)
  cameras = _checked(cameras, rig, len(points))
  focal = float(np.mean([camera.lens.focal_length for camera in rig]))
  seen = _seen(pixels, cameras, rig, focal)
  usable = usable.but(seen.valid, 'have pixels beyond the lens')
  frame = inputs.frame(points, usable)
  near = frame.inside(points)
  usable = inputs.near(near, usable)
  parts = near, seen.origins / frame.unit, seen.rays, seen.right, seen.down
  data = Sightings(*(row for part in parts for row in part.T))
  found = search.find(
    PROBLEM, data, threshold / focal, usable=usable.mask, scores=scores
  )
  found = inputs.explained(found, PROBLEM, usable)
  step = np.diag(np.repeat([1.0, frame.unit], 3))
  return RigPose(
    *found.changed(lambda pose: absolute_pose.moved(pose, frame), step)
  )


def _checked(cameras, rig, count):
  """Numbers of cameras [N]; InputError for those that are none."""
  found, _ = inputs.array(cameras, 'cameras')
  found = found.reshape(-1) if found.size == 0 else found
  if found.shape != (count,):
    raise InputError(
      f'cameras must be [N]: {list(found.shape)} beside {count} points'
    )
  if not len(rig):
    raise InputError('the rig has no camera')
  for camera in rig:
    lens_lib.check_lens(camera.lens)
  numbers = found.astype(int)
  wrong = (numbers != found) | (numbers < 0) | (numbers >= len(rig))
  if wrong.any():
    raise InputError(
      f'there is no camera {found[wrong][0]:g} in a rig of {len(rig)}'
    )
  return numbers


class _Seen(NamedTuple):
  """Rays in the body frame, [N, 3] each, and which are valid [N]."""

  origins: np.ndarray
  rays: np.ndarray
  right: np.ndarray
  down: np.ndarray
  valid: np.ndarray


def _seen(pixels, cameras, rig, focal):
  seen = _Seen(
    *(np.zeros((len(pixels), 3)) for _ in range(4)),
    np.zeros(len(pixels), bool),
  )
  for number, (lens, motion) in enumerate(rig):
    rows = np.flatnonzero(cameras == number)
    if not len(rows):
      continue
    rays, valid = lens_lib.rays_from_pixels(lens, pixels[rows])
    if lens.is_wide:
      right, down = np.stack(vectors.tangents(tuple(rays.T))).swapaxes(1, 2)
    else:
      valid &= rays[:, 2] > _LEAST_COSINE
      ahead = np.maximum(rays[:, 2:], _LEAST_COSINE)
      # Of u = x / z, at a point at distance 1.
      right, down = (
        (axis - rays[:, i, None] / ahead * [0.0, 0.0, 1.0]) / ahead
        for i, axis in enumerate(np.eye(3)[:2])
      )
    scale = lens.focal_length / focal
    rotation = np.asarray(motion.rotation, np.float64)
    seen.origins[rows] = -rotation.T @ np.asarray(motion.translation)
    seen.rays[rows] = rays @ rotation
    seen.right[rows] = scale * right @ rotation
    seen.down[rows] = scale * down @ rotation
    seen.valid[rows] = valid
  return seen
