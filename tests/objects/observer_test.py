# SPDX-License-Identifier: Apache-2.0
"""What a detector says of a place, from labels."""

import pathlib
import tempfile
import types

from absl.testing import absltest
import numpy as np

from i2ploc.geometry import lens as lens_lib
from i2ploc.objects import detections as detections_lib
from i2ploc.objects import files
from i2ploc.objects import observer as observer_lib


class _Labels(types.SimpleNamespace):
  def take(self, rows):
    columns = {name: column[rows] for name, column in vars(self).items()}
    return _Labels(**columns)


def _place():
  """One image of a bin, a car, and a box without a height."""
  labels = _Labels(
    box=np.array([[2.0, 4, 40, 60], [50, 10, 90, 40], [5, 9, 30, 9]]),
    category=np.array([0, 1, 0]),
    text=np.array(['a green bin', 'a red van', 'a bin']),
  )
  shots = types.SimpleNamespace(
    names=('a.png',),
    lens=lens_lib.Lens('pinhole', np.diag([100.0, 100, 1])),
    image_size=(80, 100),
    position=np.array([[1.0, 2, 3]]),
    labels=lambda row: labels,
  )
  return types.SimpleNamespace(
    name='yard',
    mapping=shots,
    queries=shots,
    detections=None,
    categories=('bin', 'car'),
  )


class ObserverTest(absltest.TestCase):
  def test_boxes_come_with_numbers_and_texts(self):
    place = _place()
    found = observer_lib.Observer(place).look(place.mapping, 0)
    self.assertEqual(found.texts, ('a green bin', 'a red van'))
    self.assertEqual(found.detections.category.tolist(), [0, 1])
    self.assertEqual(found.position.tolist(), [1, 2, 3])

  def test_what_is_left_out_is_not_seen(self):
    place = _place()
    observer = observer_lib.Observer(place, None, ('car', 'unheard of'))
    found = observer.look(place.mapping, 0)
    self.assertEqual(found.texts, ('a green bin',))

  def test_images_without_boxes_are_counted_or_refused(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    place = _place()
    place.mapping.names = tuple(f'{i}.png' for i in range(60))
    none = detections_lib.make_detections(np.zeros((0, 4)), [], [], (80, 100))
    place.detections = root / 'boxes.npz'

    def observe(count):
      named = {f'{i}.png': none for i in range(count)}
      files.save_detections(named, place.detections, (80, 100))
      return observer_lib.Observer(place)

    with self.assertRaisesRegex(
      ValueError, r'boxes.npz names 14 of the 60 images of yard, not .14.png'
    ):
      observe(14)
    with self.assertLogs(level='WARNING') as logs:
      observe(50)
    self.assertIn('no boxes of 10 of 60 images of yard', logs.output[0])
    with self.assertNoLogs(level='WARNING'):
      observe(60)

  def test_numbers_are_left_out_by_their_names(self):
    seen = detections_lib.make_detections(
      [[0.0, 0, 9, 9]] * 3, [0, 1, 7], np.ones(3), (80, 100)
    )
    kept = observer_lib.without(seen, ('car', 'dog'), ('bin', 'car'))
    self.assertEqual(kept.category.tolist(), [0, 7])


if __name__ == '__main__':
  absltest.main()
