# SPDX-License-Identifier: Apache-2.0
"""Named tensors of a file on disk, as numpy arrays and without torch.

Reads safetensors, folders as Hugging Face saves them, ONNX, and what
`torch.save` writes: zip files, and the pickles of torch before 1.6. A pickle
can run any code: the reader here knows the few names that tensors need, and
refuses a file that asks for more.
"""

import collections
from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import io
import json
import math
import pathlib
import pickle
from typing import Any
from typing import NamedTuple
import weakref
import zipfile

import ml_dtypes
import numpy as np
import safetensors

from i2ploc import files
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.models.weights import onnx_files
from i2ploc.models.weights import tensors as tensors_lib

# What a folder may hold, the first that exists is read.
FOLDER_FILES = (
  'model.safetensors',
  'model.safetensors.index.json',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
)
_WHOLE = 'download or copy it again and compare its size with the source'


# What was read and is still in use somewhere: it is not read again.
_in_use: weakref.WeakValueDictionary[tuple, tensors_lib.Tensors] = (
  weakref.WeakValueDictionary()
)


def read_tensors(
  path: str | pathlib.Path, prefix: str = ''
) -> tensors_lib.Tensors:
  """Reads the tensors of a file or folder.

  Args:
    path: a safetensors file, a file of `torch.save` (.pth, .pt, .bin, .ckpt),
      an ONNX file, or a folder with one of `FOLDER_FILES`.
    prefix: reads only what is named `PREFIX.NAME`, or lies in a nested dict of
      that name, such as 'base_model'; '' for everything.

  Returns:
    Arrays by NAME, in the file's dtypes (bfloat16 is that of ml_dtypes). The
    `module.` of parallel and averaging wrappers is taken away wherever it
    stands, and what is no tensor is left out. They cannot be written to: as
    long as somebody has them, whoever reads the same file gets the same arrays.

  Raises:
    MissingFileError: nothing there, or a part of it is missing.
    InputError: truncated or foreign files, no tensor below the prefix, or two
      of one name.
  """
  path = pathlib.Path(path)
  parts = _files(path)
  # Whether they are there is for their readers to say.
  there = tuple((file, files.version(file)) for file in parts if file.exists())
  key = prefix, there
  tensors = _in_use.get(key)
  if tensors is None:
    tensors = _in_use[key] = _read(path, parts, _without_wrappers(prefix))
  tensors_lib.note_reading(tensors)
  return tensors


def _read(path, parts, prefix):
  """The tensors of files."""
  arrays, found = {}, []
  for file in parts:
    arrays |= _reader(file)(file, _Selection(prefix, found))
  if not arrays:
    start = {name.split('.')[0] for name in found}
    raise InputError(
      f'{path} has no tensor below {prefix!r}; it has: '
      f'{tensors_lib.listed(start) or "nothing"}'
    )
  if len(set(found)) < len(found):
    twice = {
      one for one, count in collections.Counter(found).items() if count > 1
    }
    raise InputError(
      f'{path} has several tensors of the names {tensors_lib.listed(twice)}, '
      f'once "module." is taken away: save the one that is meant alone'
    )
  for tensor in arrays.values():
    tensor.flags.writeable = False
  start = f'{prefix}.' if prefix else ''
  return tensors_lib.Tensors(arrays, str(path), start)


def _without_wrappers(name: str) -> str:
  return '.'.join(part for part in name.split('.') if part != 'module')


class _Selection(NamedTuple):
  """What to read of a file."""

  prefix: str
  found: list[str]

  def __call__(self, name: str) -> str | None:
    """The name without wrappers and prefix; None if it is not wanted."""
    name = _without_wrappers(name)
    self.found.append(name)
    start = self.prefix and f'{self.prefix}.'
    return name.removeprefix(start) if name.startswith(start) else None


def _files(path):
  """The files that hold the tensors of `path`."""
  if not path.is_dir():
    return [path]
  names = [name for name in FOLDER_FILES if (path / name).exists()]
  if not names:
    raise MissingFileError(
      f'{path} holds none of {FOLDER_FILES}: download the weights into it'
    )
  if not names[0].endswith('.index.json'):
    return [path / names[0]]
  try:
    parts = json.loads((path / names[0]).read_text())['weight_map'].values()
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(
      f'{path / names[0]} is no index of tensors ({error!r}); {_WHOLE}'
    ) from error
  return [path / part for part in sorted(set(parts))]


def _reader(path) -> Callable[[pathlib.Path, _Selection], dict]:
  """The reader of a file, by its content: names mislead."""
  if not path.exists():
    raise MissingFileError(f'{path} does not exist: download it there')
  with path.open('rb') as file:
    head = file.read(32)
  if head.startswith(b'PK\x03\x04'):
    return _read_torch
  if head[8:9] == b'{':
    return _read_safetensors
  if head.startswith(b'\x08'):  # the version of ONNX comes first
    return _read_onnx
  if head.startswith(b'version https://git-lfs'):
    raise InputError(f'{path} is a pointer of git-lfs; run `git lfs pull`')
  if head.startswith(b'\x80'):  # so does a pickle
    return _read_old_torch
  raise InputError(
    f'{path} is neither safetensors, ONNX nor a zip of torch.save (it starts '
    f'with {head[:12]!r}); {_WHOLE}'
  )


def _read_safetensors(path, select):
  tensors = {}
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      for name in file.keys():  # noqa: SIM118  no mapping
        short = select(name)
        if short is not None:
          tensors[short] = file.get_tensor(name)
  except (safetensors.SafetensorError, TypeError) as error:
    raise InputError(
      f'{path} is no whole safetensors file ({error}); {_WHOLE}'
    ) from error
  return tensors


def _read_onnx(path, select):
  try:
    found = onnx_files.read_weights(path.read_bytes())
  except (ValueError, IndexError) as error:
    raise InputError(
      f'{path} is no whole ONNX file ({error}); {_WHOLE}'
    ) from error
  names = ((select(name), tensor) for name, tensor in found.items())
  return {name: tensor for name, tensor in names if name is not None}


class _Tensor(NamedTuple):
  """A view of a storage, not yet read."""

  storage: tuple
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Dropped:
  """Stands for an object beside the tensors; it is read and forgotten."""

  def __init__(self, *args: Any):
    del args

  def __setstate__(self, state: Any) -> None:
    del state


def _rebuild_tensor(storage, offset, size, stride, *_):
  return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(data, *_):
  return data


_DTYPES = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}
# Epochs, metrics and settings of a training script lie beside its tensors.
_DROPPED = (
  '_codecs.encode',
  'argparse.Namespace',
  'numpy._core.multiarray._reconstruct',
  'numpy._core.multiarray.scalar',
  'numpy.core.multiarray._reconstruct',
  'numpy.core.multiarray.scalar',
  'numpy.dtype',
  'numpy.ndarray',
  'torch.device',
)
_GLOBALS = {
  'collections.OrderedDict': collections.OrderedDict,
  'torch.Size': tuple,
  'torch._utils._rebuild_parameter': _rebuild_parameter,
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  **{f'torch.{name}': dtype for name, dtype in _DTYPES.items()},
  **dict.fromkeys(_DROPPED, _Dropped),
}


class _Refused(pickle.UnpicklingError):
  """A pickle asks for something that no tensor needs."""


class _Unpickler(pickle.Unpickler):
  """Of tensors and plain values, nothing else."""

  def find_class(self, module, name):
    try:
      return _GLOBALS[f'{module}.{name}']
    except KeyError:
      raise _Refused(f'{module}.{name}') from None

  def persistent_load(self, pid):
    _, dtype, key, *_ = pid
    return dtype, key


class _Foreign(pickle.UnpicklingError):
  """A pickle is not one of torch."""


def _read_torch(path, select):
  with _reading(path), zipfile.ZipFile(path) as archive:
    return _unpack(archive, select)


def _read_old_torch(path, select):
  with _reading(path), path.open('rb') as file:
    return _unpack_old(file, select)


@contextlib.contextmanager
def _reading(path):
  """Names a file that cannot be read."""
  try:
    yield
  except _Foreign as error:
    raise InputError(
      f'{path} is a pickle, and not one of torch; save its tensors as '
      'safetensors'
    ) from error
  except _Refused as error:
    raise InputError(
      f'{path} wants to call {error} on being read, which is refused: it could '
      'be anything. Load the file with torch where you trust it, and save the '
      'state_dict alone'
    ) from error
  except Exception as error:  # damaged pickles raise whatever they hit
    raise InputError(
      f'{path} is no whole file of torch.save ({error!r}); {_WHOLE}'
    ) from error


def _unpack(archive, select):
  """The wanted tensors of an open zip file."""
  pickles = [n for n in archive.namelist() if n.endswith('data.pkl')]
  if not pickles:
    raise KeyError('data.pkl')
  root = pickles[0].removesuffix('data.pkl')
  if f'{root}byteorder' in archive.namelist():
    if archive.read(f'{root}byteorder') != b'little':
      raise NotImplementedError('big-endian storages')
  content = _Unpickler(io.BytesIO(archive.read(pickles[0]))).load()
  return _selected(
    content, select, lambda key: archive.read(f'{root}data/{key}')
  )


# What a file of torch before 1.6 starts with, as a number.
_OLD = 0x1950A86A20F9469CFC6C


def _unpack_old(file, select):
  """The wanted tensors of pickles, one behind another, and storages."""
  if _Unpickler(file).load() != _OLD:
    raise _Foreign
  version, system = (_Unpickler(file).load() for _ in range(2))
  if version != 1001 or not system.get('little_endian', True):
    raise NotImplementedError(f'version {version} of {system}')
  content = _Unpickler(file).load()
  sizes = {
    key: np.dtype(dtype).itemsize
    for dtype, key in (tensor.storage for tensor in _flat(content).values())
  }
  storages = {}
  for key in _Unpickler(file).load():
    count = int.from_bytes(file.read(8), 'little')
    # The size of its numbers is known only of what some tensor uses.
    storages[key] = file.read(count * sizes[key])
    if len(storages[key]) < count * sizes[key]:
      raise EOFError
  return _selected(content, select, storages.__getitem__)


def _selected(content, select, read):
  """The wanted tensors of what was unpickled; `read` takes a storage's key."""
  tensors = {}
  for name, tensor in _flat(content).items():
    short = select(name)
    if short is not None:
      dtype, key = tensor.storage
      tensors[short] = _view(np.frombuffer(read(key), dtype), tensor)
  return tensors


def _flat(content: Any, name: str = '') -> dict[str, _Tensor]:
  """Tensors of nested dicts by their dotted names."""
  if isinstance(content, _Tensor):
    return {name: content}
  flat = {}
  if isinstance(content, Mapping):
    for key, value in content.items():
      flat |= _flat(value, f'{name}.{key}' if name else str(key))
  return flat


def _view(storage, tensor):
  """A copy of the part of a storage that a tensor is."""
  shape, strides = tensor.shape, tensor.strides
  last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  inside = tensor.offset >= 0 and min((0, *shape, *strides)) >= 0
  # numpy would read whatever lies behind the storage.
  if not inside or math.prod(shape) and tensor.offset + last >= storage.size:
    raise IndexError(f'{shape} reaches beyond a storage of {storage.size}')
  if not math.prod(shape):
    return np.zeros(shape, storage.dtype)
  strides = [storage.itemsize * s for s in strides]
  view = np.lib.stride_tricks.as_strided(
    storage[tensor.offset :], shape, strides, writeable=False
  )
  return np.array(view, order='C')
