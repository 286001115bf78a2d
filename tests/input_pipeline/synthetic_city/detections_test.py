# SPDX-License-Identifier: Apache-2.0
"""A detector made of labels, and the landmarks of a town."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from configs import clip
from i2ploc.models.encoders import vocabulary
from input_pipeline.synthetic_city import detections
from input_pipeline.synthetic_city import drive as drives
from input_pipeline.synthetic_city import objects
from input_pipeline.synthetic_city import town as towns
from tests.input_pipeline import labelled_frames

CAR = labelled_frames.CAR


def _detect(**fields):
  return detections.detect(
    labelled_frames.instance_image(), labelled_frames.things(), **fields
  )


class NamesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('a red van parked on the right', 'a red van'),
    ('a pedestrian in red walking ahead', 'a pedestrian in red'),
    ('a tall lime-like tree with yellow leaves behind on the left',
     'a tall lime-like tree'),
    ('a birch-like tree covered with snow behind', 'a birch-like tree'),
    ('a bus stop with a glass shelter ahead',
     'a bus stop with a glass shelter'),
    ('a white house with a flat roof on the left',
     'a white house with a flat roof'),
    ('a car driving school ahead', 'a car driving school'),
  )  # fmt: skip
  def test_keeps_what_holds_at_any_time(self, caption, expected):
    self.assertEqual(detections.landmark_text(caption), expected)

  def test_every_caption_of_towns_is_in_the_vocabulary_of_the_model(self):
    config = clip.get_config()
    tokenize = vocabulary.make_tokenize(
      config.model.words, config.model.text.max_length
    )
    words = set()
    for seed, condition in ((5, 'autumn'), (1003, 'snow')):
      town = towns.make_town(seed)
      drive = drives.make_drive(town, 1, 40, condition=condition)
      found = [objects.objects_at(town, drive, i) for i in (0, 20)]
      texts = {detections.landmark_text(c) for o in found for c in o.caption}
      # Of things out of sight too.
      texts |= set(town.things.description.tolist())
      tokenize(sorted(texts))
      words |= {word for text in texts for word in vocabulary.split(text)}
      for things in (*found, town.things):
        self.assertContainsSubset(
          things.category.tolist(), detections.CATEGORIES
        )
    self.assertEmpty(
      words & {'left', 'right', 'ahead', 'behind', 'parked', 'leaves', 'snow'}
    )
    self.assertGreater(len(words), 0.7 * len(config.model.words))


class DetectTest(parameterized.TestCase):
  def test_boxes_are_what_was_painted(self):
    found = _detect()
    np.testing.assert_array_equal(found.instance, [3, 5, 6, CAR])
    boxes = [labelled_frames.THINGS[n][3] for n in found.instance]
    np.testing.assert_array_equal(found.box, boxes)
    names = [detections.CATEGORIES[i] for i in found.category]
    self.assertEqual(names, ['bin', 'tree', 'tree', 'car'])
    self.assertEqual(
      found.text.tolist()[2:], ['a birch-like tree', 'a red van']
    )
    np.testing.assert_array_equal(found.cut, [False, True, False, True])
    np.testing.assert_array_equal(found.movable, [False, False, False, True])
    np.testing.assert_allclose(found.share, 1.0)

  def test_what_hides_an_object_takes_from_its_share(self):
    image = labelled_frames.instance_image()
    image[4:20, 4:9] = CAR
    found = detections.detect(image, labelled_frames.things())
    self.assertAlmostEqual(float(found.share[0]), 3 / 8, places=6)
    np.testing.assert_array_equal(found.box[0], [2, 4, 10, 20])
    found = detections.detect(image, labelled_frames.things(), min_share=0.5)
    self.assertNotIn(3, found.instance)
    self.assertNotIn(CAR, found.instance)

  @parameterized.parameters(
    (dict(min_pixels=101), [3, 6]), (dict(min_side=17), [6])
  )
  def test_small_objects_are_left_out(self, fields, expected):
    self.assertEqual(_detect(**fields).instance.tolist(), expected)

  def test_what_the_frame_does_not_name_is_left_out(self):
    image = labelled_frames.instance_image()
    found = detections.detect(image, labelled_frames.things((5,)))
    self.assertEqual(found.instance.tolist(), [5])
    for nothing in (
      detections.detect(image, []),
      detections.detect(np.zeros_like(image), labelled_frames.things()),
    ):
      self.assertEqual(nothing.box.shape, (0, 4))
      self.assertEqual(nothing.text.dtype.kind, 'U')


class NoiseTest(absltest.TestCase):
  def test_edges_move_by_their_share_of_the_side(self):
    box = np.tile(np.float32([100, 200, 140, 300]), (4000, 1))
    many = _detect().take(np.zeros(4000, int))._replace(box=box)
    rng = np.random.default_rng(0)
    found = detections.with_noise(many, rng, (500, 500), edge=0.05)
    error = (found.box - box) / [40, 100, 40, 100]
    np.testing.assert_allclose(error.std(0), 0.05, rtol=0.05)
    np.testing.assert_allclose(error.mean(0), 0.0, atol=0.004)
    self.assertLess(abs(np.corrcoef(error.T) - np.eye(4)).max(), 0.06)

  def test_edges_at_the_border_stay_and_boxes_stay_boxes(self):
    rng = np.random.default_rng(0)
    found = _detect()
    for _ in range(50):
      noisy = detections.with_noise(found, rng, labelled_frames.SIZE, edge=1.0)
      self.assertEqual(noisy.box[1, 1], 0)
      self.assertEqual(noisy.box[3, 2], 40)
      self.assertTrue((noisy.box[:, 2:] >= noisy.box[:, :2]).all())
      self.assertTrue((noisy.box >= 0).all())
      self.assertTrue((noisy.box <= [40, 24, 40, 24]).all())

  def test_objects_are_missed(self):
    many = _detect().take(np.zeros(4000, int))
    rng = np.random.default_rng(0)
    found = detections.with_noise(many, rng, (500, 500), missed=0.3)
    self.assertAlmostEqual(len(found.box) / 4000, 0.7, delta=0.03)
    same = detections.with_noise(_detect(), rng, labelled_frames.SIZE, edge=0.0)
    np.testing.assert_array_equal(same.box, _detect().box)


class LandmarksTest(absltest.TestCase):
  def test_what_stays_is_counted_in_the_first_drive(self):
    dataset = labelled_frames.dataset(num_frames=4)
    found = detections.landmarks(dataset, 'town')
    self.assertEqual(found.instance.tolist(), [3, 5, 6])
    self.assertEqual(found.num_views.tolist(), [4, 3, 3])
    self.assertEqual(found.text[2], 'a birch-like tree')
    np.testing.assert_allclose(found.center[:, 0], [5, 20, 60])
    self.assertEqual(found.rotation.shape, (3, 3, 3))
    expected = [np.cos(np.pi / 6), np.sin(np.pi / 6), 0]
    np.testing.assert_allclose(found.rotation[0][:, 0], expected, atol=1e-12)
    self.assertAlmostEqual(np.linalg.det(found.rotation[0]), 1.0)

  def test_what_is_too_small_to_be_seen_is_no_landmark(self):
    dataset = labelled_frames.dataset()
    found = detections.landmarks(dataset, 'town', min_pixels=128)
    self.assertEqual(found.instance.tolist(), [3, 6])
    none = detections.landmarks(dataset, 'town', min_pixels=10_000)
    self.assertEqual(none.center.shape, (0, 3))
    self.assertEqual(none.rotation.shape, (0, 3, 3))

  def test_an_unknown_town_is_named(self):
    with self.assertRaisesRegex(ValueError, "no town 'x'; it has .'town'"):
      detections.landmarks(labelled_frames.dataset(), 'x')


if __name__ == '__main__':
  absltest.main()
