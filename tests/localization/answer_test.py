# SPDX-License-Identifier: Apache-2.0
"""One line of answers.jsonl, whatever the method."""

import json

from absl.testing import absltest
import numpy as np

from i2ploc.localization import answer as answer_lib


class RecordTest(absltest.TestCase):
  def test_a_line_is_the_answer_as_plain_json(self):
    pose = np.diag([1.0, -1, -1, 1])
    query = answer_lib.Query('dir/a.png', np.zeros((48, 64, 3), np.uint8))
    found = answer_lib.Answer(
      rank=1,
      place='desk',
      world_from_camera=pose,
      covariance=np.full((6, 6), np.inf),
      similarity=np.float32(0.5),
      confidence=None,
      reason='',
      evidence={
        'position': pose[:3, 3],
        'pairs': np.array([[0, 3]]),
        'outlines': [{'name': 'mug', 'points': np.ones((2, 2))}],
        'distance_from_best': np.inf,
      },
    )
    lost = found._replace(rank=2, world_from_camera=None, reason='no boxes')
    text = json.dumps(answer_lib.record(query, [found, lost]), allow_nan=False)
    self.assertNotIn('\n', text)
    line = json.loads(text)
    self.assertEqual(line['query'], 'dir/a.png')
    self.assertEqual(line['image_size'], [48, 64])
    first, second = line['answers']
    self.assertEqual(set(first), set(answer_lib.Answer._fields))
    np.testing.assert_array_equal(first['world_from_camera'], pose)
    # Not determined is not known: JSON has no infinity.
    self.assertEqual(first['covariance'], [[None] * 6] * 6)
    self.assertEqual(first['similarity'], 0.5)
    self.assertIsNone(first['confidence'])
    self.assertEqual(first['evidence']['pairs'], [[0, 3]])
    self.assertEqual(first['evidence']['outlines'][0]['points'], [[1, 1]] * 2)
    self.assertIsNone(first['evidence']['distance_from_best'])
    self.assertIsNone(second['world_from_camera'])
    self.assertEqual(second['reason'], 'no boxes')


if __name__ == '__main__':
  absltest.main()
