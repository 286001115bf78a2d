# SPDX-License-Identifier: Apache-2.0
"""The solver for rigs finds the pose that made its input."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import transform

from i2ploc.geometry import gp3p

_SIZE = 4000


def _total(origins, rays, points):
  poses, valid = gp3p.gp3p(origins, rays, points)
  total = jnp.where(valid[:, None], poses.translation, 0.0).sum()
  return total, (poses, valid)


# One shape and one compilation for all tests.
_run = jax.jit(
  jax.vmap(jax.value_and_grad(_total, argnums=(1, 2), has_aux=True))
)


def _solve(origins, rays, points):
  """Poses, valid and gradients, of as many problems as asked for."""
  size = len(points)
  given = [
    np.float32(np.resize(x, (_SIZE, 3, 3))) for x in (origins, rays, points)
  ]
  (_, (poses, valid)), gradients = _run(*given)
  leaves = [np.asarray(x)[:size] for x in (*poses, valid, *gradients)]
  return type(poses)(*leaves[:2]), leaves[2], leaves[3:]


def _problems(size=_SIZE, reach=0.5, around=True, seed=0):
  """Origins, rays, points and poses; cameras within `reach` metres."""
  rng = np.random.default_rng(seed)
  plane = rng.uniform(-0.5, 0.5, (size, 3, 2)) * [640, 480] / 500
  rays = np.concatenate([plane, np.ones((size, 3, 1))], axis=-1)
  rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
  if around:
    turns = transform.Rotation.random(3 * size, random_state=seed)
    turns = turns.as_matrix().reshape(size, 3, 3, 3)
    rays = np.einsum('nkij,nkj->nki', turns, rays)
  origins = rng.uniform(-reach, reach, (size, 3, 3))
  seen = origins + rays * rng.uniform(2, 10, (size, 3, 1))
  turns = transform.Rotation.random(size, random_state=seed + 1)
  rotation, translation = turns.as_matrix(), rng.normal(size=(size, 3))
  points = np.einsum('nji,nkj->nki', rotation, seen - translation[:, None])
  return origins, rays, points, rotation, translation


def _errors(poses, valid, rotation, translation):
  turn = np.linalg.norm(poses.rotation - rotation[:, None], axis=(2, 3))
  shift = np.linalg.norm(poses.translation - translation[:, None], axis=2)
  error = turn + shift / np.linalg.norm(translation, axis=1)[:, None]
  return np.where(valid, error, np.inf).min(1)


class Gp3pTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.0, False), (0.05, False), (0.5, False), (0.5, True), (2.0, True)
  )
  def test_the_true_pose_is_among_the_solutions(self, reach, around):
    *given, rotation, translation = _problems(reach=reach, around=around)
    poses, valid, _ = _solve(*given)
    errors = _errors(poses, valid, rotation, translation)
    self.assertLess(np.median(errors), 4e-6)
    # It misses 0.5 to 1.1 %.
    self.assertLess(np.mean(errors > 1e-3), 0.016)
    self.assertBetween(valid.sum(1).mean(), 1.2, 2.2)

  def test_all_valid_solutions_reproject(self):
    origins, rays, points, _, _ = _problems(2000)
    poses, valid, _ = _solve(origins, rays, points)
    seen = np.einsum('nvij,nkj->nvki', poses.rotation, points)
    seen = seen + poses.translation[:, :, None] - origins[:, None]
    depth = np.einsum('nvki,nki->nvk', seen, rays)
    self.assertTrue((depth[valid] > 0).all())
    away = np.linalg.norm(seen - depth[..., None] * rays[:, None], axis=-1)
    share = np.mean((away / depth).max(-1)[valid] < 1e-3)
    self.assertGreater(share, 0.99)
    rotation = poses.rotation[valid]
    square = rotation @ rotation.swapaxes(-1, -2)
    self.assertLess(np.abs(square - np.eye(3)).max(), 1e-4)
    self.assertTrue((np.linalg.det(rotation) > 0).all())

  def test_the_frame_of_the_rig_and_the_unit_do_not_matter(self):
    *given, rotation, translation = _problems(500)
    turn = transform.Rotation.from_rotvec([0.3, -0.5, 0.2]).as_matrix()
    for scale in (1e-4, 1e4):
      origins, rays, points = given
      poses, valid, _ = _solve(
        scale * origins @ turn.T, rays @ turn.T, scale * points
      )
      moved = scale * translation @ turn.T
      errors = _errors(poses, valid, turn @ rotation, moved)
      self.assertLess(np.mean(errors > 1e-3), 0.02)

  @parameterized.named_parameters(
    ('one_point', lambda o, r, p: (o, r, 0 * p)),
    ('a_line', lambda o, r, p: (o, r, p[:, :1] * [[1], [2], [3]])),
    ('one_ray', lambda o, r, p: (o, r[:, [0, 0, 0]], p)),
    ('not_finite', lambda o, r, p: (o, r, np.full_like(p, np.nan))),
    ('infinite', lambda o, r, p: (np.full_like(o, np.inf), r, p)),
    ('huge', lambda o, r, p: (o, r, 1e30 * p)),
  )
  def test_degenerate_input_is_invalid_and_finite(self, spoil):
    origins, rays, points, _, _ = _problems(50)
    poses, valid, gradients = _solve(*spoil(origins, rays, points))
    self.assertFalse(valid.any())
    for leaf in (*poses, *gradients):
      self.assertTrue(np.isfinite(leaf).all())

  def test_gradients_are_finite_and_follow_the_map(self):
    origins, rays, points, _, _ = _problems()
    poses, valid, gradients = _solve(origins, rays, points)
    for leaf in gradients:
      self.assertTrue(np.isfinite(leaf).all())
    # Where the map turns by w, R becomes R - R [w], and t stays.
    turn = np.array([0.3, -0.5, 0.2])
    given = (gradients[1] * np.cross(turn, points)).sum((1, 2))
    self.assertLess(np.quantile(np.abs(given), 0.9), 1e-2)
    shift = np.array([0.3, -0.5, 0.2])
    given = (gradients[1] * shift).sum((1, 2))
    moved = -np.einsum('nvij,j->nvi', poses.rotation, shift).sum(-1)
    expected = np.where(valid, moved, 0.0).sum(1)
    self.assertLess(np.quantile(np.abs(given - expected), 0.9), 1e-2)


if __name__ == '__main__':
  absltest.main()
