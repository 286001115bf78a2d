# SPDX-License-Identifier: Apache-2.0
"""Pose of a calibrated camera from points of a map.

A model is `camera_from_map`. `PLANE` is for cameras that look ahead: image
points are on the plane z = 1, and residuals are distances there. `SPHERE` is
for cameras that look all around: residuals are chords between unit vectors.
Divided by the focal length, a threshold in pixels is a threshold in either.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import arrays
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import p3p
from i2ploc.geometry import rigid
from i2ploc.robust import inputs
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import result
from i2ploc.robust import search as search_lib

_MIN_DEPTH = 1e-3
# Rays further off the lens's axis than 80 degrees (the tangent of that) are not
# projected to a plane.
_MAX_SLOPE = 5.67
# A pose is open where noise, of this share of the threshold, turns it by more
# than this, radians, or moves it by more than this share of the depth.
_NOISE, _MOST_UNCERTAIN = 0.3, 0.1
# Points in which it is looked for.
_ENOUGH = 200


class Correspondences(NamedTuple):
  """Points of a map and where a camera sees them; every leaf is [N].

  Attributes:
    x: map frame, metres.
    y: metres.
    z: metres.
    u: image plane at distance 1, to the right.
    v: down.
  """

  x: jax.Array
  y: jax.Array
  z: jax.Array
  u: jax.Array
  v: jax.Array


class Sightings(NamedTuple):
  """Points of a map and the directions in which they are seen; [N] each.

  Attributes:
    x: map frame, metres.
    y: metres.
    z: metres.
    right: component of a unit vector in the camera frame.
    down: component of it.
    ahead: component of it.
  """

  x: jax.Array
  y: jax.Array
  z: jax.Array
  right: jax.Array
  down: jax.Array
  ahead: jax.Array


def _solve(sample: Correspondences) -> tuple[rigid.Rigid, jax.Array]:
  rays = jnp.stack([sample.u, sample.v, jnp.ones_like(sample.u)], axis=-1)
  rays = rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)
  return _poses(rays, sample)


def _solve_sphere(sample: Sightings) -> tuple[rigid.Rigid, jax.Array]:
  rays = jnp.stack([sample.right, sample.down, sample.ahead], axis=-1)
  return _poses(rays, sample)


def _poses(rays, sample):
  points = jnp.stack([sample.x, sample.y, sample.z], axis=-1)
  found = p3p.p3p(rays, points)
  return rigid.Rigid(found.rotation, found.translation), found.valid


def _camera_points(pose: rigid.Rigid, data: Correspondences | Sightings):
  """Coordinates [N] of the points in the camera, one array each."""
  return rigid.moved(*pose, (data.x, data.y, data.z))


def _residual(pose: rigid.Rigid, data: Correspondences) -> rigid.Array:
  x, y, z = _camera_points(pose, data)
  xp = arrays.namespace(x)
  inverse = 1 / xp.maximum(z, _MIN_DEPTH)
  squared = (x * inverse - data.u) ** 2 + (y * inverse - data.v) ** 2
  return xp.where(z > _MIN_DEPTH, squared, problem_lib.NEVER)


def _linearize(
  pose: rigid.Rigid, data: Correspondences
) -> tuple[rigid.Array, rigid.Array]:
  """Errors [2, N] on the image plane, and their derivatives.

  A turn w and a shift s of the camera frame move a point p by w x p + s.
  """
  x, y, z = _camera_points(pose, data)
  # Bounded for points at or behind the camera.
  inverse = 1 / arrays.namespace(z).maximum(z, _MIN_DEPTH)
  u, v = x * inverse, y * inverse
  both = u * v
  errors = arrays.table([(u - data.u,), (v - data.v,)], u)[:, 0]
  jacobian = (
    (-both, -1 - v * v),
    (1 + u * u, both),
    (-v, u),
    (inverse, 0.0),
    (0.0, inverse),
    (-u * inverse, -v * inverse),
  )
  return errors, arrays.table(jacobian, u)


def _on_sphere(pose, data):
  """Unit vectors to the points, three arrays [N], and inverse distances."""
  x, y, z = _camera_points(pose, data)
  squared = arrays.namespace(x).maximum(x * x + y * y + z * z, _MIN_DEPTH**2)
  inverse = arrays.rsqrt(squared)
  return (x * inverse, y * inverse, z * inverse), inverse


def _residual_sphere(pose: rigid.Rigid, data: Sightings) -> rigid.Array:
  (x, y, z), _ = _on_sphere(pose, data)
  x, y, z = x - data.right, y - data.down, z - data.ahead
  return x * x + y * y + z * z


def _linearize_sphere(
  pose: rigid.Rigid, data: Sightings
) -> tuple[rigid.Array, rigid.Array]:
  """Errors [3, N] between unit vectors, and their derivatives.

  A unit vector n turns with the camera, and a shift s moves it by s - n (n . s)
  over the distance.
  """
  (x, y, z), inverse = _on_sphere(pose, data)
  errors = [(x - data.right,), (y - data.down,), (z - data.ahead,)]
  near = x * inverse, y * inverse, z * inverse
  xy, xz, yz = -x * near[1], -x * near[2], -y * near[2]
  jacobian = (
    (0.0, -z, y),
    (z, 0.0, -x),
    (-y, x, 0.0),
    (inverse - x * near[0], xy, xz),
    (xy, inverse - y * near[1], yz),
    (xz, yz, inverse - z * near[2]),
  )
  return arrays.table(errors, x)[:, 0], arrays.table(jacobian, x)


def retract(pose: rigid.Rigid, step: rigid.Array) -> rigid.Rigid:
  """`pose` after a small motion of the camera frame.

  Args:
    pose: camera_from_map.
    step: [6], rotation vector in the camera frame, radians, then translation,
      metres.
  """
  turn = rigid.rotation_from_vector(step[:3])
  # The error of a rotation found in float32 would remain in float64.
  moved = rigid.compose(rigid.Rigid(turn, step[3:]), pose)
  return moved._replace(rotation=rigid.orthonormalized(moved.rotation))


def _degeneracy(pose, data, inliers, threshold):
  """Why the pose is open; '' if it is not.

  Points on a line leave a turn around it open, a short arc of a circle below or
  above the camera a small motion. What is open is a step that hardly moves the
  points in the image.
  """
  rows = np.flatnonzero(inliers)
  # Some tell as well as all.
  rows = rows[:: max(len(rows) // _ENOUGH, 1)]
  seen = np.stack(_camera_points(pose, data))[:, rows]
  depth = np.sqrt((seen**2).sum(axis=0))
  nearest = np.sort(depth)[len(depth) // 2]
  rays = seen / depth
  # Of directions by a turn, and by a shift in units of the median depth.
  flat = np.eye(3)[:, :, None] - rays[:, None] * rays
  shift = flat * (nearest / depth)
  x, y, z = rays
  zero = np.zeros_like(x)
  turn = np.stack(
    [
      np.stack([zero, z, -y]),
      np.stack([-z, zero, x]),
      np.stack([y, -x, zero]),
    ]
  )
  slope = np.concatenate([turn, shift], axis=1).swapaxes(0, 1).reshape(6, -1)
  least = np.linalg.eigvalsh(slope @ slope.T)[0]
  if least * _MOST_UNCERTAIN**2 > (_NOISE * threshold) ** 2:
    return '', pose
  return 'the points that agree leave the pose undetermined', pose


PLANE = problem_lib.Problem(
  sample_size=3,
  models_per_sample=2,  # of four slots 1.8 are filled where noise is small
  dof=6,
  example=lambda: rigid.Rigid(np.eye(3), np.zeros(3)),
  solve=_solve,
  residual=_residual,
  linearize=_linearize,
  retract=retract,
  sides=problem_lib.Sides((3, 2), (1,)),
  degeneracy=_degeneracy,
)
SPHERE = PLANE._replace(
  solve=_solve_sphere,
  residual=_residual_sphere,
  linearize=_linearize_sphere,
  sides=problem_lib.Sides((3, 3), (1,)),
)


class AbsolutePose(result.Result[rigid.Rigid]):
  """Where a camera is: `model` is `camera_from_map`.

  The covariance [6, 6] is of a small motion of the camera frame: rotation
  vector, radians, then translation, metres.
  """

  __slots__ = ()

  @property
  def camera_from_map(self) -> rigid.Rigid | None:
    """The motion, float64; None unless `valid`."""
    return self.trusted

  @property
  def camera_in_map(self) -> np.ndarray | None:
    """Position [3] of the camera, metres; None unless `valid`."""
    pose = self.trusted
    if pose is None:
      return None
    return np.asarray(-pose.rotation.T @ pose.translation)


def absolute_pose(
  points: np.ndarray,
  pixels: np.ndarray,
  lens: lens_lib.Lens,
  threshold: float = 3.0,
  *,
  scores: np.ndarray | None = None,
  search: search_lib.Search = search_lib.DEFAULT,
) -> AbsolutePose:
  """Pose of a camera from points of a map and where it sees them.

  Args:
    points: [N, 3], map frame, metres; any distance from the origin. Rows that
      are masked are left out.
    pixels: [N, 2] (column, row) as measured, with the lens's distortion.
    lens: the camera.
    threshold: reprojection error of an inlier, at most, pixels.
    scores: [N], higher is better: draws samples in that order (PROSAC).
    search: sampler, seed and settings.

  Returns:
    The pose; too few or degenerate correspondences give `valid=False` and a
    reason. Pixels that the lens cannot have imaged are outliers.

  Raises:
    InputError: shapes that do not fit, values that are not finite, an
      impossible lens.

  Example:
    A camera at the origin; 20 of 60 matches are wrong.

    >>> import numpy as np
    >>> from i2ploc.geometry import lens
    >>> from i2ploc.robust import absolute_pose
    >>> matrix = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    >>> camera = lens.Lens('pinhole', matrix)
    >>> rng = np.random.default_rng(0)
    >>> points = rng.uniform([-2, -1, 4], [2, 1, 8], (60, 3))
    >>> pixels = 500 * points[:, :2] / points[:, 2:] + [320, 240]
    >>> pixels[:20] = rng.uniform(0, 480, (20, 2))
    >>> found = absolute_pose.absolute_pose(points, pixels, camera, 3.0)
    >>> found.valid, found.num_inliers
    (True, 40)
    >>> bool(np.linalg.norm(found.camera_in_map) < 1e-6)
    True
  """
  (found,) = absolute_poses(
    [points],
    [pixels],
    lens,
    threshold,
    scores=None if scores is None else [scores],
    search=search,
  )
  return found


def absolute_poses(
  points: Sequence[np.ndarray],
  pixels: Sequence[np.ndarray],
  lens: lens_lib.Lens,
  threshold: float = 3.0,
  *,
  scores: Sequence[np.ndarray] | None = None,
  search: search_lib.Search = search_lib.DEFAULT,
) -> list[AbsolutePose]:
  """`absolute_pose` of many images of a camera in one call.

  Args:
    points: B arrays [N, 3]; N may differ.
    pixels: B arrays [N, 2].
    lens: the camera of all of them.
    threshold: reprojection error of an inlier, at most, pixels.
    scores: B arrays [N], higher is better.
    search: sampler, seed and settings.

  Returns:
    B poses, see `absolute_pose`.

  Raises:
    InputError: see `absolute_pose`.

  Example:
    Lists have an entry per image, here one.

    >>> import numpy as np
    >>> from i2ploc.geometry import lens
    >>> from i2ploc.robust import absolute_pose
    >>> matrix = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    >>> camera = lens.Lens('pinhole', matrix)
    >>> rng = np.random.default_rng(0)
    >>> points = rng.uniform([-2, -1, 4], [2, 1, 8], (60, 3))
    >>> pixels = 500 * points[:, :2] / points[:, 2:] + [320, 240]
    >>> found = absolute_pose.absolute_poses([points], [pixels], camera)
    >>> [one.num_inliers for one in found]
    [60]
  """
  quality = [None] * len(points) if scores is None else scores
  inputs.same_length({'points': points, 'pixels': pixels, 'scores': scores})
  threshold = inputs.check_threshold(threshold)
  lens_lib.check_lens(lens)
  checked = [
    measured(*one, lens) for one in zip(points, pixels, quality, strict=True)
  ]
  problem = SPHERE if lens.is_wide else PLANE
  found = search.find_each(
    problem,
    [measurements for measurements, _, _ in checked],
    threshold / lens.focal_length,
  )
  return [
    _in_map(inputs.explained(one, problem, usable), frame)
    for one, (_, usable, frame) in zip(found, checked, strict=True)
  ]


def measured(
  points: np.ndarray,
  pixels: np.ndarray,
  scores: np.ndarray | None,
  lens: lens_lib.Lens,
) -> tuple[search_lib.Measurements, inputs.Usable, inputs.Frame]:
  """Measurements in a frame of the map; which may be used; and that frame.

  Args:
    points: as in `absolute_pose`.
    pixels: as in `absolute_pose`.
    scores: as in `absolute_pose`.
    lens: the camera.

  Raises:
    InputError: see `absolute_pose`.
  """
  points, pixels, usable = inputs.pairs(
    points, pixels, (3, 2), ('points', 'pixels')
  )
  scores, usable = inputs.quality(scores, usable)
  if lens.is_wide:
    rays, seen = lens_lib.rays_from_pixels(lens, pixels)
  else:
    rays, seen = lens_lib.plane_from_pixels(lens, pixels)
    seen &= np.abs(rays).max(axis=-1, initial=0.0) < _MAX_SLOPE
  usable = usable.but(seen, 'have pixels beyond the lens')
  # Far from the origin float32 does not resolve centimetres.
  frame = inputs.frame(points, usable)
  near = frame.inside(points)
  usable = inputs.near(near, usable)
  kind = Sightings if lens.is_wide else Correspondences
  data = kind(*near.T, *rays.T)
  return search_lib.Measurements(data, usable.mask, scores), usable, frame


def _in_map(found, frame):
  """The poses and their covariance in the map's own coordinates."""
  step = np.diag(np.repeat([1.0, frame.unit], 3))
  return AbsolutePose(*found.changed(lambda pose: moved(pose, frame), step))


def moved(pose: rigid.Rigid, frame: inputs.Frame) -> rigid.Rigid:
  """camera_from_map of a pose whose map is in the frame."""
  shift = frame.unit * pose.translation - pose.rotation @ frame.center
  return rigid.Rigid(pose.rotation, shift)
