# SPDX-License-Identifier: Apache-2.0
"""What cameras see, and renderers show, of a row and of those before it."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.errors import InputError
from i2ploc.geometry import lens as lens_lib
from input_pipeline import readings as readings_lib
from input_pipeline import schema
from tests.input_pipeline.plans import tables

SIZE = (4, 8)
# Two drives of six frames, mixed; of drive a the frame 2 has no image.
DRIVES = np.array(['a', 'b'] * 6)
NUMBERS = np.repeat([5, 4, 3, 2, 1, 0], 2)
BLIND = (DRIVES == 'a') & (NUMBERS == 2)


def _dataset(**changes):
  frames = tables.table('t', DRIVES, NUMBERS, 7.0 * NUMBERS, 0.0, 0.1 * NUMBERS)
  frames = frames._replace(
    has_image=~BLIND, has_rendering=np.ones(len(DRIVES), bool)
  )

  def read(row, what):
    shape = (8, 16, 3)
    return {
      'image': np.full(shape, row, np.uint8),
      'rendering': np.full(shape, 100 + row, np.uint8),
      'image_semantic': np.full(shape[:2], row, np.uint8),
    }

  rigs = {
    name: schema.Rig(
      lens_lib.Lens('pinhole', np.diag([focal, focal, 1.0])), (8, 16)
    )
    for name, focal in (('a', 10.0), ('b', 30.0))
  }
  return schema.Dataset('mixed', frames, rigs, read)._replace(**changes)


def _readings(dataset=None, labels=False, **sequence):
  return readings_lib.Readings(
    dataset or _dataset(), SIZE, 1, None, labels, **sequence
  )


def _row(drive, number):
  return int(np.flatnonzero((DRIVES == drive) & (NUMBERS == number))[0])


class SequencesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('b', 5, 3, 1, [3, 4, 5]),
    ('b', 5, 3, 2, [1, 3, 5]),
    ('b', 1, 3, 1, [0, 0, 1]),
    ('b', 3, 4, 2, [1, 1, 1, 3]),
    ('b', 0, 3, 1, [0, 0, 0]),
    ('a', 3, 3, 1, [0, 1, 3]),
    ('b', 5, 1, 3, None),
  )
  def test_oldest_first_and_the_oldest_for_what_is_missing(
    self, drive, number, length, stride, expected
  ):
    readings = _readings(num_frames=length, frame_stride=stride)
    row = _row(drive, number)
    for sensor, shift in (('image', 0), ('rendering', 100)):
      entry = getattr(readings, sensor)(row)
      numbers = [number] if expected is None else expected
      rows = [_row(drive, n) for n in numbers]
      lead = () if expected is None else (length,)
      picture = entry[sensor]
      self.assertEqual(picture.shape, (*lead, *SIZE, 3))
      self.assertEqual(picture.dtype, np.uint8)
      np.testing.assert_array_equal(
        picture.reshape(-1, *SIZE, 3)[:, 1, 2, 0], np.add(rows, shift)
      )
      position = entry[f'{sensor}_position']
      self.assertEqual(position.shape, (*lead, 3))
      # From the first row of the town, frame 5.
      np.testing.assert_allclose(
        position.reshape(-1, 3)[:, 0], 7.0 * (np.array(numbers) - 5)
      )
      np.testing.assert_allclose(
        np.ravel(entry[f'{sensor}_heading']), 0.1 * np.array(numbers), rtol=1e-5
      )
      self.assertEqual(entry[f'{sensor}_index'], row)
      self.assertEqual(np.shape(entry[f'{sensor}_town']), ())

  def test_calibration_and_labels_are_of_the_newest(self):
    entry = _readings(labels=True, num_frames=3).image(_row('b', 4))
    self.assertEqual(entry['image_semantic'].shape, SIZE)
    self.assertTrue((entry['image_semantic'] == _row('b', 4)).all())
    np.testing.assert_array_equal(
      entry['intrinsics'], np.diag([15.0, 15.0, 1.0]).astype(np.float32)
    )
    self.assertEqual(entry['camera_from_lidar'].shape, (4, 4))

  def test_a_camera_that_is_no_pinhole_is_refused(self):
    lens = lens_lib.Lens('opencv', np.eye(3), np.array([0.1, 0, 0, 0]))
    readings = _readings(
      _dataset(rigs={name: schema.Rig(lens, (8, 16)) for name in 'ab'})
    )
    message = "drive b, frame 4: a camera 'opencv' with.*undistort its images"
    with self.assertRaisesRegex(ValueError, message):
      readings.image(_row('b', 4))

  def test_several_crops_of_a_sequence_are_sequences(self):
    unknown = {name: schema.Rig(None, (8, 16)) for name in 'ab'}
    readings = _readings(
      _dataset(rigs=unknown), resize='five_crops', num_frames=3
    )
    picture = readings.image(_row('b', 4))['image']
    self.assertEqual(picture.shape, (5, 3, *SIZE, 3))
    rows = [_row('b', number) for number in (2, 3, 4)]
    np.testing.assert_array_equal(picture[:, :, 1, 2, 0], [rows] * 5)

  def test_frames_of_sequences_are_kept_once(self):
    calls = []
    dataset = _dataset()

    def read(row, what):
      calls.append((row, what))
      return dataset.read(row, what)

    readings = _readings(dataset._replace(read=read), num_frames=3)
    for number in range(6):
      readings.image(_row('b', number))
    self.assertLen(calls, 6)

  def test_errors_name_the_frame(self):
    row = _row('a', 2)
    readings = _readings(num_frames=2)
    for sensor in ('image', 'rendering'):
      with self.assertRaisesRegex(InputError, 'drive a, frame 2: no image'):
        getattr(readings, sensor)(row)
    for wrong in (dict(num_frames=0), dict(num_frames=2, frame_stride=0)):
      with self.assertRaisesRegex(InputError, 'num_frames=.*expected 1 or'):
        _readings(**wrong)

    def small(row, what):
      return {'rendering': np.zeros((4, 4, 3), np.uint8)}

    with self.assertRaisesRegex(InputError, 'drive b, frame 5.*4x4.*16x8'):
      _readings(_dataset(read=small)).rendering(_row('b', 5))


if __name__ == '__main__':
  absltest.main()
