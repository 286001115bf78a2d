# SPDX-License-Identifier: Apache-2.0
"""What is packed reads back as the raw folders do, without them."""

import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from input_pipeline import grouping
from input_pipeline import pipeline
from input_pipeline.kitti360 import builder
from input_pipeline.readers import kitti360
from tests.input_pipeline.readers import kitti360_folder as folder_lib

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


class BuilderTest(parameterized.TestCase):
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
    encode, cls.encoded = builder.encode, []

    def dies(dataset, row):
      if row >= 4:
        raise KeyboardInterrupt
      cls.encoded.append(row)
      return encode(dataset, row)

    def goes_on(dataset, row):
      cls.encoded.append(row)
      return encode(dataset, row)

    cls.enterClassContext(mock.patch.object(builder, '_ROWS_PER_UNIT', 3))
    with mock.patch.object(builder, 'encode', dies):
      try:
        cls.load()
      except KeyboardInterrupt:
        cls.after_death = sorted(cls.encoded)
    with mock.patch.object(builder, 'encode', goes_on):
      cls.dataset = cls.load()

  @classmethod
  def load(cls, split='disjoint:0003', **options):
    return pipeline.load(
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
    own = builder.directory(
      self.packed,
      'disjoint:0003',
      _OPTIONS | dict(without='', query_spacing=3.0),
    )
    self.assertEmpty(list(own.glob('**/*incomplete*')))

  def test_the_table_is_the_raw_one(self):
    for name, column in self.raw.frames._asdict().items():
      np.testing.assert_array_equal(
        getattr(self.dataset.frames, name), column, err_msg=name
      )
    np.testing.assert_array_equal(self.dataset.queries, self.raw.queries)
    self.assertEqual(list(self.dataset.frames.frame), list(range(_COUNT)))

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
          'points': [builder.POINT_UNIT / 2 + 1e-6] * 3 + [2e-5],
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
    (protocol,) = grouping.protocols(self.dataset)
    # 2 m apart, more than 3 m: every other frame.
    self.assertEqual(protocol.query_rows.tolist(), [0, 2, 4, 6])
    self.assertEqual(protocol.map_rows.tolist(), [1, 3, 5])

  def test_batches_come_out_of_it(self):
    batch = next(
      pipeline.train_batches(
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
    found = builder._inflate(builder._deflate(points))
    np.testing.assert_allclose(found, points[[0, 2]], atol=0.0021)

  def test_options_name_the_directory(self):
    options = _OPTIONS | dict(without='', query_spacing=3.0)
    own = builder.directory(self.packed, 'saliency/urban', options)
    self.assertStartsWith(own.name, 'saliency_urban-')
    for change in (
      dict(points='scan'),
      dict(without='ground'),
      dict(query_spacing=2.0),
      dict(panorama_size=(64, 128)),
    ):
      other = builder.directory(self.packed, 'saliency/urban', options | change)
      self.assertNotEqual(own, other)
    # A published split that is changed is another split.
    with mock.patch.dict(
      builder.kitti360_splits.PUBLISHED, {'saliency/urban': '0000'}
    ):
      other = builder.directory(self.packed, 'saliency/urban', options)
    self.assertNotEqual(own, other)


class DamageTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='kitti360_'))
    )
    folder_lib.make_root(self.root)

  def load(self):
    return builder.load(self.root, '0003', packed=self.root / 'packed')

  def packed(self):
    (own,) = (self.root / 'packed').glob('0003-*')
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
    with mock.patch.object(builder, 'encode', side_effect=AssertionError):
      self.assertLen(self.load().frames.frame, 2)

  def test_a_lost_unit_is_named(self):
    self.load()
    (unit,) = self.packed().glob('0000000_*')
    shutil.rmtree(unit)
    with self.assertRaisesRegex(ValueError, 'unit 0000000_.* does not open'):
      self.load()

  def test_a_torn_record_is_named(self):
    self.load()
    (path,) = self.packed().glob('*/kitti360/*/*array_record*')
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with self.assertRaisesRegex(ValueError, 'does not (open|decode) .*Delete'):
      self.load().read(1)


if __name__ == '__main__':
  absltest.main()
