# SPDX-License-Identifier: Apache-2.0
"""Pictures of single queries for a report: what was asked, found and true.

The LiDAR is drawn as the camera would see it: every return projected into the
image, the nearest one winning a pixel.
"""

from collections.abc import Mapping
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import files
from i2ploc.evaluation import predictions as predictions_lib
from i2ploc.evaluation import saliency
from i2ploc.geometry import camera
from i2ploc.geometry import panorama
from i2ploc.geometry import rigid

Batch = saliency.Batch
# Examples come from the protocol that means localization, if there is one.
PREFERRED = ('cross', 'sync', 'opposite')
NUM_ANSWERS = 3  # images of the map that are shown of each query


def choose(
  record: predictions_lib.Predictions, count: int, radius: float
) -> np.ndarray:
  """Up to `count` queries, at least half of them failures, failures first.

  Args:
    record: ranked answers.
    count: how many.
    radius: metres; a first answer further away is a failure.

  Returns:
    Rows of the record: failures evenly spaced over the drive, then hits; of
    queries without any known truth, evenly spaced ones.
  """
  if not np.isfinite(record.nearest).any():
    return saliency.spread(np.arange(len(record.nearest)), count)
  answerable = record.nearest <= radius
  failed = np.flatnonzero(answerable & (record.distances[:, 0] > radius))
  right = np.flatnonzero(answerable & (record.distances[:, 0] <= radius))
  num_failed = min(len(failed), max(count // 2, count - len(right)))
  chosen = [
    saliency.spread(failed, num_failed),
    saliency.spread(right, count - num_failed),
  ]
  return np.concatenate(chosen)


@functools.partial(jax.jit, static_argnames='projection')
def _pixels(points, camera_from_lidar, intrinsics, projection):
  """Pixels [P, 2], depth [P] and validity [P] of one scan."""
  seen = rigid.apply(rigid.from_matrix(camera_from_lidar), points[:, :3])
  if projection == 'pinhole':
    pixels, valid = camera.project(intrinsics, seen)
    depth = seen[:, 2]
  else:
    pixels, valid = panorama.project(intrinsics, seen)
    depth = jnp.linalg.norm(seen, axis=-1)
  return jnp.floor(pixels).astype(jnp.int32), depth, valid


def draw_scan(
  batch: Batch,
  entry: int,
  size: tuple[int, int],
  values: np.ndarray,
  projection: str = 'pinhole',
) -> tuple[np.ndarray, np.ndarray]:
  """One scan of a batch as the camera sees it.

  Args:
    batch: with points, points_mask, camera_from_lidar and intrinsics.
    entry: which of the batch.
    size: (H, W), pixels of the intrinsics.
    values: [P] drawn beside the depth.
    projection: of the camera, one of `camera.PROJECTIONS`.

  Returns:
    depth: float32 [H, W], metres along the optical axis, of a panorama from
      its centre; 0 without a return.
    value: float32 [H, W], of the nearest return of each pixel.
  """
  camera.check_projection(projection)
  pixels, depth, valid = map(
    np.asarray,
    _pixels(
      batch['points'][entry],
      batch['camera_from_lidar'][entry],
      batch['intrinsics'][entry],
      projection,
    ),
  )
  inside = (pixels >= 0).all(1) & (pixels < (size[1], size[0])).all(1)
  kept = np.flatnonzero(valid & inside & batch['points_mask'][entry])
  kept = kept[np.argsort(-depth[kept])]  # the nearest is written last
  column, row = pixels[kept].T
  images = np.zeros((2, *size), np.float32)
  images[0, row, column], images[1, row, column] = depth[kept], values[kept]
  return images[0], images[1]


def save_examples(
  split: saliency.Split,
  describe: saliency.Describe,
  records: Mapping[str, predictions_lib.Predictions],
  path: str | os.PathLike,
  *,
  projection: str,
  count: int,
  radius: float,
) -> None:
  """Writes the pictures of single image queries as one npz of E examples.

  query_image uint8 [E, H, W, 3], title [E], query_position [E, 2];
  distance_m [E] of the first answer, NaN where unknown; rank [E] of the first
  right one, 0 if beyond the saved ones, -1 where unknown; confidence [E] of the
  first answer, NaN where there is none. Of a model with saliency,
  saliency_image [E, h, w] (mean 1).

  Of a map of scans, retrieved_depth and true_depth float32 [E, H, W] (metres,
  0 = no return), saliency_points [E, H, W] on the returns of true_depth,
  retrieved_position and true_position [E, 2]. true is the nearest one.

  Of a map of images, of the first K answers answer_images uint8
  [E, K, H, W, 3], answer_names, answer_distances, answer_similarities [E, K];
  and true_image [E, H, W, 3], the nearest one.

  What is true is left out where positions are unknown.

  Args:
    split: where the queries come from.
    describe: the model, by side; see `saliency.saliency_shares`.
    records: of an evaluator, by '<split>/<protocol>/<direction>'.
    path: of the npz.
    projection: of the camera, see `draw_scan`.
    count: how many examples, failures first.
    radius: metres that count as right.
  """
  names = {
    name.split('/')[1]: name
    for name in records
    if name.split('/')[2].startswith('image_to_')
  }
  if not names:
    return
  protocol = next((n for n in PREFERRED if n in names), next(iter(names)))
  record = records[names[protocol]]
  map_side = names[protocol].rpartition('_to_')[2]
  chosen = choose(record, count, radius)
  found = (record.ranked_rows[chosen] >= 0).sum(1)
  num_answers = int(found.min(initial=NUM_ANSWERS))
  columns: dict[str, list] = {}
  for query in chosen:
    example = _query(split, describe, record, query, radius)
    if map_side == 'points':
      example |= _scans(split, describe, record, query, projection)
    else:
      example |= _images(split, record, query, num_answers, map_side)
    for name, value in example.items():
      columns.setdefault(name, []).append(value)
  stacked = {name: np.stack(values) for name, values in columns.items()}
  if 'saliency_image' in stacked and not np.ptp(stacked['saliency_image']):
    for name in ('saliency_image', 'saliency_points'):
      stacked.pop(name, None)  # all alike: a model without saliency
  if stacked:
    files.save_arrays(path, stacked)


def _query(split, describe, record, query, radius):
  """What was asked, and how it went."""
  row, frames = record.query_rows[query], split.frames
  (batch,) = split.batches(np.asarray([row]), ('image',), 1)
  image = batch['image'][0]
  example = {
    'query_image': _newest(image),
    'query_position': frames.position[row, :2],
    'title': np.str_(frames.name[row]),
    'distance_m': np.float32(record.distances[query, 0]),
    'rank': np.int32(-1),
    'confidence': record.confidence[query],
  }
  if np.isfinite(record.nearest[query]):
    right = np.flatnonzero(record.distances[query] <= radius)
    example['rank'] = np.int32(right[0] + 1 if len(right) else 0)
  out = describe['image'](batch)
  if 'saliency' in out and image.ndim == 3:
    weights = saliency.relative_weights(np.asarray(out['saliency'][0]))
    example['saliency_image'] = weights.reshape(out['grid']).astype(np.float32)
  return example


def _scans(split, describe, record, query, projection):
  """The first answer and the nearest scan as the camera would see them."""

  def read(row):
    return next(split.batches(np.asarray([row]), ('points',), 1))

  def draw(batch, weights):
    return draw_scan(batch, 0, split.image_size, weights, projection)

  positions = split.frames.position
  row = record.ranked_rows[query, 0]
  found = read(row)
  nothing = np.zeros(found['points'].shape[1])
  example = {
    'retrieved_depth': draw(found, nothing)[0],
    'retrieved_position': positions[row, :2],
  }
  if np.isfinite(record.nearest[query]):
    row = _nearest_on_map(record, query)
    true = read(row)
    example['true_position'] = positions[row, :2]
    out = describe['points'](true)
    if 'saliency' in out:
      weights = saliency.point_weights(true, 0, out)
      example['true_depth'], example['saliency_points'] = draw(true, weights)
    else:
      example['true_depth'] = draw(true, nothing)[0]
  return example


def _images(split, record, query, num_answers, map_side):
  """The first answers and the nearest image of the map."""
  rows = record.ranked_rows[query, :num_answers]
  batches = split.batches(rows, (map_side,), 1)
  example = {
    'answer_images': np.stack(
      [_newest(batch[map_side][0]) for batch in batches]
    ),
    'answer_names': split.frames.name[rows],
    'answer_distances': record.distances[query, :num_answers],
    'answer_similarities': record.similarities[query, :num_answers],
  }
  # Truth may be known without positions.
  known = np.isfinite(record.query_positions[query, :2]).all()
  if known and np.isfinite(record.nearest[query]):
    row = _nearest_on_map(record, query, but=record.query_rows[query])
    (batch,) = split.batches(np.asarray([row]), (map_side,), 1)
    example['true_image'] = _newest(batch[map_side][0])
  return example


def _newest(image):
  """[H, W, 3] of an image, or of the last of a sequence [T, H, W, 3]."""
  return image[-1] if image.ndim == 4 else image


def _nearest_on_map(record, query, but=-1):
  """The row of the map reading nearest to a query; not the row `but`."""
  same = (record.map_towns == record.towns[query]) & (record.map_rows != but)
  offsets = record.map_positions[same] - record.query_positions[query]
  distances = np.linalg.norm(offsets[:, :2], axis=1)
  return record.map_rows[same][np.nanargmin(distances)]
