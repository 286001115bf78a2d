# SPDX-License-Identifier: Apache-2.0
"""Tests of towns and drives of the synthetic city, without rendering."""

import hashlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from input_pipeline.synthetic_city import assembly
from input_pipeline.synthetic_city import drive as drives
from input_pipeline.synthetic_city import labels as labels_lib
from input_pipeline.synthetic_city import overview
from input_pipeline.synthetic_city import primitives
from input_pipeline.synthetic_city import roads
from input_pipeline.synthetic_city import routes
from input_pipeline.synthetic_city import town as towns
from input_pipeline.synthetic_city import traffic
from input_pipeline.synthetic_city import weather

_HALF_WIDTH = 0.9  # metres, of the vehicle with the sensors


def _digest(tree) -> str:
  """A hash of the bytes of nested tuples of arrays."""
  state = hashlib.sha256()

  def walk(node):
    if isinstance(node, tuple):
      for child in node:
        walk(child)
    elif isinstance(node, str):
      state.update(node.encode())
    else:
      state.update(np.ascontiguousarray(node).tobytes())

  walk(tree)
  return state.hexdigest()


def _gap(points, center, half_size, yaw) -> np.ndarray:
  """Distances [K, N] of points [K, 2] to rectangles N, a plain oracle."""
  offset = points[:, None] - center[None, :, :2]
  cos, sin = np.cos(yaw), np.sin(yaw)
  x = np.abs(cos * offset[..., 0] + sin * offset[..., 1]) - half_size[:, 0]
  y = np.abs(cos * offset[..., 1] - sin * offset[..., 0]) - half_size[:, 1]
  return np.hypot(np.maximum(x, 0), np.maximum(y, 0))


def _clearance(table: primitives.Primitives, points: np.ndarray) -> float:
  return _gap(points, table.center, table.half_size, table.yaw).min()


class TownTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.towns = [towns.make_town(seed) for seed in range(3)]

  def test_equal_seeds_make_equal_towns(self):
    self.assertEqual(_digest(towns.make_town(0)), _digest(self.towns[0]))

  def test_towns_of_different_seeds_differ(self):
    self.assertLen({_digest(town.static) for town in self.towns}, 3)
    self.assertLen({_digest(town.network) for town in self.towns}, 3)
    self.assertLen({_digest(town.ground) for town in self.towns}, 3)

  @parameterized.parameters(0, 1, 2)
  def test_two_kilometres_repeat_no_street_in_the_same_direction(self, seed):
    rng = np.random.default_rng(seed)
    route = routes.make_route(self.towns[seed].network, rng, 2000.0)
    self.assertLess(np.unique(route, return_counts=True)[1].max(), 2)

  @parameterized.parameters(0, 1, 2)
  def test_routes_follow_the_streets_without_turning_back(self, seed):
    network = self.towns[seed].network
    route = routes.make_route(network, np.random.default_rng(seed), 3000.0)
    tails = network.edges.reshape(-1)[route]
    heads = network.edges[:, ::-1].reshape(-1)[route]
    np.testing.assert_array_equal(heads[:-1], tails[1:])
    self.assertFalse((route[1:] == route[:-1] ^ 1).any())

  @parameterized.parameters(0, 1, 2)
  def test_every_junction_joins_at_least_two_streets(self, seed):
    network = self.towns[seed].network
    degree = np.bincount(network.edges.ravel(), minlength=len(network.nodes))
    self.assertGreaterEqual(degree.min(), 2)

  @parameterized.parameters(0, 1, 2)
  def test_nothing_low_stands_on_any_lane(self, seed):
    town = self.towns[seed]
    bottom = town.static.center[:, 2] - town.static.half_size[:, 2]
    ground = primitives.height(town.ground, town.static.center[:, :2])
    low = assembly.take(town.static, bottom - ground < 1.9)
    for edge in range(0, len(town.network.edges), 3):
      for half_edge in (2 * edge, 2 * edge + 1):
        path = routes.lane_path(town.network, np.array([half_edge]))[::4]
        self.assertGreater(_clearance(low, path), _HALF_WIDTH)

  @parameterized.parameters(0, 1, 2)
  def test_things_stand_on_the_terrain_and_do_not_float(self, seed):
    town = self.towns[seed]
    table = town.static
    ground = primitives.height(town.ground, table.center[:, :2])
    bottom = table.center[:, 2] - table.half_size[:, 2] - ground
    lowest = np.full(table.instance.max() + 1, np.inf)
    np.minimum.at(lowest, table.instance, bottom)
    lowest = lowest[np.isfinite(lowest)]
    self.assertLess(lowest.max(), 0.0)
    # A hall of 45 m on a slope of 5 % reaches 2 m into the hill.
    self.assertGreater(lowest.min(), -2.5)

  def test_slopes_are_gentle(self):
    for town in self.towns:
      slope = np.abs(town.ground.amplitude) * np.hypot(*town.ground.wave.T)
      self.assertLess(slope.sum(), 0.08)

  def test_every_instance_has_one_name(self):
    for town in self.towns:
      np.testing.assert_array_equal(
        np.unique(town.static.instance), town.things.instance
      )

  def test_districts_differ_in_their_houses(self):
    found = np.concatenate([t.things.description for t in self.towns])
    for noun in ('house', 'villa', 'apartment block', 'hall', 'gabled', 'flat'):
      self.assertTrue(any(noun in d for d in found), noun)

  def test_zebra_crossings_lie_inside_their_piece_of_road(self):
    for town in self.towns:
      ground = town.ground
      length = np.hypot(*(ground.end - ground.start).T)
      crossing = ground.zebra >= 0
      self.assertGreater(crossing.sum(), 10)
      self.assertTrue((ground.zebra[crossing] < length[crossing] - 2).all())

  def test_the_overview_shows_roads_where_the_roads_are(self):
    town = self.towns[1]
    # Off the road, so that a mirrored road is another one.
    middle = town.ground.start[40] + [25.0, 14.0]
    image = overview.render_overview(town, tuple(middle), 160.0, 128)
    self.assertEqual(image.shape, (128, 128, 3))
    self.assertEqual(image.dtype, np.uint8)
    grid = (np.arange(128) + 0.5 - 64) * 160 / 128
    x, y = np.meshgrid(middle[0] + grid, middle[1] - grid)
    points = np.stack([x.ravel(), y.ravel()], -1)
    margin = roads.kerb_distance(town.ground, points).reshape(128, 128)
    green = image[..., 1].astype(int) - image[..., 2]

    def grey(view):
      return (np.abs(view[margin < -1]) < 10).mean()

    self.assertGreater(grey(green), 0.85)
    for wrong in (green[::-1], green[:, ::-1], green.T):
      self.assertLess(grey(wrong), 0.7)


class DriveTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.town = towns.make_town(5)
    cls.base = drives.make_drive(cls.town, 1, 300)
    cls.same = drives.make_drive(cls.town, 2, 300, follow=cls.base)
    cls.back = drives.make_drive(
      cls.town, 3, 300, follow=cls.base, reverse=True, traffic=3.0
    )
    cls.drives = {'base': cls.base, 'same': cls.same, 'back': cls.back}

  def test_equal_seeds_make_equal_drives(self):
    again = drives.make_drive(self.town, 2, 300, follow=self.base)
    self.assertEqual(_digest(again), _digest(self.same))

  @parameterized.parameters('base', 'same', 'back')
  def test_frames_are_evenly_spaced_at_town_speed(self, name):
    drive = self.drives[name]
    steps = np.linalg.norm(np.diff(drive.position, axis=0), axis=-1)
    np.testing.assert_allclose(steps, 2.5, atol=0.15)
    speed = steps / np.diff(drive.time)
    self.assertBetween(speed.min(), 7.0, 12.5)
    self.assertBetween(speed.max(), 7.0, 12.5)

  @parameterized.parameters('base', 'same', 'back')
  def test_the_vehicle_stays_on_the_road_and_turns_smoothly(self, name):
    drive = self.drives[name]
    left = np.stack([-np.sin(drive.heading), np.cos(drive.heading)], -1)
    for side in (-_HALF_WIDTH, _HALF_WIDTH):
      margin = roads.kerb_distance(
        self.town.ground, drive.position[:, :2] + side * left
      )
      self.assertLess(margin.max(), 0.0)
    self.assertLess(np.abs(np.diff(drive.heading)).max(), 0.8)

  @parameterized.parameters('base', 'same', 'back')
  def test_the_vehicle_passes_parked_cars_without_touching_them(self, name):
    drive = self.drives[name]
    clearance = _clearance(drive.parked, drive.position[:, :2])
    self.assertGreater(clearance, _HALF_WIDTH + 0.1)

  @parameterized.parameters('base', 'same', 'back')
  def test_no_mover_overlaps_the_vehicle(self, name):
    drive = self.drives[name]
    for time, place in zip(drive.time, drive.position, strict=True):
      position, heading, active = drive.movers.at(time)
      gap = _gap(
        place[None, :2],
        position[active],
        drive.movers.fleet.size[active] / 2,
        heading[active],
      )
      self.assertGreater(gap.min(), _HALF_WIDTH)

  @parameterized.parameters('base', 'same', 'back')
  def test_movers_move_continuously_and_vanish_only_out_of_view(self, name):
    drive = self.drives[name]
    movers = drive.movers
    both = movers.active[:, 1:] & movers.active[:, :-1]
    steps = np.linalg.norm(np.diff(movers.position, axis=1), axis=-1)
    self.assertLess(steps[both].max() / traffic.TIME_STEP, 20.0)
    self.assertGreater(steps[both].max() / traffic.TIME_STEP, 5.0)
    ego = np.stack(
      [np.interp(movers.time, drive.time, c) for c in drive.position.T], -1
    )
    distance = np.linalg.norm(movers.position - ego, axis=-1)
    changed = movers.active[:, 1:] != movers.active[:, :-1]
    self.assertFalse((changed & (distance[:, 1:] < 100)).any())

  def test_interpolated_movers_pass_through_their_table(self):
    position, heading, active = self.base.movers.at(10 * traffic.TIME_STEP)
    np.testing.assert_allclose(position, self.base.movers.position[:, 10])
    np.testing.assert_allclose(heading, self.base.movers.heading[:, 10])
    self.assertTrue(active.any())

  def test_a_following_drive_keeps_to_the_same_lane(self):
    offset = self.same.position[:, None] - self.base.position[None, :]
    nearest = np.linalg.norm(offset, axis=-1).argmin(1)
    inside = (nearest > 0) & (nearest < len(self.base.time) - 1)
    self.assertGreater(inside.mean(), 0.95)
    heading = self.base.heading[nearest]
    rows = np.arange(len(nearest))
    aside = np.abs(
      np.cos(heading) * offset[rows, nearest, 1]
      - np.sin(heading) * offset[rows, nearest, 0]
    )
    self.assertLess(aside[inside].max(), 2.0)
    self.assertGreater(np.cos(self.same.heading - heading)[inside].min(), 0.8)

  def test_a_reversed_drive_meets_the_same_places_head_on(self):
    offset = self.back.position[:, None] - self.base.position[None, :]
    distance = np.linalg.norm(offset, axis=-1)
    # A route may cross itself: the n-th frame before the end is meant.
    frame = np.arange(len(self.base.time))
    far = np.abs(frame[::-1, None] - frame) > 25
    distance[far] = np.inf
    nearest = distance.argmin(1)
    inside = (nearest > 0) & (nearest < len(self.base.time) - 1)
    self.assertGreater(inside.mean(), 0.95)
    self.assertLess(distance.min(1)[inside].max(), 6.0)
    turn = self.back.heading - self.base.heading[nearest]
    self.assertLess(np.cos(turn)[inside].max(), -0.8)
    # The other lane, not the same one driven backwards.
    self.assertGreater(np.median(distance.min(1)), 2.0)

  def test_parked_cars_differ_between_drives(self):
    def spots(drive):
      return {tuple(p) for p in np.round(drive.parked.center[:, :2] / 3)}

    ours, theirs = spots(self.base), spots(self.same)
    self.assertLess(len(ours & theirs) / len(ours | theirs), 0.7)

  def test_the_lidar_is_upright_and_looks_ahead(self):
    for frame in (0, 120, 299):
      pose = drives.world_from_lidar(self.base, frame)
      np.testing.assert_allclose(
        pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12
      )
      self.assertAlmostEqual(np.linalg.det(pose[:3, :3]), 1.0)
      self.assertGreater(pose[2, 2], 0.99)
      above = pose[2, 3] - self.base.position[frame, 2]
      self.assertAlmostEqual(above, drives.LIDAR_HEIGHT, delta=0.02)
      ahead = min(frame + 1, 299)
      way = self.base.position[ahead] - self.base.position[max(frame - 1, 0)]
      self.assertGreater(way @ pose[:3, 0] / np.linalg.norm(way), 0.98)

  def test_pitch_follows_the_slope_of_the_road(self):
    slope = np.gradient(self.base.position[:, 2]) / 2.5
    forward = np.array(
      [drives.world_from_lidar(self.base, f)[2, 0] for f in range(300)]
    )
    self.assertGreater(np.corrcoef(slope, forward)[0, 1], 0.7)

  def test_roll_follows_the_slope_across_the_road(self):
    ground = self.town.ground
    poses = [drives.world_from_lidar(self.base, f) for f in range(300)]
    left = np.array([pose[:2, 1] for pose in poses])
    here = self.base.position[:, :2]
    slope = primitives.height(ground, here + left)
    slope -= primitives.height(ground, here - left)
    sideways = [pose[2, 1] for pose in poses]
    self.assertGreater(np.corrcoef(slope, sideways)[0, 1], 0.7)

  def test_a_scene_holds_what_is_near_and_nothing_else(self):
    scene = drives.scene_at(self.town, self.base, 100, radius=60.0)
    here = self.base.position[100, :2]
    table = scene.primitives
    gap = _gap(here[None], table.center, table.half_size, table.yaw)[0]
    self.assertLess(gap.max(), 80.0)
    static = _gap(
      here[None],
      self.town.static.center,
      self.town.static.half_size,
      self.town.static.yaw,
    )[0]
    expected = np.unique(self.town.static.instance[static < 55])
    self.assertTrue(np.isin(expected, table.instance).all())
    self.assertIn(
      labels_lib.CLASSES.index('car_parked'), table.semantic.tolist()
    )
    for column in table:
      self.assertTrue(np.isfinite(column).all())

  def test_traffic_zero_empties_the_streets(self):
    quiet = drives.make_drive(self.town, 4, 40, traffic=0.0)
    self.assertFalse(quiet.movers.active.any())
    drives.scene_at(self.town, quiet, 3)

  def test_wrong_requests_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'needs follow='):
      drives.make_drive(self.town, 1, 10, reverse=True)
    with self.assertRaisesRegex(ValueError, 'same town'):
      other = towns.make_town(6)
      drives.make_drive(other, 1, 10, follow=self.base)
    with self.assertRaisesRegex(ValueError, 'fewer frames'):
      drives.make_drive(self.town, 1, 900, follow=self.base)
    with self.assertRaisesRegex(ValueError, 'expected one of'):
      drives.make_drive(self.town, 1, 10, condition='hail')

  @parameterized.parameters(*weather.CONDITIONS)
  def test_weather_is_finite_and_its_sun_a_direction(self, condition):
    for seed in range(5):
      name, air = weather.draw(np.random.default_rng(seed), condition)
      self.assertEqual(name, condition)
      self.assertAlmostEqual(np.linalg.norm(air.sun_direction), 1, delta=1e-6)
      self.assertGreater(air.sun_direction[2], 0)
      for value in air:
        self.assertTrue(np.isfinite(value).all())
        self.assertEqual(value.dtype, np.float32)

  def test_drawn_weather_is_as_ever_and_never_night(self):
    drawn = [weather.draw(np.random.default_rng(s))[0] for s in range(300)]
    # What these seeds drew before there was a night.
    self.assertEqual(
      drawn[:12],
      ['fog', 'overcast', 'clear_noon', 'clear_morning', 'autumn', 'snow',
       'overcast', 'fog', 'evening', 'snow', 'autumn', 'clear_morning'],
    )  # fmt: skip
    self.assertEqual({*drawn}, {*weather.CONDITIONS} - {'night'})

  def test_a_night_changes_the_light_and_nothing_else(self):
    made = drives.make_drive(self.town, 1, 10, condition='fog')
    night, again = drives.at_night(made), drives.at_night(made)
    self.assertEqual(night.condition, 'night')
    self.assertEqual(_digest(night), _digest(again))
    self.assertEqual(
      _digest(night._replace(condition='fog', weather=made.weather)),
      _digest(made),
    )
    self.assertEqual(night.weather.sun_color.max(), 0)
    other = drives.at_night(drives.make_drive(self.town, 2, 10))
    self.assertNotEqual(_digest(night.weather), _digest(other.weather))

  def test_a_town_alone_has_neither_vehicles_people_nor_weather(self):
    made = drives.make_drive(self.town, 1, 10, condition='snow', traffic=3.0)
    alone = drives.alone(made)
    for frame in range(10):
      full, bare = (drives.scene_at(self.town, d, frame) for d in (made, alone))
      movable = np.isin(full.primitives.semantic, labels_lib.MOVABLE)
      self.assertTrue(movable.any())
      for a, b in zip(full.primitives, bare.primitives, strict=True):
        np.testing.assert_array_equal(a[~movable], b)
      np.testing.assert_array_equal(
        drives.world_from_lidar(made, frame),
        drives.world_from_lidar(alone, frame),
      )
    foggy = drives.make_drive(self.town, 2, 10, condition='fog')
    self.assertEqual(
      _digest(alone.weather), _digest(drives.alone(foggy).weather)
    )
    self.assertEqual(alone.weather.snow, 0)
    for value in alone.weather:
      self.assertEqual(value.dtype, np.float32)


if __name__ == '__main__':
  absltest.main()
