# SPDX-License-Identifier: Apache-2.0
"""Tests of planes in clouds, and of lines, which are simpler still."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import vectors
from i2ploc.robust import consensus
from i2ploc.robust import lines
from i2ploc.robust import planes
from i2ploc.robust import search

SEARCH = search.Search(settings=consensus.Settings(batch=64, max_draws=512))
FUNCTIONS = {2: lines.line, 3: planes.plane}


def _problem(size, seed=0, *, outliers=0.5, noise=0.01, far=0.0, count=100):
  """Points [N, D] around a plane through `far`; its normal, the inliers."""
  rng = np.random.default_rng(seed)
  normal = rng.normal(size=size)
  normal /= np.linalg.norm(normal)
  points = rng.uniform(-5, 5, (count, size))
  flat = points - (points @ normal)[:, None] * normal
  flat += noise * rng.normal(size=flat.shape)
  inliers = rng.permutation(count) >= round(outliers * count)
  points = np.where(inliers[:, None], flat, points) + far
  return points, normal, inliers


def _find(points, **options):
  function = FUNCTIONS[points.shape[1]]
  return function(points, 0.04, search=SEARCH, **options)


class PlanesTest(parameterized.TestCase):
  @parameterized.product(size=(2, 3), far=(0.0, 1e6))
  def test_the_planted_one_is_found(self, size, far):
    points, normal, inliers = _problem(size, far=far)
    found = _find(points)
    self.assertTrue(found.valid, found.reason)
    model = found.model
    self.assertGreater(abs(model.normal @ normal), np.cos(2e-3))
    self.assertAlmostEqual(np.linalg.norm(model.normal), 1, places=9)
    self.assertGreaterEqual(model.offset, 0)
    distance = np.abs(points @ model.normal - model.offset)
    np.testing.assert_array_equal(found.inliers, distance < 0.04)
    self.assertGreater(np.mean(found.inliers == inliers), 0.95)
    # The last fit weighs its inliers, but hardly: their noise has no tails.
    centered = points[found.inliers] - points[found.inliers].mean(0)
    best = np.linalg.svd(centered, full_matrices=False)[2][-1]
    self.assertGreater(abs(model.normal @ best), 1 - 1e-6)

  @parameterized.parameters(2, 3)
  def test_covariance_does_not_depend_on_the_origin(self, size):
    for seed in range(3):  # also where the normal turns around
      points, _, _ = _problem(size, seed)
      shift = np.arange(1, size + 1) * [-7.0]
      near, far = _find(points), _find(points + shift)
      place = points[0]
      spreads = [
        _spread(near.model, near.covariance, place),
        _spread(far.model, far.covariance, place + shift),
      ]
      np.testing.assert_allclose(spreads[1], spreads[0], rtol=0.02)
      self.assertBetween(np.sqrt(spreads[0]), 3e-4, 1e-2)

  @parameterized.parameters(2, 3)
  def test_degenerate_points_are_not_valid(self, size):
    points, _, _ = _problem(size)
    line = np.outer(np.linspace(0, 1, 100), np.arange(1, size + 1))
    for case in (points[:2], points[:0], 0 * points, *([line] * (size == 3))):
      found = _find(case)
      self.assertFalse(found.valid)
      self.assertNotEmpty(found.reason)

  @parameterized.parameters(2, 3)
  def test_wrong_input_is_named(self, size):
    points, _, _ = _problem(size)
    with self.assertRaisesRegex(ValueError, rf'\[N, {size}\], not \[100\]'):
      FUNCTIONS[size](points[:, 0], 0.04)
    points[7] = np.inf
    with self.assertRaisesRegex(ValueError, '1 .*not finite, first row 7'):
      _find(points)

  def test_tangents_are_orthonormal_for_every_normal(self):
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(200, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    for normal in (*normals[:20], *np.eye(3), *-np.eye(3)):
      both = np.asarray(vectors.tangents(jnp.asarray(normal, jnp.float32)))
      axes = np.concatenate([both, normal[None]])
      np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-6)


def _spread(model, covariance, point):
  """Variance of the distance of a point from the plane or line."""
  normal = np.asarray(model.normal)
  if len(normal) == 3:
    slopes = np.asarray(vectors.tangents(jnp.asarray(normal))) @ point
  else:
    slopes = [np.array([-normal[1], normal[0]]) @ point]
  slopes = np.append(slopes, -1.0)
  return slopes @ covariance @ slopes


if __name__ == '__main__':
  absltest.main()
