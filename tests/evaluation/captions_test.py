# SPDX-License-Identifier: Apache-2.0
"""Rates of captions and associations against counting by hand."""

import itertools
import types

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from i2ploc.evaluation import captions

RNG = np.random.default_rng(0)
TEXTS = ('a red bin', 'a blue bin', 'a lamp', 'a tree', 'a red car')
CATEGORIES = ('bin', 'bin', 'lamp', 'tree', 'car')


def _things(kinds):
  kinds = np.asarray(kinds, int)
  return types.SimpleNamespace(
    text=np.array(TEXTS)[kinds],
    category=np.array(CATEGORIES)[kinds],
    movable=kinds == 4,
    box=kinds[:, None] * np.ones(4),  # tells the encoder what is seen
  )


def _scene(row, seen, near, answers):
  return types.SimpleNamespace(
    row=row,
    image=None,
    detections=_things(seen),
    landmarks=_things(near),
    answers=np.asarray(answers, int),
  )


class Encoder:
  """Sees each thing as the variables say: one row per kind."""

  def encode_texts(self, texts):
    return np.eye(len(TEXTS))[[TEXTS.index(text) for text in texts]]

  def encode_boxes(self, image, boxes):
    del image
    return np.asarray(self.variables)[boxes[:, 0].astype(int)]


# Two red bins, of which the second is seen; a car that no map knows.
SCENES = [
  _scene(0, [0, 2, 4], [0, 1, 0, 2], [2, 3, -1]),
  _scene(50, [3, 1], [3, 1, 2], [0, 1]),
  _scene(100, [], [0], []),
]


def _run(variables, scenes=None):
  scenes = {'cross': SCENES} if scenes is None else scenes
  evaluator = captions.CaptionEvaluator(
    'test', encoder=Encoder(), scenes=lambda: scenes
  )
  return dict(evaluator.run(variables))


class HitChancesTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 3)
  def test_equals_the_share_of_orders_that_hit(self, k):
    similarities = RNG.integers(0, 3, (20, 4)).astype(float)
    answers = RNG.integers(0, 4, 20)
    expected = []
    for row, answer in zip(similarities, answers, strict=True):
      hits = []
      for order in itertools.permutations(range(4)):
        ranked = sorted(order, key=lambda column: -row[column])  # stable
        hits.append(answer in ranked[:k])
      expected.append(np.mean(hits))
    found = captions.hit_chances(similarities, answers, k)
    np.testing.assert_allclose(found, expected, atol=1e-12)


class CaptionEvaluatorTest(absltest.TestCase):
  def test_who_sees_everything_is_as_good_as_texts_allow(self):
    found = _run(np.eye(5))
    expected = {
      'frames': 3,
      'detections': 5,
      'landmarks': 8 / 3,
      'answerable': 100,  # of what stands still
      'caption@1': 100,
      'category@1': 100,
      'association@1': 100 * 3.5 / 4,  # two red bins
      'association@1_by_text': 100 * 3.5 / 4,
      'association@1_by_category': 100 * (1 / 3 + 3) / 4,
      'association_in_category@1': 100 * 3.5 / 4,
      'association@1_chance': 100 * (2 / 4 + 2 / 3) / 4,
      'association@3': 100,
      'association@3_chance': 100 * (2 * 3 / 4 + 2) / 4,
    }
    for name, value in expected.items():
      self.assertAlmostEqual(found[f'test/cross/{name}'], value, msg=name)
    chance = (2 * 0.4 + 3 * 0.2) / 5  # five texts, two of them of bins
    self.assertAlmostEqual(found['test/cross/category@1_chance'], 100 * chance)
    low, high = (
      found[f'test/cross/association@1_{x}'] for x in ('low', 'high')
    )
    self.assertBetween(found['test/cross/association@1'], low, high)

  def test_who_sees_nothing_is_as_good_as_chance(self):
    found = _run(np.zeros((5, 5)))
    for k in (1, 3):
      self.assertAlmostEqual(
        found[f'test/cross/association@{k}'],
        found[f'test/cross/association@{k}_chance'],
      )
      self.assertAlmostEqual(
        found[f'test/cross/association_in_category@{k}'],
        found[f'test/cross/association@{k}_by_category'],
      )
    self.assertAlmostEqual(found['test/cross/caption@1'], 20.0)

  def test_who_mistakes_colours_knows_the_category(self):
    confused = np.eye(5)[[1, 0, 2, 3, 4]]
    found = _run(confused)
    self.assertAlmostEqual(found['test/cross/category@1'], 100.0)
    self.assertAlmostEqual(found['test/cross/caption@1'], 60.0)
    # One of its two bins is taken for the other, one for none of what is near.
    expected = 100 * (1 + 1 + 0 + 1 / 3) / 4
    self.assertAlmostEqual(found['test/cross/association@1'], expected)

  def test_who_mistakes_things_is_helped_by_their_category(self):
    # Everything is taken for a lamp first, and for what it is then.
    confused = np.eye(5)[[2] * 5] + 0.1 * np.eye(5)
    found = _run(confused)
    # The lamps of both scenes are near.
    self.assertAlmostEqual(found['test/cross/association@1'], 25.0)
    self.assertAlmostEqual(
      found['test/cross/association_in_category@1'], 100 * 3.5 / 4
    )

  def test_detections_without_a_landmark_do_not_count(self):
    lost = SCENES[1].__dict__ | {'answers': np.array([-1, 1])}
    scenes = [SCENES[0], types.SimpleNamespace(**lost)]
    found = _run(np.eye(5), {'cross': scenes})
    self.assertAlmostEqual(found['test/cross/answerable'], 75.0)
    self.assertAlmostEqual(found['test/cross/association@1'], 100 * 2.5 / 3)

  def test_nothing_near_and_nothing_seen(self):
    found = _run(np.eye(5), {'cross': [_scene(0, [1], [], [-1])], 'sync': []})
    self.assertNotIn('test/cross/association@1', found)
    self.assertEqual(found['test/cross/answerable'], 0.0)
    self.assertEqual(found['test/cross/caption@1'], 100.0)
    self.assertEmpty(_run(np.eye(5), {'cross': [_scene(0, [], [], [])]}))

  def test_the_table_shows_it(self):
    lines = list(captions.table(_run(np.eye(5)), 'test'))
    self.assertIn('test/cross: 5 detections in 3 frames', lines[0])
    self.assertIn('first 1  87.5', lines[2])
    self.assertIn('ceiling  87.5', lines[2])


if __name__ == '__main__':
  absltest.main()
