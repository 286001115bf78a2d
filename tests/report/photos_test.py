# SPDX-License-Identifier: Apache-2.0
"""The page of photos: what was found, right or wrong, failures first."""

import json
import pathlib
import re
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from i2ploc.report import html

NUM_PLACES, NUM_QUERIES, NUM_RANKED = 8, 6, 7
ALL_RANKED = 'test/photos/image_to_image'


def write_photos(folder, photos):
  """Files of 40 x 30 pixels, rows 0 to 7 in the map and 8 to 13 that ask."""
  names = [f'database/{i}.jpg' for i in range(NUM_PLACES)]
  names += [f'queries/<{i}>.png' for i in range(NUM_QUERIES)]
  rng = np.random.default_rng(0)
  for name in names:
    path = photos / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
  drives = ['database'] * NUM_PLACES + ['queries'] * NUM_QUERIES
  content = {
    'folder': str(photos),
    'radius': 25.0,
    'unit': 'm',
    'ordered': False,
    'names': names,
    'drives': drives,
    'numbers': [*range(NUM_PLACES), *range(NUM_QUERIES)],
    'duplicates': [],
    'weights': {'name': 'net', 'what': 'a <network>', 'licence': 'MIT'},
  }
  (folder / 'photos.json').write_text(json.dumps(content))
  return content


def write_predictions(folder, first, positions=None):
  """Places 40 m apart; query q is 5 m beside place q, the last one far away.

  Args:
    folder: the workdir.
    first: the place that answers each query first.
    positions: [Q, 2] of the queries, instead.
  """
  places = np.zeros((NUM_PLACES, 3))
  places[:, 0] = 40 * np.arange(NUM_PLACES)
  places[:, 1] = 3 * (np.arange(NUM_PLACES) % 2)
  queries = places[:NUM_QUERIES] + [5, 0, 0]
  queries[-1] += [0, 1000, 0]
  if positions is not None:
    queries[:, :2] = positions
  distances = np.hypot(*(queries[:, None] - places)[..., :2].T).T
  ranked = np.stack(
    [
      [a, *(b for b in range(NUM_PLACES - 1, -1, -1) if b != a)][:NUM_RANKED]
      for a in first
    ]
  )
  record = {
    'towns': np.full(NUM_QUERIES, 'here'),
    'query_rows': NUM_PLACES + np.arange(NUM_QUERIES),
    'query_positions': queries,
    'ranked_rows': ranked,
    'similarities': np.linspace(0.9, 0.3, NUM_RANKED)[None].repeat(6, 0),
    'distances': np.take_along_axis(distances, ranked, 1),
    'confidence': np.full(NUM_QUERIES, 0.25),
    'nearest': distances.min(1),
    'map_towns': np.full(NUM_PLACES, 'here'),
    'map_rows': np.arange(NUM_PLACES),
    'map_positions': places,
  }
  arrays = {f'{ALL_RANKED}/{k}': v for k, v in record.items()}
  np.savez(folder / 'predictions.npz', **arrays)
  return record


def write_results(folder, within='25m'):
  base = 'test/photos'
  results = {
    f'{base}/queries': 6.0,
    f'{base}/database': 8.0,
    f'{base}/queries_without_position': 1.0,
    f'{base}/answerable_{within}': 3.0,
  }
  for n, rate in (('1', 33.3), ('5', 66.7), ('100', 100.0)):
    key = f'{base}/image_to_image/recall@{n}_{within}'
    results[f'{base}/chance@{n}_{within}'] = rate / 4
    results |= {
      key: rate,
      f'{key}_low': rate - 5,
      f'{key}_high': rate,
      f'{key}_of_all_queries': rate / 2,
      f'{key}_sequences': 88.8,
      f'{key}_5_frames': 77.7,
      f'{key}_5_frames_any_frame': 99.9,
      f'{base}/chance@{n}_{within}_5_frames_any_frame': 11.1,
    }
  (folder / 'results.json').write_text(json.dumps(results))


class PhotosTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.photos = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    config = {
      'name': 'photos',
      'map_side': 'image',
      'checkpoint': 'net',
      'data': {'name': 'photos', 'image_size': [224, 672]},
      'model': {'aggregator': {'name': 'gem', 'features': 0}},
      'index': {'radius': 25.0},
    }
    self.config = config
    (self.folder / 'config.json').write_text(json.dumps(config))
    self.content = write_photos(self.folder, self.photos)

  def report(self):
    return pathlib.Path(html.write_report(self.folder)).read_text('utf-8')

  def change(self, **fields):
    self.content |= fields
    (self.folder / 'photos.json').write_text(json.dumps(self.content))

  def test_failures_come_first_and_signs_say_what_colours_say(self):
    write_predictions(self.folder, [0, 7, 2, 3, 6, 0])
    text = self.report()
    badges = re.findall(r'class="badge (\w+)">(. [\w ]+)<', text)
    wrong, right = ('miss', '✗ wrong'), ('hit', '✓ right')
    none = ('none', '– no right answer in the map')
    self.assertEqual(badges, [wrong, wrong, right, right, right, none])
    for title in ('Wrong at first: 2', 'Right at first: 3'):
      self.assertIn(f'<h3>{title}</h3>', text)
    self.assertIn('<h4>queries/&lt;1&gt;.png</h4>', text)
    first = text.split('<article')[1]
    # Query 1 stands 5 m beside place 1, which comes last of seven answers.
    shown = re.findall(r'told">([^<]+)(?: <b>(.) \w+</b>)?</span>', first)
    expected = [('query', '')]
    expected += [(str(i + 1), '✗') for i in range(4)] + [('7', '✓')]
    self.assertEqual([(a.strip(), b) for a, b in shown], expected)
    self.assertIn('first right answer at rank 7', first)
    self.assertIn('<span>5.0 m off</span><span>similarity 0.300</span>', first)
    self.assertIn('confidence 25 %', first)
    self.assertLen(re.findall('<img src="data:image/jpeg', first), 6)

  def test_the_nearest_photo_is_shown_where_it_was_not_found(self):
    record = write_predictions(self.folder, [7] * NUM_QUERIES)
    record['ranked_rows'][0, :] = [7, 6, 5, 4, 3, 2, 1]
    record['distances'][0] = 100.0
    arrays = {f'{ALL_RANKED}/{k}': v for k, v in record.items()}
    np.savez(self.folder / 'predictions.npz', **arrays)
    first = self.report().split('<article')[1]
    self.assertIn('no right answer among the first 7', first)
    self.assertRegex(first, 'nearest, not found.*✓ right.*5.0 m off')
    self.assertIn('database/0.jpg', first)

  def test_duplicates_are_marked(self):
    self.change(duplicates=[[9, 1]])
    # Its copy answers query 1 last.
    write_predictions(self.folder, [0, 7, 2, 3, 4, 0])
    text = self.report()
    self.assertIn('1 of 6 queries are also in the map', text)
    self.assertLen(re.findall('duplicate of the query', text), 1)
    told = text.split('duplicate of the query')[1]
    self.assertTrue(told.startswith('</span><span class="file">database/1.jpg'))

  def test_many_queries_are_counted_and_few_are_shown(self):
    record = write_predictions(self.folder, [0, 7, 2, 3, 6, 0])
    mapped = {'map_towns', 'map_rows', 'map_positions'}
    arrays = {
      f'{ALL_RANKED}/{k}': v if k in mapped else np.repeat(v, 2000, axis=0)
      for k, v in record.items()
    }
    np.savez(self.folder / 'predictions.npz', **arrays)
    text = self.report()
    self.assertIn('Wrong at first: 4000, of which 12 are shown', text)
    self.assertIn('Right at first: 6000, of which 6 are shown', text)
    self.assertLess(len(text), 1_000_000)
    # Small marks, and not a line for each.
    self.assertIn('class="map many"', text)
    wrong = re.search('leap c-miss" d="([^"]*)"', text)[1]
    self.assertEqual(wrong.count('L'), 200)
    self.assertIn('6000 of 10000 answerable queries right', text)

  def test_numbers_stand_beside_chance_and_both_denominators(self):
    write_results(self.folder)
    text = self.report()
    for key, value in (
      ('image_to_image/recall@5_25m', '66.7'),
      ('chance@5_25m', '16.7'),
      ('image_to_image/recall@5_25m_of_all_queries', '33.4'),
      ('image_to_image/recall@100_25m_sequences', '88.8'),
      # A protocol of its own has a chance of its own.
      ('chance@5_25m_5_frames_any_frame', '11.1'),
    ):
      said = f'data-key="test/photos/{key}">{value}'
      self.assertIn(said, text)
    self.assertIn('Recall@1, 5 frames at 25 m', text)
    self.assertNotIn('Recall@1, 5 frames any', text)
    self.assertRegex(text, r'>3</span> of .*>6</span> queries have a right')
    self.assertIn('2 have none: missed by definition', text)
    self.assertRegex(text, 'truth of .*>1</span> is not known')
    self.assertIn('<h4>Queries (%) with a right answer among', text)

  @parameterized.parameters(
    ('m', 25.0, '25m', 'within 25 m'),
    ('frames', 7.0, '7frames', 'within 7 frames'),
    ('listed', 0.0, 'listed', 'as listed'),
    ('overlap', 0.0, 'overlap', 'where footprints overlap'),
  )
  def test_units(self, unit, radius, within, text):
    self.change(unit=unit, radius=radius)
    write_results(self.folder, within)
    page = self.report()
    self.assertIn(f'Right {text}</h3>', page)
    self.assertIn(f'Recall@1 {text.replace("within", "at")}</div>', page)
    self.assertIn(f'recall@1_{within}_sequences', page)

  def test_whose_weights_and_how_photos_were_seen_is_said(self):
    text = self.report()
    self.assertIn('net; a &lt;network&gt;; licence of the weights: MIT', text)
    self.assertIn('6 ask and 8 answer', text)
    self.assertIn('224 × 672 pixels, stretched', text)
    self.assertNotIn('not those of DINOv2', text)
    self.config['checkpoint'] = 'focus_vit_s14'
    (self.folder / 'config.json').write_text(json.dumps(self.config))
    self.assertIn('its numbers are not those of DINOv2', self.report())

  def test_frames_are_a_chart_of_numbers(self):
    self.change(unit='frames', radius=2.0)
    positions = np.stack([np.arange(6.0), np.zeros(6)], 1)
    record = write_predictions(self.folder, [0, 1, 2, 7, 4, 5], positions)
    places = np.stack([np.arange(8.0), np.zeros(8), np.zeros(8)], 1)
    record['map_positions'] = places
    record['distances'] = abs(positions[:, :1] - record['ranked_rows'])
    record['nearest'] = np.zeros(6)
    arrays = {f'{ALL_RANKED}/{k}': v for k, v in record.items()}
    np.savez(self.folder / 'predictions.npz', **arrays)
    text = self.report()
    self.assertIn('number of the query', text)
    self.assertNotIn('class="leap', text)
    self.assertIn('class="band"', text)
    dots = re.search('class="spot c-hit" d="([^"]*)"', text)[1]
    at = np.array(re.findall(r'M([\d.]+) ([\d.]+)h0', dots), float)
    self.assertLen(at, 5)
    # The next query is answered by the next photo: to the right, and upwards.
    steps = np.diff(at[:3], axis=0)
    np.testing.assert_allclose(steps, np.tile(steps[:1], (2, 1)), atol=0.25)
    self.assertGreater(steps[0, 0], 0)
    self.assertLess(steps[0, 1], 0)
    self.assertIn('class="spot c-miss cross"', text)
    self.assertIn('<span>4 frames off</span>', text)

  def test_positions_make_a_map_with_a_scale(self):
    write_predictions(self.folder, [0, 7, 2, 3, 6, 0])
    text = self.report()
    self.assertLen(re.findall('leap c-miss', text), 1)
    self.assertIn('spot c-miss cross', text)
    self.assertRegex(text, r'class="scale-text"[^>]*>\d+ m<')
    self.assertIn('queries/&lt;1&gt;.png → database/7.jpg', text)

  def test_photos_that_were_asked_alone_need_no_evaluation(self):
    answers = [
      {
        'rank': i + 1,
        'place': 'here',
        'covariance': None,
        'similarity': 0.9 - 0.1 * i,
        'confidence': None if i else 0.75,
        'reason': '',
        'evidence': {
          'name': f'database/{i}.jpg',
          'position': [i, 0, 0] if i < 2 else None,
          'distance_from_best': 1.0 * i,
        },
      }
      for i in range(3)
    ]
    line = {'query': 'queries/<0>.png', 'answers': answers}
    (self.folder / 'answers.jsonl').write_text(json.dumps(line) + '\n')
    text = self.report()
    self.assertNotIn('is missing', text)
    self.assertNotIn('No recall', text)
    shown = text.split('<article')[1].split('</article')[0]
    self.assertLen(re.findall('<img src', shown), 4)
    self.assertIn('confidence 75 %', shown)
    self.assertIn('1 m from answer 1', shown)
    self.assertNotIn('right', shown)

  def test_photos_that_are_gone_are_said_to_be(self):
    write_predictions(self.folder, [0, 7, 2, 3, 6, 0])
    (self.photos / 'database/0.jpg').unlink()
    (self.photos / 'database/2.jpg').write_bytes(b'not an image')
    text = self.report()
    self.assertIn('file not found', text)
    self.assertIn('✗ wrong', text)


if __name__ == '__main__':
  absltest.main()
