# SPDX-License-Identifier: Apache-2.0
"""What a report shows of single queries, and where saliency falls.

The LiDAR is drawn as the camera would see it: every return projected into the
image, the nearest one winning a pixel.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import os
from typing import Any
from typing import NamedTuple
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc import files
from i2ploc.evaluation import predictions as predictions_lib
from i2ploc.geometry import camera
from i2ploc.geometry import panorama
from i2ploc.geometry import rigid

Batch = dict[str, np.ndarray]
NUM_LABELLED = 128
BATCH = 16
# Examples come from the protocol that means localization, if there is one.
PREFERRED = ('cross', 'sync', 'opposite')


class Split(Protocol):
  """The readings of the split that was evaluated."""

  frames: Any
  protocols: Any
  labels: Any  # ids of the classes that are moving and movable; or None

  def batches(self, rows: np.ndarray, what: tuple[str, ...], size: int):
    """Batches of these rows."""


class Describe(NamedTuple):
  """A model's `out` for a batch: tokens, saliency, grid or centers."""

  image: Callable[[Batch], dict]
  points: Callable[[Batch], dict]


def choose(
  record: predictions_lib.Predictions, count: int, radius: float
) -> np.ndarray:
  """Up to `count` queries, at least half of them failures, failures first.

  Args:
    record: ranked answers.
    count: how many.
    radius: metres; a first answer further away is a failure.

  Returns:
    Rows of the record: failures evenly spaced over the drive, then hits.
  """
  answerable = record.nearest <= radius
  failed = np.flatnonzero(answerable & (record.distances[:, 0] > radius))
  right = np.flatnonzero(answerable & (record.distances[:, 0] <= radius))
  num_failed = min(len(failed), max(count // 2, count - len(right)))
  chosen = [_spread(failed, num_failed), _spread(right, count - num_failed)]
  return np.concatenate(chosen)


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
  """At most `count` of `rows`, evenly spaced."""
  count = min(count, len(rows))
  return rows[np.linspace(0, len(rows) - 1, count).astype(int)]


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


def _nearest(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
  """Index [P] of the nearest of `centers` [G, 3] to each of `points`."""
  squared = (
    (points**2).sum(1)[:, None]
    - 2 * points @ centers.T
    + (centers**2).sum(1)[None]
  )
  return squared.argmin(1)


def point_weights(batch: Batch, entry: int, out: dict) -> np.ndarray:
  """Saliency of every point: that of the nearest token's center.

  Args:
    batch: with points.
    entry: which of the batch.
    out: of the LiDAR tower, see `Describe`.

  Returns:
    [P], of mean 1 over the tokens.
  """
  centers = np.asarray(out['centers'][entry])
  mask = np.asarray(out['tokens'].mask[entry])
  weights = np.asarray(out['saliency'][entry])[mask]
  points = batch['points'][entry, :, :3]
  return _relative(weights)[_nearest(points, centers[mask])]


def _relative(weights: np.ndarray) -> np.ndarray:
  """Weights with mean 1."""
  return weights / max(float(weights.mean()), 1e-12)


def save_examples(
  split: Split,
  describe: Describe,
  records: Mapping[str, predictions_lib.Predictions],
  path: str | os.PathLike,
  *,
  projection: str,
  count: int,
  radius: float,
) -> None:
  """Writes the pictures of single queries as one npz of E examples.

  query_image uint8 [E, H, W, 3]; retrieved_depth, true_depth float32 [E, H, W]
  (metres, 0 = no return); saliency_image [E, h, w] (mean 1); saliency_points
  [E, H, W], on the returns of true_depth; distance_m [E]; rank [E] of the first
  right answer, 0 if beyond the saved ones; query_position,
  retrieved_position, true_position [E, 2]; title [E].

  Args:
    split: where the queries come from.
    describe: the model.
    records: of an evaluator, by '<split>/<protocol>/<direction>'.
    path: of the npz.
    projection: of the camera, see `draw_scan`.
    count: how many examples, failures first.
    radius: metres that count as right.
  """
  names = {name.split('/')[1]: name for name in records if 'image_to' in name}
  protocol = next(name for name in PREFERRED if name in names)
  record = records[names[protocol]]
  chosen = choose(record, count, radius)
  if not len(chosen):
    return
  columns: dict[str, list] = {}
  for query in chosen:
    example = _example(split, describe, record, query, projection, radius)
    for name, value in example.items():
      columns.setdefault(name, []).append(value)
  stacked = {name: np.stack(values) for name, values in columns.items()}
  files.save_arrays(path, stacked)


def _example(split, describe, record, query, projection, radius):
  frames = split.frames
  query_row, retrieved = record.query_rows[query], record.ranked_rows[query, 0]
  same = record.map_towns == record.towns[query]
  offsets = record.map_positions[same] - record.query_positions[query]
  true = record.map_rows[same][np.linalg.norm(offsets[:, :2], axis=1).argmin()]
  (image,) = split.batches(np.asarray([query_row]), ('image',), 1)
  scans = [
    next(split.batches(np.asarray([row]), ('points',), 1))
    for row in (retrieved, true)
  ]
  size = image['image'].shape[1:3]
  image_out, true_out = describe.image(image), describe.points(scans[1])
  depth, weight = draw_scan(
    scans[1], 0, size, point_weights(scans[1], 0, true_out), projection
  )
  nothing = np.zeros(scans[0]['points'].shape[1])
  found, _ = draw_scan(scans[0], 0, size, nothing, projection)
  right = np.flatnonzero(record.distances[query] <= radius)
  weights = _relative(np.asarray(image_out['saliency'][0]))
  return {
    'query_image': image['image'][0],
    'retrieved_depth': found,
    'true_depth': depth,
    'saliency_image': weights.reshape(image_out['grid']).astype(np.float32),
    'saliency_points': weight,
    'distance_m': np.float32(record.distances[query, 0]),
    'rank': np.int32(right[0] + 1 if len(right) else 0),
    'query_position': frames.position[query_row, :2],
    'retrieved_position': frames.position[retrieved, :2],
    'true_position': frames.position[true, :2],
    'title': np.str_(f'{frames.drive[query_row]} {frames.frame[query_row]}'),
  }


def saliency_shares(
  split: Split,
  describe: Describe,
  prefix: str,
  classes: Mapping[str, Sequence[int]] | None = None,
) -> Iterator[tuple[str, float]]:
  """How much saliency falls on what moves, against how much is seen of it.

  Percent of the saliency's mass (`share`) and of the tokens' content (`area`)
  on things that move and on things that may be gone tomorrow (parked cars
  too), on evenly spaced query images and map scans. A model that ignores them
  has a share below the area. Nothing for data without labels.

  Args:
    split: labelled readings.
    describe: the model.
    prefix: of the names.
    classes: ids of classes by name, to ask about others than 'moving' and
      'movable'.

  Yields:
    '<prefix>/saliency/image/moving_share' and so on, and percent.
  """
  if split.labels is None:
    return
  classes = classes or {
    'moving': split.labels.moving,
    'movable': split.labels.movable,
  }
  questions = split.protocols
  rows = {
    'image': np.concatenate([p.query_rows for p in questions]),
    'points': np.concatenate([p.map_rows for p in questions]),
  }
  for sensor, fractions in (
    ('image', _image_fractions),
    ('points', _points_fractions),
  ):
    taken = _spread(np.unique(rows[sensor]), NUM_LABELLED)
    mass = np.zeros((len(classes), 2))
    total = np.zeros(2)
    for batch in split.batches(taken, (sensor, 'labels'), BATCH):
      out = getattr(describe, sensor)(batch)
      for entry in np.flatnonzero(batch['mask']):
        mask = np.asarray(out['tokens'].mask[entry])
        weight = _relative(np.asarray(out['saliency'][entry])[mask])
        fraction = fractions(batch, entry, out, classes.values())[:, mask]
        mass += np.stack([fraction @ weight, fraction.sum(1)], axis=1)
        total += weight.sum(), len(weight)
    for name, percent in zip(classes, 100 * mass / total, strict=True):
      base = f'{prefix}/saliency/{sensor}/{name}'
      yield f'{base}_share', float(percent[0])
      yield f'{base}_area', float(percent[1])


def _image_fractions(batch, entry, out, classes):
  """Share [K, N] of each of K lists of classes in each token's pixels."""
  rows, columns = out['grid']
  fractions = []
  for ids in classes:
    inside = np.isin(batch['image_semantic'][entry], ids).astype(np.float32)
    by_row = [block.mean(0) for block in np.array_split(inside, rows)]
    blocks = np.array_split(np.stack(by_row), columns, axis=1)
    fraction = np.stack([block.mean(1) for block in blocks], axis=1)
    fractions.append(fraction.ravel())
  return np.stack(fractions)


def _points_fractions(batch, entry, out, classes):
  """1 [K, N] where the point nearest to a token is of one of K lists."""
  real = batch['points_mask'][entry]
  points = batch['points'][entry, real, :3]
  nearest = _nearest(np.asarray(out['centers'][entry]), points)
  labels = batch['points_semantic'][entry, real][nearest]
  return np.stack([np.isin(labels, ids) for ids in classes])
