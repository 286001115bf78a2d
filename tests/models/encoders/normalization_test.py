# SPDX-License-Identifier: Apache-2.0
"""BatchNorm: by the batch in training, by unbiased statistics otherwise."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models.encoders import normalization
from tests.models import planted
from tests.testing import compiled

NORM = normalization.BatchNorm()


def _x(shape=(5, 3), seed=0):
  x = np.random.default_rng(seed).normal(2.0, 3.0, shape)
  return x.astype(np.float32)


class BatchNormTest(parameterized.TestCase):
  @parameterized.parameters(((5, 3),), ((2, 7, 4, 3),))
  def test_training_normalises_each_channel_by_the_batch(self, shape):
    x = _x(shape)
    variables = planted.variables(NORM, x)
    params = variables['params']
    y, changed = compiled.apply(NORM, variables, x, True, mutable='batch_stats')
    rows = x.reshape(-1, 3)
    expected = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
    expected = expected * params['scale'] + params['bias']
    np.testing.assert_allclose(y.reshape(-1, 3), expected, rtol=1e-4, atol=1e-5)
    old, new = variables['batch_stats'], changed['batch_stats']
    np.testing.assert_allclose(
      new['mean'], 0.9 * old['mean'] + 0.1 * rows.mean(0), rtol=1e-5
    )
    # The biased variance would be a fifth less for five rows.
    np.testing.assert_allclose(
      new['var'], 0.9 * old['var'] + 0.1 * rows.var(0, ddof=1), rtol=1e-5
    )

  def test_evaluation_uses_the_statistics_and_changes_nothing(self):
    x = _x()
    variables = planted.variables(NORM, x)
    y, changed = compiled.apply(
      NORM, variables, x, False, mutable='batch_stats'
    )
    jax.tree.map(
      np.testing.assert_array_equal,
      changed['batch_stats'],
      variables['batch_stats'],
    )
    alone = compiled.apply(NORM, variables, x[:1], False)
    np.testing.assert_allclose(y[:1], alone, rtol=1e-6)
    statistics, params = variables['batch_stats'], variables['params']
    expected = (x - statistics['mean']) / np.sqrt(statistics['var'] + 1e-5)
    expected = expected * params['scale'] + params['bias']
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)

  def test_initialisation_starts_from_nothing(self):
    variables = NORM.init(jax.random.key(0), _x(), True)
    np.testing.assert_array_equal(variables['batch_stats']['mean'], 0.0)
    np.testing.assert_array_equal(variables['batch_stats']['var'], 1.0)

  @parameterized.parameters(1, 4)
  def test_one_row_and_constant_channels_are_finite(self, rows):
    x = np.full((rows, 3), 7.0, np.float32)
    variables = planted.variables(NORM, x)

    def total(x):
      y, changed = compiled.apply(
        NORM, variables, x, True, mutable='batch_stats'
      )
      return y.sum(), changed

    grad, changed = jax.grad(total, has_aux=True)(x)
    for leaf in jax.tree.leaves((grad, changed)):
      self.assertTrue(np.isfinite(leaf).all())

  def test_half_precision_keeps_float32_statistics(self):
    norm = normalization.BatchNorm(dtype=jnp.bfloat16)
    x = _x().astype(jnp.bfloat16)
    variables = planted.variables(norm, x)
    y, changed = compiled.apply(norm, variables, x, True, mutable='batch_stats')
    self.assertEqual(y.dtype, jnp.bfloat16)
    for leaf in jax.tree.leaves(changed):
      self.assertEqual(leaf.dtype, jnp.float32)


if __name__ == '__main__':
  absltest.main()
