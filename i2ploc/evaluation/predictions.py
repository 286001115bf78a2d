# SPDX-License-Identifier: Apache-2.0
"""The ranked answers behind the numbers, for a report to look at."""

from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import NamedTuple

import numpy as np

from i2ploc import files
from i2ploc.evaluation import protocols

NUM_RANKED = 20


class Predictions(NamedTuple):
  """What a report needs of one protocol in one direction, all towns.

  Attributes:
    towns: [Q] str.
    query_rows: int64 [Q] rows of the frame table.
    query_positions: float64 [Q, 3].
    ranked_rows: int64 [Q, 20] map rows, most similar first, equal ones in map
      order; -1 where the map has fewer.
    similarities: float32 [Q, 20], -inf where unused.
    distances: float32 [Q, 20] horizontal metres, inf where unused.
    nearest: float32 [Q], distance to the nearest allowed map reading.
    map_towns: [M] str.
    map_rows: int64 [M].
    map_positions: float64 [M, 3].
  """

  towns: np.ndarray
  query_rows: np.ndarray
  query_positions: np.ndarray
  ranked_rows: np.ndarray
  similarities: np.ndarray
  distances: np.ndarray
  nearest: np.ndarray
  map_towns: np.ndarray
  map_rows: np.ndarray
  map_positions: np.ndarray


def save_predictions(
  predictions: Mapping[str, Predictions], path: str | os.PathLike
) -> None:
  """Writes one npz with arrays `<split>/<protocol>/<direction>/<field>`."""
  arrays = {
    f'{name}/{field}': value
    for name, record in predictions.items()
    for field, value in record._asdict().items()
  }
  files.save_arrays(path, arrays)


def rank_answers(
  frames: protocols.Frames,
  town: str,
  question: protocols.Question,
  similarities: np.ndarray,
) -> Predictions:
  """The first answers of a town's queries from similarities [Q, M]."""
  allowed = np.where(question.candidates, similarities, -np.inf)
  order = np.argsort(-allowed, axis=1, kind='stable')[:, :NUM_RANKED]
  ranked = np.take_along_axis(allowed, order, 1)
  valid = np.isfinite(ranked)
  distances = np.take_along_axis(question.distances, order, 1)
  nearest = np.where(question.candidates, question.distances, np.inf).min(1)
  unused = ((0, 0), (0, NUM_RANKED - order.shape[1]))

  def fill(values: np.ndarray, nothing: float) -> np.ndarray:
    values = np.where(valid, values, np.asarray(nothing, values.dtype))
    return np.pad(values, unused, constant_values=nothing)

  return Predictions(
    towns=np.full(len(order), town),
    query_rows=question.query_rows,
    query_positions=frames.position[question.query_rows],
    ranked_rows=fill(question.map_rows[order], -1),
    similarities=fill(ranked.astype(np.float32), -np.inf),
    distances=fill(distances, np.inf),
    nearest=nearest.astype(np.float32),
    map_towns=np.full(len(question.map_rows), town),
    map_rows=question.map_rows,
    map_positions=frames.position[question.map_rows],
  )


def concatenate(records: Sequence[Predictions]) -> Predictions:
  """The queries and maps of several towns, one after the other."""
  return Predictions(*(np.concatenate(x) for x in zip(*records, strict=True)))
