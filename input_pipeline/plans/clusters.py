# SPDX-License-Identifier: Apache-2.0
"""Batches of places that look alike: clusters in descriptor space.

EarthLoc (Berton et al., CVPR 2024) clusters its tiles anew every few epochs
and draws a batch from one cluster, so that all its negatives are hard.
"""

from collections.abc import Sequence

import numpy as np

from i2ploc.errors import InputError
from input_pipeline.plans import places
from input_pipeline.plans import planner

_ITERATIONS = 20


def kmeans(
  x: np.ndarray, num_clusters: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """K-means by Lloyd's iterations from a greedy k-means++ start.

  Of a few rows that are drawn by their squared distance to the centres so far,
  the one that brings all rows nearest is the next centre (Arthur and
  Vassilvitskii, 2007).

  Args:
    x: [N, D], N at least 1.
    num_clusters: K.
    rng: draws the start.

  Returns:
    Centres [K, D] and labels [N] int, the nearest centre of every row. Where
    fewer than K rows differ some clusters are empty.
  """
  x = np.asarray(x, np.float64)
  length = (x**2).sum(axis=1)[:, None]

  def squared(centers: np.ndarray) -> np.ndarray:
    """[N, K] squared distances, not below 0 by rounding."""
    sums = length + (centers**2).sum(axis=1)
    return np.maximum(sums - 2 * (x @ centers.T), 0)

  centers = x[[rng.integers(len(x))]]
  apart = squared(centers)[:, 0]
  num_drawn = 2 + int(np.log(num_clusters))
  for _ in range(num_clusters - 1):
    total = apart.sum()
    weights = apart / total if total > 0 else None
    drawn = x[rng.choice(len(x), num_drawn, p=weights)]
    left = np.minimum(apart[:, None], squared(drawn))
    best = left.sum(axis=0).argmin()
    apart, centers = left[:, best], np.vstack([centers, drawn[best]])
  label = squared(centers).argmin(axis=1)
  for _ in range(_ITERATIONS):
    member = (label[:, None] == np.arange(num_clusters)).astype(np.float64)
    count = member.sum(axis=0)[:, None]
    mean = member.T @ x / np.maximum(count, 1)
    centers = np.where(count > 0, mean, centers)
    before, label = label, squared(centers).argmin(axis=1)
    if np.array_equal(before, label):
      break
  return centers, label


def make_clusters(
  table: places.Places,
  *,
  batch_size: int,
  steps: int,
  seed: int,
  num_views: int = 4,
  cross_drive: float = 0.5,
  num_clusters: int = 50,
  conditions: Sequence[str] | None = None,
) -> planner.Planner:
  """Batches from one cluster each; places are clustered anew in every round.

  Args:
    table: the places; the first view of each is described.
    batch_size: B = P K.
    steps: S, of a round.
    seed: of what is drawn.
    num_views: K.
    cross_drive: see `places.Draw`.
    num_clusters: at most as many as places.
    conditions: see `places.Draw`.

  Returns:
    A planner of row, place and, where the table has it, variant. A step draws
    its cluster by size, so that every place is as likely; a cluster smaller
    than a batch is filled from the clusters whose centres are nearest.

  Raises:
    InputError: an argument is out of range, or there are fewer places than a
      batch or clusters.
  """
  planner.check_sizes(batch_size, steps, num_views, 'views of a place')
  num_places = batch_size // num_views
  places.check_enough(table, num_places)
  count = len(table.town)
  if not 1 <= num_clusters <= count:
    raise InputError(
      f'num_clusters={num_clusters} of {count} places: choose a number between '
      '1 and that.'
    )
  draw = places.Draw(table, num_views, cross_drive, conditions)
  shown = table.first.rows[table.first.start[:-1]]

  def plan(number: int, describe: planner.Describe) -> planner.Plan:
    rng = planner.random_of_round(seed, number)
    centers, label = kmeans(describe(shown), num_clusters, rng)

    def choose() -> np.ndarray:
      """[P] places of one cluster, and of its neighbours if need be."""
      own = label[rng.integers(count)]
      apart = ((centers - centers[own]) ** 2).sum(axis=1)
      apart[own] = -1.0
      return np.lexsort((rng.random(count), apart[label]))[:num_places]

    return places.stack([draw(choose(), rng) for _ in range(steps)])

  return plan
