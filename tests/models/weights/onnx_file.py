# SPDX-License-Identifier: Apache-2.0
"""What an ONNX exporter writes, without onnx."""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

_KINDS = {'float32': 1, 'int64': 7, 'float16': 10, 'float64': 11}


def _varint(value: int) -> bytes:
  parts = bytearray()
  while value > 127:
    parts.append(value & 127 | 128)
    value >>= 7
  return bytes([*parts, value])


def _number(field: int, value: int) -> bytes:
  return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
  return _varint(field << 3 | 2) + _varint(len(value)) + value


def node(operation: str, name: str, *inputs: str) -> bytes:
  """A NodeProto."""
  message = b''.join(_bytes(1, x.encode()) for x in inputs)
  return message + _bytes(3, name.encode()) + _bytes(4, operation.encode())


def _tensor(name, array):
  if array is None:  # lies in another file
    return _number(2, 1) + _bytes(8, name.encode()) + _bytes(13, b'')
  message = b''.join(_number(1, size) for size in array.shape)
  message += _number(2, _KINDS[array.dtype.name]) + _bytes(8, name.encode())
  return message + _bytes(9, array.tobytes())


def model(
  tensors: Mapping[str, np.ndarray | None], nodes: Sequence[bytes] = ()
) -> bytes:
  """A ModelProto with these initializers and nodes."""
  graph = b''.join(_bytes(1, one) for one in nodes)
  graph += b''.join(
    _bytes(5, _tensor(name, array)) for name, array in tensors.items()
  )
  return _number(1, 7) + _bytes(2, b'pytorch') + _bytes(7, graph)
