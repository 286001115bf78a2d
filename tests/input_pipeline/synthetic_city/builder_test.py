# SPDX-License-Identifier: Apache-2.0
"""The packed town reads back as what was driven and seen."""

import fcntl
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from i2ploc.evaluation import questions
from input_pipeline import batches
from input_pipeline import datasets
from input_pipeline import pairing
from input_pipeline.synthetic_city import builder
from input_pipeline.synthetic_city import generate
from input_pipeline.synthetic_city import labels as labels_lib
from input_pipeline.synthetic_city import rig
from input_pipeline.synthetic_city import sensors
from input_pipeline.synthetic_city import splits

# The first frame of the test's map, in every split: one town to make.
_MAP = next(d for d in splits.specification('tiny') if d.split == 'test')
_ONE_FRAME_EACH = tuple(
  _MAP._replace(split=split, town=f'{split}00', frames=(0,))
  for split in splits.SPLITS
)
# The same street under two names.
_TWO_TOWNS = tuple(
  _MAP._replace(split='train', town=town, frames=frames)
  for town, frames in (('a', (0,)), ('b', (0, 1)))
)
_ALL = ('image', 'points', 'labels', 'objects')
# Means over blocks of 8 x 26 pixels of the first frames of the test town's map
# and of its next drive, when there was but one look.
_PHOTOS = np.array(
  [
    [
      [[137.86, 136.25, 126.53], [183.67, 181.03, 180.20],
       [163.28, 161.46, 157.06], [126.33, 129.52, 124.26]],
      [[150.02, 143.71, 140.07], [170.33, 166.42, 164.98],
       [156.12, 152.64, 149.57], [123.67, 122.85, 119.03]],
      [[136.40, 130.45, 125.78], [141.96, 138.63, 138.13],
       [140.37, 136.91, 134.50], [124.95, 124.57, 116.77]],
      [[110.16, 107.11, 107.34], [105.55, 102.58, 103.27],
       [105.75, 102.91, 103.15], [122.28, 122.23, 114.38]],
    ],
    [
      [[85.24, 87.56, 69.05], [163.14, 163.22, 162.78],
       [131.79, 136.12, 129.78], [81.99, 94.30, 87.31]],
      [[101.12, 93.31, 87.17], [110.86, 109.53, 106.09],
       [98.54, 99.11, 90.69], [70.67, 77.10, 72.54]],
      [[104.59, 98.05, 91.17], [110.62, 110.96, 112.87],
       [113.38, 113.68, 114.92], [87.64, 88.98, 86.46]],
      [[119.20, 121.11, 125.00], [104.07, 106.39, 110.64],
       [109.83, 112.21, 116.64], [141.21, 143.91, 147.85]],
    ],
  ]
)  # fmt: skip


class BuilderTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.data_dir = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.variant = builder.directory(cls.data_dir, builder.variant('tiny'))
    cls.root = cls.variant / 'test'
    # The first run dies between packing and the table of frames, and leaves a
    # torn pack of an even earlier one behind.
    pack = cls.root / 'test00' / 'synthetic_city' / 'tiny'
    torn = pack / 'incomplete.ABCDEF_1.0.0'
    torn.mkdir(parents=True)
    (torn / 'synthetic_city-test.array_record-00000-of-00001').write_bytes(
      b'torn'
    )
    with mock.patch.object(np, 'savez', wraps=np.savez) as savez:
      rendered = len(builder._units('tiny', ['test00']))
      savez.side_effect = [mock.DEFAULT] * rendered + [KeyboardInterrupt]
      try:
        builder.load(cls.data_dir, size='tiny', split='test')
      except KeyboardInterrupt:
        cls.was_interrupted = (cls.root / 'units').exists()
    cls.made = [path.name for path in cls.variant.iterdir()]
    cls.datasets = {}
    for split in ('test', 'train', 'validation'):
      renders = mock.patch.object(
        sensors, 'make_renderer', wraps=sensors.make_renderer
      )
      with renders as make_renderer:
        if split == 'test':
          make_renderer.side_effect = AssertionError
        cls.datasets[split] = builder.load(
          cls.data_dir, size='tiny', split=split
        )

  def test_a_run_that_died_after_packing_renders_nothing_again(self):
    self.assertTrue(self.was_interrupted)
    self.assertFalse((self.root / 'units').exists())
    self.assertEmpty(list(self.root.glob('**/*incomplete*')))

  def test_another_split_is_not_generated(self):
    self.assertEqual(self.made, ['test'])

  def test_a_script_that_its_own_workers_run_again_does_not_hang(self):
    code = (
      'import pathlib, sys; from input_pipeline.synthetic_city import builder;'
      'root, tiny = pathlib.Path(sys.argv[1]), builder.variant("tiny");'
      'builder.build(root, tiny, ["test00"])'
    )
    with (
      tempfile.TemporaryDirectory() as root,
      open(f'{root}/lock', 'w') as lock,
    ):
      fcntl.flock(lock, fcntl.LOCK_EX)
      lock.write(str(os.getpid()))
      lock.flush()
      child = subprocess.run(
        [sys.executable, '-c', code, root],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
      )
    self.assertEqual(child.returncode, 1)
    self.assertIn("under if __name__ == '__main__'", child.stderr)

  @parameterized.parameters(*splits.SPLITS)
  def test_every_frame_of_the_specification_is_there_in_order(self, split):
    frames = self.datasets[split].frames
    expected = [
      (drive.town, drive.name, frame)
      for drive in splits.specification('tiny')
      if drive.split == split
      for frame in drive.frames
    ]
    found = zip(frames.town, frames.drive, frames.frame, strict=True)
    self.assertSequenceEqual([(*row,) for row in found], expected)
    for drive in {*frames.drive}:
      times = frames.timestamp[frames.drive == drive]
      self.assertTrue((np.diff(times) > 0).all())

  @parameterized.parameters(*splits.SPLITS)
  def test_readings_have_the_schema(self, split):
    dataset = self.datasets[split]
    row = len(dataset.frames.town) - 1
    reading = dataset.read(row, _ALL)
    height, width = reading['image'].shape[:2]
    count = len(reading['points'])
    self.assertGreater(count, 500)
    shapes = {
      k: (v.dtype.name, v.shape) for k, v in reading.items() if k != 'objects'
    }
    self.assertDictEqual(
      shapes,
      {
        'image': ('uint8', (height, width, 3)),
        'points': ('float32', (count, 4)),
        'image_semantic': ('uint8', (height, width)),
        'image_instance': ('int32', (height, width)),
        'points_semantic': ('uint8', (count,)),
        'points_instance': ('int32', (count,)),
      },
    )
    rig = dataset.rigs[dataset.frames.drive[row]]
    self.assertEqual(rig.image_size, (height, width))
    distance = np.linalg.norm(reading['points'][:, :3], axis=1)
    self.assertBetween(distance.max(), 10, 81)
    self.assertBetween(reading['points'][:, 3].max(), 0.01, 1)
    self.assertLess(reading['image_semantic'].max(), len(labels_lib.CLASSES))
    self.assertNotIn(
      labels_lib.CLASSES.index('sky'), reading['points_semantic']
    )

  def test_points_land_on_pixels_of_their_class(self):
    dataset = self.datasets['train']
    agree = {1: [], -1: []}
    for row in range(0, len(dataset.frames.town), 5):
      reading = dataset.read(row, _ALL)
      sensors = dataset.rigs[dataset.frames.drive[row]]
      motion = sensors.camera_from_body
      for mirror in agree:
        points = reading['points'][:, :3] * [1, mirror, 1]
        seen = points @ motion[:3, :3].T + motion[:3, 3]
        front = seen[:, 2] > 1
        pixel = seen[front] @ sensors.lens.intrinsics.T
        column, line = np.floor(pixel[:, :2] / pixel[:, 2:]).astype(int).T
        height, width = reading['image_semantic'].shape
        inside = (column >= 0) & (column < width) & (line >= 0)
        inside &= line < height
        image = reading['image_semantic'][line[inside], column[inside]]
        label = reading['points_semantic'][front][inside]
        agree[mirror].append((image == label).mean())
    self.assertGreater(np.mean(agree[1]), 0.85)
    # A mirrored scan is the mistake that this test is there to find.
    self.assertLess(np.mean(agree[-1]), np.mean(agree[1]) - 0.15)

  def test_objects_are_those_of_the_labels(self):
    for row in (0, 9):
      reading = self.datasets['test'].read(row, _ALL)
      self.assertNotEmpty(reading['objects'])
      for thing in reading['objects']:
        for count, label in (
          ('pixels', 'image_instance'),
          ('points', 'points_instance'),
        ):
          found = np.count_nonzero(reading[label] == thing['instance'])
          self.assertEqual(found, thing[count])
        self.assertRegex(thing['caption'], '^an? ')
        self.assertLen(thing['center'], 3)

  def test_only_what_is_asked_for_is_decoded(self):
    dataset = self.datasets['test']
    self.assertCountEqual(dataset.read(0, ('points',)), ['points'])
    self.assertCountEqual(
      dataset.read(0, ('image', 'labels')),
      ['image', 'image_semantic', 'image_instance'],
    )

  def test_test_towns_offer_all_protocols_near_the_map(self):
    dataset = self.datasets['test']
    asked = questions.between_drives(dataset.frames, dataset.queries)
    found = {question.name: question for question in asked}
    self.assertCountEqual(found, ['sync', 'cross', 'opposite'])
    for name, question in found.items():
      query = dataset.frames.take(question.query_rows)
      mapped = dataset.frames.take(question.map_rows)
      step = query.position[:, None] - mapped.position[None]
      self.assertLess(np.linalg.norm(step, axis=-1).min(1).max(), 10, name)

  def test_training_towns_are_driven_twice_along_one_route(self):
    frames = self.datasets['train'].frames
    pairs = pairing.training_pairs(frames, 5.0)
    self.assertLen(pairs.anchors, len(frames.town))
    self.assertGreater((pairs.other.length > 0).mean(), 0.7)

  def test_the_pipeline_batches_it(self):
    dataset = datasets.load(
      'synthetic_city', split='train', data_dir=self.data_dir, size='tiny'
    )
    batch = next(
      batches.train_batches(
        dataset,
        batch_size=4,
        image_size=(16, 52),
        num_points=256,
        cross_drive=1.0,
        max_offset=5.0,
        seed=0,
        frustum=0.8,
      )
    )
    self.assertEqual(batch['image'].shape, (4, 16, 52, 3))
    self.assertGreater(batch['points_mask'].mean(), 0.9)

  def test_what_does_not_decode_is_named(self):
    dataset = self.datasets['test']
    with mock.patch.object(Image, 'open', side_effect=OSError('truncated')):
      with self.assertRaisesRegex(
        ValueError, 'test00_0_map, frame 2: image does not decode.*truncated'
      ):
        dataset.read(2, ('image',))

  def test_missing_records_are_noticed(self):
    path = self.root / 'test00' / 'frames.npz'
    whole = path.read_bytes()
    self.addCleanup(path.write_bytes, whole)
    with np.load(path) as archive:
      columns = {name: archive[name] for name in archive.files}
    np.savez(path, **{k: v[:-1] for k, v in columns.items()})
    with self.assertRaisesRegex(ValueError, '19 records.*table of 18'):
      builder.load(self.data_dir, size='tiny', split='test')

  def test_another_generator_has_another_directory(self):
    with mock.patch.object(generate, 'fingerprint', return_value='other'):
      other = builder.directory(self.data_dir, builder.variant('tiny'))
    self.assertNotEqual(other, self.variant)
    self.assertEqual(other.parent, self.variant.parent)

  @parameterized.parameters(
    (dict(camera='panorama'), 'tiny_panorama-'),
    (dict(sensors='32_beams'), 'tiny_32_beams-'),
    (dict(sensors='other_car'), 'tiny_other_car-'),
    (dict(camera='panorama', sensors='32_beams'), 'tiny_panorama_32_beams-'),
    (dict(look='mesh'), 'tiny_mesh-'),
    (dict(camera='panorama', look='night'), 'tiny_panorama_night-'),
  )
  def test_other_cameras_lidars_and_looks_have_directories_of_their_own(
    self, options, name
  ):
    self.assertStartsWith(self.variant.name, 'tiny-')
    render = mock.patch.object(
      sensors, 'make_renderer', side_effect=KeyboardInterrupt
    )
    with render as make_renderer, self.assertRaises(KeyboardInterrupt):
      with tempfile.TemporaryDirectory() as data_dir:
        try:
          builder.load(data_dir, size='tiny', split='test', **options)
        finally:
          (made,) = pathlib.Path(data_dir).glob('*/*')
    self.assertStartsWith(made.name, name)
    # Not taken for an outdated version of the other.
    self.assertFalse(made.match('tiny-*'))
    make_renderer.assert_called_once_with(
      'tiny',
      camera=options.get('camera', 'pinhole'),
      setup=options.get('sensors', 'kitti'),
      plain=options.get('look') == 'mesh',
    )

  def test_another_lidar_reads_back_along_its_own_beams(self):
    def make_renderer(size, *, camera, setup, plain):
      """Sees a wall all around, 10 m away."""
      del camera, plain
      shape = rig.make_camera(size, optics=rig.SETUPS[setup].optics).shape
      rays = rig.directions(size, setup)
      image = np.zeros(shape, np.uint8)
      scan = np.full(rays.shape[:2], 10.0, np.float32)
      return lambda *_: {
        'image': np.zeros((*shape, 3), np.uint8),
        'image_semantic': image,
        'image_instance': image.astype(np.int32),
        'intrinsics': np.eye(3),
        'camera_from_lidar': np.eye(4),
        'scan_range': scan,
        'scan_intensity': scan.astype(np.uint8),
        'scan_semantic': scan.astype(np.uint8),
        'scan_instance': scan.astype(np.int32),
      }

    with (
      tempfile.TemporaryDirectory() as data_dir,
      mock.patch.object(splits, 'specification', return_value=_ONE_FRAME_EACH),
      mock.patch.object(sensors, 'make_renderer', make_renderer),
    ):
      found = builder.load(
        data_dir, size='tiny', split='test', sensors='other_car'
      )
      reading = found.read(0)
    self.assertEqual(found.name, 'synthetic_city/tiny_other_car/test')
    x, y, z = reading['points'][:, :3].T
    np.testing.assert_allclose(x**2 + y**2 + z**2, 100, rtol=1e-4)
    elevation = np.unique(np.degrees(np.arcsin(z / 10)).round(2))
    np.testing.assert_allclose(
      elevation, np.linspace(-30.67, 10.67, 16), atol=0.01
    )
    self.assertEqual(reading['image'].shape, (32, 118, 3))
    for sensors_of_drive in found.rigs.values():
      self.assertEqual(sensors_of_drive.image_size, (32, 118))
    # The same frame of the same drive.
    np.testing.assert_array_equal(
      found.frames.world_from_body[0],
      self.datasets['test'].frames.world_from_body[0],
    )

  def test_the_first_towns_of_a_split_are_its_first_rows(self):
    whole = self.datasets['train']
    towns = list(dict.fromkeys(whole.frames.town))
    for num_towns in (1, len(towns)):
      part = builder.load(
        self.data_dir, size='tiny', split=f'train[:{num_towns}]'
      )
      self.assertEqual(list(dict.fromkeys(part.frames.town)), towns[:num_towns])
      row = len(part.frames.town) - 1
      np.testing.assert_array_equal(
        part.read(row)['image'], whole.read(row)['image']
      )
    for num_towns in (0, len(towns) + 1):
      with self.assertRaisesRegex(ValueError, f'{len(towns)} towns'):
        builder.load(self.data_dir, size='tiny', split=f'train[:{num_towns}]')

  def test_only_the_towns_that_are_asked_for_are_generated(self):
    with (
      tempfile.TemporaryDirectory() as data_dir,
      mock.patch.object(splits, 'specification', return_value=_TWO_TOWNS),
    ):
      root = builder.directory(data_dir, builder.variant('tiny')) / 'train'
      first = builder.load(data_dir, size='tiny', split='train[:1]')
      self.assertCountEqual([p.name for p in root.iterdir()], ['lock', 'a'])
      pack = {p: p.stat().st_mtime_ns for p in (root / 'a').rglob('*')}
      both = builder.load(data_dir, size='tiny', split='train')
      self.assertCountEqual(
        [p.name for p in root.iterdir()], ['lock', 'a', 'b']
      )
      for path, time in pack.items():
        self.assertEqual(path.stat().st_mtime_ns, time, path)
      self.assertEqual(both.frames.town.tolist(), ['a', 'b', 'b'])
      self.assertEqual(both.frames.frame.tolist(), [0, 0, 1])
      np.testing.assert_array_equal(first.read(0)['image'],
                                    both.read(0)['image'])  # fmt: skip
      # The towns are one street under two names.
      np.testing.assert_array_equal(both.read(0)['image'],
                                    both.read(1)['image'])  # fmt: skip
      self.assertGreater(
        np.abs(
          both.read(1)['image'] - both.read(2)['image'].astype(int)
        ).mean(),
        2,
      )

  def test_units_of_towns_that_nobody_asked_for_stay(self):
    with tempfile.TemporaryDirectory() as data_dir, mock.patch.object(
      splits, 'specification', return_value=_TWO_TOWNS
    ):  # fmt: skip
      root = builder.directory(data_dir, builder.variant('tiny')) / 'train'
      (root / 'units').mkdir(parents=True)
      other = root / 'units' / builder._units('tiny', ['b'])[0].name
      other.write_bytes(b'of an interrupted run')
      builder.load(data_dir, size='tiny', split='train[:1]')
      self.assertEqual([*(root / 'units').iterdir()], [other])

  def test_photos_are_what_they_were(self):
    dataset = self.datasets['test']
    roles = [drive.split('_')[-1] for drive in dataset.frames.drive]
    for role, expected in zip(('map', 'cross'), _PHOTOS, strict=True):
      image = dataset.read(roles.index(role), ('image',))['image']
      found = image.reshape(4, 8, 4, 26, 3).mean((1, 3))
      np.testing.assert_allclose(found, expected, atol=0.5)

  def test_conditions_are_those_of_the_drives(self):
    frames = self.datasets['test'].frames
    conditions = self.datasets['test'].conditions
    self.assertLen(conditions, len(frames.town))
    by_drive = {
      drive: {*conditions[frames.drive == drive].tolist()}
      for drive in {*frames.drive}
    }
    self.assertEqual(by_drive['test00_0_map'], {'fog'})
    self.assertEqual(by_drive['test00_1_cross'], {'snow'})

  def test_queries_of_the_night_are_dark_and_its_maps_are_the_day_s(self):
    day = self.datasets['test']
    night = builder.load(self.data_dir, size='tiny', split='test', look='night')
    self.assertEqual(night.name, 'synthetic_city/tiny_night/test')
    for name, column in day.frames._asdict().items():
      np.testing.assert_array_equal(getattr(night.frames, name), column, name)
    mapped = np.char.endswith(day.frames.drive, 'map')
    self.assertEqual({*night.conditions[~mapped]}, {'night'})
    np.testing.assert_array_equal(
      night.conditions[mapped], day.conditions[mapped]
    )
    for row, is_map in enumerate(mapped):
      a, b = (d.read(row, ('image', 'labels')) for d in (day, night))
      np.testing.assert_array_equal(a['image_instance'], b['image_instance'])
      if is_map:
        np.testing.assert_array_equal(a['image'], b['image'])
      else:
        # The sky is not black, and some windows are lit.
        self.assertBetween(b['image'].mean(), 5, 0.5 * a['image'].mean())
        dark = np.median(b['image'].astype(int), axis=(0, 1))
        self.assertLess(dark.max(), 60)
    lit = [night.read(row)['image'].max() for row in np.flatnonzero(~mapped)]
    self.assertGreater(np.median(lit), 180)

  def test_renderings_are_of_the_same_poses_and_without_traffic(self):
    plain = self.datasets['train']
    self.assertIsNone(plain.frames.has_rendering)
    with_renderings = builder.load(
      self.data_dir, size='tiny', split='train', renderings=True
    )
    mesh = builder.load(self.data_dir, size='tiny', split='train', look='mesh')
    frames = with_renderings.frames
    self.assertTrue(frames.has_rendering.all())
    self.assertLen(frames.take(np.array([2, 3])).has_rendering, 2)
    self.assertIsNone(plain.frames.take(np.array([2])).has_rendering)
    np.testing.assert_array_equal(
      frames.world_from_body, mesh.frames.world_from_body
    )
    self.assertEqual({*mesh.conditions}, {'neutral'})
    agree = []
    for row in range(len(frames.town)):
      reading = with_renderings.read(row, ('rendering',))
      self.assertCountEqual(reading, ['rendering'])
      seen = mesh.read(row, _ALL)
      np.testing.assert_array_equal(reading['rendering'], seen['image'])
      for sensor in ('image', 'points'):
        self.assertNoCommonElements(
          seen[f'{sensor}_semantic'].ravel().tolist(), labels_lib.MOVABLE
        )
      self.assertFalse(any(thing['moving'] for thing in seen['objects']))
      for thing in seen['objects']:
        self.assertNotRegex(thing['caption'], 'snow|leaves|parked')
      labels = plain.read(row, ('image', 'labels'))['image_semantic']
      stays = ~np.isin(labels, labels_lib.MOVABLE)
      agree.append((seen['image_semantic'] == labels)[stays].mean())
    self.assertGreater(np.min(agree), 0.99)

  def test_renderings_of_other_frames_are_refused(self):
    mesh = self.datasets['test']
    other = mesh._replace(frames=mesh.frames.take(np.arange(19)[::-1]))
    with self.assertRaisesRegex(ValueError, 'not of the same frames'):
      builder._with_renderings(mesh, other)

  def test_unknown_sizes_splits_and_cameras_list_the_known(self):
    with self.assertRaisesRegex(ValueError, "'huge'.*'small'"):
      builder.load(self.data_dir, size='huge', split='test')
    with self.assertRaisesRegex(ValueError, "'val'.*'validation'"):
      builder.load(self.data_dir, size='tiny', split='val')
    with self.assertRaisesRegex(ValueError, "'fisheye'.*'panorama'"):
      builder.load(self.data_dir, size='tiny', split='test', camera='fisheye')
    with self.assertRaisesRegex(ValueError, "look 'x-ray'.*'night'"):
      builder.load(self.data_dir, size='tiny', split='test', look='x-ray')
    with self.assertRaisesRegex(ValueError, "sensors '128_beams'.*'32_beams'"):
      builder.load(
        self.data_dir, size='tiny', split='test', sensors='128_beams'
      )
    with self.assertRaisesRegex(ValueError, "'wide_camera' is another pinhole"):
      builder.load(
        self.data_dir, size='tiny', split='test', camera='panorama',
        sensors='wide_camera',
      )  # fmt: skip
    self.assertLen(list(pathlib.Path(self.data_dir).glob('*')), 1)


if __name__ == '__main__':
  absltest.main()
