# SPDX-License-Identifier: Apache-2.0
"""The Poincare ball: laws, limits, table values, finite gradients."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import hyperbolic

CURVATURES = (0.1, 1.0, 4.0)

distance = jax.jit(hyperbolic.distance)
mobius_add = jax.jit(hyperbolic.mobius_add)
exp_map_zero = jax.jit(hyperbolic.exp_map_zero)
log_map_zero = jax.jit(hyperbolic.log_map_zero)


def _points(seed, shape, curvature, largest=0.95):
  """Points at all radii: near the origin, in between, near the border."""
  rng = np.random.default_rng(seed)
  direction = rng.normal(size=shape)
  direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
  radius = rng.choice([1e-6, 1e-3, 0.1, 0.5, 0.8, largest], shape[:-1])
  return jnp.asarray(
    direction * radius[..., None] / np.sqrt(curvature), jnp.float32
  )


def _textbook(a, b, c):
  """Distance through arcosh, in float64."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  room = (1 - c * (a**2).sum(-1)) * (1 - c * (b**2).sum(-1))
  chord = ((a - b) ** 2).sum(-1)
  return np.arccosh(1 + 2 * c * chord / room) / np.sqrt(c)


class LawsTest(parameterized.TestCase):
  @parameterized.parameters(*CURVATURES)
  def test_left_cancellation(self, curvature, seed=0):
    a = _points(seed, (20, 5), curvature, 0.8)
    b = _points(seed + 10, (20, 5), curvature, 0.8)
    there = mobius_add(a, b, curvature)
    back = mobius_add(-a, there, curvature)
    scale = 1 / np.sqrt(curvature)
    np.testing.assert_allclose(back / scale, b / scale, atol=1e-5)

  def test_addition_is_neither_commutative_nor_euclidean(self):
    a, b = _points(3, (2, 20, 5), 1.0)
    sum_ab = mobius_add(a, b, 1.0)
    sum_ba = mobius_add(b, a, 1.0)
    self.assertGreater(np.abs(sum_ab - sum_ba).max(), 0.1)
    self.assertGreater(np.abs(sum_ab - (a + b)).max(), 0.1)

  @parameterized.parameters(*CURVATURES)
  def test_distance_is_a_metric(self, curvature, seed=0):
    x = _points(seed, (12, 4), curvature)
    d = np.asarray(distance(x[:, None], x[None], curvature))
    np.testing.assert_array_equal(d, d.T)
    np.testing.assert_array_equal(np.diag(d), 0)
    detour = (d[:, :, None] + d[None, :, :]).min(1)
    self.assertGreaterEqual((detour - d).min(), -1e-4 * d.max())
    self.assertGreater(d[~np.eye(12, dtype=bool)].min(), 0)

  @parameterized.parameters(*CURVATURES)
  def test_rotation_and_translation_are_isometries(self, curvature):
    a, b = _points(4, (2, 30, 5), curvature, 0.8)
    rotation, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(5, 5)))
    rotation = rotation.astype(np.float32)
    expected = distance(a, b, curvature)
    rotated = distance(a @ rotation.T, b @ rotation.T, curvature)
    np.testing.assert_allclose(rotated, expected, rtol=2e-4, atol=1e-6)
    shift = _points(6, (30, 5), curvature, 0.8)
    moved = distance(
      mobius_add(shift, a, curvature),
      mobius_add(shift, b, curvature),
      curvature,
    )
    np.testing.assert_allclose(
      moved * np.sqrt(curvature), expected * np.sqrt(curvature), atol=2e-4
    )

  @parameterized.parameters(*CURVATURES)
  def test_log_undoes_exp_and_the_origin_is_twice_the_norm_away(self, c):
    vectors = np.random.default_rng(7).normal(size=(40, 6))
    lengths = np.geomspace(1e-7, 2, 40)[:, None] / np.sqrt(c)
    vectors *= lengths / np.linalg.norm(vectors, axis=-1, keepdims=True)
    points = exp_map_zero(jnp.asarray(vectors), c)
    np.testing.assert_allclose(
      log_map_zero(points, c), vectors, rtol=1e-4, atol=1e-12
    )
    np.testing.assert_allclose(
      distance(points, jnp.zeros(6), c), 2 * lengths[:, 0], rtol=1e-4
    )

  @parameterized.parameters(*CURVATURES)
  def test_distance_agrees_with_both_textbook_forms(self, curvature, seed=0):
    a = _points(seed, (50, 5), curvature)
    b = _points(seed + 20, (50, 5), curvature)
    d = distance(a, b, curvature)
    expected = _textbook(a, b, curvature)
    np.testing.assert_allclose(d, expected, rtol=5e-5)
    step = mobius_add(-a, b, curvature)
    by_step = 2 * jnp.linalg.norm(log_map_zero(step, curvature), axis=-1)
    inside = expected * np.sqrt(curvature) < 4
    np.testing.assert_allclose(by_step[inside], d[inside], rtol=1e-3)

  def test_flat_limit_is_twice_the_euclidean_distance(self):
    a, b = np.random.default_rng(8).normal(size=(2, 20, 3)).astype(np.float32)
    euclidean = np.linalg.norm(a - b, axis=-1)
    for curvature in (0.0, 1e-12, 1e-6):
      d = distance(a, b, curvature)
      np.testing.assert_allclose(d, 2 * euclidean, rtol=1e-4)
    np.testing.assert_allclose(mobius_add(a, b, 0.0), a + b, atol=1e-6)
    np.testing.assert_allclose(exp_map_zero(a, 0.0), a)
    curved = distance(a * 0.1, b * 0.1, 1.0)
    self.assertGreater(np.abs(curved / (0.2 * euclidean) - 1).max(), 0.01)

  def test_broadcasts_points_and_curvatures_over_leading_axes(self):
    a = _points(9, (3, 1, 4), 1.0, 0.5)
    b = _points(10, (5, 4), 1.0, 0.5)
    curvature = jnp.asarray([0.1, 0.5, 1.0])[:, None]
    d = distance(a, b, curvature)
    total = mobius_add(a, b, curvature)
    self.assertEqual(d.shape, (3, 5))
    self.assertEqual(total.shape, (3, 5, 4))
    for i in range(3):
      c = float(curvature[i, 0])
      np.testing.assert_allclose(d[i], distance(a[i], b, c), rtol=1e-5)
      np.testing.assert_allclose(total[i], mobius_add(a[i], b, c), atol=1e-6)


class TableTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.99, 0.30196),
    (0.9, 0.95166),
    (0.7, 1.63624),
    (0.5, 2.09737),
    (0.2, 2.62579),
    (0.0, 2.91634),
    (-0.3, 3.29337),
    (-0.7, 3.72034),
    (-1.0, 4.000),
  )
  def test_unit_vectors_in_a_ball_of_curvature_a_tenth(self, cosine, expected):
    vectors = jnp.asarray([[1, 0], [cosine, np.sqrt(1 - cosine**2)]])
    a, b = exp_map_zero(vectors, 0.1)
    # The table is of the released code, whose 1e-5 in a denominator takes
    # 1e-5 to 6e-5 off.
    np.testing.assert_allclose(distance(a, b, 0.1), expected, atol=8e-5)


class DegenerateTest(parameterized.TestCase):
  def test_values_and_gradients_are_finite_everywhere(self):
    rows = jnp.asarray(
      [[0.0, 0.0], [1e-20, 0.0], [1e-4, 0.0], [0.5, 0.5], [1, 0], [1e4, -1e4]]
    )

    def every_function(a, b, c):
      inside_a = hyperbolic.exp_map_zero(a, c)
      inside_b = hyperbolic.project(b, c)
      total = hyperbolic.distance(inside_a, inside_b, c)
      total += hyperbolic.log_map_zero(inside_b, c).sum()
      total += hyperbolic.mobius_add(inside_a, -inside_b, c).sum()
      return total + hyperbolic.clip_norm(a, 2.0).sum()

    function = jax.value_and_grad(every_function, argnums=(0, 1, 2))
    pairwise = jax.vmap(jax.vmap(function, (None, 0, None)), (0, None, None))
    over_curvatures = jax.jit(jax.vmap(pairwise, (None, None, 0)))
    curvatures = jnp.asarray([0.0, 1e-12, 0.1, 1.0])
    for leaf in jax.tree.leaves(over_curvatures(rows, rows, curvatures)):
      self.assertTrue(np.isfinite(leaf).all(), leaf)

  def test_works_without_jit(self):
    a, b = _points(11, (2, 3, 4), 1.0)
    np.testing.assert_allclose(
      hyperbolic.distance(a, b, 1.0), distance(a, b, 1.0), rtol=1e-6
    )

  @parameterized.parameters(0.1, 1.0)
  def test_coincident_points_are_at_distance_0_without_gradient(self, c):
    x = jnp.asarray([0.3, -0.4])
    value, gradient = jax.value_and_grad(distance)(x, x, c)
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(gradient, 0)

  def test_close_points_keep_their_digits(self):
    # Through artanh |(-a) (+) b| or arcosh these come out as 0 or as noise.
    a = jnp.asarray([0.6, 0.3], jnp.float32)
    b = a + jnp.asarray([2.0**-22, 0.0], jnp.float32)
    d = distance(a, b, 1.0)
    np.testing.assert_allclose(d, 2 * 2.0**-22 / (1 - 0.45), rtol=1e-4)

  def test_distance_does_not_saturate_towards_the_border(self):
    radii = 1 - jnp.asarray([1e-1, 1e-2, 2e-3])
    points = jnp.stack([radii, jnp.zeros(3)], -1)
    d = distance(points, -points, 1.0)
    expected = 4 * np.arctanh(np.asarray(radii, np.float64))
    np.testing.assert_allclose(d, expected, rtol=1e-4)

  def test_smooth_quotients_across_the_switch_to_their_series(self):
    # Along a ray the maps and the distance are tanh, artanh and 2 artanh (of
    # arsinh); a wrong coefficient or a jump of the derivative would show.
    lengths = jnp.sqrt(jnp.linspace(0.035, 0.055, 41))
    for function, exact in (
      (
        lambda t: hyperbolic.exp_map_zero(t[None], 1.0)[0],
        1 - np.tanh(lengths) ** 2,
      ),
      (
        lambda t: hyperbolic.log_map_zero(t[None], 1.0)[0],
        1 / (1 - lengths**2),
      ),
      (
        lambda t: hyperbolic.distance(t[None], 0 * t[None], 1.0),
        2 / (1 - lengths**2),
      ),
    ):
      slope = jax.jit(jax.vmap(jax.grad(function)))(lengths)
      np.testing.assert_allclose(slope, exact, rtol=1e-5)

  def test_long_vectors_stay_inside_the_border(self):
    vectors = jnp.asarray([[5.0, 0.0], [30.0, 40.0], [0.0, 1e9]])
    for c in CURVATURES:
      radius = np.linalg.norm(exp_map_zero(vectors, c), axis=-1) * np.sqrt(c)
      self.assertLess(radius.max(), 1 - 0.999 * hyperbolic.BORDER)

  def test_projection_moves_only_what_is_outside(self):
    points = jnp.asarray([[0.5, 0.0], [0.9989, 0], [0.9993, 0], [3.0, 4.0]])
    found = hyperbolic.project(points, 1.0)
    np.testing.assert_array_equal(found[:2], points[:2])
    np.testing.assert_allclose(
      found[2:], 0.999 * np.asarray([[1, 0], [0.6, 0.8]]), rtol=1e-6
    )

  def test_clipping_keeps_directions_and_short_vectors(self):
    short, long = hyperbolic.clip_norm(jnp.asarray([[1.0, 1.0], [3, 4]]), 2.0)
    np.testing.assert_array_equal(short, [1.0, 1.0])
    np.testing.assert_allclose(long, [1.2, 1.6], rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
