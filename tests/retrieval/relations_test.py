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


def _quadrilaterals(seed, count):
  """Convex ones [N, 4, 2], either way round, of many sizes."""
  rng = np.random.default_rng(seed)
  angles = rng.uniform(0.2, 1, (count, 4)).cumsum(1)
  angles *= 2 * np.pi / (angles[:, -1:] + rng.uniform(0.2, 1, (count, 1)))
  angles += rng.uniform(0, 2 * np.pi, (count, 1))
  angles[::2] *= -1
  shapes = np.stack([np.cos(angles), np.sin(angles)], -1)
  shapes *= rng.uniform(0.2, 2.5, (count, 1, 2))
  return (shapes + rng.uniform(-4, 4, (count, 1, 2))).astype(np.float32)


def _segments_cross(p, q, r, s):
  def side(a, b, c):
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

  return (side(p, q, r) > 0) != (side(p, q, s) > 0) and (
    (side(r, s, p) > 0) != (side(r, s, q) > 0)
  )


def _inside(point, shape):
  """By the number of sides that a ray crosses."""
  far = point + np.array([100.0, 0.37])
  crossed = [
    _segments_cross(point, far, shape[i - 1], shape[i]) for i in range(4)
  ]
  return sum(crossed) % 2 == 1


def _loop_overlapping(a, b):
  """Sides that cross, or one within the other; no separating axis."""
  found = np.zeros((len(a), len(b)), bool)
  for i, x in enumerate(a.astype(np.float64)):
    for j, y in enumerate(b.astype(np.float64)):
      found[i, j] = (
        _inside(x[0], y)
        or _inside(y[0], x)
        or any(
          _segments_cross(x[k - 1], x[k], y[m - 1], y[m])
          for k in range(4)
          for m in range(4)
        )
      )
  return found


def _square(east, north, half=1.0, turn=0.0):
  angles = np.pi / 4 + np.radians(turn) + np.pi / 2 * np.arange(4)
  corners = np.sqrt(2) * half * np.stack([np.cos(angles), np.sin(angles)], 1)
  return (corners + [east, north]).round(6)


class FootprintsTest(parameterized.TestCase):
  @parameterized.parameters('numpy', 'jit')
  def test_agrees_with_crossing_sides(self, library):
    a, b = _quadrilaterals(0, 40), _quadrilaterals(1, 50)
    expected = _loop_overlapping(a, b)
    run = relations.overlapping
    found = (jax.jit(run) if library == 'jit' else run)(a, b)
    self.assertEqual(found.dtype, bool)
    self.assertIsInstance(
      found, np.ndarray if library == 'numpy' else jax.Array
    )
    np.testing.assert_array_equal(found, expected)
    self.assertBetween(expected.mean(), 0.1, 0.9)

  @parameterized.parameters(
    (_square(0, 0), _square(1, 1), True),
    (_square(0, 0), _square(0, 0, 0.1), True),  # one inside the other
    (_square(0, 0), _square(2, 0), True),  # they touch along a side
    (_square(0, 0), _square(2, 2), True),  # they touch at a corner
    (_square(0, 0), _square(2.001, 0), False),
    # Boxes around them overlap, they do not.
    (_square(0, 0, 1, 45), _square(1.5, 1.5, 1, 45), False),
    # Seen along the sides of one of them they are apart, of the other not.
    (_square(0, 0), _square(2.2, 2.2, 1, 45), False),
    (_square(0, 0), _square(1.6, 1.6, 1, 45), True),
  )
  def test_two_footprints(self, a, b, expected):
    for x, y in ((a, b), (b, a), (a[::-1], b)):
      for move in 0.0, 50_000.0:
        shapes = (x + move).astype(np.float32), (y + move).astype(np.float32)
        found = relations.overlapping(*(s[None] for s in shapes))
        if expected or not move:  # float32 has steps of 4 mm out there
          self.assertEqual(found.item(), expected)

  @parameterized.parameters(np, jnp)
  def test_lines_and_points(self, library):
    point = np.zeros((4, 2))
    line = np.array([[0.0, 0], [2, 1], [2, 1], [0, 0]])
    shapes = {
      'point': (point, point, True),
      'points apart': (point, point + [0.1, 0], False),
      'point in a square': (point, _square(0.5, 0.5), True),
      'point beside a square': (point, _square(1.5, 0), False),
      'point on a line': (line, point + [1, 0.5], True),
      'point beyond a line': (line, point + [4, 2], False),
      'point beside a line': (line, point + [1, 0.6], False),
      'a line twice': (line, line, True),
      'a line further along': (line, line + [4, 2], False),
      'a line beside': (line, line + [0, 0.1], False),
      'lines that cross': (line, line * [1, -1] + [0, 1], True),
    }
    for name, (a, b, expected) in shapes.items():
      found = relations.overlapping(
        library.asarray(a[None]), library.asarray(b[None])
      )
      self.assertEqual(bool(found.item()), expected, name)

  def test_what_is_not_known_overlaps_nothing(self):
    shapes = np.stack([_square(0, 0)] * 3)
    shapes[1, 2, 0], shapes[2] = np.nan, np.inf
    found = relations.overlapping(shapes, shapes)
    np.testing.assert_array_equal(found, np.diag([True, False, False]))

  @parameterized.product(library=(np, jnp), overlap=(1, 0, -1))
  def test_relations_of_towns(self, library, overlap):
    nowhere = np.full((4, 2), np.nan)
    shapes = library.asarray(
      np.stack([_square(0, 0), _square(1, 0), _square(9, 0), nowhere])
    )
    town = library.asarray(np.array([0, 0, 0, 0]))
    found = relations.from_footprints(
      shapes, town, shapes, town, overlap=overlap
    )
    expected = np.full((4, 4), -1)
    expected[:2, :2] = expected[2, 2] = overlap
    expected[3] = expected[:, 3] = 0
    np.testing.assert_array_equal(found, expected)
    self.assertEqual(found.dtype, np.int8)
    self.assertIsInstance(found, jax.Array if library is jnp else np.ndarray)
    elsewhere = relations.from_footprints(
      shapes, town, shapes, town + 1, overlap=overlap
    )
    np.testing.assert_array_equal(elsewhere, -1)

  def test_the_relation_of_earthloc(self):
    # Two years of three tiles, of which the first two overlap.
    tiles = np.stack([_square(0, 0), _square(1, 0), _square(9, 0)])
    shapes, place = np.repeat(tiles, 2, 0), np.repeat([4, 5, 6], 2)
    town = np.zeros(6, int)
    found = relations.of_one_side(
      relations.from_footprints(shapes, town, shapes, town, overlap=0), place
    )
    expected = [
      [0, 1, 0, 0, -1, -1],
      [1, 0, 0, 0, -1, -1],
      [0, 0, 0, 1, -1, -1],
      [0, 0, 1, 0, -1, -1],
      [-1, -1, -1, -1, 0, 1],
      [-1, -1, -1, -1, 1, 0],
    ]
    np.testing.assert_array_equal(found, expected)

  def test_errors_say_what_to_do(self):
    shapes, town = np.stack([_square(0, 0)] * 2), np.zeros(2, int)
    with self.assertRaisesRegex(ValueError, r'expected \[N, 4, 2\]'):
      relations.overlapping(shapes[:, :3], shapes)
    with self.assertRaisesRegex(ValueError, 'overlap=2: expected 1, 0 or -1'):
      relations.from_footprints(shapes, town, shapes, town, overlap=2)


class AnyFrameTest(parameterized.TestCase):
  @parameterized.product(library=(np, jnp), frames=((3, 3), (3, 2), (1, 4)))
  def test_agrees_with_a_loop_over_frames(self, library, frames):
    t, s = frames
    rng = np.random.default_rng(0)
    ternary = rng.choice([-1, 0, 1], (8 * t, 9 * s), p=[0.85, 0.1, 0.05])
    expected = np.zeros((8, 9))
    for i in range(8):
      for j in range(9):
        pairs = [
          ternary[i * t + u, j * s + v] for u in range(t) for v in range(s)
        ]
        if any(r == 1 for r in pairs):
          expected[i, j] = 1
        elif all(r == -1 for r in pairs):
          expected[i, j] = -1
    self.assertSetEqual(set(np.unique(expected)), {-1, 0, 1})
    found = relations.any_frame(library.asarray(ternary, library.int8), t, s)
    np.testing.assert_array_equal(found, expected)
    self.assertEqual(found.dtype, np.int8)

  def test_sequences_of_positions(self):
    # Frames 8 m apart along a street: 0 to 16, 24 to 40, 48 to 64.
    position = np.zeros((9, 3))
    position[:, 0] = 8.0 * np.arange(9)
    town = np.zeros(9, int)
    found = relations.any_frame(
      relations.from_positions(position, town, position, town, **RADII), 3
    )
    np.testing.assert_array_equal(found, [[1, 1, -1], [1, 1, 1], [-1, 1, 1]])

  def test_frames_that_make_no_sequences_are_named(self):
    for frames in ((2, 3), (3, 2), (0, 3)):
      with self.assertRaisesRegex(ValueError, 'expected whole sequences'):
        relations.any_frame(np.zeros((9, 9), np.int8), *frames)


class OneSideTest(parameterized.TestCase):
  @parameterized.parameters('numpy', 'jax', 'jit')
  def test_agrees_with_a_loop_over_pairs(self, library):
    rng = np.random.default_rng(0)
    ternary = rng.integers(-1, 2, (12, 12)).astype(np.int8)
    place = rng.integers(-1, 4, 12)
    labelled = rng.random(12) < 0.7
    expected = ternary.copy()
    for i in range(12):
      for j in range(12):
        if i == j or not (labelled[i] and labelled[j]):
          expected[i, j] = 0
        elif place[i] == place[j] and place[i] >= 0:
          expected[i, j] = 1
    arrays = ternary, place, labelled
    if library != 'numpy':
      arrays = jax.tree.map(jnp.asarray, arrays)
    run = relations.of_one_side
    found = (jax.jit(run) if library == 'jit' else run)(*arrays)
    np.testing.assert_array_equal(found, expected)
    self.assertEqual(found.dtype, np.int8)
    self.assertIsInstance(
      found, np.ndarray if library == 'numpy' else jax.Array
    )

  def test_without_places_and_labels_only_the_diagonal_changes(self):
    ternary = np.full((3, 3), -1, np.int8)
    ternary[0, 1] = 1
    found = relations.of_one_side(ternary)
    np.testing.assert_array_equal(found, ternary + np.eye(3))

  def test_odd_shapes_are_named(self):
    ternary = np.zeros((3, 3), np.int8)
    with self.assertRaisesRegex(ValueError, 'a batch to itself'):
      relations.of_one_side(ternary[:2])
    with self.assertRaisesRegex(ValueError, r'place \(2,\): expected \(3,\)'):
      relations.of_one_side(ternary, np.zeros(2, int))
    with self.assertRaisesRegex(ValueError, r'labelled \(2,\)'):
      relations.of_one_side(ternary, None, np.zeros(2, bool))


if __name__ == '__main__':
  absltest.main()
