# SPDX-License-Identifier: Apache-2.0
"""Problems of robust estimation with a known answer.

A share of the N data are outliers, drawn evenly from all values that the sensor
can give. Every datum has a score, drawn from N(1, 1) for inliers and N(0, 1)
for outliers. Data are in the order of their scores, which only some samplers
use.

Cameras have 640 x 480 pixels and f = 500; image points are on the plane z = 1.
Noise and thresholds are in pixels there, and in centimetres for points.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
from scipy.spatial import transform

from i2ploc.errors import InputError
from i2ploc.evaluation import model_errors
from i2ploc.geometry import alignment as alignment_lib
from i2ploc.geometry import essential
from i2ploc.geometry import rigid
from i2ploc.robust import absolute_pose
from i2ploc.robust import alignment
from i2ploc.robust import fundamental
from i2ploc.robust import homography
from i2ploc.robust import lines
from i2ploc.robust import planes
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import relative_pose
from i2ploc.robust import two_views

FOCAL = 500.0
_HALF = np.array([320.0, 240.0]) / FOCAL
_CORNERS = _HALF * [[-1, -1], [1, -1], [1, 1], [-1, 1]]
_GRID = _HALF * np.stack(
  np.meshgrid(*[np.linspace(-1, 1, 7)] * 2), axis=-1
).reshape(-1, 2)
_ROOM = 10.0  # metres, side of the cube that points are in
_NEAREST, _FURTHEST = 2.0, 10.0  # metres, depths
_PIXEL, _CENTIMETRE = 1 / FOCAL, 0.01


class Draw(NamedTuple):
  """What a generator is given.

  Attributes:
    rng: of one problem.
    inliers: [N] bool.
    noise: standard deviation, in the unit of the data.
  """

  rng: np.random.Generator
  inliers: np.ndarray
  noise: float

  def uniform(self, low, high, *shape) -> np.ndarray:
    """[N, *shape] between bounds."""
    return self.rng.uniform(low, high, (len(self.inliers), *shape))

  def spoilt(self, values: np.ndarray, low, high) -> np.ndarray:
    """Values [N, D] with noise; outliers are drawn between the bounds."""
    noisy = values + self.noise * self.rng.normal(size=values.shape)
    anywhere = self.uniform(low, high, values.shape[1])
    return np.where(self.inliers[:, None], noisy, anywhere)

  def rotation(self) -> np.ndarray:
    """Any rotation [3, 3]."""
    return transform.Rotation.from_quat(self.rng.normal(size=4)).as_matrix()


class Kind(NamedTuple):
  """A kind of problem.

  Attributes:
    problem: how it is solved.
    plant: `draw -> data, truth`: pytree of [N], and the model behind it.
    errors: `models, truths -> name: [B]`, of B models; the first error is the
      one reported.
    limits: by name, the upper limit of each error of a success.
    unit: one pixel or centimetre in the unit of the data.
  """

  problem: problem_lib.Problem
  plant: Callable[[Draw], tuple[Any, Any]]
  errors: Callable[[Any, Any], Mapping[str, np.ndarray]]
  limits: Mapping[str, float]
  unit: float


class Planted(NamedTuple):
  """Problems of a kind.

  Attributes:
    data: pytree of float32 [B, N].
    truth: pytree of float64 [B, ...].
    inliers: [B, N] bool.
  """

  data: Any
  truth: Any
  inliers: np.ndarray


def plant(
  kind: Kind,
  num_data: int,
  outliers: float,
  noise: float,
  num_problems: int,
  seed: int = 0,
) -> Planted:
  """Problems, the same for the same arguments.

  Args:
    kind: what to plant.
    num_data: N.
    outliers: share of the data.
    noise: standard deviation, pixels or centimetres.
    num_problems: B.
    seed: of all of them.

  Raises:
    InputError: a share outside [0, 1], or a negative noise.
  """
  if not 0 <= outliers <= 1 or noise < 0:
    raise InputError(
      f'outliers={outliers} must be a share of the data, from 0 to 1, and '
      f'noise={noise} not negative'
    )
  problems = []
  for number in range(num_problems):
    rng = np.random.default_rng([seed, number])
    inliers = rng.permutation(num_data) >= round(outliers * num_data)
    order = np.argsort(-(inliers + rng.normal(size=num_data)))
    inliers = inliers[order]
    data, truth = kind.plant(Draw(rng, inliers, noise * kind.unit))
    problems.append((data, truth, inliers))
  data, truth, inliers = jax.tree.map(
    lambda *leaves: np.stack(leaves), *problems
  )
  return Planted(jax.tree.map(np.float32, data), truth, inliers)


def _seen(draw):
  """Image points [N, 2] on the plane z = 1 and points [N, 3] there."""
  plane = draw.uniform(-_HALF, _HALF, 2)
  rays = np.concatenate([plane, np.ones((len(plane), 1))], axis=-1)
  return plane, rays * draw.uniform(_NEAREST, _FURTHEST, 1)


def _absolute_pose(draw):
  plane, seen = _seen(draw)
  rotation, center = draw.rotation(), draw.rng.uniform(-5, 5, 3)
  points = seen @ rotation + center
  plane = draw.spoilt(plane, -_HALF, _HALF)
  truth = rigid.Rigid(rotation, -rotation @ center)
  return absolute_pose.Correspondences(*points.T, *plane.T), truth


def _homography(draw):
  """The image's corners move by 100 pixels at most, to either side."""
  moved = _CORNERS + draw.rng.uniform(-100, 100, (4, 2)) / FOCAL
  rows = []
  for (x, y), (u, v) in zip(_CORNERS, moved, strict=True):
    rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
    rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
  entries = np.linalg.solve(rows, moved.ravel())
  truth = np.append(entries, 1.0).reshape(3, 3)
  plane, _ = _seen(draw)
  other = draw.spoilt(model_errors.mapped(truth, plane), -_HALF, _HALF)
  return two_views.Matches(*plane.T, *other.T), truth


def _two_views(draw):
  """A second camera, half a metre to one away, turned by up to 20 degrees.

  Image points [N, 2] of both, and the second from the first, of length 1.
  """
  plane, seen = _seen(draw)
  turn, shift = draw.rng.normal(size=(2, 3))
  turn *= draw.rng.uniform(0, 0.35) / np.linalg.norm(turn)
  rotation = transform.Rotation.from_rotvec(turn).as_matrix()
  shift /= np.linalg.norm(shift)
  other = seen @ rotation.T + draw.rng.uniform(0.5, 1.0) * shift
  other = other[:, :2] / np.maximum(other[:, 2:], 0.1)
  other = draw.spoilt(other, -_HALF, _HALF)
  return plane, other, rigid.Rigid(rotation, shift)


def _relative_pose(draw):
  plane, other, truth = _two_views(draw)
  plane, other = (np.insert(p, 2, 1.0, axis=1) for p in (plane, other))
  return relative_pose.Rays(*plane.T, *other.T), truth


def _fundamental(draw):
  plane, other, motion = _two_views(draw)
  matrix = essential.from_pose(motion)
  truth = matrix / np.linalg.norm(matrix)
  return two_views.Matches(*plane.T, *other.T), truth


def _alignment(draw, scale=1.0):
  points = draw.uniform(-_ROOM / 2, _ROOM / 2, 3)
  rotation, shift = draw.rotation(), draw.rng.uniform(-5, 5, 3)
  moved = scale * points @ rotation.T + shift
  reach = scale * _ROOM / 2
  moved = draw.spoilt(moved, shift - reach, shift + reach)
  truth = rigid.Rigid(rotation, shift)
  return alignment.Pairs(*moved.T, *points.T), truth


def _similarity(draw):
  scale = 2 ** draw.rng.uniform(-1, 1)
  data, motion = _alignment(draw, scale)
  return data, alignment_lib.Similarity(*motion, np.asarray(scale))


def _on_surface(draw, normal):
  """Points [N, D] of a plane or line, and its offset along the normal."""
  half = _ROOM / 2
  # Through the middle third of the room, so that much of it is inside.
  offset = draw.rng.uniform(-half / 3, half / 3)
  points = draw.uniform(-half, half, len(normal))
  points -= (points @ normal - offset)[:, None] * normal
  return draw.spoilt(points, -half, half).T, np.asarray(offset)


def _plane(draw):
  normal = draw.rotation()[2]
  points, offset = _on_surface(draw, normal)
  return planes.Points(*points), planes.Plane(normal, offset)


def _line(draw):
  angle = draw.rng.uniform(0, 2 * np.pi)
  normal = np.array([np.cos(angle), np.sin(angle)])
  points, offset = _on_surface(draw, normal)
  return lines.Points(*points), lines.Line(normal, offset)


KINDS = {
  'absolute_pose': Kind(
    absolute_pose.PLANE,
    _absolute_pose,
    model_errors.camera_errors,
    {'position': 0.1, 'rotation': 1.0},
    _PIXEL,
  ),
  'homography': Kind(
    homography.PROBLEM,
    _homography,
    functools.partial(
      model_errors.corner_errors, corners=_CORNERS, focal=FOCAL
    ),
    {'corner': 3.0},
    _PIXEL,
  ),
  'relative_pose': Kind(
    relative_pose.PLANE,
    _relative_pose,
    model_errors.relative_errors,
    {'direction': 5.0, 'rotation': 1.0},
    _PIXEL,
  ),
  'fundamental': Kind(
    fundamental.PROBLEM,
    _fundamental,
    functools.partial(model_errors.epipolar_errors, points=_GRID, focal=FOCAL),
    {'epipolar': 3.0},
    _PIXEL,
  ),
  'alignment': Kind(
    alignment.PROBLEM,
    _alignment,
    model_errors.motion_errors,
    {'translation': 0.1, 'rotation': 1.0},
    _CENTIMETRE,
  ),
  'similarity': Kind(
    alignment.SIMILARITY,
    _similarity,
    model_errors.motion_errors,
    {'translation': 0.1, 'rotation': 1.0, 'scale': 1.0},
    _CENTIMETRE,
  ),
  'plane': Kind(
    planes.PROBLEM,
    _plane,
    model_errors.surface_errors,
    {'offset': 0.05, 'angle': 1.0},
    _CENTIMETRE,
  ),
  'line': Kind(
    lines.PROBLEM,
    _line,
    model_errors.surface_errors,
    {'offset': 0.05, 'angle': 1.0},
    _CENTIMETRE,
  ),
}


def kind_of(name: str) -> Kind:
  """The kind of problem with this name.

  Raises:
    InputError: an unknown name.
  """
  if name not in KINDS:
    raise InputError(f'unknown problem {name!r}; known: {sorted(KINDS)}')
  return KINDS[name]


def describe(name: str) -> dict[str, str]:
  """What the numbers of a problem mean, for tables.

  Returns:
    'error', the name of the reported error; 'unit', of that error;
    'noise_unit', of noise and thresholds; 'success', its definition.
  """
  kind = kind_of(name)
  error = next(iter(kind.limits))
  return {
    'error': error,
    'unit': model_errors.UNITS[error],
    'noise_unit': 'px' if kind.unit == _PIXEL else 'cm',
    'success': ', '.join(
      f'{limit} < {most:g} {model_errors.UNITS[limit]}'
      for limit, most in kind.limits.items()
    ),
  }


def success(
  kind: Kind, models: Any, truths: Any, valid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Which of B models are right, and the reported error of each.

  Args:
    kind: of the problems.
    models: pytree of [B, ...].
    truths: pytree of [B, ...], the planted models.
    valid: [B] bool, whether there is a model.

  Returns:
    [B] bool, and [B] in the unit of the kind's first limit.
  """
  models = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), models)
  errors = kind.errors(models, truths)
  right = np.asarray(valid, bool)
  for name, limit in kind.limits.items():
    right = right & (errors[name] < limit)
  return right, errors[next(iter(kind.limits))]
