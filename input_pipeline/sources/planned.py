# SPDX-License-Identifier: Apache-2.0
"""Which planner a config names, and what a batch holds of a row.

classes   cells of position and heading, in groups (CosPlace)
focal     cells, and points that their images look at (EigenPlaces)
places    P places with K views each (GSV-Cities)
mined     queries with a positive and hard negatives (Deep VG benchmark)
clusters  places that the model finds alike (EarthLoc)
"""

from collections.abc import Callable
from collections.abc import Mapping
import inspect
from typing import Any

import numpy as np

from i2ploc.errors import InputError
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
# What makes the table of a planner, if it has one, and the planner.
_CLASSES = {
  'classes': (classes_lib.cell_classes, classes_lib.make_classes),
  'focal': (focal.focal_classes, classes_lib.make_classes),
}
_PLACES = {
  'places': (places.near_places, places.make_places),
  'clusters': (places.near_places, clusters.make_clusters),
}
_FUNCTIONS = _CLASSES | _PLACES | {'mined': (mined.make_mined,)}
NAMES = tuple(_FUNCTIONS)
# Fields of every planner, and those of places that become no argument.
_SHARED = {'name': str, 'steps': int, 'per_step': int}
_OF_PLACES = {'by_frame': bool, 'even_conditions': bool}
# Arguments that are no fields.
_NO_FIELDS = ('batch_size', 'steps', 'seed', 'conditions', 'queries')


def class_table(
  dataset: schema.Dataset,
  sampling: Mapping[str, Any],
  *,
  num_frames: int = 1,
  frame_stride: int = 1,
  target: np.ndarray | None = None,
) -> classes_lib.Classes:
  """The classes of a planner that has some, see `make_planner`.

  Raises:
    InputError: a planner without classes, an unknown or unsuitable field, or a
      table that gives no classes.
  """
  _check(sampling)
  name = sampling['name']
  if name not in _CLASSES:
    raise InputError(
      f'sampling {name!r} has no classes; those of {sorted(_CLASSES)} have.'
    )
  frames = _drawn_from(dataset, num_frames, frame_stride, target)
  make_table, _ = _CLASSES[name]
  return make_table(frames, **_arguments(make_table, sampling))


def make_planner(
  dataset: schema.Dataset,
  sampling: Mapping[str, Any],
  *,
  batch_size: int,
  seed: int,
  num_frames: int = 1,
  frame_stride: int = 1,
  target: np.ndarray | None = None,
) -> planner.Planner:
  """The planner of a config's `sampling`.

  Frames without an image are left out; where there are renderings, so are
  those without one. Where no heading is known at all, places and mined take
  frames for near whatever their headings.

  Args:
    dataset: what is planned with.
    sampling: `name` of NAMES, `steps` S of a round, `per_step`, how many of
      the B in a step are of the target, and the keywords of the functions that
      make the planner and its table. Of places and clusters also `by_frame`:
      views of a place are rows with its frame number, and not those within
      `max_offset` metres; and `even_conditions`: lights and weathers come
      equally often.
    batch_size: B.
    seed: of all rounds.
    num_frames: T; of sequences, those that are whole are taken.
    frame_stride: rows from one frame to the next.
    target: [F] bool, images of a domain to adapt to; None for none.

  Raises:
    InputError: an unknown name, an unknown or unsuitable field, or a table
      that is too small.
  """
  _check(sampling)
  per_step = sampling.get('per_step', 0)
  if target is None and per_step:
    raise InputError(
      f'sampling.per_step={per_step} images of a target, but there is none: '
      'set data.target, or leave per_step out.'
    )
  if not 0 <= per_step < batch_size:
    raise InputError(
      f'sampling.per_step={per_step} images of the target in batches of '
      f'{batch_size}: the others are what is learned from.'
    )
  frames = _drawn_from(dataset, num_frames, frame_stride, target)
  common: dict[str, Any] = dict(
    batch_size=batch_size - per_step, steps=sampling['steps'], seed=seed
  )
  name = sampling['name']
  if name in _CLASSES:
    make_table, make = _CLASSES[name]
    table = make_table(frames, **_arguments(make_table, sampling))
    plan = make(table, **common)
  elif name in _PLACES:
    plan = _make_places(dataset, frames, sampling, common)
  else:
    fields = _arguments(mined.make_mined, sampling, _headings(frames))
    plan = mined.make_mined(frames, queries=dataset.queries, **common, **fields)
  if target is None:
    return plan
  rows = np.flatnonzero(target)
  return domains.make_targets(plan, rows, per_step=per_step, seed=seed)


def _make_places(dataset, frames, sampling, common):
  make_table, make = _PLACES[sampling['name']]
  conditions = None
  if sampling.get('even_conditions', False):
    conditions = dataset.conditions
    if conditions is None:
      raise InputError(
        f'{dataset.name}: nobody knows its conditions; set '
        'sampling.even_conditions=False.'
      )
  if sampling.get('by_frame', False):
    table = places.frame_places(frames)
  else:
    fields = _arguments(make_table, sampling, _headings(frames))
    table = make_table(frames, **fields)
  fields = _arguments(make, sampling)
  return make(table, conditions=conditions, **common, **fields)


def _drawn_from(dataset, num_frames, frame_stride, target):
  """The table whose other rows are said to have no image."""
  frames = dataset.frames
  drawn = frames.has_image
  if frames.has_rendering is not None:
    drawn = drawn & frames.has_rendering
  if num_frames > 1:
    rows = sequences.sequence_rows(frames, num_frames, frame_stride)
    drawn = drawn & (rows >= 0).all(axis=1)
  if target is not None:
    drawn = drawn & ~target
  return frames._replace(has_image=drawn)


def _headings(frames):
  """A heading that nobody knows agrees with none: then none is asked for."""
  known = np.isfinite(frames.heading[frames.has_image])
  return {} if known.any() else {'max_heading': None}


def _check(sampling):
  """Raises an InputError that names a field which cannot be."""
  name = sampling.get('name')
  if name not in NAMES:
    raise InputError(f'Unknown sampling {name!r}; known: {sorted(NAMES)}.')
  fields: dict[str, Any] = dict(_SHARED)
  for function in _FUNCTIONS[name]:
    fields |= _keywords(function)
  if name in _PLACES:
    fields |= _OF_PLACES
  unknown = sorted(set(sampling) - set(fields))
  if unknown:
    raise InputError(
      f'sampling {name!r} has no field {", ".join(map(repr, unknown))}; '
      f'known: {sorted(fields)}.'
    )
  if 'steps' not in sampling:
    raise InputError(f"sampling {name!r} lacks 'steps', those of a round.")
  for field, value in sampling.items():
    kind = fields[field]
    if not _suits(value, kind):
      raise InputError(
        f'sampling.{field}={value!r}: expected '
        f'{getattr(kind, "__name__", kind)}.'
      )


def _suits(value, kind):
  """Whether a field may be that; for Python, but not here, True is 1."""
  if isinstance(value, bool):
    return kind is bool
  whole = isinstance(value, int) and isinstance(0.0, kind)
  return whole or isinstance(value, kind)


def _keywords(function):
  """The fields that are keywords of a function, and their types."""
  return {
    name: parameter.annotation
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in _NO_FIELDS
  }


def _arguments(function, sampling, defaults=None):
  """The fields that are keywords of a function."""
  found = (defaults or {}) | dict(sampling)
  return {name: found[name] for name in _keywords(function) if name in found}


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
    float32, metres east and north in its town, NaN where unknown.
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
  """float32 [F, 4, 2], metres from the middle of the town; None without.

  East and north along the parallel and the meridian through that middle, so
  that straight sides stay straight: who overlaps whom is as in degrees.
  """
  truth = dataset.truth
  if truth is None or truth.footprints is None:
    return None
  degrees = truth.footprints[..., ::-1]  # longitude, latitude
  known = np.isfinite(degrees).all((1, 2))
  metres = np.full(degrees.shape, np.nan, np.float32)
  for town in np.unique(dataset.frames.town[known]):
    here = np.flatnonzero(known & (dataset.frames.town == town))
    corners = degrees[here]
    # Around the globe to where the first one is.
    longitude = corners[..., 0].mean(1)
    turns = np.round((longitude - longitude[0]) / 360)
    corners = corners - np.array([360.0, 0.0]) * turns[:, None, None]
    middle = corners.mean((0, 1))
    scale = np.array([np.cos(np.deg2rad(middle[1])), 1.0]) * _METRES_PER_DEGREE
    metres[here] = (corners - middle) * scale
  return metres
