# SPDX-License-Identifier: Apache-2.0
"""Ellipsoids fitted to the boxes around them in posed images.

The soft-L1 norm of the errors of all edges, in their tolerances, is minimised
over centre, log semi-axes and rotation vector, by reweighted least squares, for
many ellipsoids at once. An edge on the border of the image is open: the object
may extend beyond it, but must not end before.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import compilation
from i2ploc.geometry import ellipsoid as ellipsoid_lib
from i2ploc.geometry import rigid
from i2ploc.objects.map import dual_quadric
from i2ploc.robust import refine

# Degrees of freedom of an ellipsoid, and of a turn of all cameras.
DOF, _TURN = 9, 3
# Ellipsoids fitted in one call. Their boxes are padded to one of two numbers,
# so that two programs serve all; more boxes are thinned out.
BATCH, FEW_VIEWS, MAX_VIEWS = 16, 64, 384
# Cost of a spread of the log semi-axes by 1, relative to an edge off by the
# scale of the norm: so little that it decides only what the views leave open.
_SPREAD = 2e-3
_DAMPING = refine.Damping(
  first=2e-3, least=1e-7, most=1e7, easier=0.2, harder=8.0
)
# Share of the largest diagonal entry of the equations that is added to all:
# directions that no view determines stay where they are.
_RIDGE = 1e-6
# Largest change of a parameter in one step.
_LONGEST_STEP = 0.5
# Largest turn of the cameras in one step, radians.
_MAX_TURN = 0.02
# A turn of 0.01 radians, the inverse root of this, costs as much as an edge
# that is off by the scale of the norm.
_TURN_STIFFNESS = 1e4
# Error, in tolerances, of an edge of an ellipsoid not in front of the camera.
_NOT_SEEN = 30.0


class Fit(NamedTuple):
  """The fits of B objects.

  Attributes:
    ellipsoid: leaves [B, ...].
    covariance: [B, 3, 3] of the centre, square metres; infinite where the
      boxes do not determine it.
    cost: [B], mean soft-L1 cost of an edge, in squared tolerances.
    valid: [B] bool, whether the fit is finite.
    turn_matrix: [B, 3, 3], and
    turn_gradient: [B, 3], the normal equations of a turn of all cameras with
      the ellipsoid's own step eliminated; see `common_turn`.
  """

  ellipsoid: ellipsoid_lib.Ellipsoid
  covariance: np.ndarray
  cost: np.ndarray
  valid: np.ndarray
  turn_matrix: np.ndarray
  turn_gradient: np.ndarray


class _Edges(NamedTuple):
  """Normal equations of the edges alone.

  Of 12 unknowns, a turn of all cameras and the 9 of the ellipsoid; and the
  spread's share of those of the 9.
  """

  matrix: jax.Array
  gradient: jax.Array
  spread_matrix: jax.Array
  spread_gradient: jax.Array


def _moved(ellipsoid, step):
  """A nearby ellipsoid: centre in mean semi-axes, log semi-axes, turn."""
  size = jnp.exp(jnp.mean(jnp.log(ellipsoid.semi_axes)))
  return ellipsoid_lib.Ellipsoid(
    ellipsoid.center + size * step[:3],
    ellipsoid.semi_axes * jnp.exp(step[3:6]),
    jnp.matmul(
      ellipsoid.rotation,
      rigid.rotation_from_vector(step[6:]),
      precision=rigid.EXACT,
    ),
  )


def _errors(ellipsoid, views):
  """[V, 4] in tolerances."""
  outline = ellipsoid_lib.project(
    ellipsoid, rigid.Rigid(views.rotation, views.translation)
  )
  error = (outline.box - views.box) * views.precision
  outward = jnp.asarray([-1.0, -1.0, 1.0, 1.0], error.dtype)
  error = jnp.where((views.open > 0) & (error * outward > 0), 0.0, error)
  error = jnp.where(outline.valid[:, None], error, _NOT_SEEN)
  return views.weight[:, None] * error


def _spread(ellipsoid):
  logs = jnp.log(ellipsoid.semi_axes)
  return logs - jnp.mean(logs)


def _linearize(ellipsoid, views, scale):
  """The equations of an ellipsoid's step; the rest are its `_Edges`."""
  zero = jnp.zeros(_TURN + DOF, views.box.dtype)
  exact = functools.partial(jnp.matmul, precision=rigid.EXACT)

  def errors(step):
    turn = rigid.rotation_from_vector(step[:_TURN])
    turned = views._replace(
      rotation=exact(turn, views.rotation),
      translation=exact(views.translation, turn.T),
    )
    moved = _moved(ellipsoid, step[_TURN:])
    return _errors(moved, turned), _spread(moved)

  (error, spread), push = jax.linearize(errors, zero)
  slope, bend = jax.vmap(push)(jnp.eye(_TURN + DOF, dtype=zero.dtype))
  error, slope = error.reshape(-1), slope.reshape(_TURN + DOF, -1)
  # Soft-L1: the square of a small error, 2 scale |error| of a large one.
  root = jnp.sqrt(1 + (error / scale) ** 2)
  stiff = _SPREAD * scale**2 * 4 * jnp.sum(views.weight)
  bend = bend[_TURN:]
  edges = _Edges(
    exact(slope / root, slope.T),
    exact(slope, error / root),
    stiff * exact(bend, bend.T),
    stiff * exact(bend, spread),
  )
  matrix = edges.matrix[_TURN:, _TURN:] + edges.spread_matrix
  ridge = _RIDGE * jnp.max(jnp.diagonal(matrix)) + 1e-20
  return refine.Equations(
    2 * scale**2 * jnp.sum(root - 1) + stiff * jnp.sum(spread**2),
    matrix + ridge * jnp.eye(DOF),
    edges.gradient[_TURN:] + edges.spread_gradient,
    edges,
  )


def _fit_one(ellipsoid, views, scale, num_steps):
  """The fit of one object and the equations there."""
  return refine.minimize(
    lambda ellipsoid: _linearize(ellipsoid, views, scale),
    lambda ellipsoid, step: _moved(
      ellipsoid, jnp.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
    ),
    ellipsoid,
    num_steps,
    _DAMPING,
  )


@compilation.jit
def _fit_batch(ellipsoids, views, scale, num_steps):
  return jax.vmap(_fit_one, in_axes=(0, 0, None, None))(
    ellipsoids, views, scale, num_steps
  )


def _padded(views, origin, size):
  """At most `size` evenly picked boxes, padded with boxes of weight 0."""
  count = len(views.box)
  rows = np.linspace(0, count - 1, min(count, size)).round().astype(int)
  some = views.take(rows)
  # float32 is most accurate in coordinates around the object.
  shifted = some.translation + some.rotation @ origin
  some = some._replace(translation=shifted)
  fill = size - len(rows)
  padded = dual_quadric.Views(
    *(np.concatenate([leaf, leaf[:1].repeat(fill, 0)]) for leaf in some)
  )
  padded.weight[len(rows) :] = 0
  return padded


def fit_ellipsoids(
  starts: Sequence[ellipsoid_lib.Ellipsoid],
  views: Sequence[dual_quadric.Views],
  scale: float,
  num_steps: int = 25,
) -> Fit:
  """Fits ellipsoids to their boxes, all in calls of one compiled function.

  Args:
    starts: B ellipsoids near the solution.
    views: their boxes, at least one each.
    scale: tolerances; larger errors count linearly.
    num_steps: steps to try.

  Returns:
    B fits, none of a higher cost than its start.
  """
  fits = [
    _fitted(starts[i : i + BATCH], views[i : i + BATCH], scale, num_steps)
    for i in range(0, len(starts), BATCH)
  ]
  if not fits:
    shape = ellipsoid_lib.Ellipsoid(*np.zeros((2, 0, 3)), np.zeros((0, 3, 3)))
    square, column = np.zeros((0, 3, 3)), np.zeros(0)
    valid, gradient = np.zeros(0, bool), np.zeros((0, 3))
    return Fit(shape, square, column, valid, square, gradient)
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *fits)


def _stacked(starts, views):
  """A padded batch, each object around its own origin [B, 3]."""
  origins = np.stack([one.center for one in starts])
  near = [
    one._replace(center=one.center - origin)
    for one, origin in zip(starts, origins, strict=True)
  ]
  few = max(len(one.box) for one in views) <= FEW_VIEWS
  size = FEW_VIEWS if few else MAX_VIEWS
  data = [
    _padded(one, origin, size)
    for one, origin in zip(views, origins, strict=True)
  ]
  fill = BATCH - len(starts)
  near, data = (
    jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float32), *x)
    for x in (near + near[:1] * fill, data + data[:1] * fill)
  )
  return near, data, origins


def _fitted(starts, views, scale, num_steps):
  count = len(starts)
  near, data, origins = _stacked(starts, views)
  best, known = jax.tree.map(
    lambda leaf: np.asarray(leaf[:count], np.float64),
    jax.device_get(_fit_batch(near, data, scale, num_steps)),
  )
  edges, cost = known.rest, known.cost / (4 * data.weight[:count].sum(-1))
  own = edges.matrix[:, _TURN:, _TURN:]
  size = np.exp(np.log(best.semi_axes).mean(-1))
  covariance = np.stack(
    [
      _covariance(matrix, variance, one)
      for matrix, variance, one in zip(own, cost, size, strict=True)
    ]
  )
  valid = np.isfinite(best.center).all(-1) & np.isfinite(cost)
  valid &= np.isfinite(best.semi_axes).all(-1)
  # The ellipsoid's own step is eliminated (the Schur complement).
  own = own + edges.spread_matrix
  ridge = _RIDGE * own.max((1, 2), keepdims=True) + 1e-20
  mixed = edges.matrix[:, _TURN:, :_TURN]
  shared = np.linalg.solve(own + ridge * np.eye(DOF), mixed)
  shared = np.swapaxes(shared, 1, 2)
  return Fit(
    best._replace(center=best.center + origins),
    covariance,
    cost,
    valid,
    edges.matrix[:, :_TURN, :_TURN] - shared @ mixed,
    edges.gradient[:, :_TURN] - np.einsum('bij,bj->bi', shared, known.gradient),
  )


def _covariance(information, variance, size):
  """Covariance [3, 3] of a centre from the information on all 9 unknowns."""
  scale = 1 / np.sqrt(np.maximum(np.diagonal(information), 1e-30))
  values, vectors = np.linalg.eigh(information * scale[:, None] * scale)
  # Turning a ball changes nothing: such directions are left out.
  flat = values < 1e-5 * max(values[-1], 1e-30)
  if np.abs(vectors[:3, flat]).max(initial=0) > 0.1:
    return np.full((3, 3), np.inf)
  inverse = np.where(flat, 0, 1 / np.where(flat, 1, values))
  whole = (vectors * inverse) @ vectors.T * scale[:, None] * scale
  return size**2 * variance * whole[:3, :3]


def common_turn(fit: Fit, scale: float) -> np.ndarray:
  """A step of the rotation error that all cameras have in common.

  One step of Gauss and Newton on the turn and all ellipsoids together, of which
  only the turn is returned. Views from one side do not determine it; the step
  is then small.

  Args:
    fit: the fits of all objects, with these cameras.
    scale: see `fit_ellipsoids`.

  Returns:
    Rotation vector [3] of the cameras' own frames, radians.
  """
  matrix = fit.turn_matrix[fit.valid].sum(0)
  matrix = matrix + _TURN_STIFFNESS * scale**2 * np.eye(_TURN)
  step = -np.linalg.solve(matrix, fit.turn_gradient[fit.valid].sum(0))
  return step * min(1.0, _MAX_TURN / max(np.linalg.norm(step), 1e-12))
