# SPDX-License-Identifier: Apache-2.0
"""The planted objects are found, where they are, once, and nothing else."""

import types

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy.spatial import transform

from i2ploc.geometry import ellipsoid
from i2ploc.objects import detections as detections_lib
from i2ploc.objects.map import construction
from i2ploc.objects.map import posed_boxes
from i2ploc.objects.map import refit
from tests import shared
from tests.objects import planted_objects

SIZE, INTRINSICS = planted_objects.SIZE, planted_objects.INTRINSICS

QUICK = construction.DEFAULT._replace(rounds=1, calibrate=False)


def build(scene, poses=None, **settings):
  return construction.build_map(
    scene.frames,
    scene.poses if poses is None else poses,
    INTRINSICS,
    SIZE,
    names={0: 'mug', 1: 'book'},
    settings=construction.DEFAULT._replace(**settings),
  )


def matches(scene, found):
  """For each planted object the nearest landmark of its category, and how far.

  Returns:
    rows: [L] int, -1 if there is none.
    away: [L] metres.
  """
  rows, away = [], []
  for center, category in zip(
    scene.ellipsoid.center, scene.category, strict=True
  ):
    same = np.flatnonzero(found.category == category)
    distance = np.linalg.norm(found.center[same] - center, axis=-1)
    best = int(distance.argmin()) if len(same) else -1
    rows.append(same[best] if len(same) else -1)
    away.append(distance[best] if len(same) else np.inf)
  return np.array(rows), np.array(away)


def mean_iou(scene, found):
  """Of the planted and the found objects' boxes in all cameras."""
  rows, _ = matches(scene, found)
  mine = ellipsoid.Ellipsoid(*(leaf[rows] for leaf in found.ellipsoid))
  boxes, valid = planted_objects.boxes_of(scene.ellipsoid, scene.poses)
  others, _ = planted_objects.boxes_of(mine, scene.poses)
  overlap = planted_objects.box_iou(boxes, others)
  return overlap[valid].mean()


class BuildTest(parameterized.TestCase):
  def test_objects_are_found_in_spite_of_everything(self):
    scene = planted_objects.make_scene()
    found = build(scene, rounds=2)
    self.assertEqual(found.num_landmarks, 7)
    self.assertEqual(
      found.names(), ['mug'] * 3 + ['book'] * 2 + ['category 2'] * 2
    )
    rows, away = matches(scene, found)
    self.assertLen(set(rows.tolist()), 7)
    self.assertLess(np.max(away), 0.02)
    self.assertGreater(mean_iou(scene, found), 0.93)
    self.assertTrue((found.num_views > 15).all())
    # The centre is about as uncertain as it says.
    deviation = np.sqrt(np.trace(found.covariance, axis1=1, axis2=2))[rows]
    self.assertTrue((away < 6 * deviation).all(), (away, deviation))
    self.assertTrue((deviation < 0.02).all())

  def test_a_map_far_from_the_origin_is_the_same(self):
    scene = planted_objects.make_scene(false=0.0, num_objects=3)
    shift = np.array([455000.0, 5427000.0, 110.0])  # such as UTM
    poses = scene.poses.copy()
    poses[:, :3, 3] += shift
    near = build(scene, rounds=1, calibrate=False)
    far = build(scene, poses, rounds=1, calibrate=False)
    self.assertEqual(far.names(), near.names())
    np.testing.assert_allclose(far.center - shift, near.center, atol=1e-3)
    again = refit.refit(far, scene.frames, poses, INTRINSICS, SIZE)
    np.testing.assert_allclose(again.center, far.center, atol=0.01)

  def test_a_constant_turn_of_the_cameras_is_corrected(self):
    scene = planted_objects.make_scene(false=0.0)
    turn = transform.Rotation.from_rotvec([0.015, -0.008, 0.004]).as_matrix()
    given = scene.poses.copy()
    given[:, :3, :3] = given[:, :3, :3] @ turn
    corrected = build(scene, given, rounds=1)
    _, away = matches(scene, corrected)
    self.assertLess(np.median(away), 0.008)
    self.assertGreater(mean_iou(scene, corrected), 0.92)
    _, without = matches(scene, build(scene, given, rounds=1, calibrate=False))
    self.assertGreater(np.median(without), 2 * np.median(away))

  def test_boxes_at_the_border_tell_what_they_can(self):
    scene = planted_objects.make_scene(false=0.0, num_objects=3)
    frames = []
    for one in scene.frames:
      # A camera that sees the left 350 columns only, or the other ones.
      box = one.box.copy()
      box[:, [0, 2]] = np.clip(box[:, [0, 2]], 0, 350)
      kept = box[:, 2] - box[:, 0] > 8
      frames.append(
        detections_lib.make_detections(
          box[kept], one.category[kept], one.score[kept], (480, 350)
        )
      )
    self.assertGreater(sum(one.cut.sum() for one in frames), 10)
    found = construction.build_map(
      frames, scene.poses, INTRINSICS, (480, 350), settings=QUICK
    )
    rows, away = matches(scene, found)
    self.assertLen(set(rows.tolist()), 3)
    self.assertLess(np.max(away), 0.03)


class DegenerateTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('few_views', {'num_frames': 4}),
    ('little_parallax', {'arc': 0.1, 'wander': 0.1, 'num_frames': 12}),
    ('one_camera', {'num_frames': 1}),
    ('nothing_but_false_boxes', {'false': 1.0}),
    ('nothing_detected', {'missed': 1.0}),
  )
  def test_nothing_is_made_of_nothing(self, arguments):
    found = build(planted_objects.make_scene(**arguments), rounds=1)
    self.assertEqual(found.num_landmarks, 0)

  def test_no_frames(self):
    found = construction.build_map([], np.zeros((0, 4, 4)), INTRINSICS, SIZE)
    self.assertEqual(found.num_landmarks, 0)

  def test_bad_input_is_named(self):
    scene = planted_objects.make_scene(num_frames=3)
    with self.assertRaisesRegex(ValueError, r'\[3, 4, 4\], not \[2, 4, 4\]'):
      build(scene, scene.poses[:2])
    scaled = scene.poses * 2
    with self.assertRaisesRegex(ValueError, 'no rigid motions.*frame 0'):
      build(scene, scaled)
    scene.frames[1].box[0, 2] = np.nan
    with self.assertRaisesRegex(ValueError, 'frame 1: box 0 is not finite'):
      build(scene)

  def test_two_books_side_by_side_stay_two(self):
    scene = planted_objects.make_scene(num_objects=2, false=0.0)
    near = scene.ellipsoid.center.copy()
    near[1] = near[0] + [0.08, 0, 0]  # inside each other, seen together
    shapes = scene.ellipsoid._replace(
      center=near, semi_axes=np.full((2, 3), 0.09)
    )
    boxes, _ = planted_objects.boxes_of(shapes, scene.poses)
    frames = [
      detections_lib.make_detections(both, [0, 0], [1, 1], SIZE)
      for both in boxes
    ]
    found = construction.build_map(
      frames, scene.poses, INTRINSICS, SIZE, settings=QUICK
    )
    self.assertEqual(found.num_landmarks, 2)
    order = np.argsort(found.center[:, 0])
    np.testing.assert_allclose(found.center[order], near, atol=0.01)


def _landmarks(centers, category, rows):
  count = len(centers)
  return construction._Landmarks(
    np.array(category),
    ellipsoid.Ellipsoid(
      np.array(centers),
      np.full((count, 3), 0.1),
      np.tile(np.eye(3), (count, 1, 1)),
    ),
    tuple(np.array(one, int) for one in rows),
    np.zeros((count, 3, 3)),
    np.zeros(count),
  )


class StepsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('one_object_of_two_halves', 0.05, [0, 0], [[0, 1, 2], [3, 4]], 1),
    ('two_that_are_seen_together', 0.05, [0, 0], [[0, 1, 2], [5, 6]], 2),
    ('two_apart', 0.15, [0, 0], [[0, 1, 2], [3, 4]], 2),
    ('two_categories', 0.05, [0, 1], [[0, 1, 2], [3, 4]], 2),
  )
  def test_merging(self, apart, category, rows, expected):
    # Rows 5 and 6 are second boxes of the images 0 and 1.
    boxes = types.SimpleNamespace(frame=np.array([0, 1, 2, 3, 4, 0, 1]))
    found = construction._merged(
      boxes, _landmarks([[0, 0, 0], [apart, 0, 0]], category, rows)
    )
    self.assertLen(found.rows, expected)
    every = np.sort(np.concatenate(found.rows)).tolist()
    self.assertEqual(every, sorted(sum(rows, [])))

  def test_boxes_go_to_the_best_landmark_one_to_one_in_an_image(self):
    overlap = np.array([[0.9, 0.8, 0.6, 0.2], [0.7, 0.0, 0.5, 0.0]])
    boxes = types.SimpleNamespace(
      frame=np.array([0, 0, 1, 1]), overlaps=lambda *_: overlap
    )
    assigned = posed_boxes.PosedBoxes.assigned
    found = assigned(boxes, None, [0, 0], 0.3)
    self.assertEqual([x.tolist() for x in found], [[0, 2], []])
    overlap[1, 1] = 0.4
    found = assigned(boxes, None, [0, 0], 0.3)
    self.assertEqual([x.tolist() for x in found], [[0, 2], [1]])


class RealTest(absltest.TestCase):
  def test_a_real_desk(self):
    folder = shared.require('data/objects/tum_fr2_desk')
    with np.load(folder / 'fixture.npz') as file:
      fixture = dict(file)
    # Some images and objects: enough for a map, and quick.
    taken = np.arange(0, len(fixture['timestamps']), 32)
    wanted = (39, 41, 62, 64, 66)
    poses = np.tile(np.eye(4), (len(taken), 1, 1))
    poses[:, :3, :3] = fixture['R_wc'][taken]
    poses[:, :3, 3] = fixture['C_w'][taken]
    frames = []
    for i in taken:
      rows = fixture['det_frame'] == i
      rows &= np.isin(fixture['det_cat'], wanted)
      frames.append(
        detections_lib.make_detections(
          fixture['det_box'][rows],
          fixture['det_cat'][rows],
          fixture['det_score'][rows],
          SIZE,
        )._replace(cut=fixture['det_cut'][rows].astype(bool))
      )
    found = construction.build_map(
      frames,
      poses,
      fixture['K'],
      SIZE,
      settings=construction.DEFAULT._replace(rounds=1),
    )
    self.assertBetween(found.num_landmarks, 8, 11)
    # The landmarks that another program made from every second image; they
    # carry the turn of the cameras that is corrected here, 3 cm up.
    away = []
    for center, category in zip(
      fixture['obj_center'], fixture['obj_cat'], strict=True
    ):
      same = found.center[found.category == category]
      if category in wanted:
        away.append(np.linalg.norm(same - center, axis=-1).min(initial=9))
    self.assertLen(away, 8)
    self.assertLess(np.median(away), 0.05)
    self.assertLess(np.max(away), 0.1)


if __name__ == '__main__':
  absltest.main()
