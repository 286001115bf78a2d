# SPDX-License-Identifier: Apache-2.0
"""A config's data is opened by its name."""

from absl.testing import absltest
import ml_collections

from input_pipeline.sources import drives
from input_pipeline.sources import opening
from input_pipeline.sources import rgbd


def _config(**data):
  return ml_collections.ConfigDict({'data': data} if data else {})


class OpeningTest(absltest.TestCase):
  def test_no_data_are_no_source(self):
    self.assertIsNone(opening.open_source(_config(), '/data'))

  def test_the_name_decides(self):
    fields = dict(train='', validation='', test='all', image_size=(16, 16))
    for name in ('photos', 'kitti_raw'):
      found = opening.open_source(_config(name=name, **fields), '/data')
      self.assertIsInstance(found, drives.Source)
      self.assertEqual((found.name, found.has('train')), (name, False))
    fields = dict(mapping='::2', queries='1::2', detections='boxes.npz')
    found = opening.open_source(
      _config(name='tum_rgbd', image_size=(16, 16), **fields), '/data/desk'
    )
    self.assertIsInstance(found, rgbd.RgbdSource)
    self.assertEqual(found.name, 'desk')

  def test_an_unknown_name_lists_the_known(self):
    with self.assertRaisesRegex(ValueError, "'kitty'; known: .*photos.*tum_rg"):
      opening.open_source(_config(name='kitty'), '/data')


if __name__ == '__main__':
  absltest.main()
