# SPDX-License-Identifier: Apache-2.0
"""Miners against loops over pairs."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.losses import mining as mining_lib
from tests.losses import loops
from tests.testing import compiled

mining = compiled.Module(mining_lib)
SHAPE = 11, 14


def _pairs(seed):
  """Cosines in steps of 1/8, exact in float32 and often equal, and relations.

  Row 0 has no positive, row 1 no negative, row 2 neither.
  """
  rng = np.random.default_rng(seed)
  similarities = (rng.integers(-8, 9, SHAPE) / 8).astype(np.float32)
  relations = rng.integers(-1, 2, SHAPE).astype(np.int8)
  relations[0] = np.minimum(relations[0], 0)
  relations[1] = np.maximum(relations[1], 0)
  relations[2] = 0
  return similarities, relations


class MiningTest(parameterized.TestCase):
  @parameterized.product(
    form=('informative', 'hardest'), seed=(0, 1, 2), margin=(0.0, 0.125, 0.5)
  )
  def test_agrees_with_a_loop_over_pairs(self, form, seed, margin):
    similarities, relations = _pairs(seed)
    expected = loops.mine(similarities, relations, getattr(loops, form), margin)
    mined = jax.jit(lambda s, r: mining_lib.mine(s, r, form, margin=margin))(
      similarities, relations
    )
    np.testing.assert_array_equal(mined, expected)
    self.assertEqual(mined.dtype, np.int8)
    self.assertSetEqual(set(np.unique(expected)), {-1, 0, 1})

  def test_all_changes_nothing(self):
    similarities, relations = _pairs(0)
    np.testing.assert_array_equal(
      mining.mine(similarities, relations, 'all'), relations
    )

  @parameterized.parameters(
    # The extreme of the other kind decides, not that of the own kind, and the
    # margin counts on the side of keeping.
    ([0.9, 0.5, 0.55, 0.3], [1, 1, -1, -1], [0, 1, -1, 0]),
    ([0.9, 0.5, 0.45, 0.3], [1, 1, -1, -1], [0, 1, -1, 0]),
    ([0.9, 0.5, 0.35, 0.3], [1, 1, -1, -1], [0, 0, 0, 0]),
    # What is ignored decides nothing, whatever its similarity.
    ([0.9, 0.5, 0.99, 0.3], [1, 1, 0, -1], [0, 0, 0, 0]),
    ([0.9, 0.01, 0.2, 0.3], [1, 0, -1, -1], [0, 0, 0, 0]),
  )
  def test_informative_worked_by_hand(self, row, relation, expected):
    mined = mining.mine(
      np.array([row], np.float32), np.array([relation]), 'informative'
    )
    np.testing.assert_array_equal(mined, [expected])

  def test_hardest_takes_the_first_of_equal_ones(self):
    mined = mining.mine(
      np.array([[0.5, 0.2, 0.2, 0.4, 0.4]], np.float32),
      np.array([[1, 1, 1, -1, -1]]),
      'hardest',
    )
    np.testing.assert_array_equal(mined, [[0, 1, 0, -1, 0]])

  def test_a_row_that_lacks_a_kind(self):
    similarities = np.array([[0.9, 0.1], [0.9, 0.1]], np.float32)
    relations = np.array([[1, 1], [-1, -1]])
    for form, expected in (
      ('informative', [[0, 0], [0, 0]]),
      ('hardest', [[0, 1], [-1, 0]]),
    ):
      mined = mining.mine(similarities, relations, form)
      np.testing.assert_array_equal(mined, expected, form)

  @parameterized.parameters(*mining_lib.FORMS)
  def test_the_choice_has_no_gradient(self, form):
    similarities, relations = _pairs(0)

    def total(x):
      mined = mining_lib.mine(x, relations, form)
      return (mined * x).sum(), mined

    gradient, mined = jax.jit(jax.grad(total, has_aux=True))(
      jnp.asarray(similarities)
    )
    np.testing.assert_array_equal(gradient, mined)

  def test_errors_say_what_is_known(self):
    similarities, relations = _pairs(0)
    with self.assertRaisesRegex(ValueError, "mining 'hard'; known: .*hardest"):
      mining_lib.mine(similarities, relations, 'hard')
    with self.assertRaisesRegex(ValueError, 'margin=-0.1: expected a diff'):
      mining_lib.mine(similarities, relations, 'all', margin=-0.1)
    with self.assertRaisesRegex(ValueError, r'expected both \[B, M\]'):
      mining_lib.mine(similarities, relations[:3], 'all')


if __name__ == '__main__':
  absltest.main()
