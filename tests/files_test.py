# SPDX-License-Identifier: Apache-2.0
"""Files are complete or absent, and say what to do if they cannot be used."""

import errno
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc import files
from i2ploc.errors import InputError

NOBODY = 65_534
# Checks a folder as somebody else, and says what it was told.
CHECK = """
import os, sys
from i2ploc import files
os.setuid(int(sys.argv[1]))
try:
  files.check_folder(sys.argv[2], ('events',))
except files.InputError as error:
  print(error)
"""


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


class RefusedTest(parameterized.TestCase):
  """What a disk refuses is one line, and leaves no file."""

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    self.path = self.folder / 'a.npz'

  def refuse(self, message, function, *args):
    with self.assertRaises(InputError) as caught:
      function(*args)
    self.assertRegex(str(caught.exception), message)
    self.assertNotIn('\n', str(caught.exception))

  def limit(self, size):
    """No file of this process may be longer, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    self.addCleanup(signal.signal, signal.SIGXFSZ, handler)
    self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

  def test_a_disk_that_is_full_leaves_the_old_file(self):
    files.save_arrays(self.path, {'x': np.arange(3)})
    self.limit(10_000)
    self.refuse(
      r'\ACannot write .*a.npz: its disk or quota is full \(.* MB free\)',
      files.save_arrays,
      self.path,
      {'x': np.zeros(100_000)},
    )
    self.assertEqual(os.listdir(self.folder), ['a.npz'])
    self.assertLen(files.load_arrays(self.path, 'make it')['x'], 3)

  def test_a_disk_that_is_full_is_found_before_the_work(self):
    files.check_folder(self.folder)
    self.limit(10_000)
    self.refuse('full', files.check_folder, self.folder / 'run')
    self.assertEmpty(os.listdir(self.folder))

  def test_what_numpy_could_not_write_in_full_counts(self):
    error = OSError('800000 requested and 4096 written')
    with mock.patch.object(np, 'savez', side_effect=error):
      self.refuse('full', files.save_arrays, self.path, {})

  def test_other_errors_of_the_body_pass(self):
    for error in (TimeoutError('slow'), files.MissingFileError('gone')):
      with self.assertRaises(type(error)) as caught:
        with files.replacing(self.path):
          raise error
      self.assertIs(caught.exception, error)

  def test_a_read_only_disk_is_named(self):
    error = OSError(errno.EROFS, 'Read-only file system', str(self.path))
    with mock.patch.object(tempfile, 'TemporaryFile', side_effect=error):
      self.refuse('disk is read-only', files.check_folder, self.folder)

  @parameterized.parameters('file', 'file/run')
  def test_a_file_in_the_place_of_a_folder_is_named(self, name):
    (self.folder / 'file').write_text('')
    at = self.folder / name
    expected = f'{self.folder / "file"} is a file, and a folder is expected'
    self.refuse(expected, files.check_folder, at)
    self.refuse(expected, files.save_text, at / 'a.json', '')
    (self.folder / 'events').write_text('')
    self.refuse(
      'events is a file', files.check_folder, self.folder, ('events',)
    )

  def test_a_folder_that_does_not_exist_is_not_made(self):
    files.check_folder(self.folder / 'runs/a', ('events',))
    self.assertEmpty(os.listdir(self.folder))

  @absltest.skipIf(os.geteuid(), 'needs another user')
  def test_a_folder_of_somebody_else_is_refused_with_its_owner(self):
    run = self.folder / 'run'
    (run / 'events').mkdir(parents=True)
    self.folder.chmod(0o755)

    def check(path):
      command = [sys.executable, '-c', CHECK, str(NOBODY), str(path)]
      done = subprocess.run(command, capture_output=True, text=True, check=True)
      return done.stdout

    expected = (
      f"Cannot write {run}: {run} belongs to user 'root', and user 'nobody' may"
      ' not write there. Please have its rights changed, or choose another'
      ' --workdir.\n'
    )
    self.assertEqual(check(run), expected)
    # Also one inside of it, as after a run with sudo.
    shutil.chown(run, NOBODY)
    self.assertIn(f"{run}/events belongs to user 'root'", check(run))
    shutil.chown(run / 'events', NOBODY)
    self.assertEqual(check(run), '')

  def test_space_is_asked_before_the_work(self):
    free = shutil.disk_usage(self.folder).free
    files.check_space(self.folder / 'new', free / 2)
    self.refuse(
      r'/new needs [\d,.]+ MB, and [\d,.]+ MB are free',
      files.check_space,
      self.folder / 'new',
      2.0 * free,
    )


if __name__ == '__main__':
  absltest.main()
