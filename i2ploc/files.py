# SPDX-License-Identifier: Apache-2.0
"""Files that are complete or absent: text, JSON, npy and npz.

A file is written beside its final place and renamed: a process that dies
leaves what was there before, and readers never see half a file. This is the
only module that writes results.
"""

from collections.abc import Generator
from collections.abc import Mapping
import contextlib
import json
import math
import os
import pathlib
from typing import Any
import zipfile
import zlib

import numpy as np

from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError

Path = str | os.PathLike


@contextlib.contextmanager
def replacing(path: Path) -> Generator[pathlib.Path]:
  """Gives the path of a draft that takes the place of `path` at the end.

  Folders are made. The draft keeps the suffix of `path`, is hidden and unique
  to the process, and is removed if the body raises.

  Args:
    path: the final place.

  Yields:
    Where to write.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.with_name(f'.{os.getpid()}.tmp.{path.name}')
  try:
    yield draft
    with open(draft, 'rb') as written:
      os.fsync(written.fileno())
    os.replace(draft, path)
  finally:
    draft.unlink(missing_ok=True)


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
  path: Path, remedy: str, format: str | None = None
) -> dict[str, np.ndarray]:
  """Reads an npz of plain arrays.

  Args:
    path: of the file.
    remedy: what to do if it cannot be used, as a command to the user.
    format: that it must have; None for any.

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
      arrays = dict(file)
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
