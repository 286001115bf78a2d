# SPDX-License-Identifier: Apache-2.0
"""BoQ: against loops over cells, queries and heads."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from benchmarks.parity_rows import aggregators as oracles
from i2ploc.models import aggregators
from i2ploc.models import queries
from tests.models import planted
from tests.testing import compiled

GRID = (4, 5)


def _args(cls=False, grid=GRID):
  length = grid[0] * grid[1] + cls
  rng = np.random.default_rng(0)
  tokens = aggregators.Tokens(
    rng.normal(size=(2, length, 6)).astype(np.float32),
    np.zeros((2, length), np.float32),
    np.ones((2, length), bool),
    aggregators.Grid(*grid),
  )
  return tokens, np.ones((2, length), np.float32), None


class BoQTest(parameterized.TestCase):
  @parameterized.product(cls=(False, True), channels=(16, 128))
  def test_against_loops_without_the_cls_token(self, cls, channels):
    model = queries.BoQ(channels, num_queries=3, rows=4, hidden=20)
    args = _args(cls)
    variables = planted.variables(model, *args)
    found, _ = compiled.apply(model, variables, *args)
    self.assertEqual(found.shape, (2, 4 * channels))
    for b in range(2):
      x = args[0].features[b, int(cls) :]
      expected = oracles.boq(x, GRID, variables['params'])
      np.testing.assert_allclose(found[b], expected, atol=1e-5)

  def test_masked_cells_of_a_grid_are_zeros_that_nobody_asks(self):
    model = queries.BoQ(16, num_queries=3, rows=4)
    tokens, weights, _ = _args()
    mask = tokens.mask.copy()
    mask[:, 7:10] = False
    variables = planted.variables(model, tokens, weights, None)
    one = tokens._replace(mask=mask)
    other = one._replace(features=np.where(mask[..., None], one.features, 9.0))
    found = [
      compiled.apply(model, variables, x, weights, None)[0]
      for x in (one, other)
    ]
    np.testing.assert_allclose(*found, atol=1e-6)
    # Not as if only their features were zero.
    zeros = tokens._replace(features=one.features * mask[..., None])
    asked, _ = compiled.apply(model, variables, zeros, weights, None)
    self.assertGreater(np.abs(asked - found[0]).max(), 1e-4)

  def test_a_token_of_twice_the_weight_counts_as_two(self):
    model = queries.CrossAttention(16, 2)
    rng = np.random.default_rng(0)
    asked = rng.normal(size=(1, 3, 16)).astype(np.float32)
    x = rng.normal(size=(2, 5, 16)).astype(np.float32)
    weights = np.ones((2, 5), np.float32)
    variables = planted.variables(model, asked, x, weights)
    twice = np.concatenate([x, x[:, 2:3]], axis=1)
    expected = compiled.apply(
      model, variables, asked, twice, np.ones((2, 6), np.float32)
    )
    weights[:, 2] = 2.0
    found = compiled.apply(model, variables, asked, x, weights)
    np.testing.assert_allclose(found, expected, atol=1e-5)

  def test_any_number_of_cells(self):
    model = queries.BoQ(16, num_queries=3, rows=4)
    variables = planted.variables(model, *_args())
    # Beyond 256 tokens attention goes block by block.
    args = _args(grid=(16, 20))
    found, _ = compiled.apply(model, variables, *args)
    x = args[0].features[0]
    expected = oracles.boq(x, (16, 20), variables['params'])
    np.testing.assert_allclose(found[0], expected, atol=1e-5)

  def test_a_window_needs_a_grid(self):
    tokens, weights, _ = _args()
    args = tokens._replace(grid=None), weights, None
    with self.assertRaisesRegex(ValueError, 'no grid; set kernel_size to 1'):
      jax.eval_shape(queries.BoQ(16).init, jax.random.key(0), *args)
    model = queries.BoQ(16, kernel_size=1)
    jax.eval_shape(model.init, jax.random.key(0), *args)


if __name__ == '__main__':
  absltest.main()
