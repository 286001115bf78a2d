# SPDX-License-Identifier: Apache-2.0
"""Names of networks, of their layers, and of several."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from i2ploc.models.weights import names


class NamesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('net', ('net', None, '')),
    ('net@8', ('net', 8, '')),
    ('OWNER/NAME@12.query', ('OWNER/NAME', 12, 'query')),
    ('net@0', ('net@0', None, '')),
    ('net@8.colour', ('net@8.colour', None, '')),
    ('a@b@3', ('a@b', 3, '')),
    ('a.pth#teacher', ('a.pth', None, '', 'teacher')),
    ('a.pth#', ('a.pth', None, '', '')),
    ('a@2.pth#x.y-z_3@8.key', ('a@2.pth', 8, 'key', 'x.y-z_3')),
  )
  def test_part_and_layer_are_the_end_of_a_name(self, name, expected):
    self.assertEqual(names.parse(name), names.Named(*expected))

  def test_names_are_joined_by_a_plus(self):
    self.assertEqual(names.split('a@7+b+c@2.key'), ['a@7', 'b', 'c@2.key'])

  @parameterized.parameters('a+b', 'net@8', 'a+b@3', 'net#8')
  def test_a_path_stays_whole(self, folder):
    root = self.enterContext(tempfile.TemporaryDirectory())
    path = pathlib.Path(root) / folder
    path.mkdir()
    self.assertEqual(names.split(path), [str(path)])
    self.assertEqual(names.parse(path), names.Named(str(path)))
    named = f'{path}@2.value'
    self.assertEqual(names.split(named), [named])
    self.assertEqual(names.parse(named), names.Named(str(path), 2, 'value'))
    self.assertEqual(names.parse(f'{path}#a'), names.Named(str(path), part='a'))


if __name__ == '__main__':
  absltest.main()
