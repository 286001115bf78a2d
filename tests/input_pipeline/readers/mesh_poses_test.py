# SPDX-License-Identifier: Apache-2.0
"""Poses of files, and where cameras are put on the ground of a mesh."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from i2ploc.errors import InputError
from input_pipeline.readers import mesh_poses
from input_pipeline.readers import mesh_rays
from tests.input_pipeline.readers import mesh_files_test
from tests.input_pipeline.readers import mesh_rays_test

pytest.importorskip('embreex')  # no wheel for Linux on ARM

ORIGIN = np.array([384100.0, 6174000.0, 30.0])
SLOPE = 0.1
HOUSE = 9.0  # metres, the side of a house; 0.5 m from places every 5 m


def height(xy):
  """The ground of the town, relative to its origin."""
  return SLOPE * xy[..., 0]


def town(houses, below=True, size=60.0):
  """A slope [-size, size]^2 with houses around places, [M, 2]."""
  corners = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]) * size
  ground = np.concatenate([corners, height(corners)[:, None]], axis=-1)
  triangles = [ground[[0, 1, 2]], ground[[0, 2, 3]]]
  if not below:  # streets alone, between squares of 20 m
    triangles = _streets(size)
  for x, y in houses:
    low = [x - HOUSE / 2, y - HOUSE / 2, height(np.array([x, y])) - 2]
    high = np.array(low) + [HOUSE, HOUSE, 12]
    points, faces = mesh_files_test.box(low, high, floor=False)
    triangles += list(points[faces])
  return mesh_rays_test.make_mesh(np.array(triangles), ORIGIN)


def _streets(size):
  """The slope without the ground below the houses around (0, 0)."""
  half = HOUSE / 2
  strips = [
    (-size, -size, size, -half), (-size, half, size, size),
    (-size, -half, -half, half), (half, -half, size, half),
  ]  # fmt: skip
  triangles = []
  for x0, y0, x1, y1 in strips:
    flat = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    points = np.concatenate([flat, height(flat)[:, None]], axis=-1)
    triangles += [points[[0, 1, 2]], points[[0, 2, 3]]]
  return triangles


def by_hand(yaw, pitch, roll):
  """world_from_camera of angles in degrees, by vectors."""
  yaw, pitch, roll = np.radians([yaw, pitch, roll])
  ahead = np.array(
    [np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)]
  )
  right = np.array([np.sin(yaw), -np.cos(yaw), 0])
  down = np.cross(ahead, right)
  # Clockwise: what is to the right goes down.
  right, down = (
    np.cos(roll) * right + np.sin(roll) * down,
    np.cos(roll) * down - np.sin(roll) * right,
  )
  return np.stack([right, down, ahead], axis=-1)


class RotationTest(parameterized.TestCase):
  @parameterized.parameters(
    (0, 0, 0), (90, 0, 0), (-30, 20, 0), (200, -35, 15), (45, 60, -100)
  )
  def test_angles_are_those_of_vectors(self, *angles):
    found = mesh_poses.rotations(np.radians([angles]))[0]
    np.testing.assert_allclose(found, by_hand(*angles), atol=1e-12)
    self.assertAlmostEqual(np.linalg.det(found), 1)


class FileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='mesh_'))
    )

  def read(self, text, name='poses.csv'):
    (self.root / name).write_text(text)
    return mesh_poses.read_poses(self.root / name)

  def test_names_positions_and_angles(self):
    poses = self.read(
      'image,easting,northing,z,yaw,pitch,roll,note\n'
      'a.jpg,384102.05,6174005.12,31.5,30,5,-2,x\n'
      ',1,2,3,0,0,0,\n'
    )
    self.assertEqual(poses.names.tolist(), ['a.jpg', ''])
    np.testing.assert_array_equal(
      poses.position, [[384102.05, 6174005.12, 31.5], [1, 2, 3]]
    )
    np.testing.assert_allclose(
      poses.rotation, [by_hand(30, 5, -2), by_hand(0, 0, 0)], atol=1e-12
    )
    self.assertTrue(np.isnan(poses.timestamp).all())

  def test_a_compass_counts_clockwise_from_north(self):
    poses = self.read('x;y;heading\n1;2;0\n1;2;90\n')
    np.testing.assert_allclose(
      poses.rotation[:, :, 2], [[0, 1, 0], [1, 0, 0]], atol=1e-12
    )
    self.assertTrue(np.isnan(poses.position[:, 2]).all())

  def test_quaternions_in_both_kinds_of_files(self):
    rotation = by_hand(30, 5, -2)
    w = np.sqrt(1 + np.trace(rotation)) / 2
    odd = rotation - rotation.T
    x, y, z = np.array([odd[2, 1], odd[0, 2], odd[1, 0]]) / (4 * w)
    poses = self.read(f'x,y,z,qw,qx,qy,qz\n1,2,3,{w},{x},{y},{z}\n')
    np.testing.assert_allclose(poses.rotation[0], rotation, atol=1e-12)
    line = f'# time\n7.5 1 2 3 {x} {y} {z} {w}\n'
    poses = self.read(line, 'poses.txt')
    np.testing.assert_allclose(poses.rotation[0], rotation, atol=1e-12)
    np.testing.assert_allclose(poses.position[0], [1, 2, 3])
    self.assertEqual(poses.timestamp.tolist(), [7.5])

  @parameterized.parameters(
    ('x,z\n1,2\n', "first line is 'x,z', expected columns x and y"),
    ('x,y\n', 'expected columns x and y'),
    ('x,y,yaw\n1,2,\n', "line 2: yaw is '', expected a number"),
    ('x,y\n1,2\n3,north\n', "line 3: y is 'north'"),
    ('x,y,qx,qy\n1,2,0,0\n', 'expected qx,qy,qz,qw'),
    ('x,y,qx,qy,qz,qw,yaw\n1,2,0,0,0,1,5\n', 'expected qx,qy,qz,qw'),
    ('x,y,yaw,heading\n1,2,0,0\n', 'expected one of yaw'),
    ('x,y,pitch\n1,2,0\n', 'expected one of yaw'),
    ('x,y,qx,qy,qz,qw\n1,2,0,0,0,2\n', 'quaternion of length 2'),
    ('name,x,y\na,1,2\na,1,2\n', 'names come twice: a'),
  )
  def test_what_is_wrong_is_named(self, text, message):
    with self.assertRaisesRegex(InputError, message) as context:
      self.read(text)
    self.assertIn('poses.csv', str(context.exception))

  def test_a_missing_file_is_named(self):
    for name in ('a.csv', 'a.txt'):
      with self.assertRaisesRegex(FileNotFoundError, name):
        mesh_poses.read_poses(self.root / name)


class GroundTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_cameras_stand_on_the_ground_beside_the_houses(self, below):
    mesh = town([(0, 0)], below)
    poses = mesh_poses.all_over(
      mesh, mesh_rays.Caster(mesh), spacing=5.0, headings=4, height=1.6
    )
    places = poses.position - ORIGIN
    np.testing.assert_allclose(
      places[:, 2], height(places[:, :2]) + 1.6, atol=1e-3
    )
    self.assertLen(np.unique(poses.position, axis=0), len(places) // 4)
    # Cameras look along x and y: less than 1 m ahead of them is free.
    x, y = np.meshgrid(*[np.arange(-60, 61, 5.0)] * 2)
    near, far = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
    free = (near > HOUSE / 2) | (far > HOUSE / 2 + 1)
    expected = np.stack([x, y], -1)[free]
    expected = expected[np.abs(expected).max(1) < 58]  # beside the border
    found = places[::4, :2]
    found = found[np.abs(found).max(1) < 58]
    np.testing.assert_allclose(found, expected, atol=1e-6)

  def test_they_look_all_around(self):
    mesh = town([])
    poses = mesh_poses.all_over(
      mesh, mesh_rays.Caster(mesh), spacing=30.0, headings=3, height=1.6
    )
    for i, yaw in enumerate((0, 120, 240)):
      np.testing.assert_allclose(
        poses.rotation[i], by_hand(yaw, 0, 0), atol=1e-12
      )

  def test_many_houses_do_not_hide_the_ground(self):
    places = [(x, y) for x in range(-40, 41, 20) for y in range(-40, 41, 20)]
    mesh = town(places)
    ground = mesh_poses.find_ground(mesh, mesh_rays.Caster(mesh))
    xy = np.random.default_rng(0).uniform(-50, 50, (300, 2))
    found = ground.at(xy + ORIGIN[:2]) - ORIGIN[2]
    # A cell's middle is up to 1 m away, that of the nearest ground 8 m.
    error = np.abs(found - height(xy))
    away = np.abs((xy + 10) % 20 - 10).max(1)
    self.assertLess(error[away > HOUSE / 2 + 1].max(), 0.11)
    self.assertLess(error.max(), 0.81)
    outside = ground.at(ORIGIN[None, :2] + 500)
    self.assertTrue(np.isnan(outside).all())

  def test_files_without_height_and_direction_are_completed(self):
    mesh = town([])
    caster = mesh_rays.Caster(mesh)
    place = np.array([[10.0, 5, np.nan], [20, 5, 7]]) + ORIGIN
    unknown = np.full((2, 3, 3), np.nan)
    poses = mesh_poses.Poses(
      np.array(['a', '']), np.array([3.0, 4]), place, unknown
    )
    found = mesh_poses.completed(poses, mesh, caster, headings=2, height=2.0)
    self.assertEqual(found.names.tolist(), ['a_000', 'a_180', '', ''])
    self.assertEqual(found.timestamp.tolist(), [3, 3, 4, 4])
    np.testing.assert_allclose(
      found.position[::2] - ORIGIN, [[10, 5, 3], [20, 5, 7]], atol=0.11
    )
    np.testing.assert_allclose(found.rotation[1], by_hand(180, 0, 0), atol=1e-9)
    known = poses._replace(rotation=np.tile(np.eye(3), (2, 1, 1)))
    found = mesh_poses.completed(known, mesh, caster, headings=2, height=2.0)
    self.assertEqual(found.names.tolist(), ['a', ''])

  def test_what_has_no_ground_is_named(self):
    mesh = town([])
    caster = mesh_rays.Caster(mesh)
    far = mesh_poses.Poses(
      np.array(['']), np.zeros(1), np.array([[0, 0, np.nan]]), np.eye(3)[None]
    )
    with self.assertRaisesRegex(InputError, '1 of 1 poses have no z and lie'):
      mesh_poses.completed(far, mesh, caster, headings=1, height=1.0)
    wall = mesh_rays_test.make_mesh(
      mesh_files_test.CORNERS[mesh_files_test.FACES]
    )
    with self.assertRaisesRegex(InputError, 'no surface that is seen'):
      mesh_poses.all_over(
        wall, mesh_rays.Caster(wall), spacing=1.0, headings=1, height=1.6
      )
    house = town([(0, 0)])
    with self.assertRaisesRegex(InputError, 'is free, of 1 every 500 m'):
      mesh_poses.all_over(
        house, mesh_rays.Caster(house), spacing=500, headings=1, height=1.6
      )
    with self.assertRaisesRegex(InputError, 'spacing=0.001 m is too fine'):
      mesh_poses.all_over(mesh, caster, spacing=1e-3, headings=1, height=1.6)
    huge = mesh._replace(vertices=mesh.vertices * 1000)
    with self.assertRaisesRegex(InputError, 'Is it in metres'):
      mesh_poses.find_ground(huge, mesh_rays.Caster(huge))


if __name__ == '__main__':
  absltest.main()
