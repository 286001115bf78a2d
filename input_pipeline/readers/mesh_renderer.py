# SPDX-License-Identifier: Apache-2.0
"""Pictures of a mesh from given poses.

Each pixel is the mean of 2 x 2 rays. Textures are read bilinearly from the
picture of their pyramid whose texels are as large as what a ray sees of the
surface, so that far walls do not flicker. Surfaces of one colour are lit half
by the sky and half by a sun; where nothing is hit there is a light sky.
"""

import numpy as np

from i2ploc.geometry import lens as lens_lib
from input_pipeline.readers import mesh_files
from input_pipeline.readers import mesh_rays

SKY = (205, 220, 235)
# Towards the sun, chosen so that all four walls of a house and its roof differ.
_SUN = np.array([-0.36, -0.48, 0.8], np.float32)
_SHADE = 0.4  # brightness of a surface that faces away from the sun
SAMPLES = 2  # rays per pixel, along either side
_MIN_COSINE = 0.05  # of a ray with a surface, when texels are counted


class Renderer:
  """Renders a mesh with one camera."""

  def __init__(
    self,
    mesh: mesh_files.Mesh,
    caster: mesh_rays.Caster,
    lens: lens_lib.Lens,
    image_size: tuple[int, int],
  ):
    """Prepares rays and textures.

    Args:
      mesh: to be shown.
      caster: of this mesh.
      lens: the camera, x right, y down, z forward.
      image_size: (H, W), pixels.

    Raises:
      InputError: an impossible lens.
    """
    self._mesh, self._caster, self._size = mesh, caster, image_size
    height, width = image_size
    offset = (np.arange(SAMPLES) + 0.5) / SAMPLES
    row = (np.arange(height)[:, None] + offset).ravel()
    column = (np.arange(width)[:, None] + offset).ravel()
    pixels = np.stack(np.meshgrid(column, row), axis=-1).reshape(-1, 2)
    rays, self._valid = lens_lib.rays_from_pixels(lens, pixels)
    self._rays = rays.astype(np.float32)
    self._angle = 1 / (SAMPLES * lens.focal_length)  # between rays
    corners = mesh.vertices[mesh.faces]
    normal = np.cross(
      corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    )
    area = np.linalg.norm(normal, axis=-1, keepdims=True)
    self._normal = normal / np.maximum(area, np.finfo(np.float32).tiny)
    self._textures = _Textures(mesh, area[:, 0])

  def render(self, world_from_camera: np.ndarray) -> np.ndarray:
    """The picture uint8 [H, W, 3] from a pose [4, 4] float64, metres."""
    pose = np.asarray(world_from_camera, np.float64)
    rays = self._rays @ pose[:3, :3].T.astype(np.float32)
    hits = self._caster.cast(pose[:3, 3], rays)
    seen = np.flatnonzero((hits.triangle >= 0) & self._valid)
    colors = np.tile(np.asarray(SKY, np.float32), (len(rays), 1))
    colors[seen] = self._colors(
      hits.triangle[seen], hits.distance[seen], hits.weights[seen], rays[seen]
    )
    height, width = self._size
    samples = colors.reshape(height, SAMPLES, width, SAMPLES, 3)
    return np.round(samples.mean(axis=(1, 3))).astype(np.uint8)

  def _colors(self, triangle, distance, weights, rays):
    """Colours [N, 3] float32 where N rays hit."""
    mesh = self._mesh
    corners = mesh.colors[triangle].astype(np.float32)
    colors = np.einsum('ij,ijk->ik', weights, corners)
    normal = self._normal[triangle]
    cosine = np.einsum('ij,ij->i', normal, rays)
    # Many models of cities have faces of either winding: what is seen is
    # taken to be the front.
    towards_sun = np.where(cosine > 0, -1, 1) * (normal @ _SUN)
    light = _SHADE + (1 - _SHADE) * (0.5 + 0.5 * towards_sun)
    colors *= np.where(mesh.shaded[triangle], light, 1)[:, None]
    textured = np.flatnonzero(mesh.texture[triangle] >= 0)
    if len(textured):
      on = triangle[textured]
      uv = np.einsum('ij,ijk->ik', weights[textured], mesh.uv[on])
      # The mean width of the ellipse that a ray covers.
      slant = np.maximum(np.abs(cosine[textured]), _MIN_COSINE)
      width = distance[textured] * self._angle / np.sqrt(slant)
      colors[textured] *= self._textures.sample(on, uv, width) / 255
    return colors


class _Textures:
  """Pyramids of all textures in one array of texels, row after row."""

  def __init__(self, mesh, double_area):
    levels = [_pyramid(texture) for texture in mesh.textures]
    most = max(map(len, levels), default=0)
    self._start = np.zeros((len(levels), most), np.int64)
    self._size = np.ones((len(levels), most, 2), np.int64)
    self._last = np.array([len(pyramid) - 1 for pyramid in levels], np.int64)
    start = 0
    for i, pyramid in enumerate(levels):
      for k, level in enumerate(pyramid):
        self._start[i, k], self._size[i, k] = start, level.shape[:2]
        start += level.shape[0] * level.shape[1]
    flat = [level.reshape(-1, 3) for pyramid in levels for level in pyramid]
    self._texels = np.concatenate(flat or [np.zeros((0, 3), np.uint8)])
    self._texture = mesh.texture
    self._per_metre = _texels_per_metre(mesh, double_area)

  def sample(self, triangle, uv, width):
    """Colours [N, 3] float32 at [N, 2] of textures seen `width` metres wide."""
    texture = self._texture[triangle]
    texels = np.maximum(self._per_metre[triangle] * width, 1)
    level = np.round(np.log2(texels)).astype(np.int64)
    level = np.minimum(level, self._last[texture])
    start = self._start[texture, level]
    height, across = self._size[texture, level].T
    # A texture's first row is its top, where v is 1.
    x = _one_period(uv[:, 0]) * across - 0.5
    y = (1 - _one_period(uv[:, 1])) * height - 0.5
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right_share = (x - left).astype(np.float32)[:, None]
    down_share = (y - top).astype(np.float32)[:, None]

    def texel(column, row):
      # Not the opposite border: most textures of towns are atlases.
      row, column = (
        np.clip(i, 0, n - 1) for i, n in ((row, height), (column, across))
      )
      place = start + row * across + column
      return self._texels[place].astype(np.float32)

    above = _mix(texel(left, top), texel(left + 1, top), right_share)
    below = _mix(texel(left, top + 1), texel(left + 1, top + 1), right_share)
    return _mix(above, below, down_share)


def _one_period(x):
  return np.where((x >= 0) & (x <= 1), x, x - np.floor(x))


def _mix(first, second, share):
  return first + share * (second - first)


def _pyramid(texture):
  """The texture [H, W, 3] and halves of it, down to a side of 1."""
  levels = [texture]
  while min(levels[-1].shape[:2]) > 1:
    height, width = (side // 2 for side in levels[-1].shape[:2])
    fine = levels[-1][: 2 * height, : 2 * width].astype(np.uint16)
    sums = fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2]
    levels.append(((sums + 2) // 4).astype(np.uint8))
  return levels


def _texels_per_metre(mesh, double_area):
  """[T] float32, along a side of a square of the finest texture."""
  sizes = np.array(
    [texture.shape[1::-1] for texture in mesh.textures] + [(0, 0)]
  )
  corners = mesh.uv * sizes[mesh.texture][:, None].astype(np.float32)
  a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
  texels = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
  return np.sqrt(texels / np.maximum(double_area, 1e-12))
