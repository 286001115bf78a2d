# SPDX-License-Identifier: Apache-2.0
"""Tests of the refinement."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from i2ploc.geometry import rigid
from i2ploc.robust import absolute_pose
from i2ploc.robust import refine
from tests.robust import planted

PIXEL = 1 / planted.FOCAL


def _refine(data, pose, steps=10):
  count = len(data.x)
  return refine.refine(absolute_pose.PLANE, pose, data, count, 3 * PIXEL, steps)


def _curve(x, y):
  """`linearize` of y = a exp(b x), whose model is [a, b]."""

  def errors(model):
    return model[0] * jnp.exp(model[1] * x) - y

  def linearize(model):
    value, slope = errors(model), jax.jacfwd(errors)(model)
    cost = jnp.sum(value**2)
    return refine.Equations(cost, slope.T @ slope, slope.T @ value, model)

  return errors, linearize


class MinimizeTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.x = np.linspace(-1, 1, 50)
    self.y = 2 * np.exp(-0.7 * self.x) + 0.05 * rng.normal(size=50)
    self.start = np.array([0.1, 2.0])

  def test_a_curve_is_fitted_as_by_scipy(self):
    with jax.enable_x64(True):
      errors, linearize = _curve(self.x, self.y)
      found, equations = refine.minimize(linearize, jnp.add, self.start, 30)
      expected = optimize.least_squares(errors, self.start)
      np.testing.assert_allclose(found, expected.x, atol=1e-6)
      self.assertAlmostEqual(float(equations.cost), 2 * expected.cost, 9)
      # The equations are those of the model that is returned.
      np.testing.assert_array_equal(equations.rest, found)
      np.testing.assert_allclose(equations.gradient, 0, atol=1e-6)

  def test_no_step_makes_it_worse_and_none_changes_nothing(self):
    _, linearize = _curve(jnp.float32(self.x), jnp.float32(self.y))
    start = jnp.float32(self.start)
    fits = [refine.minimize(linearize, jnp.add, start, n) for n in range(12)]
    np.testing.assert_array_equal(fits[0][0], start)
    costs = np.array([float(equations.cost) for _, equations in fits])
    self.assertTrue((np.diff(costs) <= 0).all(), costs)
    self.assertLess(costs[-1], 0.01 * costs[0])

  def test_a_step_to_nowhere_is_not_taken(self):
    _, linearize = _curve(jnp.float32(self.x), jnp.float32(self.y))
    start = jnp.float32(self.start)

    def lost(model, step):
      return jnp.where(jnp.abs(step).max() > 1e-3, jnp.nan, model + step)

    found, equations = refine.minimize(linearize, lost, start, 8)
    self.assertTrue(np.isfinite(found).all())
    self.assertLess(equations.cost, linearize(start).cost)

  def test_an_undefined_start_is_returned(self):
    _, linearize = _curve(jnp.float32(self.x), jnp.float32(self.y))
    start = jnp.asarray([jnp.nan, 1.0])
    found, equations = refine.minimize(linearize, jnp.add, start, 3)
    np.testing.assert_array_equal(found, start)
    self.assertEqual(equations.cost, np.inf)


class RefineTest(absltest.TestCase):
  def test_a_line_is_fitted_as_by_least_squares(self):
    data, _ = planted.line(200, 0.0)
    model, cost = refine.refine(
      planted.LINE, jnp.asarray([1.8, -1.1]), data, 200, 10.0
    )
    np.testing.assert_allclose(
      model, np.polyfit(data['x'], data['y'], 1), atol=1e-4
    )
    squared = planted.LINE.residual(model, data) / 10.0**2
    self.assertAlmostEqual(float(cost), float(squared.sum()), places=6)

  def test_without_a_threshold_all_data_count(self):
    data, _ = planted.line(200, 0.2)
    model, cost = refine.refine(
      planted.LINE, jnp.asarray([1.8, -1.1]), data, 200, jnp.inf
    )
    np.testing.assert_allclose(
      model, np.polyfit(data['x'], data['y'], 1), atol=1e-4
    )
    squared = planted.LINE.residual(model, data)
    np.testing.assert_allclose(cost, squared.sum(), rtol=1e-4)

  def test_data_beyond_the_threshold_have_no_say(self):
    data, _ = planted.line(400, 0.4)
    model, _ = refine.refine(
      planted.LINE, jnp.asarray([1.98, -1.0]), data, 400, 0.05
    )
    np.testing.assert_allclose(model, [2.0, -1.0], atol=0.01)
    everything = np.polyfit(data['x'], data['y'], 1)
    self.assertGreater(np.abs(everything - [2.0, -1.0]).max(), 0.1)

  def test_a_pose_converges_to_the_truth(self):
    data, pose, _ = planted.poses(300, 0.3, noise=0.0)
    step = jnp.asarray([0.004, -0.003, 0.002, 0.01, -0.02, 0.01])
    start = absolute_pose.retract(pose, step)
    found, _ = _refine(data, start)
    np.testing.assert_allclose(found.rotation, pose.rotation, atol=1e-4)
    np.testing.assert_allclose(found.translation, pose.translation, atol=1e-3)

  def test_it_never_makes_a_model_worse(self):
    data, pose, _ = planted.poses(60, 0.5)
    rng = np.random.default_rng(0)
    steps = jnp.asarray(rng.normal(size=(32, 6)) * 0.01, jnp.float32)
    starts = jax.vmap(lambda step: absolute_pose.retract(pose, step))(steps)

    def both(start):
      return _refine(data, start, 0)[1], _refine(data, start)[1]

    before, after = jax.vmap(both)(starts)
    self.assertTrue((after <= before + 1e-7).all())
    self.assertTrue((after < 0.9 * before).any())

  def test_a_model_behind_the_camera_stays_finite(self):
    data, pose, _ = planted.poses(50, 0.0)
    behind = rigid.Rigid(
      pose.rotation, pose.translation - jnp.asarray([0, 0, 50.0])
    )
    found, cost = _refine(data, behind)
    self.assertTrue(np.isfinite(cost))
    self.assertTrue(np.isfinite(found.translation).all())


if __name__ == '__main__':
  absltest.main()
