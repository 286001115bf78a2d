# SPDX-License-Identifier: Apache-2.0
"""Tests of the KITTI-360 reader on hand-made folders in the real layout."""

import pathlib
import pickle
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.geometry import panorama
from input_pipeline import batches
from input_pipeline import datasets
from input_pipeline.readers import kitti360
from tests.input_pipeline.readers import kitti360_folder as folder_lib

_NAME = folder_lib.NAME
_SHRINK = 10  # fisheye images of 140 x 140
_SMALL = (64, 128)  # panoramas; of one size, as each compiles


class _RootTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.template = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory(prefix='kitti360_'))
    )
    folder_lib.make_root(cls.template, shrink=_SHRINK)

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='kitti360_'))
    )
    shutil.copytree(self.template, self.root, dirs_exist_ok=True)

  def image(self, sensor: str, frame: int) -> pathlib.Path:
    return folder_lib.image_path(self.root, _NAME, sensor, frame)

  def scan(self, frame: int) -> pathlib.Path:
    return folder_lib.scan_path(self.root, _NAME, frame)

  def assert_fails(self, error, message: str, split='0003', **options):
    with self.assertRaisesRegex(error, message):
      kitti360.load(self.root, split, **options)

  def panoramas(self, size=_SMALL):
    return kitti360.load(
      self.root, '0003', camera='panorama', panorama_size=size
    )


class LoadTest(_RootTest):
  def test_posed_frames_come_back_as_written(self):
    with self.assertLogs(level='WARNING') as logs:
      dataset = kitti360.load(self.root, '3')
    self.assertIn('dropped 1 of 3 frames, which have no pose', logs.output[0])
    frames = dataset.frames
    self.assertEqual(list(frames.frame), [2, 3])
    self.assertEqual(set(frames.town), {_NAME})
    self.assertTrue(frames.has_image.all() and frames.has_points.all())
    np.testing.assert_allclose(np.diff(frames.timestamp), 0.1, atol=1e-5)
    sample = dataset.read(1)
    self.assertEqual(sample['image'].shape, (376, 1408, 3))
    np.testing.assert_array_equal(sample['image'], 30)
    rig = dataset.rigs[_NAME]
    self.assertEqual((rig.lens.model, rig.image_size), ('pinhole', (376, 1408)))
    np.testing.assert_allclose(
      rig.lens.intrinsics,
      [[552.554261, 0, 682.549453], [0, 552.554261, 239.269549], [0, 0, 1]],
    )
    # Straight ahead nothing is moved by un-curling.
    np.testing.assert_allclose(
      sample['points'],
      [[13, 0, 0, 0.5], [5, 0, -1.5, 0.25], [20, 0, 2, 1]],
      atol=1e-5,
    )

  def test_the_lidar_sits_on_the_car_and_looks_where_it_drives(self):
    frames = kitti360.load(self.root, '0003').frames
    # The calibration puts the LiDAR 0.8 m ahead of the IMU, 0.3 m to its right
    # (south, driving east) and 0.85 m above.
    offset = frames.position[0] - [3604, 1700, 115]
    np.testing.assert_allclose(offset, [0.77, -0.30, 0.85], atol=0.05)
    np.testing.assert_allclose(frames.heading, 0, atol=0.01)
    np.testing.assert_allclose(
      np.diff(frames.position, axis=0), [[2, 0, 0]], atol=1e-6
    )
    up = frames.world_from_body[:, :3, 2]
    np.testing.assert_allclose(up, [[0, 0, 1]] * 2, atol=0.02)

  def test_the_camera_sees_what_the_files_say(self):
    rig = kitti360.load(self.root, '0003').rigs[_NAME]
    point = np.array([12.0, 2.0, -0.5, 1])
    camera0 = np.linalg.inv(folder_lib.matrix(folder_lib.CAM_TO_VELO)) @ point
    rectified = folder_lib.RECTIFICATION @ camera0
    u, v, w = (
      folder_lib.matrix(folder_lib.PERSPECTIVE['P_rect_00'])[:3] @ rectified
    )
    seen = rig.camera_from_body @ point
    pixel = rig.lens.intrinsics @ seen[:3]
    np.testing.assert_allclose(
      pixel[:2] / pixel[2], [u / w + 0.5, v / w + 0.5], atol=1e-3
    )

  def test_only_what_is_asked_for_is_read(self):
    dataset = self.panoramas()
    self.assertEqual(dataset.read(0, ('points',)).keys(), {'points'})
    self.scan(2).unlink()
    self.assertEqual(dataset.read(0, ('image',)).keys(), {'image'})
    with self.assertRaisesRegex(ValueError, r"Asked for \['labels'\]"):
      dataset.read(0, ('labels',))

  def test_a_dataset_can_be_sent_to_a_worker_process(self):
    dataset = self.panoramas()
    copy = pickle.loads(pickle.dumps(dataset))
    for name, value in dataset.read(0).items():
      np.testing.assert_array_equal(copy.read(0)[name], value)

  def test_missing_images_and_scans_are_named_and_shift_nothing(self):
    self.image('image_00', 2).unlink()
    self.scan(3).unlink()
    with self.assertLogs(level='WARNING') as logs:
      dataset = kitti360.load(self.root, '0003')
    text = '\n'.join(logs.output)
    self.assertIn('1 have no image (first: 2)', text)
    self.assertIn('1 have no scan (first: 3)', text)
    self.assertEqual(list(dataset.frames.frame), [2, 3])
    self.assertEqual(list(dataset.frames.has_image), [False, True])
    self.assertEqual(list(dataset.frames.has_points), [True, False])
    np.testing.assert_array_equal(dataset.read(1, ('image',))['image'], 30)
    with self.assertRaisesRegex(ValueError, 'Frame 2 .* has no image'):
      dataset.read(0, ('image',))

  def test_slices_and_rules_choose_frames_of_each_sequence(self):
    other = _NAME.replace('0003', '0007')
    folder_lib.make_root(self.root, other, shrink=_SHRINK)
    frames = kitti360.load(self.root, '0007[-1:]+0003').frames
    self.assertEqual(list(frames.drive), [other, _NAME, _NAME])
    self.assertEqual(list(frames.frame), [3, 2, 3])
    dataset = kitti360.load(self.root, '0007[-1:]+0003')
    np.testing.assert_array_equal(dataset.read(1, ('image',))['image'], 20)
    frames = kitti360.load(self.root, 'spaced:0003').frames
    self.assertEqual(list(frames.frame), [2])
    dataset = kitti360.load(self.root, 'disjoint:0003', query_spacing=1.0)
    self.assertEqual(list(dataset.queries), [True, True])
    dataset = kitti360.load(self.root, 'disjoint:0003')
    self.assertEqual(list(dataset.queries), [True, False])
    self.assertLen(dataset.frames.frame, 2)

  def test_the_pipeline_makes_batches_of_panoramas(self):
    dataset = datasets.load(
      'kitti360',
      split='0003',
      data_dir=str(self.root),
      camera='panorama',
      panorama_size=_SMALL,
    )
    batch = next(
      batches.train_batches(
        dataset,
        batch_size=2,
        image_size=(8, 16),
        num_points=2,
        cross_drive=0.0,
        max_offset=0.0,
        seed=0,
      )
    )
    self.assertEqual(batch['image'].shape, (2, 8, 16, 3))
    np.testing.assert_allclose(
      batch['intrinsics'][0], panorama.sphere_intrinsics((8, 16)), rtol=1e-6
    )


class PanoramaTest(_RootTest):
  def test_a_dot_in_the_fisheye_is_where_the_lidar_point_projects(self):
    size = 1400 // _SHRINK
    dataset = self.panoramas()
    # Left, right, behind to the left, ahead to the right; 20 m from the rig.
    for x, y, z in (
      (0, 20, 0),
      (3, -19.6, 1),
      (-14, 14, -2),
      (14.1, -14.1, 3),
    ):
      sensor = 'image_02' if y > 0 else 'image_03'
      pixel = _fisheye_pixel(sensor, np.array([x, y, z, 1.0]))
      image = np.zeros((size, size, 3), np.uint8)
      # Painted on a field that interpolation cannot miss.
      rows, columns = np.mgrid[:size, :size] + 0.5
      near = np.hypot(columns - pixel[0], rows - pixel[1])
      image[..., 0] = np.clip(255 - 40 * near, 0, 255)
      dark = np.zeros_like(image)
      for name in ('image_02', 'image_03'):
        path = self.image(name, 2)
        folder_lib.write_image(path, image if name == sensor else dark)
      sample = dataset.read(0, ('image',))
      red = sample['image'][..., 0].astype(float)
      row, column = np.unravel_index(red.argmax(), red.shape)
      window = np.s_[row - 4 : row + 5, column - 4 : column + 5]
      rows, columns = np.mgrid[: _SMALL[0], : _SMALL[1]] + 0.5
      weight = red[window] / red[window].sum()
      found = (columns[window] * weight).sum(), (rows[window] * weight).sum()
      rig = dataset.rigs[_NAME]
      seen = rig.camera_from_body @ [x, y, z, 1.0]
      expected, _ = panorama.project(rig.lens.intrinsics, seen[:3])
      np.testing.assert_allclose(found, expected, atol=0.15)

  def test_the_lidars_forward_is_the_middle_and_its_left_the_left(self):
    dataset = self.panoramas((512, 1024))
    sample, rig = dataset.read(0), dataset.rigs[_NAME]
    self.assertEqual(sample['image'].shape, (512, 1024, 3))
    self.assertEqual(rig.image_size, (512, 1024))
    self.assertEqual(rig.lens.model, 'equirectangular')
    # Both fisheyes are all 40: no hole, no seam.
    np.testing.assert_array_equal(sample['image'], 40)
    for direction, column in (((1, 0), 512), ((0, 1), 256), ((0, -1), 768)):
      point = np.array([*direction, 0, 0]) * 1e6 + [0, 0, 0, 1]
      seen = rig.camera_from_body @ point
      pixel, _ = panorama.project(rig.lens.intrinsics, seen[:3])
      np.testing.assert_allclose(pixel, [column, 256], atol=3)
    # The rig's centre: between the fisheyes, 0.25 m above the LiDAR.
    center = np.linalg.inv(rig.camera_from_body)[:3, 3]
    np.testing.assert_allclose(center, [-0.05, 0, 0.25], atol=0.06)

  def test_a_frame_needs_both_fisheyes(self):
    self.image('image_03', 2).unlink()
    with self.assertLogs(level='WARNING') as logs:
      dataset = self.panoramas()
    self.assertIn('have no image_03 (first: 2)', '\n'.join(logs.output))
    self.assertEqual(list(dataset.frames.has_image), [False, True])
    with self.assertRaisesRegex(ValueError, 'Frame 2 .* has no panorama'):
      dataset.read(0, ('image',))

  def test_images_of_another_size_than_the_lens_are_named(self):
    folder_lib.write_image(
      self.image('image_02', 2), np.zeros((60, 60, 3), np.uint8)
    )
    dataset = self.panoramas()
    with self.assertRaisesRegex(
      ValueError, '0000000002.png: an image of 60x60, but .* for 140x140'
    ):
      dataset.read(0)

  def test_the_real_lenses_shrink_their_images_before_they_are_sampled(self):
    folder_lib.write_calibration(self.root, shrink=1)
    stitcher = self.panoramas((512, 1024)).read.stitcher
    self.assertEqual((stitcher.shrink, stitcher.image_size), (2, (1400, 1400)))
    # Of 64 x 128 the images are 20 times too fine.
    self.assertEqual(self.panoramas().read.stitcher.shrink, 20)


def _fisheye_pixel(sensor: str, point: np.ndarray) -> np.ndarray:
  """Where a LiDAR point lies in a fisheye image, from the files by hand."""
  imu = folder_lib.IMU_FROM_LIDAR @ point
  seen = np.linalg.inv(folder_lib.matrix(folder_lib.CAM_TO_POSE[sensor])) @ imu
  xi, k1, k2, p1, p2, gamma1, gamma2, u0, v0 = folder_lib.lens(sensor, _SHRINK)
  x, y, z = seen[:3] / np.linalg.norm(seen[:3])
  x, y = x / (z + xi), y / (z + xi)
  r2 = x * x + y * y
  radial = 1 + k1 * r2 + k2 * r2 * r2
  dx = 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
  dy = 2 * p2 * x * y + p1 * (r2 + 2 * y * y)
  u, v = gamma1 * (x * radial + dx) + u0, gamma2 * (y * radial + dy) + v0
  return np.array([u + 0.5, v + 0.5])


class PosesTest(_RootTest):
  def path(self, name: str) -> pathlib.Path:
    return self.root / 'data_poses' / _NAME / name

  def test_either_file_does_and_both_agree(self):
    both = kitti360.load(self.root, '0003').frames
    self.path('poses.txt').rename(self.path('away'))
    alone = kitti360.load(self.root, '0003').frames
    np.testing.assert_allclose(
      alone.world_from_body, both.world_from_body, atol=1e-4
    )
    self.path('away').rename(self.path('poses.txt'))
    self.path('cam0_to_world.txt').unlink()
    alone = kitti360.load(self.root, '0003').frames
    np.testing.assert_array_equal(alone.world_from_body, both.world_from_body)
    self.path('poses.txt').unlink()
    self.assert_fails(FileNotFoundError, f'{_NAME}: no poses.txt and no cam0')

  def test_a_real_frame_agrees_only_with_rectification(self):
    # A published frame of KITTI-360, as quoted by public code.
    self.path('poses.txt').write_text(
      '3 0.6804458798 -0.7314378405 0.0446328361 3639.236961 '
      '-0.7298356009 -0.6819080306 -0.0483883609 1708.205377 '
      '0.0658285676 0.000351028 -0.9978308857 122.056814\n'
    )
    self.path('cam0_to_world.txt').write_text(
      '3 -0.705111 -2.610952e-02 0.708616 3.640277e+03 '
      '-0.709097 2.470034e-02 -0.704678 1.707084e+03 '
      '0.000896 -9.993541e-01 -0.035930 1.228091e+02 0 0 0 1\n'
    )
    frames = kitti360.load(self.root, '0003').frames
    np.testing.assert_allclose(frames.heading, np.radians(-47.3), atol=0.01)
    np.testing.assert_allclose(
      frames.position, [[3639.51, 1707.48, 122.94]], atol=0.01
    )
    path = self.root / 'calibration' / 'perspective.txt'
    rectification = folder_lib.PERSPECTIVE['R_rect_00']
    path.write_text(
      path.read_text().replace(rectification, '1 0 0 0 1 0 0 0 1')
    )
    self.assert_fails(ValueError, 'at frame 3 0.00 m apart, turned by 0.007')

  @parameterized.parameters(
    ('2 ', '2.5 ', 'line 1: expected a frame number and 12 numbers'),
    ('\n3 ', '\n2 ', 'line 2: frame 2 has a pose already'),
    (' 115.', ' ', 'line 1: expected a frame number and 12 .* found 13'),
    ('3604.0000000000', 'nan', 'line 1: expected the 12 finite numbers'),
    ('3604.0000000000', 'far', 'line 1: not numbers'),
    ('2 1.0000000000', '2 0.5', 'not a rotation in row 0'),
  )
  def test_a_bad_line_is_named(self, old, new, message):
    text = self.path('poses.txt').read_text()
    self.assertIn(old, text)
    self.path('poses.txt').write_text(text.replace(old, new, 1))
    if message.endswith('found 13'):
      text = text.replace(' 115.0000000000', '', 1)
      self.path('poses.txt').write_text(text)
      message = 'line 1: expected .* 12 numbers, found 12 words'
    self.assert_fails(ValueError, f'poses.txt.*{message}')

  def test_poses_of_another_calibration_are_refused(self):
    path = self.root / 'calibration' / 'calib_cam_to_pose.txt'
    path.write_text(path.read_text().replace('1.5752681039', '1.9752681039'))
    self.assert_fails(ValueError, 'at frame 2 0.40 m apart')

  def test_an_empty_file_is_named(self):
    self.path('poses.txt').write_text('\n')
    self.assert_fails(ValueError, 'poses.txt: no poses in the file')


class BadInputTest(_RootTest):
  def test_missing_calibration_is_named_file_by_file(self):
    for name in ('perspective.txt', 'image_03.yaml'):
      (self.root / 'calibration' / name).unlink()
    self.assert_fails(
      FileNotFoundError, r"calibration: no \['perspective.txt'\]; download"
    )
    self.assert_fails(
      FileNotFoundError,
      r"no \['perspective.txt', 'image_03.yaml'\]",
      camera='panorama',
    )

  @parameterized.parameters(
    ('perspective.txt', 'P_rect_00', 'P_rect_x', "no entry 'P_rect_00'"),
    ('perspective.txt', '0.999974', '2.999974', 'not a rotation'),
    ('calib_cam_to_velo.txt', '0.043', '0.0 0.043', 'expected the 12 finite'),
    ('calib_cam_to_velo.txt', '0.043', 'x', 'not numbers'),
    ('calib_cam_to_velo.txt', '0.0430', '0.5430', 'not a rotation'),
    ('calib_cam_to_pose.txt', 'image_00', 'image_0', "no entry 'image_00'"),
    ('calib_cam_to_pose.txt', 'image_02', 'image_09', "no entry 'image_02'"),
    ('image_02.yaml', 'MEI', 'KANNALA', "model_type 'KANNALA', expected MEI"),
    ('image_02.yaml', 'xi', 'ix', "no entry 'xi'"),
    ('image_03.yaml', 'k1: ', 'k1: none', 'not a number'),
    ('image_03.yaml', '   p1: ', '   k2: 7\n   p1: ', 'k2 is there twice'),
    ('image_03.yaml', '   p1: ', '   k3: 7\n   p1: ', 'k3 = 7: MEI has k1'),
    ('image_03.yaml', 'width: 140', 'width: 70', 'not the lens of a 70x140'),
    ('image_03.yaml', 'gamma1: ', 'gamma1: -', 'not the lens'),
  )
  def test_a_bad_calibration_is_named(self, name, old, new, message):
    path = self.root / 'calibration' / name
    text = path.read_text()
    self.assertIn(old, text)
    path.write_text(text.replace(old, new))
    self.assert_fails(ValueError, f'{name}.*{message}', camera='panorama')

  def test_an_inverted_matrix_is_refused_by_where_it_points(self):
    path = self.root / 'calibration' / 'calib_cam_to_velo.txt'
    inverse = np.linalg.inv(folder_lib.matrix(folder_lib.CAM_TO_VELO))
    path.write_text(' '.join(map(str, inverse[:3].ravel())))
    self.assert_fails(ValueError, 'the camera looks along .* LiDAR forward')

  def test_exchanged_fisheyes_are_refused_by_where_they_look(self):
    path = self.root / 'calibration' / 'calib_cam_to_pose.txt'
    text = path.read_text().replace('image_02', 'image_04')
    text = text.replace('image_03', 'image_02').replace('image_04', 'image_03')
    path.write_text(text)
    kitti360.load(self.root, '0003')
    self.assert_fails(
      ValueError,
      'image_02: the camera looks along .* IMU left',
      camera='panorama',
    )

  def test_truncated_scans_are_named_before_training_starts(self):
    self.scan(2).write_bytes(self.scan(2).read_bytes()[:-3])
    self.assert_fails(ValueError, f'1 of 3 scans .*{self.scan(2)}: truncated')

  def test_a_damaged_image_is_named(self):
    path = self.image('image_02', 3)
    path.write_bytes(path.read_bytes()[:100])
    dataset = self.panoramas()
    with self.assertRaisesRegex(ValueError, f'{path}: the image does not de'):
      dataset.read(1)

  def test_only_another_camera_is_named(self):
    shutil.rmtree(self.root / 'data_2d_raw' / _NAME / 'image_00')
    self.assert_fails(FileNotFoundError, "no images in image_00, but in .*_02'")
    shutil.rmtree(self.root / 'data_2d_raw' / _NAME / 'image_03')
    self.assert_fails(
      FileNotFoundError, 'no images in image_03', camera='panorama'
    )

  def test_a_sequence_that_was_not_downloaded_is_named(self):
    self.assert_fails(
      FileNotFoundError, 'drive_0009_sync: no poses.txt', split='0009'
    )

  @parameterized.parameters(
    (dict(camera='stereo'), r"camera='stereo'; known: \['perspective', 'pan"),
    (dict(points='mesh'), r"points='mesh'; known: \['scan', 'submap'\]"),
    (dict(points='submap'), "points='submap' needs a folder"),
    (dict(without='ground'), "without='ground' is for points='submap'"),
    (dict(without='sky'), r"without='sky'; known: \['ground', 'outliers'\]"),
  )
  def test_an_unknown_option_is_named(self, options, message):
    self.assert_fails(ValueError, message, **options)


if __name__ == '__main__':
  absltest.main()
