# SPDX-License-Identifier: Apache-2.0
"""Answers stand where the map stood, and know how sure they are."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.localization import retrieve
from i2ploc.retrieval import index as index_lib

# x right, y down, z forward from x forward, y left, z up; 0.3 m to the front.
CAMERA_FROM_LIDAR = np.array(
  [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, -0.3], [0, 0, 0, 1.0]]
)


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
    views=np.tile(views, num_places),
    provenance=dict.fromkeys(index_lib.PROVENANCE, 'x'),
    rig=index_lib.Rig(np.eye(3), (64, 208), CAMERA_FROM_LIDAR),
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
      self.assertEqual((answer.rank, answer.key, answer.frame), (1, 7, 1007))
      self.assertEqual(answer.town, 'town_007')
      self.assertAlmostEqual(answer.similarity, 1, 5)
      self.assertEqual(answer.distance_from_best, 0)
      self.assertEqual(answer.view, view)
      np.testing.assert_allclose(answer.position, [0, 17.5, 1.7])
    ahead, behind = answers[0][0], answers[1][0]
    self.assertAlmostEqual(ahead.heading, np.pi / 2)
    self.assertAlmostEqual(behind.heading, -np.pi / 2)
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
      self.assertLen({answer.key for answer in answers}, 10)
      self.assertEqual([answer.rank for answer in answers], list(range(1, 11)))
      values = [answer.similarity for answer in answers]
      self.assertEqual(values, sorted(values, reverse=True))
      for answer in answers:
        apart = abs(answer.position[1] - answers[0].position[1])
        self.assertAlmostEqual(answer.distance_from_best, apart)

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
      near = [k for k in weights if 2.5 * abs(k - answer.key) <= radius]
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
    apart = index._replace(towns=np.array(['town_007', 'town_008']))
    answers = localize(apart, query, scale=1e-6)[0]
    self.assertAlmostEqual(answers[0].confidence, 0.5, 5)
    self.assertEqual(answers[1].distance_from_best, np.inf)
    record = retrieve.record_from_answers('a.png', answers)
    self.assertIsNone(record['answers'][1]['distance_from_best'])
    json.dumps(record, allow_nan=False)

  def test_a_map_smaller_than_k_gives_all_of_it(self):
    index = make_index(num_places=3)
    self.assertLen(localize(index, index.descriptors[:1], k=20)[0], 3)

  def test_the_record_is_one_line_of_json_with_the_pose_row_by_row(self):
    index = make_index()
    answers = localize(index, index.descriptors[:1])[0]
    record = retrieve.record_from_answers('dir/a.png', answers)
    line = json.dumps(record, allow_nan=False)
    self.assertNotIn('\n', line)
    read = json.loads(line)
    self.assertEqual(read['query'], 'dir/a.png')
    self.assertLen(read['answers'], 5)
    first = read['answers'][0]
    np.testing.assert_allclose(
      np.reshape(first['world_from_camera'], (4, 4)),
      answers[0].world_from_camera,
    )
    self.assertEqual(set(first), set(retrieve.Answer._fields))

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


if __name__ == '__main__':
  absltest.main()
