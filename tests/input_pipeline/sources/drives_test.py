# SPDX-License-Identifier: Apache-2.0
"""A split tells what sees and what it sees, for images of its own size."""

import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np
from PIL import Image

from i2ploc.evaluation import questions
from input_pipeline.sources import drives
from tests.input_pipeline import labelled_frames

FIELDS = dict(per_image=2, min_pixels=10, min_side=2, min_share=0.1)


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


class SourceTest(absltest.TestCase):
  def test_pictures_are_spread_over_the_rows_and_named_after_them(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    for name in ('database/0.jpg', *(f'queries/{i}.jpg' for i in range(30))):
      path = folder / 'photos' / name
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new('L', (20, 20), 3 * len(name)).save(path)
    source = drives.Source(
      name='photos', data_dir=str(folder / 'photos'), train='', validation='',
      test='all', image_size=(16, 16),
    )  # fmt: skip
    source.save_pictures(folder, np.arange(1, 31))
    found = {path.name for path in (folder / 'queries').iterdir()}
    self.assertLen(found, drives.NUM_PICTURES)
    self.assertContainsSubset(
      {'queries_0.jpg.png', 'queries_29.jpg.png'}, found
    )
    with Image.open(folder / 'queries/queries_0.jpg.png') as image:
      self.assertEqual(image.size, (20, 20))
    source.save_pictures(folder / 'few', [4, 5])
    self.assertLen(list((folder / 'few/queries').iterdir()), 2)

  def test_an_unknown_way_to_resize_fails_before_anything_is_read(self):
    for name in ('resize', 'query_resize'):
      with self.assertRaisesRegex(ValueError, "policy 'squash'"):
        drives.Source(
          name='photos', data_dir='nowhere', train='', validation='', test='',
          image_size=(16, 16), **{name: 'squash'},
        )  # fmt: skip

  def test_places_are_those_that_are_asked_about(self):
    source = drives.Source(
      name='synthetic_city', data_dir='', train='', validation='', test='test',
      image_size=labelled_frames.SIZE, crops=FIELDS,
      detector=dict(edge=0.0, missed=0.0, seed=0),
    )  # fmt: skip
    split = _split(labelled_frames.dataset(), labelled_frames.SIZE)
    asked = []

    def ask(frames, queries):
      asked.append((frames, queries))
      return questions.between_drives(frames, queries)

    with mock.patch.object(drives.Source, 'split', return_value=split):
      (place,) = source.places(ask)
    self.assertLen(asked, 1)
    self.assertEqual(place.queries.names[0], 'cross_000000.png')
    self.assertIs(place.queries.lens.model, 'pinhole')


if __name__ == '__main__':
  absltest.main()
