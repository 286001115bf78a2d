# SPDX-License-Identifier: Apache-2.0
"""The projection head: its formula, and the laws of pooling."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models import aggregators
from i2ploc.models import projection
from tests.models import planted
from tests.testing import compiled

BOUNDS = (jnp.full(2, -0.8), jnp.full(2, 0.8))
WEIGHTS = np.ones((2, 12), np.float32)
FEATURES = 24


def _tokens(seed=0):
  rng = np.random.default_rng(seed)
  return aggregators.Tokens(
    rng.normal(size=(2, 12, 6)).astype(np.float32),
    rng.uniform(-0.75, 0.75, (2, 12)).astype(np.float32),
    np.ones((2, 12), bool),
  )


def _head(**fields):
  """A head, its variables and `tokens, weights -> descriptor, pooled`."""
  head = projection.ProjectionHead(features=FEATURES, **fields)
  variables = planted.variables(head, _tokens(), WEIGHTS, BOUNDS)

  @jax.jit
  def run(tokens, weights=WEIGHTS):
    descriptor, out = head.apply(variables, tokens, weights, BOUNDS)
    return descriptor, out['pooled']

  return head, variables, run


def _by_hand(params, x):
  """The formula of the module, for one vector."""
  if 'widen' in params:
    x = x @ params['widen']['kernel'] + params['widen']['bias']
  p = x @ params['project']['kernel'] + params['project']['bias']
  erf = np.vectorize(math.erf)
  gelu = 0.5 * p * (1 + erf(p / math.sqrt(2)))
  h = p + gelu @ params['mix']['kernel'] + params['mix']['bias']
  z = (h - h.mean()) / np.sqrt(h.var() + 1e-5)
  return z * params['norm']['scale'] + params['norm']['bias']


class ProjectionHeadTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(), lambda x: x.mean(0)),
    (dict(hidden=10), lambda x: x.mean(0)),
    (dict(pool='cls'), lambda x: x[0]),
  )
  def test_is_the_formula(self, fields, pool):
    _, variables, run = _head(**fields)
    tokens = _tokens()
    descriptor, pooled = run(tokens)
    for b in range(2):
      z = _by_hand(variables['params'], pool(tokens.features[b]))
      np.testing.assert_allclose(pooled[b], z, atol=1e-5)
      unit = z / np.linalg.norm(z)
      np.testing.assert_allclose(descriptor[b], unit, atol=1e-5)

  def test_the_released_descriptor_has_the_length_that_the_norm_gives(self):
    _, _, run = _head(normalized=False)
    descriptor, pooled = run(_tokens())
    np.testing.assert_array_equal(descriptor, pooled)
    self.assertGreater(np.linalg.norm(descriptor, axis=1).min(), 3.0)

  def test_a_sector_is_described_by_its_own_tokens_with_the_same_head(self):
    _, variables, run = _head(num_sectors=4)
    tokens = _tokens()
    # The centres of sectors, so that each token has one.
    centers = -0.8 + 0.4 * (np.arange(12) % 4 + 0.5)
    azimuth = np.tile(centers, (2, 1)).astype(np.float32)
    _, pooled = run(tokens._replace(azimuth=azimuth))
    for sector in range(4):
      x = tokens.features[0, sector::4].mean(0)
      expected = _by_hand(variables['params'], x)
      found = pooled[0].reshape(4, -1)[sector]
      np.testing.assert_allclose(found, expected, atol=1e-4)

  def test_an_empty_sector_contributes_zeros(self):
    _, _, run = _head(num_sectors=4)
    azimuth = np.full((2, 12), -0.6, np.float32)
    _, pooled = run(_tokens()._replace(azimuth=azimuth))
    filled = np.abs(pooled).reshape(2, 4, -1).max((0, 2)) > 0
    np.testing.assert_array_equal(filled, [True, False, False, False])

  @parameterized.parameters(0, 4)
  def test_masked_and_weightless_tokens_change_nothing(self, num_sectors):
    _, _, run = _head(num_sectors=num_sectors)
    tokens = _tokens()
    some = np.tile(np.arange(12) < 8, (2, 1))
    masked = run(tokens._replace(mask=some))[0]
    weightless = run(tokens, some.astype(np.float32))[0]
    np.testing.assert_allclose(masked, weightless, atol=1e-6)
    self.assertGreater(np.abs(masked - run(tokens)[0]).max(), 1e-3)

  @parameterized.product(num_sectors=(0, 4), normalized=(False, True))
  def test_without_tokens_values_and_gradients_are_finite(
    self, num_sectors, normalized
  ):
    head, variables, _ = _head(num_sectors=num_sectors, normalized=normalized)
    tokens = _tokens()._replace(mask=np.zeros((2, 12), bool))

    def total(variables):
      return head.apply(variables, tokens, WEIGHTS, BOUNDS)[0].sum()

    value, grad = jax.jit(jax.value_and_grad(total))(variables)
    leaves = [value, *jax.tree.leaves(grad)]
    self.assertTrue(all(np.isfinite(leaf).all() for leaf in leaves))

  def test_drops_in_training_alone_and_only_with_a_key(self):
    head, variables, run = _head(dropout=0.5)

    def train(train=True, **rngs):
      return compiled.apply(
        head, variables, _tokens(), WEIGHTS, BOUNDS, train=train, rngs=rngs
      )[0]

    plain = run(_tokens())[0]
    np.testing.assert_allclose(train(), plain, atol=1e-6)
    evaluated = train(train=False, dropout=jax.random.key(0))
    np.testing.assert_allclose(evaluated, plain, atol=1e-6)
    one, other = (train(dropout=jax.random.key(i)) for i in range(2))
    self.assertGreater(np.abs(one - plain).max(), 1e-2)
    self.assertGreater(np.abs(one - other).max(), 1e-2)

  @parameterized.parameters(
    (dict(pool='max'), "pool is 'max'; known: "),
    (dict(pool='cls', num_sectors=4), 'lies in no direction'),
    (dict(num_sectors=7), '24 does not divide into 7 sectors'),
  )
  def test_what_cannot_be_is_refused_at_construction(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      projection.ProjectionHead(features=FEATURES, **fields)


if __name__ == '__main__':
  absltest.main()
