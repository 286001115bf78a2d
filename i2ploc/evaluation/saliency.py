# SPDX-License-Identifier: Apache-2.0
"""Where saliency falls: on points, and on classes of labelled readings."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import typing
from typing import Any

import numpy as np

from i2ploc.evaluation import questions as questions_lib

Batch = dict[str, np.ndarray]
# By side: a model's `out` for a batch, see `saliency_shares`.
Describe = Mapping[str, Callable[[Batch], dict[str, Any]]]
NUM_LABELLED = 128
BATCH = 16


class Split(typing.Protocol):
  """The readings of the split that was evaluated."""

  frames: Any
  image_size: tuple[int, int]  # (H, W), pixels
  labels: Any  # ids of the classes that are `moving` and `movable`; or None

  def batches(self, rows: np.ndarray, what: tuple[str, ...], size: int):
    """Batches of these rows."""


def spread(rows: np.ndarray, count: int) -> np.ndarray:
  """At most `count` of `rows`, evenly spaced."""
  count = min(count, len(rows))
  return rows[np.linspace(0, len(rows) - 1, count).astype(int)]


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
    out: of the LiDAR tower: saliency, tokens, centers.

  Returns:
    [P], of mean 1 over the tokens.
  """
  centers = np.asarray(out['centers'][entry])
  mask = np.asarray(out['tokens'].mask[entry])
  weights = np.asarray(out['saliency'][entry])[mask]
  points = batch['points'][entry, :, :3]
  return relative_weights(weights)[_nearest(points, centers[mask])]


def relative_weights(weights: np.ndarray) -> np.ndarray:
  """Weights with mean 1."""
  return weights / max(float(weights.mean()), 1e-12)


def saliency_shares(
  split: Split,
  questions: Sequence[questions_lib.Question],
  describe: Describe,
  prefix: str,
  classes: Mapping[str, Sequence[int]] | None = None,
) -> Iterator[tuple[str, float]]:
  """How much saliency falls on what moves, against how much is seen of it.

  Percent of the saliency's mass (`share`) and of the tokens' content (`area`)
  on things that move and on things that may be gone tomorrow (parked cars
  too), on evenly spaced query images and map scans. A model that ignores them
  has a share below the area. Nothing for data without labels or for a model
  without saliency.

  Args:
    split: labelled readings.
    questions: whose queries and map readings to look at.
    describe: by side, `batch -> out` of the model: saliency [B, N], tokens
      with a mask [B, N], and the grid of an image or the centers of a scan.
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
  for side, fractions in (
    ('image', _image_fractions),
    ('points', _points_fractions),
  ):
    rows = [q.query_rows for q in questions if q.query_side == side]
    rows += [q.map_rows for q in questions if q.map_side == side]
    if not rows:
      continue
    taken = spread(np.unique(np.concatenate(rows)), NUM_LABELLED)
    mass = np.zeros((len(classes), 2))
    total = np.zeros(2)
    for batch in split.batches(taken, (side, 'labels'), BATCH):
      out = describe[side](batch)
      if 'saliency' not in out:
        return
      for entry in np.flatnonzero(batch['mask']):
        mask = np.asarray(out['tokens'].mask[entry])
        weight = relative_weights(np.asarray(out['saliency'][entry])[mask])
        fraction = fractions(batch, entry, out, classes.values())[:, mask]
        mass += np.stack([fraction @ weight, fraction.sum(1)], axis=1)
        total += weight.sum(), len(weight)
    for name, percent in zip(classes, 100 * mass / total, strict=True):
      base = f'{prefix}/saliency/{side}/{name}'
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
