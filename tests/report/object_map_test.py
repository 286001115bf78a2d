# SPDX-License-Identifier: Apache-2.0
"""The drawing of an object map shows what the file holds, safely."""

import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.objects.map import landmarks as map_lib
from i2ploc.report import object_map


def planted():
  """A long flat thing turned by 30 degrees about z, and a tall mug."""
  c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
  turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
  return map_lib.make_map(
    center=[[1, 2, 0.5], [3, 1, 0.8]],
    semi_axes=[[1.0, 0.2, 0.05], [0.05, 0.05, 0.4]],
    rotation=[turn, np.eye(3)],
    category=[66, 41],
    ids=[5, 9],
    labels=[['<b>keyboard</b>'], []],
    covariance=np.tile(np.eye(3) * 1e-4, (2, 1, 1)),
    num_views=[120, 0],
  )


class PageTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='object_page_'))
    )
    self.path = self.folder / 'desk.json'
    map_lib.save_map(planted(), self.path)

  def section(self):
    return object_map.section(object_map.load_landmarks(self.path))

  def test_names_are_shown_and_escaped(self):
    page = self.section()
    self.assertIn('&lt;b&gt;keyboard&lt;/b&gt;', page)
    self.assertNotIn('<b>keyboard', page)
    self.assertIn('category 41', page)
    self.assertIn('200 × 40 × 10', page)  # whole lengths, centimetres
    self.assertIn('1.00, 2.00, 0.50', page)
    self.assertIn('<td>1.7</td>', page)  # sqrt(3) cm
    self.assertIn('120 views', page)

  def test_the_shadow_is_the_ellipse_from_above(self):
    landmark = object_map.load_landmarks(self.path)[0]
    outline = object_map._shadow(landmark.shape, landmark.center)
    away = (outline - [1, 2]) @ [[np.cos(np.pi / 6)], [np.sin(np.pi / 6)]]
    self.assertAlmostEqual(away.max(), 1.0, 2)
    across = (outline - [1, 2]) @ [[-np.sin(np.pi / 6)], [np.cos(np.pi / 6)]]
    self.assertAlmostEqual(across.max(), 0.2, 2)

  def test_north_is_up_and_east_is_right(self):
    plan = object_map._Plan(np.array([[0.0, 0.0], [4.0, 3.0]]))
    south_west, north_east = plan.place(np.array([[0.0, 0.0], [4.0, 3.0]]))
    self.assertLess(south_west[0], north_east[0])
    self.assertGreater(south_west[1], north_east[1])
    self.assertTrue((plan.place(np.array([4.0, 3.0])) > 0).all())

  @parameterized.parameters(
    ('{', 'not an object map'),
    ('[]', 'not an object map'),
    ('{"format": "x", "landmarks": []}', "format is 'x'"),
    (json.dumps({'format': object_map.FORMAT, 'landmarks': []}), 'is empty'),
    (
      json.dumps({'format': object_map.FORMAT, 'landmarks': [{'id': 1}]}),
      'rotation',
    ),
  )
  def test_other_files_are_refused(self, content, message):
    self.path.write_text(content)
    with self.assertRaisesRegex(ValueError, message):
      self.section()

  def test_a_missing_map_is_named(self):
    self.path.unlink()
    with self.assertRaisesRegex(FileNotFoundError, 'no object map'):
      self.section()

  def test_reader_and_writer_agree_on_the_format(self):
    self.assertEqual(object_map.FORMAT, map_lib.FORMAT)


if __name__ == '__main__':
  absltest.main()
