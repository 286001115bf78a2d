# SPDX-License-Identifier: Apache-2.0
"""Boxes keep their meaning from detector to crop, or are refused by name."""

import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.geometry import lens as lens_lib
from i2ploc.objects import detections as detections_lib

SIZE = (480, 640)
LENS = lens_lib.Lens(
  'opencv',
  np.array([[520.9, 0, 325.6], [0, 521.0, 250.2], [0, 0, 1]]),
  np.array([0.2312, -0.7849, -0.0033, -0.0001, 0.9172]),
)


def detections(boxes, **columns):
  count = len(boxes)
  columns = {'category': np.arange(count), 'score': np.ones(count)} | columns
  return detections_lib.make_detections(
    np.array(boxes), image_size=SIZE, **columns
  )


def distorted(plane):
  """Pixels [N, 2] of the plane z = 1 in LENS, written from its equation."""
  k1, k2, p1, p2, k3 = LENS.distortion
  x, y = plane.T
  r = x * x + y * y
  s = 1 + k1 * r + k2 * r**2 + k3 * r**3
  u = x * s + 2 * p1 * x * y + p2 * (r + 2 * x * x)
  v = y * s + p1 * (r + 2 * y * y) + 2 * p2 * x * y
  return np.stack([520.9 * u + 325.6, 521.0 * v + 250.2], -1)


class MakeTest(parameterized.TestCase):
  def test_boxes_at_the_border_and_small_ones_are_flagged(self):
    found = detections(
      [
        [100, 100, 200, 200],
        [0, 100, 200, 200],
        [100, 1, 200, 200],
        [600, 100, 639, 200],
        [100, 300, 200, 480],
        [100, 100, 119, 300],
      ]
    )
    self.assertEqual(found.cut.tolist(), [False, True, True, True, True, False])
    self.assertEqual(found.small.tolist(), [False] * 5 + [True])

  def test_only_the_edges_at_the_border_are_cut(self):
    found = detections([[0, 100, 200, 470], [5, 100, 200, 200]])
    np.testing.assert_array_equal(
      detections_lib.cut_edges(found, SIZE),
      [[True, False, False, True], [False] * 4],
    )

  def test_an_image_without_detections_is_fine(self):
    empty = detections(np.zeros((0, 4)))
    self.assertEqual(empty.box.shape, (0, 4))
    self.assertEqual(empty.cut.shape, (0,))
    self.assertEqual(detections_lib.undistort(empty, LENS).box.shape, (0, 4))

  @parameterized.parameters(
    ([np.nan, 0, 1, 1], r'1 of 2 detections .* rows \[1\]; .* not finite'),
    ([0, 0, np.inf, 1], 'not finite'),
    ([5, 0, 4, 1], 'inverted'),
    ([4, 0, 4, 1], 'inverted'),
  )
  def test_impossible_boxes_are_named(self, box, message):
    with self.assertRaisesRegex(ValueError, message):
      detections([[0, 0, 9, 9], box])

  def test_a_score_that_is_no_number_is_named(self):
    with self.assertRaisesRegex(ValueError, 'not finite.*score nan'):
      detections([[0, 0, 9, 9]], score=[np.nan])

  def test_columns_of_different_lengths(self):
    with self.assertRaisesRegex(ValueError, "'category': 2"):
      detections([[0, 0, 9, 9]], category=[1, 2])

  def test_rows_can_be_taken(self):
    found = detections(
      [[0, 0, 9, 9], [1, 1, 5, 8]], embedding=np.eye(2, dtype=np.float32)
    )
    second = found.take(np.array([1]))
    self.assertEqual(second.category.tolist(), [1])
    self.assertEqual(second.embedding.tolist(), [[0, 1]])


class UndistortTest(parameterized.TestCase):
  def test_the_pinhole_box_comes_back(self):
    # The distorted image of a cross: the points where a box is touched.
    x0, y0, x1, y1 = -0.4, -0.2, -0.1, 0.25
    cross = np.array([[x0, 0.02], [-0.25, y0], [x1, 0.02], [-0.25, y1]])
    pixels = distorted(cross)
    box = [pixels[0, 0], pixels[1, 1], pixels[2, 0], pixels[3, 1]]
    found = detections_lib.undistort(detections([box]), LENS)
    scale, center = np.array([520.9, 521.0]), np.array([325.6, 250.2])
    expected = np.array([[x0, y0], [x1, y1]]) * scale + center
    expected = expected.reshape(4)
    # Touched near the middle of an edge, not exactly there.
    np.testing.assert_allclose(found.box[0], expected, atol=0.7)
    self.assertGreater(np.abs(np.array(box) - expected).max(), 3.0)

  def test_without_distortion_nothing_moves(self):
    found = detections([[10, 20, 300, 400], [0, 0, 640, 480]])
    pinhole = lens_lib.Lens('pinhole', LENS.intrinsics)
    moved = detections_lib.undistort(found, pinhole)
    np.testing.assert_allclose(moved.box, found.box, atol=1e-9)
    self.assertEqual(moved.cut.tolist(), [False, True])

  def test_what_the_border_cut_remains_cut(self):
    found = detections([[0, 200, 120, 300]])
    moved = detections_lib.undistort(found, LENS)
    self.assertGreater(moved.box[0, 0], detections_lib.BORDER)
    self.assertTrue(moved.cut[0])
    edges = detections_lib.cut_edges(moved, SIZE)
    self.assertEqual(edges.tolist(), [[True, False, False, False]])

  def test_a_box_of_another_image_size_is_refused(self):
    found = detections([[3000, 20, 4000, 400]])
    # It folds back at 1.15 and so shows nothing beyond 727 pixels.
    folds = LENS._replace(distortion=np.array([-0.25, 0, 0, 0]))
    with self.assertRaisesRegex(ValueError, 'no image.*another image size'):
      detections_lib.undistort(found, folds)

  @parameterized.parameters('equirectangular', 'fisheye')
  def test_what_looks_around_is_refused(self, model):
    lens = lens_lib.Lens(model, LENS.intrinsics)
    with self.assertRaisesRegex(ValueError, f'{model}.*undistort the images'):
      detections_lib.undistort(detections([[1, 1, 9, 9]]), lens)


class DetectorTest(absltest.TestCase):
  def test_any_function_is_a_detector(self):
    image = np.zeros((*SIZE, 3), np.uint8)

    def detector(image):
      height, width, _ = image.shape
      return detections([[1, 1, width - 1, height - 1]])

    found = detections_lib.detect(detector, image)
    self.assertEqual(found.box.tolist(), [[1, 1, 639, 479]])
    self.assertTrue(found.cut[0])

  def test_a_detector_is_not_believed(self):
    image = np.zeros((*SIZE, 3), np.uint8)
    with self.assertRaisesRegex(ValueError, 'gave list, expected Detections'):
      detections_lib.detect(lambda _: [1], image)
    broken = detections([[1, 1, 2, 2]])._replace(box=np.full((1, 4), np.nan))
    with self.assertRaisesRegex(ValueError, 'not finite'):
      detections_lib.detect(lambda _: broken, image)

  def test_ultralytics_is_asked_for_only_when_wanted(self):
    with mock.patch.dict(sys.modules, {'ultralytics': None}):
      with self.assertRaisesRegex(ImportError, 'pip install ultralytics'):
        detections_lib.ultralytics_detector('yolo11n.pt')

  def test_ultralytics_results_become_detections(self):
    boxes = mock.Mock(
      xyxy=np.array([[1, 2, 30, 40.0]]), cls=np.array([7.0]), conf=[0.5]
    )
    boxes.cpu.return_value.numpy.return_value = boxes
    package = mock.Mock()
    predict = package.YOLO.return_value.predict
    predict.return_value = [mock.Mock(boxes=boxes)]
    with mock.patch.dict(sys.modules, {'ultralytics': package}):
      detector = detections_lib.ultralytics_detector('weights.pt')
    image = np.zeros((*SIZE, 3), np.uint8)
    image[..., 0] = 9
    found = detections_lib.detect(detector, image)
    self.assertEqual(found.category.tolist(), [7])
    self.assertEqual(found.box.tolist(), [[1, 2, 30, 40]])
    (seen,), _ = predict.call_args
    self.assertEqual(seen[0, 0].tolist(), [0, 0, 9])  # blue first


if __name__ == '__main__':
  absltest.main()
