# SPDX-License-Identifier: Apache-2.0
"""Homographies: what made the points is found."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import homography
from tests.geometry import two_views

_from_four = jax.jit(jax.vmap(homography.from_four))
_gradient = jax.jit(
  jax.vmap(jax.grad(lambda a, b: homography.from_four(a, b)[0][0].sum()))
)


def _rng():
  return np.random.default_rng(0)


def _distance(found, true):
  """[S], Frobenius, of matrices made comparable: length and sign."""
  true = true / np.linalg.norm(true, axis=(1, 2), keepdims=True)
  return np.linalg.norm(np.asarray(found) - true, axis=(1, 2))


def _spread(points):
  """[S], the smallest area of three of four points [S, 4, 2]."""
  areas = []
  for rest in ([1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]):
    a, b, c = np.moveaxis(points[:, rest], 1, 0)
    (u, v), (x, y) = (b - a).T, (c - a).T
    areas.append(np.abs(u * y - v * x))
  return np.min(areas, axis=0)


class FromFourTest(parameterized.TestCase):
  def test_the_true_homography_is_found(self):
    points0, points1, true = two_views.homographies(_rng(), 20_000)
    found, valid = _from_four(np.float32(points0), np.float32(points1))
    good = np.minimum(_spread(points0), _spread(points1)) > 1e-2
    self.assertTrue(np.asarray(valid)[good].all())
    errors = _distance(found, true)[good]
    self.assertLess(np.median(errors), 1e-5)
    self.assertLess(np.mean(errors > 1e-3), 0.003)

  def test_a_small_quadrangle_far_from_the_origin_is_found(self):
    points0, points1, _ = two_views.homographies(_rng(), 2000)
    near = _spread(points0) > 0.1
    points0 = np.float32(3 + points0[near] / 100)
    points1 = np.float32(3 + points1[near] / 100)
    found, _ = _from_four(points0, points1)
    seen = two_views.mapped(np.float64(found), np.float64(points0))
    away = np.linalg.norm(seen - points1, axis=-1).max(-1)
    # Of the extent of 1e-2; areas of points as they are would leave 1e-4.
    self.assertLess(np.median(away), 3e-5)

  def test_the_order_of_the_points_does_not_matter(self):
    points0, points1, _ = two_views.homographies(_rng(), 500)
    good = np.minimum(_spread(points0), _spread(points1)) > 0.1
    points0, points1 = np.float32(points0[good]), np.float32(points1[good])
    first, _ = _from_four(points0, points1)
    order = [2, 0, 3, 1]
    second, _ = _from_four(points0[:, order], points1[:, order])
    np.testing.assert_allclose(first, second, atol=1e-4)

  def test_points_are_in_front(self):
    points0, points1, _ = two_views.homographies(_rng(), 500)
    found, valid = _from_four(np.float32(points0), np.float32(points1))
    found = np.asarray(found)
    depth = np.einsum('sj,snj->sn', found[:, 2, :2], points0)
    depth = depth + found[:, 2, 2, None]
    self.assertTrue((depth[valid] > 0).all())

  def test_a_vanishing_line_between_the_points_gives_none(self):
    square = np.float32([[[0, 0], [1, 0], [1, 1], [0, 1]]])
    bow_tie = square[:, [0, 2, 1, 3]]
    self.assertFalse(_from_four(square, bow_tie)[1].any())
    # A mirror is a homography: all triangles turn over.
    self.assertTrue(_from_four(square, square[:, ::-1])[1].all())

  @parameterized.named_parameters(
    ('one_place', lambda p: np.zeros_like(p)),
    ('on_a_line', lambda p: p[:, :1] + [[0], [1], [2], [5]] * p[:, 1:2]),
    ('three_on_a_line', lambda p: p[:, [0, 1, 1, 2]] * [[1], [1], [2], [1]]),
    ('two_the_same', lambda p: p[:, [0, 0, 1, 2]]),
    ('not_finite', lambda p: np.full_like(p, np.nan)),
  )
  def test_degenerate_input_is_invalid_and_finite(self, spoil):
    points0, points1, _ = two_views.homographies(_rng(), 20)
    spoilt = spoil(points0)
    if 'three' in self.id():
      spoilt[:, 0] = 0
    for pair in ((spoilt, points1), (points1, spoilt)):
      found, valid = _from_four(*map(np.float32, pair))
      self.assertFalse(valid.any())
      self.assertTrue(np.isfinite(found).all())
      self.assertTrue(np.isfinite(self._gradients(*pair)).all())

  def test_gradients_are_those_of_differences(self):
    points0, points1, _ = two_views.homographies(_rng(), 1)
    square = np.array([[[-1, -1], [1, -1], [1, 1], [-1, 1]]])
    points0 = square + 0.1 * points0
    points1 = square + 0.1 * points1
    gradient = self._gradients(points0, points1)[0]
    with jax.enable_x64(True):
      for row, column in ((0, 0), (3, 1)):
        sums = []
        for step in (-1e-5, 1e-5):
          moved = points0.copy()
          moved[0, row, column] += step
          found = _from_four(jnp.asarray(moved), jnp.asarray(points1))[0]
          sums.append(float(found[0, 0].sum()))
        slope = (sums[1] - sums[0]) / 2e-5
        self.assertAlmostEqual(gradient[row, column], slope, places=3)

  def _gradients(self, points0, points1):
    return np.asarray(_gradient(np.float32(points0), np.float32(points1)))


if __name__ == '__main__':
  absltest.main()
