# SPDX-License-Identifier: Apache-2.0
"""The ray caster against slow oracles; what the sensors must agree on."""

from concurrent import futures
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import panorama
from input_pipeline.synthetic_city import imaging
from input_pipeline.synthetic_city import labels as labels_lib
from input_pipeline.synthetic_city import primitives
from input_pipeline.synthetic_city import raycast
from input_pipeline.synthetic_city import rig
from input_pipeline.synthetic_city import selection
from input_pipeline.synthetic_city import sensors
from input_pipeline.synthetic_city import shading
from input_pipeline.synthetic_city import terrain

_EGO = np.array([1234.5, -987.25, 0.0])
_SURFACE = jax.jit(raycast.surface)
_INTERSECT = jax.jit(raycast.intersect)
_KINDS = ('box', 'prism', 'cylinder', 'ellipsoid')


def _ground() -> primitives.Ground:
  angle = np.array([0.3, 1.9, 4.0])
  length = np.array([400.0, 260.0, 150.0])
  direction = np.stack([np.cos(angle), np.sin(angle)], -1)
  return primitives.Ground(
    start=_EGO[:2] + np.array([[-60.0, 0.0], [20.0, -80.0]]),
    end=_EGO[:2] + np.array([[90.0, 3.0], [25.0, 70.0]]),
    half_width=np.array([4.0, 3.5], np.float32),
    pavement_width=np.array([2.0, 1.5], np.float32),
    zebra=np.array([70.0, -1.0], np.float32),
    amplitude=np.array([1.0, 0.7, 0.3], np.float32),
    wave=np.float32(2 * np.pi / length[:, None] * direction),
    phase=np.float32(angle),
    seed=np.uint32(7),
  )


def _weather(**changes) -> primitives.Weather:
  values = {
    'sun_direction': np.array([0.5, 0.4, 0.7681146]),
    'sun_color': np.array([1.3, 1.2, 1.0]),
    'sky_color': np.array([0.3, 0.45, 0.7]),
    'horizon_color': np.array([0.7, 0.75, 0.85]),
    'fog_density': 5e-4,
    'snow': 0.0,
    'autumn': 0.0,
    'dusk': 0.0,
    'wetness': 0.0,
    'exposure': 1.0,
    'grain': 1.3,
  } | changes
  return primitives.Weather(**{k: np.float32(v) for k, v in values.items()})


@functools.cache
def _scene(count: int = 120) -> primitives.Scene:
  """A field of random shapes of every kind and material on both sides."""
  rng = np.random.default_rng(3)
  ground = _ground()
  side = rng.choice([-1.0, 1.0], count) * rng.uniform(6, 60, count)
  xy = _EGO[:2] + np.stack([rng.uniform(-60, 70, count), side], -1)
  half = rng.uniform(0.2, 3.0, (count, 3)).astype(np.float32)
  kind = (np.arange(count) % 4).astype(np.int8)
  half[kind == primitives.CYLINDER, 1] = half[kind == primitives.CYLINDER, 0]
  base = primitives.height(ground, xy) - 0.2
  shapes = primitives.Primitives(
    kind=kind,
    center=np.concatenate([xy, (base + half[:, 2])[:, None]], 1),
    half_size=half,
    yaw=rng.uniform(-4, 4, count).astype(np.float32),
    material=np.arange(count, dtype=np.int16) % len(primitives.MATERIALS),
    color=rng.uniform(0.1, 0.8, (count, 3)).astype(np.float32),
    reflectivity=rng.uniform(0.3, 0.8, count).astype(np.float32),
    seed=rng.integers(1, 2**32, count).astype(np.uint32),
    semantic=np.full(count, labels_lib.CLASSES.index('building'), np.uint8),
    instance=np.arange(1, count + 1, dtype=np.int32),
  )
  return primitives.Scene(shapes, ground, _weather())


def _pose(offset=(0.0, 0.0), yaw=0.05, pitch=0.02) -> np.ndarray:
  cos, sin = np.cos(yaw), np.sin(yaw)
  tilt = np.array(
    [
      [np.cos(pitch), 0, -np.sin(pitch)],
      [0, 1, 0],
      [np.sin(pitch), 0, np.cos(pitch)],
    ]
  )
  pose = np.eye(4)
  pose[:3, :3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ tilt
  xy = _EGO[:2] + offset
  pose[:3, 3] = (*xy, primitives.height(_ground(), xy) + 1.73)
  return pose


@functools.cache
def _renderer(**options):
  return sensors.make_renderer('tiny', **options)


def _solid(kind, center, half, yaw) -> raycast.Solids:
  f = np.float32
  return raycast.Solids(
    center=f(center), half_size=f(half), cos=f(np.cos(yaw)),
    sin=f(np.sin(yaw)), gable=f(kind == 1), quadric=f(kind >= 2),
    round=f(kind == 3), mask=True,
  )  # fmt: skip


def _inside(kind, point):
  """Whether unit coordinates [..., 3] lie in the shape: its definition."""
  x, y, z = np.moveaxis(point, -1, 0)
  return {
    'box': np.abs(point).max(-1) <= 1,
    'prism': (np.abs(x) <= 1) & (z >= -1) & (np.abs(y) <= (1 - z) / 2),
    'cylinder': (x**2 + y**2 <= 1) & (np.abs(z) <= 1),
    'ellipsoid': x**2 + y**2 + z**2 <= 1,
  }[kind]


def _march(kind, center, half, yaw, origin, direction):
  """First change of inside/outside along one ray by small steps."""
  cos, sin = np.cos(yaw), np.sin(yaw)
  turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])

  def state(t):
    p = origin + np.asarray(t)[..., None] * direction - center
    return _inside(kind, (p @ turn.T) / half)

  steps = np.linspace(0, 30, 30001)
  change = np.flatnonzero(np.diff(state(steps)))
  if not change.size:
    return np.inf
  low, high = steps[change[0]], steps[change[0] + 1]
  start = state(low)
  for _ in range(30):
    middle = (low + high) / 2
    low, high = (middle, high) if state(middle) == start else (low, middle)
  return high


class ShapesTest(parameterized.TestCase):
  @parameterized.parameters(*enumerate(_KINDS))
  def test_distances_are_those_of_a_slow_march(self, kind, name):
    rng = np.random.default_rng(kind)
    center, half, yaw = np.array([6.0, 2.0, 1.0]), np.array([2, 1.5, 1]), 0.7
    if name == 'cylinder':
      half = np.array([1.5, 1.5, 1])
    target = center + rng.uniform(-1.3, 1.3, (150, 3)) * half
    origin = rng.uniform(-5, 3, (150, 3))
    origin[:20] = center + rng.uniform(-0.3, 0.3, (20, 3)) * half  # inside
    direction = target - origin
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    found = _INTERSECT(
      _solid(kind, center, half, yaw), jnp.asarray(origin.T, jnp.float32),
      jnp.asarray(direction.T, jnp.float32),
    )  # fmt: skip
    expected = [
      _march(name, center, half, yaw, o, d)
      for o, d in zip(origin, direction, strict=True)
    ]
    found = np.where(np.asarray(found) > 1e9, np.inf, found)
    agree = np.isclose(found, expected, rtol=0, atol=2e-3)
    # A ray through less than a step of the shape escapes the march.
    self.assertGreaterEqual(agree.mean(), 0.98)
    self.assertGreater(np.isfinite(expected).mean(), 0.4)

  @parameterized.parameters(*enumerate(_KINDS))
  def test_normals_are_unit_face_the_ray_and_fit_the_surface(self, kind, name):
    rng = np.random.default_rng(kind)
    half = np.array([1.5, 1.5, 1.0])
    direction = rng.normal(size=(400, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    target = rng.uniform(-0.7, 0.7, (400, 3)) * half
    distance = np.where(np.arange(400) < 50, 0.0, 9.0)[:, None]  # some inside
    origin = jnp.asarray((target - distance * direction).T, jnp.float32)
    hit = _SURFACE(
      _solid(kind, np.zeros(3), half, 0.4), tuple(origin),
      tuple(jnp.asarray(direction.T, jnp.float32)),
    )  # fmt: skip
    met = np.asarray(hit.distance) < 1e9
    normal = np.stack(hit.normal, -1)[met]
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, atol=1e-5)
    self.assertLessEqual((normal * direction[met]).sum(1).max(), 1e-6)
    # A small step along the normal leaves the shape, against it enters.
    unit = np.stack(hit.local, -1)[met] / half
    step = 0.01 * np.stack(hit.facet, -1)[met] / half
    self.assertGreater(_inside(name, unit - step).mean(), 0.97)
    self.assertLess(_inside(name, unit + step).mean(), 0.001)

  @parameterized.parameters(range(4))
  def test_grazing_vertical_and_enclosed_rays_stay_finite(self, kind):
    solid = _solid(kind, (4, 0, 0), (1, 1, 1), 0.0)
    origin = np.array([
      [0, 1, 0], [0, 1, 1], [4, 0, 5], [3, 0, 5], [4, 0, 0], [3, 0, 0],
      [0, 0, 1], [0, 0, -1], [5, 1, 1],
    ])  # fmt: skip
    for direction in np.eye(3).tolist() + [[0, 0, -1], [0.6, 0.8, 0]]:
      rays = jnp.broadcast_to(jnp.float32(direction)[:, None], (3, 9))
      hit = _SURFACE(solid, tuple(jnp.float32(origin.T)), tuple(rays))
      for leaf in jax.tree.leaves(hit):
        self.assertTrue(np.isfinite(leaf).all())

  def test_a_thin_pole_far_away_keeps_its_width(self):
    lateral = np.linspace(-0.2, 0.2, 401)
    direction = np.stack([np.full(401, 70.0), lateral, np.zeros(401)])
    direction = jnp.float32(direction / np.linalg.norm(direction, axis=0))
    pole = _solid(2, (70.0, 0, 0), (0.06, 0.06, 3), 0.3)
    hit = np.asarray(_INTERSECT(pole, jnp.zeros((3, 1)), direction))
    width = np.ptp(lateral[hit < 1e9])
    self.assertAlmostEqual(width, 0.12, delta=0.004)


class TerrainTest(absltest.TestCase):
  def test_rays_meet_the_height_field_of_the_world(self):
    ground, rng = _ground(), np.random.default_rng(0)
    ego = np.array([*_EGO[:2], primitives.height(ground, _EGO[:2]) + 1.7])
    local, _ = selection.select_ground(ground, ego)
    azimuth, fall = rng.uniform(-3.1, 3.1, 500), rng.uniform(-0.5, -0.04, 500)
    direction = np.stack(
      [np.cos(fall) * np.cos(azimuth), np.cos(fall) * np.sin(azimuth),
       np.sin(fall)]
    )  # fmt: skip
    found = terrain.cast(local, (0.0, 0.0, 0.0), tuple(jnp.float32(direction)))
    found = np.asarray(found, np.float64)
    met = found < 1e9
    self.assertGreater(met.mean(), 0.98)
    points = (ego[:, None] + found * direction)[:, met]
    gap = points[2] - primitives.height(ground, points[:2].T)
    np.testing.assert_allclose(gap, 0.0, atol=2e-3)
    steps = np.linspace(0.0, 0.98, 50)[:, None] * found[met]
    above = ego[:, None, None] + steps * direction[:, None, met]
    clear = above[2] - primitives.height(ground, np.moveaxis(above[:2], 0, -1))
    self.assertGreater(clear.min(), 0.0)


@functools.cache
def _tiny() -> tuple:
  """The camera and the LiDAR of size 'tiny'."""
  return (
    sensors._make_imager(rig.make_camera('tiny')),
    sensors._make_scanner(rig.make_lidar('tiny')),
  )


def _look(pose, keep=512):
  """World, bundle and view of both sensors, and tiles of the camera."""
  world = sensors.make_world(_scene(), pose[:3, 3])
  shapes = _scene().primitives
  solids, coats = selection.select(shapes, pose[:3, 3], 200.0, keep)
  world = world._replace(solids=solids, coats=coats)
  rotation = np.float32(pose[:3, :3])
  bundle, lists = sensors._gather(_tiny(), world, rotation, None)
  axes = selection.sun_axes(_scene().weather.sun_direction)
  images = len(_tiny()[0].tiles.rays)
  return world, bundle, imaging.look(world, bundle, lists, axes, images)


class CastTest(absltest.TestCase):
  def test_tiles_find_what_all_shapes_tested_one_by_one_find(self):
    world, _, view = _look(_pose())
    origin = view.rays.origin[:, None]
    direction = view.rays.direction[:, None]
    each = jax.tree.map(lambda x: jnp.asarray(x)[..., :120, None, None],
                        world.solids)  # fmt: skip
    distance = _INTERSECT(each, origin, direction)
    nearest = np.asarray(distance.min(0))
    ground = terrain.cast(
      world.terrain, tuple(view.rays.origin), tuple(view.rays.direction)
    )
    expected = np.minimum(nearest, ground)
    found = np.where(view.index == raycast.NOTHING, 3e38, view.hit.distance)
    differ = np.abs(found - expected) > 1e-3 * np.minimum(expected, 100)
    self.assertLess(differ.mean(), 1e-3)
    self.assertGreater((np.asarray(view.index) >= 0).mean(), 0.1)

  def test_padding_is_invisible(self):
    _, _, narrow = _look(_pose(), keep=128)
    _, _, wide = _look(_pose(), keep=512)
    for name in ('distance', 'normal'):
      for a, b in zip(
        jax.tree.leaves(getattr(narrow.hit, name)),
        jax.tree.leaves(getattr(wide.hit, name)), strict=True,
      ):  # fmt: skip
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(narrow.index, wide.index)
    self.assertLess(int(np.asarray(wide.index).max()), 120)

  def test_a_scene_without_shapes_renders_ground_and_sky(self):
    scene = _scene()
    empty = primitives.Primitives(*(c[:0] for c in scene.primitives))
    frame = _renderer()(scene._replace(primitives=empty), _pose(), 0)
    names = {labels_lib.CLASSES[i] for i in np.unique(frame['image_semantic'])}
    self.assertLessEqual(names, {'road', 'pavement', 'ground', 'sky'})
    self.assertIn('road', names)
    self.assertEqual(frame['image_instance'].max(), 0)

  def test_crowded_tiles_keep_the_nearest(self):
    overlap = np.ones((1, 300), bool)
    near = np.arange(300, dtype=np.float32)
    lists = selection._lists(overlap, near, raycast.MAX_CANDIDATES)
    np.testing.assert_array_equal(
      lists.index[0], np.arange(raycast.MAX_CANDIDATES)
    )

  def test_shadows_are_those_of_all_shapes_tested_one_by_one(self):
    scene, pose = _scene(), _pose()
    world, _, view = _look(pose)
    axes = selection.sun_axes(scene.weather.sun_direction)
    casters = selection.shadow_candidates(
      world.solids, axes, np.asarray(view.low), np.asarray(view.high)
    )
    sunny = view.sunny
    start = jnp.stack(
      [
        (o + view.hit.distance * d + 0.02 * n)[: len(sunny)]
        for o, d, n in zip(
          view.rays.origin, view.rays.direction, view.hit.normal, strict=True
        )
      ]
    )
    sun = jnp.asarray(scene.weather.sun_direction)[:, None, None]
    toward = jnp.broadcast_to(sun, start.shape)
    dark = raycast.occluded(
      raycast.Rays(start, toward), sunny, world.solids, casters
    )
    each = jax.tree.map(
      lambda x: jnp.asarray(x)[..., :120, None, None], world.solids
    )
    expected = _INTERSECT(each, start[:, None], toward[:, None])
    expected = np.asarray(sunny & (expected.min(0) < 1e9))
    self.assertLess((np.asarray(dark) != expected).mean(), 1e-3)
    self.assertGreater(expected.sum(), 5)


class TextureTest(absltest.TestCase):
  paint = staticmethod(jax.jit(imaging._paint))

  def test_a_point_has_the_same_albedo_from_two_poses(self):
    near, far = _pose(), _pose(offset=(6.7, -4.2), yaw=0.0, pitch=0.0)
    world, bundle, view = _look(near)
    spread = np.full_like(bundle.spread, 1e-6)
    paint, labels = self.paint(world, view, spread)
    points = [
      o + view.hit.distance * d
      for o, d in zip(view.rays.origin, view.rays.direction, strict=True)
    ]
    aim = np.float64(np.stack(points, -1)) + near[:3, 3] - far[:3, 3]
    distance = np.linalg.norm(aim, axis=-1)
    aim = np.float32(aim / np.maximum(distance, 1e-9)[..., None])
    other, _, _ = _look(far)
    everything = np.tile(np.arange(120, dtype=np.int32), (len(aim), 1))
    lists = raycast.Candidates(
      everything,
      np.zeros(everything.shape, np.float32),
      np.full(len(aim), 120, np.int32),
    )
    axes, turn = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)
    aimed = bundle._replace(local=aim, origin=np.zeros_like(aim), rotation=turn)
    again = imaging.look(other, aimed, lists, axes, len(view.sunny))
    repaint, relabels = self.paint(other, again, spread)
    same = np.abs(again.hit.distance - distance) < 0.01
    same &= np.asarray(labels.instance == relabels.instance)
    same &= np.asarray(view.hit.distance < 40) & (distance < 40)
    self.assertGreater(same.mean(), 0.3)
    a, b = np.stack(paint.albedo, -1)[same], np.stack(repaint.albedo, -1)[same]
    # Millimetres of rounding move a few points across a cell's edge.
    self.assertGreater((np.abs(a - b).max(-1) < 0.01).mean(), 0.97)
    self.assertGreater(a.std(), 0.05)

  def test_patterns_fade_to_a_mean_instead_of_flickering(self):
    world, bundle, view = _look(_pose())
    sharp, _ = self.paint(world, view, np.full_like(bundle.spread, 1e-6))
    dull, _ = self.paint(world, view, np.ones_like(bundle.spread))
    met = np.asarray(view.index) == raycast.GROUND
    a, b = np.asarray(sharp.albedo[0])[met], np.asarray(dull.albedo[0])[met]
    self.assertLess(b.std(), a.std())
    self.assertTrue(np.isfinite(b).all())


class SensorsTest(parameterized.TestCase):
  def test_equal_arguments_give_equal_bits_from_any_thread(self):
    render = _renderer()
    first = render(_scene(), _pose(), 5)
    with futures.ThreadPoolExecutor(2) as pool:
      jobs = [pool.submit(render, _scene(), _pose(), 5) for _ in range(2)]
    for job in jobs:
      for name, values in job.result().items():
        np.testing.assert_array_equal(values, first[name], err_msg=name)

  def test_seeds_change_the_noise_and_nothing_else(self):
    a, b = (_renderer()(_scene(), _pose(), seed) for seed in (1, 2))
    np.testing.assert_array_equal(a['image_semantic'], b['image_semantic'])
    difference = np.abs(a['image'].astype(int) - b['image'])
    self.assertGreater(difference.mean(), 0.3)
    self.assertLess(difference.mean(), 4.0)
    both = (a['scan_range'] > 0) & (b['scan_range'] > 0)
    change = (a['scan_range'] - b['scan_range'])[both]
    self.assertAlmostEqual(float(change.std()), 0.02 * 2**0.5, delta=0.004)

  @parameterized.parameters('kitti', 'other_car')
  def test_lidar_points_project_onto_pixels_of_their_instance(self, setup):
    render = _renderer() if setup == 'kitti' else _renderer(setup=setup)
    frame = render(_scene(), _pose(), 0)
    rays = rig.directions('tiny', setup)
    kept = frame['scan_range'] > 0
    points = rig.points_from_scan(
      frame['scan_range'], frame['scan_intensity'], rays
    )
    mount = frame['camera_from_lidar']
    camera = points[:, :3] @ mount[:3, :3].T + mount[:3, 3]
    pixels = camera @ frame['intrinsics'].T
    column, row = (pixels[:, :2] / pixels[:, 2:]).T
    image = np.pad(frame['image_instance'], 1, mode='edge')
    height, width = frame['image_instance'].shape
    seen = (camera[:, 2] > 1) & (row >= 0) & (row < height)
    seen &= (column >= 0) & (column < width)
    i, j = row[seen].astype(int) + 1, column[seen].astype(int) + 1
    around = np.stack(
      [image[i + a, j + b] for a in (-1, 0, 1) for b in (-1, 0, 1)]
    )
    inner = (around == around[4]).all(0)
    instance = frame['scan_instance'][kept][seen]
    self.assertGreater(inner.sum(), 3 * len(rays))
    self.assertGreater((instance > 0)[inner].mean(), 0.05)
    self.assertGreater((instance == around[4])[inner].mean(), 0.95)

  @parameterized.parameters(
    # Degrees left and right of, and above and below the axis.
    ('kitti', 32, (40.2, 41.2, 13.5, 15.7), (2.0, -24.8)),
    ('32_beams', 16, (40.2, 41.2, 13.5, 15.7), (10.67, -30.67)),
    ('wide_camera', 32, (51.0, 52.7, 23.4, 14.0), (2.0, -24.8)),
    ('other_car', 16, (51.0, 52.7, 23.4, 14.0), (10.67, -30.67)),
  )
  def test_setups_look_as_far_as_the_real_sensors(
    self, setup, beams, field, elevations
  ):
    lidar = rig.make_lidar('tiny', setup)
    self.assertLen(lidar.elevations, beams)
    np.testing.assert_allclose(
      np.degrees(lidar.elevations[[0, -1]]), elevations, atol=1e-9
    )
    for size in rig.SIZES:
      camera = rig.make_camera(size, optics=rig.SETUPS[setup].optics)
      (height, width), matrix = camera.shape, camera.intrinsics
      (fx, fy), (u, v) = matrix[[0, 1], [0, 1]], matrix[:2, 2]
      sides = np.array([u / fx, (width - u) / fx, v / fy, (height - v) / fy])
      found = np.degrees(np.arctan(sides))
      np.testing.assert_allclose(
        found, np.take(field, [0, 1, 2, 3]), atol=0.4, err_msg=size
      )
      self.assertAlmostEqual(fx / fy, 1, delta=0.02)

  def test_stored_scans_decode_to_points_of_their_range(self):
    rng = np.random.default_rng(0)
    distance = rng.uniform(1, 80, (32, 128)) * (rng.random((32, 128)) < 0.8)
    level = rng.integers(0, 256, (32, 128)).astype(np.uint8)
    rays = rig.directions('tiny')
    points = rig.points_from_scan(distance, level, rays)
    hit = distance > 0
    np.testing.assert_allclose(
      np.linalg.norm(points[:, :3], axis=1), distance[hit], rtol=1e-5
    )
    np.testing.assert_allclose(points[:, 3], level[hit] / 255, atol=1e-6)
    # Column 0 looks backward, a quarter turn later the left.
    self.assertLess(rays[0, 0, 0], -0.9)
    self.assertGreater(rays[0, 32, 1], 0.9)

  def test_motion_displaces_columns_by_their_own_time(self):
    scene, pose = _scene(), _pose(yaw=0.0, pitch=0.0)
    room = jax.tree.map(lambda column: column[:1], scene.primitives)
    room = room._replace(
      center=pose[None, :3, 3],
      half_size=np.float32([[20, 20, 50]]),
      yaw=np.zeros(1, np.float32),
      reflectivity=np.ones(1, np.float32),
    )
    render = functools.partial(
      _renderer(), scene._replace(primitives=room), pose, 0
    )
    still, moved = render(), render((20.0, 0.0, 0.0))
    # The highest beam meets the walls: behind, the sensor is still 1 m back.
    near, far = still['scan_range'][0], moved['scan_range'][0]
    self.assertAlmostEqual(np.median((far - near)[:6]), -1.0, delta=0.1)
    self.assertAlmostEqual(np.median((far - near)[62:66]), 0.0, delta=0.05)
    self.assertAlmostEqual(np.median((far - near)[-6:]), 1.0, delta=0.1)

  def test_further_cameras_see_the_same_world(self):
    frame = _renderer(yaws=(0.0, np.pi / 2))(_scene(), _pose(), 0)
    same = frame['image_instance'] == frame['image_1_instance']
    self.assertTrue(same.all())
    self.assertFalse(
      (frame['image_instance'] == frame['image_2_instance']).all()
    )

  def test_points_land_on_pixels_of_their_class_all_around_a_panorama(self):
    frame = _renderer(camera='panorama')(_scene(), _pose(), 0)
    height, width, _ = frame['image'].shape
    self.assertEqual((height, width), (32, 208))
    rays, hit = rig.directions('tiny'), frame['scan_range'] > 0
    points = rays[hit] * frame['scan_range'][hit][:, None]
    motion, square = frame['camera_from_lidar'], frame['intrinsics'].copy()
    square[1, 1] = square[0, 0]

    def agreement(points, intrinsics=frame['intrinsics']):
      seen = points @ motion[:3, :3].T + motion[:3, 3]
      pixels, _ = panorama.project(intrinsics, seen)
      column, row = np.floor(pixels).astype(int).T
      inside = (row >= 0) & (row < height)
      labels = frame['image_instance'][row[inside], column[inside] % width]
      same = labels == frame['scan_instance'][hit][inside]
      things = frame['scan_instance'][hit][inside] > 0
      quarter = (column[inside] % width) // (width // 4)
      return [same[things & (quarter == i)].mean() for i in range(4)]

    self.assertGreater(min(agreement(points)), 0.7)
    self.assertLess(max(agreement(points * [1, -1, 1])), 0.5)
    # A row is 2.5 degrees, a column 1.7.
    self.assertLess(min(agreement(points, square)), 0.6)

  def test_the_camera_does_not_change_the_scan(self):
    pinhole, around = (
      _renderer(**options)(_scene(), _pose(), 0)
      for options in ({}, {'camera': 'panorama'})
    )
    for name in ('range', 'intensity', 'semantic', 'instance'):
      np.testing.assert_array_equal(
        pinhole[f'scan_{name}'], around[f'scan_{name}'], name
      )

  @parameterized.parameters(
    {'fog_density': 0.05}, {'snow': 1.0}, {'dusk': 1.0, 'sun_color': 0.0},
    {'autumn': 1.0}, {'wetness': 1.0},
  )  # fmt: skip
  def test_weather_changes_the_image(self, **changes):
    if 'sun_color' in changes:
      changes['sun_color'] = np.zeros(3)
    shapes = _scene().primitives
    leaves = np.full_like(shapes.material, primitives.MATERIALS.index('leaves'))
    leaves[::2] = primitives.MATERIALS.index('facade')
    calm = _scene()._replace(primitives=shapes._replace(material=leaves))
    scene = calm._replace(weather=_weather(**changes))
    plain, other = (_renderer()(s, _pose(), 0) for s in (calm, scene))
    change = np.abs(plain['image'].astype(int) - other['image']).mean()
    self.assertGreater(change, 1.0)
    np.testing.assert_array_equal(
      plain['image_semantic'], other['image_semantic']
    )
    if 'fog_density' in changes:
      returns = [(f['scan_range'] > 0).mean() for f in (plain, other)]
      self.assertLess(returns[1], 0.8 * returns[0])

  def test_plain_images_know_materials_by_their_colour_alone(self):
    scene = _scene()
    plain = _renderer(plain=True)
    first, textured = plain(scene, _pose(), 0), _renderer()(scene, _pose(), 0)
    for name in ('image_semantic', 'image_instance'):
      np.testing.assert_array_equal(first[name], textured[name])
    np.testing.assert_array_equal(
      first['image'], plain(scene, _pose(), 9)['image'], 'has noise'
    )
    shapes = scene.primitives
    other = scene._replace(
      primitives=shapes._replace(
        material=shapes.material[::-1].copy(), seed=shapes.seed + np.uint32(1)
      )
    )
    np.testing.assert_array_equal(
      first['image'], plain(other, _pose(), 0)['image']
    )
    colours, textures = (
      len(np.unique(f['image'].reshape(-1, 3), axis=0))
      for f in (first, textured)
    )
    self.assertLess(colours, 0.6 * textures)
    dark = scene._replace(
      weather=_weather(sun_color=np.zeros(3), sky_color=np.full(3, 0.1))
    )
    self.assertLess(
      plain(dark, _pose(), 0)['image'].mean(), 0.8 * first['image'].mean()
    )

  def test_grain_is_the_noise_of_pixels(self):
    spread = {}
    for grain in (1.3, 4.5):
      scene = _scene()._replace(weather=_weather(grain=grain))
      a, b = (
        _renderer()(scene, _pose(), seed)['image'].astype(int)
        for seed in (1, 2)
      )
      spread[grain] = (a - b).std() / 2**0.5
    self.assertAlmostEqual(spread[1.3], 1.3, delta=0.1)
    self.assertAlmostEqual(spread[4.5], 4.5, delta=0.3)

  def test_another_size_or_weather_does_not_recompile(self):
    render = _renderer()
    render(_scene(), _pose(), 0)
    before = imaging.look._cache_size(), imaging.finish._cache_size()
    few = primitives.Primitives(*(c[:50] for c in _scene().primitives))
    scene = _scene()._replace(primitives=few, weather=_weather(snow=0.5))
    render(scene, _pose(offset=(5.0, 0.0)), 1, (3.0, 0.0, 0.1))
    after = imaging.look._cache_size(), imaging.finish._cache_size()
    self.assertEqual(before, after)

  def test_unknown_sizes_are_named(self):
    with self.assertRaisesRegex(ValueError, 'huge'):
      sensors.make_renderer('huge')
    with self.assertRaisesRegex(ValueError, "'fisheye'.*'panorama'"):
      sensors.make_renderer('tiny', camera='fisheye')
    with self.assertRaisesRegex(ValueError, "'16_beams'.*'32_beams'"):
      sensors.make_renderer('tiny', setup='16_beams')

  def test_noise_is_standard_normal_and_streams_differ(self):
    index = jnp.arange(20000)
    a = np.asarray(shading.gaussian(index, jnp.uint32(5), 0))
    b = np.asarray(shading.gaussian(index, jnp.uint32(5), 1))
    self.assertAlmostEqual(a.mean(), 0.0, delta=0.03)
    self.assertAlmostEqual(a.std(), 1.0, delta=0.03)
    self.assertLess(abs(np.corrcoef(a, b)[0, 1]), 0.03)


if __name__ == '__main__':
  absltest.main()
