# SPDX-License-Identifier: Apache-2.0
"""A line says the number of its question, or why there is none."""

from absl.testing import absltest

from i2ploc.evaluation import tables


def numbers(base, direction, recall, queries, sequences=True, radius=10):
  """What an evaluation yields of one question and direction."""
  found = {
    f'{base}/queries': queries,
    f'{base}/answerable_{radius}m': queries - 1,
  }
  for i, n in enumerate(tables.RECALL_AT):
    found[f'{base}/chance@{n}_{radius}m'] = 2.0 + i
    found[f'{base}/{direction}/recall@{n}_{radius}m'] = recall + i
  first = f'{base}/{direction}/recall@1_{radius}m'
  found |= {f'{first}_low': recall - 5, f'{first}_high': recall + 5}
  if sequences:
    found[f'{first}_3_frames'] = recall + 9
  return found


class TextTest(absltest.TestCase):
  def test_recall_stands_beside_chance_and_localization_comes_first(self):
    results = numbers('test/sync', 'image_to_points', 50.0, 9)
    results |= numbers('test/cross', 'image_to_points', 60.0, 8)
    results |= numbers('validation/cross', 'image_to_points', 1.0, 7)
    head, cross, chance, sync, _ = tables.text(results, 'test')
    self.assertIn('within 10 m', head)
    self.assertEqual(
      cross.split(),
      'cross image_to_points 60.0 61.0 62.0 63.0 64.0 65.0 [55.0, 65.0] 69.0'
      ' 7 of 8'.split(),
    )
    self.assertEqual(
      chance.split(), 'cross chance 2.0 3.0 4.0 5.0 6.0 7.0'.split()
    )
    self.assertStartsWith(sync.strip(), 'sync image_to_points')

  def test_the_other_direction_has_its_own_counts(self):
    results = numbers('test/cross', 'image_to_points', 60.0, 8)
    other = numbers('test/cross', 'points_to_image', 40.0, 5)
    for name, value in other.items():
      rate = '/points_to_image/' in name
      name = (
        name if rate else name.replace('/cross/', '/cross/points_to_image/')
      )
      results[name] = value
    _, _, line, _ = tables.text(results, 'test')
    self.assertEndsWith(line, '4 of 5')

  def test_photos_have_no_sequences(self):
    results = numbers('test/photos', 'image_to_image', 60.0, 8, False, 25)
    _, line, _ = tables.text(results, 'test', 25.0)
    self.assertIn('65.0]', line)
    self.assertEqual(line.split()[-4:], ['-', '7', 'of', '8'])

  def test_recall_over_other_sets_of_queries_where_it_differs(self):
    results = numbers('test/photos', 'image_to_image', 60.0, 8, False, 25)
    for i, n in enumerate(tables.RECALL_AT):
      name = f'test/photos/image_to_image/recall@{n}_25m'
      results[f'{name}_of_all_queries'] = 50.0 + i
      results[f'{name}_without_duplicates'] = 40.0 + i
    _, _, all_queries, without, _ = tables.text(results, 'test', 25.0)
    self.assertStartsWith(
      all_queries.split('50.0')[0].strip(), 'of all queries'
    )
    self.assertStartsWith(without.strip(), 'without duplicates')
    self.assertEndsWith(without, '40.0   41.0   42.0   43.0   44.0   45.0')
    for n in tables.RECALL_AT:
      name = f'test/photos/image_to_image/recall@{n}_25m'
      results[f'{name}_of_all_queries'] = results[name]
      del results[f'{name}_without_duplicates']
    self.assertLen([*tables.text(results, 'test', 25.0)], 3)

  def test_sequences_say_how_long_they_are(self):
    results = numbers('test/photos', 'image_to_image', 60.0, 8)
    for i, n in enumerate(tables.RECALL_AT):
      name = f'test/photos/image_to_image/recall@{n}_10m_11_frames'
      results |= {name: 70.0 + i, f'{name}_any_frame': 80.0 + i}
    head, line, any_frame, _ = tables.text(results, 'test', length=11)
    self.assertIn(' 11 frames', head)
    self.assertEndsWith(line.split('  7 of 8')[0], '    70.0')
    self.assertEqual(
      any_frame.split(),
      'any frame of 11 right 80.0 81.0 82.0 83.0 84.0 85.0'.split(),
    )

  def test_units_have_their_words(self):
    at = {
      ('frames', 7): 'within 7 frames',
      ('overlap', 0): 'footprints overlap',
    }
    for (unit, radius), words in at.items():
      results = {
        name.replace('25m', '7frames' if radius else 'overlap'): value
        for name, value in numbers(
          'test/photos', 'image_to_image', 60.0, 8, False, 25
        ).items()
      }
      head, line, _ = tables.text(results, 'test', radius, unit)
      self.assertIn(f'test, {words}, %', head)
      self.assertIn('65.0]', line)

  def test_without_a_recall_the_line_says_why(self):
    results = {
      'test/photos/queries': 8.0,
      'test/photos/queries_without_position': 6.0,
      'test/photos/answerable_25m': 0.0,
    }
    _, line = tables.text(results, 'test', 25.0)
    self.assertEqual(
      line.strip().removeprefix('photos').strip(),
      'none of 8 queries has a right answer; 6 are without position',
    )
    _, line = tables.text(results, 'test', 10.0)
    self.assertEndsWith(line, 'not scored within 10m')


if __name__ == '__main__':
  absltest.main()
