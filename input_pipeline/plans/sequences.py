# SPDX-License-Identifier: Apache-2.0
"""Sequences of frames of a drive."""

import numpy as np

from i2ploc.errors import InputError
from input_pipeline import schema

# A car at its fastest makes some times its usual step between two readings.
LEAP = 5.0


def sequence_rows(
  frames: schema.FrameTable, length: int, stride: int = 1
) -> np.ndarray:
  """For every frame the rows of the sequence that ends with it.

  A planner that should draw frames with a whole sequence alone gets a table
  whose `has_image` is `(rows >= 0).all(axis=1)`.

  A drive may be cut: a test has runs of it far from each other. A step of more
  than `LEAP` times the usual one, in metres or where nobody knows them in
  numbers, begins another run.

  Args:
    frames: the table; of a drive the frames with an image count, in the order
      of their numbers.
    length: T, frames of a sequence.
    stride: from a frame to the next of its sequence.

  Returns:
    [F, T] int64 rows, oldest first, the frame itself last; -1 where the run had
    not begun, and all along a frame without image.

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
    number = np.arange(len(members))
    place = number[:, None] - back
    start = np.maximum.accumulate(
      np.where(_begins_run(frames, members), number, 0)
    )
    rows[members] = np.where(
      place >= start[:, None], members[np.maximum(place, 0)], -1
    )
  return rows


def _begins_run(frames: schema.FrameTable, members: np.ndarray) -> np.ndarray:
  """[N] bool, frames of a drive that are far from the one before."""
  begins = np.zeros(len(members), bool)
  if len(members) < 3:
    return begins
  step = np.hypot(*np.diff(frames.position[members, :2], axis=0).T)
  if not np.isfinite(step).all():
    step = np.diff(frames.frame[members]).astype(float)
  moves = step[step > 0]  # not those that stand still
  if len(moves):
    begins[1:] = step > LEAP * np.median(moves)
  return begins
