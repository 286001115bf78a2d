# SPDX-License-Identifier: Apache-2.0
"""The verbs in a row on the tiny town, as a user runs them."""

import contextlib
import io
import json
import math
import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

from benchmarks.parity_rows import saliency_i2ploc as released
from configs import common
from configs import saliency_i2ploc
from configs import saliency_i2ploc_kitti360
from i2ploc import verbs
from i2ploc.errors import InputError
from i2ploc.evaluation import questions
from i2ploc.report import html
from i2ploc.retrieval import index as index_lib
from i2ploc.tasks import places as places_lib
from i2ploc.training import checkpoint
from i2ploc.training import state as state_lib
from input_pipeline.sources import drives
from tests import configs_test
from tests import shared
from tests.tasks import recorder


class PlacesTaskTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(tempfile.mkdtemp())
    cls.workdir = cls.root / 'run'
    cls.config = common.smoke(saliency_i2ploc.get_config())
    cls.read = set()
    cls.recorder = recorder.Recorder(cls.config, cls.read)
    data_dir = pathlib.Path(tempfile.gettempdir()) / 'i2ploc_test_data'
    cls.data = drives.Source(data_dir=str(data_dir), **cls.recorder.data)
    verbs.train(cls.recorder, cls.data, cls.workdir)
    verbs.index(cls.recorder, cls.data, cls.workdir)
    queries = sorted(map(str, (cls.workdir / 'queries').glob('*.png')))
    with contextlib.redirect_stdout(io.StringIO()) as cls.printed:
      verbs.localize(cls.recorder, cls.data, cls.workdir, queries[:2])

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.root)
    super().tearDownClass()

  def test_every_leaf_of_the_config_is_read(self):
    unread = set(configs_test.leaves(self.config)) - self.read
    self.assertEmpty(unread)

  def test_results_are_a_flat_dictionary_of_numbers(self):
    results = json.loads((self.workdir / 'results.json').read_text())
    for protocol in ('sync', 'cross', 'opposite'):
      for name in (
        f'test/{protocol}/image_to_points/recall@1_10m',
        f'test/{protocol}/points_to_image/recall@1%_20m',
        f'test/{protocol}/chance@1_10m',
        f'test/{protocol}/answerable_5m',
      ):
        self.assertIn(name, results)
        self.assertIsInstance(results[name], float)
    for sensor in ('image', 'points'):
      self.assertIn(f'test/saliency/{sensor}/moving_share', results)

  def test_evaluating_again_gives_the_same_numbers(self):
    before = json.loads((self.workdir / 'results.json').read_text())
    self.assertEqual(
      verbs.evaluate(self.config, self.data, self.workdir), before
    )

  def test_answers_are_json_lines_with_ranked_poses(self):
    lines = self.printed.getvalue().splitlines()
    self.assertLen(lines, 2)
    for line in lines:
      answers = json.loads(line)['answers']
      self.assertEqual([a['rank'] for a in answers], [1, 2, 3, 4, 5])
      similarities = [a['similarity'] for a in answers]
      self.assertEqual(similarities, sorted(similarities, reverse=True))
      self.assertTrue(all(0 <= a['confidence'] <= 1 for a in answers))

  def test_the_index_holds_each_scan_of_the_map_once_per_view(self):
    with np.load(self.workdir / 'index.npz') as saved:
      keys = saved['keys']
    frames = self.data.split('test').frames
    maps = [q.map_rows for q in questions.between_drives(frames)]
    self.assertLen(set(keys.tolist()), len(np.unique(np.concatenate(maps))))
    self.assertLen(keys, len(set(keys.tolist())) * 2)

  def test_an_index_that_another_model_made_is_refused(self):
    other = self.root / 'other'
    towers = places_lib.make_towers(self.config, self.data)
    variables = dict(towers.init(jax.random.key(1)))
    state = state_lib.init_state(
      variables.pop('params'), variables, lambda _: (), jax.random.key(1)
    )
    checkpoints = checkpoint.open_checkpoints(self.config, other)
    checkpoints.save_best(state, 1.0, {})
    checkpoints.close()
    shutil.copy(self.workdir / 'index.npz', other / 'index.npz')
    with self.assertRaisesRegex(ValueError, 'made by model'):
      verbs.localize(self.config, self.data, other, ['query.png'])

  def test_a_workdir_of_another_config_is_refused_and_left_alone(self):
    before = (self.workdir / 'config.json').read_bytes()
    config = self.config.copy_and_resolve_references()
    config.loss.ignore_radius = 3.0
    config.model.saliency = 'none'
    with self.assertRaisesRegex(
      ValueError, 'another config.*loss.ignore_radius: 8.0 before, 3.0 now.*mod'
    ):
      verbs.train(config, self.data, self.workdir)
    self.assertEqual((self.workdir / 'config.json').read_bytes(), before)

  def test_a_longer_run_continues_and_says_so(self):
    longer = self.root / 'longer'
    shutil.copytree(self.workdir, longer)
    config = self.config.copy_and_resolve_references()
    config.train.num_steps = config.train.eval_every = 3
    config.data.test = ''
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      verbs.train(config, self.data_without_test(), longer)
    self.assertIn('train.num_steps: 2 before, 3 now', printed.getvalue())
    lines = (longer / 'metrics.jsonl').read_text().splitlines()
    self.assertEqual(json.loads(lines[-1])['step'], 3)

  def data_without_test(self):
    data = mock.Mock(
      wraps=self.data, image_size=self.data.image_size, num_frames=1
    )
    data.has = lambda role: role == 'validation'
    return data

  def test_an_option_without_parameters_makes_another_model(self):
    config = self.config.copy_and_resolve_references()
    config.model.num_points = 512
    with self.assertRaisesRegex(
      ValueError, 'a model of another config.*num_points: 1024'
    ):
      verbs.evaluate(config, self.data, self.workdir)

  def test_how_numbers_were_measured_is_told(self):
    told = json.loads((self.workdir / 'evaluation.json').read_text())
    self.assertEqual(told['radius'], 10.0)
    self.assertEqual((told['unit'], told['similarity']), ('m', 'cosine'))
    lines = (self.workdir / 'metrics.jsonl').read_text().splitlines()
    scale = [one['scale'] for one in map(json.loads, lines) if 'scale' in one]
    self.assertAlmostEqual(told['scale'] / scale[-1], 1, places=1)
    self.assertIn('within 10 m, of similarities times', told['confidence'])
    self.assertEqual(told['skipped'], [])

  def test_a_map_of_other_data_is_refused(self):
    config = self.config.copy_and_resolve_references()
    config.data.frustum, config.index.views = 0.5, (0.0,)
    config.seed = 9
    with contextlib.redirect_stderr(io.StringIO()) as said:
      with self.assertRaisesRegex(
        InputError,
        r'index.npz is a map of another config: data.frustum: 0.8 before, 0.5'
        r' now; index.views: .* now\. Use',
      ):
        verbs.localize(config, self.data, self.workdir, ['query.png'])
    # The checkpoint too was trained on other readings.
    self.assertIn('was trained otherwise: data.frustum: 0.8', said.getvalue())

  def test_the_report_shows_the_run(self):
    page = pathlib.Path(html.write_report(self.workdir)).read_text()
    results = json.loads((self.workdir / 'results.json').read_text())
    recall = results['test/cross/image_to_points/recall@1_10m']
    self.assertIn(f'{recall:.1f}', page)
    self.assertIn('data:image/', page)


class PublishedTest(absltest.TestCase):
  def test_the_weights_of_the_authors_stand_in_for_a_checkpoint(self):
    path = shared.GOLDEN / 'saliency_full.safetensors'
    golden = np.load(path.with_suffix('.npz'))
    config = saliency_i2ploc_kitti360.get_config('released')
    model = config.model
    model.image.update(width=96, depth=3, num_heads=6)
    model.points.update(
      width=48, depth=3, num_groups=32, group_size=8, pointnet_features=64
    )
    model.aggregator.update(num_clusters=8, features=32)
    # The reference was given images that had been normalised.
    model.update(
      num_points=512, image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0)
    )
    config.data.image_size = released.SIZE
    config.checkpoint = str(path)
    data = mock.Mock(image_size=released.SIZE, num_frames=1)
    towers = places_lib.make_towers(config, data)
    restored = places_lib.restore(config, towers, 'nowhere')
    batch = released.stored_batch(golden)
    for side, name in (('image', 'img'), ('points', 'pts')):
      found = towers.embed(side)(restored.value, batch)
      np.testing.assert_allclose(
        found, golden[f'eval_w/{name}_desc'], atol=1e-4
      )
    # There is nothing to train where the weights are published.
    with self.assertRaisesRegex(ValueError, "no 'train'; it has .'evaluate'"):
      verbs.train(config, data, 'nowhere')

  def test_a_published_file_that_is_not_there_is_named(self):
    config = common.smoke(saliency_i2ploc.get_config())
    config.checkpoint = 'nowhere.pth'
    data = mock.Mock(image_size=tuple(config.data.image_size), num_frames=1)
    with self.assertRaisesRegex((ValueError, FileNotFoundError), 'nowhere.pth'):
      towers = places_lib.make_towers(config, data)
      places_lib.restore(config, towers, 'nowhere')


class PanoramaTest(absltest.TestCase):
  def test_a_map_of_all_headings_tells_where_a_panorama_looks(self):
    config = common.smoke(saliency_i2ploc.get_config('camera=panorama'))
    config.data.validation, config.data.image_size = '', (32, 208)
    config.model.points.depth = 1
    config.index.views = tuple(i * math.pi / 26 for i in range(-25, 27))
    workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    data_dir = pathlib.Path(tempfile.gettempdir()) / 'i2ploc_test_data'
    data = drives.Source(data_dir=str(data_dir), **config.data)
    verbs.train(config, data, workdir)
    verbs.index(config, data, workdir)
    queries = sorted(map(str, (workdir / 'queries').glob('*.png')))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      verbs.localize(config, data, workdir, queries[:1])
    best = json.loads(printed.getvalue())['answers'][0]
    found = index_lib.load_index(workdir / 'index.npz')
    row = np.flatnonzero(found.keys == best['evidence']['key'])[0]
    ahead = math.atan2(found.poses[row, 1, 0], found.poses[row, 0, 0])
    turned = (best['evidence']['heading'] - ahead) / (math.pi / 26)
    self.assertAlmostEqual(turned, round(turned), places=2)
    # Views are one embedding turned, not embeddings of turned clouds.
    towers = places_lib.make_towers(config, data)
    restored = places_lib.restore(config, towers, workdir)
    (asked, *_) = questions.between_drives(data.split('test').frames)
    rows = asked.map_rows[:1]
    batch = next(data.split('test').batches(rows, ('points',), 1, True))
    single = towers.embed('points')(restored.value, batch)[0]
    views = found.descriptors[found.keys == 0]
    for yaw, view in zip(config.index.views, views, strict=True):
      np.testing.assert_allclose(
        towers.model.towers['points'].turn(single, yaw), view, atol=1e-5
      )
    with np.load(workdir / 'examples.npz') as saved:
      # The scan is drawn all around, not only ahead.
      quarters = np.split(saved['true_depth'][0] > 0, 4, axis=1)
      self.assertGreater(min(quarter.mean() for quarter in quarters), 0.002)
    page = pathlib.Path(html.write_report(workdir)).read_text()
    self.assertIn('data:image/', page)

  def test_views_between_sectors_fail_before_the_training(self):
    config = common.smoke(saliency_i2ploc.get_config('camera=panorama'))
    config.index.views = (0.0, 0.3)
    data = mock.Mock(image_size=tuple(config.data.image_size), num_frames=1)
    with self.assertRaisesRegex(ValueError, 'turned by 0.3 radians.*52'):
      verbs.train(config, data, 'nowhere')
    data.train_batches.assert_not_called()

  def test_a_model_that_cannot_be_fails_before_data_is_made(self):
    config = common.smoke(saliency_i2ploc.get_config())
    data = mock.Mock(image_size=(50, 200), num_frames=1)
    with self.assertRaisesRegex(ValueError, '50 x 200'):
      verbs.train(config, data, 'nowhere')
    data.train_batches.assert_not_called()
    self.assertFalse(pathlib.Path('nowhere').exists())

  def test_what_is_fitted_to_a_map_is_not_trained(self):
    config = common.smoke(saliency_i2ploc.get_config())
    data = mock.Mock(image_size=tuple(config.data.image_size), num_frames=1)
    config.model.aggregator = dict(name='vlad', num_clusters=4)
    with self.assertRaisesRegex(
      ValueError, 'fitted to a map, not trained'
    ) as e:
      verbs.train(config, data, 'nowhere')
    self.assertNotIn('\n', str(e.exception))
    data.train_batches.assert_not_called()

  def test_a_side_that_the_model_lacks_is_named(self):
    config = common.smoke(saliency_i2ploc.get_config())
    config.map_side = 'text'
    data = mock.Mock(image_size=tuple(config.data.image_size), num_frames=1)
    with self.assertRaisesRegex(ValueError, "the map is of 'text'"):
      verbs.index(config, data, 'nowhere')


class OptionsTest(absltest.TestCase):
  def test_the_options_of_training_work_together(self):
    config = common.smoke(saliency_i2ploc.get_config('lidar=range'))
    config.data.test = ''
    config.model.image.depth = config.model.points.depth = 1
    config.model.dtype = 'bfloat16'
    config.train.num_chunks = 2
    config.loss.form = 'concatenated'
    config.loss.relation_weights = (1.0, 2.0, 1.0)
    data_dir = pathlib.Path(tempfile.gettempdir()) / 'i2ploc_test_data'
    data = drives.Source(data_dir=str(data_dir), **config.data)
    with tempfile.TemporaryDirectory() as workdir:
      verbs.train(config, data, workdir)
      lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
    trained = [json.loads(x) for x in lines.splitlines() if '"loss"' in x]
    self.assertTrue(trained)
    for line in trained:
      self.assertTrue(np.isfinite(list(line.values())).all(), line)
      self.assertLessEqual({'euclidean', 'angle', 'hyperbolic'}, set(line))


if __name__ == '__main__':
  absltest.main()
