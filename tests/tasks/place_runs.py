# SPDX-License-Identifier: Apache-2.0
"""Methods of images among images at the size of a test, and what they leave."""

import importlib
import pathlib
import tempfile
from typing import Any

import jax
import ml_collections
import numpy as np

from configs import common
from i2ploc import factory
from i2ploc import files
from i2ploc.models import towers as towers_lib
from i2ploc.training import checkpoint
from i2ploc.training import state as state_lib
from input_pipeline.sources import drives

# Generated once, by whichever test comes first.
DATA_DIR = pathlib.Path(tempfile.gettempdir()) / 'i2ploc_test_data'


def smoke(name: str, arg: str = '') -> ml_collections.ConfigDict:
  """The config of a method, small enough for a test."""
  module = importlib.import_module(f'configs.{name}')
  config = common.smoke(
    module.get_config(','.join(filter(None, ['size=tiny', arg])))
  )
  # Muon takes a third of the time to compile, and has tests of its own.
  config.optimizer.matrix_learning_rate = 0.0
  return config


def source(config: Any) -> drives.Source:
  """The data of a config."""
  return drives.Source(data_dir=str(DATA_DIR), **config.data)


def model_of(config: ml_collections.ConfigDict) -> towers_lib.Towers:
  """The model of a config."""
  return factory.make_model(
    **config.model.to_dict(),
    image_size=config.data.image_size,
    frames=config.data.get('num_frames', 1),
  )


def save_run(
  folder: pathlib.Path, config: ml_collections.ConfigDict, *, best: bool = True
) -> dict:
  """Writes a workdir as a training leaves it.

  Args:
    folder: gets the files.
    config: of the run.
    best: whether it was evaluated, and has a best checkpoint.

  Returns:
    The variables of its model.
  """
  rng = np.random.default_rng(len(folder.name))
  variables = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(x.dtype),
    towers_lib.shapes(model_of(config)),
  )
  params = variables['params'] | {'loss': {'domains': np.ones(3)}}
  others = {k: v for k, v in variables.items() if k != 'params'}
  state = state_lib.init_state(params, others, lambda _: {}, jax.random.key(0))
  checkpoints = checkpoint.open_checkpoints(config, folder)
  if best:
    checkpoints.save_best(state, 1.0, {})
  else:
    checkpoints.save(state, {}, {})
  checkpoints.close()
  files.save_json(folder / 'config.json', config.to_dict())
  return variables
