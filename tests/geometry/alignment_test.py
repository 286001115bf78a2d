# SPDX-License-Identifier: Apache-2.0
"""Alignments are least squares, never mirrors, and smooth."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize
from scipy.spatial import transform

from i2ploc.geometry import alignment
from i2ploc.geometry import rigid

OCTAHEDRON = np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32)
_align = jax.jit(alignment.align, static_argnames='with_scale')
_triangles = jax.jit(alignment.align_triangles, static_argnames='with_scale')


def _problem(seed, count, *, scale=1.0, noise=0.0):
  """Points in two frames, float32, and the motion between these."""
  rng = np.random.default_rng(seed)
  rotation = transform.Rotation.from_quat(rng.normal(size=4)).as_matrix()
  shift = rng.uniform(-5, 5, 3)
  b = rng.uniform(-5, 5, (count, 3))
  a = scale * b @ rotation.T + shift + noise * rng.normal(size=b.shape)
  return a.astype(np.float32), b.astype(np.float32), rotation, shift


def _minimum(a, b, weights, with_scale):
  """The least sum of squares, by a general optimiser from many starts."""
  a, b = a.astype(np.float64), b.astype(np.float64)
  root = np.sqrt(weights)[:, None]

  def errors(x):
    rotation = transform.Rotation.from_rotvec(x[:3]).as_matrix()
    scale = np.exp(x[6]) if with_scale else 1.0
    return (root * (scale * b @ rotation.T + x[3:6] - a)).ravel()

  rng = np.random.default_rng(0)
  fits = [
    optimize.least_squares(errors, np.r_[rng.normal(size=3) * 2, np.zeros(4)])
    for _ in range(12)
  ]
  return min(2 * fit.cost for fit in fits)


def _sum_of_squares(motion, a, b, weights):
  moved = motion.scale * b @ np.asarray(motion.rotation).T + motion.translation
  return float((weights * np.sum((moved - a) ** 2, axis=1)).sum())


def _assert_finite(test, tree):
  for leaf in jax.tree.leaves(tree):
    test.assertTrue(np.isfinite(leaf).all())


class AlignTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_the_planted_motion_is_found(self, with_scale):
    scale = 2.5 if with_scale else 1.0
    a, b, rotation, shift = _problem(0, 6, scale=scale)
    found, valid = _align(a, b, with_scale=with_scale)
    self.assertTrue(valid)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-5)
    np.testing.assert_allclose(found.translation, shift, atol=1e-4)
    np.testing.assert_allclose(found.scale, scale, rtol=1e-5)

  @parameterized.product(with_scale=(False, True), mirrored=(False, True))
  def test_it_is_least_squares(self, with_scale, mirrored):
    a, b, _, _ = _problem(7, 6, noise=1.0)
    a = a * np.array([1, 1, -1], np.float32) if mirrored else a
    weights = np.random.default_rng(1).uniform(0.1, 2, 6).astype(np.float32)
    found, valid = _align(a, b, weights, with_scale=with_scale)
    self.assertTrue(valid)
    self.assertAlmostEqual(float(np.linalg.det(found.rotation)), 1, places=5)
    np.testing.assert_allclose(
      _sum_of_squares(found, a, b, weights),
      _minimum(a, b, weights, with_scale),
      rtol=1e-4,
    )

  def test_a_weight_of_two_is_a_point_twice_and_of_zero_none(self):
    a, b, _, _ = _problem(3, 6, noise=1.0)
    weights = np.array([2, 1, 1, 1, 1, 0], np.float32)
    a[5], b[5] = np.nan, np.inf
    found = _align(a, b, weights)[0]
    rows = [0, 0, 1, 2, 3, 4]
    expected = _align(a[rows], b[rows])[0]
    for x, y in zip(found, expected, strict=True):
      np.testing.assert_allclose(x, y, atol=2e-5)

  def test_far_from_the_origin_the_rotation_stays(self):
    a, b, rotation, _ = _problem(2, 6)
    far = np.array([4e4, -2e4, 100], np.float32)
    found, valid = _align(a + far, b)
    self.assertTrue(valid)
    np.testing.assert_allclose(found.rotation, rotation, atol=2e-3)

  def test_what_determines_no_motion_is_not_valid(self):
    a, b, _, _ = _problem(5, 6)
    line = np.linspace(0, 1, 6, dtype=np.float32)[:, None] * b[0]
    broken = b.copy()
    broken[2, 1] = np.nan
    few = np.array([1, 1, 0, 0, 0, 0], np.float32)
    for case in (
      (line, b), (a, line), (a, np.ones_like(b)), (a, broken),
      (a, b, few), (a, b, 0 * few), (OCTAHEDRON, -OCTAHEDRON),
    ):  # fmt: skip
      found, valid = _align(*case)
      self.assertFalse(valid)
      np.testing.assert_array_equal(found.rotation, np.eye(3))
      _assert_finite(self, found)

  def test_a_batch_is_a_vmap(self):
    problems = [_problem(seed, 6) for seed in range(4)]
    a, b, rotation, _ = map(np.stack, zip(*problems, strict=True))
    found, valid = jax.jit(jax.vmap(alignment.align))(a, b)
    self.assertTrue(valid.all())
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-5)


class GradientTest(parameterized.TestCase):
  @parameterized.parameters('align', 'align_triangles')
  def test_it_is_that_of_finite_differences(self, name):
    function = getattr(alignment, name)
    a, b, _, _ = _problem(11, 3, noise=1.0)
    rng = np.random.default_rng(0)
    probe, change = rng.normal(size=(3, 3)), rng.normal(size=(3, 3))
    a, b = a.astype(np.float64), b.astype(np.float64)

    def loss(a):
      motion, _ = function(a, b, with_scale=True)
      return jnp.sum(probe * motion.rotation) + motion.scale

    step = 1e-6
    with jax.enable_x64(True):
      both = jax.jit(jax.value_and_grad(loss))
      values = [float(both(a + sign * step * change)[0]) for sign in (1, -1)]
      found = float(jnp.sum(both(a)[1] * change))
    expected = (values[0] - values[1]) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-6)

  def test_equal_singular_values_have_a_finite_gradient(self):
    def loss(a):
      return jnp.sum(alignment.align(a, OCTAHEDRON)[0].rotation[0])

    gradient = jax.jit(jax.grad(loss))(OCTAHEDRON)
    _assert_finite(self, gradient)
    self.assertGreater(np.abs(gradient).max(), 0.01)

    def decomposed(a):
      u, _, v = jnp.linalg.svd(a.T @ OCTAHEDRON)
      return jnp.sum((u @ v)[0])

    gradient = jax.jit(jax.grad(decomposed))(OCTAHEDRON)
    self.assertTrue(np.isnan(gradient).any())

  @parameterized.parameters('align', 'align_triangles')
  def test_degenerate_points_have_a_finite_gradient(self, name):
    function = getattr(alignment, name)
    a, b, _, _ = _problem(4, 3)
    line = np.linspace(0, 1, 3, dtype=np.float32)[:, None] * b[:1]
    broken = b * np.array([[1], [np.nan], [1]], np.float32)
    gradient = jax.jit(
      jax.grad(
        lambda a, b: sum(
          map(jnp.sum, function(a, b, with_scale=True)[0]), jnp.zeros(())
        ),
        argnums=(0, 1),
      )
    )
    for case in ((line, b), (a, line), (a, 0 * b), (a, broken), (0 * a, 0 * b)):
      _assert_finite(self, gradient(*case))


class TrianglesTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_it_equals_the_general_solution(self, with_scale):
    problems = [
      _problem(seed, 3, scale=1.7, noise=seed % 3) for seed in range(600)
    ]
    a, b, _, _ = map(np.stack, zip(*problems, strict=True))

    @jax.jit
    @jax.vmap
    def both(a, b):
      closed = alignment.align_triangles(a, b, with_scale=with_scale)
      return closed, alignment.align(a, b, with_scale=with_scale)[0]

    (closed, valid), general = both(a, b)
    self.assertTrue(valid.all())
    angle = np.linalg.norm(closed.rotation - general.rotation, axis=(1, 2))
    # Slim triangles determine little, in float32.
    self.assertLess(np.quantile(angle, 0.98), 1e-3)
    self.assertLess(np.median(angle), 5e-6)
    np.testing.assert_allclose(closed.scale, general.scale, rtol=1e-3)

  def test_three_points_on_a_line_are_not_valid(self):
    a, b, _, _ = _problem(0, 3)
    line = np.array([[0, 0, 0], [1, 2, 3], [2, 4, 6]], np.float32)
    broken = b + np.array([0, np.inf, 0], np.float32)
    for case in ((line, b), (a, line), (a, b[[0, 0, 1]]), (a, broken)):
      found, valid = _triangles(*case)
      self.assertFalse(valid)
      _assert_finite(self, found)

  @parameterized.parameters(1e-4, 1.0, 1e5)
  def test_units_do_not_matter(self, unit):
    a, b, rotation, _ = _problem(8, 3)
    found, valid = _triangles(unit * a, unit * b)
    self.assertTrue(valid)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-5)


class SimilarityTest(absltest.TestCase):
  def test_a_motion_without_scale_is_rigid(self):
    a, b, _, _ = _problem(1, 6)
    found, _ = _align(a, b)
    moved = rigid.apply(rigid.Rigid(found.rotation, found.translation), b)
    np.testing.assert_allclose(moved, a, atol=1e-4)


if __name__ == '__main__':
  absltest.main()
