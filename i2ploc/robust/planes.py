# SPDX-License-Identifier: Apache-2.0
"""The plane that most points of a cloud lie on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import arrays
from i2ploc.geometry import rigid
from i2ploc.geometry import vectors
from i2ploc.robust import evidence
from i2ploc.robust import inputs
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import result
from i2ploc.robust import search as search_lib

# Squared sine of a corner below which three points are on a line.
_FLAT = 1e-10


class Plane(NamedTuple):
  """All x with normal @ x = offset.

  Attributes:
    normal: [3], of length 1.
    offset: distance of the plane from the origin along the normal, metres.
  """

  normal: jax.Array | np.ndarray
  offset: jax.Array | np.ndarray


class Points(NamedTuple):
  """Points; every leaf is [N], metres.

  Attributes:
    x: in the frame of the cloud.
    y: in the frame of the cloud.
    z: in the frame of the cloud.
  """

  x: jax.Array
  y: jax.Array
  z: jax.Array


def _solve(sample: Points) -> tuple[Plane, jax.Array]:
  points = jnp.stack(sample, axis=-1)
  side, other = points[1] - points[0], points[2] - points[0]
  normal = jnp.cross(side, other)
  squared = jnp.sum(normal**2)
  longest = jnp.maximum(jnp.sum(side**2), jnp.sum(other**2))
  valid = (squared > _FLAT * longest**2) & jnp.isfinite(squared)
  up = jnp.array([0.0, 0.0, 1.0], points.dtype)
  normal = jnp.where(valid, normal / jnp.sqrt(jnp.where(valid, squared, 1)), up)
  offset = jnp.sum(jnp.where(valid, normal * points.mean(0), 0.0))
  return Plane(normal[None], offset[None]), valid[None]


def _distance(plane: Plane, data: Points) -> rigid.Array:
  """[N], signed, metres."""
  a, b, c = plane.normal
  return a * data.x + b * data.y + c * data.z - plane.offset


def _residual(plane: Plane, data: Points) -> rigid.Array:
  return _distance(plane, data) ** 2


def _linearize(plane: Plane, data: Points) -> tuple[rigid.Array, rigid.Array]:
  """Signed distances [1, N], and their derivatives."""
  first, second = vectors.tangents(tuple(plane.normal))
  distance = _distance(plane, data)
  tilts = [(vectors.dot(axis, data),) for axis in (first, second)]
  return distance[None], arrays.table([*tilts, (-1.0,)], distance)


def retract(plane: Plane, step: rigid.Array) -> Plane:
  """`plane`, tilted and moved.

  Args:
    plane: where to start.
    step: [3], tilts of the normal towards its `vectors.tangents`, radians, then
      the change of the offset, metres.
  """
  xp = arrays.namespace(*plane, step)
  first, second = map(xp.stack, vectors.tangents(tuple(plane.normal)))
  normal = plane.normal + step[0] * first + step[1] * second
  normal = normal / xp.sqrt(xp.sum(normal**2))
  return Plane(normal, plane.offset + step[2])


def _degeneracy(plane, data, inliers, threshold):
  """Why the plane is open; '' if it is not."""
  if narrow := evidence.narrow(np.stack(data)[:, inliers], threshold):
    return f'all points that agree are {narrow}', plane
  return '', plane


PROBLEM = problem_lib.Problem(
  sample_size=3,
  models_per_sample=1,
  dof=3,
  example=lambda: Plane(np.array([0.0, 0.0, 1.0]), np.zeros(())),
  solve=_solve,
  residual=_residual,
  linearize=_linearize,
  retract=retract,
  degeneracy=_degeneracy,
)


def plane(
  points: np.ndarray,
  threshold: float,
  *,
  scores: np.ndarray | None = None,
  search: search_lib.Search = search_lib.DEFAULT,
) -> result.Result[Plane]:
  """The plane that most points lie on.

  Args:
    points: [N, 3], metres; any distance from the origin.
    threshold: distance of an inlier from the plane, at most, metres.
    scores: [N], higher is better: draws samples in that order (PROSAC).
    search: sampler, seed and settings.

  Returns:
    The result, whose `model` is a `Plane` with a normal that points away from
    the origin; too few points or points on a line give `valid=False` and a
    reason. The covariance [3, 3] is of the step of `retract`.

  Raises:
    InputError: another shape, or values that are not finite.

  Example:
    The plane z = 2; 20 of 60 points are not on it.

    >>> import numpy as np
    >>> from i2ploc.robust import planes
    >>> rng = np.random.default_rng(0)
    >>> points = rng.uniform(-5, 5, (60, 3))
    >>> points[20:, 2] = 2.0
    >>> found = planes.plane(points, threshold=0.01)
    >>> found.num_inliers
    40
    >>> bool(np.allclose(found.model.normal, [0, 0, 1], atol=1e-6))
    True
    >>> round(float(found.model.offset), 6)
    2.0
  """
  threshold = inputs.check_threshold(threshold)
  points, usable = inputs.points(points, 3, 'points')
  scores, usable = inputs.quality(scores, usable)
  # Far from the origin float32 has few digits left.
  frame = inputs.frame(points, usable)
  near = frame.inside(points)
  usable = inputs.near(near, usable)
  found = search.find(
    PROBLEM,
    Points(*near.T),
    threshold / frame.unit,
    usable=usable.mask,
    scores=scores,
  )
  found = inputs.explained(found, PROBLEM, usable)
  if found.model is None:
    return found
  _, step = _in_units(found.model, frame)
  return found.changed(lambda model: _in_units(model, frame)[0], step)


def _in_units(plane, frame):
  """A plane of coordinates in a frame, and its step, of the points themselves.

  The step [3, 3] is the derivative by that in the frame.
  """
  normal = plane.normal / np.linalg.norm(plane.normal)
  offset = frame.unit * plane.offset + normal @ frame.center
  side = -1.0 if offset < 0 else 1.0
  before, after = (
    np.asarray(vectors.tangents(n), np.float64) for n in (normal, side * normal)
  )
  change = side * np.eye(3)
  change[:2, :2] = side * after @ before.T
  # A tilt about the center moves the plane past the origin.
  change[2, :2] = side * before @ frame.center
  change[2, 2] = side * frame.unit
  return Plane(side * normal, side * offset), change
