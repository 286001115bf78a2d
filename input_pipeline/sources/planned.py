# SPDX-License-Identifier: Apache-2.0
"""Which planner a config names, and what a batch holds of a row.

classes   cells of position and heading, in groups (CosPlace)
focal     cells, and points that their images look at (EigenPlaces)
places    P places with K views each (GSV-Cities)
mined     queries with a positive and hard negatives (Deep VG benchmark)
clusters  places that the model finds alike (EarthLoc)
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from i2ploc.errors import InputError
from input_pipeline import pairing
from input_pipeline import readings as readings_lib
from input_pipeline import schema
from input_pipeline.plans import classes as classes_lib
from input_pipeline.plans import clusters
from input_pipeline.plans import domains
from input_pipeline.plans import focal
from input_pipeline.plans import mined
from input_pipeline.plans import places
from input_pipeline.plans import planner
from input_pipeline.plans import sequences

_METRES_PER_DEGREE = np.deg2rad(6_371_000.0)
_CLASSES = {
  'classes': classes_lib.cell_classes,
  'focal': focal.focal_classes,
}
_PLACES = {'places': places.make_places, 'clusters': clusters.make_clusters}
NAMES = (*_CLASSES, *_PLACES, 'mined')


def class_table(
  frames: schema.FrameTable, *, name: str, **fields: Any
) -> classes_lib.Classes:
  """The classes of a planner that has some.

  Args:
    frames: the table.
    name: of the planner.
    **fields: of the config; those of the batches are passed over.

  Raises:
    InputError: a planner without classes, or a table that gives none.
  """
  if name not in _CLASSES:
    raise InputError(
      f'sampling {name!r} has no classes; those of {sorted(_CLASSES)} have.'
    )
  fields = {k: v for k, v in fields.items() if k not in ('steps', 'per_step')}
  return _CLASSES[name](frames, **fields)


def make_planner(
  dataset: schema.Dataset,
  *,
  name: str,
  batch_size: int,
  steps: int,
  seed: int,
  num_frames: int = 1,
  frame_stride: int = 1,
  target: np.ndarray | None = None,
  per_step: int = 0,
  **fields: Any,
) -> planner.Planner:
  """The planner of a config's `sampling`.

  Args:
    dataset: what is planned with.
    name: of NAMES.
    batch_size: B.
    steps: S, of a round.
    seed: of all rounds.
    num_frames: T; of sequences, those that are whole are taken.
    frame_stride: rows from one frame to the next.
    target: [F] bool, images of a domain to adapt to; None for none.
    per_step: of these, in the B of a step.
    **fields: of the planner. Of places also `by_frame`, whether views of a
      place are rows with its frame number; else `max_offset` in metres. And
      `even_conditions`, whether lights and weathers come equally often.

  Raises:
    InputError: an unknown name or field, or a table that is too small.
  """
  frames = dataset.frames
  if num_frames > 1:
    whole = sequences.sequence_rows(frames, num_frames, frame_stride)
    frames = frames._replace(
      has_image=frames.has_image & (whole >= 0).all(axis=1)
    )
  if target is not None:
    frames = frames._replace(has_image=frames.has_image & ~target)
  common = dict(batch_size=batch_size - per_step, steps=steps, seed=seed)
  try:
    plan = _make(dataset, frames, name, fields, common)
  except TypeError as error:
    raise InputError(f'sampling {name!r}: {error}') from error
  if target is None:
    return plan
  rows = np.flatnonzero(target)
  return domains.make_targets(plan, rows, per_step=per_step, seed=seed)


def _make(dataset, frames, name, fields, common):
  if name in _CLASSES:
    return classes_lib.make_classes(
      class_table(frames, name=name, **fields), **common
    )
  if name in _PLACES:
    fields = dict(fields)
    if fields.pop('by_frame', False):
      table = places.frame_places(frames)
    else:
      table = places.near_places(
        frames,
        max_offset=fields.pop('max_offset'),
        max_heading=_max_heading(frames),
      )
    conditions = None
    if fields.pop('even_conditions', False):
      conditions = dataset.conditions
      if conditions is None:
        raise InputError(f'{dataset.name}: nobody knows its conditions.')
    return _PLACES[name](table, **common, conditions=conditions, **fields)
  if name == 'mined':
    return mined.make_mined(
      frames, **common, **fields, max_heading=_max_heading(frames)
    )
  raise InputError(f'Unknown sampling {name!r}; known: {sorted(NAMES)}.')


def _max_heading(frames):
  """Radians below which headings agree; None where nobody knows any."""
  known = np.isfinite(frames.heading).any()
  return pairing.MAX_HEADING if known else None


def make_entry(
  dataset: schema.Dataset,
  image_size: tuple[int, int],
  num_frames: int = 1,
  frame_stride: int = 1,
) -> Callable[[int], readings_lib.Entry]:
  """What a batch holds of a row.

  Args:
    dataset: what to read.
    image_size: (H, W), pixels.
    num_frames: T, see `readings.Readings.image`.
    frame_stride: rows from one frame to the next.

  Returns:
    Row to the image's part of a batch and, where the dataset has them, the
    rendering's; domain int32, the number of its condition; footprint [4, 2]
    float32, metres east and north in its town.
  """
  readings = readings_lib.Readings(
    dataset,
    image_size,
    num_points=1,
    frustum=None,
    num_frames=num_frames,
    frame_stride=frame_stride,
  )
  domain = domain_numbers(dataset)
  footprint = _footprints(dataset)
  renders = dataset.frames.has_rendering

  def entry(row):
    found = readings.image(row)
    if renders is not None:
      found = readings.rendering(row) | found
    if domain is not None:
      found['domain'] = domain[row]
    if footprint is not None:
      found['footprint'] = footprint[row]
    return found

  return entry


def domain_numbers(dataset: schema.Dataset) -> np.ndarray | None:
  """int32 [F], each frame's condition among those of all; None if unknown."""
  if dataset.conditions is None:
    return None
  found = np.unique(dataset.conditions, return_inverse=True)[1]
  return found.astype(np.int32)


def _footprints(dataset):
  """float32 [F, 4, 2], metres from the middle of the town; None without."""
  truth = dataset.truth
  if truth is None or truth.footprints is None:
    return None
  degrees = truth.footprints[..., ::-1]  # longitude, latitude
  metres = np.zeros(degrees.shape, np.float32)
  for town in np.unique(dataset.frames.town):
    here = dataset.frames.town == town
    middle = degrees[here].mean((0, 1))
    scale = np.array([np.cos(np.deg2rad(middle[1])), 1.0]) * _METRES_PER_DEGREE
    metres[here] = (degrees[here] - middle) * scale
  return metres
