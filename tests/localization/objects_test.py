# SPDX-License-Identifier: Apache-2.0
"""Tests of localization by objects: planted, degenerate, real."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from benchmarks import object_worlds
from i2ploc.evaluation import poses
from i2ploc.geometry import lens as lens_lib
from i2ploc.geometry import rigid
from i2ploc.localization import answer as answer_lib
from i2ploc.localization import objects
from i2ploc.objects import association
from i2ploc.objects import detections as detections_lib
from i2ploc.objects.map import landmarks
from tests import shared

_NUM_LANDMARKS = 24


def _image(seed=0, noise=0.0, fewest=7):
  """A map, detections in it, the true pose and rows [M]."""
  rng = np.random.default_rng(seed)
  object_map = object_worlds.random_map(_NUM_LANDMARKS, rng)
  side = np.sqrt(object_worlds.AREA * _NUM_LANDMARKS)
  rows = []
  while len(rows) < fewest:
    pose = object_worlds.random_pose(side, rng)
    found, rows = object_worlds.detect(object_map, pose, rng, noise)
  return object_map, found, pose, rows


def _localize(found, object_map, **options):
  options = {'method': 'category'} | options
  return objects.localize(
    found,
    object_map,
    object_worlds.INTRINSICS,
    object_worlds.IMAGE_SIZE,
    **options,
  )


def _metres(answer, pose):
  return poses.pose_error(objects.camera_from_world(answer), pose)[0]


class PlantedTest(absltest.TestCase):
  def test_exact_boxes_give_the_pose_and_the_pairs(self):
    for seed in range(3):
      object_map, found, pose, rows = _image(seed)
      answer = _localize(found, object_map)
      self.assertEqual(answer.reason, '')
      self.assertLess(_metres(answer, pose), 0.01)
      evidence = answer.evidence
      self.assertGreater(answer.similarity, 0.95)
      self.assertEqual(answer.similarity, evidence['score'])
      self.assertGreater(evidence['score'], evidence['rival'])
      pairs = np.stack([np.arange(len(rows)), rows], axis=-1)
      np.testing.assert_array_equal(evidence['pairs'], pairs)
      turn = answer.world_from_camera[:3, :3]
      np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)

  def test_it_does_not_depend_on_where_the_map_lies(self):
    object_map, found, pose, _ = _image()
    shift = np.array([4e5, -3e6, 120.0])
    moved = object_map._replace(center=object_map.center + shift)
    answer = _localize(found, moved)
    away = rigid.Rigid(pose.rotation, pose.translation - pose.rotation @ shift)
    self.assertLess(_metres(answer, away), 0.01)

  def test_broken_boxes_are_left_out_and_counted(self):
    object_map, found, pose, rows = _image()
    order = np.array([0, 0, 1, 1, *range(2, len(rows))])
    found = found.take(order)
    box = found.box.copy()
    box[0, 2], box[2, 0] = np.nan, box[2, 2] + 5
    answer = _localize(found._replace(box=box), object_map)
    self.assertEqual(answer.evidence['left_out'], 2)
    self.assertLess(_metres(answer, pose), 0.01)
    # Rows are the caller's.
    pairs = np.stack([[1, 3, *range(4, len(order))], rows], axis=-1)
    np.testing.assert_array_equal(answer.evidence['pairs'], pairs)

  def test_language_names_what_categories_do_not(self):
    rng = np.random.default_rng(0)
    object_map, found, pose, rows = _image(1)
    similarity = rng.normal(0, 0.05, (len(rows), _NUM_LANDMARKS))
    similarity[np.arange(len(rows)), rows] += 0.3
    # Of two detections language is wrong, of all others the category.
    similarity[:2] = rng.normal(0, 0.05, (2, _NUM_LANDMARKS))
    category = np.append(found.category[:2], np.full(len(rows) - 2, 99))
    blind = found._replace(category=category)
    self.assertIsNone(_localize(blind, object_map).world_from_camera)
    explained = {}
    for method in ('clip', 'hybrid'):
      answer = _localize(
        blind, object_map, method=method, similarity=similarity
      )
      self.assertLess(_metres(answer, pose), 0.05)
      explained[method] = len(answer.evidence['pairs'])
    self.assertEqual(explained['hybrid'], len(rows))
    self.assertLess(explained['clip'], len(rows))

  def test_given_pairs_may_name_other_landmarks_to_judge_by(self):
    object_map, found, pose, rows = _image(2)
    own = np.zeros((len(rows), _NUM_LANDMARKS), bool)
    own[np.arange(len(rows)), rows] = True
    proposing = association.from_mask(own)
    judging = association.same_category(found.category, object_map.category)
    answer = _localize(found, object_map, pairs=(proposing, judging))
    self.assertLess(_metres(answer, pose), 0.01)

  def test_methods_differ_in_what_proposes_and_what_judges(self):
    object_map, found, _, rows = _image()
    similarity = np.random.default_rng(0).normal(size=(len(rows), 24))
    names = {}
    for method in objects.METHODS:
      pairs = objects.candidate_pairs(
        found, object_map, method, similarity=similarity, k=2
      )
      names[method] = [
        set(zip(one.observation, one.landmark, strict=True)) for one in pairs
      ]
    self.assertLen(names['clip'][0], 2 * len(rows))
    self.assertLen(names['brute_force'][0], 24 * len(rows))
    both = names['clip'][0] | names['category'][0]
    self.assertEqual(names['paper'], [names['clip'][0], both])
    self.assertEqual(names['hybrid'], [both, both])
    self.assertEqual(names['category'][0], names['category'][1])

  def test_hybrid_proposes_the_nearest_texts_first(self):
    object_map, found, _, rows = _image()
    similarity = np.random.default_rng(0).normal(size=(len(rows), 24))
    known = association.Calibration((0.0, -1.0, -2.0), 0.5)
    pairs, _ = objects.candidate_pairs(
      found, object_map, 'hybrid', similarity=similarity, calibration=known
    )
    expected = similarity[pairs.observation, pairs.landmark]
    np.testing.assert_array_equal(pairs.similarity, expected)
    for row in range(len(rows)):
      own = pairs.take(np.flatnonzero(pairs.observation == row))
      self.assertTrue((np.diff(own.rank) > 0).all())
      self.assertTrue((np.diff(own.probability) < 0).all())
      self.assertEqual(own.rank[:3].tolist(), [0, 1, 2])

  def test_hybrid_finds_what_no_near_text_names(self):
    object_map, found, pose, rows = _image(3)
    # Language knows two of the detections, and is wrong about the others.
    similarity = np.random.default_rng(1).normal(0, 0.05, (len(rows), 24))
    similarity[np.arange(2, len(rows)), rows[2:]] = -1
    similarity[[0, 1], rows[:2]] = 1
    metres = {}
    for method in ('paper', 'hybrid'):
      answer = _localize(
        found, object_map, method=method, similarity=similarity, k=2
      )
      metres[method] = _metres(answer, pose)
    self.assertLess(metres['hybrid'], 0.05)
    self.assertGreater(metres['paper'], 0.05)

  def test_what_is_known_of_the_camera_rules_poses_out(self):
    object_map, found, pose, _ = _image()
    east, north, height = (-pose.rotation.T @ pose.translation).tolist()
    prior = answer_lib.Prior(
      down=-3 * pose.rotation[:, 2],
      height=(height - 0.2, height + 0.2),
      position=np.array([east + 0.1, north]),
      radius=0.2,
    )
    self.assertLess(
      _metres(_localize(found, object_map, prior=prior), pose), 0.01
    )
    for wrong in (
      answer_lib.Prior(height=(height + 1.0, height + 9.0)),
      answer_lib.Prior(down=pose.rotation[:, 2]),
      answer_lib.Prior(position=np.array([north, east]), radius=0.5),
    ):
      answer = _localize(found, object_map, prior=wrong)
      self.assertGreater(_metres(answer, pose), 0.5)

  def test_the_covariance_is_the_scatter(self):
    object_map, exact, pose, _ = _image(noise=0.0, fewest=9)
    rng = np.random.default_rng(0)
    sides = np.tile(exact.box[:, 2:] - exact.box[:, :2], 2)
    errors, predicted = [], []
    for _ in range(30):
      noise = 0.02 * sides * rng.normal(size=sides.shape)
      noise[detections_lib.cut_edges(exact, object_worlds.IMAGE_SIZE)] = 0
      answer = _localize(exact._replace(box=exact.box + noise), object_map)
      motion = objects.camera_from_world(answer)
      turn = motion.rotation @ pose.rotation.T
      errors.append(motion.translation - turn @ pose.translation)
      predicted.append(answer.covariance[3:, 3:])
    scatter = np.mean([np.outer(e, e) for e in errors], axis=0)
    ratio = np.trace(np.mean(predicted, axis=0)) / np.trace(scatter)
    self.assertBetween(ratio, 0.3, 3.0)

  def test_confidence_falls_with_what_is_explained(self):
    object_map, found, _, _ = _image()
    sure = _localize(found, object_map)
    few = _localize(found.take(np.arange(3)), object_map)
    rng = np.random.default_rng(0)
    other = found._replace(box=found.box[rng.permutation(len(found.box))])
    lost = _localize(other, object_map)
    self.assertGreater(sure.confidence, 0.9)
    self.assertLess(few.confidence, sure.confidence)
    self.assertLess(lost.confidence, 0.5)

  def test_images_of_a_size_share_a_program(self):
    object_map, found, _, _ = _image()
    _localize(found, object_map)
    before = objects._search._cache_size()
    for count in (3, 5, 7):
      _localize(found.take(np.arange(count)), object_map, draws=100 * count)
    self.assertEqual(objects._search._cache_size(), before)


class UnlocalizableTest(parameterized.TestCase):
  def _reason(self, found, object_map, **options):
    answer = _localize(found, object_map, **options)
    self.assertIsNone(answer.world_from_camera)
    self.assertIsNone(answer.covariance)
    self.assertEqual(answer.confidence, 0)
    self.assertNotEqual(answer.reason, '')
    return answer.reason

  def _few(self, object_map, rows):
    return landmarks.make_map(
      object_map.center[rows],
      object_map.semi_axes[rows],
      object_map.rotation[rows],
      object_map.category[rows],
    )

  def test_an_empty_map(self):
    object_map, found, _, _ = _image()
    empty = self._few(object_map, np.zeros(0, int))
    self.assertIn('map is empty', self._reason(found, empty))

  def test_no_detections(self):
    object_map = _image()[0]
    nothing = detections_lib.make_detections(
      np.zeros((0, 4)), np.zeros(0), np.zeros(0), object_worlds.IMAGE_SIZE
    )
    self.assertIn('no detections', self._reason(nothing, object_map))

  def test_two_landmarks(self):
    object_map, found, _, rows = _image()
    two = self._few(object_map, rows[:2])
    found = found._replace(category=np.full(len(rows), 4))
    two = two._replace(category=np.array([4, 4]))
    self.assertIn('2 landmarks', self._reason(found, two))

  def test_two_detections(self):
    object_map, found, _, _ = _image()
    reason = self._reason(found.take(np.arange(2)), object_map)
    self.assertIn('2 detections', reason)

  def test_landmarks_on_a_line(self):
    object_map, found, _, _ = _image()
    along = np.arange(_NUM_LANDMARKS)[:, None] * [1.0, 2.0, 0.1]
    line = object_map._replace(center=along)
    self.assertIn('on a line', self._reason(found, line))

  def test_duplicate_ids(self):
    object_map, found, _, _ = _image()
    ids = object_map.ids.copy()
    ids[5] = ids[9]
    twice = object_map._replace(ids=ids)
    self.assertIn(f'ids [{ids[9]}]', self._reason(found, twice))

  def test_nan_boxes(self):
    object_map, found, _, rows = _image()
    broken = found._replace(box=np.full_like(found.box, np.nan))
    answer = _localize(broken, object_map)
    self.assertIn(f'all {len(rows)} boxes are broken', answer.reason)
    self.assertEqual(answer.evidence['left_out'], len(rows))

  def test_nan_landmarks(self):
    object_map, found, _, _ = _image()
    center = object_map.center.copy()
    center[3, 1] = np.nan
    reason = self._reason(found, object_map._replace(center=center))
    self.assertIn('not finite', reason)

  def test_a_camera_inside_an_ellipsoid_sees_the_others(self):
    object_map, found, pose, _ = _image()
    # A room around everything: it has no box, and explains nothing.
    axes = object_map.semi_axes.copy()
    axes[-1] = 50.0
    room = object_map._replace(semi_axes=axes)
    answer = _localize(found, room)
    self.assertEqual(answer.reason, '')
    self.assertLess(_metres(answer, pose), 0.05)
    self.assertNotIn(_NUM_LANDMARKS - 1, answer.evidence['pairs'][:, 1])
    inside = object_map._replace(semi_axes=np.full_like(axes, 50.0))
    self._reason(found, inside)

  def test_sizes_that_cannot_be(self):
    object_map, found, _, _ = _image()
    # Houses in the boxes of mugs, a step apart.
    axes = np.full_like(object_map.semi_axes, 5.0)
    close = object_map._replace(semi_axes=axes, center=0.01 * object_map.center)
    self.assertIn('by their sizes', self._reason(found, close))

  def test_what_makes_no_sense_for_any_map_is_an_error(self):
    object_map, found, _, rows = _image()
    with self.assertRaisesRegex(ValueError, "'telepathy'"):
      _localize(found, object_map, method='telepathy')
    with self.assertRaisesRegex(ValueError, 'embeddings'):
      _localize(found, object_map, method='hybrid')
    with self.assertRaisesRegex(ValueError, 'similarity has shape'):
      wrong = np.ones((len(rows), 3))
      _localize(found, object_map, method='clip', similarity=wrong)
    with self.assertRaisesRegex(ValueError, '0 draws'):
      _localize(found, object_map, draws=0)


class StageTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.object_map, found, self.pose, self.rows = _image()
    other = _image(seed=5)[0]
    self.maps = {'elsewhere': other, 'here': self.object_map}
    self.calibration = dict.fromkeys(self.maps, association.UNCALIBRATED)
    self.query = answer_lib.Query(
      'a.png',
      np.zeros((*object_worlds.IMAGE_SIZE, 3), np.uint8),
      lens_lib.Lens('pinhole', object_worlds.INTRINSICS),
      detections=found,
    )

  def ask(self, query, **options):
    options = {'method': 'category'} | options
    stage = objects.make_stage(self.maps, self.calibration, **options)
    return stage(query, [])

  def test_the_map_that_explains_the_boxes_comes_first(self):
    first, second = self.ask(self.query)
    self.assertEqual((first.rank, first.place), (1, 'here'))
    self.assertEqual((second.rank, second.place), (2, 'elsewhere'))
    self.assertLess(_metres(first, self.pose), 0.01)
    self.assertGreater(first.confidence, second.confidence)

  def test_evidence_can_be_drawn(self):
    evidence = self.ask(self.query)[0].evidence
    camera = -self.pose.rotation.T @ self.pose.translation
    np.testing.assert_allclose(evidence['position'], camera, atol=0.01)
    ahead = self.pose.rotation[2]
    heading = np.arctan2(ahead[1], ahead[0])
    self.assertAlmostEqual(evidence['heading'], heading, 2)
    self.assertEqual(evidence['landmarks'], _NUM_LANDMARKS)
    boxes = self.query.detections.box
    np.testing.assert_allclose(evidence['boxes'], boxes, atol=0.06)
    names = self.object_map.names()
    for outline, (box, row) in zip(
      evidence['outlines'], evidence['pairs'], strict=True
    ):
      self.assertEqual(outline['box'], box)
      self.assertEqual(outline['name'], names[row])
      # An outline fills its box, where the image does not cut it.
      if not self.query.detections.cut[box]:
        points = outline['points']
        around = [*points.min(0), *points.max(0)]
        np.testing.assert_allclose(around, boxes[box], rtol=0.05, atol=2)

  def test_a_map_without_an_answer_says_why_and_comes_last(self):
    self.maps['elsewhere'] = self.object_map.take(np.arange(2))
    first, last = self.ask(self.query)
    self.assertEqual(first.place, 'here')
    self.assertIn('landmarks are candidates', last.reason)
    self.assertIsNone(last.evidence['position'])
    self.assertEqual(last.evidence['outlines'], [])

  def test_boxes_of_a_lens_are_undistorted_once(self):
    lens = lens_lib.Lens(
      'opencv', object_worlds.INTRINSICS, np.array([-0.2, 0.05, 0, 0])
    )
    plane, _ = lens_lib.plane_from_pixels(
      self.query.lens,
      self.query.detections.box.reshape(-1, 2),
    )
    square = (plane**2).sum(-1, keepdims=True)
    seen = plane * (1 - 0.2 * square + 0.05 * square**2)
    pixels = seen @ lens.intrinsics[:2, :2].T + lens.intrinsics[:2, 2]
    bent = self.query.detections._replace(box=pixels.reshape(-1, 4))
    asked = self.query._replace(lens=lens, detections=bent)
    straight = asked._replace(lens=self.query.lens)
    self.assertLess(_metres(self.ask(asked)[0], self.pose), 0.1)
    self.assertLess(
      _metres(self.ask(asked)[0], self.pose),
      _metres(self.ask(straight)[0], self.pose),
    )

  def test_descriptors_are_of_the_image_and_its_boxes(self):
    seen = []

    def encode(image, box):
      seen.append((image, box))
      return np.eye(32, dtype=np.float32)[self.rows]

    embedding = np.eye(_NUM_LANDMARKS, 32, dtype=np.float32)
    self.maps = {'here': self.object_map._replace(embedding=embedding)}
    (answer,) = self.ask(self.query, method='clip', encode=encode, k=1)
    self.assertLess(_metres(answer, self.pose), 0.01)
    ((image, box),) = seen
    self.assertIs(image, self.query.image)
    np.testing.assert_array_equal(box, self.query.detections.box)

  def test_what_is_left_out_is_not_looked_at(self):
    category = self.query.detections.category
    names = [f'kind {i}' for i in range(category.max() + 1)]
    gone = int(category[0])
    answer = self.ask(
      self.query, categories=names, leave_out=(names[gone], 'unheard of')
    )[0]
    self.assertLen(answer.evidence['boxes'], np.sum(category != gone))

  def test_a_query_without_boxes_or_lens_is_an_error(self):
    with self.assertRaisesRegex(ValueError, 'a.png: .*no boxes'):
      self.ask(self.query._replace(detections=None))
    with self.assertRaisesRegex(ValueError, 'a.png: .*no lens'):
      self.ask(self.query._replace(lens=None))


class RealTest(absltest.TestCase):
  def test_a_desk_is_recognized(self):
    path = shared.require('data/objects/tum_fr2_desk/fixture.npz')
    with np.load(path) as file:
      data = {name: file[name] for name in file}
    object_map = landmarks.make_map(
      data['obj_center'], data['obj_axes'], data['obj_R'], data['obj_cat']
    )
    size = (480, 640)
    errors = []
    for frame in range(33, 2200, 72):
      rows = data['det_frame'] == frame
      found = detections_lib.make_detections(
        data['det_box'][rows], data['det_cat'][rows],
        data['det_score'][rows], size,
      )  # fmt: skip
      found = found._replace(cut=data['det_cut'][rows])
      answer = objects.localize(
        found, object_map, data['K'], size, method='category', draws=64
      )
      errors.append(np.inf)
      if answer.world_from_camera is not None:
        center = answer.world_from_camera[:3, 3]
        errors[-1] = np.linalg.norm(center - data['C_w'][frame])
    errors = np.asarray(errors)
    self.assertLen(errors, 31)
    self.assertGreaterEqual(np.mean(errors < 0.1), 0.7)
    self.assertGreaterEqual(np.mean(errors < 0.5), 0.85)


if __name__ == '__main__':
  absltest.main()
