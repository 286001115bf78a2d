# SPDX-License-Identifier: Apache-2.0
"""Batches of P places with K views each.

What a place is, is a table: frames near an anchor, or frames with equal
numbers, as the years of a satellite tile or the seasons of one railway.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from input_pipeline import pairing
from input_pipeline import schema
from input_pipeline.plans import neighbours
from input_pipeline.plans import planner


class Places(NamedTuple):
  """Places and the frames that show them.

  Attributes:
    town: [A] str.
    first: a list per place: rows of which one is drawn as its first view.
    views: a list per place: rows of which the other views are drawn, those of
      `first` among them.
    drive: [F] str of every row.
    variant: [F] int32, the number of the drive among those of its town, as
      their names sort; None where views of a place are only near each other.
  """

  town: np.ndarray
  first: pairing.Lists
  views: pairing.Lists
  drive: np.ndarray
  variant: np.ndarray | None = None


def near_places(
  frames: schema.FrameTable,
  *,
  max_offset: float = 10.0,
  max_heading: float | None = pairing.MAX_HEADING,
) -> Places:
  """A place around every frame that has another one near.

  Args:
    frames: the table; frames without image or position are left out.
    max_offset: metres from the anchor to another view, at most.
    max_heading: radians below which two headings agree; None where nobody
      knows them.

  Returns:
    The places, as the names of their anchors sort. Two of them may be near
    each other: whether they are one is for the relation of the loss to say.

  Raises:
    InputError: no frame has another one near.
  """
  rows = planner.rows_by_name(frames, planner.placed_images(frames))
  views = neighbours.near(frames, rows, rows, max_offset, max_heading)
  kept = np.flatnonzero(views.length > 1)
  if not len(kept):
    raise InputError(
      f'None of {len(rows)} frames with image and position has another one '
      f'within {max_offset} m and {max_heading} rad.'
    )
  anchors = rows[kept]
  return Places(
    frames.town[anchors],
    pairing.Lists(np.arange(len(kept) + 1), anchors),
    _take(views, kept),
    frames.drive,
  )


def frame_places(frames: schema.FrameTable) -> Places:
  """A place for every number that several frames of a town share.

  Args:
    frames: the table; frames without image are left out. Positions do not
      matter.

  Returns:
    The places by town and number, and the variant of every row.

  Raises:
    InputError: no two frames of a town share a number.
  """
  rows = planner.rows_by_name(frames, frames.has_image)
  town = np.unique(frames.town[rows], return_inverse=True)[1]
  of_row, size = np.unique(
    np.column_stack([town, frames.frame[rows]]),
    axis=0,
    return_inverse=True,
    return_counts=True,
  )[1:]
  order = rows[np.argsort(of_row.ravel(), kind='stable')]
  views = pairing.Lists(np.concatenate([[0], np.cumsum(size)]), order)
  kept = np.flatnonzero(size > 1)
  if not len(kept):
    raise InputError(
      f'{len(rows)} frames with image, and no two of a town share a number: '
      'take places of frames near each other.'
    )
  variant = np.zeros(len(frames.town), np.int32)
  for name in np.unique(frames.town):
    here = frames.town == name
    variant[here] = np.unique(frames.drive[here], return_inverse=True)[1]
  views = _take(views, kept)
  return Places(
    frames.town[views.rows[views.start[:-1]]],
    views,
    views,
    frames.drive,
    variant,
  )


def _take(lists: pairing.Lists, kept: np.ndarray) -> pairing.Lists:
  start = np.concatenate([[0], np.cumsum(lists.length[kept])])
  parts = [lists[i] for i in kept]
  return pairing.Lists(start.astype(np.int64), np.concatenate(parts))


class Draw:
  """Draws views of the places of a batch."""

  def __init__(
    self,
    table: Places,
    num_views: int,
    cross_drive: float,
    conditions: Sequence[str] | None = None,
  ):
    """Draws nothing yet.

    Args:
      table: the places.
      num_views: K.
      cross_drive: probability that a view comes from another drive than the
        first view of its place, where there is one.
      conditions: [F] str, light and weather of every row. The views of a batch
        are then spread evenly over them, whatever the drive: of those that a
        place has, a view shows the one that has come least so far. None draws
        from all alike.

    Raises:
      InputError: an argument is out of range.
    """
    if not 0.0 <= cross_drive <= 1.0:
      raise InputError(f'cross_drive is a probability, not {cross_drive}.')
    self._table = table
    self._num_views = num_views
    self._cross_drive = cross_drive
    self._condition, self._num_conditions = None, 0
    if conditions is not None:
      if len(conditions) != len(table.drive):
        raise InputError(
          f'{len(conditions)} conditions of {len(table.drive)} frames.'
        )
      names, self._condition = np.unique(conditions, return_inverse=True)
      self._num_conditions = len(names)

  def __call__(
    self, chosen: np.ndarray, rng: np.random.Generator
  ) -> planner.Plan:
    """The entries of a batch, view after view and place after place.

    Args:
      chosen: [P] places, of which no two share an anchor.
      rng: draws the views.

    Returns:
      row [P K], place [P K] (0..P-1) and, where the table has it, variant. No
      row comes twice, but for places that have fewer than K rows left: these
      repeat their own.
    """
    first = [int(rng.choice(self._table.first[i])) for i in chosen]
    taken = set(first)
    counts = np.zeros(self._num_conditions, np.int64)
    if self._condition is not None:
      np.add.at(counts, self._condition[first], 1)
    rows = []
    for place, row in zip(chosen, first, strict=True):
      views = [row]
      free = [v for v in self._table.views[place].tolist() if v not in taken]
      while free and len(views) < self._num_views:
        view = self._view(row, np.asarray(free), counts, rng)
        views.append(view)
        free.remove(view)
      taken.update(views)
      rows.append(np.resize(views, self._num_views))
    row = np.concatenate(rows).astype(np.int64)
    number = np.arange(len(chosen), dtype=np.int32)
    entries = {'row': row, 'place': np.repeat(number, self._num_views)}
    if self._table.variant is not None:
      entries['variant'] = self._table.variant[row]
    return entries

  def _view(
    self,
    first: int,
    free: np.ndarray,
    counts: np.ndarray,
    rng: np.random.Generator,
  ) -> int:
    """A further view among the free rows; counts its condition."""
    if self._condition is not None:
      count = counts[self._condition[free]]
      free = free[count == count.min()]
    other = self._table.drive[free] != self._table.drive[first]
    if other.any() and (other.all() or rng.random() < self._cross_drive):
      free = free[other]
    elif not other.all():
      free = free[~other]
    view = int(rng.choice(free))
    if self._condition is not None:
      counts[self._condition[view]] += 1
    return view


def make_places(
  table: Places,
  *,
  batch_size: int,
  steps: int,
  seed: int,
  num_views: int = 4,
  cross_drive: float = 0.5,
  town_run: int = 1,
  conditions: Sequence[str] | None = None,
) -> planner.Planner:
  """Every place once in an epoch, with views drawn anew.

  Args:
    table: the places.
    batch_size: B = P K.
    steps: S, of a round.
    seed: of the order and the views.
    num_views: K.
    cross_drive: see `Draw`.
    town_run: how many places of one town follow each other; negatives of one
      town are the hard ones.
    conditions: see `Draw`.

  Returns:
    A planner of row, place and, where the table has it, variant. Rounds go on
    in the epoch where the one before stopped.

  Raises:
    InputError: an argument is out of range, or there are fewer places than a
      batch holds.
  """
  planner.check_sizes(batch_size, steps, num_views, 'views of a place')
  if town_run < 1:
    raise InputError(f'town_run is a number of places, not {town_run}.')
  num_places = batch_size // num_views
  check_enough(table, num_places)
  draw = Draw(table, num_views, cross_drive, conditions)
  order = pairing.Order(table.town, town_run, num_places, seed)

  def plan(number: int, describe: planner.Describe) -> planner.Plan:
    del describe
    rng = planner.random_of_round(seed, number)
    start = number * steps * num_places
    batches = [
      draw(np.asarray([order[i] for i in range(a, a + num_places)]), rng)
      for a in range(start, start + steps * num_places, num_places)
    ]
    return stack(batches)

  return plan


def check_enough(table: Places, num_places: int) -> None:
  """Refuses batches of more places than there are.

  Args:
    table: the places.
    num_places: P.

  Raises:
    InputError: there are fewer.
  """
  if num_places > len(table.town):
    raise InputError(
      f'A batch of {num_places} places, but only {len(table.town)} have '
      'several views: lower batch_size.'
    )


def stack(batches: Sequence[planner.Plan]) -> planner.Plan:
  """The plan [S, B] of S batches [B] with the same keys."""
  return {
    name: np.stack([batch[name] for batch in batches]) for name in batches[0]
  }
