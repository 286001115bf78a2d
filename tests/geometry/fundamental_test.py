# SPDX-License-Identifier: Apache-2.0
"""Fundamental matrices: what made the points is found."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from i2ploc.geometry import fundamental
from tests.geometry import two_views

_SIZE = 2000
_WEIGHTS = np.arange(9.0).reshape(3, 3)


def _total(points0, points1):
  found, valid = fundamental.from_seven(points0, points1)
  # The square: neither length nor sign of the matrices has a meaning.
  return (found**2 * _WEIGHTS).sum(), (found, valid)


_run = jax.jit(jax.vmap(jax.value_and_grad(_total, has_aux=True)))


def _problems(size=_SIZE, num_points=7, points_seed=0):
  """Pixels [S, N, 2] of two cameras, and the true matrices, of norm 1."""
  rotation, translation = two_views.poses(np.random.default_rng(0), size)
  rng = np.random.default_rng(points_seed)
  rays = two_views.rays(rng, rotation, translation, num_points)
  to_pixels = np.diag([two_views.FOCAL, two_views.FOCAL, 1.0])
  to_pixels[:2, 2] = two_views.SIZE / 2
  pixels = [(r / r[..., 2:] @ to_pixels.T)[..., :2] for r in rays]
  inverse = np.linalg.inv(to_pixels)
  true = inverse.T @ two_views.essentials(rotation, translation) @ inverse
  true /= np.linalg.norm(true, axis=(1, 2), keepdims=True)
  return *pixels, true


def _solve(points0, points1):
  size = len(points0)
  points0, points1 = (np.resize(p, (_SIZE, 7, 2)) for p in (points0, points1))
  found = _run(np.float32(points0), np.float32(points1))
  (_, (matrices, valid)), gradient = jax.tree.map(
    lambda leaf: np.asarray(leaf)[:size], found
  )
  return matrices, valid, gradient


def _off_lines(matrices, points0, points1):
  """Distances [..., N] of points of image 1 from their lines, pixels."""
  a, b = (np.insert(p, 2, 1.0, axis=-1) for p in (points0, points1))
  lines = np.einsum('...ij,...nj->...ni', matrices, a)
  value = (lines * b).sum(-1)
  length = np.linalg.norm(lines[..., :2], axis=-1)
  return np.abs(value) / np.maximum(length, 1e-30)


class FromSevenTest(parameterized.TestCase):
  def test_the_true_matrix_is_among_the_solutions(self):
    points0, points1, true = _problems()
    found, valid, _ = _solve(points0, points1)
    # By how far it puts 50 other points off their lines.
    more0, more1, same = _problems(num_points=50, points_seed=1)
    np.testing.assert_array_equal(same, true)
    self.assertLess(_off_lines(true, more0, more1).max(), 1e-6)
    away = _off_lines(np.float64(found), more0[:, None], more1[:, None])
    away = np.where(valid, np.median(away, axis=-1), np.inf).min(1)
    self.assertLess(np.median(away), 0.02)
    self.assertLess(np.mean(away > 1), 0.05)
    self.assertTrue(np.isin(valid.sum(1), (1, 2, 3)).all())

  def test_all_valid_solutions_agree_and_have_rank_two(self):
    points0, points1, _ = _problems(500)
    found, valid, _ = _solve(points0, points1)
    found = np.float64(found)
    away = _off_lines(found, points0[:, None], points1[:, None])
    self.assertLess(np.quantile(away.max(-1)[valid], 0.95), 0.1)
    size = np.linalg.svd(found[valid], compute_uv=False)
    self.assertLess(np.median(size[:, 2] / size[:, 1]), 1e-2)

  @parameterized.named_parameters(
    ('one_place', lambda p: np.tile(p[:, :1], (1, 7, 1))),
    ('two_the_same', lambda p: p[:, [0, 0, 1, 2, 3, 4, 5]]),
    ('zeros', np.zeros_like),
    ('not_finite', lambda p: np.full_like(p, np.nan)),
  )
  def test_degenerate_input_is_invalid_and_finite(self, spoil):
    points0, points1, _ = _problems(20)
    found, valid, gradient = _solve(spoil(points0), spoil(points1))
    self.assertFalse(valid.any())
    for leaf in (found, gradient):
      self.assertTrue(np.isfinite(leaf).all())

  def test_gradients_follow_a_shift_of_image_0(self):
    points0, points1, _ = _problems()
    found, valid, gradient = _solve(points0, points1)
    self.assertTrue(np.isfinite(gradient).all())
    shift = np.array([0.6, -0.8])
    given = (gradient * shift).sum((1, 2))
    found = np.float64(found)
    change = np.zeros_like(found)
    change[..., 2] = -found[..., :2] @ shift
    along = (found * change).sum((2, 3), keepdims=True)
    change = 2 * found * (change - along * found) * _WEIGHTS
    expected = np.where(valid, change.sum((2, 3)), 0.0).sum(1)
    away = np.abs(given - expected) / np.abs(expected)
    self.assertLess(np.median(away), 1e-2)
    self.assertLess(np.quantile(away, 0.8), 0.1)


if __name__ == '__main__':
  absltest.main()
