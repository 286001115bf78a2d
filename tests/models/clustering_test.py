# SPDX-License-Identifier: Apache-2.0
"""K-means: what a loop over tokens would give."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.models import clustering


def _blobs(num_clusters=5, count=600, width=8, noise=0.05, seed=0):
  rng = np.random.default_rng(seed)
  centers = rng.normal(size=(num_clusters, width))
  member = np.arange(count) % num_clusters
  x = centers[member] + noise * rng.normal(size=(count, width))
  return x.astype(np.float32), centers, member


def _nearest(x, centers):
  apart = np.linalg.norm(x[:, None] - centers[None], axis=-1)
  return apart.argmin(axis=1), apart.min(axis=1)


class KmeansTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 5)
  def test_centres_are_the_means_of_what_is_nearest(self, num_clusters):
    # More tokens than a block, and not a multiple of it.
    x, _, _ = _blobs(count=clustering.BLOCK + 700, noise=1.0)
    found = clustering.kmeans(x, num_clusters, num_iterations=300)
    nearest, _ = _nearest(x, found)
    for k in range(num_clusters):
      np.testing.assert_allclose(found[k], x[nearest == k].mean(0), atol=1e-5)

  def test_clusters_are_found(self):
    x, centers, _ = _blobs()
    found = clustering.kmeans(x, 5)
    nearest, apart = _nearest(centers, found)
    self.assertCountEqual(nearest, range(5))
    self.assertLess(apart.max(), 0.05)

  def test_the_seed_decides(self):
    x, _, _ = _blobs(noise=1.0)
    one, again, other = (clustering.kmeans(x, 7, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    self.assertGreater(np.abs(one - other).max(), 1e-3)

  def test_a_cluster_that_lost_its_tokens_starts_again(self):
    x, centers, _ = _blobs(num_clusters=3)
    far = np.full_like(centers[:1], 90.0)  # nobody is nearest to it
    start = np.concatenate([centers[:2], far]).astype(np.float32)
    padding = clustering.BLOCK - len(x)
    rows = np.pad(x, ((0, padding), (0, 0)))[None]
    real = (np.arange(clustering.BLOCK) < len(x))[None]
    found = np.asarray(clustering._lloyd(rows, real, start, 30))
    self.assertLess(_nearest(centers, found)[1].max(), 0.05)

  def test_fewer_different_tokens_than_clusters_are_finite(self):
    x = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    found = clustering.kmeans(x, 6)
    self.assertTrue(np.isfinite(found).all())
    np.testing.assert_allclose(_nearest(x, found)[1], 0.0, atol=1e-6)

  def test_fewer_tokens_than_clusters_are_refused(self):
    with self.assertRaisesRegex(ValueError, '4 clusters of 3 tokens'):
      clustering.kmeans(np.eye(3), 4)


if __name__ == '__main__':
  absltest.main()
