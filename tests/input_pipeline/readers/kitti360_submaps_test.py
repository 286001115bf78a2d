# SPDX-License-Identifier: Apache-2.0
"""Submaps: planted landmarks come back where they stand."""

import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import spatial

from input_pipeline.readers import kitti360_submaps
from input_pipeline.readers import scan_files
from tests.input_pipeline.readers import kitti360_folder as folder_lib

# Poles in the world: beside, ahead of and behind a road of 60 m that runs
# north-east across several tiles.
_HEADING = 0.6
_START = np.array([3605.0, 1693.0, 116.0])
_POLES = _START + np.array(
  [[8, 9, 1], [20, 4, 3], [41, 42, 2], [26, 30, 7], [-9, 3, 0], [39.6, -4.9, 5]]
)


def _pose(driven, turn=0.0):
  """world_from_lidar after so many metres, on a slope, turned a little."""
  cos, sin = np.cos(_HEADING + turn), np.sin(_HEADING + turn)
  pose = np.eye(4)
  pose[:3, :3] = [[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]
  tilt = np.eye(4)
  tilt[0, 0] = tilt[2, 2] = np.cos(0.03)
  tilt[2, 0], tilt[0, 2] = np.sin(0.03), -np.sin(0.03)
  pose[:3, 3] = _START
  pose[:2, 3] += driven * np.array([np.cos(_HEADING), np.sin(_HEADING)])
  return pose @ tilt


class _MapTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='kitti360_'))
    )
    self.sweeps = self.make_sweeps()

  def make_sweeps(self, count=12, speed=5.0):
    """Sweeps every `speed` metres of the poles within sight, and of the car.

    Their frames are so far apart that the car seems to stand at each.
    """
    poses = {10 * i: _pose(speed * i) for i in range(count)}
    scans = {}
    for i, pose in poses.items():
      seen = (_POLES - pose[:3, 3]) @ pose[:3, :3]
      seen = seen[np.linalg.norm(seen, axis=1) < 35]
      ego = [[0.5, -2.9, -1.0], [2.9, 0, -1.5], [-1, 1, 0.1]]
      points = np.column_stack([[*seen, *ego], np.full(len(seen) + 3, 0.5)])
      scans[i] = folder_lib.scan_path(self.root, 'a', i)
      folder_lib.write_scan(scans[i], points)
    return kitti360_submaps.Sweeps('a', scans, poses, scan_files.Dropped('a'))

  def load(self, sweeps=None):
    return kitti360_submaps.load(self.root / 'maps', sweeps or self.sweeps)


class CropTest(_MapTest):
  @parameterized.parameters((0.0, 0.0), (25.0, 0.0), (25.0, 2.5), (55.0, -1.0))
  def test_landmarks_stand_in_the_lidars_axes(self, driven, turn):
    pose = _pose(driven, turn)
    local = (_POLES - pose[:3, 3]) @ pose[:3, :3]
    inside = (np.abs(local[:, :2]) < 20).all(1)
    expected = local[inside]
    self.assertNotEmpty(expected)
    found = self.load().crop(pose)
    # Every sweep saw a pole at one place: one voxel each, or two at a border.
    for point in expected:
      distance = np.linalg.norm(found[:, :3] - point, axis=1)
      self.assertLess(distance.min(), 2e-3)
    for point in found:
      distance = np.linalg.norm(expected - point[:3], axis=1)
      self.assertLess(distance.min(), 2e-3)
    np.testing.assert_allclose(found[:, 3], 0.5, atol=1e-6)
    self.assertEqual(found.dtype, np.float32)
    # Cut in the world's axes it would be another square.
    world = (np.abs((_POLES - pose[:3, 3])[:, :2]) < 20).all(1)
    if (driven, turn) == (25.0, 0.0):
      self.assertNotEqual(world.tolist(), inside.tolist())

  def test_the_cars_own_points_are_gone_and_others_stay(self):
    sweeps = self.make_sweeps(count=3)
    # A post 2.9 m beside the first pose's car, seen from the last pose.
    post = _pose(0.0)[:3, :3] @ [0, 2.9, 0] + _pose(0.0)[:3, 3]
    pose = sweeps.world_from_lidar[20]
    local = np.append((post - pose[:3, 3]) @ pose[:3, :3], 0.7)
    folder_lib.write_scan(sweeps.scans[20], local[None])
    found = self.load(sweeps).crop(_pose(0.0))
    near = found[(np.abs(found[:, :2]) < 3).all(1)]
    np.testing.assert_allclose(near, [[0, 2.9, 0, 0.7]], atol=2e-3)

  def test_far_returns_are_left_out(self):
    sweeps = self.make_sweeps(count=1)
    folder_lib.write_scan(
      sweeps.scans[0], [[39.9, 0, 0, 0.1], [40.1, 0, 0, 0.2]]
    )
    made = self.load(sweeps)
    found = made.crop(_pose(39.0))
    np.testing.assert_allclose(found[:, 3], [0.1], atol=1e-6)

  def test_where_nothing_was_seen_it_is_empty(self):
    found = self.load().crop(_pose(5000.0))
    self.assertEqual(found.shape, (0, 4))

  def test_sweeps_are_uncurled_before_they_are_laid_together(self):
    sweeps = self.make_sweeps(count=1)
    lifted = _pose(0.0)
    lifted[:3, 3] += lifted[:3, 2] * 4
    sweeps.world_from_lidar[1] = lifted
    folder_lib.write_scan(sweeps.scans[0], [[0, 10, 0, 0.5]])
    found = self.load(sweeps).crop(_pose(0.0))
    # Taken a quarter of a turn early, when the LiDAR was a quarter lower.
    np.testing.assert_allclose(found, [[0, 10, -1, 0.5]], atol=2e-3)

  def test_equals_all_points_at_once_whatever_the_pieces(self):
    rng = np.random.default_rng(0)
    sweeps = self.make_sweeps(count=9)
    clouds = []
    for i, path in sweeps.scans.items():
      points = rng.uniform((-27, -27, -2, 0), (27, 27, 6, 1), (500, 4))
      folder_lib.write_scan(path, points)
      points = points[~(np.abs(points[:, :2]) < 3).all(1)]
      pose = sweeps.world_from_lidar[i]
      points[:, :3] = points[:, :3] @ pose[:3, :3].T + pose[:3, 3]
      clouds.append(points)
    every = np.concatenate(clouds)
    with mock.patch.multiple(
      kitti360_submaps, _SWEEPS_PER_PIECE=4, _SWEEPS_PER_AVERAGE=3
    ):
      made = self.load(sweeps)
    self.assertLen(made.pieces, 3)
    # The square's corners reach farther than its sides, most at 45 degrees.
    for driven, turn in ((20.0, 0.3), (12.0, 0.185), (31.0, 0.185)):
      pose = _pose(driven, turn)
      expected = every.copy()
      expected[:, :3] = (every[:, :3] - pose[:3, 3]) @ pose[:3, :3]
      expected = expected[(np.abs(expected[:, :2]) < 20).all(1)]
      found = made.crop(pose)
      # So thin a cloud leaves almost all points alone in their voxels.
      distance = spatial.cKDTree(found).query(expected)[0]
      self.assertGreater((distance < 2e-3).mean(), 0.99)
      self.assertBetween(len(found), 0.99 * len(expected), len(expected) + 2)


class KeepTest(_MapTest):
  def test_a_map_is_made_once(self):
    first = self.load().crop(_pose(20.0))
    kitti360_submaps._read_tile.cache_clear()
    with mock.patch.object(scan_files, 'read_scan', side_effect=AssertionError):
      again = self.load().crop(_pose(20.0))
    np.testing.assert_array_equal(first, again)

  def test_other_sweeps_and_other_poses_make_another_map(self):
    first = self.load()
    for changed in (dict(count=11), dict(speed=5.1)):
      other = self.load(self.make_sweeps(**changed))
      self.assertNotEqual(first.pieces, other.pieces)

  def test_a_run_that_died_is_continued(self):
    read, count = scan_files.read_scan, 0

    def dies(path, dropped):
      nonlocal count
      count += 1
      if count == 9:
        raise KeyboardInterrupt
      return read(path, dropped)

    with (
      mock.patch.object(kitti360_submaps, '_SWEEPS_PER_PIECE', 4),
      mock.patch('os.cpu_count', return_value=1),
    ):
      with mock.patch.object(scan_files, 'read_scan', dies):
        with self.assertRaises(KeyboardInterrupt):
          self.load()
      with mock.patch.object(
        scan_files, 'read_scan', wraps=scan_files.read_scan
      ) as rest:
        made = self.load()
    self.assertEqual(rest.call_count, 4)
    self.assertLen(made.pieces, 3)
    self.assertNotEmpty(made.crop(_pose(20.0)))

  def test_a_damaged_file_is_named(self):
    made = self.load()
    path = made.pieces[0]
    path.write_bytes(path.read_bytes()[:200])
    kitti360_submaps._index.cache_clear()
    kitti360_submaps._read_tile.cache_clear()
    with self.assertRaisesRegex(ValueError, f'{path} is damaged .* Delete it'):
      made.crop(_pose(20.0))

  def test_a_damaged_scan_is_named(self):
    folder_lib.write_scan(self.sweeps.scans[30], np.full((2, 4), np.nan))
    with self.assertRaisesRegex(ValueError, '0000000030.bin: no finite point'):
      self.load()

  def test_no_sweeps_are_named(self):
    with self.assertRaisesRegex(ValueError, 'Drive a has no scan with a pose'):
      self.load(self.sweeps._replace(scans={}))


class AverageTest(parameterized.TestCase):
  def test_equals_a_loop_over_cubes(self):
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (500, 4)).astype(np.float32)
    cubes = {}
    for point in points:
      cell = tuple(np.floor(point[:3] / np.float32(0.25)).astype(int))
      cubes.setdefault(cell, []).append(point)
    found = kitti360_submaps.average_voxels(points, 0.25)
    expected = np.array([np.mean(cubes[cell], 0) for cell in sorted(cubes)])
    np.testing.assert_allclose(found, expected, atol=1e-6)

  def test_nothing_stays_nothing(self):
    empty = np.zeros((0, 4), np.float32)
    self.assertEmpty(kitti360_submaps.average_voxels(empty, 0.1))


class CleaningTest(parameterized.TestCase):
  def test_points_far_from_all_others_are_outliers(self):
    rng = np.random.default_rng(0)
    wall = rng.uniform((0, 5, 0, 0), (10, 5.2, 3, 1), (2000, 4))
    stray = [[0, -15, 8, 0.5], [15, 0, 9, 0.5], [-9, -9, 5, 0.5]]
    points = np.concatenate([wall, stray]).astype(np.float32)
    found = kitti360_submaps.without_outliers(points)
    self.assertLess(found[:, 1].max(), 5.3)
    self.assertGreater(found[:, 1].min(), 4.9)
    self.assertGreater(len(found), 1000)

  def test_ground_goes_and_walls_and_cars_stay(self):
    rng = np.random.default_rng(0)
    ground = rng.uniform((-20, -20, 0, 0), (20, 20, 0.1, 1), (3000, 4))
    ground[:, 2] += 0.05 * ground[:, 0] - 1.7  # a slope
    wall = rng.uniform((-20, 8, -1, 0), (20, 8.2, 6, 1), (1500, 4))
    points = np.concatenate([ground, wall]).astype(np.float32)
    found = kitti360_submaps.without_ground(points)
    height = found[:, 2] - (0.05 * found[:, 0] - 1.7)
    self.assertGreater(len(found), 1300)
    on_wall = found[:, 1] >= 8
    self.assertLess((~on_wall).sum(), 30)
    # A wall is no ground, however many points it has.
    alone = kitti360_submaps.without_ground(points[3000:])
    self.assertGreater(len(alone), 1300)
    self.assertGreater(height[on_wall].max(), 5)

  @parameterized.parameters(0, 2, 30)
  def test_few_points_are_left_alone(self, count):
    points = np.random.default_rng(0).normal(size=(count, 4)).astype('f')
    self.assertLen(kitti360_submaps.without_outliers(points), count)
    self.assertLessEqual(len(kitti360_submaps.without_ground(points)), count)


if __name__ == '__main__':
  absltest.main()
