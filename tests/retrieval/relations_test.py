# SPDX-License-Identifier: Apache-2.0
"""Relations against a loop, on both array libraries."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.retrieval import relations

RADII = dict(positive_radius=10.0, ignore_radius=25.0)


def _scene(seed=0, queries=12, entries=17):
  rng = np.random.default_rng(seed)

  def side(n):
    return dict(
      position=rng.uniform(-30, 30, (n, 3)).astype(np.float32),
      town=rng.integers(0, 2, n),
      heading=rng.uniform(-10, 10, n).astype(np.float32),
    )

  return side(queries), side(entries)


def _loop(query, entry, positive_radius, ignore_radius, max_heading=None):
  out = np.zeros((len(query['town']), len(entry['town'])), np.int8)
  for i in range(out.shape[0]):
    for j in range(out.shape[1]):
      offset = query['position'][i, :2] - entry['position'][j, :2]
      separation = np.linalg.norm(offset.astype(np.float64))
      turn = query['heading'][i] - entry['heading'][j]
      turn = abs(np.arctan2(np.sin(turn), np.cos(turn)))
      if query['town'][i] != entry['town'][j] or separation > ignore_radius:
        out[i, j] = -1
      elif separation <= positive_radius:
        out[i, j] = 1 if max_heading is None or turn <= max_heading else 0
  return out


class RelationsTest(parameterized.TestCase):
  @parameterized.product(library=('numpy', 'jax', 'jit'), max_heading=(None, 1))
  def test_agrees_with_a_loop_over_pairs(self, library, max_heading):
    query, entry = _scene()
    arrays = (
      *(query[k] for k in ('position', 'town')),
      *(entry[k] for k in ('position', 'town')),
    )
    headings = query['heading'], entry['heading']

    def call(qp, qt, mp, mt, qh, mh):
      return relations.from_positions(
        qp,
        qt,
        mp,
        mt,
        query_heading=qh,
        map_heading=mh,
        max_heading=max_heading,
        **RADII,
      )

    if library != 'numpy':
      arrays = jax.tree.map(jnp.asarray, arrays)
      headings = jax.tree.map(jnp.asarray, headings)
    found = (jax.jit(call) if library == 'jit' else call)(*arrays, *headings)
    expected = _loop(query, entry, max_heading=max_heading, **RADII)
    self.assertEqual(found.dtype, np.int8)
    self.assertIsInstance(
      found, np.ndarray if library == 'numpy' else jax.Array
    )
    np.testing.assert_array_equal(found, expected)
    self.assertSetEqual(set(np.unique(expected)), {-1, 0, 1})

  def test_height_does_not_count_and_both_horizontal_axes_do(self):
    here = np.zeros((1, 3))
    town = np.zeros(1, int)
    for offset, expected in (
      ([0, 0, 500.0], 1),
      ([500.0, 0, 0], -1),
      ([0, 500.0, 0], -1),
      ([15.0, 0, 0], 0),
      ([9.0, 9.0, 0], 0),
    ):
      there = np.asarray([offset])
      found = relations.from_positions(here, town, there, town, **RADII)
      self.assertEqual(found.item(), expected, offset)

  def test_radii_are_inclusive(self):
    here, town = np.zeros((2, 3)), np.zeros(2, int)
    there = np.asarray([[10.0, 0, 0], [25.0, 0, 0]])
    found = relations.from_positions(here, town, there, town, **RADII)
    np.testing.assert_array_equal(found, [[1, 0], [1, 0]])

  def test_the_same_coordinates_in_two_towns_are_negatives(self):
    here = np.zeros((1, 3))
    found = relations.from_positions(
      here, np.asarray(['oak']), here, np.asarray(['elm']), **RADII
    )
    self.assertEqual(found.item(), -1)

  def test_headings_wrap_and_opposite_views_are_ignored_not_negative(self):
    here, town = np.zeros((1, 3)), np.zeros(1, int)
    for turn, expected in ((2 * np.pi - 0.1, 1), (np.pi, 0), (-3.0, 0)):
      found = relations.from_positions(
        here,
        town,
        here,
        town,
        query_heading=np.asarray([turn]),
        map_heading=np.zeros(1),
        max_heading=0.5,
        **RADII,
      )
      self.assertEqual(found.item(), expected, turn)

  def test_unknown_positions_are_ignored_not_negative(self):
    nowhere, town = np.full((1, 3), np.nan), np.zeros(1, int)
    here = np.zeros((1, 3))
    found = relations.from_positions(nowhere, town, here, town, **RADII)
    self.assertEqual(found.item(), 0)
    found = relations.from_positions(nowhere, town, here, town + 1, **RADII)
    self.assertEqual(found.item(), -1)

  def test_batch_pairs_are_positive_by_construction(self):
    query, entry = _scene(queries=6, entries=6)
    args = query['position'], query['town'], entry['position'], entry['town']
    plain = relations.from_positions(*args, **RADII)
    paired = relations.from_positions(*args, paired=True, **RADII)
    self.assertLess(np.diag(plain).min(), 1)
    np.testing.assert_array_equal(np.diag(paired), 1)
    off = ~np.eye(6, dtype=bool)
    np.testing.assert_array_equal(plain[off], paired[off])

  def test_swapping_the_sides_transposes(self):
    query, entry = _scene()
    there = relations.from_positions(
      query['position'],
      query['town'],
      entry['position'],
      entry['town'],
      **RADII,
    )
    back = relations.from_positions(
      entry['position'],
      entry['town'],
      query['position'],
      query['town'],
      **RADII,
    )
    np.testing.assert_array_equal(there, back.T)

  @parameterized.parameters(np, jnp)
  def test_equal_texts_are_right_answers_and_padding_is_ignored(self, library):
    tokens = library.array([[0, 4, 1], [0, 5, 1], [0, 4, 1], [0, 4, 1]])
    mask = library.array([True, True, True, False])
    found = relations.from_texts(tokens, mask, tokens[:3], mask[:3])
    expected = [[1, -1, 1], [-1, 1, -1], [1, -1, 1], [0, 0, 0]]
    np.testing.assert_array_equal(found, expected)
    self.assertEqual(found.dtype, np.int8)
    self.assertIsInstance(found, jax.Array if library is jnp else np.ndarray)

  def test_errors_say_what_to_do(self):
    here, town = np.zeros((2, 3)), np.zeros(2, int)
    with self.assertRaisesRegex(ValueError, 'positive_radius <= ignore_radius'):
      relations.from_positions(
        here, town, here, town, positive_radius=25.0, ignore_radius=10.0
      )
    with self.assertRaisesRegex(ValueError, 'heading is missing'):
      relations.from_positions(here, town, here, town, max_heading=1.0, **RADII)
    with self.assertRaisesRegex(ValueError, r'expected \[N, 3\]'):
      relations.from_positions(here[:, :2], town, here, town, **RADII)
    with self.assertRaisesRegex(ValueError, 'as many queries'):
      relations.from_positions(
        here[:1], town[:1], here, town, paired=True, **RADII
      )


if __name__ == '__main__':
  absltest.main()
