# SPDX-License-Identifier: Apache-2.0
"""What users bring to the readers of drives: right, or refused in one line.

A sequence in KITTI's layout with one fault at a time; what is read is compared
with what the unharmed files give.
"""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import PIL.Image
import pypcd4

from input_pipeline import readings as readings_lib
from input_pipeline.readers import kitti_odometry
from input_pipeline.readers import kitti_raw
from tests.input_pipeline.readers import kitti_folder

_FRAMES = 30
_TR = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, -0.3], [0, 0, 0, 1.0]])
# A street corner, 10 m/s at 10 Hz.
_HEADING = 1.4 * np.tanh((np.arange(_FRAMES) - 15) / 4)


def lidar_poses() -> np.ndarray:
  """world_from_lidar [F, 4, 4]; the first is the identity."""
  poses = np.tile(np.eye(4), (_FRAMES, 1, 1))
  cos, sin = np.cos(_HEADING), np.sin(_HEADING)
  poses[:, 0, 0] = poses[:, 1, 1] = cos
  poses[:, 1, 0], poses[:, 0, 1] = sin, -sin
  poses[1:, :2, 3] = np.cumsum(np.stack([cos, sin], 1)[1:], axis=0)
  return np.linalg.inv(poses[0]) @ poses


def camera_poses() -> np.ndarray:
  """As poses/03.txt has them, [F, 4, 4]."""
  return _TR @ lidar_poses() @ np.linalg.inv(_TR)


class SequenceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='streams_'))
    )
    self.folder = kitti_folder.make_sequence(self.root)
    for i in range(_FRAMES):
      kitti_folder.write_frame(self.folder, i)
    self.write_times(0.1 * np.arange(_FRAMES))
    self.write_poses(camera_poses())

  def write_times(self, times, digits=6):
    lines = [f'{t:.{digits}f}\n' for t in times]
    (self.folder / 'times.txt').write_text(''.join(lines))

  def write_poses(self, poses, digits=9):
    rows = poses[:, :3].reshape(len(poses), 12)
    lines = [' '.join(f'{x:.{digits}f}' for x in row) + '\n' for row in rows]
    (self.root / 'poses' / '03.txt').write_text(''.join(lines))

  def scan(self, frame, suffix='.bin') -> pathlib.Path:
    return self.folder / 'velodyne' / f'{frame:06d}{suffix}'

  def image(self, frame, suffix='.png') -> pathlib.Path:
    return self.folder / 'image_0' / f'{frame:06d}{suffix}'

  def load(self):
    return kitti_odometry.load(self.root, '03', camera=0)

  def refuse(self, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      self.load()
    self.assertNotIn('\n', str(caught.exception))

  def warned(self) -> str:
    """The one line about the drive."""
    with self.assertLogs(level='WARNING') as logs:
      self.load()
    (line,) = [line for line in logs.output if 'Drive 03: ' in line]
    return line


class TimesTest(SequenceTest):
  def test_the_unharmed_sequence(self):
    frames = self.load().frames
    np.testing.assert_allclose(frames.world_from_body, lidar_poses(), atol=1e-6)
    np.testing.assert_allclose(frames.timestamp, 0.1 * np.arange(_FRAMES))

  @parameterized.parameters(1.0, 1e3, 1e6, 1e9)
  def test_times_since_1970_in_any_unit(self, factor):
    self.write_times((1.6e9 + 0.1 * np.arange(_FRAMES)) * factor, digits=0
                     if factor > 1 else 3)  # fmt: skip
    seconds = self.load().frames.timestamp
    np.testing.assert_allclose(np.diff(seconds), 0.1, atol=1e-5)
    np.testing.assert_allclose(seconds[0], 1.6e9)

  def test_milliseconds_since_any_time(self):
    self.write_times(100 * np.arange(_FRAMES), digits=0)
    self.refuse(r'times.txt: 100 from one .* milliseconds, divide by 1000')

  def test_unsorted_and_doubled_times(self):
    times = 0.1 * np.arange(_FRAMES)
    times[7] = times[6]
    self.write_times(times)
    self.assertIn('1 have no timestamp, interpolated', self.warned())
    np.testing.assert_allclose(
      self.load().frames.timestamp, 0.1 * np.arange(_FRAMES)
    )
    times[[8, 9]] = times[[9, 8]]
    self.write_times(times)
    self.refuse('times.txt, line 10: the time 0.8.* comes before that of')
    self.write_times(np.floor(0.1 * np.arange(_FRAMES)))
    self.refuse('times.txt: 27 of 30 times occur twice')


class PosesTest(SequenceTest):
  def test_millimetres(self):
    poses = camera_poses()
    poses[:, :3, 3] *= 1000
    self.write_poses(poses)
    self.refuse('03.txt: positions move by .* Divide millimetres by 1000')
    (self.folder / 'times.txt').unlink()
    self.refuse('03.txt: positions move by .* a frame, .*millimetres')

  def test_degrees(self):
    poses = camera_poses()
    # East is -x of this camera's world, and north is z.
    poses[:, 0, 3] = -8.4 + 1e-5 * poses[:, 0, 3]
    poses[:, 2, 3] = 49 + 1e-5 * poses[:, 2, 3]
    self.write_poses(poses)
    self.refuse('03.txt: x from 4.* look like degrees')

  def test_inverse_poses(self):
    self.write_poses(np.linalg.inv(camera_poses()))
    self.refuse('03.txt: headings do not follow the path .*body_from_world')

  def test_utm_keeps_centimetres(self):
    offset = np.array([455000.0, 5427000.0, 110.0])
    moved = camera_poses()
    moved[:, :3, 3] += _TR[:3, :3] @ offset
    self.write_poses(moved)
    dataset = self.load()
    expected = lidar_poses()[:, :3, 3]
    found = dataset.frames.position - dataset.frames.position[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # As the device gets them.
    readings = readings_lib.Readings(dataset, (16, 24), 4, None)
    places = np.stack(
      [readings.image(i)['image_position'] for i in range(_FRAMES)]
    )
    self.assertEqual(places.dtype, np.float32)
    np.testing.assert_allclose(places - places[0], expected, atol=1e-4)

  def test_poses_that_went_through_32_bits(self):
    poses = camera_poses()
    poses[:, :3, 3] += _TR[:3, :3] @ [455000.1, 5427000.2, 110.3]
    poses[:, :3, 3] = poses[:, :3, 3].astype(np.float32)
    self.write_poses(poses)
    self.refuse('03.txt: coordinates up to 542.* rounded to 0.5 m')

  def test_every_second_pose_alone(self):
    self.write_poses(camera_poses()[::2])
    self.refuse('03.txt: 15 rows, but frames 0 to 29; the row is the frame')


class FilesTest(SequenceTest):
  @parameterized.parameters('.PNG', '.jpeg', '.JPG', '.webp')
  def test_images_of_other_suffixes(self, suffix):
    expected = self.load().read(3, ('image',))['image']
    for i in range(_FRAMES):
      PIL.Image.open(self.image(i)).save(self.image(i, suffix))
      self.image(i).unlink()
    dataset = self.load()
    self.assertTrue(dataset.frames.has_image.all())
    found = dataset.read(3, ('image',))['image']
    np.testing.assert_allclose(found, expected, atol=3)

  @parameterized.parameters('.pcd', '.ply', '.npy', '.BIN')
  def test_scans_of_other_suffixes(self, suffix):
    expected = self.load()
    expected = [expected.read(i, ('points',))['points'] for i in (0, 3)]
    for i in range(_FRAMES):
      points = np.fromfile(self.scan(i), '<f4').reshape(-1, 4)
      self.scan(i).unlink()
      path = self.scan(i, suffix)
      if suffix == '.BIN':
        points.tofile(path)
      elif suffix == '.npy':
        np.save(path, points)
      elif suffix == '.pcd':
        names = ('x', 'y', 'z', 'intensity')
        cloud = pypcd4.PointCloud.from_points(points, names, [np.float32] * 4)
        cloud.save(path)
      else:
        lines = ['ply', 'format ascii 1.0', f'element vertex {len(points)}']
        lines += [f'property float {name}' for name in ('x', 'y', 'z', 'i')]
        lines += ['end_header', *(' '.join(map(str, row)) for row in points)]
        path.write_text('\n'.join(lines) + '\n')
    found = self.load()
    self.assertTrue(found.frames.has_points.all())
    for row, points in zip((0, 3), expected, strict=True):
      np.testing.assert_array_equal(
        found.read(row, ('points',))['points'], points
      )

  def test_a_suffix_that_nobody_reads(self):
    for i in range(_FRAMES):
      self.scan(i).rename(self.scan(i, '.las'))
    self.refuse(
      'velodyne: 30 .las, expected files that end in .bin, .npy, .pcd'
    )

  def test_frames_in_a_sub_folder(self):
    (self.folder / 'image_0' / 'part_2').mkdir()
    for i in range(15, _FRAMES):
      self.image(i).rename(self.folder / 'image_0/part_2' / self.image(i).name)
    self.refuse('part_2: 15 files in a sub-folder')

  def test_names_with_blanks(self):
    self.image(3).rename(self.folder / 'image_0' / '0000 03.png')
    self.refuse('0000 03.png: the name is not a frame number')

  def test_half_of_the_images(self):
    for i in range(0, _FRAMES, 2):
      self.image(i).unlink()
    (self.folder / 'image_0' / 'notes.txt').touch()
    line = self.warned()
    self.assertIn(
      '30 frames (15 with both sensors, 0 image only, 15 scan only); 15 have no'
      ' image (first: 0); ',
      line,
    )
    self.assertIn('passed over 1 .txt', line)
    frames = self.load().frames
    np.testing.assert_array_equal(frames.has_image, np.arange(_FRAMES) % 2 == 1)

  def test_gaps(self):
    for i in range(10, 20):
      self.image(i).unlink()
      self.scan(i).unlink()
    self.assertIn('no file for 10 numbers between', self.warned())

  def test_images_and_scans_that_are_numbered_apart(self):
    for i in range(_FRAMES // 2):
      self.image(i).unlink()
      self.scan(i + _FRAMES // 2).unlink()
    self.refuse('images 15 to 29 and scans 0 to 14 have no frame number in')


class RawTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='streams_'))
    )
    self.folder = kitti_folder.make_drive(self.root)

  def refuse(self, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      kitti_raw.load(self.root)
    self.assertNotIn('\n', str(caught.exception))

  def test_clocks_of_two_time_zones(self):
    path = self.folder / 'velodyne_points' / 'timestamps.txt'
    path.write_text(path.read_text().replace(' 13:', ' 15:'))
    self.refuse(r'velodyne_points/timestamps.txt and .*image_02/timestamps.txt:'
                r' .* -7200.000 s apart \(-2 hours: time zones')  # fmt: skip

  def test_oxts_in_degrees(self):
    path = self.folder / 'oxts' / 'data' / f'{1:010d}.txt'
    kitti_folder.write(path, kitti_folder.oxts(49, 8, 110, 0.1, 0.2, 87.5))
    self.refuse('0000000001.txt: roll, pitch, yaw 0.1, 0.2, 87.5, expected rad')


if __name__ == '__main__':
  absltest.main()
