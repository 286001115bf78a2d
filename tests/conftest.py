# SPDX-License-Identifier: Apache-2.0
"""Settings of the test run; they must be set before jax is imported."""

import os

import pytest

# Most of the time goes into compilation; what is compiled hardly runs.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')


@pytest.fixture(scope='module', autouse=True)
def forget_programs():
  """Frees what a file has compiled.

  A program takes tens of memory mappings, of which Linux grants a process
  65,530: the whole suite in two processes comes so near that some run of it
  ends in a segmentation fault.
  """
  yield
  import jax  # noqa: PLC0415 - after the settings above

  jax.clear_caches()
