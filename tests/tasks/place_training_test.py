# SPDX-License-Identifier: Apache-2.0
"""Every method of images among images trains, at the size of a test."""

import contextlib
import importlib
import io
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from configs import common
from i2ploc import verbs
from input_pipeline.sources import drives
from tests import configs_test
from tests.tasks import recorder

DATA_DIR = pathlib.Path(tempfile.gettempdir()) / 'i2ploc_test_data'
METHODS = (
  ('cos_place', ''),
  ('eigen_places', ''),
  ('eigen_places', 'panoramas=false'),
  ('deep_vg', ''),
  ('gsv_cities', ''),
  ('gsv_cities', 'loss=info_nce,aggregator=gem'),
  ('seq_vlad', 'frames=3'),
  ('seq_vlad', 'frames=3,fusion=transformer,aggregator=gem'),
  ('ada_geo', 'target=2'),
  ('mesh_vpr', ''),
)


def smoke(name: str, arg: str):
  """The config of a method, small enough for a test."""
  module = importlib.import_module(f'configs.{name}')
  config = common.smoke(
    module.get_config(','.join(filter(None, ['size=tiny', arg])))
  )
  return config


class PlaceTrainingTest(parameterized.TestCase):
  @parameterized.parameters(*METHODS)
  def test_the_method_trains(self, name, arg):
    workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    config, read = smoke(name, arg), set()
    recorded = recorder.Recorder(config, read)
    data = drives.Source(data_dir=str(DATA_DIR), **recorded.data)
    verbs.train(recorded, data, workdir)
    verbs.index(recorded, data, workdir)
    queries = sorted(map(str, (workdir / 'queries').glob('*.png')))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      verbs.localize(recorded, data, workdir, queries[:1])
    self.assertLen(json.loads(printed.getvalue())['answers'], 5)
    unread = set(configs_test.leaves(config)) - read
    self.assertEmpty(unread)
    results = json.loads((workdir / 'results.json').read_text())
    side = 'rendering' if name == 'mesh_vpr' else 'image'
    self.assertIn(f'test/cross/image_to_{side}/recall@1_10m', results)


if __name__ == '__main__':
  absltest.main()
