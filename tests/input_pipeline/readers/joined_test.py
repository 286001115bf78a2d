# SPDX-License-Identifier: Apache-2.0
"""Joined datasets read through their parts and keep their towns."""

import pathlib
import pickle
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.errors import InputError
from i2ploc.evaluation import questions
from i2ploc.geometry import lens as lens_lib
from i2ploc.photos import truth as truth_lib
from input_pipeline import batches
from input_pipeline import datasets
from input_pipeline import pairing
from input_pipeline import schema
from input_pipeline.readers import joined
from tests.input_pipeline.readers import kitti360_folder
from tests.input_pipeline.readers import kitti_folder


def _part(town, count, focal, queries=None):
  """A drive of frames 1 m apart; pixels and points tell the frame."""
  poses = np.tile(np.eye(4), (count, 1, 1))
  poses[:, 0, 3] = np.arange(count)
  present = np.ones(count, bool)
  frames = schema.FrameTable(
    np.full(count, town), np.full(count, f'{town}_a'), np.arange(count),
    0.1 * np.arange(count), poses, present, present.copy(),
    schema.frame_names(np.full(count, f'{town}_a'), np.arange(count)),
  )  # fmt: skip

  def read(row, what):
    if row >= count:
      raise IndexError(row)
    return {
      'image': np.full((8, focal, 3), row, np.uint8),
      'points': np.full((5, 4), row, np.float32),
    }

  lens = lens_lib.Lens('pinhole', np.diag([focal, focal, 1.0]))
  rigs = {f'{town}_a': schema.Rig(lens, (8, focal))}
  return schema.Dataset(town, frames, rigs, read, queries=queries)


class JoinTest(parameterized.TestCase):
  @parameterized.parameters(
    ((3, 4, 2),),
    ((1, 1),),
    ((5,),),
  )
  def test_every_row_is_its_parts_own(self, counts):
    parts = [
      _part(f't{i}', count, 10 * (i + 1)) for i, count in enumerate(counts)
    ]
    dataset = joined.join('all', parts)
    row = 0
    for i, count in enumerate(counts):
      for own in range(count):
        self.assertEqual(dataset.frames.town[row], f't{i}')
        self.assertEqual(dataset.frames.frame[row], own)
        reading = dataset.read(row, ('image', 'points'))
        self.assertEqual(reading['image'].shape[1], 10 * (i + 1))
        self.assertEqual(reading['image'][0, 0, 0], own)
        row += 1
    self.assertLen(dataset.frames.town, row)
    with self.assertRaises(IndexError):
      dataset.read(row, ('image',))

  def test_queries_are_joined_and_none_is_kept(self):
    asks = [np.array([True, False]), np.array([False, True, True])]
    parts = [_part(f't{i}', len(q), 10, q) for i, q in enumerate(asks)]
    dataset = joined.join('all', parts)
    np.testing.assert_array_equal(dataset.queries, np.concatenate(asks))
    self.assertLen(questions.between_drives(dataset.frames, dataset.queries), 2)
    parts = [part._replace(queries=None) for part in parts]
    self.assertIsNone(joined.join('all', parts).queries)

  def test_what_cannot_be_joined_is_named(self):
    with self.assertRaisesRegex(ValueError, 'no datasets'):
      joined.join('all', [])
    with self.assertRaisesRegex(ValueError, r"share a town.*\['t'\].*\['t'\]"):
      joined.join('all', [_part('t', 2, 10), _part('t', 3, 10)])
    mixed = [_part('a', 1, 10, np.ones(1, bool)), _part('b', 1, 10)]
    with self.assertRaisesRegex(ValueError, r"\['a'\] name their queries"):
      joined.join('all', mixed)

  def test_conditions_and_renderings_are_kept_where_all_have_them(self):
    parts = [
      part._replace(conditions=np.full(len(part.frames.town), word))
      for part, word in ((_part('a', 2, 10), 'day'), (_part('b', 1, 10), 'fog'))
    ]
    whole = joined.join('all', parts)
    self.assertEqual(whole.conditions.tolist(), ['day', 'day', 'fog'])
    self.assertIsNone(whole.frames.has_rendering)
    parts[0] = parts[0]._replace(conditions=None)
    self.assertIsNone(joined.join('all', parts).conditions)

  @parameterized.parameters(
    dict(truth=truth_lib.Truth()), dict(rough=np.zeros((3, 2)))
  )
  def test_what_is_said_by_row_is_refused(self, **said):
    parts = [_part('a', 2, 10), _part('b', 3, 10)._replace(**said)]
    with self.assertRaisesRegex(InputError, r"all: \['b'\] say by row"):
      joined.join('all', parts)

  def test_batches_carry_the_intrinsics_of_their_own_camera(self):
    dataset = joined.join('all', [_part('a', 8, 16), _part('b', 8, 32)])
    batch = next(
      batches.train_batches(
        dataset, batch_size=16, image_size=(8, 16), num_points=4,
        cross_drive=0.5, max_offset=1.0, seed=0,
      )
    )  # fmt: skip
    # Both focal lengths are the image's width, which is resized to 16.
    np.testing.assert_allclose(batch['intrinsics'][:, 0, 0], 16)
    fy = np.where(batch['image_town'] == 0, 16, 32)
    np.testing.assert_allclose(batch['intrinsics'][:, 1, 1], fy)
    np.testing.assert_array_equal(batch['image_town'], batch['points_town'])


class UnplacedTest(absltest.TestCase):
  def test_frames_are_read_but_nobody_knows_where_they_are(self):
    dataset = joined.join('all', [_part('a', 4, 10), _part('b', 5, 10)])
    dataset = dataset._replace(
      conditions=np.arange(9).astype(str),
      frames=dataset.frames._replace(
        has_points=np.arange(9) != 8, has_rendering=np.arange(9) > 6
      ),
      queries=np.ones(9, bool),
      truth=truth_lib.Truth(),
      rough=np.zeros((9, 2)),
    )
    found = joined.unplaced(dataset, np.array([8, 3, 5]), 'target')
    frames = found.frames
    self.assertEqual({*frames.town, *frames.drive, *found.rigs}, {'target'})
    self.assertTrue(np.isnan(frames.world_from_body).all())
    self.assertTrue(np.isnan(frames.timestamp).all())
    self.assertEqual(frames.frame.tolist(), [0, 1, 2])
    self.assertLen({*frames.name}, 3)
    self.assertEqual(frames.has_points.tolist(), [False, True, True])
    self.assertEqual(frames.has_rendering.tolist(), [True, False, False])
    self.assertEqual(found.conditions.tolist(), ['8', '3', '5'])
    self.assertIsNone(found.queries)
    self.assertIsNone(found.truth)
    self.assertIsNone(found.rough)
    pixels = [found.read(row, ('image',))['image'][0, 0, 0] for row in range(3)]
    self.assertEqual(pixels, [4, 3, 1])  # as their own parts count
    whole = joined.join('more', [_part('c', 2, 10), found])
    self.assertEqual(whole.read(3, ('image',))['image'][0, 0, 0], 3)
    plain = dataset._replace(conditions=None)
    self.assertIsNone(joined.unplaced(plain, np.array([1]), 't').conditions)

  def test_frames_of_one_kind_of_camera_alone(self):
    parts = [_part('a', 2, 10), _part('b', 2, 12)]
    dataset = joined.join('all', parts)
    joined.unplaced(dataset, np.array([2, 3]), 't')
    with self.assertRaisesRegex(InputError, 'different cameras'):
      joined.unplaced(dataset, np.array([0, 3]), 't')
    own = parts[1].rigs['b_a']
    other = own._replace(camera_from_body=2 * own.camera_from_body)
    for rig in (
      own._replace(lens=None),
      own._replace(image_size=(1, 2)),
      own._replace(lens=own.lens._replace(distortion=np.ones(4))),
      own._replace(lens=own.lens._replace(model='opencv')),
      other,
    ):
      rigs = {'a_a': own, 'b_a': rig}
      with self.assertRaisesRegex(InputError, 'different cameras'):
        joined.unplaced(dataset._replace(rigs=rigs), np.array([0, 3]), 't')
    with self.assertRaisesRegex(InputError, 'no frames'):
      joined.unplaced(dataset, np.array([], int), 't')


class KittiAndKitti360Test(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='kitti_'))
    )
    kitti_folder.make_sequence(self.root / 'kitti')
    kitti360_folder.make_root(self.root / 'kitti360')

  def load(self, split, **options):
    options = {'kitti360_dir': str(self.root / 'kitti360')} | options
    return datasets.load(
      'kitti_and_kitti360',
      split=split,
      data_dir=str(self.root / 'kitti'),
      camera=0,
      **options,
    )

  def test_both_are_read_each_with_its_own_camera(self):
    dataset = self.load('03+0003')
    towns = pairing.unique_in_order(dataset.frames.town)
    self.assertEqual(towns, ['03', kitti360_folder.NAME])
    small, large = dataset.read(0), dataset.read(2)
    self.assertEqual(small['image'].shape, (16, 24, 3))
    matrix = dataset.rigs[kitti360_folder.NAME].lens.intrinsics
    self.assertAlmostEqual(matrix[0, 0], 552.554, places=2)
    dataset = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(dataset.read(2)['image'], large['image'])

  def test_one_folder_may_hold_both(self):
    (self.root / 'kitti360/calibration').rename(self.root / 'kitti/calibration')
    for name in ('data_2d_raw', 'data_3d_raw', 'data_poses'):
      (self.root / 'kitti360' / name).rename(self.root / 'kitti' / name)
    both = self.load('03+0003', kitti360_dir='')
    self.assertLen(both.frames.town, 4)

  def test_one_dataset_alone_needs_nothing_of_the_other(self):
    kitti = self.load('03[:1]', kitti360_dir='/nowhere')
    self.assertEqual(list(kitti.frames.town), ['03'])
    other = datasets.load(
      'kitti_and_kitti360',
      split='spaced:0003',
      data_dir=str(self.root / 'kitti360'),
    )
    self.assertEqual({*other.frames.town}, {kitti360_folder.NAME})

  def test_rules_hold_for_both(self):
    dataset = self.load('disjoint:03+0003', query_spacing=100.0)
    self.assertEqual(list(dataset.queries), [True, False, True, False])

  def test_a_missing_half_is_named(self):
    with self.assertRaisesRegex(FileNotFoundError, '/nowhere/calibration'):
      self.load('03+0003', kitti360_dir='/nowhere')
    with self.assertRaisesRegex(FileNotFoundError, r"no sequence \['04'\]"):
      self.load('04+0003')


if __name__ == '__main__':
  absltest.main()
