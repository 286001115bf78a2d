# SPDX-License-Identifier: Apache-2.0
"""Footprints: corners in names, and which overlap."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.photos import footprints


def _name(corners, note='ISS064-E-1@20201018@') -> str:
  return '@'.join(['', *(f'{x:.4f}' for x in np.ravel(corners)), note]) + '.jpg'


def _square(latitude, longitude, half=1.0, turn=0.0):
  angles = np.pi / 4 + np.radians(turn) + np.pi / 2 * np.arange(4)
  corners = np.sqrt(2) * half * np.stack([np.sin(angles), np.cos(angles)], 1)
  corners = corners + np.array([latitude, longitude])
  corners[:, 1] = (corners[:, 1] + 180) % 360 - 180
  return corners


def _overlap(x, y):
  shapes = footprints.from_names([_name(x), _name(y)])
  found = footprints.overlap(shapes[:1], shapes[1:])[0, 0]
  assert found == footprints.overlap(shapes[1:], shapes[:1])[0, 0]
  return bool(found)


class OverlapTest(parameterized.TestCase):
  @parameterized.parameters(
    (_square(10, 20), _square(11, 21), True),
    (_square(10, 20), _square(10, 20, 0.1), True),  # one inside the other
    (_square(10, 20), _square(10, 22.5), False),
    (_square(10, 20), _square(12.5, 20), False),
    # Boxes around them overlap, they do not.
    (_square(0, 0, 1, 45), _square(1.5, 1.5, 1, 45), False),
    (_square(0, 0, 1, 45), _square(0.9, 0.9, 1, 45), True),
    # Seen along the sides of one of them they are apart, of the other not.
    (_square(0, 0), _square(2.2, 2.2, 1, 45), False),
    (_square(0, 0), _square(1.6, 1.6, 1, 45), True),
    # Across the date line.
    (_square(-17, 179.5), _square(-17, -179.5), True),
    (_square(-17, 179.5), _square(-17, -177), False),
    (_square(-17, 178), _square(-17, -180), True),
    (_square(5, 0), _square(5, 179), False),
  )
  def test_two_footprints(self, x, y, expected):
    self.assertEqual(_overlap(x, y), expected)

  def test_the_order_of_corners_does_not_matter(self):
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3]):
      self.assertTrue(_overlap(_square(0, 0)[order], _square(1.5, 0)))
      self.assertFalse(_overlap(_square(0, 0)[order], _square(2.5, 0)))

  def test_many_agree_with_points_drawn_in_them(self):
    rng = np.random.default_rng(0)
    shapes = footprints.from_names([
      _name(_square(*rng.uniform(-3, 3, 2), *rng.uniform([0.3, 0], [1.5, 90])))
      for _ in range(40)
    ])  # fmt: skip
    points = rng.uniform(-6, 6, (60_000, 2))
    sides = np.roll(shapes, -1, 1) - shapes
    away = points[:, None, None] - shapes
    cross = sides[..., 1] * away[..., 0] - sides[..., 0] * away[..., 1]
    inside = (cross > 0).all(2).astype(float)
    together = inside.T @ inside
    found = footprints.overlap(shapes, shapes)
    self.assertTrue(found[together > 0].all())
    # What only a corner shares, no drawn point need hit.
    self.assertLess((found & (together == 0)).sum(), 0.03 * found.size)
    self.assertBetween(found.mean(), 0.1, 0.9)


class NameTest(absltest.TestCase):
  def test_names_without_corners_are_counted(self):
    names = [_name(_square(1, 2)), 'plain.jpg', '@1@2@3.jpg']
    with self.assertRaisesRegex(ValueError, '2 of 3 names have no footprint'):
      footprints.from_names(names)

  def test_positions_in_names_are_no_footprints(self):
    name = '@0551000.25@4180000.50@10@S@37.76@-122.41@pano@@90@@@.jpg'
    self.assertIsNone(footprints.in_name(name))
    self.assertIsNone(footprints.in_name(_name(_square(89.5, 0))))


if __name__ == '__main__':
  absltest.main()
