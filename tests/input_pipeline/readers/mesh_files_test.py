# SPDX-License-Identifier: Apache-2.0
"""Mesh files written by hand: places, colours, textures, what is refused."""

import base64
import json
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from i2ploc.errors import InputError
from input_pipeline.readers import mesh_files

# A square that stands on the ground, 2 m wide, seen from the south; the corners
# of its texture are red green, blue white.
CORNERS = np.array([[-1.0, 0, 0], [1, 0, 0], [1, 0, 2], [-1, 0, 2]])
FACES = np.array([[0, 1, 2], [0, 2, 3]])
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3
SIDE = 16  # of a texture


def texture():
  """[SIDE, SIDE, 3], of four squares."""
  corners = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)
  return corners.repeat(SIDE // 2, 0).repeat(SIDE // 2, 1)


def write_obj(path, corners=CORNERS, picture='texture.png'):
  """A textured square, and its texture."""
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = ['mtllib square.mtl', 'usemtl wall']
  lines += [f'v {x:.9f} {y:.9f} {z:.9f}' for x, y, z in corners]
  lines += ['vt 0 0', 'vt 1 0', 'vt 1 1', 'vt 0 1']  # v is upwards
  lines += ['f 1/1 2/2 3/3', 'f 1/1 3/3 4/4']
  path.write_text('\n'.join(lines) + '\n')
  text = f'newmtl wall\nKd 0.2 0.2 0.2\nmap_Kd {picture}\n'
  (path.parent / 'square.mtl').write_text(text)
  Image.fromarray(texture()).save(path.parent / picture, quality=95)
  return path


def write_gltf(path, picture='texture.png', scale=2.0):
  """The same square in glTF: y up, v downwards, placed by a node."""
  x, z = CORNERS[:, 0], CORNERS[:, 2]
  points = np.stack([x, z, np.zeros(4)], -1).astype('<f4') / scale
  uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], '<f4')
  blobs = [points.tobytes(), uv.tobytes(), FACES.astype('<u2').tobytes()]
  data = b''.join(blobs)
  ends = np.cumsum([len(blob) for blob in blobs]).tolist()
  kinds = ((5126, 4, 'VEC3'), (5126, 4, 'VEC2'), (5123, 6, 'SCALAR'))
  path.write_text(
    json.dumps(
      {
        'asset': {'version': '2.0'},
        'scene': 0,
        'scenes': [{'nodes': [0]}],
        'nodes': [{'mesh': 0, 'scale': [scale] * 3}],
        'meshes': [
          {
            'primitives': [
              {
                'attributes': {'POSITION': 0, 'TEXCOORD_0': 1},
                'indices': 2,
                'material': 0,
              }
            ]
          }
        ],
        'materials': [
          {'pbrMetallicRoughness': {'baseColorTexture': {'index': 0}}}
        ],
        'textures': [{'source': 0}],
        'images': [{'uri': picture}],
        'buffers': [
          {
            'byteLength': len(data),
            'uri': 'data:application/octet-stream;base64,'
            + base64.b64encode(data).decode(),
          }
        ],
        'bufferViews': [
          {'buffer': 0, 'byteOffset': end - len(blob), 'byteLength': len(blob)}
          for end, blob in zip(ends, blobs, strict=True)
        ],
        'accessors': [
          {
            'bufferView': i,
            'componentType': component,
            'count': count,
            'type': kind,
            **({'min': points.min(0).tolist()} if not i else {}),
            **({'max': points.max(0).tolist()} if not i else {}),
          }
          for i, (component, count, kind) in enumerate(kinds)
        ],
      }
    )
  )
  Image.fromarray(texture()).save(path.parent / picture)
  return path


def write_ply(path, corners, faces, colors=None, face_colors=None):
  """Triangles, perhaps with colours [V, 3] or [T, 3]."""
  path.parent.mkdir(parents=True, exist_ok=True)
  rgb = [f'property uchar {name}' for name in ('red', 'green', 'blue')]
  head = ['ply', 'format ascii 1.0', f'element vertex {len(corners)}']
  head += [f'property double {axis}' for axis in 'xyz']
  head += rgb if colors is not None else []
  head += [f'element face {len(faces)}']
  head += ['property list uchar int vertex_indices']
  head += rgb if face_colors is not None else []
  blank = np.zeros((len(corners), 0), int)
  rows = zip(corners, blank if colors is None else colors, strict=True)
  lines = [' '.join(map(repr, [*map(float, p), *map(int, c)])) for p, c in rows]
  blank = np.zeros((len(faces), 0), int)
  rows = zip(faces, blank if face_colors is None else face_colors, strict=True)
  lines += [' '.join(map(str, [3, *f, *map(int, c)])) for f, c in rows]
  path.write_text('\n'.join([*head, 'end_header', *lines]) + '\n')
  return path


def box(low, high, floor=True):
  """Corners [8, 3] and faces [12, 3] of a box; outwards, or without a floor."""
  low, high = np.array(low, float), np.array(high, float)
  bits = np.array([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)])
  quads = [(0, 1, 5, 4), (1, 3, 7, 5), (3, 2, 6, 7), (2, 0, 4, 6), (4, 5, 7, 6)]
  quads += [(0, 2, 3, 1)] if floor else []
  faces = [f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))]
  return low + bits * (high - low), np.array(faces)


class FolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(prefix='mesh_'))
    )

  def world(self, mesh):
    """[T, 3, 3] float64, corners of triangles."""
    return mesh.vertices[mesh.faces] + mesh.origin

  def refuse(self, message, path, **options):
    with self.assertRaisesRegex(InputError, message):
      mesh_files.read_mesh(path, **options)


class MeshTest(FolderTest):
  @parameterized.parameters('texture.png', 'texture.jpg')
  def test_an_obj_has_its_texture(self, picture):
    mesh = mesh_files.read_mesh(write_obj(self.root / 'a.obj', picture=picture))
    np.testing.assert_allclose(self.world(mesh), CORNERS[FACES])
    np.testing.assert_allclose(mesh.uv[0], [[0, 0], [1, 0], [1, 1]])
    error = mesh.textures[0].astype(int) - texture()
    self.assertLess(np.abs(error).mean(), 12)  # of JPEG
    # The picture is shown as it is, whatever Kd says.
    self.assertEqual(mesh.colors.min(), 255)
    self.assertFalse(mesh.shaded.any())

  def test_gltf_is_y_up_and_obj_z_up(self):
    gltf = mesh_files.read_mesh(write_gltf(self.root / 'a.gltf'))
    np.testing.assert_allclose(self.world(gltf), CORNERS[FACES])
    np.testing.assert_allclose(gltf.uv[0], [[0, 0], [1, 0], [1, 1]])
    np.testing.assert_array_equal(gltf.textures[0], texture())
    flat = mesh_files.read_mesh(self.root / 'a.gltf', up='z')
    x, y, z = self.world(gltf).T
    np.testing.assert_allclose(self.world(flat).T, [x, z, -y])
    north = CORNERS + [0, 3, 0]
    turned = np.stack([north[:, 0], north[:, 2], -north[:, 1]], -1)
    obj = write_obj(self.root / 'b.obj', turned)
    mesh = mesh_files.read_mesh(obj, up='y')
    np.testing.assert_allclose(self.world(mesh), north[FACES])

  def test_colours_of_vertices_and_of_faces(self):
    colors = np.array([RED, GREEN, BLUE, WHITE])
    path = write_ply(self.root / 'a.ply', CORNERS, FACES, colors)
    mesh = mesh_files.read_mesh(path)
    np.testing.assert_array_equal(mesh.colors, colors[FACES])
    self.assertFalse(mesh.shaded.any())
    path = write_ply(self.root / 'b.ply', CORNERS, FACES, None, colors[:2])
    mesh = mesh_files.read_mesh(path)
    np.testing.assert_array_equal(mesh.colors[:, 2], colors[:2])
    self.assertTrue(mesh.shaded.all())
    mesh = mesh_files.read_mesh(write_ply(self.root / 'c.ply', CORNERS, FACES))
    self.assertEqual({*mesh.colors.ravel()}, {mesh_files.PLAIN})
    self.assertTrue(mesh.shaded.all())

  def test_a_material_without_texture_gives_its_colour(self):
    path = write_obj(self.root / 'a.obj')
    (self.root / 'square.mtl').write_text('newmtl wall\nKd 1 0 0\n')
    mesh = mesh_files.read_mesh(path)
    np.testing.assert_array_equal(mesh.colors[0, 0], RED)
    self.assertTrue(mesh.shaded.all())

  def test_a_missing_texture_is_told(self):
    path = write_obj(self.root / 'a.obj')
    (self.root / 'texture.png').unlink()
    with self.assertLogs(level='WARNING') as logs:
      mesh = mesh_files.read_mesh(path)
    self.assertIn('1 of 1 parts', logs.output[0])
    self.assertTrue(mesh.shaded.all())

  def test_utm_offsets_cost_no_digits(self):
    shift = np.array([384102.05, 6174005.12, 31.0])
    path = write_obj(self.root / 'a.obj', CORNERS + shift)
    np.testing.assert_allclose(
      self.world(mesh_files.read_mesh(path)), (CORNERS + shift)[FACES],
      rtol=0, atol=1e-6,
    )  # fmt: skip
    path = write_obj(self.root / 'a.obj')
    mesh = mesh_files.read_mesh(path, origin=tuple(shift))
    np.testing.assert_allclose(
      self.world(mesh), (CORNERS + shift)[FACES], rtol=0, atol=1e-6
    )

  def test_offsets_in_32_bits_are_told(self):
    shift = np.array([384102.05, 6174005.12, 31.0])
    rounded = (CORNERS + shift).astype(np.float32)
    path = write_ply(self.root / 'a.ply', rounded, FACES)
    with self.assertLogs(level='WARNING') as logs:
      mesh_files.read_mesh(path)
    self.assertIn('0.50 m', logs.output[0])

  def test_a_folder_is_one_scene(self):
    write_obj(self.root / 'b' / 'x.obj', CORNERS + [10, 0, 0])
    write_ply(self.root / 'a.ply', CORNERS, FACES)
    write_obj(self.root / 'c' / 'x.obj', CORNERS + [20, 0, 0])
    (self.root / 'metadata.xml').write_text('other files do not count')
    mesh = mesh_files.read_mesh(self.root)
    expected = np.concatenate([CORNERS[FACES] + [x, 0, 0] for x in (0, 10, 20)])
    np.testing.assert_allclose(self.world(mesh), expected)
    self.assertEqual(mesh.texture.tolist(), [-1, -1, 0, 0, 1, 1])

  def test_large_textures_are_halved(self):
    path = write_obj(self.root / 'a.obj')
    with mock.patch.object(mesh_files, 'TEXTURE_BYTES', SIDE * SIDE):
      mesh = mesh_files.read_mesh(path)
    np.testing.assert_array_equal(mesh.textures[0], texture()[::2, ::2])

  def test_what_is_no_mesh_is_named(self):
    self.refuse('no such mesh', self.root / 'none.obj')
    self.refuse('no meshes; expected .*glb', self.root)
    (self.root / 'a.glb').write_bytes(b'glTF' + bytes(20))
    self.refuse('a.glb does not load', self.root)
    (self.root / 'a.glb').write_bytes(b'')
    self.refuse('a.glb does not load|no triangles', self.root)
    (self.root / 'a.fbx').write_text('x')
    self.refuse('a.fbx is no mesh', self.root / 'a.fbx')
    path = write_ply(self.root / 'a.ply', CORNERS, FACES[:0])
    self.refuse('a.ply has no triangles', path)
    path = write_ply(self.root / 'a.ply', CORNERS, FACES)
    path.write_text(path.read_text()[:-20])
    self.refuse('a.ply', path)
    path = write_ply(self.root / 'b.ply', CORNERS, FACES + 2)
    self.refuse('b.ply: a face has vertex 5 of 4|b.ply does not load', path)
    path = write_ply(self.root / 'c.ply', CORNERS * [np.nan, 1, 1], FACES)
    self.refuse('c.ply: 2 of 2 triangles have corners that are not', path)
    path = write_obj(self.root / 'd.obj')
    picture = self.root / 'texture.png'
    picture.write_bytes(picture.read_bytes()[:60])
    self.refuse('a texture of 16x16 does not decode', path)

  def test_options_are_checked(self):
    path = write_obj(self.root / 'a.obj')
    self.refuse("up='x'", path, up='x')
    self.refuse('expected x, y, z', path, origin=(1, 2))

  def test_without_trimesh_it_says_what_to_install(self):
    path = write_obj(self.root / 'a.obj')
    with mock.patch.dict(sys.modules, {'trimesh': None}):
      self.refuse(r"pip install 'i2ploc\[mesh\]'", path)


if __name__ == '__main__':
  absltest.main()
