# SPDX-License-Identifier: Apache-2.0
"""Descriptors that survive a kill."""

import contextlib
import io
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np

from i2ploc.tasks import embedding


class DescribedTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)
    self.read = []
    self.enterContext(mock.patch.object(embedding, 'PART_ROWS', 4))

  def batches(self, rows):
    """Batches of 3, the last filled up with readings that do not count."""
    for start in range(0, len(rows), 3):
      part = rows[start : start + 3]
      self.read += part.tolist()
      padded = np.zeros(3)
      padded[: len(part)] = part
      yield {'reading': padded, 'mask': np.arange(3) < len(part)}

  def embed(self, batch):
    return np.stack([batch['reading'], batch['reading'] ** 2], 1)

  def describe(self, rows, embed=None):
    with contextlib.redirect_stdout(io.StringIO()):
      found = list(
        embedding.described(
          'image', rows, embed or self.embed, self.batches, self.folder
        )
      )
    return (
      np.concatenate([batch['descriptors'] for batch in found]),
      np.concatenate([batch['image_index'] for batch in found]),
    )

  def test_every_row_has_its_own_descriptor(self):
    rows = np.array([7, 2, 9, 4, 5, 0, 8, 1, 3])
    descriptors, index = self.describe(rows)
    np.testing.assert_array_equal(index, rows)
    expected = np.stack([rows, rows**2], 1)[:, None]
    np.testing.assert_array_equal(descriptors, expected)

  def test_what_a_kill_left_is_not_read_again(self):
    rows = np.arange(10)

    def dies(batch):
      if 5 in batch['reading']:
        raise KeyboardInterrupt
      return self.embed(batch)

    with self.assertRaises(KeyboardInterrupt):
      self.describe(rows, dies)
    self.read.clear()
    descriptors, _ = self.describe(rows)
    self.assertEqual(self.read, list(range(4, 10)))
    np.testing.assert_array_equal(descriptors[:, 0, 0], rows)


if __name__ == '__main__':
  absltest.main()
