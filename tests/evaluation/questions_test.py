# SPDX-License-Identifier: Apache-2.0
"""Who asks whom follows from the frame table; the truth from positions."""

from typing import NamedTuple

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.evaluation import questions
from i2ploc.photos import truth as truth_lib
from tests.evaluation import drives


class Frames(NamedTuple):
  town: np.ndarray
  drive: np.ndarray
  frame: np.ndarray
  timestamp: np.ndarray
  position: np.ndarray
  heading: np.ndarray
  has_image: np.ndarray
  has_points: np.ndarray


def _table(rows):
  """Rows of (town, drive, time, x, y, heading)."""
  town, drive, time, x, y, heading = map(np.array, zip(*rows, strict=True))
  present = np.ones(len(rows), bool)
  return Frames(
    town,
    drive,
    time.astype(int),
    time.astype(float),
    np.stack([x, y, 0 * x], 1).astype(float),
    heading,
    present,
    present.copy(),
  )


def _straight(town, drive, count, heading=0.0, side=0.0):
  xs = np.arange(count) * 2.5
  xs = xs if heading == 0 else xs[::-1]
  return [(town, drive, i, x, side, heading) for i, x in enumerate(xs)]


def _three_drives():
  return _table(
    [
      *_straight('a', 'a0', 12),
      *_straight('a', 'a1', 8, side=1.5),
      *_straight('a', 'a2', 6, heading=np.pi, side=3.0),
      *_straight('b', 'b0', 5),
    ]
  )


class DrivesTest(absltest.TestCase):
  def test_roles_follow_from_order_and_heading(self):
    frames = _three_drives()
    found = questions.between_drives(frames, radii=(1.0, 2.0))
    self.assertSequenceEqual(
      [
        (q.name, q.town, len(q.query_rows), len(q.map_rows), q.travel)
        for q in found
      ],
      [
        ('sync', 'a', 12, 12, 1),
        ('cross', 'a', 8, 12, 1),
        ('opposite', 'a', 6, 12, -1),
        ('sync', 'b', 5, 5, 1),
      ],
    )
    for question in found:
      self.assertTrue((frames.town[question.map_rows] == question.town).all())
      same = question.name == 'sync'
      asking = {*frames.drive[question.query_rows]}
      self.assertEqual(asking == {*frames.drive[question.map_rows]}, same)
      self.assertEqual(question.direction, 'image_to_points')
      self.assertEqual(question.radii, (1.0, 2.0))
      self.assertFalse(question.exclude_self)

  def test_queries_need_images_and_maps_need_scans(self):
    frames = _three_drives()
    frames.has_image[[0, 13]] = False
    frames.has_points[[1, 14]] = False
    sync, cross, *_ = questions.between_drives(frames)
    self.assertNotIn(0, sync.query_rows)
    self.assertNotIn(1, sync.map_rows)
    self.assertNotIn(13, cross.query_rows)
    self.assertIn(14, cross.query_rows)

  def test_named_queries_are_not_in_their_map(self):
    frames = _three_drives()
    queries = np.arange(len(frames.town)) % 3 == 0
    sync, cross, *_ = questions.between_drives(frames, queries)
    self.assertEqual(sync.query_rows.tolist(), [0, 3, 6, 9])
    self.assertEqual(sync.map_rows.tolist(), [1, 2, 4, 5, 7, 8, 10, 11])
    # Other drives ask with all their frames.
    self.assertEqual(cross.query_rows.tolist(), [*range(12, 20)])
    self.assertEqual(cross.map_rows.tolist(), sync.map_rows.tolist())

  def test_a_map_without_scans_is_named(self):
    frames = _three_drives()
    frames.has_points[:12] = False
    with self.assertRaisesRegex(ValueError, "'a0'.*town 'a'.*points first"):
      questions.between_drives(frames)

  def test_images_that_ask_images_never_find_themselves(self):
    frames = _three_drives()
    frames.has_points[:] = False
    sync, cross, *_ = questions.between_drives(frames, map_side='image')
    self.assertEqual(sync.direction, 'image_to_image')
    self.assertTrue(sync.exclude_self)
    self.assertLen(cross.map_rows, 12)

  def test_an_unknown_position_tells_nothing_about_the_direction(self):
    frames = _three_drives()
    frames.position[5] = np.nan  # of the map
    frames.position[20:22] = np.nan  # of the opposite drive
    found = [q.name for q in questions.between_drives(frames) if q.town == 'a']
    self.assertEqual(found, ['sync', 'cross', 'opposite'])


class PhotosTest(absltest.TestCase):
  def test_each_folder_is_a_database_of_its_own(self):
    frames = _three_drives()
    frames.has_image[3] = False
    *found, _ = questions.within_photos(frames, radii=(25.0, 50.0))
    self.assertEqual([q.town for q in found], ['a', 'b'])
    for question in found:
      self.assertEqual(question.name, 'photos')
      np.testing.assert_array_equal(question.query_rows, question.map_rows)
      self.assertTrue((frames.town[question.map_rows] == question.town).all())
      self.assertEqual(question.radii, (25.0, 50.0))
    self.assertNotIn(3, found[0].query_rows)

  def test_queries_are_not_in_the_database(self):
    frames = _three_drives()
    queries = np.arange(len(frames.town)) % 3 == 0
    for question in questions.within_photos(frames, queries):
      self.assertTrue(queries[question.query_rows].all())
      self.assertFalse(queries[question.map_rows].any())

  def test_several_folders_are_asked_at_once_as_well(self):
    frames = _three_drives()
    queries = np.arange(len(frames.town)) % 3 == 0
    *_, pool = questions.within_photos(frames, queries)
    self.assertEqual((pool.name, pool.town), ('photos_one_pool', 'all'))
    self.assertEqual(pool.query_rows.tolist(), np.flatnonzero(queries).tolist())
    self.assertEqual(pool.map_rows.tolist(), np.flatnonzero(~queries).tolist())
    # The towns lie on each other, and yet nothing there is near.
    frames.position[:] = 0
    track = questions.track_from_frames(frames)
    sides = track.take(pool.query_rows), track.take(pool.map_rows)
    same = frames.town[pool.query_rows, None] == frames.town[pool.map_rows]
    (block,) = questions.blocks_from_question(pool, *sides)
    np.testing.assert_array_equal(block.distances == 0, same)
    self.assertTrue(block.graded.all())
    found = questions.count_positives(pool, *sides)
    np.testing.assert_array_equal(found.positives[:, 0], same.sum(1))
    np.testing.assert_array_equal(found.candidates, same.shape[1])
    alone = frames._replace(town=np.full(len(queries), 'a'))
    self.assertLen(questions.within_photos(alone, queries), 1)

  def test_photos_in_order_travel(self):
    for ordered in (False, True):
      question, *_ = questions.within_photos(_three_drives(), ordered=ordered)
      self.assertEqual(question.travel, int(ordered))

  def test_another_truth_gives_another_unit_and_name(self):
    frames = _three_drives()
    number = truth_lib.Truth(truth_lib.FRAMES)
    question, *_ = questions.within_photos(frames, radii=(7,), truth=number)
    self.assertEqual(question.at(7), '7frames')
    count = len(frames.town)
    answers = truth_lib.Answers(
      np.minimum(np.arange(count + 1), 1), np.array([1]), np.arange(count) != 2
    )
    listed = truth_lib.Truth(truth_lib.LISTED, answers=answers)
    question, *_ = questions.within_photos(frames, radii=(7,), truth=listed)
    self.assertEqual((question.radii, question.at(0)), ((0.0,), 'listed'))
    # Without a position, all the same: the list tells.
    frames.position[:] = np.nan
    track = questions.track_from_frames(frames).take(question.query_rows)
    found = questions.count_positives(question, track, track)
    self.assertEqual(np.flatnonzero(found.positives[:, 0]).tolist(), [0])
    known = questions.known_positions(question, track)
    self.assertEqual(np.flatnonzero(~known).tolist(), [2])

  def test_photos_are_looked_for_where_they_roughly_are(self):
    frames = _table([*_straight('a', 'a0', 6), *_straight('b', 'b0', 3)])
    frames.position[4, 0] = np.nan
    rough = np.full((9, 2), np.nan)
    rough[0], rough[6] = [6.0, 0], [0.0, 3.0]
    asks = np.isin(np.arange(9), [0, 1, 6])
    disc = questions.Disc(rough, 5.0)
    found = questions.within_photos(frames, asks, radii=(3.0,), disc=disc)
    track = questions.track_from_frames(frames)
    candidates = {}
    for question in found:
      (block,) = questions.blocks_from_question(
        question,
        track.take(question.query_rows),
        track.take(question.map_rows),
      )
      for query, row in zip(question.query_rows, block.candidates, strict=True):
        candidates[question.name, int(query)] = question.map_rows[row].tolist()
    self.assertEqual(
      candidates,
      {
        ('photos', 0): [2, 3],
        ('photos', 1): [2, 3, 4, 5],
        ('photos', 6): [7],
        ('photos_one_pool', 0): [2, 3],
        # Nobody knows where 1 is: it is looked for in all towns.
        ('photos_one_pool', 1): [2, 3, 4, 5, 7, 8],
        ('photos_one_pool', 6): [7],
      },
    )
    counts = questions.count_positives(
      found[0],
      track.take(found[0].query_rows),
      track.take(found[0].map_rows),
    )
    # The place without a position competes, and is neither right nor wrong.
    self.assertEqual(counts.candidates.tolist(), [2, 3])
    self.assertEqual(counts.positives[:, 0].tolist(), [0, 1])

  def test_a_folder_that_cannot_ask_is_named(self):
    frames = _three_drives()
    for queries, message in (
      (frames.town == 'b', "'a' has 0 photos that ask and 26"),
      (frames.town == 'a', "'a' has 26 photos that ask and 0"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        questions.within_photos(frames, queries)
    frames.has_image[27:] = False
    with self.assertRaisesRegex(ValueError, "'b' has one photo"):
      questions.within_photos(frames)


class WaysTest(absltest.TestCase):
  def test_both_sides_ask_with_the_rows_that_have_them(self):
    frames = _three_drives()
    frames.has_points[[13, 15]] = False
    frames.has_image[2] = False
    cross = questions.between_drives(frames)[1]
    ways = [
      questions.with_readings(question, frames)
      for question in questions.both_ways(cross)
    ]
    self.assertEqual(
      [way.direction for way in ways], ['image_to_points', 'points_to_image']
    )
    self.assertSequenceEqual(
      [(len(way.query_rows), len(way.map_rows)) for way in ways],
      [(8, 12), (6, 11)],
    )
    self.assertNotIn(2, ways[1].map_rows)
    frames.has_points[12:20] = False
    self.assertIsNone(
      questions.with_readings(questions.both_ways(cross)[1], frames)
    )

  def test_one_side_asks_one_way(self):
    (photos, *_) = questions.within_photos(_three_drives())
    self.assertLen(questions.both_ways(photos), 1)

  def test_what_is_embedded_is_what_is_asked_about_and_there(self):
    frames = _three_drives()
    frames.has_points[13] = False
    frames.has_image[2] = False
    _, cross, *_ = questions.between_drives(frames)
    rows = questions.rows_to_embed(frames, [cross])
    used = set(range(20))
    self.assertEqual(set(rows['image'].tolist()), used - {2})
    self.assertEqual(set(rows['points'].tolist()), used - {13})
    (photos, *_) = questions.within_photos(frames)
    self.assertEqual([*questions.rows_to_embed(frames, [photos])], ['image'])


class TruthTest(parameterized.TestCase):
  def block(self, track, **options):
    rows = np.arange(len(track.frames))
    question = questions.Question(
      'any', '', 'image', 'points', rows, rows, (20.0,), **options
    )
    (block,) = questions.blocks_from_question(question, track, track)
    return question, block

  def test_the_radius_is_inclusive_unless_it_is_said_to_be_strict(self):
    track = drives.make_track([[0, 0], [0, 20]], axes='z_up')
    for strict in (False, True):
      question, block = self.block(track, strict=strict)
      near = question.within(block.distances, 20.0)
      np.testing.assert_array_equal(near, [[1, not strict], [not strict, 1]])

  def test_an_unknown_position_is_near_nothing_and_not_graded(self):
    track = drives.make_track([[0, 0], [0, 1], [0, 2]], axes='z_up')
    track.positions[1] = np.nan
    question, block = self.block(track)
    np.testing.assert_array_equal(
      question.within(block.distances, 20.0),
      [[1, 0, 1], [0, 0, 0], [1, 0, 1]],
    )
    self.assertTrue(block.candidates.all())
    np.testing.assert_array_equal(block.graded, [[1, 0, 1]] * 3)
    np.testing.assert_array_equal(
      questions.known_positions(question, track), [1, 0, 1]
    )

  def test_only_the_compared_coordinates_must_be_known(self):
    track = drives.make_track([[0, 0], [0, 1]], axes='z_up')
    track.positions[:, 2] = np.nan
    _, block = self.block(track)
    self.assertTrue(block.graded.all())

  def test_a_block_shrinks_with_the_map(self):
    self.assertEqual(questions.block_size(10), questions.BLOCK_QUERIES)
    self.assertLess(questions.block_size(questions.BLOCK_PAIRS // 8), 9)
    self.assertEqual(questions.block_size(10**12), 1)


if __name__ == '__main__':
  absltest.main()
