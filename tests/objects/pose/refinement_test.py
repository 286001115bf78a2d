# SPDX-License-Identifier: Apache-2.0
"""Tests of poses from boxes: starts, slopes of edges, robust fits."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import ellipsoid as ellipsoid_lib
from i2ploc.geometry import rigid
from i2ploc.objects.pose import refinement
from i2ploc.robust import absolute_pose
from tests.robust import planted

PIXEL = 1 / planted.FOCAL
TOLERANCE = 3 * PIXEL

_refine = jax.jit(refinement.refine)
_project = jax.jit(ellipsoid_lib.project)
_errors = jax.jit(refinement.edge_errors)
STEPS = 20
COUNT = 8


@jax.jit
def _starts(data):
  """Four poses of three boxes, valid [4], and the same without the bias."""
  poses, valid = refinement.solve(data)
  correct = jax.vmap(refinement.correct, in_axes=(0, None))
  return poses, valid, correct(poses, data)


@jax.jit
def _slopes(pose, data):
  """Slopes of edges as derived, and by automatic differentiation."""

  def moved(step):
    near = absolute_pose.retract(pose, step)
    return ellipsoid_lib.project(data.ellipsoid, near).box

  edges = moved(jnp.zeros(6))
  return (
    refinement._edge_slopes(pose, data, edges),
    jax.jacfwd(moved)(jnp.zeros(6)),
  )


def _seen(count, seed=0, size=0.4):
  """Ellipsoids 2 to 6 m ahead of a random pose, in exact boxes."""
  rng = np.random.default_rng(seed)
  rotation, translation = planted.random_rotation(rng), rng.normal(size=3)
  depth = rng.uniform(2, 6, (count, 1))
  ahead = rng.uniform([-0.5, -0.4], [0.5, 0.4], (count, 2))
  ahead = np.concatenate([ahead * depth, depth], axis=-1)
  ellipsoids = ellipsoid_lib.Ellipsoid(
    jnp.asarray((ahead - translation) @ rotation, jnp.float32),
    jnp.asarray(rng.uniform(0.3, 1, (count, 3)) * size, jnp.float32),
    jnp.asarray(
      np.stack([planted.random_rotation(rng) for _ in range(count)]),
      jnp.float32,
    ),
  )
  pose = rigid.Rigid(
    jnp.asarray(rotation, jnp.float32), jnp.asarray(translation, jnp.float32)
  )
  data = refinement.SeenEllipsoids(
    ellipsoids,
    _project(ellipsoids, pose).box,
    jnp.full(count, 1 / TOLERANCE),
    jnp.zeros((count, 4), bool),
  )
  return data, pose


def _away(pose, scale=1.0):
  step = jnp.asarray([0.03, -0.02, 0.04, 0.1, -0.15, 0.1])
  return absolute_pose.retract(pose, scale * step)


def _distance(pose, other):
  centers = [
    -motion.rotation.T @ motion.translation for motion in (pose, other)
  ]
  return float(jnp.linalg.norm(centers[0] - centers[1]))


class StartTest(absltest.TestCase):
  def test_one_step_removes_most_of_the_bias(self):
    before, after = [], []
    for seed in range(20):
      data, pose = _seen(3, seed)
      poses, valid, corrected = _starts(data)
      errors = [
        [_distance(rigid.Rigid(*(leaf[i] for leaf in found)), pose)
         for found in (poses, corrected)]
        for i in np.flatnonzero(valid)
      ]  # fmt: skip
      best = min(errors)
      before.append(best[0])
      after.append(best[1])
    self.assertGreater(np.median(before), 0.005)
    self.assertLess(np.median(after), 0.3 * np.median(before))

  def test_a_line_gives_nothing_and_stays_finite(self):
    data, _ = _seen(3)
    line = jnp.asarray([[0.0, 0, 3], [0, 0, 4], [0, 0, 5]])
    data = data._replace(ellipsoid=data.ellipsoid._replace(center=line))
    poses, valid, same = _starts(data)
    self.assertFalse(valid.any())
    self.assertTrue(np.isfinite(poses.translation).all())
    np.testing.assert_array_equal(same.translation, poses.translation)


class EdgeTest(absltest.TestCase):
  def test_slopes_are_the_derivatives_of_the_projection(self):
    data, pose = _seen(COUNT)
    _, error, bounds, valid = _errors(pose, data)
    self.assertTrue(valid.all() and bounds.all())
    np.testing.assert_allclose(error, 0, atol=1e-2)
    found, expected = _slopes(pose, data)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)

  def test_an_open_edge_bounds_from_one_side(self):
    data, pose = _seen(COUNT)
    for edge, outward in enumerate((-1, -1, 1, 1)):
      data_open = data._replace(open=jnp.arange(4)[None] == edge)
      for side in (-1, 1):
        # The box seen ends short of the object, or beyond it.
        box = data.box.at[0, edge].add(-side * outward * 0.05)
        seen = data_open._replace(box=box)
        _, error, bounds, _ = _errors(pose, seen)
        self.assertEqual(bool(bounds[0, edge]), side < 0)
        self.assertEqual(abs(float(error[0, edge])) > 1, side < 0)

  def test_what_is_behind_has_no_say_and_no_nan(self):
    data, pose = _seen(5)
    behind = pose._replace(
      translation=pose.translation - jnp.asarray([0, 0, 9])
    )
    found = refinement.linearize(behind, data, jnp.ones(5, bool), 10.0)
    self.assertEqual(int(found.rest[1]), 0)
    self.assertEqual(float(found.cost), 500.0)
    for leaf in jax.tree.leaves(found):
      self.assertTrue(np.isfinite(leaf).all())


class RefineTest(parameterized.TestCase):
  @parameterized.parameters(2, 3, 8)
  def test_exact_boxes_give_the_pose(self, count):
    data, pose = _seen(COUNT)
    mask = jnp.arange(COUNT) < count
    start = _away(pose, 0.3 if count == 2 else 1.0)
    fit = _refine(start, data, mask, 50.0, STEPS)
    self.assertLess(_distance(fit.pose, pose), 0.01)
    self.assertLess(float(fit.cost), 0.1)

  def test_one_hidden_side_costs_little(self):
    data, pose = _seen(COUNT)
    # An occluder hides 40 % of one object, the left 30 % of another.
    box = data.box.at[2, 3].add(-0.4 * (data.box[2, 3] - data.box[2, 1]))
    box = box.at[5, 0].add(0.3 * (data.box[5, 2] - data.box[5, 0]))
    mask = jnp.ones(COUNT, bool)
    occluded = data._replace(box=box)
    robust = _distance(_refine(pose, occluded, mask, 50.0, STEPS).pose, pose)
    # With tolerances as wide as the image every error counts by its square.
    wide = occluded._replace(scale=jnp.full(COUNT, 1e-2))
    squares = _distance(_refine(pose, wide, mask, 50.0, STEPS).pose, pose)
    self.assertLess(robust, 0.03)
    self.assertGreater(squares, 3 * robust)

  def test_a_box_of_something_else_has_no_say(self):
    data, pose = _seen(COUNT)
    wrong = data._replace(box=data.box.at[3].add(0.4))
    mask = jnp.ones(COUNT, bool)
    fit = _refine(_away(pose, 0.3), wrong, mask, 10.0, STEPS)
    self.assertLess(_distance(fit.pose, pose), 0.005)
    self.assertEqual(int(fit.count), 28)
    self.assertAlmostEqual(float(fit.cost), 100.0, delta=0.1)

  def test_it_never_gets_worse(self):
    data, pose = _seen(COUNT)
    noise = np.random.default_rng(0).normal(size=(COUNT, 4)) * 0.02
    data = data._replace(box=data.box + jnp.asarray(noise, jnp.float32))
    # Two boxes far away: some full steps make it worse.
    mask = jnp.arange(COUNT) < 2
    for scale in (1.0, 12.0, 20.0):
      start = _away(pose, scale)
      costs = [
        float(_refine(start, data, mask, 1e3, steps).cost) for steps in range(6)
      ]
      self.assertTrue((np.diff(costs) <= 1e-4).all(), costs)

  def test_masked_boxes_might_be_anything(self):
    data, pose = _seen(COUNT)
    broken = data._replace(box=data.box.at[6:].set(1e3))
    mask = jnp.arange(COUNT) < 6
    fits = [_refine(_away(pose), d, mask, 50.0, STEPS) for d in (data, broken)]
    np.testing.assert_allclose(
      fits[0].pose.translation, fits[1].pose.translation, atol=1e-6
    )


if __name__ == '__main__':
  absltest.main()
