# SPDX-License-Identifier: Apache-2.0
"""The ranked answers behind the numbers, for a report to look at."""

from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import NamedTuple

import numpy as np

from i2ploc import files

NUM_RANKED = 20


class Predictions(NamedTuple):
  """What a report needs of one protocol in one direction, all towns.

  Attributes:
    towns: [Q] str.
    query_rows: int64 [Q] rows of the frame table.
    query_positions: float64 [Q, 3]; NaN where unknown.
    ranked_rows: int64 [Q, 20] map rows, most similar first, equal ones in map
      order; -1 where the map has fewer.
    similarities: float32 [Q, 20], -inf where unused.
    distances: float32 [Q, 20] horizontal metres, inf where unused, NaN where a
      position is unknown.
    confidence: float32 [Q] in [0, 1], of the first answer; NaN without one.
    nearest: float32 [Q], distance to the nearest allowed map reading; inf
      without one, NaN where positions are unknown.
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
  confidence: np.ndarray
  nearest: np.ndarray
  map_towns: np.ndarray
  map_rows: np.ndarray
  map_positions: np.ndarray


def concatenate(records: Sequence[Predictions]) -> Predictions:
  """The queries and maps of several towns, one after the other."""
  return Predictions(*(np.concatenate(x) for x in zip(*records, strict=True)))


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
