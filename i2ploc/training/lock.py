# SPDX-License-Identifier: Apache-2.0
"""One training at a time writes into a workdir.

The operating system holds the lock (`flock`) and gives it back when the process
ends in whatever way, SIGKILL included: nothing has to be cleaned up. The file
says whose it is, and is removed in the end.

On a network file system the lock holds for all hosts where the mount forwards
it, as NFS does. A mount that keeps locks to itself cannot be told from one that
does not, so the owner also gives signs of life: whoever gets the lock of a
process that was not of this host, and did not remove its file, waits for one
before he takes over.
"""

from collections.abc import Generator
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
from typing import Any

from i2ploc import files
from i2ploc.errors import InputError

FILE = 'train.lock'
SIGN_EVERY = 5.0  # seconds between two signs of life
# Seconds to wait for one: NFS servers may be silent for a while.
PATIENCE = 30.0
_BOOT = pathlib.Path('/proc/sys/kernel/random/boot_id')
# A file system without locks, or one whose server does not answer for them.
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# Open in this process; a fork must not keep the lock of a parent that died.
_held: set[int] = set()


def _forget() -> None:
  while _held:
    os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def hold(workdir: str | os.PathLike) -> Generator[None]:
  """Keeps other trainings out of a workdir while the body runs.

  Of several processes that train together one is enough to hold it.

  Args:
    workdir: made if it does not exist, and removed if nothing else came in.

  Raises:
    InputError: another process holds it, of which the message says number and
      host; or the workdir cannot be written.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / FILE
  with files.writing(workdir):
    made = [one for one in (workdir, *workdir.parents) if not one.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    file = _locked(path)
  _held.add(file)
  stop = threading.Event()
  try:
    with files.writing(path):
      _take_over(file, path)
    signs = threading.Thread(
      target=_give_signs, args=(file, stop), daemon=True, name='lock'
    )
    signs.start()
    try:
      yield
    finally:
      stop.set()
      signs.join()
      with contextlib.suppress(OSError):
        path.unlink()  # before the lock ends: whoever opens it now looks again
  finally:
    _held.discard(file)
    os.close(file)
    with contextlib.suppress(OSError):
      for folder in made:
        folder.rmdir()  # not what the body has filled


def _locked(path: pathlib.Path) -> int:
  """The open lock file; no other process has it, as far as the system knows."""
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      os.close(file)
      raise _refusal(path, _owner_of(path)) from None
    except OSError as error:
      if error.errno not in _UNKNOWN:
        os.close(file)
        raise
    # The owner may have removed the file while it was opened here.
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file), os.stat(path)):
        return file
    os.close(file)


def _take_over(file: int, path: pathlib.Path) -> None:
  """Writes who has the lock; waits first if the last owner may still live."""
  before = _read(file)
  if before.get('boot') not in (None, _here()['boot']):
    print(
      f'{path}: process {before["pid"]} on {before["host"]} did not end by'
      f' itself; waiting {PATIENCE:.0f} s for a sign of life',
      file=sys.stderr,
      flush=True,
    )
    _watch(path, before)
  elif before.get('pid') and _lives_without_lock(file, before['pid']):
    raise _refusal(path, before)
  os.ftruncate(file, 0)
  os.pwrite(file, json.dumps(_here()).encode(), 0)


def _lives_without_lock(file: int, process: int) -> bool:
  """Whether a process of this host runs, where there are no locks to ask."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return False
  except OSError:
    pass
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return process != os.getpid()


def _watch(path: pathlib.Path, owner: dict[str, Any]) -> None:
  """Raises InputError if the owner of the lock gives a sign of life."""
  first, end = _last_sign(path), time.monotonic() + PATIENCE
  while time.monotonic() < end:
    time.sleep(min(1.0, PATIENCE / 5))
    if _last_sign(path) != first:
      raise _refusal(path, owner)


def _last_sign(path: pathlib.Path) -> int:
  # NFS asks the server again when a file is opened, not for its status.
  with open(path, 'rb') as file:
    return os.fstat(file.fileno()).st_mtime_ns


def _give_signs(file: int, stop: threading.Event) -> None:
  while not stop.wait(SIGN_EVERY):
    with contextlib.suppress(OSError):
      os.utime(file)


def _here() -> dict[str, Any]:
  """This process. Hosts may share a name; a boot of a kernel is one."""
  host = socket.gethostname()
  boot = _BOOT.read_text().strip() if _BOOT.exists() else host
  return {'pid': os.getpid(), 'host': host, 'boot': boot}


def _read(file: int) -> dict[str, Any]:
  """Whose the lock is; empty if it does not say."""
  try:
    found = json.loads(os.pread(file, 2**12, 0))
    return {name: found[name] for name in ('pid', 'host', 'boot')}
  except (KeyError, TypeError, ValueError):
    return {}


def _owner_of(path: pathlib.Path) -> dict[str, Any]:
  """Who has the lock; who just got it takes a moment to say so."""
  found: dict[str, Any] = {}
  for _ in range(20):
    with contextlib.suppress(FileNotFoundError), open(path, 'rb') as file:
      found = _read(file.fileno())
    if found:
      break
    time.sleep(0.05)
  return found


def _refusal(path: pathlib.Path, owner: dict[str, Any]) -> InputError:
  who = 'another process'
  if owner:
    who = f'process {owner["pid"]} on {owner["host"]}'
  return InputError(
    f'{path.parent} is being trained by {who}: wait for it, end it, or choose'
    ' another --workdir.'
  )
