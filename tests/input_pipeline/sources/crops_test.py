# SPDX-License-Identifier: Apache-2.0
"""Training crops and scenes of a painted dataset."""

import collections
import pathlib
import tempfile

from absl.testing import absltest
import numpy as np

from input_pipeline.sources import crops
from input_pipeline.sources import drives
from tests.input_pipeline import labelled_frames
from tests.input_pipeline.readers import kitti_folder

SIZE = labelled_frames.SIZE
FIELDS = dict(per_image=3, min_pixels=30, min_side=4, min_share=0.2)
TEXTS = ('', *(thing[1] for thing in labelled_frames.THINGS.values()))


def _tokenize(texts):
  return np.array([[TEXTS.index(text), 7] for text in texts], np.int32)


def _crops(image_size=SIZE, num_frames=4, **fields):
  dataset = labelled_frames.dataset(num_frames)
  return crops.Crops(dataset, image_size, **FIELDS | fields)


class TrainBatchesTest(absltest.TestCase):
  def test_a_batch_holds_frames_with_boxes_and_their_texts(self):
    batch = next(_crops().train_batches(4, 0, _tokenize, workers=0))
    self.assertEqual(batch['image'].shape, (4, *SIZE, 3))
    self.assertEqual(batch['image'].dtype, np.uint8)
    boxes = {thing[3]: thing[1] for thing in labelled_frames.THINGS.values()}
    for i in range(4):
      for box, tokens, real in zip(
        batch['box'][i], batch['tokens'][i], batch['mask'][i], strict=True
      ):
        text = TEXTS[tokens[0]]
        self.assertEqual(text, boxes[tuple(box)] if real else '')
        self.assertEqual(tokens[1], 7)
      self.assertLen(
        set(map(tuple, batch['box'][i][batch['mask'][i]])),
        batch['mask'][i].sum(),
      )
    few = np.isin(batch['image_index'], [0, 4])  # they see two things
    np.testing.assert_array_equal(batch['mask'].sum(1), np.where(few, 2, 3))

  def test_an_epoch_takes_each_frame_once(self):
    batches = _crops().train_batches(4, 0, _tokenize, workers=0)
    rows = np.concatenate([next(batches)['image_index'] for _ in range(4)])
    self.assertEqual(sorted(rows[:8]), list(range(8)))
    self.assertEqual(sorted(rows[8:]), list(range(8)))
    self.assertNotEqual(rows[:8].tolist(), rows[8:].tolist())

  def test_categories_are_drawn_alike(self):
    batches = _crops(per_image=1).train_batches(8, 0, _tokenize, workers=0)
    drawn = collections.Counter()
    for _ in range(150):
      batch = next(batches)
      whole = ~np.isin(batch['image_index'], [0, 4])
      drawn.update(batch['tokens'][whole][:, 0, 0].tolist())
    total = sum(drawn.values())
    shares = [drawn[i] / total for i in range(1, 5)]
    np.testing.assert_allclose(shares, [1 / 3, 1 / 6, 1 / 6, 1 / 3], atol=0.05)

  def test_a_run_continues_bit_for_bit(self):
    batches = _crops().train_batches(4, 1, _tokenize)
    for _ in range(3):
      next(batches)
    state, expected = batches.get_state(), next(batches)
    again = _crops().train_batches(4, 1, _tokenize, workers=1)
    again.set_state(state)
    found = next(again)
    for name, value in expected.items():
      np.testing.assert_array_equal(found[name], value, name)

  def test_boxes_are_scaled_with_their_image(self):
    image, found = _crops(image_size=(48, 20)).frame(1)
    self.assertEqual(image.shape, (48, 20, 3))
    _, plain = _crops().frame(1)
    np.testing.assert_allclose(found.box, plain.box * [0.5, 2, 0.5, 2])

  def test_wrong_numbers_are_named(self):
    with self.assertRaisesRegex(ValueError, 'batch_size=9, but painted has 8'):
      _crops().train_batches(9, 0, _tokenize)
    with self.assertRaisesRegex(ValueError, 'per_image=0'):
      _crops(per_image=0)

  def test_a_source_without_objects_says_so(self):
    root = self.enterContext(tempfile.TemporaryDirectory())
    kitti_folder.make_drive(pathlib.Path(root))
    data = drives.Source(
      name='kitti_raw', data_dir=root, train='all', validation='', test='',
      image_size=SIZE, crops=FIELDS,
    )  # fmt: skip
    with self.assertRaisesRegex(ValueError, 'kitti_raw: crops need a dataset'):
      data.crops('train')


class ScenesTest(absltest.TestCase):
  def test_things_ask_and_what_is_near_may_answer(self):
    # Row 4 is at 0 m, row 7 at 6 m of the other drive.
    first, last = _crops().scenes([4, 7], radius=15.0)
    self.assertEqual(first.landmarks.instance.tolist(), [3])
    self.assertEqual(
      first.detections.instance.tolist(), [3, labelled_frames.CAR]
    )
    self.assertEqual(first.answers.tolist(), [0, -1])
    self.assertEqual(last.landmarks.instance.tolist(), [3, 5])
    self.assertEqual(last.answers.tolist(), [0, 1, -1, -1])

  def test_nothing_may_be_near(self):
    (scene,) = _crops().scenes([5], radius=0.1)
    self.assertEqual(scene.answers.tolist(), [-1] * 4)
    self.assertEmpty(scene.landmarks.text)


if __name__ == '__main__':
  absltest.main()
