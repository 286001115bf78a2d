# SPDX-License-Identifier: Apache-2.0
"""The published ways to ask along one drive, between camera and LiDAR.

Each asks, for a reading of one sensor, which readings of the other sensor in
the same drive were taken at the same place. They differ in who asks, in what
may answer, in the radius, and, without meaning to, in which two coordinates
they take for the ground. A hit is strictly nearer than the radius in all of
them, as in the published codes; ties are settled by `metrics`, pessimistically.

The entries named `..._axes` take the coordinates of a published evaluator that
are not the ground. Their numbers are for comparison with publications and
measure no localization.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from i2ploc.evaluation import questions


class Protocol(NamedTuple):
  """One way to ask.

  Attributes:
    name: as on the command line.
    title: what it is, for tables.
    radii: metres; a hit is strictly nearer.
    spacing: 0: every frame asks and every frame answers. Else a frame asks if
      more than `spacing` metres of travel lie behind the last that did, and
      the others answer.
    exclude_self: whether the reading of the query's own instant is neither an
      answer nor a positive.
    exclude_recent: seconds; only readings at least this much older than the
      query count. 0: the future counts as well.
    components: the two coordinates that distances are taken from; None: the
      ground.
  """

  name: str
  title: str
  radii: tuple[float, ...]
  spacing: float = 0.0
  exclude_self: bool = False
  exclude_recent: float = 0.0
  components: tuple[int, int] | None = None

  def describe(self) -> str:
    """Every choice of the protocol on one line."""
    asks, answers = 'every frame', 'every frame of the drive'
    if self.spacing:
      asks = f'a frame every {self.spacing:g} m of travel'
      answers = 'the remaining frames'
    excluded = 'nothing, the own instant included'
    if self.exclude_self:
      excluded = 'the own instant (candidates and truth), not its neighbours'
    if self.exclude_recent:
      excluded = f'the last {self.exclude_recent:g} s and the future'
    radii = ' / '.join(f'{radius:g}' for radius in self.radii)
    planes = ', '.join(self._describe_plane(axes) for axes in ('kitti', 'z_up'))
    return (
      f'Queries: {asks}; database: {answers}; excluded: {excluded}; hit: less'
      f' than {radii} m in {planes}; ties: pessimistic, a negative as similar'
      ' as the best positive beats it.'
    )

  def _describe_plane(self, axes: str) -> str:
    ground = questions.AXES[axes].ground
    plane = self.components or ground
    wrong = '' if plane == ground else ' (not the ground)'
    return f'({", ".join("xyz"[i] for i in plane)}) of {axes}{wrong}'


PROTOCOLS = {
  protocol.name: protocol
  for protocol in (
    Protocol('lip_loc', 'LIP-Loc', (20.0,)),
    Protocol(
      'lip_loc_released_axes',
      'LIP-Loc on the axes of the released code (for comparison only)',
      (20.0,),
      components=(1, 2),
    ),
    Protocol('rangebev', 'RangeBEV and CMVM', (10.0,), exclude_self=True),
    # Its query and database lists are not published.
    Protocol(
      'modalink_axes',
      'RangeBEV on the axes of ModaLink (for comparison only)',
      (10.0,),
      exclude_self=True,
      components=(0, 1),
    ),
    Protocol(
      'loop_closure', 'Loop closure', (3.0, 5.0, 10.0), exclude_recent=30.0
    ),
    Protocol('ae_spherical', 'AE-Spherical split', (20.0,), spacing=3.0),
  )
}


def question_from_tracks(
  protocol: Protocol,
  tracks: Mapping[str, questions.Track],
  query_side: str,
  map_side: str,
  drive: str = '',
) -> questions.Question:
  """What a protocol asks along one drive, in one direction.

  Args:
    protocol: how to ask.
    tracks: of the drive, by side.
    query_side: what asks.
    map_side: what answers; the same side asks without its own reading.
    drive: its name.

  Raises:
    InputError: a side without a track, tracks in different axes, a protocol
      that needs times and has none, or no query or no place left.
  """
  sides = (query_side, map_side)
  if missing := [side for side in sides if side not in tracks]:
    raise InputError(f'No track of {missing}; there are {sorted(tracks)}.')
  queries, places = (tracks[side] for side in sides)
  if queries.axes != places.axes:
    raise InputError(f'Axes differ: {queries.axes!r} and {places.axes!r}.')
  if protocol.exclude_recent and (
    queries.times is None or places.times is None
  ):
    raise InputError(
      f'{protocol.name} excludes the last {protocol.exclude_recent:g} s, but'
      ' the frames have no times; store image_time and points_time, or give'
      ' the frame rate (--rate=10 for KITTI).'
    )
  asks = np.ones(len(queries.frames), bool)
  answers = np.ones(len(places.frames), bool)
  if protocol.spacing:
    chosen = frames_by_travel(tracks, protocol.spacing)
    asks = np.isin(queries.frames, chosen)
    answers = ~np.isin(places.frames, chosen)
  query_rows, map_rows = np.flatnonzero(asks), np.flatnonzero(answers)
  if not len(query_rows) or not len(map_rows):
    raise InputError(
      f'{protocol.name}: {len(query_rows)} queries and {len(map_rows)}'
      ' places; it needs both.'
    )
  return questions.Question(
    protocol.name,
    drive,
    query_side,
    map_side,
    query_rows,
    map_rows,
    protocol.radii,
    exclude_self=protocol.exclude_self or query_side == map_side,
    exclude_recent=protocol.exclude_recent,
    strict=True,
    components=protocol.components,
  )


def frames_by_travel(
  tracks: Mapping[str, questions.Track], spacing: float
) -> np.ndarray:
  """Frames behind which more than `spacing` metres were driven since the last.

  Travel is the path in the ground plane, not the distance: a loop does not end
  where it began. The first frame is one.

  Args:
    tracks: of one drive, by side.
    spacing: metres.

  Returns:
    int64 [K] frame numbers, the same for both directions.
  """
  frames, rows = np.unique(
    np.concatenate([track.frames for track in tracks.values()]),
    return_index=True,
  )
  ground = np.concatenate([track.ground for track in tracks.values()])[rows]
  steps = np.linalg.norm(np.diff(ground, axis=0), axis=1)
  chosen, driven = [0], 0.0
  for row, step in enumerate(steps, start=1):
    driven += step
    if driven > spacing:
      chosen.append(row)
      driven = 0.0
  return frames[chosen]
