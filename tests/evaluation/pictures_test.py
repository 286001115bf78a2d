# SPDX-License-Identifier: Apache-2.0
"""Examples show what was asked, found and true."""

import pathlib
import tempfile
from types import SimpleNamespace

from absl.testing import absltest
import numpy as np

from i2ploc.evaluation import pictures
from i2ploc.evaluation import predictions

COUNT = 8
SIZE = (4, 6)


def make_record(found, positions, nearest):
  """Row r finds the rows `found[r]` [K] of the map, most similar first."""
  rows = np.arange(COUNT)
  apart = np.linalg.norm(positions[:, None] - positions[found], axis=2)
  return predictions.Predictions(
    towns=np.full(COUNT, 'a'),
    query_rows=rows,
    query_positions=positions,
    ranked_rows=found,
    similarities=np.tile(np.float32([0.9, 0.5]), (COUNT, 1)),
    distances=apart.astype(np.float32),
    confidence=np.linspace(0, 1, COUNT, dtype=np.float32),
    nearest=np.full(COUNT, nearest, np.float32),
    map_towns=np.full(COUNT, 'a'),
    map_rows=rows,
    map_positions=positions,
  )


class Photos:
  """Every image has the colour of its row; a scan has one point ahead."""

  image_size = SIZE
  moving = movable = ()

  def __init__(self, positions):
    rows = np.arange(COUNT)
    self.frames = SimpleNamespace(
      position=positions, name=np.array([f'{row}.jpg' for row in rows])
    )

  def batches(self, rows, what, size):
    assert size == 1
    for row in rows:
      yield self.read(row, what)

  def read(self, row, what):
    if what == ('image',):
      image = np.full((1, *SIZE, 3), row, np.uint8)
      return {'image': image, 'mask': np.ones(1, bool)}
    return {
      'points': np.array([[[0.0, 0.0, 10.0 + row, 0.0]]]),
      'points_mask': np.ones((1, 1), bool),
      'camera_from_lidar': np.eye(4)[None],
      'intrinsics': np.array([[[1.0, 0, 3], [0, 1, 2], [0, 0, 1]]]),
    }


class ExamplesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.positions = np.zeros((COUNT, 3))
    self.positions[:, 0] = 10.0 * np.arange(COUNT)
    # The last two find something far away; the others their neighbour.
    first = np.array([1, 0, 3, 2, 5, 4, 0, 1])
    self.found = np.stack([first, (first + 3) % COUNT], 1)

  def save(self, name, positions, nearest=10.0, **describe):
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    path = pathlib.Path(temporary.name) / 'examples.npz'
    pictures.save_examples(
      Photos(positions),
      {'image': lambda batch: {}, 'points': lambda batch: {}} | describe,
      {name: make_record(self.found, positions, nearest)},
      path,
      projection='pinhole',
      count=4,
      radius=15.0,
    )
    if not path.exists():
      return None
    with np.load(path) as saved:
      return dict(saved)

  def test_photos_show_query_answer_and_what_is_right(self):
    saved = self.save('test/photos/image_to_image', self.positions)
    asked = saved['query_image'][:, 0, 0, 0]
    # Failures first, then hits from all along the drive.
    np.testing.assert_array_equal(asked, [6, 7, 0, 5])
    np.testing.assert_array_equal(
      saved['answer_images'][..., 0, 0, 0], self.found[asked]
    )
    self.assertEqual(saved['answer_names'][0].tolist(), ['0.jpg', '3.jpg'])
    np.testing.assert_allclose(saved['answer_distances'][0], [60, 30])
    np.testing.assert_allclose(saved['answer_similarities'][0], [0.9, 0.5])
    # The photo nearest to the query is not the query.
    true = saved['true_image'][:, 0, 0, 0].astype(int)
    np.testing.assert_array_equal(np.abs(true - asked), 1)
    np.testing.assert_allclose(saved['distance_m'], [60, 60, 10, 10])
    np.testing.assert_array_equal(saved['rank'], [0, 0, 1, 1])
    np.testing.assert_allclose(saved['confidence'], asked / 7)
    self.assertEqual(saved['title'][0], '6.jpg')
    self.assertFalse([name for name in saved if 'saliency' in name])

  def test_scans_are_drawn_as_the_camera_sees_them(self):
    def image(batch):
      del batch
      return {'saliency': np.array([[1.0, 3.0]]), 'grid': (1, 2)}

    def points(batch):
      del batch
      tokens = SimpleNamespace(mask=np.ones((1, 1), bool))
      return {
        'saliency': np.ones((1, 1)),
        'centers': np.zeros((1, 1, 3)),
        'tokens': tokens,
      }

    saved = self.save(
      'test/cross/image_to_points', self.positions, image=image, points=points
    )
    asked = saved['query_image'][:, 0, 0, 0]
    np.testing.assert_allclose(
      saved['retrieved_depth'].max((1, 2)), 10 + self.found[asked, 0]
    )
    np.testing.assert_array_equal(
      saved['retrieved_position'][:, 0], 10 * self.found[asked, 0]
    )
    # Of a map of scans, the scan of the query's own frame is the right one.
    np.testing.assert_allclose(saved['true_depth'].max((1, 2)), 10.0 + asked)
    self.assertEqual(saved['true_depth'].shape, (4, *SIZE))
    np.testing.assert_array_equal(
      saved['saliency_points'] > 0, saved['true_depth'] > 0
    )
    np.testing.assert_allclose(saved['saliency_image'], [[[0.5, 1.5]]] * 4)
    self.assertNotIn('true_image', saved)

  def test_a_model_that_weighs_all_alike_has_no_saliency_to_show(self):
    def image(batch):
      del batch
      return {'saliency': np.ones((1, 2)), 'grid': (1, 2)}

    saved = self.save('test/photos/image_to_image', self.positions, image=image)
    self.assertNotIn('saliency_image', saved)

  def test_without_positions_there_are_queries_and_answers_alone(self):
    unknown = np.full((COUNT, 3), np.nan)
    saved = self.save('test/photos/image_to_image', unknown, nearest=np.nan)
    asked = saved['query_image'][:, 0, 0, 0]
    np.testing.assert_array_equal(asked, [0, 2, 4, 7])
    np.testing.assert_array_equal(
      saved['answer_images'][..., 0, 0, 0], self.found[asked]
    )
    self.assertTrue(np.isnan(saved['distance_m']).all())
    np.testing.assert_array_equal(saved['rank'], [-1] * 4)
    self.assertNotIn('true_image', saved)
    saved = self.save('test/cross/image_to_points', unknown, nearest=np.nan)
    self.assertIn('retrieved_depth', saved)
    self.assertNotIn('true_depth', saved)

  def test_a_map_with_few_images_shows_what_there_is(self):
    self.found[5, 1] = -1  # one of those that are shown
    saved = self.save('test/photos/image_to_image', self.positions)
    self.assertEqual(saved['answer_names'].shape, (4, 1))

  def test_without_image_queries_or_answerable_ones_nothing_is_written(self):
    self.assertIsNone(self.save('test/x/points_to_points', self.positions))
    self.assertIsNone(
      self.save('test/photos/image_to_image', self.positions, nearest=99.0)
    )


if __name__ == '__main__':
  absltest.main()
