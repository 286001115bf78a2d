# SPDX-License-Identifier: Apache-2.0
"""What makes an answer right, where it is not metres between positions.

  m        metres between positions (the usual case)
  frames   numbers of frames apart: positions are frame numbers, along x
  overlap  footprints that overlap
  listed   a list of right answers, query by query

The last two know no distance: an answer has 0 if it is right and 1 if it is
wrong, and the radius is 0.
"""

from typing import NamedTuple

import numpy as np

from i2ploc.photos import footprints as footprints_lib

METRES, FRAMES, OVERLAP, LISTED = 'm', 'frames', 'overlap', 'listed'
UNITS = (METRES, FRAMES, OVERLAP, LISTED)
# Units in which answers are right or wrong, and not so many away.
NO_LENGTH = (OVERLAP, LISTED)


class Answers(NamedTuple):
  """Lists of right answers.

  Attributes:
    offsets: int64 [F + 1]; row r is answered by rows[offsets[r]:offsets[r+1]].
    rows: int64 [P], rows that answer.
    known: bool [F], rows whose answers are known, all of them; those that
      answer alone are known too.
  """

  offsets: np.ndarray
  rows: np.ndarray
  known: np.ndarray


class Truth(NamedTuple):
  """Of the F rows of a frame table.

  Attributes:
    unit: of `UNITS`.
    footprints: [F, 4, 2], see `footprints.from_names`, NaN where unknown; four
      equal corners are a point. None in other units.
    answers: None in other units.
  """

  unit: str = METRES
  footprints: np.ndarray | None = None
  answers: Answers | None = None

  def distances(
    self, queries: np.ndarray, places: np.ndarray
  ) -> np.ndarray | None:
    """0 where an answer is right and 1 where it is wrong.

    Args:
      queries: int [Q] rows that ask.
      places: int [M] rows that answer.

    Returns:
      float32 [Q, M]; None in units of length: positions tell.
    """
    if self.footprints is not None:
      right = footprints_lib.overlap(
        self.footprints[queries], self.footprints[places]
      )
      return (~right).astype(np.float32)
    if self.answers is None:
      return None
    offsets, rows, _ = self.answers
    column = np.full(len(offsets) - 1, -1)
    column[places] = np.arange(len(places))
    distances = np.ones((len(queries), len(places)), np.float32)
    for i, query in enumerate(queries):
      found = column[rows[offsets[query] : offsets[query + 1]]]
      distances[i, found[found >= 0]] = 0
    return distances

  def known(self, rows: np.ndarray) -> np.ndarray | None:
    """bool [N], of which rows the truth is known; None: positions tell."""
    if self.footprints is not None:
      return np.isfinite(self.footprints[rows]).all((1, 2))
    return None if self.answers is None else self.answers.known[rows]


def within_name(unit: str, radius: float) -> str:
  """How near an answer has to be, as in the names of numbers.

  >>> within_name('m', 25.0), within_name('frames', 7)
  ('25m', '7frames')
  >>> within_name('overlap', 0)
  'overlap'
  """
  return unit if unit in NO_LENGTH else f'{radius:g}{unit}'


def within_text(unit: str, radius: float) -> str:
  """The same as people say it.

  >>> within_text('frames', 7), within_text('listed', 0)
  ('within 7 frames', 'as listed')
  """
  if unit in NO_LENGTH:
    return {OVERLAP: 'footprints overlap', LISTED: 'as listed'}[unit]
  return f'within {radius:g} {unit}'
