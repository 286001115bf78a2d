# SPDX-License-Identifier: Apache-2.0
"""Differences between models, of models whose difference is known."""

from absl.testing import absltest
import numpy as np

from i2ploc.evaluation import model_errors

POINTS = np.stack(np.meshgrid([-0.5, 0, 0.5], [-0.4, 0, 0.4]), -1)
POINTS = POINTS.reshape(-1, 2)


def _sideways(shift):
  """F of a camera that moves along the rows, with image 1 moved down."""
  return np.array([[0, 0, 0], [0, 0, -1], [0, 1, shift]])


class EpipolarErrorsTest(absltest.TestCase):
  def test_lines_that_are_moved_are_as_far_away(self):
    found = np.stack([_sideways(0), _sideways(0.002), _sideways(-0.004)])
    errors = model_errors.epipolar_errors(
      found, np.stack([_sideways(0)] * 3), points=POINTS, focal=500.0
    )
    # Sampson's distance moves both points.
    expected = np.array([0, 1, 2]) / np.sqrt(2)
    np.testing.assert_allclose(errors['epipolar'], expected, atol=1e-9)

  def test_the_scale_of_a_matrix_does_not_matter(self):
    rng = np.random.default_rng(0)
    found, true = rng.normal(size=(2, 4, 3, 3))
    (one,), (other,) = (
      model_errors.epipolar_errors(
        scale * found, true / scale, points=POINTS, focal=500.0
      ).values()
      for scale in (1.0, -7.0)
    )
    np.testing.assert_allclose(one, other)
    self.assertTrue((one > 1).all())


if __name__ == '__main__':
  absltest.main()
