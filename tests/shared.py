# SPDX-License-Identifier: Apache-2.0
"""Reference outputs and real sensor data that may lie beside a checkout."""

import pathlib
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[1].parent / 'shared'


def require(name: str) -> pathlib.Path:
  """Returns the path of `name` beside the checkout, or skips the test."""
  path = ROOT / name
  if not path.exists():
    raise unittest.SkipTest(f'{path} is not on this machine')
  return path
