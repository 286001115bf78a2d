# SPDX-License-Identifier: Apache-2.0
"""Tests of the metrics' file, events and progress line."""

import io
import json
import pathlib
import resource
import signal
import tempfile

from absl.testing import absltest

from i2ploc.errors import InputError
from i2ploc.training import metric_writer


class _Terminal(io.StringIO):
  def isatty(self):
    return True


class MetricWriterTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = (
      pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / 'run'
    )

  def open(self, step=0, **changes):
    arguments = dict(stream=io.StringIO(), plain_every=0.0) | changes
    writer = metric_writer.MetricWriter(self.workdir, **arguments)
    writer.resume(step)
    self.addCleanup(writer.close)
    return writer

  def lines(self):
    text = (self.workdir / 'metrics.jsonl').read_text()
    return [json.loads(line) for line in text.splitlines()]

  def test_a_line_is_on_disk_at_once(self):
    self.open().write(3, {'loss': 0.5})
    self.assertEqual(self.lines(), [{'step': 3, 'loss': 0.5}])

  def test_numbers_that_are_not_finite_are_null(self):
    self.open().write(3, {'a': float('nan'), 'b': float('inf'), 'c': 1.0})
    self.assertEqual(self.lines(), [{'step': 3, 'a': None, 'b': None, 'c': 1}])

  def test_resuming_drops_later_steps_and_a_line_that_was_cut_off(self):
    writer = self.open()
    for step in range(1, 6):
      writer.write(step, {'loss': step})
    writer.close()
    path = self.workdir / 'metrics.jsonl'
    path.write_text(path.read_text() + '{"step": 2, "lo')
    writer = self.open(3)
    writer.write(4, {'loss': 40})
    found = [(line['step'], line['loss']) for line in self.lines()]
    self.assertEqual(found, [(1, 1), (2, 2), (3, 3), (4, 40)])
    self.assertEqual(list(self.workdir.glob('*.tmp')), [])

  def test_a_run_that_starts_again_drops_everything(self):
    self.open().write(1, {'loss': 1})
    self.open(0)
    self.assertEqual(self.lines(), [])

  def test_events_follow_the_lines_also_through_a_restart(self):
    writer = self.open()
    writer.write(1, {'kept/recall': 0.25, 'undefined': float('nan')})
    writer.write(2, {'dropped/recall': 0.25})
    writer.close()
    # The file's name holds the second, in which this test ends.
    for path in (self.workdir / 'events').glob('events*'):
      path.rename(path.with_name('events.out.tfevents.1.earlier'))
    writer = self.open(1)
    writer.write(2, {'new/recall': 0.25})
    writer.close()
    (events,) = (self.workdir / 'events').glob('events*')
    content = events.read_bytes()
    self.assertEqual(content.count(b'kept/recall'), 1)
    self.assertEqual(content.count(b'new/recall'), 1)
    self.assertNotIn(b'dropped', content)
    self.assertNotIn(b'undefined', content)

  def test_a_disk_that_is_full_is_one_line_and_ends_at_once(self):
    writer = metric_writer.MetricWriter(self.workdir, stream=io.StringIO())
    writer.resume(0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    self.addCleanup(signal.signal, signal.SIGXFSZ, handler)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    try:
      with self.assertRaisesRegex(InputError, r'\ACannot write .*full'):
        for step in range(10_000):
          writer.write(step, {'loss': 1.0})
      with self.assertRaises(InputError):
        writer.close()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)

  def test_a_file_gets_a_line_per_progress(self):
    stream = io.StringIO()
    writer = self.open(stream=stream, headline=('loss', 'recall'))
    metrics = {'loss': 2.34567, 'recall': 0.5, 'other': 1.0}
    writer.progress(50, 1000, metrics, 0.25)
    writer.progress(51, 1000, metrics, 0.0)
    self.assertEqual(
      stream.getvalue().splitlines(),
      [
        'step 50/1000  loss 2.346  recall 0.5  0.25 steps/s  1:03:20 left',
        'step 51/1000  loss 2.346  recall 0.5',
      ],
    )

  def test_a_file_is_not_flooded(self):
    stream = io.StringIO()
    writer = self.open(stream=stream, plain_every=1000.0)
    for step in range(1, 11):
      writer.progress(step, 10, {'loss': 1.0}, 1.0)
    steps = [line.split()[1] for line in stream.getvalue().splitlines()]
    self.assertEqual(steps, ['1/10', '10/10'])

  def test_a_terminal_sees_one_line_that_changes(self):
    stream = _Terminal()
    writer = self.open(stream=stream)
    writer.progress(9, 10, {'loss': 1.23456}, 1.0)
    writer.progress(10, 10, {'loss': 1.0}, 1.0)
    writer.announce('saved')
    writer.close()
    first, second, blank, last = stream.getvalue().split('\r')[1:]
    self.assertEqual(first, 'step 9/10  loss 1.235  1 steps/s  0:01 left')
    self.assertEqual(
      second.rstrip(), 'step 10/10  loss 1  1 steps/s  0:00 left'
    )
    self.assertGreaterEqual(len(second), len(first))
    self.assertEqual((blank.strip(), last), ('', 'saved\n'))

  def test_rate_counts_steps_over_time(self):
    writer = self.open()
    self.assertEqual(writer.tick(10), 0.0)
    self.assertGreater(writer.tick(11), 0.0)


if __name__ == '__main__':
  absltest.main()
