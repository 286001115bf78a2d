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
_ALL = ('image', 'points', 'labels', 'objects')


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
