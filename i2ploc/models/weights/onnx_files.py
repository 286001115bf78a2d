# SPDX-License-Identifier: Apache-2.0
"""The weights of an ONNX file, without the onnx package.

An ONNX file is one protobuf message; only what its weights need is read here.
The exporter of torch keeps the name of a weight unless it changed the weight:
matrices of linear layers come transposed and without a name, and get that of
the node that multiplies by them.

Reference:
  https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, whose field numbers
  these are.
"""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

# Fields of a ModelProto, GraphProto, NodeProto and TensorProto.
_GRAPH = 7
_NODE, _INITIALIZER = 1, 5
_INPUT, _NODE_NAME, _OPERATION = 1, 3, 4
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA, _EXTERNAL = 1, 2, 8, 9, 13

_DTYPES = {
  1: np.float32,
  2: np.uint8,
  3: np.int8,
  6: np.int32,
  7: np.int64,
  9: np.bool_,
  10: np.float16,
  11: np.float64,
  16: ml_dtypes.bfloat16,
}
_ANONYMOUS = 'onnx::'


def read_weights(content: bytes) -> dict[str, np.ndarray]:
  """The initializers of a model.

  Args:
    content: of the file.

  Returns:
    Arrays by name. A nameless factor of a matrix product at the node
    '/encoder/layer.0/mlp/fc1/MatMul' is 'encoder.layer.0.mlp.fc1.weight' as
    torch has it, [out, in]; what else is nameless is called after its node,
    such as 'embeddings.Concat_6'.

  Raises:
    ValueError: truncated, no ONNX model, or weights in another file.
  """
  tensors, nodes = {}, []
  for field, value in _fields(memoryview(content)):
    if field != _GRAPH:
      continue
    for part, message in _fields(value):
      if part == _INITIALIZER:
        name, array = _tensor(message)
        tensors[name] = array
      elif part == _NODE:
        nodes.append(_node(message))
  if not tensors:
    raise ValueError('it has no weights')
  named = {k: v for k, v in tensors.items() if not k.startswith(_ANONYMOUS)}
  for inputs, path, operation in nodes:
    for name in inputs:
      if not name.startswith(_ANONYMOUS) or name not in tensors:
        continue
      array, module = tensors[name], path.strip('/').replace('/', '.')
      if operation == 'MatMul' and array.ndim == 2:
        module, array = f'{module.rpartition(".")[0]}.weight', array.T
      named.setdefault(module, array)
  return named


def _varint(message: memoryview, start: int) -> tuple[int, int]:
  """A number of 7 bits a byte, the lowest first; and where it ends."""
  value = shift = 0
  while True:
    byte = message[start]
    start += 1
    value |= (byte & 127) << shift
    shift += 7
    if byte < 128:
      return value, start


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
  """Numbers and values (an int, or bytes) of a message's fields."""
  at = 0
  while at < len(message):
    tag, at = _varint(message, at)
    kind = tag & 7
    if kind == 0:
      value, at = _varint(message, at)
    else:
      if kind == 2:
        size, at = _varint(message, at)
      elif kind in (1, 5):
        size = 8 if kind == 1 else 4
      else:
        raise ValueError(f'a field of the wire type {kind}')
      value, at = message[at : at + size], at + size
      if at > len(message):
        raise ValueError('it ends in the middle of a field')
    yield tag >> 3, value


def _tensor(message):
  """Name and array of a TensorProto."""
  shape, kind, name, raw = [], None, '', None
  for field, value in _fields(message):
    if field == _DIMS:
      packed = not isinstance(value, int)
      shape += _packed(value) if packed else [value]
    elif field == _DATA_TYPE:
      kind = value
    elif field == _TENSOR_NAME:
      name = bytes(value).decode()
    elif field == _RAW_DATA:
      raw = value
    elif field == _EXTERNAL:
      raise ValueError('its weights lie in another file')
  if kind not in _DTYPES:
    raise ValueError(f'{name} has data of the unknown type {kind}')
  if raw is None:
    raise ValueError(f'{name} has no raw data')
  return name, np.frombuffer(raw, _DTYPES[kind]).reshape(shape)


def _packed(message):
  numbers, at = [], 0
  while at < len(message):
    value, at = _varint(message, at)
    numbers.append(value)
  return numbers


def _node(message):
  """Inputs, name and operation of a NodeProto."""
  inputs, name, operation = [], '', ''
  for field, value in _fields(message):
    if field == _INPUT:
      inputs.append(bytes(value).decode())
    elif field == _NODE_NAME:
      name = bytes(value).decode()
    elif field == _OPERATION:
      operation = bytes(value).decode()
  return inputs, name, operation
