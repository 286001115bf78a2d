# SPDX-License-Identifier: Apache-2.0
"""Fundamental matrices from pairs of points of which many are wrong."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.robust import consensus
from i2ploc.robust import fundamental
from i2ploc.robust import search
from tests.robust import two_views

# One number of data, one compilation.
SIZE = 200
SEARCH = search.Search(settings=consensus.Settings(batch=128, max_draws=8192))


def _solve(points0, points1):
  return fundamental.fundamental(points0, points1, 2.0, search=SEARCH)


def _off_lines(matrix, points0, points1):
  """[N], pixels, of points of image 1 from their lines."""
  a, b = (np.insert(p, 2, 1.0, axis=1) for p in (points0, points1))
  lines = a @ matrix.T
  return np.abs((lines * b).sum(1)) / np.linalg.norm(lines[:, :2], axis=1)


class FundamentalTest(parameterized.TestCase):
  @parameterized.parameters(('any', 0.3), ('forward', 0.3), ('sideways', 0.5))
  def test_a_planted_matrix_is_found(self, motion, outliers):
    points0, points1, inliers, _, _ = two_views.poses(
      SIZE, outliers, noise=0.5, motion=motion
    )
    found = _solve(points0, points1)
    self.assertTrue(found.valid, found.reason)
    self.assertGreater(np.mean(found.inliers[inliers]), 0.95)
    exact = two_views.poses(SIZE, 0.0, noise=0.0, motion=motion)
    away = _off_lines(found.matrix, exact[0], exact[1])
    self.assertLess(np.median(away), 1.0)
    size = np.linalg.svd(found.matrix, compute_uv=False)
    self.assertLess(size[2], 1e-9)
    self.assertTrue(np.isfinite(found.covariance).all())

  def test_a_plane_says_that_the_matrix_is_open(self):
    points0, points1, _, _ = two_views.homography(SIZE, 0.3, noise=0.5)
    found = _solve(points0, points1)
    self.assertFalse(found.valid)
    self.assertIn('undetermined', found.reason)
    self.assertIsNone(found.matrix)

  def test_random_pairs_are_rejected(self):
    points0, points1, _, _, _ = two_views.poses(SIZE, 1.0)
    found = _solve(points0, points1)
    self.assertFalse(found.valid)
    self.assertIn('by chance', found.reason)

  def test_few_pairs_are_told(self):
    points0, points1, _, _, _ = two_views.poses(7, 0.0)
    self.assertIn('are needed', _solve(points0, points1).reason)

  @parameterized.parameters('any', 'essential')
  def test_retract_moves_in_seven_directions_and_keeps_the_rank(self, kind):
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(2))
    # Where both singular values are equal, turns of U and V are dependent.
    size = np.array([1.0, 1.0 if kind == 'essential' else 0.3, 0.0])
    matrix = jnp.asarray(u * size @ v.T / np.linalg.norm(size), jnp.float32)
    still = fundamental.retract(matrix, jnp.zeros(7))
    np.testing.assert_allclose(still, matrix, atol=1e-6)
    slope = jax.jit(
      jax.jacobian(lambda s: fundamental.retract(matrix, s).ravel())
    )
    self.assertGreater(np.linalg.svd(slope(jnp.zeros(7)))[1].min(), 0.1)
    moved = fundamental.retract(matrix, 0.3 * jnp.ones(7))
    self.assertLess(np.linalg.svd(moved)[1][2], 1e-6)


if __name__ == '__main__':
  absltest.main()
