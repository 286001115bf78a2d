# SPDX-License-Identifier: Apache-2.0
"""The verbs on a folder of small photos, as a user runs them."""

import contextlib
import io
import json
import pathlib
import shutil
import tempfile

from absl.testing import absltest
import ml_collections
import numpy as np
from PIL import Image

from i2ploc import verbs
from input_pipeline.sources import opening
from tests import configs_test
from tests import shared

ENCODER = shared.GOLDEN / 'dinov2_tiny'
NORTH = 6_000_000
STEP = 100  # metres from scene to scene
VLAD = 'pooling=vlad,words=4'


def east(i: int) -> int:
  """Where scene i is, metres."""
  return 500_000 + STEP * i


def save_scene(
  folder: pathlib.Path,
  i: int,
  *,
  shift: int = 0,
  size: tuple[int, int] = (90, 120),
  change: float = 0.0,
) -> pathlib.Path:
  """A photo of scene i, taken some metres east of it, and named so.

  `change` is the share of it that another season has painted over.
  """
  scene, other = (
    np.random.default_rng(seed).uniform(0, 255, (6, 8, 3))
    for seed in (i, 1000 + i)
  )
  scene = (1 - change) * scene + change * other
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f'@{east(i) + shift}@{NORTH}@.png'
  Image.fromarray(scene.astype(np.uint8)).resize(size[::-1]).save(path)
  return path


def config_of(arg: str = '', **overrides) -> ml_collections.ConfigDict:
  """The config of photos with a tiny encoder.

  Args:
    arg: after its colon.
    **overrides: of its leaves, '_' twice for the dot.
  """
  arg = f'encoder={ENCODER},image_size=42x56,{arg or "pooling=gem"}'
  config = configs_test.load('photos', arg)
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in overrides.items()}
  )
  return config


class PhotosTestCase(absltest.TestCase):
  """With a temporary `root`, and photos of a dozen scenes in `photos`."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(tempfile.mkdtemp())
    cls.workdir, cls.photos = cls.root / 'run', cls.root / 'photos'
    cls.make_photos()

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.root)
    super().tearDownClass()

  @classmethod
  def make_photos(cls):
    """Twelve scenes, and queries 5 m from two of them."""
    for i in range(12):
      save_scene(cls.photos / 'database', i)
    for i in (1, 4):
      save_scene(cls.photos / 'queries', i, shift=5, size=(100, 160))

  @classmethod
  def query(cls, i: int) -> str:
    """The path of a query."""
    return str(cls.photos / f'queries/@{east(i) + 5}@{NORTH}@.png')

  @classmethod
  def place(cls, i: int) -> str:
    """The name of a photo of the database."""
    return f'database/@{east(i)}@{NORTH}@.png'

  @classmethod
  def run_verb(
    cls, verb, config, *queries, workdir=None, photos=None, **options
  ) -> str:
    """What a verb prints; `options` are its own."""
    data = opening.open_source(config, str(photos or cls.photos))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      getattr(verbs, verb)(
        config,
        data,
        workdir or cls.workdir,
        *([list(queries)] * bool(queries)),
        **options,
      )
    return printed.getvalue()

  @classmethod
  def localize(cls, config, *queries, **where) -> list[dict]:
    """The answers to some paths, query by query."""
    printed = cls.run_verb('localize', config, *queries, **where)
    return [json.loads(line) for line in printed.splitlines()]

  def results(self, workdir=None) -> dict[str, float]:
    """What an evaluation measured, less the first parts of the names."""
    path = (workdir or self.workdir) / 'results.json'
    return {
      name.removeprefix('test/photos/').removeprefix('image_to_image/'): value
      for name, value in json.loads(path.read_text()).items()
    }
