# SPDX-License-Identifier: Apache-2.0
"""Answers stand where the map stood, and know how sure they are."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from i2ploc.geometry import lens as lens_lib
from i2ploc.localization import answer as answer_lib
from i2ploc.localization import retrieve
from i2ploc.retrieval import calibration as calibration_lib
from i2ploc.retrieval import index as index_lib

# x right, y down, z forward from x forward, y left, z up; 0.3 m to the front.
CAMERA_FROM_LIDAR = np.array(
  [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, -0.3], [0, 0, 0, 1.0]]
)
LENS = lens_lib.Lens('pinhole', np.eye(3))


def make_index(num_places=30, views=(0.0, np.pi), seed=0, spacing=2.5):
  """Readings along the y axis, looking north, each embedded in some views."""
  rng = np.random.default_rng(seed)
  size = num_places * len(views)
  descriptors = rng.normal(size=(size, 32)).astype(np.float32)
  descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
  keys = np.repeat(np.arange(num_places), len(views))
  poses = np.tile(np.eye(4), (size, 1, 1))
  poses[:, :2, :2] = [[0, -1], [1, 0]]
  poses[:, 1, 3] = spacing * keys
  poses[:, 2, 3] = 1.7
  return index_lib.Index(
    descriptors=descriptors,
    keys=keys,
    poses=poses,
    towns=np.full(size, 'town_007'),
    frames=1000 + keys,
    names=np.full(size, ''),
    views=np.tile(views, num_places),
    provenance=dict.fromkeys(index_lib.PROVENANCE, 'x'),
    rig=index_lib.Rig(LENS, (64, 208), CAMERA_FROM_LIDAR),
  )


def localize(index, queries, scale=20.0, radius=6.0, k=5):
  return retrieve.localize(queries, index, scale=scale, radius=radius, k=k)


class LocalizeTest(parameterized.TestCase):
  def test_a_planted_view_is_answered_with_its_pose(self):
    index = make_index()
    answers = localize(index, index.descriptors[[14, 15]])
    for answer, view in zip(
      (answers[0][0], answers[1][0]), (0, np.pi), strict=True
    ):
      evidence = answer.evidence
      self.assertEqual(answer.rank, 1)
      self.assertEqual((evidence['key'], evidence['frame']), (7, 1007))
      self.assertEqual(answer.place, 'town_007')
      self.assertAlmostEqual(answer.similarity, 1, 5)
      self.assertEqual(evidence['distance_from_best'], 0)
      self.assertEqual(evidence['view'], view)
      np.testing.assert_allclose(evidence['position'], [0, 17.5, 1.7])
    ahead, behind = answers[0][0], answers[1][0]
    self.assertAlmostEqual(ahead.evidence['heading'], np.pi / 2)
    self.assertAlmostEqual(behind.evidence['heading'], -np.pi / 2)
    # The camera is 0.3 m in front of the LiDAR, wherever front is.
    np.testing.assert_allclose(
      ahead.world_from_camera[:3, 3], [0, 17.8, 1.7], atol=1e-9
    )
    np.testing.assert_allclose(
      behind.world_from_camera[:3, 3], [0, 17.2, 1.7], atol=1e-9
    )
    # Its optical axis is the heading.
    np.testing.assert_allclose(
      behind.world_from_camera[:3, 2], [0, -1, 0], atol=1e-9
    )

  def test_answers_are_distinct_places_in_order(self):
    index = make_index()
    for answers in localize(index, index.descriptors[:4], k=10):
      self.assertLen({answer.evidence['key'] for answer in answers}, 10)
      self.assertEqual([answer.rank for answer in answers], list(range(1, 11)))
      values = [answer.similarity for answer in answers]
      self.assertEqual(values, sorted(values, reverse=True))
      best = answers[0].evidence['position']
      for answer in answers:
        apart = abs(answer.evidence['position'][1] - best[1])
        found = answer.evidence['distance_from_best']
        self.assertAlmostEqual(found, apart)

  @parameterized.parameters((1.0, 6.0), (20.0, 6.0), (100.0, 0.1))
  def test_confidence_agrees_with_the_loop_over_places(self, scale, radius):
    index = make_index()
    query = index.descriptors[8:9] + 0.5 * index.descriptors[20:21]
    query /= np.linalg.norm(query)
    best = {}
    for row, key in enumerate(index.keys):
      value = float(query[0] @ index.descriptors[row])
      best[key] = max(best.get(key, -2), value)
    weights = {key: np.exp(scale * value) for key, value in best.items()}
    total = sum(weights.values())
    for answer in localize(index, query, scale, radius)[0]:
      key = answer.evidence['key']
      near = [k for k in weights if 2.5 * abs(k - key) <= radius]
      expected = sum(weights[k] for k in near) / total
      self.assertAlmostEqual(answer.confidence, expected, 5)

  def test_confidence_is_extreme_only_for_a_reason(self):
    index = make_index(num_places=40, spacing=100.0)
    query = index.descriptors[:1]
    sure = localize(index, query, scale=100.0)[0][0].confidence
    unsure = localize(index, query, scale=1e-6)[0][0].confidence
    everything = localize(index, query, scale=1e-6, radius=1e6)[0][0].confidence
    self.assertGreater(sure, 0.999)
    self.assertAlmostEqual(unsure, 1 / 40, 4)
    self.assertAlmostEqual(everything, 1)
    for value in (sure, unsure, everything):
      self.assertBetween(value, 0, 1)

  def test_another_town_shares_coordinates_but_no_confidence(self):
    index = make_index(num_places=2, views=(0.0,), spacing=0.0)
    query = index.descriptors[:1]
    same = localize(index, query, scale=1e-6)[0]
    self.assertAlmostEqual(same[0].confidence, 1)
    towns = np.array(['town_007', 'town_008'])
    apart = dataclasses.replace(index, towns=towns)
    answers = localize(apart, query, scale=1e-6)[0]
    self.assertAlmostEqual(answers[0].confidence, 0.5, 5)
    self.assertEqual(answers[1].evidence['distance_from_best'], np.inf)

  def test_a_map_smaller_than_k_gives_all_of_it(self):
    index = make_index(num_places=3)
    self.assertLen(localize(index, index.descriptors[:1], k=20)[0], 3)

  def test_dot_products_are_reported_as_they_are(self):
    index = make_index(num_places=4, views=(0.0,))
    descriptors = 5 * index.descriptors
    origin = dict(index.provenance, similarity='dot')
    dots = dataclasses.replace(
      index, descriptors=descriptors, provenance=origin
    )
    first = localize(dots, descriptors[:1], scale=0.1)[0][0]
    self.assertAlmostEqual(first.similarity, 25.0, 4)
    self.assertBetween(first.confidence, 0.5, 1.0)
    # A cosine is one, even where rounding says 1.0000001.
    cosine = localize(index, index.descriptors)
    self.assertLessEqual(max(one[0].similarity for one in cosine), 1.0)

  def test_a_model_without_a_temperature_has_no_confidence(self):
    index = make_index()
    answers = localize(index, index.descriptors[:1], scale=None)[0]
    self.assertEqual({answer.confidence for answer in answers}, {None})
    self.assertEqual(answers[0].evidence['key'], 0)

  def test_readings_without_a_pose_are_answers_by_name(self):
    index = make_index(num_places=3, views=(0.0,))
    poses = index.poses.copy()
    poses[0] = np.nan
    poses[1, :3, :3] = np.nan
    photos = dataclasses.replace(
      index,
      poses=poses,
      names=np.array(['a.jpg', 'b.jpg', 'c.jpg']),
      rig=index_lib.Rig(None, None, np.eye(4)),
    )
    answers = localize(photos, index.descriptors[:1], scale=1e-6, radius=4.0)[0]
    by_name = {answer.evidence['name']: answer for answer in answers}
    nowhere, somewhere, posed = (by_name[f'{n}.jpg'] for n in 'abc')
    for answer in (nowhere, somewhere):
      self.assertIsNone(answer.world_from_camera)
      self.assertIsNone(answer.evidence['heading'])
    self.assertIsNone(nowhere.evidence['position'])
    np.testing.assert_array_equal(somewhere.evidence['position'], [0, 2.5, 1.7])
    self.assertIsNotNone(posed.world_from_camera)
    # Numbers of frames are neither positions nor metres.
    origin = {**index.provenance, 'unit': 'frames'}
    ordered = dataclasses.replace(photos, provenance=origin)
    for answer in localize(ordered, index.descriptors[:1])[0]:
      self.assertIsNone(answer.evidence['position'])
      self.assertIsNone(answer.evidence['distance_from_best'])
    # What is nowhere has its own share only, neighbours share theirs.
    self.assertAlmostEqual(nowhere.confidence, 1 / 3, 5)
    self.assertAlmostEqual(somewhere.confidence, 2 / 3, 5)
    query = answer_lib.Query('q.jpg', np.zeros((4, 4, 3), np.uint8))
    line = answer_lib.record(query, answers)
    found = {a['evidence']['name']: a for a in line['answers']}['a.jpg']
    self.assertIsNone(found['evidence']['distance_from_best'])
    self.assertIsNone(found['world_from_camera'])

  @parameterized.parameters(
    (np.zeros((0, 32)), {}, 'at least one query'),
    (np.full((1, 32), np.nan), {}, 'not finite'),
    (np.eye(16)[:1], {}, '16 numbers, the map has 32'),
    (np.eye(32)[:1], {'scale': 0.0}, 'scale=0.0'),
    (np.eye(32)[:1], {'scale': np.nan}, 'scale=nan'),
    (np.eye(32)[:1], {'radius': -1.0}, 'radius=-1.0'),
    (np.eye(32)[:1], {'k': 0}, 'k=0'),
  )
  def test_what_cannot_be_answered_is_an_error(self, queries, change, message):
    with self.assertRaisesRegex(ValueError, message):
      localize(make_index(), queries, **change)


class WithinTest(absltest.TestCase):
  def test_answers_are_those_of_a_map_of_the_places_that_may_answer(self):
    index = make_index(num_places=30)
    rng = np.random.default_rng(3)
    queries = rng.normal(size=(4, 32)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    within = rng.random((4, 30)) < 0.4
    within[2] = False
    found = retrieve.localize(
      queries, index, scale=9.0, radius=6.0, within=within
    )
    self.assertEqual(found[2], [])
    columns = ('descriptors', 'keys', 'poses', 'towns', 'frames', 'names')
    for i in (0, 1, 3):
      rows = np.flatnonzero(np.repeat(within[i], 2))
      some = dataclasses.replace(
        index,
        **{name: getattr(index, name)[rows] for name in (*columns, 'views')},
      )
      alone = retrieve.localize(queries[i : i + 1], some, scale=9.0, radius=6.0)
      self.assertEqual(
        [one.evidence['key'] for one in found[i]],
        [one.evidence['key'] for one in alone[0]],
      )
      np.testing.assert_allclose(
        [one.confidence for one in found[i]],
        [one.confidence for one in alone[0]],
        rtol=1e-5,
      )

  def test_a_calibrated_map_compares_with_places_that_may_answer(self):
    index = make_index(num_places=30, views=(0.0,))
    query = index.descriptors[4:5]
    within = np.arange(30)[None] == 4
    rows, value = np.array([4]), np.ones(1, np.float32)
    alone = calibration_lib.margins(
      index, query[0], rows, value, 3.0, within[0]
    )
    self.assertEqual(alone[0], np.inf)
    self.assertTrue(within[0, 4])

  def test_a_query_is_looked_for_around_its_rough_position(self):
    index = make_index()
    stage = retrieve.make_stage(
      index, lambda _: index.descriptors[6:7], (8, 8),
      scale=20.0, radius=6.0, k=30,
    )  # fmt: skip
    image = np.zeros((16, 16, 3), np.uint8)
    prior = answer_lib.Prior(position=np.array([0.0, 20.0]), radius=5.0)
    answers = stage(answer_lib.Query('a.png', image, prior=prior), [])
    keys = sorted(one.evidence['key'] for one in answers)
    self.assertEqual(keys, [6, 7, 8, 9, 10])
    self.assertLen(stage(answer_lib.Query('a.png', image), []), 30)
    prior = prior._replace(position=np.array([900.0, 0.0]))
    self.assertEmpty(stage(answer_lib.Query('a.png', image, prior=prior), []))


class StageTest(absltest.TestCase):
  def test_the_image_is_resized_together_with_its_lens(self):
    index, seen = make_index(), []

    def embed(batch):
      seen.append(batch)
      return index.descriptors[6:7]

    stage = retrieve.make_stage(
      index, embed, (64, 208), scale=20.0, radius=6.0, k=3
    )
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (128, 416, 3), np.uint8)
    matrix = np.array([[200.0, 0, 208], [0, 220, 64], [0, 0, 1]])
    query = answer_lib.Query('a.png', image, lens_lib.Lens('pinhole', matrix))
    answers = stage(query, [])
    self.assertLen(answers, 3)
    self.assertEqual(answers[0].evidence['key'], 3)
    (batch,) = seen
    self.assertEqual(batch['image'].shape, (1, 64, 208, 3))
    self.assertEqual(batch['image'].dtype, np.uint8)
    bent = query._replace(lens=lens_lib.Lens('fisheye', matrix))
    with self.assertRaisesRegex(ValueError, "a.png: a camera 'fisheye'.*undis"):
      stage(bent, [])
    expected = [[100, 0, 104], [0, 110, 32], [0, 0, 1]]
    np.testing.assert_allclose(batch['intrinsics'], [expected])
    # Antialiased and bicubic, as images are for training.
    bicubic = Image.fromarray(image).resize((208, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(batch['image'][0], np.asarray(bicubic))

  def test_images_are_described_together_as_in_a_map(self):
    index, seen = make_index(), []

    def embed(batch):
      seen.append(batch['image'])
      return index.descriptors[:1]

    stage = retrieve.make_stage(
      index, embed, (8, 8), scale=20.0, radius=6.0, k=2,
      frames=retrieve.Frames(3, stride=2),
    )  # fmt: skip
    drive = [
      answer_lib.Query(f'{i}.png', np.full((8, 8, 3), i, np.uint8))
      for i in range(8)
    ]
    for last, expected, count in (
      (7, [3, 5, 7], 3), (2, [0, 0, 2], 2), (0, [0, 0, 0], 1)
    ):  # fmt: skip
      query = drive[last]._replace(previous=tuple(drive[:last]))
      answers = stage(query, [])
      self.assertEqual(seen[-1].shape, (1, 3, 8, 8, 3))
      self.assertEqual(seen[-1][0, :, 0, 0, 0].tolist(), expected)
      self.assertEqual(answers[1].evidence['frames'], count)
    self.assertEqual(retrieve.Frames(3, stride=2).span, 5)

  def test_a_query_without_a_lens_has_no_intrinsics(self):
    index, seen = make_index(), []

    def embed(batch):
      seen.append(batch)
      return index.descriptors[:1]

    stage = retrieve.make_stage(
      index, embed, (8, 8), scale=None, radius=6.0, k=1
    )
    stage(answer_lib.Query('a.png', np.zeros((16, 16, 3), np.uint8)), [])
    self.assertEqual(set(seen[0]), {'image'})


if __name__ == '__main__':
  absltest.main()
