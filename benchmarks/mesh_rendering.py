# SPDX-License-Identifier: Apache-2.0
"""Rendering a mesh: Embree beside a ray caster in JAX.

Views of 224 x 224 pixels, 2 x 2 rays each, of textured hills with boxes on
them. The JAX program tests every triangle against every ray (Moeller and
Trumbore), the simplest that has static shapes; it is given `--jax_rays` of the
rays, and its time is scaled to all. Both alternate; medians are printed.

python benchmarks/mesh_rendering.py --json=mesh_rendering.json
"""

import json
import pathlib
import statistics
import sys
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

# Run as a script, this folder is on the path and the checkout is not.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from i2ploc.geometry import lens as lens_lib
from input_pipeline.readers import mesh_files
from input_pipeline.readers import mesh_poses
from input_pipeline.readers import mesh_rays
from input_pipeline.readers import mesh_renderer

TRIANGLES = flags.DEFINE_list('triangles', ['100000', '1000000'], 'Numbers.')
VIEWS = flags.DEFINE_integer('views', 10, 'Views, of which a median is taken.')
JAX_RAYS = flags.DEFINE_integer('jax_rays', 1024, 'Rays that JAX is given.')
JSON = flags.DEFINE_string('json', None, 'Where to write the numbers.')
SIDE = 224  # pixels
_EXTENT = 500.0  # metres, half the side of the mesh
_BLOCK = 64  # triangles; intermediates stay in the cache


def make_mesh(count: int) -> mesh_files.Mesh:
  """About `count` triangles, 1 km wide, with one texture of 4096 x 4096."""
  side = round((count / 2) ** 0.5) + 1
  line = np.linspace(-_EXTENT, _EXTENT, side)
  x, y = np.meshgrid(line, line)
  house = (np.mod(x, 40) < 15) & (np.mod(y, 40) < 15)
  z = 5 * np.sin(x / 70) * np.cos(y / 90) + 12 * house
  vertices = np.stack([x, y, z], axis=-1).reshape(-1, 3).astype(np.float32)
  i = np.arange(side * side, dtype=np.int32).reshape(side, side)
  a, b, c, d = i[:-1, :-1], i[:-1, 1:], i[1:, 1:], i[1:, :-1]
  faces = np.stack([a, b, c, a, c, d], axis=-1).reshape(-1, 3)
  rng = np.random.default_rng(0)
  texture = rng.integers(0, 256, (4096, 4096, 3), dtype=np.uint8)
  uv = (vertices[:, :2] / (2 * _EXTENT) + 0.5)[faces]
  return mesh_files.Mesh(
    origin=np.array([384100.0, 6174000.0, 30.0]),
    vertices=vertices,
    faces=faces,
    colors=np.full((len(faces), 3, 3), 255, np.uint8),
    uv=uv.astype(np.float32),
    texture=np.zeros(len(faces), np.int32),
    shaded=np.zeros(len(faces), bool),
    textures=(texture,),
  )


@jax.jit
def nearest(corners: jax.Array, origin: jax.Array, rays: jax.Array):
  """Distances [R] of rays [3, R] from [3] to triangles [B, 3, 3, M, 1].

  Components come first and are numbers to XLA, which fuses them so.
  """

  def block(best, corners):
    a, b, c = corners
    first, second = b - a, c - a
    normal = _cross(rays, second)
    determinant = _dot(first, normal)
    scale = 1 / jnp.where(determinant == 0, 1.0, determinant)
    start = origin[:, None, None] - a
    u = _dot(start, normal) * scale
    other = _cross(start, first)
    v = _dot(rays, other) * scale
    distance = _dot(second, other) * scale
    hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 0)
    hit &= determinant != 0
    found = jnp.min(jnp.where(hit, distance, jnp.inf), axis=0)
    return jnp.minimum(best, found), None

  start = jnp.full(rays.shape[1], jnp.inf)
  return jax.lax.scan(block, start, corners)[0]


def _dot(a, b):
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a, b):
  x = a[1] * b[2] - a[2] * b[1]
  y = a[2] * b[0] - a[0] * b[2]
  return x, y, a[0] * b[1] - a[1] * b[0]


def measure(count: int, views: int, num_rays: int) -> dict[str, float]:
  """Milliseconds per view of both, and what Embree needs before the first."""
  mesh = make_mesh(count)
  start = time.perf_counter()
  caster = mesh_rays.Caster(mesh)
  build = time.perf_counter() - start
  focal = SIDE / 2 / np.tan(np.radians(75) / 2)
  matrix = np.array([[focal, 0, SIDE / 2], [0, focal, SIDE / 2], [0, 0, 1]])
  lens = lens_lib.Lens('pinhole', matrix)
  start = time.perf_counter()
  renderer = mesh_renderer.Renderer(mesh, caster, lens, (SIDE, SIDE))
  prepare = time.perf_counter() - start
  corners = mesh.vertices[mesh.faces]
  corners = np.concatenate([corners, np.zeros((-len(corners) % _BLOCK, 3, 3))])
  corners = corners.reshape(-1, _BLOCK, 3, 3).transpose(0, 2, 3, 1)[..., None]
  corners = jnp.asarray(corners, jnp.float32)
  rng = np.random.default_rng(1)
  times = {'render': [], 'jax': []}
  for view in range(views + 1):
    pose = np.eye(4)
    angles = np.array([[2 * np.pi * view / views, 0, 0]])
    pose[:3, :3] = mesh_poses.rotations(angles)[0]
    pose[:3, 3] = mesh.origin + [20, 20, 12]
    start = time.perf_counter()
    renderer.render(pose)
    times['render'].append(time.perf_counter() - start)
    pixels = rng.uniform(0, SIDE, (num_rays, 2))
    rays, _ = lens_lib.rays_from_pixels(lens, pixels)
    rays = rays @ pose[:3, :3].T
    hits = caster.cast(pose[:3, 3], rays)
    origin = jnp.asarray(pose[:3, 3] - mesh.origin, jnp.float32)
    start = time.perf_counter()
    slow = nearest(corners, origin, jnp.asarray(rays.T, jnp.float32))
    slow = np.asarray(slow)
    times['jax'].append(time.perf_counter() - start)
    same = np.isclose(slow, hits.distance, rtol=1e-3, atol=1e-2)
    if same.mean() < 0.99:
      raise AssertionError(f'{1 - same.mean():.1%} of the rays differ')
  share = (SIDE * mesh_renderer.SAMPLES) ** 2 / num_rays
  return {
    'triangles': len(mesh.faces),
    'tree_ms': 1e3 * build,
    'prepare_ms': 1e3 * prepare,
    'view_ms': 1e3 * statistics.median(times['render'][1:]),
    'jax_rays_ms': 1e3 * share * statistics.median(times['jax'][1:]),
  }


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  del argv
  rows = []
  for count in TRIANGLES.value:
    row = measure(int(count), VIEWS.value, JAX_RAYS.value)
    rows.append(row)
    print(
      f'{row["triangles"]} triangles: tree {row["tree_ms"]:.0f} ms, prepared in'
      f' {row["prepare_ms"]:.0f} ms, a view {row["view_ms"]:.0f} ms; rays of a'
      f' view by JAX {row["jax_rays_ms"]:.0f} ms (scaled)',
      flush=True,
    )
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(rows, indent=1))


if __name__ == '__main__':
  app.run(main)
