# SPDX-License-Identifier: Apache-2.0
"""Which frames were taken near which, by a tree for every town."""

import numpy as np
from scipy import spatial

from input_pipeline import pairing
from input_pipeline import schema


def near(
  frames: schema.FrameTable,
  asking: np.ndarray,
  among: np.ndarray,
  radius: float,
  max_heading: float | None,
) -> pairing.Lists:
  """Frames of the same town, place and direction, for each that asks.

  Args:
    frames: the table.
    asking: [A] rows with known positions.
    among: [M] rows with known positions.
    radius: metres, horizontally; a frame at this distance is near.
    max_heading: radians below which two headings agree (an unknown heading
      agrees with none); None where positions alone decide.

  Returns:
    A list per asking row with the near rows in the order of `among`; a row
    that is itself among them is near itself.
  """
  heading = frames.heading
  found = [np.zeros(0, np.int64)] * len(asking)
  for town in np.unique(frames.town[asking]):
    questions = np.flatnonzero(frames.town[asking] == town)
    members = among[frames.town[among] == town]
    if not len(members):
      continue
    tree = spatial.KDTree(frames.position[members, :2])
    hits = tree.query_ball_point(
      frames.position[asking[questions], :2], radius, return_sorted=True
    )
    for question, hit in zip(questions, hits, strict=True):
      rows = members[np.asarray(hit, np.int64)]
      if max_heading is not None:
        turn = pairing.heading_difference(
          heading[rows], heading[asking[question]]
        )
        rows = rows[turn < max_heading]
      found[question] = rows
  lengths = [len(rows) for rows in found]
  start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
  return pairing.Lists(start, np.concatenate([np.zeros(0, np.int64), *found]))
