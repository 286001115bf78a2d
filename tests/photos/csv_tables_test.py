# SPDX-License-Identifier: Apache-2.0
"""Tables as people write them."""

import unicodedata

from absl.testing import absltest

from i2ploc.photos import csv_tables
from tests.photos import folder

NAMES = {'name': ('name', 'file'), 'x': ('x',)}


class TableTest(folder.FolderTest):
  def read(self, *lines):
    path = self.write('t.csv', *lines)
    return csv_tables.read_table(path, NAMES, 'things')

  def test_any_order_any_case_any_delimiter(self):
    for delimiter in ',;\t':
      lines = 'X, other, File ', '1,,a.jpg', ',,'
      table = self.read(*(line.replace(',', delimiter) for line in lines))
      self.assertEqual(table.columns, {'x': 0, 'name': 2})
      (line, cells), = table.rows.items()  # fmt: skip
      self.assertEqual(line, 2)
      self.assertEqual(table.cell(cells, 'name'), 'a.jpg')
      self.assertEqual(table.cell(cells[:1], 'name'), '')

  def test_two_columns_of_one_meaning(self):
    self.refuse("two columns say name: 'name' and 'file'", self.read,
                'name,file,x')  # fmt: skip

  def test_accents_have_one_form(self):
    apart = unicodedata.normalize('NFD', 'été.jpg')
    self.assertNotEqual(apart, 'été.jpg')
    self.assertEqual(csv_tables.photo_name(apart), 'été.jpg')

  def test_no_file(self):
    self.refuse('gone: no such file of things', csv_tables.read_table,
                self.root / 'gone', NAMES, 'things',
                error=FileNotFoundError)  # fmt: skip


if __name__ == '__main__':
  absltest.main()
