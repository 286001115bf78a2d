# SPDX-License-Identifier: Apache-2.0
"""Epipolar geometry: laws of its parts."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import epipolar as epipolar_lib
from i2ploc.geometry import essential as essential_lib
from i2ploc.geometry import rigid
from i2ploc.geometry import vectors
from tests.geometry import two_views
from tests.testing import compiled

epipolar = compiled.Module(epipolar_lib)
essential = compiled.Module(essential_lib)


@jax.jit
@jax.vmap
def _decompose(matrix, rays0, rays1):
  """The pose of an essential matrix of any length and sign."""
  flat = (matrix * jnp.sqrt(2 / jnp.sum(matrix**2))).reshape(9, 1)
  rays0, rays1 = (tuple(r.T[:, :, None]) for r in (rays0, rays1))
  pose = essential.choose(vectors.rows(tuple(flat)), rays0, rays1)
  return jax.tree.map(lambda leaf: leaf[0], essential.stacked(*pose))


def _scene(size=50, num_points=20, seed=0, motion='any'):
  rng = np.random.default_rng(seed)
  rotation, translation = two_views.poses(rng, size, motion)
  rays0, rays1 = two_views.rays(rng, rotation, translation, num_points)
  return rotation, translation, np.float32(rays0), np.float32(rays1)


class ComplementTest(parameterized.TestCase):
  # XLA 0.10 on CPU got 1,000 at once wrong where it had 100 right.
  @parameterized.parameters(10, 1000, 8000)
  def test_it_is_orthonormal_and_orthogonal(self, size):
    rows = np.random.default_rng(0).normal(size=(size, 5, 9))
    rows = np.float32(rows / np.linalg.norm(rows, axis=-1, keepdims=True))
    basis, smallest = jax.jit(jax.vmap(epipolar.complement))(rows)
    basis = np.asarray(basis)
    self.assertLess(np.abs(basis @ rows.swapaxes(1, 2)).max(), 1e-5)
    square = basis @ basis.swapaxes(1, 2)
    expected = np.tile(np.eye(4), (size, 1, 1))
    np.testing.assert_allclose(square, expected, atol=1e-5)
    self.assertGreater(smallest.min(), 1e-3)

  def test_dependent_rows_are_told(self):
    rows = np.random.default_rng(0).normal(size=(30, 5, 9)).astype(np.float32)
    rows[:, 4] = rows[:, 0] - 2 * rows[:, 2]
    basis, smallest = jax.jit(jax.vmap(epipolar.complement))(rows)
    self.assertLess(smallest.max(), 1e-5)
    self.assertTrue(np.isfinite(basis).all())

  def test_gradients_are_finite_even_of_nothing(self):
    for rows in (jnp.zeros((5, 9)), jnp.eye(9)[:5]):
      gradient = jax.grad(lambda r: epipolar.complement(r)[0].sum())(rows)
      self.assertTrue(np.isfinite(gradient).all())


class SampsonTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_it_is_the_least_movement_of_both_points(self, sphere):
    rotation, translation, rays0, rays1 = _scene(1, 30)
    pose = rigid.Rigid(jnp.asarray(rotation[0]), jnp.asarray(translation[0]))
    matrix = essential.from_pose(pose)
    rng = np.random.default_rng(1)
    points = [r[0] + 0.3 * rng.normal(size=r[0].shape) for r in (rays0, rays1)]
    norm = [np.linalg.norm(p, axis=-1) if sphere else p[:, 2] for p in points]
    a, b = (p / n[:, None] for p, n in zip(points, norm, strict=True))
    found = epipolar.sampson(
      matrix, tuple(map(jnp.asarray, a.T)), tuple(map(jnp.asarray, b.T)),
      sphere=sphere,
    )  # fmt: skip
    # The gradient by differences, along the surface on which points move.
    e = np.asarray(matrix, np.float64)
    value = np.einsum('ni,ij,nj->n', b, e, a)
    slopes = [b @ e, a @ e.T]
    for i, point in enumerate((a, b)):
      normal = point if sphere else np.array([0.0, 0.0, 1.0])
      along = (slopes[i] * normal).sum(-1, keepdims=True)
      slopes[i] = slopes[i] - along * normal
    length = np.linalg.norm(np.concatenate(slopes, axis=1), axis=1)
    np.testing.assert_allclose(found, value / length, rtol=1e-2, atol=1e-6)

  def test_it_vanishes_for_what_agrees_and_not_for_the_opposite_motion(self):
    rotation, translation, rays0, rays1 = _scene(1, 30)
    pose = rigid.Rigid(jnp.asarray(rotation[0]), jnp.asarray(translation[0]))
    columns = tuple(rays0[0].T), tuple(rays1[0].T)
    right = epipolar.sampson(essential.from_pose(pose), *columns)
    self.assertLess(np.abs(right).max(), 1e-6)
    wrong = epipolar.sampson(essential.from_pose(rigid.inverse(pose)), *columns)
    self.assertGreater(np.abs(wrong).max(), 1e-3)

  def test_it_is_finite_at_both_epipoles(self):
    ahead = tuple(jnp.asarray([[0.0], [0.0], [1.0]]))
    pose = rigid.Rigid(jnp.eye(3), jnp.asarray([0.0, 0.0, 1.0]))
    found = epipolar.sampson(essential.from_pose(pose), ahead, ahead)
    self.assertEqual(float(found[0]), 0.0)


class EssentialTest(absltest.TestCase):
  def test_it_is_what_points_agree_with(self):
    rotation, translation, _, _ = _scene(20)
    for r, t, e in zip(
      rotation, translation, two_views.essentials(rotation, translation),
      strict=True,
    ):  # fmt: skip
      pose = rigid.Rigid(jnp.asarray(r), jnp.asarray(t))
      np.testing.assert_allclose(
        essential.from_pose(pose), np.sqrt(2) * e, atol=1e-6
      )

  def test_decomposition_gives_the_pose_back_whatever_length_and_sign(self):
    rotation, translation, rays0, rays1 = _scene(50)
    matrices = np.float32(two_views.essentials(rotation, translation))
    for scale in (1.0, -7.0):
      found = _decompose(scale * matrices, rays0, rays1)
      np.testing.assert_allclose(found.rotation, rotation, atol=1e-5)
      np.testing.assert_allclose(found.translation, translation, atol=1e-5)

  def test_points_behind_the_cameras_choose_another_pose(self):
    rotation, translation, rays0, rays1 = _scene(50)
    matrices = np.float32(two_views.essentials(rotation, translation))
    found = _decompose(matrices, -rays0, -rays1)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-5)
    np.testing.assert_allclose(found.translation, -translation, atol=1e-5)

  def test_all_four_poses_have_the_matrix(self):
    rotation, translation, _, _ = _scene(1)
    matrix = np.sqrt(2) * two_views.essentials(rotation, translation)[0]
    flat = tuple(jnp.asarray(matrix.reshape(9, 1)))
    rotations, t = essential.motions(vectors.rows(flat))
    for i in range(2):
      r = jax.tree.map(lambda leaf, i=i: leaf[i], rotations)
      pose = jax.tree.map(lambda leaf: leaf[0], essential.stacked(r, t))
      found = np.asarray(essential.from_pose(pose))
      sign = np.sign((found * matrix).sum())
      np.testing.assert_allclose(sign * found, matrix, atol=1e-5)
      self.assertAlmostEqual(float(np.linalg.det(pose.rotation)), 1.0, places=5)

  def test_tangents_are_orthonormal(self):
    axes = np.random.default_rng(0).normal(size=(200, 3))
    axes = np.concatenate([axes, np.eye(3), -np.eye(3)])
    axes = (axes / np.linalg.norm(axes, axis=1, keepdims=True)).T
    first, second = vectors.tangents(tuple(jnp.asarray(axes)))
    frame = np.stack([axes, first, second])
    square = np.einsum('aik,bik->kab', frame, frame)
    np.testing.assert_allclose(
      square, np.tile(np.eye(3), (206, 1, 1)), atol=1e-6
    )

  def test_retract_moves_along_all_of_its_five_directions(self):
    rotation, translation, _, _ = _scene(1)
    pose = rigid.Rigid(jnp.asarray(rotation[0]), jnp.asarray(translation[0]))
    still = essential.retract(pose, jnp.zeros(5))
    np.testing.assert_allclose(still.rotation, pose.rotation, atol=1e-6)
    np.testing.assert_allclose(still.translation, pose.translation, atol=1e-6)
    slope = jax.jit(
      jax.jacobian(
        lambda step: essential.from_pose(essential.retract(pose, step)).ravel()
      )
    )(jnp.zeros(5))
    self.assertGreater(np.linalg.svd(slope)[1].min(), 0.1)
    moved = essential.retract(pose, jnp.asarray([0.1, 0.0, 0.2, 0.3, -0.1]))
    self.assertAlmostEqual(
      float(jnp.linalg.norm(moved.translation)), 1.0, places=5
    )


if __name__ == '__main__':
  absltest.main()
