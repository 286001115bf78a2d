# SPDX-License-Identifier: Apache-2.0
"""Who asks whom, and which answers are right, before any model.

A question is one database and those who ask it: rows of a track for either
side. A right answer lies within a radius of the query in the ground plane; the
height is not a place. A reading of unknown position (NaN) has no truth: a query
without position has no right answer, and a map reading without position may
answer, but it counts neither as right nor as wrong. Photos may be compared by
frame numbers, footprints or lists of right answers instead (`Question.truth`).

The truth comes in blocks of queries: no array of all pairs exists.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import typing
from typing import NamedTuple

import numpy as np

from i2ploc.errors import InputError
from i2ploc.evaluation import metrics
from i2ploc.photos import truth as truth_lib

# Pairs of a block: its arrays stay below some 30 MB each, and products of
# descriptors have rows enough to be fast against a large map.
BLOCK_PAIRS = 1 << 22
BLOCK_QUERIES = 256
# Headings turned by less than 45 degrees are the same, by more than 135 the
# opposite ones.
ALIGNED = np.cos(np.deg2rad(45))
# Times are multiples of a period that floats do not hold exactly, seconds.
TIME_TOLERANCE = 1e-6
# A query of a later drive further than this from every map frame says nothing
# about whether the drive runs with or against the map, metres.
SAME_ROAD = 25.0
DRIVE_RADII = (5.0, 10.0, 20.0)
PHOTO_RADII = (25.0,)
# Of photos of several towns: every query is asked of all towns at once.
ONE_POOL, ALL_TOWNS = 'photos_one_pool', 'all'
# Between places of different towns, metres: more than there are on earth.
ELSEWHERE = np.float32(1e8)


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


class Frames(typing.Protocol):
  """The columns of a dataset's frame table that an evaluation reads.

  Beside these, `has_<side>` [F] bool for every side that is asked about, such
  as `has_image`.
  """

  town: np.ndarray  # [F] str
  drive: np.ndarray  # [F] str
  frame: np.ndarray  # [F] int, number in the dataset's own file names
  timestamp: np.ndarray  # [F] seconds, comparable inside a drive
  position: np.ndarray  # [F, 3] metres, z up, comparable inside a town
  heading: np.ndarray  # [F] radians about z


class Track(NamedTuple):
  """Where and when the readings of one side were taken.

  Attributes:
    frames: int64 [N]; readings of one instant share the number, also across
      the tracks of two sides.
    positions: float64 [N, 3], metres; NaN where unknown.
    axes: a key of `AXES`.
    times: float64 [N] seconds, comparable inside the track; None if unknown.
    headings: float64 [N] radians about the vertical; None if unknown.
    towns: int [N], equal where positions can be compared; None for one town.
  """

  frames: np.ndarray
  positions: np.ndarray
  axes: str
  times: np.ndarray | None = None
  headings: np.ndarray | None = None
  towns: np.ndarray | None = None

  @property
  def ground(self) -> np.ndarray:
    """float64 [N, 2], positions in the ground plane."""
    return self.positions[:, AXES[self.axes].ground]

  def take(self, rows: np.ndarray) -> 'Track':
    """The track of these rows."""
    return self._replace(
      frames=self.frames[rows],
      positions=self.positions[rows],
      times=None if self.times is None else self.times[rows],
      headings=None if self.headings is None else self.headings[rows],
      towns=None if self.towns is None else self.towns[rows],
    )


def track_from_frames(frames: Frames) -> Track:
  """The one track of all sides of a frame table; its instants are the rows."""
  return Track(
    frames=np.arange(len(frames.drive)),
    positions=np.asarray(frames.position, np.float64),
    axes='z_up',
    times=frames.timestamp,
    headings=frames.heading,
    towns=np.unique(frames.town, return_inverse=True)[1],
  )


def headings_from_poses(poses: np.ndarray, axes: str) -> np.ndarray:
  """Headings [N] in the ground plane, radians, of poses [N, 4, 4]."""
  ground, forward = AXES[axes]
  return np.arctan2(poses[:, ground[1], forward], poses[:, ground[0], forward])


class Disc(NamedTuple):
  """Where queries are looked for: around a position that is roughly known.

  Attributes:
    position: [F, 2] of the frame table, metres east and north; NaN where
      nobody knows: such a query is looked for everywhere.
    radius: metres.
  """

  position: np.ndarray
  radius: float


class Question(NamedTuple):
  """One database, those who ask it, and what counts as right.

  Attributes:
    name: of the protocol, such as 'cross', 'photos' or 'lip_loc'.
    town: of the database: a town, a drive or a folder of photos.
    query_side: what asks, such as 'image'.
    map_side: what answers.
    query_rows: int64 [Q], rows of the track of the asking side, in the order
      of travel.
    map_rows: int64 [M], rows of the track of the answering side.
    radii: within which an answer is right, in the unit of `truth`: metres.
    exclude_self: the reading of the query's own instant is neither an answer
      nor right.
    exclude_recent: seconds; only readings at least this much older than the
      query are candidates. 0: the future counts as well.
    strict: an answer exactly at the radius is wrong.
    components: the two coordinates that distances are taken from; None: the
      ground.
    travel: 1 where the queries drive as the map was driven, -1 where they
      drive against it, 0 where rows are in no order, as photos of a folder.
  """

  name: str
  town: str
  query_side: str
  map_side: str
  query_rows: np.ndarray
  map_rows: np.ndarray
  radii: tuple[float, ...]
  exclude_self: bool = False
  exclude_recent: float = 0.0
  strict: bool = False
  components: tuple[int, int] | None = None
  travel: int = 1
  truth: truth_lib.Truth = truth_lib.Truth()
  disc: Disc | None = None

  @property
  def direction(self) -> str:
    """'<query side>_to_<map side>', as in the names of numbers."""
    return direction(self.query_side, self.map_side)

  def plane(self, axes: str) -> list[int]:
    """The two coordinates of a position that distances are taken from."""
    return list(self.components or AXES[axes].ground)

  def at(self, radius: float) -> str:
    """'25m', as in the names of numbers; '7frames', 'overlap', 'listed'."""
    return truth_lib.within_name(self.truth.unit, radius)

  def within(self, distances: np.ndarray, radius: float) -> np.ndarray:
    """Which distances are near enough for a right answer."""
    return distances < radius if self.strict else distances <= radius


def direction(query_side: str, map_side: str) -> str:
  """What a direction is called in the names of numbers."""
  return f'{query_side}_to_{map_side}'


def has_side(frames: Frames, side: str) -> np.ndarray:
  """bool [F], which rows of a frame table have a reading of a side."""
  return np.asarray(getattr(frames, f'has_{side}'), bool)


def between_drives(
  frames: Frames,
  queries: np.ndarray | None = None,
  *,
  query_side: str = 'image',
  map_side: str = 'points',
  radii: tuple[float, ...] = DRIVE_RADII,
  exclude_self: bool = False,
) -> list[Question]:
  """The questions that a dataset's drives allow, town by town.

  The first drive of a town is its map. 'sync' asks it with its own readings:
  at the same instants (the papers' protocol), or at different ones if the
  dataset names its queries. Later drives that run as the map does are pooled
  into one 'cross', those against it into one 'opposite'. Rows of one drive
  stay in the order of travel.

  Args:
    frames: the frame table.
    queries: bool [F], frames of a map's own drive that ask; the others make
      the map. None where all do both.
    query_side: what asks.
    map_side: what answers.
    radii: metres within which an answer is right.
    exclude_self: see `Question`; of one side against itself, always.

  Raises:
    InputError: a town's first drive has no reading to make a map of.
  """
  drives, towns = frames.drive, frames.town
  asks = answers = np.ones(len(towns), bool)
  if queries is not None:
    asks, answers = np.asarray(queries), ~np.asarray(queries)
  can_ask, can_answer = has_side(frames, query_side), has_side(frames, map_side)
  found = []
  for town in _unique(towns):
    here = towns == town
    first, *later = _unique(drives[here])
    in_map = here & (drives == first)
    map_rows = np.flatnonzero(in_map & answers & can_answer)
    if not len(map_rows):
      raise InputError(
        f'Drive {first!r} is the map of town {town!r}, but none of its frames'
        f' may answer with {map_side}. Put a drive with {map_side} first.'
      )
    rows = {'sync': [np.flatnonzero(in_map & asks & can_ask)]}
    for drive in later:
      part = np.flatnonzero(here & (drives == drive) & can_ask)
      against = _runs_against(frames, part, map_rows)
      rows.setdefault('opposite' if against else 'cross', []).append(part)
    for name, parts in rows.items():
      query_rows = np.concatenate(parts)
      if len(query_rows):
        found.append(
          Question(
            name,
            town,
            query_side,
            map_side,
            query_rows,
            map_rows,
            tuple(radii),
            exclude_self=exclude_self or query_side == map_side,
            travel=-1 if name == 'opposite' else 1,
          )
        )
  return found


def _unique(values: np.ndarray) -> list[str]:
  """The distinct values in the order of their first appearance."""
  return [str(value) for value in dict.fromkeys(values.tolist())]


def _runs_against(
  frames: Frames, query_rows: np.ndarray, map_rows: np.ndarray
) -> bool:
  """Whether most queries on the map's road head against the map."""
  position, heading = frames.position[:, :2], frames.heading
  known = _finite_rows(position)
  map_rows = map_rows[known[map_rows]]
  if not len(map_rows):
    return False
  against = []
  for row in query_rows[known[query_rows]]:
    step = position[map_rows] - position[row]
    distance = np.hypot(step[:, 0], step[:, 1])
    nearest = np.argmin(distance)
    if distance[nearest] <= SAME_ROAD:
      turn = heading[row] - heading[map_rows[nearest]]
      against.append(np.abs((turn + np.pi) % (2 * np.pi) - np.pi) > np.pi / 2)
  return bool(against) and bool(np.mean(against) > 0.5)


def within_photos(
  frames: Frames,
  queries: np.ndarray | None = None,
  *,
  side: str = 'image',
  radii: tuple[float, ...] = PHOTO_RADII,
  truth: truth_lib.Truth | None = None,
  ordered: bool = False,
  disc: Disc | None = None,
) -> list[Question]:
  """Photos that ask photos, town by town, under the name 'photos'.

  Of several towns all queries ask all databases at once as well, under the
  name 'photos_one_pool': an answer in another town is wrong.

  Args:
    frames: the frame table; a town is a folder.
    queries: bool [F], photos that ask; the others are the database. None:
      every photo asks all others.
    side: what asks and answers.
    radii: within which an answer is right, in the unit of `truth`; 0 of
      footprints and lists, whatever is given.
    truth: of the frame table; None for metres between positions.
    ordered: the order of the rows is the order of travel, of both sides alike,
      so that sequences may be asked.
    disc: where answers may lie; None for everywhere.

  Raises:
    InputError: a folder without a query or without a database.
  """
  has = has_side(frames, side)
  asks = answers = has
  if queries is not None:
    asks, answers = has & queries, has & ~np.asarray(queries)
  truth = truth or truth_lib.Truth()
  if truth.unit in truth_lib.NO_LENGTH:
    radii = (0.0,)

  def ask(name, town, here):
    return Question(
      name,
      town,
      side,
      side,
      np.flatnonzero(here & asks),
      np.flatnonzero(here & answers),
      tuple(radii),
      exclude_self=True,
      travel=int(ordered),
      truth=truth,
      disc=disc,
    )

  found = []
  for town in _unique(frames.town):
    question = ask('photos', town, frames.town == town)
    rows = question.query_rows, question.map_rows
    if not len(rows[0]) or not len(rows[1]):
      raise InputError(
        f'{town!r} has {len(rows[0])} photos that ask and {len(rows[1])} in'
        ' the database; it needs both.'
      )
    if queries is None and len(rows[0]) < 2:
      raise InputError(f'{town!r} has one photo, and no other to find.')
    found.append(question)
  if len(found) > 1:
    found.append(ask(ONE_POOL, ALL_TOWNS, np.ones(len(has), bool)))
  return found


def both_ways(question: Question) -> list[Question]:
  """The question and, between two sides, the one with the sides exchanged.

  The rows stay: see `with_readings` for those that have the side.
  """
  if question.query_side == question.map_side:
    return [question]
  turned = question._replace(
    query_side=question.map_side, map_side=question.query_side
  )
  return [question, turned]


def with_readings(question: Question, frames: Frames) -> Question | None:
  """The question without rows that lack their side; None if none are left."""
  queries, places = (
    np.asarray(rows)[has_side(frames, side)[rows]]
    for rows, side in (
      (question.query_rows, question.query_side),
      (question.map_rows, question.map_side),
    )
  )
  if not len(queries) or not len(places):
    return None
  return question._replace(query_rows=queries, map_rows=places)


def rows_to_embed(
  frames: Frames, questions: Iterable[Question]
) -> dict[str, np.ndarray]:
  """The rows of each side that these questions need both ways, ascending."""
  used: dict[str, np.ndarray] = {}
  for question in questions:
    for side in (question.query_side, question.map_side):
      rows = used.setdefault(side, np.zeros(len(frames.drive), bool))
      rows[question.query_rows] = True
      rows[question.map_rows] = True
  return {
    side: np.flatnonzero(rows & has_side(frames, side))
    for side, rows in used.items()
  }


class Block(NamedTuple):
  """The truth about some queries.

  Attributes:
    rows: a slice of the question's queries.
    distances: float32 [b, M], metres, in the plane of the question, or in
      another unit of its truth; infinite where a position is unknown.
    candidates: bool [b, M], what may answer.
    graded: bool [b, M], candidates of known position: the others count neither
      as right nor as wrong.
    alignments: [b, M], cosine of the turn between the headings; None if they
      are unknown or nobody asks for them.
  """

  rows: slice
  distances: np.ndarray
  candidates: np.ndarray
  graded: np.ndarray
  alignments: np.ndarray | None


def block_size(num_places: int) -> int:
  """Queries of a block against so many places."""
  return max(1, min(BLOCK_QUERIES, BLOCK_PAIRS // max(num_places, 1)))


def blocks_from_question(
  question: Question, queries: Track, places: Track, size: int | None = None
) -> Iterator[Block]:
  """The truth, some queries at a time.

  Args:
    question: what counts.
    queries: track of its query rows.
    places: track of its map rows.
    size: queries of a block; None for `block_size`.
  """
  plane = question.plane(places.axes)
  places_known = known_positions(question, places)
  size = size or block_size(len(places.frames))
  revisits = question.exclude_recent > 0
  headings = None
  if revisits and queries.headings is not None and places.headings is not None:
    headings = _directions(queries.headings), _directions(places.headings).T
  for start in range(0, len(queries.frames), size):
    rows = slice(start, min(start + size, len(queries.frames)))
    distances = question.truth.distances(queries.frames[rows], places.frames)
    if distances is None:
      distances = metrics.horizontal_distances(
        queries.positions[rows][:, plane], places.positions[:, plane]
      )
      distances[np.isnan(distances)] = np.inf
    if queries.towns is not None and places.towns is not None:
      distances[queries.towns[rows, None] != places.towns] = ELSEWHERE
    candidates = np.ones(distances.shape, bool)
    if question.exclude_self:
      candidates &= queries.frames[rows, None] != places.frames
    if question.disc is not None:
      asking = queries.take(np.arange(rows.start, rows.stop))
      candidates &= _inside(question.disc, asking, places)
    if revisits:
      # Whoever asks for revisits has made sure that the times are known.
      assert queries.times is not None and places.times is not None
      older = queries.times[rows, None] - places.times
      candidates &= older >= question.exclude_recent - TIME_TOLERANCE
    yield Block(
      rows,
      distances,
      candidates,
      candidates & places_known,
      None if headings is None else headings[0][rows] @ headings[1],
    )


def _inside(disc: Disc, queries: Track, places: Track) -> np.ndarray:
  """bool [b, M], places that lie where the queries are looked for."""
  around = np.asarray(disc.position, np.float64)[queries.frames]
  inside = metrics.horizontal_distances(around, places.ground) <= disc.radius
  if queries.towns is not None and places.towns is not None:
    inside &= queries.towns[:, None] == places.towns
  return inside | ~_finite_rows(around)[:, None]


class Counts(NamedTuple):
  """How much is right before anybody answers.

  Attributes:
    positives: int64 [Q, R], right answers within each radius.
    candidates: int64 [Q], graded answers.
  """

  positives: np.ndarray
  candidates: np.ndarray


def count_positives(
  question: Question, queries: Track, places: Track
) -> Counts:
  """Right answers of every query, without descriptors.

  Args:
    question: what counts.
    queries: track of its query rows.
    places: track of its map rows.
  """
  positives, candidates = [], []
  for block in blocks_from_question(question, queries, places):
    near = [question.within(block.distances, r) for r in question.radii]
    positives.append(np.stack([(block.graded & x).sum(1) for x in near], 1))
    candidates.append(block.graded.sum(1))
  return Counts(np.concatenate(positives), np.concatenate(candidates))


def known_positions(question: Question, track: Track) -> np.ndarray:
  """bool [N], whether what a question compares is known."""
  known = question.truth.known(track.frames)
  if known is not None:
    return known
  return _finite_rows(track.positions[:, question.plane(track.axes)])


def _finite_rows(values: np.ndarray) -> np.ndarray:
  """bool [N], whether all numbers of a row are finite."""
  return np.asarray(np.isfinite(values).all(axis=1))


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
