# SPDX-License-Identifier: Apache-2.0
"""Boxes around ellipsoids are where the surface is seen."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import ellipsoid
from i2ploc.geometry import rigid

_project = jax.jit(ellipsoid.project)


@jax.jit
def _slopes(shape, camera):
  def total(shape, camera):
    outline = ellipsoid.project(shape, camera)
    return outline.box.sum() + outline.point.sum()

  return jax.grad(total, (0, 1))(shape, camera)


INTRINSICS = np.float32([[500, 0, 320], [0, 510, 240], [0, 0, 1]])


def rotations(rng, size):
  turns = np.linalg.qr(rng.normal(size=(size, 3, 3)))[0]
  return turns * np.linalg.det(turns)[:, None, None]


def planted(rng, size, near=2.0, far=8.0, small=0.03, large=0.6):
  """Ellipsoids [size] in front of cameras [size] anywhere, float64."""
  turn, center = rotations(rng, size), rng.uniform(-5, 5, (size, 3))
  camera = rigid.Rigid(turn, -np.einsum('nij,nj->ni', turn, center))
  plane = rng.uniform(-0.6, 0.6, (size, 2))
  depth = rng.uniform(near, far, (size, 1))
  seen = depth * np.concatenate([plane, np.ones((size, 1))], -1)
  return (
    ellipsoid.Ellipsoid(
      np.einsum('nji,nj->ni', turn, seen) + center,
      np.exp(rng.uniform(np.log(small), np.log(large), (size, 3))),
      rotations(rng, size),
    ),
    camera,
  )


def single(tree):
  return jax.tree.map(np.float32, tree)


def sampled_box(shape, camera, count=40_000, seed=0):
  """The box around points of the surface, on the plane z = 1."""
  points = np.random.default_rng(seed).normal(size=(count, 3))
  points /= np.linalg.norm(points, axis=-1, keepdims=True)
  points = shape.center + (points * shape.semi_axes) @ shape.rotation.T
  points = points @ camera.rotation.T + camera.translation
  if not (points[:, 2] > 0).all():
    return None
  plane = points[:, :2] / points[:, 2:]
  return np.concatenate([plane.min(0), plane.max(0)])


def textbook_box(shape, camera, dtype):
  """By the dual quadric [4, 4] and the roots of the conic, no shortcuts."""
  shape, camera = jax.tree.map(lambda x: np.asarray(x, dtype), (shape, camera))
  factor = shape.rotation * shape.semi_axes
  quadric = np.zeros((4, 4), dtype)
  quadric[:3, :3] = factor @ factor.T - np.outer(shape.center, shape.center)
  quadric[:3, 3] = quadric[3, :3] = -shape.center
  quadric[3, 3] = -1
  matrix = np.concatenate([camera.rotation, camera.translation[:, None]], 1)
  conic = matrix @ quadric @ matrix.T
  box = []
  for sign in (1, -1):
    for i in range(2):
      root = np.sqrt(conic[i, 2] ** 2 - conic[i, i] * conic[2, 2])
      box.append((conic[i, 2] + sign * root) / conic[2, 2])
  return np.array(box)


class ProjectTest(parameterized.TestCase):
  def test_the_box_touches_the_sampled_surface(self):
    shapes, cameras = planted(np.random.default_rng(0), 40)
    found = _project(single(shapes), single(cameras))
    self.assertTrue(found.valid.all())
    for i in range(40):
      shape, camera = jax.tree.map(lambda x, i=i: x[i], (shapes, cameras))
      box = sampled_box(shape, camera)
      size = (box[2:] - box[:2]).max()
      # Samples lie inside the outline, by less than their distances.
      inside = (np.asarray(found.box[i]) - box) * [-1, -1, 1, 1]
      self.assertGreater(inside.min(), -1e-5)
      self.assertLess(inside.max(), 3e-3 * size)

  def test_float32_keeps_what_the_textbook_loses(self):
    rng = np.random.default_rng(1)
    shapes, cameras = planted(rng, 400, near=6, far=8, small=0.02, large=0.04)
    found = np.asarray(_project(single(shapes), single(cameras)).box)
    ours, textbook = [], []
    for i in range(400):
      shape, camera = single(
        jax.tree.map(lambda x, i=i: x[i], (shapes, cameras))
      )
      exact = textbook_box(shape, camera, np.float64)
      ours.append(np.abs(found[i] - exact).max())
      rough = textbook_box(shape, camera, np.float32)
      textbook.append(np.abs(rough - exact).max())
    self.assertLess(500 * np.max(ours), 2e-3)  # pixels
    self.assertGreater(np.median(textbook), 20 * np.median(ours))

  def test_the_outline_is_a_closed_curve_inside_the_box(self):
    shapes, cameras = planted(np.random.default_rng(7), 20)
    points = np.asarray(ellipsoid.outline_points(shapes, cameras, 256))
    self.assertEqual(points.shape, (20, 256, 2))
    box = np.asarray(_project(single(shapes), single(cameras)).box)
    size = (box[:, 2:] - box[:, :2]).max(1, keepdims=True)
    ends = np.concatenate([points.min(1), points.max(1)], axis=1)
    np.testing.assert_allclose((ends - box) / size, 0, atol=2e-3)
    # Points on a curve of the second degree x^T C^-1 x = 0.
    dual = np.asarray(ellipsoid.dual_conic(shapes, cameras), np.float64)
    ones = np.ones((*points.shape[:2], 1))
    seen = np.concatenate([points, ones], axis=-1)
    value = np.einsum('sni,sij,snj->sn', seen, np.linalg.inv(dual), seen)
    middle = np.append(points.mean(1), ones[:, 0], axis=1)
    scale = np.einsum('si,sij,sj->s', middle, np.linalg.inv(dual), middle)
    np.testing.assert_allclose(value / scale[:, None], 0, atol=2e-2)

  def test_tangents_of_the_box_touch_the_dual_conic(self):
    shapes, cameras = planted(np.random.default_rng(2), 50)
    shapes, cameras = single(shapes), single(cameras)
    box = np.asarray(_project(shapes, cameras).box, np.float64)
    conic = np.asarray(ellipsoid.dual_conic(shapes, cameras), np.float64)
    for edge, axis in ((0, 0), (1, 1), (2, 0), (3, 1)):
      line = np.zeros((50, 3))
      line[:, axis], line[:, 2] = 1, -box[:, edge]
      touch = np.einsum('ni,nij,nj->n', line, conic, line)
      depth = -conic[:, 2, 2]
      np.testing.assert_allclose(touch / depth, 0, atol=2e-5)

  def test_the_box_is_not_centred_on_the_projected_centre(self):
    # A ball of radius r on a ray at angle a and distance d: edges at
    # tan(a - b) and tan(a + b) with sin b = r / d.
    a, b, d = 0.5, 0.2, 3.0
    ball = ellipsoid.Ellipsoid(
      jnp.array([d * np.sin(a), 0, d * np.cos(a)]),
      jnp.full(3, d * np.sin(b)),
      jnp.eye(3),
    )
    found = _project(ball, rigid.identity())
    np.testing.assert_allclose(
      found.box[jnp.array([0, 2])], np.tan([a - b, a + b]), rtol=1e-5
    )
    np.testing.assert_allclose(found.point, [np.tan(a), 0], atol=1e-6)
    middle = float(found.box[0] + found.box[2]) / 2
    self.assertGreater(middle - np.tan(a), 0.02)

  def test_the_frame_of_the_map_does_not_matter(self):
    rng = np.random.default_rng(3)
    shapes, cameras = planted(rng, 20)
    turn, shift = rotations(rng, 1)[0], rng.normal(size=3)
    moved = shapes._replace(
      center=shapes.center @ turn.T + shift, rotation=turn @ shapes.rotation
    )
    back = rigid.Rigid(
      cameras.rotation @ turn.T,
      cameras.translation - cameras.rotation @ turn.T @ shift,
    )
    np.testing.assert_allclose(
      _project(single(moved), single(back)).box,
      _project(single(shapes), single(cameras)).box,
      atol=1e-4,
    )

  def test_poses_broadcast_against_ellipsoids(self):
    shapes, _ = planted(np.random.default_rng(4), 5)
    _, cameras = planted(np.random.default_rng(5), 3)
    shapes, cameras = single(shapes), single(cameras)
    grid = _project(shapes, jax.tree.map(lambda x: x[:, None], cameras))
    self.assertEqual(grid.box.shape, (3, 5, 4))
    for i in range(3):
      same = jax.tree.map(lambda x, i=i: np.repeat(x[i : i + 1], 5, 0), cameras)
      row = _project(shapes, same)
      np.testing.assert_allclose(grid.box[i], row.box, rtol=1e-5, atol=1e-6)

  @parameterized.named_parameters(
    ('inside', (0.1, 0.0, 0.05), (0.5, 0.5, 0.5), False),
    ('behind', (0.0, 0.0, -3.0), (0.5, 0.5, 0.5), False),
    ('crossing_the_plane', (2.0, 0.0, 0.3), (0.2, 0.2, 0.5), False),
    ('touching_the_plane', (2.0, 0.0, 0.5), (0.2, 0.2, 0.5), False),
    ('just_in_front', (2.0, 0.0, 0.51), (0.2, 0.2, 0.5), True),
    ('not_a_number', (np.nan, 0.0, 3.0), (0.2, 0.2, 0.5), False),
    ('infinite', (0.0, 0.0, np.inf), (0.2, 0.2, 0.5), False),
    ('flat', (0.0, 0.0, 3.0), (0.2, 0.0, 0.5), True),
    ('a_point', (0.0, 0.0, 3.0), (0.0, 0.0, 0.0), True),
  )
  def test_degenerate(self, center, semi_axes, valid):
    shape = ellipsoid.Ellipsoid(
      jnp.array(center), jnp.array(semi_axes), jnp.eye(3)
    )
    found = _project(shape, rigid.identity())
    self.assertEqual(bool(found.valid), valid)
    for leaf in found:
      self.assertTrue(np.isfinite(leaf).all())
    gradients = _slopes(shape, rigid.identity())
    for leaf in jax.tree.leaves(gradients):
      self.assertTrue(np.isfinite(leaf).all(), leaf)

  def test_one_bad_pose_does_not_spoil_the_others(self):
    shapes, cameras = single(planted(np.random.default_rng(6), 4))
    cameras.rotation[1, 0, 0] = np.nan
    found = _project(shapes, cameras)
    self.assertEqual(found.valid.tolist(), [True, False, True, True])


class BoxTest(absltest.TestCase):
  def test_pixels(self):
    box = np.float32([[-0.3, -0.1, 0.2, 0.4]])
    pixels = ellipsoid.pixel_box(INTRINSICS, box)
    np.testing.assert_allclose(pixels, [[170, 189, 420, 444]], rtol=1e-6)

  def test_clipping_keeps_the_part_inside(self):
    bounds = jnp.array([0.0, 0, 640, 480])
    boxes = jnp.array(
      [[-10.0, 5, 20, 500], [700, 5, 800, 60], [10, 10, 20, 20]]
    )
    np.testing.assert_array_equal(
      ellipsoid.clip_box(boxes, bounds),
      [[0, 5, 20, 480], [640, 5, 640, 60], [10, 10, 20, 20]],
    )


if __name__ == '__main__':
  absltest.main()
