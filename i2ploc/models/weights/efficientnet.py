# SPDX-License-Identifier: Apache-2.0
"""The published EfficientNet-Lite0 as variables of `efficientnet`.

By the names of the port to torch that is in the Python index
(`sources.SOURCES`); its numbers are those of the authors' TensorFlow.
"""

from collections.abc import Iterable
import pathlib

import jax
import jax.numpy as jnp

from i2ploc.models.encoders import efficientnet
from i2ploc.models.weights import load
from i2ploc.models.weights import tensor_files
from i2ploc.models.weights import tensors as tensors_lib

# What its images were standardised by: (x - 127) / 128 of x in 0..255.
MEAN = (127 / 255, 127 / 255, 127 / 255)
STD = (128 / 255, 128 / 255, 128 / 255)
_UNUSED = ('_fc.*', '*.num_batches_tracked')
# What is asked of a checkpoint to be one.
_NAMES = ('_conv_stem.weight', '_blocks.0._depthwise_conv.weight')


def efficientnet_rules(place: str = '') -> list[load.Rule]:
  """Rules of an encoder, those of all stages.

  Args:
    place: of the encoder in the collections, such as 'image/'.
  """

  def norm(to, name):
    return load.batch_norm(f'{place}{to}_norm/norm', name)

  def pointwise(to, name):
    return load.Rule(
      f'params/{place}{to}/kernel', (f'{name}.weight',), _as_matrix
    )

  rules = [
    *load.conv(f'params/{place}stem', '_conv_stem', bias=False),
    *norm('stem', '_bn0'),
    pointwise('head', '_conv_head'),
    *norm('head', '_bn1'),
  ]
  number = 0
  for i, stage in enumerate(efficientnet.LITE0, 1):
    for j in range(stage.depth):
      to, name = f'stage{i}_block{j}', f'_blocks.{number}.'
      if stage.expansion > 1:
        rules.append(pointwise(f'{to}/expand', f'{name}_expand_conv'))
        rules += norm(f'{to}/expand', f'{name}_bn0')
      mix = f'{name}_depthwise_conv'
      rules += load.conv(f'params/{place}{to}/mix', mix, bias=False)
      rules += norm(f'{to}/mix', f'{name}_bn1')
      rules.append(pointwise(f'{to}/reduce', f'{name}_project_conv'))
      rules += norm(f'{to}/reduce', f'{name}_bn2')
      number += 1
  return rules


def _as_matrix(kernel):
  """A 1 x 1 convolution's kernel as that of a product."""
  return kernel[:, :, 0, 0].T


def is_efficientnet(tensors: Iterable[str]) -> bool:
  """Whether tensors have the names of an EfficientNet."""
  return set(_NAMES) <= set(tensors)


def places(tensors: tensors_lib.Tensors) -> list[str]:
  """Where encoders begin, see `Tensors.places`."""
  return [
    place
    for place in tensors.places(_NAMES[0])
    if is_efficientnet(tensors.below(place))
  ]


def make_efficientnet(
  path: str | pathlib.Path, part: str | None = None, stage: int = 0
) -> efficientnet.EfficientNetLite0:
  """The encoder of a checkpoint, without its variables.

  Args:
    path: unused: there is one network.
    part: unused too.
    stage: see `efficientnet.EfficientNetLite0`.
  """
  del path, part
  return efficientnet.EfficientNetLite0(stage)


def load_efficientnet_variables(
  path: str | pathlib.Path,
  model: efficientnet.EfficientNetLite0,
  part: str | None = None,
) -> dict:
  """The variables of an encoder.

  Args:
    path: a file of tensors, see `tensor_files.read_tensors`.
    model: the encoder.
    part: of a file of several networks the one that is meant, see
      `tensors.choose`.

  Returns:
    {'params': ..., 'batch_stats': ...}, numpy arrays.

  Raises:
    MissingFileError: nothing there.
    InputError: damaged or ill-fitting checkpoints, see `load.convert`.
  """
  images = jnp.zeros((1, 64, 64, 3))
  rules = efficientnet_rules()
  ignore = _UNUSED
  if model.stage:
    # Of the stages that do not run: known all the same.
    ignore += tuple(source for rule in rules for source in rule.sources)
  tensors = tensor_files.read_tensors(path)
  return load.convert(
    tensors_lib.pick(tensors, places(tensors), part),
    rules,
    jax.eval_shape(model.init, jax.random.key(0), images),
    ignore=ignore,
    name=str(path),
  )
