# SPDX-License-Identifier: Apache-2.0
"""The last images find a place that the last one alone does not."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.localization import answer as answer_lib
from i2ploc.localization import sequences
from i2ploc.retrieval import index as index_lib
from i2ploc.retrieval import sequences as sequences_lib

PLACES = 60
WIDTH = 32


def unit(x):
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def make_index(views=1, positions=True, seed=0):
  """A drive along x, a place every 2 m; keys are no row numbers."""
  rng = np.random.default_rng(seed)
  size = PLACES * views
  keys = np.repeat(np.arange(PLACES), views)
  poses = np.tile(np.eye(4), (size, 1, 1))
  poses[:, 0, 3] = 2.0 * keys if positions else np.nan
  return index_lib.Index(
    descriptors=unit(rng.normal(size=(size, WIDTH))),
    keys=7 * keys + 3,
    poses=poses,
    towns=np.full(size, 'town'),
    frames=10 * keys,
    names=np.array([f'{key:03d}.jpg' for key in keys]),
    views=np.zeros(size),
    provenance=dict.fromkeys(index_lib.PROVENANCE, 'x'),
    rig=index_lib.Rig(None, None, np.eye(4)),
  )


class SequencesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.seen, self.histories = [], []

  def stage(self, index, sequence, **options):
    """The stage, whose images hold their descriptors."""

    def describe(query):
      self.seen.append(query.name)
      self.histories.append([one.name for one in query.previous])
      return query.image

    return sequences.make_stage(index, describe, sequence, **options)

  def drive(self, descriptors, length=99):
    """Queries of a drive, each with up to length - 1 images before it."""
    frames = [
      answer_lib.Query(f'{i}', descriptor)
      for i, descriptor in enumerate(descriptors)
    ]
    return [
      frame._replace(previous=tuple(frames[max(0, i - length + 1) : i]))
      for i, frame in enumerate(frames)
    ]

  def noisy(self, index, places, noise, seed=1):
    rng = np.random.default_rng(seed)
    clean = index.descriptors[places]
    return unit(clean + noise * rng.normal(size=clean.shape))

  @parameterized.product(
    direction=(1, -1),
    positions=(True, False),
    sequence=(
      sequences_lib.Sequence(7),
      sequences_lib.Sequence(7, (0.8, 1.0, 1.2), contrast=11),
    ),
  )
  def test_a_drive_is_found_where_its_images_are_not(
    self, direction, positions, sequence
  ):
    index = make_index(positions=positions)
    truth = np.arange(10, 50)[::direction]
    queries = self.drive(self.noisy(index, truth, 0.36))
    stage = self.stage(index, sequence, k=4, direction=0)
    found, alone = [], []
    for query, place in zip(queries[6:], truth[6:], strict=True):
      answers = stage(query, [])
      self.assertEqual([one.rank for one in answers], [1, 2, 3, 4])
      found.append(answers[0].evidence['name'] == f'{place:03d}.jpg')
      alone.append(answers[0].evidence['rank_alone'] == 1)
      self.assertEqual(answers[0].evidence['frames'], 7)
      self.assertIsNone(answers[0].confidence)
      self.assertIn('no confidence', answers[0].reason)
      similarities = [one.similarity for one in answers]
      self.assertEqual(similarities, sorted(similarities, reverse=True))
    self.assertGreater(np.mean(found), 0.9)
    self.assertLess(np.mean(alone), 0.85)

  def test_each_image_is_described_once_however_often_it_is_asked(self):
    index = make_index()
    queries = self.drive(index.descriptors[:20], length=5)
    stage = self.stage(index, sequences_lib.Sequence(3, stride=2), k=1)
    for query in queries:
      stage(query, [])
    # The first one had nothing before it, and no question.
    self.assertCountEqual(self.seen, [f'{i}' for i in range(20)])

  def test_each_image_is_described_with_those_before_it(self):
    index = make_index()
    query = self.drive(index.descriptors[:6])[-1]
    self.stage(index, sequences_lib.Sequence(2, stride=2), k=1)(query, [])
    self.assertCountEqual(self.seen, ['3', '5'])
    for name, history in zip(self.seen, self.histories, strict=True):
      self.assertEqual(history, [str(i) for i in range(int(name))])

  def test_places_around_the_rough_position_answer(self):
    index = make_index()
    query = self.drive(index.descriptors[10:15])[-1]
    stage = self.stage(index, sequences_lib.Sequence(5), k=9)
    for east, expected in ((28.0, 14), (40.0, None), (900.0, None)):
      prior = answer_lib.Prior(position=np.array([east, 0.0]), radius=3.0)
      found = [one.evidence for one in stage(query._replace(prior=prior), [])]
      away = [abs(one['position'][0] - east) for one in found]
      self.assertLen(away, 3 if east < 100 else 0)
      self.assertTrue(all(metres <= 3 for metres in away))
      if expected:
        self.assertEqual(found[0]['frame'], 10 * expected)

  def test_one_image_keeps_its_answers(self):
    index = make_index()
    (query,) = self.drive(index.descriptors[:1])
    stage = self.stage(index, sequences_lib.Sequence(5), k=3)
    self.assertEqual(
      stage(query, ['as', 'they', 'were']), ['as', 'they', 'were']
    )
    self.assertEmpty(self.seen)

  def test_the_first_images_of_a_drive_are_answered_with_what_is_there(self):
    index = make_index()
    queries = self.drive(index.descriptors[5:8])
    stage = self.stage(index, sequences_lib.Sequence(11), k=1)
    (one,) = stage(queries[2], [])
    self.assertEqual(one.evidence['frames'], 3)
    self.assertEqual(one.evidence['name'], '007.jpg')

  def test_strided_images_are_as_far_apart_as_strided_places(self):
    index = make_index()
    truth = np.arange(20, 41)
    queries = self.drive(self.noisy(index, truth, 0.36))
    stage = self.stage(index, sequences_lib.Sequence(5, stride=3), k=1)
    found = [
      stage(query, [])[0].evidence['name'] == f'{place:03d}.jpg'
      for query, place in zip(queries[12:], truth[12:], strict=True)
    ]
    self.assertGreater(np.mean(found), 0.9)
    self.assertEqual(sequences.span(sequences_lib.Sequence(5, stride=3)), 13)

  def test_the_view_that_was_seen_answers(self):
    index = make_index(views=2)
    rows = 2 * np.arange(8, 14) + 1
    queries = self.drive(index.descriptors[rows])
    stage = self.stage(index, sequences_lib.Sequence(5), k=1)
    (one,) = stage(queries[-1], [])
    turned = dataclasses.replace(index, views=np.tile([0.0, 0.5], PLACES))
    (same,) = self.stage(turned, sequences_lib.Sequence(5), k=1)(
      queries[-1], []
    )
    self.assertEqual(one.evidence['key'], 7 * 13 + 3)
    self.assertEqual(same.evidence['view'], 0.5)

  def test_the_similarity_is_the_mean_over_all_images_up_to_the_last(self):
    index = make_index()
    seen = self.noisy(index, np.arange(10, 15), 0.2)
    queries = self.drive(seen)
    stage = self.stage(index, sequences_lib.Sequence(5), k=1)
    (one,) = stage(queries[-1], [])
    self.assertEqual(one.evidence['name'], '014.jpg')
    alone = np.sum(seen * index.descriptors[10:15], axis=1)
    self.assertAlmostEqual(one.similarity, alone.mean(), 5)

  def test_of_several_crops_the_most_similar_counts(self):
    index = make_index()
    rng = np.random.default_rng(2)
    seen = index.descriptors[8:14]
    crops = np.stack([0.1 * unit(rng.normal(size=seen.shape)), seen], 1)
    queries = self.drive(crops)
    stage = self.stage(index, sequences_lib.Sequence(5), k=1)
    (one,) = stage(queries[-1], [])
    self.assertEqual(one.evidence['name'], '013.jpg')
    self.assertAlmostEqual(one.similarity, 1, 5)

  def test_a_line_does_not_leave_its_town(self):
    index = make_index()
    towns = np.where(np.arange(PLACES) < 30, 'a', 'b')
    runs = sequences.map_runs(dataclasses.replace(index, towns=towns))
    np.testing.assert_array_equal(runs, np.arange(PLACES) >= 30)

  def test_a_sequence_out_of_range_is_named_before_any_query(self):
    with self.assertRaisesRegex(ValueError, 'length=0'):
      self.stage(make_index(), sequences_lib.Sequence(0), k=1)


if __name__ == '__main__':
  absltest.main()
