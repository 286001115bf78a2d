# SPDX-License-Identifier: Apache-2.0
"""Mathematics that is written once, for numpy and for jax.

A function of this kind computes with the library of its arguments: numpy arrays
in, numpy arrays out, in their own precision and without the cost of a dispatch
to a device. As soon as one argument is on a device or traced, all is jax.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# On a device and traced, or on the host.
Array = jax.Array | np.ndarray
# TF32 and bfloat16 products would move a point at 100 m by centimetres.
EXACT = jax.lax.Precision.HIGHEST


def namespace(*arrays: Any) -> Any:
  """`jax.numpy` if one of the arrays is of jax, else `numpy`."""
  for array in arrays:
    if isinstance(array, jax.Array):
      return jnp
  return np


def matmul(a: Array, b: Array) -> Any:
  """a @ b, in full precision on every device."""
  if namespace(a, b) is np:
    return a @ b
  return jnp.matmul(a, b, precision=EXACT)


def rsqrt(value: Any) -> Any:
  """1 / sqrt(value)."""
  if namespace(value) is np:
    return 1 / np.sqrt(value)
  return jax.lax.rsqrt(value)


def mapped(matrix: Array, points: Sequence[Array] | Array) -> Any:
  """Coordinates of `matrix @ point`, one array each.

  Args:
    matrix: [R, C].
    points: C arrays [N], the coordinates of N points.
  """
  if namespace(matrix, *points) is np:
    return matrix @ np.concatenate(points).reshape(len(points), -1)
  # Written out: a product this narrow does not vectorise on CPU.
  found = []
  for row in matrix:
    products = [row[i] * coordinate for i, coordinate in enumerate(points)]
    found.append(functools.reduce(jnp.add, products))
  return tuple(found)


def table(rows: Sequence[Any], like: Array) -> Any:
  """Arrays and numbers [...] as one array [R, C, ...].

  Args:
    rows: R rows of C entries that broadcast to the shape of `like`.
    like: an array of that shape and of the wanted type.
  """
  leaves = [entry for row in rows for entry in row]
  if namespace(like, *leaves) is np:
    joined = np.empty((len(leaves), *like.shape), like.dtype)
    for place, entry in enumerate(leaves):
      joined[place] = entry
  else:
    joined = jnp.stack([jnp.broadcast_to(leaf, like.shape) for leaf in leaves])
  return joined.reshape(len(rows), len(rows[0]), *like.shape)
