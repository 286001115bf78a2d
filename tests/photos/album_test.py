# SPDX-License-Identifier: Apache-2.0
"""Folders of photos: layouts, and what counts as right in them."""

from absl.testing import absltest
import numpy as np

from i2ploc.photos import album
from i2ploc.photos import truth
from tests import shared
from tests.photos import folder
from tests.photos import msls_test


class TownsTest(folder.FolderTest):
  def open(self, *args, **options):
    return album.open_album(self.root, *args, **options)

  def towns(self):
    for town, east in (('b', 5000), ('a', 1000)):
      self.save(f'{town}/database/@{east}@10@33@U@.jpg')
      self.save(f'{town}/database/@{east + 50}@10@33@U@.jpg')
      self.save(f'{town}/queries/@{east + 1}@10@33@U@.jpg')

  def test_every_town_is_a_database_of_its_own(self):
    self.towns()
    self.save('c/other.jpg')
    found = self.open()
    self.assertEqual(found.town.tolist(), ['a'] * 3 + ['b'] * 3)
    self.assertEqual(
      found.drive.tolist(),
      [*['a/database'] * 2, 'a/queries', *['b/database'] * 2, 'b/queries'],
    )
    self.assertEqual(found.frame.tolist(), [0, 1, 0] * 2)
    self.assertEqual(found.queries.tolist(), [False, False, True] * 2)
    self.assertEqual(found.positions.position[0, 0], 1000)
    self.assertEqual(found.truth, truth.Truth())

  def test_some_of_the_towns(self):
    self.towns()
    found = self.open('b')
    self.assertEqual(set(found.town), {'b'})
    self.assertEqual(found.drive.tolist(), ['database'] * 2 + ['queries'])
    self.refuse('no town c; expected .all. or some of', self.open, 'a+c')
    self.refuse('is for one folder of photos', self.open, query_every=2)

  def test_a_folder_of_its_own_has_no_towns(self):
    self.save('0.jpg')
    self.refuse("'a' is not a split of photos", self.open, 'a')

  def test_msls_as_it_is_unpacked(self):
    msls_test.make_city(self, 'cph', subtasks=False)
    msls_test.make_city(self, 'sf')
    found = self.open('cph+sf')
    self.assertEqual(
      found.names,
      [f'train_val/cph/database/images/cph_d{i}.jpg' for i in (0, 2)]
      + ['train_val/cph/query/images/cph_q0.jpg']
      + [f'train_val/sf/{s}/images/sf_{s[0]}0.jpg'
         for s in ('database', 'query')],
    )  # fmt: skip
    self.assertEqual(found.queries.tolist(), [False, False, True, False, True])
    np.testing.assert_array_equal(
      found.positions.position[1, :2], [1020.5, 2002]
    )
    np.testing.assert_allclose(found.positions.heading, 0, atol=1e-12)


class TruthTest(folder.FolderTest):
  def open(self, **options):
    return album.open_album(self.root, **options)

  def test_photos_beside_the_two_folders_are_counted(self):
    for name in ('database/@1@2@.jpg', 'queries/@1@3@.jpg', 'a.JPG',
                 'more/b.png', 'more/notes.txt'):  # fmt: skip
      self.save(name) if name[-3:] != 'txt' else self.write(name)
    with self.assertLogs(level='WARNING') as logs:
      found = album.open_album(self.root)
    self.assertLen(found.names, 2)
    self.assertIn(
      'passed over 2 photos beside database and queries: in ., more',
      logs.output[0],
    )

  def test_numbers_of_frames(self):
    for i in range(3):
      self.save(f'database/{i}.jpg')
    for i in (7, 8, 9, 10):
      self.save(f'queries/{i}.jpg')
    with self.assertLogs(level='WARNING') as logs:
      found = self.open(positions='order')
    self.assertIn('3 in the database and 4 queries', logs.output[0])
    self.assertEqual(found.truth.unit, 'frames')
    self.assertEqual(
      found.positions.position[:, 0].tolist(), [0, 1, 2, 0, 1, 2, 3]
    )
    self.assertEqual(found.positions.position[:, 1].tolist(), [0] * 7)

  def test_footprints_in_names(self):
    corners = '@0@0@0@2@2@2@2@0@ISS'
    self.save(f'database/{corners}.jpg')
    self.save('database/@50@50@50@52@52@52@52@50@ISS.jpg')
    self.save(f'queries/{corners}-2.jpg')
    found = self.open()
    self.assertEqual(found.truth.unit, 'overlap')
    distances = found.truth.distances(np.array([2]), np.array([0, 1]))
    np.testing.assert_array_equal(distances, [[0, 1]])
    self.assertTrue(np.isnan(found.positions.position).all())

  def test_a_list_of_answers(self):
    for name in ('ref/0.jpg', 'ref/1.jpg', 'query/0.jpg'):
      self.save(name)
    np.save(self.root / 'g.npy', np.array([[0, 1]]))
    found = self.open(database='ref', queries='query', positions='g.npy')
    self.assertEqual(found.truth.unit, 'listed')
    distances = found.truth.distances(np.array([2]), np.array([0, 1]))
    np.testing.assert_array_equal(distances, [[1, 0]])

  def test_one_photo_and_none(self):
    self.save('0.jpg')
    self.assertEqual(self.open().names, ['0.jpg'])
    (self.root / '0.jpg').unlink()
    self.refuse('no photos', self.open)

  def test_the_real_corridor_with_its_list(self):
    root = shared.require('data/places/corridor')
    found = album.open_album(
      root, database='ref', queries='query', positions='ground_truth_new.npy'
    )
    queries = np.flatnonzero(found.queries)
    distances = found.truth.distances(queries, np.flatnonzero(~found.queries))
    self.assertEqual(distances.shape, (111, 111))
    # Both walks have the same pace.
    self.assertGreater((np.diag(distances) == 0).mean(), 0.98)
    # As data/README.md has it: chance 4.5 %.
    self.assertAlmostEqual((distances == 0).mean(), 0.045, delta=5e-4)


if __name__ == '__main__':
  absltest.main()
