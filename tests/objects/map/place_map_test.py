# SPDX-License-Identifier: Apache-2.0
"""What language adds to a map: classes, descriptors, calibrated ranks."""

import types

from absl.testing import absltest
import numpy as np

from i2ploc.objects import association
from i2ploc.objects.map import construction
from i2ploc.objects.map import landmarks
from i2ploc.objects.map import place_map
from tests.objects import planted_objects

SIZE, INTRINSICS = planted_objects.SIZE, planted_objects.INTRINSICS
QUICK = construction.DEFAULT._replace(rounds=1, calibrate=False)


def _sightings(scene, texts=None, embedding=None):
  """Planted frames; texts and descriptors by category."""
  found = []
  for seen, pose in zip(scene.frames, scene.poses, strict=True):
    if embedding is not None:
      seen = seen._replace(embedding=embedding[seen.category])
    named = None if texts is None else tuple(texts[c] for c in seen.category)
    found.append(place_map.Sighting(seen, named, pose[:3, 3]))
  return found


def _row_map(count):
  """Landmarks a metre apart along x."""
  center = np.stack([np.arange(count), np.zeros(count), np.zeros(count)], -1)
  return landmarks.make_map(
    center,
    np.full((count, 3), 0.1),
    np.tile(np.eye(3), (count, 1, 1)),
    np.arange(count) % 2,
    labels=[(f'thing {i}', 'thing') for i in range(count)],
  )


class BuildTest(absltest.TestCase):
  def test_texts_are_classes_and_categories_are_kept(self):
    scene = planted_objects.make_scene(num_frames=24, missed=0.1, false=0.0)
    texts = {0: 'a red mug', 1: 'a thick book', 2: 'a tall lamp'}
    # The detector knows one word for all; the texts tell them apart.
    alike = scene._replace(
      frames=[
        seen._replace(category=np.full(len(seen.box), 5))
        for seen in scene.frames
      ]
    )
    sightings = _sightings(scene, texts)
    sightings = [
      one._replace(detections=seen)
      for one, seen in zip(sightings, alike.frames, strict=True)
    ]
    found = place_map.build(
      sightings, scene.poses, INTRINSICS, SIZE, settings=QUICK
    )
    self.assertEqual(found.num_landmarks, 7)
    self.assertEqual(found.category.tolist(), [5] * 7)
    self.assertEqual(
      sorted(found.names()),
      ['a red mug'] * 3 + ['a tall lamp'] * 2 + ['a thick book'] * 2,
    )


class LabelsTest(absltest.TestCase):
  def test_landmarks_are_taken_as_they_are(self):
    shapes = planted_objects.table(np.random.default_rng(0), 2)
    labels = types.SimpleNamespace(
      **shapes._asdict(),
      category=np.array([2, 0]),
      text=np.array(['a fir', 'a green bin']),
      num_views=np.array([3, 4]),
    )
    found = place_map.from_labels(labels)
    self.assertEqual(found.category.tolist(), [2, 0])
    self.assertEqual(found.names(), ['a fir', 'a green bin'])
    np.testing.assert_array_equal(found.semi_axes, shapes.semi_axes)
    self.assertEqual(found.num_views.tolist(), [3, 4])


class DescribeTest(absltest.TestCase):
  def test_a_descriptor_is_the_mean_of_the_texts(self):
    vectors = {'<thing>': [0.0, 1], '<thing 0>': [1.0, 0], '<thing 1>': [0, -1]}
    asked = []

    def encode(texts):
      asked.extend(texts)
      return np.array([vectors[text] for text in texts])

    found = place_map.describe(_row_map(2), encode, '<{}>')
    self.assertLen(asked, 4)
    half = np.sqrt(0.5)
    # Opposite texts leave no direction.
    np.testing.assert_allclose(
      found.embedding, [[half, half], [0, 0]], atol=1e-6
    )

  def test_a_landmark_without_a_label_is_named(self):
    objects = _row_map(3)._replace(labels=(('a',), (), ('b',)), ids=[4, 5, 6])
    objects = objects._replace(ids=np.array([4, 5, 6]))
    with self.assertRaisesRegex(ValueError, r'landmarks \[5\] have no label'):
      place_map.describe(objects, lambda texts: np.zeros((len(texts), 2)))


class NearTest(absltest.TestCase):
  def test_landmarks_around_a_position(self):
    objects = _row_map(6)
    found = place_map.near(objects, np.array([2.0, 0, 0]), 1.5)
    self.assertEqual(found.ids.tolist(), [1, 2, 3])
    self.assertEqual(found.labels, objects.labels[1:4])
    self.assertEqual(place_map.near(objects, np.zeros(3), 0).num_landmarks, 6)


class CalibrateTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    scene = planted_objects.make_scene(num_frames=24, noise=0.5, false=0.0)
    self.scene = scene
    count = len(scene.category)
    self.objects = landmarks.make_map(
      scene.ellipsoid.center,
      scene.ellipsoid.semi_axes,
      scene.ellipsoid.rotation,
      scene.category,
    )
    self.unit = np.eye(count)

  def _calibrate(self, of_category, k=3, radius=0.0):
    """With descriptors of detections [3, L] by category."""
    return place_map.calibrate(
      self.objects._replace(embedding=np.float32(self.unit)),
      _sightings(self.scene, embedding=np.float32(of_category)),
      self.scene.poses,
      INTRINSICS,
      SIZE,
      k=k,
      radius=radius,
    )

  def test_the_first_text_is_worth_what_it_is_worth(self):
    # Seven objects of three categories: crops look like the first of theirs,
    # less like the second, and the third is never thought of.
    looks = 0.6 * self.unit[[0, 1, 2]] + 0.4 * self.unit[[3, 4, 5]]
    found = self._calibrate(looks, k=2)
    first = found.probability(np.array([0]), np.array([0.8]))[0]
    second = found.probability(np.array([1]), np.array([0.55]))[0]
    share = np.mean(
      np.concatenate([seen.category == 0 for seen in self.scene.frames])
    )
    # A book or lamp is one of two, a mug one of three.
    expected = share / 3 + (1 - share) / 2
    self.assertAlmostEqual(first, expected, delta=0.08)
    self.assertAlmostEqual(second, expected, delta=0.08)

  def test_what_is_never_right_is_worth_little(self):
    wrong = self.unit[[1, 2, 0]]
    found = self._calibrate(wrong, k=1)
    self.assertLess(found.probability(np.array([0]), np.array([1.0]))[0], 0.05)

  def test_without_landmarks_in_reach_nothing_is_known(self):
    looks = self.unit[[0, 1, 2]]
    self.assertEqual(
      self._calibrate(looks, radius=0.01), association.UNCALIBRATED
    )


if __name__ == '__main__':
  absltest.main()
