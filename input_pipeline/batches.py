# SPDX-License-Identifier: Apache-2.0
"""Batches of raw sensor tensors, for training and for evaluation.

Readings are prepared by `readings.py`; here they are paired, shuffled and
stacked by grain.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import functools
from typing import Any

import grain
import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import resizing
from input_pipeline import pairing
from input_pipeline import readings as readings_lib
from input_pipeline import schema


def _draw(
  anchor: int,
  rng: np.random.Generator,
  pairs: pairing.Pairs,
  cross_drive: float,
) -> int:
  """The scan's row for an anchor: of another drive with some probability."""
  own, other = pairs.own[anchor], pairs.other[anchor]
  from_other = len(other) and (not len(own) or rng.random() < cross_drive)
  return int(rng.choice(other if from_other else own))


def train_batches(
  dataset: schema.Dataset,
  *,
  batch_size: int,
  image_size: tuple[int, int],
  num_points: int,
  cross_drive: float,
  max_offset: float,
  seed: int,
  town_run: int = 1,
  frustum: float | None = None,
  num_epochs: int | None = None,
  workers: int = 2,
) -> grain.DatasetIterator:
  """Shuffled batches of image-scan pairs, resumable to the bit.

  Every epoch takes each image once, over all towns, with a scan drawn anew;
  images that do not fill a last batch wait for another epoch's order.

  Args:
    dataset: what to read.
    batch_size: B.
    image_size: (H, W) in pixels.
    num_points: P.
    cross_drive: probability in [0, 1] that the scan comes from another drive
      of the town, where there is one near.
    max_offset: metres between the two readings, at most.
    seed: of the order, the pairing and the points drawn.
    town_run: how many images of one town follow each other. Negatives of the
      same town are the hard ones, and what a query has to be told from; 1
      mixes all towns.
    frustum: keep only points within this azimuth (radians) on either side of
      the optical axis; None keeps all around.
    num_epochs: None for no end.
    workers: threads that prepare batches ahead; batches do not depend on it.

  Returns:
    An iterator over the device batch: image, intrinsics, points, points_mask,
    camera_from_lidar, image_position, points_position, image_heading,
    points_heading, image_town, points_town, image_index, points_index, as
    numpy with leading axis B; with `get_state` and `set_state`.

  Raises:
    InputError: if an argument is out of range or the dataset has fewer pairs
      than a batch.
  """
  readings = readings_lib.Readings(dataset, image_size, num_points, frustum)
  if not 0.0 <= cross_drive <= 1.0:
    raise InputError(f'cross_drive is a probability, not {cross_drive}.')
  if town_run < 1:
    raise InputError(f'town_run is a number of images, not {town_run}.')
  if max_offset < 0:
    raise InputError(f'max_offset is in metres, >= 0, not {max_offset}.')
  pairs = pairing.training_pairs(dataset.frames, max_offset)
  if not 1 <= batch_size <= len(pairs.anchors):
    raise InputError(
      f'batch_size={batch_size}, but {dataset.name} has {len(pairs.anchors)} '
      'images with a scan near: choose a batch between 1 and that.'
    )

  def pair(anchor: int, rng: np.random.Generator) -> readings_lib.Entry:
    image = readings.image(int(pairs.anchors[anchor]))
    scan = _draw(anchor, rng, pairs, cross_drive)
    return image | readings.points(scan, rng)

  towns = dataset.frames.town[pairs.anchors]
  order = pairing.Order(towns, town_run, batch_size, seed, num_epochs)
  batches = (
    grain.MapDataset.source(order)
    .seed(seed)
    .random_map(pair)
    .batch(batch_size, drop_remainder=True)
  )
  return iter(batches.to_iter_dataset(_read_options(workers)))


class PlannedBatches:
  """Batches of rounds that are planned before they begin; resumable to the bit.

  A plan is a dict of arrays [S, B, ...], a row of each for every step: `row` of
  the frame table, and what else the batch shall have. It may follow from
  descriptors of the model as it is then, see `plans`; the position that is
  saved holds it.
  """

  def __init__(
    self,
    plan: Callable[[int, Callable], Mapping[str, np.ndarray]],
    entry: Callable[[int], readings_lib.Entry],
    describe: Callable[[Any, np.ndarray], np.ndarray],
    workers: int = 2,
  ):
    """Plans nothing yet.

    Args:
      plan: `round, describe -> plan`.
      entry: of a row, its part of a batch.
      describe: `variables, rows [N] -> descriptors [N, D]`.
      workers: threads that prepare batches ahead; batches do not depend on it.
    """
    self._make, self._entry, self._describe = plan, entry, describe
    self._workers = workers
    self._round, self._done = 0, 0
    self._plan: Mapping[str, np.ndarray] = {'row': np.zeros((0, 0), np.int64)}
    self._batches: Iterator[readings_lib.Batch] = iter(())

  def refresh(self, variables: Any) -> None:
    """Begins the next round, planned by a model with these variables."""
    plan = self._make(
      self._round, lambda rows: self._describe(variables, np.asarray(rows))
    )
    self._round, self._done = self._round + 1, 0
    self._plan = {name: np.asarray(value) for name, value in plan.items()}
    self._open()

  def __iter__(self) -> 'PlannedBatches':
    return self

  def __next__(self) -> readings_lib.Batch:
    """The next batch of the round; StopIteration at its end."""
    batch = next(self._batches)
    self._done += 1
    return batch

  def get_state(self) -> dict[str, Any]:
    """The position after the last batch, and the plan that it belongs to."""
    return {'round': self._round, 'done': self._done, 'plan': dict(self._plan)}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Continues from a position."""
    self._round, self._done = int(state['round']), int(state['done'])
    self._plan = {k: np.asarray(v) for k, v in state['plan'].items()}
    self._open()

  def _open(self):
    steps = range(self._done, len(self._plan['row']))
    # With its plan: what a round before still prepares must not read this one.
    batch = functools.partial(_planned_batch, self._entry, self._plan)
    batches = grain.MapDataset.source(list(steps)).map(batch)
    options = _read_options(self._workers)
    self._batches = (
      iter(batches.to_iter_dataset(options)) if steps else iter(())
    )


def _planned_batch(entry, plan, step: int) -> readings_lib.Batch:
  """The entries of a step's rows, and what else the plan says of the step."""
  entries = [entry(int(row)) for row in plan['row'][step]]
  stacked = {
    name: np.stack([found[name] for found in entries]) for name in entries[0]
  }
  return stacked | {
    name: value[step] for name, value in plan.items() if name != 'row'
  }


def _read_options(workers: int) -> grain.ReadOptions:
  return grain.ReadOptions(
    num_threads=workers, prefetch_buffer_size=max(workers, 1) * 2
  )


def read_batches(
  dataset: schema.Dataset,
  rows: np.ndarray,
  *,
  batch_size: int,
  image_size: tuple[int, int],
  num_points: int,
  frustum: float | None = None,
  what: tuple[str, ...] = ('image', 'points'),
  resize: str = resizing.STRETCH,
  num_frames: int = 1,
  frame_stride: int = 1,
  workers: int = 1,
) -> Iterator[readings_lib.Batch]:
  """Batches of these rows in their order, the last one padded.

  The points of a row are drawn with the row as seed: the same every time.

  Args:
    dataset: what to read.
    rows: [N] rows of the frame table.
    batch_size: B.
    image_size: (H, W) in pixels.
    num_points: P.
    frustum: as in `train_batches`.
    what: of 'image', 'rendering', 'points' and 'labels'; labels adds
      image_semantic [B, H, W] and points_semantic [B, P] to what is asked for.
    resize: how images become `image_size`, of `resizing.POLICIES`; those with
      several views give image [B, V, H, W, 3].
    num_frames: T > 1: images [B, T, H, W, 3], see `Readings.image`.
    frame_stride: rows from one of these frames to the next.
    workers: threads that prepare batches ahead.

  Yields:
    The entries of the device batch that `what` asks for, and `mask` [B] bool,
    False for padding (which repeats the last row).

  Raises:
    InputError: if there is nothing to read, or an argument is out of range.
  """
  rows = np.asarray(rows, np.int64)
  unknown = set(what) - {'image', 'rendering', 'points', 'labels'}
  if unknown or not set(what) - {'labels'}:
    raise InputError(
      f"what={what}: expected some of 'image', 'rendering' and 'points', and"
      " 'labels'."
    )
  if batch_size < 1 or not len(rows):
    raise InputError(
      f'Nothing to read: batch_size={batch_size}, {len(rows)} rows.'
    )
  readings = readings_lib.Readings(
    dataset,
    image_size,
    num_points,
    frustum,
    'labels' in what,
    resize,
    num_frames,
    frame_stride,
  )

  def entry(row: int) -> readings_lib.Entry:
    parts = {}
    if 'points' in what:
      parts |= readings.camera(row)
      parts |= readings.points(row, np.random.default_rng(row))
    for sensor in ('rendering', 'image'):
      if sensor in what:
        parts |= getattr(readings, sensor)(row)
    return parts

  def batch(start: int) -> readings_lib.Batch:
    taken = rows[start : start + batch_size]
    entries = [entry(int(row)) for row in taken]
    entries += entries[-1:] * (batch_size - len(taken))
    stacked = {
      name: np.stack([e[name] for e in entries]) for name in entries[0]
    }
    return stacked | {'mask': np.arange(batch_size) < len(taken)}

  starts = list(range(0, len(rows), batch_size))
  batches = grain.MapDataset.source(starts).map(batch)
  return iter(batches.to_iter_dataset(_read_options(workers)))
