# SPDX-License-Identifier: Apache-2.0
"""Triplets are what a loop over the frames would mine."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.errors import InputError
from input_pipeline import pairing
from input_pipeline.plans import mined
from tests.input_pipeline.plans import tables

_COUNT = 500


def _frames():
  return tables.scattered(3, _COUNT, 120.0)


class _Describe:
  """Descriptors of rows, and which rows were asked for."""

  def __init__(self, descriptors):
    self.descriptors, self.asked = descriptors, []

  def __call__(self, rows):
    self.asked.append(rows)
    return self.descriptors[rows]


def _plan(frames, number=0, descriptors=None, **options):
  wanted = dict(batch_size=12, steps=20, seed=0, num_negatives=4)
  plan = mined.make_mined(frames, **(wanted | options))
  if descriptors is None:
    descriptors = tables.unit_rows(0, len(frames.town))
  describe = _Describe(descriptors)
  return plan(number, describe), describe


def _metres(frames, a, b):
  if frames.town[a] != frames.town[b]:
    return np.inf
  return np.linalg.norm((frames.position[a] - frames.position[b])[:2])


def _turn(frames, a, b):
  return abs(np.angle(np.exp(1j * (frames.heading[a] - frames.heading[b]))))


class MinedTest(parameterized.TestCase):
  @parameterized.parameters(*mined.MININGS)
  def test_positives_are_near_and_negatives_far(self, mining):
    frames = tables.scattered(3, 1500, 120.0)
    plan, _ = _plan(frames, mining=mining, pool=100)
    self.assertEqual(plan['row'].shape, (20, 12))
    self.assertSequenceEqual(
      plan['place'][0].tolist(), [0, 0, -1, -1, -1, -1, 1, 1, -1, -1, -1, -1]
    )
    for query, positive, *negatives in plan['row'].reshape(-1, 6):
      self.assertNotEqual(query, positive)
      self.assertLessEqual(_metres(frames, query, positive), 10)
      self.assertLess(_turn(frames, query, positive), pairing.MAX_HEADING)
      for negative in negatives:
        self.assertGreater(_metres(frames, query, negative), 25)
    for rows in plan['row']:
      self.assertLen(set(rows.tolist()), 12)

  def test_full_mining_takes_the_nearest_of_all(self):
    frames = _frames()
    descriptors = tables.unit_rows(1, _COUNT)
    plan, _ = _plan(
      frames, mining='full', batch_size=6, steps=60, descriptors=descriptors
    )
    database = np.flatnonzero(np.isin(frames.drive, ['a0', 'b0'])).tolist()
    for query, positive, *negatives in plan['row'].reshape(-1, 6):
      like = descriptors @ descriptors[query]
      near = [
        row
        for row in database
        if _metres(frames, query, row) <= 10
        and _turn(frames, query, row) < pairing.MAX_HEADING
      ]
      self.assertEqual(positive, max(near, key=lambda row: like[row]))
      far = [row for row in database if _metres(frames, query, row) > 25]
      hardest = sorted(far, key=lambda row: -like[row])[:4]
      self.assertSequenceEqual(negatives, hardest)

  def test_queries_are_of_later_drives(self):
    frames = _frames()
    plan, _ = _plan(frames)
    rows = plan['row'].reshape(-1, 6)
    self.assertEqual(set(frames.drive[rows[:, 0]].tolist()), {'a1', 'b1'})
    self.assertEqual(
      set(frames.drive[rows[:, 1:]].ravel().tolist()), {'a0', 'b0'}
    )

  def test_given_queries_ask(self):
    frames = _frames()
    queries = np.arange(_COUNT) % 3 == 0
    plan, _ = _plan(frames, queries=queries)
    rows = plan['row'].reshape(-1, 6)
    self.assertTrue(queries[rows[:, 0]].all())
    self.assertFalse(queries[rows[:, 1:]].any())

  def test_of_one_drive_every_frame_asks(self):
    frames = tables.street('a', 'a0', 61)
    frames.world_from_body[60, 0, 3] = 500.0
    plan, _ = _plan(frames, steps=30)
    rows = plan['row'].reshape(-1, 6)
    self.assertEqual(set(rows[:, 0].tolist()), set(range(60)))
    self.assertTrue((rows[:, 0] != rows[:, 1]).all())

  def test_no_more_is_described_than_needed(self):
    frames = _frames()
    plan, describe = _plan(frames, mining='random', steps=2)
    asked = np.concatenate(describe.asked)
    self.assertLen(set(asked.tolist()), len(asked))
    near = [
      any(
        _metres(frames, query, row) <= 10 for query in plan['row'][:, ::6].flat
      )
      for row in asked
    ]
    self.assertTrue(all(near))
    _, describe = _plan(frames, mining='partial', steps=2, pool=50)
    partial = np.concatenate(describe.asked)
    self.assertGreaterEqual(len(partial), 50)
    self.assertLess(len(partial), 50 + len(asked) + 1)
    _, describe = _plan(frames, mining='full', steps=2)
    self.assertGreater(len(describe.asked[0]), 200)

  def test_partial_mining_is_harder_than_random_and_softer_than_full(self):
    frames = _frames()
    descriptors = tables.unit_rows(1, _COUNT)
    mean = []
    for mining in mined.MININGS:
      plan, _ = _plan(
        frames, mining=mining, pool=60, steps=40, descriptors=descriptors
      )
      rows = plan['row'].reshape(-1, 6)
      like = descriptors[rows[:, 2:]] @ descriptors[rows[:, 0], :, None]
      mean.append(like.mean())
    self.assertLess(mean[0] + 0.1, mean[1])
    self.assertLess(mean[1] + 0.05, mean[2])

  def test_new_descriptors_give_new_negatives(self):
    frames = _frames()
    one, _ = _plan(frames, descriptors=tables.unit_rows(1, _COUNT))
    other, _ = _plan(frames, descriptors=tables.unit_rows(2, _COUNT))
    np.testing.assert_array_equal(one['row'][:, ::6], other['row'][:, ::6])
    self.assertFalse(np.array_equal(one['row'], other['row']))

  def test_unknown_positions_and_lonely_queries_are_left_out(self):
    frames = tables.join(
      tables.street('a', 'a0', 40),
      tables.street('a', 'a1', 40, y=1.0),
      tables.street('a', 'a2', 5, y=200.0),
    )
    frames.world_from_body[50, 0, 3] = np.nan
    frames = frames._replace(has_image=np.arange(85) != 60)
    plan, _ = _plan(frames, steps=100)
    self.assertFalse(np.isin([50, 60, *range(80, 85)], plan['row']).any())
    self.assertLen(set(plan['row'][:, ::6].ravel().tolist()), 38)

  @parameterized.parameters(*mined.MININGS)
  def test_small_tables_repeat_rows_rather_than_fail(self, mining):
    frames = tables.join(
      tables.street('a', 'a0', 16), tables.street('a', 'a1', 16, y=1.0)
    )
    plan, _ = _plan(frames, mining=mining, pool=1, num_negatives=10)
    for query, positive, *negatives in plan['row'].reshape(-1, 12):
      self.assertLessEqual(_metres(frames, query, positive), 10)
      self.assertTrue(all(_metres(frames, query, n) > 25 for n in negatives))

  @parameterized.parameters(
    dict(mining='hard'),
    dict(batch_size=13),
    dict(num_negatives=0),
    dict(pool=0),
    dict(positive_radius=30.0),
    dict(positive_radius=0.0, queries=np.arange(_COUNT) % 2 == 0),
    dict(negative_radius=1e4, queries=np.arange(_COUNT) < 0),
  )
  def test_arguments_out_of_range_are_refused(self, **options):
    frames = _frames()
    if options.get('negative_radius'):
      frames = frames.take(np.flatnonzero(frames.town == 'a'))
      options['queries'] = np.arange(len(frames.town)) % 2 == 0
    with self.assertRaises(InputError):
      _plan(frames, **options)

  @parameterized.parameters(*mined.MININGS)
  def test_independent_of_the_order_of_files(self, mining):
    def make(frames, order):
      return mined.make_mined(
        frames,
        batch_size=12,
        steps=3,
        seed=7,
        num_negatives=4,
        mining=mining,
        pool=50,
      )

    descriptors = tables.unit_rows(0, _COUNT)
    tables.assert_independent_of_order(self, _frames(), make, descriptors)


if __name__ == '__main__':
  absltest.main()
