# SPDX-License-Identifier: Apache-2.0
"""Tile by tile, the losses and gradients of all pairs at once."""

import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.losses import contrastive
from i2ploc.losses import tiled
from i2ploc.losses import tiles

SIZE = 23
FACTORS = {'info_nce': (14.0,), 'sigmoid': (14.0, -3.0)}
KINDS = ('pairs', 'street', 'ragged', 'all', 'none', 'ignored')


def _descriptors(seed=0, size=SIZE, width=6):
  rng = np.random.default_rng(seed)
  rows = rng.normal(size=(2, size, width)).astype(np.float32)
  rows[1] += rows[0]
  # Some readings twice: their rows and columns tie everywhere.
  rows[:, 1:3] = rows[:, :1]
  return tuple(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def _relations(kind, size=SIZE):
  """[size, size]; of 'ragged' some rows and columns lack one or both kinds."""
  row = np.arange(size)
  if kind == 'ragged':
    relations = np.random.default_rng(3).integers(-1, 2, (size, size))
    relations[0], relations[:, 3] = (
      np.minimum(x, 0) for x in (relations[0], relations[:, 3])
    )
    relations[1], relations[:, 4] = (
      np.maximum(x, 0) for x in (relations[1], relations[:, 4])
    )
    relations[2] = relations[:, 5] = 0
    return relations
  if kind == 'street':
    apart = np.abs(row[:, None] - row)
    return np.where(apart <= 1, 1, np.where(apart <= 3, 0, -1))
  one = {'all': 1, 'none': -1, 'ignored': 0}
  if kind in one:
    return np.full((size, size), one[kind])
  return 2 * np.eye(size, dtype=int) - 1


def _places(relations):
  rows = jnp.asarray(relations)
  return tiles.Places(lambda a, b: a[:, b], rows, jnp.arange(len(rows)))


def _value_and_grad(loss, args):
  numbers = tuple(range(len(args)))
  return jax.value_and_grad(loss, numbers, has_aux=True)(*args)


@functools.partial(jax.jit, static_argnums=0)
def _dense(name, args, relations):
  loss = getattr(contrastive, name)
  return _value_and_grad(lambda *args: loss(*args, relations), args)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _in_tiles(name, tile, paired, args, relations):
  loss = getattr(tiled, name)
  places = None if paired else _places(relations)
  return _value_and_grad(lambda *args: loss(*args, places, tile=tile), args)


def _compare(test, name, relations, paired, tile, factors, atol=2e-6):
  """Values, metrics and gradients, of both."""
  args = *_descriptors(size=len(relations)), *factors
  found = _in_tiles(name, tile, paired, args, relations)
  expected = _dense(name, args, relations)
  test.assertEqual(jax.tree.structure(found), jax.tree.structure(expected))
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
  for a, b in pairs:
    test.assertEqual(a.shape, b.shape)
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=atol)


class AgreementTest(parameterized.TestCase):
  @parameterized.parameters(*itertools.product(FACTORS, KINDS))
  def test_value_metrics_and_gradients_are_those_of_all_pairs(self, name, kind):
    paired = kind == 'pairs'
    _compare(self, name, _relations(kind), paired, 8, FACTORS[name])

  @parameterized.parameters(*itertools.product(FACTORS, (1, SIZE, 100)))
  def test_whatever_the_tile(self, name, tile):
    _compare(self, name, _relations('ragged'), False, tile, FACTORS[name])

  @parameterized.parameters(*FACTORS)
  def test_scale_100_and_a_batch_of_one(self, name):
    factors = 100.0, *FACTORS[name][1:]
    relations = _relations('street')
    _compare(self, name, relations, False, 8, factors, 1e-5)
    _compare(self, name, np.ones((1, 1), int), True, 8, factors)

  def test_logits_far_beyond_what_float32_can_exponentiate(self):
    image = np.eye(3, dtype=np.float32)

    def loss(scale):
      # Every negative is 200 above its positive at scale 100.
      return tiled.info_nce(image, image[[1, 2, 0]] - image, scale, tile=2)[0]

    value, slope = jax.jit(jax.value_and_grad(loss))(100.0)
    np.testing.assert_allclose((value, slope), (200.0, 2.0), rtol=1e-6)

  def test_half_precision_is_compared_in_float32(self):
    image, points = (jnp.asarray(x, jnp.bfloat16) for x in _descriptors())

    def loss(library, image):
      return library.info_nce(image, points, 100.0)[0]

    value, gradient = jax.jit(jax.value_and_grad(lambda x: loss(tiled, x)))(
      image
    )
    self.assertEqual(gradient.dtype, jnp.bfloat16)
    np.testing.assert_allclose(value, loss(contrastive, image), rtol=1e-6)


class LawsTest(parameterized.TestCase):
  def test_gradients_of_multiples_are_multiples(self):
    image, points = _descriptors()

    def loss(image, times):
      return times * tiled.info_nce(image, points, 9.0, tile=8)[0]

    gradient = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(
      gradient(image, -3.0), -3.0 * gradient(image, 1.0), rtol=1e-6
    )

  @parameterized.parameters(*FACTORS)
  def test_memory_grows_with_the_batch_and_not_its_square(self, name):
    def temporary(library, size, **fields):
      def loss(*args):
        return getattr(library, name)(*args, *FACTORS[name], **fields)[0]

      rows = jax.ShapeDtypeStruct((size, 8), jnp.float32)
      step = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(rows, rows)
      return step.compile().memory_analysis().temp_size_in_bytes

    small, large = (temporary(tiled, n, tile=32) for n in (1024, 4096))
    self.assertLess(large, 5 * small)
    self.assertLess(large, 4096 * 4096)  # a quarter of all similarities
    # Discrimination: the measure sees them where they are.
    self.assertGreater(temporary(contrastive, 1024), 1024 * 1024 * 4)

  def test_a_second_batch_does_not_compile_again(self):
    traced = []

    @jax.jit
    def loss(image, points, row):
      traced.append(1)
      places = tiles.Places(
        lambda a, b: jnp.where(a[:, None] == b, 1, -1), row, row
      )
      return tiled.info_nce(image, points, 9.0, places, tile=8)[0]

    values = [loss(*_descriptors(seed), jnp.arange(SIZE)) for seed in (1, 2)]
    self.assertLen(traced, 1)
    self.assertNotEqual(*values)


class ErrorsTest(absltest.TestCase):
  def test_what_does_not_fit_is_named(self):
    image, points = _descriptors()
    with self.assertRaisesRegex(ValueError, r'expected both \[B, D\]'):
      tiled.info_nce(image, points[:3], 1.0)
    with self.assertRaisesRegex(ValueError, 'tile=0: expected at least one'):
      tiled.sigmoid(image, points, 1.0, 0.0, tile=0)
    places = tiles.Places(lambda a, b: a, np.zeros((SIZE, 2)), np.zeros(5))
    with self.assertRaisesRegex(ValueError, r'shape \(5,\): expected 23 rows'):
      tiled.info_nce(image, points, 1.0, places)


if __name__ == '__main__':
  absltest.main()
