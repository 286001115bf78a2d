# SPDX-License-Identifier: Apache-2.0
"""Settings of the test run; they must be set before jax is imported.

Nearly all of its time goes into compilation, and what is compiled hardly runs.
"""

import importlib.util
import mmap
import os
import pathlib
import shutil
import sys
import tempfile

import pytest

# XLA's older emitter of loops compiles twice as fast as its present one.
EMITTER = 'xla_cpu_use_fusion_emitters'
# Linux grants a process 65,530 memory mappings; a program takes tens of them.
MOST_MAPPINGS = 30_000


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


def _num_mappings() -> int:
  maps = pathlib.Path('/proc/self/maps')
  return maps.read_bytes().count(b'\n') if maps.exists() else 0


@pytest.fixture(scope='module', autouse=True)
def forget_programs():
  """Frees what has been compiled before memory mappings run out.

  Small programs, such as the sum of two arrays of a shape, serve many files.
  """
  yield
  if 'jax' in sys.modules and _num_mappings() > MOST_MAPPINGS:
    sys.modules['jax'].clear_caches()
