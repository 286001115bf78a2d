# SPDX-License-Identifier: Apache-2.0
"""Tests of the compiler's options."""

import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import compilation


def _kernel_gradient(x, kernel):
  def energy(kernel):
    names = ('NHWC', 'HWIO', 'NHWC')
    y = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=names
    )
    return (y**2).sum()

  return jax.grad(energy)(kernel)


class CompilationTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    compilation.options.cache_clear()
    self.addCleanup(compilation.options.cache_clear)

  def test_convolutions_are_not_left_to_the_slow_library(self):
    if not compilation.options():
      self.skipTest('not a CPU, or a jaxlib without this option')
    args = jnp.ones((4, 8, 8, 24)), jnp.ones((3, 3, 24, 24))
    compiled = compilation.jit(_kernel_gradient).lower(*args).compile()
    self.assertNotIn('ynn_fusion', compiled.as_text())
    np.testing.assert_allclose(
      compiled(*args), jax.jit(_kernel_gradient)(*args), rtol=1e-5
    )

  def test_products_with_constants_are_right(self):
    rows = np.random.default_rng(0).normal(size=(4000, 9)).astype(np.float32)
    constant = np.eye(9, dtype=np.float32)[5:]

    def along(row):
      return jnp.sum(constant * row, -1, keepdims=True) * row

    expected = rows[:, 5:, None] * rows[:, None]
    found = compilation.jit(jax.vmap(along))(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_it_may_be_called_inside_of_another(self):
    double = compilation.jit(lambda x: 2 * x)
    found = jax.jit(jax.grad(lambda x: double(x) ** 2))(3.0)
    self.assertEqual(found, 24)
    self.assertEqual(jax.eval_shape(double, jnp.ones(4)).shape, (4,))

  def test_a_decorator_looks_for_no_device(self):
    with mock.patch.object(jax, 'default_backend', side_effect=AssertionError):
      double = compilation.jit(lambda x: 2 * x)
    self.assertEqual(double(2), 4)

  def test_a_jaxlib_without_the_option_compiles_without_it(self):
    with mock.patch.object(compilation, 'CPU_OPTIONS', {'xla_no_such': '1'}):
      self.assertEqual(compilation.options(), {})
      self.assertEqual(compilation.jit(lambda x: x + 1)(1), 2)

  def test_other_devices_are_left_alone(self):
    with mock.patch.object(jax, 'default_backend', lambda: 'gpu'):
      self.assertEqual(compilation.options(), {})


class KeepProgramsTest(absltest.TestCase):
  def test_another_process_compiles_nothing(self):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    script = """
import sys
import jax
from i2ploc import compilation
compilation.keep_programs(sys.argv[1])
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
compilation.jit(lambda x: 3 * x + 1)(2.0).block_until_ready()
print(events.count('/jax/compilation_cache/cache_misses'))
"""
    misses = [
      int(
        subprocess.run(
          [sys.executable, '-c', script, folder.name],
          check=True,
          capture_output=True,
          text=True,
        ).stdout
      )
      for _ in range(2)
    ]
    self.assertGreater(misses[0], 0)
    self.assertEqual(misses[1], 0)


if __name__ == '__main__':
  absltest.main()
