# SPDX-License-Identifier: Apache-2.0
"""The pose that explains an image best, from triples of pairs; traced.

1. P3P of all triples, in blocks; every pose is scored by an upper bound.
2. The best poses are scored in full.
3. Of these, the best that differ are refined on the edges of all boxes that
   they explain, and scored again. This also removes the bias of the boxes'
   centres; without refinement a step of its own does.
4. The answer is the best pose; its rival is the best one somewhere else.

Shapes are static, all inputs are padded.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from i2ploc.geometry import rigid
from i2ploc.objects.pose import refinement
from i2ploc.objects.pose import scene as scene_lib
from i2ploc.objects.pose import verification
from i2ploc.robust import absolute_pose
from i2ploc.robust import solutions

# Two poses further apart than either are different answers: metres, radians.
RIVAL_DISTANCE, RIVAL_ANGLE = 0.5, 10.0 * jnp.pi / 180
# Two poses further apart than either are refined separately.
_START_DISTANCE, _START_ANGLE = 0.05, 2.0 * jnp.pi / 180


class Settings(NamedTuple):
  """How to search; static, another value compiles anew.

  Attributes:
    block: triples that are solved and scored together.
    finalists: poses that are scored in full.
    refined: finalists that are refined; 0 for none.
    rounds: times that poses are refined and detections assigned again.
    steps: steps of `refinement.refine` in each round.
    least: overlap below which a pair explains nothing.
    threshold: root of a box's cost beyond which it has no influence on a
      refinement, see `refinement`.
  """

  block: int = 256
  finalists: int = 256
  refined: int = 16
  rounds: int = 2
  steps: int = 6
  least: float = 0.1
  threshold: float = 15.0


DEFAULT = Settings()


class Found(NamedTuple):
  """The pose, and the evidence for and against it.

  Attributes:
    fit: camera_from_map, from the scene's origin, and what is known around it;
      zeros if nothing was refined.
    assignment: which candidates explain which detections under the pose, [M].
    rival: score of the best pose that is another answer; 0 if there is none.
    valid: whether any triple gave a pose that explains anything.
  """

  fit: refinement.Fit
  assignment: verification.Assignment
  rival: jax.Array
  valid: jax.Array


class Prior(NamedTuple):
  """What is known of the camera besides the image.

  Attributes:
    down: [3], direction of the map's -z axis in the camera frame, unit.
    cosine: cosine of the largest angle between this and a pose's direction;
      below -1 if nothing is known.
    height: [2], lowest and highest z of the camera, from the scene's origin.
    position: [2], x and y about which it is, from the scene's origin.
    radius: of its distance from there, horizontally; infinite if unknown.
  """

  down: rigid.Array
  cosine: rigid.Array
  height: rigid.Array
  position: rigid.Array
  radius: rigid.Array

  def allows(self, poses: rigid.Rigid) -> jax.Array:
    """[S] bool."""
    down = -poses.rotation[..., 2]
    upright = jnp.sum(down * self.down, axis=-1) >= self.cosine
    centre = -jnp.einsum('...ij,...i->...j', poses.rotation, poses.translation)
    high_enough = centre[..., 2] >= self.height[0]
    low_enough = centre[..., 2] <= self.height[1]
    away = jnp.linalg.norm(centre[..., :2] - self.position, axis=-1)
    return upright & high_enough & low_enough & (away <= self.radius)


def _sample(scene, observation, landmark):
  """Pairs as data of the refinement, with the pairs' leading axes."""
  return refinement.SeenEllipsoids(
    jax.tree.map(lambda leaf: leaf[landmark], scene.ellipsoids),
    scene.box[observation],
    scene.scale[observation],
    scene.open[observation],
  )


def _take(tree, rows):
  return jax.tree.map(lambda leaf: leaf[rows], tree)


class _Best(NamedTuple):
  """The best poses so far, best first, and their triples [F]."""

  poses: rigid.Rigid
  bounds: jax.Array
  triples: jax.Array


def _propose(scene, triples, count, prior, settings):
  """The poses of triples with the largest upper bounds of their scores."""
  triples = jnp.stack(triples, axis=1)
  size = min(settings.block, len(triples))

  def block(state):
    start, best = state
    number = start + jnp.arange(size)
    observation, landmark = jnp.moveaxis(triples[number % len(triples)], 1, 0)
    sample = _sample(scene, observation, landmark)
    poses, valid = jax.vmap(refinement.solve)(sample)
    valid &= (number < count)[:, None] & prior.allows(poses)
    solved = solutions.gather(
      poses, valid, absolute_pose.PLANE.models_per_sample
    )
    bounds = verification.bound(scene, solved.models)
    bounds = jnp.where(solved.valid, bounds, -1.0)
    found = _Best(solved.models, bounds, number[solved.sample] % len(triples))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), best, found)
    best = _take(both, jax.lax.top_k(both.bounds, settings.finalists)[1])
    # The next block begins with the first triple that did not fit.
    return start + solved.num_samples, best

  none = settings.finalists
  best = _Best(
    rigid.Rigid(
      jnp.broadcast_to(jnp.eye(3), (none, 3, 3)), jnp.zeros((none, 3))
    ),
    jnp.full(none, -1.0),
    jnp.zeros(none, jnp.int32),
  )
  # As many turns as it takes: one program serves any number of triples.
  return jax.lax.while_loop(
    lambda state: state[0] < count,
    block,
    (jnp.zeros_like(count), best),
  )[1]


def _apart(pose, poses, distance, angle):
  """[S] bool: whether poses are further from `pose` than either limit."""
  center = -jnp.einsum('ij,i->j', pose.rotation, pose.translation)
  centers = -jnp.einsum('sij,si->sj', poses.rotation, poses.translation)
  far = jnp.sum((centers - center) ** 2, axis=-1) > distance**2
  # |R1 - R2|_F^2 = 4 (1 - cos angle): no arccos, whose slope is infinite.
  turned = jnp.sum((poses.rotation - pose.rotation) ** 2, axis=(1, 2))
  return far | (turned > 4 * (1 - jnp.cos(angle)))


def _starts(poses, scores, count):
  """Rows of the best poses that are not next to a better one."""

  def step(i, state):
    left, rows = state
    best = jnp.argmax(left)
    apart = _apart(_take(poses, best), poses, _START_DISTANCE, _START_ANGLE)
    left = jnp.where(apart, left, -1.0).at[best].set(-1.0)
    return left, rows.at[i].set(best)

  rows = jnp.zeros(count, jnp.int32)
  return jax.lax.fori_loop(0, count, step, (scores, rows))[1]


def _seen(scene, assignment):
  """Data of the refinement: every detection with its assigned landmark."""
  rows = jnp.arange(len(assignment.column))
  return _sample(scene, rows, scene.landmark[rows, assignment.column])


def _refine(scene, poses, judged, settings):
  """Poses refined on the boxes they explain, and what the fits explain."""

  def fit(pose, assignment):
    return refinement.refine(
      pose,
      _seen(scene, assignment),
      assignment.explained,
      settings.threshold,
      settings.steps,
    )

  def turn(_, state):
    fits, judged = state
    fits = jax.vmap(fit, in_axes=(0, -1))(fits.pose, judged)
    return fits, verification.judge(scene, fits.pose, settings.least)

  count = len(poses.translation)
  return jax.lax.fori_loop(
    0, settings.rounds, turn, (_unfitted(poses, count), judged)
  )


def _unfitted(poses, count):
  """Poses that were not refined, as fits: nothing is known around them."""
  zero = jnp.zeros(count)
  edges = jnp.zeros(count, jnp.int32)
  return refinement.Fit(poses, jnp.zeros((count, 6, 6)), zero, edges, zero)


def search(
  scene: scene_lib.Scene,
  triples: tuple[jax.Array, jax.Array],
  count: jax.Array,
  prior: Prior,
  settings: Settings = DEFAULT,
) -> Found:
  """The pose that explains most.

  Args:
    scene: the detections and their candidates.
    triples: int32 [S, 3] detections and [S, 3] landmarks.
    count: int32, real triples, which come first.
    prior: what is known of the camera.
    settings: how to search.

  Returns:
    The pose and the evidence; finite, and meaningless unless `valid`.
  """
  best = _propose(scene, triples, count, prior, settings)
  poses = best.poses
  if not settings.refined:
    samples = _sample(scene, *(side[best.triples] for side in triples))
    poses = jax.vmap(refinement.correct)(poses, samples)
  judged = verification.judge(scene, poses, settings.least)
  scores = jnp.where(best.bounds >= 0, judged.score, -1.0)
  if not settings.refined:
    fits = _unfitted(poses, settings.finalists)
    return _answer(fits, judged, scores, poses, scores)
  starts = _starts(poses, scores, settings.refined)
  chosen = jax.tree.map(lambda leaf: leaf[..., starts], judged)
  fits, again = _refine(scene, _take(poses, starts), chosen, settings)
  sound = (scores[starts] >= 0) & prior.allows(fits.pose)
  final = jnp.where(sound, again.score, -1.0)
  return _answer(fits, again, final, poses, scores)


def _answer(fits, judged, scores, others, other_scores):
  """The best fit, and its rival among all poses."""
  first = jnp.argmax(scores)
  fit = _take(fits, first)
  assignment = jax.tree.map(lambda leaf: leaf[..., first], judged)
  rivals = jax.tree.map(lambda *x: jnp.concatenate(x), fits.pose, others)
  apart = _apart(fit.pose, rivals, RIVAL_DISTANCE, RIVAL_ANGLE)
  rival_scores = jnp.concatenate([scores, other_scores])
  rival = jnp.max(jnp.where(apart, rival_scores, 0.0), initial=0.0)
  return Found(fit, assignment, rival, scores[first] > 0)
