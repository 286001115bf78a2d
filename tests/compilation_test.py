# SPDX-License-Identifier: Apache-2.0
"""Tests of the compiler's options."""

import functools
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
      # One that is not there does not cost the others.
      self.assertEqual(compilation.options(True), compilation.QUICK_OPTIONS)

  def test_a_quick_program_gives_the_same(self):
    quick = compilation.jit(lambda x: jnp.sin(x) ** 2, quick=True)
    x = np.linspace(0, 1, 100, dtype=np.float32)
    np.testing.assert_allclose(quick(x), np.sin(x) ** 2, rtol=1e-6)
    self.assertNotEqual(compilation.options(True), compilation.options())

  def test_other_devices_are_left_alone(self):
    with mock.patch.object(jax, 'default_backend', lambda: 'gpu'):
      self.assertEqual(compilation.options(), {})


def _power(x):
  for i in range(20):
    x = x * (x - i / 20) + 0.1
  return x, 2 * x


def _spread(power, x):
  """Many arrays that depend on the same two."""
  first, second = power(x)
  return [jnp.roll(first * i + second, i) for i in range(1, 9)]


class OnceTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.x = jnp.linspace(0.1, 0.9, 300).reshape(3, 100)
    self.plain = functools.partial(_spread, _power)
    self.apart = functools.partial(_spread, compilation.once(_power))

  def test_values_and_derivatives_are_those_of_the_function(self):
    for change in (
      lambda f: f,
      jax.vmap,
      lambda f: jax.grad(lambda x: sum(f(x)).sum()),
      lambda f: lambda x: jax.jvp(f, (x,), (x,)),
    ):
      found, expected = (
        jax.jit(change(f))(self.x) for f in (self.apart, self.plain)
      )
      jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        found,
        expected,
      )

  def test_it_is_not_computed_for_each_use_of_it(self):
    if jax.default_backend() != 'cpu':
      self.skipTest('other devices fuse otherwise')
    apart, plain = (
      str(jax.jit(jax.vmap(f)).lower(self.x).compile().as_text())
      for f in (self.apart, self.plain)
    )
    self.assertLess(apart.count('multiply('), 0.7 * plain.count('multiply('))


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
