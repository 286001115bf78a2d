# SPDX-License-Identifier: Apache-2.0
"""A network that was released for place recognition, by the verbs of photos."""

import contextlib
import io
import json
import math
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np
from PIL import Image
from safetensors import numpy as safetensors_numpy

from configs import common
from configs import saliency_i2ploc
from i2ploc import verbs
from i2ploc.evaluation import questions
from i2ploc.models import salad
from i2ploc.report import html
from i2ploc.retrieval import index as index_lib
from i2ploc.tasks import places as places_lib
from input_pipeline.sources import drives
from input_pipeline.sources import opening
from tests import configs_test
from tests.models.weights import released_tensors


class ReleasedTest(absltest.TestCase):
  """A network that was released for place recognition, at a small size."""

  SHAPES = {
    'salad': released_tensors.salad(64, 2, 5, 6, 7, 20),
    'mixvpr': released_tensors.mixvpr(6, 3, 4, 2, (8, 8, 16)),
  }

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 255, (9, 6, 8, 3), np.uint8)
    for i in range(12):
      name = 'database' if i < 9 else 'queries'
      east = 500_000 + 100 * (i % 9)
      path = self.root / f'photos/{name}/@{east}@6000000@33@U@{i}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      size = (120, 90) if i < 9 else (160, 100)
      Image.fromarray(scenes[i % 9]).resize(size).save(path)

  def _config(self, method, size, **fields):
    file = self.root / 'whatever.pth'
    safetensors_numpy.save_file(
      released_tensors.random(self.SHAPES[method]), file
    )
    arguments = dict(encoder=file, image_size=size, **fields)
    config = configs_test.load(
      'photos', ','.join(f'{k}={v}' for k, v in arguments.items())
    )
    return config, opening.open_source(config, str(self.root / 'photos'))

  def test_the_verbs_take_encoder_and_aggregator_of_one_file(self):
    config, data = self._config('salad', '42x56', pooling='released')
    workdir = self.root / 'run'
    queries = sorted(map(str, (self.root / 'photos/queries').glob('*')))
    with contextlib.redirect_stdout(io.StringIO()):
      results = verbs.evaluate(config, data, workdir)
      verbs.index(config, data, workdir)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      verbs.localize(config, data, workdir, queries)
    self.assertEqual(results['test/photos/image_to_image/recall@1_25m'], 100)
    model = places_lib.make_towers(config, data).model
    tower = model.towers['image']
    self.assertIsInstance(tower.aggregator, salad.SALAD)
    self.assertTrue(tower.with_cls)
    lines = map(json.loads, printed.getvalue().splitlines())
    names = [line['answers'][0]['evidence']['name'] for line in lines]
    numbers = [name.rpartition('@')[2] for name in names]
    self.assertEqual(numbers, ['0.png', '1.png', '2.png'])
    descriptors = index_lib.load_index(workdir / 'index.npz').descriptors
    self.assertEqual(descriptors.shape[-1], 7 + 5 * 6)

  def test_a_size_that_the_network_cannot_do_is_named(self):
    config, data = self._config('mixvpr', '64x96')
    with self.assertRaisesRegex(ValueError, 'authors.* 64 x 64'):
      places_lib.make_towers(config, data)


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
    data = mock.Mock(image_size=tuple(config.data.image_size))
    with self.assertRaisesRegex(ValueError, 'turned by 0.3 radians.*52'):
      verbs.train(config, data, 'nowhere')
    data.train_batches.assert_not_called()

  def test_a_model_that_cannot_be_fails_before_data_is_made(self):
    config = common.smoke(saliency_i2ploc.get_config())
    data = mock.Mock(image_size=(50, 200))
    with self.assertRaisesRegex(ValueError, '50 x 200'):
      verbs.train(config, data, 'nowhere')
    data.train_batches.assert_not_called()
    self.assertFalse(pathlib.Path('nowhere').exists())

  def test_a_side_that_the_model_lacks_is_named(self):
    config = common.smoke(saliency_i2ploc.get_config())
    config.map_side = 'text'
    data = mock.Mock(image_size=tuple(config.data.image_size))
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
