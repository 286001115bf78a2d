# SPDX-License-Identifier: Apache-2.0
"""Tests of the KITTI odometry reader, on hand-made folders and real frames."""

import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from input_pipeline.readers import kitti_odometry
from input_pipeline.readers import kitti_odometry_splits
from tests import shared
from tests.input_pipeline.readers import kitti_folder as folder_lib

_write = folder_lib.write


class _SequenceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='kitti_'))
    )
    self.folder = folder_lib.make_sequence(self.root)

  def load(self, split='03', camera=0, **arguments):
    return kitti_odometry.load(self.root, split, camera=camera, **arguments)

  def assert_fails(self, error, message: str, **arguments):
    with self.assertRaisesRegex(error, message):
      self.load(**arguments)


class LoadTest(_SequenceTest):
  @parameterized.parameters('Tr:', 'Tr')
  def test_two_frames_come_back_as_written(self, tr_key):
    folder_lib.make_sequence(self.root, tr_key)
    dataset = self.load()
    frames = dataset.frames
    self.assertEqual(list(frames.frame), [0, 1])
    self.assertEqual(set(frames.town) | set(frames.drive), {'03'})
    np.testing.assert_array_equal(frames.timestamp, [0, 0.1])
    sample = dataset.read(1)
    self.assertEqual(sample['image'].shape, (16, 24, 3))
    np.testing.assert_array_equal(sample['image'], 11)
    np.testing.assert_array_equal(sample['points'], [[11, 0, 0, 0.5]])
    rig = dataset.rigs['03']
    self.assertEqual((rig.lens.model, rig.image_size), ('pinhole', (16, 24)))
    np.testing.assert_allclose(
      rig.lens.intrinsics, [[20, 0, 12], [0, 20, 8], [0, 0, 1]]
    )

  def test_up_is_z_and_ahead_is_x(self):
    frames = self.load().frames
    # Not (0, -0.5, 1), the camera's axes.
    np.testing.assert_allclose(
      frames.position, [[0, 0, 0], [1, 0, 0.5]], atol=1e-12
    )
    np.testing.assert_allclose(frames.heading, 0, atol=1e-12)

  def test_a_left_turn_swings_the_lidar_behind_the_camera(self):
    # Camera 0 turns left about its own, downward y axis by a right angle.
    rows = ['1 0 0 0 0 1 0 0 0 0 1 0', '0 0 -1 0 0 1 0 0 1 0 0 0']
    _write(self.root / 'poses' / '03.txt', '\n'.join(rows))
    frames = self.load().frames
    np.testing.assert_allclose(frames.heading, [0, np.pi / 2], atol=1e-12)
    np.testing.assert_allclose(frames.position[1], [0.3, -0.3, 0], atol=1e-12)

  def test_the_cameras_differ_by_their_baseline(self):
    shutil.copytree(self.folder / 'image_0', self.folder / 'image_2')
    left, colour = (
      self.load(camera=camera).rigs['03'].camera_from_body for camera in (0, 2)
    )
    np.testing.assert_allclose((colour - left)[:3, 3], [1, 0, 0], atol=1e-6)

  def test_a_missing_scan_in_the_middle_shifts_nothing(self):
    folder_lib.write_frame(self.folder, 2)
    folder_lib.write_frame(self.folder, 3)
    (self.folder / 'velodyne' / '000001.bin').unlink()
    (self.folder / 'image_0' / '000002.png').unlink()
    dataset = self.load()
    frames = dataset.frames
    self.assertEqual(list(frames.frame), [0, 1, 2, 3])
    self.assertEqual(list(frames.has_points), [True, False, True, True])
    self.assertEqual(list(frames.has_image), [True, True, False, True])
    np.testing.assert_allclose(frames.position[:, 0], [0, 1, 2, 3], atol=1e-12)
    np.testing.assert_array_equal(frames.timestamp, [0, 0.1, 0.2, 0.35])
    np.testing.assert_array_equal(dataset.read(3)['image'], 13)
    self.assertEqual(dataset.read(3)['points'][0, 0], 13)
    self.assertEqual(dataset.read(2, ('points',))['points'][0, 0], 12)
    with self.assertRaisesRegex(ValueError, 'Frame 2 of drive 03 has no image'):
      dataset.read(2)

  def test_frames_beyond_the_poses_are_dropped_and_counted(self):
    folder_lib.write_frame(self.folder, 4)
    (self.folder / 'times.txt').unlink()
    with self.assertLogs(level='WARNING') as logs:
      frames = self.load().frames
    self.assertEqual(list(frames.frame), [0, 1])
    np.testing.assert_allclose(frames.timestamp, [0, 0.1])
    self.assertIn(
      'dropped 1 of 3 frames, which have no pose (first: 4)', logs.output[0]
    )

  def test_a_blank_time_is_interpolated(self):
    folder_lib.write_frame(self.folder, 3)
    _write(self.folder / 'times.txt', '0.0\n\n0.2\n0.3\n')
    with self.assertLogs(level='WARNING') as logs:
      frames = self.load().frames
    np.testing.assert_allclose(frames.timestamp, [0, 0.1, 0.3])
    self.assertIn('1 have no timestamp, interpolated', logs.output[0])

  def test_a_sequence_that_is_not_whole_says_so_and_is_read(self):
    with self.assertLogs(level='WARNING') as logs:
      frames = self.load().frames
    self.assertLen(frames.frame, 2)
    (line,) = logs.output
    self.assertIn(
      'Drive 03: 2 frames (2 with both sensors, 0 image only, 0 scan only); '
      'not whole: 2 images, 2 scans and 4 poses of 801.',
      line,
    )
    # Whole, or no sequence of the benchmark: nothing to say.
    with mock.patch.dict(kitti_odometry_splits.NUM_FRAMES, {'03': 4}):
      for i in (2, 3):
        folder_lib.write_frame(self.folder, i)
      with self.assertNoLogs(level='WARNING'):
        self.load()
    self.folder.rename(self.folder.with_name('77'))
    (self.root / 'poses/03.txt').rename(self.root / 'poses/77.txt')
    with self.assertNoLogs(level='WARNING'):
      self.load('77')

  def test_a_slice_takes_frames_and_a_rule_who_asks(self):
    for i in (2, 3):
      folder_lib.write_frame(self.folder, i)
    dataset = self.load('03[1:3]')
    self.assertEqual(list(dataset.frames.frame), [1, 2])
    np.testing.assert_array_equal(dataset.read(1)['image'], 12)
    np.testing.assert_array_equal(dataset.read(0)['points'][0, 0], 11)
    dataset = self.load('spaced:03', query_spacing=1.5)
    self.assertEqual(list(dataset.frames.frame), [0, 2])
    self.assertEqual(dataset.read(1)['points'][0, 0], 12)
    dataset = self.load('disjoint:03[:-1]', query_spacing=1.5)
    self.assertEqual(list(dataset.frames.frame), [0, 1, 2])
    self.assertEqual(list(dataset.queries), [True, False, True])
    self.assertIsNone(self.load('03').queries)

  def test_points_that_are_dropped_are_counted_once_for_the_dataset(self):
    for i in range(2):
      path = self.folder / 'velodyne' / f'{i:06d}.bin'
      points = [[5, 0, 0, 0.5], [0, 0, 0, 0.5], [np.nan, 0, 0, 0.5]]
      np.array(points, '<f4').tofile(path)
    with self.assertLogs(level='WARNING') as logs:
      dataset = self.load()  # reads some to check the calibration
      for row in (0, 1, 0, 1):
        self.assertLen(dataset.read(row, ('points',))['points'], 1)
    self.assertLen([x for x in logs.output if 'dropped' in x], 1)
    self.assertEqual(
      dataset.read.dropped.total(), {'non-finite': 2, 'range 0': 2}
    )

  def test_poses_are_found_in_their_three_places(self):
    elsewhere = self.root / 'elsewhere'
    _write(elsewhere / '03.txt', '\n'.join(['1 0 0 7 0 1 0 0 0 0 1 0'] * 2))
    frames = self.load(poses_dir=elsewhere).frames
    np.testing.assert_allclose(frames.position[0], [0, -7, 0], atol=1e-12)
    shutil.move(self.root / 'poses' / '03.txt', self.folder / 'poses.txt')
    np.testing.assert_allclose(
      self.load().frames.position[1], [1, 0, 0.5], atol=1e-12
    )


class BadInputTest(_SequenceTest):
  def test_an_unknown_sequence_is_named_beside_the_known(self):
    self.assert_fails(
      FileNotFoundError,
      r"no sequence \['09'\]; found \['03'\]",
      split='09',
    )

  @parameterized.parameters('', '03+', '003', '03[:0]', 'all')
  def test_what_is_no_split_is_refused(self, split):
    self.assert_fails(ValueError, 'is not a split|is empty', split=split)

  def test_another_camera_than_the_one_there_is_named(self):
    self.assert_fails(
      FileNotFoundError, r"no images in image_2, but in \['image_0'\]", camera=2
    )

  def test_sequences_without_official_poses_ask_for_others(self):
    self.folder.rename(self.folder.with_name('14'))
    self.assert_fails(
      FileNotFoundError,
      '11-21 have no official ones: give poses_dir',
      split='14',
    )
    shutil.move(self.root / 'poses/03.txt', self.root / '14.txt')
    frames = self.load('14', poses_dir=self.root).frames
    self.assertEqual(list(frames.frame), [0, 1])

  def test_missing_poses_say_where_they_were_looked_for(self):
    (self.root / 'poses' / '03.txt').unlink()
    self.assert_fails(
      FileNotFoundError, 'looked for .*poses/03.txt and .*03/poses.txt'
    )
    self.assert_fails(
      FileNotFoundError,
      f'looked for {self.root}/x/03',
      poses_dir=self.root / 'x',
    )

  @parameterized.parameters(
    ('P0:', 'Q0:', "no entry 'P0'"),
    ('P0: 20', 'P0: 20 20', 'P0 has 13 values, expected 12'),
    ('Tr: 0', 'Tr: 0.5', 'Tr: not a rotation'),
    ('Tr:', 'Tr_velo_to_cam:', "no entry 'Tr'"),
    ('Tr: 0', 'Tr: nan', 'Tr: non-finite'),
  )
  def test_a_bad_calibration_is_named(self, old, new, message):
    path = self.folder / 'calib.txt'
    path.write_text(path.read_text().replace(old, new))
    self.assert_fails(ValueError, f'{path}: {message}')

  def test_a_missing_calibration_is_named(self):
    (self.folder / 'calib.txt').unlink()
    self.assert_fails(FileNotFoundError, '03/calib.txt')

  def test_a_malformed_pose_line_is_named(self):
    path = self.root / 'poses' / '03.txt'
    _write(path, path.read_text().replace('0.5', '0.5 8', 1))
    self.assert_fails(ValueError, 'poses/03.txt, line 2: 13 numbers, expected')

  def test_times_that_end_early_are_named(self):
    _write(self.folder / 'times.txt', '0.0\n')
    self.assert_fails(ValueError, 'times.txt: 1 lines, .* up to number 1')

  def test_truncated_scans_are_named_before_training_starts(self):
    (self.folder / 'velodyne' / '000000.bin').write_bytes(b'12345')
    self.assert_fails(ValueError, '1 of 2 scans .*000000.bin: truncated')


class RealSequencesTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = shared.require('data/kitti_odometry')
    cls.dataset = kitti_odometry.load(cls.root, '00+01+06', camera=0)

  def test_sparse_sequences_keep_their_frame_numbers(self):
    frames = self.dataset.frames
    rows = {town: frames.town == town for town in ('00', '01', '06')}
    self.assertEqual(
      list(frames.frame[rows['00']]), [0, 1, 2, 3, 4, 94, 95, 198, 199]
    )
    self.assertEqual(
      list(frames.frame[frames.has_points]), [0, 1, 94, 95, 198, 199]
    )
    self.assertEqual([rows['01'].sum(), rows['06'].sum()], [11, 25])
    colour = kitti_odometry.load(self.root, '06')
    self.assertEqual(list(colour.frames.frame), [12, 13, 14, 17])

  def test_rotations_are_orthonormal(self):
    rotation = self.dataset.frames.world_from_body[:, :3, :3]
    np.testing.assert_allclose(
      rotation @ np.swapaxes(rotation, 1, 2),
      np.tile(np.eye(3), (len(rotation), 1, 1)),
      atol=1e-5,
    )
    self.assertTrue((np.linalg.det(rotation) > 0).all())

  @parameterized.parameters('00', '06')
  def test_the_world_is_level(self, sequence):
    frames = self.dataset.frames
    position = frames.position[frames.town == sequence]
    extent = np.ptp(position, axis=0)
    self.assertGreater(np.linalg.norm(extent[:2]), 25)
    self.assertLess(extent[2], 0.05 * np.linalg.norm(extent[:2]))

  def test_the_car_drives_where_it_looks(self):
    frames = self.dataset.frames
    town = frames.town == '06'
    step = np.diff(frames.position[town], axis=0)
    heading = frames.heading[town][:-1]
    ahead = np.stack([np.cos(heading), np.sin(heading)], axis=1)
    cosine = (step[:, :2] * ahead).sum(1) / np.linalg.norm(step[:, :2], axis=1)
    self.assertGreater(cosine.min(), 0.999)

  @parameterized.parameters(
    # Read off the images: the columns of the lamp post's two edges at row 160.
    (0, 12.7, 836, 842),
    (1, 12.0, 851, 857),
  )
  def test_the_lamp_post_lands_on_its_pixels(self, row, depth, left, right):
    sample, rig = self.dataset.read(row), self.dataset.rigs['00']
    camera = sample['points'][:, :3] @ rig.camera_from_body[:3, :3].T
    camera += rig.camera_from_body[:3, 3]
    homogeneous = camera @ rig.lens.intrinsics.T
    u, v = homogeneous[:, :2].T / homogeneous[:, 2]
    post = np.abs(camera[:, 2] - depth) < 0.3
    post &= (u > 825) & (u < 880) & (v > 130) & (v < 180)
    self.assertGreater(post.sum(), 20)
    self.assertBetween(u[post].min(), left - 1, right + 1)
    self.assertBetween(u[post].max(), left - 1, right + 1)
    self.assertAlmostEqual(u[post].mean(), (left + right) / 2, delta=1)

  def test_points_project_as_the_development_kit_says(self):
    sample, rig = self.dataset.read(0), self.dataset.rigs['00']
    calib = {}
    text = (self.root / 'sequences' / '00' / 'calib.txt').read_text()
    for line in text.splitlines():
      calib[line.split(':')[0]] = np.array(line.split()[1:], float)
    points = sample['points'][:, :3].astype(np.float64)
    ahead = points[points[:, 0] > 5]
    rectified = np.column_stack([ahead, np.ones(len(ahead))])
    rectified = rectified @ calib['Tr'].reshape(3, 4).T
    kit = np.column_stack([rectified, np.ones(len(ahead))])
    kit = kit @ calib['P0'].reshape(3, 4).T
    transform = rig.camera_from_body
    ours = ahead @ transform[:3, :3].T + transform[:3, 3]
    ours = ours @ rig.lens.intrinsics.T
    np.testing.assert_allclose(
      ours[:, :2] / ours[:, 2:], kit[:, :2] / kit[:, 2:] + 0.5, atol=2e-2
    )


if __name__ == '__main__':
  absltest.main()
