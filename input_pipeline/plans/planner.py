# SPDX-License-Identifier: Apache-2.0
"""What all planners share.

A planner says which frames every step of a round of training looks at. It
follows from the seed, the round and the descriptors alone: frames are put in
the order of their names before anything is drawn, so that a plan does not
depend on the order in which a reader lists its files.
"""

from collections.abc import Callable

import numpy as np

from i2ploc.errors import InputError
from input_pipeline import schema

# Of a round of S steps with B entries: `row` [S, B] int64 into the frame
# table, and further keys [S, B] that go into the batch as they are.
Plan = dict[str, np.ndarray]
# Rows [N] to unit descriptors [N, D] float32 by the model as it is now.
Describe = Callable[[np.ndarray], np.ndarray]
# Called as `plan(number of the round, describe)`.
Planner = Callable[[int, Describe], Plan]


def rows_by_name(frames: schema.FrameTable, kept: np.ndarray) -> np.ndarray:
  """The kept rows in the order of their names.

  Args:
    frames: the table.
    kept: [F] bool.

  Returns:
    [N] int64 rows.
  """
  rows = np.flatnonzero(kept)
  return rows[np.argsort(frames.name[rows], kind='stable')]


def placed_images(frames: schema.FrameTable) -> np.ndarray:
  """[F] bool, frames with an image and a known horizontal position."""
  return frames.has_image & np.isfinite(frames.position[:, :2]).all(axis=1)


def random_of_round(seed: int, number: int) -> np.random.Generator:
  """Random numbers that only the seed and the number of the round decide."""
  return np.random.default_rng([seed, number])


def shuffled_epochs(
  rng: np.random.Generator, count: int, length: int
) -> np.ndarray:
  """Indices below `count`, shuffled epoch after shuffled epoch.

  Args:
    rng: draws the orders.
    count: indices of an epoch, at least 1.
    length: L, of the result.

  Returns:
    [L] int64; none of its indices comes more than once more than another.
  """
  epochs = np.tile(np.arange(count), (-(-length // count), 1))
  return rng.permuted(epochs, axis=1).ravel()[:length]


def check_sizes(batch_size: int, steps: int, part: int, what: str) -> None:
  """Refuses batches that do not divide into equal parts.

  Args:
    batch_size: B, entries of a step.
    steps: S, of a round.
    part: B has to be a multiple of it.
    what: the part's meaning, for the message.

  Raises:
    InputError: B is no positive multiple, or there is no step.
  """
  if part < 1 or batch_size < 1 or batch_size % part:
    raise InputError(
      f'batch_size={batch_size} has to be a positive multiple of {part} '
      f'({what}).'
    )
  if steps < 1:
    raise InputError(f'A round has at least one step, not steps={steps}.')
