# SPDX-License-Identifier: Apache-2.0
"""Tests of localization by objects: planted, degenerate, real."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from benchmarks import object_worlds
from i2ploc.evaluation import poses
from i2ploc.geometry import rigid
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
  return poses.pose_error(answer.camera_from_map, pose)[0]


class PlantedTest(absltest.TestCase):
  def test_exact_boxes_give_the_pose_and_the_pairs(self):
    for seed in range(3):
      object_map, found, pose, rows = _image(seed)
      answer = _localize(found, object_map)
      self.assertTrue(answer.localizable, answer.reason)
      self.assertLess(_metres(answer, pose), 0.01)
      self.assertGreater(answer.score, 0.95)
      self.assertGreater(answer.score, answer.rival)
      np.testing.assert_array_equal(answer.pairs[:, 0], np.arange(len(rows)))
      np.testing.assert_array_equal(answer.pairs[:, 1], rows)
      turn = answer.camera_from_map.rotation
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
    self.assertEqual(answer.num_left_out, 2)
    self.assertLess(_metres(answer, pose), 0.01)
    # Rows are the caller's.
    np.testing.assert_array_equal(
      answer.pairs[:, 0], [1, 3, *range(4, len(order))]
    )
    np.testing.assert_array_equal(answer.pairs[:, 1], rows)

  def test_language_names_what_categories_do_not(self):
    rng = np.random.default_rng(0)
    object_map, found, pose, rows = _image(1)
    similarity = rng.normal(0, 0.05, (len(rows), _NUM_LANDMARKS))
    similarity[np.arange(len(rows)), rows] += 0.3
    # Of two detections language is wrong, of all others the category.
    similarity[:2] = rng.normal(0, 0.05, (2, _NUM_LANDMARKS))
    category = np.append(found.category[:2], np.full(len(rows) - 2, 99))
    blind = found._replace(category=category)
    self.assertFalse(_localize(blind, object_map).localizable)
    explained = {}
    for method in ('clip', 'hybrid'):
      answer = _localize(
        blind, object_map, method=method, similarity=similarity
      )
      self.assertLess(_metres(answer, pose), 0.05)
      explained[method] = len(answer.pairs)
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
      metres[method] = _metres(answer, pose) if answer.localizable else np.inf
    self.assertLess(metres['hybrid'], 0.05)
    self.assertGreater(metres['paper'], 0.05)

  def test_what_is_known_of_the_camera_rules_poses_out(self):
    object_map, found, pose, _ = _image()
    height = float((-pose.rotation.T @ pose.translation)[2])
    prior = objects.Prior(
      down=-3 * pose.rotation[:, 2], height=(height - 0.2, height + 0.2)
    )
    self.assertLess(
      _metres(_localize(found, object_map, prior=prior), pose), 0.01
    )
    for wrong in (
      objects.Prior(height=(height + 1.0, height + 9.0)),
      objects.Prior(down=pose.rotation[:, 2]),
    ):
      answer = _localize(found, object_map, prior=wrong)
      self.assertTrue(not answer.localizable or _metres(answer, pose) > 0.5)

  def test_the_covariance_is_the_scatter(self):
    object_map, exact, pose, _ = _image(noise=0.0, fewest=9)
    rng = np.random.default_rng(0)
    sides = np.tile(exact.box[:, 2:] - exact.box[:, :2], 2)
    errors, predicted = [], []
    for _ in range(30):
      noise = 0.02 * sides * rng.normal(size=sides.shape)
      noise[detections_lib.cut_edges(exact, object_worlds.IMAGE_SIZE)] = 0
      answer = _localize(exact._replace(box=exact.box + noise), object_map)
      motion = answer.camera_from_map
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
    self.assertFalse(answer.localizable)
    self.assertIsNone(answer.camera_from_map)
    self.assertEqual(answer.confidence, 0)
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
    self.assertEqual(answer.num_left_out, len(rows))

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
    self.assertTrue(answer.localizable)
    self.assertLess(_metres(answer, pose), 0.05)
    self.assertNotIn(_NUM_LANDMARKS - 1, answer.pairs[:, 1])
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
      center = answer.camera_in_map if answer.localizable else np.inf
      errors.append(np.linalg.norm(center - data['C_w'][frame]))
    errors = np.asarray(errors)
    self.assertLen(errors, 31)
    self.assertGreaterEqual(np.mean(errors < 0.1), 0.7)
    self.assertGreaterEqual(np.mean(errors < 0.5), 0.85)


if __name__ == '__main__':
  absltest.main()
