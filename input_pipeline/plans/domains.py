# SPDX-License-Identifier: Apache-2.0
"""Unlabelled frames of a target beside the labelled ones of another planner.

AdaGeo (Berton et al., WACV 2021) adapts to another light or weather with a
handful of photos whose positions nobody knows: an adversary sees both domains,
the loss of place recognition the labelled frames alone.
"""

import numpy as np

from i2ploc.errors import InputError
from input_pipeline import schema
from input_pipeline.plans import planner


def choose_targets(
  frames: schema.FrameTable, among: np.ndarray, count: int, seed: int
) -> np.ndarray:
  """Draws the few target frames.

  Args:
    frames: the table.
    among: [F] bool, frames of the target; those without image are left out.
    count: T, how many.
    seed: of the draw. With one seed the smaller of two draws is a part of the
      larger one.

  Returns:
    [T] int64 rows.

  Raises:
    InputError: there are fewer images than asked for.
  """
  rows = planner.rows_by_name(frames, among & frames.has_image)
  if not 1 <= count <= len(rows):
    raise InputError(
      f'{count} target frames of {len(rows)} with an image: choose a number '
      'between 1 and that.'
    )
  return np.random.default_rng(seed).permutation(rows)[:count]


def make_targets(
  source: planner.Planner, targets: np.ndarray, *, per_step: int, seed: int
) -> planner.Planner:
  """Adds target frames to every step of another planner.

  Args:
    source: plans the labelled entries.
    targets: [T] rows of the target.
    per_step: U, target frames in a step; fewer targets than that repeat.
    seed: of the order of the targets.

  Returns:
    A planner of what `source` gives and `labelled`. The last U entries of
    [S, B + U] are the target's: not labelled, and -1 (0 for angles) under every
    other key, so that they have no place, class or variant.

  Raises:
    InputError: no targets, or none in a step.
  """
  targets = np.asarray(targets, np.int64)
  if not len(targets) or per_step < 1:
    raise InputError(
      f'{len(targets)} target frames, {per_step} in a step: at least 1 each.'
    )

  def plan(number: int, describe: planner.Describe) -> planner.Plan:
    entries = source(number, describe)
    steps = len(entries['row'])
    entries = {'labelled': np.ones_like(entries['row'], bool)} | entries
    rng = planner.random_of_round(seed, number)
    order = planner.shuffled_epochs(rng, len(targets), steps * per_step)
    added = {'row': targets[order].reshape(steps, per_step)}
    for name, values in entries.items():
      if name != 'row':
        none = -1 if np.issubdtype(values.dtype, np.integer) else 0
        added[name] = np.full((steps, per_step), none, values.dtype)
    return {
      name: np.concatenate([values, added[name]], axis=1)
      for name, values in entries.items()
    }

  return plan
