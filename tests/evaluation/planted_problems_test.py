# SPDX-License-Identifier: Apache-2.0
"""Every planted problem is what it says, and solvable by its problem."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.evaluation import planted_problems

NAMES = tuple(planted_problems.KINDS)


def _first(tree):
  return jax.tree.map(lambda leaf: leaf[0], tree)


class PlantedProblemsTest(parameterized.TestCase):
  @parameterized.parameters(*NAMES)
  def test_inliers_agree_with_the_truth_and_outliers_do_not(self, name):
    kind = planted_problems.kind_of(name)
    planted = planted_problems.plant(kind, 400, 0.4, 1.0, 2, seed=3)
    squared = kind.problem.residual(
      jax.tree.map(jnp.float32, _first(planted.truth)), _first(planted.data)
    )
    distance = np.sqrt(np.asarray(squared)) / kind.unit
    inliers = planted.inliers[0]
    self.assertEqual(inliers.sum(), 240)
    # Of one to three dimensions, in deviations.
    self.assertBetween(np.sqrt(np.mean(distance[inliers] ** 2)), 0.6, 1.9)
    self.assertLess(np.mean(distance[~inliers] < 3), 0.1)

  @parameterized.parameters(*NAMES)
  def test_a_sample_without_noise_gives_the_truth(self, name):
    kind = planted_problems.kind_of(name)
    problem = kind.problem
    planted = planted_problems.plant(kind, problem.sample_size, 0.0, 0.0, 40)
    models, valid = jax.jit(jax.vmap(problem.solve))(planted.data)
    right = np.zeros(40, bool)
    for i in range(valid.shape[1]):
      solution = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[:, i], models)
      found, errors = planted_problems.success(
        kind, solution, planted.truth, np.asarray(valid)[:, i]
      )
      right |= found & (errors < 0.2 * next(iter(kind.limits.values())))
    self.assertGreaterEqual(right.sum(), 38)

  @parameterized.parameters(*NAMES)
  def test_the_problem_keeps_its_laws(self, name):
    kind = planted_problems.kind_of(name)
    problem = kind.problem
    planted = planted_problems.plant(kind, 50, 0.2, 1.0, 1)
    data = _first(planted.data)
    model = jax.tree.map(jnp.float32, _first(planted.truth))

    @jax.jit
    def laws(step):
      moved = problem.residual(problem.retract(model, step), data)
      errors, jacobian = problem.linearize(model, data)
      return moved, errors, problem.residual(model, data), jacobian

    moved, errors, squared, slope = laws(jnp.zeros(problem.dof))
    np.testing.assert_allclose(moved, squared, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(
      (errors**2).sum(0), squared, rtol=1e-4, atol=1e-9
    )
    # No direction of a step is without effect.
    slope = slope.reshape(problem.dof, -1)
    values = np.linalg.svd(slope, compute_uv=False)
    self.assertGreater(values[-1], 1e-4 * values[0])

  def test_the_same_seed_gives_the_same_problems_and_another_does_not(self):
    kind = planted_problems.kind_of('line')

    def plant(seed):
      return planted_problems.plant(kind, 20, 0.5, 1.0, 3, seed)

    first, again, other = plant(1), plant(1), plant(2)
    np.testing.assert_array_equal(first.data.x, again.data.x)
    self.assertFalse(np.isclose(first.data.x, other.data.x).any())
    self.assertFalse(np.isclose(first.data.x[0], first.data.x[1]).any())

  def test_better_scores_come_first(self):
    kind = planted_problems.kind_of('plane')
    inliers = planted_problems.plant(kind, 600, 0.5, 1.0, 1).inliers[0]
    # Of N(1, 1) and N(0, 1): the better half holds 69 % of the inliers.
    self.assertBetween(inliers[:300].mean(), 0.62, 0.76)

  @parameterized.parameters(*NAMES)
  def test_a_wrong_model_is_no_success(self, name):
    kind = planted_problems.kind_of(name)
    planted = planted_problems.plant(kind, 20, 0.0, 0.0, 8)
    shifted = jax.tree.map(lambda leaf: np.roll(leaf, 1, 0), planted.truth)
    every = np.ones(8, bool)
    for models, valid, count in (
      (planted.truth, every, 8), (planted.truth, ~every, 0), (shifted, every, 0)
    ):  # fmt: skip
      right, errors = planted_problems.success(
        kind, models, planted.truth, valid
      )
      self.assertEqual(right.sum(), count)
      self.assertEqual(errors.shape, (8,))

  def test_wrong_arguments_are_named(self):
    with self.assertRaisesRegex(ValueError, "'circle'.*'line'"):
      planted_problems.kind_of('circle')
    with self.assertRaisesRegex(ValueError, 'outliers=1.5'):
      planted_problems.plant(planted_problems.kind_of('line'), 9, 1.5, 1.0, 1)


if __name__ == '__main__':
  absltest.main()
