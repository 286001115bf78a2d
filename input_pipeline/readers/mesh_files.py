# SPDX-License-Identifier: Apache-2.0
"""Meshes of towns: PLY, OBJ and glTF files as triangles with colours.

Trimesh reads the files. What a surface looks like becomes one form: a colour
at each corner, times a texture where there is one. A surface of one colour,
of a face or of a material, is marked for shading by light; vertex colours and
textures mostly come from photos and have their light in them.

The world has z up. PLY and OBJ files are taken as they are; glTF has y up by
its specification and is turned (x, y, z) -> (x, -z, y), as Blender exports it.
"""

import pathlib
from typing import Any
from typing import NamedTuple

from absl import logging
import numpy as np

from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.photos import listing

SUFFIXES = ('.glb', '.gltf', '.obj', '.ply')
_Y_UP_SUFFIXES = ('.glb', '.gltf')
_Z_FROM_Y_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
UPS = ('', 'y', 'z')
PLAIN = 200  # grey of surfaces without a colour
# Larger textures are halved until they fit a laptop's memory.
TEXTURE_BYTES = 1 << 30
# Metres between neighbouring float32 numbers at which a wall is no plane.
_COARSE = 0.05


class Mesh(NamedTuple):
  """T triangles, relative to an origin near them, so that float32 is enough.

  Attributes:
    origin: [3] float64, metres; x east, y north, z up.
    vertices: [V, 3] float32, metres from the origin.
    faces: [T, 3] int32, vertices of each triangle; either side is seen.
    colors: [T, 3, 3] uint8, RGB of each corner; a texture is multiplied by it.
    uv: [T, 3, 2] float32, place of each corner in its texture, from (0, 0) at
      the bottom left to (1, 1) at the top right; textures repeat beyond.
    texture: [T] int32, place in `textures`; -1 for none.
    shaded: [T] bool, of one colour, so that light shows the shape.
    textures: uint8 [H, W, 3] each.
  """

  origin: np.ndarray
  vertices: np.ndarray
  faces: np.ndarray
  colors: np.ndarray
  uv: np.ndarray
  texture: np.ndarray
  shaded: np.ndarray
  textures: tuple[np.ndarray, ...]


class _Part(NamedTuple):
  """One geometry of a file; `vertices` [V, 3] float64 in the file's frame."""

  vertices: np.ndarray
  faces: np.ndarray
  colors: np.ndarray
  uv: np.ndarray
  image: Any  # a Pillow image; None without texture
  shaded: bool
  untextured: bool  # has texture coordinates and no texture


def read_mesh(
  path: pathlib.Path, *, up: str = '', origin: tuple[float, ...] = (0, 0, 0)
) -> Mesh:
  """Reads a mesh, or all meshes below a folder as one scene.

  Args:
    path: a file of `SUFFIXES`, or a folder of them.
    up: the axis that points up, 'y' or 'z'; '' as the kind of file says.
    origin: [3] metres, where the files' (0, 0, 0) lies in the world (x east,
      y north, z up): UTM offsets are kept here in float64.

  Raises:
    MissingFileError: there is no such file or folder.
    InputError: trimesh is not installed, a file is damaged, of another kind or
      without triangles, or an option is unknown.
  """
  if up not in UPS:
    raise InputError(f'up={up!r}: expected one of {UPS}.')
  shift = np.asarray(origin, np.float64)
  if shift.shape != (3,) or not np.isfinite(shift).all():
    raise InputError(f'origin={origin}: expected x, y, z in metres.')
  parts = []
  for file in _files(path):
    turned = up == 'y' or (not up and file.suffix.lower() in _Y_UP_SUFFIXES)
    rotation = _Z_FROM_Y_UP if turned else np.eye(3)
    parts += [
      part._replace(vertices=part.vertices @ rotation.T + shift)
      for part in _read_file(file)
    ]
  if missing := sum(part.untextured for part in parts):
    logging.warning(
      '%s: %d of %d parts have texture coordinates and no picture that can be '
      'read: they are shown in one colour. Put the pictures where the mesh '
      'looks for them.',
      path,
      missing,
      len(parts),
    )
  return _join(path, parts)


def _files(path: pathlib.Path) -> list[pathlib.Path]:
  if path.is_dir():
    found = [
      file
      for file in path.rglob('*')
      if file.suffix.lower() in SUFFIXES and file.is_file()
    ]
    if not found:
      raise InputError(
        f'{path}: no meshes; expected files that end in {", ".join(SUFFIXES)}.'
      )
    return sorted(found, key=lambda file: listing.natural(str(file)))
  if not path.is_file():
    raise MissingFileError(f'{path}: no such mesh.')
  if path.suffix.lower() not in SUFFIXES:
    raise InputError(
      f'{path} is no mesh that can be read; expected {", ".join(SUFFIXES)}.'
    )
  return [path]


def _trimesh():
  try:
    import trimesh
  except ImportError as error:
    raise InputError(
      "Meshes are read by trimesh: pip install 'i2ploc[mesh]', or pip install "
      'trimesh embreex.'
    ) from error
  return trimesh


def _read_file(path: pathlib.Path) -> list[_Part]:
  trimesh = _trimesh()
  try:
    scene = trimesh.load_scene(path, process=False)
    placed = [scene.graph[node] for node in scene.graph.nodes_geometry]
    parts = [
      _part(scene.geometry[name], np.asarray(transform, np.float64))
      for transform, name in placed
      if isinstance(scene.geometry[name], trimesh.Trimesh)
    ]
  # Trimesh lets pass whatever its parsers stumble on: ValueError, KeyError,
  # struct.error, UnicodeDecodeError, OSError of pictures, and more.
  except Exception as error:
    raise InputError(
      f'{path} does not load ({type(error).__name__}: {error}). Export the '
      'mesh again.'
    ) from error
  parts = [part for part in parts if len(part.faces)]
  if not parts:
    raise InputError(f'{path} has no triangles: export surfaces, not points.')
  for part in parts:
    low, high = part.faces.min(), part.faces.max()
    if low < 0 or high >= len(part.vertices):
      raise InputError(
        f'{path}: a face has vertex {high if low >= 0 else low} of '
        f'{len(part.vertices)}. Export the mesh again.'
      )
    bad = np.count_nonzero(~np.isfinite(part.vertices[part.faces]).all((1, 2)))
    if bad:
      raise InputError(
        f'{path}: {bad} of {len(part.faces)} triangles have corners that are '
        'not finite. Repair the mesh.'
      )
  _warn_of_rounding(path, parts)
  return parts


def _warn_of_rounding(path: pathlib.Path, parts: list[_Part]) -> None:
  vertices = np.concatenate([part.vertices for part in parts])
  largest = np.abs(vertices).max()
  step = np.spacing(np.float32(largest))
  rounded = np.array_equal(vertices, vertices.astype(np.float32))
  if step > _COARSE and rounded:
    logging.warning(
      '%s: coordinates up to %.0f m in 32 bits are known to %.2f m. Export '
      'them from a local origin, and give it as origin=(x, y, z).',
      path, largest, step,
    )  # fmt: skip


def _part(geometry: Any, transform: np.ndarray) -> _Part:
  vertices = np.asarray(geometry.vertices, np.float64)
  vertices = vertices @ transform[:3, :3].T + transform[:3, 3]
  faces = np.asarray(geometry.faces, np.int64).reshape(-1, 3)
  colors = np.full((len(faces), 3, 3), PLAIN, np.uint8)
  uv = np.zeros((len(faces), 3, 2), np.float32)
  visual, image, shaded, untextured = geometry.visual, None, True, False
  if visual.kind == 'vertex':
    colors = np.asarray(visual.vertex_colors, np.uint8)[faces, :3]
    shaded = False
  elif visual.kind == 'face':
    colors[:] = np.asarray(visual.face_colors, np.uint8)[:, None, :3]
  elif visual.kind == 'texture':
    image, color = _material(visual.material)
    colors[:] = color
    shaded = image is None or visual.uv is None
    untextured = visual.uv is not None and image is None
    if shaded:
      image = None
    else:
      # Triangles without a place in the texture show its first corner.
      uv = np.nan_to_num(np.asarray(visual.uv, np.float32)[faces])
  return _Part(vertices, faces, colors, uv, image, shaded, untextured)


def _material(material: Any) -> tuple[Any, np.ndarray]:
  """A picture or None, and the colour [3] uint8 that multiplies it."""
  image = getattr(material, 'baseColorTexture', None)
  if image is not None:
    factor = material.baseColorFactor
    white = np.full(3, 255, np.uint8)
    return image, white if factor is None else material.main_color[:3]
  image = getattr(material, 'image', None)
  if image is not None:
    # OBJ files have any Kd beside a picture, 0 too; programs ignore it.
    return image, np.full(3, 255, np.uint8)
  return None, np.asarray(material.main_color[:3], np.uint8)


def _join(path: pathlib.Path, parts: list[_Part]) -> Mesh:
  images = list({id(part.image): part.image for part in parts}.values())
  images = [image for image in images if image is not None]
  place = {id(image): i for i, image in enumerate(images)} | {id(None): -1}
  sizes = [len(part.faces) for part in parts]
  first = np.cumsum([0] + [len(part.vertices) for part in parts])
  vertices = np.concatenate([part.vertices for part in parts])
  faces = np.concatenate(
    [part.faces + i for part, i in zip(parts, first, strict=False)]
  )
  corners = vertices[faces.ravel()]
  origin = np.round((corners.min(0) + corners.max(0)) / 2)
  return Mesh(
    origin=origin,
    vertices=(vertices - origin).astype(np.float32),
    faces=faces.astype(np.int32),
    colors=np.concatenate([part.colors for part in parts]),
    uv=np.concatenate([part.uv for part in parts]),
    texture=np.repeat([place[id(part.image)] for part in parts], sizes).astype(
      np.int32
    ),
    shaded=np.repeat([part.shaded for part in parts], sizes),
    textures=_textures(path, images),
  )


def _textures(path: pathlib.Path, images: list[Any]) -> tuple[np.ndarray, ...]:
  size = sum(3 * image.width * image.height for image in images)
  shrink = 1
  while size > TEXTURE_BYTES * shrink**2:
    shrink *= 2
  if shrink > 1:
    logging.info(
      '%s: %d textures of %.1f GB are shrunk %d times.',
      path, len(images), size / 1e9, shrink,
    )  # fmt: skip
  found = []
  for image in images:
    try:
      image = image.convert('RGB')
    # Pillow's PNG plugin reports broken chunks as SyntaxError.
    except (OSError, SyntaxError, ValueError) as error:
      raise InputError(
        f'{path}: a texture of {image.width}x{image.height} does not decode '
        f'({error}). Export the mesh again.'
      ) from error
    found.append(np.asarray(image.reduce(shrink) if shrink > 1 else image))
  return tuple(found)
