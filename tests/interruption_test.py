# SPDX-License-Identifier: Apache-2.0
"""The benchmark of interruptions finds verbs that lose or double something."""

import pathlib
import random
import signal
import subprocess
import sys
import tempfile
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized

from benchmarks import disturbances
from benchmarks import interruption
from benchmarks import small_runs

# Verbs that work for two seconds. One goes on where it was, one dies of a full
# disk with a traceback.
_WORK = """
import os, sys, time
def write(text):
  with open(path + '.tmp.', 'w', buffering=1) as file:
    file.write(text)
  os.replace(path + '.tmp.', path)
path = sys.argv[1] + '/results.txt'
count = int(open(path).read()) if os.path.exists(path) else 0
"""
_STEPS = """
while count < 20:
  count += 1
  write(str(count))
  time.sleep(0.1)
"""
_LINE = "sys.exit('train: Cannot write: its disk or quota is full.')"
GOES_ON = f"""{_WORK}
try:
  exec({_STEPS!r})
except OSError:
  {_LINE}
"""
TRACEBACK = _WORK + _STEPS
SECONDS = 2.0


class InterruptionTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    # A busy machine takes a while to start a process.
    for name, value in ('WINDOW', (0.6, 0.8)), ('PATIENCE', 100):
      patch = mock.patch.object(interruption, name, value)
      patch.start()
      self.addCleanup(patch.stop)

  def _disturb(self, script, *, disk):
    """Counts of a script that is disturbed twice."""

    def command(verb, workdir, data):
      del verb, data
      return [sys.executable, '-c', script, str(workdir)]

    calm = self.folder / 'calm'
    small_runs.prepare('train', self.folder, calm)
    interruption.run(command('train', calm, calm))
    with (
      mock.patch.object(interruption, 'command', command),
      flagsaver.flagsaver(disk=disk, times=2),
    ):
      return interruption.disturb(
        'train', calm, self.folder, calm, SECONDS, random.Random(0)
      )

  @parameterized.parameters(False, True)
  def test_a_verb_that_goes_on_has_no_fault(self, disk):
    count = self._disturb(GOES_ON, disk=disk)
    self.assertEqual((count['met'], count['faults']), (2, 0))
    self.assertEqual(count['refused'], 2 if disk else 0)

  def test_a_traceback_of_a_full_disk_is_a_fault(self):
    self.assertGreater(self._disturb(TRACEBACK, disk=True)['faults'], 0)

  def test_without_a_disk_of_its_own_the_kernel_refuses_files(self):
    endless = GOES_ON.replace('count < 20', 'True')
    with mock.patch.object(
      disturbances.subprocess, 'run', side_effect=FileNotFoundError
    ):
      with disturbances.small_disk(1) as disk:
        process = interruption.start([sys.executable, '-c', endless, str(disk)])
        self.assertTrue(disturbances.at(1.2, process, disk, full=True))
        self.assertIn('quota is full', process.communicate()[1])

  def test_a_process_that_has_ended_is_not_disturbed(self):
    process = subprocess.Popen([sys.executable, '-c', ''])
    self.assertFalse(disturbances.at(600, process, self.folder, full=False))
    self.assertEqual(process.returncode, 0)
    self.assertEqual(disturbances.SIGNAL, signal.SIGKILL)

  def test_contents_are_those_that_a_run_repeats(self):
    one, other = self.folder / 'one', self.folder / 'other'
    for workdir, speed in (one, 1.5), (other, 2.5):
      (workdir / 'events').mkdir(parents=True)
      (workdir / 'events/1').write_text(str(speed))
      (workdir / '.1.tmp.index.npz').write_text('half')
      line = f'{{"loss": 1.0, "steps_per_second": {speed}}}'
      (workdir / 'metrics.jsonl').write_text(line)
      (workdir / 'answers.jsonl').write_text(f'"{workdir}/queries/1.png"')
      info = workdir / 'checkpoints/best/2/info'
      info.mkdir(parents=True)
      (info / 'metadata').write_text('digests')
      (info.parent / 'state').write_text(str(speed))  # named by chance
    self.assertEqual(small_runs.contents(one), small_runs.contents(other))
    self.assertLen(small_runs.contents(one), 3)
    self.assertEqual(small_runs.drafts(one), ['.1.tmp.index.npz'])
    before = small_runs.contents(other)
    (other / 'metrics.jsonl').write_text('{"loss": 1.1}')
    (other / 'checkpoints/best/2/info/metadata').write_text('others')
    changed = small_runs.contents(other).items() - before.items()
    self.assertLen(changed, 2)


if __name__ == '__main__':
  absltest.main()
