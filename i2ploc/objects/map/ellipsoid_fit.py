# SPDX-License-Identifier: Apache-2.0
"""Ellipsoids fitted to the boxes around them in posed images.

The soft-L1 norm of all edges, in their tolerances, is minimised over centre,
log semi-axes and rotation vector: Levenberg-Marquardt with reweighting, many
ellipsoids at once. An edge on the border of the image is open: the object may
go on beyond it, but must not end before.
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

DOF, _TURN = 9, 3  # of an ellipsoid, and of a turn of all cameras
# Ellipsoids fitted in one call, and boxes of each, few or many of which more
# are thinned out: two compilations for all.
BATCH, FEW_VIEWS, MAX_VIEWS = 16, 64, 384
# Cost of a spread of the log semi-axes by 1, relative to an edge off by the
# scale of the norm: decides only what the views leave open.
_SPREAD = 2e-3
_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-2, 1e-7, 1e7
# Radians: the most that one step turns cameras, and one over the square of
# what they turn by for as much as an edge counts.
_MAX_TURN, _TURN_STIFFNESS = 0.02, 1e4
# Tolerances that an edge is off if the camera is not in front of it.
_NOT_SEEN = 30.0


class Fit(NamedTuple):
  """What was found for each of B objects.

  Attributes:
    ellipsoid: leaves [B, ...].
    covariance: [B, 3, 3] of the centre, square metres; infinite where the
      boxes do not determine it.
    cost: [B], mean soft-L1 cost of an edge, in squared tolerances.
    valid: [B] bool, finite.
    turn_matrix: [B, 3, 3] and
    turn_gradient: [B, 3], the normal equations of a turn of all cameras if the
      ellipsoid gives way; see `common_turn`.
  """

  ellipsoid: ellipsoid_lib.Ellipsoid
  covariance: np.ndarray
  cost: np.ndarray
  valid: np.ndarray
  turn_matrix: np.ndarray
  turn_gradient: np.ndarray


class _Equations(NamedTuple):
  """The cost at an ellipsoid, and normal equations of its step.

  Of 12 unknowns, a turn of all cameras and the 9 of the ellipsoid: `matrix`
  and `gradient` of the edges; and of the 9, those of the spread.
  """

  cost: jax.Array
  matrix: jax.Array
  gradient: jax.Array
  spread_matrix: jax.Array
  spread_gradient: jax.Array


def _moved(ellipsoid, step):
  """An ellipsoid near by: centre in mean semi-axes, log axes, turn."""
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


def _equations(ellipsoid, views, scale):
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
  return _Equations(
    2 * scale**2 * jnp.sum(root - 1) + stiff * jnp.sum(spread**2),
    exact(slope / root, slope.T),
    exact(slope, error / root),
    stiff * exact(bend, bend.T),
    stiff * exact(bend, spread),
  )


def _step(equations, damping):
  """The damped step of the 9."""
  matrix = equations.matrix[_TURN:, _TURN:] + equations.spread_matrix
  diagonal = jnp.diagonal(matrix)
  ridge = damping * diagonal + 1e-6 * jnp.max(diagonal) + 1e-20
  gradient = equations.gradient[_TURN:] + equations.spread_gradient
  step = -jnp.linalg.solve(matrix + jnp.diag(ridge), gradient)
  return jnp.clip(jnp.where(jnp.isfinite(step), step, 0.0), -0.5, 0.5)


def _fit_one(ellipsoid, views, scale, num_steps):
  """The fit of one object and the equations there."""

  def body(_, carry):
    best, known, damping, tried = carry
    found = _equations(tried, views, scale)
    better = found.cost < known.cost
    best, known = jax.tree.map(
      lambda a, b: jnp.where(better, a, b), (tried, found), (best, known)
    )
    damping = damping * jnp.where(better, 0.2, 8.0)
    damping = jnp.clip(damping, _LEAST_DAMPING, _MOST_DAMPING)
    return best, known, damping, _moved(best, _step(known, damping))

  nothing = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(_equations, ellipsoid, views, scale),
  )
  nothing = nothing._replace(cost=jnp.full_like(nothing.cost, jnp.inf))
  damping = jnp.full_like(nothing.cost, _FIRST_DAMPING)
  carry = ellipsoid, nothing, damping, ellipsoid
  # The first of the rounds is the start itself.
  best, known, _, _ = jax.lax.fori_loop(0, num_steps + 1, body, carry)
  return best, known


@compilation.jit
def _fit_batch(ellipsoids, views, scale, num_steps):
  return jax.vmap(_fit_one, in_axes=(0, 0, None, None))(
    ellipsoids, views, scale, num_steps
  )


def _padded(views, origin, size):
  """At most `size` evenly picked boxes, filled up with weight 0."""
  count = len(views.box)
  rows = np.linspace(0, count - 1, min(count, size)).round().astype(int)
  some = views.take(rows)
  # Of coordinates around the object float32 keeps more.
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
    num_steps: of Levenberg and Marquardt.

  Returns:
    B fits; none costs more than its start.
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
  """A batch around each object's own origin [B, 3], filled up."""
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
  cost = known.cost / (4 * data.weight[:count].sum(-1))
  own = known.matrix[:, _TURN:, _TURN:]
  size = np.exp(np.log(best.semi_axes).mean(-1))
  covariance = np.stack(
    [
      _covariance(matrix, variance, one)
      for matrix, variance, one in zip(own, cost, size, strict=True)
    ]
  )
  valid = np.isfinite(best.center).all(-1) & np.isfinite(cost)
  valid &= np.isfinite(best.semi_axes).all(-1)
  # The ellipsoid's own step eliminated.
  own = own + known.spread_matrix
  ridge = 1e-6 * own.max((1, 2), keepdims=True) + 1e-20
  own = own + ridge * np.eye(DOF)
  mixed = known.matrix[:, _TURN:, :_TURN]
  shared = np.swapaxes(np.linalg.solve(own, mixed), 1, 2)
  gradient = known.gradient[:, _TURN:] + known.spread_gradient
  return Fit(
    best._replace(center=best.center + origins),
    covariance,
    cost,
    valid,
    known.matrix[:, :_TURN, :_TURN] - shared @ mixed,
    known.gradient[:, :_TURN] - np.einsum('bij,bj->bi', shared, gradient),
  )


def _covariance(information, variance, size):
  """Covariance [3, 3] of a centre from the information on all 9 numbers."""
  scale = 1 / np.sqrt(np.maximum(np.diagonal(information), 1e-30))
  values, vectors = np.linalg.eigh(information * scale[:, None] * scale)
  # Turning a ball changes nothing: what is flat is left out, not inverted.
  flat = values < 1e-5 * max(values[-1], 1e-30)
  if np.abs(vectors[:3, flat]).max(initial=0) > 0.1:
    return np.full((3, 3), np.inf)
  inverse = np.where(flat, 0, 1 / np.where(flat, 1, values))
  whole = (vectors * inverse) @ vectors.T * scale[:, None] * scale
  return size**2 * variance * whole[:3, :3]


def common_turn(fit: Fit, scale: float) -> np.ndarray:
  """A step of the rotation that all cameras lack, whatever else changes.

  One step of Gauss and Newton on the turn and all ellipsoids together, of which
  only the turn is returned: a rotation vector [3] of the cameras' own frames,
  radians. It is not determined by views from one side, and then small.

  Args:
    fit: of all objects, with these cameras.
    scale: see `fit_ellipsoids`.
  """
  matrix = fit.turn_matrix[fit.valid].sum(0)
  matrix = matrix + _TURN_STIFFNESS * scale**2 * np.eye(_TURN)
  step = -np.linalg.solve(matrix, fit.turn_gradient[fit.valid].sum(0))
  return step * min(1.0, _MAX_TURN / max(np.linalg.norm(step), 1e-12))
