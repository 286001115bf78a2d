# SPDX-License-Identifier: Apache-2.0
"""photos.json: what a page of photos needs beside predictions.npz.

Predictions name rows of the frame table; this says which file a row is, where
the files lie, what counts as right, which photos are the same one, and whose
weights described them. A page reads the photos themselves, so that it can show
them in their own shape.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import os
import pathlib
import typing

import numpy as np

from i2ploc import files

NAME = 'photos.json'
_LENGTHS = ('m', 'frames')


class Frames(typing.Protocol):
  """The columns of a frame table of photos."""

  name: np.ndarray  # [F] str, paths from the folder, with '/'
  drive: np.ndarray  # [F] str
  frame: np.ndarray  # [F] int, number in order of name


def save_photos(
  workdir: str | os.PathLike,
  frames: Frames,
  *,
  folder: str | os.PathLike,
  radius: float,
  unit: str = 'm',
  ordered: bool = False,
  duplicates: Iterable[tuple[int, int]] = (),
  weights: Mapping[str, str] | None = None,
  confidence: str = '',
) -> None:
  """Writes photos.json into a workdir.

  Args:
    workdir: that holds predictions.npz, or will.
    frames: the frame table that their rows count.
    folder: of the photos.
    radius: the largest distance of a right answer, in `unit`; 0 where that is
      no length, whatever is given.
    unit: 'm', 'frames', or 'overlap' and 'listed', where a distance is 0 or 1.
    ordered: a photo follows the one before it, as frames of a drive do.
    duplicates: rows of a query and of the same photo in the map.
    weights: `name` of the encoder, `what` it is, and its `licence`.
    confidence: where confidences come from, or why there are none; a line.
  """
  files.save_json(
    pathlib.Path(workdir) / NAME,
    {
      'folder': os.path.abspath(os.path.expanduser(folder)),
      'radius': float(radius) if unit in _LENGTHS else 0.0,
      'unit': unit,
      'ordered': bool(ordered),
      'names': [str(name) for name in frames.name],
      'drives': [str(drive) for drive in frames.drive],
      'numbers': [int(number) for number in frames.frame],
      'duplicates': [[int(query), int(row)] for query, row in duplicates],
      'weights': dict(weights or {}),
      'confidence': confidence,
    },
    indent=None,
  )
