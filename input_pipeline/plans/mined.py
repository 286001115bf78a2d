# SPDX-License-Identifier: Apache-2.0
"""Triplets: queries with their best positive and hard negatives.

The mining of the Deep Visual Geo-localization Benchmark (Berton et al., CVPR
2022, section 3.3), from descriptors that every round computes anew:

- The positive of a query is the nearest in descriptor space among the database
  frames within 10 m.
- Its negatives are beyond 25 m: drawn at random, or the nearest in descriptor
  space among a random part of the database or all of it.

The authors search only 1,000 random frames for each query even where all are
described, and remember the ten hardest of the round before. With every frame
searched, what was hard before is found again without a memory.
"""

import numpy as np

from i2ploc.errors import InputError
from input_pipeline import pairing
from input_pipeline import schema
from input_pipeline.plans import neighbours
from input_pipeline.plans import places
from input_pipeline.plans import planner

MININGS = ('random', 'partial', 'full')


def ask(frames: schema.FrameTable) -> np.ndarray:
  """Which frames ask: all drives of a town but the first.

  Args:
    frames: the table.

  Returns:
    [F] bool; the first drive, as names sort, is the database. In a town with
    one drive no frame asks.
  """
  first = {
    name: np.unique(frames.drive[frames.town == name])[0]
    for name in np.unique(frames.town)
  }
  return np.array(
    [d != first[t] for t, d in zip(frames.town, frames.drive, strict=True)],
    bool,
  )


def make_mined(
  frames: schema.FrameTable,
  *,
  batch_size: int,
  steps: int,
  seed: int,
  mining: str = 'partial',
  num_negatives: int = 10,
  pool: int = 1000,
  positive_radius: float = 10.0,
  negative_radius: float = 25.0,
  max_heading: float | None = pairing.MAX_HEADING,
  queries: np.ndarray | None = None,
) -> planner.Planner:
  """Queries of every step, each with one positive and its negatives.

  Args:
    frames: the table; frames without image or position are left out, and
      queries without any positive or negative.
    batch_size: B, a multiple of 2 + num_negatives.
    steps: S, of a round; the authors refresh after 250 of 4 queries.
    seed: of what is drawn.
    mining: of `MININGS`.
    num_negatives: of a query.
    pool: database frames that 'partial' describes in a round.
    positive_radius: metres; a frame at this distance is near enough.
    negative_radius: metres; negatives are farther.
    max_heading: radians below which the headings of a query and its positive
      agree; None where nobody knows them.
    queries: [F] bool, the frames that ask, where the others are the database;
      None takes `ask`. Where these leave no query, all frames do both.

  Returns:
    A planner of row and place. Entries follow each other as query, positive,
    negatives. A query and its positive share a place, negatives have none. No
    row comes twice in a step unless there are too few.

  Raises:
    InputError: an argument is out of range, or no query has both a positive
      and a negative.
  """
  if mining not in MININGS:
    raise InputError(f'mining={mining!r}: expected one of {MININGS}.')
  if min(num_negatives, pool) < 1:
    raise InputError(
      f'num_negatives={num_negatives}, pool={pool}: both are at least 1.'
    )
  if not 0 <= positive_radius <= negative_radius:
    raise InputError(
      f'positive_radius={positive_radius} is not between 0 and '
      f'negative_radius={negative_radius}.'
    )
  size = 2 + num_negatives
  planner.check_sizes(batch_size, steps, size, 'a query, positive, negatives')
  placed = planner.placed_images(frames)
  asking = placed & (ask(frames) if queries is None else np.asarray(queries))
  database = planner.rows_by_name(frames, placed & ~asking)
  if not asking.any() or not len(database):
    asking, database = placed, planner.rows_by_name(frames, placed)
  asking = planner.rows_by_name(frames, asking)
  near = neighbours.near(frames, asking, database, positive_radius, max_heading)
  positives = [near[i][near[i] != row] for i, row in enumerate(asking.tolist())]
  close = neighbours.near(frames, asking, database, negative_radius, None)
  usable = np.flatnonzero(
    (np.array([len(rows) for rows in positives], int) > 0)
    & (close.length < len(database))
  )
  if not len(usable):
    raise InputError(
      f'None of {len(asking)} queries has one of {len(database)} database '
      f'frames within {positive_radius} m and another beyond '
      f'{negative_radius} m.'
    )
  per_step = batch_size // size

  def choose_pool(rng: np.random.Generator) -> np.ndarray:
    if mining != 'partial':
      return database
    count = min(pool, len(database))
    return database[np.sort(rng.choice(len(database), count, replace=False))]

  def plan(number: int, describe: planner.Describe) -> planner.Plan:
    rng = planner.random_of_round(seed, number)
    order = planner.shuffled_epochs(rng, len(usable), steps * per_step)
    chosen = usable[order].reshape(steps, per_step)
    candidates = choose_pool(rng)
    shown = np.unique(chosen)
    needed = [asking[shown], *(positives[i] for i in shown)]
    if mining != 'random':
      needed.append(candidates)
    described = np.unique(np.concatenate(needed))
    descriptors = np.asarray(describe(described))

    def of(rows: np.ndarray) -> np.ndarray:
      return descriptors[np.searchsorted(described, rows)]

    searched = None if mining == 'random' else of(candidates)

    def ranked(query: int) -> np.ndarray:
      """Negatives of a query, best first."""
      if searched is None:
        rows = rng.permutation(candidates)
      else:
        like = searched @ of(asking[query])
        rows = candidates[np.argsort(-like, kind='stable')]
      far = rows[~np.isin(rows, close[query])]
      if len(far) < batch_size:
        # The part may hold none at all, or only those that are taken.
        others = rng.permutation(np.setdiff1d(database, close[query]))
        far = np.concatenate([far, others[~np.isin(others, far)]])
      return far

    def step(asked: np.ndarray) -> planner.Plan:
      taken = set(asking[asked].tolist())
      pairs, entries = [], []
      for query in asked:
        like = of(positives[query]) @ of(asking[query])
        best = positives[query][np.argsort(-like, kind='stable')]
        positive = _first_free(best, taken, 1)
        taken.update(positive)
        pairs.append([int(asking[query]), *positive])
      for query, pair in zip(asked, pairs, strict=True):
        negatives = _first_free(ranked(query), taken, num_negatives)
        taken.update(negatives)
        entries.append(pair + negatives)
      place = np.full((per_step, size), -1, np.int32)
      place[:, :2] = np.arange(per_step)[:, None]
      return {
        'row': np.asarray(entries, np.int64).ravel(),
        'place': place.ravel(),
      }

    return places.stack([step(asked) for asked in chosen])

  return plan


def _first_free(rows: np.ndarray, taken: set[int], count: int) -> list[int]:
  """The first rows that are not taken; taken ones where these are too few."""
  free = [row for row in rows.tolist() if row not in taken][:count]
  if len(free) < count:
    free += [row for row in rows.tolist() if row in taken]
  return np.resize(free, count).tolist()
