# SPDX-License-Identifier: Apache-2.0
"""Frame tables for tests of planners, and the same table in another order."""

from collections.abc import Callable

import numpy as np

from input_pipeline import schema


def table(town, drive, frame, x, y, heading) -> schema.FrameTable:
  """Frames with image and scan; scalars stand for whole columns."""
  town, drive, frame, x, y, heading = np.broadcast_arrays(
    town, drive, frame, x, y, heading
  )
  count = len(frame)
  pose = np.tile(np.eye(4), (count, 1, 1))
  pose[:, 0, 0] = pose[:, 1, 1] = np.cos(heading)
  pose[:, 1, 0], pose[:, 0, 1] = np.sin(heading), -np.sin(heading)
  pose[:, 0, 3], pose[:, 1, 3] = x, y
  return schema.FrameTable(
    town,
    drive,
    frame,
    frame.astype(float),
    pose,
    np.ones(count, bool),
    np.ones(count, bool),
    schema.frame_names(drive, frame),
  )


def join(*frames: schema.FrameTable) -> schema.FrameTable:
  """One table of several."""
  return schema.concatenate(frames)


def street(
  town: str, drive: str, count: int, step: float = 2.0, y: float = 0.0
) -> schema.FrameTable:
  """A drive eastwards with a frame every `step` metres."""
  number = np.arange(count)
  return table(town, drive, number, number * step, y, 0.0)


def scattered(seed: int, count: int, size: float) -> schema.FrameTable:
  """Two towns, two drives each, frames anywhere in a square of `size` m."""
  rng = np.random.default_rng(seed)
  town = rng.choice(['a', 'b'], count)
  return table(
    town,
    np.char.add(town, rng.choice(['0', '1'], count)),
    np.arange(count),
    *rng.uniform(-size / 2, size / 2, (2, count)),
    rng.uniform(-np.pi, np.pi, count),
  )


def unit_rows(seed: int, count: int, width: int = 16) -> np.ndarray:
  """Random descriptors, one per row of a table."""
  x = np.random.default_rng(seed).normal(size=(count, width))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def describe_nothing(rows):
  """For planners that need no descriptor."""
  raise AssertionError('asked for descriptors')


def assert_independent_of_order(
  test, frames: schema.FrameTable, make: Callable, descriptors=None
) -> None:
  """Plans name the same frames when the rows of the table are shuffled.

  Args:
    test: the test case.
    frames: a table.
    make: makes a planner of a table and of the rows of `frames` in it.
    descriptors: of the rows of `frames`; None where none may be asked for.
  """
  rows = np.arange(len(frames.town))
  shuffled = np.random.default_rng(99).permutation(rows)

  def planned(order, number):
    taken = frames.take(order)

    def describe(asked):
      return descriptors[order][asked]

    plan = make(taken, order)(
      number, describe_nothing if descriptors is None else describe
    )
    return plan | {'row': taken.name[plan['row']]}

  for number in (0, 3):
    first, again = planned(rows, number), planned(rows, number)
    other = planned(shuffled, number)
    test.assertEqual(first.keys(), other.keys())
    for name, values in first.items():
      np.testing.assert_array_equal(values, again[name], name)
      np.testing.assert_array_equal(values, other[name], name)
  test.assertFalse(np.array_equal(first['row'], planned(rows, 1)['row']))
