# SPDX-License-Identifier: Apache-2.0
"""Tests of the scores of poses, beside a slow oracle."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import object_worlds
from i2ploc.geometry import ellipsoid as ellipsoid_lib
from i2ploc.geometry import rigid
from i2ploc.objects import association
from i2ploc.objects.pose import scene as scene_lib
from i2ploc.objects.pose import verification
from i2ploc.robust import absolute_pose
from tests.objects import planted_objects

_judge = jax.jit(verification.judge)
_bound = jax.jit(verification.bound)
_project = jax.jit(ellipsoid_lib.project)
_LEAST = 0.1


def _image(seed=0, noise=0.02):
  """A scene, the true pose from its origin, detections and true rows."""
  rng = np.random.default_rng(seed)
  object_map = object_worlds.random_map(40, rng)
  rows = []
  while len(rows) < 6:
    pose = object_worlds.random_pose(np.sqrt(160.0), rng)
    found, rows = object_worlds.detect(object_map, pose, rng, noise)
  pairs = association.same_category(found.category, object_map.category)
  placed = scene_lib.make_scene(
    scene_lib.plane_boxes(found.box, object_worlds.INTRINSICS),
    found.score,
    np.zeros((len(rows), 4), bool),
    object_map.ellipsoid,
    pairs,
    np.unique(pairs.landmark),
    object_worlds.INTRINSICS,
    object_worlds.IMAGE_SIZE,
  )
  shift = pose.rotation @ placed.origin
  pose = rigid.Rigid(
    jnp.asarray(pose.rotation, jnp.float32),
    jnp.asarray(pose.translation + shift, jnp.float32),
  )
  return placed, pose, found, rows


def _poses(pose, count=16, seed=0):
  """The pose, and others ever farther from it."""
  steps = np.random.default_rng(seed).normal(size=(count, 6))
  steps *= np.linspace(0, 0.4, count)[:, None]
  return jax.vmap(absolute_pose.retract, in_axes=(None, 0))(
    pose, jnp.asarray(steps, jnp.float32)
  )


def _slow(scene, poses, i):
  """IoU [M, L] of all candidates under pose i, one box after another."""
  pose = jax.tree.map(lambda leaf: leaf[i], poses)
  outline = _project(scene.ellipsoids, pose)
  low, high = scene.bounds[:2], scene.bounds[2:]
  scores = np.zeros((len(scene.box), len(outline.box)))
  for m, k in np.argwhere(scene.support > 0):
    row = scene.landmark[m, k]
    if outline.valid[row]:
      box = np.clip(
        np.asarray(outline.box[row]), np.tile(low, 2), np.tile(high, 2)
      )
      scores[m, row] = planted_objects.box_iou(box, scene.box[m])
  return scores


def _assigned(scores):
  """Pairs (detection, landmark): the best one first, then of what it leaves."""
  left, pairs = np.array(scores), []
  while left.max() > 0:
    row, column = np.unravel_index(np.argmax(left), left.shape)
    pairs.append((row, column))
    left[row], left[:, column] = 0, 0
  return np.array(pairs, int).reshape(-1, 2)


class JudgeTest(absltest.TestCase):
  def test_scores_are_those_of_the_slow_oracle(self):
    placed, pose, _, _ = _image()
    scene = placed.scene
    poses = _poses(pose)
    judged = _judge(scene, poses, _LEAST)
    share = scene.weight / scene.weight.sum()
    for i in range(16):
      scores = _slow(scene, poses, i)
      weighted = np.where(scores >= _LEAST, scores * share[:, None], 0)
      pairs = _assigned(weighted)
      expected = weighted[pairs[:, 0], pairs[:, 1]].sum()
      self.assertAlmostEqual(float(judged.score[i]), expected, places=5)
      rows = np.flatnonzero(judged.explained[:, i])
      columns = scene.landmark[rows, judged.column[rows, i]]
      self.assertEqual(
        set(zip(rows, columns, strict=True)), set(map(tuple, pairs))
      )
      np.testing.assert_allclose(
        judged.overlap[rows, i], scores[rows, columns], atol=1e-5
      )

  def test_the_truth_explains_all_and_explains_it_rightly(self):
    for seed in range(4):
      placed, pose, _, rows = _image(seed, noise=0.0)
      scene = placed.scene
      judged = _judge(scene, _poses(pose), _LEAST)
      self.assertGreater(float(judged.score[0]), 0.95)
      self.assertEqual(int(jnp.argmax(judged.score)), 0)
      found = np.flatnonzero(judged.explained[:, 0])
      np.testing.assert_array_equal(found, np.arange(len(rows)))
      columns = judged.column[found, 0]
      own = placed.rows[scene.landmark[found, columns]]
      self.assertGreater(np.mean(own == rows), 0.8)

  def test_the_bound_is_above_and_not_far(self):
    placed, pose, _, _ = _image()
    poses = _poses(pose)
    bound = np.asarray(_bound(placed.scene, poses))
    score = np.asarray(_judge(placed.scene, poses, _LEAST).score)
    self.assertTrue((bound >= score - 1e-6).all())
    self.assertLess((bound - score).mean(), 0.1)

  def test_a_landmark_explains_one_detection(self):
    placed, pose, _, _ = _image(noise=0.0)
    scene = placed.scene
    # Two detections of the very same box, and of the same candidates.
    twice = scene._replace(
      box=np.concatenate([scene.box[:1], scene.box[:-1]]),
      landmark=np.concatenate([scene.landmark[:1], scene.landmark[:-1]]),
      support=np.concatenate([scene.support[:1], scene.support[:-1]]),
    )
    poses = _poses(pose)
    judged = _judge(twice, poses, 0.5)
    used = twice.landmark[[0, 1], judged.column[:2, 0]]
    explained = judged.explained[:2, 0]
    self.assertFalse(explained.all() and used[0] == used[1])
    self.assertGreater(
      float(_bound(twice, poses)[0]), float(judged.score[0]) + 0.05
    )

  def test_the_border_cuts_boxes_and_predictions_alike(self):
    placed, pose, _, _ = _image(noise=0.0)
    scene = placed.scene
    count = int((scene.weight > 0).sum())
    # As if the image ended left of the middle of every box.
    middle = (scene.box[:, 0] + scene.box[:, 2]) / 2
    box = np.array(scene.box)
    box[:count, 2] = middle[:count]
    cut = scene._replace(box=box)
    closed = _judge(cut, _poses(pose), _LEAST).score[0]
    is_open = np.zeros_like(scene.open)
    is_open[:count, 2] = True
    opened = _judge(cut._replace(open=is_open), _poses(pose), _LEAST).score[0]
    self.assertGreater(float(opened), 0.95)
    self.assertLess(float(closed), 0.7)

  def test_nothing_is_seen_behind_the_camera_or_from_inside(self):
    placed, pose, _, _ = _image()
    behind = pose._replace(
      translation=pose.translation - jnp.asarray([0, 0, 99])
    )
    inside = rigid.Rigid(
      pose.rotation, -pose.rotation @ placed.scene.ellipsoids.center[0]
    )
    poses = jax.tree.map(lambda *x: jnp.stack(x * 8), behind, inside)
    judged = _judge(placed.scene, poses, _LEAST)
    self.assertEqual(float(judged.score[0]), 0)
    self.assertFalse(judged.explained[:, 0].any())
    self.assertTrue(np.isfinite(judged.score).all())
    used = placed.scene.landmark[
      np.arange(len(judged.column)), judged.column[:, 1]
    ]
    self.assertFalse((judged.explained[:, 1] & (used == 0)).any())

  def test_padding_changes_nothing(self):
    placed, pose, _, _ = _image()
    scene, poses = placed.scene, _poses(pose)
    wide = scene._replace(
      landmark=np.pad(scene.landmark, ((0, 0), (0, 8))),
      support=np.pad(scene.support, ((0, 0), (0, 8))),
    )
    np.testing.assert_allclose(
      _judge(scene, poses, _LEAST).score,
      _judge(wide, poses, _LEAST).score,
      atol=1e-6,
    )


if __name__ == '__main__':
  absltest.main()
