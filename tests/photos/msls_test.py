# SPDX-License-Identifier: Apache-2.0
"""MSLS as unpacked: who takes part, and where."""

from absl.testing import absltest
import numpy as np

from i2ploc.photos import msls
from tests.photos import folder


def make_city(test, city, *, subtasks=True):
  """A city of three references and two queries, one of each a panorama."""
  for side, count in (('database', 3), ('query', 2)):
    keys = [f'{city}_{side[0]}{i}' for i in range(count)]
    base = f'train_val/{city}/{side}'
    for key in keys:
      test.save(f'{base}/images/{key}.jpg')
    test.write(
      f'{base}/postprocessed.csv', ',key,easting,northing,night',
      *(f'{i},{key},{1000 + 10 * i}.5,{2000 + i},False'
        for i, key in enumerate(keys)),
    )  # fmt: skip
    test.write(
      f'{base}/raw.csv', ',key,lon,lat,ca,captured_at,pano',
      *(f'{i},{key},7,51,90.0,2018,{i == 1}' for i, key in enumerate(keys)),
    )  # fmt: skip
    if subtasks:
      test.write(
        f'{base}/subtask_index.csv', ',all,s2w',
        *(f'{i},{i < 2},False' for i in range(count)),
      )  # fmt: skip


class MslsTest(folder.FolderTest):
  def read(self, side='database'):
    city = self.root / 'train_val/cph'
    return msls.read_part(self.root, city, side)

  def test_panoramas_and_other_subtasks_are_left_out(self):
    make_city(self, 'cph')
    found = self.read()
    self.assertEqual(found.names, ['train_val/cph/database/images/cph_d0.jpg'])
    np.testing.assert_array_equal(found.east_north, [[1000.5, 2000]])
    np.testing.assert_array_equal(found.compass, [90])
    make_city(self, 'sf', subtasks=False)
    city = self.root / 'train_val/sf'
    self.assertTrue(msls.is_city(city))
    self.assertLen(msls.read_part(self.root, city, 'database').names, 2)

  def test_tables_that_do_not_fit(self):
    make_city(self, 'cph')
    base = 'train_val/cph/database'
    self.write(f'{base}/subtask_index.csv', ',all', '0,True')
    self.refuse('has 1 rows, postprocessed.csv 3', self.read)
    self.write(f'{base}/raw.csv', ',key,ca,pano', '0,x,1,False')
    self.refuse('list other photos', self.read)
    self.write(f'{base}/raw.csv', ',key,ca', '0,x,1')
    self.refuse('no column pano', self.read)
    (self.root / base / 'raw.csv').unlink()
    self.refuse('raw.csv: no such', self.read, error=FileNotFoundError)


if __name__ == '__main__':
  absltest.main()
