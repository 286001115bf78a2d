# SPDX-License-Identifier: Apache-2.0
"""Where things are in a picture, which way round, and in what colours."""

import pathlib
import pickle
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from i2ploc.geometry import camera
from i2ploc.geometry import lens as lens_lib
from input_pipeline.readers import mesh_files
from input_pipeline.readers import mesh_poses
from input_pipeline.readers import mesh_rays
from input_pipeline.readers import mesh_renderer
from tests.input_pipeline.readers import mesh_files_test
from tests.input_pipeline.readers import mesh_rays_test

pytest.importorskip('embreex')  # no wheel for Linux on ARM

SIZE = (48, 64)
MATRIX = np.array([[60.0, 0, 30.5], [0, 55, 26.25], [0, 0, 1]])
SKY = np.array(mesh_renderer.SKY)


def render(mesh, pose, matrix=MATRIX, size=SIZE):
  caster = mesh_rays.Caster(mesh)
  lens = lens_lib.Lens('pinhole', matrix)
  renderer = mesh_renderer.Renderer(mesh, caster, lens, size)
  return renderer.render(pose).astype(int)


def camera_at(position, yaw=0.0, pitch=0.0, roll=0.0):
  """world_from_camera; angles in degrees, yaw from east."""
  pose = np.eye(4)
  angles = np.radians([[yaw, pitch, roll]])
  pose[:3, :3] = mesh_poses.rotations(angles)[0]
  pose[:3, 3] = position
  return pose


def from_south(distance=4.0, height=1.0):
  return camera_at([0, -distance, height], yaw=90)


def oracle(mesh, pose, matrix, size):
  """A picture by loops over pixels, rays and triangles; textures unfiltered."""
  corners = mesh.vertices[mesh.faces].astype(float)
  inverse, position = np.linalg.inv(matrix), pose[:3, 3] - mesh.origin
  picture = np.zeros((*size, 3))
  for row in range(size[0]):
    for column in range(size[1]):
      for dy in (0.25, 0.75):
        for dx in (0.25, 0.75):
          ray = pose[:3, :3] @ inverse @ [column + dx, row + dy, 1]
          triangle, _, weights = mesh_rays_test.first_hit(
            corners, position, ray / np.linalg.norm(ray)
          )
          seen = SKY if triangle < 0 else weights @ mesh.colors[triangle]
          picture[row, column] += seen / 4
  return picture


class PlaceTest(parameterized.TestCase):
  def test_a_picture_is_that_of_a_slow_loop(self):
    rng = np.random.default_rng(0)
    corners = mesh_rays_test.random_triangles(rng, 20) / 3
    colors = rng.integers(0, 256, (20, 3, 3))
    mesh = mesh_rays_test.make_mesh(corners, (4e5, 5e6, 100), colors)
    pose = camera_at(mesh.origin + [-4, -0.5, 0.5], 10, -8, 8)
    matrix, size = np.diag([0.4, 0.4, 1]) @ MATRIX, (20, 25)
    slow = oracle(mesh, pose, matrix, size)
    error = np.abs(render(mesh, pose, matrix, size) - slow)
    # A ray through an edge may fall to either side.
    self.assertLess((error > 1).any(-1).mean(), 0.005)
    self.assertGreater((slow != SKY).any(-1).mean(), 0.1)

  @parameterized.parameters((0, 0, 0), (130, 0, 0), (-70, 20, 0), (40, -10, 25))
  def test_things_are_where_a_camera_sees_them(self, yaw, pitch, roll):
    pose = camera_at([100.0, 200, 3], yaw, pitch, roll)
    marks = np.array(
      [[-1.2, -0.8, 4], [1.1, -0.7, 5], [0.9, 1, 4], [-1, 0.6, 3]]
    )
    world = marks @ pose[:3, :3].T + pose[:3, 3]
    pixels, valid = camera.project(MATRIX.astype(np.float32), marks)
    self.assertTrue(valid.all())
    for place, pixel in zip(world, np.asarray(pixels), strict=True):
      corners, faces = mesh_files_test.box(place - 0.08, place + 0.08)
      black = np.zeros((len(faces), 3, 3))
      mesh = mesh_rays_test.make_mesh(corners[faces], colors=black)
      share = 1 - render(mesh, pose)[..., 2] / SKY[2]
      row, column = np.indices(SIZE) + 0.5
      found = [(share * axis).sum() / share.sum() for axis in (column, row)]
      np.testing.assert_allclose(found, pixel, atol=0.3)

  def test_edges_are_where_they_project(self):
    mesh = mesh_rays_test.make_mesh(
      mesh_files_test.CORNERS[mesh_files_test.FACES], colors=np.zeros((2, 3, 3))
    )
    share = 1 - render(mesh, from_south())[..., 2] / SKY[2]
    # 2 m at 4 m, fx 60 and fy 55, around the principal point.
    row, column = share[26], share[:, 30]
    np.testing.assert_allclose([row.sum(), column.sum()], [30, 27.5], atol=0.5)
    left, top = (
      np.argmax(row > 0) + 1 - row[np.argmax(row > 0)],
      np.argmax(column > 0) + 1 - column[np.argmax(column > 0)],
    )
    np.testing.assert_allclose([left, top], [15.5, 12.5], atol=0.5)

  def test_what_is_near_hides_what_is_far(self):
    square = mesh_files_test.CORNERS[mesh_files_test.FACES]
    colors = np.zeros((4, 3, 3))
    colors[:2, :, 0], colors[2:, :, 1] = 255, 255
    for order in (1, -1):
      corners = np.concatenate([square - [0, order, 0], square])
      mesh = mesh_rays_test.make_mesh(corners, colors=colors)
      seen = mesh_files_test.RED if order == 1 else mesh_files_test.GREEN
      middle = render(mesh, from_south())[26, 30]
      np.testing.assert_array_equal(middle, seen)

  def test_a_mesh_in_utm_looks_as_at_the_origin(self):
    corners, faces = mesh_files_test.box([-1, -1, 0], [1, 1, 2])
    shift = np.array([384102.125, 6174005.25, 31.5])
    local = mesh_rays_test.make_mesh(corners[faces])
    colors = np.random.default_rng(0).integers(0, 256, local.colors.shape)
    local = local._replace(colors=colors.astype(np.uint8))
    pose = camera_at([-4, -3, 2], 35, -8)
    moved = pose.copy()
    moved[:3, 3] += shift
    np.testing.assert_array_equal(
      render(local._replace(origin=shift), moved), render(local, pose)
    )

  def test_a_panorama_looks_all_around(self):
    corners, faces = mesh_files_test.box([-1, -1, 0], [1, 1, 2])
    mesh = mesh_rays_test.make_mesh(
      corners[faces] + [0, 5, 0], colors=np.zeros((len(faces), 3, 3))
    )
    matrix = np.array([[8 / np.pi, 0, 8], [0, 8 / np.pi, 4], [0, 0, 1]])
    lens = lens_lib.Lens('equirectangular', matrix)
    renderer = mesh_renderer.Renderer(
      mesh, mesh_rays.Caster(mesh), lens, (8, 16)
    )
    picture = renderer.render(camera_at([0, 0, 1], yaw=180))
    self.assertEqual(
      picture[:, :, 0].min(0).argmin() // 2, 5
    )  # 90 to the right

  def test_it_can_be_sent_to_another_process(self):
    mesh = mesh_rays_test.make_mesh(
      mesh_files_test.CORNERS[mesh_files_test.FACES]
    )
    lens = lens_lib.Lens('pinhole', MATRIX)
    mine = mesh_renderer.Renderer(mesh, mesh_rays.Caster(mesh), lens, SIZE)
    other = pickle.loads(pickle.dumps(mine))
    np.testing.assert_array_equal(
      mine.render(from_south()), other.render(from_south())
    )


class TextureTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='mesh_'))
    )

  def quarters(self, picture):
    """Colours at the middles of the square's quarters as it stands."""
    return [tuple(picture[r, c]) for r in (19, 33) for c in (23, 38)]

  @parameterized.parameters('a.obj', 'a.gltf')
  def test_textures_are_upright_and_not_mirrored(self, name):
    write = {
      'a.obj': mesh_files_test.write_obj, 'a.gltf': mesh_files_test.write_gltf
    }[name]  # fmt: skip
    mesh = mesh_files.read_mesh(write(self.root / name))
    red, green = mesh_files_test.RED, mesh_files_test.GREEN
    blue, white = mesh_files_test.BLUE, mesh_files_test.WHITE
    found = self.quarters(render(mesh, from_south()))
    self.assertEqual(found, [red, green, blue, white])
    # Behind is seen too, the other way round.
    found = self.quarters(render(mesh, camera_at([0, 4, 1], yaw=-90)))
    self.assertEqual(found, [green, red, white, blue])

  def test_a_jpeg_and_a_tint(self):
    path = self.root / 'a.obj'
    mesh_files_test.write_obj(path, picture='texture.jpg')
    mesh = mesh_files.read_mesh(path)
    found = self.quarters(render(mesh, from_south()))
    expected = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    np.testing.assert_allclose(found, expected, atol=12)
    half = mesh._replace(colors=np.full_like(mesh.colors, 128))
    found = self.quarters(render(half, from_south()))
    np.testing.assert_allclose(found, np.array(expected) * 128 / 255, atol=7)

  def test_texels_are_joined_bilinearly_and_repeat(self):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    place = rng.uniform(0.2, 0.8, (40, 2)).astype(np.float32)
    place[20:] += rng.integers(-3, 4, (20, 2))
    mesh = mesh_rays_test.make_mesh(
      np.eye(3)[None], texture=np.zeros(1, np.int32), textures=(picture,)
    )
    textures = mesh_renderer._Textures(mesh, np.ones(1))
    found = textures.sample(np.zeros(40, int), place, np.zeros(40))
    for (u, v), color in zip(place % 1, found, strict=True):
      x, y = u * 7 - 0.5, (1 - v) * 5 - 0.5
      expected = sum(
        (1 - abs(x - column)) * (1 - abs(y - row)) * picture[row, column]
        for row in range(5)
        for column in range(7)
        if abs(x - column) < 1 and abs(y - row) < 1
      )
      np.testing.assert_allclose(color, expected, atol=0.05)

  def test_borders_do_not_show_the_opposite_side(self):
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[:, 3] = picture[0] = 255
    mesh = mesh_rays_test.make_mesh(
      np.eye(3)[None], texture=np.zeros(1, np.int32), textures=(picture,)
    )
    textures = mesh_renderer._Textures(mesh, np.ones(1))
    uv = np.array([[0.0, 0.0], [1.0, 1.0]], np.float32)
    found = textures.sample(np.zeros(2, int), uv, np.zeros(2))
    np.testing.assert_array_equal(found[:, 0], [0, 255])

  def test_what_is_far_is_averaged(self):
    # 512 x 512 squares of black and white in 14 pixels.
    picture = np.indices((512, 512)).sum(0) % 2 * np.uint8(255)
    picture = np.repeat(picture[..., None], 3, -1).astype(np.uint8)
    mesh = mesh_files.read_mesh(mesh_files_test.write_obj(self.root / 'a.obj'))
    mesh = mesh._replace(textures=(picture,))
    far = render(mesh, from_south(8.0))[22:30, 26:35]
    np.testing.assert_allclose(far, 127.5, atol=2)
    # Near, where a texel is many pixels, nothing is.
    coarse = mesh._replace(textures=(picture[:4, :4],))
    near = render(coarse, from_south())[14:39, 17:44]
    self.assertGreater(near.std(), 50)


class ColourTest(parameterized.TestCase):
  def test_vertex_colours_run_into_each_other(self):
    colors = np.array([[(0, 0, 0), (255, 0, 0), (255, 0, 0)], [(0, 0, 0)] * 3])
    colors[1, 1] = 255, 0, 0
    mesh = mesh_rays_test.make_mesh(
      mesh_files_test.CORNERS[mesh_files_test.FACES], colors=colors
    )
    picture = render(mesh, from_south())
    # Red grows to the right below the diagonal, 8.5 a pixel.
    row = picture[38, 18:44, 0]
    np.testing.assert_allclose(np.diff(row), 8.5, atol=1)
    self.assertEqual(picture[38, 18:44, 1:].max(), 0)

  def test_light_tells_the_faces_of_a_plain_box(self):
    corners, faces = mesh_files_test.box([-1, -1, 0], [1, 1, 2])
    mesh = mesh_rays_test.make_mesh(
      corners[faces], shaded=np.ones(len(faces), bool)
    )
    grey = []
    for yaw in (0, 90, 180, 270):
      ahead = np.array([np.cos(np.radians(yaw)), np.sin(np.radians(yaw)), 0])
      picture = render(mesh, camera_at([0, 0, 1] - 4 * ahead, yaw))
      grey.append(picture[26, 30, 0])
    grey.append(render(mesh, camera_at([0, 0, 6], 0, -90))[26, 30, 0])
    self.assertGreater(np.diff(np.sort(grey)).min(), 8)
    self.assertEqual(max(grey), grey[-1])  # the roof
    self.assertBetween(min(grey), 60, 255)
    # Cities have faces of either winding.
    turned = mesh._replace(faces=mesh.faces[:, ::-1])
    pose = camera_at([-4, -3, 3], 37, -15)
    np.testing.assert_allclose(render(turned, pose), render(mesh, pose), atol=1)

  def test_a_mesh_behind_the_camera_is_not_seen(self):
    mesh = mesh_rays_test.make_mesh(
      mesh_files_test.CORNERS[mesh_files_test.FACES]
    )
    picture = render(mesh, camera_at([0, -4, 1], yaw=-90))
    np.testing.assert_array_equal(picture, np.broadcast_to(SKY, (*SIZE, 3)))

  def test_triangles_without_area_do_no_harm(self):
    corners = np.concatenate(
      [mesh_files_test.CORNERS[mesh_files_test.FACES], np.ones((1, 3, 3))]
    )
    mesh = mesh_rays_test.make_mesh(corners, shaded=np.ones(3, bool))
    with np.errstate(all='raise'):
      picture = render(mesh, from_south())
    self.assertGreater((picture[26] != SKY).any(-1).sum(), 25)


if __name__ == '__main__':
  absltest.main()
