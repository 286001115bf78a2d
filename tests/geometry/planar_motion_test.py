# SPDX-License-Identifier: Apache-2.0
"""A homography of calibrated cameras gives their motion."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import transform

from i2ploc.geometry import planar_motion

_find = jax.jit(jax.vmap(planar_motion.from_homography))


def _total(matrix, rays):
  found = planar_motion.from_homography(matrix, rays)
  return jnp.where(found.valid[:, None], found.translation, 0.0).sum()


_gradient = jax.jit(jax.vmap(jax.grad(_total)))


def _problems(size, seed=0):
  """Homographies [S, 3, 3], rays [S, 5, 3], and the motions and normals."""
  rng = np.random.default_rng(seed)
  found = []
  while len(found) < size:
    turn = transform.Rotation.from_rotvec(0.2 * rng.normal(size=3))
    rotation, shift = turn.as_matrix(), 0.3 * rng.normal(size=3)
    normal = rng.normal(size=3) + [0, 0, 1]
    normal /= np.linalg.norm(normal)
    matrix = rotation + np.outer(shift, normal)
    rays = np.append(rng.uniform(-0.5, 0.5, (5, 2)), np.ones((5, 1)), axis=1)
    # The cameras are on the same side of the plane, and see its points.
    if (rays @ normal > 0.1).all() and np.linalg.det(matrix) > 0.1:
      found.append((matrix, rays, rotation, shift, normal))
  return [np.stack(x) for x in zip(*found, strict=True)]


def _errors(found, rotation, shift, normal):
  """Of the best valid motion, [S]."""
  away = np.abs(found.rotation - rotation[:, None]).max((2, 3))
  away = away + np.abs(found.translation - shift[:, None]).max(2)
  away = away + np.abs(found.normal - normal[:, None]).max(2)
  return np.where(found.valid, away, np.inf).min(1)


class FromHomographyTest(parameterized.TestCase):
  @parameterized.parameters(-3.0, 1e-4, 1.0)
  def test_the_true_motion_is_among_them_in_float64(self, scale):
    matrix, rays, *true = _problems(300)
    found = [
      planar_motion.from_homography(scale * m, r)
      for m, r in zip(matrix, rays, strict=True)
    ]
    self.assertIs(type(found[0].rotation), np.ndarray)
    found = planar_motion.Motions(
      *(np.stack(x) for x in zip(*found, strict=True))
    )
    self.assertLess(_errors(found, *true).max(), 1e-11)
    self.assertBetween(found.valid.sum(1).mean(), 1.2, 1.9)

  def test_the_true_motion_is_among_them_in_float32(self):
    matrix, rays, *true = _problems(3000)
    errors = _errors(_find(np.float32(matrix), np.float32(rays)), *true)
    self.assertLess(np.median(errors), 1e-5)
    self.assertLess(np.mean(errors > 1e-2), 0.005)

  def test_all_valid_motions_explain_the_homography(self):
    matrix, rays, *_ = _problems(200)
    for one, some in zip(matrix, rays, strict=True):
      found = planar_motion.from_homography(one, some)
      for rotation, shift, normal, valid in zip(*found, strict=True):
        if not valid:
          continue
        again = rotation + np.outer(shift, normal)
        np.testing.assert_allclose(again, one, atol=1e-10)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-10)
        self.assertGreater(np.linalg.det(rotation), 0)
        self.assertGreater((some @ normal).min(), 0)

  def test_a_motion_along_the_normal_is_one(self):
    matrix = np.eye(3) + np.outer([0, 0, 0.25], [0, 0, 1.0])
    found = planar_motion.from_homography(matrix, np.array([[0.1, 0.2, 1.0]]))
    self.assertEqual(found.valid.tolist(), [True, False])
    np.testing.assert_allclose(found.translation[0], [0, 0, 0.25], atol=1e-9)

  def test_a_rotation_has_no_plane(self):
    turn = transform.Rotation.from_rotvec([0.1, 0.2, 0.3]).as_matrix()
    found = planar_motion.from_homography(-2 * turn, np.eye(3))
    self.assertEqual(found.valid.tolist(), [True, False])
    np.testing.assert_allclose(found.rotation[0], turn, atol=1e-12)
    self.assertFalse(found.translation.any())
    self.assertFalse(found.normal.any())

  @parameterized.named_parameters(
    ('zero', np.zeros((3, 3))),
    ('singular', np.diag([1.0, 1.0, 0.0])),
    ('not_finite', np.full((3, 3), np.nan)),
  )
  def test_what_is_no_homography_is_invalid_and_finite(self, matrix):
    given = np.float32(matrix)[None], np.ones((1, 5, 3), np.float32)
    found = _find(*given)
    self.assertFalse(found.valid.any())
    for leaf in (*found, _gradient(*given)):
      self.assertTrue(np.isfinite(leaf).all())

  def test_gradients_are_finite_also_of_rotations(self):
    matrix, rays, rotation, *_ = _problems(200)
    for one in (matrix, rotation, np.tile(np.eye(3), (200, 1, 1))):
      gradient = _gradient(np.float32(one), np.float32(rays))
      self.assertTrue(np.isfinite(gradient).all())


if __name__ == '__main__':
  absltest.main()
