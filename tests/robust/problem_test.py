# SPDX-License-Identifier: Apache-2.0
"""The laws that every problem keeps, with numpy and with jax."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.evaluation import planted_problems
from i2ploc.geometry import alignment as alignment_lib
from i2ploc.geometry import rigid
from i2ploc.robust import absolute_pose
from i2ploc.robust import alignment
from i2ploc.robust import focal_pose
from i2ploc.robust import fundamental
from i2ploc.robust import homography
from i2ploc.robust import lines
from i2ploc.robust import planes
from i2ploc.robust import relative_pose
from i2ploc.robust import rig_pose
from i2ploc.robust import two_views
from i2ploc.robust import upright_pose
from i2ploc.robust import upright_relative_pose
from tests.robust import planted

SIZE = 40


def _pose(rng):
  return rigid.Rigid(planted.random_rotation(rng), rng.normal(size=3))


def _relative(rng):
  pose = _pose(rng)
  shift = pose.translation / np.linalg.norm(pose.translation)
  return pose._replace(translation=shift)


def _fundamental(rng):
  u, s, v = np.linalg.svd(rng.normal(size=(3, 3)))
  s[2] = 0
  return (u * s / np.linalg.norm(s)) @ v


def _homography(rng):
  return np.eye(3) / 3**0.5 + 0.1 * rng.normal(size=(3, 3))


def _similarity(rng):
  return alignment_lib.Similarity(*_pose(rng), np.exp(rng.normal()))


def _plane(rng):
  return planes.Plane(planted.random_rotation(rng)[0], rng.normal())


def _line(rng):
  angle = rng.uniform(0, 2 * np.pi)
  normal = np.array([np.cos(angle), np.sin(angle)])
  return lines.Line(normal, rng.normal())


def _cloud(kind, size):
  def data(rng):
    return kind(*rng.normal(size=(size, SIZE)))

  return data


def _sightings(rng):
  rays = rng.normal(size=(3, SIZE))
  rays /= np.linalg.norm(rays, axis=0)
  return absolute_pose.Sightings(*rng.normal(size=(3, SIZE)), *rays)


def _rays(sphere):
  def data(rng):
    rays = rng.normal(size=(2, 3, SIZE))
    rays[:, 2] = np.abs(rays[:, 2]) + 0.2
    length = np.linalg.norm(rays, axis=1) if sphere else rays[:, 2]
    rays /= length[:, None]
    return relative_pose.Rays(*rays.reshape(6, SIZE))

  return data


def _with_down(kind, size):
  """Data whose last leaves are a direction, the same for all."""

  def data(rng):
    down = rng.normal(size=3)
    down /= np.linalg.norm(down)
    constant = np.broadcast_to(down[:, None], (3, SIZE))
    return kind(*rng.normal(size=(size, SIZE)), *constant)

  return data


def _camera(rng):
  return focal_pose.Camera(*_pose(rng), np.exp(0.3 * rng.normal()))


def _upright(rng):
  pose = _relative(rng)
  return upright_relative_pose.Upright(*pose, planted.random_rotation(rng)[0])


def _upright_rays(rng):
  first = _rays(sphere=False)(rng)
  down = np.ones((3, SIZE))
  return upright_relative_pose.Rays(*first[:3], *down, *first[3:], *down)


def _rig_sightings(rng):
  axes = [planted.random_rotation(rng).reshape(9) for _ in range(SIZE)]
  points = rng.normal(size=(6, SIZE)) * ([[2.0]] * 3 + [[0.1]] * 3)
  return rig_pose.Sightings(*points, *np.stack(axes, axis=-1))


# Problem, a random model, random data: not of the model.
CASES = {
  'absolute_pose': (
    absolute_pose.PLANE,
    _pose,
    _cloud(absolute_pose.Correspondences, 5),
  ),
  'absolute_pose_sphere': (absolute_pose.SPHERE, _pose, _sightings),
  'relative_pose': (relative_pose.PLANE, _relative, _rays(sphere=False)),
  'relative_pose_sphere': (relative_pose.SPHERE, _relative, _rays(sphere=True)),
  'fundamental': (
    fundamental.PROBLEM,
    _fundamental,
    _cloud(two_views.Matches, 4),
  ),
  'homography': (
    homography.PROBLEM,
    _homography,
    _cloud(two_views.Matches, 4),
  ),
  'alignment': (alignment.PROBLEM, _pose, _cloud(alignment.Pairs, 6)),
  'similarity': (
    alignment.SIMILARITY,
    _similarity,
    _cloud(alignment.Pairs, 6),
  ),
  'upright_pose': (
    upright_pose.FREE[False],
    _pose,
    _with_down(upright_pose.Correspondences, 5),
  ),
  'upright_pose_kept': (
    upright_pose.KEPT[False],
    _pose,
    _with_down(upright_pose.Correspondences, 5),
  ),
  'focal_pose': (
    focal_pose.PROBLEM,
    _camera,
    _cloud(absolute_pose.Correspondences, 5),
  ),
  'rig_pose': (rig_pose.PROBLEM, _pose, _rig_sightings),
  'upright_relative_pose': (
    upright_relative_pose.FREE[False],
    _upright,
    _upright_rays,
  ),
  'upright_relative_pose_kept': (
    upright_relative_pose.KEPT[False],
    _upright,
    _upright_rays,
  ),
  'plane': (planes.PROBLEM, _plane, _cloud(planes.Points, 3)),
  'line': (lines.PROBLEM, _line, _cloud(lines.Points, 2)),
}


def _drawn(name, seed):
  """A problem, a model, data, and which data the model can have made."""
  problem, model, data = CASES[name]
  rng = np.random.default_rng([seed, len(name)])
  model, data = model(rng), data(rng)
  return problem, model, data, problem.residual(model, data) < 1e5


class ProblemTest(parameterized.TestCase):
  def test_every_planted_problem_is_here(self):
    known = {problem for problem, _, _ in CASES.values()}
    for kind in planted_problems.KINDS.values():
      self.assertIn(kind.problem, known)

  @parameterized.product(name=list(CASES), seed=list(range(5)))
  def test_the_jacobian_is_the_derivative_of_the_errors(self, name, seed):
    problem, model, data, seen = _drawn(name, seed)
    self.assertTrue(seen.any())
    with jax.enable_x64(True):
      model, data = jax.tree.map(jnp.asarray, (model, data))
      errors, jacobian = problem.linearize(model, data)
      slope = jax.jacfwd(
        lambda step: problem.linearize(problem.retract(model, step), data)[0]
      )(jnp.zeros(problem.dof))
    self.assertEqual(jacobian.shape, (problem.dof, *errors.shape))
    expected = np.moveaxis(slope, -1, 0)[..., seen]
    np.testing.assert_allclose(
      jacobian[..., seen], expected, atol=1e-9 * np.abs(expected).max()
    )

  @parameterized.product(name=list(CASES), seed=list(range(5)))
  def test_the_errors_are_as_long_as_the_residual(self, name, seed):
    problem, model, data, seen = _drawn(name, seed)
    errors, jacobian = problem.linearize(model, data)
    squared = (errors**2).sum(0)
    np.testing.assert_allclose(
      squared[seen], problem.residual(model, data)[seen], rtol=1e-9
    )
    self.assertTrue(np.isfinite(errors).all() and np.isfinite(jacobian).all())

  @parameterized.product(name=list(CASES), seed=list(range(5)))
  def test_numpy_and_jax_agree(self, name, seed):
    problem, model, data, _ = _drawn(name, seed)
    step = 0.1 * np.random.default_rng(seed).normal(size=problem.dof)

    def values(model, data, step):
      moved = problem.retract(model, step)
      linear = problem.linearize(model, data)
      return moved, problem.residual(model, data), linear

    ours = values(model, data, step)
    with jax.enable_x64(True):
      theirs = jax.jit(values)(model, data, step)
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
      # An array of numpy, or a number of its own: nothing went to a device.
      self.assertIsInstance(a, np.ndarray | np.float64)
      self.assertEqual(a.dtype, np.float64)
      np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)

  @parameterized.parameters(*CASES)
  def test_a_step_of_zero_keeps_the_model(self, name):
    problem, model, data, seen = _drawn(name, 0)
    still = problem.retract(model, np.zeros(problem.dof))
    np.testing.assert_allclose(
      problem.residual(still, data)[seen],
      problem.residual(model, data)[seen],
      rtol=1e-9,
    )


if __name__ == '__main__':
  absltest.main()
