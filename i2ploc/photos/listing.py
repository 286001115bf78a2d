# SPDX-License-Identifier: Apache-2.0
"""The photos below a folder, in order of name (2 before 10).

Links are followed, but not in circles. What is hidden is left out, and so is
what does not end as an image does; kinds that cameras write and nobody here
decodes, such as HEIC and raw files, are counted in a warning.

A file FOLDER_images_paths.txt beside a folder lists its photos, one path below
the folder a line, as the evaluators of the field have it: no walk is made then,
which saves minutes on network disks.
"""

import collections
from collections.abc import Iterable
from collections.abc import Sequence
from concurrent import futures
import os
import pathlib
import re

from absl import logging

from i2ploc import image_files
from i2ploc.errors import InputError

# Photos all the same; whoever has them must convert them.
UNREADABLE = (
  *('.arw', '.avif', '.cr2', '.cr3', '.dng', '.heic', '.heif', '.jxl'),
  *('.nef', '.orf', '.raf', '.rw2'),
)
LIST_SUFFIX = '_images_paths.txt'
_THREADS = 8


def examples(names: Iterable[object], most: int = 3) -> str:
  """The first names of many, for a message.

  >>> examples(['a', 'b', 'c'], 2)
  'a, b and 1 more'
  """
  names = [str(name) for name in names]
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more


def list_photos(root: pathlib.Path, folder: pathlib.Path) -> list[str]:
  """Names of the photos below a folder, in order.

  Args:
    root: of the names.
    folder: root or a folder below it.

  Returns:
    Paths from the root, with '/'.

  Raises:
    InputError: there are none, or a name is no line of UTF-8 text.
  """
  listed = folder.with_name(folder.name + LIST_SUFFIX)
  if listed.is_file():
    return _checked(folder, _read_list(root, folder, listed), {})
  names, others, seen = [], collections.Counter(), set()
  base = os.path.relpath(folder, root)
  for top, inner, files in os.walk(folder, followlinks=True):
    real = os.path.realpath(top)
    if real in seen:  # a link back to where it came from
      inner.clear()
      continue
    seen.add(real)
    inner[:] = [name for name in inner if not name.startswith('.')]
    below = pathlib.PurePath(base, os.path.relpath(top, folder)).as_posix()
    for name in files:
      if name.startswith('.'):
        continue
      suffix = os.path.splitext(name)[1].lower()
      if suffix in image_files.SUFFIXES:
        names.append(name if below == '.' else f'{below}/{name}')
      else:
        others[suffix or 'no suffix'] += 1
  return _checked(folder, names, others)


def log_beside(root: pathlib.Path, folders: Sequence[pathlib.Path]) -> None:
  """Counts the photos below a folder that lie in none of its folders given."""
  count, places = 0, set()
  for top, inner, files in os.walk(root):
    inner[:] = [
      name
      for name in inner
      if not name.startswith('.') and pathlib.Path(top, name) not in folders
    ]
    photos = [
      name
      for name in files
      if os.path.splitext(name)[1].lower() in image_files.SUFFIXES
    ]
    count += len(photos)
    if photos:
      places.add(os.path.relpath(top, root))
  if count:
    logging.warning(
      '%s: passed over %d photos beside %s: in %s.',
      root, count, ' and '.join(path.name for path in folders),
      examples(sorted(places)),
    )  # fmt: skip


def _read_list(root, folder, listed) -> list[str]:
  """The names in a list of paths; blank lines do not count."""
  try:
    lines = listed.read_text('utf-8').splitlines()
  except UnicodeDecodeError as error:
    raise InputError(f'{listed} is no UTF-8 text: {error}.') from error
  base = pathlib.PurePath(os.path.relpath(folder, root))
  names = [(base / line.strip()).as_posix() for line in lines if line.strip()]
  twice = [name for name, n in collections.Counter(names).items() if n > 1]
  outside = [name for name in names if '..' in name.split('/')]
  if twice or outside:
    raise InputError(
      f'{listed}: expected every photo below {folder} once, found'
      f' {examples(twice + outside)}.'
    )
  return names


def _checked(folder, names, others) -> list[str]:
  """The names in order; others are named."""
  unreadable = {kind: n for kind, n in others.items() if kind in UNREADABLE}
  counted = ', '.join(f'{n} {kind}' for kind, n in sorted(unreadable.items()))
  if unreadable:
    counted = f'{counted} cannot be read: convert them to JPEG'
    logging.warning('%s: %s.', folder, counted)
  rest = {k: n for k, n in sorted(others.items()) if k not in UNREADABLE}
  if rest:
    kinds = ', '.join(f'{count} {kind}' for kind, count in rest.items())
    logging.info('%s: not taken for photos: %s.', folder, kinds)
  if not names:
    raise InputError(
      f'{folder}: no photos; expected files that end in '
      f'{", ".join(image_files.SUFFIXES)}{"; " * bool(counted)}{counted}.'
    )
  broken = [ascii(name) for name in names if not _is_text(name)]
  if broken:
    raise InputError(
      f'{folder}: {len(broken)} names are no line of UTF-8 text:'
      f' {examples(broken)}. Rename them.'
    )
  return sorted(names, key=natural)


def _is_text(name: str) -> bool:
  try:
    name.encode('utf-8')
  except UnicodeEncodeError:
    return False
  return len(name.splitlines()) == 1  # lists of names have a line for each


def natural(name: str) -> list[str | int]:
  """A key that sorts 2.jpg before 10.jpg.

  >>> sorted(['a10.jpg', 'a2.jpg'], key=natural)
  ['a2.jpg', 'a10.jpg']
  """
  parts = re.split(r'([0-9]+)', name)  # text, digits, text, ...
  return [int(x) if i % 2 else x for i, x in enumerate(parts)]


def read_headers(
  root: pathlib.Path, names: Sequence[str]
) -> list[image_files.Header]:
  """The header of every photo; no pixel is decoded.

  Raises:
    InputError: some are no photos; they are counted.
  """

  def read(name):
    try:
      return image_files.read_header(root / name)
    except InputError as error:
      return error

  with futures.ThreadPoolExecutor(_THREADS) as pool:
    headers = list(pool.map(read, names))
  faults = [error for error in headers if isinstance(error, InputError)]
  if faults:
    raise InputError(
      f'{len(faults)} of {len(names)} photos cannot be used: '
      f'{examples(faults)}. Repair them, or move them away.'
    )
  return headers
