# SPDX-License-Identifier: Apache-2.0
"""Files are complete or absent, and say what to do if they cannot be used."""

import json
import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc import files


class FilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    self.path = self.folder / 'new' / 'a.json'

  def test_folders_are_made_and_nothing_else_is_left(self):
    files.save_text(self.path, 'é\n')
    self.assertEqual(self.path.read_text('utf-8'), 'é\n')
    self.assertEqual(os.listdir(self.path.parent), ['a.json'])

  def test_what_dies_while_writing_leaves_the_old_file(self):
    files.save_text(self.path, 'old')
    with mock.patch.object(os, 'fsync', side_effect=KeyboardInterrupt):
      with self.assertRaises(KeyboardInterrupt):
        files.save_text(self.path, 'new')
    with self.assertRaises(ZeroDivisionError):
      with files.replacing(self.path) as draft:
        draft.write_text('half')
        raise ZeroDivisionError
    self.assertEqual(self.path.read_text(), 'old')
    self.assertEqual(os.listdir(self.path.parent), ['a.json'])

  def test_a_draft_keeps_the_suffix(self):
    # Libraries choose the format by it.
    with files.replacing(self.folder / 'a.png') as draft:
      self.assertEqual(draft.suffix, '.png')
      self.assertTrue(draft.name.startswith('.'))
      draft.write_text('')

  def test_a_file_that_was_written_is_another_version(self):
    path = self.folder / 'a'
    files.save_text(path, 'one')
    before = files.version(path)
    self.assertEqual(files.version(path), before)
    files.save_text(path, 'two')
    self.assertNotEqual(files.version(path), before)

  def test_json_has_lists_and_nulls(self):
    files.save_json(
      self.path,
      {
        'array': np.array([[1, 2]]),
        'number': np.float32(0.5),
        'nothing': [np.nan, float('inf'), np.array(np.inf)],
        3: (True, 'x', None),
      },
    )
    self.assertEqual(
      json.loads(self.path.read_text()),
      {
        'array': [[1, 2]],
        'number': 0.5,
        'nothing': [None, None, None],
        '3': [True, 'x', None],
      },
    )

  def test_arrays_return_with_their_format(self):
    path = self.folder / 'a.npz'
    files.save_arrays(path, {'x': np.arange(3)}, 'thing.1')
    (name,) = files.load_arrays(path, 'make it', 'thing.1')
    self.assertEqual(name, 'x')
    self.assertEqual(set(files.load_arrays(path, 'make it')), {'x', 'format'})
    with self.assertRaisesRegex(ValueError, "'thing.1', expected 'thing.2': m"):
      files.load_arrays(path, 'make it', 'thing.2')

  @parameterized.parameters(
    (files.load_json, b'{"a": ', 'truncated or not JSON .*: make it'),
    (files.load_json, b'\xff\xfe', 'truncated or not JSON .*: make it'),
    (files.load_arrays, b'PK\x03\x04', 'truncated or not an npz .*: make it'),
    (files.load_arrays, b'', 'truncated or not an npz .*: make it'),
  )
  def test_what_cannot_be_read_says_what_to_do(self, load, content, message):
    path = self.folder / 'a'
    with self.assertRaisesRegex(FileNotFoundError, 'There is no .*a: make it'):
      load(path, 'make it')
    path.write_bytes(content)
    with self.assertRaisesRegex(ValueError, message):
      load(path, 'make it')

  def test_an_array_alone_and_pickles_are_no_npz(self):
    path = self.folder / 'a.npz'
    with open(path, 'wb') as file:
      np.save(file, np.eye(2))
    with self.assertRaisesRegex(ValueError, 'not an npz'):
      files.load_arrays(path, 'make it')
    with open(path, 'wb') as file:
      np.savez(file, x=np.array([{}], object))
    with self.assertRaisesRegex(ValueError, 'not an npz'):
      files.load_arrays(path, 'make it')


if __name__ == '__main__':
  absltest.main()
