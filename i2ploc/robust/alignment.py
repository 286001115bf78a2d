# SPDX-License-Identifier: Apache-2.0
"""The motion between two frames in which the same points are known.

A model is `a_from_b`. Residuals are distances in frame a, metres. `PROBLEM`
has a rigid motion, `SIMILARITY` a scale too.
"""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import alignment as alignment_lib
from i2ploc.geometry import rigid
from i2ploc.robust import consensus
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import search

# A scale that makes a point of everything agrees with all that is near it.
_SMALLEST_SCALE, _LARGEST_SCALE = 1e-3, 1e3


class Pairs(NamedTuple):
  """Points in two frames; every leaf is [N], metres.

  Attributes:
    xa: frame a.
    ya: of the same.
    za: of the same.
    xb: frame b.
    yb: of the same.
    zb: of the same.
  """

  xa: jax.Array
  ya: jax.Array
  za: jax.Array
  xb: jax.Array
  yb: jax.Array
  zb: jax.Array


def _align(sample: Pairs, *, with_scale: bool):
  """One motion, leading axis 1, from three pairs."""
  found, valid = alignment_lib.align_triangles(
    jnp.stack([sample.xa, sample.ya, sample.za], axis=-1),
    jnp.stack([sample.xb, sample.yb, sample.zb], axis=-1),
    with_scale=with_scale,
  )
  valid &= (found.scale > _SMALLEST_SCALE) & (found.scale < _LARGEST_SCALE)
  return jax.tree.map(lambda leaf: leaf[None], (found, valid))


def _solve(sample: Pairs) -> tuple[rigid.Rigid, jax.Array]:
  found, valid = _align(sample, with_scale=False)
  return rigid.Rigid(found.rotation, found.translation), valid


def _solve_similarity(
  sample: Pairs,
) -> tuple[alignment_lib.Similarity, jax.Array]:
  return _align(sample, with_scale=True)


def _differences(turn, shift, data: Pairs):
  """Coordinates [N] of moved points less those seen in a, an array each."""
  # Written out: a matrix product of three columns does not vectorise on CPU.
  return tuple(
    turn[i, 0] * data.xb
    + turn[i, 1] * data.yb
    + turn[i, 2] * data.zb
    + (shift[i] - seen)
    for i, seen in enumerate((data.xa, data.ya, data.za))
  )


def _errors(motion: rigid.Rigid, data: Pairs) -> jax.Array:
  """[3, N], metres."""
  return jnp.stack(_differences(motion.rotation, motion.translation, data))


def _residual(motion: rigid.Rigid, data: Pairs) -> jax.Array:
  x, y, z = _differences(motion.rotation, motion.translation, data)
  return x * x + y * y + z * z


def _without_scale(motion: alignment_lib.Similarity) -> rigid.Rigid:
  """What moves alike, of a matrix that is no rotation."""
  return rigid.Rigid(motion.scale * motion.rotation, motion.translation)


def retract(motion: rigid.Rigid, step: jax.Array) -> rigid.Rigid:
  """`motion` followed by a small one of frame a.

  Args:
    motion: a_from_b.
    step: [6], rotation vector in frame a, radians, then translation, metres.
  """
  turn = rigid.rotation_from_vector(step[:3])
  return rigid.compose(rigid.Rigid(turn, step[3:]), motion)


def retract_similarity(
  motion: alignment_lib.Similarity, step: jax.Array
) -> alignment_lib.Similarity:
  """`motion` followed by a small one of frame a, and a growth about its origin.

  Args:
    motion: a_from_b.
    step: [7], as `retract`, then the logarithm of the growth.
  """
  grown = jnp.exp(step[6])
  moved = retract(
    rigid.Rigid(motion.rotation, grown * motion.translation), step[:6]
  )
  return alignment_lib.Similarity(
    moved.rotation, moved.translation, grown * motion.scale
  )


PROBLEM = problem_lib.Problem(
  sample_size=3,
  num_solutions=1,
  dof=6,
  solve=_solve,
  residual=_residual,
  errors=_errors,
  retract=retract,
)
SIMILARITY = problem_lib.Problem(
  sample_size=3,
  num_solutions=1,
  dof=7,
  solve=_solve_similarity,
  residual=lambda motion, data: _residual(_without_scale(motion), data),
  errors=lambda motion, data: _errors(_without_scale(motion), data),
  retract=retract_similarity,
)


class Alignment(NamedTuple):
  """How one frame lies in another.

  Attributes:
    a_from_b: float64 motion; None unless `valid`.
    scale: metres of frame a per metre of frame b, x_a = scale * rotation @ x_b
      + translation; 1 unless it was asked for.
    inliers: [N] bool, pairs within the threshold.
    num_inliers: their number.
    covariance: [6, 6], [7, 7] with scale, of the step of `retract`, from the
      inliers' own residuals.
    num_draws: minimal samples drawn.
    valid: whether there is a motion.
    reason: why not; empty if valid.
  """

  a_from_b: Any
  scale: float
  inliers: np.ndarray
  num_inliers: int
  covariance: np.ndarray
  num_draws: int
  valid: bool
  reason: str


def alignment(
  points_a: np.ndarray,
  points_b: np.ndarray,
  threshold: float,
  *,
  scores: np.ndarray | None = None,
  with_scale: bool = False,
  sampler: str = 'auto',
  seed: int = 0,
  settings: consensus.Settings = consensus.DEFAULT,
) -> Alignment:
  """The motion that most pairs of points agree with.

  Args:
    points_a: [N, 3], frame a, metres; any distance from the origin.
    points_b: [N, 3], frame b.
    threshold: distance of an inlier, at most, metres of frame a.
    scores: [N], higher is better: draws samples in that order (PROSAC).
    with_scale: whether the frames may differ in scale.
    sampler: of `search.SAMPLERS`.
    seed: of the samples.
    settings: how to search.

  Returns:
    The motion; too few or degenerate pairs give `valid=False` and a reason.

  Raises:
    InputError: shapes that do not fit, or values that are not finite.
  """
  points_a, points_b = (np.asarray(p, np.float64) for p in (points_a, points_b))
  if points_a.shape != points_b.shape or points_a.shape[1:] != (3,):
    raise InputError(
      f'points must be [N, 3] in both frames: {list(points_a.shape)} beside '
      f'{list(points_b.shape)}'
    )
  # Far from the origin float32 has no centimetres left.
  center_a, center_b = (
    np.nanmedian(p, axis=0) if len(p) else np.zeros(3)
    for p in (points_a, points_b)
  )
  found = search.search(
    SIMILARITY if with_scale else PROBLEM,
    Pairs(*(points_a - center_a).T, *(points_b - center_b).T),
    threshold,
    scores=scores,
    sampler=sampler,
    seed=seed,
    settings=settings,
  )
  motion, scale = found.model, 1.0
  if found.valid:
    scale = float(motion.scale) if with_scale else 1.0
    u, _, v = np.linalg.svd(motion.rotation)
    shift = motion.translation + center_a - scale * (u @ v) @ center_b
    motion = rigid.Rigid(u @ v, shift)
  return Alignment(
    motion,
    scale,
    found.inliers,
    found.num_inliers,
    _about_origin(found.covariance, center_a),
    found.num_draws,
    found.valid,
    found.reason,
  )


def _about_origin(covariance, center):
  """The covariance of steps about a center, of steps about the origin.

  A turn w about c moves the origin by c x w, a growth g by -g c.
  """
  if not np.isfinite(covariance).all():
    return covariance
  x, y, z = center
  change = np.eye(len(covariance))
  change[3:6, :3] = [[0, -z, y], [z, 0, -x], [-y, x, 0]]
  change[3:6, 6:] = -center[:, None]
  return change @ covariance @ change.T
