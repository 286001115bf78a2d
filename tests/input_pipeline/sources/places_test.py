# SPDX-License-Identifier: Apache-2.0
"""Towns as places: who maps, who asks, and what a worse detector says."""

from absl.testing import absltest
import numpy as np

from i2ploc.evaluation import questions
from input_pipeline.sources import crops as crops_lib
from input_pipeline.sources import places as places_lib
from input_pipeline.synthetic_city import detections as detections_lib
from tests.input_pipeline import labelled_frames


def place(edge=0.0, missed=0.0, seed=0):
  dataset = labelled_frames.dataset()
  crops = crops_lib.Crops(
    dataset,
    labelled_frames.SIZE,
    per_image=2,
    min_pixels=10,
    min_side=2,
    min_share=0.1,
  )
  (found,) = places_lib.town_places(
    dataset,
    crops,
    questions.between_drives(dataset.frames, dataset.queries),
    lambda row: labelled_frames.RIG,
    edge=edge,
    missed=missed,
    seed=seed,
  )
  return found


class TownPlacesTest(absltest.TestCase):
  def test_the_first_drive_maps_and_the_other_asks(self):
    found = place()
    self.assertEqual(found.name, 'town')
    self.assertEqual(found.mapping.names[1], 'map_000001.png')
    self.assertEqual(found.queries.names[1], 'cross_000001.png')
    self.assertEqual(found.categories, detections_lib.CATEGORIES)
    self.assertIsNone(found.detections)

  def test_poses_are_those_of_the_camera(self):
    shots = place().mapping
    np.testing.assert_allclose(shots.position[2], [5.0, 0, 0], atol=1e-6)
    # The optical axis runs east.
    np.testing.assert_allclose(
      shots.world_from_camera[2, :3, 2], [1, 0, 0], atol=1e-6
    )
    self.assertEqual(shots.world_from_camera.dtype, np.float64)

  def test_images_and_labels_are_those_of_the_row(self):
    found = place()
    seen = found.queries.labels(1)
    names = [found.categories[i] for i in seen.category]
    self.assertEqual(names, ['bin', 'tree', 'tree', 'car'])
    np.testing.assert_array_equal(seen.box[0], [2, 4, 10, 20])
    self.assertLen(found.queries.labels(0).category, 2)
    self.assertFalse(
      np.array_equal(found.queries.read(1), found.mapping.read(1))
    )

  def test_landmarks_are_those_of_the_labels(self):
    found = place().landmarks()
    self.assertEqual(
      found.text.tolist(),
      ['a green bin', 'a fir-like tree', 'a birch-like tree'],
    )

  def test_noise_depends_on_the_row_alone(self):
    first, again = place(edge=0.1), place(edge=0.1)
    again.queries.labels(0)
    np.testing.assert_array_equal(
      first.queries.labels(1).box, again.queries.labels(1).box
    )
    self.assertFalse(
      np.array_equal(first.queries.labels(1).box, first.queries.labels(2).box)
    )
    other = place(edge=0.1, seed=1)
    self.assertFalse(
      np.array_equal(first.queries.labels(1).box, other.queries.labels(1).box)
    )

  def test_a_detector_misses_what_it_shall(self):
    found = place(missed=1.0)
    self.assertEmpty(found.queries.labels(1).box)


if __name__ == '__main__':
  absltest.main()
