# SPDX-License-Identifier: Apache-2.0
"""P4Pf finds the camera that made its input."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import transform

from i2ploc.geometry import p4pf

_SIZE = 2000


def _total(image, points):
  found = p4pf.p4pf(image, points)
  return jnp.where(found.valid, jnp.log(found.focal_length), 0.0).sum(), found


# One shape and one compilation for all tests.
_run = jax.jit(
  jax.vmap(jax.value_and_grad(_total, argnums=(0, 1), has_aux=True))
)


def _solve(image, points):
  """Cameras and gradients, of as many problems as asked for."""
  size = len(points)
  image = np.float32(np.resize(image, (_SIZE, 4, 2)))
  points = np.float32(np.resize(points, (_SIZE, 4, 3)))
  (_, found), gradients = _run(image, points)
  found, gradients = jax.tree.map(
    lambda x: np.asarray(x)[:size], (found, gradients)
  )
  return found, gradients


def _problems(size=_SIZE, flat=False, seed=0):
  """Image, points and cameras; fields of view of 12 to 90 degrees."""
  rng = np.random.default_rng(seed)
  focal = np.exp(rng.uniform(np.log(1.0), np.log(9.0), size))
  image = rng.uniform(-1, 1, (size, 4, 2)) * [1, 0.75]
  rays = np.insert(image / focal[:, None, None], 2, 1.0, axis=-1)
  depth = rng.uniform(2, 10, (size, 4, 1))
  if flat:
    # Planes that are tilted by 30 to 60 degrees.
    tilt = np.deg2rad(rng.uniform(30, 60, size))
    way = rng.uniform(0, 2 * np.pi, size)
    sine = np.sin(tilt)
    normal = [sine * np.cos(way), sine * np.sin(way), np.cos(tilt)]
    slope = np.einsum('nki,in->nk', rays, np.stack(normal))
    depth = (5 / np.maximum(slope, 0.05))[..., None]
  turns = transform.Rotation.random(size, random_state=seed)
  rotation, translation = turns.as_matrix(), rng.normal(size=(size, 3))
  seen = rays * depth - translation[:, None]
  points = np.einsum('nji,nkj->nki', rotation, seen)
  return image, points, rotation, translation, focal


def _errors(found, rotation, translation, focal):
  turn = np.linalg.norm(found.rotation - rotation[:, None], axis=(2, 3))
  shift = np.linalg.norm(found.translation - translation[:, None], axis=2)
  error = turn + shift / np.linalg.norm(translation, axis=1)[:, None]
  error = error + np.abs(found.focal_length / focal[:, None] - 1)
  return np.where(found.valid, error, np.inf).min(1)


class P4pfTest(parameterized.TestCase):
  @parameterized.parameters((False, 0.01), (True, 0.02))
  def test_the_true_camera_is_among_the_solutions(self, flat, missed):
    image, points, *true = _problems(flat=flat)
    found, _ = _solve(image, points)
    errors = _errors(found, *true)
    self.assertLess(np.median(errors), 2e-5)
    # Of points in space it misses 0.3 %.
    self.assertLess(np.mean(errors > 1e-2), missed)
    self.assertBetween(found.valid.sum(1).mean(), 0.99, 1.3)

  def test_noise_moves_the_camera_a_little(self):
    image, points, *true = _problems()
    rng = np.random.default_rng(1)
    found, _ = _solve(image + 1e-3 * rng.normal(size=image.shape), points)
    errors = np.abs(found.focal_length / true[2][:, None] - 1)
    errors = np.where(found.valid, errors, np.inf).min(1)
    self.assertLess(np.median(errors), 0.03)
    self.assertGreater(np.mean(found.valid.any(1)), 0.97)

  def test_random_points_mostly_have_no_camera(self):
    image, points, *_ = _problems()
    other = np.random.default_rng(1).permutation(len(points))
    found, _ = _solve(image, points[other])
    self.assertLess(np.mean(found.valid.any(1)), 0.2)

  def test_all_valid_solutions_reproject(self):
    image, points, *_ = _problems()
    found, _ = _solve(image, points)
    seen = np.einsum('nvij,nkj->nvki', found.rotation, points)
    seen = seen + found.translation[:, :, None]
    self.assertTrue((seen[..., 2][found.valid] > 0).all())
    again = found.focal_length[..., None, None] * seen[..., :2] / seen[..., 2:]
    away = np.abs(again - image[:, None]).max((-1, -2))[found.valid]
    self.assertLess(away.max(), 0.031)
    self.assertLess(np.quantile(away, 0.95), 1e-4)
    rotation = found.rotation[found.valid]
    square = rotation @ rotation.swapaxes(-1, -2)
    self.assertLess(np.abs(square - np.eye(3)).max(), 1e-4)
    self.assertTrue((np.linalg.det(rotation) > 0).all())

  def test_the_unit_of_the_map_does_not_matter(self):
    image, points, rotation, translation, focal = _problems(500)
    for scale in (1e-4, 1e4):
      found, _ = _solve(image, scale * points)
      errors = _errors(found, rotation, scale * translation, focal)
      self.assertLess(np.mean(errors > 1e-2), 0.02)

  @parameterized.named_parameters(
    ('one_point', lambda i, p: (i, 0 * p)),
    ('a_line', lambda i, p: (i, p[:, :1] * [[1], [2], [3], [4]])),
    ('one_pixel', lambda i, p: (i[:, [0, 0, 0, 0]], p)),
    ('not_finite', lambda i, p: (i, np.full_like(p, np.nan))),
    ('infinite', lambda i, p: (np.full_like(i, np.inf), p)),
    ('huge', lambda i, p: (i, 1e30 * p)),
  )
  def test_degenerate_input_is_invalid_and_finite(self, spoil):
    image, points, *_ = _problems(50)
    found, gradients = _solve(*spoil(image, points))
    self.assertFalse(found.valid.any())
    for leaf in (*found, *gradients):
      self.assertTrue(np.isfinite(leaf).all())

  def test_gradients_follow_the_size_of_the_image(self):
    image, points, *_ = _problems()
    found, gradients = _solve(image, points)
    for leaf in gradients:
      self.assertTrue(np.isfinite(leaf).all())
    # In an image that is larger by a factor, so is the focal length.
    given = (gradients[0] * image).sum((1, 2))
    away = np.abs(given - found.valid.sum(1))
    self.assertLess(np.quantile(away, 0.9), 1e-2)


if __name__ == '__main__':
  absltest.main()
