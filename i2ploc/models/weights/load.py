# SPDX-License-Identifier: Apache-2.0
"""Weights that others trained, as our variables.

A `Rule` says how one of our arrays is made of tensors of a checkpoint;
`convert` follows all rules of a model and reports everything that does not fit
at once. `vit` and `resnet` have the rules of published image encoders.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import fnmatch
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from i2ploc.errors import InputError
from i2ploc.models.weights import tensors as tensors_lib

PyTree = Any

# The last part of our paths where training starts from zero, and may stay.
_MAY_BE_ZERO = ('bias', 'mean', 'cls', 'cls_position', 'registers')


class Rule(NamedTuple):
  """How one array is made.

  Attributes:
    path: of our array, such as 'params/blocks_0/norm1/scale'.
    sources: names of the tensors it is made of.
    transform: takes them in this order; returns the array.
  """

  path: str
  sources: tuple[str, ...]
  transform: Callable[..., np.ndarray] = np.asarray


def dense(path: str, *names: str, bias: bool = True) -> list[Rule]:
  """Rules of an `nn.Dense` at `path` from torch's Linear layers.

  Args:
    path: of the module, such as 'params/embed'.
    *names: of the layers; several give their outputs side by side.
    bias: whether they have one.
  """
  sources = tuple(f'{name}.weight' for name in names)
  rules = [Rule(f'{path}/kernel', sources, lambda *w: np.concatenate(w).T)]
  if bias:
    sources = tuple(f'{name}.bias' for name in names)
    rules.append(Rule(f'{path}/bias', sources, lambda *b: np.concatenate(b)))
  return rules


def conv(path: str, name: str, bias: bool = True) -> list[Rule]:
  """Rules of an `nn.Conv` at `path` from torch's Conv2d `name`."""
  kernel = (f'{name}.weight',)
  if bias:
    made_bias = Rule(f'{path}/bias', (f'{name}.bias',))
  else:
    made_bias = Rule(f'{path}/bias', kernel, lambda w: np.zeros(len(w)))
  return [
    Rule(f'{path}/kernel', kernel, lambda w: w.transpose(2, 3, 1, 0)),
    made_bias,
  ]


def norm(path: str, name: str) -> list[Rule]:
  """Rules of the scale and bias of a normalisation at `path`."""
  return [
    Rule(f'{path}/scale', (f'{name}.weight',)),
    Rule(f'{path}/bias', (f'{name}.bias',)),
  ]


def batch_norm(place: str, name: str) -> list[Rule]:
  """Rules of a `BatchNorm` at `place`, relative to the collections."""
  return [
    *norm(f'params/{place}', name),
    Rule(f'batch_stats/{place}/mean', (f'{name}.running_mean',)),
    Rule(f'batch_stats/{place}/var', (f'{name}.running_var',)),
  ]


def scaled(rules: Sequence[Rule], gain: str) -> list[Rule]:
  """The rules of a layer whose outputs are multiplied by the vector `gain`."""

  def with_gain(transform):
    def gained(*sources):
      value, factor = transform(*sources[:-1]), sources[-1]
      if factor.shape != value.shape[-1:]:  # numpy might spread it
        raise ValueError(f'{factor.shape} gains of {value.shape[-1:]} outputs')
      return value * factor

    return gained

  return [
    Rule(rule.path, (*rule.sources, gain), with_gain(rule.transform))
    for rule in rules
  ]


def convert(
  tensors: Mapping[str, np.ndarray],
  rules: Sequence[Rule],
  variables: PyTree,
  *,
  ignore: Sequence[str] = (),
  name: str = 'the checkpoint',
) -> PyTree:
  """Fills variables with tensors.

  Args:
    tensors: by name, see `tensor_files.read_tensors`.
    rules: one for each array to fill.
    variables: pytree of arrays, which keep their value where no rule has their
      path, or of ShapeDtypeStructs, all of which need a rule.
    ignore: patterns (`fnmatch`) of tensors that are of no use here.
    name: of the tensors' origin, for the message.

  Returns:
    A copy of `variables` with numpy arrays of its shapes and dtypes.

  Raises:
    InputError: names, in one line, tensors that are missing, have no place in
      `variables`, have another shape, or hold no weights: not finite, zeros
      throughout, or integers.
  """
  leaves, tree = jax.tree_util.tree_flatten_with_path(variables)
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
  }
  by_path = {rule.path: rule for rule in rules if rule.path in leaves}
  used = {source for rule in by_path.values() for source in rule.sources}
  made, missing, reshaped = {}, used - set(tensors), []
  empty = _empty(
    {path: by_path[path] for path in leaves if path in by_path}, tensors
  )
  for path, leaf in leaves.items():
    if path not in by_path:
      made[path] = leaf
      if isinstance(leaf, jax.ShapeDtypeStruct):
        missing.add(f'a tensor for {path}')
    elif missing.isdisjoint(by_path[path].sources):
      made[path] = _made(by_path[path], tensors, leaf, reshaped)
  unknown = [
    source
    for source in set(tensors) - used
    if not any(fnmatch.fnmatchcase(source, pattern) for pattern in ignore)
  ]
  faults = {
    'Missing in it': missing,
    'Unknown to the model': unknown,
    'Other shapes': reshaped,
    **empty,
  }
  if any(faults.values()):
    told = ' '.join(
      f'{fault}: {tensors_lib.listed(names)}.'
      for fault, names in faults.items()
      if names
    )
    raise InputError(
      f'{name} does not fit the model. {told} Take the whole checkpoint of this'
      ' model, or the model of this checkpoint.'
    )
  if isinstance(tensors, tensors_lib.Tensors):
    tensors.take(used)
  return jax.tree.unflatten(tree, made.values())


def _empty(rules, tensors):
  """Names of used tensors that hold no weights, by their fault."""
  faults = {'Not finite': set(), 'All zeros': set(), 'Integers': set()}
  for path, rule in rules.items():
    may_be_zero = path.rpartition('/')[2] in _MAY_BE_ZERO
    for source in rule.sources:
      tensor = tensors.get(source)
      if tensor is None or not tensor.size:
        continue
      if tensor.dtype.kind in 'iub':
        faults['Integers'].add(source)
      elif not np.isfinite(tensor).all():
        faults['Not finite'].add(source)
      elif tensor.size > 1 and not may_be_zero and not tensor.any():
        faults['All zeros'].add(source)
  return faults


def _made(rule, tensors, leaf, reshaped):
  """The array of a rule; appends to `reshaped` if it does not fit `leaf`."""
  sources = [tensors[source] for source in rule.sources]
  try:
    value = rule.transform(*sources)
    result = f'gives {value.shape}'
  except (ValueError, IndexError) as error:
    value, result = None, f'fails ({error})'
  if value is not None and value.shape == leaf.shape:
    return np.array(value, leaf.dtype)
  found = ' and '.join(
    f'{source} {tensor.shape}'
    for source, tensor in zip(rule.sources, sources, strict=True)
  )
  reshaped.append(f'{found} {result} for {rule.path} {leaf.shape}')
  return None
