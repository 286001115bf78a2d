# SPDX-License-Identifier: Apache-2.0
"""P places x K views: what comes together belongs together."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.errors import InputError
from input_pipeline import pairing
from input_pipeline.plans import places
from tests.input_pipeline.plans import tables


def _streets(count=40):
  """Two towns with two drives each, a metre and a half apart."""
  return tables.join(
    *(
      tables.street(town, f'{town}{drive}', count, y=1.5 * drive)
      for town in 'ab'
      for drive in range(2)
    )
  )


def _seasons(count=20, variants=4, town='t'):
  """Every number in all variants; nobody knows a position."""
  frames = tables.join(
    *(tables.street(town, f'{town}_{2018 + i}', count) for i in range(variants))
  )
  frames.world_from_body[:] = np.nan
  return frames


def _plan(table, batch_size=12, steps=4, seed=0, number=0, **options):
  plan = places.make_places(
    table,
    batch_size=batch_size,
    steps=steps,
    seed=seed,
    **(dict(num_views=3) | options),
  )
  return plan(number, tables.describe_nothing)


class NearPlacesTest(parameterized.TestCase):
  def test_views_are_near_and_look_the_same_way(self):
    frames = tables.scattered(0, 400, 40.0)
    table = places.near_places(frames, max_offset=6.0)
    plan = _plan(table, steps=8, batch_size=24)
    for rows in plan['row'].reshape(-1, 3):
      apart = frames.position[rows] - frames.position[rows[0]]
      self.assertLessEqual(np.linalg.norm(apart, axis=1).max(), 6.0)
      turn = pairing.heading_difference(
        frames.heading[rows], frames.heading[rows[0]]
      )
      self.assertLess(turn.max(), pairing.MAX_HEADING)
      self.assertLen(set(frames.town[rows].tolist()), 1)
    np.testing.assert_array_equal(
      plan['place'], np.tile(np.repeat(np.arange(8), 3), (8, 1))
    )
    self.assertNotIn('variant', plan)

  def test_unknown_headings_pair_only_where_asked_for(self):
    frames = tables.street('a', 'a0', 9)
    frames.world_from_body[:, :3, :3] = np.nan
    with self.assertRaisesRegex(InputError, 'None of 9'):
      places.near_places(frames)
    self.assertLen(places.near_places(frames, max_heading=None).town, 9)

  def test_lonely_frames_are_no_places(self):
    frames = tables.join(
      tables.street('a', 'a0', 5), tables.street('b', 'b0', 1)
    )
    self.assertEqual(set(places.near_places(frames).town.tolist()), {'a'})

  def test_anchors_come_once_in_an_epoch_across_rounds(self):
    frames = _streets()
    table = places.near_places(frames, max_offset=5.0)
    plan = places.make_places(
      table, batch_size=24, steps=4, seed=0, num_views=3
    )
    anchors = [
      plan(i, tables.describe_nothing)['row'][:, ::3].ravel() for i in range(6)
    ]
    # 20 batches of 8 are an epoch of 160; the sixth round begins another.
    self.assertLen(set(np.concatenate(anchors[:5]).tolist()), 160)
    self.assertLen(set(anchors[5].tolist()), 32)

  def test_no_row_comes_twice_in_a_step(self):
    table = places.near_places(_streets(), max_offset=6.0)
    for rows in _plan(table, batch_size=30, steps=40)['row']:
      self.assertLen(set(rows.tolist()), 30)

  def test_no_row_is_in_two_places_of_a_step_however_crowded(self):
    table = places.near_places(_streets(), max_offset=6.0)
    for rows in _plan(table, batch_size=300, steps=4, num_views=3)['row']:
      owner = {}
      for place, views in enumerate(rows.reshape(-1, 3)):
        for row in views.tolist():
          self.assertEqual(owner.setdefault(row, place), place)

  def test_a_place_with_too_few_rows_repeats_its_own_alone(self):
    frames = tables.street('a', 'a0', 2)
    table = places.near_places(frames, max_offset=3.0)
    plan = _plan(table, batch_size=3, steps=3)
    for rows in plan['row']:
      self.assertSequenceEqual(sorted(set(rows.tolist())), [0, 1])
    # Anchors of one step are nobody's second view.
    plan = _plan(table, batch_size=6, steps=1)
    for rows in plan['row'].reshape(2, 3):
      self.assertLen(set(rows.tolist()), 1)
    self.assertLen(set(plan['row'].ravel().tolist()), 2)

  @parameterized.parameters(0.0, 0.25, 1.0)
  def test_views_of_other_drives_come_as_often_as_asked(self, cross_drive):
    frames = _streets()
    table = places.near_places(frames, max_offset=9.0)
    plan = _plan(
      table, batch_size=8, steps=300, num_views=2, cross_drive=cross_drive
    )
    drive = frames.drive[plan['row'].reshape(-1, 2)]
    share = np.mean(drive[:, 0] != drive[:, 1])
    self.assertAlmostEqual(share, cross_drive, delta=0.04)

  def test_runs_of_one_town(self):
    table = places.near_places(_streets(), max_offset=5.0)
    mixed = _plan(table, steps=10)
    runs = _plan(table, steps=10, town_run=4)
    town = _streets().town
    self.assertTrue(all(len(set(town[r].tolist())) == 1 for r in runs['row']))
    self.assertFalse(all(len(set(town[r].tolist())) == 1 for r in mixed['row']))

  def test_conditions_count_equally(self):
    sun = tables.join(*(tables.street('a', f's{i}', 30) for i in range(4)))
    night = tables.street('a', 'n', 30)
    frames = tables.join(sun, night)
    conditions = np.repeat(['sun', 'night'], [120, 30])
    table = places.near_places(frames, max_offset=9.0)
    options = dict(batch_size=12, steps=50, num_views=4)
    share = {}
    for given in (None, conditions):
      rows = _plan(table, conditions=given, **options)['row']
      share[given is None] = np.mean(conditions[rows] == 'night')
    self.assertLess(share[True], 0.4)
    self.assertAlmostEqual(share[False], 0.5, delta=0.04)

  @parameterized.parameters(
    dict(batch_size=10),
    dict(cross_drive=1.5),
    dict(town_run=0),
    dict(steps=0),
    dict(batch_size=3 * 200),
    dict(conditions=['sun']),
  )
  def test_arguments_out_of_range_are_refused(self, **options):
    with self.assertRaises(InputError):
      _plan(places.near_places(_streets()), **options)

  def test_independent_of_the_order_of_files(self):
    conditions = np.random.default_rng(0).choice(['x', 'y', 'z'], 160)

    def make(frames, order):
      return places.make_places(
        places.near_places(frames, max_offset=6.0),
        batch_size=12,
        steps=3,
        seed=7,
        num_views=3,
        town_run=2,
        conditions=conditions[order],
      )

    tables.assert_independent_of_order(self, _streets(), make)


class FramePlacesTest(parameterized.TestCase):
  def test_a_place_is_a_number_in_all_variants(self):
    frames = tables.join(_seasons(), _seasons(town='u'))
    table = places.frame_places(frames)
    plan = _plan(table, batch_size=32, steps=5, num_views=4)
    for rows, variant in zip(
      plan['row'].reshape(-1, 4), plan['variant'].reshape(-1, 4), strict=True
    ):
      self.assertLen(set(frames.frame[rows].tolist()), 1)
      self.assertLen(set(frames.town[rows].tolist()), 1)
      self.assertSequenceEqual(sorted(variant.tolist()), [0, 1, 2, 3])
      for row, number in zip(rows, variant, strict=True):
        self.assertEndsWith(frames.drive[row], str(2018 + number))

  def test_every_variant_is_drawn_where_not_all_are(self):
    table = places.frame_places(_seasons())
    plan = _plan(table, batch_size=8, steps=200, num_views=2)
    pairs = collections.Counter(
      tuple(sorted(pair)) for pair in plan['variant'].reshape(-1, 2).tolist()
    )
    self.assertLen(pairs, 6)
    self.assertGreater(min(pairs.values()), 80)

  def test_numbers_of_other_towns_are_other_places(self):
    frames = tables.join(_seasons(5, 1, 't'), _seasons(5, 1, 'u'))
    with self.assertRaisesRegex(InputError, 'share a number'):
      places.frame_places(frames)

  def test_frames_without_image_are_left_out(self):
    frames = _seasons(6, 2)
    frames = frames._replace(has_image=np.arange(12) != 7)
    table = places.frame_places(frames)
    self.assertLen(table.town, 5)
    self.assertFalse(np.isin([1, 7], table.views.rows).any())

  def test_independent_of_the_order_of_files(self):
    def make(frames, order):
      return places.make_places(
        places.frame_places(frames),
        batch_size=12,
        steps=3,
        seed=7,
        num_views=3,
      )

    frames = tables.join(_seasons(), _seasons(town='u'))
    tables.assert_independent_of_order(self, frames, make)


if __name__ == '__main__':
  absltest.main()
