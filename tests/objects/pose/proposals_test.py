# SPDX-License-Identifier: Apache-2.0
"""Tests of what triples are proposed: nothing right is lost, much wrong is."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from benchmarks import object_worlds
from i2ploc.objects import association
from i2ploc.objects.pose import proposals
from i2ploc.objects.pose import scene


def _image(seed=0, num_landmarks=60, noise=0.0):
  """Sightings, the map, candidates by category, and true rows [M]."""
  rng = np.random.default_rng(seed)
  object_map = object_worlds.random_map(num_landmarks, rng)
  side = np.sqrt(object_worlds.AREA * num_landmarks)
  rows = []
  while len(rows) < 6:
    pose = object_worlds.random_pose(side, rng)
    found, rows = object_worlds.detect(object_map, pose, rng, noise)
  plane = scene.plane_boxes(found.box, object_worlds.INTRINSICS)
  seen = proposals.sightings(plane, found.cut)
  pairs = association.same_category(found.category, object_map.category)
  return seen, object_map, pairs, rows, pose


class GraphTest(parameterized.TestCase):
  @parameterized.parameters(0, 1, 2, 3)
  def test_true_pairs_are_within_bounds_and_compatible(self, seed):
    seen, object_map, pairs, rows, pose = _image(seed, noise=0.02)
    low, high, middle = proposals.distance_bounds(
      seen, object_map.ellipsoid, pairs
    )
    right = rows[pairs.observation] == pairs.landmark
    self.assertEqual(right.sum(), len(rows))
    center = object_map.center[pairs.landmark]
    distance = np.linalg.norm(
      center @ pose.rotation.T + pose.translation, axis=-1
    )
    self.assertTrue((low <= middle).all() and (middle <= high).all())
    self.assertTrue((low[right] <= distance[right]).all())
    self.assertTrue((distance[right] <= high[right]).all())
    graph = proposals.compatible(seen, object_map.ellipsoid, pairs)
    own = graph.allowed[np.ix_(right, right)]
    self.assertTrue(own[~np.eye(len(own), dtype=bool)].all())
    self.assertLess(graph.mismatch[np.ix_(right, right)].mean(),
                    graph.mismatch.mean())  # fmt: skip
    np.testing.assert_array_equal(graph.allowed, graph.allowed.T)
    blind = proposals.compatible(seen, object_map.ellipsoid, pairs, prune=False)
    self.assertTrue((blind.allowed >= graph.allowed).all())
    self.assertLess(graph.allowed.sum(), 0.8 * blind.allowed.sum())

  def test_nothing_goes_with_its_own_detection_or_landmark(self):
    seen, object_map, pairs, _, _ = _image()
    allowed = proposals.compatible(
      seen, object_map.ellipsoid, pairs, prune=False
    ).allowed
    expected = [
      [
        pairs.observation[i] != pairs.observation[j]
        and pairs.landmark[i] != pairs.landmark[j]
        for j in range(len(pairs.rank))
      ]
      for i in range(len(pairs.rank))
    ]
    np.testing.assert_array_equal(allowed, expected)

  def test_reach_is_that_of_a_fine_grid(self):
    rng = np.random.default_rng(0)
    for _ in range(50):
      rays = rng.normal(size=(2, 3)) + [0, 0, 3]
      rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
      low = rng.uniform(0.5, 4, 2)
      high = low * rng.uniform(1.0, 3, 2)
      s, t = (np.linspace(*pair, 201) for pair in zip(low, high, strict=True))
      points = s[:, None, None] * rays[0] - t[None, :, None] * rays[1]
      squares = (points**2).sum(-1)
      nearest, farthest = proposals._reach(
        rays[0] @ rays[1], (low[0], high[0]), (low[1], high[1])
      )
      self.assertAlmostEqual(farthest, squares.max(), places=9)
      self.assertAlmostEqual(nearest, squares.min(), delta=1e-3)


class TrianglesTest(absltest.TestCase):
  def test_they_are_those_of_all_triples(self):
    rng = np.random.default_rng(0)
    allowed = rng.uniform(size=(20, 20)) < 0.4
    allowed = np.triu(allowed, 1) | np.triu(allowed, 1).T
    edges = np.stack(np.nonzero(np.triu(allowed)), axis=-1)
    found = proposals.triangles(20, rng.permutation(edges), 10_000)
    expected = [
      (i, j, k)
      for i, j, k in itertools.combinations(range(20), 3)
      if allowed[i, j] and allowed[i, k] and allowed[j, k]
    ]
    self.assertEqual(sorted(map(tuple, found.tolist())), expected)
    self.assertIsNone(proposals.triangles(20, edges, len(expected) - 1))
    nothing = proposals.triangles(20, edges[:0], 10)
    self.assertEqual(nothing.shape, (0, 3))


class ProposeTest(parameterized.TestCase):
  @parameterized.parameters('auto', 'uniform', 'prosac', 'b_prosac')
  def test_triples_differ_and_are_allowed(self, sampler):
    seen, object_map, pairs, _, _ = _image()
    graph = proposals.compatible(seen, object_map.ellipsoid, pairs)
    triples = proposals.propose(
      seen, object_map.ellipsoid, pairs, num_draws=300, sampler=sampler
    )
    self.assertLen(triples, 300)
    self.assertLen(set(map(tuple, triples)), 300)
    self.assertTrue((np.diff(triples, axis=1) > 0).all())
    for i, j in itertools.combinations(range(3), 2):
      self.assertTrue(graph.allowed[triples[:, i], triples[:, j]].all())

  def test_right_triples_come_first(self):
    shares = {'auto': [], 'uniform': []}
    for seed in range(6):
      seen, object_map, pairs, rows, _ = _image(seed, noise=0.02)
      right = rows[pairs.observation] == pairs.landmark
      for name, found in shares.items():
        triples = proposals.propose(
          seen, object_map.ellipsoid, pairs, num_draws=64, sampler=name
        )
        found.append(right[triples].all(-1).mean())
    self.assertGreater(np.mean(shares['auto']), 4 * np.mean(shares['uniform']))

  def test_right_triples_are_more_promising(self):
    qualities = []
    for seed in range(6):
      seen, object_map, pairs, rows, _ = _image(seed, noise=0.02)
      graph = proposals.compatible(seen, object_map.ellipsoid, pairs)
      triples = proposals.listed(graph)
      right = (rows[pairs.observation] == pairs.landmark)[triples].all(-1)
      promise = proposals.promising(seen, pairs, graph.mismatch, triples)
      best = np.argsort(-promise)[: right.sum()]
      qualities.append(right[best].mean() / right.mean())
    self.assertGreater(np.median(qualities), 5)

  def test_balance_takes_first_candidates_before_second_ones(self):
    rng = np.random.default_rng(0)
    seen, object_map, _, rows, _ = _image()
    similarity = rng.normal(size=(len(rows), len(object_map.center)))
    # One clear object must not fill the head of the list.
    similarity[0] += 5
    pairs = association.nearest(
      similarity, 3, association.Calibration((0.0, 0.0, 0.0), 1.0)
    )
    first = {}
    for name in ('prosac', 'b_prosac'):
      triples = proposals.propose(
        seen,
        object_map.ellipsoid,
        pairs,
        num_draws=10,
        sampler=name,
        prune=False,
      )
      first[name] = pairs.rank[triples].max(-1)
    self.assertEqual(first['b_prosac'].max(), 0)
    self.assertGreater(first['prosac'].max(), 0)

  def test_few_pairs_give_all_triples_or_none(self):
    seen, object_map, pairs, _, _ = _image()
    few = association.Candidates(*(column[:2] for column in pairs))
    for sampler in proposals.SAMPLERS:
      triples = proposals.propose(
        seen, object_map.ellipsoid, few, num_draws=5, sampler=sampler
      )
      self.assertEqual(triples.shape, (0, 3))

  def test_an_unknown_sampler_is_named(self):
    seen, object_map, pairs, _, _ = _image()
    with self.assertRaisesRegex(ValueError, "'lucky'"):
      proposals.propose(
        seen, object_map.ellipsoid, pairs, num_draws=5, sampler='lucky'
      )
    with self.assertRaisesRegex(ValueError, '0 draws'):
      proposals.propose(seen, object_map.ellipsoid, pairs, num_draws=0)


if __name__ == '__main__':
  absltest.main()
