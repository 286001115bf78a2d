# SPDX-License-Identifier: Apache-2.0
"""P2P finds the upright pose that made its input."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import p2p

_solve = jax.jit(jax.vmap(p2p.p2p))


def _total(rays, points):
  poses, valid = p2p.p2p(rays, points)
  return jnp.where(valid[:, None], poses.translation, 0.0).sum()


_gradient = jax.jit(jax.vmap(jax.grad(_total, argnums=(0, 1))))


def _problems(size, seed=0):
  """Rays, points and poses: cameras that look level, depths of 2 to 10 m."""
  rng = np.random.default_rng(seed)
  plane = rng.uniform(-0.5, 0.5, (size, 2, 2)) * [640, 480] / 500
  rays = np.insert(plane, 0, 1.0, axis=-1)
  seen = rays * rng.uniform(2, 10, (size, 2, 1))
  angle = rng.uniform(0, 2 * np.pi, size)
  rotation = np.zeros((size, 3, 3))
  rotation[:, 0, 0] = rotation[:, 1, 1] = np.cos(angle)
  rotation[:, 1, 0] = np.sin(angle)
  rotation[:, 0, 1] = -np.sin(angle)
  rotation[:, 2, 2] = 1
  translation = rng.uniform(-5, 5, (size, 3))
  points = np.einsum('nji,nkj->nki', rotation, seen - translation[:, None])
  rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
  return np.float32(rays), np.float32(points), rotation, translation


def _errors(poses, valid, rotation, translation):
  """Frobenius norm plus relative translation, of the best valid solution."""
  turn = np.linalg.norm(poses.rotation - rotation[:, None], axis=(2, 3))
  shift = np.linalg.norm(poses.translation - translation[:, None], axis=2)
  error = turn + shift / np.linalg.norm(translation, axis=1)[:, None]
  return np.where(valid, error, np.inf).min(1)


class P2pTest(parameterized.TestCase):
  def test_the_true_pose_is_among_the_solutions(self):
    rays, points, rotation, translation = _problems(100_000)
    poses, valid = _solve(rays, points)
    errors = _errors(poses, valid, rotation, translation)
    self.assertLess(np.median(errors), 1e-6)
    # It misses 0.03 %.
    self.assertLess(np.mean(errors > 1e-3), 0.001)
    self.assertBetween(np.asarray(valid).sum(1).mean(), 1.6, 1.8)

  def test_all_valid_solutions_are_upright_and_reproject(self):
    rays, points, _, _ = _problems(2000)
    poses, valid = _solve(rays, points)
    rotation = np.asarray(poses.rotation)[np.asarray(valid)]
    up = np.broadcast_to([0, 0, 1.0], (len(rotation), 3))
    np.testing.assert_array_equal(rotation[:, 2], up)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
    seen = np.einsum('nvij,nkj->nvki', poses.rotation, points)
    seen = seen + np.asarray(poses.translation)[:, :, None]
    depth = np.einsum('nvki,nki->nvk', seen, rays)
    self.assertTrue((depth[valid] > 0).all())
    away = np.linalg.norm(seen - depth[..., None] * rays[:, None], axis=-1)
    share = np.mean((away / depth).max(-1)[valid] < 1e-3)
    self.assertGreater(share, 0.995)

  def test_neither_the_order_nor_the_unit_matters(self):
    rays, points, rotation, translation = _problems(500)
    for scale in (1e-6, 1e6):
      poses, valid = _solve(rays[:, ::-1], scale * points[:, ::-1])
      errors = _errors(poses, valid, rotation, scale * translation)
      self.assertLess(np.mean(errors > 1e-3), 0.01)

  @parameterized.named_parameters(
    ('one_point', lambda r, p: (r, p[:, [0, 0]])),
    ('above', lambda r, p: (r, p[:, :1] + np.array([[0, 0, 0], [0, 0, 1]]))),
    ('one_ray', lambda r, p: (r[:, [0, 0]], p)),
    ('level', lambda r, p: (np.eye(3)[:2] + 0 * r, p)),
    ('not_finite', lambda r, p: (r, np.full_like(p, np.nan))),
    ('huge', lambda r, p: (r, np.full_like(p, np.inf))),
  )
  def test_degenerate_input_is_invalid_and_finite(self, spoil):
    rays, points, _, _ = _problems(50)
    spoilt = [np.float32(x) for x in spoil(rays, points)]
    poses, valid = _solve(*spoilt)
    self.assertFalse(valid.any())
    for leaf in (*poses, *_gradient(*spoilt)):
      self.assertTrue(np.isfinite(leaf).all())

  def test_gradients_are_finite_and_follow_the_map(self):
    rays, points, _, _ = _problems(2000)
    by_rays, by_points = _gradient(rays, points)
    self.assertTrue(np.isfinite(by_rays).all())
    # Where the map moves by s, the translation moves by -R s.
    poses, valid = _solve(rays, points)
    shift = np.array([0.3, -0.5, 0.2])
    given = (np.asarray(by_points) * shift).sum((1, 2))
    moved = -np.einsum('nvij,j->nvi', poses.rotation, shift).sum(-1)
    expected = np.where(valid, moved, 0.0).sum(1)
    self.assertLess(np.quantile(np.abs(given - expected), 0.95), 1e-2)


if __name__ == '__main__':
  absltest.main()
