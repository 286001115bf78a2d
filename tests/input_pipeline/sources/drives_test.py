# SPDX-License-Identifier: Apache-2.0
"""A split tells what sees and what it sees, for images of its own size."""

import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from i2ploc.errors import InputError
from i2ploc.evaluation import questions
from i2ploc.geometry import lens as lens_lib
from input_pipeline import datasets
from input_pipeline import schema
from input_pipeline.sources import drives
from tests.input_pipeline import labelled_frames
from tests.input_pipeline.plans import tables

FIELDS = dict(per_image=2, min_pixels=10, min_side=2, min_share=0.1)


def _split(dataset, image_size=(12, 40)):
  return drives.Split(
    dataset, image_size=image_size, num_points=4, frustum=None
  )


class RigTest(absltest.TestCase):
  def test_the_lens_is_scaled_and_the_mounting_kept(self):
    found = _split(labelled_frames.dataset()).rig(1)
    self.assertEqual(found.image_size, (12, 40))
    np.testing.assert_array_equal(
      found.lens.intrinsics, np.diag([20.0, 10.0, 1.0])
    )
    np.testing.assert_array_equal(
      found.camera_from_body, labelled_frames.RIG.camera_from_body
    )

  def test_a_blind_drive_takes_the_lens_of_another_in_its_own_mounting(self):
    dataset = labelled_frames.dataset()
    mounting = np.diag([1.0, -1, -1, 1])
    blind = dataset.frames.drive == 'map'
    own = labelled_frames.RIG._replace(
      lens=None, image_size=None, camera_from_body=mounting
    )
    split = _split(
      dataset._replace(
        frames=dataset.frames._replace(has_image=~blind),
        rigs=dict(dataset.rigs) | {'map': own},
      )
    )
    found = split.rig(0)
    np.testing.assert_array_equal(found.camera_from_body, mounting)
    self.assertEqual(found.lens.intrinsics[1, 1], 10)

  def test_a_split_without_images_has_no_camera(self):
    dataset = labelled_frames.dataset()
    nothing = np.zeros(len(dataset.frames.town), bool)
    frames = dataset.frames._replace(has_image=nothing)
    with self.assertRaisesRegex(ValueError, 'painted has no image, so no cam'):
      _split(dataset._replace(frames=frames)).rig(0)

  def test_labels_are_those_of_the_dataset(self):
    dataset = labelled_frames.dataset()
    self.assertEqual(_split(dataset).labels.movable, (1,))
    self.assertIsNone(_split(dataset._replace(labels=None)).labels)


class SourceTest(absltest.TestCase):
  def test_pictures_are_spread_over_the_rows_and_named_after_them(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    for name in ('database/0.jpg', *(f'queries/{i}.jpg' for i in range(30))):
      path = folder / 'photos' / name
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new('L', (20, 20), 3 * len(name)).save(path)
    source = drives.Source(
      name='photos', data_dir=str(folder / 'photos'), train='', validation='',
      test='all', image_size=(16, 16),
    )  # fmt: skip
    source.save_pictures(folder, np.arange(1, 31))
    found = {path.name for path in (folder / 'queries').iterdir()}
    self.assertLen(found, drives.NUM_PICTURES)
    self.assertContainsSubset(
      {'queries_0.jpg.png', 'queries_29.jpg.png'}, found
    )
    with Image.open(folder / 'queries/queries_0.jpg.png') as image:
      self.assertEqual(image.size, (20, 20))
    source.save_pictures(folder / 'few', [4, 5])
    self.assertLen(list((folder / 'few/queries').iterdir()), 2)

  def test_an_unknown_way_to_resize_fails_before_anything_is_read(self):
    for name in ('resize', 'query_resize'):
      with self.assertRaisesRegex(ValueError, "policy 'squash'"):
        drives.Source(
          name='photos', data_dir='nowhere', train='', validation='', test='',
          image_size=(16, 16), **{name: 'squash'},
        )  # fmt: skip

  def test_places_are_those_that_are_asked_about(self):
    source = drives.Source(
      name='synthetic_city', data_dir='', train='', validation='', test='test',
      image_size=labelled_frames.SIZE, crops=FIELDS,
      detector=dict(edge=0.0, missed=0.0, seed=0),
    )  # fmt: skip
    split = _split(labelled_frames.dataset(), labelled_frames.SIZE)
    asked = []

    def ask(frames, queries):
      asked.append((frames, queries))
      return questions.between_drives(frames, queries)

    with mock.patch.object(drives.Source, 'split', return_value=split):
      (place,) = source.places(ask)
    self.assertLen(asked, 1)
    self.assertEqual(place.queries.names[0], 'cross_000000.png')
    self.assertIs(place.queries.lens.model, 'pinhole')


def _town(name, count, conditions, shift):
  """Two drives, of which the second sees the places of the first again."""
  frames = schema.concatenate(
    tables.street(name, f'{name}{i}', count, y=float(i)) for i in range(2)
  )

  def read(row, what):
    return {'image': np.full((6, 8, 3), shift + row, np.uint8)}

  rig = schema.Rig(lens_lib.Lens('pinhole', np.eye(3)), (6, 8))
  # Equal rigs, and not one and the same, as packed drives have them.
  rigs = {f'{name}{i}': rig._replace() for i in range(2)}
  words = np.resize(conditions, 2 * count)
  return schema.Dataset(name, frames, rigs, read, conditions=words)


class TrainingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.asked = []
    self.towns = {
      'train': _town('a', 20, ['sun', 'rain'], 0),
      'test': _town('b', 20, ['sun'], 60),
      'strange': _town('c', 30, ['dusk', 'night', 'night'], 100),
    }

    def load(name, *, split, data_dir, **options):
      self.asked.append((split, options))
      return self.towns[split]

    self.enter_context(mock.patch.object(datasets, 'load', load))

  def source(self, target=None, **options):
    target = target and dict(split='strange', condition='night') | target
    options = dict(num_points=1, max_offset=5.0) | options
    return drives.Source(
      name='made_up', data_dir='', train='train', validation='', test='test',
      image_size=(6, 8), target=target, **options,
    )  # fmt: skip

  def test_the_training_split_may_look_different(self):
    source = self.source(
      look='night',
      camera='pinhole',
      num_frames=2,
      frame_stride=3,
      training=dict(look='photo', image_size=(3, 4), frame_stride=1),
    )
    train, test = source.split('train'), source.split('test')
    self.assertEqual(
      self.asked,
      [
        ('train', dict(look='photo', camera='pinhole')),
        ('test', dict(look='night', camera='pinhole')),
      ],
    )
    self.assertEqual(train.image_size, (3, 4))
    self.assertEqual(test.image_size, (6, 8))
    seen = {}
    for name, split in (('train', train), ('test', test)):
      batch = next(split.batches(np.array([4]), ('image',), 1))
      seen[name] = batch['image'][0, :, 0, 0, 0].tolist()
      self.assertEqual(batch['image'].shape[2:4], split.image_size)
    self.assertEqual(seen, {'train': [3, 4], 'test': [61, 64]})
    batch = self.planned(source)
    self.assertEqual(batch['image'].shape, (8, 2, 3, 4, 3))

  def test_pairs_have_the_size_of_training_and_are_no_sequences(self):
    cloud = np.ones((3, 4), np.float32)
    read = self.towns['train'].read
    self.towns['train'] = self.towns['train']._replace(
      read=lambda row, what: read(row, what) | {'points': cloud}
    )
    source = self.source(training=dict(image_size=(3, 4)), cross_drive=1.0)
    batch = next(source.train_batches(4, 0))
    self.assertEqual(batch['image'].shape, (4, 3, 4, 3))
    with self.assertRaisesRegex(InputError, 'num_frames=2: pairs'):
      self.source(num_frames=2).train_batches(4, 0)

  def planned(self, source, **sampling):
    sampling = dict(name='places', steps=3, num_views=2) | sampling
    batches = source.planned_batches(8, 0, None, sampling)
    batches.refresh(None)
    return next(batches)

  def test_planned_batches_are_of_the_training_split(self):
    batch = self.planned(self.source())
    np.testing.assert_array_equal(
      batch['image'][:, 0, 0, 0], batch['image_index']
    )
    np.testing.assert_array_equal(batch['domain'], batch['image_index'] % 2 < 1)
    np.testing.assert_array_equal(batch['place'], np.repeat(np.arange(4), 2))
    self.assertNotIn('labelled', batch)

  @parameterized.parameters(('night', 7), ('', 12))
  def test_a_target_joins_without_positions(self, condition, count):
    source = self.source(
      target=dict(condition=condition, count=count, look='moon'),
      look='photo', training=dict(camera='pinhole'),
    )  # fmt: skip
    frames = source.split('train').frames
    conditions = source.split('train').dataset.conditions
    self.assertEqual(
      self.asked[1], ('strange', dict(look='moon', camera='pinhole'))
    )
    self.assertLen(frames.town, 40 + count)
    np.testing.assert_array_equal(
      frames.town[40:], np.full(count, drives.TARGET)
    )
    self.assertTrue(np.isnan(frames.position[40:]).all())
    if condition:
      self.assertEqual({*conditions[40:]}, {condition})
    self.assertLen(source.split('test').frames.town, 40)
    self.assertEqual(source.num_domains, len(np.unique(conditions)))
    batch = self.planned(source, per_step=2)
    np.testing.assert_array_equal(batch['labelled'], [True] * 6 + [False] * 2)
    self.assertTrue((batch['image'][6:] >= 100).all())
    self.assertTrue((batch['image'][:6] < 40).all())
    self.assertTrue(np.isnan(batch['image_position'][6:]).all())
    names = np.unique(conditions)[batch['domain']]
    np.testing.assert_array_equal(names, conditions[batch['image_index']])

  def test_a_smaller_target_is_a_part_of_a_larger_one(self):
    def images(count):
      dataset = self.source(target=dict(count=count)).split('train').dataset
      rows = range(40, 40 + count)
      return {int(dataset.read(r, ('image',))['image'][0, 0, 0]) for r in rows}

    few, many = images(5), images(20)
    self.assertLen(many, 20)
    self.assertLess(few, many)
    # From both drives.
    self.assertLess(min(few), 130)
    self.assertGreaterEqual(max(few), 130)

  @parameterized.parameters(
    (dict(count=0), '0 target frames of 40'),
    (dict(count=41), '41 target frames of 40'),
    (dict(count=2, condition='fog'), "'fog': c has only .*'dusk', 'night'"),
    (dict(), r"data.target lacks \['count'\]"),
  )
  def test_a_target_that_cannot_be_is_named(self, target, message):
    with self.assertRaisesRegex(InputError, message):
      self.source(target=dict(split='strange') | target).split('train')

  def test_a_target_needs_single_images_of_known_conditions(self):
    with self.assertRaisesRegex(InputError, 'no sequences'):
      self.source(target=dict(count=2), num_frames=2)
    self.towns['strange'] = self.towns['strange']._replace(conditions=None)
    with self.assertRaisesRegex(InputError, 'c: nobody knows its conditions'):
      self.source(target=dict(count=2)).split('train')

  def test_domains_are_counted_where_they_are_known(self):
    self.assertEqual(self.source().num_domains, 2)
    self.towns['train'] = self.towns['train']._replace(conditions=None)
    with self.assertRaisesRegex(InputError, 'made_up: nobody knows'):
      _ = self.source().num_domains

  @parameterized.parameters({}, dict(num_frames=8), dict(target=dict(count=3)))
  def test_classes_are_counted_as_they_are_drawn(self, **options):
    sampling = dict(
      name='classes', steps=40, cell=8.0, spacing=1, turn_spacing=1,
      min_images=5,
    ) | ({'per_step': 2} if 'target' in options else {})  # fmt: skip
    source = self.source(**options)
    (count,) = source.class_counts(sampling)
    batches = source.planned_batches(8, 0, None, sampling)
    batches.refresh(None)
    found = {i for batch in batches for i in batch['class'].tolist()} - {-1}
    self.assertEqual(found, set(range(count)))
    with self.assertRaisesRegex(InputError, 'no field'):
      source.class_counts(sampling | {'pool': 1})


if __name__ == '__main__':
  absltest.main()
