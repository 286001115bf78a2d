# SPDX-License-Identifier: Apache-2.0
"""Compilation with the options that the programs of this library need.

On CPU, XLA hands whole subgraphs to its YNNPACK library. Of jaxlib 0.10.2,

- that harms convolutions of few channels: the kernel gradient of a 3 x 3
  convolution of 24 channels takes twice as long as without, and a training
  step of the demonstration 1.4 times (benchmarks/train_step.py);
- it computes (c * x).sum(-1, keepdims=True) * x, with a constant c and under a
  vmap over a thousand rows, wrongly.

Only single products are left to it here.
"""

from collections.abc import Callable
import functools
import os
import pathlib
from typing import Any

import jax
from jax import core
from jax.experimental import xla_metadata

CPU_OPTIONS = {
  'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'
}
# The emitter that XLA used before takes half the time to compile the many small
# loops of a search, which run as fast.
QUICK_OPTIONS = {'xla_cpu_use_fusion_emitters': False}


@functools.cache
def options(quick: bool = False) -> dict[str, str | bool]:
  """`CPU_OPTIONS`, or nothing on other devices and where jaxlib lacks them.

  Args:
    quick: `QUICK_OPTIONS` too.
  """
  if jax.default_backend() != 'cpu':
    return {}
  found = {}
  for wanted in (CPU_OPTIONS, QUICK_OPTIONS if quick else {}):
    try:
      jax.jit(lambda x: x, compiler_options=wanted).lower(0).compile()
    except (jax.errors.JaxRuntimeError, ValueError):
      continue
    found |= wanted
  return found


class Jitted:
  """A function that is jitted when it is first asked for anything."""

  def __init__(self, function, quick, kwargs):
    functools.update_wrapper(self, function)
    self._quick, self._kwargs = quick, kwargs

  @functools.cached_property
  def _jitted(self):
    return jax.jit(
      self.__wrapped__, compiler_options=options(self._quick), **self._kwargs
    )

  @functools.cached_property
  def _inside(self):
    return jax.jit(self.__wrapped__, **self._kwargs)

  def __call__(self, *args, **kwargs) -> Any:
    """The function's value, with `options()` unless inside of another jit."""
    leaves = jax.tree.leaves((args, kwargs))
    if any(isinstance(leaf, core.Tracer) for leaf in leaves):
      return self._inside(*args, **kwargs)
    return self._jitted(*args, **kwargs)

  def __getattr__(self, name):  # lower, clear_cache, ...
    if name.startswith('__'):
      raise AttributeError(name)
    return getattr(self._jitted, name)


def jit(
  function: Callable[..., Any], *, quick: bool = False, **kwargs
) -> Jitted:
  """`jax.jit(function, **kwargs)` with `options(quick)`.

  Inside of another jit, whose options hold there, it is a plain one. No device
  is looked for before the first call: modules may use it as a decorator.

  Args:
    function: what to jit.
    quick: whether it should rather compile than run in little time.
    **kwargs: of `jax.jit`.
  """
  return Jitted(function, quick, kwargs)


def once(function: Callable[..., Any]) -> Callable[..., Any]:
  """A part of a program that XLA compiles on its own, and computes once.

  On CPU, XLA makes a loop of every array that is used more than once, and each
  of these loops computes anew what its array is made of. Where many numbers
  depend on each other, as in a solver, programs grow to several times their
  size, and so does the time to compile them. A call that is not inlined has its
  results in memory, and is compiled once however often it appears.

  Args:
    function: of pytrees of arrays.
  """

  @jax.jit
  def inside(*args):
    with xla_metadata.set_xla_metadata(inlineable='true'):
      return function(*args)

  @functools.wraps(function)
  def called(*args):
    if jax.default_backend() != 'cpu':
      return inside(*args)
    with xla_metadata.set_xla_metadata(inlineable='false'):
      return inside(*args)

  return called


def keep_programs(folder: str | os.PathLike | None = None) -> pathlib.Path:
  """Keeps compiled programs on disk, for other processes.

  A first call then loads in a fraction of a second what another process
  compiled; a program is kept for the machine and the versions it was made with.
  Call it before the first computation.

  Args:
    folder: where; by default `i2ploc/programs` in the user's cache.

  Returns:
    The folder; JAX makes it when there is something to keep.
  """
  if folder is None:
    cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = pathlib.Path(cache) / 'i2ploc' / 'programs'
  jax.config.update('jax_compilation_cache_dir', os.fspath(folder))
  # By default only what took a second to compile is kept.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  return pathlib.Path(folder)
