# SPDX-License-Identifier: Apache-2.0
"""Published ResNets as a `resnet.ResNet` and its variables.

Of torchvision and timm, whose names are the same, from a file or a folder; and
of Hugging Face. All but the classifier is read, the sizes from the tensors
themselves.
"""

from collections.abc import Mapping
import itertools
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from i2ploc.errors import InputError
from i2ploc.models.encoders import resnet
from i2ploc.models.weights import load
from i2ploc.models.weights import tensor_files
from i2ploc.models.weights import tensors as tensors_lib

# Of the convolutions of a block, by its kind.
PARTS = {
  'basic': ('first', 'second'),
  'bottleneck': ('reduce', 'mix', 'expand'),
}


class ResNetNames(NamedTuple):
  """What a family of checkpoints calls the parts of a `resnet.ResNet`.

  Attributes:
    stem: the first convolution and its norm.
    block: what precedes the names of a block's parts; {stage} from 0, {i}.
    parts: convolution and norm of each of PARTS; a basic block has two.
    shortcut: convolution and norm.
    first_stage: the number of the first stage.
    unused: patterns of tensors that the encoder does without.
  """

  stem: tuple[str, str]
  block: str
  parts: tuple[tuple[str, str], ...]
  shortcut: tuple[str, str]
  first_stage: int
  unused: tuple[str, ...]


TORCHVISION = ResNetNames(
  stem=('conv1', 'bn1'),
  block='layer{stage}.{i}.',
  parts=tuple((f'conv{k}', f'bn{k}') for k in (1, 2, 3)),
  shortcut=('downsample.0', 'downsample.1'),
  first_stage=1,
  unused=('fc.*', '*.num_batches_tracked'),
)


def _hugging_face(layer):
  return f'{layer}.convolution', f'{layer}.normalization'


HUGGING_FACE = ResNetNames(
  stem=_hugging_face('embedder.embedder'),
  block='encoder.stages.{stage}.layers.{i}.',
  parts=tuple(_hugging_face(f'layer.{k}') for k in range(3)),
  shortcut=_hugging_face('shortcut'),
  first_stage=0,
  unused=('*.num_batches_tracked',),
)

_KNOWN = (TORCHVISION, HUGGING_FACE)


def resnet_rules(
  names: ResNetNames,
  model: resnet.ResNet,
  *,
  prefix: str = '',
  place: str = '',
) -> list[load.Rule]:
  """Rules of an encoder.

  Args:
    names: of the checkpoint.
    model: the encoder.
    prefix: in front of every name of the checkpoint, such as
      'encoder_camera.model.'.
    place: of the encoder in the collections, such as 'image/'.
  """

  def conv_norm(to, pair, start):
    conv, norm = (start + name for name in pair)
    return [
      *load.conv(f'params/{place}{to}/conv', conv, bias=False),
      *load.batch_norm(f'{place}{to}/norm', norm),
    ]

  rules = conv_norm('stem', names.stem, prefix)
  for stage, depth in enumerate(model.depths):
    for i in range(depth):
      to = f'stage{stage}_block{i}'
      start = prefix + names.block.format(stage=stage + names.first_stage, i=i)
      parts = PARTS[model.block_kind]
      for part, pair in zip(parts, names.parts[: len(parts)], strict=True):
        rules += conv_norm(f'{to}/{part}', pair, start)
      if not i and _has_shortcut(model, stage):
        rules += conv_norm(f'{to}/shortcut', names.shortcut, start)
  return rules


def _has_shortcut(model, stage):
  """Whether the first block of a stage changes the shape."""
  given = model.expansion * model.widths[stage - 1]
  given = given if stage else model.stem_width
  return stage > 0 or given != model.expansion * model.widths[stage]


class _Checkpoint(NamedTuple):
  """An encoder that was read.

  Attributes:
    tensors: by name.
    names: what they are called.
    attributes: of the `resnet.ResNet` that they fit.
    channels: of its images.
  """

  tensors: tensors_lib.Tensors
  names: ResNetNames
  attributes: dict[str, Any]
  channels: int


def make_resnet(
  path: str | pathlib.Path, part: str | None = None, stage: int = 0
) -> resnet.ResNet:
  """The encoder of a checkpoint, without its variables; see `load_resnet`."""
  return resnet.ResNet(**_attributes(path, _read(path, part), stage))


def load_resnet(
  path: str | pathlib.Path, part: str | None = None, stage: int = 0
) -> tuple[resnet.ResNet, dict]:
  """The encoder of a checkpoint.

  Args:
    path: a file or folder of tensors, see `tensor_files.read_tensors`.
    part: of a file of several networks the one that is meant, see
      `tensors.choose`.
    stage: the first stages to take; 0 for all.

  Returns:
    model: `model.apply(variables, images)`, for images [B, H, W, C] that are
      normalised as the checkpoint wants it.
    variables: {'params': ..., 'batch_stats': ...}, numpy arrays.

  Raises:
    MissingFileError: nothing there.
    InputError: damaged, unknown or ill-fitting checkpoints, see
      `load.convert`; more stages than it has.
  """
  checkpoint = _read(path, part)
  model = resnet.ResNet(**_attributes(path, checkpoint, stage))
  return model, _variables(path, checkpoint, model)


def _attributes(path, checkpoint, stage):
  """Of the encoder of the first stages."""
  attributes = dict(checkpoint.attributes)
  count = len(attributes['depths'])
  if not 0 <= stage <= count:
    raise InputError(
      f'{path} has {count} stages, and stage is {stage}: give 1 to '
      f'{count}, or 0 for all'
    )
  for name in ('widths', 'depths'):
    attributes[name] = attributes[name][: stage or count]
  return attributes


def load_resnet_variables(
  path: str | pathlib.Path, model: resnet.ResNet, part: str | None = None
) -> dict:
  """The variables of a given encoder, as `load_resnet`.

  Raises:
    MissingFileError: nothing there.
    InputError: as `load_resnet`, and for an encoder of other attributes than
      the checkpoint's, which the message gives.
  """
  checkpoint = _read(path, part)
  count = min(len(model.depths), len(checkpoint.attributes['depths']))
  wanted = _attributes(path, checkpoint, count)
  found = {k: _plain(getattr(model, k)) for k in wanted}
  other = {k: v for k, v in wanted.items() if found[k] != v}
  if other:
    raise InputError(
      f'{path} fits an encoder with {other}, and this one has '
      f'{ ({k: found[k] for k in other}) }; set these fields of the config'
    )
  return _variables(path, checkpoint, model)


def _plain(value):
  return value if isinstance(value, int | str) else tuple(value)


def _variables(path, checkpoint, model):
  """A checkpoint as variables of `model`."""
  images = jnp.zeros((1, 64, 64, checkpoint.channels))
  whole = resnet.ResNet(**checkpoint.attributes)
  rules = resnet_rules(checkpoint.names, whole)
  # Of the stages that were left out: known all the same.
  known = tuple(source for rule in rules for source in rule.sources)
  return load.convert(
    checkpoint.tensors,
    resnet_rules(checkpoint.names, model),
    jax.eval_shape(model.init, jax.random.key(0), images),
    ignore=(*checkpoint.names.unused, *known),
    name=str(path),
  )


def places(tensors: tensors_lib.Tensors) -> list[str]:
  """Where encoders begin, see `Tensors.places`."""
  return [place for names in _KNOWN for place in _places(tensors, names)]


def _places(tensors, names):
  """Of one family; a block has a first convolution too, and no block."""
  block = names.block.format(stage=names.first_stage, i=0)
  second = f'{block}{names.parts[1][0]}.weight'
  stems = tensors.places(f'{names.stem[0]}.weight')
  return [place for place in tensors.places(second) if place in set(stems)]


def _read(path, part):
  """Reads a checkpoint and finds out what it is."""
  tensors = tensor_files.read_tensors(path)
  inside = tensors_lib.pick(tensors, places(tensors), part)
  for names in _KNOWN:
    if '' in _places(inside, names):
      return _Checkpoint(inside, names, *sizes_of(inside, names))
  raise InputError(
    f'{path} is no ResNet: it has neither the names of torchvision and timm '
    '(conv1.weight, layer1.0.conv2.weight and so on) nor those of Hugging '
    'Face; ResNets 18, 34, 50, 101 and 152 are known'
  )


def sizes_of(
  tensors: Mapping[str, np.ndarray], names: ResNetNames
) -> tuple[dict[str, Any], int]:
  """Attributes of the encoder, and channels of its images.

  Args:
    tensors: of an encoder alone, without a prefix.
    names: what they are called.
  """

  def kernel(stage, i, part=0):
    start = names.block.format(stage=stage + names.first_stage, i=i)
    return tensors.get(f'{start}{names.parts[part][0]}.weight')

  def count(get):
    return next(n for n in itertools.count() if get(n) is None)

  stages = range(count(lambda stage: kernel(stage, 0)))
  widths = tuple(len(kernel(stage, 0)) for stage in stages)
  stem = tensors[f'{names.stem[0]}.weight']
  last = kernel(0, 0, part=2)
  attributes = dict(
    stem_width=len(stem),
    widths=widths,
    depths=tuple(
      count(lambda i, stage=stage: kernel(stage, i)) for stage in stages
    ),
    expansion=1 if last is None else len(last) // widths[0],
    block_kind='basic' if last is None else 'bottleneck',
  )
  return attributes, stem.shape[1]
