# SPDX-License-Identifier: Apache-2.0
"""photos.json says of each row which file it is."""

import json
import os
import pathlib
import tempfile
from types import SimpleNamespace

from absl.testing import absltest
import numpy as np

from i2ploc.evaluation import photo_file
from i2ploc.report import workdir as workdir_lib


class SavePhotosTest(absltest.TestCase):
  def test_what_was_written_is_read(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    frames = SimpleNamespace(
      name=np.array(['database/ä b.jpg', 'queries/"x".jpg']),
      drive=np.array(['database', 'queries']),
      frame=np.array([7, 3]),
    )
    photo_file.save_photos(
      folder,
      frames,
      folder='~/photos',
      radius=7,
      unit='frames',
      ordered=True,
      duplicates=[(np.int64(1), np.int64(0))],
      weights={'name': 'x', 'licence': 'MIT'},
      confidence='none',
    )
    work = workdir_lib.load_workdir(folder)
    self.assertEqual(
      work.photos,
      workdir_lib.Photos(
        pathlib.Path(os.path.expanduser('~/photos')),
        7.0,
        'frames',
        True,
        ['database/ä b.jpg', 'queries/"x".jpg'],
        ['database', 'queries'],
        [7, 3],
        {1: frozenset({0})},
        {'name': 'x', 'licence': 'MIT'},
        'none',
      ),
    )
    self.assertEqual((work.radius, work.within), (7.0, '7frames'))
    # A row per photo: one line, however many there are.
    self.assertLen((folder / 'photos.json').read_text().splitlines(), 1)

  def test_columns_of_different_lengths_are_refused(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    content = {'names': ['a', 'b'], 'drives': ['x'], 'numbers': [0, 1]}
    (folder / 'photos.json').write_text(json.dumps(content))
    with self.assertRaisesRegex(ValueError, 'photos.json.*every photo'):
      workdir_lib.load_workdir(folder)


if __name__ == '__main__':
  absltest.main()
