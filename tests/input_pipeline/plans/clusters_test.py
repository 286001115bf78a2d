# SPDX-License-Identifier: Apache-2.0
"""Batches come from one cluster in descriptor space."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.errors import InputError
from input_pipeline.plans import clusters
from input_pipeline.plans import places
from tests.input_pipeline.plans import tables

# Far more places than clusters, of unequal sizes: a transposed assignment has
# another shape, or mixes what is planted.
_SIZES = (40, 25, 20, 15)


def _frames():
  return tables.join(
    *(tables.street('t', f'y{i}', sum(_SIZES)) for i in range(3))
  )


def _planted(seed=0, noise=0.05):
  """Cluster of every number, shuffled, and descriptors of all rows."""
  rng = np.random.default_rng(seed)
  cluster = rng.permutation(np.repeat(np.arange(len(_SIZES)), _SIZES))
  center = np.eye(len(_SIZES), 12)
  # Clusters 0 and 1 are neighbours.
  center[1] = [0.8, 0.6, *[0] * 10]
  x = center[np.tile(cluster, 3)] + noise * rng.normal(size=(300, 12))
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  return cluster, x.astype(np.float32)


def _plan(descriptors, number=0, **options):
  wanted = dict(batch_size=20, steps=60, seed=0, num_views=2, num_clusters=4)
  table = places.frame_places(_frames())
  plan = clusters.make_clusters(table, **(wanted | options))
  return plan(number, lambda rows: descriptors[rows])


class KmeansTest(parameterized.TestCase):
  @parameterized.parameters(*range(6))
  def test_planted_clusters_are_found(self, seed):
    cluster, x = _planted(seed)
    x = x[:100]
    centers, label = clusters.kmeans(x, 4, np.random.default_rng(seed))
    self.assertEqual(centers.shape, (4, 12))
    pairs = set(zip(cluster.tolist(), label.tolist(), strict=True))
    self.assertLen(pairs, 4)
    for k in range(4):
      np.testing.assert_allclose(centers[k], x[label == k].mean(0), atol=1e-6)

  @parameterized.parameters(0, 1, 2)
  def test_labels_are_the_nearest_centres_and_lower_the_cost(self, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(80, 3)) + 5.0
    centers, label = clusters.kmeans(x, 7, rng)
    apart = np.array([[((a - c) ** 2).sum() for c in centers] for a in x])
    np.testing.assert_array_equal(label, apart.argmin(1))
    random = x[rng.choice(80, 7, replace=False)]
    cost = ((x[:, None] - random) ** 2).sum(2).min(1).sum()
    self.assertLess(apart.min(1).sum(), cost)

  def test_equal_rows_leave_clusters_empty(self):
    x = np.repeat(np.eye(2), 5, axis=0)
    centers, label = clusters.kmeans(x, 4, np.random.default_rng(0))
    self.assertTrue(np.isfinite(centers).all())
    self.assertLen(set(label.tolist()), 2)
    self.assertLen(set(label[:5].tolist()), 1)


class MakeClustersTest(parameterized.TestCase):
  def test_a_batch_is_of_one_planted_cluster(self):
    cluster, descriptors = _planted()
    plan = _plan(descriptors, steps=400)
    self.assertLen(set((plan['row'] % 100).ravel().tolist()), 100)
    counts = np.zeros(4)
    for rows in plan['row']:
      of = set(cluster[rows % 100].tolist())
      self.assertLen(of, 1)
      counts[of.pop()] += 1
      self.assertLen(set((rows % 100).tolist()), 10)
      self.assertLen(set(rows.tolist()), 20)
    np.testing.assert_allclose(counts / 400, np.array(_SIZES) / 100, atol=0.08)

  def test_a_small_cluster_is_filled_from_the_nearest(self):
    cluster, descriptors = _planted()
    plan = _plan(descriptors, batch_size=60)
    seen = set()
    for rows in plan['row']:
      count = np.bincount(cluster[rows % 100], minlength=4) // 2
      self.assertEqual(count.sum(), 30)
      own = int(np.argmax(count == np.minimum(_SIZES, 30)))
      seen.add(own)
      if own == 0:
        self.assertEqual(count[0], 30)
      if own == 1:
        self.assertSequenceEqual(count.tolist(), [5, 25, 0, 0])
    self.assertContainsSubset([0, 1], seen)

  def test_views_share_their_number_and_variants_differ(self):
    _, descriptors = _planted()
    plan = _plan(descriptors, batch_size=30, num_views=3)
    rows = plan['row'].reshape(-1, 3)
    self.assertTrue((rows % 100 == rows[:, :1] % 100).all())
    variant = plan['variant'].reshape(-1, 3)
    np.testing.assert_array_equal(np.sort(variant, 1), [[0, 1, 2]] * len(rows))
    np.testing.assert_array_equal(plan['place'][0], np.repeat(np.arange(10), 3))

  def test_places_are_clustered_anew_in_every_round(self):
    cluster, descriptors = _planted()
    _, other = _planted(5)
    one, two = _plan(descriptors, 1), _plan(other, 1)
    self.assertFalse(np.array_equal(one['row'], two['row']))
    mixed = [len(set(cluster[rows % 100].tolist())) for rows in two['row']]
    self.assertGreater(np.mean(mixed), 2)

  def test_every_place_is_described_once(self):
    _, descriptors = _planted()
    asked = []
    table = places.frame_places(_frames())
    plan = clusters.make_clusters(
      table, batch_size=20, steps=2, seed=0, num_views=2, num_clusters=4
    )
    plan(0, lambda rows: asked.append(rows) or descriptors[rows])
    self.assertLen(asked, 1)
    self.assertSequenceEqual(sorted((asked[0] % 100).tolist()), range(100))

  @parameterized.parameters(
    dict(batch_size=21),
    dict(num_clusters=101),
    dict(num_clusters=0),
    dict(batch_size=202),
  )
  def test_arguments_out_of_range_are_refused(self, **options):
    with self.assertRaises(InputError):
      _plan(_planted()[1], **options)

  def test_independent_of_the_order_of_files(self):
    def make(frames, order):
      return clusters.make_clusters(
        places.frame_places(frames),
        batch_size=12,
        steps=3,
        seed=7,
        num_views=2,
        num_clusters=5,
      )

    tables.assert_independent_of_order(self, _frames(), make, _planted()[1])


if __name__ == '__main__':
  absltest.main()
