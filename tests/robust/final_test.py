# SPDX-License-Identifier: Apache-2.0
"""The last fit: as good as can be whatever the tails, and aware of how good."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from scipy import special

from i2ploc.evaluation import planted_problems
from i2ploc.geometry import rigid
from i2ploc.robust import absolute_pose
from i2ploc.robust import final
from i2ploc.robust import homography
from i2ploc.robust import lines
from i2ploc.robust import planes
from i2ploc.robust import two_views
from tests.robust import planted

THRESHOLD = 3.0


def _float64(tree):
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def _row(tree, i):
  return jax.tree.map(lambda leaf: leaf[i], tree)


def _problems(name, num_data, outliers, noise, count):
  """The problem, its threshold, and `count` of data, truth and inliers."""
  kind = planted_problems.kind_of(name)
  found = planted_problems.plant(kind, num_data, outliers, noise, count)
  some = [
    (*_float64(_row((found.data, found.truth), i)), found.inliers[i])
    for i in range(count)
  ]
  return kind.problem, THRESHOLD * kind.unit, some


def _least_squares(problem, model, data, inliers):
  """The best model of the true inliers by plain Gauss-Newton steps."""
  data = type(data)(*(leaf[inliers] for leaf in data))
  for _ in range(10):
    errors, jacobian = problem.linearize(model, data)
    rows = jacobian.reshape(problem.dof, -1).T
    step = np.linalg.lstsq(rows, -errors.ravel(), rcond=None)[0]
    model = problem.retract(model, step)
  return model


def _line_step(model, truth):
  """The step that leads from a line to another."""
  tangent = np.array([-model.normal[1], model.normal[0]])
  step = np.zeros(2)
  for sign in (-1.0, 1.0):
    step[:] = sign, 0
    moved = lines.PROBLEM.retract(model, 1e-3 * step)
    if (moved.normal - model.normal) @ tangent > 0:
      break
  return np.array([step[0] * (truth.normal @ tangent),
                   truth.offset - model.offset])  # fmt: skip


class FitTest(parameterized.TestCase):
  @parameterized.parameters(
    'absolute_pose', 'relative_pose', 'homography', 'alignment', 'plane', 'line'
  )
  def test_gaussian_noise_costs_little_beside_least_squares(self, name):
    problem, threshold, some = _problems(name, 200, 0.5, 0.7, 30)
    ratios = []
    for data, truth, inliers in some:
      best = _least_squares(problem, truth, data, inliers)
      found = final.fit(problem, best, data, threshold)
      clean = type(data)(*(leaf[inliers] for leaf in data))
      # How much more the true inliers are off: the excess over the dof.
      excess = problem.residual(found.model, clean).sum()
      least = problem.residual(best, clean).sum()
      ratios.append((excess - least) / (least / inliers.sum()))
    # A model as far off again as the best is from the truth would add `dof`.
    self.assertLess(np.median(ratios), 0.35 * problem.dof)

  def test_heavy_tails_do_not_pull(self):
    rng = np.random.default_rng(0)
    plain, fitted = [], []
    for _ in range(200):
      x = rng.uniform(-1, 1, 100)
      y = 0.01 * rng.standard_t(1.2, 100)
      data = lines.Points(x, y)
      start = lines.Line(np.array([0.0, 1.0]), np.asarray(0.0))
      near = np.abs(y) < 0.1
      best = _least_squares(lines.PROBLEM, start, data, near)
      found = final.fit(lines.PROBLEM, best, data, 0.1).model
      plain.append(best.offset)
      fitted.append(found.offset * np.sign(found.normal[1]))
    self.assertLess(np.std(fitted), 0.75 * np.std(plain))

  def test_inliers_are_those_of_the_fitted_model(self):
    problem, threshold, some = _problems('absolute_pose', 100, 0.3, 1.0, 5)
    for data, truth, _ in some:
      step = np.array([1e-3, -1e-3, 1e-3, 0.02, -0.01, 0.02])
      start = problem.retract(truth, step)
      found = final.fit(problem, start, data, threshold)
      squared = problem.residual(found.model, data)
      np.testing.assert_array_equal(found.inliers, squared < threshold**2)
      before = (problem.residual(start, data) < threshold**2).sum()
      self.assertGreater(found.inliers.sum(), before)
      clipped = np.minimum(squared, threshold**2)
      self.assertAlmostEqual(found.cost, clipped.sum() / threshold**2)

  def test_what_the_model_cannot_have_made_does_not_count(self):
    """Errors beyond the horizon are small, as points there move far."""
    problem, threshold = homography.PROBLEM, 0.02
    rng = np.random.default_rng(0)
    matrix = [[0.18, 0.20, 0.05], [0.21, 0.36, 0.10], [0.47, 0.68, 0.22]]
    matrix = np.array(matrix) / np.linalg.norm(matrix)
    points = np.insert(rng.uniform(-1.5, 1.5, (2, 400)), 2, 1.0, axis=0)
    x, y, depth = matrix @ points
    seen = depth > 0.2
    there = np.stack([x, y])[:, seen] / depth[seen]
    there += 1e-3 * rng.normal(size=there.shape)
    near = two_views.Matches(*points[:2, seen], *there)
    behind = points[:2, depth < -0.1]
    wild = two_views.Matches(*behind, *rng.uniform(-1.5, 1.5, behind.shape))
    errors, _ = problem.linearize(matrix, wild)
    close = (errors**2).sum(axis=0) < threshold**2
    self.assertGreater(close.sum(), 5)
    mixed = two_views.Matches(
      *(np.append(*leaves) for leaves in zip(near, wild, strict=True))
    )
    alone = final.fit(problem, matrix, near, threshold)
    found = final.fit(problem, matrix, mixed, threshold)
    np.testing.assert_allclose(found.model, alone.model, atol=1e-9)
    self.assertFalse(found.inliers[seen.sum() :].any())

  def test_a_model_in_float32_becomes_exact(self):
    problem, threshold, ((data, truth, _),) = _problems(
      'absolute_pose', 50, 0.0, 0.0, 1
    )
    start = _float64(jax.tree.map(np.float32, truth))
    found = final.fit(problem, start, data, threshold).model
    np.testing.assert_allclose(
      found.rotation @ found.rotation.T, np.eye(3), atol=1e-12
    )
    self.assertIsInstance(found.rotation, np.ndarray)
    self.assertEqual(found.rotation.dtype, np.float64)

  def test_what_few_data_do_not_determine_stays(self):
    points = lines.Points(np.array([0.0, 1.0]), np.array([0.0, 0.5]))
    start = lines.Line(np.array([0.0, 1.0]), np.asarray(0.3))
    found = final.fit(lines.PROBLEM, start, points, 1.0)
    np.testing.assert_allclose(found.model.offset, 0.3)
    self.assertTrue(np.isinf(found.covariance).all())

  def test_a_start_off_by_a_threshold_comes_back(self):
    problem, threshold, some = _problems('plane', 100, 0.3, 1.0, 10)
    for data, truth, _ in some:
      start = planes.Plane(truth.normal, truth.offset + 0.7 * threshold)
      found = final.fit(problem, start, data, threshold).model
      self.assertLess(abs(found.offset - truth.offset), 0.3 * threshold)


class CovarianceTest(parameterized.TestCase):
  @parameterized.parameters((5, 0.0), (10, 0.0), (40, 0.0), (400, 0.5))
  def test_the_ellipsoid_holds_the_truth(self, num_data, outliers):
    count = 400
    problem, threshold, some = _problems('line', num_data, outliers, 0.7, count)
    inside = 0
    for data, truth, _ in some:
      found = final.fit(problem, truth, data, threshold)
      step = _line_step(found.model, truth)
      squared = step @ np.linalg.solve(found.covariance, step)
      inside += squared < special.chdtri(2, 0.05)
    self.assertBetween(inside / count, 0.9, 0.985)

  def test_directions_between_unit_vectors_count_twice_not_thrice(self):
    data, truth, _ = planted.poses(40, 0.0)
    data, truth = _float64(data), _float64(truth)
    plane = np.stack([data.u, data.v, np.ones(40)])
    length = np.linalg.norm(plane, axis=0)
    sightings = absolute_pose.Sightings(*data[:3], *plane / length)
    limit = THRESHOLD / planted.FOCAL
    flat, round_ = (
      final.fit(problem, truth, one, limit).covariance
      for problem, one in (
        (absolute_pose.PLANE, data),
        (absolute_pose.SPHERE, sightings),
      )
    )
    deviations = np.sqrt(np.diagonal(round_) / np.diagonal(flat))
    self.assertBetween(np.median(deviations), 0.85, 1.2)

  def test_points_on_a_line_leave_a_pose_undetermined(self):
    rng = np.random.default_rng(0)
    along = rng.uniform(-1, 1, 30)
    points = np.stack([along, 0 * along, 4 + 0 * along])
    pixels = points[:2] / points[2] + rng.normal(size=(2, 30)) / planted.FOCAL
    data = absolute_pose.Correspondences(*points, *pixels)
    start = rigid.Rigid(np.eye(3), np.zeros(3))
    found = final.fit(absolute_pose.PLANE, start, data, 0.01)
    self.assertTrue(np.isinf(found.covariance).all())
    self.assertTrue(np.isfinite(found.model.translation).all())

  def test_one_datum_far_from_all_others_is_not_believed_alone(self):
    rng = np.random.default_rng(0)
    noise = 0.01
    x = np.append(rng.uniform(-1, 1, 60), 100.0)
    y = np.append(noise * rng.normal(size=60), 0.5)
    start = lines.Line(np.array([0.0, 1.0]), np.asarray(0.0))
    found = final.fit(lines.PROBLEM, start, lines.Points(x, y), 1.0)
    alone = noise / np.sqrt(60) / np.std(x[:60])
    tilt = np.sqrt(found.covariance[0, 0])
    self.assertGreater(tilt, 0.1 * alone)


if __name__ == '__main__':
  absltest.main()
