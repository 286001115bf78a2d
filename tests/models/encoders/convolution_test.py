# SPDX-License-Identifier: Apache-2.0
"""Convolutions have nn.Conv's values and gradients, in loops too."""

import functools
import re

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.models.encoders import convolution
from tests.testing import compiled


@functools.partial(jax.jit, static_argnums=0)
def _gradients(conv, variables, x):
  def loss(variables, x):
    out = conv.apply(variables, x)
    return (out * jnp.sin(jnp.arange(out.size)).reshape(out.shape)).sum()

  return jax.grad(loss, (0, 1))(variables, x)


class ConvTest(parameterized.TestCase):
  @parameterized.parameters(
    ((3, 3), 1, 'SAME', (7, 9)),
    ((3, 3), 2, 'SAME', (8, 9)),
    ((3, 1), (2, 1), 'SAME', (7, 5)),
    ((7, 3), (4, 2), 'SAME', (9, 8)),
    ((3, 3), 2, 1, (8, 7)),
    ((4, 4), 4, 'VALID', (11, 8)),  # rows that no window reaches
    ((3, 3), 1, ((0, 2), (3, 1)), (5, 6)),
    ((1, 1), 2, 'VALID', (5, 5)),
    ((3, 3), 1, 'SAME', (1, 1)),
  )
  def test_values_and_gradients(self, window, strides, padding, size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    ours = convolution.Conv(4, window, strides, padding=padding)
    plain = nn.Conv(4, window, strides, padding=padding)
    variables = jax.jit(ours.init)(jax.random.key(1), x)
    np.testing.assert_array_equal(
      compiled.apply(ours, variables, x), compiled.apply(plain, variables, x)
    )
    for a, b in zip(
      jax.tree.leaves(_gradients(ours, variables, x)),
      jax.tree.leaves(_gradients(plain, variables, x)),
      strict=True,
    ):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

  @parameterized.parameters(
    dict(kernel_dilation=2), dict(feature_group_count=3)
  )
  def test_other_convolutions_are_left_as_they_are(self, **kwargs):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    ours = convolution.Conv(6, (3, 3), **kwargs)
    variables = jax.jit(ours.init)(jax.random.key(1), x)
    np.testing.assert_array_equal(
      compiled.apply(ours, variables, x),
      compiled.apply(nn.Conv(6, (3, 3), **kwargs), variables, x),
    )

  def test_half_precision(self):
    x = jnp.ones((1, 4, 4, 2))
    conv = convolution.Conv(2, (3, 3), dtype=jnp.bfloat16)
    variables = jax.jit(conv.init)(jax.random.key(0), x)
    self.assertEqual(compiled.apply(conv, variables, x).dtype, jnp.bfloat16)
    gradients = _gradients(conv, variables, x)
    self.assertEqual({g.dtype for g in jax.tree.leaves(gradients)}, {x.dtype})

  def test_a_loop_holds_the_fast_layout_alone(self):
    if jax.default_backend() != 'cpu':
      self.skipTest('Other compilers bring loops into layout themselves.')
    x = jax.random.normal(jax.random.key(0), (3, 2, 8, 8, 4))
    layouts = {}
    for conv in (convolution.Conv(4, (3, 3)), nn.Conv(4, (3, 3))):
      variables = jax.jit(conv.init)(jax.random.key(1), x[0])

      @jax.jit
      def gradient(variables, x, conv=conv):
        return jax.lax.map(lambda x: _gradients(conv, variables, x), x)

      text = gradient.lower(variables, x).compile().as_text()
      layouts[conv.conv_general_dilated] = set(
        re.findall(r'convolution\(.*dim_labels=(\S+?)[,\s]', text)
      )
    ours, plain = layouts.values()
    self.assertEqual(ours, {'b01f_01io->b01f'})
    self.assertGreater(len(plain), 1)


if __name__ == '__main__':
  absltest.main()
