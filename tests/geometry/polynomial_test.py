# SPDX-License-Identifier: Apache-2.0
"""Roots of polynomials by their values: planted ones are found."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import polynomial

_roots = jax.jit(jax.vmap(polynomial.roots))


def _values(planted, others=None):
  """Values [S, n + 1] of products of sin(t - root), and of factors > 0."""
  size, number = planted.shape
  degree = number + (0 if others is None else 2 * others.shape[1])
  where = polynomial.angles(degree)
  found = np.ones((size, degree + 1))
  for root in planted.T:
    found *= np.sin(where - root[:, None])
  if others is not None:
    for other in others.T:
      found *= 1.2 - np.cos(2 * (where - other[:, None]))
  return np.float32(found)


def _even(rng, size, number, jitter=0.3):
  """Roots [S, V], some distance from one another."""
  steps = np.arange(number) + rng.uniform(0.1, 0.1 + jitter, (size, number))
  return steps * (np.pi / number)


class RootsTest(parameterized.TestCase):
  @parameterized.parameters(1, 3, 10)
  def test_all_planted_roots_are_found_in_order(self, degree):
    planted = _even(np.random.default_rng(degree), 500, degree)
    found, valid = _roots(_values(planted))
    self.assertTrue(valid.all())
    np.testing.assert_allclose(found, planted, atol=2e-4)

  def test_what_has_no_root_gets_none(self):
    rng = np.random.default_rng(0)
    planted, others = _even(rng, 300, 4), rng.uniform(0, np.pi, (300, 3))
    found, valid = _roots(_values(planted, others))
    self.assertTrue((valid.sum(1) == 4).all())
    np.testing.assert_allclose(found[:, :4], planted, atol=2e-4)
    self.assertTrue((np.asarray(found)[:, 4:] == 0).all())

  def test_two_roots_in_one_cell_are_both_found(self):
    rng = np.random.default_rng(0)
    planted = _even(rng, 300, 10)
    planted[:, 5] = planted[:, 4] + rng.uniform(0.004, 0.02, 300)
    found, valid = _roots(_values(planted))
    self.assertGreater(np.mean(valid.sum(1) == 10), 0.98)
    all_of_them = np.asarray(valid).all(1)
    away = np.abs(np.asarray(found) - planted)[all_of_them]
    self.assertLess(np.quantile(away, 0.95), 1e-3)

  def test_a_double_root_survives_rounding(self):
    planted = _even(np.random.default_rng(0), 300, 10)
    planted[:, 5] = planted[:, 4]
    found, valid = _roots(_values(planted))
    nearest = np.abs(np.asarray(found) - planted[:, 4:5])
    nearest = np.where(valid, nearest, 9.0).min(1)
    self.assertGreater(np.mean(nearest < 0.01), 0.85)

  def test_sizes_of_values_do_not_matter_and_nothing_is_finite(self):
    planted = _even(np.random.default_rng(0), 50, 10)
    for scale in (1e-12, 1e12):
      found, _ = _roots(scale * _values(planted))
      np.testing.assert_allclose(found, planted, atol=2e-4)
    found, valid = _roots(np.zeros((3, 11), np.float32))
    self.assertTrue(np.isfinite(found).all())
    self.assertFalse(valid.any())

  def test_a_batch_is_many_of_one(self):
    values = _values(_even(np.random.default_rng(0), 2000, 10))
    found, _ = _roots(values)
    for row in (0, 999, 1999):
      np.testing.assert_allclose(
        found[row], polynomial.roots(jnp.asarray(values[row]))[0], atol=1e-5
      )


if __name__ == '__main__':
  absltest.main()
