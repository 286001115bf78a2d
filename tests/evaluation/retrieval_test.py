# SPDX-License-Identifier: Apache-2.0
"""A planted model gets the recall that was planted, town by town."""

import collections
import functools
import json
import math
import pathlib
import tempfile
from typing import NamedTuple
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.evaluation import metrics
from i2ploc.evaluation import predictions
from i2ploc.evaluation import questions as questions_lib
from i2ploc.evaluation import retrieval
from i2ploc.evaluation import scores
from i2ploc.photos import truth as truth_lib
from i2ploc.retrieval import sequences

SIZE = 40  # frames per drive
WIDTH = 64


class Frames(NamedTuple):
  town: np.ndarray
  drive: np.ndarray
  frame: np.ndarray
  timestamp: np.ndarray
  position: np.ndarray
  heading: np.ndarray
  has_image: np.ndarray
  has_points: np.ndarray


def make_frames(num_towns=2):
  """Per town a map drive and a query drive, 40 frames at 12.5 m, offset 1 m."""
  x = 12.5 * np.arange(SIZE)
  drives, positions = [], []
  for town in range(num_towns):
    for name, offset in (('map', 0.0), ('query', 1.0)):
      drives += [f'{town}_{name}'] * SIZE
      positions.append(np.stack([x, x * 0 + offset, x * 0 + 30 * offset], 1))
  count = len(drives)
  return Frames(
    town=np.array([drive.partition('_')[0] for drive in drives]),
    drive=np.array(drives),
    frame=np.tile(np.arange(SIZE), 2 * num_towns),
    timestamp=np.tile(np.arange(float(SIZE)), 2 * num_towns),
    position=np.concatenate(positions),
    heading=np.zeros(count),
    has_image=np.ones(count, bool),
    has_points=np.ones(count, bool),
  )


def make_questions(name='cross', num_towns=2, **options):
  places = np.arange(SIZE)
  first = 0 if name == 'sync' else SIZE
  return [
    questions_lib.Question(
      name,
      f'town_{town:03d}',
      'image',
      'points',
      2 * SIZE * town + first + places,
      2 * SIZE * town + places,
      radii=(5.0, 10.0, 20.0),
      travel=-1 if name == 'opposite' else 1,
      **options,
    )
    for town in range(num_towns)
  ]


def codes(seed=0):
  """One descriptor per place, the same in every town.

  Only a town's own database tells the towns apart.
  """
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(SIZE, WIDTH))
  return np.tile(x / np.linalg.norm(x, axis=1, keepdims=True), (4, 1))


class Towers:
  """Descriptors by frame row, batches of 16 with padding, and a call count."""

  def __init__(self, image, points):
    self.tables = {'image': image, 'points': points}
    self.seen = collections.Counter()

  def batches(self, name, rows):
    for start in range(0, len(rows), 16):
      taken = rows[start : start + 16]
      padded = np.full(16, taken[-1])
      padded[: len(taken)] = taken
      yield {f'{name}_index': padded, 'mask': np.arange(16) < len(taken)}

  def embed(self, name, scale, batch):
    self.seen.update(
      (name, int(row)) for row in batch[f'{name}_index'][batch['mask']]
    )
    # Padding must not reach any result.
    mask = batch['mask'].reshape(-1, *[1] * (self.tables[name].ndim - 1))
    return np.where(
      mask, scale * self.tables[name][batch[f'{name}_index']], np.nan
    )

  def evaluator(self, frames, questions, **kwargs):
    sides = ('image', 'points')
    return retrieval.RetrievalEvaluator(
      'test',
      embed={s: functools.partial(self.embed, s) for s in sides},
      batches={s: functools.partial(self.batches, s) for s in sides},
      frames=frames,
      questions=questions,
      **kwargs,
    )


class EvaluatorTest(parameterized.TestCase):
  def run_all(self, image, points, frames=None, questions=None, **kwargs):
    towers = Towers(image, points)
    evaluator = towers.evaluator(
      make_frames() if frames is None else frames,
      questions or make_questions(),
      **kwargs,
    )
    pairs = list(evaluator.run(1.0))
    results = dict(pairs)
    self.assertLen(results, len(pairs), 'a name came twice')
    return results, evaluator, towers

  def test_a_perfect_model_finds_everything_beside_chance_and_counts(self):
    results, *_ = self.run_all(codes(), codes())
    self.assertEqual(results['test/cross/queries'], 2 * SIZE)
    self.assertEqual(results['test/cross/answerable_10m'], 2 * SIZE)
    self.assertAlmostEqual(results['test/cross/chance@1_10m'], 100 / SIZE)
    for direction in ('image_to_points', 'points_to_image'):
      prefix = f'test/cross/{direction}'
      for n in ('1', '5', '10', '20', '1%'):
        for radius in ('5m', '10m', '20m'):
          name = f'{prefix}/recall@{n}_{radius}'
          for suffix in ('', '_low', '_high', '_of_all_queries', '_3_frames'):
            self.assertEqual(results[name + suffix], 100, name + suffix)
      self.assertAlmostEqual(results[f'{prefix}/median_error_m'], 1.0, 4)
      town = f'test/cross/town_001/{direction}/recall@1_10m'
      self.assertEqual(results[town], 100)
    self.assertEqual(results['test/cross/town_001/queries'], SIZE)
    json.dumps(results, allow_nan=False)
    self.assertTrue(all(type(value) is float for value in results.values()))

  def test_planted_errors_are_counted_in_their_town_only(self):
    image = codes()
    wrong = 3 * SIZE + np.arange(10)
    image[wrong] = image[wrong + 20]
    results, *_ = self.run_all(image, codes())
    name = 'image_to_points/recall@1_10m'
    self.assertEqual(results[f'test/cross/town_000/{name}'], 100)
    self.assertEqual(results[f'test/cross/town_001/{name}'], 75)
    self.assertEqual(results[f'test/cross/{name}'], 87.5)
    self.assertLess(results[f'test/cross/{name}_low'], 87.5)
    self.assertEqual(results['test/cross/points_to_image/recall@1_10m'], 100)

  def test_the_interval_knows_that_towns_fail_as_a_whole(self):
    image = codes()
    image[3 * SIZE :] = -image[3 * SIZE :]
    results, *_ = self.run_all(image, codes())
    name = 'test/cross/image_to_points/recall@1_10m'
    self.assertEqual(results[name], 50)
    # Four blocks, two of them lost: blocks mixed over towns would all be half.
    self.assertLess(results[f'{name}_low'], 30)
    self.assertGreater(results[f'{name}_high'], 70)

  def test_a_collapsed_model_scores_nothing(self):
    same = np.zeros((4 * SIZE, WIDTH))
    same[:, 0] = 1
    results, *_ = self.run_all(same, same)
    for n in ('1', '20'):
      name = f'test/cross/image_to_points/recall@{n}_10m'
      self.assertEqual(results[name], 0)
      self.assertEqual(results[name + '_3_frames'], 0)
    self.assertGreater(
      results['test/cross/image_to_points/median_error_m'], 200
    )

  def test_each_reading_is_embedded_once_for_all_protocols(self):
    questions = make_questions('sync') + make_questions('cross')
    image = codes()
    image[SIZE : 2 * SIZE] = -image[SIZE : 2 * SIZE]
    results, _, towers = self.run_all(image, codes(), questions=questions)
    self.assertEqual(set(towers.seen.values()), {1})
    self.assertLen(towers.seen, 2 * 4 * SIZE)
    self.assertEqual(results['test/sync/image_to_points/recall@1_10m'], 100)
    self.assertEqual(results['test/cross/image_to_points/recall@1_10m'], 50)

  def test_what_was_embedded_is_kept_by_row(self):
    shuffled = codes(1)[np.random.default_rng(0).permutation(len(codes()))]
    _, evaluator, _ = self.run_all(codes(), shuffled)
    for name, table in (('image', codes()), ('points', shuffled)):
      rows, descriptors = evaluator.embedded[name]
      self.assertLen(rows, len(table))
      np.testing.assert_allclose(descriptors[:, 0], table[rows], rtol=1e-6)

  def test_variables_reach_the_towers_and_runs_repeat(self):
    towers = Towers(codes(), codes())
    evaluator = towers.evaluator(make_frames(), make_questions())
    name = 'test/cross/image_to_points/recall@1_10m'
    self.assertEqual(dict(evaluator.run(1.0))[name], 100)
    self.assertEqual(dict(evaluator.run(0.0))[name], 0)
    self.assertEqual(dict(evaluator.run(1.0))[name], 100)

  def test_self_matches_count_unless_they_are_excluded(self):
    name = 'test/sync/image_to_points/recall@1_20m'
    results, *_ = self.run_all(
      codes(), codes(), questions=make_questions('sync')
    )
    self.assertEqual(results[name], 100)
    self.assertEqual(results['test/sync/answerable_10m'], 2 * SIZE)
    results, *_ = self.run_all(
      codes(),
      codes(),
      questions=make_questions('sync', exclude_self=True),
    )
    self.assertLess(results[name], 30)
    # Neighbours are 12.5 m away: nothing to answer within 10 m but oneself.
    self.assertEqual(results['test/sync/answerable_10m'], 0)
    self.assertNotIn('test/sync/image_to_points/recall@1_10m', results)
    self.assertNotIn('test/sync/chance@1_10m', results)

  def test_unanswerable_queries_are_left_out_or_missed_by_name(self):
    frames = make_frames()
    frames.position[SIZE : SIZE + 20, 1] += 1000
    results, *_ = self.run_all(codes(), codes(), frames)
    name = 'test/cross/image_to_points/recall@1_10m'
    self.assertEqual(results['test/cross/queries'], 80)
    self.assertEqual(results['test/cross/answerable_10m'], 60)
    self.assertEqual(results[name], 100)
    self.assertEqual(results[f'{name}_of_all_queries'], 75)
    self.assertAlmostEqual(results['test/cross/chance@1_10m'], 100 / SIZE)

  @parameterized.parameters(('cross', 1), ('opposite', -1))
  def test_three_frames_help_along_the_direction_of_travel(self, name, sign):
    frames = make_frames()
    image = codes(0)
    for town in range(2):
      rows = slice(2 * SIZE * town + SIZE, 2 * SIZE * (town + 1))
      frames.position[rows] = frames.position[rows][::sign]
      image[rows] = image[rows][::sign]
    image = image + 0.35 * np.random.default_rng(2).normal(size=image.shape)
    results, *_ = self.run_all(
      image, codes(), frames, questions=make_questions(name)
    )
    single = f'test/{name}/image_to_points/recall@1_10m'
    self.assertGreater(results[f'{single}_3_frames'], results[single] + 5)

  def test_a_sequence_of_the_field_is_right_by_any_of_its_frames(self):
    # Queries are answered three places too far, so that no answer is right; of
    # five frames around an answer, two are places of the five around the query.
    image = codes()
    for town in range(2):
      rows = slice(2 * SIZE * town + SIZE, 2 * SIZE * (town + 1))
      image[rows] = np.roll(image[rows], -3, axis=0)
    results, *_ = self.run_all(
      image, codes(), sequence=sequences.Sequence(5), any_frame=True
    )
    name = 'test/cross/image_to_points/recall@1_10m'
    self.assertEqual(results[f'{name}_5_frames'], 0)
    # The last three queries of each town are answered with the first places.
    self.assertAlmostEqual(
      results[f'{name}_5_frames_any_frame'], 100 * (SIZE - 3) / SIZE, delta=6
    )
    self.assertIn(f'{name}_5_frames_any_frame_low', results)
    self.assertEqual(
      results['test/cross/answerable_10m_5_frames_any_frame'], 80
    )
    # Nine places are right, fewer at the ends of the drive.
    counts = [min(SIZE, q + 5) - max(0, q - 4) for q in range(SIZE)]
    self.assertAlmostEqual(
      results['test/cross/chance@1_10m_5_frames_any_frame'],
      100 * np.mean(counts) / SIZE,
    )

  def test_a_query_without_answer_has_one_by_a_frame_of_its_sequence(self):
    frames = make_frames(1)
    frames.position[SIZE + 20, 1] += 500
    # It is a run of its own by metres; by numbers it would not be.
    results, *_ = self.run_all(
      codes()[: 2 * SIZE],
      codes()[: 2 * SIZE],
      frames,
      make_questions(num_towns=1),
      any_frame=True,
    )
    name = 'test/cross/answerable_10m'
    self.assertEqual(results[name], SIZE - 1)
    self.assertEqual(results[f'{name}_3_frames_any_frame'], SIZE - 1)
    frames.position[SIZE + 20, 1] -= 500
    frames.position[20, 1] += 20
    results, *_ = self.run_all(
      codes()[: 2 * SIZE],
      codes()[: 2 * SIZE],
      frames,
      make_questions(num_towns=1),
      any_frame=True,
    )
    self.assertEqual(results[name], SIZE - 1)
    self.assertEqual(results[f'{name}_3_frames_any_frame'], SIZE)

  def test_the_most_similar_view_of_a_reading_counts(self):
    rng = np.random.default_rng(3)
    views = rng.normal(size=(4 * SIZE, 2, WIDTH)) / np.sqrt(WIDTH)
    views[np.arange(4 * SIZE), np.arange(4 * SIZE) % 2] = codes()
    results, *_ = self.run_all(codes(), views)
    self.assertEqual(results['test/cross/image_to_points/recall@1_10m'], 100)
    results, *_ = self.run_all(codes(), views[:, 0])
    self.assertLess(results['test/cross/image_to_points/recall@1_10m'], 70)

  def test_a_query_without_scan_asks_with_its_image_only(self):
    frames = make_frames()
    frames.has_points[SIZE : SIZE + 5] = False
    results, *_ = self.run_all(codes(), codes(), frames)
    self.assertEqual(results['test/cross/queries'], 80)
    self.assertEqual(results['test/cross/points_to_image/queries'], 75)

  def test_broken_descriptors_and_missing_rows_are_named(self):
    image = codes()
    image[SIZE + 3] = np.nan
    with self.assertRaisesRegex(ValueError, r'image.*\[43\].*not finite'):
      self.run_all(image, codes())
    towers = Towers(codes(), codes())
    evaluator = towers.evaluator(make_frames(), make_questions())
    evaluator._batches['points'] = lambda rows: towers.batches(
      'points', np.arange(30)
    )
    with self.assertRaisesRegex(ValueError, r'points of 10 rows.*\[30, 31'):
      list(evaluator.run(1.0))
    evaluator._batches['points'] = lambda rows: []
    with self.assertRaisesRegex(ValueError, 'No points to embed'):
      list(evaluator.run(1.0))

  def test_questions_that_cannot_be_asked_are_named(self):
    towers = Towers(codes(), codes())
    first = make_questions()[0]
    for questions, message in (
      ([], 'no question'),
      ([first, first], 'test/cross/town_000 comes twice'),
      ([first._replace(map_rows=np.zeros(0, int))], '40 queries and 0 map'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        towers.evaluator(make_frames(), questions)


class BlocksTest(absltest.TestCase):
  def test_blocks_of_any_size_give_the_same_numbers_and_answers(self):
    frames = make_frames()
    image = codes() + 0.4 * np.random.default_rng(4).normal(
      size=(4 * SIZE, WIDTH)
    )
    results, records = [], []
    for size in (256, 7, 1):
      evaluator = Towers(image, codes()).evaluator(
        frames,
        make_questions(),
        sequence=sequences.Sequence(stride=2),
        any_frame=True,
      )
      with mock.patch.object(questions_lib, 'BLOCK_QUERIES', size):
        results.append(dict(evaluator.run(1.0)))
      records.append(evaluator.predictions['test/cross/points_to_image'])
    name = 'test/cross/image_to_points/recall@1_10m'
    self.assertNotIn(results[0][f'{name}_3_frames'], (0, 100, results[0][name]))
    for other, record in zip(results[1:], records[1:], strict=True):
      self.assertEqual(results[0], other)
      for a, b in zip(records[0], record, strict=True):
        np.testing.assert_array_equal(a, b)

  def test_no_array_of_all_pairs_exists(self):
    sizes = []
    inner = metrics.similarities

    def watch(queries, places, kind):
      sizes.append(len(queries) * len(places))
      return inner(queries, places, kind)

    evaluator = Towers(codes(), codes()).evaluator(
      make_frames(), make_questions()
    )
    with (
      mock.patch.object(metrics, 'similarities', watch),
      mock.patch.object(questions_lib, 'BLOCK_PAIRS', 5 * SIZE),
    ):
      list(evaluator.run(1.0))
    # Five queries and, for sequences, one more on either side.
    self.assertEqual(max(sizes), 7 * SIZE)
    self.assertLess(questions_lib.block_size(10**9), 2)


class PhotosTest(absltest.TestCase):
  """Photos in no order: pairs 3 m apart, 100 m from the next pair."""

  def setUp(self):
    super().setUp()
    self.count = 30
    pair = np.arange(self.count) // 2
    x = 100.0 * pair + 3 * (np.arange(self.count) % 2)
    self.order = np.random.default_rng(6).permutation(self.count)
    self.pair = pair[self.order]
    self.frames = Frames(
      town=np.full(self.count, 'old/town'),
      drive=np.full(self.count, 'photos'),
      frame=np.arange(self.count),
      timestamp=np.zeros(self.count),
      position=np.stack([x, 0 * x, 0 * x], 1)[self.order],
      heading=np.zeros(self.count),
      has_image=np.ones(self.count, bool),
      has_points=np.zeros(self.count, bool),
    )
    self.codes = codes()[self.pair].copy()

  def score(self, frames=None, queries=None, truth=None):
    frames = frames or self.frames
    towers = Towers(self.codes, None)
    asked = questions_lib.within_photos(frames, queries, truth=truth)
    evaluator = towers.evaluator(frames, asked)
    results = dict(evaluator.run(1.0))
    self.assertEqual(set(towers.seen.values()), {1})
    return results, evaluator.predictions['test/photos/image_to_image']

  def test_every_photo_finds_the_other_one_of_its_place(self):
    results, record = self.score()
    self.assertEqual(results['test/photos/queries'], self.count)
    self.assertEqual(results['test/photos/candidates'], self.count - 1)
    self.assertEqual(results['test/photos/answerable_25m'], self.count)
    self.assertAlmostEqual(
      results['test/photos/chance@1_25m'], 100 / (self.count - 1)
    )
    name = 'image_to_image/recall@1_25m'
    self.assertEqual(results[f'test/photos/{name}'], 100)
    self.assertEqual(results[f'test/photos/old_town/{name}'], 100)
    # A photo is no answer to itself, and other codes are no answer at all.
    self.assertFalse((record.ranked_rows == record.query_rows[:, None]).any())
    np.testing.assert_allclose(record.distances[:, 0], 3, rtol=1e-6)
    self.codes = codes()[: self.count]
    results, _ = self.score()
    self.assertLess(results[f'test/photos/{name}'], 30)

  def test_photos_in_no_order_have_one_direction_and_no_sequences(self):
    results, _ = self.score()
    self.assertFalse([name for name in results if '_frames' in name])
    self.assertFalse([name for name in results if 'points' in name])

  def test_photos_in_order_are_asked_as_sequences(self):
    count = 2 * SIZE
    place = np.arange(count) % SIZE
    noise = np.random.default_rng(0).normal(size=(count, WIDTH))
    self.codes = codes()[place] + 0.3 * noise
    numbers = 10 * place  # metres are numbers of frames
    frames = Frames(
      town=np.full(count, 'line'),
      drive=np.repeat(['summer', 'winter'], SIZE),
      frame=numbers,
      timestamp=np.full(count, np.nan),
      position=np.stack([numbers, 0 * place, 0 * place], 1).astype(float),
      heading=np.full(count, np.nan),
      has_image=np.ones(count, bool),
      has_points=np.zeros(count, bool),
    )
    queries = frames.drive == 'winter'
    asked = questions_lib.within_photos(
      frames, queries, radii=(1.0,), ordered=True
    )
    evaluator = Towers(self.codes, None).evaluator(
      frames, asked, sequence=sequences.Sequence(7)
    )
    results = dict(evaluator.run(1.0))
    name = 'test/photos/image_to_image/recall@1_1m'
    self.assertLess(results[name], 90)
    self.assertEqual(results[f'{name}_7_frames'], 100)
    # Without positions the numbers say what follows what; nothing is rated.
    unknown = frames._replace(position=np.full((count, 3), np.nan))
    evaluator = Towers(self.codes, None).evaluator(
      unknown, asked, sequence=sequences.Sequence(7), any_frame=True
    )
    results = dict(evaluator.run(1.0))
    self.assertEqual(results['test/photos/queries'], SIZE)
    self.assertFalse([name for name in results if 'recall' in name])

  def test_named_queries_ask_the_others(self):
    queries = self.order % 2 == 0
    results, record = self.score(queries=queries)
    self.assertEqual(results['test/photos/queries'], self.count / 2)
    self.assertEqual(results['test/photos/database'], self.count / 2)
    self.assertTrue(queries[record.query_rows].all())
    self.assertFalse(queries[record.map_rows].any())
    self.assertEqual(results['test/photos/image_to_image/recall@1_25m'], 100)

  def test_photos_without_position_are_counted_and_in_no_rate(self):
    queries = self.order % 2 == 0
    # Two queries and five of the others, one of them of a query that stays.
    unknown = np.zeros(self.count, bool)
    unknown[np.flatnonzero(queries)[:2]] = True
    unknown[np.flatnonzero(~queries)[:5]] = True
    self.codes[np.flatnonzero(queries)[4]] *= -1
    position = np.where(unknown[:, None], np.nan, self.frames.position)
    results, record = self.score(
      self.frames._replace(position=position), queries
    )
    self.assertEqual(results['test/photos/queries'], 15)
    self.assertEqual(results['test/photos/queries_without_position'], 2)
    self.assertEqual(results['test/photos/database_without_position'], 5)
    # They may be retrieved all the same.
    self.assertTrue(unknown[record.ranked_rows[:, 0]].any())
    self.assertTrue(
      np.isnan(record.distances[unknown[record.query_rows]][:, :9]).all()
    )
    # Rates are those of a folder that never held them.
    fewer = self.frames._replace(has_image=~unknown)
    expected, _ = self.score(fewer, queries)
    self.assertLess(expected['test/photos/image_to_image/recall@1_25m'], 100)
    for name, value in expected.items():
      kind = name.rsplit('/', 1)[-1].split('@')[0]
      if kind in ('recall', 'chance', 'median_error_m', 'answerable_25m'):
        self.assertEqual(results[name], value, name)

  def test_a_query_that_no_list_names_is_neither_right_nor_wrong(self):
    other = [
      int(np.flatnonzero((self.pair == self.pair[i]) & (self.order != j))[0])
      for i, j in enumerate(self.order)
    ]
    known = np.arange(self.count) != 4
    answers = truth_lib.Answers(
      np.arange(self.count + 1), np.array(other), known
    )
    truth = truth_lib.Truth(truth_lib.LISTED, answers=answers)
    results, record = self.score(truth=truth)
    self.assertEqual(results['test/photos/queries_without_position'], 1)
    asked = record.query_rows
    np.testing.assert_array_equal(np.isnan(record.nearest), ~known[asked])
    np.testing.assert_array_equal(
      record.distances[:, 0], np.where(known[asked], 0, np.nan)
    )

  def test_without_any_position_there_are_answers_but_no_rates(self):
    position = np.full((self.count, 3), np.nan)
    results, record = self.score(self.frames._replace(position=position))
    self.assertEqual(
      {name.rsplit('/', 1)[-1]: value for name, value in results.items()},
      {
        'queries': self.count,
        'database': self.count,
        'candidates': 0,
        'queries_without_position': self.count,
        'database_without_position': self.count,
        'answerable_25m': 0,
      },
    )
    found = self.pair[record.ranked_rows[:, 0]]
    np.testing.assert_array_equal(found, self.pair[record.query_rows])
    self.assertTrue(np.isnan(record.nearest).all())


class ConfidenceTest(absltest.TestCase):
  def run_with(self, confidence):
    towers = Towers(codes(), 0.3 * codes() + codes(1))
    evaluator = towers.evaluator(
      make_frames(), make_questions(), confidence=confidence
    )
    list(evaluator.run(2.0))
    return evaluator.predictions['test/cross/image_to_points'], towers.tables

  def test_it_is_the_mass_near_the_first_answer_of_the_own_town(self):
    record, tables = self.run_with(
      lambda variables, _: scores.Temperature(3 * variables, 10.0)
    )
    positions = make_frames().position
    for i, query in enumerate(record.query_rows):
      rows = record.map_rows[record.map_towns == record.towns[i]]
      similar = 4 * tables['points'][rows] @ tables['image'][query]
      posterior = np.exp(6.0 * similar) / np.exp(6.0 * similar).sum()
      step = positions[rows] - positions[record.ranked_rows[i, 0]]
      near = np.hypot(step[:, 0], step[:, 1]) <= 10
      self.assertAlmostEqual(record.confidence[i], posterior[near].sum(), 5)

  def test_without_a_temperature_there_is_none(self):
    record, _ = self.run_with(None)
    self.assertTrue(np.isnan(record.confidence).all())
    record, _ = self.run_with(lambda variables, _: None)
    self.assertTrue(np.isnan(record.confidence).all())


class PredictionsTest(absltest.TestCase):
  def test_ranked_answers_survive_the_disk_and_agree_with_the_recall(self):
    frames, image = make_frames(), codes()
    image[SIZE : SIZE + 10] = image[SIZE + 20 : SIZE + 30]
    evaluator = Towers(image, codes()).evaluator(frames, make_questions())
    results = dict(evaluator.run(1.0))
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'predictions.npz'
      predictions.save_predictions(evaluator.predictions, path)
      with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    prefix = 'test/cross/image_to_points'
    ranked = arrays[f'{prefix}/ranked_rows']
    self.assertEqual(ranked.shape, (2 * SIZE, predictions.NUM_RANKED))
    distances = arrays[f'{prefix}/distances']
    self.assertAlmostEqual(
      100 * np.mean(distances[:, 0] <= 10), results[f'{prefix}/recall@1_10m']
    )
    queries = arrays[f'{prefix}/query_rows']
    expected = frames.position[queries][:, None] - frames.position[ranked]
    np.testing.assert_allclose(
      distances, np.hypot(expected[..., 0], expected[..., 1]), rtol=1e-6
    )
    # A query is answered from its own town.
    np.testing.assert_array_equal(
      ranked // 80, (queries // 80)[:, None] + 0 * ranked
    )
    self.assertTrue((np.diff(arrays[f'{prefix}/similarities']) <= 0).all())
    np.testing.assert_allclose(arrays[f'{prefix}/nearest'], 1)
    self.assertLen(arrays[f'{prefix}/map_rows'], 2 * SIZE)

  def test_a_small_map_leaves_the_unused_ranks_empty(self):
    frames = make_frames()
    small = make_questions()[0]._replace(map_rows=np.arange(6))
    evaluator = Towers(codes(), codes()).evaluator(frames, [small])
    results = dict(evaluator.run(1.0))
    record = evaluator.predictions['test/cross/image_to_points']
    self.assertTrue((record.ranked_rows[:, 6:] == -1).all())
    self.assertTrue((record.ranked_rows[:, :6] >= 0).all())
    self.assertTrue(np.isinf(record.distances[:, 6:]).all())
    evaluator = Towers(codes(), codes()).evaluator(
      frames,
      [small._replace(query_rows=np.arange(6), exclude_self=True)],
    )
    list(evaluator.run(1.0))
    record = evaluator.predictions['test/cross/image_to_points']
    self.assertTrue((record.ranked_rows[:, 5:] == -1).all())
    self.assertTrue((record.distances[:, :5] > 10).all())
    # 20 answers out of 6 hold everything, and so does chance.
    self.assertEqual(results['test/cross/image_to_points/recall@20_10m'], 100)
    self.assertEqual(results['test/cross/chance@20_10m'], 100)
    self.assertFalse(any(math.isnan(value) for value in results.values()))


if __name__ == '__main__':
  absltest.main()
