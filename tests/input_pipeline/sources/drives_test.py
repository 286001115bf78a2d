# SPDX-License-Identifier: Apache-2.0
"""A split tells what sees and what it sees, for images of its own size."""

from absl.testing import absltest
import numpy as np

from input_pipeline.sources import drives
from tests.input_pipeline import labelled_frames


def _split(dataset, image_size=(12, 40)):
  return drives.Split(
    dataset, image_size=image_size, num_points=4, frustum=None
  )


class RigTest(absltest.TestCase):
  def test_the_lens_is_scaled_and_the_mounting_kept(self):
    found = _split(labelled_frames.dataset()).rig(1)
    self.assertEqual(found.image_size, (12, 40))
    np.testing.assert_array_equal(
      found.lens.intrinsics, np.diag([20.0, 10.0, 1.0])
    )
    np.testing.assert_array_equal(
      found.camera_from_body, labelled_frames.RIG.camera_from_body
    )

  def test_a_blind_drive_takes_the_lens_of_another_in_its_own_mounting(self):
    dataset = labelled_frames.dataset()
    mounting = np.diag([1.0, -1, -1, 1])
    blind = dataset.frames.drive == 'map'
    own = labelled_frames.RIG._replace(
      lens=None, image_size=None, camera_from_body=mounting
    )
    split = _split(
      dataset._replace(
        frames=dataset.frames._replace(has_image=~blind),
        rigs=dict(dataset.rigs) | {'map': own},
      )
    )
    found = split.rig(0)
    np.testing.assert_array_equal(found.camera_from_body, mounting)
    self.assertEqual(found.lens.intrinsics[1, 1], 10)

  def test_a_split_without_images_has_no_camera(self):
    dataset = labelled_frames.dataset()
    nothing = np.zeros(len(dataset.frames.town), bool)
    frames = dataset.frames._replace(has_image=nothing)
    with self.assertRaisesRegex(ValueError, 'painted has no image, so no cam'):
      _split(dataset._replace(frames=frames)).rig(0)

  def test_labels_are_those_of_the_dataset(self):
    dataset = labelled_frames.dataset()
    self.assertEqual(_split(dataset).labels.movable, (1,))
    self.assertIsNone(_split(dataset._replace(labels=None)).labels)


if __name__ == '__main__':
  absltest.main()
