# SPDX-License-Identifier: Apache-2.0
"""What `torch.save` writes, without torch."""

import collections
import io
import pathlib
import pickle
import sys
import types
from typing import Any
from unittest import mock
import zipfile

import ml_dtypes
import numpy as np

STORAGES = {
  np.dtype(np.float64): 'DoubleStorage',
  np.dtype(np.float32): 'FloatStorage',
  np.dtype(np.float16): 'HalfStorage',
  np.dtype(ml_dtypes.bfloat16): 'BFloat16Storage',
  np.dtype(np.int64): 'LongStorage',
  np.dtype(np.bool_): 'BoolStorage',
}


def _torch() -> dict[str, types.ModuleType]:
  """Modules with the names that a pickle of tensors refers to."""
  torch, inner = types.ModuleType('torch'), types.ModuleType('torch._utils')
  for name in STORAGES.values():
    setattr(torch, name, type(name, (), {'__module__': 'torch'}))
  names = {'__module__': 'torch._utils'}
  inner._rebuild_tensor_v2 = type('_rebuild_tensor_v2', (), names)
  return {'torch': torch, 'torch._utils': inner}


class _Storage:
  """Numbers that a tensor is a view of."""

  def __init__(self, array: np.ndarray):
    self.array = array


class _Rebuild:
  """A tensor, to be pickled as the call that makes it anew."""

  def __init__(self, *args: Any):
    self.args = args


class _Pickler(pickle.Pickler):
  def __init__(self, file, modules):
    super().__init__(file, protocol=2)
    self._modules = modules
    self.storages = []

  def persistent_id(self, obj):
    if not isinstance(obj, _Storage):
      return None
    self.storages.append(obj.array)
    kind = getattr(self._modules['torch'], STORAGES[obj.array.dtype])
    key = str(len(self.storages) - 1)
    return 'storage', kind, key, 'cpu', obj.array.size

  def reducer_override(self, obj):
    rebuild = self._modules['torch._utils']._rebuild_tensor_v2
    if isinstance(obj, _Rebuild):
      return rebuild, obj.args
    if not isinstance(obj, np.ndarray):
      return NotImplemented
    owner = obj if obj.base is None else obj.base
    size = obj.itemsize
    offset = obj.ctypes.data - owner.ctypes.data
    view = (offset // size, obj.shape, tuple(s // size for s in obj.strides))
    hooks = (False, collections.OrderedDict())
    return rebuild, (_Storage(owner.reshape(-1)), *view, *hooks)


def tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple):
  """A tensor that may reach beyond its storage [N]."""
  return _Rebuild(_Storage(storage), offset, shape, strides, False, {})


def _pickled(content):
  """The pickle of `content`, and the storages that it names by number."""
  file, modules = io.BytesIO(), _torch()
  with mock.patch.dict(sys.modules, modules):
    pickler = _Pickler(file, modules)
    pickler.dump(content)
  return file.getvalue(), pickler.storages


def save_old(content: Any, path: pathlib.Path) -> None:
  """Writes `content` as torch did before 1.6; see `save`."""
  pickled, storages = _pickled(content)
  system = dict(protocol_version=1001, little_endian=True, type_sizes={})
  keys = [str(key) for key in range(len(storages))]
  with path.open('wb') as file:
    for part in (0x1950A86A20F9469CFC6C, 1001, system):
      pickle.dump(part, file, protocol=2)
    file.write(pickled)
    pickle.dump(keys, file, protocol=2)
    for array in storages:
      file.write(array.size.to_bytes(8, 'little') + array.tobytes())


def save(content: Any, path: pathlib.Path) -> None:
  """Writes `content`, in which arrays stand for tensors.

  An array may be a strided view of another, contiguous one.
  """
  pickled, storages = _pickled(content)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', pickled)
    archive.writestr('archive/byteorder', 'little')
    for key, array in enumerate(storages):
      archive.writestr(f'archive/data/{key}', array.tobytes())
    archive.writestr('archive/version', '3\n')
