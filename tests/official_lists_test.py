# SPDX-License-Identifier: Apache-2.0
"""The official lists of three benchmarks, counted by our own questions."""

import copy
import pathlib

from absl.testing import absltest
import numpy as np

from benchmarks import official_lists
from i2ploc import files

GOLDEN = pathlib.Path(__file__).parent / 'golden/vpr_benchmarks'


class ListsTest(absltest.TestCase):
  def test_counts_positives_and_chance_are_the_golden_ones(self):
    found = list(official_lists.report(GOLDEN))
    self.assertEqual(
      [(name, verdict) for name, verdict, _ in found],
      [(n, 'equal') for n in ('pitts30k_test', 'tokyo247', 'nordland')],
    )
    text = '\n'.join(
      line for one in found for line in official_lists.lines(*one)
    )
    self.assertIn('968448 right pairs within 25 m', text)
    self.assertIn('37260 right pairs within 25 m', text)
    self.assertIn('the stored threshold 10 means 7 frames', text)
    self.assertEqual(text.count('the golden: equal'), 3)

  def test_a_difference_is_named(self):
    golden = files.load_json(GOLDEN / 'chance.json', '')['tokyo247']
    lists = files.load_arrays(GOLDEN / 'tokyo247.npz', '')
    numbers = official_lists.city(lists)
    self.assertEmpty(official_lists.compare(numbers, golden))
    other = copy.deepcopy(numbers)
    other['at_5_m']['answerable'] += 1
    (line,) = official_lists.compare(other, golden)
    self.assertStartsWith(line, 'at_5_m: ')
    self.assertEqual(official_lists.differing_queries(lists), 0)

  def test_positions_in_single_precision_would_be_others(self):
    # As the golden's README says: one pair of places is lost.
    lists = dict(files.load_arrays(GOLDEN / 'tokyo247.npz', ''))
    for side in ('query', 'database'):
      exact = lists[f'{side}_place_utm']
      lists[f'{side}_place_utm'] = exact.astype(np.float32).astype(float)
    self.assertGreater(official_lists.differing_queries(lists), 0)


if __name__ == '__main__':
  absltest.main()
