# SPDX-License-Identifier: Apache-2.0
"""The upright three-point solver finds the pose that made its input."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import three_points

_SIZE = 3000


def _total(rays0, rays1):
  poses, valid = three_points.from_three(rays0, rays1)
  found = poses.rotation.sum((1, 2)) + poses.translation.sum(1)
  return jnp.where(valid, found, 0.0).sum(), (poses, valid)


# One shape and one compilation for all tests.
_run = jax.jit(
  jax.vmap(jax.value_and_grad(_total, argnums=(0, 1), has_aux=True))
)


def _solve(rays0, rays1):
  """Poses, valid and gradients, of as many problems as asked for."""
  size = len(rays0)
  rays0, rays1 = (np.resize(r, (_SIZE, 3, 3)) for r in (rays0, rays1))
  (_, (poses, valid)), gradients = _run(np.float32(rays0), np.float32(rays1))
  leaves = [np.asarray(x)[:size] for x in (*poses, valid, *gradients)]
  return type(poses)(*leaves[:2]), leaves[2], leaves[3:]


def _unit(vectors):
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _turn(angle):
  rotation = np.zeros((*angle.shape, 3, 3))
  rotation[..., 0, 0] = rotation[..., 1, 1] = np.cos(angle)
  rotation[..., 1, 0] = np.sin(angle)
  rotation[..., 0, 1] = -np.sin(angle)
  rotation[..., 2, 2] = 1
  return rotation


def _problems(size=_SIZE, motion='any', largest=0.5, seed=0):
  """Rays and poses of cameras that look along x, up to `largest` radians."""
  rng = np.random.default_rng(seed)
  plane = rng.uniform(-0.5, 0.5, (size, 3, 2)) * [640, 480] / 500
  points = np.insert(plane, 0, 1.0, axis=-1) * rng.uniform(2, 10, (size, 3, 1))
  rotation = _turn(rng.uniform(-largest, largest, size))
  translation = rng.normal(size=(size, 3))
  if motion == 'forward':
    translation = np.tile([-1.0, 0.02, 0.0], (size, 1))
  elif motion == 'level':
    translation[:, 2] = 0
  translation = _unit(translation)
  moved = np.einsum('nij,nkj->nki', rotation, points) + translation[:, None]
  return _unit(points), _unit(moved), rotation, translation


def _errors(poses, valid, rotation, translation):
  turn = np.linalg.norm(poses.rotation - rotation[:, None], axis=(2, 3))
  shift = np.linalg.norm(poses.translation - translation[:, None], axis=2)
  return np.where(valid, turn + shift, np.inf).min(1)


class FromThreeTest(parameterized.TestCase):
  @parameterized.parameters('any', 'forward', 'level')
  def test_the_true_pose_is_among_the_solutions(self, motion):
    rays0, rays1, rotation, translation = _problems(motion=motion)
    poses, valid, _ = _solve(rays0, rays1)
    errors = _errors(poses, valid, rotation, translation)
    self.assertLess(np.median(errors), 2e-6)
    # It misses 0.3 to 0.5 %.
    self.assertLess(np.mean(errors > 1e-3), 0.01)
    self.assertBetween(valid.sum(1).mean(), 1.7, 2.7)

  def test_cameras_that_look_elsewhere_are_solved_too(self):
    rays0, rays1, rotation, translation = _problems(largest=np.pi)
    poses, valid, _ = _solve(rays0, rays1)
    errors = _errors(poses, valid, rotation, translation)
    self.assertLess(np.mean(errors > 1e-3), 0.01)

  def test_rays_all_around_are_solved_too(self):
    rng = np.random.default_rng(0)
    _, _, rotation, translation = _problems(largest=np.pi)
    points = 4 * rng.normal(size=(_SIZE, 3, 3))
    moved = np.einsum('nij,nkj->nki', rotation, points) + translation[:, None]
    poses, valid, _ = _solve(_unit(points), _unit(moved))
    errors = _errors(poses, valid, rotation, translation)
    self.assertLess(np.mean(errors > 1e-3), 0.02)

  def test_all_valid_solutions_agree_are_upright_and_in_front(self):
    rays0, rays1, _, _ = _problems(500)
    poses, valid, _ = _solve(rays0, rays1)
    turned = np.einsum('svij,skj->svki', poses.rotation, rays0)
    shift = poses.translation[:, :, None]
    value = (np.cross(turned, rays1[:, None]) * shift).sum(-1)
    self.assertLess(np.abs(value).max(-1)[valid].max(), 1e-4)
    rotation = poses.rotation[valid]
    up = np.broadcast_to([0, 0, 1.0], (len(rotation), 3))
    np.testing.assert_array_equal(rotation[:, 2], up)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
    # d1 x1 - d0 R x0 = t by least squares.
    ahead = np.broadcast_to(rays1[:, None], turned.shape)
    columns = np.stack([ahead, -turned], axis=-1)[valid]
    depths = np.linalg.pinv(columns) @ shift[valid][..., None]
    self.assertGreater(depths.min(), 0)

  @parameterized.named_parameters(
    ('one_direction', lambda r: np.tile(r[:, :1], (1, 3, 1))),
    ('two_the_same', lambda r: r[:, [0, 0, 1]]),
    ('zeros', np.zeros_like),
    ('not_finite', lambda r: np.full_like(r, np.nan)),
  )
  def test_degenerate_input_is_invalid_and_finite(self, spoil):
    rays0, rays1, _, _ = _problems(50)
    poses, valid, gradients = _solve(spoil(rays0), spoil(rays1))
    self.assertFalse(valid.any())
    for leaf in (*poses, *gradients):
      self.assertTrue(np.isfinite(leaf).all())

  def test_gradients_follow_a_turn_of_camera_1_about_the_vertical(self):
    rays0, rays1, _, _ = _problems()
    poses, valid, gradients = _solve(rays0, rays1)
    for leaf in gradients:
      self.assertTrue(np.isfinite(leaf).all())
    up = np.array([0.0, 0.0, 1.0])
    given = (gradients[1] * np.cross(up, rays1)).sum((1, 2))
    change = np.cross(up, poses.rotation, axisb=2, axisc=2).sum((2, 3))
    change = change + np.cross(up, poses.translation).sum(2)
    expected = np.where(valid, change, 0.0).sum(1)
    away = np.abs(given - expected) / (1 + np.abs(expected))
    self.assertLess(np.quantile(away, 0.9), 1e-2)


if __name__ == '__main__':
  absltest.main()
