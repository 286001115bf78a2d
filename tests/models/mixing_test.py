# SPDX-License-Identifier: Apache-2.0
"""MixVPR: against loops over cells, and for one grid alone."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from benchmarks.parity_rows import aggregators as oracles
from i2ploc.models import aggregators
from i2ploc.models import mixing
from tests.models import planted
from tests.testing import compiled


def _args(grid, cls=False):
  length = grid[0] * grid[1] + cls
  rng = np.random.default_rng(0)
  tokens = aggregators.Tokens(
    rng.normal(size=(2, length, 6)).astype(np.float32),
    np.zeros((2, length), np.float32),
    np.ones((2, length), bool),
    aggregators.Grid(*grid),
  )
  return tokens, np.ones((2, length), np.float32), None


class MixVPRTest(parameterized.TestCase):
  @parameterized.product(cls=(False, True), row_bias=(False, True))
  def test_against_loops_without_the_cls_token(self, cls, row_bias):
    model = mixing.MixVPR(
      (3, 5), channels=7, rows=2, depth=3, mlp_ratio=2.0, row_bias=row_bias
    )
    args = _args((3, 5), cls)
    variables = planted.variables(model, *args)
    layer = variables['params']['rows_layer']
    self.assertEqual('bias' in layer, row_bias)
    found, _ = compiled.apply(model, variables, *args)
    for b in range(2):
      x = args[0].features[b, int(cls) :]
      expected = oracles.mixvpr(x, variables['params'])
      np.testing.assert_allclose(found[b], expected, atol=1e-5)

  @parameterized.parameters(((5, 3), 'a grid of 5 x 3'), ((4, 5), '4 x 5 .20'))
  def test_another_grid_is_refused(self, grid, message):
    model = mixing.MixVPR((3, 5))
    with self.assertRaisesRegex(ValueError, f'3 x 5 cells.*{message}'):
      jax.eval_shape(model.init, jax.random.key(0), *_args(grid))

  def test_tokens_of_no_grid_must_be_as_many(self):
    model = mixing.MixVPR((3, 5), channels=7, rows=2)
    tokens, weights, _ = _args((3, 5))
    tokens = tokens._replace(grid=None)
    jax.eval_shape(model.init, jax.random.key(0), tokens, weights, None)
    fewer = jax.tree.map(lambda x: x[:, 1:], tokens)
    with self.assertRaisesRegex(ValueError, r'no grid \(14 tokens\)'):
      jax.eval_shape(model.init, jax.random.key(0), fewer, weights, None)


if __name__ == '__main__':
  absltest.main()
