# SPDX-License-Identifier: Apache-2.0
"""Batches hold what they promise and resume to the bit."""

import functools
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib
from i2ploc.training import checkpoint
from input_pipeline import batches as batches_lib
from input_pipeline import datasets
from input_pipeline import readings
from input_pipeline import schema
from tests.training import linear_run

_LENGTH = 20
_SIZE = (16, 40)
_RIG = schema.Rig(
  lens_lib.Lens('pinhole', np.array([[50.0, 0, 40], [0, 60, 16], [0, 0, 1]])),
  (32, 80),
)


_PLACE = ('position', 'heading', 'town', 'index')


def _frames(towns=3):
  rows = [
    (f't{t}', f't{t}_{d}', f, float(f))
    for t in range(towns)
    for d in range(2)
    for f in range(_LENGTH)
  ]
  town, drive, frame, timestamp = map(np.array, zip(*rows, strict=True))
  poses = np.tile(np.eye(4), (len(rows), 1, 1))
  poses[:, 0, 3] = 5.0 * frame + 1e6
  poses[:, 1, 3] = [float(name.endswith('_1')) for name in drive]
  present = np.ones(len(rows), bool)
  return schema.FrameTable(
    town,
    drive,
    frame,
    timestamp,
    poses,
    present,
    present.copy(),
    schema.frame_names(drive, frame),
  )


def _read(row, what):
  """A reading whose every pixel and intensity tells its row."""
  rng = np.random.default_rng(row)
  points = rng.normal(size=(50 + row % 30, 4)).astype(np.float32)
  points[:, 3] = row / 1000
  return {
    'image': np.full((32, 80, 3), row, np.uint8),
    'points': points,
    'image_semantic': np.full((32, 80), row % 7, np.uint8),
    'points_semantic': (points[:, 0] > 0).astype(np.uint8),
  }


def _dataset(**changes):
  frames = _frames()
  return schema.Dataset(
    'made_up',
    frames,
    dict.fromkeys(frames.drive.tolist(), _RIG),
    lambda row, what: _read(row, what),
  )._replace(**changes)


def _train(dataset, **options):
  options = {
    'batch_size': 8,
    'image_size': _SIZE,
    'num_points': 32,
    'cross_drive': 0.5,
    'max_offset': 2.0,
    'seed': 0,
  } | options
  return batches_lib.train_batches(dataset, **options)


def _evaluate(dataset, rows, **options):
  options = {'batch_size': 4, 'image_size': _SIZE, 'num_points': 64} | options
  return list(batches_lib.read_batches(dataset, rows, **options))


class TrainBatchesTest(parameterized.TestCase):
  def assert_equal(self, a, b):
    self.assertCountEqual(a, b)
    for name in a:
      np.testing.assert_array_equal(a[name], b[name], name)

  def test_batch_is_the_device_batch(self):
    batch = next(_train(_dataset()))
    shapes = {k: (v.shape, v.dtype.name) for k, v in batch.items()}
    self.assertDictEqual(
      shapes,
      {
        'image': ((8, *_SIZE, 3), 'uint8'),
        'intrinsics': ((8, 3, 3), 'float32'),
        'points': ((8, 32, 4), 'float32'),
        'points_mask': ((8, 32), 'bool'),
        'camera_from_lidar': ((8, 4, 4), 'float32'),
        'image_position': ((8, 3), 'float32'),
        'points_position': ((8, 3), 'float32'),
        'image_heading': ((8,), 'float32'),
        'points_heading': ((8,), 'float32'),
        'image_town': ((8,), 'int32'),
        'points_town': ((8,), 'int32'),
        'image_index': ((8,), 'int32'),
        'points_index': ((8,), 'int32'),
      },
    )
    # Town coordinates start at the town's first frame: no float32 rounding.
    self.assertLess(np.abs(batch['image_position']).max(), 5 * _LENGTH)

  def test_entries_are_the_readings_of_their_rows(self):
    batch = next(_train(_dataset()))
    np.testing.assert_array_equal(
      batch['image'][:, 3, 5, 1], batch['image_index']
    )
    np.testing.assert_allclose(
      batch['points'][:, :, 3],
      np.repeat(batch['points_index'][:, None] / 1000, 32, 1),
      atol=1e-6,
    )
    np.testing.assert_allclose(
      batch['intrinsics'][0], [[25, 0, 20], [0, 30, 8], [0, 0, 1]]
    )

  @parameterized.parameters(0.0, 0.7, 1.0)
  def test_scans_are_near_and_of_another_drive_as_often_as_asked(self, chance):
    frames = _frames()
    batches = list(_train(_dataset(), cross_drive=chance, num_epochs=5))
    image = np.concatenate([b['image_index'] for b in batches])
    scan = np.concatenate([b['points_index'] for b in batches])
    self.assertLen(image, 5 * len(frames.town) // 8 * 8)
    step = frames.position[image] - frames.position[scan]
    self.assertLessEqual(np.linalg.norm(step, axis=1).max(), 2.0)
    np.testing.assert_array_equal(frames.town[image], frames.town[scan])
    share = np.mean(frames.drive[image] != frames.drive[scan])
    spread = 4 * np.sqrt(chance * (1 - chance) / len(image))
    self.assertBetween(share, chance - spread, chance + spread)

  def test_an_epoch_takes_each_image_once_and_mixes_towns(self):
    epoch = 3 * 2 * _LENGTH
    batches = list(_train(_dataset(), batch_size=12, num_epochs=2))
    rows = np.concatenate([b['image_index'] for b in batches])
    self.assertCountEqual(rows[:epoch], range(epoch))
    self.assertCountEqual(rows[epoch:], range(epoch))
    self.assertFalse((rows[:epoch] == rows[epoch:]).all())
    for batch in batches:
      self.assertGreater(len({*batch['image_town']}), 1)

  def test_runs_of_one_town_stay_together_and_are_drawn_anew(self):
    batches = list(_train(_dataset(), batch_size=12, town_run=4, num_epochs=2))
    rows = np.concatenate([b['image_index'] for b in batches])
    towns = np.concatenate([b['image_town'] for b in batches])
    runs = towns.reshape(-1, 4)
    self.assertTrue((runs == runs[:, :1]).all())
    half = len(rows) // 2
    self.assertCountEqual(rows[:half], rows[half:])
    met = {frozenset(run) for run in rows[:half].reshape(-1, 4).tolist()}
    again = {frozenset(run) for run in rows[half:].reshape(-1, 4).tolist()}
    self.assertLess(len(met & again), len(met))

  @parameterized.parameters(0, 1, 3)
  def test_saved_state_resumes_to_the_bit_with_any_workers(self, workers):
    straight = _train(_dataset())
    for _ in range(17):
      next(straight)
    state = straight.get_state()
    resumed = _train(_dataset(), workers=workers)
    next(resumed)
    resumed.set_state(state)
    for _ in range(5):
      self.assert_equal(next(straight), next(resumed))

  def test_seeds_differ(self):
    a, b = next(_train(_dataset())), next(_train(_dataset(), seed=1))
    self.assertFalse((a['image_index'] == b['image_index']).all())

  def test_a_full_memory_changes_nothing(self):
    expected = list(_train(_dataset(), num_epochs=1))
    with absltest.mock.patch.object(readings, 'CACHE_BYTES', 10_000):
      found = list(_train(_dataset(), num_epochs=1))
    for a, b in zip(expected, found, strict=True):
      self.assert_equal(a, b)

  def test_each_reading_is_read_once(self):
    calls = []

    def read(row, what):
      calls.append((row, what))
      return _read(row, what)

    list(_train(_dataset(read=read), num_epochs=3, workers=0))
    self.assertLen(calls, len({*calls}))

  def test_frustum_keeps_what_the_camera_may_see(self):
    batch = next(_train(_dataset(), frustum=0.5, num_points=64))
    points, mask = batch['points'], batch['points_mask']
    azimuth = np.abs(np.arctan2(points[..., 1], points[..., 0]))
    self.assertLessEqual(azimuth[mask].max(), 0.5)
    self.assertTrue(mask.any(1).all())
    for row, index in enumerate(batch['points_index']):
      whole = _read(int(index), ())['points']
      front = np.abs(np.arctan2(whole[:, 1], whole[:, 0])) <= 0.5
      self.assertEqual(mask[row].sum(), front.sum())


_STEPS = 6


def _plan(number, describe):
  """Six steps of four rows; drawn by the round and by what is described."""
  rng = np.random.default_rng(number)
  row = rng.integers(0, 120, (_STEPS, 4))
  return {
    'row': row,
    'place': rng.integers(-1, 9, (_STEPS, 4), np.int32),
    'yaw': rng.normal(size=(_STEPS, 4)).astype(np.float32),
    'labelled': describe(row[0])[:, 0] + rng.normal(size=(_STEPS, 4)) > 0,
    'corners': rng.normal(size=(_STEPS, 4, 2)),
  }


def _entry(row):
  return {'image': np.full((2, 3), row, np.uint8), 'image_index': np.int32(row)}


def _describe(variables, rows):
  return np.cos(variables * np.asarray(rows, float))[:, None]


def _planned(plan=_plan, entry=_entry, workers=2):
  return batches_lib.PlannedBatches(plan, entry, _describe, workers)


class PlannedBatchesTest(parameterized.TestCase):
  def assert_equal(self, found, expected):
    for a, b in zip(found, expected, strict=True):
      self.assertEqual(list(a), list(b))
      for name in a:
        self.assertEqual(a[name].dtype, b[name].dtype)
        np.testing.assert_array_equal(a[name], b[name], name)

  def rounds(self, batches, variables):
    """All batches of a round for each of the variables."""
    found = []
    for value in variables:
      batches.refresh(value)
      found += list(batches)
    return found

  def test_a_batch_is_its_rows_and_what_the_plan_says(self):
    found = self.rounds(_planned(), [0.5, 0.7])
    plans = [
      _plan(i, functools.partial(_describe, value))
      for i, value in enumerate([0.5, 0.7])
    ]
    self.assertLen(found, 2 * _STEPS)
    for i, batch in enumerate(found):
      plan, step = plans[i // _STEPS], i % _STEPS
      self.assertEqual(
        list(batch),
        ['image', 'image_index', 'place', 'yaw', 'labelled', 'corners'],
      )
      np.testing.assert_array_equal(batch['image'][:, 1, 2], plan['row'][step])
      for name in ('place', 'yaw', 'labelled', 'corners'):
        np.testing.assert_array_equal(batch[name], plan[name][step])
        self.assertEqual(batch[name].dtype, plan[name].dtype)

  def test_a_round_is_planned_once_and_by_its_own_model(self):
    asked = []

    def plan(number, describe):
      asked.append((number, float(describe([2])[0, 0])))
      return _plan(number, describe)

    self.rounds(_planned(plan), [0.5, 0.1, 0.5])
    self.assertEqual(
      asked, [(0, np.cos(1.0)), (1, np.cos(0.2)), (2, np.cos(1.0))]
    )

  def test_a_round_ends_and_none_is_there_before_the_first(self):
    batches = _planned()
    for _ in range(2):
      self.assertEmpty(list(batches))
      batches.refresh(0.5)
      self.assertLen(list(batches), _STEPS)
    self.assertIs(iter(batches), batches)

  @parameterized.parameters(0, 1, 5)
  def test_a_new_round_discards_what_was_prepared(self, done):
    batches = _planned()
    batches.refresh(0.5)
    for _ in range(done):
      next(batches)
    found = self.rounds(batches, [0.3])
    self.assert_equal(found, self.rounds(_planned(), [0.5, 0.3])[_STEPS:])

  @parameterized.parameters(0, 1, 3)
  def test_every_position_resumes_to_the_bit_with_any_workers(self, workers):
    variables = [0.5, 0.3, 0.2]
    expected = self.rounds(_planned(), variables)
    batches, states = _planned(), [_planned().get_state()]
    for value in variables[:2]:
      batches.refresh(value)
      for _ in batches:
        states.append(batches.get_state())
    self.assertLen(states, 2 * _STEPS + 1)
    for done, state in enumerate(states):
      resumed = _planned(workers=workers)
      resumed.refresh(9.9)  # another round, and in the midst of it
      next(resumed)
      resumed.set_state(state)
      found = list(resumed)  # what is left of the round, by its own plan
      for value in variables[-(-done // _STEPS) :]:
        resumed.refresh(value)
        found += list(resumed)
      self.assert_equal(found, expected[done:])

  def test_a_checkpoint_keeps_the_position(self):
    variables = [0.5, 0.3]
    expected = self.rounds(_planned(), variables)
    batches = _planned()
    batches.refresh(variables[0])
    for _ in range(2):
      next(batches)
    state = linear_run.init_state(linear_run.make_optimizer())
    with tempfile.TemporaryDirectory() as folder:
      checkpoints = checkpoint.Checkpoints(folder)
      checkpoints.save(state, batches.get_state(), {})
      next(batches)  # a state that was handed over does not move
      checkpoints.wait()
      restored = checkpoints.restore_latest(state).data_state
      checkpoints.close()
    resumed = _planned()
    resumed.set_state(restored)
    found = list(resumed) + self.rounds(resumed, variables[1:])
    self.assert_equal(found, expected[2:])

  def test_a_bad_reading_is_named_through_the_workers(self):
    def entry(row):
      raise InputError(f'row {row} is bad')

    batches = _planned(entry=entry)
    batches.refresh(0.5)
    with self.assertRaisesRegex(InputError, 'row .* is bad'):
      next(batches)


class ReadBatchesTest(absltest.TestCase):
  def test_renderings_come_alone_or_beside_images(self):
    def read(row, what):
      shown = _read(row, what)
      shown['rendering'] = 255 - shown['image']
      return {name: shown[name] for name in what}

    dataset = _dataset(read=read)
    (batch,) = _evaluate(dataset, [7, 9], what=('rendering',))
    np.testing.assert_array_equal(
      batch['rendering'][:, 3, 4, 0], [248, 246, 246, 246]
    )
    self.assertCountEqual(
      batch,
      [
        'rendering',
        'mask',
        'intrinsics',
        'camera_from_lidar',
        *(f'rendering_{name}' for name in _PLACE),
      ],
    )
    np.testing.assert_array_equal(
      batch['intrinsics'][0], [[25, 0, 20], [0, 30, 8], [0, 0, 1]]
    )
    (both,) = _evaluate(dataset, [7, 9], what=('image', 'rendering'))
    for name, values in batch.items():
      np.testing.assert_array_equal(both[name], values)
    np.testing.assert_array_equal(both['image'][:2, 3, 4, 0], [7, 9])
    np.testing.assert_array_equal(both['image_index'], both['rendering_index'])

  def test_sequences_end_with_their_row(self):
    (batch,) = _evaluate(
      _dataset(), [27, 41], what=('image',), num_frames=3, frame_stride=2
    )
    self.assertEqual(batch['image'].shape, (4, 3, *_SIZE, 3))
    # Row 41 is the second of its drive: the oldest stands for those missing.
    np.testing.assert_array_equal(
      batch['image'][:2, :, 3, 4, 0], [[23, 25, 27], [41, 41, 41]]
    )
    np.testing.assert_allclose(
      batch['image_position'][0, :, 0], [15.0, 25.0, 35.0]
    )
    self.assertEqual(batch['image_heading'].shape, (4, 3))
    np.testing.assert_array_equal(batch['image_index'], [27, 41, 41, 41])
    np.testing.assert_array_equal(batch['mask'], [True, True, False, False])
    with self.assertRaisesRegex(InputError, 'frame_stride=0'):
      _evaluate(_dataset(), [27], num_frames=3, frame_stride=0)

  def test_rows_come_in_order_and_the_last_batch_is_padded(self):
    rows = np.array([5, 3, 9, 100, 7, 2])
    batches = _evaluate(_dataset(), rows)
    index = np.concatenate([b['image_index'] for b in batches])
    mask = np.concatenate([b['mask'] for b in batches])
    np.testing.assert_array_equal(mask, [True] * 6 + [False] * 2)
    np.testing.assert_array_equal(index[mask], rows)
    np.testing.assert_array_equal(
      np.concatenate([b['points_index'] for b in batches])[mask], rows
    )

  def test_padding_points_are_masked_and_zero(self):
    (batch,) = _evaluate(_dataset(), [0, 29], num_points=60, batch_size=2)
    np.testing.assert_array_equal(batch['points_mask'].sum(1), [50, 60])
    self.assertTrue((batch['points'][~batch['points_mask']] == 0).all())
    np.testing.assert_array_equal(
      batch['points'][0, :50], _read(0, ())['points']
    )

  def test_drawn_points_are_distinct_and_always_the_same(self):
    (a,) = _evaluate(_dataset(), [29], num_points=16, batch_size=1)
    (b,) = _evaluate(_dataset(), [29], num_points=16, batch_size=1)
    np.testing.assert_array_equal(a['points'], b['points'])
    self.assertLen(np.unique(a['points'][0], axis=0), 16)

  def test_what_limits_what_is_read(self):
    asked = []

    def read(row, what):
      asked.append(what)
      return _read(row, what)

    (batch,) = _evaluate(_dataset(read=read), [1, 2], what=('points',))
    self.assertEqual({*asked}, {('points',)})
    self.assertNotIn('image', batch)
    self.assertIn('camera_from_lidar', batch)

  def test_scans_alone_carry_the_camera_they_are_compared_with(self):
    (batch,) = _evaluate(_dataset(), [1, 2], what=('points',))
    (both,) = _evaluate(_dataset(), [1, 2])
    for name in ('intrinsics', 'camera_from_lidar'):
      np.testing.assert_array_equal(batch[name], both[name])

  def test_a_drive_without_images_borrows_a_lens_and_keeps_its_mounting(self):
    dataset = _dataset()
    blind = dataset.frames.drive == 't0_0'
    mounting = np.diag([1.0, -1, -1, 1])
    rigs = dict(dataset.rigs) | {'t0_0': schema.Rig(None, None, mounting)}
    frames = dataset.frames._replace(has_image=~blind)
    (batch,) = _evaluate(
      dataset._replace(frames=frames, rigs=rigs), [0, 1], what=('points',)
    )
    np.testing.assert_array_equal(batch['camera_from_lidar'][0], mounting)
    np.testing.assert_array_equal(
      batch['intrinsics'][0], [[25, 0, 20], [0, 30, 8], [0, 0, 1]]
    )
    frames = frames._replace(has_image=np.zeros_like(blind))
    with self.assertRaisesRegex(ValueError, 'made_up has no image, so no cam'):
      _evaluate(dataset._replace(frames=frames), [0], what=('points',))

  def test_nothing_is_said_of_an_unknown_camera(self):
    unknown = dict.fromkeys(_dataset().rigs, schema.Rig(None, None))
    (batch,) = _evaluate(_dataset(rigs=unknown), [1, 2], what=('image',))
    self.assertCountEqual(
      batch,
      ['image', 'mask', *(f'image_{name}' for name in _PLACE)],
    )

  def test_labels_stay_with_their_points_and_pixels(self):
    (batch,) = _evaluate(
      _dataset(),
      [40, 41],
      num_points=20,
      batch_size=2,
      what=('image', 'points', 'labels'),
    )
    np.testing.assert_array_equal(
      batch['points_semantic'], batch['points'][..., 0] > 0
    )
    self.assertEqual(batch['image_semantic'].shape, (2, *_SIZE))
    self.assertTrue((batch['image_semantic'][1] == 41 % 7).all())


class BadInputTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('batch_size', {'batch_size': 121}, 'batch_size=121.*120 images'),
    ('no_batch', {'batch_size': 0}, 'batch_size=0'),
    ('num_points', {'num_points': 0}, 'num_points must be at least 1'),
    ('cross_drive', {'cross_drive': 1.5}, 'probability, not 1.5'),
    ('max_offset', {'max_offset': -1.0}, 'max_offset'),
    ('image_size', {'image_size': (0, 5)}, 'image_size'),
  )
  def test_an_argument_is_named(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      _train(_dataset(), **options)

  def test_an_empty_table_is_named(self):
    empty = _dataset(frames=_frames().take(np.zeros(0, int)))
    with self.assertRaisesRegex(ValueError, 'made_up has no frames'):
      _train(empty)

  def test_no_rows_are_an_error(self):
    with self.assertRaisesRegex(ValueError, '0 rows'):
      _evaluate(_dataset(), [])
    with self.assertRaisesRegex(ValueError, 'imge'):
      _evaluate(_dataset(), [1], what=('imge',))

  def test_a_bad_reading_is_named_through_the_workers(self):
    def nan(row, what):
      reading = _read(row, what)
      reading['points'][3, 1] = np.nan
      return reading

    with self.assertRaisesRegex(ValueError, 'drive t0_0, frame 4: 1 of 54'):
      _evaluate(_dataset(read=nan), [4])

    def gray(row, what):
      return _read(row, what) | {'image': np.zeros((4, 4), np.uint8)}

    with self.assertRaisesRegex(ValueError, r'drive t0_1, frame 1.*\[4, 4\]'):
      _evaluate(_dataset(read=gray), [21])

  def test_an_image_of_another_size_than_its_camera_is_named(self):
    def read(row, what):
      small = np.zeros((16, 40, 3), np.uint8)
      return _read(row, what) | ({'image': small} if row == 21 else {})

    with self.assertRaisesRegex(
      ValueError, 'drive t0_1, frame 1: an image of 40x16, .* has 80x32'
    ):
      _evaluate(_dataset(read=read), [20, 21])

  def test_unknown_names_list_the_known(self):
    with self.assertRaisesRegex(ValueError, "'kity'.*kitti_odometry"):
      datasets.load('kity', split='train', data_dir='/nowhere')


if __name__ == '__main__':
  absltest.main()
