# SPDX-License-Identifier: Apache-2.0
"""Several datasets as one.

Frames keep their towns, drives and numbers; every part reads its own, with its
own camera and its own LiDAR.
"""

import collections
from collections.abc import Sequence
import dataclasses

import numpy as np

from i2ploc.errors import InputError
from input_pipeline import schema


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
  """`schema.Dataset.read` over parts.

  Compared and hashed by identity, as the function that it stands for.

  Attributes:
    parts: of the dataset, in the order of its table.
    end: [N] int, the row after each part's last.
  """

  parts: tuple[schema.Dataset, ...]
  end: np.ndarray

  def __call__(
    self, row: int, what: tuple[str, ...] = ('image', 'points')
  ) -> dict[str, np.ndarray]:
    """Reads a row with its part's own reader; see `schema.Dataset`."""
    index = int(np.searchsorted(self.end, row, side='right'))
    start = int(self.end[index - 1]) if index else 0
    return self.parts[index].read(int(row) - start, what)


def join(name: str, parts: Sequence[schema.Dataset]) -> schema.Dataset:
  """One dataset out of several.

  Args:
    name: of the whole.
    parts: at least one; their towns and drives differ. Labels of different
      meanings are dropped, and so are conditions and renderings that not all
      have.

  Raises:
    InputError: nothing to join, a town or drive in two parts, parts that name
      their queries beside parts that do not, or one whose right answers or
      rough positions are listed by row.
  """
  if not parts:
    raise InputError(f'{name}: no datasets to join.')
  for column in ('town', 'drive'):
    seen = [{*getattr(part.frames, column).tolist()} for part in parts]
    if len(set().union(*seen)) < sum(map(len, seen)):
      raise InputError(
        f'{name}: parts share a {column}: {[sorted(names) for names in seen]}.'
      )
  listed = [
    part.name
    for part in parts
    if part.truth is not None or part.rough is not None
  ]
  if listed:
    raise InputError(
      f'{name}: {listed} say by row which answers are right, or about where '
      'frames are, as photos do; only drives can be joined.'
    )
  queries = [part.queries for part in parts if part.queries is not None]
  named = [part.name for part in parts if part.queries is not None]
  if named and len(named) < len(parts):
    raise InputError(
      f'{name}: {named} name their queries and the other parts do not; write '
      'all splits with the same rule.'
    )
  frames = schema.concatenate(part.frames for part in parts)
  end = np.cumsum([len(part.frames.town) for part in parts])
  labels = {part.labels for part in parts}
  return schema.Dataset(
    name,
    frames,
    dict(collections.ChainMap(*(dict(part.rigs) for part in parts))),
    Reader(tuple(parts), end),
    labels.pop() if len(labels) == 1 else None,
    np.concatenate(queries) if named else None,
    conditions=_column([part.conditions for part in parts]),
  )


def _column(columns):
  """Of all parts; None unless all of them have it."""
  known = [column for column in columns if column is not None]
  return np.concatenate(known) if len(known) == len(columns) else None


@dataclasses.dataclass(frozen=True, eq=False)
class _Some:
  """`schema.Dataset.read` over some rows of a dataset."""

  dataset: schema.Dataset
  rows: np.ndarray

  def __call__(self, row, what=('image', 'points')):
    return self.dataset.read(int(self.rows[row]), what)


def unplaced(
  dataset: schema.Dataset, rows: np.ndarray, town: str
) -> schema.Dataset:
  """Some frames of a dataset, of which nobody knows where they were taken.

  Args:
    dataset: labels, queries, truth and rough positions are left out.
    rows: [N] of its frame table, at least one; their drives have equal rigs.
    town: their town, and their drive. They are counted from 0, without times.

  Raises:
    InputError: no rows, or rigs that differ.
  """
  if not len(rows):
    raise InputError(f'{dataset.name}: no frames to take out of it.')
  frames = dataset.frames.take(rows)
  first, *others = (
    dataset.rigs[d] for d in dict.fromkeys(frames.drive.tolist())
  )
  if any(_content(rig) != _content(first) for rig in others):
    raise InputError(
      f'{dataset.name}: {len(rows)} frames of drives with different cameras '
      'cannot be one drive. Take them from drives with the same one.'
    )
  count = len(rows)
  frames = frames._replace(
    town=np.full(count, town),
    drive=np.full(count, town),
    frame=np.arange(count),
    timestamp=np.full(count, np.nan),
    world_from_body=np.full((count, 4, 4), np.nan),
    name=schema.frame_names(np.full(count, town), np.arange(count)),
  )
  conditions = dataset.conditions
  return schema.Dataset(
    f'{dataset.name}/{town}',
    frames,
    {town: first},
    _Some(dataset, np.asarray(rows)),
    conditions=None if conditions is None else conditions[rows],
  )


def _content(rig):
  """What a rig is, to compare it with others."""
  lens = rig.lens
  return (
    rig.image_size,
    rig.camera_from_body.tolist(),
    None
    if lens is None
    else (lens.model, lens.intrinsics.tolist(), lens.coefficients.tolist()),
  )
