# SPDX-License-Identifier: Apache-2.0
"""The five-point solver finds the pose that made its input."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import five_points
from i2ploc.geometry import rigid
from tests.geometry import two_views

_SIZE = 3000


def _total(rays0, rays1):
  """A number that depends on all valid poses, and these."""
  pose, valid = five_points.from_five(rays0, rays1)
  found = pose.rotation.sum((1, 2)) + pose.translation.sum(1)
  return jnp.where(valid, found, 0.0).sum(), (pose, valid)


# One shape and one compilation for all tests.
_run = jax.jit(
  jax.vmap(jax.value_and_grad(_total, argnums=(0, 1), has_aux=True))
)


def _solve(rays0, rays1):
  """Poses and valid, of as many problems as asked for, and gradients."""
  size = len(rays0)
  rays0, rays1 = (np.resize(r, (_SIZE, 5, 3)) for r in (rays0, rays1))
  (_, (pose, valid)), gradients = _run(np.float32(rays0), np.float32(rays1))
  found = (*pose, valid, *gradients)
  rotation, translation, *others = (np.asarray(leaf)[:size] for leaf in found)
  return rigid.Rigid(rotation, translation), *others


def _problems(size=_SIZE, motion='any', seed=0):
  rng = np.random.default_rng(seed)
  rotation, translation = two_views.poses(rng, size, motion)
  rays0, rays1 = two_views.rays(rng, rotation, translation, 5)
  return np.float32(rays0), np.float32(rays1), rotation, translation


def _errors(found, valid, rotation, translation):
  """[S], Frobenius norm plus distance of the best valid solution."""
  turn = np.linalg.norm(found.rotation - rotation[:, None], axis=(2, 3))
  shift = np.linalg.norm(found.translation - translation[:, None], axis=2)
  return np.where(valid, turn + shift, np.inf).min(1)


class FivePointsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('any', 0.08), ('forward', 0.12), ('sideways', 0.08)
  )
  def test_the_true_pose_is_among_the_solutions(self, motion, missed):
    rays0, rays1, rotation, translation = _problems(motion=motion)
    found, valid, *_ = _solve(rays0, rays1)
    errors = _errors(found, valid, rotation, translation)
    self.assertLess(np.median(errors), 3e-6)
    self.assertLess(np.mean(errors > 1e-3), missed)
    self.assertBetween(valid.sum(1).mean(), 2.0, 4.0)

  def test_all_valid_solutions_agree_and_are_in_front(self):
    rays0, rays1, _, _ = _problems(500)
    found, valid, *_ = _solve(rays0, rays1)
    turned = np.einsum('svij,skj->svki', found.rotation, rays0)
    shift = found.translation[:, :, None]
    value = (np.cross(turned, rays1[:, None]) * shift).sum(-1)
    self.assertLess(np.abs(value).max(-1)[valid].max(), 1e-4)
    square = found.rotation @ found.rotation.swapaxes(-1, -2)
    away = np.abs(square - np.eye(3)).max((-1, -2))
    self.assertLess(away[valid].max(), 1e-5)
    self.assertTrue((np.linalg.det(found.rotation[valid]) > 0).all())
    # d1 x1 - d0 R x0 = t by least squares.
    ahead = np.broadcast_to(rays1[:, None], turned.shape)
    columns = np.stack([ahead, -turned], axis=-1)[valid]
    depths = np.linalg.pinv(columns) @ shift[valid][..., None]
    self.assertGreater(depths.min(), 0)

  def test_points_on_a_plane_are_solved_too(self):
    rng = np.random.default_rng(0)
    rotation, translation = two_views.poses(rng, 1000)
    rays0, _ = two_views.rays(rng, rotation, translation, 5)
    depth = 5 / (rays0 @ np.array([0.2, 0.1, 1.0]))
    points = depth[..., None] * rays0
    rays1 = np.einsum('sij,snj->sni', rotation, points) + translation[:, None]
    rays1 /= np.linalg.norm(rays1, axis=-1, keepdims=True)
    found, valid, *_ = _solve(rays0, rays1)
    errors = _errors(found, valid, rotation, translation)
    self.assertLess(np.mean(errors > 1e-2), 0.3)

  @parameterized.named_parameters(
    ('one_direction', lambda r: np.tile(r[:, :1], (1, 5, 1))),
    ('two_the_same', lambda r: r[:, [0, 0, 1, 2, 3]]),
    ('zeros', np.zeros_like),
    ('not_finite', lambda r: np.full_like(r, np.nan)),
  )
  def test_degenerate_input_is_invalid_and_finite(self, spoil):
    rays0, rays1, _, _ = _problems(20)
    found, valid, *gradients = _solve(spoil(rays0), spoil(rays1))
    self.assertFalse(valid.any())
    for leaf in (*found, *gradients):
      self.assertTrue(np.isfinite(leaf).all())

  def test_gradients_follow_a_turn_of_camera_1(self):
    rays0, rays1, _, _ = _problems()
    found, valid, *gradients = _solve(rays0, rays1)
    for leaf in gradients:
      self.assertTrue(np.isfinite(leaf).all())
    # Where camera 1 turns by w, directions change by w x x1, R by [w] R, and t
    # by w x t.
    turn = np.array([0.3, -0.5, 0.2])
    given = (gradients[1] * np.cross(turn, rays1)).sum((1, 2))
    change = np.cross(turn, found.rotation, axisb=2, axisc=2).sum((2, 3))
    change = change + np.cross(turn, found.translation).sum(2)
    expected = np.where(valid, change, 0.0).sum(1)
    away = np.abs(given - expected) / (1 + np.abs(expected))
    self.assertLess(np.quantile(away, 0.9), 1e-2)


class CubicsTest(absltest.TestCase):
  def test_coefficients_are_those_of_the_constraints(self):
    rng = np.random.default_rng(0)
    basis = np.float32(np.linalg.qr(rng.normal(size=(9, 4)))[0].T)
    cubics = np.asarray(five_points._cubics(jnp.asarray(basis)))
    x, y, z, w = mixture = rng.normal(size=4)
    unknown = {'x': x, 'y': y, 'z': z, 'w': w}
    products = [
      unknown[i] * unknown[j] * unknown[k]
      for i, j, k in five_points._ELIMINATED + five_points._KEPT
    ]
    matrix = (mixture @ basis).reshape(3, 3)
    square = matrix @ matrix.T
    balance = 2 * square @ matrix - np.trace(square) * matrix
    expected = np.append(np.linalg.det(matrix), balance)
    np.testing.assert_allclose(cubics @ products, expected, atol=2e-4)

  def test_elimination_is_that_of_numpy(self):
    matrix = np.random.default_rng(0).normal(size=(10, 20)).astype(np.float32)
    found = five_points._reduced(jnp.asarray(matrix))
    expected = np.linalg.solve(matrix[:, :10], matrix[:, 10:])[4:]
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


if __name__ == '__main__':
  absltest.main()
