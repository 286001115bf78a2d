# SPDX-License-Identifier: Apache-2.0
"""Short sequences tell places apart that single frames confuse."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.retrieval import sequences


def stays(runs, here, there):
  """Whether a row is in the run of another."""
  if not 0 <= there < len(runs):
    return False
  return len(set(runs[min(here, there) : max(here, there) + 1])) == 1


def match_by_loop(similarities, query_runs, map_runs, sequence, direction):
  """Pair by pair and frame by frame."""
  if sequence.contrast:
    similarities = contrast_by_loop(similarities, map_runs, sequence.contrast)
  before = sequence.length - 1 if sequence.causal else sequence.length // 2
  out = np.full(similarities.shape, -np.inf)
  for q, m in np.ndindex(*out.shape):
    for way in (direction,) if direction else (1, -1):
      for speed in sequence.speeds:
        terms = []
        for i in range(sequence.length):
          d = sequence.stride * (i - before)
          a, b = q + d, m + int(np.rint(way * speed * d))
          if stays(query_runs, q, a) and stays(map_runs, m, b):
            terms.append(similarities[a, b])
        out[q, m] = max(out[q, m], np.mean(terms))
  return out


def contrast_by_loop(similarities, map_runs, window):
  out = np.zeros(similarities.shape)
  for q, row in enumerate(np.asarray(similarities, np.float64)):
    for m in range(len(row)):
      near = [
        other
        for other in range(m - window // 2, m + window // 2 + 1)
        if stays(map_runs, m, other)
      ]
      values = row[near] if len(near) >= 3 else row
      deviation = max(values.std(), sequences.CONTRAST_FLOOR * row.std())
      out[q, m] = (row[m] - values.mean()) / deviation
  return out


# Label 0 comes back: the same number, another stretch.
QUERY_RUNS = np.array([0] * 5 + [1] + [0] * 7 + [2] * 4)
MAP_RUNS = np.array([3] * 12 + [4] * 2 + [3] * 9)


class SequenceTest(parameterized.TestCase):
  @parameterized.product(
    length=(1, 2, 5),
    direction=(1, -1, 0),
    stride=(1, 2),
    speeds=((1.0,), (0.5, 1.0, 1.7)),
    causal=(False, True),
    contrast=(0, 5),
  )
  def test_agrees_with_the_loop(self, direction, **options):
    rng = np.random.default_rng(options['length'])
    similarities = rng.normal(size=(17, 23)).astype(np.float32)
    sequence = sequences.Sequence(**options)
    arguments = similarities, QUERY_RUNS, MAP_RUNS, sequence, direction
    np.testing.assert_allclose(
      sequences.match(*arguments), match_by_loop(*arguments), atol=1e-5
    )

  def test_one_frame_is_the_similarity_itself(self):
    similarities = np.random.default_rng(0).normal(size=(4, 6))
    out = sequences.sequence_similarity(
      similarities, np.zeros(4), np.zeros(6), length=1
    )
    np.testing.assert_allclose(out, similarities, atol=1e-6)

  @parameterized.parameters(1, -1)
  def test_planted_drive_is_found_only_in_its_own_direction(self, direction):
    rng = np.random.default_rng(1)
    size = 200
    truth = np.arange(size)[::direction]
    similarities = rng.normal(size=(size, size))
    similarities[np.arange(size), truth] += 2.5
    runs = np.zeros(size, int)

    def recall(scores):
      return np.mean(scores.argmax(1) == truth)

    single = recall(similarities)
    right, wrong, unknown = (
      recall(sequences.sequence_similarity(similarities, runs, runs, 3, sign))
      for sign in (direction, -direction, 0)
    )
    self.assertGreater(right, single + 0.2)
    self.assertLess(wrong, single)
    self.assertGreater(unknown, single + 0.1)

  def test_a_faster_drive_is_found_by_its_speed(self):
    rng = np.random.default_rng(2)
    truth = 2 * np.arange(100)
    similarities = rng.normal(size=(100, 210))
    similarities[np.arange(100), truth] += 2.0
    runs = np.zeros(100, int), np.zeros(210, int)

    def recall(*speeds):
      sequence = sequences.Sequence(9, speeds)
      found = sequences.match(similarities, *runs, sequence).argmax(1)
      return np.mean(np.abs(found - truth) <= 1)

    self.assertGreater(recall(1.0, 2.0), 0.9)
    self.assertLess(recall(1.0), recall(1.0, 2.0) - 0.2)

  def test_a_causal_sequence_does_not_know_what_comes(self):
    rng = np.random.default_rng(3)
    similarities = rng.normal(size=(20, 30)).astype(np.float32)
    runs = np.zeros(20, int), np.zeros(30, int)
    sequence = sequences.Sequence(5, causal=True)
    full = sequences.match(similarities, *runs, sequence)
    for count in (1, 7, 20):
      cut = sequences.match(
        similarities[:count], runs[0][:count], runs[1], sequence
      )
      np.testing.assert_allclose(cut[-1], full[count - 1], atol=1e-6)

  @parameterized.parameters(
    ({'length': 0}, 'length=0'),
    ({'length': -1}, 'length=-1'),
    ({'direction': 2}, 'direction=2'),
    ({'stride': 0}, 'stride=0'),
    ({'speeds': ()}, r'speeds=\(\)'),
    ({'speeds': (1.0, -1.0)}, 'speeds='),
    ({'map_runs': np.zeros(5)}, 'shape'),
  )
  def test_bad_arguments_are_named(self, change, message):
    arguments = {'query_runs': np.zeros(4), 'map_runs': np.zeros(6)} | change
    with self.assertRaisesRegex(ValueError, message):
      sequences.sequence_similarity(np.zeros((4, 6)), **arguments)

  @parameterized.parameters(-1, 1, 2)
  def test_a_window_without_deviation_is_named(self, window):
    with self.assertRaisesRegex(ValueError, f'contrast={window}'):
      sequences.check_sequence(sequences.Sequence(contrast=window))

  def test_no_query_is_fine(self):
    out = sequences.match(
      np.zeros((0, 6)),
      np.zeros(0),
      np.zeros(6),
      sequences.Sequence(3, contrast=5),
    )
    self.assertEqual(out.shape, (0, 6))


class ContrastTest(absltest.TestCase):
  def test_what_all_neighbours_share_says_nothing(self):
    rng = np.random.default_rng(0)
    similarities = rng.normal(size=(5, 40))
    runs = np.zeros(40)
    slope = 30 * np.sin(np.arange(40) / 40)
    changed = similarities + 100 * np.arange(5)[:, None]
    np.testing.assert_allclose(
      sequences.contrast(changed, runs, 11),
      sequences.contrast(similarities, runs, 11),
      atol=1e-4,
    )
    # A slow change over the map, as of light, nearly so.
    raw = (similarities + slope).argmax(1)
    enhanced = sequences.contrast(similarities + slope, runs, 5).argmax(1)
    self.assertGreater(raw.min(), 20)
    self.assertLess(enhanced.min(), 20)

  def test_equal_similarities_are_zero_and_finite(self):
    out = sequences.contrast(np.full((3, 9), 0.7), np.zeros(9), 5)
    np.testing.assert_array_equal(out, np.zeros((3, 9)))

  def test_no_frame_says_more_than_its_window_allows(self):
    similarities = np.zeros((1, 99))
    similarities[0, 50] = 1e6
    out = sequences.contrast(similarities, np.zeros(99), 11)
    self.assertLessEqual(out.max(), np.sqrt(10) + 1e-5)

  def test_black_frames_do_not_pull_a_line_to_them(self):
    # Places are hard to tell apart; of the six frames of a query's sequence
    # three are black, and more like the map's black ones than anything else.
    rng = np.random.default_rng(4)
    size, black = 300, slice(100, 103)
    similarities = 0.1 * rng.normal(size=(size, size))
    similarities[np.arange(size), np.arange(size)] += 0.4
    asked = np.arange(205, 208)
    similarities[asked] = 0.02 * rng.normal(size=(3, size))
    similarities[asked, black] = 1.0
    runs = np.zeros(size, int)
    around = np.arange(204, 210)

    def found(sequence):
      return sequences.match(similarities, runs, runs, sequence)[around].argmax(
        1
      )

    plain = found(sequences.Sequence(7))
    enhanced = found(sequences.Sequence(7, contrast=21))
    self.assertLess(np.mean(plain == around), 0.7)
    np.testing.assert_array_equal(enhanced, around)


class AnyFrameTest(parameterized.TestCase):
  @parameterized.product(direction=(1, -1), causal=(False, True))
  def test_agrees_with_the_loop_over_pairs_of_frames(self, direction, causal):
    rng = np.random.default_rng(0)
    right = rng.random((17, 23)) < 0.02
    sequence = sequences.Sequence(5, causal=causal)
    expected = np.zeros_like(right)
    for q, m in np.ndindex(*right.shape):
      for d in sequence.offsets:
        for e in direction * sequence.offsets:
          if stays(QUERY_RUNS, q, q + d) and stays(MAP_RUNS, m, m + e):
            expected[q, m] |= right[q + d, m + e]
    found = sequences.any_along(
      right, QUERY_RUNS, MAP_RUNS, sequence, direction
    )
    np.testing.assert_array_equal(found, expected)
    self.assertGreater(found.sum(), 2 * right.sum())


class RunsTest(absltest.TestCase):
  def test_runs_end_at_drives_and_gaps_but_not_at_a_stop(self):
    x = np.array([0, 2.5, 5, 12.5, 15, 15.1, 15.2, 17.7, 20, 22.5])
    positions = np.stack([x, 0 * x, 0 * x], 1)
    drives = np.array(['a'] * 8 + ['b'] * 2)
    np.testing.assert_array_equal(
      sequences.consecutive_runs(drives, positions),
      [0, 0, 0, 1, 1, 1, 1, 1, 2, 2],
    )

  def test_a_drive_that_mostly_stands_does_not_fall_apart(self):
    x = np.array([0, 0, 0, 0.02, 0.02, 0.5, 0.5, 0.5])
    positions = np.stack([x, 0 * x, 0 * x], 1)
    runs = sequences.consecutive_runs(np.full(8, 'a'), positions)
    np.testing.assert_array_equal(runs, np.zeros(8))

  def test_an_unknown_position_follows_nothing(self):
    x = 2.5 * np.arange(8)
    x[3] = np.nan
    positions = np.stack([x, 0 * x, 0 * x], 1)
    runs = sequences.consecutive_runs(np.full(8, 'a'), positions)
    np.testing.assert_array_equal(runs, [0, 0, 0, 1, 2, 2, 2, 2])

  def test_photos_in_order_follow_their_numbers(self):
    unknown = np.full((9, 3), np.nan)
    drives = np.array(['database'] * 5 + ['queries'] * 4)
    numbers = np.array([1, 2, 3, 9, 10, 4, 8, 12, 11])
    runs = sequences.consecutive_runs(drives, unknown, numbers)
    np.testing.assert_array_equal(runs, [0, 0, 0, 1, 1, 2, 2, 2, 3])
    # Without numbers nobody knows.
    alone = sequences.consecutive_runs(drives, unknown)
    np.testing.assert_array_equal(alone, np.arange(9))

  def test_metres_count_before_numbers(self):
    x = np.array([0, 2, 4, 60, 62])
    positions = np.stack([x, 0 * x], 1)
    runs = sequences.consecutive_runs(np.zeros(5), positions, np.arange(5))
    np.testing.assert_array_equal(runs, [0, 0, 0, 1, 1])

  def test_positions_in_frame_numbers_are_positions(self):
    x = np.array([10, 20, 30, 70, 80])
    positions = np.stack([x, 0 * x], 1)
    runs = sequences.consecutive_runs(np.zeros(5), positions)
    np.testing.assert_array_equal(runs, [0, 0, 0, 1, 1])

  def test_no_rows_and_one_row_are_fine(self):
    empty = sequences.consecutive_runs(np.zeros(0), np.zeros((0, 3)))
    self.assertEmpty(empty)
    one = sequences.consecutive_runs(np.array(['a']), np.zeros((1, 3)))
    np.testing.assert_array_equal(one, [0])


if __name__ == '__main__':
  absltest.main()
