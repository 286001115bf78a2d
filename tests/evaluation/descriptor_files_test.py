# SPDX-License-Identifier: Apache-2.0
"""A folder of descriptors is read as meant, or refused by name."""

import pathlib
import sys
import tempfile
from typing import NamedTuple
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.evaluation import descriptor_files
from i2ploc.evaluation import protocols
from i2ploc.evaluation import retrieval

try:
  import h5py
except ImportError:
  h5py = None

COUNT = 6


def make_arrays():
  """A sound file of 6 images and 6 scans."""
  rng = np.random.default_rng(0)
  pose = np.tile(np.eye(4), (COUNT, 1, 1))
  pose[:, 2, 3] = 5.0 * np.arange(COUNT)
  return {
    'image': rng.normal(size=(COUNT, 8)),
    'points': rng.normal(size=(COUNT, 2, 8)),
    'image_frame': np.arange(COUNT),
    'points_frame': np.arange(COUNT),
    'image_pose': pose,
    'points_pose': pose.copy(),
    'image_time': np.arange(COUNT) / 10,
    'points_time': np.arange(COUNT) / 10,
    'axes': np.array('kitti'),
    'similarity': np.array('dot'),
  }


class FilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    self.folder = pathlib.Path(temporary.name)

  def load(self, arrays, poses=None, **options):
    np.savez(self.folder / '07.npz', **arrays)
    (recording,) = descriptor_files.load_descriptors(
      self.folder, poses, **options
    )
    return recording

  def test_what_is_written_is_read(self):
    arrays = make_arrays()
    recording = self.load(arrays)
    self.assertEqual(recording.name, '07')
    self.assertEqual(recording.similarity, 'dot')
    self.assertEqual(recording.image.descriptors.shape, (COUNT, 1, 8))
    np.testing.assert_allclose(
      recording.points.descriptors, arrays['points'], rtol=1e-6
    )
    track = recording.points.track
    np.testing.assert_array_equal(track.ground[:, 1], 5 * np.arange(COUNT))
    np.testing.assert_array_equal(track.times, arrays['points_time'])
    np.testing.assert_allclose(track.headings, np.pi / 2)

  def test_rows_are_put_in_the_order_of_frames(self):
    arrays = make_arrays()
    expected = self.load(arrays)
    order = np.random.default_rng(1).permutation(COUNT)
    for key in arrays:
      if key.startswith('image'):
        arrays[key] = arrays[key][order]
    found = self.load(arrays)
    np.testing.assert_array_equal(
      found.image.descriptors, expected.image.descriptors
    )
    np.testing.assert_array_equal(
      found.image.track.positions, expected.image.track.positions
    )

  def test_plain_descriptors_take_poses_and_settings_from_outside(self):
    arrays = make_arrays()
    plain = {key: arrays[key] for key in ('image', 'points')}
    found = self.load(
      plain, {'07': arrays['image_pose']}, similarity='dot', rate=5.0
    )
    expected = self.load(arrays)
    np.testing.assert_array_equal(
      found.image.track.positions, expected.image.track.positions
    )
    np.testing.assert_array_equal(found.image.track.times, np.arange(COUNT) / 5)
    self.assertEqual(found.image.track.axes, 'kitti')

  def test_given_poses_replace_those_of_the_file_by_frame_number(self):
    arrays = make_arrays()
    arrays['axes'] = np.array('z_up')
    arrays['points_frame'] = np.arange(COUNT) + 2
    poses = np.tile(np.eye(4), (COUNT + 2, 1, 1))
    poses[:, 0, 3] = np.arange(COUNT + 2)
    track = self.load(arrays, {'07': poses}).points.track
    np.testing.assert_array_equal(track.positions[:, 0], 2 + np.arange(COUNT))
    self.assertEqual(track.axes, 'kitti')

  def test_positions_are_enough_and_have_no_heading(self):
    arrays = make_arrays()
    for sensor in ('image', 'points'):
      pose = arrays.pop(f'{sensor}_pose')
      arrays[f'{sensor}_position'] = pose[:, :3, 3]
    track = self.load(arrays).image.track
    self.assertIsNone(track.headings)
    self.assertEqual(track.positions[2, 2], 10)

  def test_times_are_never_assumed(self):
    arrays = make_arrays()
    del arrays['image_time']
    self.assertIsNone(self.load(arrays).image.track.times)

  @parameterized.parameters(
    ('image', None, r"lacks \['image'\]"),
    ('axes', None, "does not say its 'axes'.*--axes"),
    ('similarity', None, "does not say its 'similarity'.*--similarity"),
    ('axes', 'kiti', "axes is 'kiti'; expected one of"),
    ('similarity', 'cosine', "similarity is 'cosine'; expected one of"),
    ('image_frame', None, 'lacks image_frame.*taken together'),
    ('image_pose', None, 'neither.*--poses'),
    ('image_position', np.zeros((COUNT, 3)), 'image_pose.*image_position'),
    ('imagepose', np.zeros(3), r"unknown keys \['imagepose'\]"),
    ('image', np.zeros((0, 8)), r'image has shape \(0, 8\)'),
    ('image', np.zeros(COUNT), r'image has shape \(6,\)'),
    ('image', np.ones((COUNT, 9)), 'image descriptors have 9 numbers'),
    ('image', np.full((COUNT, 8), 'a'), 'expected numbers'),
    ('image', np.ones((COUNT + 1, 8)), r'image_frame has shape \(6,\); exp'),
    ('image_pose', np.zeros((COUNT, 3, 4)), 'image_pose has shape'),
    ('image_pose', np.zeros((COUNT, 4, 4)), 'no rigid transform in 6 rows'),
    ('image_time', np.arange(COUNT)[::-1], 'goes back after frame 0'),
    ('image_time', np.zeros(2), r'image_time has shape \(2,\)'),
    ('image_frame', np.zeros(COUNT), r'holds \[0\] more than once.*views'),
    ('image_frame', np.arange(COUNT) + 0.5, 'whole numbers'),
    ('image_frame', np.arange(COUNT) - 1, 'whole numbers'),
  )  # fmt: skip
  def test_a_bad_file_is_named_with_its_fault(self, key, value, message):
    arrays = make_arrays()
    if value is None:
      del arrays[key]
    else:
      arrays[key] = np.asarray(value)
    with self.assertRaisesRegex(ValueError, rf'07\.npz: .*{message}'):
      self.load(arrays)

  @parameterized.parameters('image', 'points_pose', 'image_time')
  def test_rows_that_are_not_finite_are_named(self, key):
    arrays = make_arrays()
    arrays[key][[1, 4]] = np.nan
    with self.assertRaisesRegex(ValueError, rf'{key}.*2 rows.*\[1, 4\]'):
      self.load(arrays)

  def test_a_setting_that_contradicts_the_file_is_an_error(self):
    with self.assertRaisesRegex(ValueError, "'dot' in the file, but 'eucl"):
      self.load(make_arrays(), similarity='euclidean')

  def test_poses_that_do_not_fit_are_errors(self):
    arrays = make_arrays()
    poses = np.tile(np.eye(4), (COUNT - 1, 1, 1))
    with self.assertRaisesRegex(ValueError, r"no poses of '07'.*\['08'\]"):
      self.load(arrays, {'08': poses})
    with self.assertRaisesRegex(ValueError, 'up to 5, the pose file 5 rows'):
      self.load(arrays, {'07': poses})
    del arrays['image_frame'], arrays['points_frame']
    longer = np.tile(np.eye(4), (COUNT + 1, 1, 1))
    with self.assertRaisesRegex(ValueError, 'without image_frame, but 7 poses'):
      self.load(arrays, {'07': longer})

  def test_a_truncated_file_and_an_empty_folder_are_errors(self):
    with self.assertRaisesRegex(FileNotFoundError, 'one file per drive'):
      list(descriptor_files.load_descriptors(self.folder))
    np.savez(self.folder / '07.npz', **make_arrays())
    data = (self.folder / '07.npz').read_bytes()
    for broken in (data[: len(data) // 2], b'', b'text'):
      (self.folder / '07.npz').write_bytes(broken)
      with self.assertRaisesRegex(ValueError, '07.npz is truncated or not'):
        list(descriptor_files.load_descriptors(self.folder))


class Frames(NamedTuple):
  drive: np.ndarray
  frame: np.ndarray
  timestamp: np.ndarray
  world_from_body: np.ndarray


class SaveTest(absltest.TestCase):
  def test_what_a_model_embedded_is_scored_from_the_folder(self):
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    folder = temporary.name
    poses = np.tile(np.eye(4), (9, 1, 1))
    poses[:, 0, 3] = 30.0 * np.arange(9)
    frames = Frames(
      drive=np.array(['a/b'] * 5 + ['c'] * 4),
      frame=np.arange(9) + 100,
      timestamp=np.arange(9.0),
      world_from_body=poses,
    )
    rows = np.array([0, 1, 2, 3, 4, 5])
    codes = np.eye(9, dtype=np.float32)
    left_out = descriptor_files.save_descriptors(
      folder,
      frames,
      {
        'image': (rows[:5], codes[rows[:5]]),
        'points': (rows, np.stack([0 * codes[rows], codes[rows]], axis=1)),
      },
    )
    self.assertEqual(left_out, ['c'])
    (recording,) = descriptor_files.load_descriptors(folder)
    self.assertEqual(recording.name, 'a_b')
    self.assertEqual(recording.points.descriptors.shape, (5, 2, 9))
    np.testing.assert_array_equal(
      recording.image.track.frames, frames.frame[:5]
    )
    np.testing.assert_array_equal(recording.image.track.headings, np.zeros(5))
    results = retrieval.score_drives(
      [recording], [protocols.PROTOCOLS['lip_loc']]
    )
    self.assertEqual(results['lip_loc/a_b/image_to_points/recall@1_20m'], 100)


class PhotosTest(absltest.TestCase):
  NAMES = ('db/a b/0.jpg', 'db/a b/1.jpg', 'db/é.jpg', 'q/10.jpg', 'q/2.jpg')

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.descriptors = np.random.default_rng(0).normal(size=(5, 8))

  def test_numbers_and_names(self):
    path = self.folder / 'made/d.npy'
    descriptor_files.save_npy(path, self.NAMES, self.descriptors[:, None])
    found = np.load(path)
    self.assertEqual((found.dtype, found.shape), (np.float32, (5, 8)))
    np.testing.assert_allclose(found, self.descriptors, rtol=1e-6)
    text = (self.folder / 'made/d.txt').read_text('utf-8')
    self.assertEqual(text.splitlines(), [*self.NAMES])

  def test_hloc_finds_every_name_and_its_descriptor(self):
    """As pairs_from_retrieval reads a file, step by step."""
    if h5py is None:
      self.skipTest('h5py is not installed')
    path = self.folder / 'global.h5'
    descriptor_files.save_hloc(path, self.NAMES, self.descriptors)
    names = set()

    def visit(_, thing):
      if isinstance(thing, h5py.Dataset):
        names.add(thing.parent.name.strip('/'))

    with h5py.File(str(path), 'r') as file:
      file.visititems(visit)
      self.assertEqual(names, {*self.NAMES})
      stacked = np.stack(
        [file[name]['global_descriptor'].__array__() for name in self.NAMES]
      )
    self.assertEqual((stacked.dtype, stacked.shape), (np.float32, (5, 8)))
    np.testing.assert_allclose(stacked, self.descriptors, rtol=1e-6)
    asking = [name for name in sorted(names) if name.startswith('q/')]
    self.assertLen(asking, 2)

  def test_pairs_are_two_names_a_line(self):
    path = self.folder / 'pairs.txt'
    left_out = descriptor_files.save_pairs(
      path, ['q/10.jpg', 'q/2.jpg'],
      [['db/é.jpg', 'db/a b/0.jpg', 'db/c.jpg'], ['db/c.jpg']],
    )  # fmt: skip
    self.assertEqual(left_out, ['db/a b/0.jpg'])
    pairs = {}
    for line in path.read_text('utf-8').rstrip('\n').split('\n'):
      query, reference = line.split()
      pairs.setdefault(query, []).append(reference)
    self.assertEqual(
      pairs, {'q/10.jpg': ['db/é.jpg', 'db/c.jpg'], 'q/2.jpg': ['db/c.jpg']}
    )
    descriptor_files.save_pairs(path, [], [])
    self.assertEqual(path.read_text(), '')

  def test_what_cannot_be_written(self):
    several = np.zeros((5, 2, 8))
    with self.assertRaisesRegex(ValueError, r'\[5, 2, 8\]; expected one for'):
      descriptor_files.save_npy(self.folder / 'd.npy', self.NAMES, several)
    with self.assertRaisesRegex(ValueError, '4 photos have descriptors'):
      descriptor_files.save_npy(
        self.folder / 'd.npy', self.NAMES[:4], self.descriptors
      )
    self.assertEmpty([*self.folder.iterdir()])
    if h5py is not None:
      with self.assertRaisesRegex(ValueError, 'a name comes twice'):
        descriptor_files.save_hloc(
          self.folder / 'd.h5', ['a'] * 5, self.descriptors
        )
    with mock.patch.dict(sys.modules, {'h5py': None}):
      with self.assertRaisesRegex(ValueError, 'pip install h5py'):
        descriptor_files.save_hloc(
          self.folder / 'd.h5', self.NAMES, self.descriptors
        )


if __name__ == '__main__':
  absltest.main()
