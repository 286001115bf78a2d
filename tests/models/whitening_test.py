# SPDX-License-Identifier: Apache-2.0
"""PCA-whitening: against explicit loops, and at its limits."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from i2ploc.models import whitening
from tests.testing import compiled


def _descriptors(count, width, seed=0):
  rng = np.random.default_rng(seed)
  mixing = rng.normal(size=(width, width)) * np.geomspace(3.0, 0.1, width)
  return rng.normal(size=(count, width)) @ mixing.T + rng.normal(size=width)


def _share(x):
  """Ledoit and Wolf's share, by loops over descriptors, and its target."""
  count, width = x.shape
  centered = x - x.mean(0)
  covariance = sum(np.outer(z, z) for z in centered) / count
  span = np.linalg.pinv(centered, rcond=1e-9) @ centered
  target = np.trace(covariance) / min(width, count - 1) * span
  error = sum(((np.outer(z, z) - covariance) ** 2).sum() for z in centered)
  spread = ((covariance - target) ** 2).sum()
  return covariance, min(1.0, error / count**2 / spread), target


class FitTest(parameterized.TestCase):
  @parameterized.parameters((200, 6, 4), (200, 6, 6), (9, 20, 8))
  def test_against_the_covariance(self, count, width, features):
    x = _descriptors(count, width)
    found = whitening.fit(x, features)
    covariance, share, target = _share(x)
    shrunk = (1 - share) * covariance + share * target
    inner = found.projection.T @ shrunk @ found.projection
    np.testing.assert_allclose(inner, np.eye(features), atol=1e-4)
    variances = np.linalg.eigvalsh(covariance)[::-1][:features]
    spread = np.var((x - found.mean) @ found.projection, axis=0)
    mean = np.trace(target) / min(width, count - 1)
    expected = variances / ((1 - share) * variances + share * mean)
    np.testing.assert_allclose(spread, expected, rtol=1e-3)

  def test_many_descriptors_are_whitened_and_few_are_hardly(self):
    def ratio(count):
      found = whitening.fit(_descriptors(count, 8), 4)
      gain = np.linalg.norm(found.projection, axis=0)
      return gain[-1] / gain[0]

    self.assertGreater(ratio(4000), 2.0 * ratio(6))
    self.assertGreater(ratio(6), 1.0)

  def test_the_sign_is_fixed(self):
    found = whitening.fit(_descriptors(50, 6), 5).projection
    largest = np.abs(found).argmax(axis=0)
    self.assertTrue((found[largest, np.arange(5)] > 0).all())

  @parameterized.parameters((5, 8, 5), (40, 8, 9))
  def test_more_directions_than_there_are_is_refused(self, count, width, more):
    message = rf'Set features to at most {more - 1}, or take a larger map'
    x = _descriptors(count, width)
    with self.assertRaisesRegex(ValueError, message):
      whitening.fit(x, more)
    whitening.fit(x, more - 1)

  def test_copies_add_no_direction(self):
    x = np.repeat(_descriptors(4, 8), 5, axis=0)
    with self.assertRaisesRegex(ValueError, '20 descriptors .* differ in 3'):
      whitening.fit(x, 4)
    with self.assertRaisesRegex(ValueError, 'differ in 0'):
      whitening.fit(np.ones((4, 8)), 1)

  def test_what_is_not_finite_is_named(self):
    x = _descriptors(9, 4)
    x[3, 1] = np.nan
    with self.assertRaisesRegex(ValueError, 'not finite'):
      whitening.fit(x, 2)


class WhiteningTest(absltest.TestCase):
  def test_centred_projected_and_of_unit_length(self):
    x = _descriptors(30, 6).astype(np.float32)
    found = whitening.fit(x, 3)
    model = whitening.Whitening(3)
    got = compiled.apply(model, {'map': found._asdict()}, x)
    expected = (x - found.mean) @ found.projection
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(got, expected, atol=1e-5)

  def test_until_it_is_fitted_there_are_no_descriptors(self):
    model = whitening.Whitening(3)
    variables = model.init(jax.random.key(0), np.ones((2, 6)))
    self.assertEqual(list(variables), ['map'])
    self.assertTrue(np.isnan(model.apply(variables, np.ones((2, 6)))).all())


if __name__ == '__main__':
  absltest.main()
