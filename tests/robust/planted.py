# SPDX-License-Identifier: Apache-2.0
"""Problems with a known answer."""

import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import arrays
from i2ploc.geometry import rigid
from i2ploc.robust import absolute_pose
from i2ploc.robust import problem as problem_lib

FOCAL = 500.0


def random_rotation(rng: np.random.Generator) -> np.ndarray:
  """A rotation [3, 3], evenly distributed."""
  q, r = np.linalg.qr(rng.normal(size=(3, 3)))
  q = q * np.sign(np.diagonal(r))
  return q * np.linalg.det(q)


def poses(
  num_data: int, outliers: float, seed: int = 0, noise: float = 1.0
) -> tuple[absolute_pose.Correspondences, rigid.Rigid, np.ndarray]:
  """Points 2 to 10 m before a 640 x 480 camera; a share of random pixels.

  Returns:
    The data, inliers with better scores first where scores tell; the true
    camera_from_map; which data are inliers.
  """
  rng = np.random.default_rng(seed)
  pixels = rng.uniform(0, 1, (num_data, 2)) * [640, 480] - [320, 240]
  plane = pixels / FOCAL
  seen = np.concatenate([plane, np.ones((num_data, 1))], -1)
  seen = seen * rng.uniform(2, 10, (num_data, 1))
  rotation = random_rotation(rng)
  translation = rng.normal(size=3)
  points = (seen - translation) @ rotation
  inliers = np.ones(num_data, bool)
  inliers[rng.permutation(num_data)[: round(outliers * num_data)]] = False
  plane = plane + rng.normal(size=plane.shape) * noise / FOCAL
  random = rng.uniform(-0.5, 0.5, plane.shape) * [640, 480] / FOCAL
  plane = np.where(inliers[:, None], plane, random)
  order = np.argsort(-(inliers + rng.normal(size=num_data)))
  columns = [*points[order].T, *plane[order].T]
  data = absolute_pose.Correspondences(
    *(jnp.asarray(column, jnp.float32) for column in columns)
  )
  pose = rigid.Rigid(
    jnp.asarray(rotation, jnp.float32), jnp.asarray(translation, jnp.float32)
  )
  return data, pose, inliers[order]


def _line_through(sample):
  (x0, x1), (y0, y1) = sample['x'], sample['y']
  steep = jnp.abs(x1 - x0) < 1e-6
  slope = (y1 - y0) / jnp.where(steep, 1.0, x1 - x0)
  model = jnp.stack([slope, y0 - slope * x0])[None]
  return model, ~steep[None]


def _line_errors(model, data):
  return model[0] * data['x'] + model[1] - data['y']


def _line_linearized(model, data):
  errors = _line_errors(model, data)
  return errors[None], arrays.table([(data['x'],), (1.0,)], errors)


# y = slope x + offset, with residuals along y: simple enough to check by hand.
LINE = problem_lib.Problem(
  sample_size=2,
  models_per_sample=1,
  dof=2,
  example=lambda: np.zeros(2),
  solve=_line_through,
  residual=lambda model, data: _line_errors(model, data) ** 2,
  linearize=_line_linearized,
  retract=lambda model, step: model + step,
)


def line(num_data: int, outliers: float, seed: int = 0, noise: float = 0.01):
  """Data of `LINE` around y = 2 x - 1, and which are inliers."""
  rng = np.random.default_rng(seed)
  x = rng.uniform(-1, 1, num_data)
  y = 2 * x - 1 + noise * rng.normal(size=num_data)
  inliers = rng.permutation(num_data) >= round(outliers * num_data)
  y = np.where(inliers, y, rng.uniform(-3, 1, num_data))
  data = {'x': jnp.asarray(x, jnp.float32), 'y': jnp.asarray(y, jnp.float32)}
  return data, inliers
