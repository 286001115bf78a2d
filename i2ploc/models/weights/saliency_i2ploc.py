# SPDX-License-Identifier: Apache-2.0
"""The authors' checkpoints of SaliencyI2PLoc as variables of `Towers`.

The model they fit is the released one: `RecomputedSaliency`, `aggregate_cls`,
IMAGE_MEAN and IMAGE_STD, for panoramas `projection='equirectangular'`, and the
released forms of `point_transformer.PointTransformer` and `vlad.NetVLAD`
that their docstrings give.
"""

import math
import pathlib

import numpy as np

from i2ploc.errors import InputError
from i2ploc.models import towers
from i2ploc.models.encoders import point_transformer
from i2ploc.models.encoders import vit as vit_encoder
from i2ploc.models.weights import load
from i2ploc.models.weights import tensor_files
from i2ploc.models.weights import tensors as tensors_lib
from i2ploc.models.weights import vit

IMAGE_MEAN = (0.396197, 0.452953, 0.490031)
IMAGE_STD = (0.315778, 0.343629, 0.369563)
TEMPERATURE = 0.07
# The norm before the released classifier, which localization does without, and
# the counters of torch's BatchNorm.
UNUSED = ('pc_encoder.fc_norm.*', '*.num_batches_tracked')

# Of the images (H, W) that the released checkpoints are for.
KITTI_360_SIZE = (512, 1024)
KITTI_SIZE = (368, 1232)


def _pointwise(path: str, name: str) -> list[load.Rule]:
  """Rules of an `nn.Dense` from torch's Conv1d of kernel size 1."""
  return [
    load.Rule(f'{path}/kernel', (f'{name}.weight',), lambda w: w.squeeze(-1).T),
    load.Rule(f'{path}/bias', (f'{name}.bias',)),
  ]


def point_transformer_rules(
  depth: int, place: str = '', prefix: str = ''
) -> list[load.Rule]:
  """Rules of a released `PointTransformer`.

  Args:
    depth: number of blocks.
    place: of the module in the variables, such as 'points/'.
    prefix: in front of every name of the checkpoint, such as 'pc_encoder.'.
  """
  path = f'params/{place}'
  pointnet = f'{path}pointnet'
  first = f'{prefix}emb_encoder.first_conv'
  second = f'{prefix}emb_encoder.second_conv'
  joint = f'{second}.0.weight'

  def half(which):
    # [group, point] side by side there, two layers here.
    return lambda w: np.split(w.squeeze(-1), 2, axis=1)[which].T

  rules = [
    *_pointwise(f'{pointnet}/point1', f'{first}.0'),
    *load.batch_norm(f'{place}pointnet/norm1', f'{first}.1'),
    *_pointwise(f'{pointnet}/point2', f'{first}.3'),
    load.Rule(f'{pointnet}/group/kernel', (joint,), half(0)),
    load.Rule(f'{pointnet}/group/bias', (f'{second}.0.bias',)),
    load.Rule(f'{pointnet}/point3/kernel', (joint,), half(1)),
    *load.batch_norm(f'{place}pointnet/norm2', f'{second}.1'),
    *_pointwise(f'{pointnet}/point4', f'{second}.3'),
    *load.dense(f'{path}reduce', f'{prefix}reduce_dim'),
    *load.dense(f'{path}position1', f'{prefix}pos_embed.0'),
    *load.dense(f'{path}position2', f'{prefix}pos_embed.2'),
    load.Rule(f'{path}cls', (f'{prefix}cls_token',)),
    load.Rule(f'{path}cls_position', (f'{prefix}cls_pos',)),
    *load.norm(f'{path}norm', f'{prefix}norm'),
  ]
  for i in range(depth):
    rules += vit.block_rules(
      vit.TIMM,
      False,
      f'{path}blocks_{i}',
      f'{prefix}blocks.blocks.{i}.',
    )
  return rules


def netvlad_rules(place: str = '', prefix: str = '') -> list[load.Rule]:
  """Rules of a released `NetVLAD`, with or without its norms and gate.

  Args:
    place: of the module in the variables, such as 'points_aggregator/'.
    prefix: in front of every name of the checkpoint, such as 'pc_proj.'.
  """
  path, gating = f'params/{place}', f'{prefix}context_gating'
  kernels = {
    'assign/kernel': f'{prefix}cluster_weights',
    'assign/bias': f'{prefix}cluster_biases',
    'SectorHead_0/kernel': f'{prefix}hidden1_weights',
    'gate/kernel': f'{gating}.gating_weights',
    'gate/bias': f'{gating}.gating_biases',
  }
  return [
    *(load.Rule(path + ours, (name,)) for ours, name in kernels.items()),
    load.Rule(
      f'{path}centers', (f'{prefix}cluster_weights2',), lambda c: c[0].T
    ),
    *load.batch_norm(f'{place}assign_norm', f'{prefix}bn1'),
    *load.batch_norm(f'{place}output_norm', f'{prefix}bn2'),
    *load.batch_norm(f'{place}gate_norm', f'{gating}.bn1'),
  ]


def towers_rules(
  model: towers.Towers, from_size: tuple[int, int]
) -> list[load.Rule]:
  """Rules of the released model.

  Args:
    model: the towers.
    from_size: (H, W) of the images that the checkpoint is for, pixels.

  Raises:
    InputError: towers of another form.
  """
  image, points = (model.towers[side].encoder for side in ('image', 'points'))
  if not (
    isinstance(image, vit_encoder.ViT)
    and isinstance(points, point_transformer.PointTransformer)
  ):
    raise InputError(
      'SaliencyI2PLoc published a ViT and a point transformer, and no '
      f'{type(image).__name__} and {type(points).__name__}'
    )
  return [
    *vit.vit_rules(
      vit.TIMM,
      image,
      vit.token_grid(image, from_size),
      vit.token_grid(image, model.image_view.size),
      prefix='image_encoder.',
      path='params/image',
    ),
    *point_transformer_rules(points.depth, 'points/', 'pc_encoder.'),
    *netvlad_rules('image_aggregator/', 'vision_proj.'),
    *netvlad_rules('points_aggregator/', 'pc_proj.'),
    # A constant of the release.
    load.Rule(
      'params/log_scale', (), lambda: np.asarray(-math.log(TEMPERATURE))
    ),
  ]


def load_variables(
  path: str | pathlib.Path,
  model: towers.Towers,
  *,
  from_size: tuple[int, int] | None = None,
  part: str | None = None,
) -> dict:
  """The variables of a checkpoint.

  Args:
    path: the .pth of the authors, or the same tensors as safetensors.
    model: the released form of the towers, see the module.
    from_size: (H, W) pixels of the images that the checkpoint is for; its
      position embeddings are resampled to the model's. None tells it by their
      number: the model's own, KITTI-360's or KITTI's.
    part: of a file of several networks the one that is meant, see
      `tensors.choose`.

  Returns:
    {'params': ..., 'batch_stats': ...}, numpy arrays.

  Raises:
    MissingFileError: nothing there.
    InputError: a damaged file, or one that does not fit, see `load.convert`.
  """
  tensors = tensor_files.read_tensors(path)
  places = tensors.places('image_encoder.patch_embed.proj.weight')
  tensors = tensors_lib.pick(tensors, places, part)
  from_size = from_size or _image_size(tensors, model)
  return load.convert(
    tensors,
    towers_rules(model, from_size),
    towers.shapes(model),
    ignore=UNUSED,
    name=str(path),
  )


def _image_size(tensors, model):
  """Of the known image sizes the one whose patches have positions."""
  own = model.image_view.size
  position = tensors.get('image_encoder.pos_embed')
  patch = getattr(model.towers['image'].encoder, 'patch_size', 1)
  known = (own, KITTI_360_SIZE, KITTI_SIZE)
  for height, width in known if position is not None else ():
    if (height // patch) * (width // patch) + 1 == position.shape[1]:
      return height, width
  return own
