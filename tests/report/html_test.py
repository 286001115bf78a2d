# SPDX-License-Identifier: Apache-2.0
"""The page of a workdir: whole, honest about gaps, safe and self-contained."""

from html import parser
import json
import pathlib
import re
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from i2ploc.report import figures
from i2ploc.report import html
from i2ploc.report import templates

TOWNS = ('town_007', 'town_008')
PROTOCOLS = ('sync', 'cross', 'opposite')
DIRECTIONS = ('image_to_points', 'points_to_image')
FILES_AND_MODES = (
  ('config.json', 'train'),
  ('metrics.jsonl', 'train'),
  ('results.json', 'evaluate'),
  ('predictions.npz', 'evaluate'),
  ('examples.npz', 'evaluate'),
  ('answers.jsonl', 'localize'),
)
SECTIONS = (
  'recall',
  'maps',
  'retrievals',
  'saliency',
  'confidence',
  'answers',
  'learning',
  'config',
)


def fake_results(rng, towns=TOWNS):
  """Every name that an evaluation writes, with plausible numbers."""
  results = {}

  def counts(base):
    results[f'{base}/queries'] = 60.0
    for radius in (5, 10, 20):
      results[f'{base}/answerable_{radius}m'] = 50.0 + radius / 5
      for i, n in enumerate(('1', '5', '10', '20', '1%')):
        results[f'{base}/chance@{n}_{radius}m'] = (i + 1) * radius / 9

  def rates(base, intervals):
    for radius in (5, 10, 20):
      for i, n in enumerate(('1', '5', '10', '20', '1%')):
        for suffix in ('', '_3_frames'):
          name = f'{base}/recall@{n}_{radius}m{suffix}'
          value = float(rng.uniform(20, 40) + 8 * i + radius)
          results[name] = min(value, 100.0)
          if intervals:
            results[f'{name}_low'] = value - 4.2
            results[f'{name}_high'] = min(value + 5.1, 100)
    results[f'{base}/median_error_m'] = float(rng.uniform(3, 60))

  for protocol in PROTOCOLS:
    base = f'test/{protocol}'
    counts(base)
    for direction in DIRECTIONS:
      rates(f'{base}/{direction}', True)
      for town in towns:
        counts(f'{base}/{town.replace("/", "_")}')
        rates(f'{base}/{town.replace("/", "_")}/{direction}', False)
  for sensor in ('image', 'points'):
    results[f'test/saliency/{sensor}/moving_share'] = float(rng.uniform(3, 8))
    results[f'test/saliency/{sensor}/moving_area'] = float(rng.uniform(8, 14))
  return results


def fake_predictions(rng, towns=TOWNS, num_places=60, num_queries=30):
  """Drives around a block; a share of the answers is somewhere else."""
  arrays = {}
  for protocol in PROTOCOLS:
    for direction in DIRECTIONS:
      parts = [
        _fake_town(rng, town, i * num_places, num_places, num_queries)
        for i, town in enumerate(towns)
      ]
      for field in parts[0]:
        arrays[f'test/{protocol}/{direction}/{field}'] = np.concatenate(
          [part[field] for part in parts]
        )
  return arrays


def _loop(t):
  """[N, 3] positions on a rounded block, t in [0, 1]."""
  a = 2 * np.pi * t
  x = 120 * np.clip(1.4 * np.cos(a), -1, 1) + 6 * np.sin(5 * a)
  return np.stack([x, 80 * np.clip(1.4 * np.sin(a), -1, 1), 0 * a], 1)


def _fake_town(rng, town, first_row, num_places, num_queries):
  places = _loop(np.arange(num_places) / num_places)
  queries = _loop(np.sort(rng.uniform(0, 1, num_queries)))
  queries += rng.normal(0, 1, queries.shape)
  queries[:2] += 300  # off the map: not answerable
  distances = np.hypot(*(queries[:, None] - places)[..., :2].T).T
  similarities = 0.9 - distances / 300 + rng.normal(0, 0.12, distances.shape)
  order = np.argsort(-similarities, 1)[:, :20]
  return {
    'towns': np.full(num_queries, town),
    'query_rows': np.arange(num_queries),
    'query_positions': queries,
    'ranked_rows': first_row + order,
    'similarities': np.take_along_axis(similarities, order, 1).astype('f4'),
    'distances': np.take_along_axis(distances, order, 1).astype('f4'),
    'nearest': distances.min(1).astype('f4'),
    'map_towns': np.full(num_places, town),
    'map_rows': first_row + np.arange(num_places),
    'map_positions': places,
    'confidence': rng.uniform(0, 1, num_queries).astype('f4'),
  }


def fake_examples(rng, count=4, shape=(32, 104), town='town_007'):
  height, width = shape
  depth = rng.uniform(2, 70, (2, count, height, width)).astype('f4')
  depth *= rng.uniform(size=depth.shape) < 0.3
  weights = rng.gamma(2, 0.5, depth[1].shape).astype('f4') * (depth[1] > 0)
  return {
    'query_image': rng.integers(0, 255, (count, *shape, 3), dtype=np.uint8),
    'retrieved_depth': depth[0],
    'true_depth': depth[1],
    'saliency_image': rng.gamma(2, 0.5, (count, 4, 13)).astype('f4'),
    'saliency_points': weights,
    # Not in the order of the page, which puts the failures first.
    'distance_m': np.where(np.arange(count) % 2, 143.0, 2.5).astype('f4'),
    'confidence': rng.uniform(0, 1, count).astype('f4'),
    'rank': np.where(np.arange(count) % 2, 37, 1),
    'query_position': rng.normal(0, 50, (count, 2)),
    'retrieved_position': rng.normal(0, 50, (count, 2)),
    'true_position': rng.normal(0, 50, (count, 2)),
    'title': np.array([f'{town} drive_1 frame {i}' for i in range(count)]),
  }


def fake_metrics(rng, num_steps=60):
  for step in range(10, 10 * num_steps, 10):
    record = {
      'step': step,
      'loss': float(4 * np.exp(-step / 200) + rng.uniform(0, 0.3)),
      'recall@1': float(min(0.9, step / 600)),
      'learning_rate': 1e-3,
      'scale': 20.0,
    }
    yield record
    if step % 100 == 0:
      yield {
        'step': step,
        **{
          f'validation/{protocol}/{direction}/recall@1_10m': step / 12
          for protocol in ('cross', 'sync')
          for direction in DIRECTIONS
        },
        'validation/cross/chance@1_10m': None,
      }


def write_workdir(folder, towns=TOWNS, seed=0):
  """A workdir with everything in it, random but plausible."""
  rng = np.random.default_rng(seed)
  folder = pathlib.Path(folder)
  config = {
    'name': 'saliency_i2ploc',
    'seed': 0,
    'data': {'dataset': 'synthetic_city', 'size': 'demo'},
  }
  (folder / 'config.json').write_text(json.dumps(config))
  write_evaluation(folder, config=config)
  (folder / 'metrics.jsonl').write_text(
    ''.join(json.dumps(record) + '\n' for record in fake_metrics(rng))
  )
  (folder / 'results.json').write_text(json.dumps(fake_results(rng, towns)))
  np.savez(folder / 'predictions.npz', **fake_predictions(rng, towns))
  np.savez(folder / 'examples.npz', **fake_examples(rng, town=towns[0]))
  picture = rng.integers(90, 140, (64, 64, 3), dtype=np.uint8)
  name = towns[0].replace('/', '_')
  Image.fromarray(picture).save(folder / f'overview_{name}.png')
  places = {towns[0]: {'center': [0.0, 0.0], 'extent': 400.0}}
  (folder / 'overview.json').write_text(json.dumps(places))
  Image.fromarray(picture).save(folder / 'query.png')
  first = fake_answer(
    towns[0], position=[10.04, -3.0, 1.7], heading=0.5, frame=12
  )
  records = [
    {'query': 'query.png', 'answers': [first, {**first, 'rank': 2}]},
    {'query': 'gone.png', 'answers': []},
  ]
  write_answers(folder, records)
  return folder


def write_evaluation(folder, radius=10.0, **facts):
  """How the numbers of a workdir were measured."""
  told = {'radius': radius, 'unit': 'm', 'similarity': 'cosine', 'scale': 23.45}
  told |= {'confidence': 'a share of a softmax', 'skipped': []}
  (folder / 'evaluation.json').write_text(json.dumps(told | facts))


def fake_answer(place, confidence=0.77, reason='', covariance=None, **evidence):
  return {
    'rank': 1,
    'place': place,
    'world_from_camera': None,
    'covariance': covariance,
    'similarity': 0.8123,
    'confidence': confidence,
    'reason': reason,
    'evidence': {'stage': 'retrieve', 'position': None, **evidence},
  }


def write_answers(folder, records):
  (folder / 'answers.jsonl').write_text(
    ''.join(
      json.dumps({'image_size': [64, 64], **record}) + '\n'
      for record in records
    )
  )


def write_photos(folder, known=True):
  """Image against image: two queries near a map photo, one that is lost."""
  rng = np.random.default_rng(1)
  folder = pathlib.Path(folder)
  places = np.array([[0, 0, 0], [30, 0, 0], [60, 0, 0], [90, 0, 0]], float)
  queries = np.array([[2, 1, 0], [33, 0, 0], [61, 4, 0]], float)
  ranked = np.array([[0, 1], [1, 0], [3, 2]])
  distances = np.linalg.norm(queries[:, None] - places, axis=-1)
  if not known:
    places, queries = places * np.nan, queries * np.nan
    distances = np.full_like(distances, np.inf)
  first = np.take_along_axis(distances, ranked, 1)
  record = {
    'towns': np.full(3, 'lund'),
    'query_rows': 4 + np.arange(3),
    'query_positions': queries,
    'ranked_rows': ranked,
    'similarities': np.full((3, 2), 0.5, np.float32),
    'distances': first,
    'nearest': distances.min(1),
    'map_towns': np.full(4, 'lund'),
    'map_rows': np.arange(4),
    'map_positions': places,
  }
  np.savez(
    folder / 'predictions.npz',
    **{f'test/photos/image_to_image/{k}': v for k, v in record.items()},
  )
  photos = rng.integers(0, 255, (3, 3, 24, 32, 3), dtype=np.uint8)
  np.savez(
    folder / 'examples.npz',
    query_image=photos[:, 0],
    answer_images=photos[:, 1:],
    answer_names=np.array([[f'database/{i}.jpg' for i in r] for r in ranked]),
    answer_distances=first if known else first * np.nan,
    answer_similarities=record['similarities'],
    true_image=photos[:, 0],
    title=np.array(['queries/a.jpg', 'queries/b.jpg', 'queries/<c>.jpg']),
    distance_m=first[:, 0] if known else first[:, 0] * np.nan,
    rank=np.array([1, 1, 2] if known else [-1, -1, -1]),
  )
  config = {'name': 'photos', 'map_side': 'image', 'index': {'radius': 10.0}}
  (folder / 'config.json').write_text(json.dumps(config))
  results = {'test/photos/queries': 3, 'test/photos/map': 4}
  if known:
    results['test/photos/answerable_10m'] = 3
    results['test/photos/chance@1_10m'] = 25.0
    results['test/photos/image_to_image/recall@1_10m'] = 66.7
  (folder / 'results.json').write_text(json.dumps(results))
  (folder / 'photos' / 'database').mkdir(parents=True)
  Image.fromarray(photos[0, 1]).save(folder / 'photos/database/0.png')
  answer = fake_answer('database', None, name='database/0.png')
  write_answers(folder, [{'query': 'queries/a.jpg', 'answers': [answer]}])
  return folder


class _Page(parser.HTMLParser):
  """What a browser would load, show and link."""

  VOID = {'meta', 'link', 'img', 'br'}

  def __init__(self, text):
    super().__init__()
    self.tags, self.numbers, self.open = [], {}, []
    self._key = None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append((tag, attrs))
    if tag not in self.VOID:
      self.open.append(tag)
    self._key = attrs.get('data-key')

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, (tag, self.open)
    self.open.pop()

  def handle_data(self, data):
    if self._key:
      self.numbers.setdefault(self._key, []).append(data)
      self._key = None


class WriteReportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.make_folder()

  def make_folder(self):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    return pathlib.Path(folder.name)

  def report(self):
    path = html.write_report(self.folder)
    self.assertEqual(path, str(self.folder / 'report.html'))
    return pathlib.Path(path).read_text('utf-8')

  def test_the_page_is_whole_and_loads_nothing(self):
    write_workdir(self.folder)
    text = self.report()
    page = _Page(text)
    self.assertEmpty(page.open)
    ids = {attrs.get('id') for _, attrs in page.tags}
    self.assertContainsSubset(SECTIONS, ids)
    self.assertNotRegex(text, r'https?:')
    self.assertNotIn('url(', text)
    for tag, attrs in page.tags:
      for name in ('src', 'href'):
        if name in attrs:
          self.assertRegex(attrs[name], r'^(data:|#)', tag)
          if attrs[name].startswith('#'):
            self.assertIn(attrs[name][1:], ids)
    self.assertNotIn('is missing', text)
    self.assertNotIn('not logged', text)
    self.assertLess(len(text), html.MAX_BYTES)

  def test_numbers_are_those_of_the_results(self):
    write_workdir(self.folder)
    results = json.loads((self.folder / 'results.json').read_text())
    shown = _Page(self.report()).numbers
    for key, texts in shown.items():
      for text in texts:
        value = float(re.match(r'[\d.]+', text)[0])
        self.assertAlmostEqual(value, results[key], delta=0.0501, msg=key)
    for radius in (5, 10, 20):
      for n in ('1', '5', '10', '20', '1%'):
        for direction in DIRECTIONS:
          base = f'test/cross/{direction}/recall@{n}_{radius}m'
          town = f'test/cross/town_008/{direction}/recall@{n}_{radius}m'
          chance = f'test/cross/chance@{n}_{radius}m'
          expected = (base, f'{base}_low', f'{base}_high', town, chance)
          self.assertContainsSubset(expected, shown)
    counts = ('test/cross/queries', 'test/cross/answerable_10m')
    self.assertContainsSubset(counts, shown)

  @parameterized.parameters(*FILES_AND_MODES)
  def test_a_missing_part_is_named_with_its_command(self, file, mode):
    write_workdir(self.folder)
    (self.folder / file).unlink()
    text = self.report()
    self.assertEmpty(_Page(text).open)
    said = f'<strong>{file}</strong> is missing'
    self.assertRegex(text, f'{re.escape(said)}.*--mode={mode}')

  @parameterized.parameters(*FILES_AND_MODES)
  def test_one_part_alone_makes_a_page(self, file, _):
    full = write_workdir(self.make_folder())
    shutil.copy(full / file, self.folder)
    page = _Page(self.report())
    self.assertEmpty(page.open)
    self.assertContainsSubset(SECTIONS, {a.get('id') for _, a in page.tags})

  def test_names_cannot_inject_markup(self):
    evil = '<img src=x onerror=alert(1)>"&town'
    write_workdir(self.folder, towns=(evil, 'town_008'))
    config = {'name': '</title><script>alert(2)</script>', 'data': {'x': evil}}
    (self.folder / 'config.json').write_text(json.dumps(config))
    text = self.report()
    page = _Page(text)
    self.assertEmpty(page.open)
    self.assertNotIn('<img src=x', text)
    self.assertNotIn('<script>alert', text)
    self.assertIn(str(templates.escape(evil)), text)
    self.assertLen([tag for tag, _ in page.tags if tag == 'script'], 1)
    self.assertFalse([a for _, a in page.tags if 'onerror' in a])

  def test_failures_come_first(self):
    write_workdir(self.folder)
    badges = re.findall(r'class="badge (\w+)"', self.report())
    self.assertEqual(badges, ['miss', 'miss', 'hit', 'hit'])

  def test_maps_count_right_answers_among_answerable_queries(self):
    write_workdir(self.folder)
    with np.load(self.folder / 'predictions.npz') as file:
      field = 'test/cross/image_to_points/{}'.format
      there = file[field('towns')] == 'town_007'
      near = file[field('nearest')][there] <= 10
      right = file[field('distances')][there, 0] <= 10
    self.assertLess(near.sum(), len(near))
    expected = f'town_007: {(near & right).sum()} of {near.sum()} queries right'
    self.assertIn(expected, self.report())

  def test_large_examples_still_fit(self):
    write_workdir(self.folder)
    rng = np.random.default_rng(0)
    large = fake_examples(rng, count=8, shape=(192, 720))
    np.savez(self.folder / 'examples.npz', **large)
    self.assertLess(len(self.report()), html.MAX_BYTES)

  def test_a_line_cut_off_by_a_kill_is_left_out(self):
    write_workdir(self.folder)
    with open(self.folder / 'metrics.jsonl', 'a') as file:
      file.write('{"step": 610, "lo')
    self.assertIn('590 steps', self.report())

  def test_an_unknown_workdir_is_refused(self):
    with self.assertRaisesRegex(FileNotFoundError, 'nowhere does not exist'):
      html.write_report(self.folder / 'nowhere')

  def test_an_empty_workdir_is_refused(self):
    with self.assertRaisesRegex(FileNotFoundError, 'nothing to report'):
      html.write_report(self.folder)
    self.assertEmpty(list(self.folder.iterdir()))

  @parameterized.parameters('results.json', 'predictions.npz', 'metrics.jsonl')
  def test_a_broken_file_is_named(self, file):
    write_workdir(self.folder)
    (self.folder / file).write_text('{broken\n{"step": 1}\n')
    with self.assertRaisesRegex(ValueError, re.escape(file)):
      html.write_report(self.folder)

  def test_examples_of_different_lengths_are_named(self):
    write_workdir(self.folder)
    broken = fake_examples(np.random.default_rng(0))
    broken['rank'] = broken['rank'][:-1]
    np.savez(self.folder / 'examples.npz', **broken)
    with self.assertRaisesRegex(ValueError, 'examples.npz.*different lengths'):
      html.write_report(self.folder)

  @parameterized.parameters((10.0, 2), (2.5, 1), (1.0, 0))
  def test_the_radius_is_that_of_the_config(self, radius, num_right):
    """Answers are 2.2, 3 and 29 m off."""
    write_photos(self.folder)
    config = json.loads((self.folder / 'config.json').read_text())
    config['index']['radius'] = radius
    (self.folder / 'config.json').write_text(json.dumps(config))
    text = self.report()
    badges = re.findall(r'class="badge (\w+)">\w+</span>\n<h4', text)
    self.assertEqual(badges.count('hit'), num_right)

  @parameterized.parameters(5.0, 20.0)
  def test_the_radius_of_the_evaluation_goes_before_that_of_the_run(
    self, radius
  ):
    write_workdir(self.folder)
    before = json.loads((self.folder / 'config.json').read_text())
    before['index'] = {'radius': 10.0}
    (self.folder / 'config.json').write_text(json.dumps(before))
    config = before | {'index': {'radius': radius}}
    write_evaluation(self.folder, radius, config=config)
    text = self.report()
    self.assertIn(f'Recall@1 at {radius:g} m', text)
    self.assertIn(f'within {radius:g} m are right', text)
    with np.load(self.folder / 'predictions.npz') as file:
      field = 'test/cross/image_to_points/{}'.format
      there = file[field('towns')] == 'town_007'
      near = file[field('nearest')][there] <= radius
      right = near & (file[field('distances')][there, 0] <= radius)
    self.assertIn(f'{right.sum()} of {near.sum()} queries right', text)
    # Both configs are on the page; the curve shows what was logged.
    self.assertIn('of the evaluation</summary>', text)
    self.assertIn('Validation Recall@1 within 10 m (%)', text)

  def test_without_a_radius_nothing_is_right_or_wrong(self):
    write_workdir(self.folder)
    (self.folder / 'evaluation.json').unlink()
    text = self.report()
    self.assertIn('<strong>evaluation.json</strong> is missing', text)
    self.assertNotRegex(text, r'class="badge (hit|miss)')
    self.assertNotRegex(text, r'\bnan ?m?\b')

  def test_confidence_scale_and_what_was_left_out_are_those_of_the_run(self):
    write_workdir(self.folder)
    write_evaluation(
      self.folder,
      similarity='dot',
      confidence='made of <tea leaves>',
      skipped=['3 of 60 frames have no image'],
    )
    answer = fake_answer('town_007', confidence_within='7 frames')
    write_answers(self.folder, [{'query': 'query.png', 'answers': [answer]}])
    text = self.report()
    self.assertIn(
      'The confidence of an answer: made of &lt;tea leaves&gt;.', text
    )
    self.assertIn('dot product, of any size; learned scale 23.45', text)
    self.assertIn('Left out: 3 of 60 frames have no image.', text)
    self.assertIn('that of a place within 7 frames of the answer', text)
    self.assertNotIn('softmax', text)

  def test_photos_are_shown_beside_what_was_found(self):
    write_photos(self.folder)
    text = self.report()
    page = _Page(text)
    self.assertEmpty(page.open)
    self.assertIn('The photos of a map answer', text)
    self.assertIn('Recall@1 at 10 m', text)
    self.assertIn('chance 25.0', text)
    self.assertNotIn('is missing', text)
    self.assertNotIn('LiDAR', text)
    self.assertIn('1: right, 2.2 m, similarity 0.50 · database/0.jpg', text)
    self.assertRegex(text, '1: wrong, 29.3 m.* database/3.jpg')
    # Failures first; names are escaped.
    titles = re.findall(r'<h4>(queries[^<]*)</h4>', text)
    self.assertEqual(titles[0], 'queries/&lt;c&gt;.jpg')
    # The map leads from each query to its photo, the wrong one in red.
    self.assertRegex(text, r'leap c-miss" d="M[\d. ]+L[\d. ]+"')
    self.assertRegex(text, r'leap c-hit" d="(M[\d. ]+L[\d. ]+){2}"')
    self.assertNotIn('<img', text.split('id="answers"')[1])
    text = pathlib.Path(
      html.write_report(self.folder, str(self.folder / 'photos'))
    ).read_text()
    # The photo that answers is in the folder of the data.
    answers = text.split('id="answers"')[1]
    self.assertIn('<figure class="tile-photo"><img src', answers)

  def test_photos_without_positions_are_neither_right_nor_wrong(self):
    write_photos(self.folder, known=False)
    text = self.report()
    self.assertEmpty(_Page(text).open)
    self.assertIn('No recall: the positions', text)
    self.assertIn('1: unknown, similarity 0.50 · database/0.jpg', text)
    self.assertEqual(re.findall(r'class="badge (\w+)">', text)[:1], ['unknown'])
    self.assertNotIn('class="map"', text)
    self.assertNotRegex(text, r'\bnan\b')

  def test_confidence_is_that_of_the_evaluation(self):
    """Not a softmax over the few answers that were saved."""
    write_workdir(self.folder)
    with np.load(self.folder / 'predictions.npz') as file:
      arrays = dict(file)
    name = 'test/cross/image_to_points'
    arrays[f'{name}/confidence'] = np.full(60, 0.25, np.float32)
    np.savez(self.folder / 'predictions.npz', **arrays)
    near = arrays[f'{name}/nearest'] <= 10
    right = (arrays[f'{name}/distances'][:, 0] <= 10)[near]
    drawn = re.search(r'dot c-cross" d="M([\d.]+) ([\d.]+)h0"', self.report())
    axes = figures._Axes([figures.Series('', '', *np.eye(2))], (0, 100), False)
    expected = axes.place(np.float32(0.25), 100 * right.mean())
    found = np.array(drawn.groups(), float)
    np.testing.assert_allclose(found, expected, atol=0.06)

  def test_an_answer_shows_its_boxes_its_deviation_and_its_reason(self):
    write_workdir(self.folder)
    pose = fake_answer(
      'desk',
      covariance=(np.eye(6) * 0.0012).tolist(),
      position=[1.0, 2.0, 3.0],
      heading=None,
      boxes=[[8, 8, 24, 40]],
      outlines=[
        {
          'box': 0,
          'name': '<mug>',
          'overlap': 0.8,
          'points': [[8, 8], [24, 40]],
        }
      ],
    )
    reason = 'a pose needs three'
    records = [
      {'query': 'query.png', 'answers': [pose]},
      {'query': 'query.png', 'answers': [fake_answer('desk', 0.0, reason)]},
    ]
    write_answers(self.folder, records)
    text = self.report()
    self.assertEmpty(_Page(text).open)
    self.assertIn('d="M40.0 40.0H120.0V200.0H40.0Z"', text)  # 64 to 320 pixels
    self.assertIn('&lt;mug&gt;, overlap 0.80', text)
    self.assertIn('± 0.06', text)  # sqrt(3 * 0.0012)
    self.assertIn(reason, text)

  def test_answers_of_an_older_version_are_refused(self):
    write_workdir(self.folder)
    (self.folder / 'answers.jsonl').write_text(
      json.dumps({'query': 'a.png', 'answers': [{'rank': 1, 'town': 'x'}]})
    )
    with self.assertRaisesRegex(ValueError, 'answers.jsonl, line 1.*localize'):
      html.write_report(self.folder)


class PicturesTest(absltest.TestCase):
  def test_the_nearest_return_wins_where_dots_grow(self):
    depth = np.zeros((5, 7), np.float32)
    depth[2, 2], depth[2, 4] = 5, 50
    picture = figures.depth_picture(depth)
    np.testing.assert_array_equal(picture[2, 3], picture[2, 2])
    np.testing.assert_array_equal(picture[2, 5], picture[2, 4])
    np.testing.assert_array_equal(picture[0, 0], 12)

  def test_broken_numbers_are_drawn_as_nothing(self):
    depth = np.full((4, 6), np.nan, np.float32)
    np.testing.assert_array_equal(figures.depth_picture(depth), 12)
    grey = np.full((8, 12, 3), 100, np.uint8)
    picture = figures.saliency_on_image(grey, np.full((2, 3), np.nan))
    self.assertEqual(np.ptp(picture.reshape(-1, 3), 0).max(), 0)

  def test_a_map_is_drawn_north_up_and_to_scale(self):
    corners = np.array([[0.0, 0.0], [100.0, 0.0], [100.0, 100.0]])
    trip = figures.Trip(corners, corners, corners, np.full(3, 'hit'))
    drawn = figures.trajectory_map(
      trip, label='x', picture_id='p', square=((50.0, 50.0), 140.0)
    )
    # 7 m of margin on each side of 100 m.
    scale = 560 / 114
    dots = re.search(r'spot c-hit" d="([^"]*)"', drawn)[1]
    at = np.array(re.findall(r'M([\d.]+) ([\d.]+)', dots), float)
    expected = scale * np.array([[7, 107], [107, 107], [107, 7]])
    np.testing.assert_allclose(at, expected, atol=0.06)
    picture = re.search(r'<use [^>]*x="(\S+)" y="(\S+)" width="(\S+)"', drawn)
    placed = np.array(picture.groups(), float)
    expected = scale * np.array([-13, -13, 140])
    np.testing.assert_allclose(placed, expected, atol=0.06)


if __name__ == '__main__':
  absltest.main()
