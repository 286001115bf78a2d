# SPDX-License-Identifier: Apache-2.0
"""Each protocol asks what it says, and a plausible misreading asks another."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.evaluation import protocols
from i2ploc.evaluation import questions
from tests.evaluation import drives

PROTOCOLS = protocols.PROTOCOLS
FORWARD, BACKWARD = ('image', 'points'), ('points', 'image')


def truth(protocol, image, points=None, sides=FORWARD, size=7):
  """Positives at the first radius and candidates, all queries at once."""
  tracks = {'image': image, 'points': points or image}
  question = protocols.question_from_tracks(protocol, tracks, *sides)
  blocks = list(
    questions.blocks_from_question(
      question,
      tracks[question.query_side].take(question.query_rows),
      tracks[question.map_side].take(question.map_rows),
      size,
    )
  )
  candidates = np.concatenate([b.candidates for b in blocks])
  distances = np.concatenate([b.distances for b in blocks])
  near = question.within(distances, question.radii[0])
  return candidates & near, candidates, question


class TruthTest(parameterized.TestCase):
  @parameterized.parameters(('kitti', (0, 2)), ('z_up', (0, 1)))
  def test_the_ground_is_where_the_axes_say(self, axes, ground):
    positions = 30.0 * np.eye(3)
    positions = np.concatenate([np.zeros((1, 3)), positions])
    track = questions.Track(np.arange(4), positions, axes)
    positives, _, _ = truth(PROTOCOLS['lip_loc'], track)
    # Moved along the third axis only, one is still at the same place.
    expected = [True] + [i not in ground for i in range(3)]
    np.testing.assert_array_equal(positives[0], expected)

  @parameterized.parameters(('lip_loc_released_axes', 0), ('modalink_axes', 2))
  def test_a_defective_evaluator_forgets_one_ground_axis(self, name, forgotten):
    positions = np.zeros((3, 3))
    positions[1, forgotten] = 500.0
    positions[2, 2 - forgotten] = 500.0
    track = questions.Track(np.arange(3), positions, 'kitti')
    seen, _, _ = truth(PROTOCOLS[name], track)
    right, _, _ = truth(PROTOCOLS['rangebev'], track)
    self.assertTrue(seen[0, 1])
    self.assertFalse(seen[0, 2])
    self.assertFalse(right.any())
    self.assertIn('not the ground', PROTOCOLS[name].describe())

  def test_a_hit_is_strictly_nearer_than_the_radius(self):
    track = drives.make_track([[0, 0], [0, 20], [0, 39.9]])
    positives, _, _ = truth(PROTOCOLS['lip_loc'], track)
    np.testing.assert_array_equal(positives, [[1, 0, 0], [0, 1, 1], [0, 1, 1]])

  def test_the_own_instant_goes_and_its_neighbours_stay(self):
    image = drives.make_track(
      [[0, 0], [0, 1], [0, 3]], frames=np.array([4, 5, 7])
    )
    points = drives.make_track([[0, 1], [0, 2]], frames=np.array([5, 6]))
    positives, candidates, _ = truth(PROTOCOLS['rangebev'], image, points)
    np.testing.assert_array_equal(candidates, [[1, 1], [0, 1], [1, 1]])
    np.testing.assert_array_equal(positives, candidates)
    with_self, _, _ = truth(PROTOCOLS['lip_loc'], image, points)
    self.assertTrue(with_self.all())

  def test_loop_closure_looks_back_thirty_seconds_or_more(self):
    # A period that floats do not hold: 30 s are 300 frames all the same.
    frames = np.arange(1, 900, 100)
    track = drives.make_track(np.zeros((9, 2)), frames=frames)
    track = track._replace(times=frames / 10)
    _, candidates, _ = truth(PROTOCOLS['loop_closure'], track)
    gap = frames[:, None] - frames
    np.testing.assert_array_equal(candidates, gap >= 300)
    # Either of two plausible misreadings would allow more.
    self.assertLess(candidates.sum(), (gap >= 0).sum())
    self.assertLess(candidates.sum(), (np.abs(gap) >= 300).sum())

  def test_a_query_every_three_metres_of_path_and_the_rest_answers(self):
    # 1 m per frame, out and back: distance from the start is no travel.
    out = np.arange(10.0)
    along = np.concatenate([out, out[::-1][1:]])
    track = drives.make_track(np.stack([0 * along, along], 1))
    for sides in (FORWARD, BACKWARD):
      _, candidates, question = truth(
        PROTOCOLS['ae_spherical'], track, sides=sides
      )
      np.testing.assert_array_equal(question.query_rows, [0, 4, 8, 12, 16])
      self.assertEmpty(np.intersect1d(question.query_rows, question.map_rows))
      self.assertTrue(candidates.all())
      self.assertLen(question.map_rows, 14)

  def test_both_directions_choose_the_same_frames(self):
    recording = drives.wander(0)
    tracks = {name: side.track for name, side in recording.sides.items()}
    asked, answering = [], []
    for sides in (FORWARD, BACKWARD):
      question = truth(PROTOCOLS['ae_spherical'], *tracks.values(), sides)[2]
      asked.append(set(tracks[sides[0]].frames[question.query_rows]))
      answering.append(set(tracks[sides[1]].frames[question.map_rows]))
    self.assertEmpty((asked[0] | asked[1]) & (answering[0] | answering[1]))

  @parameterized.parameters(*PROTOCOLS)
  def test_blocks_of_any_size_say_the_same(self, name):
    recording = drives.wander(1)
    tracks = recording.image.track, recording.points.track
    small = truth(PROTOCOLS[name], *tracks, size=7)[:2]
    large = truth(PROTOCOLS[name], *tracks, size=1000)[:2]
    np.testing.assert_array_equal(small, large)

  def test_the_description_holds_every_choice(self):
    self.assertEqual(
      PROTOCOLS['loop_closure'].describe(),
      'Queries: every frame; database: every frame of the drive; excluded: the'
      ' last 30 s and the future; hit: less than 3 / 5 / 10 m in (x, z) of'
      ' kitti, (x, y) of z_up; ties: pessimistic, a negative as similar as the'
      ' best positive beats it.',
    )


class HeadingsTest(parameterized.TestCase):
  @parameterized.parameters('kitti', 'z_up')
  def test_heading_is_that_of_a_vehicle_driving_ahead(self, axes):
    rng = np.random.default_rng(0)
    ground, forward = questions.AXES[axes]
    poses = np.tile(np.eye(4), (9, 1, 1))
    direction = rng.normal(size=(9, 2))
    poses[:, ground[0], forward] = direction[:, 0]
    poses[:, ground[1], forward] = direction[:, 1]
    np.testing.assert_allclose(
      questions.headings_from_poses(poses, axes),
      np.arctan2(direction[:, 1], direction[:, 0]),
    )

  def test_same_opposite_and_crossing(self):
    turns = np.deg2rad([[10, 170], [170, 80], [90, 100], [170, 10]])
    positives = np.array([[1, 1], [1, 1], [1, 1], [1, 0]], bool)
    same, opposite = questions.headings_of_positives(positives, np.cos(turns))
    np.testing.assert_array_equal(same, [1, 0, 0, 0])
    np.testing.assert_array_equal(opposite, [0, 1, 0, 1])

  def test_turns_are_taken_around_the_circle(self):
    headings = np.deg2rad([179.0, -179.0, 721.0])
    track = drives.make_track(np.zeros((3, 2)), headings=headings)
    question = protocols.question_from_tracks(
      PROTOCOLS['loop_closure'], {'image': track, 'points': track}, *FORWARD
    )
    block = next(questions.blocks_from_question(question, track, track))
    np.testing.assert_allclose(
      np.rad2deg(np.arccos(np.clip(block.alignments, -1, 1))),
      [[0, 2, 178], [2, 0, 180], [178, 180, 0]],
      atol=1e-3,
    )


class BadInputTest(absltest.TestCase):
  def test_what_cannot_be_asked_is_an_error(self):
    track = drives.make_track(np.zeros((3, 2)))
    for protocol, image, points, sides, message in (
      ('lip_loc', track, track, ('image', 'text'), r"No track of \['text'\]"),
      ('lip_loc', track, track._replace(axes='z_up'), FORWARD, 'Axes differ'),
      (
        'loop_closure',
        track._replace(times=None),
        track,
        FORWARD,
        'excludes the last 30 s, but.*--rate=10',
      ),
      # Nothing moves: the one query takes the frame away from the database.
      ('ae_spherical', track.take([0]), track.take([0]), FORWARD, '0 places'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        protocols.question_from_tracks(
          PROTOCOLS[protocol], {'image': image, 'points': points}, *sides
        )


if __name__ == '__main__':
  absltest.main()
