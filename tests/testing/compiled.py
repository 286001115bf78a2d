# SPDX-License-Identifier: Apache-2.0
"""Functions as one program instead of one per operation.

Called eagerly, a function compiles each of its operations for each shape: tens
of programs of some 30 ms, which is most of what a test takes.
"""

from collections.abc import Callable
import functools
import inspect
from types import ModuleType
from typing import Any

from flax import linen as nn
import jax
import numpy as np


def function(wrapped: Callable[..., Any]) -> Callable[..., Any]:
  """`wrapped`, compiled: arrays and floats are inputs, all else is constant."""

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def run(tree, constants, inputs):
    inputs = iter(inputs)
    leaves = [next(inputs) if x is _Input else x for x in constants]
    args, kwargs = jax.tree.unflatten(tree, leaves)
    return wrapped(*args, **kwargs)

  @functools.wraps(wrapped)
  def call(*args, **kwargs):
    leaves, tree = jax.tree.flatten((args, kwargs))
    constants = tuple(x if _is_constant(x) else _Input for x in leaves)
    inputs = [x for x in leaves if not _is_constant(x)]
    return run(tree, constants, inputs)

  return call


def apply(model: nn.Module, *args, **kwargs) -> Any:
  """`model.apply`, compiled once for all models that are equal."""
  return _applied(model)(*args, **kwargs)


@functools.cache
def _applied(model):
  return function(model.apply)


class Module:
  """A module whose public functions are compiled, see `function`."""

  def __init__(self, module: ModuleType):
    self._module = module

  def __getattr__(self, name: str) -> Any:
    value = getattr(self._module, name)
    if inspect.isfunction(value):
      value = function(value)
    setattr(self, name, value)
    return value


class _Input:
  """Holds the place of an input."""


def _is_constant(x: Any) -> bool:
  return not isinstance(x, float | np.ndarray | np.generic | jax.Array)
