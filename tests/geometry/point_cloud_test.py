# SPDX-License-Identifier: Apache-2.0
"""Sampling and neighbourhoods against slow oracles and the released rule."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.geometry import camera
from i2ploc.geometry import point_cloud as point_cloud_lib
from tests.testing import compiled

point_cloud = compiled.Module(point_cloud_lib)


def _cloud(seed, num_points=60, channels=3):
  rng = np.random.default_rng(seed)
  return rng.normal(0.0, 10.0, (num_points, channels)).astype(np.float32)


def _farthest_oracle(points, mask, num_samples):
  """Greedy farthest points, one loop at a time."""
  real = np.flatnonzero(mask)
  chosen = [real[0]]
  while len(chosen) < num_samples:
    nearest = [
      min(((points[i] - points[j]) ** 2).sum() for j in chosen) for i in real
    ]
    chosen.append(real[int(np.argmax(nearest))])
  return np.asarray(chosen)


class FarthestPointSamplingTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 2)
  def test_samples_are_the_greedy_cover_of_the_real_points(self, seed):
    points = _cloud(seed)
    mask = np.random.default_rng(seed + 9).uniform(size=60) < 0.6
    points[~mask] = np.nan
    samples = point_cloud.farthest_point_sampling(points, mask, 20)
    np.testing.assert_array_equal(samples, _farthest_oracle(points, mask, 20))

  def test_no_masked_point_is_chosen_while_real_ones_remain(self):
    mask = np.zeros(60, bool)
    mask[[7, 30, 31]] = True
    samples = point_cloud.farthest_point_sampling(_cloud(0), mask, 6)
    self.assertCountEqual(np.asarray(samples[:3]), [7, 30, 31])
    np.testing.assert_array_equal(samples[3:], 7)

  def test_an_empty_cloud_gives_index_zero(self):
    samples = point_cloud.farthest_point_sampling(
      np.full((8, 3), np.nan), np.zeros(8, bool), 4
    )
    np.testing.assert_array_equal(samples, 0)

  def test_batches_agree_with_single_clouds(self):
    points = np.stack([_cloud(0), _cloud(1)])
    mask = np.ones((2, 60), bool)

    def sample(points, mask):
      return point_cloud.farthest_point_sampling(points, mask, 10)

    batched = jax.jit(jax.vmap(sample))(points, mask)
    np.testing.assert_array_equal(batched[1], sample(points[1], mask[1]))

  def test_points_near_the_origin_are_skipped_on_demand_but_may_start(self):
    # Far from the rest, the origin would be the second sample.
    far = 10.0 + np.arange(12, dtype=np.float32).reshape(4, 3)
    points = np.concatenate([far, np.full((1, 3), 0.01, np.float32)])
    mask = np.ones(5, bool)
    sample = point_cloud.farthest_point_sampling
    self.assertEqual(sample(points, mask, 3)[1], 4)
    self.assertNotIn(4, sample(points, mask, 4, 1e-3).tolist())
    self.assertEqual(sample(points[::-1], mask, 4, 1e-3)[0], 0)


class NearestNeighborsTest(parameterized.TestCase):
  @parameterized.parameters(0, 1)
  def test_neighbours_are_sorted_and_equal_brute_force(self, seed):
    points, queries = _cloud(seed), _cloud(seed + 5, 9)
    mask = np.random.default_rng(seed).uniform(size=60) < 0.7
    points[~mask] = np.nan
    distance = ((queries[:, None] - points) ** 2).sum(-1)
    distance[:, ~mask] = np.inf
    expected = np.argsort(distance, axis=1)[:, :6]
    found = point_cloud.nearest_neighbors(queries, points, mask, 6)
    np.testing.assert_array_equal(found, expected)

  @parameterized.parameters(129, 192, 200)
  def test_many_queries_are_answered_block_by_block_alike(self, num_queries):
    points, queries = _cloud(0, 300), _cloud(1, num_queries)
    mask = np.random.default_rng(2).uniform(size=300) < 0.7
    points[~mask] = np.nan
    found = point_cloud.nearest_neighbors(queries, points, mask, 5)
    real = np.flatnonzero(mask)
    distance = ((queries[:, None] - points[real]) ** 2).sum(-1)
    expected = real[np.argsort(distance, axis=1)[:, :5]]
    np.testing.assert_array_equal(found, expected)

  def test_distances_of_all_queries_are_never_in_memory_at_once(self):
    def search(queries, points, mask):
      return point_cloud.nearest_neighbors(queries, points, mask, 8)

    shapes = [(1024, 3), (4096, 3), (4096,)]
    dtypes = [jnp.float32, jnp.float32, bool]
    args = map(jax.ShapeDtypeStruct, shapes, dtypes)
    stats = jax.jit(search).lower(*args).compile().memory_analysis()
    self.assertLess(stats.temp_size_in_bytes, 1024 * 4096 * 4 / 4)

  def test_the_nearest_repeats_when_real_points_run_out(self):
    mask = np.arange(60) < 2
    found = point_cloud.nearest_neighbors(_cloud(3), _cloud(3), mask, 4)
    np.testing.assert_array_equal(found[1], [1, 0, 1, 1])

  def test_an_empty_cloud_gives_indices_in_range(self):
    found = point_cloud.nearest_neighbors(
      np.zeros((3, 3)), np.full((8, 3), np.nan), np.zeros(8, bool), 4
    )
    self.assertTrue(np.all((found >= 0) & (found < 8)))

  def test_far_clouds_keep_millimetres_unlike_the_expanded_square(self):
    near = np.asarray([[0, 0, 0], [0.004, 0, 0], [0.001, 0, 0]], np.float32)
    points = near + np.float32(90.0)
    mask = np.ones(3, bool)
    found = point_cloud.nearest_neighbors(points[:1], points, mask, 3)
    np.testing.assert_array_equal(found[0], [0, 2, 1])


class SubsampleTest(parameterized.TestCase):
  @parameterized.parameters(0, 3, 16, 17, 40, 60)
  def test_draws_distinct_real_points_and_pads(self, num_real):
    points = np.arange(60, dtype=np.float32)[:, None]
    mask = np.zeros(60, bool)
    mask[np.random.default_rng(0).permutation(60)[:num_real]] = True
    drawn, drawn_mask = point_cloud.subsample(
      jax.random.key(1), points, mask, 16
    )
    kept = np.asarray(drawn[drawn_mask][:, 0]).astype(int)
    self.assertLen(set(kept), min(16, num_real))
    self.assertTrue(mask[kept].all())
    np.testing.assert_array_equal(drawn_mask, np.arange(16) < num_real)
    np.testing.assert_array_equal(drawn[~drawn_mask], 0.0)

  def test_every_real_point_is_equally_likely(self):
    points = np.arange(31, dtype=np.float32)[:, None]
    mask = np.arange(31) < 23
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.vmap(lambda k: point_cloud.subsample(k, points, mask, 16)[0])
    counts = np.bincount(np.asarray(draw(keys)).astype(int).ravel())
    self.assertLen(counts, 23)
    # Binomial with p = 16 / 23: standard deviation 29.
    np.testing.assert_allclose(counts, 4000 * 16 / 23, atol=5 * 29)

  def test_large_clouds_do_not_overflow(self):
    mask = np.ones(131_072, bool)
    points = np.arange(131_072, dtype=np.float32)[:, None]
    drawn, _ = point_cloud.subsample(jax.random.key(0), points, mask, 50_000)
    self.assertLen(np.unique(drawn), 50_000)


class InAzimuthSpanTest(parameterized.TestCase):
  @parameterized.parameters((-0.7, 0.7), (0.2, 0.9), (-2.5, -0.1), (0.0, 3.0))
  def test_equals_the_comparison_of_angles(self, left, right):
    points = _cloud(4, 2000)
    azimuth = np.asarray(camera.azimuth(jnp.asarray(points)))
    found = point_cloud.in_azimuth_span(points, left, right)
    np.testing.assert_array_equal(found, (azimuth >= left) & (azimuth <= right))

  def test_the_sensor_itself_is_nowhere(self):
    found = point_cloud.in_azimuth_span(np.zeros((1, 3)), -0.5, 0.5)
    self.assertFalse(found[0])


if __name__ == '__main__':
  absltest.main()
