# SPDX-License-Identifier: Apache-2.0
"""The page of an object map shows what the file holds, safely."""

import json
import pathlib
import re
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

  def page(self, **arguments):
    output = object_map.write_page(
      self.path, self.folder / 'desk.html', **arguments
    )
    return pathlib.Path(output).read_text('utf-8')

  def test_names_are_shown_and_escaped(self):
    page = self.page()
    self.assertIn('&lt;b&gt;keyboard&lt;/b&gt;', page)
    self.assertNotIn('<b>keyboard', page)
    self.assertIn('category 41', page)
    self.assertIn('200 × 40 × 10', page)  # whole lengths, centimetres
    self.assertIn('1.00, 2.00, 0.50', page)
    self.assertIn('<td>1.7</td>', page)  # sqrt(3) cm
    self.assertIn('120 views', page)

  def test_the_page_needs_nothing_else(self):
    self.assertEmpty(re.findall(r'(?:src|href)="(?!data:|#)', self.page()))

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

  def test_cameras_are_drawn_where_they_look(self):
    camera = np.eye(4)
    # Looks along x: its forward axis z is the world's x.
    camera[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    camera[:3, 3] = [-2, 0, 1]
    drawing = object_map.drawing(
      object_map.load_landmarks(self.path), camera[None]
    )
    (line,) = re.findall(r'leap c-none" d="M([\d.]+) [\d.]+L([\d.]+)', drawing)
    self.assertAlmostEqual(float(line[1]) - float(line[0]), 14, 0)
    self.assertIn('1 cameras', self.page(cameras=camera[None]))

  def test_many_cameras_are_thinned(self):
    cameras = np.tile(np.eye(4), (5000, 1, 1))
    self.assertLess(len(self.page(cameras=cameras)), 100_000)

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
      self.page()

  def test_impossible_arguments(self):
    with self.assertRaisesRegex(ValueError, r'\[3, 3\], expected \[N, 4, 4\]'):
      self.page(cameras=np.eye(3))
    self.path.unlink()
    with self.assertRaisesRegex(FileNotFoundError, 'no object map'):
      self.page()

  def test_reader_and_writer_agree_on_the_format(self):
    self.assertEqual(object_map.FORMAT, map_lib.FORMAT)


if __name__ == '__main__':
  absltest.main()
