# SPDX-License-Identifier: Apache-2.0
"""The motion between two frames in which the same points are known.

A model is `a_from_b`. Residuals are distances in frame a, metres. `PROBLEM`
has a rigid motion, `SIMILARITY` a scale too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import alignment as alignment_lib
from i2ploc.geometry import arrays
from i2ploc.geometry import rigid
from i2ploc.robust import evidence
from i2ploc.robust import inputs
from i2ploc.robust import problem as problem_lib
from i2ploc.robust import result
from i2ploc.robust import search as search_lib

# A tiny scale maps everything to one point, which agrees with all points near.
_SMALLEST_SCALE, _LARGEST_SCALE = 1e-3, 1e3


class Pairs(NamedTuple):
  """Points in two frames; every leaf is [N], metres.

  Attributes:
    xa: x in frame a.
    ya: y in frame a.
    za: z in frame a.
    xb: x in frame b.
    yb: y in frame b.
    zb: z in frame b.
  """

  xa: rigid.Array
  ya: rigid.Array
  za: rigid.Array
  xb: rigid.Array
  yb: rigid.Array
  zb: rigid.Array


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


def _differences(motion: rigid.Rigid, data: Pairs):
  """Points moved to frame a, and the same minus those seen there.

  Three arrays [N] each.
  """
  moved = rigid.moved(*motion, (data.xb, data.yb, data.zb))
  seen = data.xa, data.ya, data.za
  return moved, tuple(m - s for m, s in zip(moved, seen, strict=True))


def _residual(motion: rigid.Rigid, data: Pairs) -> rigid.Array:
  _, (x, y, z) = _differences(motion, data)
  return x * x + y * y + z * z


def _linearize(
  motion: rigid.Rigid, data: Pairs
) -> tuple[rigid.Array, rigid.Array]:
  """Errors [3, N], metres, and their derivatives."""
  (x, y, z), errors = _differences(motion, data)
  return _joined(errors, _by_motion(x, y, z))


def _by_motion(x, y, z):
  """A turn w and a shift s move a point p by w x p + s."""
  return [
    (0.0, -z, y),
    (z, 0.0, -x),
    (-y, x, 0.0),
    (1.0, 0.0, 0.0),
    (0.0, 1.0, 0.0),
    (0.0, 0.0, 1.0),
  ]


def _joined(errors, jacobian):
  like = errors[0]
  rows = [(error,) for error in errors]
  return arrays.table(rows, like)[:, 0], arrays.table(jacobian, like)


def _without_scale(motion: alignment_lib.Similarity) -> rigid.Rigid:
  """The same map, with the scale as part of a matrix that is no rotation."""
  return rigid.Rigid(motion.scale * motion.rotation, motion.translation)


def _residual_similarity(
  motion: alignment_lib.Similarity, data: Pairs
) -> rigid.Array:
  return _residual(_without_scale(motion), data)


def _linearize_similarity(
  motion: alignment_lib.Similarity, data: Pairs
) -> tuple[rigid.Array, rigid.Array]:
  (x, y, z), errors = _differences(_without_scale(motion), data)
  return _joined(errors, [*_by_motion(x, y, z), (x, y, z)])


def retract(motion: rigid.Rigid, step: rigid.Array) -> rigid.Rigid:
  """`motion` followed by a small one of frame a.

  Args:
    motion: a_from_b.
    step: [6], rotation vector in frame a, radians, then translation, metres.
  """
  turn = rigid.rotation_from_vector(step[:3])
  return rigid.compose(rigid.Rigid(turn, step[3:]), motion)


def retract_similarity(
  motion: alignment_lib.Similarity, step: rigid.Array
) -> alignment_lib.Similarity:
  """`motion` followed by a small one of frame a and a scaling about its origin.

  Args:
    motion: a_from_b.
    step: [7], as `retract`, then the logarithm of the scaling.
  """
  grown = arrays.namespace(step).exp(step[6])
  moved = retract(
    rigid.Rigid(motion.rotation, grown * motion.translation), step[:6]
  )
  return alignment_lib.Similarity(
    moved.rotation, moved.translation, grown * motion.scale
  )


def _degeneracy(motion, data, inliers, threshold):
  """Why the motion is open; '' if it is not."""
  if narrow := evidence.narrow(np.stack(data[:3])[:, inliers], threshold):
    return f'all points that agree are {narrow}', motion
  return '', motion


PROBLEM = problem_lib.Problem(
  sample_size=3,
  models_per_sample=1,
  dof=6,
  example=lambda: rigid.Rigid(np.eye(3), np.zeros(3)),
  solve=_solve,
  residual=_residual,
  linearize=_linearize,
  retract=retract,
  sides=problem_lib.Sides((3, 3), (0,)),
  degeneracy=_degeneracy,
)
SIMILARITY = problem_lib.Problem(
  sample_size=3,
  models_per_sample=1,
  dof=7,
  example=lambda: alignment_lib.Similarity(np.eye(3), np.zeros(3), np.ones(())),
  solve=_solve_similarity,
  residual=_residual_similarity,
  linearize=_linearize_similarity,
  retract=retract_similarity,
  sides=problem_lib.Sides((3, 3), (0,)),
  degeneracy=_degeneracy,
)


class Alignment(result.Result[alignment_lib.Similarity]):
  """How one frame lies in another: x_a = scale * rotation @ x_b + translation.

  `model` is the similarity; its scale is 1 unless it was asked for. The
  covariance, [6, 6], with scale [7, 7], is of the step of `retract` or
  `retract_similarity`.
  """

  __slots__ = ()

  @property
  def a_from_b(self) -> rigid.Rigid | None:
    """Rotation and translation, float64; None unless `valid`."""
    motion = self.trusted
    if motion is None:
      return None
    return rigid.Rigid(motion.rotation, motion.translation)

  @property
  def scale(self) -> float:
    """Metres of frame a per metre of frame b; 1 unless `valid`."""
    motion = self.trusted
    return 1.0 if motion is None else float(motion.scale)


def alignment(
  points_a: np.ndarray,
  points_b: np.ndarray,
  threshold: float,
  *,
  scores: np.ndarray | None = None,
  with_scale: bool = False,
  search: search_lib.Search = search_lib.DEFAULT,
) -> Alignment:
  """The motion that most pairs of points agree with.

  Args:
    points_a: [N, 3], frame a, metres; any distance from the origin. Rows that
      are masked are left out.
    points_b: [N, 3], frame b.
    threshold: distance of an inlier, at most, metres of frame a.
    scores: [N], higher is better: draws samples in that order (PROSAC).
    with_scale: whether the frames may differ in scale.
    search: sampler, seed and settings.

  Returns:
    The motion; too few or degenerate pairs give `valid=False` and a reason.

  Raises:
    InputError: shapes that do not fit, or values that are not finite.

  Example:
    Frame a is frame b moved by (1, 2, 3); 20 of 60 pairs are wrong.

    >>> import numpy as np
    >>> from i2ploc.robust import alignment
    >>> rng = np.random.default_rng(0)
    >>> points_b = rng.uniform(-5, 5, (60, 3))
    >>> points_a = points_b + [1, 2, 3]
    >>> points_a[:20] = rng.uniform(-5, 5, (20, 3))
    >>> found = alignment.alignment(points_a, points_b, threshold=0.1)
    >>> found.num_inliers
    40
    >>> bool(np.allclose(found.a_from_b.translation, [1, 2, 3], atol=1e-6))
    True
  """
  threshold = inputs.check_threshold(threshold)
  points_a, points_b, usable = inputs.pairs(
    points_a, points_b, (3, 3), ('points_a', 'points_b')
  )
  scores, usable = inputs.quality(scores, usable)
  # Far from the origin float32 does not resolve centimetres.
  frame_a, frame_b = (inputs.frame(p, usable) for p in (points_a, points_b))
  if not with_scale:
    frame_b = frame_b._replace(unit=frame_a.unit)
  data = Pairs(*frame_a.inside(points_a).T, *frame_b.inside(points_b).T)
  usable = inputs.near(np.stack(data, axis=-1), usable)
  problem = SIMILARITY if with_scale else PROBLEM
  found = search.find(
    problem,
    data,
    threshold / frame_a.unit,
    usable=usable.mask,
    scores=scores,
  )
  found = inputs.explained(found, problem, usable)
  return Alignment(
    *found.changed(
      lambda motion: _moved(motion, frame_a, frame_b),
      _about_origin(problem.dof, frame_a),
    )
  )


def _moved(motion, frame_a, frame_b):
  """a_from_b of a motion between two frames' coordinates."""
  scale = getattr(motion, 'scale', 1.0) * frame_a.unit / frame_b.unit
  u, _, v = np.linalg.svd(motion.rotation)
  shift = frame_a.unit * motion.translation + frame_a.center
  return alignment_lib.Similarity(
    u @ v, shift - scale * (u @ v) @ frame_b.center, np.asarray(scale)
  )


def _about_origin(dof, frame):
  """[dof, dof], to steps about the origin, from steps in a frame.

  A turn w about c moves the origin by c x w, a scaling g by -g c.
  """
  x, y, z = frame.center
  change = np.eye(dof)
  change[3:6, 3:6] *= frame.unit
  change[3:6, :3] = [[0, -z, y], [z, 0, -x], [-y, x, 0]]
  change[3:6, 6:] = -frame.center[:, None]
  return change
