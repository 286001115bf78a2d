# SPDX-License-Identifier: Apache-2.0
"""Confidences of a map asked against itself are what was planted."""

import dataclasses
import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.localization import retrieve
from i2ploc.retrieval import calibration
from i2ploc.retrieval import index as index_lib

RADIUS = 10.0
WIDTH = 24


def unit(x):
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def planted(places=300, seed=0, noise=(0.05, 0.5), width=WIDTH, order=None):
  """Two photos per place 4 m apart, the next place 100 m away.

  The noise differs from place to place, so that some are sure and some are
  not; the photos are in no order.
  """
  rng = np.random.default_rng(seed)
  centre = rng.normal(size=(places, width))
  level = rng.uniform(*noise, size=(places, 1, 1)) * np.sqrt(width) / 2
  photos = centre[:, None] + level * rng.normal(size=(places, 2, width))
  x = 100.0 * np.arange(places)[:, None] + [0, 4]
  positions = np.stack([x, 0 * x], -1)
  count = 2 * places
  shuffled = rng.permutation(count) if order is None else order
  return (
    unit(photos.reshape(count, width))[shuffled],
    positions.reshape(count, 2)[shuffled],
    np.full(count, 'a'),
  )


def by_loop(descriptors, positions, radius):
  """Similarity, margin and rightness, photo by photo."""
  found = []
  for i in range(len(descriptors)):
    similar = descriptors.astype(np.float64) @ descriptors[i]
    similar[i] = -np.inf
    answer = similar.argmax()
    far = np.linalg.norm(positions - positions[answer], axis=1) > radius
    right = np.linalg.norm(positions[i] - positions[answer]) <= radius
    far_best = similar[far].max()
    found.append((similar[answer], similar[answer] - far_best, right))
  return np.array(found)


def make_index(descriptors, positions, views=1):
  count = len(descriptors)
  poses = np.tile(np.eye(4), (count, 1, 1))
  poses[:, :2, 3] = np.repeat(positions, views, axis=0)
  return index_lib.Index(
    descriptors=descriptors,
    keys=np.repeat(np.random.default_rng(0).permutation(count // views), views),
    poses=poses,
    towns=np.full(count, 'a'),
    frames=np.repeat(np.arange(count // views), views),
    names=np.full(count, ''),
    views=np.zeros(count),
    provenance=dict.fromkeys(index_lib.PROVENANCE, 'x'),
    rig=index_lib.Rig(None, None, np.eye(4)),
  )


class CalibrationTest(parameterized.TestCase):
  def assert_close(self, found, expected):
    """Similarities of products of other shapes are rounded otherwise."""
    for value, other in zip(found, expected, strict=True):
      if isinstance(value, str):
        self.assertEqual(value, other)
      else:
        np.testing.assert_allclose(value, other, rtol=1e-6)

  def test_confidences_are_the_share_of_right_answers_of_another_map(self):
    fitted = calibration.fit_arrays(*planted(), RADIUS)
    self.assertEqual((fitted.reason, fitted.count), ('', 600))
    table = by_loop(*planted(seed=1)[:2], RADIUS)
    right = table[:, 2].astype(bool)
    said = calibration.confidence(fitted, table[:, 0], table[:, 1])
    self.assertBetween(right.mean(), 0.3, 0.9)
    self.assertLess(calibration.expected_error(said, right), 0.06)
    # Sure and unsure ones are told apart.
    self.assertGreater(right[said > 0.9].mean(), 0.85)
    self.assertLess(right[said < 0.3].mean(), 0.4)
    self.assertGreater(np.ptp(said), 0.7)
    self.assertLess(fitted.error, 0.08)
    self.assertAlmostEqual(
      fitted.right, by_loop(*planted()[:2], 10)[:, 2].mean()
    )

  def test_a_known_curve_is_found_again(self):
    rng = np.random.default_rng(3)
    features = np.stack(
      [rng.uniform(0.2, 0.9, 20000), rng.uniform(0, 0.3, 20000)], 1
    )
    truth = 1 / (1 + np.exp(-(-3 + 2 * features[:, 0] + 15 * features[:, 1])))
    right = rng.random(20000) < truth
    offset, slopes = calibration._logistic(features, right)
    said = 1 / (1 + np.exp(-(offset + features @ np.array(slopes))))
    np.testing.assert_allclose(said, truth, atol=0.03)

  def test_what_the_map_says_of_itself_is_what_the_loop_says(self):
    descriptors, positions, towns = planted(40)
    found = calibration._ask_itself(
      descriptors,
      positions,
      np.zeros(len(towns), int),
      RADIUS,
      None,
      np.arange(len(towns)),
    )
    np.testing.assert_allclose(
      np.stack(found, 1), by_loop(descriptors, positions, RADIUS), atol=1e-5
    )

  def test_less_similar_is_never_surer(self):
    # Similar answers are wrong here: the slope is cut at 0.
    rng = np.random.default_rng(0)
    features = rng.uniform(size=(200, 2))
    _, slopes = calibration._logistic(features, features[:, 0] < 0.5)
    self.assertEqual(slopes[0], 0)

  @parameterized.parameters(1, 2)
  def test_an_index_gives_the_numbers_of_its_arrays(self, views):
    descriptors, positions, towns = planted(40)
    expected = calibration.fit_arrays(
      descriptors[::views],
      positions[::views],
      towns[::views],
      RADIUS,
      frames=np.arange(len(towns) // views),
    )
    # A second view that looks like nothing changes nothing.
    rng = np.random.default_rng(5)
    if views == 2:
      seen = descriptors[::2]
      other = np.zeros_like(seen)
      other[:, 0] = 1e-3 * rng.normal(size=len(seen))
      descriptors = np.stack([seen, other], 1).reshape(-1, WIDTH)
    index = make_index(descriptors, positions[::views], views)
    found = calibration.fit(index, RADIUS)
    self.assert_close(found, expected)

  def test_a_moment_does_not_answer_itself(self):
    # A drive in which only frames next to each other are alike.
    rng = np.random.default_rng(0)
    count = 200
    steps = rng.normal(size=(count + 2, WIDTH))
    descriptors = unit(steps[:-2] + steps[1:-1] + steps[2:])
    positions = np.stack([1.0 * np.arange(count), np.zeros(count)], 1)
    towns = np.full(count, 'a')
    naive = calibration.fit_arrays(descriptors, positions, towns, RADIUS)
    honest = calibration.fit_arrays(
      descriptors, positions, towns, RADIUS, frames=np.arange(count)
    )
    self.assertGreater(naive.right, 0.95)
    self.assertLess(honest.right, 0.6)
    near = calibration.neighbours(np.zeros(count), positions, RADIUS)
    np.testing.assert_array_equal(near[[0, 2, 100, 199]], [
      [0, 4], [2, 4], [4, 4], [4, 0]
    ])  # fmt: skip

  def test_copies_do_not_answer_each_other(self):
    descriptors, positions, towns = planted(40)
    twice = np.concatenate([descriptors, descriptors])
    found = calibration.fit_arrays(
      twice,
      np.concatenate([positions, positions]),
      np.concatenate([towns, towns]),
      RADIUS,
    )
    once = calibration.fit_arrays(descriptors, positions, towns, RADIUS)
    self.assertAlmostEqual(found.right, once.right)

  @parameterized.parameters(
    (dict(places=5), 'readings of the map could ask'),
    (dict(places=100, noise=(0.01, 0.02)), 'too few errors to learn from'),
    (dict(places=100, noise=(30, 40)), 'too few to learn from'),
  )
  def test_what_the_map_cannot_tell_has_a_reason(self, options, reason):
    found = calibration.fit_arrays(*planted(**options), RADIUS)
    self.assertIn(reason, found.reason)
    self.assertIn('no confidences', found.describe())
    self.assertIsNone(found.to_dict()['slopes'])
    self.assertTrue(np.isnan(calibration.confidence(found, 0.5, 0.1)))

  def test_a_map_of_unique_places_knows_nothing(self):
    descriptors, positions, towns = planted(100)
    found = calibration.fit_arrays(
      descriptors, 1000.0 * positions, towns, RADIUS
    )
    self.assertEqual(found.right, 0)
    self.assertIn('shows most places once', found.reason)

  def test_without_positions_nobody_knows(self):
    descriptors, positions, towns = planted(40)
    found = calibration.fit_arrays(
      descriptors, np.full_like(positions, np.nan), towns, RADIUS
    )
    self.assertEqual(found.reason, 'no reading of the map has a position')
    self.assertEqual(found.count, 0)
    # Some without take no part.
    some = positions.copy()
    some[::7] = np.nan
    kept = np.isfinite(some[:, 0])
    with_some = calibration.fit_arrays(descriptors, some, towns, RADIUS)
    without = calibration.fit_arrays(
      descriptors[kept], positions[kept], towns[kept], RADIUS
    )
    self.assert_close(with_some, without)

  @parameterized.parameters(0, 1)
  def test_a_map_of_no_or_one_reading(self, count):
    found = calibration.fit_arrays(
      np.ones((count, 4)) / 2,
      np.zeros((count, 2)),
      np.full(count, 'a'),
      RADIUS,
      frames=np.arange(count),
    )
    self.assertNotEmpty(found.reason)

  def test_one_place_has_no_rival(self):
    descriptors, positions, towns = planted(40)
    found = calibration.fit_arrays(descriptors, 0 * positions, towns, RADIUS)
    self.assertIn('0 readings of the map could ask', found.reason)

  def test_the_unit_of_the_map_is_that_of_the_radius(self):
    index = make_index(*planted(60)[:2])
    self.assertIn(f'within {RADIUS:g} m)', self.described(index))
    origin = {**index.provenance, 'unit': 'frames'}
    frames = dataclasses.replace(index, provenance=origin)
    self.assertIn(f'within {RADIUS:g} frames)', self.described(frames))

  def described(self, index):
    saved = calibration.fit(index, RADIUS).to_dict()
    return calibration.from_dict(saved)._replace(reason='').describe()

  def test_bad_arguments_are_named(self):
    arrays = planted(40)
    for radius in (0, -1, np.nan, np.inf):
      with self.assertRaisesRegex(ValueError, 'radius='):
        calibration.fit_arrays(*arrays, radius)
    with self.assertRaisesRegex(ValueError, '79 positions'):
      calibration.fit_arrays(arrays[0], arrays[1][:-1], arrays[2], RADIUS)
    with self.assertRaisesRegex(ValueError, 'A calibration has'):
      calibration.from_dict({'offset': 1.0})

  def test_a_calibration_survives_json(self):
    for options in ({}, dict(places=5)):
      fitted = calibration.fit_arrays(*planted(**options), RADIUS)
      text = json.dumps(fitted.to_dict(), allow_nan=False)
      again = calibration.from_dict(json.loads(text))
      self.assertEqual(again.to_dict(), fitted.to_dict())
      np.testing.assert_array_equal(
        calibration.confidence(again, 0.5, 0.1),
        calibration.confidence(fitted, 0.5, 0.1),
      )


class MarginsTest(absltest.TestCase):
  def test_a_margin_is_to_the_best_place_elsewhere(self):
    # Similarities to the query are the first number; places 5 m apart.
    seen = np.array([0.9, 0.95, 0.3, 0.7, 0.1, 0.2])
    descriptors = unit(np.stack([seen, np.sqrt(1 - seen**2)], 1))
    positions = np.stack([5.0 * np.arange(6), np.zeros(6)], 1)
    index = make_index(descriptors, positions)
    query = np.array([1.0, 0.0], np.float32)
    found = calibration.margins(
      index, query, np.array([1, 3]), seen[[1, 3]], 6.0
    )
    np.testing.assert_allclose(found, [0.95 - 0.7, 0.7 - 0.95], atol=1e-6)
    (alone,) = calibration.margins(index, query, np.array([1]), seen[:1], 99.0)
    self.assertEqual(alone, np.inf)

  def test_answers_of_a_map_say_how_sure_they_are(self):
    descriptors, positions, _ = planted(100)
    index = make_index(descriptors, positions)
    fitted = calibration.fit(index, RADIUS)
    rng = np.random.default_rng(1)
    clear = descriptors[:1]
    vague = unit(rng.normal(size=(1, WIDTH)))
    for query, low, high in ((clear, 0.9, 1), (vague, 0, 0.6)):
      answers = retrieve.localize(
        query, index, scale=None, k=4, calibration=fitted
      )[0]
      self.assertBetween(answers[0].confidence, low, high)
    unknown = fitted._replace(reason='nobody knows')
    answers = retrieve.localize(clear, index, scale=None, calibration=unknown)[
      0
    ]
    self.assertIsNone(answers[0].confidence)


if __name__ == '__main__':
  absltest.main()
