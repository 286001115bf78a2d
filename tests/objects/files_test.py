# SPDX-License-Identifier: Apache-2.0
"""Every format tells the same boxes; what cannot be used is counted."""

import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc import lens_files
from i2ploc.objects import detections as detections_lib
from i2ploc.objects import files
from tests import shared

SIZE = (480, 640)
BOXES = {'a.png': [[10, 20, 60, 90], [0, 5, 30, 50]], 'b.png': []}


def oa_slam(frames):
  return [
    {
      'file_name': name,
      'detections': [
        {'category_id': 5 + i, 'detection_score': 0.5, 'bbox': box}
        for i, box in enumerate(boxes)
      ],
    }
    for name, boxes in frames.items()
  ]


def coco_results(frames):
  return [
    {
      'image_id': name,
      'category_id': 5 + i,
      'score': 0.5,
      'bbox': [box[0], box[1], box[2] - box[0], box[3] - box[1]],
    }
    for name, boxes in frames.items()
    for i, box in enumerate(boxes)
  ]


def coco(frames):
  ids = {name: 100 + i for i, name in enumerate(frames)}
  return {
    'images': [{'id': i, 'file_name': name} for name, i in ids.items()],
    'annotations': [
      one | {'image_id': ids[one['image_id']]} for one in coco_results(frames)
    ],
    'categories': [{'id': 5, 'name': 'mug'}],
  }


class _FileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='detections_'))
    )

  def load(self, content, **arguments):
    path = self.folder / 'detections.json'
    path.write_text(
      content if isinstance(content, str) else json.dumps(content), 'utf-8'
    )
    return files.load_detections(path, SIZE, **arguments)

  def assert_refused(self, content, message, **arguments):
    with self.assertRaisesRegex(ValueError, message):
      self.load(content, **arguments)


class FormatTest(_FileTest):
  @parameterized.parameters(oa_slam, coco)
  def test_what_was_written_comes_back(self, write):
    found = self.load(write(BOXES))
    self.assertEqual(list(found.frames), ['a.png', 'b.png'])
    first = found.frames['a.png']
    self.assertEqual(first.box.tolist(), BOXES['a.png'])
    self.assertEqual(first.category.tolist(), [5, 6])
    self.assertEqual(first.score.tolist(), [0.5, 0.5])
    self.assertEqual(first.cut.tolist(), [False, True])
    self.assertEmpty(found.frames['b.png'].box)
    self.assertEmpty(found.faults)

  def test_results_name_only_images_with_boxes(self):
    found = self.load(coco_results(BOXES))
    self.assertEqual(list(found.frames), ['a.png'])
    names = {'a.png': 'x', 'b.png': 'y'}
    found = self.load(coco_results(BOXES), images=names)
    self.assertEqual(list(found.frames), ['x', 'y'])
    self.assertLen(found.frames['x'].box, 2)

  def test_category_names_come_along(self):
    self.assertEqual(self.load(coco(BOXES)).names, {5: 'mug'})

  def test_ground_truth_without_scores_is_certain(self):
    content = coco(BOXES)
    for one in content['annotations']:
      del one['score']
    self.assertEqual(self.load(content).frames['a.png'].score.tolist(), [1, 1])

  def test_npz_round_trip(self):
    frames = self.load(oa_slam(BOXES)).frames
    path = self.folder / 'detections.npz'
    files.save_detections(frames, path, SIZE)
    again = files.load_detections(path, SIZE)
    self.assertEqual(list(again.frames), list(frames))
    for name, one in frames.items():
      for column, other in zip(one[:5], again.frames[name][:5], strict=True):
        np.testing.assert_array_equal(column, other)

  def test_no_frames_at_all_round_trip(self):
    path = self.folder / 'detections.npz'
    files.save_detections({}, path, SIZE)
    self.assertEmpty(files.load_detections(path, SIZE).frames)


class SizeTest(_FileTest):
  def sized(self, width, height, boxes=BOXES):
    content = coco(boxes)
    for one in content['images']:
      one |= {'width': width, 'height': height}
    return content

  def test_boxes_of_larger_images_are_scaled(self):
    found = self.load(self.sized(1280, 960)).frames['a.png']
    self.assertEqual(found.box.tolist(), [[5, 10, 30, 45], [0, 2.5, 15, 25]])
    self.assertEqual(found.cut.tolist(), [False, True])
    self.assertEqual(
      self.load(self.sized(640, 480)).frames['a.png'].box.tolist(),
      BOXES['a.png'],
    )

  def test_boxes_of_cropped_images_are_refused(self):
    self.assert_refused(
      self.sized(640, 400),
      'boxes of a.png are of 640x400 pixels, but the images are 640x480',
    )

  @parameterized.parameters((640.5, 480), (-640, 480), ('wide', 480))
  def test_what_is_no_size_is_named(self, width, height):
    self.assert_refused(
      self.sized(width, height), r'images\[0\]: .*(no height|not a number)'
    )

  def test_an_npz_remembers_the_size(self):
    path = self.folder / 'detections.npz'
    frames = self.load(oa_slam(BOXES)).frames
    files.save_detections(frames, path, SIZE)
    half = files.load_detections(path, (240, 320)).frames['a.png']
    np.testing.assert_array_equal(half.box, frames['a.png'].box / 2)
    with self.assertRaisesRegex(ValueError, '640x480 pixels, but .* 320x200'):
      files.load_detections(path, (200, 320))

  def spread(self, width, height, count=120):
    """Boxes all over images of a size, some of which touch its border."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.8, (count, 2)) * [width, height]
    high = np.minimum(low + [width / 5, height / 4], [width, height])
    boxes = np.concatenate([low, high], 1).round(2).tolist()
    return {f'{i}.png': boxes[i::10] for i in range(10)}

  def test_boxes_of_another_size_that_nobody_told_are_refused(self):
    self.load(oa_slam(self.spread(640, 480)))
    self.assert_refused(
      oa_slam(self.spread(853, 640)), 'reach to column .* of larger ones'
    )
    self.assert_refused(
      oa_slam(self.spread(320, 240)), 'reach to column .* of smaller ones'
    )
    # With the size they are scaled, with few boxes nobody can know.
    self.assertLen(
      self.load(self.sized(320, 240, self.spread(320, 240))).frames, 10
    )
    self.load(oa_slam(self.spread(320, 240, 50)))

  def test_a_detector_that_lets_boxes_pass_the_border(self):
    rng = np.random.default_rng(0)
    low = rng.uniform(-0.2, 0.9, (100, 2)) * [640, 480]
    boxes = np.concatenate([low, low + [192, 144]], 1).tolist()
    self.load(oa_slam({'a.png': boxes}))


class FaultTest(_FileTest):
  @parameterized.parameters(
    ('not finite', [None, 0, 5, 5]),
    ('inverted', [9, 0, 5, 5]),
    ('outside the image', [700, 0, 800, 5]),
    ('duplicate', [10, 20, 60, 90]),
  )
  def test_a_bad_box_is_left_out_and_named(self, fault, box):
    content = oa_slam(BOXES)
    content[0]['detections'].append(
      {'category_id': 5, 'detection_score': 0.5, 'bbox': box}
    )
    with self.assertLogs(level='WARNING') as logs:
      found = self.load(content)
    self.assertEqual(found.faults, {fault: ('a.png, detection 2',)})
    self.assertLen(found.frames['a.png'].box, 2)
    self.assertRegex(
      logs.output[0], rf'left out 1 detections \({fault}\).*a.png, detection 2'
    )

  def test_nan_as_python_writes_it(self):
    content = oa_slam({'a.png': [[float('nan'), 0, 5, 5]]})
    self.assertIn('not finite', self.load(content).faults)

  def test_equal_boxes_of_two_categories_are_two_detections(self):
    content = oa_slam({'a.png': [[1, 1, 30, 30], [1, 1, 30, 30]]})
    found = self.load(content)
    self.assertLen(found.frames['a.png'].box, 2)
    self.assertEmpty(found.faults)

  @parameterized.parameters(oa_slam, coco, coco_results)
  def test_unknown_images_are_counted(self, write):
    content = write(BOXES | {'c.png': [[1, 1, 30, 30]]})
    key = '102' if write is coco else 'c.png'
    images = {k: k for k in ('100', '101', 'a.png', 'b.png')}
    found = self.load(content, images=images)
    self.assertLen(found.faults['unknown image'], 1)
    self.assertStartsWith(found.faults['unknown image'][0], key)
    self.assertNotIn('c.png', found.frames)

  def test_an_annotation_of_an_image_that_is_not_listed(self):
    content = coco(BOXES)
    content['annotations'][0]['image_id'] = 7
    found = self.load(content)
    self.assertEqual(found.faults, {'unknown image': ('7, detection 0',)})

  def test_frames_of_an_npz_that_are_not_listed(self):
    path = self.folder / 'detections.npz'
    np.savez(
      path,
      images=['a'],
      frame=[0, 1, -1],
      box=[[0, 0, 5, 5]] * 3,
      category=[1, 1, 1],
      score=[1, 1, 1],
    )
    found = files.load_detections(path, SIZE)
    self.assertLen(found.faults['unknown image'], 2)

  def test_damaged_files_are_refused(self):
    self.assert_refused('{"a":', 'truncated or not JSON')
    self.assert_refused('{"a": 1}', 'expected a list')
    self.assert_refused([3], "detection 0 has no 'bbox'")
    broken = coco_results(BOXES)
    broken[1]['bbox'] = [1, 2, 3]
    self.assert_refused(broken, 'detection 1: bbox .* is not 4 numbers')
    broken[1]['bbox'] = [1, 2, 3, 'x']
    self.assert_refused(broken, "'x' is not a number")
    del broken[0]['category_id']
    self.assert_refused(broken, "detection 0 has no 'category_id'")
    self.assert_refused(oa_slam(BOXES) * 2, 'entry 2 repeats the image a.png')
    twice = coco(BOXES)
    twice['images'] *= 2
    self.assert_refused(twice, r'images\[2\] repeats the id 100')
    with self.assertRaisesRegex(
      FileNotFoundError, 'no .*missing.json: give detections'
    ):
      files.load_detections(self.folder / 'missing.json', SIZE)

  def test_damaged_npz_are_refused(self):
    path = self.folder / 'detections.npz'
    path.write_bytes(b'PK')
    with self.assertRaisesRegex(ValueError, 'truncated or not an npz'):
      files.load_detections(path, SIZE)
    np.savez(path, images=['a'], frame=[0])
    with self.assertRaisesRegex(ValueError, r"lacks \['box'"):
      files.load_detections(path, SIZE)
    columns = {'images': ['a'], 'frame': [0], 'score': [1], 'category': [1]}
    np.savez(path, box=np.zeros((2, 4)), **columns)
    with self.assertRaisesRegex(ValueError, r'box is \[2, 4\], expected \[1'):
      files.load_detections(path, SIZE)


class RealTest(absltest.TestCase):
  def test_undistorted_boxes_are_those_of_another_program(self):
    folder = shared.require('data/objects/tum_fr2_desk')
    found = files.load_detections(
      folder / 'detections_oaslam_yolov5.json', SIZE
    )
    fixture = np.load(folder / 'fixture.npz')
    settings = lens_files.load_calibration(folder / 'TUM2.yaml').lens
    # That program counts pixels as the settings do.
    lens = settings._replace(
      intrinsics=settings.intrinsics - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    )
    stamps = fixture['timestamps']
    frames = {float(pathlib.Path(k).stem): v for k, v in found.frames.items()}
    errors = []
    for i in range(0, len(stamps), 40):
      rows = np.flatnonzero(fixture['det_frame'] == i)
      near = min(frames, key=lambda t: abs(t - stamps[i]))  # noqa: B023
      mine = detections_lib.undistort(frames[near], lens)
      self.assertLess(abs(near - stamps[i]), 1e-3)
      for box in fixture['det_box'][rows]:
        errors.append(np.abs(mine.box - box).max(-1).min())
    self.assertGreater(len(errors), 300)
    self.assertLess(np.median(errors), 0.3)
    self.assertLess(np.quantile(errors, 0.95), 4)


if __name__ == '__main__':
  absltest.main()
