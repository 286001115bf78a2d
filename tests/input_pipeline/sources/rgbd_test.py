# SPDX-License-Identifier: Apache-2.0
"""An RGB-D sequence as a place."""

from absl.testing import absltest

from input_pipeline.sources import rgbd


class RgbdSourceTest(absltest.TestCase):
  def test_a_source_needs_a_folder(self):
    with self.assertRaisesRegex(ValueError, '--data_dir=PATH'):
      rgbd.RgbdSource(
        data_dir=None,
        image_size=(6, 8),
        mapping='0::2',
        queries='1::2',
        detections='a.json',
      )


if __name__ == '__main__':
  absltest.main()
