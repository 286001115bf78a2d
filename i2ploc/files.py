# SPDX-License-Identifier: Apache-2.0
"""Files that are complete or absent: text, JSON, npy and npz.

A file is written beside its final place and renamed: a process that dies
leaves what was there before, and readers never see half a file. This is the
only module that writes results. What a disk refuses is one line for the user,
and `check_folder` asks it before the work instead of after.
"""

from collections.abc import Generator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import errno
import json
import math
import os
import pathlib
import pwd
import re
import shutil
import tempfile
from typing import Any
import zipfile
import zlib

import numpy as np

from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError

Path = str | os.PathLike

# What a probe writes: more than a file system keeps inside of a directory.
_PROBE = bytes(2**16)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST)
_REFUSED = (
  *(*_FULL, *_NO_FOLDER, errno.EROFS, errno.EACCES, errno.EPERM),
  *(errno.EIO, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.ESTALE),
)
# numpy says how much it wrote to a disk that became full, and no number.
_SHORT = re.compile(r'\d+ requested and \d+ written')


@contextlib.contextmanager
def replacing(path: Path) -> Generator[pathlib.Path]:
  """Gives the path of a draft that takes the place of `path` at the end.

  Folders are made. The draft keeps the suffix of `path`, is hidden and unique
  to the process, and is removed if the body raises.

  Args:
    path: the final place.

  Yields:
    Where to write.

  Raises:
    InputError: the disk is full, or the place cannot be written.
  """
  path = pathlib.Path(path)
  draft = path.with_name(f'.{os.getpid()}.tmp.{path.name}')
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      yield draft
      with open(draft, 'rb') as written:
        os.fsync(written.fileno())
      os.replace(draft, path)
    finally:
      # A folder that cannot be written has no draft, and would say so again.
      with contextlib.suppress(NotADirectoryError, PermissionError):
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Generator[None]:
  """Says in one line why what the body writes to `path` cannot be written.

  Args:
    path: a file, or a folder of them.

  Raises:
    InputError: the disk is full, or the place cannot be written. Other errors
      of the body pass.
  """
  try:
    yield
  except InputError:
    raise
  except OSError as error:
    if error.errno not in _REFUSED and not _SHORT.search(str(error)):
      raise
    raise _refusal(pathlib.Path(path), error) from error


def check_folder(path: Path, inside: Sequence[str] = ()) -> None:
  """Writes into a folder, or where it would be made, and removes it again.

  Asked before the work that it takes to have something to write.

  Args:
    path: a folder; one that does not exist is not made.
    inside: folders in it that will be written too, where they exist. They may
      belong to somebody else, as after a run with sudo.

  Raises:
    InputError: it is a file, the disk is full or read-only, or the folder
      belongs to somebody else.
  """
  path = pathlib.Path(path)
  below = [path / name for name in inside]
  for folder in [_nearest(path), *filter(os.path.lexists, below)]:
    with writing(folder):
      if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, 'a file', str(folder))
      # Nothing stays of it, even if the process is killed here.
      with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(_PROBE)
        probe.flush()
        os.fsync(probe.fileno())


def check_space(path: Path, num_bytes: float) -> None:
  """Refuses work whose results have no place on the disk.

  Args:
    path: where they will be written; need not exist yet.
    num_bytes: that they take, beside what is there.

  Raises:
    InputError: fewer are free.
  """
  free = shutil.disk_usage(_nearest(pathlib.Path(path))).free
  if free < num_bytes:
    raise InputError(
      f'{path} needs {_megabytes(num_bytes)}, and {_megabytes(free)} are free'
      ' on its disk: free some, or choose another --workdir.'
    )


def _nearest(path: pathlib.Path) -> pathlib.Path:
  """The path, or the nearest above it that exists."""
  path = path.absolute()
  return next(one for one in (path, *path.parents) if os.path.lexists(one))


def _refusal(path: pathlib.Path, error: OSError) -> InputError:
  """What a disk means, and what to do."""
  full = error.errno in _FULL or error.errno is None
  remedy = 'choose another --workdir'
  try:
    folder = _nearest(path)
    if full:
      free = shutil.disk_usage(folder).free
      found = f'its disk or quota is full ({_megabytes(free)} free)'
      remedy = f'free some space and run the same command again, or {remedy}'
    elif error.errno in _NO_FOLDER:
      found = f'{folder} is a file, and a folder is expected there'
    elif error.errno == errno.EROFS:
      found = 'its disk is read-only'
    elif error.errno in (errno.EACCES, errno.EPERM):
      found = (
        f'{folder} belongs to {_name(folder.stat().st_uid)}, and'
        f' {_name(os.geteuid())} may not write there'
      )
      remedy = f'have its rights changed, or {remedy}'
    else:
      found = error.strerror or str(error)
  except OSError:  # of the question
    found = error.strerror or str(error)
  return InputError(f'Cannot write {path}: {found}. Please {remedy}.')


def _name(user: int) -> str:
  """Of a user, where one is known."""
  try:
    return f'user {pwd.getpwuid(user).pw_name!r}'
  except KeyError:
    return f'user {user}'


def _megabytes(count: float) -> str:
  return f'{count / 1e6:,.1f} MB'


def version(path: Path) -> tuple[int, int, int]:
  """Inode, size and time of a file: others once somebody has written it."""
  status = os.stat(path)
  return status.st_ino, status.st_size, status.st_mtime_ns


def save_text(path: Path, text: str) -> None:
  """Writes a text file."""
  with replacing(path) as draft:
    draft.write_text(text, 'utf-8')


def plain(value: Any) -> Any:
  """`value` for JSON: arrays as lists, what is not finite as null."""
  if isinstance(value, Mapping):
    return {str(key): plain(one) for key, one in value.items()}
  if isinstance(value, np.ndarray | np.generic):
    return plain(value.tolist())
  if isinstance(value, list | tuple):
    return [plain(one) for one in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def save_json(path: Path, value: Any, indent: int | None = 1) -> None:
  """Writes a JSON file of `plain(value)`."""
  save_text(path, json.dumps(plain(value), indent=indent, allow_nan=False))


def save_arrays(
  path: Path, arrays: Mapping[str, Any], format: str | None = None
) -> None:
  """Writes an npz.

  Args:
    path: of the file.
    arrays: by name.
    format: name and version of the content, such as 'i2ploc.index.1', kept as
      the entry `format`; None for files that other programs write too.
  """
  columns: dict[str, Any] = dict(arrays)
  if format is not None:
    columns = {'format': np.array(format), **columns}
  with replacing(path) as draft, draft.open('wb') as file:
    np.savez(file, **columns)


def save_array(path: Path, array: np.ndarray) -> None:
  """Writes an npy of numbers."""
  with replacing(path) as draft, draft.open('wb') as file:
    np.save(file, array, allow_pickle=False)


def load_arrays(
  path: Path,
  remedy: str,
  format: str | None = None,
  names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
  """Reads an npz of plain arrays.

  Args:
    path: of the file.
    remedy: what to do if it cannot be used, as a command to the user.
    format: that it must have; None for any.
    names: of those to read, where they exist; None for all.

  Returns:
    The arrays by name, without a checked `format`.

  Raises:
    MissingFileError: there is no such file.
    InputError: it is truncated, something else, or of another format.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise MissingFileError(f'There is no {path}: {remedy}.')
  try:
    with np.load(path, allow_pickle=False) as file:
      read = file.files if names is None else set(names) & set(file.files)
      arrays = {name: file[name] for name in read}
  except (
    AttributeError,  # np.load returns a bare array for an npy file
    EOFError,
    OSError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    raise InputError(
      f'{path} is truncated or not an npz ({type(error).__name__}: {error}):'
      f' {remedy}.'
    ) from None
  if format is None:
    return arrays
  found = str(arrays.pop('format', 'none'))
  if found != format:
    raise InputError(
      f'{path} has format {found!r}, expected {format!r}: {remedy}.'
    )
  return arrays


def load_json(path: Path, remedy: str) -> Any:
  """Reads a JSON file.

  Args:
    path: of the file.
    remedy: what to do if it cannot be used, as a command to the user.

  Raises:
    MissingFileError: there is no such file.
    InputError: it is not JSON.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise MissingFileError(f'There is no {path}: {remedy}.')
  try:
    return json.loads(path.read_text('utf-8'))
  except ValueError as error:
    raise InputError(
      f'{path} is truncated or not JSON ({error}): {remedy}.'
    ) from None
