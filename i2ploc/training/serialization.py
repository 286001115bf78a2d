# SPDX-License-Identifier: Apache-2.0
"""Pytrees as named numpy arrays, and what identifies their content.

A leaf's name is its path, `params/Dense_0/kernel`; a PRNG key is stored as its
key data. Names make a checkpoint comparable with a model that is not its own.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Arrays = dict[str, np.ndarray]


def arrays_from_tree(tree: PyTree) -> Arrays:
  """Copies a pytree to the host; later donation cannot overwrite the copies.

  Args:
    tree: pytree of arrays, of typed PRNG keys, or of both.

  Returns:
    Arrays by name.
  """
  return {
    name: np.array(jax.random.key_data(x) if _is_key(x) else x, copy=True)
    for name, x in _named_leaves(tree)
  }


def tree_from_arrays(arrays: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
  """Puts arrays back into a pytree.

  Args:
    arrays: by name; more than `like` needs is fine.
    like: arrays or ShapeDtypeStructs that give structure and dtypes.

  Returns:
    A pytree of new arrays on the default device.
  """

  def put(path, leaf):
    array = arrays[_name(path)]
    if _is_key(leaf):
      implementation = jax.random.key_impl(leaf)
      return jax.random.wrap_key_data(jnp.array(array), impl=implementation)
    return jnp.array(array, leaf.dtype)

  return jax.tree_util.tree_map_with_path(put, like)


def differences(arrays: Mapping[str, np.ndarray], like: PyTree) -> str:
  """Says in one sentence each which arrays are missing, unknown or reshaped.

  Args:
    arrays: by name; those whose first path element `like` lacks are ignored.
    like: pytree that `tree_from_arrays` would fill.

  Returns:
    The sentences, or '' if the arrays fit. Parameters are named first and
    alone, because each of them returns in averages and optimizer moments.
  """
  shapes = jax.eval_shape(_without_keys, like)
  wanted = {name: x.shape for name, x in _named_leaves(shapes)}
  tops = {name.split('/')[0] for name in wanted}
  found = {k: v.shape for k, v in arrays.items() if k.split('/')[0] in tops}
  for top in ('params/', 'ema_params/', ''):
    here = {k: v for k, v in wanted.items() if k.startswith(top)}
    there = {k: v for k, v in found.items() if k.startswith(top)}
    if here != there:
      break
  else:
    return ''
  both = sorted(set(here) & set(there))
  reshaped = [
    f'{k} is {there[k]} instead of {here[k]}'
    for k in both
    if here[k] != there[k]
  ]
  return (
    f'Missing in it: {_listed(sorted(set(here) - set(there)))}.'
    f' Unknown to this model: {_listed(sorted(set(there) - set(here)))}.'
    f' Other shapes: {_listed(reshaped)}.'
  )


def digests_from_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
  """Returns a sha256 of each array: dtype, shape and values."""
  return {name: _digest(array) for name, array in arrays.items()}


def fingerprint(params: PyTree) -> str:
  """Returns a sha256 of parameters: names, shapes, dtypes and values.

  Args:
    params: pytree of arrays.

  Returns:
    64 hexadecimal digits, equal for equal parameters wherever they live.
  """
  return combined_digest(digests_from_arrays(arrays_from_tree(params)))


def combined_digest(digests: Mapping[str, str], prefix: str = '') -> str:
  """Returns one sha256 of many.

  Args:
    digests: by name, in any order.
    prefix: takes part only what is below it, by its name without it.

  Returns:
    64 hexadecimal digits: with the prefix `ema_params/` the `fingerprint` of
    the averaged parameters.
  """
  lines = [
    f'{name.removeprefix(prefix)} {digest}\n'
    for name, digest in sorted(digests.items())
    if name.startswith(prefix)
  ]
  return hashlib.sha256(''.join(lines).encode()).hexdigest()


def _named_leaves(tree):
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(_name(path), leaf) for path, leaf in leaves]


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _is_key(x):
  return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _without_keys(tree):
  return jax.tree.map(
    lambda x: jax.random.key_data(x) if _is_key(x) else x, tree
  )


def _digest(array):
  head = f'{array.dtype} {array.shape} '.encode()
  content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  digest = hashlib.sha256(head)
  digest.update(content.data)
  return digest.hexdigest()


def _listed(names: Sequence[str]) -> str:
  shown = ', '.join(names[:8]) or 'nothing'
  return shown + (f' and {len(names) - 8} more' if len(names) > 8 else '')
