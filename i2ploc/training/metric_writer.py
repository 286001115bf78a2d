# SPDX-License-Identifier: Apache-2.0
"""Where the numbers of a run go: a file, TensorBoard and one line to watch.

`metrics.jsonl` holds one object per line, `{"step": 10, "loss": 2.3, ...}`;
a number that is not finite is null. Lines are written before the checkpoint of
the same step and survive SIGKILL; a run that continues drops those beyond the
restored step, so that no step is there twice. The TensorBoard events hold the
same numbers and are written anew from the lines when a run continues.
"""

import collections
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
import math
import pathlib
import socket
import sys
import time
from typing import NamedTuple
from typing import TextIO

import tensorboardX
from tensorboardX import summary
from tensorboardX.proto import event_pb2

from i2ploc import files

# Seconds; each time events are synchronised with the disk.
_FLUSH_EVERY = 5.0


class _Outputs(NamedTuple):
  """What is open: the lines and the TensorBoard events."""

  lines: TextIO
  events: '_Events'


class MetricWriter:
  """Writes the metrics of one run into its workdir.

  Attributes:
    path: the JSON lines file.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    *,
    headline: Sequence[str] = ('loss',),
    stream: TextIO | None = None,
    plain_every: float = 30.0,
  ):
    """Opens a workdir.

    Args:
      workdir: created if it is missing; event files go to its `events/`.
      headline: metrics that the progress line shows.
      stream: where the progress line goes, stderr if None. A terminal sees
        one line that changes, a file a new line every `plain_every` seconds.
      plain_every: seconds.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    self.path = workdir / 'metrics.jsonl'
    self._events_dir = workdir / 'events'
    self._outputs: _Outputs | None = None
    self._headline = tuple(headline)
    self._stream = stream or sys.stderr
    self._interval = 0.2 if self._stream.isatty() else plain_every
    self._shown = -math.inf
    self._line_width = 0
    # Long enough to be steady, short enough to notice a slower machine.
    self._ticks = collections.deque(maxlen=50)

  def resume(self, step: int) -> None:
    """Drops what was written beyond a step; called before the first write.

    Args:
      step: the restored step, 0 for a run that starts.
    """
    lines = self.path.read_text().splitlines() if self.path.exists() else []
    kept = [line for line in lines if _step_of(line) <= step]
    files.save_text(self.path, ''.join(line + '\n' for line in kept))
    with files.writing(self._events_dir):
      # A killed process takes queued events along: replay them from the lines.
      for path in self._events_dir.glob('events*'):
        path.unlink()
      events = _Events(self._events_dir)
      self._outputs = _Outputs(open(self.path, 'a'), events)
      for line in kept:
        record = json.loads(line)
        events.add(record.pop('step'), record)

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes one line of metrics.

    Args:
      step: the number of finished steps.
      metrics: numbers by name.

    Raises:
      InputError: the disk is full.
    """
    if self._outputs is None:
      raise RuntimeError('resume() opens the files before the first write().')
    values = {name: float(value) for name, value in metrics.items()}
    record = {k: v if math.isfinite(v) else None for k, v in values.items()}
    with files.writing(self.path):
      self._outputs.lines.write(json.dumps({'step': step} | record) + '\n')
      self._outputs.lines.flush()
      self._outputs.events.add(step, record)

  def tick(self, step: int) -> float:
    """Notes that a step is done.

    Args:
      step: the number of finished steps.

    Returns:
      Steps per second over the last 50 steps, evaluations and saves included;
      0 at the first, which compiles.
    """
    self._ticks.append((time.monotonic(), step))
    (start, first), (end, last) = self._ticks[0], self._ticks[-1]
    return (last - first) / (end - start) if last > first else 0.0

  def progress(
    self, step: int, num_steps: int, metrics: Mapping[str, float], rate: float
  ) -> None:
    """Shows the progress line if it is time to.

    Args:
      step: the number of finished steps.
      num_steps: the length of the run.
      metrics: numbers by name, those of the headline among them.
      rate: steps per second.
    """
    now = time.monotonic()
    if now - self._shown < self._interval and step < num_steps:
      return
    self._shown = now
    parts = [f'step {step}/{num_steps}']
    parts += [f'{k} {metrics[k]:.4g}' for k in self._headline if k in metrics]
    if rate > 0:
      left = _clock((num_steps - step) / rate)
      parts += [f'{rate:.3g} steps/s', f'{left} left']
    line = '  '.join(parts)
    if self._stream.isatty():
      self._stream.write('\r' + line.ljust(self._line_width))
      self._line_width = len(line)
    else:
      self._stream.write(line + '\n')
    self._stream.flush()

  def announce(self, text: str) -> None:
    """Writes a line that stays.

    Args:
      text: one line.
    """
    if self._line_width:
      self._stream.write('\r' + ' ' * self._line_width + '\r')
      self._line_width = 0
    self._stream.write(text + '\n')
    self._stream.flush()

  def close(self) -> None:
    """Ends the progress line and closes the files."""
    if self._line_width:
      self._stream.write('\n')
      self._line_width = 0
    if self._outputs is not None:
      with files.writing(self.path), contextlib.ExitStack() as stack:
        for output in self._outputs:
          stack.callback(output.close)


class _Events:
  """A file of TensorBoard events.

  tensorboardX has a writer with a thread, which dies with a traceback of its
  own on a full disk, and then lets the training wait for it forever.
  """

  def __init__(self, folder: pathlib.Path):
    folder.mkdir(parents=True, exist_ok=True)
    name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}'
    self._records = tensorboardX.RecordWriter(str(folder / name))
    self._flushed = -math.inf
    self._write(file_version='brain.Event:2')

  def add(self, step: int, record: Mapping[str, float | None]) -> None:
    """Adds numbers by name; None for what is not finite."""
    for name, value in record.items():
      if value is not None:
        self._write(step=step, summary=summary.scalar(name, value))
    if time.monotonic() - self._flushed > _FLUSH_EVERY:
      self._records.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    """Writes what is not on disk yet."""
    self._records.close()

  def _write(self, **fields):
    # Its members are made when it is imported.
    event = event_pb2.Event(  # ty: ignore[missing-attribute]
      wall_time=time.time(), **fields
    )
    self._records.write(event.SerializeToString())


def _step_of(line):
  """The step of a line; a line that was cut off belongs to no step."""
  try:
    return json.loads(line)['step']
  except (ValueError, KeyError, TypeError):
    return math.inf


def _clock(seconds):
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02}:{seconds:02}'
  return f'{minutes}:{seconds:02}'
