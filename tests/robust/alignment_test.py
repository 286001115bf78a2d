# SPDX-License-Identifier: Apache-2.0
"""Tests of the motion between two frames."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from scipy.spatial import transform

from i2ploc.geometry import rigid
from i2ploc.robust import alignment
from i2ploc.robust import consensus
from i2ploc.robust import search

SEARCH = search.Search(settings=consensus.Settings(batch=64, max_draws=512))
FAR = np.array([4e5, -5e6, 100.0])


def _problem(seed=0, *, outliers=0.6, scale=1.0, noise=0.01, count=100):
  rng = np.random.default_rng(seed)
  rotation = transform.Rotation.from_quat(rng.normal(size=4)).as_matrix()
  shift = rng.uniform(-5, 5, 3)
  b = rng.uniform(-5, 5, (count, 3))
  a = scale * b @ rotation.T + shift + noise * rng.normal(size=b.shape)
  inliers = rng.permutation(count) >= round(outliers * count)
  a[~inliers] = shift + scale * rng.uniform(-5, 5, (sum(~inliers), 3))
  return a, b, rigid.Rigid(rotation, shift), inliers


def _align(a, b, **options):
  return alignment.alignment(a, b, 0.04, search=SEARCH, **options)


def _spread(covariance, point):
  """Covariance [3, 3] of a moved point of frame a."""
  x, y, z = point
  steps = np.zeros((3, len(covariance)))
  steps[:, :3] = [[0, z, -y], [-z, 0, x], [y, -x, 0]]
  steps[:, 3:6] = np.eye(3)
  steps[:, 6:] = np.asarray(point)[:, None]
  return steps @ covariance @ steps.T


class AlignmentTest(parameterized.TestCase):
  @parameterized.parameters((False, 1.0), (True, 2.5))
  def test_the_planted_motion_is_found_far_from_any_origin(self, free, scale):
    a, b, motion, inliers = _problem(scale=scale)
    found = _align(a + FAR, b - FAR, with_scale=free)
    self.assertTrue(found.valid, found.reason)
    self.assertAlmostEqual(found.scale, scale, delta=2e-3 * free)
    np.testing.assert_allclose(
      found.a_from_b.rotation, motion.rotation, atol=2e-3
    )
    moved = found.scale * (b - FAR) @ found.a_from_b.rotation.T
    moved += found.a_from_b.translation - FAR
    truth = scale * b @ motion.rotation.T + motion.translation
    self.assertLess(np.abs(moved - truth).max(), 0.015 * scale)
    self.assertGreater(np.mean(found.inliers == inliers), 0.95)
    self.assertEqual(found.num_inliers, found.inliers.sum())

  def test_without_scale_another_scale_has_few_inliers(self):
    a, b, _, inliers = _problem(scale=2.5)
    found = _align(a, b)
    self.assertLess(found.num_inliers, 0.5 * inliers.sum())

  @parameterized.parameters(False, True)
  def test_covariance_does_not_depend_on_the_origin(self, free):
    a, b, _, _ = _problem()
    near, far = (_align(p, b, with_scale=free) for p in (a, a + [30, -50, 9]))
    spread = _spread(near.covariance, a[0])
    np.testing.assert_allclose(
      _spread(far.covariance, a[0] + [30, -50, 9]), spread, rtol=0.02, atol=1e-8
    )
    # A centimetre, 40 points, seven unknowns: some millimetres.
    self.assertBetween(np.sqrt(spread.trace()), 1e-3, 8e-3)

  def test_degenerate_pairs_are_not_valid(self):
    a, b, _, _ = _problem(outliers=0.0)
    line = np.linspace(0, 1, 100)[:, None] * [1.0, 2.0, 3.0]
    for case in ((line, b), (a, 0 * b), (a[:2], b[:2]), (a[:0], b[:0])):
      found = _align(*case)
      self.assertFalse(found.valid)
      self.assertIsNone(found.a_from_b)
      self.assertNotEmpty(found.reason)

  def test_wrong_input_is_named(self):
    a, b, _, _ = _problem()
    with self.assertRaisesRegex(ValueError, r'\[100, 3\] beside \[99, 3\]'):
      _align(a, b[1:])
    b[7] = np.nan
    with self.assertRaisesRegex(ValueError, '1 .*not finite, first row 7'):
      _align(a, b)


class RetractTest(absltest.TestCase):
  def test_a_step_is_a_motion_of_frame_a(self):
    _, b, motion, _ = _problem()
    step = np.array([0.1, -0.2, 0.3, 1.0, 2.0, 3.0, 0.5], np.float32)
    turn = transform.Rotation.from_rotvec(step[:3]).as_matrix()
    motion = jax.tree.map(np.float32, motion)
    seen = rigid.apply(motion, b.astype(np.float32))
    rigid_step = alignment.retract(motion, step[:6])
    expected = seen @ turn.T + step[3:6]
    np.testing.assert_allclose(
      rigid.apply(rigid_step, b.astype(np.float32)), expected, atol=1e-4
    )
    grown = alignment.retract_similarity(
      alignment.alignment_lib.Similarity(*motion, np.float32(1)), step
    )
    expected = np.exp(0.5) * seen @ turn.T + step[3:6]
    moved = grown.scale * b @ np.asarray(grown.rotation).T + grown.translation
    np.testing.assert_allclose(moved, expected, atol=1e-4)


if __name__ == '__main__':
  absltest.main()
