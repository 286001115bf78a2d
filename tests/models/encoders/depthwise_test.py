# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution: its formula, its gradients, its borders."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models.encoders import depthwise
from tests.models import planted

RNG = np.random.default_rng(0)


def _inputs(shape, size, channels=6):
  x = RNG.normal(size=(2, *shape, channels)).astype(np.float32)
  kernel = RNG.normal(size=(size, size, 1, channels)).astype(np.float32)
  return x, kernel


class PadsTest(parameterized.TestCase):
  @parameterized.product(
    n=(6, 7, 8), size=(3, 5), stride=(1, 2), padding=depthwise.PADDINGS
  )
  def test_the_output_is_a_stride_th_rounded_up(self, n, size, stride, padding):
    rows, columns = depthwise.pads(padding, (n, n), size, stride)
    self.assertEqual(rows, columns)
    out = (n + sum(rows) - size) // stride + 1
    self.assertEqual(out, -(-n // stride))
    if padding == 'symmetric':
      self.assertEqual(rows[0], rows[1])
    else:  # as XLA has it from TensorFlow
      expected = jax.lax.padtype_to_pads((n,), (size,), (stride,), 'SAME')
      self.assertEqual(rows, tuple(expected[0]))

  def test_other_paddings_are_named(self):
    with self.assertRaisesRegex(ValueError, "padding 'valid'; known: .*same"):
      depthwise.pads('valid', (8, 8), 3, 1)


class DepthwiseTest(parameterized.TestCase):
  @parameterized.product(
    shape=((6, 8), (7, 5)),
    size=(3, 5),
    stride=(1, 2),
    padding=depthwise.PADDINGS,
  )
  def test_shifted_products_are_the_grouped_convolution(
    self, shape, size, stride, padding
  ):
    x, kernel = _inputs(shape, size)
    pads = depthwise.pads(padding, shape, size, stride)
    found, back = jax.vjp(
      lambda x, kernel: depthwise._shifted(x, kernel, stride, pads), x, kernel
    )
    expected, expected_back = jax.vjp(
      lambda x, kernel: depthwise._grouped(x, kernel, stride, pads), x, kernel
    )
    np.testing.assert_allclose(found, expected, atol=2e-5)
    cotangent = RNG.normal(size=found.shape).astype(np.float32)
    for ours, theirs in zip(
      back(cotangent), expected_back(cotangent), strict=True
    ):
      np.testing.assert_allclose(ours, theirs, atol=5e-5)

  def test_accelerators_take_the_grouped_one(self):
    x, kernel = _inputs((6, 8), 3)
    pads = depthwise.pads('same', (6, 8), 3, 1)
    here = depthwise.convolve(x, kernel, 1, pads)
    with mock.patch.object(jax, 'default_backend', return_value='gpu'):
      program = jax.make_jaxpr(
        lambda *args: depthwise.convolve(*args, 1, pads)
      )(x, kernel)
      there = depthwise.convolve(x, kernel, 1, pads)
    self.assertIn('conv_general_dilated', str(program))
    np.testing.assert_allclose(here, there, atol=2e-5)

  def test_each_channel_has_its_own_window(self):
    layer = depthwise.Depthwise(3, dtype=jnp.float32)
    x, _ = _inputs((6, 8), 3)
    variables = planted.variables(layer, x)
    before = layer.apply(variables, x)
    x[..., 2] += 1.0
    moved = np.abs(layer.apply(variables, x) - before).max((0, 1, 2))
    np.testing.assert_array_equal(np.flatnonzero(moved > 0), [2])
    half = depthwise.Depthwise(3, dtype=jnp.bfloat16).apply(variables, x)
    self.assertEqual(half.dtype, jnp.bfloat16)


if __name__ == '__main__':
  absltest.main()
