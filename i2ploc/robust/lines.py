# SPDX-License-Identifier: Apache-2.0
"""The line that most points of a plane lie on: the textbook's problem."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import arrays
from i2ploc.robust import evidence
from i2ploc.robust import inputs
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import result
from i2ploc.robust import search as search_lib


class Line(NamedTuple):
  """All x with normal @ x = offset.

  Attributes:
    normal: [2], of length 1.
    offset: distance of the line from the origin along the normal.
  """

  normal: jax.Array | np.ndarray
  offset: jax.Array | np.ndarray


class Points(NamedTuple):
  """Points; every leaf is [N].

  Attributes:
    x: in any unit.
    y: in the unit of x.
  """

  x: jax.Array
  y: jax.Array


def _solve(sample: Points) -> tuple[Line, jax.Array]:
  (x0, x1), (y0, y1) = sample
  squared = (x1 - x0) ** 2 + (y1 - y0) ** 2
  reach = jnp.maximum(jnp.abs(sample.x).max(), jnp.abs(sample.y).max())
  resolution = 4 * jnp.finfo(reach.dtype).eps * reach
  valid = (squared > resolution**2) & (squared > 0) & jnp.isfinite(squared)
  length = jnp.sqrt(jnp.where(valid, squared, 1.0))
  normal = jnp.stack([(y0 - y1) / length, (x1 - x0) / length])
  normal = jnp.where(valid, normal, jnp.array([0.0, 1.0], reach.dtype))
  middle = jnp.stack([x0 + x1, y0 + y1]) / 2
  offset = jnp.sum(jnp.where(valid, normal * middle, 0.0))
  return Line(normal[None], offset[None]), valid[None]


def _distance(line: Line, data: Points) -> arrays.Array:
  """[N], signed."""
  return line.normal[0] * data.x + line.normal[1] * data.y - line.offset


def _residual(line: Line, data: Points) -> arrays.Array:
  return _distance(line, data) ** 2


def _linearize(line: Line, data: Points) -> tuple[arrays.Array, arrays.Array]:
  """Signed distances [1, N], and their derivatives."""
  distance = _distance(line, data)
  turn = line.normal[0] * data.y - line.normal[1] * data.x
  return distance[None], arrays.table([(turn,), (-1.0,)], distance)


def retract(line: Line, step: arrays.Array) -> Line:
  """`line`, turned and moved.

  Args:
    line: where to start.
    step: [2], turn of the normal from x to y, radians, then the change of the
      offset.
  """
  xp = arrays.namespace(*line, step)
  (x, y), (cos, sin) = line.normal, (xp.cos(step[0]), xp.sin(step[0]))
  normal = xp.stack([cos * x - sin * y, sin * x + cos * y])
  return Line(normal, line.offset + step[1])


def _degeneracy(line, data, inliers, threshold):
  """Why the line is open; '' if it is not."""
  narrow = evidence.narrow(np.stack(data)[:, inliers], threshold)
  if narrow == 'in one place':
    return f'all points that agree are {narrow}', line
  return '', line


PROBLEM = problem_lib.Problem(
  sample_size=2,
  models_per_sample=1,
  dof=2,
  example=lambda: Line(np.array([0.0, 1.0]), np.zeros(())),
  solve=_solve,
  residual=_residual,
  linearize=_linearize,
  retract=retract,
  degeneracy=_degeneracy,
)


def line(
  points: np.ndarray,
  threshold: float,
  *,
  scores: np.ndarray | None = None,
  search: search_lib.Search = search_lib.DEFAULT,
) -> result.Result[Line]:
  """The line that most points lie on.

  Args:
    points: [N, 2]; any distance from the origin.
    threshold: distance of an inlier from the line, at most.
    scores: [N], higher is better: draws samples in that order (PROSAC).
    search: sampler, seed and settings.

  Returns:
    The result, whose `model` is a `Line` with a normal that points away from
    the origin; too few points or points that coincide give `valid=False` and a
    reason. The covariance [2, 2] is of the step of `retract`.

  Raises:
    InputError: another shape, or values that are not finite.

  Example:
    The line y = 2; 20 of 60 points are not on it.

    >>> import numpy as np
    >>> from i2ploc.robust import lines
    >>> rng = np.random.default_rng(0)
    >>> points = rng.uniform(-5, 5, (60, 2))
    >>> points[20:, 1] = 2.0
    >>> found = lines.line(points, threshold=0.01)
    >>> found.num_inliers
    40
    >>> bool(np.allclose(found.model.normal, [0, 1], atol=1e-6))
    True
  """
  threshold = inputs.check_threshold(threshold)
  points, usable = inputs.points(points, 2, 'points')
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


def _in_units(line, frame):
  """A line of coordinates in a frame, and its step, of the points themselves.

  The step [2, 2] is the derivative by that in the frame.
  """
  normal = line.normal / np.linalg.norm(line.normal)
  offset = frame.unit * line.offset + normal @ frame.center
  side = -1.0 if offset < 0 else 1.0
  # A turn about the center moves the line past the origin.
  along = np.array([-normal[1], normal[0]])
  moved = [side * along @ frame.center, side * frame.unit]
  change = np.array([[1.0, 0.0], moved])
  return Line(side * normal, side * offset), change
