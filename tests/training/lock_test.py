# SPDX-License-Identifier: Apache-2.0
"""One training at a time, whatever happens to the one before."""

import contextlib
import errno
import fcntl
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from i2ploc.errors import InputError
from i2ploc.training import lock

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Holds a lock until its input ends.
OWNER = """
import sys
from i2ploc.training import lock
with lock.hold(sys.argv[1]):
  print('held', flush=True)
  sys.stdin.read()
"""
# Forks a child that outlives it.
PARENT = """
import os, sys, time
from i2ploc.training import lock
with lock.hold(sys.argv[1]):
  if not os.fork():
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
  sys.stdin.read()
"""


class LockTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(folder) / 'runs' / 'a'
    self.path = self.workdir / lock.FILE

  def start(self, code):
    process = subprocess.Popen(
      [sys.executable, '-c', code, str(self.workdir)],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.addCleanup(process.communicate)
    self.addCleanup(process.kill)
    return process, process.stdout.readline().strip()

  def hold(self):
    """Takes and gives back; what was said."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
      with lock.hold(self.workdir):
        self.assertEqual(json.loads(self.path.read_text())['pid'], os.getpid())
    return said.getvalue()

  def record(self, **changes):
    """What an owner that was killed leaves behind."""
    self.workdir.mkdir(parents=True)
    owner = {'pid': 12, 'host': 'node7', 'boot': 'another'}
    self.path.write_text(json.dumps(owner | changes))

  def test_the_second_stops_at_once_and_names_the_first(self):
    process, said = self.start(OWNER)
    self.assertEqual(said, 'held')
    start = time.monotonic()
    with self.assertRaises(InputError) as caught, lock.hold(self.workdir):
      self.fail('held twice')
    self.assertLess(time.monotonic() - start, 2)
    self.assertEqual(
      str(caught.exception),
      f'{self.workdir} is being trained by process {process.pid} on'
      f' {socket.gethostname()}: wait for it, end it, or choose another'
      ' --workdir.',
    )
    process.communicate()
    self.assertEqual(process.returncode, 0)
    self.assertEqual(self.hold(), '')

  def test_a_process_that_was_killed_holds_nothing(self):
    process, _ = self.start(OWNER)
    process.send_signal(signal.SIGKILL)
    process.wait()
    self.assertEqual(json.loads(self.path.read_text())['pid'], process.pid)
    self.assertEqual(self.hold(), '')

  def test_a_child_that_outlives_a_killed_process_holds_nothing(self):
    process, child = self.start(PARENT)
    self.addCleanup(os.kill, int(child), signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.kill(int(child), 0)  # lives
    self.hold()

  def test_nothing_is_left_in_a_workdir_that_stays_empty(self):
    self.hold()
    self.assertFalse(self.workdir.parent.exists())
    with lock.hold(self.workdir):
      (self.workdir / 'config.json').write_text('{}')
    self.assertEqual(os.listdir(self.workdir), ['config.json'])

  def test_a_file_that_its_owner_removes_meanwhile_is_made_anew(self):
    flock, calls = fcntl.flock, []

    def late(file, how):
      if not calls:
        self.path.unlink()
      calls.append(how)
      return flock(file, how)

    with mock.patch.object(fcntl, 'flock', late), lock.hold(self.workdir):
      with self.assertRaises(InputError), lock.hold(self.workdir):
        pass

  def test_the_lock_is_given_back_by_an_error(self):
    with self.assertRaises(ZeroDivisionError), lock.hold(self.workdir):
      raise ZeroDivisionError
    self.hold()

  def test_one_process_does_not_hold_it_twice(self):
    with lock.hold(self.workdir):
      with self.assertRaisesRegex(InputError, f'process {os.getpid()} on'):
        with lock.hold(self.workdir):
          pass
      self.assertTrue(self.path.exists())

  def test_another_host_that_gives_signs_of_life_is_believed(self):
    """As on a mount that keeps its locks to itself."""
    self.record()
    self.enterContext(mock.patch.object(lock, 'PATIENCE', 5.0))

    def sleep(seconds):
      del seconds
      os.utime(self.path, ns=(1, 1))

    self.enterContext(mock.patch.object(time, 'sleep', sleep))
    with contextlib.redirect_stderr(io.StringIO()) as said:
      with self.assertRaisesRegex(InputError, 'process 12 on node7'):
        with lock.hold(self.workdir):
          pass
    self.assertIn('waiting 5 s for a sign of life', said.getvalue())
    self.assertEqual(json.loads(self.path.read_text())['host'], 'node7')

  def test_another_host_without_a_sign_of_life_is_gone(self):
    self.record()
    self.enterContext(mock.patch.object(lock, 'PATIENCE', 0.2))
    self.assertIn('process 12 on node7', self.hold())

  def test_the_owner_gives_signs_of_life(self):
    self.enterContext(mock.patch.object(lock, 'SIGN_EVERY', 0.01))
    with lock.hold(self.workdir):
      os.utime(self.path, ns=(1, 1))
      end = time.monotonic() + 10
      while self.path.stat().st_mtime_ns == 1 and time.monotonic() < end:
        time.sleep(0.01)
      self.assertGreater(self.path.stat().st_mtime_ns, 1)

  @parameterized.parameters(errno.ENOLCK, errno.ENOSYS)
  def test_without_locks_a_living_process_of_this_host_counts(self, number):
    error = OSError(number, os.strerror(number))
    self.enterContext(mock.patch.object(fcntl, 'flock', side_effect=error))
    here = lock._here()
    self.record(**here | {'pid': os.getppid()})
    with self.assertRaisesRegex(InputError, f'process {os.getppid()} on'):
      with lock.hold(self.workdir):
        pass
    process = subprocess.Popen(['true'])
    process.wait()
    self.path.write_text(json.dumps(here | {'pid': process.pid}))
    self.hold()

  def test_a_workdir_that_is_a_file_is_one_line(self):
    self.workdir.parent.mkdir()
    self.workdir.write_text('')
    with self.assertRaisesRegex(InputError, r'\ACannot write .*is a file'):
      with lock.hold(self.workdir):
        pass


if __name__ == '__main__':
  absltest.main()
