# SPDX-License-Identifier: Apache-2.0
"""Descriptors of many readings, part by part, through kills.

Each part lies in a file of its own as soon as it is done: the next run of the
same verb computes only what is missing. Parts of another model, config or map
are never mixed in; whoever names the folder takes care of that.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import pathlib

import numpy as np

from i2ploc import files

# Readings of one file.
PART_ROWS = 256
Batch = Mapping[str, np.ndarray]


def described(
  side: str,
  rows: np.ndarray,
  embed: Callable[[Batch], np.ndarray],
  batches: Callable[[np.ndarray], Iterable[Batch]],
  folder: pathlib.Path,
) -> Iterator[dict[str, np.ndarray]]:
  """Describes readings; says how far it is.

  Args:
    side: of the readings.
    rows: [N] of the frame table.
    embed: descriptors [B, D] or [B, V, D] of a batch.
    batches: the readings of rows in their order, with `mask` [B].
    folder: of the parts of this side.

  Yields:
    Batches of at most `PART_ROWS` readings: descriptors [B, V, D], mask [B] and
    <side>_index [B], the rows.
  """
  for start in range(0, len(rows), PART_ROWS):
    part = rows[start : start + PART_ROWS]
    path = folder / f'{side}_{start:08d}.npz'
    if path.exists():
      found = files.load_arrays(path, 'delete it')['descriptors']
    else:
      found = np.concatenate(
        [
          np.asarray(embed(batch), np.float32)[np.asarray(batch['mask'])]
          for batch in batches(part)
        ]
      )
      files.save_arrays(path, {'descriptors': found})
    if len(rows) > PART_ROWS:
      done = start + len(part)
      print(f'described {done} of {len(rows)} {side} readings', flush=True)
    yield {
      'descriptors': found.reshape(len(part), -1, found.shape[-1]),
      'mask': np.ones(len(part), bool),
      f'{side}_index': part,
    }
