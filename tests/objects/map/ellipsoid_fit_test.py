# SPDX-License-Identifier: Apache-2.0
"""Ellipsoids come back from their boxes: in closed form, then fitted."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from scipy.spatial import transform

from i2ploc.geometry import ellipsoid
from i2ploc.objects.map import dual_quadric
from i2ploc.objects.map import ellipsoid_fit
from i2ploc.objects.map import ray_clusters
from tests.objects import planted_objects

FOCAL, CENTER = 520.0, np.array([320, 240, 320, 240.0])


def views_of(shapes, poses, noise=0.0, tolerance=3.0, seed=0):
  """Of each of L objects, its boxes in all images."""
  pixels, valid = planted_objects.boxes_of(shapes, poses)
  assert valid.all()
  pixels = pixels + np.random.default_rng(seed).normal(0, noise, pixels.shape)
  motions = np.linalg.inv(poses)
  return [
    dual_quadric.Views(
      rotation=motions[:, :3, :3],
      translation=motions[:, :3, 3],
      box=(seen - CENTER) / FOCAL,
      precision=np.full(seen.shape, FOCAL / tolerance),
      open=np.zeros(seen.shape, bool),
      weight=np.ones(len(seen)),
    )
    for seen in np.swapaxes(pixels, 0, 1)
  ]


def single(shapes, i):
  return jax.tree.map(lambda leaf: leaf[i], shapes)


def shape_matrix(one):
  """R diag(a)^2 R^T [3, 3] of an ellipsoid."""
  factor = np.asarray(one.rotation, np.float64) * one.semi_axes
  return factor @ factor.T


def shape_error(found, planted):
  """Largest difference of the square roots of shapes, relative to the size."""
  roots = []
  for one in (found, planted):
    values, vectors = np.linalg.eigh(shape_matrix(one))
    roots.append((vectors * np.sqrt(values)) @ vectors.T)
  return np.abs(roots[0] - roots[1]).max() / planted.semi_axes.max()


def off(shapes, i, rng):
  """A ball near an object, as clusters of rays give it."""
  one = single(shapes, i)
  radius = float(np.exp(np.log(one.semi_axes).mean()))
  return ellipsoid.Ellipsoid(
    one.center + rng.normal(0, 0.3 * radius, 3),
    np.full(3, 1.2 * radius),
    np.eye(3),
  )


class ClosedFormTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    scene = planted_objects.make_scene(num_frames=12)
    self.shapes, self.poses = scene.ellipsoid, scene.poses

  def test_exact_boxes_give_the_exact_ellipsoid(self):
    for i, views in enumerate(views_of(self.shapes, self.poses)):
      planted = single(self.shapes, i)
      found = dual_quadric.start(views, planted.center + 0.05, 0.1)
      np.testing.assert_allclose(found.center, planted.center, atol=1e-4)
      self.assertLess(shape_error(found, planted), 2e-3)
      self.assertAlmostEqual(np.linalg.det(found.rotation), 1, 6)

  def test_the_planes_touch_the_surface(self):
    views = views_of(self.shapes, self.poses)[0]
    normals, offsets = dual_quadric.tangent_planes(views)
    planted = single(self.shapes, 0)
    shape = shape_matrix(planted)
    reach = np.sqrt(np.einsum('vei,ij,vej->ve', normals, shape, normals))
    away = np.abs(normals @ planted.center + offsets)
    np.testing.assert_allclose(away, reach, rtol=1e-3)

  def test_open_edges_have_no_say(self):
    views = views_of(self.shapes, self.poses)[0]
    views.box[::2, 0] -= 0.2
    views.open[::2, 0] = True
    planted = single(self.shapes, 0)
    found = dual_quadric.start(views, planted.center, 0.1)
    self.assertLess(shape_error(found, planted), 2e-3)
    views.open[:] = False
    found = dual_quadric.start(views, planted.center, 0.1)
    self.assertGreater(shape_error(found, planted), 0.1)

  @parameterized.named_parameters(
    ('two_boxes', lambda views: views.take([0, 5])),
    ('one_view', lambda views: views.take([0] * 12)),
    (
      'boxes_of_nothing',
      lambda views: views._replace(
        box=np.random.default_rng(0).uniform(-1, 1, views.box.shape)
      ),
    ),
  )
  def test_what_is_no_ellipsoid_starts_as_a_ball(self, spoil):
    views = spoil(views_of(self.shapes, self.poses)[0])
    found = dual_quadric.start(views, np.ones(3), 0.1)
    np.testing.assert_array_equal(found.center, np.ones(3))
    np.testing.assert_array_equal(found.semi_axes, np.full(3, 0.1))


class FitTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    scene = planted_objects.make_scene()
    self.shapes, self.poses = scene.ellipsoid, scene.poses
    rng = np.random.default_rng(1)
    self.starts = [off(self.shapes, i, rng) for i in range(7)]

  def test_a_ball_near_by_becomes_the_ellipsoid(self):
    views = views_of(self.shapes, self.poses)
    found = ellipsoid_fit.fit_ellipsoids(self.starts, views, 1.0)
    self.assertTrue(found.valid.all())
    np.testing.assert_allclose(
      found.ellipsoid.center, self.shapes.center, atol=2e-3
    )
    for i in range(7):
      error = shape_error(single(found.ellipsoid, i), single(self.shapes, i))
      self.assertLess(error, 0.03)

  def test_wrong_boxes_hardly_matter(self):
    views = views_of(self.shapes, self.poses, noise=1.0)
    for one in views:
      one.box[::5] += [0.1, -0.05, 0.15, 0.1]
    found = ellipsoid_fit.fit_ellipsoids(self.starts, views, 1.0)
    away = np.linalg.norm(found.ellipsoid.center - self.shapes.center, axis=-1)
    self.assertLess(np.max(away), 0.015)
    # The mean of all, as least squares would have it, is pulled away.
    squares = ellipsoid_fit.fit_ellipsoids(self.starts, views, 100.0)
    pulled = np.linalg.norm(
      squares.ellipsoid.center - self.shapes.center, axis=-1
    )
    self.assertGreater(np.median(pulled), 2 * np.median(away))

  def test_the_covariance_tells_the_error(self):
    ratios = []
    for seed in range(3):
      views = views_of(self.shapes, self.poses, noise=1.0, seed=seed)
      found = ellipsoid_fit.fit_ellipsoids(self.starts, views, 1.0)
      away = found.ellipsoid.center - self.shapes.center
      ratios += [
        step @ np.linalg.solve(matrix, step) / 3
        for step, matrix in zip(away, found.covariance, strict=True)
      ]
    self.assertBetween(np.mean(ratios), 0.4, 2.5)

  def test_an_edge_on_the_border_must_not_end_before_it(self):
    views = views_of(self.shapes, self.poses)
    most = np.arange(40) % 10 > 2
    for one in views:
      height = one.box[:, 3] - one.box[:, 1]
      one.box[most, 3] -= 0.4 * height[most]
      one.open[most, 3] = True
    found = ellipsoid_fit.fit_ellipsoids(self.starts, views, 1.0)
    np.testing.assert_allclose(
      found.ellipsoid.center, self.shapes.center, atol=2e-3
    )

  def test_none_is_worse_than_its_start(self):
    views = views_of(self.shapes, self.poses)
    views = views[::-1]  # of other objects
    before = ellipsoid_fit.fit_ellipsoids(self.starts, views, 1.0, 0)
    after = ellipsoid_fit.fit_ellipsoids(self.starts, views, 1.0)
    self.assertTrue((after.cost <= before.cost).all())
    np.testing.assert_allclose(
      before.ellipsoid.center, [one.center for one in self.starts], atol=1e-6
    )

  def test_one_view_does_not_determine_a_place(self):
    views = [one.take([0] * 6) for one in views_of(self.shapes, self.poses)]
    found = ellipsoid_fit.fit_ellipsoids(self.starts, views, 1.0)
    self.assertTrue(np.isinf(found.covariance).any((1, 2)).all())

  def test_no_objects(self):
    found = ellipsoid_fit.fit_ellipsoids([], [], 1.0)
    self.assertEqual(found.ellipsoid.rotation.shape, (0, 3, 3))

  def test_a_common_turn_is_found(self):
    planted = np.array([0.01, -0.006, 0.004])
    turn = transform.Rotation.from_rotvec(planted).as_matrix()
    turned = self.poses.copy()
    turned[:, :3, :3] = turned[:, :3, :3] @ turn
    views = [
      one._replace(
        rotation=turn.T @ one.rotation, translation=one.translation @ turn
      )
      for one in views_of(self.shapes, self.poses)
    ]
    starts = [single(self.shapes, i) for i in range(7)]
    fit = ellipsoid_fit.fit_ellipsoids(starts, views, 1.0, 0)
    step = ellipsoid_fit.common_turn(fit, 1.0)
    np.testing.assert_allclose(step, planted, atol=1e-3)


class RaysTest(absltest.TestCase):
  def test_rays_meet_in_their_point(self):
    rng = np.random.default_rng(0)
    origins, point = rng.normal(size=(5, 3)), np.array([1.0, 2, 3])
    found = ray_clusters.intersection(
      origins, (point - origins) * rng.uniform(0.5, 2, (5, 1)), np.ones(5)
    )
    np.testing.assert_allclose(found, point, atol=1e-4)

  def test_parallel_rays_stay_finite(self):
    origins = np.array([[0, 0, 0], [0, 0, 0.0]])
    found = ray_clusters.intersection(origins, np.ones((2, 3)), np.ones(2))
    self.assertTrue(np.isfinite(found).all())

  def test_parallax_is_the_largest_angle(self):
    angles = np.radians([0, 3, 11, 7])
    rays = np.stack([np.cos(angles), np.sin(angles), 0 * angles], -1)
    self.assertAlmostEqual(
      ray_clusters.parallax(rays), np.radians(11), places=5
    )
    self.assertAlmostEqual(ray_clusters.parallax(rays[:1]), 0, places=5)


if __name__ == '__main__':
  absltest.main()
