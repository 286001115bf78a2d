# SPDX-License-Identifier: Apache-2.0
"""Sequences of frames of a drive."""

import numpy as np

from i2ploc.errors import InputError
from input_pipeline import schema


def sequence_rows(
  frames: schema.FrameTable, length: int, stride: int = 1
) -> np.ndarray:
  """For every frame the rows of the sequence that ends with it.

  A planner that should draw frames with a whole sequence alone gets a table
  whose `has_image` is `(rows >= 0).all(axis=1)`.

  Args:
    frames: the table; of a drive the frames with an image count, in the order
      of their numbers.
    length: T, frames of a sequence.
    stride: from a frame to the next of its sequence.

  Returns:
    [F, T] int64 rows, oldest first, the frame itself last; -1 where the drive
    had not begun, and all along a frame without image.

  Raises:
    InputError: length or stride is below 1.
  """
  if min(length, stride) < 1:
    raise InputError(
      f'length={length}, stride={stride}: both are at least 1 frame.'
    )
  rows = np.full((len(frames.town), length), -1, np.int64)
  back = stride * np.arange(length)[::-1]
  for drive in np.unique(frames.drive):
    members = np.flatnonzero((frames.drive == drive) & frames.has_image)
    members = members[np.argsort(frames.frame[members], kind='stable')]
    place = np.arange(len(members))[:, None] - back
    rows[members] = np.where(place >= 0, members[np.maximum(place, 0)], -1)
  return rows
