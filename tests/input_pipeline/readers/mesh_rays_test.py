# SPDX-License-Identifier: Apache-2.0
"""First hits beside a slow loop over all triangles."""

import pickle
import sys
from unittest import mock

from absl.testing import absltest
import numpy as np
import pytest

from i2ploc.errors import InputError
from input_pipeline.readers import mesh_files
from input_pipeline.readers import mesh_rays

pytest.importorskip('embreex')  # no wheel for Linux on ARM


def make_mesh(corners, origin=(0, 0, 0), colors=None, **fields):
  """A mesh of triangles with corners [T, 3, 3] relative to the origin."""
  count = len(corners)
  if colors is None:
    colors = np.full((count, 3, 3), 255)
  values = {
    'uv': np.zeros((count, 3, 2), np.float32),
    'texture': np.full(count, -1, np.int32),
    'shaded': np.zeros(count, bool),
    'textures': (),
  }
  return mesh_files.Mesh(
    origin=np.array(origin, np.float64),
    vertices=np.asarray(corners, np.float32).reshape(-1, 3),
    faces=np.arange(3 * count, dtype=np.int32).reshape(-1, 3),
    colors=np.asarray(colors, np.uint8),
    **(values | fields),
  )


def first_hit(corners, origin, direction):
  """Triangle, distance and weights by Cramer's rule, one ray at a time."""
  best = (-1, np.inf, None)
  for i, (a, b, c) in enumerate(np.asarray(corners, np.float64)):
    system = np.stack([b - a, c - a, -direction], axis=-1)
    if abs(np.linalg.det(system)) < 1e-12:
      continue
    u, v, distance = np.linalg.solve(system, origin - a)
    if min(u, v, 1 - u - v) >= 0 and 0 < distance < best[1]:
      best = (i, distance, np.array([1 - u - v, u, v]))
  return best


def random_triangles(rng, count):
  middle = rng.uniform(-5, 5, (count, 1, 3))
  return np.float32(middle + rng.normal(size=(count, 3, 3)))


class CasterTest(absltest.TestCase):
  def test_first_hits_are_those_of_a_loop(self):
    rng = np.random.default_rng(0)
    corners = random_triangles(rng, 60)
    shift = np.array([384102.0, 6174005.0, 31.0])
    origins = rng.uniform(-8, 8, (200, 3))
    directions = rng.uniform(-3, 3, (200, 3)) - origins
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    caster = mesh_rays.Caster(make_mesh(corners, shift))
    hits = caster.cast(origins + shift, directions)
    hit = 0
    for i in range(200):
      triangle, distance, weights = first_hit(
        corners, origins[i], directions[i]
      )
      self.assertEqual(hits.triangle[i], triangle)
      if triangle < 0:
        self.assertEqual(hits.distance[i], np.inf)
      else:
        np.testing.assert_allclose(hits.distance[i], distance, rtol=1e-4)
        np.testing.assert_allclose(hits.weights[i], weights, atol=1e-4)
        hit += 1
    self.assertBetween(hit, 40, 160)

  def test_no_ray_slips_between_triangles(self):
    x, y = np.meshgrid(np.arange(21.0), np.arange(21.0))
    rng = np.random.default_rng(1)
    points = np.stack([x, y, rng.uniform(0, 0.5, x.shape)], -1)
    a, b = points[:-1, :-1], points[:-1, 1:]
    c, d = points[1:, 1:], points[1:, :-1]
    corners = np.stack([a, b, c, a, c, d], 2).reshape(-1, 3, 3)
    caster = mesh_rays.Caster(make_mesh(corners))
    start = np.array([10.0, 10.0, 10.0])
    target = np.concatenate([a, (a + c) / 2, (a + b) / 2]).reshape(-1, 3)
    target = target[(target[:, :2] > 0).all(1) & (target[:, :2] < 20).all(1)]
    directions = target - start
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    self.assertTrue((caster.cast(start, directions).triangle >= 0).all())

  def test_it_can_be_sent_to_another_process(self):
    rng = np.random.default_rng(2)
    caster = mesh_rays.Caster(make_mesh(random_triangles(rng, 9), (5, 0, 0)))
    copy = pickle.loads(pickle.dumps(caster))
    down = np.tile([0.0, 0, -1], (50, 1))
    origins = rng.uniform(-5, 5, (50, 3)) + [5, 0, 10]
    for mine, other in zip(
      caster.cast(origins, down), copy.cast(origins, down), strict=True
    ):
      np.testing.assert_array_equal(mine, other)

  def test_without_embree_it_says_what_to_install(self):
    mesh = make_mesh(np.eye(3)[None])
    with (
      mock.patch.dict(sys.modules, {'embreex': None}),
      self.assertRaisesRegex(InputError, r"pip install 'i2ploc\[mesh\]'"),
    ):
      mesh_rays.Caster(mesh)


if __name__ == '__main__':
  absltest.main()
