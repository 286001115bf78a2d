# SPDX-License-Identifier: Apache-2.0
"""Which files are photos, in which order, and what is said of the others."""

import os
import time

from absl.testing import absltest

from i2ploc.photos import listing
from tests.photos import folder


class ListTest(folder.FolderTest):
  def names(self, below='.'):
    return listing.list_photos(self.root, self.root / below)

  def test_names_of_every_kind_in_natural_order(self):
    for name in ('b/10.jpg', 'b/9.JPG', 'a b.Png', 'été/ü 1.jpeg', '½².jpg'):
      self.save(name)
    self.write('note.txt', 'no photo')
    self.save('.hidden.jpg')
    self.save('.thumbnails/0.jpg')
    self.assertEqual(
      self.names(),
      ['a b.Png', 'b/9.JPG', 'b/10.jpg', '½².jpg', 'été/ü 1.jpeg'],
    )
    self.assertEqual(self.names('b'), ['b/9.JPG', 'b/10.jpg'])

  def test_what_cameras_write_and_nobody_reads_is_named(self):
    self.save('0.jpg')
    for name in ('1.HEIC', '2.heic', '3.dng'):
      self.write(name, 'x')
    with self.assertLogs(level='WARNING') as logs:
      self.assertEqual(self.names(), ['0.jpg'])
    self.assertIn('1 .dng, 2 .heic cannot be read: convert', logs.output[0])
    (self.root / '0.jpg').unlink()
    self.refuse('no photos; .*1 .dng, 2 .heic cannot be read', self.names)

  def test_circles_of_links_end(self):
    self.save('a/0.jpg')
    (self.root / 'a/up').symlink_to(self.root)
    (self.root / 'a/itself').symlink_to(self.root / 'a/itself')
    (self.root / 'loop.jpg').symlink_to(self.root / 'loop.jpg')
    names = self.names()
    self.assertEqual(names, ['a/0.jpg', 'loop.jpg'])
    self.refuse(
      '1 of 2 photos cannot be used: .*loop.jpg', listing.read_headers,
      self.root, names,
    )  # fmt: skip

  def test_names_that_are_no_text_are_named(self):
    path = os.fsencode(self.root) + b'/\xff.jpg'
    self.save('0.jpg').rename(self.root / '1.jpg')
    os.rename(self.root / '1.jpg', path)
    self.save('two\nlines.jpg')
    self.refuse(
      r"2 names are no line of UTF-8 text: .*'.udcff.jpg'", self.names
    )

  def test_a_list_of_paths_saves_the_walk(self):
    self.save('database/b/10.jpg')
    self.save('database/b/2.jpg')
    self.save('database/left_out.jpg')
    listed = 'database_images_paths.txt'
    self.write(listed, 'b/10.jpg', '', 'b/2.jpg')
    self.assertEqual(
      self.names('database'), ['database/b/2.jpg', 'database/b/10.jpg']
    )
    self.write(listed, 'b/2.jpg', 'b/2.jpg', '../x.jpg')
    self.refuse('once, found .*2.jpg, .*x.jpg', self.names, 'database')
    self.write(listed, 'gone.jpg')
    names = self.names('database')
    self.refuse('gone.jpg: no such', listing.read_headers, self.root, names)

  def test_ten_thousand_photos_take_seconds(self):
    data = self.save('0.jpg').read_bytes()
    for i in range(1, 10_000):
      (self.root / f'{i}.jpg').write_bytes(data)
    start = time.process_time()
    names = self.names()
    headers = listing.read_headers(self.root, names)
    self.assertLess(time.process_time() - start, 30)
    self.assertEqual(names[-1], '9999.jpg')
    self.assertLen(headers, 10_000)


if __name__ == '__main__':
  absltest.main()
