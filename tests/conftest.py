# SPDX-License-Identifier: Apache-2.0
"""Settings of the test run; they must be set before jax is imported.

Nearly all of its time goes into compilation, and what is compiled hardly runs.
"""

import ctypes
import gc
import importlib.util
import math
import mmap
import os
import pathlib
import shutil
import sys
import tempfile

import pytest

# XLA's older emitter of loops compiles twice as fast as its present one.
EMITTER = 'xla_cpu_use_fusion_emitters'
# Bytes. A small program takes a megabyte and three memory mappings, of which
# Linux grants a process 65,530; a large one takes tens of both.
MOST_MEMORY = 1.5e9


def _knows(flag: str) -> bool:
  """Whether jaxlib has an XLA flag; of one that it lacks, XLA dies."""
  folder = importlib.util.find_spec('jaxlib').submodule_search_locations[0]
  library = pathlib.Path(folder) / 'libjax_common.so'
  if not library.exists():
    return False
  with library.open('rb') as file:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
      return content.find(flag.encode()) >= 0


def pytest_configure(config):
  """What the processes of a run share: settings and large programs."""
  if hasattr(config, 'workerinput'):
    return  # A worker inherits them.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  if _knows(EMITTER):
    flags = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'{flags} --{EMITTER}=false'.strip()
  config.programs = tempfile.mkdtemp(prefix='i2ploc_programs_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = config.programs
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'


def pytest_unconfigure(config):
  """Removes the programs."""
  if hasattr(config, 'programs'):
    shutil.rmtree(config.programs, ignore_errors=True)


def _memory() -> float:
  """Bytes that this process holds; infinite where Linux does not say it."""
  statistics = pathlib.Path('/proc/self/statm')
  if not statistics.exists():
    return math.inf
  return int(statistics.read_text().split()[1]) * mmap.PAGESIZE


@pytest.fixture(scope='module', autouse=True)
def forget_programs():
  """Frees what has been compiled before memory runs out.

  Small programs, such as the sum of two arrays of a shape, serve many files.
  """
  yield
  if 'jax' in sys.modules and _memory() > MOST_MEMORY:
    sys.modules['jax'].clear_caches()
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, 'malloc_trim'):  # glibc keeps what is freed
      library.malloc_trim(0)
