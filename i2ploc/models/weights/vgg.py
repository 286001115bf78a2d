# SPDX-License-Identifier: Apache-2.0
"""Published VGGs as a `vgg.VGG` and its variables.

Layers are numbered, ReLUs and poolings with them: `features.0.weight`,
`features.2.weight` and so on of torchvision, or behind any other prefix. The
sizes are read from the tensors. Those with BatchNorm are other networks.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.errors import InputError
from i2ploc.models.encoders import vgg
from i2ploc.models.weights import load
from i2ploc.models.weights import tensor_files
from i2ploc.models.weights import tensors as tensors_lib

TORCHVISION = 'features.'
_UNUSED = ('classifier.*',)


def vgg_rules(
  model: vgg.VGG, *, prefix: str = TORCHVISION, place: str = ''
) -> list[load.Rule]:
  """Rules of an encoder.

  Args:
    model: the encoder.
    prefix: in front of every number of the checkpoint.
    place: of the encoder in the collections, such as 'image/'.
  """
  rules, number = [], 0
  for stage, depth in enumerate(model.depths):
    for i in range(depth):
      to = f'params/{place}stage{stage}_conv{i}'
      rules += load.conv(to, f'{prefix}{number}')
      number += 2  # over a ReLU
    number += 1  # over a pooling
  return rules


def is_vgg(
  tensors: Mapping[str, np.ndarray], prefix: str = TORCHVISION
) -> bool:
  """Whether layer 0 is a 3 x 3 convolution, and layer 1 has no parameters."""
  first = tensors.get(f'{prefix}0.weight')
  bare = f'{prefix}1.weight' not in tensors
  return first is not None and first.shape[2:] == (3, 3) and bare


def attributes_of(
  tensors: Mapping[str, np.ndarray], prefix: str = TORCHVISION
) -> dict[str, Any]:
  """Attributes of the `vgg.VGG` that tensors fit.

  Args:
    tensors: of the checkpoint, those of an `is_vgg`.
    prefix: in front of every number.
  """
  widths, depths, number = [], [], 0
  while f'{prefix}{number}.weight' in tensors:
    widths.append(len(tensors[f'{prefix}{number}.weight']))
    depths.append(0)
    while f'{prefix}{number}.weight' in tensors:
      depths[-1] += 1
      number += 2
    number += 1
  return dict(widths=tuple(widths), depths=tuple(depths))


def places(tensors: tensors_lib.Tensors) -> list[str]:
  """Where encoders of torchvision begin, see `Tensors.places`."""
  found = tensors.places(f'{TORCHVISION}0.weight')
  return [place for place in found if is_vgg(tensors.below(place))]


def _read(path, part):
  tensors = tensor_files.read_tensors(path)
  return tensors_lib.pick(tensors, places(tensors), part)


def make_vgg(
  path: str | pathlib.Path, part: str | None = None, stage: int = 0
) -> vgg.VGG:
  """The encoder of a checkpoint of torchvision, without its variables.

  Args:
    path: a file of tensors, see `tensor_files.read_tensors`.
    part: of a file of several networks the one that is meant, see
      `tensors.choose`.
    stage: the first stages to take; 0 for all.

  Raises:
    MissingFileError: nothing there.
    InputError: damaged, or more stages than it has.
  """
  attributes = attributes_of(_read(path, part))
  count = len(attributes['depths'])
  if not 0 <= stage <= count:
    raise InputError(
      f'{path} has {count} stages, and stage is {stage}: give 1 to '
      f'{count}, or 0 for all'
    )
  return vgg.VGG(**{k: v[: stage or count] for k, v in attributes.items()})


def load_vgg_variables(
  path: str | pathlib.Path, model: vgg.VGG, part: str | None = None
) -> dict:
  """The variables of an encoder.

  Args:
    path: as of `make_vgg`.
    model: the encoder, of all stages or the first ones.
    part: as of `make_vgg`.

  Returns:
    {'params': ...}, numpy arrays.

  Raises:
    MissingFileError: nothing there.
    InputError: damaged or ill-fitting checkpoints, see `load.convert`.
  """
  tensors = _read(path, part)
  whole = vgg.VGG(**attributes_of(tensors))
  # Of the stages that were left out: known all the same.
  known = [source for rule in vgg_rules(whole) for source in rule.sources]
  images = jnp.zeros((1, 32, 32, 3))
  return load.convert(
    tensors,
    vgg_rules(model),
    jax.eval_shape(model.init, jax.random.key(0), images),
    ignore=(*_UNUSED, *known),
    name=str(path),
  )
