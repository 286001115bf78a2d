# SPDX-License-Identifier: Apache-2.0
"""Files that tests read: outputs of other code, and real sensor data."""

import pathlib
import unittest

# In the repository; golden/README.md says what they are.
GOLDEN = pathlib.Path(__file__).resolve().parent / 'golden'
# Beside the checkout, if at all: data with licences of their own.
BESIDE = GOLDEN.parents[2] / 'shared'


def require(name: str) -> pathlib.Path:
  """Returns the path of `name` beside the checkout, or skips the test."""
  path = BESIDE / name
  if not path.exists():
    raise unittest.SkipTest(f'{path} is not on this machine')
  return path
