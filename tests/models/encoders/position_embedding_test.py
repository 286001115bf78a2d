# SPDX-License-Identifier: Apache-2.0
"""Position embeddings on another grid: laws of torch's two filters.

That encoders with them agree with the originals is in the parity table.
"""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from i2ploc.models.encoders import position_embedding


def _planted(grid, width=3):
  size = (grid[0] * grid[1], width)
  return np.random.default_rng(0).normal(size=size)


def _cubic(x, a=-0.75):
  x = abs(x)
  if x <= 1:
    return (a + 2) * x**3 - (a + 3) * x**2 + 1
  return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


class PositionEmbeddingTest(parameterized.TestCase):
  @parameterized.parameters((9, 13), (4, 5))
  def test_the_two_filters_are_not_the_same(self, *size):
    position = _planted((6, 8))
    one, other = (
      position_embedding.resample(position, (6, 8), size, antialias)
      for antialias in (False, True)
    )
    self.assertGreater(np.abs(one - other).max(), 0.05)

  @parameterized.product(size=((5, 9), (3, 4), (13, 3)), offset=(0.0, 0.1))
  def test_plain_is_four_taps_with_the_border_repeated(self, size, offset):
    position = _planted((6, 8)).reshape(6, 8, 3)
    padded = np.pad(position, ((9, 9), (9, 9), (0, 0)), mode='edge')
    expected = np.zeros((*size, 3))
    for i, j in np.ndindex(*size):
      row = (i + 0.5) * 6 / (size[0] + offset) - 0.5
      column = (j + 0.5) * 8 / (size[1] + offset) - 0.5
      for r in range(int(np.floor(row)) - 1, int(np.floor(row)) + 3):
        for c in range(int(np.floor(column)) - 1, int(np.floor(column)) + 3):
          weight = _cubic(r - row) * _cubic(c - column)
          expected[i, j] += weight * padded[r + 9, c + 9]
    found = position_embedding.resample(
      position.reshape(-1, 3), (6, 8), size, False, offset
    )
    np.testing.assert_allclose(found.reshape(expected.shape), expected, 0, 5e-6)

  def test_an_offset_leaves_the_grid_itself_as_it_is(self):
    position = _planted((6, 8)).reshape(-1, 3)
    found = position_embedding.resample(position, (6, 8), (6, 8), False, 0.1)
    np.testing.assert_allclose(found, position, atol=1e-6)

  @parameterized.parameters((5, 9), (3, 4), (6, 8), (13, 3))
  def test_antialiased_is_the_bicubic_of_jax(self, *size):
    position = _planted((6, 8))
    grid = position.reshape(6, 8, 3).astype(np.float32)
    expected = jax.image.resize(grid, (*size, 3), 'bicubic', antialias=True)
    found = position_embedding.resample(position, (6, 8), size, True)
    np.testing.assert_allclose(found.reshape(*size, 3), expected, atol=2e-6)

  @parameterized.product(size=((4, 11), (1, 1), (12, 2)), aa=(False, True))
  def test_constants_stay_and_axes_mirror(self, size, aa):
    flat = position_embedding.resample(np.ones((48, 1)), (6, 8), size, aa)
    np.testing.assert_allclose(flat, 1.0, atol=1e-12)
    position = _planted((6, 8)).reshape(6, 8, 3)
    mirrored = position[:, ::-1].reshape(-1, 3)
    position = position.reshape(-1, 3)
    found = position_embedding.resample(position, (6, 8), size, aa)
    again = position_embedding.resample(mirrored, (6, 8), size, aa)
    again = again.reshape(*size, 3)[:, ::-1].reshape(-1, 3)
    # Places are rounded to float32, which is not symmetric.
    np.testing.assert_allclose(found, again, atol=2e-6)

  @parameterized.parameters(False, True)
  def test_the_same_grid_changes_nothing(self, antialias):
    position = _planted((3, 7))
    found = position_embedding.resample(position, (3, 7), (3, 7), antialias)
    np.testing.assert_array_equal(found, position)

  def test_a_cls_entry_left_in_is_noticed(self):
    with self.assertRaisesRegex(ValueError, '197 position .* 14 x 14'):
      position_embedding.resample(np.ones((197, 2)), (14, 14), (7, 7), True)


if __name__ == '__main__':
  absltest.main()
