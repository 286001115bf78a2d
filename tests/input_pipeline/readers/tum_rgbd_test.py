# SPDX-License-Identifier: Apache-2.0
"""Tests of the TUM RGB-D reader, on hand-made folders and on real frames."""

import os
import pathlib
import pickle
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import PIL.Image
from scipy.spatial import transform

from i2ploc import lens_files
from i2ploc.geometry import lens as lens_lib
from input_pipeline.readers import tum_files
from input_pipeline.readers import tum_rgbd
from tests import shared

# Images every 40 ms, depth 15 ms later, poses every 10 ms: at x = t, turned
# about z by t radians.
_TIMES = 100 + 0.04 * np.arange(4)


def _write_lists(folder, times=_TIMES, depth_times=_TIMES + 0.015):
  for name, stamps in (('rgb', times), ('depth', depth_times)):
    (folder / name).mkdir(exist_ok=True)
    lines = ['# timestamp filename']
    for i, stamp in enumerate(stamps):
      file = f'{name}/{stamp:.6f}.png'
      lines.append(f'{stamp:.6f} {file}')
      if name == 'rgb':
        picture = np.full((6, 8, 3), 10 + i, np.uint8)
      else:
        picture = np.full((6, 8), 5000 + i, np.uint16)
      PIL.Image.fromarray(picture).save(folder / file)
    (folder / f'{name}.txt').write_text('\n'.join(lines) + '\n')


def _write_poses(folder, stamps=None):
  stamps = 99.9 + 0.01 * np.arange(40) if stamps is None else stamps
  lines = ['# timestamp tx ty tz qx qy qz qw']
  for t in stamps:
    half = (t - 100) / 2
    lines.append(
      f'{t:.6f} {t - 100:.9f} 2 3 0 0 {np.sin(half):.9f} {np.cos(half):.9f}'
    )
  (folder / 'groundtruth.txt').write_text('\n'.join(lines) + '\n')


class _FolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enterContext(tempfile.TemporaryDirectory(prefix='tum_'))
    self.folder = pathlib.Path(root) / 'rgbd_dataset_freiburg2_test'
    self.folder.mkdir()
    _write_lists(self.folder)
    _write_poses(self.folder)

  def edit(self, name, *replacements):
    path = self.folder / name
    text = path.read_text()
    for old, new in replacements:
      self.assertIn(old, text)
      text = text.replace(old, new, 1)
    path.write_text(text)

  def assert_fails(self, error, message, **arguments):
    with self.assertRaisesRegex(error, message):
      tum_rgbd.load(self.folder, **arguments)


class LoadTest(_FolderTest):
  def test_frames_come_back_as_written(self):
    found = tum_rgbd.load(self.folder)
    np.testing.assert_allclose(found.timestamp, _TIMES)
    self.assertTrue(found.has_image.all() and found.has_depth.all())
    sample = found.read(2)
    np.testing.assert_array_equal(sample['image'], np.full((6, 8, 3), 12))
    np.testing.assert_allclose(sample['depth'], 5002 / 5000, rtol=1e-6)
    self.assertEqual(sample['depth'].dtype, np.float32)

  def test_poses_are_interpolated(self):
    _write_poses(self.folder, 99.987 + 0.03 * np.arange(10))
    found = tum_rgbd.load(self.folder)
    away = _TIMES - 100
    np.testing.assert_allclose(
      found.world_from_camera[:, 0, 3], away, atol=1e-6
    )
    turn = transform.Rotation.from_rotvec(away[:, None] * [0, 0, 1])
    np.testing.assert_allclose(
      found.world_from_camera[:, :3, :3], turn.as_matrix(), atol=1e-6
    )

  def test_a_quaternion_and_its_negative_are_one_rotation(self):
    expected = tum_rgbd.load(self.folder).world_from_camera
    path = self.folder / 'groundtruth.txt'
    lines = [line.split() for line in path.read_text().splitlines()]
    for words in lines[1::2]:
      words[4:] = [str(-float(word)) for word in words[4:]]
    _write_lists(self.folder, times=_TIMES + 0.005)
    path.write_text('\n'.join(map(' '.join, lines)))
    found = tum_rgbd.load(self.folder).world_from_camera
    turn = np.swapaxes(expected[:, :3, :3], 1, 2) @ found[:, :3, :3]
    np.testing.assert_allclose(turn[:, 1, 0], np.sin(0.005), atol=1e-6)

  def test_at_a_hole_the_nearest_pose_is_taken(self):
    _write_poses(self.folder, [99.99, 100.185])
    found = tum_rgbd.load(self.folder)
    np.testing.assert_allclose(found.timestamp, _TIMES[:1])
    np.testing.assert_allclose(found.world_from_camera[0, 0, 3], -0.01)

  def test_frames_without_a_pose_are_left_out_and_counted(self):
    _write_poses(self.folder, [100.0, 100.01, 100.02])
    with self.assertLogs(level='WARNING') as logs:
      found = tum_rgbd.load(self.folder)
    np.testing.assert_allclose(found.timestamp, _TIMES[:2])
    self.assertRegex(logs.output[0], 'left out 2 of 4 frames.*100.08')

  def test_depth_belongs_to_the_nearest_image_once(self):
    _write_lists(self.folder, depth_times=[100.005, 100.03, 100.045, 100.2])
    found = tum_rgbd.load(self.folder)
    self.assertEqual(found.has_depth.tolist(), [True, True, False, False])
    self.assertEqual(found.depths[1].stem, '100.045000')
    _write_lists(self.folder, depth_times=[100.021])
    found = tum_rgbd.load(self.folder)
    self.assertEqual(found.has_depth.tolist(), [False, True, False, False])
    _write_lists(self.folder, depth_times=[100.02])
    self.assertEqual(tum_rgbd.load(self.folder).has_depth.sum(), 1)

  def test_associations_stand_for_the_lists(self):
    lines = [
      f'{t:.6f} rgb/{t:.6f}.png {t + 0.015:.6f} depth/{t + 0.015:.6f}.png'
      for t in _TIMES
    ]
    (self.folder / 'associations.txt').write_text('\n'.join(lines))
    expected = tum_rgbd.load(self.folder)
    for gone in ('depth.txt', 'rgb.txt'):
      (self.folder / gone).unlink()
      found = tum_rgbd.load(self.folder)
      self.assertEqual(found.images, expected.images)
      self.assertEqual(found.depths, expected.depths)

  def test_without_depth_there_are_still_images(self):
    (self.folder / 'depth.txt').unlink()
    found = tum_rgbd.load(self.folder)
    self.assertFalse(found.has_depth.any())
    with self.assertRaisesRegex(ValueError, 'Frame 0 of .* has no depth'):
      found.read(0)
    self.assertEqual(found.read(0, ('image',)).keys(), {'image'})

  def test_images_that_are_not_there_are_counted(self):
    os.remove(next((self.folder / 'rgb').iterdir()))
    with self.assertLogs(level='WARNING') as logs:
      found = tum_rgbd.load(self.folder)
    self.assertEqual(found.has_image.sum(), 3)
    self.assertRegex(logs.output[0], '1 of 4 listed colour images')

  def test_the_table_can_be_sent_to_a_worker_process(self):
    found = pickle.loads(pickle.dumps(tum_rgbd.load(self.folder)))
    self.assertEqual(found.read(0)['image'].shape, (6, 8, 3))

  def test_the_order_of_the_lines_does_not_matter(self):
    path = self.folder / 'rgb.txt'
    lines = path.read_text().splitlines()
    path.write_text('\n'.join(lines[:1] + lines[:0:-1]))
    np.testing.assert_allclose(tum_rgbd.load(self.folder).timestamp, _TIMES)


class StreamsTest(_FolderTest):
  """Poses as other programs write them: right, or refused in a line."""

  def rewrite(self, change, header='', name='groundtruth.txt'):
    """Changes the numbers [N, 8] of the poses, or the times of a list."""
    path = self.folder / name
    rows = [line.split() for line in path.read_text().splitlines()[1:]]
    width = 8 if name == 'groundtruth.txt' else 1
    table = change(np.array([[float(x) for x in r[:width]] for r in rows]))
    lines = [header] if header else []
    for row, words in zip(table, rows, strict=True):
      lines.append(' '.join([*(f'{x:.9f}' for x in row), *words[width:]]))
    path.write_text('\n'.join(lines) + '\n')

  @parameterized.parameters(1e3, 1e6, 1e9)
  def test_poses_and_images_in_other_units_of_time(self, factor):
    expected = tum_rgbd.load(self.folder)
    shift = 1.6e9 - 100
    for name in ('rgb.txt', 'depth.txt'):
      self.rewrite(lambda t: t + shift, '#', name)
    scale = np.array([factor] + [1] * 7)
    self.rewrite(lambda t: (t + [shift, *[0] * 7]) * scale)
    found = tum_rgbd.load(self.folder)
    np.testing.assert_allclose(found.timestamp, _TIMES + shift, atol=1e-6)
    np.testing.assert_allclose(
      found.world_from_camera, expected.world_from_camera, atol=1e-4
    )

  def test_disjoint_clocks(self):
    self.rewrite(lambda t: t + [7200, *[0] * 7])
    self.assert_fails(
      ValueError, r'none of 4 images has.*\(2 hours: time zones.\)'
    )

  def test_millimetres(self):
    self.rewrite(lambda t: t * [1, *[1000] * 3, *[1] * 4])
    self.assert_fails(ValueError, 'groundtruth.txt: positions move by 1000 a s')

  def test_one_time_at_two_places(self):
    self.edit('groundtruth.txt', ('99.920000 -0.08', '99.910000 2.08'))
    self.assert_fails(ValueError, 'line 4: the time 99.91.* a place 2.1')

  def turned(self, order):
    """A camera that is carried once around, quaternions in an order."""
    angle = np.linspace(0, 5, 400)
    place = np.stack([np.sin(angle), 1 - np.cos(angle), 0 * angle], 1)
    turn = transform.Rotation.from_rotvec(np.outer(angle, [0, 0, 1]))
    level = transform.Rotation.from_matrix([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    quaternion = (turn * level).as_quat()[:, order]
    times = 99.9 + 0.01 * np.arange(400)
    rows = np.concatenate([times[:, None], place, quaternion], 1)
    lines = [' '.join(f'{x:.9f}' for x in row) for row in rows]
    return '\n'.join(lines)

  def test_quaternions_with_w_first(self):
    path = self.folder / 'groundtruth.txt'
    path.write_text(self.turned([0, 1, 2, 3]))
    expected = tum_rgbd.load(self.folder).world_from_camera
    text = self.turned([3, 0, 1, 2])
    path.write_text(text)
    self.assert_fails(
      ValueError, "read as w, x, y, z it stays .*Write '# timestamp tx ty tz qw"
    )
    path.write_text('# timestamp tx ty tz qw qx qy qz\n' + text)
    found = tum_rgbd.load(self.folder).world_from_camera
    np.testing.assert_allclose(found, expected, atol=1e-6)

  def test_images_that_no_list_names(self):
    (self.folder / 'rgb' / 'more.png').touch()
    with self.assertLogs(level='WARNING') as logs:
      tum_rgbd.load(self.folder)
    self.assertRegex(logs.output[0], 'passed over 1 .png, which no list names')


class LensTest(_FolderTest):
  def test_the_name_tells_the_camera(self):
    lens = tum_files.published_lens(self.folder.name)
    self.assertEqual(lens.model, 'opencv')
    self.assertEqual(lens.intrinsics[0].tolist(), [520.9, 0, 325.6])
    third = tum_files.published_lens('rgbd_dataset_freiburg3_desk')
    self.assertEqual((third.model, third.distortion.size), ('pinhole', 0))
    with self.assertRaisesRegex(
      ValueError, "'desk' has none of.*data.lens=FILE"
    ):
      tum_files.published_lens('desk')

  def test_a_settings_file_says_what_a_depth_is(self):
    path = self.folder / 'TUM.yaml'
    path.write_text(
      '%YAML:1.0\n# Camera\nCamera.fx: 5.5\nCamera.fy: 5\nCamera.cx: 3.5\n'
      'Camera.cy: 2.5\nCamera.k1: 0.1\nDepthMapFactor: 1000\n'
    )
    calibration = lens_files.load_calibration(path)
    found = tum_rgbd.load(self.folder, calibration=calibration)
    self.assertIs(found.rig.lens, calibration.lens)
    depth = found.read(2, ('depth',))['depth']
    np.testing.assert_allclose(depth, 5.002, rtol=1e-6)


class SizeTest(_FolderTest):
  """Images of 8 x 6 pixels are the calibrated 640 x 480, 80 times smaller."""

  def test_the_lens_is_scaled_to_the_images(self):
    rig = tum_rgbd.load(self.folder).rig
    self.assertEqual(rig.image_size, (6, 8))
    np.testing.assert_allclose(
      80 * rig.lens.intrinsics[:2], [[520.9, 0, 325.6], [0, 521, 250.2]]
    )
    self.assertEqual(rig.lens.distortion.size, 5)

  def test_a_settings_file_may_tell_the_size(self):
    path = self.folder / 'TUM.yaml'
    path.write_text(
      'Camera.fx: 5\nCamera.fy: 5\nCamera.cx: 3.5\nCamera.cy: 2.5\n'
      'Camera.width: 16\nCamera.height: 12\n'
    )
    lens, size, _ = lens_files.load_calibration(path)
    self.assertEqual(size, (12, 16))
    whole = lens._replace(intrinsics=lens.intrinsics * [[2], [2], [1]])
    calibration = lens_files.Calibration(whole, size)
    rig = tum_rgbd.load(self.folder, calibration=calibration).rig
    np.testing.assert_allclose(rig.lens.intrinsics, lens.intrinsics)
    calibration = lens_files.Calibration(lens)
    rig = tum_rgbd.load(self.folder, calibration=calibration).rig
    self.assertIs(rig.lens, lens)

  def write(self, name, size, value):
    paths = sorted((self.folder / name).iterdir())
    for path in paths:
      PIL.Image.fromarray(np.full(size, value)).save(path)
    return paths

  def test_cropped_images_are_refused(self):
    self.write('rgb', (60, 120, 3), np.uint8(1))
    self.assert_fails(
      ValueError, 'an image of 120x60, but the published lens is of 640x480'
    )

  def test_depth_of_another_size_is_refused(self):
    found = tum_rgbd.load(self.folder)
    first, *_ = self.write('depth', (12, 16), np.uint16(5))
    with self.assertRaisesRegex(
      ValueError, r'depth/.*: an image of 16x12, where .* has images of 8x6'
    ):
      found.read(0)
    self.assert_fails(ValueError, f'{first}: an image of 16x12, where')

  def test_one_image_of_another_size_is_refused(self):
    found = tum_rgbd.load(self.folder)
    PIL.Image.new('RGB', (16, 12)).save(found.images[2])
    with self.assertRaisesRegex(ValueError, 'an image of 16x12, where'):
      found.read(2)
    self.assert_fails(ValueError, 'an image of 16x12, where')

  def test_without_images_the_calibrated_size_stands(self):
    for name in ('rgb', 'depth'):
      for path in (self.folder / name).iterdir():
        path.unlink()
    rig = tum_rgbd.load(self.folder).rig
    self.assertEqual(rig.image_size, (480, 640))
    self.assertEqual(rig.lens.intrinsics[0, 0], 520.9)


class RefusalTest(_FolderTest):
  def test_missing_files(self):
    (self.folder / 'groundtruth.txt').unlink()
    self.assert_fails(FileNotFoundError, 'groundtruth.txt; download it')
    (self.folder / 'rgb.txt').unlink()
    self.assert_fails(FileNotFoundError, 'no rgb.txt and no associations.txt')
    with self.assertRaisesRegex(FileNotFoundError, 'There is no folder'):
      tum_rgbd.load(self.folder / 'nowhere')

  @parameterized.parameters(
    ('groundtruth.txt', ' 2 3 ', ' 2 ', 'line 2: 7 numbers, expected 8'),
    ('groundtruth.txt', ' 2 3 ', ' 2 x ', 'line 2: not numbers'),
    ('groundtruth.txt', ' 2 3 ', ' 2 nan ', 'line 2: non-finite'),
    ('groundtruth.txt', ' 0 0 ', ' 0 1 ', 'line 2: a quaternion of length 1.4'),
    ('groundtruth.txt', '99.910000', '99.890000', 'line 3: the time 99.89'),
    ('rgb.txt', '100.040000 ', '', 'line 3: 1 words, expected timestamp file'),
    ('rgb.txt', '100.040000 ', 'soon ', 'line 3: not numbers'),
    ('rgb.txt', '100.040000 ', '100.000000 ', 'time 100.000000 is listed twi'),
  )
  def test_malformed_lines_are_named(self, name, old, new, message):
    self.edit(name, (old, new))
    self.assert_fails(ValueError, f'{name}.*{message}')

  def test_a_time_that_occurs_twice_counts_once(self):
    self.edit('groundtruth.txt', ('99.920000', '99.910000'))
    with self.assertLogs(level='WARNING') as logs:
      stamps, _ = tum_files.read_trajectory(self.folder / 'groundtruth.txt')
    self.assertLen(stamps, 39)
    self.assertRegex(logs.output[0], '1 times occur twice .first: 99.91')

  def test_empty_lists_and_binary_files(self):
    (self.folder / 'rgb.txt').write_text('# nothing\n\n')
    self.assert_fails(ValueError, 'rgb.txt: no entries')
    (self.folder / 'rgb.txt').write_bytes(b'\xff\xfe\x00')
    self.assert_fails(ValueError, 'rgb.txt: not a text file')

  def test_poses_of_another_sequence(self):
    _write_poses(self.folder, 500 + 0.01 * np.arange(9))
    self.assert_fails(
      ValueError,
      'none of 4 images has.* 100.000 to 100.120 s and 500.000 to 500.080',
    )

  def test_damaged_depth(self):
    found = tum_rgbd.load(self.folder)
    PIL.Image.fromarray(np.zeros((6, 8), np.uint8)).save(found.depths[0])
    with self.assertRaisesRegex(ValueError, 'mode L, expected 16-bit grey'):
      found.read(0)
    found.depths[1].write_bytes(found.depths[1].read_bytes()[:40])
    with self.assertRaisesRegex(ValueError, 'does not decode'):
      found.read(1)
    with self.assertRaisesRegex(ValueError, r"Asked for \['points'\]"):
      found.read(2, ('points',))


class RealTest(absltest.TestCase):
  def test_real_images_and_poses(self):
    folder = shared.require(
      'data/tum_rgbd/rgbd_dataset_freiburg3_long_office_household'
    )
    found = tum_rgbd.load(folder)
    self.assertEqual(found.has_image.sum(), 19)  # of 20, one before all poses
    row = int(np.flatnonzero(found.has_image)[3])
    sample = found.read(row, ('image',))
    self.assertEqual(sample['image'].shape, (480, 640, 3))
    self.assertEqual(found.rig.image_size, (480, 640))
    self.assertAlmostEqual(found.rig.lens.intrinsics[0, 2], 320.6)

  def test_poses_are_those_of_another_program(self):
    folder = shared.require('data/objects/tum_fr2_desk')
    found = tum_rgbd.load(
      folder,
      calibration=lens_files.load_calibration(folder / 'TUM2.yaml'),
    )
    fixture = np.load(folder / 'fixture.npz')
    stamps = fixture['timestamps']
    rows = np.searchsorted(found.timestamp, stamps - 1e-4)
    rows = np.minimum(rows, len(found.timestamp) - 1)
    both = np.abs(found.timestamp[rows] - stamps) < 1e-3
    self.assertGreater(both.mean(), 0.98)
    poses = found.world_from_camera[rows[both]]
    shift = np.linalg.norm(poses[:, :3, 3] - fixture['C_w'][both], axis=-1)
    turn = np.abs(poses[:, :3, :3] - fixture['R_wc'][both]).max((1, 2))
    self.assertLess(np.quantile(shift, 0.99), 0.01)
    self.assertLess(np.quantile(turn, 0.99), 0.01)

  def test_depth_agrees_between_frames(self):
    source = shared.require('data/tum_rgbd/freiburg3_cabinet_58')
    with tempfile.TemporaryDirectory() as root:
      folder = pathlib.Path(root) / 'freiburg3_cabinet'
      folder.mkdir()
      lines = (source / 'truth_cam_poses.txt').read_text().splitlines()
      (folder / 'groundtruth.txt').write_text('\n'.join(lines))
      rows = []
      for i, line in enumerate(lines):
        stamp = line.split()[0]
        depth = source / 'depth_imgs' / f'{i:04d}_depth_raw.png'
        rows.append(f'{stamp} rgb/{i}.png {stamp} {depth}')
      (folder / 'associations.txt').write_text('\n'.join(rows))
      found = tum_rgbd.load(folder)
      self.assertLess(_depth_disagreement(found, 0, 1), 0.06)
      # With the poses the wrong way round nothing fits.
      inverted = np.linalg.inv(found.world_from_camera)
      wrong = tum_rgbd.dataclasses.replace(found, world_from_camera=inverted)
      self.assertGreater(_depth_disagreement(wrong, 0, 1), 0.1)


def _depth_disagreement(recording, first, second):
  """Median metres between a depth image and another one moved to it."""
  one, other = (
    recording.read(row, ('depth',))['depth'] for row in (first, second)
  )
  intrinsics = recording.rig.lens.intrinsics
  rows, columns = np.nonzero(one[::4, ::4])
  pixels = np.stack([columns, rows], -1) * 4 + 0.5
  rays, _ = lens_lib.rays_from_pixels(recording.rig.lens, pixels)
  depth = one[::4, ::4][rows, columns]
  points = rays / rays[:, 2:] * depth[:, None]
  second_from_first = (
    np.linalg.inv(recording.world_from_camera[second])
    @ recording.world_from_camera[first]
  )
  points = points @ second_from_first[:3, :3].T + second_from_first[:3, 3]
  seen = points @ intrinsics.T
  at = np.floor(seen[:, :2] / seen[:, 2:]).astype(int)
  inside = (at >= 0).all(1) & (at < [640, 480]).all(1) & (points[:, 2] > 0)
  measured = other[at[inside, 1], at[inside, 0]]
  error = np.abs(measured - points[inside, 2])[measured > 0]
  return np.median(error)


if __name__ == '__main__':
  absltest.main()
