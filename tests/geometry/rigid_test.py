# SPDX-License-Identifier: Apache-2.0
"""Rigid motions: the group axioms, near and far from the identity."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import rigid as rigid_lib
from tests.testing import compiled

rigid = compiled.Module(rigid_lib)

BATCHES = ((), (1,), (3, 1, 2, 1))
SAMPLERS = ('identity', 'near_identity', 'half_turn', 'anywhere', 'far_away')


def _rotations(rng, batch, angle):
  """Rodrigues in float64: rotations by `angle` about random axes."""
  axis = rng.normal(size=(*batch, 3))
  axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
  x, y, z = np.moveaxis(axis, -1, 0)
  zero = np.zeros_like(x)
  rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
  cross = np.stack([np.stack(row, -1) for row in rows], -2)
  angle = np.asarray(angle)[..., None, None]
  return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _motion(seed, batch=(), sampler='anywhere'):
  rng = np.random.default_rng([seed, SAMPLERS.index(sampler)])
  angle, reach = {
    'identity': (0.0, 0.0),
    'near_identity': (1e-7, 1e-7),
    'half_turn': (np.pi - 1e-6, 1.0),
    'anywhere': (rng.uniform(0, np.pi, batch), 10.0),
    'far_away': (rng.uniform(0, np.pi, batch), 1e4),
  }[sampler]
  rotation = _rotations(rng, batch, angle)
  translation = reach * rng.normal(size=(*batch, 3))
  return rigid.Rigid(
    jnp.asarray(rotation, jnp.float32), jnp.asarray(translation, jnp.float32)
  )


def _assert_close(a, b, reach=10.0):
  np.testing.assert_allclose(a.rotation, b.rotation, atol=2e-6)
  np.testing.assert_allclose(a.translation, b.translation, atol=2e-6 * reach)


class GroupTest(parameterized.TestCase):
  @parameterized.product(batch=BATCHES, sampler=SAMPLERS)
  def test_inverse_and_identity(self, batch, sampler):
    motion = _motion(0, batch, sampler)
    identity = rigid.Rigid(
      jnp.broadcast_to(jnp.eye(3), (*batch, 3, 3)), jnp.zeros((*batch, 3))
    )
    reach = 1e4 if sampler == 'far_away' else 10
    inverse = rigid.inverse(motion)
    _assert_close(rigid.compose(motion, inverse), identity, reach)
    _assert_close(rigid.compose(inverse, motion), identity, reach)
    _assert_close(rigid.compose(motion, rigid.identity()), motion, reach)
    _assert_close(rigid.compose(rigid.identity(), motion), motion, reach)

  @parameterized.product(batch=BATCHES, sampler=SAMPLERS)
  def test_composition_is_associative_and_acts_in_order(self, batch, sampler):
    a = _motion(1, batch, sampler)
    b, c = _motion(2, batch), _motion(3, batch)
    reach = 1e4 if sampler == 'far_away' else 20
    left = rigid.compose(rigid.compose(a, b), c)
    right = rigid.compose(a, rigid.compose(b, c))
    _assert_close(left, right, reach)
    points = jnp.asarray(np.random.default_rng(4).normal(size=(*batch, 3)))
    np.testing.assert_allclose(
      rigid.apply(rigid.compose(a, b), points),
      rigid.apply(a, rigid.apply(b, points)),
      atol=2e-6 * reach,
    )

  def test_order_matters_and_the_inverse_is_not_the_motion(self):
    a, b = _motion(5), _motion(6)
    there, back = rigid.compose(a, b), rigid.compose(b, a)
    self.assertGreater(np.abs(there.rotation - back.rotation).max(), 0.1)
    inverse = rigid.inverse(a)
    self.assertGreater(np.abs(inverse.translation - a.translation).max(), 0.1)
    # Negating the translation alone is the wrong inverse.
    self.assertGreater(np.abs(inverse.translation + a.translation).max(), 0.1)

  @parameterized.parameters(*SAMPLERS)
  def test_distances_and_handedness_are_kept(self, sampler):
    motion = _motion(7, (), sampler)
    points = np.random.default_rng(8).normal(size=(6, 3)).astype(np.float32)
    moved = np.asarray(rigid.apply(motion, points))
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)
    found = np.linalg.norm(moved[:, None] - moved[None], axis=-1)
    np.testing.assert_allclose(
      found, gaps, atol=5e-3 if sampler == 'far_away' else 2e-5
    )
    np.testing.assert_allclose(np.linalg.det(motion.rotation), 1.0, atol=1e-5)


class MatrixTest(parameterized.TestCase):
  @parameterized.parameters(*BATCHES)
  def test_matrices_round_trip_and_multiply_like_motions(self, *batch):
    a, b = _motion(9, batch), _motion(10, batch)
    matrix = rigid.to_matrix(a)
    self.assertEqual(matrix.shape, (*batch, 4, 4))
    _assert_close(rigid.from_matrix(matrix), a)
    product = np.asarray(matrix) @ np.asarray(rigid.to_matrix(b))
    composed = rigid.to_matrix(rigid.compose(a, b))
    np.testing.assert_allclose(composed, product, atol=5e-5)

  def test_a_motion_agrees_with_homogeneous_coordinates(self):
    motion = _motion(11)
    point = np.asarray([1.0, -2.0, 3.0], np.float32)
    expected = np.asarray(rigid.to_matrix(motion)) @ np.append(point, 1)
    np.testing.assert_allclose(
      rigid.apply(motion, point), expected[:3], atol=1e-5
    )

  def test_motions_broadcast_over_clouds(self):
    motion = _motion(12, (2, 1))
    cloud = np.random.default_rng(13).normal(size=(2, 5, 3)).astype(np.float32)
    moved = rigid.apply(motion, cloud)
    self.assertEqual(moved.shape, (2, 5, 3))
    for i in range(2):
      one = rigid.Rigid(motion.rotation[i, 0], motion.translation[i, 0])
      for j in range(5):
        np.testing.assert_allclose(
          moved[i, j], rigid.apply(one, cloud[i, j]), atol=1e-5
        )

  def test_wrong_shapes_are_refused(self):
    with self.assertRaises(AssertionError):
      rigid.from_matrix(jnp.zeros((3, 4)))
    with self.assertRaises(AssertionError):
      rigid.apply(rigid.identity(), jnp.zeros((5, 4)))


class RotationZTest(absltest.TestCase):
  def test_a_quarter_turn_takes_x_to_y_and_leaves_z(self):
    quarter = rigid.rotation_z(jnp.pi / 2)
    np.testing.assert_allclose(quarter[:, 0], [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(quarter[:, 1], [-1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(quarter[:, 2], [0, 0, 1], atol=1e-6)

  def test_angles_add_and_broadcast(self):
    a = np.asarray([[0.0, 1e-7, 3.0]], np.float32)
    b = np.asarray([[-2.0], [np.pi]], np.float32)
    product = rigid.rotation_z(a) @ rigid.rotation_z(b)
    self.assertEqual(product.shape, (2, 3, 3, 3))
    np.testing.assert_allclose(product, rigid.rotation_z(a + b), atol=1e-6)


class OrthonormalTest(absltest.TestCase):
  def test_makes_rounding_errors_good(self):
    turn = rigid.rotation_z(jnp.asarray([0.3, -2.0]))
    spoiled = turn + 1e-3 * np.random.default_rng(0).normal(size=(2, 3, 3))
    found = rigid.orthonormalized(spoiled)
    square = jnp.swapaxes(found, -1, -2) @ found
    np.testing.assert_allclose(square, np.tile(np.eye(3), (2, 1, 1)), atol=5e-5)
    np.testing.assert_allclose(found, turn, atol=5e-3)


class GradientTest(absltest.TestCase):
  def test_gradients_are_finite_at_the_identity(self):
    def total(angle, translation, points):
      motion = rigid.Rigid(rigid.rotation_z(angle), translation)
      there = rigid.apply(motion, points)
      return rigid.apply(rigid.inverse(motion), there).sum() + there.sum()

    gradients = jax.jit(jax.grad(total, (0, 1, 2)))(
      0.0, jnp.zeros(3), jnp.zeros((4, 3))
    )
    for leaf in jax.tree.leaves(gradients):
      self.assertTrue(np.isfinite(leaf).all())


if __name__ == '__main__':
  absltest.main()
