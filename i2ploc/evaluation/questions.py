# SPDX-License-Identifier: Apache-2.0
"""The protocols in use for retrieval between camera and LiDAR along one drive.

Each asks, for a reading of one sensor, which readings of the other sensor in
the same drive were taken at the same place. They differ in who asks, in what
may answer, in the radius, and, without meaning to, in which two coordinates
they take for the ground. A hit is strictly nearer than the radius in all of
them, as in the published codes; ties are settled by `metrics`, pessimistically.

The entries named `..._axes` take the coordinates of a published evaluator that
are not the ground. Their numbers are for comparison with publications and
measure no localization.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from i2ploc.evaluation import metrics

DIRECTIONS = ('image_to_points', 'points_to_image')
# Queries of a block: the arrays of a block stay below some 10 MB.
BLOCK = 256
# Headings turned by less than 45 degrees are the same, by more than 135 the
# opposite ones.
ALIGNED = np.cos(np.deg2rad(45))
# Times are multiples of a period that floats do not hold exactly, seconds.
TIME_TOLERANCE = 1e-6


class Axes(NamedTuple):
  """What the three coordinates of a position mean.

  Attributes:
    ground: the two that span the ground.
    forward: the axis of the vehicle's own frame that points ahead.
  """

  ground: tuple[int, int]
  forward: int


_Z_UP = Axes((0, 1), 0)
AXES = {
  # Camera 0: x right, y down, z forward; world and vehicle alike.
  'kitti': Axes((0, 2), 2),
  # x forward, y left, z up: LiDAR, or the GPS/IMU of KITTI-360's poses.txt.
  'z_up': _Z_UP,
  'kitti360': _Z_UP,
}


class Track(NamedTuple):
  """Where and when one sensor of a drive was, in the order of its frames.

  Attributes:
    frames: int64 [N], increasing; readings of one instant share the number.
    positions: float64 [N, 3], metres.
    axes: a key of `AXES`.
    times: float64 [N] seconds, not decreasing; None if unknown.
    headings: float64 [N] radians about the vertical; None if unknown.
  """

  frames: np.ndarray
  positions: np.ndarray
  axes: str
  times: np.ndarray | None = None
  headings: np.ndarray | None = None

  @property
  def ground(self) -> np.ndarray:
    """float64 [N, 2], positions in the ground plane."""
    return self.positions[:, AXES[self.axes].ground]

  def take(self, rows: np.ndarray) -> 'Track':
    """The track of these rows."""
    columns = (None if x is None else x[rows] for x in self[3:])
    return Track(self.frames[rows], self.positions[rows], self.axes, *columns)


def headings_from_poses(poses: np.ndarray, axes: str) -> np.ndarray:
  """Headings [N] in the ground plane, radians, of poses [N, 4, 4]."""
  ground, forward = AXES[axes]
  return np.arctan2(poses[:, ground[1], forward], poses[:, ground[0], forward])


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

  def plane(self, axes: str) -> tuple[int, int]:
    """The two coordinates of a position that distances are taken from."""
    return self.components or AXES[axes].ground

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
    plane = self.plane(axes)
    wrong = '' if plane == AXES[axes].ground else ' (not the ground)'
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


class Question(NamedTuple):
  """Who asks and what may answer, in one direction.

  Attributes:
    query_rows: int64 [Q], rows of the asking sensor.
    place_rows: int64 [M], rows of the answering one.
    queries: their track.
    places: the track of the answers.
  """

  query_rows: np.ndarray
  place_rows: np.ndarray
  queries: Track
  places: Track


class Block(NamedTuple):
  """The truth about some queries.

  Attributes:
    rows: a slice of the question's queries.
    distances: float32 [b, M], metres, in the plane of the protocol.
    candidates: bool [b, M], what may answer.
    alignments: [b, M], cosine of the turn between the headings; None if they
      are unknown.
  """

  rows: slice
  distances: np.ndarray
  candidates: np.ndarray
  alignments: np.ndarray | None


def question_from_tracks(
  protocol: Protocol, image: Track, points: Track, direction: str
) -> Question:
  """Queries and database of a protocol in one of `DIRECTIONS`.

  Raises:
    InputError: an unknown direction, tracks in different axes, a protocol
      that needs times and has none, or no query or no place left.
  """
  if direction not in DIRECTIONS:
    raise InputError(f'Unknown direction {direction!r}; one of {DIRECTIONS}.')
  if image.axes != points.axes:
    raise InputError(f'Axes differ: {image.axes!r} and {points.axes!r}.')
  if protocol.exclude_recent and (image.times is None or points.times is None):
    raise InputError(
      f'{protocol.name} excludes the last {protocol.exclude_recent:g} s, but'
      ' the frames have no times; store image_time and points_time, or give'
      ' the frame rate (--rate=10 for KITTI).'
    )
  queries, places = image, points
  if direction == 'points_to_image':
    queries, places = points, image
  asks = np.ones(len(queries.frames), bool)
  answers = np.ones(len(places.frames), bool)
  if protocol.spacing:
    chosen = frames_by_travel(image, points, protocol.spacing)
    asks = np.isin(queries.frames, chosen)
    answers = ~np.isin(places.frames, chosen)
  query_rows, place_rows = np.flatnonzero(asks), np.flatnonzero(answers)
  if not len(query_rows) or not len(place_rows):
    raise InputError(
      f'{protocol.name}: {len(query_rows)} queries and {len(place_rows)}'
      ' places; it needs both.'
    )
  return Question(
    query_rows,
    place_rows,
    queries.take(query_rows),
    places.take(place_rows),
  )


def frames_by_travel(image: Track, points: Track, spacing: float) -> np.ndarray:
  """Frames behind which more than `spacing` metres were driven since the last.

  Travel is the path in the ground plane, not the distance: a loop does not end
  where it began. The first frame is one.

  Returns:
    int64 [K] frame numbers, the same for both directions.
  """
  frames, rows = np.unique(
    np.concatenate([image.frames, points.frames]), return_index=True
  )
  ground = np.concatenate([image.ground, points.ground])[rows]
  steps = np.linalg.norm(np.diff(ground, axis=0), axis=1)
  chosen, driven = [0], 0.0
  for row, step in enumerate(steps, start=1):
    driven += step
    if driven > spacing:
      chosen.append(row)
      driven = 0.0
  return frames[chosen]


def blocks_from_question(
  protocol: Protocol, question: Question, size: int = BLOCK
) -> Iterator[Block]:
  """The truth, `size` queries at a time: no Q x M array exists."""
  queries, places = question.queries, question.places
  plane = list(protocol.plane(places.axes))
  if places.headings is not None:
    directions = _directions(places.headings)
  for start in range(0, len(queries.frames), size):
    rows = slice(start, start + size)
    candidates = metrics.allowed_candidates(
      np.zeros(len(queries.frames[rows])),
      queries.frames[rows],
      np.zeros(len(places.frames)),
      places.frames,
      exclude_self=protocol.exclude_self,
    )
    if protocol.exclude_recent:
      older = queries.times[rows, None] - places.times
      candidates &= older >= protocol.exclude_recent - TIME_TOLERANCE
    alignments = None
    if queries.headings is not None and places.headings is not None:
      alignments = _directions(queries.headings[rows]) @ directions.T
    yield Block(
      rows,
      metrics.horizontal_distances(
        queries.positions[rows][:, plane], places.positions[:, plane]
      ),
      candidates,
      alignments,
    )


def _directions(headings: np.ndarray) -> np.ndarray:
  """Unit vectors [N, 2]."""
  return np.stack([np.cos(headings), np.sin(headings)], 1)


def headings_of_positives(
  positives: np.ndarray, alignments: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Which queries can be answered in their own heading, which only reversed.

  Args:
    positives: bool [b, M].
    alignments: [b, M], cosines of the turns.

  Returns:
    same: bool [b], some positive is turned by less than 45 degrees.
    opposite: bool [b], none is, and some is turned by more than 135. Queries
      in neither meet their positives at crossings.
  """
  same = (positives & (alignments > ALIGNED)).any(1)
  return same, (positives & (alignments < -ALIGNED)).any(1) & ~same
