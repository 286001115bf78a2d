# SPDX-License-Identifier: Apache-2.0
"""Other people: parked cars and everything that moves during a drive.

Movers follow smooth functions of time along lanes and pavements. They are
tabulated every quarter of a second and interpolated between, so that a mover
is always where its own past leads it.
"""

from typing import NamedTuple

import numpy as np

from input_pipeline.synthetic_city import primitives
from input_pipeline.synthetic_city import roads
from input_pipeline.synthetic_city import routes
from input_pipeline.synthetic_city import vehicles

TIME_STEP = 0.25  # seconds
VIEW = 130.0  # metres from the vehicle within which things must behave
_EGO_SIZE = (4.4, 1.8)
# Pedestrians per side of a street and per style.
_CROWD = (1.6, 0.5, 1.2, 0.25, 1.2)


class Movers(NamedTuple):
  """M movables on T moments.

  Attributes:
    fleet: their shapes and names.
    time: [T] float64, seconds, TIME_STEP apart, from 0.
    position: [M, T, 3] float64, metres, world frame, on the terrain.
    heading: [M, T] float64, radians, unwrapped.
    active: [M, T] bool; beyond the ends of its path a mover is not there.
  """

  fleet: vehicles.Fleet
  time: np.ndarray
  position: np.ndarray
  heading: np.ndarray
  active: np.ndarray

  def at(self, time: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions [M, 3], headings [M] and presence [M] at a moment."""
    exact = np.clip(time / TIME_STEP, 0, len(self.time) - 1.001)
    low = int(exact)
    part = exact - low
    ends = slice(low, low + 2)
    weight = np.array([1 - part, part])
    position = np.einsum('mtc,t->mc', self.position[:, ends], weight)
    heading = self.heading[:, ends] @ weight
    return position, heading, np.asarray(self.active[:, ends].all(1))


class Ego(NamedTuple):
  """What traffic must know of the vehicle that carries the sensors.

  Attributes:
    path: [N, 2], of its lane, PATH_STEP apart, with spare metres at both ends.
    time: [T], seconds, TIME_STEP apart.
    arc: [T], metres along the path.
    xy: [T, 2].
    heading: [T], radians.
  """

  path: np.ndarray
  time: np.ndarray
  arc: np.ndarray
  xy: np.ndarray
  heading: np.ndarray


def headings(path: np.ndarray) -> np.ndarray:
  """Unwrapped directions [N] of a path [N, 2], radians."""
  tangent = np.gradient(path, axis=0)
  return np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))


def park(
  slots: np.ndarray,
  ground: primitives.Ground,
  near: np.ndarray,
  rng: np.random.Generator,
) -> tuple[vehicles.Fleet, primitives.Primitives]:
  """Fills some of the parking places of a town for one drive.

  Args:
    slots: [S, 3], Town.slots.
    ground: terrain.
    near: [N, 2], path of the drive: places out of its view stay empty.
    rng: source of randomness.

  Returns:
    The cars and their primitives in the world frame.
  """
  # The draws do not depend on the path, only what is kept does.
  occupied = rng.random(len(slots)) < rng.uniform(0.35, 0.7)
  jitter = rng.normal(0, (0.35, 0.05, 0.012), slots.shape)
  jitter = np.clip(jitter, (-0.5, -0.08, -0.03), (0.5, 0.08, 0.03))
  cos, sin = np.cos(slots[:, 2]), np.sin(slots[:, 2])
  x = slots[:, 0] + cos * jitter[:, 0] - sin * jitter[:, 1]
  y = slots[:, 1] + sin * jitter[:, 0] + cos * jitter[:, 1]
  xy = np.stack([x, y], -1)
  coarse = near[::40]
  distance = np.hypot(*(xy[:, None] - coarse).transpose(2, 0, 1)).min(1)
  rows = np.flatnonzero(occupied & (distance < VIEW))
  names = (*vehicles.CARS, 'van')
  draws = rng.choice(
    len(names), len(slots), p=(0.18, 0.3, 0.17, 0.15, 0.12, 0.08)
  )
  fleet = vehicles.build_fleet(
    [names[i] for i in draws[rows]] or ['hatchback'], rng, parked=True
  )
  shown = np.full(len(fleet.size), len(rows) > 0)
  position = np.zeros((len(fleet.size), 3))
  heading = np.zeros(len(fleet.size))
  if len(rows):
    position[:, :2], heading = xy[rows], (slots + jitter)[rows, 2]
    position[:, 2] = primitives.height(ground, xy[rows])
  return fleet, vehicles.place(fleet, position, heading, shown)


def make_movers(
  network: roads.Network,
  ground: primitives.Ground,
  ego: Ego,
  route: np.ndarray,
  rng: np.random.Generator,
  *,
  traffic: float,
  first_instance: int,
) -> Movers:
  """Everything that moves during a drive.

  Leaders and followers share the vehicle's lane at a safe distance, an
  oncoming stream drives its route the other way, others wander through the
  town, pedestrians walk on the pavements. Who would touch the vehicle, or
  somebody drawn before, is left out.

  Args:
    network: the streets.
    ground: terrain.
    ego: the vehicle with the sensors.
    route: [K], its half-edges.
    rng: source of randomness.
    traffic: density; 1 is a normal day, 0 an empty town.
    first_instance: of the first mover.
  """
  drivers = [
    *_companions(ego, rng, traffic),
    *_oncoming(network, route, ego, rng, traffic),
    *_wanderers(network, ego, rng, traffic),
  ]
  drivers = [track for track in drivers if _comes_and_goes_unseen(track, ego)]
  drivers = _without_conflicts(drivers, ego)
  walkers = _walkers(network, ego, rng, traffic)
  everybody = drivers + walkers
  if not everybody:
    everybody = [_Track('pedestrian', *_nowhere(ego))]
  fleet = vehicles.build_fleet(
    [track.model for track in everybody], rng, parked=False,
    first_instance=first_instance,
  )  # fmt: skip
  xy = np.stack([track.xy for track in everybody])
  z = primitives.height(ground, xy)
  return Movers(
    fleet,
    ego.time,
    np.concatenate([xy, z[..., None]], -1),
    np.stack([track.heading for track in everybody]),
    np.stack([track.active for track in everybody]),
  )


class _Track(NamedTuple):
  model: str
  xy: np.ndarray
  heading: np.ndarray
  active: np.ndarray

  @property
  def size(self) -> tuple[float, float]:
    return _SIZES.get(self.model, (4.7, 1.85))


_SIZES = {'bus': (11.0, 2.5), 'van': (5.5, 1.96), 'pedestrian': (0.5, 0.5)}


def _nowhere(ego):
  shape = ego.time.shape
  return np.zeros((*shape, 2)), np.zeros(shape), np.zeros(shape, bool)


def _ride(model, path, arc):
  """The track of a vehicle at `arc` [T] metres along a path."""
  index = arc / routes.PATH_STEP
  grid = np.arange(len(path))
  xy = np.stack([np.interp(index, grid, column) for column in path.T], -1)
  heading = np.interp(index, grid, headings(path))
  return _Track(model, xy, heading, (index > 0) & (index < len(path) - 1))


def _model(rng):
  draw = rng.random()
  if draw < 0.07:
    return 'bus'
  if draw < 0.2:
    return 'van'
  return vehicles.CARS[rng.integers(len(vehicles.CARS))]


def _companions(ego, rng, traffic):
  """Vehicles in the same lane that fall back and catch up."""
  tracks = []
  for direction in (1, -1):
    free = _EGO_SIZE[0] / 2 + rng.uniform(7, 14)
    for i in range(rng.poisson(min(traffic, 4) * 0.55)):
      model = _model(rng)
      half = _Track(model, *_nowhere(ego)).size[0] / 2
      swing, period = rng.uniform(12, 42) / (1 + i), rng.uniform(80, 140)
      phase = rng.uniform(0, 2 * np.pi)
      wave = 1 + np.cos(2 * np.pi * ego.time / period + phase)
      gap = free + half + swing * wave
      tracks.append(_ride(model, ego.path, ego.arc + direction * gap))
      free = gap + half + rng.uniform(4, 10)
  return tracks


def _oncoming(network, route, ego, rng, traffic):
  """A stream on the same streets in the opposite direction."""
  path = routes.lane_path(network, routes.reverse_route(route))
  speed = rng.uniform(7, 10)
  length = len(path) * routes.PATH_STEP
  starts = -speed * ego.time[-1] + np.cumsum(
    rng.uniform(18, 200, int((length + speed * ego.time[-1]) / 18))
    / max(traffic, 1e-6)
  )
  starts = starts[starts < length]
  return [_ride(_model(rng), path, s + speed * ego.time) for s in starts]


def _wanderers(network, ego, rng, traffic):
  """Vehicles on routes of their own through the whole town."""
  tracks = []
  for _ in range(rng.poisson(traffic * len(network.edges) * 0.9)):
    speed = rng.uniform(7, 11)
    route = routes.make_route(network, rng, speed * ego.time[-1] + 150)
    path = routes.lane_path(network, route)
    start = rng.uniform(1, 40)
    tracks.append(_ride(_model(rng), path, start + speed * ego.time))
  return [t for t in tracks if _seen(t, ego)]


def _seen(track, ego):
  return bool((np.hypot(*(track.xy - ego.xy).T) < VIEW).any())


def _comes_and_goes_unseen(track, ego):
  changed = track.active[1:] != track.active[:-1]
  distance = np.hypot(*(track.xy - ego.xy).T)
  return not (changed & (distance[1:] < VIEW)).any()


def _walkers(network, ego, rng, traffic):
  """Pedestrians who walk up and down a pavement."""
  tracks = []
  for edge, curve in enumerate(network.curves):
    length = roads.arc_lengths(curve)[-1]
    ends = network.reach[network.edges[edge]]
    span = length - ends.sum() - 2
    for side in (1, -1):
      crowd = _CROWD[network.style[edge]] * min(traffic, 4)
      for _ in range(rng.poisson(crowd)):
        share = rng.uniform(0.5, 0.75)
        out = network.half_width[edge] + share * network.pavement_width[edge]
        walked = rng.uniform(0, 2 * span) + rng.uniform(0.8, 1.6) * ego.time
        turn = np.mod(walked, 2 * span)
        point, tangent = roads.along(
          curve, ends[0] + 1 + np.minimum(turn, 2 * span - turn)
        )
        xy = point + side * out * roads.left_of(tangent)
        forward = np.where(turn < span, 1, -1)[:, None] * tangent
        heading = np.unwrap(np.arctan2(forward[:, 1], forward[:, 0]))
        track = _Track('pedestrian', xy, heading, np.ones(len(ego.time), bool))
        if _seen(track, ego):
          tracks.append(track)
  return tracks


def _without_conflicts(tracks, ego):
  """Drops, in order, who would touch the vehicle or somebody kept before."""
  everywhere = np.ones(len(ego.time), bool)
  kept_xy, kept_heading = [ego.xy], [ego.heading]
  kept_active, kept_size = [everywhere], [(_EGO_SIZE[0] + 3, _EGO_SIZE[1])]
  result = []
  for track in tracks:
    if _touches(track, kept_xy, kept_heading, kept_active, kept_size):
      continue
    result.append(track)
    kept_xy.append(track.xy)
    kept_heading.append(track.heading)
    kept_active.append(track.active)
    kept_size.append(track.size)
  return result


def _touches(track, xy, heading, active, size) -> bool:
  """Whether boxes overlap at any moment, in the frame of the track."""
  together = np.stack(active) & track.active
  offset = np.stack(xy) - track.xy
  near = together & ((offset**2).sum(-1) < 14.0**2)
  who, when = np.nonzero(near)
  if not len(who):
    return False
  offset = offset[who, when]
  cos, sin = np.cos(track.heading[when]), np.sin(track.heading[when])
  ahead = np.abs(cos * offset[:, 0] + sin * offset[:, 1])
  aside = np.abs(cos * offset[:, 1] - sin * offset[:, 0])
  turn = np.stack(heading)[who, when] - track.heading[when]
  cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
  length, width = np.array(size)[who].T / 2
  own_length, own_width = np.array(track.size) / 2
  overlap = ahead < own_length + cos * length + sin * width + 1.2
  overlap &= aside < own_width + sin * length + cos * width + 0.15
  return bool(overlap.any())
