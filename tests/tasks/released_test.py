# SPDX-License-Identifier: Apache-2.0
"""A network that was released for place recognition, by the verbs of photos."""

import contextlib
import io
import json
import pathlib
import tempfile

from absl.testing import absltest
import numpy as np
from PIL import Image
from safetensors import numpy as safetensors_numpy

from i2ploc import verbs
from i2ploc.models import salad
from i2ploc.retrieval import index as index_lib
from i2ploc.tasks import places as places_lib
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


if __name__ == '__main__':
  absltest.main()
