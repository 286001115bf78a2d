# SPDX-License-Identifier: Apache-2.0
"""The authors' checkpoints of LIP-Loc as variables of `Towers`.

The model they fit is the released one: two `resnet.ResNet`s, or two `vit.ViT`s
of timm's ViT-S/16 with `aggregate_cls`; `projection.ProjectionHead`s that are
not `normalized`, for the ViT with `pool='cls', hidden=2048`; a
`views.RangeImage` of the encoding 'released', and IMAGE_MEAN and IMAGE_STD.
"""

import math
import pathlib

from flax import linen as nn
import numpy as np

from i2ploc.errors import InputError
from i2ploc.models import towers
from i2ploc.models import views
from i2ploc.models.encoders import resnet
from i2ploc.models.encoders import vit as vit_encoder
from i2ploc.models.weights import load
from i2ploc.models.weights import resnet as resnet_lib
from i2ploc.models.weights import tensor_files
from i2ploc.models.weights import tensors as tensors_lib
from i2ploc.models.weights import vit

# Of ImageNet, for both sensors.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
TEMPERATURE = 1.0  # a constant of the release
IMAGE_SIZE = (224, 224)
UNUSED = ('*.num_batches_tracked',)
TOWERS = (('image', 'camera'), ('points', 'lidar'))


def encoder_rules(
  encoder: nn.Module,
  place: str,
  prefix: str,
  image_size: tuple[int, int],
) -> list[load.Rule]:
  """Rules of one tower's encoder.

  Args:
    encoder: a `resnet.ResNet` or `vit.ViT`.
    place: of it in the variables, 'image' or 'points'.
    prefix: in front of every name of the checkpoint.
    image_size: (H, W) that it is to be given, pixels.
  """
  if isinstance(encoder, resnet.ResNet):
    return resnet_lib.resnet_rules(
      resnet_lib.TORCHVISION, encoder, prefix=prefix, place=f'{place}/'
    )
  if not isinstance(encoder, vit_encoder.ViT):
    raise InputError(
      f'LIP-Loc published ResNets and ViTs, and no {type(encoder).__name__}'
    )
  return vit.vit_rules(
    vit.TIMM,
    encoder,
    vit.token_grid(encoder, IMAGE_SIZE),
    vit.token_grid(encoder, image_size),
    prefix=prefix,
    path=f'params/{place}',
  )


def head_rules(path: str, name: str, widen: str) -> list[load.Rule]:
  """Rules of a `ProjectionHead`.

  Args:
    path: of the head in the variables, such as 'params/image_aggregator'.
    name: of the checkpoint's, such as 'projection_camera'.
    widen: of the layer in front of it, such as 'encoder_camera.fc'.
  """
  return [
    *load.dense(f'{path}/widen', widen),
    *load.dense(f'{path}/project', f'{name}.projection'),
    *load.dense(f'{path}/mix', f'{name}.fc'),
    *load.norm(f'{path}/norm', f'{name}.layer_norm'),
  ]


def towers_rules(model: towers.Towers) -> list[load.Rule]:
  """Rules of the released model.

  Raises:
    InputError: towers of another form.
  """
  view = model.towers['points'].view
  if not isinstance(view, views.RangeImage) or view.encoding != 'released':
    raise InputError(
      "LIP-Loc's towers see released range images; set range_shape, and "
      "range_encoding to 'released' instead of "
      f'{getattr(view, "encoding", None)!r}'
    )
  rules = []
  sizes = model.image_view.size, view.shape
  for (side, name), size in zip(TOWERS, sizes, strict=True):
    encoder = model.towers[side].encoder
    prefix = f'encoder_{name}.'
    rules += encoder_rules(encoder, side, f'{prefix}model.', size)
    head = f'params/{side}_aggregator'
    rules += head_rules(head, f'projection_{name}', f'{prefix}fc')
  log_scale = np.asarray(-math.log(TEMPERATURE))
  return [*rules, load.Rule('params/log_scale', (), lambda: log_scale)]


def load_variables(
  path: str | pathlib.Path, model: towers.Towers, part: str | None = None
) -> dict:
  """The variables of a checkpoint.

  Args:
    path: the state_dict of the authors, or the same tensors as safetensors.
    model: the released form of the towers, see the module.
    part: of a file of several networks the one that is meant, see
      `tensors.choose`.

  Returns:
    {'params': ...}, of ResNets {'batch_stats': ...} as well, numpy arrays.

  Raises:
    MissingFileError: nothing there.
    InputError: a damaged file, or one that does not fit, see `load.convert`.
  """
  tensors = tensor_files.read_tensors(path)
  places = tensors.places('projection_camera.projection.weight')
  return load.convert(
    tensors_lib.pick(tensors, places, part),
    towers_rules(model),
    towers.shapes(model),
    ignore=UNUSED,
    name=str(path),
  )
