# SPDX-License-Identifier: Apache-2.0
"""Saliency against area, counted by hand on two tokens a side."""

from types import SimpleNamespace

from absl.testing import absltest
import numpy as np

from i2ploc.evaluation import questions
from i2ploc.evaluation import saliency

ROAD, HOUSE, CAR = 1, 2, 3
CLASSES = {'road': (ROAD,), 'house': (HOUSE,), 'car': (CAR,)}
# Of two tokens of three readings; the last one is padding.
WEIGHTS = np.asarray([[3.0, 1.0], [10.0, 10.0], [0.0, 1.0]])
MASK = np.asarray([True, True, False])


class Street:
  """Images of two tokens and scans of two and a masked third, all alike."""

  labels = SimpleNamespace(moving=(CAR,), movable=(CAR,))

  def batches(self, rows, what, size):
    del rows, what, size
    # Left token: road. Right token: half house, half car.
    semantic = np.asarray([[ROAD, ROAD, HOUSE, CAR], [ROAD, ROAD, HOUSE, CAR]])
    points = np.asarray([[5.0, 1, 0, 0], [5.0, -1, 0, 0], [9.0, 9, 9, 0]])
    yield {
      'mask': MASK,
      'image_semantic': np.stack([semantic] * 3),
      'points': np.stack([points] * 3),
      'points_mask': np.ones((3, 3), bool),
      'points_semantic': np.asarray([[HOUSE, CAR, ROAD]] * 3),
    }


def _image_out(batch):
  del batch
  tokens = SimpleNamespace(mask=np.ones((3, 2), bool))
  return dict(grid=(1, 2), saliency=WEIGHTS, tokens=tokens)


def _points_out(batch):
  del batch
  centers = np.asarray([[4.9, 1.1, 0], [5.1, -1, 0], [9.0, 9, 9]])
  tokens = SimpleNamespace(mask=np.asarray([[True, True, False]] * 3))
  weights = np.concatenate([WEIGHTS, [[50.0], [0.0], [0.0]]], axis=1)
  return dict(centers=np.stack([centers] * 3), saliency=weights, tokens=tokens)


DESCRIBE = {'image': _image_out, 'points': _points_out}
ROW = np.arange(1)
QUESTIONS = [questions.Question('sync', '', 'image', 'points', ROW, ROW, ())]


class SaliencySharesTest(absltest.TestCase):
  def test_shares_of_classes_counted_by_hand(self):
    found = dict(
      saliency.saliency_shares(Street(), QUESTIONS, DESCRIBE, 'x', CLASSES)
    )
    expected = {
      'image/road': (62.5, 50.0),
      'image/house': (18.75, 25.0),
      'image/car': (18.75, 25.0),
      'points/road': (0.0, 0.0),
      'points/house': (62.5, 50.0),
      'points/car': (37.5, 50.0),
    }
    self.assertLen(found, 2 * len(expected))
    for name, (share, area) in expected.items():
      self.assertAlmostEqual(found[f'x/saliency/{name}_share'], share, msg=name)
      self.assertAlmostEqual(found[f'x/saliency/{name}_area'], area, msg=name)

  def test_asks_about_what_moves_unless_told_otherwise(self):
    found = dict(saliency.saliency_shares(Street(), QUESTIONS, DESCRIBE, 'x'))
    self.assertLen(found, 8)
    for group in ('moving', 'movable'):
      self.assertAlmostEqual(found[f'x/saliency/image/{group}_share'], 18.75)
      self.assertAlmostEqual(found[f'x/saliency/points/{group}_area'], 50.0)

  def test_says_nothing_about_data_without_labels(self):
    street = Street()
    street.labels = None
    self.assertEmpty(
      list(saliency.saliency_shares(street, QUESTIONS, DESCRIBE, 'x'))
    )

  def test_a_side_that_nobody_asks_about_is_left_out(self):
    photos = [QUESTIONS[0]._replace(map_side='image')]
    describe = {'image': _image_out}
    found = dict(saliency.saliency_shares(Street(), photos, describe, 'x'))
    self.assertLen(found, 4)
    self.assertTrue(all('/image/' in name for name in found))

  def test_says_nothing_about_a_model_without_saliency(self):
    describe = {name: lambda batch: {} for name in DESCRIBE}
    self.assertEmpty(
      list(saliency.saliency_shares(Street(), QUESTIONS, describe, 'x'))
    )


class PointWeightsTest(absltest.TestCase):
  def test_a_point_weighs_what_the_nearest_real_token_does(self):
    batch = next(Street().batches(None, (), 1))
    weights = saliency.point_weights(batch, 0, _points_out(batch))
    # Of mean 1 over real tokens; the last point's own token is masked.
    np.testing.assert_allclose(weights, [1.5, 0.5, 1.5])


if __name__ == '__main__':
  absltest.main()
