# SPDX-License-Identifier: Apache-2.0
"""Alignment of one side with the other, frozen one."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.losses import alignment
from i2ploc.losses import contrastive
from tests.losses import loops


def _descriptors(seed=0, size=5, width=4):
  rng = np.random.default_rng(seed)
  return tuple(rng.normal(size=(2, size, width)).astype(np.float32))


def _loop(a, b):
  total = 0.0
  for row, other in zip(a, b, strict=True):
    total += sum((x - y) ** 2 for x, y in zip(row, other, strict=True))
  return total / a.size


@functools.partial(jax.jit, static_argnames='frozen')
def _loss(a, b, relations=None, frozen='a'):
  return alignment.alignment(a, b, relations, frozen=frozen)


class AlignmentTest(parameterized.TestCase):
  @parameterized.parameters('a', 'b')
  def test_agrees_with_a_loop_and_moves_one_side_only(self, frozen):
    a, b = _descriptors()
    value, gradients = jax.value_and_grad(
      lambda a, b: _loss(a, b, frozen=frozen)[0], (0, 1)
    )(a, b)
    np.testing.assert_allclose(value, _loop(a, b), rtol=1e-6)
    slopes = {
      'a': loops.slopes(lambda x: _loop(x, b), a),
      'b': loops.slopes(lambda x: _loop(a, x), b),
    }
    slopes[frozen] *= 0
    np.testing.assert_allclose(gradients[0], slopes['a'], atol=1e-6)
    np.testing.assert_allclose(gradients[1], slopes['b'], atol=1e-6)

  def test_rows_are_compared_with_their_own_pair(self):
    a, _ = _descriptors()
    self.assertEqual(_loss(a, a)[0], 0.0)
    self.assertGreater(_loss(a, a[::-1])[0], 0.5)

  def test_metrics_are_those_of_retrieval(self):
    a, b = _descriptors()
    relations = 2 * np.eye(5, dtype=np.int8) - 1
    relations[0, 3] = 0
    similarities = jnp.asarray(a @ b.T)
    expected = contrastive.batch_metrics(similarities, relations)
    _, metrics = _loss(a, b, relations)
    self.assertSetEqual(set(metrics), set(expected))
    for name, value in expected.items():
      np.testing.assert_allclose(metrics[name], value, rtol=1e-5)

  def test_half_precision_is_compared_in_float32(self):
    a, b = (jnp.asarray(x, jnp.bfloat16) for x in _descriptors())
    value, _ = _loss(a, b)
    self.assertEqual(value.dtype, jnp.float32)
    expected = _loop(np.asarray(a, np.float32), np.asarray(b, np.float32))
    np.testing.assert_allclose(value, expected, rtol=1e-6)

  def test_wrong_arguments_are_named(self):
    a, b = _descriptors()
    with self.assertRaisesRegex(ValueError, "frozen='image': expected one of"):
      _loss(a, b, frozen='image')
    with self.assertRaisesRegex(ValueError, r'expected both \[B, D\]'):
      _loss(a, b[:3])
    with self.assertRaisesRegex(ValueError, r'expected \(5, 5\)'):
      _loss(a, b, np.ones((5, 4)))


if __name__ == '__main__':
  absltest.main()
