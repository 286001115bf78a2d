# SPDX-License-Identifier: Apache-2.0
"""Mapillary street-level sequences (MSLS) as they are unpacked.

  ROOT/train_val/CITY/{database,query}/images/KEY.jpg
                                      /postprocessed.csv  key, easting, northing
                                      /raw.csv            key, ca, pano
                                      /subtask_index.csv  all (validation)

As in the official evaluation of single images, a city is a database of its own,
panoramas are left out on both sides, and where subtask_index.csv is there only
its subtask 'all' takes part: of cph and sf 740 queries and 18,871 references,
where copies of the set in folders of their own have some 11,000 queries. How
many are left out is logged.

Reference:
  Warburg et al., Mapillary Street-Level Sequences, CVPR 2020, and the authors'
  evaluation (github.com/mapillary/mapillary_sls).
"""

import pathlib
from typing import NamedTuple

from absl import logging
import numpy as np

from i2ploc.errors import InputError
from i2ploc.photos import csv_tables

DATABASE, QUERY = 'database', 'query'
_POSITIONS, _RAW = 'postprocessed.csv', 'raw.csv'
_SUBTASKS = 'subtask_index.csv'
_COLUMNS = {
  'key': ('key',),
  'x': ('easting',),
  'y': ('northing',),
  'heading': ('ca',),
  'pano': ('pano',),
  'all': ('all',),
}


class Part(NamedTuple):
  """The photos of one side of a city, in the order of the table.

  Attributes:
    names: N paths from the root.
    east_north: float64 [N, 2], metres.
    compass: float64 [N], degrees clockwise from north; NaN where unknown.
  """

  names: list[str]
  east_north: np.ndarray
  compass: np.ndarray


def is_city(folder: pathlib.Path) -> bool:
  """Whether a folder is one of the cities."""
  return all(
    (folder / side / _POSITIONS).is_file() for side in (DATABASE, QUERY)
  )


def read_part(root: pathlib.Path, city: pathlib.Path, side: str) -> Part:
  """The photos of one side of a city.

  Args:
    root: of the names.
    city: the folder.
    side: `DATABASE` or `QUERY`.

  Raises:
    MissingFileError: raw.csv is missing.
    InputError: the tables do not fit each other, or no photo is left.
  """
  folder = city / side
  place = _column(folder / _POSITIONS, 'key', 'x', 'y')
  raw = _column(folder / _RAW, 'key', 'heading', 'pano')
  if place['key'] != raw['key']:
    raise InputError(
      f'{folder}: {_POSITIONS} and {_RAW} list other photos, or in another'
      ' order. Unpack them again.'
    )
  taken = np.array([text.lower() == 'false' for text in raw['pano']])
  panoramas = int((~taken).sum())
  if (folder / _SUBTASKS).is_file():
    subtask = _column(folder / _SUBTASKS, 'all')['all']
    if len(subtask) != len(taken):
      raise InputError(
        f'{folder}: {_SUBTASKS} has {len(subtask)} rows, {_POSITIONS}'
        f' {len(taken)}. Unpack them again.'
      )
    taken &= np.array([text.lower() == 'true' for text in subtask])
  logging.info(
    '%s: %d of %d photos; %d panoramas are left out.',
    folder, taken.sum(), len(taken), panoramas,
  )  # fmt: skip
  if not taken.any():
    raise InputError(f'{folder}: no photo is left without panoramas.')
  base = (folder / 'images').relative_to(root).as_posix()
  numbers = {
    column: np.array([csv_tables.number(text) for text in texts])[taken]
    for column, texts in (place | raw).items()
    if column in ('x', 'y', 'heading')
  }
  keys = np.array(place['key'])[taken]
  return Part(
    names=[f'{base}/{key}.jpg' for key in keys.tolist()],
    east_north=np.stack([numbers['x'], numbers['y']], 1),
    compass=numbers['heading'],
  )


def _column(path: pathlib.Path, *wanted: str) -> dict[str, list[str]]:
  """The cells of some columns of a table."""
  table = csv_tables.read_table(path, _COLUMNS, 'MSLS')
  if missing := [name for name in wanted if name not in table.columns]:
    called = [_COLUMNS[name][0] for name in missing]
    raise InputError(f'{path} has no column {" and ".join(called)}.')
  return {
    name: [table.cell(cells, name) for cells in table.rows.values()]
    for name in wanted
  }
