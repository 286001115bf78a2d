# SPDX-License-Identifier: Apache-2.0
"""SALAD: against scaling of rows and columns, and with few tokens."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from benchmarks.parity_rows import aggregators as oracles
from i2ploc.models import aggregators
from i2ploc.models import salad
from tests.models import planted
from tests.testing import compiled

transport = compiled.function(salad.transport)
ONE = np.asarray(1.0, np.float32)


def _scores(length, num_clusters=4, batch=2):
  rng = np.random.default_rng(0)
  size = batch, length, num_clusters
  return rng.normal(0, 2.0, size).astype(np.float32)


class TransportTest(parameterized.TestCase):
  @parameterized.parameters((5, 3), (40, 3), (40, 1))
  def test_against_scaling(self, length, iterations):
    scores, mass = _scores(length), np.ones((2, length), np.float32)
    found = transport(scores, ONE, mass, iterations)
    for b in range(2):
      expected = oracles.sinkhorn(scores[b].astype(float), 1.0, iterations)
      np.testing.assert_allclose(found[b], expected, atol=1e-5)

  @parameterized.parameters(1, 2, 4, 5, 6, 40)
  def test_shares_are_sensible_for_any_number_of_tokens(self, length):
    mass = np.ones((2, length), np.float32)
    found = transport(_scores(length), ONE, mass, 200)
    self.assertTrue((found >= 0).all())
    self.assertLessEqual(found.sum(axis=2).max(), 1 + 1e-5)
    # Converged, a cluster has its mass: 1, or as much as there is for all.
    wanted = min(1.0, length / 5)
    np.testing.assert_allclose(found.sum(axis=1), wanted, atol=1e-3)

  def test_large_scores_do_not_overflow(self):
    mass = np.ones((2, 9), np.float32)
    found = transport(100.0 * _scores(9), ONE, mass, 3)
    self.assertTrue(np.isfinite(found).all())

  def test_mass_is_that_of_copies(self):
    """A token of mass 2 among tokens of 1 goes where two of them would."""
    scores = _scores(9)
    doubled = np.concatenate([scores, scores[:, :1]], axis=1)
    mass = np.ones((2, 9), np.float32)
    mass[:, 0] = 2.0
    # What the clusters want is counted in tokens: make the counts equal.
    padded = np.concatenate([scores, scores[:, 1:2]], axis=1)
    more = np.concatenate([mass, np.full((2, 1), 1e-9)], axis=1)
    one = transport(padded, ONE, more.astype(np.float32), 3)
    two = transport(doubled, ONE, np.ones((2, 10), np.float32), 3)
    np.testing.assert_allclose(one[:, 0], two[:, 0] + two[:, 9], atol=1e-4)
    np.testing.assert_allclose(one[:, 1:9], two[:, 1:9], atol=1e-4)

  @parameterized.parameters(0, 1, 3, 9)
  def test_gradients_are_finite(self, num_real):
    mass = np.tile((np.arange(9) < num_real).astype(np.float32), (2, 1))

    def total(scores, dustbin):
      return (transport(scores, dustbin, mass, 3) ** 2).sum()

    grads = jax.grad(total, argnums=(0, 1))(_scores(9), ONE)
    for grad in grads:
      self.assertTrue(np.isfinite(grad).all())


class SALADTest(parameterized.TestCase):
  def _run(self, model, length, mask=None):
    rng = np.random.default_rng(1)
    mask = np.ones((2, length), bool) if mask is None else mask
    tokens = aggregators.Tokens(
      rng.normal(size=(2, length, 12)).astype(np.float32),
      np.zeros((2, length), np.float32),
      mask,
    )
    args = tokens, np.ones((2, length), np.float32), None
    variables = planted.variables(model, *args)
    return tokens, variables, compiled.apply(model, variables, *args)

  def test_against_loops_with_masked_tokens(self):
    model = salad.SALAD(4, cluster_features=5, token_features=6, hidden=7)
    mask = np.random.default_rng(0).uniform(size=(2, 30)) < 0.7
    mask[:, 0] = True
    tokens, variables, (found, out) = self._run(model, 30, mask)
    self.assertEqual(found.shape, (2, 6 + 4 * 5))
    np.testing.assert_array_equal(
      np.any(out['assignment'] > 0, axis=2), mask[:, 1:]
    )
    for b in range(2):
      expected = oracles.salad_descriptor(
        tokens.features[b, 0],
        tokens.features[b, 1:][mask[b, 1:]],
        variables['params'],
      )
      np.testing.assert_allclose(found[b], expected, atol=1e-5)

  def test_the_released_form_has_the_released_length(self):
    model = salad.SALAD()
    tokens = aggregators.Tokens(
      np.zeros((1, 530, 768), np.float32), np.zeros((1, 530)), np.ones((1, 530))
    )
    args = tokens, np.ones((1, 530)), None
    shapes = jax.eval_shape(
      lambda: model.init_with_output(jax.random.key(0), *args)[0][0]
    )
    self.assertEqual(shapes.shape, (1, 8448))

  @parameterized.parameters(2, 3, 64, 65)
  def test_few_tokens_are_pooled_too(self, length):
    model = salad.SALAD(cluster_features=5, token_features=6, hidden=7)
    _, _, (found, out) = self._run(model, length)
    self.assertTrue(np.isfinite(found).all())
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-4)
    self.assertGreater(np.asarray(out['assignment']).min(), 0.0)

  def test_without_a_cls_token_all_are_pooled(self):
    model = salad.SALAD(4, cluster_features=5, token_features=0, hidden=7)
    self.assertFalse(model.needs_cls)
    _, variables, (found, out) = self._run(model, 30)
    self.assertEqual(found.shape, (2, 20))
    self.assertEqual(out['assignment'].shape, (2, 30, 4))
    self.assertNotIn('token', variables['params'])


if __name__ == '__main__':
  absltest.main()
