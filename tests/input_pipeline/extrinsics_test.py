# SPDX-License-Identifier: Apache-2.0
"""True rigs pass; wrong ones are refused with what tells."""

import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy.spatial import transform

from i2ploc.geometry import lens as lens_lib
from input_pipeline import datasets
from input_pipeline import extrinsics
from input_pipeline import schema
from input_pipeline.readers import kitti_odometry
from input_pipeline.readers import kitti_raw
from tests import shared

SIZE = 64, 208
LENS = lens_lib.Lens(
  'pinhole', np.array([[120.0, 0, 104], [0, 120, 32], [0, 0, 1]])
)


_HALF_PIXEL = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])


def motion(rotation, translation):
  matrix = np.eye(4)
  matrix[:3, :3], matrix[:3, 3] = rotation, translation
  return matrix


AXES = schema.CAMERA_AXES[:3, :3]
TRUE = motion(AXES, [0.05, -0.08, -0.27])


def street(count=4000):
  """Returns of a LiDAR on a road between houses, all around."""
  rng = np.random.default_rng(0)
  azimuth = rng.uniform(-np.pi, np.pi, count)
  elevation = np.radians(rng.uniform(-24.8, 2, count))
  ray = np.stack(
    [
      np.cos(elevation) * np.cos(azimuth),
      np.cos(elevation) * np.sin(azimuth),
      np.sin(elevation),
    ],
    -1,
  )
  wall = 10 / np.maximum(np.abs(ray[:, 1]), 0.1)
  ground = 1.7 / np.maximum(-ray[:, 2], 0.02)
  return (ray * np.minimum(wall, ground)[:, None]).astype(np.float32)


def dataset_of(points, camera_from_lidar, lens=LENS, size=SIZE, num_drives=1):
  """Ten frames per drive, all with the same scan; counts what is read."""
  count = 10 * num_drives
  drive = np.repeat([f'd{i}' for i in range(num_drives)], 10)
  frame = np.tile(np.arange(10), num_drives)
  reads = []

  def read(row, what):
    reads.append(row)
    return {'points': points}

  frames = schema.FrameTable(
    town=drive,
    drive=drive,
    frame=frame,
    timestamp=np.arange(count) / 10,
    world_from_body=np.tile(np.eye(4), (count, 1, 1)),
    has_image=np.ones(count, bool),
    has_points=np.ones(count, bool),
    name=schema.frame_names(drive, frame),
  )
  rigs = dict.fromkeys(
    drive.tolist(), schema.Rig(lens, size, camera_from_lidar)
  )
  return schema.Dataset('test', frames, rigs, read), reads


def check(camera_from_lidar, points=None, **arguments):
  points = street() if points is None else points
  dataset, _ = dataset_of(points, camera_from_lidar, **arguments)
  extrinsics.check(dataset, dict.fromkeys(dataset.rigs, 'calib.txt: Tr'))


def from_degrees(angles):
  """lidar_from_camera by angles in degrees that are taken for radians."""
  return transform.Rotation.from_euler('ZYX', angles).as_matrix()


class CheckTest(parameterized.TestCase):
  def test_a_true_rig_passes(self):
    check(TRUE)
    check(motion(AXES, [1.5, 1.2, -2.0]))  # on a lorry

  @parameterized.named_parameters(
    ('inverse', np.linalg.inv(TRUE), 'The inverse fits'),
    ('transposed', motion(AXES.T, TRUE[:3, 3]), 'The inverse fits'),
    ('identity', np.eye(4), 'looks along .0.0, 0.0, 1.0. .*no rotation'),
    ('upside_down', motion(np.diag([-1, -1, 1]) @ AXES, [0, 0, 0]), 'top of'),
    ('backward', motion(np.diag([-1, 1, -1]) @ AXES, [0, 0, 0]), 'forward'),
    ('degrees', motion(from_degrees([-90, 0, -90]).T, [0, 0, 0]), 'degrees'),
    ('millimetres', motion(AXES, 1000 * TRUE[:3, 3]), '0.0% .*in metres'),
  )
  def test_a_wrong_transform_is_refused(self, wrong, message):
    with self.assertRaisesRegex(
      ValueError, rf'^calib.txt: Tr: [^\n]*{message}'
    ):
      check(wrong)

  def test_centimetres_are_refused_with_the_share(self):
    with self.assertRaisesRegex(
      ValueError,
      r'0\.\d% of the returns of d0_000000, d0_000004, d0_000009 fall into an '
      r'image of 208x64 that sees 23% of a turn, .* expected 2\.3% or more',
    ):
      check(motion(AXES, [-0.4, -7.6, -60]))

  def test_a_side_camera_needs_axes_that_say_so(self):
    left = motion(
      transform.Rotation.from_euler('y', 90, degrees=True).as_matrix() @ AXES,
      [0, 0, 0],
    )
    dataset, _ = dataset_of(street(), left)
    sources = {'d0': 'calib.txt'}
    extrinsics.check(dataset, sources, extrinsics.LIDAR)
    with self.assertRaisesRegex(ValueError, r'looks along \[0.0, 1.0, 0.0\]'):
      extrinsics.check(dataset, sources)

  def test_a_handful_of_returns_says_nothing(self):
    behind = np.tile(np.float32([[-5, 0, 0]]), (160, 1))  # times 3 scans
    check(TRUE, behind)
    with self.assertRaisesRegex(ValueError, '0.0% of the returns'):
      check(TRUE, np.tile(behind, (2, 1)))

  def test_three_scans_of_each_rig_are_read(self):
    dataset, reads = dataset_of(street(), TRUE, num_drives=5)
    extrinsics.check(dataset, dict.fromkeys(dataset.rigs, ''))
    self.assertEqual(reads, [0, 24, 49])
    rigs = dict(dataset.rigs)
    rigs['d1'] = rigs['d1']._replace(camera_from_body=motion(AXES, [0, 0, 0]))
    reads.clear()
    extrinsics.check(dataset._replace(rigs=rigs), dict.fromkeys(rigs, ''))
    self.assertLen(reads, 6)

  def test_without_images_only_the_axes_count(self):
    dataset, reads = dataset_of(street(), TRUE, size=None)
    extrinsics.check(dataset, {'d0': ''})
    self.assertEmpty(reads)

  def test_lenses_of_all_kinds_see_their_field(self):
    strong = LENS._replace(model='opencv', distortion=np.array([-0.3, 0, 0, 0]))
    check(TRUE, lens=strong)
    around = lens_lib.Lens(
      'equirectangular', np.array([[33.1, 0, 104], [0, 33.1, 32], [0, 0, 1]])
    )
    check(TRUE, lens=around)
    found, turn = extrinsics._share(around, SIZE, street()[:, [1, 2, 0]])
    self.assertAlmostEqual(turn, 1, delta=0.01)
    self.assertGreater(found, 0.9)

  def test_the_share_is_that_of_a_projection(self):
    seen = street() @ TRUE[:3, :3].T + TRUE[:3, 3]
    pixels = seen @ LENS.intrinsics.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    inside = (seen[:, 2] > 0) & (pixels > 0).all(1)
    inside &= (pixels < SIZE[::-1]).all(1)
    found, turn = extrinsics._share(LENS, SIZE, seen)
    self.assertAlmostEqual(found, inside.mean(), delta=0.01)
    self.assertAlmostEqual(turn, np.arctan(104 / 120) / np.pi, delta=0.005)


class EmbeddedTownTest(absltest.TestCase):
  def test_its_rigs_pass(self):
    root = self.enterContext(tempfile.TemporaryDirectory())
    for options in ({}, {'camera': 'panorama'}, {'sensors': 'other_car'}):
      town = datasets.load(
        'synthetic_city', split='test', data_dir=root, size='tiny', **options
      )
      extrinsics.check(town, dict.fromkeys(town.rigs, 'town'))
      (drive, rig), *_ = town.rigs.items()
      inverse = rig._replace(
        camera_from_body=np.linalg.inv(rig.camera_from_body)
      )
      wrong = town._replace(rigs=dict.fromkeys(town.rigs, inverse))
      with self.assertRaisesRegex(ValueError, f'{drive}: the camera looks'):
        extrinsics.check(wrong, {name: name for name in town.rigs})


def _quaternion(values):
  order = [values[name] for name in ('qx', 'qy', 'qz', 'qw')]
  return transform.Rotation.from_quat(order).as_matrix()


def _dgp(root):
  """Name, lens, size, camera_from_lidar and points of every camera."""
  (path,) = root.glob('calibration/*.json')
  content = json.loads(path.read_text())
  poses, lenses = {}, {}
  for name, pose, one in zip(
    content['names'], content['extrinsics'], content['intrinsics'], strict=True
  ):
    position = [pose['translation'][axis] for axis in 'xyz']
    poses[name] = motion(_quaternion(pose['rotation']), position)
    matrix = [[one['fx'], 0, one['cx']], [0, one['fy'], one['cy']], [0, 0, 1.0]]
    lenses[name] = lens_lib.Lens('pinhole', np.array(matrix))
  for scan in sorted(root.glob('point_cloud/LIDAR/*.npz')):
    points = np.load(scan)['data'][:, :3]
    for name in sorted(poses):
      if name.startswith('CAMERA'):
        found = np.linalg.inv(poses[name]) @ poses['LIDAR']
        yield f'{scan.stem}/{name}', lenses[name], (1216, 1936), found, points


def _places(root):
  """The same of every camera of the places."""
  for path in sorted(root.rglob('calibration.json')):
    scan = np.load(path.parent / 'scan.npz')
    points = np.stack([scan[f'{axis}_mm'] for axis in 'xyz'], -1) / 1000
    for name, one in json.loads(path.read_text())['cameras'].items():
      matrix = np.array(one['intrinsics']) + _HALF_PIXEL
      distortion = one['distortion']
      lens = lens_lib.Lens(
        'pinhole' if distortion is None else 'opencv',
        matrix,
        np.array(distortion or []),
      )
      pose = np.array(one['camera_from_lidar'])
      where = f'{path.parent.relative_to(root)}/{name}'
      yield where, lens, tuple(one['size'][::-1]), pose, points


class RealRigsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('data/dgp/scene_02', _dgp, 18), ('data/real_places', _places, 70)
  )
  def test_true_rigs_pass_and_wrong_units_do_not(self, name, rigs, least):
    count = 0
    for where, lens, size, pose, points in rigs(shared.require(name)):
      with self.subTest(where):
        for factor in (1, 1000):
          scaled = motion(pose[:3, :3], factor * pose[:3, 3])
          dataset, _ = dataset_of(points, scaled, lens, size)
          dataset = dataset._replace(frames=dataset.frames.take(np.arange(1)))
          if factor == 1:
            extrinsics.check(dataset, {'d0': where}, extrinsics.LIDAR)
          else:
            with self.assertRaisesRegex(ValueError, 'of the returns'):
              extrinsics.check(dataset, {'d0': where}, extrinsics.LIDAR)
      count += 1
    self.assertGreaterEqual(count, least)

  @parameterized.parameters(
    (kitti_raw, 'kitti_raw', 'all', 2),
    (kitti_raw, 'kitti_raw_0009', 'all', 2),
    (kitti_odometry, 'kitti_odometry', '00', 0),
    (kitti_odometry, 'kitti_odometry', '04', 2),
  )
  def test_readers_take_true_rigs(self, reader, name, split, camera):
    root = shared.require(f'data/{name}')
    dataset = reader.load(root, split, camera=camera)
    self.assertTrue(dataset.frames.has_points.any())
    for rig in dataset.rigs.values():
      self.assertIn(rig.image_size, [(375, 1242), (376, 1241), (370, 1226)])


class _KittiCopy(parameterized.TestCase):
  """Real sequence 04 with another calibration, or images of another size."""

  def setUp(self):
    super().setUp()
    source = shared.require('data/kitti_odometry')
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.folder = self.root / 'sequences' / '04'
    self.folder.mkdir(parents=True)
    for name in ('velodyne', 'image_2'):
      (self.folder / name).symlink_to(source / 'sequences/04' / name)
    (self.root / 'poses').symlink_to(source / 'poses')
    text = (source / 'sequences/04/calib.txt').read_text()
    self.lines = dict(line.split(':') for line in text.splitlines() if line)

  def load(self, rotation, translation):
    matrix = np.column_stack([rotation, translation])
    self.lines['Tr'] = ' '.join(map(repr, matrix.ravel().tolist()))
    text = '\n'.join(f'{key}: {value}' for key, value in self.lines.items())
    (self.folder / 'calib.txt').write_text(text)
    return kitti_odometry.load(self.root, '04')

  def true(self):
    values = np.array(self.lines['Tr'].split(), float).reshape(3, 4)
    return values[:, :3], values[:, 3]


class RealFaultsTest(_KittiCopy):
  def test_wrong_files_of_a_real_sequence(self):
    turn, shift = self.true()
    self.load(turn, shift)
    flat = from_degrees([-90, 0, -90])
    for message, wrong in (
      ('The inverse fits', (turn.T, -turn.T @ shift)),
      ('The inverse fits', (turn.T, shift)),
      ('no rotation', (np.eye(3), shift)),
      ('another camera', (flat.T, shift)),
      ('not a rotation', (np.degrees(turn), shift)),
      ('of the returns .* fall into', (turn, 1000 * shift)),
      ('of the returns .* fall into', (turn, 100 * shift)),
    ):
      with self.subTest(message):
        with self.assertRaisesRegex(ValueError, f'calib.txt: Tr: .*{message}'):
          self.load(*wrong)


if __name__ == '__main__':
  absltest.main()
