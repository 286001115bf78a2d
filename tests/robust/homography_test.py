# SPDX-License-Identifier: Apache-2.0
"""Homographies from pairs of points of which many are wrong."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.robust import consensus
from i2ploc.robust import homography
from i2ploc.robust import search
from i2ploc.robust import two_views as two_views_lib
from tests.geometry import two_views as planted
from tests.robust import two_views

# One good sample in 625: 99.99 % take 5,700 draws.
SEARCH = search.Search(settings=consensus.Settings(max_draws=8192))
CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * two_views.SIZE


def _solve(points0, points1, threshold=3.0, **kwargs):
  return homography.homography(
    points0, points1, threshold, search=SEARCH, **kwargs
  )


def _corner_error(found, true):
  """Pixels, mean over the corners of image 0."""
  there = [planted.mapped(m[None], CORNERS[None])[0] for m in (found, true)]
  return np.linalg.norm(there[0] - there[1], axis=-1).mean()


class HomographyTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 0.5, 0.8)
  def test_a_planted_homography_is_found(self, outliers):
    points0, points1, inliers, true = two_views.homography(200, outliers)
    found = _solve(points0, points1)
    self.assertTrue(found.valid, found.reason)
    self.assertLess(_corner_error(found.image1_from_image0, true), 4.0)
    # With noise in both images 3 px are 2.1 deviations.
    self.assertGreater(np.mean(found.inliers == inliers), 0.85)
    self.assertEqual(found.num_inliers, found.inliers.sum())
    self.assertAlmostEqual(found.image1_from_image0[2, 2], 1.0)

  def test_without_noise_it_is_exact_however_far_the_origin(self):
    points0, points1, _, true = two_views.homography(200, 0.3, noise=0.0)
    found = _solve(points0, points1)
    self.assertLess(_corner_error(found.image1_from_image0, true), 1e-6)
    far = _solve(points0 + 1e5, points1 - 1e5)
    shift = np.eye(3)
    shift[:2, 2] = 1e5
    near = shift @ far.image1_from_image0 @ shift
    self.assertLess(_corner_error(near, true), 1e-3)

  def test_scores_find_what_is_rare(self):
    points0, points1, inliers, true = two_views.homography(200, 0.9)
    scores = inliers + np.random.default_rng(0).normal(size=200)
    found = _solve(points0, points1, scores=scores)
    self.assertTrue(found.valid, found.reason)
    self.assertLess(_corner_error(found.image1_from_image0, true), 10.0)

  def test_many_at_once_and_the_covariance_is_that_of_their_errors(self):
    true = two_views.homography(1, 0.0, seed=7)[3]
    pairs = []
    for seed in range(16):
      rng = np.random.default_rng(seed)
      points0 = rng.uniform(0, 1, (200, 2)) * two_views.SIZE
      points1 = planted.mapped(true[None], points0[None])[0]
      pairs.append(two_views.spoilt(rng, points0, points1, 0.2, 1.0)[:2])
    found = homography.homographies(
      [p[0] for p in pairs], [p[1] for p in pairs], 6.0, search=SEARCH
    )
    squares = []
    for one in found:
      self.assertTrue(one.valid, one.reason)
      relative = one.image1_from_image0 @ np.linalg.inv(true)
      relative /= np.cbrt(np.linalg.det(relative))
      step = (relative - np.eye(3)).reshape(9)[:8]
      squares.append(step @ np.linalg.solve(one.covariance, step))
    # The squared distance of Mahalanobis is 8 on average.
    self.assertBetween(np.mean(squares), 5.5, 12.0)

  @parameterized.named_parameters(
    ('three_pairs', lambda a, b: (a[:3], b[:3]), 'are needed'),
    ('nothing', lambda a, b: (a[:0], b[:0]), 'are needed'),
    ('one_place', lambda a, b: (a[:1] + 0 * a, b), 'in one place'),
    ('a_line', lambda a, b: (a * [1, 0], b), 'on a line'),
    ('a_line_in_image_1', lambda a, b: (a, b[:, :1] * [1, 2]), 'on a line'),
  )
  def test_degenerate_data_are_not_valid(self, spoil, reason):
    points0, points1, _, _ = two_views.homography(200, 0.0)
    found = _solve(*spoil(points0, points1))
    self.assertFalse(found.valid)
    self.assertIn(reason, found.reason)
    self.assertIsNone(found.image1_from_image0)
    self.assertFalse(np.isfinite(found.covariance).any())

  def test_random_pairs_are_rejected(self):
    for seed in range(3):
      points0, points1, _, _ = two_views.homography(200, 1.0, seed)
      found = _solve(points0, points1)
      self.assertFalse(found.valid)
      self.assertRegex(found.reason, 'by chance|no sample')

  def test_what_no_camera_sees_of_a_plane_is_not_valid(self):
    rng = np.random.default_rng(0)
    points0 = rng.uniform(0, 1, (200, 2)) * two_views.SIZE
    mirrored = _solve(points0, points0 * [-1, 1] + [640, 0])
    self.assertFalse(mirrored.valid)
    self.assertIn('mirrored', mirrored.reason)
    self.assertIsNone(mirrored.image1_from_image0)
    # The horizon is the column 480: what is right of it would be behind.
    horizon = np.array([[1.0, 0, 0], [0, 1, 0], [-1 / 480, 0, 1]])
    left = points0[:, 0] < 400
    points1 = rng.uniform(0, 1, (200, 2)) * two_views.SIZE
    points1[left] = planted.mapped(horizon[None], points0[left][None])[0]
    twisted = _solve(points0, points1)
    self.assertFalse(twisted.valid)
    self.assertIn('twisted', twisted.reason)
    only = _solve(points0[left], points1[left])
    self.assertTrue(only.valid, only.reason)

  def test_copies_of_a_few_pairs_prove_nothing(self):
    points0, points1, _, _ = two_views.homography(200, 1.0)
    points0[20:], points1[20:] = points0[0], points1[0]
    points0 = points0 + np.random.default_rng(0).uniform(0, 0.1, points0.shape)
    found = _solve(points0, points1)
    self.assertFalse(found.valid)

  def test_bad_input_is_named(self):
    points0, points1, _, _ = two_views.homography(20, 0.0)
    with self.assertRaisesRegex(ValueError, r'as many: \[20, 2\].*\[19, 2\]'):
      _solve(points0, points1[:19])
    points1[7, 0] = np.nan
    with self.assertRaisesRegex(ValueError, 'points1: 1 of 20.*first row 7'):
      _solve(points0, points1)


class ProblemTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    points0, points1, _, true = two_views.homography(50, 0.0)
    frames = two_views_lib.pairs(points0, points1).frames
    before, after = frames.matrices()
    model = after @ true @ np.linalg.inv(before)
    self.model = jnp.asarray(model / np.linalg.norm(model), jnp.float32)
    data = frames.matches(points0, points1)
    self.data = jax.tree.map(jnp.float32, data)

  def test_the_residual_is_the_squared_length_of_the_errors(self):
    errors, _ = homography.PROBLEM.linearize(self.model, self.data)
    residual = homography.PROBLEM.residual(self.model, self.data)
    np.testing.assert_allclose(residual, (errors**2).sum(0), rtol=1e-3)

  def test_the_residual_is_the_same_from_either_side(self):
    forth = homography.PROBLEM.residual(self.model, self.data)
    x0, y0, x1, y1 = self.data
    back = jnp.linalg.inv(self.model)
    back = back / jnp.linalg.norm(back)
    back = homography.PROBLEM.residual(
      back, two_views_lib.Matches(x1, y1, x0, y0)
    )
    np.testing.assert_allclose(forth, back, rtol=0.1, atol=1e-8)

  def test_residuals_of_any_matrix_are_numbers_from_zero(self):
    # Of (yy x x - 2 xy x y + xx y y) / (xx yy - xy xy) rounding leaves some
    # that are negative, and a search would believe them.
    rng = np.random.default_rng(0)
    models = rng.normal(size=(20_000, 3, 3)) * 10.0 ** rng.uniform(
      -3, 3, (20_000, 3, 1)
    )
    models /= np.linalg.norm(models, axis=(1, 2), keepdims=True)
    residual = jax.jit(
      jax.vmap(homography.PROBLEM.residual, in_axes=(0, None))
    )(np.float32(models), self.data)
    self.assertTrue(np.isfinite(residual).all())
    self.assertGreaterEqual(residual.min(), 0.0)

  def test_what_is_behind_or_a_single_point_is_no_inlier(self):
    behind = homography.PROBLEM.residual(-self.model, self.data)
    self.assertGreater(behind.min(), 1e3)
    collapse = jnp.asarray([[1e-4, 0, 0], [0, 1e-4, 0], [0, 0, 1.0]])
    one = two_views_lib.Matches(
      self.data.x0, self.data.y0, 0 * self.data.x1, 0 * self.data.y1
    )
    squared = homography.PROBLEM.residual(collapse, one)
    self.assertGreater(squared.min(), 1e3)

  def test_retract_moves_in_eight_directions(self):
    retract = homography.PROBLEM.retract
    still = retract(self.model, jnp.zeros(8))
    np.testing.assert_allclose(still, self.model, atol=1e-6)
    slope = jax.jit(jax.jacobian(lambda s: retract(self.model, s).ravel()))
    self.assertGreater(np.linalg.svd(slope(jnp.zeros(8)))[1].min(), 1e-2)


if __name__ == '__main__':
  absltest.main()
