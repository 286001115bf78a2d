# SPDX-License-Identifier: Apache-2.0
"""What is asked: queries, a map, and which answers are right, before any model.

The frame table and the protocols come from whoever owns the data; the two
interfaces below name the columns that an evaluation reads.
"""

from collections.abc import Iterable
from typing import NamedTuple
from typing import Protocol as Interface

import numpy as np

from i2ploc.evaluation import metrics
from i2ploc.retrieval import matching


class Frames(Interface):
  """The columns of the dataset's frame table that an evaluation needs."""

  drive: np.ndarray  # [F] str
  timestamp: np.ndarray  # [F] seconds, comparable inside a drive
  position: np.ndarray  # [F, 3] metres, z up, comparable inside a town
  has_image: np.ndarray  # [F] bool
  has_points: np.ndarray  # [F] bool


class Protocol(Interface):
  """One town's question: where in the map was each query taken?

  Rows are rows of the frame table, in the order of travel. The queries of the
  protocols named 'opposite...' drive against the direction of the map.
  """

  name: str
  town: str
  query_rows: np.ndarray  # [Q] int
  map_rows: np.ndarray  # [M] int


def rows_to_embed(
  frames: Frames, protocols: Iterable[Protocol]
) -> tuple[np.ndarray, np.ndarray]:
  """The rows whose image and whose points an evaluation needs, ascending."""
  used = np.zeros(len(frames.drive), bool)
  for protocol in protocols:
    used[protocol.query_rows] = True
    used[protocol.map_rows] = True
  return (
    np.flatnonzero(used & frames.has_image),
    np.flatnonzero(used & frames.has_points),
  )


class Question(NamedTuple):
  """One town's protocol in one direction, as arrays.

  Attributes:
    query_rows: int [Q] rows of the frame table.
    map_rows: int [M].
    distances: float32 [Q, M] horizontal metres.
    candidates: bool [Q, M], what the self-match policy allows.
    num_candidates: int [Q].
    num_positives: int [Q, R], candidates within each of `radii`.
    radii: [R] metres.
    query_runs: int [Q], equal for rows that follow each other.
    map_runs: int [M].
    direction: -1 where queries drive against the map, else 1.
  """

  query_rows: np.ndarray
  map_rows: np.ndarray
  distances: np.ndarray
  candidates: np.ndarray
  num_candidates: np.ndarray
  num_positives: np.ndarray
  radii: tuple[float, ...]
  query_runs: np.ndarray
  map_runs: np.ndarray
  direction: int


def question_from_protocol(
  frames: Frames,
  protocol: Protocol,
  has_query: np.ndarray,
  has_place: np.ndarray,
  *,
  radii: tuple[float, ...],
  exclude_self: bool,
  exclude_within: float,
) -> Question | None:
  """Truth of a protocol for queries of one sensor and a map of the other.

  Args:
    frames: the frame table.
    protocol: whose rows to take.
    has_query: bool [F], rows that have the sensor of the queries.
    has_place: bool [F], rows that have the sensor of the map.
    radii: [R] metres that count as found.
    exclude_self: see `metrics.allowed_candidates`.
    exclude_within: seconds.

  Returns:
    None if no query or no map reading has its sensor.
  """
  queries = np.asarray(protocol.query_rows)
  places = np.asarray(protocol.map_rows)
  queries, places = queries[has_query[queries]], places[has_place[places]]
  if not len(queries) or not len(places):
    return None
  distances = metrics.horizontal_distances(
    frames.position[queries], frames.position[places]
  )
  candidates = metrics.allowed_candidates(
    frames.drive[queries],
    frames.timestamp[queries],
    frames.drive[places],
    frames.timestamp[places],
    exclude_self=exclude_self,
    exclude_within=exclude_within,
  )
  num_positives = [(candidates & (distances <= r)).sum(1) for r in radii]
  return Question(
    query_rows=queries,
    map_rows=places,
    distances=distances,
    candidates=candidates,
    num_candidates=candidates.sum(1),
    num_positives=np.stack(num_positives, 1),
    radii=tuple(radii),
    query_runs=matching.consecutive_runs(
      frames.drive[queries], frames.position[queries]
    ),
    map_runs=matching.consecutive_runs(
      frames.drive[places], frames.position[places]
    ),
    direction=-1 if protocol.name.startswith('opposite') else 1,
  )
