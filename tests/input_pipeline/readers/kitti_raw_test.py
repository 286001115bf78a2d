# SPDX-License-Identifier: Apache-2.0
"""Tests of the KITTI raw reader, on hand-made folders and on real frames."""

import pathlib
import pickle
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import PIL.Image

from input_pipeline.readers import kitti_raw
from tests import shared
from tests.input_pipeline.readers import kitti_folder as folder_lib

_NAME = folder_lib.NAME
_oxts = folder_lib.oxts
_write = folder_lib.write
_write_image = folder_lib.write_image
_write_scan = folder_lib.write_scan


class _DriveTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='kitti_'))
    )
    self.folder = folder_lib.make_drive(self.root)

  def sensor(self, name: str, frame: int, suffix: str) -> pathlib.Path:
    return self.folder / name / 'data' / f'{frame:010d}{suffix}'

  def assert_fails(self, error, message: str, **arguments):
    with self.assertRaisesRegex(error, message):
      kitti_raw.load(self.root, **arguments)


class LoadTest(_DriveTest):
  def test_two_frames_come_back_as_written(self):
    dataset = kitti_raw.load(self.root)
    frames = dataset.frames
    self.assertTrue(frames.has_image.all() and frames.has_points.all())
    np.testing.assert_allclose(np.diff(frames.timestamp), 1, atol=1e-5)
    sample = dataset.read(1)
    self.assertEqual(sample['image'].shape, (16, 24, 3))
    np.testing.assert_array_equal(sample['image'], 11)
    np.testing.assert_array_equal(sample['points'][:, 0], 11)
    rig = dataset.rigs[_NAME]
    self.assertEqual((rig.lens.model, rig.image_size), ('pinhole', (16, 24)))
    np.testing.assert_allclose(
      rig.lens.intrinsics, [[20, 0, 12], [0, 21, 8], [0, 0, 1]]
    )

  def test_the_camera_sees_what_the_projection_matrix_says(self):
    rig = kitti_raw.load(self.root).rigs[_NAME]
    point = np.array([5.0, 1.0, -0.5])
    rectified = folder_lib.RECTIFICATION @ np.array([-1.0, 0.5 - 0.1, 5 - 0.3])
    u, v, w = folder_lib.PROJECTION @ np.append(rectified, 1)
    camera = rig.camera_from_body @ np.append(point, 1)
    pixel = rig.lens.intrinsics @ camera[:3]
    np.testing.assert_allclose(
      pixel[:2] / pixel[2], [u / w + 0.5, v / w + 0.5], atol=1e-5
    )

  def test_only_what_is_asked_for_is_read(self):
    dataset = kitti_raw.load(self.root)
    self.assertEqual(dataset.read(0, ('points',)).keys(), {'points'})
    self.sensor('velodyne_points', 0, '.bin').unlink()
    self.assertEqual(dataset.read(0, ('image',)).keys(), {'image'})
    with self.assertRaisesRegex(ValueError, r"Asked for \['labels'\]"):
      dataset.read(0, ('labels',))

  def test_a_dataset_can_be_sent_to_a_worker_process(self):
    dataset = pickle.loads(pickle.dumps(kitti_raw.load(self.root)))
    np.testing.assert_array_equal(dataset.read(1)['points'][:, 0], 11)

  def test_drives_are_towns_in_the_order_asked_for(self):
    other = _NAME.replace('0001', '0002')
    folder = folder_lib.make_drive(self.root, other)
    _write_image(folder / 'image_02' / 'data' / '0000000000.png', 77)
    self.sensor('image_02', 1, '.png').unlink()
    found = kitti_raw.load(self.root)
    self.assertEqual(list(found.frames.town), [_NAME] * 2 + [other] * 2)
    dataset = kitti_raw.load(self.root, f'{other}+{_NAME}')
    self.assertEqual(list(dataset.frames.town), [other] * 2 + [_NAME] * 2)
    self.assertEqual(list(dataset.frames.has_image), [True, True, True, False])
    np.testing.assert_array_equal(dataset.read(0)['image'], 77)
    np.testing.assert_array_equal(dataset.read(2)['image'], 10)

  def test_slices_and_rules_are_those_of_every_reader(self):
    other = _NAME.replace('0001', '0002')
    folder_lib.make_drive(self.root, other)
    dataset = kitti_raw.load(self.root, f'{_NAME}[1:]+{other}')
    self.assertEqual(list(dataset.frames.frame), [1, 0, 1])
    np.testing.assert_array_equal(dataset.read(0)['image'], 11)
    dataset = kitti_raw.load(self.root, 'all[:1]')
    self.assertEqual(list(dataset.frames.drive), [_NAME, other])
    self.assertEqual(list(dataset.frames.frame), [0, 0])
    # 1e-5 degrees east are 0.73 m.
    dataset = kitti_raw.load(self.root, 'disjoint:all', query_spacing=0.8)
    self.assertEqual(list(dataset.queries), [True, False] * 2)
    dataset = kitti_raw.load(self.root, 'spaced:all', query_spacing=0.7)
    self.assertLen(dataset.frames.frame, 4)

  def test_a_missing_scan_in_the_middle_shifts_nothing(self):
    for i in (2, 3):
      _write_image(self.sensor('image_02', i, '.png'), 10 + i)
      _write_scan(self.sensor('velodyne_points', i, '.bin'), 10.0 + i)
      _write(self.sensor('oxts', i, '.txt'), _oxts(49, 8 + 1e-5 * i))
    self.sensor('velodyne_points', 1, '.bin').unlink()
    times = [f'2011-09-26 13:02:2{i}.5' for i in range(4)]
    _write(self.folder / 'image_02' / 'timestamps.txt', '\n'.join(times))
    times[1] = ''
    _write(self.folder / 'velodyne_points' / 'timestamps.txt', '\n'.join(times))
    with self.assertLogs(level='WARNING') as logs:
      dataset = kitti_raw.load(self.root)
    self.assertIn('1 have no scan (first: 1)', logs.output[0])
    self.assertEqual(list(dataset.frames.frame), [0, 1, 2, 3])
    self.assertEqual(list(dataset.frames.has_points), [True, False, True, True])
    for row in (0, 2, 3):
      sample = dataset.read(row)
      np.testing.assert_array_equal(sample['image'], 10 + row)
      np.testing.assert_array_equal(sample['points'][:, 0], 10 + row)
    x = dataset.frames.position[:, 0]
    np.testing.assert_allclose(np.diff(x), x[1] - x[0], rtol=1e-6)
    np.testing.assert_allclose(np.diff(dataset.frames.timestamp), 1, rtol=1e-6)
    with self.assertRaisesRegex(
      ValueError, f'Frame 1 of drive {_NAME} has no '
    ):
      dataset.read(1)

  def test_frames_without_a_pose_are_dropped_and_counted(self):
    self.sensor('oxts', 0, '.txt').unlink()
    with self.assertLogs(level='WARNING') as logs:
      frames = kitti_raw.load(self.root).frames
    self.assertEqual(list(frames.frame), [1])
    self.assertIn('dropped 1 of 2 frames, which have no pose', logs.output[0])


class TimesTest(_DriveTest):
  def test_a_blank_line_takes_the_other_sensors_time(self):
    path = self.folder / 'image_02' / 'timestamps.txt'
    _write(path, f'\n{path.read_text().splitlines()[1]}\n\n')
    times = kitti_raw.load(self.root).frames.timestamp
    np.testing.assert_allclose(np.diff(times), 1, atol=1e-5)

  def test_without_files_frames_come_at_ten_hertz(self):
    for sensor in ('image_02', 'velodyne_points'):
      (self.folder / sensor / 'timestamps.txt').unlink()
    frames = kitti_raw.load(self.root).frames
    np.testing.assert_allclose(frames.timestamp, [0, 0.1])

  def test_a_file_that_lost_its_blank_lines_is_named(self):
    _write(
      self.folder / 'velodyne_points' / 'timestamps.txt',
      '2011-09-26 13:02:25.5\n',
    )
    self.assert_fails(
      ValueError, 'velodyne_points/timestamps.txt: 1 lines, .* up to number 1'
    )


class PosesTest(_DriveTest):
  def test_east_is_x_north_is_y_and_the_lidar_sits_on_the_car(self):
    step = 1e-5
    packets = np.array(
      [
        [49, 8, 100, 0, 0, 0],
        [49, 8 + step, 100, 0, 0, np.pi / 2],
        [49 + step, 8, 103, 0, 0, np.pi],
      ]
    )
    metres = np.radians(step) * 6378137
    poses = kitti_raw.world_from_imu(packets)
    np.testing.assert_allclose(
      poses[:, :3, 3],
      [[0, 0, 0], [metres * np.cos(np.radians(49)), 0, 0], [0, metres, 3]],
      atol=1e-5,
    )
    forward = poses[:, :3, 0]  # Yaw 0 looks east, a quarter turn left north.
    np.testing.assert_allclose(
      forward, [[1, 0, 0], [0, 1, 0], [-1, 0, 0]], atol=1e-12
    )
    # The calibration puts the LiDAR 0.8 m ahead of the IMU and 0.8 m above.
    position = kitti_raw.load(self.root).frames.position[0]
    np.testing.assert_allclose(position, [0.8, -0.3, 0.8], atol=1e-9)

  def test_roll_is_about_x_and_comes_first(self):
    packet = np.array([[49, 8, 0, 0.1, 0.2, 0.3]])
    c, s = np.cos(packet[0, 3:]), np.sin(packet[0, 3:])
    roll = np.array([[1, 0, 0], [0, c[0], -s[0]], [0, s[0], c[0]]])
    pitch = np.array([[c[1], 0, s[1]], [0, 1, 0], [-s[1], 0, c[1]]])
    yaw = np.array([[c[2], -s[2], 0], [s[2], c[2], 0], [0, 0, 1]])
    rotation = kitti_raw.world_from_imu(packet)[0, :3, :3]
    np.testing.assert_allclose(rotation, yaw @ pitch @ roll, atol=1e-12)
    self.assertGreater(np.abs(rotation - roll @ pitch @ yaw).max(), 0.01)

  def test_a_pose_file_serves_without_gps_and_its_row_is_the_frame(self):
    shutil.rmtree(self.folder / 'oxts')
    for sensor, suffix in (('image_02', '.png'), ('velodyne_points', '.bin')):
      self.sensor(sensor, 1, suffix).rename(self.sensor(sensor, 2, suffix))
      (self.folder / sensor / 'timestamps.txt').unlink()
    rows = [f'1 0 0 {i} 0 1 0 0 0 0 1 0' for i in range(4)]
    _write(self.folder / 'poses_velo_icp.txt', '\n'.join(rows))
    frames = kitti_raw.load(self.root).frames
    self.assertEqual(list(frames.frame), [0, 2])
    np.testing.assert_array_equal(frames.position[:, 0], [0, 2])

  def test_no_poses_and_too_many_are_named(self):
    shutil.rmtree(self.folder / 'oxts')
    self.assert_fails(FileNotFoundError, f'{_NAME}: no poses; expected oxts')
    for name in ('poses_velo_a.txt', 'poses_velo_b.txt'):
      _write(self.folder / name, '1 0 0 0 0 1 0 0 0 0 1 0')
    self.assert_fails(ValueError, 'several pose files .*_a.txt.*_b.txt')

  @parameterized.parameters(
    ('', '0 lines, 0 numbers'),
    ('49 8 1 0 0 0', '1 lines, 6 numbers'),
    (_oxts(49, 8) + '\n' + _oxts(49, 8), '2 lines'),
    (_oxts(49, np.nan), 'finite'),
    (_oxts(149, 8), 'latitude 149'),
    (_oxts(49, 8).replace('49.0', 'north'), 'not numbers'),
  )
  def test_a_bad_gps_packet_is_named(self, text, message):
    path = self.sensor('oxts', 1, '.txt')
    _write(path, text)
    self.assert_fails(ValueError, f'{path}: .*{message}')


class BadInputTest(_DriveTest):
  def test_an_empty_root_is_named(self):
    shutil.rmtree(self.root / '2011_09_26')
    self.assert_fails(FileNotFoundError, f'{self.root}: no drive found')

  def test_an_unknown_drive_is_named_beside_the_known(self):
    self.assert_fails(
      FileNotFoundError,
      rf"no drive \['x'\]; found \['{_NAME}'\]",
      split='x',
    )

  def test_a_drive_listed_twice_and_no_drive_at_all_are_refused(self):
    self.assert_fails(
      ValueError,
      'listed twice',
      split=f'{_NAME}+{_NAME}[:1]',
    )
    self.assert_fails(ValueError, 'is not a split of KITTI raw', split='')

  def test_another_camera_than_the_one_there_is_named(self):
    self.assert_fails(
      FileNotFoundError,
      r"no images in image_03, but in \['image_02'\]",
      camera=3,
    )

  def test_a_drive_without_sensors_is_named(self):
    for sensor in ('image_02', 'velodyne_points'):
      shutil.rmtree(self.folder / sensor)
    self.assert_fails(
      ValueError, f'{_NAME} has no frame .*0 images, 0 scans, 2 poses'
    )

  def test_a_drive_without_camera_is_a_map(self):
    shutil.rmtree(self.folder / 'image_02')
    frames = kitti_raw.load(self.root).frames
    self.assertTrue((frames.has_points & ~frames.has_image).all())

  @parameterized.parameters(
    ('calib_cam_to_cam.txt', 'P_rect_02', 'P_rect_x', "no entry 'P_rect_02'"),
    ('calib_cam_to_cam.txt', 'R_rect_00: 0', 'R_rect_00: 2', 'not a rotation'),
    ('calib_cam_to_cam.txt', 'R_rect_00: 0.96', 'R_rect_00:', '8 values'),
    ('calib_cam_to_cam.txt', '02: 20.0', '02: -20.0', 'positive focal lengths'),
    ('calib_velo_to_cam.txt', 'T:', 'X:', "no entry 'T'"),
    ('calib_velo_to_cam.txt', 'R: 0 -1', 'R: 0 1', 'determinant -1'),
    ('calib_imu_to_velo.txt', 'R: 1', 'R: one', 'not numbers'),
  )
  def test_a_bad_calibration_is_named(self, name, old, new, message):
    path = self.root / '2011_09_26' / name
    text = path.read_text()
    self.assertIn(old, text)
    path.write_text(text.replace(old, new))
    self.assert_fails(ValueError, f'{name}.*{message}')

  @parameterized.parameters('cam_to_cam', 'velo_to_cam', 'imu_to_velo')
  def test_a_missing_calibration_is_named(self, name):
    (self.root / '2011_09_26' / f'calib_{name}.txt').unlink()
    self.assert_fails(FileNotFoundError, f'calib_{name}.txt')

  def test_truncated_scans_are_named_before_training_starts(self):
    path = self.sensor('velodyne_points', 1, '.bin')
    path.write_bytes(path.read_bytes()[:-3])
    self.assert_fails(ValueError, f'1 of 2 scans .*{path}: truncated')

  def test_images_of_two_sizes_are_named(self):
    path = self.sensor('image_02', 1, '.png')
    PIL.Image.new('RGB', (12, 8)).save(path)
    self.assert_fails(ValueError, f'{path}: an image of 12x8, where .* 24x16')

  def test_an_image_that_was_resized_later_is_named(self):
    dataset = kitti_raw.load(self.root)
    path = self.sensor('image_02', 1, '.png')
    PIL.Image.new('RGB', (12, 8)).save(path)
    with self.assertRaisesRegex(ValueError, f'{path}: an image of 12x8, .*24x'):
      dataset.read(1)

  def calibrate(self, *replacements):
    path = self.root / '2011_09_26' / 'calib_cam_to_cam.txt'
    text = path.read_text()
    for old, new in replacements:
      self.assertIn(old, text)
      text = text.replace(old, new)
    path.write_text(text)

  def test_images_smaller_by_a_factor_get_a_scaled_lens(self):
    self.calibrate(('R_rect_00', 'S_rect_02: 4.8e+01 3.2e+01\nR_rect_00'))
    # As the projection matrix has it: its middle is the image's.
    self.calibrate(('20.0 0.0 11.5', '20.0 0.0 23.5'), ('7.5', '15.5'))
    (rig,) = kitti_raw.load(self.root).rigs.values()
    self.assertEqual(rig.image_size, (16, 24))
    np.testing.assert_allclose(
      rig.lens.intrinsics, [[10, 0, 12], [0, 10.5, 8], [0, 0, 1]]
    )

  @parameterized.parameters('30 16', '24 18', '25 16', '32 16')
  def test_cropped_and_stretched_images_are_refused(self, size):
    self.calibrate(('R_rect_00', f'S_rect_02: {size}\nR_rect_00'))
    written = 'x'.join(size.split())
    self.assert_fails(
      ValueError, f'0000000000.png: an image of 24x16, but .* is of {written}'
    )

  @parameterized.parameters('24', '24 16 3', '24.5 16', '-24 16')
  def test_what_is_no_size_is_named(self, size):
    self.calibrate(('R_rect_00', f'S_rect_02: {size}\nR_rect_00'))
    self.assert_fails(ValueError, 'S_rect_02 is .* expected width and height')

  def test_a_size_that_the_principal_point_contradicts_is_named(self):
    self.calibrate(('R_rect_00', 'S_rect_02: 48 32\nR_rect_00'))
    self.assert_fails(
      ValueError, r'P_rect_02 is of images of 48x32 .* is \[12.0, 8.0\]'
    )

  @parameterized.parameters(
    ('1 0 0 0 1 0 0 0 1', 'It is no rotation'),
    ('0 0 1 -1 0 0 0 -1 0', 'The inverse fits'),
    ('0 1 0 0 0 -1 -1 0 0', 'of another camera'),
    ('0 -1 0 0 0 -1 1 0 1', 'not a rotation'),
  )
  def test_a_lidar_that_is_not_where_the_camera_looks_is_named(
    self, rotation, message
  ):
    path = self.root / '2011_09_26' / 'calib_velo_to_cam.txt'
    path.write_text(f'R: {rotation}\nT: 0 -0.1 -0.3\n')
    # Without the turn of the test's rectification, which is a large one.
    self.calibrate(
      ('R_rect_00: 0.96 0.0 0.28 0.0 1.0 0.0 -0.28 0.0 0.96',
       'R_rect_00: 1 0 0 0 1 0 0 0 1')
    )  # fmt: skip
    self.assert_fails(ValueError, f'calib_velo_to_cam.txt: .*{message}')


class RealDriveTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = shared.require('data/kitti_raw')
    cls.dataset = kitti_raw.load(cls.root)

  def test_sixteen_pairs_at_five_hertz(self):
    frames = self.dataset.frames
    self.assertEqual(list(frames.frame), list(range(0, 32, 2)))
    self.assertTrue(frames.has_image.all() and frames.has_points.all())
    np.testing.assert_allclose(np.diff(frames.timestamp), 0.2)

  def test_the_car_drives_straight_ahead_on_a_level_road(self):
    frames = self.dataset.frames
    self.assertBetween(frames.position[-1, 0], 6, 8)
    self.assertGreater(np.diff(frames.position[:, 0]).min(), 0.2)
    self.assertLess(np.abs(frames.position[:, 1:]).max(), 0.1)
    self.assertLess(np.abs(frames.heading).max(), 0.01)

  def test_rotations_are_orthonormal(self):
    poses = self.dataset.frames.world_from_body
    (rig,) = self.dataset.rigs.values()
    for rotation in (*poses[:, :3, :3], rig.camera_from_body[:3, :3]):
      np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
      self.assertGreater(np.linalg.det(rotation), 0)

  def test_points_project_as_the_development_kit_says(self):
    sample, (rig,) = self.dataset.read(0), self.dataset.rigs.values()
    point = sample['points'][49216, :3].astype(np.float64)
    # The files, once more, by hand.
    lines = {}
    for name in ('calib_cam_to_cam.txt', 'calib_velo_to_cam.txt'):
      for line in (self.root / '2011_09_26' / name).read_text().splitlines():
        lines[line.split(':')[0]] = np.array(line.split()[1:], float)
    rectified = lines['R_rect_00'].reshape(3, 3) @ (
      lines['R'].reshape(3, 3) @ point + lines['T']
    )
    u, v, w = lines['P_rect_02'].reshape(3, 4) @ np.append(rectified, 1)
    camera = rig.camera_from_body @ np.append(point, 1)
    pixel = (rig.lens.intrinsics @ camera[:3])[:2] / camera[2]
    np.testing.assert_allclose(pixel, [u / w + 0.5, v / w + 0.5], atol=2e-3)
    # Read off the image: the right edge of the licence plate in front.
    np.testing.assert_allclose(pixel, [653.1, 250.9], atol=0.1)

  def test_the_brightest_echoes_are_the_plate_and_the_tail_lights(self):
    points, (rig,) = self.dataset.read(0)['points'], self.dataset.rigs.values()
    camera = points[:, :3] @ rig.camera_from_body[:3, :3].T
    camera += rig.camera_from_body[:3, 3]
    homogeneous = camera @ rig.lens.intrinsics.T
    u, v = homogeneous[:, :2].T / homogeneous[:, 2]
    car = (camera[:, 2] > 5) & (camera[:, 2] < 10)
    car &= (u > 555) & (u < 700) & (v > 215) & (v < 330)
    u, v = (x[car & (points[:, 3] > 0.95)] for x in (u, v))
    self.assertGreater(len(u), 30)
    # Boxes in pixels, drawn by eye on the image (plate, left, right light).
    boxes = ((603, 246, 655, 260), (560, 238, 577, 265), (680, 238, 695, 265))
    inside = [
      (u > left) & (u < right) & (v > top) & (v < bottom)
      for left, top, right, bottom in boxes
    ]
    np.testing.assert_array_equal(np.any(inside, axis=0), True)
    self.assertTrue(np.any(inside, axis=1).all())


if __name__ == '__main__':
  absltest.main()
