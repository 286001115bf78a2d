# SPDX-License-Identifier: Apache-2.0
"""Scores agree with loops over queries, and with answers known by hand."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.evaluation import metrics
from i2ploc.evaluation import protocols as protocols_lib
from i2ploc.evaluation import questions
from i2ploc.evaluation import retrieval
from i2ploc.evaluation import scores
from i2ploc.evaluation import tables
from tests.evaluation import drives

PROTOCOLS = protocols_lib.PROTOCOLS
FORWARD, BACKWARD = DIRECTIONS = ('image_to_points', 'points_to_image')


def oracle(protocol, recording, direction, radius):
  """The same numbers by Python loops, straight from the words."""
  image, points = recording.image, recording.points
  asking, answering = (
    (image, points) if direction == FORWARD else (points, image)
  )
  ground = {'kitti': (0, 2), 'z_up': (0, 1)}[asking.track.axes]
  plane = protocol.components or ground
  chosen = set(
    protocols_lib.frames_by_travel(
      {'image': image.track, 'points': points.track}, protocol.spacing
    )
  )
  found = {n: [] for n in (1, 5, 10, '1%', 'ties')}
  by_heading = {'same': [], 'opposite': []}
  answers, candidates = [], []
  for q, frame in enumerate(asking.track.frames):
    if protocol.spacing and frame not in chosen:
      continue
    ranked = []
    for m, other in enumerate(answering.track.frames):
      if protocol.spacing and other in chosen:
        continue
      if protocol.exclude_self and other == frame:
        continue
      if protocol.exclude_recent and frame - other < protocol.exclude_recent:
        continue
      apart = [
        asking.track.positions[q, i] - answering.track.positions[m, i]
        for i in plane
      ]
      turn = asking.track.headings[q] - answering.track.headings[m]
      similarity = max(
        float(x @ y)
        for x in asking.descriptors[q]
        for y in answering.descriptors[m]
      )
      ranked.append((similarity, np.hypot(*apart) < radius, np.cos(turn)))
    candidates.append(len(ranked))
    if ranked:
      best = max(s for s, _, _ in ranked)
      right = all(hit for s, hit, _ in ranked if s == best)
      answers.append((best, right))
    positives = [(s, cos) for s, hit, cos in ranked if hit]
    if not positives:
      continue
    best = max(s for s, _ in positives)
    rank = sum(s >= best and not hit for s, hit, _ in ranked)
    for n in (1, 5, 10):
      found[n].append(rank < n)
    found['1%'].append(rank < -(-len(ranked) // 100))
    found['ties'].append(sum(s > best for s, hit, _ in ranked if not hit) < 1)
    half = np.sqrt(0.5)
    if any(cos > half for _, cos in positives):
      by_heading['same'].append(rank < 1)
    elif any(cos < -half for _, cos in positives):
      by_heading['opposite'].append(rank < 1)
  at = f'_{radius:g}m'
  expected = {
    'queries': len(candidates),
    'candidates': np.mean(candidates),
    f'answerable{at}': len(found[1]),
    f'recall@1{at}_ties_found': 100 * np.mean(found['ties']),
  }
  for n in (1, 5, 10, '1%'):
    expected[f'recall@{n}{at}'] = 100 * np.mean(found[n])
  if protocol.exclude_recent:
    expected[f'f1_max{at}'] = 100 * max(
      2
      * sum(right for s, right in answers if s >= threshold)
      / (sum(s >= threshold for s, _ in answers) + len(found[1]))
      for threshold, _ in answers
    )
    for name, hits in by_heading.items():
      if not hits:
        continue
      expected[f'answerable{at}_{name}_heading'] = len(hits)
      expected[f'recall@1{at}_{name}_heading'] = 100 * np.mean(hits)
  return expected


class OracleTest(parameterized.TestCase):
  @parameterized.product(name=tuple(PROTOCOLS), axes=('kitti', 'z_up'))
  def test_agrees_with_loops(self, name, axes):
    protocol, recording = PROTOCOLS[name], drives.wander(3, axes=axes)
    results = retrieval.score_drives([recording], [protocol])
    for direction in DIRECTIONS:
      for radius in protocol.radii:
        expected = oracle(protocol, recording, direction, radius)
        prefix = f'{name}/drive_3/{direction}'
        for what, value in expected.items():
          self.assertAlmostEqual(results[f'{prefix}/{what}'], value, msg=what)
    gains = [
      value - results[key.removesuffix('_ties_found')]
      for key, value in results.items()
      if key.endswith('_ties_found')
    ]
    self.assertGreater(max(gains), 0)

  @parameterized.parameters(
    ('lip_loc', {'components': (1, 2)}),
    ('lip_loc', {'exclude_self': True}),
    ('rangebev', {'exclude_self': False}),
    ('rangebev', {'components': (0, 1)}),
    ('loop_closure', {'exclude_recent': 1.0}),
    ('loop_closure', {'exclude_recent': 0.0}),
    ('ae_spherical', {'spacing': 0.0}),
  )
  def test_every_choice_of_a_protocol_changes_its_numbers(self, name, change):
    recording = drives.wander(3)
    before, after = (
      retrieval.score_drives([recording], [protocol])
      for protocol in (PROTOCOLS[name], PROTOCOLS[name]._replace(**change))
    )
    recalls = [key for key in before if '/recall@' in key]
    self.assertNotAlmostEqual(
      sum(before[key] for key in recalls),
      sum(after.get(key, 0) for key in recalls),
    )


class KnownAnswersTest(absltest.TestCase):
  def test_a_model_that_knows_the_instant_only(self):
    # Perfect for LIP-Loc, worthless where the own instant is removed.
    track = drives.make_track([[0, 8 * i] for i in range(12)])
    recording = drives.make_recording(track, np.eye(12), np.eye(12))
    results = retrieval.score_drives(
      [recording], [PROTOCOLS['lip_loc'], PROTOCOLS['rangebev']]
    )
    for direction in DIRECTIONS:
      self.assertEqual(results[f'lip_loc/00/{direction}/recall@1_20m'], 100)
      base = f'rangebev/00/{direction}'
      self.assertEqual(results[f'{base}/recall@1_10m'], 0)
      # All others are equally similar: a left-sided rank calls that found.
      self.assertEqual(results[f'{base}/recall@1_10m_ties_found'], 100)
      self.assertEqual(results[f'{base}/answerable_10m'], 12)

  def test_wrong_answers_pass_on_the_released_axes(self):
    # A street along x: camera 0 looks along z, which never changes.
    track = drives.make_track([[30 * i, 0] for i in range(9)])
    recording = drives.make_recording(
      track, np.eye(9), np.roll(np.eye(9), 1, axis=1)
    )
    names = 'lip_loc', 'lip_loc_released_axes'
    results = retrieval.score_drives([recording], [PROTOCOLS[n] for n in names])
    self.assertEqual(results[f'lip_loc/00/{FORWARD}/recall@1_20m'], 0)
    self.assertEqual(
      results[f'lip_loc_released_axes/00/{FORWARD}/recall@1_20m'], 100
    )
    self.assertEqual(
      results[f'lip_loc_released_axes/00/{FORWARD}/chance@1_20m'], 100
    )

  def test_an_answer_exactly_on_the_radius_is_no_hit(self):
    for spacing, recall in ((20.0, 0), (19.5, 100)):
      track = drives.make_track([[0, spacing * i] for i in range(5)])
      image = np.roll(np.eye(5), 1, axis=1)
      image[-1] = np.eye(5)[-2]
      results = retrieval.score_drives(
        [drives.make_recording(track, image, np.eye(5))], [PROTOCOLS['lip_loc']]
      )
      self.assertEqual(results[f'lip_loc/00/{FORWARD}/recall@1_20m'], recall)

  def test_loop_closure_counts_second_visits_only(self):
    # A street of 40 places driven twice, the second time in reverse.
    along = np.arange(40.0) * 20
    ground = np.stack([np.zeros(80), np.concatenate([along, along[::-1]])], 1)
    headings = np.repeat([0.0, np.pi], 40)
    track = drives.make_track(ground, headings=headings)
    place = np.concatenate([np.arange(40), np.arange(40)[::-1]])
    codes = np.eye(40)[place]
    # The image at the last ten frames recognizes nothing, and says so loudly.
    image = codes.copy()
    image[70:] = 2 * codes[70:][:, ::-1]
    recording = drives.make_recording(track, image, codes)
    results = retrieval.score_drives([recording], [PROTOCOLS['loop_closure']])
    base = f'loop_closure/00/{FORWARD}'
    # Less than 30 s ago: places 39..25, that is, frames 40..54.
    self.assertEqual(results[f'{base}/answerable_3m'], 25)
    self.assertEqual(results[f'{base}/recall@1_3m'], 60)
    self.assertEqual(results[f'{base}/answerable_3m_opposite_heading'], 25)
    self.assertNotIn(f'{base}/answerable_3m_same_heading', results)
    # Loud errors: 10 wrong before 15 right; the rest of the answers comes last.
    self.assertAlmostEqual(
      results[f'{base}/f1_max_3m'], 100 * 2 * 15 / (25 + 25)
    )

  def test_chance_is_what_random_descriptors_reach(self):
    rng = np.random.default_rng(0)
    track = drives.make_track(
      np.cumsum(rng.normal(size=(1500, 2)), axis=0) % 60
    )
    image, points = rng.normal(size=(2, 1500, 32))
    results = retrieval.score_drives(
      [drives.make_recording(track, image, points)], [PROTOCOLS['lip_loc']]
    )
    for label in ('1', '5', '10', '1%'):
      base = f'lip_loc/00/{FORWARD}'
      chance = results[f'{base}/chance@{label}_20m']
      self.assertBetween(
        chance,
        results[f'{base}/recall@{label}_20m_low'] - 3,
        results[f'{base}/recall@{label}_20m_high'] + 3,
      )

  def test_pooled_queries_ask_their_own_drive(self):
    recordings = [
      drives.wander(5),
      drives.wander(6, count=60)._replace(name='other'),
    ]
    results = retrieval.score_drives(recordings, [PROTOCOLS['rangebev']])
    what = f'{FORWARD}/recall@1_10m', f'{FORWARD}/answerable_10m'
    each = [
      [results[f'rangebev/{name}/{w}'] for w in what]
      for name in ('drive_5', 'other')
    ]
    weights = [count for _, count in each]
    self.assertAlmostEqual(
      results[f'rangebev/all/{what[0]}'],
      np.average([recall for recall, _ in each], weights=weights),
    )
    self.assertEqual(results[f'rangebev/all/{what[1]}'], sum(weights))

  def test_blocks_of_the_bootstrap_never_span_drives(self):
    outcomes = []
    for seed in (5, 6):
      recording = drives.wander(seed)
      question = protocols_lib.question_from_tracks(
        PROTOCOLS['lip_loc'],
        {name: side.track for name, side in recording.sides.items()},
        'image',
        'points',
      )
      outcomes.append(retrieval.ask_drive(question, recording))
    pooled = scores.pool(outcomes)
    count = len(outcomes[0].blocks)
    first, second = set(pooled.blocks[:count]), set(pooled.blocks[count:])
    self.assertEmpty(first & second)
    self.assertEqual(
      len(first | second), sum(len(set(x.blocks)) for x in outcomes)
    )

  def test_a_query_without_position_is_in_no_rate(self):
    # A street driven twice and recognized.
    along = np.tile(np.arange(40.0) * 20, 2)
    track = drives.make_track(np.stack([0 * along, along], 1))
    codes = np.tile(np.eye(40), (2, 1))
    image, points = drives.make_recording(track, codes, codes).sides.values()
    rows = np.arange(len(image.track.frames))
    more = image.take(np.append(rows, rows[-1]))
    more.track.positions[-1] = np.nan
    # It says loudly what nobody can check.
    more.descriptors[-1] = 100
    found = []
    for queries in (image, more):
      tracks = {'image': queries.track, 'points': points.track}
      question = protocols_lib.question_from_tracks(
        PROTOCOLS['loop_closure'], tracks, 'image', 'points'
      )
      blocks = np.arange(len(queries.track.frames)) // 9
      outcome = scores.ask(question, queries, points, blocks)
      found.append(
        dict(scores.counts(question, outcome))
        | dict(scores.rates(question, outcome, intervals=True))
      )
    before, after = found
    self.assertEqual(after.pop('queries'), before.pop('queries') + 1)
    self.assertEqual(after.pop('queries_without_position'), 1)
    self.assertNotEqual(after.pop('candidates'), before.pop('candidates'))
    self.assertEqual(before['f1_max_10m'], 100)
    self.assertEqual(after, before)

  def test_nothing_to_answer_leaves_rates_out(self):
    track = drives.make_track([[0, 50 * i] for i in range(5)])
    recording = drives.make_recording(track, np.eye(5), np.eye(5))
    results = retrieval.score_drives([recording], [PROTOCOLS['loop_closure']])
    base = f'loop_closure/00/{FORWARD}'
    self.assertEqual(results[f'{base}/answerable_10m'], 0)
    self.assertNotIn(f'{base}/recall@1_10m', results)
    self.assertTrue(np.isfinite(list(results.values())).all())
    text = '\n'.join(tables.markdown(results, [PROTOCOLS['loop_closure']]))
    self.assertIn('| 00 | image to points | 10 m | 5 | 0 | 5 | - | - |', text)

  def test_two_drives_of_one_name_are_an_error(self):
    for names in (('00', '00'), ('all',)):
      recordings = [drives.wander(0)._replace(name=name) for name in names]
      with self.assertRaisesRegex(ValueError, 'is taken'):
        retrieval.score_drives(recordings, [PROTOCOLS['lip_loc']])

  def test_a_protocol_that_cannot_be_asked_names_the_drive(self):
    recording = drives.wander(0)
    bare = recording.image.track._replace(times=None)
    recording = recording._replace(image=recording.image._replace(track=bare))
    with self.assertRaisesRegex(ValueError, '^drive_0: loop_closure'):
      retrieval.score_drives([recording], [PROTOCOLS['loop_closure']])

  def test_no_array_of_all_pairs_exists(self):
    sizes = []
    inner = metrics.similarities

    def watch(queries, places, kind):
      sizes.append((len(queries), len(places)))
      return inner(queries, places, kind)

    rng = np.random.default_rng(0)
    track = drives.make_track(rng.normal(size=(700, 2)))
    recording = drives.make_recording(track, *rng.normal(size=(2, 700, 4)))
    with absltest.mock.patch.object(metrics, 'similarities', watch):
      retrieval.score_drives([recording], [PROTOCOLS['lip_loc']])
    self.assertLen(sizes, 6)
    self.assertLessEqual(max(q for q, _ in sizes), questions.BLOCK_QUERIES)


class TableTest(absltest.TestCase):
  def test_a_row_per_drive_direction_and_radius(self):
    protocols = list(PROTOCOLS.values())
    results = retrieval.score_drives([drives.wander(3)], protocols)
    lines = list(tables.markdown(results, protocols))
    rows = [line for line in lines if line.startswith('| drive_3')]
    self.assertLen(rows, 2 * sum(len(p.radii) for p in protocols))
    value = results[f'rangebev/drive_3/{BACKWARD}/recall@1_10m']
    row = next(row for row in rows if '| points to image | 10 m |' in row)
    self.assertIn(f'| {value:.1f} [', row)
    for protocol in protocols:
      self.assertIn(protocol.describe(), lines)
    widths = {line.count('|') for line in rows}
    self.assertLen(widths, 2)


if __name__ == '__main__':
  absltest.main()
