# SPDX-License-Identifier: Apache-2.0
"""Batches of raw sensor tensors, for training and for evaluation.

Readings are prepared by `readings.py`; here they are paired, shuffled and
stacked by grain.
"""

from collections.abc import Iterator

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
    what: of 'image', 'points' and 'labels'; labels adds image_semantic
      [B, H, W] and points_semantic [B, P] to what is asked for.
    resize: how images become `image_size`, of `resizing.POLICIES`; those with
      several views give image [B, V, H, W, 3].
    workers: threads that prepare batches ahead.

  Yields:
    The entries of the device batch that `what` asks for, and `mask` [B] bool,
    False for padding (which repeats the last row).

  Raises:
    InputError: if there is nothing to read, or an argument is out of range.
  """
  rows = np.asarray(rows, np.int64)
  unknown = set(what) - {'image', 'points', 'labels'}
  if unknown or not set(what) & {'image', 'points'}:
    raise InputError(
      f"what={what}: expected 'image', 'points' or both, and 'labels'."
    )
  if batch_size < 1 or not len(rows):
    raise InputError(
      f'Nothing to read: batch_size={batch_size}, {len(rows)} rows.'
    )
  readings = readings_lib.Readings(
    dataset, image_size, num_points, frustum, 'labels' in what, resize
  )

  def entry(row: int) -> readings_lib.Entry:
    seen = readings.image if 'image' in what else readings.camera
    if 'points' not in what:
      return seen(row)
    return seen(row) | readings.points(row, np.random.default_rng(row))

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
