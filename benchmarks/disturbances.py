# SPDX-License-Identifier: Apache-2.0
"""What happens to a process that works: SIGKILL, or a disk that is full.

The disk is a tmpfs of limited size where this process may mount one; a file
takes all that is free of it. Elsewhere the kernel refuses the process to write
any file from that instant on (RLIMIT_FSIZE 0, EFBIG instead of ENOSPC).
"""

from collections.abc import Generator
import contextlib
import os
import pathlib
import resource
import signal
import subprocess
import tempfile

SIGNAL = signal.SIGKILL
# How a verb says that the disk is full.
REFUSALS = ('disk or quota is full', 'are free on its disk')
_FILLER = 'filler'
# Beside what a run leaves: checkpoints are complete before older ones go, and
# everything has a draft.
_TIMES, _MORE = 4, 2**25


@contextlib.contextmanager
def small_disk(size: int) -> Generator[pathlib.Path]:
  """A folder on a disk that can be filled.

  Args:
    size: bytes that a run takes; 0 for any folder.

  Yields:
    The folder; it is removed afterwards.
  """
  with tempfile.TemporaryDirectory() as folder:
    mounted = size > 0 and _mounted(folder, size * _TIMES + _MORE)
    try:
      yield pathlib.Path(folder)
    finally:
      if mounted:
        subprocess.run(['umount', folder], check=True)


def _mounted(folder: str, size: int) -> bool:
  """Mounts a tmpfs, if this process may."""
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'none', folder]
  try:
    return subprocess.run(mount, capture_output=True).returncode == 0
  except FileNotFoundError:
    return False


def at(
  seconds: float, process: subprocess.Popen, disk: pathlib.Path, *, full: bool
) -> bool:
  """Disturbs a process after some seconds.

  Args:
    seconds: from now.
    process: with stderr that is read afterwards.
    disk: from `small_disk`.
    full: fills the disk, instead of SIGKILL.

  Returns:
    Whether it was still running.
  """
  try:
    process.wait(seconds)
    return False
  except subprocess.TimeoutExpired:
    pass
  if not full:
    process.send_signal(SIGNAL)
  elif os.path.ismount(disk):
    _fill(disk)
  else:
    with contextlib.suppress(ProcessLookupError):
      resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
  return True


def end(disk: pathlib.Path) -> None:
  """Frees the disk again."""
  (disk / _FILLER).unlink(missing_ok=True)


def _fill(disk: pathlib.Path) -> None:
  """Takes all that is free, also of what others free meanwhile."""
  with open(disk / _FILLER, 'wb', buffering=0) as file:
    # The file system may refuse a large piece and take a smaller one.
    for piece in (2**20, 2**12):
      with contextlib.suppress(OSError):
        while True:
          file.write(bytes(piece))
