# SPDX-License-Identifier: Apache-2.0
"""Words and their numbers."""

from absl.testing import absltest
import numpy as np

from i2ploc.models.encoders import vocabulary

WORDS = ('a', 'lime', 'like', 'tree', '2')


class VocabularyTest(absltest.TestCase):
  def test_rows_start_end_and_are_filled_up_with_ends(self):
    tokenize = vocabulary.make_tokenize(WORDS, 7)
    found = tokenize(['A lime-like tree!', '', 'tree 2'])
    expected = [
      [0, 2, 3, 4, 5, 1, 1],
      [0, 1, 1, 1, 1, 1, 1],
      [0, 5, 6, 1, 1, 1, 1],
    ]
    np.testing.assert_array_equal(found, expected)
    self.assertEqual(found.dtype, np.int32)
    self.assertLess(found.max(), vocabulary.size(WORDS))
    self.assertEqual(tokenize([]).shape, (0, 7))

  def test_what_was_not_taught_is_named(self):
    tokenize = vocabulary.make_tokenize(WORDS, 7)
    with self.assertRaisesRegex(
      ValueError, r"not taught \['blue'\]; it kn.*lime"
    ):
      tokenize(['a tree', 'a blue tree'])

  def test_a_text_may_fill_the_row_and_no_more(self):
    tokenize = vocabulary.make_tokenize(WORDS, 5)
    np.testing.assert_array_equal(tokenize(['a a tree']), [[0, 2, 2, 5, 1]])
    with self.assertRaisesRegex(ValueError, '4 words, and this model reads 3'):
      tokenize(['a a a tree'])

  def test_words_that_would_never_be_found_are_refused(self):
    for words in (('a', 'a'), ('lime-like',), ('Tree',), ('',)):
      with self.assertRaisesRegex(ValueError, 'in a vocabulary'):
        vocabulary.make_tokenize(words, 7)


if __name__ == '__main__':
  absltest.main()
