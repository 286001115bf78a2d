# SPDX-License-Identifier: Apache-2.0
"""Short sequences tell places apart that single frames confuse."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.retrieval import sequences


def sequence_by_loop(
  similarities, query_runs, map_runs, length, direction, stride
):
  out = np.zeros_like(similarities)
  for q in range(len(query_runs)):
    for m in range(len(map_runs)):
      terms = []
      for d in range(-(length // 2), length // 2 + 1):
        a, b = q + stride * d, m + direction * stride * d
        if not (0 <= a < len(query_runs) and 0 <= b < len(map_runs)):
          continue
        queries = query_runs[min(a, q) : max(a, q) + 1]
        places = map_runs[min(b, m) : max(b, m) + 1]
        if len(set(queries)) == 1 and len(set(places)) == 1:
          terms.append(similarities[a, b])
      out[q, m] = np.mean(terms)
  return out


class SequenceTest(parameterized.TestCase):
  @parameterized.product(length=(1, 3, 5, 9), direction=(1, -1), stride=(1, 2))
  def test_agrees_with_the_loop_over_diagonals(self, length, direction, stride):
    rng = np.random.default_rng(length)
    similarities = rng.normal(size=(17, 23)).astype(np.float32)
    # Label 0 comes back: the same number, another stretch.
    query_runs = np.array([0] * 5 + [1] + [0] * 7 + [2] * 4)
    map_runs = np.array([3] * 12 + [4] * 2 + [3] * 9)
    arguments = similarities, query_runs, map_runs, length, direction, stride
    np.testing.assert_allclose(
      sequences.sequence_similarity(*arguments),
      sequence_by_loop(*arguments),
      atol=1e-6,
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
    right, wrong = (
      recall(sequences.sequence_similarity(similarities, runs, runs, 3, sign))
      for sign in (direction, -direction)
    )
    self.assertGreater(right, single + 0.2)
    self.assertLess(wrong, single)

  @parameterized.parameters(
    ({'length': 2}, 'length=2'),
    ({'length': -1}, 'length=-1'),
    ({'direction': 0}, 'direction=0'),
    ({'stride': 0}, 'stride=0'),
    ({'map_runs': np.zeros(5)}, 'shape'),
  )
  def test_bad_arguments_are_named(self, change, message):
    arguments = {'query_runs': np.zeros(4), 'map_runs': np.zeros(6)} | change
    with self.assertRaisesRegex(ValueError, message):
      sequences.sequence_similarity(np.zeros((4, 6)), **arguments)


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

  def test_no_rows_and_one_row_are_fine(self):
    empty = sequences.consecutive_runs(np.zeros(0), np.zeros((0, 3)))
    self.assertEmpty(empty)
    one = sequences.consecutive_runs(np.array(['a']), np.zeros((1, 3)))
    np.testing.assert_array_equal(one, [0])


if __name__ == '__main__':
  absltest.main()
