# SPDX-License-Identifier: Apache-2.0
"""Attention: every path is the plain one, in less memory."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models.encoders import attention

DOT_PRODUCT = jax.nn.dot_product_attention


def _inputs(length, dtype=np.float32):
  rng = np.random.default_rng(length)
  query, key, value = rng.normal(size=(3, 2, 3, length, 8)).astype(np.float32)
  return tuple(jnp.asarray(x, dtype) for x in (query, key, value))


def _mask(length):
  return jnp.arange(length) < jnp.asarray([[length // 3], [0]])


def _oracle(query, key, value, mask):
  """One product with all N x N probabilities."""
  attention_ = attention.probabilities(query, key, mask)
  y = jnp.einsum('bhqn,bhnd->bqhd', attention_.astype(value.dtype), value)
  return y, attention_[:, :, 0]


@functools.partial(jax.jit, static_argnums=0)
def _value_and_grad(function, inputs, mask):
  def total(*inputs):
    y, row = function(*inputs, mask)
    weights = jnp.sin(jnp.arange(y.size)).reshape(y.shape)
    return (y * weights).sum() + (row**2).sum(), (y, row)

  return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(*inputs)


def _compiled(function, *args):
  return jax.jit(function).lower(*args).compile()


class AttendTest(parameterized.TestCase):
  @parameterized.product(
    # At, around and between multiples of a block; the last stays plain.
    length=(512, 513, 700, 257, 5),
    masked=(False, True),
  )
  def test_equals_one_product_values_and_gradients(self, length, masked):
    mask = _mask(length) if masked else None
    inputs = _inputs(length)
    (_, aux), grads = _value_and_grad(attention.attend, inputs, mask)
    (_, expected), expected_grads = _value_and_grad(_oracle, inputs, mask)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=2e-6),
      (aux, grads),
      (expected, expected_grads),
    )

  def test_probabilities_are_a_softmax_over_the_allowed_keys(self):
    query, key, _ = _inputs(7)
    mask = _mask(7)
    got = attention.probabilities(query, key, mask)
    logits = np.einsum('bhqd,bhnd->bhqn', query, key) / np.sqrt(8)
    weights = np.exp(logits) * mask[:, None, None]
    expected = weights[:1] / weights[:1].sum(-1, keepdims=True)
    np.testing.assert_allclose(got[:1], expected, rtol=1e-5, atol=1e-7)
    # No key at all: uniform, and not NaN.
    np.testing.assert_allclose(got[1], 1 / 7, rtol=1e-6)

  @parameterized.parameters(7, 300)
  def test_each_query_may_have_keys_of_its_own(self, length):
    query, key, value = _inputs(length)
    mask = np.random.default_rng(0).random((2, length, length)) < 0.6
    mask[..., 0] = True
    y, first = attention.attend(query, key, value, jnp.asarray(mask))
    for i in (0, length // 2, length - 1):
      # As if all queries had the keys of this one.
      expected, _ = _oracle(query, key, value, mask[:, i])
      np.testing.assert_allclose(y[:, i], expected[:, i], atol=2e-6)
    row = attention.probabilities(query[:, :, :1], key, mask[:, 0])
    np.testing.assert_allclose(first, row[:, :, 0], atol=2e-6)

  @parameterized.parameters(False, True)
  def test_memory_grows_with_the_length_and_not_with_its_square(self, grad):
    def total(query, key, value):
      return (attention.attend(query, key, value)[0] ** 2).sum()

    function = jax.grad(total, argnums=(0, 1, 2)) if grad else total
    sizes = []
    for length in (1024, 2048, 4096):
      shape = jax.ShapeDtypeStruct((1, 2, length, 16), jnp.float32)
      stats = _compiled(function, shape, shape, shape).memory_analysis()
      sizes.append(stats.temp_size_in_bytes)
    self.assertLess(sizes[2], 1.2 * 2 * sizes[1])
    self.assertLess(sizes[2], 2 * 4096 * 4096 * 4 / 4)

  def test_gradients_of_blocks_are_added_in_float32(self):
    mask = None
    exact = _value_and_grad(_oracle, _inputs(4 * 512), mask)[1]
    half = _inputs(4 * 512, jnp.bfloat16)
    blocked = _value_and_grad(attention.attend, half, mask)[1]
    plain = _value_and_grad(_oracle, half, mask)[1]

    def error(grads):
      return [
        float(jnp.abs(g.astype(jnp.float32) - e).mean())
        for g, e in zip(grads, exact, strict=True)
      ]

    np.testing.assert_array_less(error(blocked), 1.1 * np.array(error(plain)))

  @parameterized.parameters(False, True)
  def test_the_kernel_of_cudnn_is_given_layout_scale_and_lengths(self, masked):
    mask = _mask(300) if masked else None
    if masked:  # where nothing is allowed, each kernel has its own answer
      mask = mask.at[1, 0].set(True)
    inputs = _inputs(300)
    expected, row = _oracle(*inputs, mask)

    def kernel(*args, implementation, **kwargs):
      self.assertEqual(implementation, 'cudnn')
      return DOT_PRODUCT(*args, **kwargs)

    with (
      mock.patch.object(attention, '_has_cudnn', lambda query: True),
      mock.patch.object(jax.nn, 'dot_product_attention', kernel),
    ):
      y, first = attention.attend(*inputs, mask)
    np.testing.assert_allclose(y, expected, atol=2e-6)
    np.testing.assert_allclose(first, row, atol=1e-6)

  def test_cudnn_is_for_half_precision_and_its_head_sizes(self):
    half = jnp.zeros((1, 1, 300, 64), jnp.bfloat16)
    self.assertFalse(attention._has_cudnn(half))  # no GPU here
    devices = [mock.Mock(client=mock.Mock(platform_version='cuda 12'))]
    with (
      mock.patch.object(jax, 'default_backend', lambda: 'gpu'),
      mock.patch.object(jax, 'devices', lambda: devices),
    ):
      self.assertTrue(attention._has_cudnn(half))
      self.assertFalse(attention._has_cudnn(half.astype(jnp.float32)))
      self.assertFalse(attention._has_cudnn(half[..., :20]))
      self.assertFalse(attention._has_cudnn(jnp.tile(half, 3)))
      devices[0].client.platform_version = 'rocm'
      self.assertFalse(attention._has_cudnn(half))


if __name__ == '__main__':
  absltest.main()
