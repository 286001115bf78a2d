# SPDX-License-Identifier: Apache-2.0
"""The data that a config names."""

import functools
from typing import Any

from i2ploc.errors import InputError
from input_pipeline import datasets
from input_pipeline.sources import drives
from input_pipeline.sources import rgbd

Source = drives.Source | rgbd.RgbdSource
# By the config's `data.name`.
SOURCES = {
  name: functools.partial(drives.Source, name=name) for name in datasets.NAMES
} | {'tum_rgbd': rgbd.RgbdSource}


def open_source(config: Any, data_dir: str | None) -> Source | None:
  """The source of a config; None of one that names no data.

  Args:
    config: a ConfigDict, `data` of which has the fields of a source.
    data_dir: where the data lies.

  Raises:
    InputError: no dataset has this name.
  """
  if 'data' not in config:
    return None
  fields = dict(**config.data)
  name = fields.pop('name')
  if name not in SOURCES:
    raise InputError(f'Unknown dataset {name!r}; known: {sorted(SOURCES)}.')
  return SOURCES[name](data_dir=data_dir, **fields)
