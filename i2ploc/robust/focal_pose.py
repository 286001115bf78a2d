# SPDX-License-Identifier: Apache-2.0
"""Pose and focal length of a camera from points of a map.

For photos of unknown origin and for zoom lenses. Pixels are square, the
principal point is known (mostly the middle of the image), and there is no
distortion. A model is a `Camera`; residuals are distances in the image.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import arrays
from i2ploc.geometry import p4pf
from i2ploc.geometry import rigid
from i2ploc.robust import absolute_pose
from i2ploc.robust import evidence
from i2ploc.robust import inputs
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import result
from i2ploc.robust import search as search_lib

# The unit of image points: so many medians of their distance from the principal
# point, about half the diagonal.
_MEDIANS = 1.6
# Image points so many units away are of no camera.
_FARTHEST = 50.0
# A camera is open where noise turns it by more than this, radians, or changes
# its distance or focal length by more than this share.
_MOST_UNCERTAIN = 0.3


class Camera(NamedTuple):
  """A camera that looks ahead.

  Attributes:
    rotation: [3, 3], of camera_from_map.
    translation: [3], metres.
    focal_length: scalar, pixels.
  """

  rotation: rigid.Array
  translation: rigid.Array
  focal_length: rigid.Array


def _solve(sample: absolute_pose.Correspondences) -> tuple[Camera, jax.Array]:
  image = jnp.stack([sample.u, sample.v], axis=-1)
  points = jnp.stack([sample.x, sample.y, sample.z], axis=-1)
  found = p4pf.p4pf(image, points)
  return Camera(*found[:3]), found.valid


def _on_plane(camera, data):
  """The pose, and data whose errors on the plane z = 1 are their places."""
  pose = rigid.Rigid(camera.rotation, camera.translation)
  scale = 1 / camera.focal_length
  return pose, data._replace(u=data.u * scale, v=data.v * scale)


def _residual(camera: Camera, data: absolute_pose.Correspondences):
  squared = absolute_pose.PLANE.residual(*_on_plane(camera, data))
  # A camera of small focal length must not bring points behind it near.
  scale = camera.focal_length**2
  xp = arrays.namespace(squared, scale)
  return squared * xp.maximum(scale, 1e-3)


def _linearize(camera: Camera, data: absolute_pose.Correspondences):
  """Errors [2, N] in the image, and their derivatives [7, 2, N]."""
  focal = camera.focal_length
  pose, scaled = _on_plane(camera, data)
  errors, jacobian = absolute_pose.PLANE.linearize(pose, scaled)
  xp = arrays.namespace(errors, focal)
  # The image of the points, in pixels.
  image = focal * errors + xp.stack([data.u, data.v])
  return focal * errors, xp.concatenate([focal * jacobian, image[None]])


def retract(camera: Camera, step: rigid.Array) -> Camera:
  """A camera near another.

  Args:
    camera: where to start.
    step: [7], of `absolute_pose.retract`, then the change of the logarithm of
      the focal length.
  """
  xp = arrays.namespace(*camera, step)
  pose = rigid.Rigid(camera.rotation, camera.translation)
  moved = absolute_pose.retract(pose, step[:6])
  return Camera(*moved, camera.focal_length * xp.exp(step[6]))


def _degeneracy(camera, data, inliers, threshold):
  """Why the camera is open; '' if it is not.

  Where all depths are alike, or the points are on a plane that faces the
  camera, a longer focal length and a greater distance look the same.
  """
  points = np.stack([data.x, data.y, data.z])[:, inliers]
  seen = rigid.moved(camera.rotation, camera.translation, tuple(points))
  largest = np.full(7, _MOST_UNCERTAIN)
  largest[3:6] *= float(np.median(seen[2]))
  if evidence.undetermined(PROBLEM, camera, data, inliers, threshold, largest):
    return 'the points that agree leave the focal length undetermined', camera
  return '', camera


PROBLEM = problem_lib.Problem(
  sample_size=4,
  models_per_sample=1,  # of two slots 1.0 is filled where noise is small
  dof=7,
  example=lambda: Camera(np.eye(3), np.zeros(3), np.ones(())),
  solve=_solve,
  residual=_residual,
  linearize=_linearize,
  retract=retract,
  sides=problem_lib.Sides((3, 2), (1,)),
  degeneracy=_degeneracy,
)


class FocalPose(result.Result[Camera]):
  """Where a camera is, and its focal length: `model` is a `Camera`.

  The covariance [7, 7] is of the step of `retract`: rotation vector, radians,
  translation, metres, logarithm of the focal length.
  """

  __slots__ = ()

  @property
  def camera_from_map(self) -> rigid.Rigid | None:
    """The motion, float64; None unless `valid`."""
    if self.trusted is None:
      return None
    return rigid.Rigid(self.trusted.rotation, self.trusted.translation)

  @property
  def focal_length(self) -> float | None:
    """Pixels; None unless `valid`."""
    if self.trusted is None:
      return None
    return float(self.trusted.focal_length)

  @property
  def camera_in_map(self) -> np.ndarray | None:
    """Position [3] of the camera, metres; None unless `valid`."""
    if self.trusted is None:
      return None
    return np.asarray(-self.trusted.rotation.T @ self.trusted.translation)


def focal_pose(
  points: np.ndarray,
  pixels: np.ndarray,
  principal_point: np.ndarray | tuple[float, float],
  threshold: float = 3.0,
  *,
  scores: np.ndarray | None = None,
  search: search_lib.Search = search_lib.DEFAULT,
) -> FocalPose:
  """Pose and focal length of a camera from points of a map.

  Args:
    points: [N, 3], map frame, metres; any distance from the origin.
    pixels: [N, 2] (column, row), without distortion.
    principal_point: (column, row): the middle of the image, unless it was cut.
    threshold: reprojection error of an inlier, at most, pixels.
    scores: [N], higher is better: draws samples in that order (PROSAC).
    search: sampler, seed and settings.

  Returns:
    The camera; too few or degenerate correspondences give `valid=False` and a
    reason.

  Raises:
    InputError: shapes that do not fit, values that are not finite.

  Example:
    A camera at the origin; 20 of 60 matches are wrong.

    >>> import numpy as np
    >>> from i2ploc.robust import focal_pose
    >>> rng = np.random.default_rng(0)
    >>> points = rng.uniform([-2, -1, 4], [2, 1, 8], (60, 3))
    >>> pixels = 700 * points[:, :2] / points[:, 2:] + [320, 240]
    >>> pixels[:20] = rng.uniform(0, 480, (20, 2))
    >>> found = focal_pose.focal_pose(points, pixels, (320, 240))
    >>> found.num_inliers, round(found.focal_length, 3)
    (40, 700.0)
  """
  threshold = inputs.check_threshold(threshold)
  middle, _ = inputs.array(principal_point, 'principal_point')
  if middle.shape != (2,) or not np.isfinite(middle).all():
    raise InputError(
      f'the principal point must be (column, row), not {middle.tolist()}'
    )
  points, pixels, usable = inputs.pairs(
    points, pixels, (3, 2), ('points', 'pixels')
  )
  scores, usable = inputs.quality(scores, usable)
  image = pixels - middle
  away = np.sqrt((image[usable.mask] ** 2).sum(axis=1))
  unit = _MEDIANS * float(np.median(away)) if len(away) else 1.0
  unit = unit if unit > 0 else 1.0
  image = image / unit
  seen = np.abs(image).max(axis=-1, initial=0.0) < _FARTHEST
  usable = usable.but(seen, 'have pixels far beyond the others')
  frame = inputs.frame(points, usable)
  near = frame.inside(points)
  usable = inputs.near(near, usable)
  data = absolute_pose.Correspondences(*near.T, *image.T)
  found = search.find(
    PROBLEM, data, threshold / unit, usable=usable.mask, scores=scores
  )
  found = inputs.explained(found, PROBLEM, usable)

  def moved(camera):
    pose = rigid.Rigid(camera.rotation, camera.translation)
    pose = absolute_pose.moved(pose, frame)
    return Camera(*pose, np.asarray(camera.focal_length * unit))

  step = np.diag([1.0] * 3 + [frame.unit] * 3 + [1.0])
  return FocalPose(*found.changed(moved, step))
