# SPDX-License-Identifier: Apache-2.0
"""What is packed reads back as the raw folders do, without them."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow_datasets as tfds

from i2ploc.evaluation import questions
from i2ploc.geometry import lens as lens_lib
from input_pipeline import batches
from input_pipeline import datasets
from input_pipeline import packing
from input_pipeline import schema
from input_pipeline.readers import kitti360
from input_pipeline.readers import kitti_odometry_splits
from tests import shared
from tests.input_pipeline.readers import kitti360_folder as folder_lib
from tests.input_pipeline.readers import kitti_folder

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_NAME = folder_lib.NAME
_OPTIONS = dict(camera='panorama', points='submap', panorama_size=(32, 64))
_COUNT = 7


def _make_root(root: pathlib.Path) -> None:
  """Seven posed frames 2 m apart; frame 4 has no scan, frame 5 no image_03."""
  folder_lib.write_calibration(root, shrink=20)
  poses = {
    i: folder_lib.imu_pose(3600.0 + 2 * i, 1700.0, 0.0) for i in range(_COUNT)
  }
  folder_lib.write_poses(root, _NAME, poses)
  rng = np.random.default_rng(0)
  ramp = np.linspace(0, 120, 70).astype(np.uint8)
  for i in range(_COUNT):
    for sensor in ('image_02', 'image_03'):
      pixels = np.broadcast_to(
        ramp[:, None, None] + np.uint8(15 * i), (70, 70, 3)
      )
      folder_lib.write_image(
        folder_lib.image_path(root, _NAME, sensor, i), np.array(pixels)
      )
    points = rng.uniform((4, -30, -2, 0), (60, 30, 6, 1), (300, 4))
    folder_lib.write_scan(folder_lib.scan_path(root, _NAME, i), points)
  folder_lib.scan_path(root, _NAME, 4).unlink()
  folder_lib.image_path(root, _NAME, 'image_03', 5).unlink()


class PackingTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory(prefix='kitti360_'))
    )
    _make_root(cls.root)
    cls.packed = cls.root / 'packed'
    cls.raw = kitti360.load(
      cls.root, 'disjoint:0003', maps_dir=cls.packed / 'maps', **_OPTIONS
    )
    # The first run dies in the second unit.
    encode, cls.encoded = packing.encode, []

    def dies(dataset, row):
      if row >= 4:
        raise KeyboardInterrupt
      cls.encoded.append(row)
      return encode(dataset, row)

    def goes_on(dataset, row):
      cls.encoded.append(row)
      return encode(dataset, row)

    cls.enterClassContext(mock.patch.object(packing, '_ROWS_PER_UNIT', 3))
    with mock.patch.object(packing, 'encode', dies):
      try:
        cls.load()
      except KeyboardInterrupt:
        cls.after_death = sorted(cls.encoded)
    with mock.patch.object(packing, 'encode', goes_on):
      cls.dataset = cls.load()

  @classmethod
  def load(cls, split='disjoint:0003', **options):
    return datasets.load(
      'kitti360',
      split=split,
      data_dir=str(cls.root),
      packed=str(cls.packed),
      **{**_OPTIONS, **options},
    )

  def test_a_run_that_died_goes_on_with_its_unit(self):
    self.assertContainsSubset([0, 1, 2], self.after_death)
    again = self.encoded[len(self.after_death) :]
    self.assertEqual(sorted(again), [3, 4, 5, 6])
    (own,) = self.packed.glob('kitti360_disjoint_0003-*')
    self.assertEmpty(list(own.glob('**/*incomplete*')))

  def test_other_programs_read_it_as_one_data_source(self):
    (own,) = self.packed.glob('kitti360_disjoint_0003-*')
    units = sorted(own.glob('*/packed_frames/*'))
    self.assertLen(units, 3)
    source = tfds.builder_from_directories(units).as_data_source('frames')
    self.assertEqual([int(r['frame']) for r in source], list(range(_COUNT)))
    found = dict(packing.decode(source[3], ('image', 'points')))
    for name, value in self.dataset.read(3).items():
      np.testing.assert_array_equal(found[name], value)
    rig = self.dataset.rigs[_NAME]
    np.testing.assert_array_equal(
      found['camera_from_lidar'], rig.camera_from_body.astype(np.float32)
    )
    np.testing.assert_array_equal(
      found['intrinsics'], rig.lens.intrinsics.astype(np.float32)
    )

  def test_the_table_is_the_raw_one(self):
    for name, column in self.raw.frames._asdict().items():
      np.testing.assert_array_equal(
        getattr(self.dataset.frames, name), column, err_msg=name
      )
    np.testing.assert_array_equal(self.dataset.queries, self.raw.queries)
    self.assertEqual(list(self.dataset.frames.frame), list(range(_COUNT)))

  def test_a_rig_that_cannot_be_is_refused_although_it_is_packed(self):
    def turned(record):
      rig = true(record)
      return rig._replace(camera_from_body=np.linalg.inv(rig.camera_from_body))

    true = packing._rig
    with mock.patch.object(packing, '_rig', turned):
      with self.assertRaisesRegex(
        ValueError, 'kitti360_disjoint_0003-.*, packed from .*The inverse fits'
      ):
        self.load()

  def test_columns_are_called_as_ever(self):
    (own,) = self.packed.glob('kitti360_disjoint_0003-*')
    with np.load(own / 'frames.npz') as archive:
      self.assertCountEqual(
        archive.files,
        [
          *('town', 'drive', 'frame', 'timestamp', 'world_from_lidar'),
          *('has_image', 'has_points', 'units', 'root', 'queries'),
        ],
      )

  def test_rigs_are_the_raw_ones(self):
    rig = self.dataset.rigs[_NAME]
    self.assertEqual(rig.lens.model, 'equirectangular')
    self.assertEqual(rig.image_size, (32, 64))
    expected = self.raw.rigs[_NAME]
    np.testing.assert_array_equal(rig.lens.intrinsics, expected.lens.intrinsics)
    np.testing.assert_array_equal(
      rig.camera_from_body, expected.camera_from_body.astype(np.float32)
    )

  def test_readings_are_the_raw_ones_within_their_units(self):
    for row in range(_COUNT):
      what = tuple(
        name
        for name, has in (
          ('image', self.raw.frames.has_image[row]),
          ('points', self.raw.frames.has_points[row]),
        )
        if has
      )
      expected, found = self.raw.read(row, what), self.dataset.read(row, what)
      self.assertEqual(found.keys(), expected.keys())
      for name, value in expected.items():
        self.assertEqual(found[name].dtype, value.dtype)
        tolerance = {
          'image': 3,
          'points': [packing.POINT_UNIT / 2 + 1e-6] * 3 + [2e-5],
        }.get(name, 1e-6)
        difference = np.abs(found[name].astype(float) - value)
        self.assertTrue((difference <= tolerance).all(), f'{row}: {name}')

  def test_the_raw_folders_are_no_longer_needed(self):
    away = self.root / 'data_poses_away'
    (self.root / 'data_poses').rename(away)
    try:
      dataset = self.load()
      self.assertEqual(dataset.read(0)['image'].shape, (32, 64, 3))
      with self.assertRaisesRegex(FileNotFoundError, 'no poses'):
        self.load(points='scan')
    finally:
      away.rename(self.root / 'data_poses')

  def test_a_sensor_that_is_missing_is_named(self):
    with self.assertRaisesRegex(ValueError, r"frame 4 has no \['points'\]"):
      self.dataset.read(4)
    with self.assertRaisesRegex(ValueError, r"frame 5 has no \['image'\]"):
      self.dataset.read(5, ('image',))
    with self.assertRaisesRegex(ValueError, r"Asked for \['labels'\]"):
      self.dataset.read(0, ('image', 'labels'))

  def test_the_protocol_is_the_papers(self):
    (protocol,) = questions.between_drives(
      self.dataset.frames, self.dataset.queries
    )
    # 2 m apart, more than 3 m: every other frame.
    self.assertEqual(protocol.query_rows.tolist(), [0, 2, 4, 6])
    self.assertEqual(protocol.map_rows.tolist(), [1, 3, 5])

  def test_batches_come_out_of_it(self):
    batch = next(
      batches.train_batches(
        self.dataset,
        batch_size=2,
        image_size=(32, 64),
        num_points=64,
        cross_drive=0.0,
        max_offset=2.5,
        seed=0,
      )
    )
    self.assertTrue(batch['points_mask'].all())
    self.assertLess(np.abs(batch['points'][..., :2]).max(), 20.01)

  def test_scans_farther_than_16_bits_lose_only_these_points(self):
    points = np.array(
      [[131.0, 0, 0, 1], [131.1, 0, 0, 0.5], [-3, 2, -131, 0]], np.float32
    )
    found = packing._inflate(packing._deflate(points))
    np.testing.assert_allclose(found, points[[0, 2]], atol=0.0021)

  def test_options_name_the_directory(self):
    def content(**options):
      return packing._content(kitti360.load, '0000', options)

    # Given or default, list or tuple: the same.
    self.assertEqual(content(), content(points='scan', without=''))
    self.assertEqual(
      content(panorama_size=(8, 16)), content(panorama_size=[8, 16])
    )
    changes = [
      dict(points='submap'),
      dict(without='ground'),
      dict(query_spacing=2.0),
      dict(panorama_size=(64, 128)),
    ]
    contents = {content(**change) for change in changes}
    self.assertLen(contents | {content()}, 5)
    # A published split that is changed is another split.
    self.assertNotEqual(
      content(), packing._content(kitti360.load, '0000[-9:]', {})
    )
    self.assertNotEqual(
      packing.directory(self.packed, 'a', '0000', content()),
      packing.directory(self.packed, 'b', '0000', content()),
    )
    with self.assertRaisesRegex(TypeError, "unexpected .*'pionts'"):
      content(pionts='scan')


class DamageTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='kitti360_'))
    )
    folder_lib.make_root(self.root)

  def load(self):
    return datasets.load(
      'kitti360',
      split='0003',
      data_dir=str(self.root),
      packed=str(self.root / 'packed'),
    )

  def packed(self):
    (own,) = (self.root / 'packed').glob('kitti360_0003-*')
    return own

  def test_a_damaged_image_is_named_and_its_unit_is_packed_when_repaired(self):
    path = folder_lib.image_path(self.root, _NAME, 'image_00', 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    with self.assertRaisesRegex(ValueError, f'{path}: the image does not dec'):
      self.load()
    path.write_bytes(whole)
    self.assertEqual(self.load().read(1)['image'][0, 0, 0], 30)

  def test_a_damaged_table_costs_no_packing(self):
    self.load()
    path = self.packed() / 'frames.npz'
    path.write_bytes(path.read_bytes()[:99])
    with self.assertRaisesRegex(ValueError, f'{path} is damaged'):
      self.load()
    path.unlink()
    with mock.patch.object(packing, 'encode', side_effect=AssertionError):
      self.assertLen(self.load().frames.frame, 2)

  def test_a_lost_unit_is_named(self):
    self.load()
    (unit,) = self.packed().glob('0000000_*')
    shutil.rmtree(unit)
    with self.assertRaisesRegex(
      ValueError, 'kitti360_0003-.* does not open .*Delete'
    ):
      self.load()

  def test_what_was_packed_from_another_folder_says_so(self):
    self.load()
    with self.assertNoLogs(level='WARNING'):
      self.load()
    other = self.root / 'other'
    other.mkdir()
    with self.assertLogs(level='WARNING') as logs:
      datasets.load(
        'kitti360',
        split='0003',
        data_dir=str(other),
        packed=str(self.root / 'packed'),
      )
    self.assertIn(
      f'packed from {self.root} and is taken for {other}', logs.output[0]
    )

  def test_units_of_frames_that_changed_are_made_anew(self):
    self.load()
    (self.packed() / 'frames.npz').unlink()
    (stale,) = self.packed().glob('*/')
    folder_lib.scan_path(self.root, _NAME, 3).unlink()
    dataset = self.load()
    self.assertFalse(stale.exists())
    self.assertFalse(dataset.frames.has_points[1])

  def test_a_torn_record_is_named(self):
    self.load()
    (path,) = self.packed().glob('*/packed_frames/*/*array_record*')
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with self.assertRaisesRegex(ValueError, 'does not (open|decode) .*Delete'):
      self.load().read(1)


_KILLED = """
import os
import signal
import sys
from input_pipeline import packing
from input_pipeline import batches
from input_pipeline import datasets

packing._ROWS_PER_UNIT = 1
encode = packing.encode

def dies(dataset, row):
  if row == 1:
    os.kill(os.getpid(), signal.SIGKILL)
  return encode(dataset, row)

packing.encode = dies
root, packed = sys.argv[1:]
datasets.load('kitti_raw', split='all', data_dir=root, packed=packed)
"""


def assert_same_rigs(found, expected):
  """The same but for the digits that float32 keeps."""
  np.testing.assert_equal(found.rigs.keys(), expected.rigs.keys())
  for drive, rig in expected.rigs.items():
    own = found.rigs[drive]
    np.testing.assert_equal(own.image_size, rig.image_size)
    np.testing.assert_equal(own.lens.model, rig.lens.model)
    for a, b in (
      (own.lens.intrinsics, rig.lens.intrinsics),
      (own.camera_from_body, rig.camera_from_body),
    ):
      np.testing.assert_array_equal(a.astype(np.float32), b.astype(np.float32))


class LensTest(absltest.TestCase):
  def test_a_lens_that_a_record_has_no_place_for_is_refused(self):
    never = mock.Mock(side_effect=AssertionError)
    for lens in (lens_lib.Lens('fisheye', np.eye(3)), None):
      rig = schema.Rig(lens, (8, 16))
      frames = mock.Mock(drive=np.array(['a']))
      dataset = schema.Dataset('bent', frames, {'a': rig}, never)
      message = 'bent: drive a has a lens that cannot be packed: .*Leave data'
      with self.assertRaisesRegex(ValueError, message):
        packing.encode(dataset, 0)


class EveryReaderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='kitti_'))
    )
    self.packed = self.root / 'packed'
    (self.root / 'raw').mkdir()

  def load(self, name, split, packed=True, **options):
    if packed:
      options['packed'] = str(self.packed)
    return datasets.load(
      name, split=split, data_dir=str(self.root / 'raw'), **options
    )

  def assert_same(self, found, expected):
    self.assertEqual(found.name, expected.name)
    for name, column in expected.frames._asdict().items():
      np.testing.assert_array_equal(getattr(found.frames, name), column)
    np.testing.assert_equal(found.queries, expected.queries)
    assert_same_rigs(found, expected)
    for row in range(len(expected.frames.frame)):
      a, b = found.read(row), expected.read(row)
      self.assertEqual(a.keys(), b.keys())
      for name, tolerance in dict(image=2, points=packing.POINT_UNIT).items():
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=tolerance)

  @parameterized.parameters(
    ('kitti_odometry', 'disjoint:03[:2]', dict(camera=0)),
    ('kitti_odometry', 'lip_loc/large/train', dict(camera=0, poses_dir='')),
    ('kitti_raw', 'all', dict(camera=2)),
    ('kitti_and_kitti360', '03+0003', dict(camera=0)),
  )
  def test_any_reader_packs_and_then_needs_no_raw_folder(
    self, name, split, options
  ):
    if name == 'kitti_raw':
      kitti_folder.make_drive(self.root / 'raw')
    else:
      kitti_folder.make_sequence(self.root / 'raw')
    if name == 'kitti_and_kitti360':
      folder_lib.make_root(self.root / 'raw')
    published = mock.patch.dict(
      kitti_odometry_splits.PUBLISHED, {'lip_loc/large/train': '03'}
    )
    with published:
      expected = self.load(name, split, packed=False, **options)
      self.load(name, split, **options)
      readings = [expected.read(i) for i in range(len(expected.frames.frame))]
      shutil.rmtree(self.root / 'raw')
      found = self.load(name, split, **options)
    remembered = expected._replace(read=lambda row: readings[row])
    self.assert_same(found, remembered)

  def test_a_packing_that_is_killed_goes_on(self):
    kitti_folder.make_drive(self.root / 'raw')
    died = subprocess.run(
      [sys.executable, '-c', _KILLED, str(self.root / 'raw'), str(self.packed)],
      env=os.environ | {'PYTHONPATH': str(_ROOT)},
      capture_output=True,
    )
    self.assertEqual(died.returncode, -signal.SIGKILL, died.stderr.decode())
    (own,) = self.packed.iterdir()
    self.assertFalse((own / 'frames.npz').exists())
    (whole,) = own.glob('0000000_*/packed_frames/*/*array_record*')
    before = whole.stat().st_mtime_ns
    with (
      mock.patch.object(packing, '_ROWS_PER_UNIT', 1),
      mock.patch.object(packing, 'encode', wraps=packing.encode) as encode,
    ):
      found = self.load('kitti_raw', 'all')
    self.assertEqual([call.args[1] for call in encode.call_args_list], [1])
    self.assertEqual(whole.stat().st_mtime_ns, before)
    self.assertEmpty(list(own.glob('**/*incomplete*')))
    self.assert_same(found, self.load('kitti_raw', 'all', packed=False))

  @parameterized.parameters(
    ('kitti_raw', 'all[:2]', dict()),
    ('kitti_odometry', '00[:2]', dict(camera=0)),
  )
  def test_real_frames_lose_less_than_the_sensors_noise(
    self, name, split, options
  ):
    root = str(shared.require(f'data/{name}'))
    raw = datasets.load(name, split=split, data_dir=root, **options)
    found = datasets.load(
      name, split=split, data_dir=root, packed=str(self.packed), **options
    )
    assert_same_rigs(found, raw)
    for row in range(2):
      a, b = found.read(row), raw.read(row)
      self.assertEqual(a['points'].shape, b['points'].shape)
      error = np.abs(a['points'] - b['points']).max(0)
      self.assertLess(error[:3].max(), packing.POINT_UNIT / 2 + 1e-5)
      self.assertLess(error[3], 2e-5)
      difference = a['image'].astype(float) - b['image']
      self.assertLess(np.sqrt(np.mean(difference**2)), 2.5)

  def test_generated_towns_are_not_packed_again(self):
    with self.assertRaisesRegex(ValueError, 'packed=.* is for recorded drives'):
      self.load('synthetic_city', 'train', size='tiny')


if __name__ == '__main__':
  absltest.main()
