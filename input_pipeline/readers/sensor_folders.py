# SPDX-License-Identifier: Apache-2.0
"""The files of a sensor's folder, by the frame number in their names.

What a folder holds and is not read is counted, and refused where a user would
miss frames: other kinds of files alone, or frames in sub-folders.
"""

import collections
from collections.abc import Iterable
from collections.abc import Sequence
import os
import pathlib

from i2ploc.errors import InputError

# What operating systems leave in folders.
_LITTER = ('desktop.ini', 'thumbs.db')


def numbered_files(
  folder: pathlib.Path, suffixes: Sequence[str]
) -> dict[int, pathlib.Path]:
  """The files of a sensor's folder by the frame number in their names.

  Args:
    folder: may be missing.
    suffixes: file name endings to take, as in '.png', in lower case; files
      may have them in upper case.

  Returns:
    Frame number to file, in increasing order; empty without the folder.

  Raises:
    InputError: a name is not a number, two files have the same one, files of
      other kinds alone, or files of these kinds in sub-folders.
  """
  if not folder.is_dir():
    return {}
  files: dict[int, pathlib.Path] = {}
  others = collections.Counter()
  for path in sorted(folder.iterdir()):
    if _is_litter(path):
      continue
    if path.is_dir():
      _check_sub_folder(path, suffixes)
      continue
    if path.suffix.lower() not in suffixes:
      others[path.suffix or 'no suffix'] += 1
      continue
    if not (path.stem.isascii() and path.stem.isdigit()):
      raise InputError(
        f'{path}: the name is not a frame number (expected e.g. 000012'
        f'{path.suffix}); move the file away.'
      )
    frame = int(path.stem)
    if frame in files:
      raise InputError(
        f'{folder}: {files[frame].name} and {path.name} are both frame '
        f'{frame}; remove one.'
      )
    files[frame] = path
  if others and not files:
    raise InputError(
      f'{folder}: {counted(others)}, expected files that end in '
      f'{", ".join(suffixes)}; convert them, or move them away.'
    )
  return dict(sorted(files.items()))


def _is_litter(path: pathlib.Path) -> bool:
  return path.name.startswith('.') or path.name.lower() in _LITTER


def _check_sub_folder(folder: pathlib.Path, suffixes: Sequence[str]) -> None:
  inside = [
    name
    for _, _, names in os.walk(folder)
    for name in names
    if os.path.splitext(name)[1].lower() in suffixes
    and not name.startswith('.')
  ]
  if inside:
    raise InputError(
      f'{folder}: {len(inside)} files in a sub-folder, such as {inside[0]}, '
      f'expected in {folder.parent}; move them up, or away.'
    )


def counted(kinds: collections.Counter) -> str:
  """Kinds of files for a message, as in '3 .txt, 1 .yaml'."""
  return ', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))


def passed_over(files: Iterable[pathlib.Path]) -> collections.Counter:
  """What lies beside the files of sensors and was not taken, by suffix."""
  taken = set(files)
  others = collections.Counter()
  for folder in {path.parent for path in taken}:
    for path in folder.iterdir() if folder.is_dir() else ():
      if path not in taken and path.is_file() and not _is_litter(path):
        others[path.suffix or 'no suffix'] += 1
  return others


def gaps(frames: Iterable[int]) -> int:
  """How many numbers between the first and the last frame have no file.

  >>> gaps([3, 4, 7])
  2
  """
  frames = set(frames)
  return max(frames) - min(frames) + 1 - len(frames) if frames else 0
