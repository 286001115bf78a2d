# SPDX-License-Identifier: Apache-2.0
"""Variables of a finished run, for its own model or for one that shares towers.

A workdir is named where published weights could be: to evaluate its towers on
other data, or to start from them.
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from i2ploc import factory
from i2ploc.errors import InputError
from i2ploc.errors import MissingFileError
from i2ploc.models import fitting
from i2ploc.models import towers as towers_lib
from i2ploc.training import checkpoint

_INNER = 'inner'  # aggregator of a fusion
_SHARED = 'image'  # whose tower stands for those that a run does not have


def is_run(path: str | pathlib.Path) -> bool:
  """Whether a path is the workdir of a training."""
  return (pathlib.Path(path).expanduser() / 'checkpoints').is_dir()


def load_variables(
  workdir: str | pathlib.Path,
  model: towers_lib.Towers,
  fresh: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """The best checkpoint of a run, side by side.

  Args:
    workdir: of the run.
    model: whose sides take the run's towers of the same name; those that the
      run does not have take that of its images, as renderings do at first. The
      aggregator of single images is that of frames in a fusion.
    fresh: variables of the model, for what a fusion adds to that; None where it
      adds nothing.

  Returns:
    The variables of `model`.

  Raises:
    MissingFileError: no checkpoint, or no config.json.
    InputError: towers that differ.
  """
  workdir = pathlib.Path(workdir).expanduser()
  path = workdir / 'config.json'
  if not path.exists():
    raise MissingFileError(
      f'{path} is missing: expected the workdir of a training, which writes it.'
    )
  config = _tuples(json.loads(path.read_text()))
  own = factory.make_model(
    **config['model'],
    image_size=config['data']['image_size'],
    frames=config['data'].get('num_frames', 1),
  )
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints')
  try:
    found = checkpoints.restore_best(towers_lib.shapes(own)).value
  finally:
    checkpoints.close()
  variables: dict[str, Any] = {}
  for collection, modules in towers_lib.shapes(model).items():
    for name, wanted in modules.items():
      if collection == fitting.COLLECTION:
        variables.setdefault(collection, {})[name] = _not_fitted(wanted)
        continue
      source = _source(name, model, own)
      value = found.get(collection, {}).get(source)
      if _is_fusion(wanted) and not _is_fusion(value):
        added = fresh[collection][name] if fresh else {}
        value = {**added, _INNER: value}
      if value is None or _shapes(value) != _shapes(wanted):
        raise InputError(
          f'{workdir}: its {source!r} does not fit {name!r} of this model. Take'
          ' the config of the run, or its towers alone.'
        )
      variables.setdefault(collection, {})[name] = value
  return variables


def _source(name, model, own):
  """The module of a run that a module of a model is taken from."""
  for side in model.towers:
    if name == side or name.startswith(f'{side}_'):
      return name if side in own.towers else _SHARED + name[len(side) :]
  return name


def _is_fusion(module):
  return isinstance(module, Mapping) and _INNER in module


def _not_fitted(shapes):
  """What belongs to a map, until it is fitted to one."""
  return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)


def _tuples(value):
  """JSON's lists as the tuples that they were."""
  if isinstance(value, dict):
    return {name: _tuples(one) for name, one in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _shapes(tree):
  return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)
