# SPDX-License-Identifier: Apache-2.0
"""Lists of right answers, and what a pickle may not do."""

import os

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.photos import answer_lists
from tests import shared
from tests.photos import folder

NAMES = ['db/0.jpg', 'db/1.jpg', 'db/2.jpg', 'q/0.jpg', 'q/é.jpg']
PLACES, QUERIES = np.arange(3), np.array([3, 4])


def _objects(*rows):
  array = np.empty((len(rows), 2), object)
  for i, row in enumerate(rows):
    array[i, 0], array[i, 1] = row
  return array


class _Evil:
  def __reduce__(self):
    return os.mkdir, ('pickle_was_run',)


class ListTest(folder.FolderTest):
  def read(self, name, queries=QUERIES, places=PLACES):
    found = answer_lists.read_answers(self.root / name, NAMES, queries, places)
    return [
      found.rows[found.offsets[row] : found.offsets[row + 1]].tolist()
      for row in range(len(NAMES))
    ], found.known.tolist()

  def save_npy(self, array, **options):
    np.save(self.root / 'g.npy', array, **options)

  @parameterized.parameters(
    (_objects((0, [0, 2]), (1, [1])),),
    (_objects((np.int64(0), np.array([2, 0])), (1, (1,))),),
    (np.array([[0, 0], [0, 2], [1, 1]], np.int32),),
    (np.asfortranarray(np.array([[0, 0], [1, 1], [0, 2]], '>i8')),),
  )
  def test_numbers_count_either_side_from_0(self, array):
    self.save_npy(array)
    right, known = self.read('g.npy')
    self.assertEqual(right, [[], [], [], [0, 2], [1]])
    self.assertEqual(known, [True] * 5)

  def test_a_query_without_answers_and_one_that_nobody_lists(self):
    self.save_npy(_objects((1, [])))
    right, known = self.read('g.npy')
    self.assertEqual(right, [[]] * 5)
    self.assertEqual(known, [True, True, True, False, True])

  def test_names_or_numbers_in_a_table(self):
    self.write('g.csv', 'reference,query', 'db/2.jpg,q/0.jpg', ',q/e\u0301.jpg',
               './db/0.jpg,q/0.jpg')  # fmt: skip
    self.assertTrue(answer_lists.is_list(self.root / 'g.csv'))
    right, known = self.read('g.csv')
    self.assertEqual(right, [[], [], [], [0, 2], []])
    self.assertEqual(known, [True] * 5)
    self.write('g.csv', 'query,reference', '1,2')
    self.assertEqual(self.read('g.csv')[0], [[], [], [], [], [2]])
    self.write('p.csv', 'name,x,y')
    self.assertFalse(answer_lists.is_list(self.root / 'p.csv'))

  def test_photos_of_one_folder_ask_and_answer(self):
    self.save_npy(np.array([[0, 4], [4, 0]]))
    rows = np.arange(5)
    right, known = self.read('g.npy', rows, rows)
    self.assertEqual(right, [[4], [], [], [], [0]])
    self.assertEqual(known, [True] * 5)

  def test_what_is_not_there_is_counted(self):
    self.write('g.csv', 'query,reference', 'q/0.jpg,q/0.jpg', '7,0', 'x,0',
               '0,0')  # fmt: skip
    self.refuse('3 of 4 pairs are of no photo: .*below 2 of queries and below'
                ' 3 of ref', self.read, 'g.csv')  # fmt: skip
    self.refuse('no such list', self.read, 'h.npy', error=FileNotFoundError)

  def test_a_pickle_that_wants_more_is_not_run(self):
    self.save_npy(_objects((0, _Evil())))
    folder_before = sorted(os.listdir('.'))
    self.refuse('holds posix.mkdir; .* nothing else is loaded', self.read,
                'g.npy')  # fmt: skip
    self.assertEqual(sorted(os.listdir('.')), folder_before)
    # The file is one that numpy itself would run.
    with self.assertRaises(ValueError):
      np.load(self.root / 'g.npy')

  @parameterized.parameters(
    (np.zeros((2, 3), int), r'shape \(2, 3\)'),
    (np.zeros((2, 2)), 'float64; expected whole'),
    (_objects((0, ['a'])), "'a' is no number"),
    (_objects((0, [-1])), '-1 is no number'),
    (_objects((0, [1.5])), '1.5 is no number'),
    (_objects(([0, 1], [1])), 'no npy file of right answers'),
  )
  def test_other_arrays(self, array, message):
    self.save_npy(array)
    self.refuse(message, self.read, 'g.npy')

  @parameterized.parameters(b'', b'hello', b'\x93NUMPY\x01\x00')
  def test_other_files(self, data):
    (self.root / 'g.npy').write_bytes(data)
    self.refuse('no npy file of right answers', self.read, 'g.npy')

  def test_a_file_cut_off(self):
    self.save_npy(_objects((0, [0, 2]), (1, [1])))
    path = self.root / 'g.npy'
    path.write_bytes(path.read_bytes()[:-20])
    self.refuse('no npy file of right answers', self.read, 'g.npy')


class RealTest(absltest.TestCase):
  def test_the_corridor(self):
    path = shared.require('data/places/corridor') / 'ground_truth_new.npy'
    names = [f'ref/{i}.jpg' for i in range(111)]
    names += [f'query/{i}.jpg' for i in range(111)]
    places, queries = np.arange(111), np.arange(111, 222)
    found = answer_lists.read_answers(path, names, queries, places)
    counts = np.diff(found.offsets)
    self.assertTrue(found.known.all())
    self.assertEqual(counts[:111].max(), 0)
    self.assertBetween(counts[111:].min(), 1, 5)
    # As numpy reads it, who trusts the file of this one test.
    for query, right in np.load(path, allow_pickle=True):
      row = queries[query]
      mine = found.rows[found.offsets[row] : found.offsets[row + 1]]
      self.assertEqual(mine.tolist(), right)


if __name__ == '__main__':
  absltest.main()
